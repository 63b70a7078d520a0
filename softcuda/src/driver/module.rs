//! Modules and libraries. A library is a module that belongs to no context.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::boundary::{In, Out, Text, call, image, read_host, write_host};
use super::context::context;
use super::error::{Error, Outcome, Status};
use super::function::Function;
use super::state::{Handle, driver};
use crate::module::{Global, LoadError, Module};

#[derive(Debug)]
pub struct LoadedModule {
    pub context: Option<Handle>,
    module: Module,
    functions: BTreeMap<String, Handle>,
}

fn code(error: &LoadError) -> Error {
    match error {
        LoadError::Container(crate::container::ContainerError::Malformed(_)) => Error::InvalidImage,
        LoadError::Container(_) | LoadError::Target { .. } => Error::NoBinaryForGpu,
        LoadError::Ptx(_) => Error::InvalidPtx,
        LoadError::Unresolved(_) => Error::SharedObjectSymbolNotFound,
        LoadError::OutOfMemory { .. } => Error::OutOfMemory,
    }
}

/// Where the caller wants to read what went wrong: address and room.
#[derive(Debug, Default)]
pub struct ErrorLog {
    buffer: usize,
    room: usize,
    /// Where the length goes: the option's value itself.
    length: usize,
}

/// `CUjit_option` numbers.
const INFO_LOG_SIZE: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_SIZE: u32 = 6;

impl ErrorLog {
    /// From the options of a load or link.
    pub fn of(count: u32, options: In<u32>, values: In<usize>) -> Outcome<Self> {
        let mut log = Self::default();
        for index in 0..count as usize {
            let value = values.get_at(index)?;
            let place = values.address() + index * size_of::<usize>();
            match options.get_at(index)? {
                ERROR_LOG => log.buffer = value,
                // The size is 32 bits wide, in the place of a pointer.
                ERROR_LOG_SIZE => (log.room, log.length) = (value as u32 as usize, place),
                INFO_LOG_SIZE => write_host(place, &0usize.to_le_bytes())?,
                _ => {}
            }
        }
        Ok(log)
    }

    pub fn write(&self, text: &str) -> Outcome {
        let length = text.len().min(self.room.saturating_sub(1));
        if self.buffer != 0 && self.room > 0 {
            write_host(self.buffer, &text.as_bytes()[..length])?;
            write_host(self.buffer + length, &[0])?;
        }
        match self.length {
            0 => Ok(()),
            place => write_host(place, &length.to_le_bytes()),
        }
    }
}

/// Loads an image; what is wrong with it goes to the log and to stderr.
pub fn load(bytes: &[u8], context: Option<Handle>, log: &ErrorLog) -> Outcome<Handle> {
    let driver = driver()?;
    let module = match Module::load(&driver.device, bytes, driver.architecture.number) {
        Ok(module) => module,
        Err(error) => {
            eprintln!("softcuda: module refused: {error}");
            log.write(&error.to_string())?;
            return Err(code(&error));
        }
    };
    log.write("")?;
    let (handle, _) = driver.modules.insert_with(|handle| {
        let insert = |(name, kernel): (&String, &Arc<crate::ir::Kernel>)| {
            let function = Function::new(kernel.clone(), handle);
            (name.clone(), driver.functions.insert(function))
        };
        let functions = module.kernels.iter().map(insert).collect();
        LoadedModule { context, module, functions }
    });
    Ok(handle)
}

pub fn unload(handle: Handle) -> Outcome {
    let driver = driver()?;
    let loaded = driver.modules.remove(handle)?;
    for function in loaded.functions.values() {
        driver.functions.remove(*function)?;
    }
    loaded.module.unload(&driver.device);
    Ok(())
}

fn file(path: Text) -> Outcome<Vec<u8>> {
    let path = path.get()?;
    std::fs::read(&path).map_err(|error| {
        eprintln!("softcuda: {path}: {error}");
        Error::FileNotFound
    })
}

