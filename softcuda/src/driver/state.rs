//! What the process has: the device, its settings, and tables of all objects that C knows by handle.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::context::Context;
use super::error::{Error, Outcome};
use super::event::Event;
use super::function::Function;
use super::graph::{Executable, Graph};
use super::link::Linker;
use super::memory::Memory;
use super::module::LoadedModule;
use super::pool::Pool;
use super::stream::Stream;
use crate::architecture::Architecture;
use crate::machine::{Schedule, Settings};
use crate::memory::Device;

/// How C names an object: never an address, so that a wrong one is only unknown.
pub type Handle = usize;

/// Objects by handle.
#[derive(Debug)]
pub struct Table<T> {
    next: AtomicUsize,
    unknown: Error,
    objects: Mutex<HashMap<Handle, Arc<T>>>,
}

impl<T> Table<T> {
    /// A table whose handles begin at a place of their own; a wrong one gives the error.
    fn new(kind: usize, unknown: Error) -> Self {
        let first = (0x5c << 40) + (kind << 32) + 16;
        Self { next: AtomicUsize::new(first), unknown, objects: Mutex::default() }
    }

    pub fn insert(&self, object: T) -> Handle {
        self.insert_with(|_| object).0
    }

    /// For objects that know their own handle.
    pub fn insert_with(&self, make: impl FnOnce(Handle) -> T) -> (Handle, Arc<T>) {
        let handle = self.next.fetch_add(16, Ordering::Relaxed);
        let object = Arc::new(make(handle));
        lock(&self.objects).insert(handle, object.clone());
        (handle, object)
    }

    pub fn get(&self, handle: Handle) -> Outcome<Arc<T>> {
        lock(&self.objects).get(&handle).cloned().ok_or(self.unknown)
    }

    pub fn remove(&self, handle: Handle) -> Outcome<Arc<T>> {
        lock(&self.objects).remove(&handle).ok_or(self.unknown)
    }

    /// All objects for which the question is answered with yes, in the order they were made.
    pub fn select(&self, wanted: impl Fn(&T) -> bool) -> Vec<(Handle, Arc<T>)> {
        let objects = lock(&self.objects);
        let chosen = objects.iter().filter(|(_, object)| wanted(object));
        let mut chosen: Vec<_> = chosen.map(|(handle, object)| (*handle, object.clone())).collect();
        chosen.sort_by_key(|(handle, _)| *handle);
        chosen
    }

    /// Puts an object in the place of another.
    pub fn replace(&self, handle: Handle, object: T) {
        lock(&self.objects).insert(handle, Arc::new(object));
    }
}

/// The driver's state.
#[derive(Debug)]
pub struct Driver {
    pub architecture: &'static Architecture,
    pub device: Device,
    pub settings: Settings,
    /// Launches run beside the caller, as on hardware; else a launch returns when it is done.
    pub asynchronous: bool,
    pub launches: AtomicU64,
    pub contexts: Table<Context>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub modules: Table<LoadedModule>,
    pub functions: Table<Function>,
    pub graphs: Table<Graph>,
    pub executables: Table<Executable>,
    pub pools: Table<Pool>,
    pub linkers: Table<Linker>,
    /// Allocations by where they begin.
    pub memory: Mutex<BTreeMap<u64, Memory>>,
}

/// Bytes of device memory if `SOFTCUDA_MEMORY` doesn't say.
const DEFAULT_MEMORY: u64 = 8 << 30;

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, once `cuInit` was called.
pub fn driver() -> Outcome<&'static Driver> {
    DRIVER.get().ok_or(Error::NotInitialized)
}

/// Reads the environment and makes the device.
pub fn initialise() -> Outcome {
    if DRIVER.get().is_none() {
        let made = Driver::from_environment().map_err(|what| {
            eprintln!("softcuda: {what}");
            Error::InvalidValue
        })?;
        DRIVER.get_or_init(|| made);
    }
    Ok(())
}

impl Driver {
    fn from_environment() -> Result<Self, String> {
        let number = variable("SOFTCUDA_ARCH")?.unwrap_or(90);
        let Some(architecture) = Architecture::find(number) else {
            return Err(format!("SOFTCUDA_ARCH={number}: expected 80, 90 or 100"));
        };
        let mut settings = Settings::default();
        if let Some(schedule) = variable::<Schedule>("SOFTCUDA_SCHEDULE")? {
            settings.schedule = schedule;
        }
        if let Some(threads) = variable::<usize>("SOFTCUDA_THREADS")? {
            settings.threads = threads.max(1);
        }
        if let Some(limit) = variable("SOFTCUDA_LIMIT")? {
            settings.limit = limit;
        }
        let memory = variable::<u64>("SOFTCUDA_MEMORY")?.map_or(DEFAULT_MEMORY, |mib| mib << 20);
        Ok(Self {
            architecture,
            device: Device::new(memory),
            settings,
            asynchronous: variable::<u32>("CUDA_LAUNCH_BLOCKING")? == Some(0),
            launches: AtomicU64::new(0),
            contexts: Table::new(1, Error::InvalidContext),
            streams: Table::new(2, Error::InvalidHandle),
            events: Table::new(3, Error::InvalidHandle),
            modules: Table::new(4, Error::InvalidHandle),
            functions: Table::new(5, Error::InvalidHandle),
            graphs: Table::new(6, Error::InvalidValue),
            executables: Table::new(7, Error::InvalidValue),
            pools: Table::new(8, Error::InvalidValue),
            linkers: Table::new(9, Error::InvalidHandle),
            memory: Mutex::default(),
        })
    }
}

/// An environment variable, if set and not empty.
fn variable<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|error| format!("{name}={text}: {error}"))
        }
        _ => Ok(None),
    }
}

/// A lock that a panic elsewhere does not spoil: what it guards is changed in single steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
