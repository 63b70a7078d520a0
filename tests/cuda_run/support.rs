//! The device that these tests run on.

use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaContext;
use gradroute::cuda::{self, Device};

pub use crate::device::present;

/// The first device, whose modules all tests share.
pub fn device() -> Arc<Device> {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Arc::new(Device::open(0).unwrap())).clone()
}

/// The text of a refusal.
pub fn error(result: gradroute::Result<()>) -> String {
    result.expect_err("it is refused").to_string()
}

/// A second context.
pub struct Second {
    pub context: Arc<CudaContext>,
}

/// A context on the last device: another device's where there is one, else one of its own beside the
/// primary one.
pub fn second_context() -> Second {
    let last = cuda::device_count().unwrap() - 1;
    if last > 0 {
        return Second { context: CudaContext::new(last).unwrap() };
    }
    let mut made = std::ptr::null_mut();
    let parameters = std::ptr::null_mut();
    // SAFETY: the driver has been started, and there is a device 0.
    let status = unsafe { cudarc::driver::sys::cuCtxCreate_v4(&raw mut made, parameters, 0, 0) };
    assert_eq!(status, cudarc::driver::sys::CUresult::CUDA_SUCCESS);
    // SAFETY: it was made just now, and nobody else has it.
    let context = unsafe { CudaContext::from_raw_context(0, 0, made) }.unwrap();
    Second { context }
}