fn load_for_context(module: Out<Handle>, bytes: impl FnOnce() -> Outcome<Vec<u8>>) -> Outcome {
    module.check()?;
    let context = context()?;
    module.set(load(&bytes()?, Some(context.handle), &ErrorLog::default())?)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoad(module: Out<Handle>, path: Text) -> Status {
    call("cuModuleLoad", || load_for_context(module, || file(path)))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<Handle>, data: In<u8>) -> Status {
    call("cuModuleLoadData", || load_for_context(module, || image(data.address())))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadFatBinary(module: Out<Handle>, data: In<u8>) -> Status {
    call("cuModuleLoadFatBinary", || load_for_context(module, || image(data.address())))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    data: In<u8>,
    count: u32,
    options: In<u32>,
    values: In<usize>,
) -> Status {
    call("cuModuleLoadDataEx", || {
        module.check()?;
        let context = context()?;
        let log = ErrorLog::of(count, options, values)?;
        module.set(load(&image(data.address())?, Some(context.handle), &log)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> Status {
    call("cuModuleUnload", || {
        context()?.synchronize()?;
        unload(module)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetLoadingMode(mode: Out<u32>) -> Status {
    const EAGER: u32 = 1;
    call("cuModuleGetLoadingMode", || mode.set(EAGER))
}

fn find_function(found: Out<Handle>, module: Handle, name: Text) -> Outcome {
    found.check()?;
    let module = driver()?.modules.get(module)?;
    let handle = module.functions.get(&name.get()?).copied();
    found.set(handle.ok_or(Error::NotFound)?)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(found: Out<Handle>, module: Handle, name: Text) -> Status {
    call("cuModuleGetFunction", || find_function(found, module, name))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) -> Status {
    call("cuModuleGetFunctionCount", || {
        count.set(driver()?.modules.get(module)?.functions.len() as u32)
    })
}

fn enumerate(into: Out<Handle>, room: u32, module: Handle) -> Outcome {
    let module = driver()?.modules.get(module)?;
    let functions = module.functions.values().take(room as usize).enumerate();
    functions.into_iter().try_for_each(|(index, handle)| into.set_at(index, *handle))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleEnumerateFunctions(into: Out<Handle>, room: u32, module: Handle) -> Status {
    call("cuModuleEnumerateFunctions", || enumerate(into, room, module))
}

fn find_global(
    pointer: Out<u64>,
    bytes: Out<usize>,
    module: Handle,
    name: Text,
    wanted: impl Fn(&Global) -> bool,
) -> Outcome {
    let module = driver()?.modules.get(module)?;
    let found = module.module.globals.get(&name.get()?).copied();
    let found = found.filter(|global| wanted(global)).ok_or(Error::NotFound)?;
    pointer.set_if_wanted(found.address)?;
    bytes.set_if_wanted(found.bytes as usize)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(
    pointer: Out<u64>,
    bytes: Out<usize>,
    module: Handle,
    name: Text,
) -> Status {
    call("cuModuleGetGlobal_v2", || find_global(pointer, bytes, module, name, |_| true))
}

// Libraries.

fn load_library(library: Out<Handle>, bytes: &[u8], log: &ErrorLog) -> Outcome {
    library.set(load(bytes, None, log)?)
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryLoadData(
    library: Out<Handle>,
    data: In<u8>,
    options: In<u32>,
    values: In<usize>,
    count: u32,
    _library_options: In<u32>,
    _library_values: In<usize>,
    _library_count: u32,
) -> Status {
    call("cuLibraryLoadData", || {
        library.check()?;
        let log = ErrorLog::of(count, options, values)?;
        load_library(library, &image(data.address())?, &log)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryLoadFromFile(
    library: Out<Handle>,
    path: Text,
    options: In<u32>,
    values: In<usize>,
    count: u32,
    _library_options: In<u32>,
    _library_values: In<usize>,
    _library_count: u32,
) -> Status {
    call("cuLibraryLoadFromFile", || {
        library.check()?;
        let log = ErrorLog::of(count, options, values)?;
        load_library(library, &file(path)?, &log)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryUnload(library: Handle) -> Status {
    call("cuLibraryUnload", || unload(library))
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: Text) -> Status {
    call("cuLibraryGetKernel", || find_function(kernel, library, name))
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryGetKernelCount(count: Out<u32>, library: Handle) -> Status {
    call("cuLibraryGetKernelCount", || {
        count.set(driver()?.modules.get(library)?.functions.len() as u32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryEnumerateKernels(into: Out<Handle>, room: u32, library: Handle) -> Status {
    call("cuLibraryEnumerateKernels", || enumerate(into, room, library))
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryGetModule(module: Out<Handle>, library: Handle) -> Status {
    call("cuLibraryGetModule", || {
        driver()?.modules.get(library)?;
        module.set(library)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryGetGlobal(
    pointer: Out<u64>,
    bytes: Out<usize>,
    library: Handle,
    name: Text,
) -> Status {
    call("cuLibraryGetGlobal", || find_global(pointer, bytes, library, name, |_| true))
}

#[unsafe(no_mangle)]
extern "C" fn cuLibraryGetManaged(
    pointer: Out<u64>,
    bytes: Out<usize>,
    library: Handle,
    name: Text,
) -> Status {
    call("cuLibraryGetManaged", || find_global(pointer, bytes, library, name, |g| g.managed))
}

/// Bytes of a caller whose length is given.
pub fn sized(at: usize, bytes: usize) -> Outcome<Vec<u8>> {
    if bytes > crate::container::MAX_TEXT {
        return Err(Error::InvalidValue);
    }
    let mut data = vec![0; bytes];
    read_host(at, &mut data)?;
    Ok(data)
}

super::exports![
    cuModuleLoad,
    cuModuleLoadData,
    cuModuleLoadFatBinary,
    cuModuleLoadDataEx,
    cuModuleUnload,
    cuModuleGetLoadingMode,
    cuModuleGetFunction,
    cuModuleGetFunctionCount,
    cuModuleEnumerateFunctions,
    cuModuleGetGlobal_v2,
    cuLibraryLoadData,
    cuLibraryLoadFromFile,
    cuLibraryUnload,
    cuLibraryGetKernel,
    cuLibraryGetKernelCount,
    cuLibraryEnumerateKernels,
    cuLibraryGetModule,
    cuLibraryGetGlobal,
    cuLibraryGetManaged,
];
