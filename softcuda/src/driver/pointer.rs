//! What is known about a pointer, and hints on managed memory.

use super::boundary::{In, Out, call, write_host};
use super::context::{context, current};
use super::error::{Error, Outcome, Status};
use super::memory::{Kind, holding};
use super::state::{Handle, driver};
use super::stream::stream;

/// What `CU_POINTER_ATTRIBUTE_*` asks, as bytes of its type.
fn attribute(attribute: u32, pointer: u64) -> Outcome<Vec<u8>> {
    let held = holding(pointer);
    let range = driver()?.device.allocation(pointer);
    let known = held.is_some() || range.is_some();
    let (begin, bytes) =
        range.or(held.map(|(begin, memory)| (begin, memory.bytes))).unwrap_or_default();
    let kind = held.map_or(Kind::Device, |(_, memory)| memory.kind);
    let context = match held {
        Some((_, memory)) => memory.context,
        None => current().map_or(0, |context| context.handle),
    };
    let host = matches!(kind, Kind::Host | Kind::Registered);
    let u64_of = |value: u64| Ok(value.to_le_bytes().to_vec());
    let u32_of = |value: u32| Ok(value.to_le_bytes().to_vec());
    match attribute {
        // Answered for every pointer.
        8 => u32_of(u32::from(kind == Kind::Managed)),
        13 => u32_of(u32::from(known)),
        _ if !known => Err(Error::InvalidValue),
        1 => u64_of(context as u64),
        2 => u32_of(if host { 1 } else { 2 }),
        3 if kind != Kind::Registered => u64_of(pointer),
        4 if host || kind == Kind::Managed => u64_of(pointer),
        6 | 9 | 14 | 15 | 21 => u32_of(0),
        7 | 20 => u64_of(begin),
        10 => u32_of(0),
        11 | 19 => u64_of(begin),
        12 | 18 => u64_of(bytes),
        // Read and write.
        16 => u32_of(3),
        17 => match kind {
            Kind::Pool(pool) => u64_of(pool as u64),
            _ => u64_of(0),
        },
        _ => Err(Error::InvalidValue),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(data: Out<u8>, which: u32, pointer: u64) -> Status {
    call("cuPointerGetAttribute", || {
        context()?;
        write_host(data.address(), &attribute(which, pointer)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: In<u32>,
    data: In<usize>,
    pointer: u64,
) -> Status {
    call("cuPointerGetAttributes", || {
        context()?;
        for index in 0..count as usize {
            let which = attributes.get_at(index)?;
            // Unlike the single form: what doesn't apply reads zero.
            let wide = matches!(which, 1 | 3 | 4 | 7 | 11 | 12 | 17 | 18 | 19 | 20);
            let found =
                attribute(which, pointer).unwrap_or_else(|_| vec![0; if wide { 8 } else { 4 }]);
            write_host(data.get_at(index)?, &found)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerSetAttribute(_value: In<u8>, which: u32, pointer: u64) -> Status {
    call("cuPointerSetAttribute", || {
        context()?;
        // All copies are synchronous as it is.
        let sync_memops = which == 6 && holding(pointer).is_some();
        if sync_memops { Ok(()) } else { Err(Error::InvalidValue) }
    })
}

// Hints on managed memory.

fn managed(pointer: u64, bytes: usize) -> Outcome {
    context()?;
    let (begin, memory) = holding(pointer).ok_or(Error::InvalidValue)?;
    let end = pointer.checked_add(bytes as u64).ok_or(Error::InvalidValue)?;
    let inside = bytes > 0 && end <= begin + memory.bytes;
    if inside && memory.kind == Kind::Managed { Ok(()) } else { Err(Error::InvalidValue) }
}

fn advise(pointer: u64, bytes: usize, advice: u32) -> Outcome {
    if !(1..=6).contains(&advice) {
        return Err(Error::InvalidValue);
    }
    managed(pointer, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAdvise(pointer: u64, bytes: usize, advice: u32, _device: i32) -> Status {
    call("cuMemAdvise", || advise(pointer, bytes, advice))
}

/// The location is a struct of two 32-bit numbers, passed in one register.
#[unsafe(no_mangle)]
extern "C" fn cuMemAdvise_v2(pointer: u64, bytes: usize, advice: u32, _location: u64) -> Status {
    call("cuMemAdvise_v2", || advise(pointer, bytes, advice))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPrefetchAsync(pointer: u64, bytes: usize, _device: i32, on: Handle) -> Status {
    call("cuMemPrefetchAsync", || {
        stream(on)?.health.check()?;
        managed(pointer, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPrefetchAsync_v2(
    pointer: u64,
    bytes: usize,
    _location: u64,
    flags: u32,
    on: Handle,
) -> Status {
    call("cuMemPrefetchAsync_v2", || {
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        stream(on)?.health.check()?;
        managed(pointer, bytes)
    })
}

super::exports![
    cuPointerGetAttribute,
    cuPointerGetAttributes,
    cuPointerSetAttribute,
    cuMemAdvise,
    cuMemAdvise_v2,
    cuMemPrefetchAsync,
    cuMemPrefetchAsync_v2,
];
