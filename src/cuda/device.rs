//! A device with its loaded kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{CUdevice_attribute_enum, CUfunction_attribute_enum};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtrMut, DeviceRepr, LaunchArgs,
    LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use super::generated::GRADROUTE_THREADS;
use super::observe::{Launch, LaunchObserver};
use super::plan::Properties;
use super::{abi, driver, embedded};
use crate::{Error, Result};

/// The driver's codes for an image that has nothing for the device.
const NO_BINARY_FOR_DEVICE: u32 = 209;
const UNSUPPORTED_PTX_VERSION: u32 = 222;

/// The lowest compute capability that the kernels are written for, 8.0.
const OLDEST: u32 = 80;

/// A loaded kernel.
#[derive(Clone)]
pub(super) struct Kernel {
    function: CudaFunction,
    name: Arc<str>,
}

/// A kernel and the dynamic shared memory that has been asked for.
struct Function {
    kernel: Kernel,
    shared: u32,
}

/// Extent of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    /// Dynamic shared memory, in bytes.
    pub(super) shared: u32,
}

impl Grid {
    /// Blocks of the usual number of threads, without dynamic shared memory.
    pub(super) fn plain(x: u32, y: u32) -> Self {
        Self { blocks: [x, y, 1], threads: GRADROUTE_THREADS, shared: 0 }
    }
}

/// A kernel's arguments, in order: the parameter struct, addresses and numbers.
pub(super) trait Arguments {
    /// Hands them over.
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

macro_rules! arguments {
    ($($name:ident)*) => {
        impl<$($name: DeviceRepr),*> Arguments for ($($name,)*) {
            #[allow(non_snake_case)]
            fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
                let ($($name,)*) = self;
                $(launch.arg($name);)*
            }
        }
    };
}

arguments!(A B);
arguments!(A B C);
arguments!(A B C D);
arguments!(A B C D E);
arguments!(A B C D E F);
arguments!(A B C D E F G);
arguments!(A B C D E F G H);
arguments!(A B C D E F G H I);
arguments!(A B C D E F G H I J);
arguments!(A B C D E F G H I J K);
arguments!(A B C D E F G H I J K L M);
arguments!(A B C D E F G H I J K L M N O P);
arguments!(A B C D E F G H I J K L M N O P Q R S T);

/// Whether kernels for these architectures, and PTX of the lowest, run on a device of this capability.
/// Machine code is checked again by the driver, when it is loaded.
fn supported((major, minor): (i32, i32), architectures: &[u32]) -> bool {
    let lowest = architectures.first().copied().unwrap_or(u32::MAX).max(OLDEST);
    u32::try_from(10 * major + minor).is_ok_and(|capability| capability >= lowest)
}

/// One CUDA device, a context on it and the kernels loaded into that.
pub struct Device {
    context: Arc<CudaContext>,
    /// Loading a module takes milliseconds and device memory: once per device and kernel source.
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// Likewise a kernel, by source and name.
    functions: Mutex<HashMap<(&'static str, String), Function>>,
    observer: RwLock<Option<Arc<dyn LaunchObserver>>>,
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
        Self::on(context)
    }

    /// A context of the caller's own, such as that of another library; kernels are loaded into it anew.
    ///
    /// A thread that uses several contexts should give each a stream made by `new_stream`: the default stream
    /// has the same handle in all of them, and cudarc (0.19) frees a default stream's buffer on that of
    /// whichever context is current, perhaps before its own work is through with it.
    ///
    /// # Errors
    ///
    /// [`Error::KernelsNotBuilt`]; [`Error::DeviceUnsupported`] for a device older than 8.0 or than the
    /// lowest architecture of this build; [`Error::Driver`].
    pub fn on(context: Arc<CudaContext>) -> Result<Self> {
        embedded::kernels_built()?;
        let capability = context.compute_capability();
        let (major, minor) =
            capability.map_err(|error| driver::failed("cuDeviceGetAttribute", error))?;
        let (modules, functions) = (Mutex::default(), Mutex::default());
        let device = Self { context, modules, functions, observer: RwLock::default() };
        if !supported((major, minor), embedded::architectures()) {
            return Err(device.unsupported());
        }
        Ok(device)
    }

