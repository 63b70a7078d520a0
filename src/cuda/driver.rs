//! Whether there is a driver. Asked before anything of `cudarc` is called, which panics without
//! one, even while it formats an error: so errors keep the driver's code, not its text.

use std::sync::OnceLock;

use cudarc::driver::{CudaContext, DriverError, sys::CUresult};

use crate::{Error, Result};

/// The names under which the driver's library is found; all of them are known to `cudarc` too.
#[cfg(windows)]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Whether the driver's library can be loaded. Looked up once per process.
///
/// # Errors
///
/// [`Error::DriverMissing`].
pub fn driver_present() -> Result<()> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    if *FOUND.get_or_init(|| any_loads(&LIBRARIES)) {
        return Ok(());
    }
    Err(Error::DriverMissing { searched: LIBRARIES.join(", ") })
}

/// Number of CUDA devices the driver shows.
///
/// # Errors
///
/// [`Error::DriverMissing`], or [`Error::Driver`] if the driver does not start.
pub fn device_count() -> Result<usize> {
    driver_present()?;
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(error) => Err(failed("cuDeviceGetCount", error)),
    }
}

fn any_loads(names: &[&str]) -> bool {
    names.iter().any(|name| {
        // SAFETY: the driver's library may be loaded and unloaded at any time: its initialisers
        // need nothing of us, and no symbol is taken from it here.
        unsafe { libloading::Library::new(*name) }.is_ok()
    })
}

/// The error for a driver call that failed.
pub(super) fn failed(call: &'static str, error: DriverError) -> Error {
    Error::Driver { call, code: error.0 as u32 }
}

/// The driver's own code for "no device".
pub(super) fn no_device() -> Error {
    failed("cuDeviceGetCount", DriverError(CUresult::CUDA_ERROR_NO_DEVICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_does_not_load() {
        assert!(!any_loads(&["libgradroute-no-such-library.so"]));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_library_that_is_there_loads() {
        assert!(any_loads(&["libgradroute-no-such-library.so", "libc.so.6"]));
    }

    #[test]
    fn codes_not_texts() {
        let text = no_device().to_string();
        assert!(text.contains("100"), "{text}");
    }

    #[test]
    fn counting_never_panics() {
        match (driver_present(), device_count()) {
            (Err(_), counted) => assert!(matches!(counted, Err(Error::DriverMissing { .. }))),
            (Ok(()), counted) => {
                assert!(matches!(counted, Ok(_) | Err(Error::Driver { .. })), "{counted:?}");
            }
        }
    }
}
