//! Streams and events, host functions among them.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels::{BUMP, MEET, module};
use super::{assert_passed, child, is_child, with_driver};

unsafe extern "C" fn wait(data: *mut c_void) {
    let receiver = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
    let _ = receiver.recv_timeout(Duration::from_secs(30));
}

/// Makes a stream wait until the sender sends.
pub fn block(stream: &CudaStream) -> Sender<()> {
    let (sender, receiver) = channel::<()>();
    let data = Box::into_raw(Box::new(receiver)).cast();
    unsafe { result::stream::launch_host_function(stream.cu_stream(), wait, data) }.unwrap();
    sender
}

#[test]
fn work_waits_behind_a_host_function() {
    with_driver("streams::work_waits_behind_a_host_function", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let mut data = stream.alloc_zeros::<f32>(4).unwrap();
        let function = context.load_module(Ptx::from_src(module(&[BUMP]))).unwrap();
        let bump = function.load_function("bump").unwrap();
        let release = block(&stream);
        let mut launch = stream.launch_builder(&bump);
        launch.arg(&mut data).arg(&4u32).arg(&1.5f32);
        unsafe { launch.launch(LaunchConfig::for_num_elems(4)) }.unwrap();
        let event = stream.record_event(None).unwrap();
        let query = || unsafe { sys::cuStreamQuery(stream.cu_stream()) };
        assert_eq!(query(), sys::CUresult::CUDA_ERROR_NOT_READY);
        assert!(!event.is_complete());
        // Another stream that waits for the event is not done either.
        let other = context.new_stream().unwrap();
        other.wait(&event).unwrap();
        let behind = other.record_event(None).unwrap();
        assert!(!behind.is_complete());
        release.send(()).unwrap();
        behind.synchronize().unwrap();
        assert!(event.is_complete());
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [1.5; 4]);
        assert_eq!(query(), sys::CUresult::CUDA_SUCCESS);
    });
}

#[test]
fn launches_of_two_streams_run_at_once() {
    let test = "streams::launches_of_two_streams_run_at_once";
    if !is_child() {
        // One after the other, the first would never end.
        let few = [("SOFTCUDA_LIMIT", "20000000"), ("SOFTCUDA_THREADS", "1")];
        return assert_passed(&child(test, &few));
    }
    let context = CudaContext::new(0).unwrap();
    let meet = context.load_module(Ptx::from_src(module(&[MEET]))).unwrap();
    let meet = meet.load_function("meet").unwrap();
    // Addresses, since cudarc would have the streams wait for each other's buffers.
    let words = unsafe { result::malloc_sync(8) }.unwrap();
    unsafe { result::memset_d8_sync(words, 0, 8) }.unwrap();
    std::thread::scope(|scope| {
        for (mine, theirs) in [(words, words + 4), (words + 4, words)] {
            let (context, meet) = (&context, &meet);
            scope.spawn(move || {
                let stream = context.new_stream().unwrap();
                let mut launch = stream.launch_builder(meet);
                launch.arg(&mine).arg(&theirs);
                unsafe { launch.launch(LaunchConfig::for_num_elems(1)) }.unwrap();
                stream.synchronize().unwrap();
            });
        }
    });
}

#[test]
fn waiting_for_a_stream_is_not_for_what_comes_later() {
    with_driver("streams::waiting_for_a_stream_is_not_for_what_comes_later", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // Whether the other thread waits already cannot be seen, so it gets more and more time for that.
        let returned = [50, 1000, 5000].into_iter().any(|milliseconds| {
            let first = block(&stream);
            let (sender, receiver) = channel();
            let waiting = stream.clone();
            let thread = std::thread::spawn(move || {
                waiting.synchronize().unwrap();
                sender.send(()).unwrap();
            });
            std::thread::sleep(Duration::from_millis(milliseconds));
            let second = block(&stream);
            assert!(receiver.try_recv().is_err());
            first.send(()).unwrap();
            let returned = receiver.recv_timeout(Duration::from_secs(5)).is_ok();
            second.send(()).unwrap();
            thread.join().unwrap();
            stream.synchronize().unwrap();
            returned
        });
        assert!(returned);
    });
}

#[test]
fn pageable_memory_may_change_after_the_call() {
    with_driver("streams::pageable_memory_may_change_after_the_call", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let mut data = stream.alloc_zeros::<u32>(3).unwrap();
        let release = block(&stream);
        let mut host = vec![1u32, 2, 3];
        stream.memcpy_htod(&host, &mut data).unwrap();
        host.fill(9);
        release.send(()).unwrap();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    });
}

#[test]
fn the_default_stream_waits_for_blocking_ones() {
    with_driver("streams::the_default_stream_waits_for_blocking_ones", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let kind = result::stream::StreamKind::Default;
        let raw = result::stream::create(kind).unwrap();
        let blocking = unsafe { context.wrap_borrowed_stream(raw) };
        let release = block(&blocking);
        let event = context.default_stream().record_event(None).unwrap();
        assert!(!event.is_complete());
        // And the other way round: behind the default stream's work.
        let second = blocking.record_event(None).unwrap();
        release.send(()).unwrap();
        second.synchronize().unwrap();
        assert!(event.is_complete());
        context.synchronize().unwrap();
        unsafe { result::stream::destroy(raw) }.unwrap();
    });
}