    /// Runs the probe kernel on the default stream and compares how the two compilers laid out the
    /// kernels' parameters. Waits for the device.
    ///
    /// # Errors
    ///
    /// [`Error::AbiMismatch`] naming the first difference; [`Error::DeviceUnsupported`] if this build
    /// has nothing for the device; [`Error::Driver`] for any other failure.
    pub fn check_abi(&self) -> Result<()> {
        let function = self.function("abi_probe", "abi_probe", 0)?;
        let stream = self.context.default_stream();
        let params = abi::sample();
        let mut report = stream
            .alloc_zeros::<u32>(abi::WORDS)
            .map_err(|error| driver::failed("cuMemAlloc", error))?;
        let to = report.device_ptr_mut(&stream).0;
        let grid = Grid { blocks: [1; 3], threads: 1, shared: 0 };
        self.launch(&stream, &function, grid, (params, to))?;
        let report =
            stream.clone_dtoh(&report).map_err(|error| driver::failed("cuMemcpyDtoH", error))?;
        abi::compare(&report)
    }

    /// The device's context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Lets an observer look at every launch from now on, or nobody. Returns who looked before.
    pub fn observe(
        &self,
        observer: Option<Arc<dyn LaunchObserver>>,
    ) -> Option<Arc<dyn LaunchObserver>> {
        let mut current = self.observer.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, observer)
    }

    /// Makes the context current in this thread.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| driver::failed("cuCtxSetCurrent", error))
    }

    /// What plans need to know of the device.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`].
    pub fn properties(&self) -> Result<Properties> {
        let ask = |attribute| {
            let value = self.context.attribute(attribute);
            let value = value.map_err(|error| driver::failed("cuDeviceGetAttribute", error))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        use CUdevice_attribute_enum as Attribute;
        Ok(Properties {
            multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// Queues a kernel. The arguments must be the kernel's, in order, and its addresses those of live
    /// buffers: the callers' contract.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        kernel: &Kernel,
        grid: Grid,
        arguments: impl Arguments,
    ) -> Result<()> {
        let [x, y, z] = grid.blocks;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        let mut launch = stream.launch_builder(&kernel.function);
        arguments.push(&mut launch);
        // Not under the lock: an observer may change who observes.
        let observer = self.observer.read().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = Launch {
            kernel: &kernel.name,
            grid: grid.blocks,
            threads: grid.threads,
            shared_bytes: grid.shared,
            stream,
        };
        if let Some(observer) = &observer {
            observer.before(&seen);
        }
        // SAFETY: every caller passes the arguments of the kernel it names, and answers, or makes its own
        // caller answer, for the buffers behind the addresses.
        unsafe { launch.launch(config) }
            .map_err(|error| driver::failed("cuLaunchKernel", error))?;
        if let Some(observer) = &observer {
            observer.after(&seen);
        }
        Ok(())
    }

    /// A kernel, by the source file's name and its own, that may use so much dynamic shared memory.
    pub(super) fn function(&self, source: &'static str, name: &str, shared: u32) -> Result<Kernel> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source, name.to_string());
        if !functions.contains_key(&key) {
            let function = self.module(source)?.load_function(name);
            let function =
                function.map_err(|error| driver::failed("cuModuleGetFunction", error))?;
            let kernel = Kernel { function, name: name.into() };
            functions.insert(key.clone(), Function { kernel, shared: 0 });
        }
        let function = functions.get_mut(&key).expect("it was inserted above");
        // Only ever raised, since launches on other streams rely on it.
        if shared > function.shared {
            let attribute =
                CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let kernel = &function.kernel.function;
            kernel
                .set_attribute(attribute, shared as i32)
                .map_err(|error| driver::failed("cuFuncSetAttribute", error))?;
            function.shared = shared;
        }
        Ok(function.kernel.clone())
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

#[cfg(test)]
mod tests {
    use super::supported;

    #[test]
    fn older_devices_and_builds_without_their_architecture_are_told_apart() {
        let all = [80, 86, 89, 90, 100, 120];
        for capability in [(8, 0), (8, 6), (8, 7), (9, 0), (10, 3), (12, 0), (13, 0)] {
            assert!(supported(capability, &all), "{capability:?}");
        }
        assert!(!supported((7, 5), &all) && !supported((7, 5), &[75]));
        assert!(!supported((8, 6), &[90, 100]) && supported((9, 0), &[90, 100]));
        assert!(!supported((9, 0), &[]));
    }
}
