//! A device with its loaded kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use super::{abi, driver, embedded};
use crate::{Error, Result};

/// The driver's codes for an image that has nothing for the device.
const NO_BINARY_FOR_DEVICE: u32 = 209;
const UNSUPPORTED_PTX_VERSION: u32 = 222;

/// One CUDA device, its primary context and the kernels loaded into it.
pub struct Device {
    context: Arc<CudaContext>,
    /// Loading a module takes milliseconds and device memory: once per device and kernel source.
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

impl Device {
    /// Opens the device with the given index.
    ///
    /// # Errors
    ///
    /// As [`device_available`](super::device_available); [`Error::Argument`] for an index beyond the
    /// last device.
    pub fn open(ordinal: usize) -> Result<Self> {
        embedded::kernels_built()?;
        match driver::device_count()? {
            0 => return Err(driver::no_device()),
            count if ordinal >= count => {
                return Err(Error::argument("ordinal", format!("less than {count}"), ordinal));
            }
            _ => {}
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| driver::failed("cuDevicePrimaryCtxRetain", error))?;
        Ok(Self { context, modules: Mutex::default() })
    }

    /// Runs the probe kernel on the default stream and compares how the two compilers laid out the
    /// kernels' parameters. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::AbiMismatch`] naming the first difference; [`Error::DeviceUnsupported`] if this build
    /// has nothing for the device; [`Error::Driver`] for any other failure.
    pub fn check_abi(&self) -> Result<()> {
        let function = self.function("abi_probe", "abi_probe")?;
        let stream = self.context.default_stream();
        let params = abi::sample();
        let mut report = stream
            .alloc_zeros::<u32>(abi::WORDS)
            .map_err(|error| driver::failed("cuMemAlloc", error))?;
        let config =
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
        let mut launch = stream.launch_builder(&function);
        launch.arg(&params).arg(&mut report);
        // SAFETY: the arguments are those of kernels/abi_probe.cu, in order, and the kernel writes
        // `WORDS` words to a buffer of that length.
        unsafe { launch.launch(config) }
            .map_err(|error| driver::failed("cuLaunchKernel", error))?;
        let report =
            stream.clone_dtoh(&report).map_err(|error| driver::failed("cuMemcpyDtoH", error))?;
        abi::compare(&report)
    }

    /// A kernel, by the source file's name and its own.
    fn function(&self, source: &'static str, name: &str) -> Result<CudaFunction> {
        let module = self.module(source)?;
        module.load_function(name).map_err(|error| driver::failed("cuModuleGetFunction", error))
    }

    /// The module of a kernel source, loaded when it is first asked for.
    fn module(&self, source: &'static str) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source) {
            return Ok(module.clone());
        }
        let image = embedded::image(source)?.to_vec();
        let module =
            self.context.load_module(Ptx::from_binary(image)).map_err(
                |error| match driver::failed("cuModuleLoadData", error) {
                    Error::Driver {
                        code: NO_BINARY_FOR_DEVICE | UNSUPPORTED_PTX_VERSION, ..
                    } => self.unsupported(),
                    other => other,
                },
            )?;
        modules.insert(source, module.clone());
        Ok(module)
    }

    /// The error naming this device beside what is embedded.
    fn unsupported(&self) -> Error {
        let (major, minor) = self.context.compute_capability().unwrap_or_default();
        Error::DeviceUnsupported {
            device: self.context.name().unwrap_or_else(|_| "unnamed".into()),
            capability: format!("{major}.{minor}"),
            built: format!("{:?}", embedded::architectures()),
        }
    }
}
