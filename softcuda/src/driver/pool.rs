//! Memory pools. Nothing is kept back: what is freed goes to the device at once, so a pool only counts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::boundary::{In, Out, call, read_host, write_host};
use super::context::context;
use super::error::{Error, Outcome, Status};
use super::memory::Kind;
use super::state::{Handle, driver, lock};

#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The three reuse policies.
    reuse: [u32; 3],
    threshold: u64,
    used: u64,
    high: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { reuse: [1; 3], threshold: 0, used: 0, high: 0 }
    }
}

/// The device's default pool and the one in use; 0 until there is one.
static DEFAULT: AtomicUsize = AtomicUsize::new(0);
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static MAKING: Mutex<()> = Mutex::new(());

pub fn default() -> Outcome<Handle> {
    let driver = driver()?;
    let _making = lock(&MAKING);
    if DEFAULT.load(Ordering::Relaxed) == 0 {
        DEFAULT.store(driver.pools.insert(Pool::default()), Ordering::Relaxed);
    }
    Ok(DEFAULT.load(Ordering::Relaxed))
}

pub fn current() -> Outcome<Handle> {
    match CURRENT.load(Ordering::Relaxed) {
        0 => default(),
        chosen => Ok(chosen),
    }
}

pub fn choose(pool: Handle) -> Outcome {
    driver()?.pools.get(pool)?;
    CURRENT.store(pool, Ordering::Relaxed);
    Ok(())
}

/// Counts bytes that a pool hands out or gets back. A destroyed one no longer counts.
pub fn count(pool: Handle, bytes: i64) {
    let Ok(pool) = driver().and_then(|driver| driver.pools.get(pool)) else { return };
    let mut state = lock(&pool.state);
    state.used = state.used.saturating_add_signed(bytes);
    state.high = state.high.max(state.used);
}

/// `CUmemPoolProps`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Properties {
    kind: u32,
    handle_types: u32,
    location: [i32; 2],
    security: usize,
    max_size: usize,
    usage: u16,
    reserved: [u8; 54],
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolCreate(pool: Out<Handle>, properties: In<Properties>) -> Status {
    call("cuMemPoolCreate", || {
        pool.check()?;
        context()?;
        let given = properties.get()?;
        const PINNED: u32 = 1;
        const ON_DEVICE: [i32; 2] = [1, 0];
        if given.kind != PINNED {
            return Err(Error::InvalidValue);
        }
        if given.location != ON_DEVICE {
            eprintln!("softcuda: cuMemPoolCreate: only pools on device 0 are supported");
            return Err(if given.location[0] == 1 {
                Error::InvalidValue
            } else {
                Error::NotSupported
            });
        }
        if given.handle_types != 0 {
            eprintln!(
                "softcuda: cuMemPoolCreate: pools shared between processes are not supported"
            );
            return Err(Error::NotSupported);
        }
        pool.set(driver()?.pools.insert(Pool::default()))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolDestroy(pool: Handle) -> Status {
    call("cuMemPoolDestroy", || {
        let driver = driver()?;
        if pool == default()? {
            return Err(Error::InvalidValue);
        }
        driver.pools.remove(pool)?;
        let _ = CURRENT.compare_exchange(pool, 0, Ordering::Relaxed, Ordering::Relaxed);
        // What it handed out stays until it is freed.
        for memory in lock(&driver.memory).values_mut() {
            if memory.kind == Kind::Pool(pool) {
                memory.kind = Kind::Device;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> Status {
    call("cuMemPoolTrimTo", || driver()?.pools.get(pool).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: Out<u8>) -> Status {
    call("cuMemPoolGetAttribute", || {
        let pool = driver()?.pools.get(pool)?;
        let state = lock(&pool.state);
        let to = value.address();
        match attribute {
            1..=3 => write_host(to, &state.reuse[attribute as usize - 1].to_le_bytes()),
            4 => write_host(to, &state.threshold.to_le_bytes()),
            5 | 7 => write_host(to, &state.used.to_le_bytes()),
            6 | 8 => write_host(to, &state.high.to_le_bytes()),
            _ => Err(Error::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: In<u8>) -> Status {
    call("cuMemPoolSetAttribute", || {
        let pool = driver()?.pools.get(pool)?;
        let mut state = lock(&pool.state);
        let mut bytes = [0; 8];
        let width = if attribute <= 3 { 4 } else { 8 };
        read_host(value.address(), &mut bytes[..width])?;
        let number = u64::from_le_bytes(bytes);
        match attribute {
            1..=3 => state.reuse[attribute as usize - 1] = number as u32,
            4 => state.threshold = number,
            // The highest use so far may only be forgotten.
            6 | 8 if number == 0 => state.high = state.used,
            _ => return Err(Error::InvalidValue),
        }
        Ok(())
    })
}

/// `CUmemAccessDesc`: type and number of the location, then what it may do.
#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAccess(pool: Handle, access: In<[u32; 3]>, count: usize) -> Status {
    call("cuMemPoolSetAccess", || {
        driver()?.pools.get(pool)?;
        const OWN: [u32; 3] = [1, 0, 3];
        match access.array(count)?.iter().all(|access| *access == OWN) {
            true => Ok(()),
            false => Err(Error::InvalidDevice),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolGetAccess(flags: Out<u32>, pool: Handle, location: In<[u32; 2]>) -> Status {
    call("cuMemPoolGetAccess", || {
        driver()?.pools.get(pool)?;
        flags.set(if location.get()? == [1, 0] { 3 } else { 0 })
    })
}

super::exports![
    cuMemPoolCreate,
    cuMemPoolDestroy,
    cuMemPoolTrimTo,
    cuMemPoolGetAttribute,
    cuMemPoolSetAttribute,
    cuMemPoolSetAccess,
    cuMemPoolGetAccess,
];
