//! The CUDA driver and the crate's kernels; the only home of `unsafe`.
//!
//! Nothing here is needed to build or to run the crate on a CPU. Kernels are embedded when the
//! build script finds nvcc; the driver's library is opened when it is first asked for. What is
//! missing comes back as a typed error, never as a panic:
//!
//! ```
//! match gradroute::cuda::device_available() {
//!     Ok(()) => println!("device 0 can run the kernels of this build"),
//!     Err(error) => println!("CPU only: {error}"),
//! }
//! ```
//!
//! This version ships one kernel, `abi_probe`, which [`Device::check_abi`] runs to compare the
//! layout of parameters between the two compilers.

mod abi;
mod device;
mod driver;
mod embedded;
#[allow(missing_docs)]
mod generated;

pub use device::Device;
pub use driver::{device_count, driver_present};
pub use embedded::{architectures, kernels_built};

use crate::Result;

/// Whether device 0 can be used: kernels in this build, a driver, and a device.
///
/// # Errors
///
/// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt),
/// [`Error::DriverMissing`](crate::Error::DriverMissing), or
/// [`Error::Driver`](crate::Error::Driver) with the driver's code, which is 100 without a device.
pub fn device_available() -> Result<()> {
    kernels_built()?;
    match device_count()? {
        0 => Err(driver::no_device()),
        _ => Ok(()),
    }
}
