//! Functions: their attributes, and what these mean for a launch. A kernel of a library is the same object.

use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use super::boundary::{Out, call};
use super::context::device;
use super::error::{Error, Outcome, Status};
use super::state::{Handle, driver};
use crate::architecture::{
    Architecture, MAX_REGISTERS_PER_THREAD, MAX_THREADS, REGISTERS, SHARED_PER_BLOCK, WARP,
};
use crate::ir::Kernel;

#[derive(Debug)]
pub struct Function {
    pub name: CString,
    pub kernel: Arc<Kernel>,
    pub module: Handle,
    /// Dynamic shared memory a launch may ask for.
    shared_limit: AtomicU32,
    carveout: AtomicI32,
    pub large_cluster: AtomicBool,
    cluster: [AtomicU32; 3],
    policy: AtomicI32,
}

impl Function {
    pub fn new(kernel: Arc<Kernel>, module: Handle) -> Self {
        let default = SHARED_PER_BLOCK.saturating_sub(kernel.shared_bytes);
        let cluster = kernel.required_cluster.unwrap_or([0; 3]).map(AtomicU32::new);
        Self {
            // PTX names have no zero byte.
            name: CString::new(kernel.name.as_str()).unwrap_or_default(),
            kernel,
            module,
            shared_limit: AtomicU32::new(default),
            carveout: AtomicI32::new(-1),
            large_cluster: AtomicBool::new(false),
            cluster,
            policy: AtomicI32::new(0),
        }
    }

    pub fn shared_limit(&self) -> u32 {
        self.shared_limit.load(Ordering::Relaxed)
    }

    /// The cluster a launch must have, if the kernel says so.
    pub fn cluster(&self) -> Option<[u32; 3]> {
        let dims = [0, 1, 2].map(|axis| self.cluster[axis].load(Ordering::Relaxed));
        (dims != [0; 3]).then_some(dims.map(|n| n.max(1)))
    }

    /// Registers per thread: the estimate, but no more than the compiler had to keep to.
    pub fn registers(&self) -> u32 {
        let kernel = &self.kernel;
        let by_block = kernel.max_threads.map_or(MAX_REGISTERS_PER_THREAD, |threads| {
            let warps = threads.div_ceil(WARP).next_multiple_of(4) * kernel.min_blocks.max(1);
            (REGISTERS / (warps * WARP).max(1)) & !7
        });
        let limit = kernel.max_registers.unwrap_or(MAX_REGISTERS_PER_THREAD).min(by_block);
        kernel.registers.min(limit.max(16))
    }

    /// Threads of the largest block that can be launched.
    pub fn max_threads(&self) -> u32 {
        let most = self.kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS);
        let fits = |threads: &u32| {
            Architecture::registers_of_block(*threads, self.registers()) <= REGISTERS
        };
        (1..=most).rev().find(fits).unwrap_or(0)
    }

    fn attribute(&self, number: u32) -> Outcome<i32> {
        let kernel = &self.kernel;
        let cluster = |axis: usize| self.cluster[axis].load(Ordering::Relaxed) as i32;
        Ok(match number {
            0 => self.max_threads() as i32,
            1 => kernel.shared_bytes as i32,
            2 => kernel.const_bytes as i32,
            3 => kernel.local_bytes as i32,
            4 => self.registers() as i32,
            5 => kernel.ptx_version as i32,
            6 => driver()?.architecture.number as i32,
            7 => 0,
            8 => self.shared_limit() as i32,
            9 => self.carveout.load(Ordering::Relaxed),
            10 => i32::from(kernel.required_cluster.is_some()),
            11..=13 => cluster(number as usize - 11),
            14 => i32::from(self.large_cluster.load(Ordering::Relaxed)),
            15 => self.policy.load(Ordering::Relaxed),
            _ => return Err(Error::InvalidValue),
        })
    }

    fn set_attribute(&self, number: u32, value: i32) -> Outcome {
        let architecture = driver()?.architecture;
        let positive = u32::try_from(value).map_err(|_| Error::InvalidValue);
        match number {
            8 => {
                let room = architecture.shared_opt_in.saturating_sub(self.kernel.shared_bytes);
                let wanted = positive?;
                if wanted > room {
                    eprintln!(
                        "softcuda: {wanted} bytes of dynamic shared memory for {}: sm_{} has {room}",
                        self.kernel.name, architecture.number
                    );
                    return Err(Error::InvalidValue);
                }
                self.shared_limit.store(wanted, Ordering::Relaxed);
            }
            9 if (-1..=100).contains(&value) => self.carveout.store(value, Ordering::Relaxed),
            11..=13 if self.kernel.required_cluster.is_none() => {
                let axis = number as usize - 11;
                self.cluster[axis].store(positive?, Ordering::Relaxed);
            }
            14 => self.large_cluster.store(value != 0, Ordering::Relaxed),
            15 if (0..=2).contains(&value) => self.policy.store(value, Ordering::Relaxed),
            _ => return Err(Error::InvalidValue),
        }
        Ok(())
    }
}

