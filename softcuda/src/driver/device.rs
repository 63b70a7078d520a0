//! Initialisation, the device, and its primary context.

use std::ffi::c_char;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::boundary::{In, Out, Text, call};
use super::context::{API_VERSION, Context, device};
use super::error::{Error, Outcome, Status, describe};
use super::pool;
use super::state::{Handle, driver, initialise, lock};

/// The primary context: its handle stays the same over resets.
#[derive(Debug)]
struct Primary {
    handle: Option<Handle>,
    retained: u32,
    flags: u32,
}

static PRIMARY: Mutex<Primary> = Mutex::new(Primary { handle: None, retained: 0, flags: 0 });

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> Status {
    call("cuInit", || if flags == 0 { initialise() } else { Err(Error::InvalidValue) })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<i32>) -> Status {
    call("cuDriverGetVersion", || version.set(API_VERSION as i32))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: Status, name: Out<*const c_char>) -> Status {
    call("cuGetErrorName", || match describe(error) {
        Some((text, _)) => name.set(text.as_ptr()),
        None => name.set(std::ptr::null()).and(Err(Error::InvalidValue)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: Status, string: Out<*const c_char>) -> Status {
    call("cuGetErrorString", || match describe(error) {
        Some((_, text)) => string.set(text.as_ptr()),
        None => string.set(std::ptr::null()).and(Err(Error::InvalidValue)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(found: Out<i32>, ordinal: i32) -> Status {
    call("cuDeviceGet", || {
        device(ordinal)?;
        found.set(ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<i32>) -> Status {
    call("cuDeviceGetCount", || {
        driver()?;
        count.set(1)
    })
}

/// Copies a text with its final zero, cut to the room there is.
fn set_text(text: &str, into: Out<u8>, room: i32) -> Outcome {
    let room = usize::try_from(room).ok().filter(|room| *room > 0).ok_or(Error::InvalidValue)?;
    let length = text.len().min(room - 1);
    for (index, byte) in text.bytes().take(length).chain([0]).enumerate() {
        into.set_at(index, byte)?;
    }
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: Out<u8>, room: i32, number: i32) -> Status {
    call("cuDeviceGetName", || set_text(device(number)?.architecture.name, name, room))
}

fn uuid(into: Out<[u8; 16]>, number: i32) -> Outcome {
    let architecture = device(number)?.architecture;
    let mut uuid = *b"softcuda-sm-000\0";
    let digits = format!("{:03}", architecture.number);
    uuid[12..15].copy_from_slice(digits.as_bytes());
    into.set(uuid)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(into: Out<[u8; 16]>, number: i32) -> Status {
    call("cuDeviceGetUuid", || uuid(into, number))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(into: Out<[u8; 16]>, number: i32) -> Status {
    call("cuDeviceGetUuid_v2", || uuid(into, number))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, number: i32) -> Status {
    call("cuDeviceTotalMem_v2", || bytes.set(device(number)?.device.capacity() as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, number: i32) -> Status {
    call("cuDeviceGetAttribute", || {
        let found = device(number)?.architecture.attribute(attribute);
        value.set(found.ok_or(Error::InvalidValue)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, number: i32) -> Status {
    call("cuDeviceComputeCapability", || {
        let architecture = device(number)?.architecture.number as i32;
        major.set(architecture / 10)?;
        minor.set(architecture % 10)
    })
}

const BUS_ID: &str = "0000:00:00.0";

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(id: Out<u8>, room: i32, number: i32) -> Status {
    call("cuDeviceGetPCIBusId", || {
        device(number)?;
        set_text(BUS_ID, id, room)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetByPCIBusId(found: Out<i32>, id: Text) -> Status {
    call("cuDeviceGetByPCIBusId", || {
        driver()?;
        if id.get()? == BUS_ID { found.set(0) } else { Err(Error::InvalidDevice) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(can: Out<i32>, first: i32, second: i32) -> Status {
    call("cuDeviceCanAccessPeer", || {
        device(first)?;
        device(second)?;
        // There is no other device.
        can.set(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetP2PAttribute(
    _value: Out<i32>,
    _attribute: i32,
    first: i32,
    second: i32,
) -> Status {
    call("cuDeviceGetP2PAttribute", || {
        device(first)?;
        device(second)?;
        // The attribute is of two different devices.
        Err(Error::InvalidDevice)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetExecAffinitySupport(support: Out<i32>, _: i32, number: i32) -> Status {
    call("cuDeviceGetExecAffinitySupport", || {
        device(number)?;
        support.set(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<Handle>, number: i32) -> Status {
    call("cuDevicePrimaryCtxRetain", || {
        context.check()?;
        let driver = device(number)?;
        let mut primary = lock(&PRIMARY);
        let flags = primary.flags;
        let new = || driver.contexts.insert_with(|handle| Context::new(handle, true, flags)).0;
        let handle = *primary.handle.get_or_insert_with(new);
        primary.retained += 1;
        context.set(handle)
    })
}

/// A context as new behind the same handle.
fn renew(primary: &Primary) -> Outcome {
    let Some(handle) = primary.handle else { return Ok(()) };
    let driver = driver()?;
    driver.contexts.get(handle)?.clear()?;
    driver.contexts.replace(handle, Context::new(handle, true, primary.flags));
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(number: i32) -> Status {
    call("cuDevicePrimaryCtxRelease_v2", || {
        device(number)?;
        let mut primary = lock(&PRIMARY);
        primary.retained = primary.retained.checked_sub(1).ok_or(Error::InvalidContext)?;
        if primary.retained == 0 { renew(&primary) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(number: i32) -> Status {
    call("cuDevicePrimaryCtxReset_v2", || {
        device(number)?;
        renew(&lock(&PRIMARY))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(number: i32, flags: u32) -> Status {
    call("cuDevicePrimaryCtxSetFlags_v2", || {
        let driver = device(number)?;
        if flags & !0xff != 0 {
            return Err(Error::InvalidValue);
        }
        let mut primary = lock(&PRIMARY);
        primary.flags = flags;
        if let Some(handle) = primary.handle {
            driver.contexts.get(handle)?.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(number: i32, flags: Out<u32>, active: Out<i32>) -> Status {
    call("cuDevicePrimaryCtxGetState", || {
        device(number)?;
        let primary = lock(&PRIMARY);
        flags.set(primary.flags)?;
        active.set(i32::from(primary.retained > 0))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetDefaultMemPool(found: Out<Handle>, number: i32) -> Status {
    call("cuDeviceGetDefaultMemPool", || {
        device(number)?;
        found.set(pool::default()?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetMemPool(found: Out<Handle>, number: i32) -> Status {
    call("cuDeviceGetMemPool", || {
        device(number)?;
        found.set(pool::current()?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceSetMemPool(number: i32, pool: Handle) -> Status {
    call("cuDeviceSetMemPool", || {
        device(number)?;
        pool::choose(pool)
    })
}

/// `CUdevprop`: limits as the first CUDA versions told them.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetProperties(properties: Out<[i32; 14]>, number: i32) -> Status {
    call("cuDeviceGetProperties", || {
        let architecture = device(number)?.architecture;
        let order = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
        properties.set(order.map(|number| architecture.attribute(number).unwrap_or(0)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> Status {
    call("cuProfilerStart", || super::context::context().map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> Status {
    call("cuProfilerStop", || super::context::context().map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetExportTable(table: Out<usize>, _id: In<[u8; 16]>) -> Status {
    // Private interfaces between NVIDIA's own libraries.
    call("cuGetExportTable", || table.set(0).and(Err(Error::NotSupported)))
}

super::exports![
    cuInit,
    cuDriverGetVersion,
    cuGetErrorName,
    cuGetErrorString,
    cuDeviceGet,
    cuDeviceGetCount,
    cuDeviceGetName,
    cuDeviceGetUuid,
    cuDeviceGetUuid_v2,
    cuDeviceTotalMem_v2,
    cuDeviceGetAttribute,
    cuDeviceComputeCapability,
    cuDeviceGetPCIBusId,
    cuDeviceGetByPCIBusId,
    cuDeviceCanAccessPeer,
    cuDeviceGetP2PAttribute,
    cuDeviceGetExecAffinitySupport,
    cuDevicePrimaryCtxRetain,
    cuDevicePrimaryCtxRelease_v2,
    cuDevicePrimaryCtxReset_v2,
    cuDevicePrimaryCtxSetFlags_v2,
    cuDevicePrimaryCtxGetState,
    cuDeviceGetDefaultMemPool,
    cuDeviceGetMemPool,
    cuDeviceSetMemPool,
    cuDeviceGetProperties,
    cuProfilerStart,
    cuProfilerStop,
    cuGetExportTable,
];
