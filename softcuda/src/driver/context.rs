//! Contexts: which one is current, their settings, and the fault that ends all work on one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use super::boundary::{In, Out, call};
use super::capture;
use super::error::{Error, Outcome, Status};
use super::state::{Driver, Handle, driver, lock};
use super::stream::Stream;
use super::work::Work;

/// The fault of a context, if it had one: every later call reports it until the context is reset.
#[derive(Debug, Default)]
pub struct Health(Mutex<Option<Error>>);

impl Health {
    pub fn check(&self) -> Outcome {
        lock(&self.0).map_or(Ok(()), Err)
    }

    /// Remembers the first fault.
    pub fn fail(&self, error: Error) -> Outcome {
        lock(&self.0).get_or_insert(error);
        Err(error)
    }
}

#[derive(Debug)]
pub struct Context {
    pub handle: Handle,
    pub primary: bool,
    pub flags: AtomicU32,
    pub health: Arc<Health>,
    /// The context's own stream, handle 0.
    pub stream: Arc<Stream>,
    threads: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    limits: Mutex<[usize; LIMITS.len()]>,
    cache: AtomicI32,
}

/// `CU_LIMIT_*` by number: what they begin with. Softcuda needs none of them; `None` are unknown.
const LIMITS: [Option<usize>; 7] =
    [Some(1024), Some(1 << 20), Some(8 << 20), None, Some(2048), Some(64), Some(0)];
const FLAGS: u32 = 0xff;
/// Priorities that streams may have: least and greatest.
pub const PRIORITIES: [i32; 2] = [0, -5];
/// What `cuCtxGetApiVersion` and `cuDriverGetVersion` say: CUDA 13.2.
pub const API_VERSION: u32 = 13020;

impl Context {
    pub fn new(handle: Handle, primary: bool, flags: u32) -> Self {
        let health = Arc::new(Health::default());
        Self {
            handle,
            primary,
            flags: AtomicU32::new(flags),
            stream: Arc::new(Stream::of(0, handle, health.clone(), 0, 0)),
            health,
            threads: Mutex::default(),
            limits: Mutex::new(LIMITS.map(Option::unwrap_or_default)),
            cache: AtomicI32::new(0),
        }
    }

    pub fn stream_of_thread(&self) -> Arc<Stream> {
        const PER_THREAD: Handle = 2;
        let new = || Stream::of(PER_THREAD, self.handle, self.health.clone(), 0, 0);
        let mut threads = lock(&self.threads);
        threads.entry(std::thread::current().id()).or_insert_with(|| Arc::new(new())).clone()
    }

    /// All its streams.
    pub fn streams(&self, driver: &Driver) -> Vec<Arc<Stream>> {
        let made = driver.streams.select(|stream| stream.context == self.handle);
        let made = made.into_iter().map(|(_, stream)| stream);
        let own = lock(&self.threads).values().cloned().collect::<Vec<_>>();
        std::iter::once(self.stream.clone()).chain(own).chain(made).collect()
    }

    /// Waits for all its work.
    pub fn synchronize(&self) -> Outcome {
        capture::forbid()?;
        self.streams(driver()?).iter().try_for_each(|stream| stream.synchronize())
    }

    /// Frees everything that was made in it.
    pub fn clear(&self) -> Outcome {
        let driver = driver()?;
        for stream in self.streams(driver) {
            // Its fault, if there is one, has been told.
            let _ = stream.synchronize();
            let _ = driver.streams.remove(stream.handle);
        }
        for (handle, _) in driver.events.select(|event| event.context == self.handle) {
            let _ = driver.events.remove(handle);
        }
        let modules = driver.modules.select(|module| module.context == Some(self.handle));
        for (handle, _) in modules {
            let _ = super::module::unload(handle);
        }
        super::memory::release_of(self.handle)
    }
}

thread_local! {
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// Handle of the calling thread's context.
pub fn current_handle() -> Option<Handle> {
    CURRENT.with_borrow(|stack| stack.last().copied())
}

/// The calling thread's context, even after a fault.
pub fn current() -> Outcome<Arc<Context>> {
    let driver = driver()?;
    let handle = current_handle().ok_or(Error::InvalidContext)?;
    driver.contexts.get(handle).map_err(|_| Error::ContextIsDestroyed)
}

/// The calling thread's context, or its fault.
pub fn context() -> Outcome<Arc<Context>> {
    let context = current()?;
    context.health.check()?;
    Ok(context)
}

/// Refuses any device but the one there is.
pub fn device(number: i32) -> Outcome<&'static Driver> {
    let driver = driver()?;
    if number == 0 { Ok(driver) } else { Err(Error::InvalidDevice) }
}

