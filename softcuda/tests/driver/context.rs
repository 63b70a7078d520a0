//! Devices and contexts.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, result, sys};

use super::{assert_passed, child, is_child, text, with_driver};

#[test]
fn device_tells_its_architecture() {
    with_driver("context::device_tells_its_architecture", || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(CudaContext::device_count(), Ok(1));
        let expected = std::env::var("SOFTCUDA_ARCH").unwrap_or("90".to_owned());
        let (major, minor) = context.compute_capability().unwrap();
        assert_eq!(format!("{major}{minor}"), expected);
        assert!(context.name().unwrap().contains(&format!("sm_{expected}")));
        let attribute = |which| context.attribute(which).unwrap();
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 1024);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X), i32::MAX);
        let opt_in = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        assert_eq!(opt_in, if expected == "80" { 163 << 10 } else { 227 << 10 });
        let (free, total) = context.mem_get_info().unwrap();
        assert!(free <= total && total == context.total_mem().unwrap());
        assert_ne!(context.uuid().unwrap().bytes, [0; 16]);
    });
}

#[test]
fn every_architecture_can_be_chosen() {
    if is_child() {
        return;
    }
    for arch in ["80", "90", "100"] {
        let test = "context::device_tells_its_architecture";
        let output = child(test, &[("SOFTCUDA_ARCH", arch)]);
        assert_passed(&output);
    }
    let test = "context::device_tells_its_architecture";
    let output = child(test, &[("SOFTCUDA_ARCH", "75")]);
    assert!(!output.status.success());
    assert!(text(&output).contains("expected 80, 90 or 100"), "{}", text(&output));
}

#[test]
fn wrong_devices_and_contexts_are_refused() {
    with_driver("context::wrong_devices_and_contexts_are_refused", || {
        // Before anything else: nothing is initialised.
        let mut count = 0;
        let early = unsafe { sys::cuDeviceGetCount(&mut count) };
        assert_eq!(early, sys::CUresult::CUDA_ERROR_NOT_INITIALIZED);
        result::init().unwrap();
        let code = |error: result::DriverError| error.0;
        let error = result::device::get(1).unwrap_err();
        assert_eq!(code(error), sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
        // No context is current yet.
        let error = unsafe { result::malloc_sync(16) }.unwrap_err();
        assert_eq!(code(error), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let null = unsafe { sys::cuDeviceGetCount(std::ptr::null_mut()) };
        assert_eq!(null, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let wrong = unsafe { result::ctx::set_current(0x1234 as sys::CUcontext) }.unwrap_err();
        assert_eq!(code(wrong), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(wrong.error_name().unwrap().to_str(), Ok("CUDA_ERROR_INVALID_CONTEXT"));
        assert!(!wrong.error_string().unwrap().is_empty());
    });
}

#[test]
fn contexts_are_stacked_per_thread() {
    with_driver("context::contexts_are_stacked_per_thread", || {
        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        let create = || {
            let mut made = std::ptr::null_mut();
            unsafe { sys::cuCtxCreate_v4(&mut made, std::ptr::null_mut(), 0, device) }
                .result()
                .map(|()| made)
        };
        let (first, second) = (create().unwrap(), create().unwrap());
        assert_eq!(result::ctx::get_current(), Ok(Some(second)));
        let mut popped = std::ptr::null_mut();
        unsafe { sys::cuCtxPopCurrent_v2(&mut popped) }.result().unwrap();
        assert_eq!(popped, second);
        assert_eq!(result::ctx::get_current(), Ok(Some(first)));
        std::thread::spawn(|| assert_eq!(result::ctx::get_current(), Ok(None))).join().unwrap();
        // Memory of a destroyed context is gone with it.
        let pointer = unsafe { result::malloc_sync(64) }.unwrap();
        let (before, _) = result::mem_get_info().unwrap();
        unsafe { sys::cuCtxDestroy_v2(first) }.result().unwrap();
        unsafe { result::ctx::set_current(second) }.unwrap();
        let (after, _) = result::mem_get_info().unwrap();
        assert!(after > before);
        assert!(unsafe { result::free_sync(pointer) }.is_err());
        unsafe { sys::cuCtxDestroy_v2(second) }.result().unwrap();
    });
}

#[test]
fn limits_and_flags() {
    with_driver("context::limits_and_flags", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
        result::ctx::set_limit(stack, 4096).unwrap();
        assert_eq!(result::ctx::get_limit(stack), Ok(4096));
        assert!(result::ctx::get_limit(sys::CUlimit::CU_LIMIT_CIG_ENABLED).is_err());
        result::ctx::set_flags(sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC).unwrap();
        let (least, greatest) = result::stream::get_priority_range().unwrap();
        assert!(greatest < least);
    });
}
