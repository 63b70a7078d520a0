//! Allocations: device, pinned host and managed memory.

use super::boundary::{Out, call};
use super::capture;
use super::context::context;
use super::error::{Error, Outcome, Status};
use super::pool;
use super::state::{Handle, driver, lock};
use super::stream::stream;
use super::work::Work;

/// An allocation.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub context: Handle,
    pub bytes: u64,
    pub kind: Kind,
    pub flags: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device,
    /// Pinned memory of the host, seen by the device at the same address.
    Host,
    Managed,
    Pool(Handle),
    /// The program's own memory, registered: pinned, but the device cannot see it.
    Registered,
}

/// Allocates and remembers what it is.
pub fn allocate(bytes: usize, kind: Kind, flags: u32) -> Outcome<u64> {
    let (driver, context) = (driver()?, context()?);
    if bytes == 0 {
        return Err(Error::InvalidValue);
    }
    let bytes = bytes as u64;
    let allocated = match kind {
        Kind::Host | Kind::Managed => driver.device.allocate_host(bytes),
        _ => driver.device.allocate(bytes),
    };
    let address = allocated.ok_or(Error::OutOfMemory)?;
    let memory = Memory { context: context.handle, bytes, kind, flags };
    lock(&driver.memory).insert(address, memory);
    if let Kind::Pool(pool) = kind {
        pool::count(pool, bytes as i64);
    }
    Ok(address)
}

/// The allocation that begins at an address.
pub fn find(address: u64) -> Outcome<Memory> {
    lock(&driver()?.memory).get(&address).copied().ok_or(Error::InvalidValue)
}

/// The allocation that holds an address, and where it begins.
pub fn holding(address: u64) -> Option<(u64, Memory)> {
    let memory = lock(&driver().ok()?.memory);
    let (&begin, found) = memory.range(..=address).next_back()?;
    (address < begin + found.bytes).then_some((begin, *found))
}

/// Forgets an allocation, so that it can be freed once.
fn forget(address: u64) -> Outcome<Memory> {
    let forgotten = lock(&driver()?.memory).remove(&address).ok_or(Error::InvalidValue)?;
    if let Kind::Pool(pool) = forgotten.kind {
        pool::count(pool, -(forgotten.bytes as i64));
    }
    Ok(forgotten)
}

/// Frees an allocation at once.
pub fn release(address: u64) -> Outcome {
    let memory = forget(address)?;
    if memory.kind != Kind::Registered {
        driver()?.device.free(address);
    }
    Ok(())
}

/// Frees all allocations of a context.
pub fn release_of(context: Handle) -> Outcome {
    let of_context =
        |(&address, memory): (&u64, &Memory)| (memory.context == context).then_some(address);
    let found: Vec<u64> = lock(&driver()?.memory).iter().filter_map(of_context).collect();
    found.into_iter().try_for_each(release)
}

/// Frees memory of some kinds, after all work that may use it.
fn free(address: u64, kinds: impl Fn(Kind) -> bool) -> Outcome {
    capture::forbid()?;
    if address == 0 {
        return Ok(());
    }
    context()?.synchronize()?;
    if !kinds(find(address)?.kind) {
        return Err(Error::InvalidValue);
    }
    release(address)
}

