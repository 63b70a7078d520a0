//! Capture and graphs.

use cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels::{BUMP, module};
use super::with_driver;

const MODE: sys::CUstreamCaptureMode =
    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn captured_work_is_done_at_every_launch() {
    with_driver("graphs::captured_work_is_done_at_every_launch", || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let loaded = context.load_module(Ptx::from_src(module(&[BUMP]))).unwrap();
        let bump = loaded.load_function("bump").unwrap();
        let mut data = stream.clone_htod(&[1f32; 100]).unwrap();
        let mut copy = stream.alloc_zeros::<f32>(100).unwrap();
        stream.begin_capture(MODE).unwrap();
        let mut launch = stream.launch_builder(&bump);
        launch.arg(&mut data).arg(&100u32).arg(&2f32);
        unsafe { launch.launch(LaunchConfig::for_num_elems(100)) }.unwrap();
        stream.memcpy_dtod(&data, &mut copy).unwrap();
        let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [1.0; 100], "nothing was done yet");
        for round in 1..=3 {
            graph.launch().unwrap();
            let expected = [1.0 + 2.0 * round as f32; 100];
            assert_eq!(stream.clone_dtoh(&copy).unwrap(), expected);
        }
        let raw = graph.cu_graph();
        let mut nodes = 0;
        unsafe { sys::cuGraphGetNodes(raw, std::ptr::null_mut(), &mut nodes) }.result().unwrap();
        assert_eq!(nodes, 2);
        let mut roots = 0;
        unsafe { sys::cuGraphGetRootNodes(raw, std::ptr::null_mut(), &mut roots) }
            .result()
            .unwrap();
        assert_eq!(roots, 1);
    });
}

#[test]
fn memory_allocated_in_a_capture_stays() {
    with_driver("graphs::memory_allocated_in_a_capture_stays", || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let mut out = stream.alloc_zeros::<u32>(8).unwrap();
        stream.begin_capture(MODE).unwrap();
        let mut own = unsafe { stream.alloc::<u32>(8) }.unwrap();
        stream.memset_zeros(&mut own).unwrap();
        stream.memcpy_dtod(&own, &mut out).unwrap();
        drop(own);
        let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
        for _ in 0..2 {
            stream.memcpy_htod(&[5u32; 8], &mut out).unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.clone_dtoh(&out).unwrap(), [0; 8]);
        }
    });
}

#[test]
fn streams_join_by_events() {
    with_driver("graphs::streams_join_by_events", || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let (main, side) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let mut data = main.alloc_zeros::<u32>(4).unwrap();
        let mut other = main.alloc_zeros::<u32>(4).unwrap();
        let (fork, join) = (context.new_event(None).unwrap(), context.new_event(None).unwrap());
        let capture = |data: &mut _, other: &mut _, joined: bool| {
            main.begin_capture(MODE).unwrap();
            main.memset_zeros(data).unwrap();
            fork.record(&main).unwrap();
            side.wait(&fork).unwrap();
            side.memset_zeros(other).unwrap();
            join.record(&side).unwrap();
            if joined {
                main.wait(&join).unwrap();
            }
            main.end_capture(Flags(0)).map_err(|error| error.0)
        };
        let graph = capture(&mut data, &mut other, true).unwrap().unwrap();
        let mut edges = 0;
        let null = std::ptr::null_mut::<sys::CUgraphNode>;
        unsafe {
            sys::cuGraphGetEdges_v2(graph.cu_graph(), null(), null(), null().cast(), &mut edges)
        }
        .result()
        .unwrap();
        assert_eq!(edges, 1);
        graph.launch().unwrap();
        let unjoined = capture(&mut data, &mut other, false).err();
        assert_eq!(unjoined, Some(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
        // Both are free again.
        side.memset_zeros(&mut other).unwrap();
        side.synchronize().unwrap();
        main.synchronize().unwrap();
    });
}

#[test]
fn a_threads_default_stream_leaves_a_capture_that_ends() {
    with_driver("graphs::a_threads_default_stream_leaves_a_capture_that_ends", || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let (main, own) = (context.new_stream().unwrap(), context.per_thread_stream());
        let mut data = main.clone_htod(&[7u32; 4]).unwrap();
        let (fork, join) = (context.new_event(None).unwrap(), context.new_event(None).unwrap());
        main.begin_capture(MODE).unwrap();
        fork.record(&main).unwrap();
        own.wait(&fork).unwrap();
        own.memset_zeros(&mut data).unwrap();
        join.record(&own).unwrap();
        main.wait(&join).unwrap();
        let graph = main.end_capture(Flags(0)).unwrap().unwrap();
        let none = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        assert_eq!(own.capture_status().unwrap(), none);
        own.memcpy_htod(&[5u32; 4], &mut data).unwrap();
        own.synchronize().unwrap();
        assert_eq!(main.clone_dtoh(&data).unwrap(), [5; 4]);
        graph.launch().unwrap();
        assert_eq!(main.clone_dtoh(&data).unwrap(), [0; 4]);
    });
}

#[test]
fn the_default_stream_cannot_wait_for_a_capture() {
    with_driver("graphs::the_default_stream_cannot_wait_for_a_capture", || {
        let context = CudaContext::new(0).unwrap();
        let (legacy, own) = (context.default_stream(), context.per_thread_stream());
        own.begin_capture(MODE).unwrap();
        let implicit = sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        assert_eq!(legacy.capture_status().unwrap_err().0, implicit);
        assert_eq!(legacy.record_event(None).err().unwrap().0, implicit);
        // Whether the capture gives a graph now is not the question.
        let _ = own.end_capture(Flags(0));
        legacy.record_event(None).unwrap().synchronize().unwrap();
    });
}

#[test]
fn what_a_graph_cannot_hold_ends_the_capture() {
    with_driver("graphs::what_a_graph_cannot_hold_ends_the_capture", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        stream.begin_capture(MODE).unwrap();
        let unsupported = sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        assert_eq!(unsafe { result::malloc_sync(16) }.unwrap_err().0, unsupported);
        let status = stream.capture_status().unwrap();
        let invalidated = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED;
        assert_eq!(status, invalidated);
        assert_eq!(
            stream.end_capture(Flags(0)).err().unwrap().0,
            sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        );
        assert!(unsafe { result::malloc_sync(16) }.is_ok());
        assert_eq!(
            unsafe { result::stream::end_capture(stream.cu_stream()) }.unwrap_err().0,
            sys::CUresult::CUDA_ERROR_ILLEGAL_STATE
        );
    });
}