/// The function of a handle.
pub fn function(handle: Handle) -> Outcome<Arc<Function>> {
    driver()?.functions.get(handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, handle: Handle) -> Status {
    call("cuFuncGetAttribute", || {
        value.check()?;
        value.set(function(handle)?.attribute(attribute)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(handle: Handle, attribute: u32, value: i32) -> Status {
    call("cuFuncSetAttribute", || function(handle)?.set_attribute(attribute, value))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetAttribute(
    value: Out<i32>,
    attribute: u32,
    handle: Handle,
    number: i32,
) -> Status {
    call("cuKernelGetAttribute", || {
        device(number)?;
        value.set(function(handle)?.attribute(attribute)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelSetAttribute(
    attribute: u32,
    value: i32,
    handle: Handle,
    number: i32,
) -> Status {
    call("cuKernelSetAttribute", || {
        device(number)?;
        function(handle)?.set_attribute(attribute, value)
    })
}

/// Preferences for caches and banks: nothing depends on them.
fn preference(handle: Handle, value: u32, most: u32) -> Outcome {
    function(handle)?;
    if value > most { Err(Error::InvalidValue) } else { Ok(()) }
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(handle: Handle, config: u32) -> Status {
    call("cuFuncSetCacheConfig", || preference(handle, config, 3))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelSetCacheConfig(handle: Handle, config: u32, number: i32) -> Status {
    call("cuKernelSetCacheConfig", || device(number).and_then(|_| preference(handle, config, 3)))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetSharedMemConfig(handle: Handle, config: u32) -> Status {
    call("cuFuncSetSharedMemConfig", || preference(handle, config, 2))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetName(name: Out<*const c_char>, handle: Handle) -> Status {
    // The text lives as long as the function's module.
    call("cuFuncGetName", || name.set(function(handle)?.name.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetName(name: Out<*const c_char>, handle: Handle) -> Status {
    call("cuKernelGetName", || name.set(function(handle)?.name.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetModule(module: Out<Handle>, handle: Handle) -> Status {
    call("cuFuncGetModule", || module.set(function(handle)?.module))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetLibrary(library: Out<Handle>, handle: Handle) -> Status {
    call("cuKernelGetLibrary", || library.set(function(handle)?.module))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetFunction(found: Out<Handle>, handle: Handle) -> Status {
    call("cuKernelGetFunction", || {
        function(handle)?;
        found.set(handle)
    })
}

fn parameter(handle: Handle, index: usize, offset: Out<usize>, size: Out<usize>) -> Outcome {
    let function = function(handle)?;
    let found = function.kernel.parameters.get(index).ok_or(Error::InvalidValue)?;
    offset.set(found.0 as usize)?;
    size.set_if_wanted(found.1 as usize)
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetParamInfo(
    handle: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> Status {
    call("cuFuncGetParamInfo", || parameter(handle, index, offset, size))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetParamInfo(
    handle: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> Status {
    call("cuKernelGetParamInfo", || parameter(handle, index, offset, size))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetParamCount(handle: Handle, count: Out<usize>) -> Status {
    call("cuFuncGetParamCount", || count.set(function(handle)?.kernel.parameters.len()))
}

#[unsafe(no_mangle)]
extern "C" fn cuKernelGetParamCount(handle: Handle, count: Out<usize>) -> Status {
    call("cuKernelGetParamCount", || count.set(function(handle)?.kernel.parameters.len()))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncIsLoaded(state: Out<u32>, handle: Handle) -> Status {
    const LOADED: u32 = 1;
    call("cuFuncIsLoaded", || {
        function(handle)?;
        state.set(LOADED)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncLoad(handle: Handle) -> Status {
    call("cuFuncLoad", || function(handle).map(drop))
}

super::exports![
    cuFuncGetAttribute,
    cuFuncSetAttribute,
    cuKernelGetAttribute,
    cuKernelSetAttribute,
    cuFuncSetCacheConfig,
    cuKernelSetCacheConfig,
    cuFuncSetSharedMemConfig,
    cuFuncGetName,
    cuKernelGetName,
    cuFuncGetModule,
    cuKernelGetLibrary,
    cuKernelGetFunction,
    cuFuncGetParamInfo,
    cuKernelGetParamInfo,
    cuFuncGetParamCount,
    cuKernelGetParamCount,
    cuFuncIsLoaded,
    cuFuncLoad,
];