fn new(pointer: Out<u64>, bytes: usize, kind: Kind, flags: u32) -> Outcome {
    pointer.check()?;
    capture::forbid()?;
    pointer.set(allocate(bytes, kind, flags)?)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(pointer: Out<u64>, bytes: usize) -> Status {
    call("cuMemAlloc_v2", || new(pointer, bytes, Kind::Device, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocPitch_v2(
    pointer: Out<u64>,
    pitch: Out<usize>,
    width: usize,
    height: usize,
    element: u32,
) -> Status {
    call("cuMemAllocPitch_v2", || {
        pitch.check()?;
        if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
            return Err(Error::InvalidValue);
        }
        // The alignment that textures need.
        let row = width.checked_next_multiple_of(512).ok_or(Error::OutOfMemory)?;
        let bytes = row.checked_mul(height).ok_or(Error::OutOfMemory)?;
        new(pointer, bytes, Kind::Device, 0)?;
        pitch.set(row)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: u64) -> Status {
    call("cuMemFree_v2", || {
        free(pointer, |kind| matches!(kind, Kind::Device | Kind::Managed | Kind::Pool(_)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocManaged(pointer: Out<u64>, bytes: usize, flags: u32) -> Status {
    call("cuMemAllocManaged", || match flags {
        1 | 2 => new(pointer, bytes, Kind::Managed, flags),
        _ => Err(Error::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(pointer: Out<u64>, bytes: usize, flags: u32) -> Status {
    call("cuMemHostAlloc", || match flags {
        0..=7 => new(pointer, bytes, Kind::Host, flags),
        _ => Err(Error::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(pointer: Out<u64>, bytes: usize) -> Status {
    call("cuMemAllocHost_v2", || new(pointer, bytes, Kind::Host, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(pointer: u64) -> Status {
    call("cuMemFreeHost", || free(pointer, |kind| kind == Kind::Host))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(pointer: u64, bytes: usize, flags: u32) -> Status {
    call("cuMemHostRegister_v2", || {
        let (driver, context) = (driver()?, context()?);
        if pointer == 0 || bytes == 0 || flags > 15 {
            return Err(Error::InvalidValue);
        }
        let bytes = bytes as u64;
        let mut memory = lock(&driver.memory);
        let end = pointer.checked_add(bytes).ok_or(Error::InvalidValue)?;
        let before = memory.range(..end).next_back();
        if before.is_some_and(|(&begin, other)| begin + other.bytes > pointer) {
            return Err(Error::HostMemoryAlreadyRegistered);
        }
        let (context, kind) = (context.handle, Kind::Registered);
        memory.insert(pointer, Memory { context, bytes, kind, flags });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(pointer: u64) -> Status {
    call("cuMemHostUnregister", || {
        context()?.synchronize()?;
        match find(pointer) {
            Ok(memory) if memory.kind == Kind::Registered => release(pointer),
            _ => Err(Error::HostMemoryNotRegistered),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetDevicePointer_v2(device: Out<u64>, host: u64, flags: u32) -> Status {
    call("cuMemHostGetDevicePointer_v2", || {
        device.check()?;
        context()?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        match holding(host) {
            Some((_, memory)) if memory.kind == Kind::Host => device.set(host),
            Some((_, memory)) if memory.kind == Kind::Registered => {
                eprintln!(
                    "softcuda: memory that the program registered is not seen by kernels; \
                     allocate it with cuMemHostAlloc"
                );
                Err(Error::NotSupported)
            }
            _ => Err(Error::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetFlags(flags: Out<u32>, host: u64) -> Status {
    call("cuMemHostGetFlags", || match holding(host) {
        Some((_, memory)) if memory.kind == Kind::Host => flags.set(memory.flags),
        _ => Err(Error::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Status {
    call("cuMemGetInfo_v2", || {
        context()?;
        let device = &driver()?.device;
        free.set((device.capacity() - device.used().min(device.capacity())) as usize)?;
        total.set(device.capacity() as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, pointer: u64) -> Status {
    call("cuMemGetAddressRange_v2", || {
        context()?;
        let (begin, length) = driver()?.device.allocation(pointer).ok_or(Error::NotFound)?;
        base.set_if_wanted(begin)?;
        bytes.set_if_wanted(length as usize)
    })
}

// In a stream's order.

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(pointer: Out<u64>, bytes: usize, on: Handle) -> Status {
    call("cuMemAllocAsync", || allocate_async(pointer, bytes, pool::current()?, on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocFromPoolAsync(
    pointer: Out<u64>,
    bytes: usize,
    pool: Handle,
    on: Handle,
) -> Status {
    call("cuMemAllocFromPoolAsync", || allocate_async(pointer, bytes, pool, on))
}

fn allocate_async(pointer: Out<u64>, bytes: usize, pool: Handle, on: Handle) -> Outcome {
    pointer.check()?;
    driver()?.pools.get(pool)?;
    let stream = stream(on)?;
    stream.health.check()?;
    // It is there from now on, which is earlier than promised.
    let address = allocate(bytes, Kind::Pool(pool), 0)?;
    if stream.capture_point()?.is_some() {
        stream.submit(Work::Allocate(address))?;
    }
    pointer.set(address)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(pointer: u64, on: Handle) -> Status {
    call("cuMemFreeAsync", || {
        let stream = stream(on)?;
        stream.health.check()?;
        if pointer == 0 {
            return Ok(());
        }
        match find(pointer)?.kind {
            Kind::Device | Kind::Pool(_) => {}
            _ => return Err(Error::InvalidValue),
        }
        // A graph's memory stays with the graph.
        if stream.capture_point()?.is_none() {
            forget(pointer)?;
        }
        stream.submit(Work::Free(pointer))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAttachMemAsync(on: Handle, pointer: u64, bytes: usize, flags: u32) -> Status {
    call("cuStreamAttachMemAsync", || {
        stream(on)?.health.check()?;
        let (begin, memory) = holding(pointer).ok_or(Error::InvalidValue)?;
        let whole = bytes == 0 || pointer == begin && bytes as u64 == memory.bytes;
        // Visibility to streams is a matter of performance: all see managed memory here.
        if memory.kind != Kind::Managed || !whole || !matches!(flags, 1 | 2 | 4) {
            return Err(Error::InvalidValue);
        }
        Ok(())
    })
}

super::exports![
    cuMemAlloc_v2,
    cuMemAllocPitch_v2,
    cuMemFree_v2,
    cuMemAllocManaged,
    cuMemHostAlloc,
    cuMemAllocHost_v2,
    cuMemFreeHost,
    cuMemHostRegister_v2,
    cuMemHostUnregister,
    cuMemHostGetDevicePointer_v2,
    cuMemHostGetFlags,
    cuMemGetInfo_v2,
    cuMemGetAddressRange_v2,
    cuMemAllocAsync,
    cuMemAllocFromPoolAsync,
    cuMemFreeAsync,
    cuStreamAttachMemAsync,
];
