//! The device that the suite runs on.

use std::sync::{Arc, OnceLock};

use gradroute::cuda::{self, Cuda, Device, Properties};

/// Whether there is a device; fails where one was promised.
pub fn present() -> bool {
    match cuda::device_available() {
        Ok(()) => true,
        Err(error) => {
            let promised = std::env::var("GRADROUTE_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!promised, "a device was promised: {error}");
            println!("skipped: {error}");
            false
        }
    }
}

/// A backend on the first device, whose modules all tests share.
pub fn open() -> Cuda {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Arc::new(Device::open(0).unwrap()));
    Cuda::on(device.clone()).unwrap()
}

/// The same, planning for a single multiprocessor.
pub fn open_small() -> Cuda {
    let cuda = open();
    let properties = Properties { multiprocessors: 1, ..cuda.properties() };
    cuda.planned_for(properties)
}