#[test]
fn pageable_memory_may_change_while_the_default_stream_waits_for_others() {
    let test = "streams::pageable_memory_may_change_while_the_default_stream_waits_for_others";
    with_driver(test, || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut data = stream.alloc_zeros::<u32>(3).unwrap();
        stream.synchronize().unwrap();
        let kind = result::stream::StreamKind::Default;
        let raw = result::stream::create(kind).unwrap();
        let blocking = unsafe { context.wrap_borrowed_stream(raw) };
        let release = block(&blocking);
        let mut host = vec![1u32, 2, 3];
        stream.memcpy_htod(&host, &mut data).unwrap();
        host.fill(9);
        release.send(()).unwrap();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [1, 2, 3]);
        unsafe { result::stream::destroy(raw) }.unwrap();
    });
}

#[test]
fn a_wait_is_for_the_record_there_was() {
    with_driver("streams::a_wait_is_for_the_record_there_was", || {
        let context = CudaContext::new(0).unwrap();
        let [busy, idle, behind] = [(); 3].map(|()| context.new_stream().unwrap());
        let event = context.new_event(None).unwrap();
        let release = block(&busy);
        event.record(&busy).unwrap();
        behind.wait(&event).unwrap();
        event.record(&idle).unwrap();
        assert!(event.is_complete(), "the last record counts for a query");
        // A stream that wrongly went on would need a moment for it.
        std::thread::sleep(Duration::from_millis(200));
        let waits = behind.record_event(None).unwrap();
        assert!(!waits.is_complete());
        release.send(()).unwrap();
        waits.synchronize().unwrap();
    });
}

#[test]
fn synchronizing_with_an_event_is_for_the_record_there_was() {
    with_driver("streams::synchronizing_with_an_event_is_for_the_record_there_was", || {
        let context = CudaContext::new(0).unwrap();
        let (busy, idle) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let event = Arc::new(context.new_event(None).unwrap());
        // Whether the other thread waits already cannot be seen, so it gets more and more time for that.
        let waited = [50, 1000, 5000].into_iter().any(|milliseconds| {
            let release = block(&busy);
            event.record(&busy).unwrap();
            let (sender, receiver) = channel();
            let waiting = event.clone();
            let thread = std::thread::spawn(move || {
                waiting.synchronize().unwrap();
                sender.send(()).unwrap();
            });
            std::thread::sleep(Duration::from_millis(milliseconds));
            event.record(&idle).unwrap();
            let waited = receiver.recv_timeout(Duration::from_millis(500)).is_err();
            release.send(()).unwrap();
            thread.join().unwrap();
            busy.synchronize().unwrap();
            waited
        });
        assert!(waited);
    });
}

#[test]
fn an_event_tells_the_time_of_its_last_record() {
    with_driver("streams::an_event_tells_the_time_of_its_last_record", || {
        let context = CudaContext::new(0).unwrap();
        let (busy, idle) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = context.new_event(timed).unwrap();
        let release = block(&busy);
        event.record(&busy).unwrap();
        event.record(&idle).unwrap();
        let end = idle.record_event(timed).unwrap();
        // The record before it is reached later.
        release.send(()).unwrap();
        busy.synchronize().unwrap();
        let elapsed = event.elapsed_ms(&end).unwrap();
        assert!(elapsed >= 0.0, "{elapsed}");
    });
}

#[test]
fn the_default_stream_waits_for_those_of_threads() {
    with_driver("streams::the_default_stream_waits_for_those_of_threads", || {
        let context = CudaContext::new(0).unwrap();
        let (legacy, own) = (context.default_stream(), context.per_thread_stream());
        let source = legacy.clone_htod(&[1u32, 2, 3]).unwrap();
        let mut data = legacy.alloc_zeros::<u32>(3).unwrap();
        legacy.synchronize().unwrap();
        let release = block(&own);
        legacy.memcpy_dtod(&source, &mut data).unwrap();
        let copied = legacy.record_event(None).unwrap();
        assert!(!copied.is_complete());
        // And the other way round: behind the default stream's work.
        let second = own.record_event(None).unwrap();
        release.send(()).unwrap();
        second.synchronize().unwrap();
        assert!(copied.is_complete());
        assert_eq!(legacy.clone_dtoh(&data).unwrap(), [1, 2, 3]);
    });
}

#[test]
fn events_measure_time() {
    with_driver("streams::events_measure_time", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let start = stream.record_event(timed).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let end = stream.record_event(timed).unwrap();
        let elapsed = start.elapsed_ms(&end).unwrap();
        assert!((19.0..10_000.0).contains(&elapsed), "{elapsed}");
        let untimed = stream.record_event(None).unwrap();
        assert!(start.elapsed_ms(&untimed).is_err());
    });
}

#[test]
fn callbacks_learn_the_status() {
    with_driver("streams::callbacks_learn_the_status", || {
        unsafe extern "C" fn tell(_: sys::CUstream, status: sys::CUresult, data: *mut c_void) {
            let sender = unsafe { Box::from_raw(data.cast::<Sender<sys::CUresult>>()) };
            sender.send(status).unwrap();
        }
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let (sender, receiver) = channel();
        let data = Box::into_raw(Box::new(sender)).cast();
        unsafe { sys::cuStreamAddCallback(stream.cu_stream(), Some(tell), data, 0) }
            .result()
            .unwrap();
        let told = receiver.recv_timeout(Duration::from_secs(30));
        assert_eq!(told, Ok(sys::CUresult::CUDA_SUCCESS));
        stream.synchronize().unwrap();
    });
}
