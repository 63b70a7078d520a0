//! The CUDA driver and the crate's kernels; home of all `unsafe` but the calls of two
//! GEMM libraries in `cpu::gemm`.
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
//! A call is planned first, without a device, and launched on the caller's stream and buffers:
//!
//! ```
//! use gradroute::cuda::{Properties, Wish, plan_linear};
//! use gradroute::ops::plan::Request;
//! use gradroute::problem::{Dtype, Linear, Rows};
//! use gradroute::projection::Sketch;
//!
//! let layer = Linear::new(Rows::uniform(16, 256)?, 1280, 1280)?;
//! let wish = Wish {
//!     request: Request { dw: true, norms: true, sketch: true, ..Request::default() },
//!     sketch: Some(Sketch::two_sided(16, 1, 0)?),
//!     ..Wish::default()
//! };
//! let h100 = Properties { multiprocessors: 132, shared_bytes: 227 << 10 };
//! let plan = plan_linear(&layer, Dtype::Bf16, wish, &h100)?;
//! assert_eq!((plan.formed().tiles, plan.formed().parts), ([10, 10], 1));
//! println!("{plan}");
//! # Ok::<(), gradroute::Error>(())
//! ```
//!
//! [`Plan::run`] takes cudarc's views and finds every mistake before the launch; [`Plan::launch`] takes raw
//! device addresses; [`Cuda`] is the same behind host slices, as a [`crate::ops::Backend`].
//! [`Device::observe`] shows every launch to a tracer or a timer. [`Device::check_abi`] compares the layout of
//! parameters between the two compilers.

mod abi;
mod backend;
mod batch;
mod buffers;
mod call;
mod conv;
mod device;
mod driver;
mod embedded;
mod embedding;
mod formed;
#[allow(missing_docs)]
mod generated;
mod linear;
mod lora;
mod lora_factors;
mod norm;
mod observe;
mod plan;
mod queue;
mod resident;
mod routing;
mod run;

pub use backend::Cuda;
pub use batch::{DeviceCategories, DeviceRows};
pub use call::Pointers;
pub use conv::{ConvPlan, ImageLayout, plan_conv2d};
pub use device::Device;
pub use driver::{device_count, driver_present};
pub use embedded::{architectures, kernels_built};
pub use embedding::{EmbeddingPlan, plan_embedding};
pub use formed::FormedPlan;
pub use linear::{LinearPlan, plan_linear};
pub use lora::{LoraPlan, plan_lora};
pub use norm::{NormPlan, plan_norm};
pub use observe::{Launch, LaunchObserver, LaunchTimer, Timed};
pub use plan::{Properties, Wish};
pub use queue::Plan;
pub use routing::{DeviceRouting, RoutingShape};
pub use run::{DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRouted};

use crate::Result;
#[cfg(feature = "candle-cuda")]
pub(crate) use routing::upload;

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