fn create(made: Out<Handle>, flags: u32, number: i32) -> Outcome {
    made.check()?;
    let driver = device(number)?;
    if flags & !FLAGS != 0 {
        return Err(Error::InvalidValue);
    }
    let (handle, _) = driver.contexts.insert_with(|handle| Context::new(handle, false, flags));
    CURRENT.with_borrow_mut(|stack| stack.push(handle));
    made.set(handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32) -> Status {
    call("cuCtxCreate_v2", || create(context, flags, device))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v3(
    context: Out<Handle>,
    _affinity: In<u8>,
    affinities: i32,
    flags: u32,
    device: i32,
) -> Status {
    call("cuCtxCreate_v3", || match affinities {
        0 => create(context, flags, device),
        _ => Err(Error::UnsupportedExecAffinity),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v4(
    context: Out<Handle>,
    parameters: In<[usize; 3]>,
    flags: u32,
    device: i32,
) -> Status {
    call("cuCtxCreate_v4", || match parameters.is_null() || parameters.get()? == [0; 3] {
        true => create(context, flags, device),
        false => Err(Error::UnsupportedExecAffinity),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(handle: Handle) -> Status {
    call("cuCtxDestroy_v2", || {
        let driver = driver()?;
        let context = driver.contexts.get(handle)?;
        if context.primary {
            return Err(Error::InvalidContext);
        }
        context.clear()?;
        driver.contexts.remove(handle)?;
        CURRENT.with_borrow_mut(|stack| {
            if stack.last() == Some(&handle) {
                stack.pop();
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    call("cuCtxSetCurrent", || {
        let driver = driver()?;
        if context != 0 {
            driver.contexts.get(context)?;
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<Handle>) -> Status {
    call("cuCtxGetCurrent", || {
        driver()?;
        context.set(current_handle().unwrap_or(0))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> Status {
    call("cuCtxPushCurrent_v2", || {
        driver()?.contexts.get(context)?;
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: Out<Handle>) -> Status {
    call("cuCtxPopCurrent_v2", || {
        driver()?;
        let popped = CURRENT.with_borrow_mut(Vec::pop).ok_or(Error::InvalidContext)?;
        context.set_if_wanted(popped)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<i32>) -> Status {
    call("cuCtxGetDevice", || {
        current()?;
        device.set(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice_v2(device: Out<i32>, context: Handle) -> Status {
    call("cuCtxGetDevice_v2", || {
        find(context)?;
        device.set(0)
    })
}

/// A context by handle; 0 is the current one.
pub fn find(handle: Handle) -> Outcome<Arc<Context>> {
    if handle == 0 { current() } else { driver()?.contexts.get(handle) }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetFlags(flags: Out<u32>) -> Status {
    call("cuCtxGetFlags", || flags.set(current()?.flags.load(Ordering::Relaxed)))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(flags: u32) -> Status {
    call("cuCtxSetFlags", || {
        if flags & !FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetId(context: Handle, id: Out<u64>) -> Status {
    call("cuCtxGetId", || id.set(find(context)?.handle as u64))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Status {
    call("cuCtxSynchronize", || context()?.synchronize())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize_v2(context: Handle) -> Status {
    call("cuCtxSynchronize_v2", || find(context)?.synchronize())
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> Status {
    call("cuCtxSetLimit", || {
        let context = context()?;
        let known = LIMITS.get(limit as usize).copied().flatten();
        known.ok_or(Error::UnsupportedLimit)?;
        lock(&context.limits)[limit as usize] = value;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetLimit(value: Out<usize>, limit: u32) -> Status {
    call("cuCtxGetLimit", || {
        let context = context()?;
        let known = LIMITS.get(limit as usize).copied().flatten();
        known.ok_or(Error::UnsupportedLimit)?;
        let limits = lock(&context.limits);
        value.set(limits[limit as usize])
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCacheConfig(config: Out<i32>) -> Status {
    call("cuCtxGetCacheConfig", || config.set(context()?.cache.load(Ordering::Relaxed)))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(config: i32) -> Status {
    call("cuCtxSetCacheConfig", || {
        if !(0..=3).contains(&config) {
            return Err(Error::InvalidValue);
        }
        context()?.cache.store(config, Ordering::Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) -> Status {
    call("cuCtxGetApiVersion", || {
        find(context)?;
        version.set(API_VERSION)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> Status {
    call("cuCtxGetStreamPriorityRange", || {
        context()?;
        least.set_if_wanted(PRIORITIES[0])?;
        greatest.set_if_wanted(PRIORITIES[1])
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxResetPersistingL2Cache() -> Status {
    call("cuCtxResetPersistingL2Cache", || context().map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxRecordEvent(context: Handle, event: Handle) -> Status {
    call("cuCtxRecordEvent", || {
        let context = find(context)?;
        let event = driver()?.events.get(event)?;
        context.synchronize()?;
        event.record(&context.stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxWaitEvent(context: Handle, event: Handle) -> Status {
    call("cuCtxWaitEvent", || {
        let context = find(context)?;
        let driver = driver()?;
        let event = driver.events.get(event)?;
        let Some(number) = event.pending() else { return Ok(()) };
        let streams = context.streams(driver);
        streams.iter().try_for_each(|stream| stream.submit(Work::Wait(event.clone(), number)))
    })
}

super::exports![
    cuCtxCreate_v2,
    cuCtxCreate_v3,
    cuCtxCreate_v4,
    cuCtxDestroy_v2,
    cuCtxSetCurrent,
    cuCtxGetCurrent,
    cuCtxPushCurrent_v2,
    cuCtxPopCurrent_v2,
    cuCtxGetDevice,
    cuCtxGetDevice_v2,
    cuCtxGetFlags,
    cuCtxSetFlags,
    cuCtxGetId,
    cuCtxSynchronize,
    cuCtxSynchronize_v2,
    cuCtxSetLimit,
    cuCtxGetLimit,
    cuCtxGetCacheConfig,
    cuCtxSetCacheConfig,
    cuCtxGetApiVersion,
    cuCtxGetStreamPriorityRange,
    cuCtxResetPersistingL2Cache,
    cuCtxRecordEvent,
    cuCtxWaitEvent,
];
