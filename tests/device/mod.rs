//! Whether the tests of kernels have a device to run on.

use gradroute::cuda;

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
