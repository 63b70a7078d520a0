//! Faults: what they return, that they stay, and what can be read about them.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::kernels::{ADD, BUMP, module};
use super::streams::block;
use super::{assert_passed, child, is_child, with_driver};

const TRAP: &str = ".visible .entry k()\n{\ntrap;\n}\n";

fn add(context: &Arc<CudaContext>) -> CudaFunction {
    let loaded = context.load_module(Ptx::from_src(module(&[ADD, BUMP]))).unwrap();
    loaded.load_function("add").unwrap()
}

/// Adds more elements than there are.
fn overrun() -> sys::CUresult {
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let add = add(&context);
    let a = stream.clone_htod(&[1f32; 64]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(64).unwrap();
    let mut launch = stream.launch_builder(&add);
    launch.arg(&mut out).arg(&a).arg(&a).arg(&65u32);
    let launched = unsafe { launch.launch(LaunchConfig::for_num_elems(65)) }.map(drop);
    let code = launched.and_then(|()| stream.synchronize()).unwrap_err().0;
    // Whatever comes next on the context gives the same.
    assert_eq!(context.synchronize().unwrap_err().0, code);
    context.bind_to_thread().unwrap();
    assert_eq!(unsafe { result::malloc_sync(4) }.unwrap_err().0, code);
    code
}

#[test]
fn faults_stay_until_the_context_is_reset() {
    with_driver("errors::faults_stay_until_the_context_is_reset", || {
        assert_eq!(overrun(), sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let context = CudaContext::new(0).unwrap();
        let device = context.cu_device();
        unsafe { sys::cuDevicePrimaryCtxReset_v2(device) }.result().unwrap();
        context.synchronize().unwrap();
        let stream = context.default_stream();
        let data = stream.clone_htod(&[1u8, 2, 3]).unwrap();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    });
}

#[test]
fn a_report_names_kernel_line_block_and_thread() {
    with_driver("errors::a_report_names_kernel_line_block_and_thread", || {
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
        type Report = unsafe extern "C" fn(*mut u8, usize) -> usize;
        let report: libloading::Symbol<'_, Report> =
            unsafe { library.get(b"softcuda_last_report") }.unwrap();
        assert_eq!(unsafe { report(std::ptr::null_mut(), 0) }, 1, "nothing happened yet");
        overrun();
        let bytes = unsafe { report(std::ptr::null_mut(), 0) };
        let mut buffer = vec![0xffu8; bytes];
        unsafe { report(buffer.as_mut_ptr(), bytes) };
        assert_eq!(buffer.pop(), Some(0));
        let told = String::from_utf8(buffer).unwrap();
        for part in ["OutOfBounds", "kernel add", "PTX line", "thread [64, 0, 0]", "0xa"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    });
}

#[test]
fn misaligned_access_has_its_own_code() {
    with_driver("errors::misaligned_access_has_its_own_code", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let loaded = context.load_module(Ptx::from_src(module(&[BUMP]))).unwrap();
        let bump = loaded.load_function("bump").unwrap();
        let data = stream.alloc_zeros::<u8>(64).unwrap();
        let odd = data.slice(1..);
        let mut launch = stream.launch_builder(&bump);
        launch.arg(&odd).arg(&1u32).arg(&1f32);
        let error = unsafe { launch.launch(LaunchConfig::for_num_elems(1)) }.map(drop).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
    });
}

#[test]
fn endless_kernels_end() {
    with_driver("errors::endless_kernels_end", || {
        if std::env::var_os("SOFTCUDA_LIMIT").is_none() {
            let limit = [("SOFTCUDA_LIMIT", "100000")];
            let output = child("errors::endless_kernels_end", &limit);
            assert_passed(&output);
            return;
        }
        let context = CudaContext::new(0).unwrap();
        let endless = ".visible .entry k()\n{\nAGAIN: bra AGAIN;\n}\n";
        let loaded = context.load_module(Ptx::from_src(module(&[endless]))).unwrap();
        let k = loaded.load_function("k").unwrap();
        let stream = context.default_stream();
        let shape = LaunchConfig::for_num_elems(1);
        let error = unsafe { stream.launch_builder(&k).launch(shape) }.map(drop).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    });
}

#[test]
fn asynchronous_launches_fail_later() {
    with_driver("errors::asynchronous_launches_fail_later", || {
        if std::env::var_os("CUDA_LAUNCH_BLOCKING").is_none() {
            let mode = [("CUDA_LAUNCH_BLOCKING", "0")];
            let output = child("errors::asynchronous_launches_fail_later", &mode);
            assert_passed(&output);
            return;
        }
        let context = CudaContext::new(0).unwrap();
        let loaded = context.load_module(Ptx::from_src(module(&[TRAP]))).unwrap();
        let k = loaded.load_function("k").unwrap();
        let stream = context.new_stream().unwrap();
        let shape = LaunchConfig::for_num_elems(1);
        unsafe { stream.launch_builder(&k).launch(shape) }.map(drop).unwrap();
        let error = stream.synchronize().unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

/// Waits for an event as a thread of its own, since a wrong driver might never return.
fn waited(event: &Arc<CudaEvent>) -> Result<(), DriverError> {
    let (sender, receiver) = channel();
    let event = event.clone();
    std::thread::spawn(move || sender.send(event.synchronize()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("the wait ends")
}

#[test]
fn events_after_a_fault_are_not_waited_for() {
    with_driver("errors::events_after_a_fault_are_not_waited_for", || {
        let context = CudaContext::new(0).unwrap();
        let loaded = context.load_module(Ptx::from_src(module(&[TRAP]))).unwrap();
        let k = loaded.load_function("k").unwrap();
        let stream = context.new_stream().unwrap();
        let events = [(); 2].map(|()| Arc::new(context.new_event(None).unwrap()));
        let shape = LaunchConfig::for_num_elems(1);
        let fault = unsafe { stream.launch_builder(&k).launch(shape) }.map(drop).unwrap_err();
        assert_eq!(fault.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(events[0].record(&stream).unwrap_err(), fault);
        let of_context = unsafe { sys::cuCtxRecordEvent(context.cu_ctx(), events[1].cu_event()) };
        assert_eq!(of_context, fault.0);
        for event in &events {
            assert_eq!(waited(event).unwrap_err(), fault);
        }
    });
}

#[test]
fn a_refused_record_leaves_the_event_as_it_was() {
    with_driver("errors::a_refused_record_leaves_the_event_as_it_was", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let raw = result::stream::create(result::stream::StreamKind::Default).unwrap();
        let capturing = unsafe { context.wrap_borrowed_stream(raw) };
        let busy = context.new_stream().unwrap();
        let events = [(); 3].map(|()| Arc::new(context.new_event(None).unwrap()));
        let [new, pending, captured] = &events;
        let release = block(&busy);
        pending.record(&busy).unwrap();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        capturing.begin_capture(mode).unwrap();
        captured.record(&capturing).unwrap();
        for event in &events {
            let refused = event.record(&context.default_stream()).unwrap_err();
            assert_eq!(refused.0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        }
        // Whether the capture gives a graph now is not the question.
        let _ = unsafe { result::stream::end_capture(raw) };
        let still = waited(captured).unwrap_err().0;
        assert_eq!(still, sys::CUresult::CUDA_ERROR_CAPTURED_EVENT);
        waited(new).unwrap();
        assert!(!pending.is_complete());
        release.send(()).unwrap();
        waited(pending).unwrap();
        unsafe { result::stream::destroy(raw) }.unwrap();
    });
}

#[test]
fn counters_are_written_as_json() {
    let path = std::env::temp_dir().join(format!("softcuda-counters-{}", std::process::id()));
    if is_child() {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let add = add(&context);
        let a = stream.clone_htod(&[1f32; 64]).unwrap();
        let mut out = stream.alloc_zeros::<f32>(64).unwrap();
        for _ in 0..2 {
            let mut launch = stream.launch_builder(&add);
            launch.arg(&mut out).arg(&a).arg(&a).arg(&64u32);
            unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
        }
        return;
    }
    let variables = [("SOFTCUDA_COUNTERS", path.to_str().unwrap())];
    let output = child("errors::counters_are_written_as_json", &variables);
    assert_passed(&output);
    let rows = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let rows: Vec<serde_json::Value> =
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    let row = &rows[1];
    assert_eq!((&row["kernel"], &row["launch"]), (&"add".into(), &2.into()));
    assert_eq!(row["block"], serde_json::json!([1024, 1, 1]));
    // Two loads and a store of 64 numbers: two warps each, 128 bytes and four sectors a warp.
    assert_eq!(row["totals"]["global_requests"], 6);
    assert_eq!(row["totals"]["global_bytes"], 3 * 256);
    assert_eq!(row["totals"]["global_sectors"], 6 * 4);
    assert_eq!((&row["classes"]["load"], &row["classes"]["store"]), (&132.into(), &2.into()));
    let lines = row["lines"].as_array().unwrap();
    assert!(lines.iter().any(|line| line["global_bytes"] == 256 && line["ptx"].is_u64()));
    assert_eq!(rows[0]["totals"], row["totals"], "counts repeat");
}
