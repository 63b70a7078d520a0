//! Copies and fills.

use std::sync::Arc;

use super::boundary::{In, Out, call, with_host, with_host_mut};
use super::capture;
use super::context::context;
use super::error::{Error, Outcome, Status};
use super::memory::holding;
use super::state::{Handle, driver};
use super::stream::stream;
use super::work::Work;
use crate::memory::OutsideAllocation;

/// A box of bytes: rows one pitch apart, slices of rows one slice apart.
#[derive(Debug, Clone)]
pub struct Copy {
    to: Side,
    from: Side,
    /// Bytes of a row, rows, slices.
    size: [u64; 3],
}

#[derive(Debug, Clone)]
struct Side {
    place: Place,
    pitch: u64,
    slice: u64,
}

#[derive(Debug, Clone)]
enum Place {
    Device(u64),
    Host(u64),
    /// Bytes of the host's, taken when the copy was submitted, from an offset on.
    Held(Arc<[u8]>, usize),
}

impl Place {
    /// Unified addressing: whatever the device knows is the device's.
    fn of(address: u64) -> Outcome<Self> {
        let known = driver()?.device.allocation(address).is_some();
        Ok(if known { Place::Device(address) } else { Place::Host(address) })
    }

    /// Host memory that is not pinned may change after the call.
    fn pageable(&self) -> bool {
        matches!(self, Place::Host(address) if holding(*address).is_none())
    }

    fn at(&self, offset: u64) -> Self {
        match self {
            Place::Device(address) => Place::Device(address.wrapping_add(offset)),
            Place::Host(address) => Place::Host(address.wrapping_add(offset)),
            Place::Held(bytes, from) => Place::Held(bytes.clone(), from + offset as usize),
        }
    }
}

fn outside(error: OutsideAllocation) -> Error {
    eprintln!("softcuda: {error}");
    Error::InvalidValue
}

impl Copy {
    fn line(to: Place, from: Place, bytes: u64) -> Self {
        let side = |place| Side { place, pitch: bytes, slice: bytes };
        Self { to: side(to), from: side(from), size: [bytes, 1, 1] }
    }

    pub fn run(&self) -> Outcome {
        let [width, rows, slices] = self.size;
        if width == 0 {
            return Ok(());
        }
        for slice in 0..slices {
            for row in 0..rows {
                let at = |side: &Side| side.place.at(slice * side.slice + row * side.pitch);
                run_row(&at(&self.to), &at(&self.from), width)?;
            }
        }
        Ok(())
    }

    /// With bytes of pageable host memory taken now: even a stream that has nothing to do may get work of
    /// another thread's first, and the default stream waits for other streams.
    fn held(mut self) -> Outcome<Self> {
        let Place::Host(address) = self.from.place else { return Ok(self) };
        let [width, rows, slices] = self.size;
        let mut bytes = Vec::with_capacity((width * rows * slices).min(1 << 30) as usize);
        for slice in 0..slices {
            for row in 0..rows {
                if let Place::Device(to) = self.to.place {
                    fits(to + slice * self.to.slice + row * self.to.pitch, width)?;
                }
                let at = address + slice * self.from.slice + row * self.from.pitch;
                with_host(at as usize, width as usize, |row| bytes.extend_from_slice(row))?;
            }
        }
        let place = Place::Held(bytes.into(), 0);
        self.from = Side { place, pitch: width, slice: width * rows };
        Ok(self)
    }
}

/// That the device has these bytes. Asked before memory of the host's is looked at: a length that the device
/// refuses is the caller's mistake.
fn fits(address: u64, bytes: u64) -> Outcome {
    match driver()?.device.allocation(address) {
        Some((begin, size)) if address - begin + bytes.min(size + 1) <= size => Ok(()),
        _ => Err(outside(OutsideAllocation { address, bytes })),
    }
}

fn run_row(to: &Place, from: &Place, bytes: u64) -> Outcome {
    let device = &driver()?.device;
    let length = bytes as usize;
    match (to, from) {
        (Place::Device(to), Place::Device(from)) => device.copy(*to, *from, bytes).map_err(outside),
        (Place::Device(to), Place::Host(from)) => {
            fits(*to, bytes)?;
            with_host(*from as usize, length, |bytes| device.write(*to, bytes))?.map_err(outside)
        }
        (Place::Device(to), Place::Held(held, at)) => {
            device.write(*to, &held[*at..at + length]).map_err(outside)
        }
        (Place::Host(to), Place::Device(from)) => {
            fits(*from, bytes)?;
            with_host_mut(*to as usize, length, |bytes| device.read(*from, bytes))?.map_err(outside)
        }
        (Place::Host(to), Place::Host(from)) => with_host(*from as usize, length, |from| {
            // The two may overlap: no slice of both at a time.
            let held = from.to_vec();
            with_host_mut(*to as usize, length, |to| to.copy_from_slice(&held))
        })?,
        (Place::Host(to), Place::Held(held, at)) => {
            with_host_mut(*to as usize, length, |to| to.copy_from_slice(&held[*at..at + length]))
        }
        (Place::Held(..), _) => Err(Error::InvalidValue),
    }
}

/// Submits a copy as the asynchronous calls do.
fn asynchronous(copy: Copy, on: Handle) -> Outcome {
    let stream = stream(on)?;
    if stream.capture_point()?.is_some() {
        return stream.submit(Work::Copy(copy));
    }
    let into_pageable = copy.to.place.pageable();
    let copy = if copy.from.place.pageable() { copy.held()? } else { copy };
    stream.submit(Work::Copy(copy))?;
    // The caller may look at pageable memory as soon as the call returns.
    if into_pageable { stream.synchronize() } else { Ok(()) }
}

/// Does a copy at once, behind everything on the context's own stream.
fn synchronous(copy: Copy) -> Outcome {
    capture::forbid()?;
    let context = context()?;
    context.stream.submit(Work::Copy(copy))?;
    context.stream.synchronize()
}

fn host_to_device(to: u64, from: In<u8>, bytes: usize) -> Outcome<Copy> {
    Ok(Copy::line(Place::Device(to), Place::of(from.address() as u64)?, bytes as u64))
}

fn device_to_host(to: Out<u8>, from: u64, bytes: usize) -> Outcome<Copy> {
    Ok(Copy::line(Place::of(to.address() as u64)?, Place::Device(from), bytes as u64))
}

fn in_device(to: u64, from: u64, bytes: usize) -> Copy {
    Copy::line(Place::Device(to), Place::Device(from), bytes as u64)
}

fn unified(to: u64, from: u64, bytes: usize) -> Outcome<Copy> {
    Ok(Copy::line(Place::of(to)?, Place::of(from)?, bytes as u64))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: In<u8>, bytes: usize) -> Status {
    call("cuMemcpyHtoD_v2", || synchronous(host_to_device(to, from, bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, bytes: usize, on: Handle) -> Status {
    call("cuMemcpyHtoDAsync_v2", || asynchronous(host_to_device(to, from, bytes)?, on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: Out<u8>, from: u64, bytes: usize) -> Status {
    call("cuMemcpyDtoH_v2", || synchronous(device_to_host(to, from, bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: Out<u8>, from: u64, bytes: usize, on: Handle) -> Status {
    call("cuMemcpyDtoHAsync_v2", || asynchronous(device_to_host(to, from, bytes)?, on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
    call("cuMemcpyDtoD_v2", || synchronous(in_device(to, from, bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, on: Handle) -> Status {
    call("cuMemcpyDtoDAsync_v2", || asynchronous(in_device(to, from, bytes), on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy(to: u64, from: u64, bytes: usize) -> Status {
    call("cuMemcpy", || synchronous(unified(to, from, bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, on: Handle) -> Status {
    call("cuMemcpyAsync", || asynchronous(unified(to, from, bytes)?, on))
}

/// Contexts share the one device: between them a copy is as any other.
fn between(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
) -> Outcome<Copy> {
    let driver = driver()?;
    driver.contexts.get(to_context)?;
    driver.contexts.get(from_context)?;
    Ok(in_device(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeer(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
) -> Status {
    call("cuMemcpyPeer", || synchronous(between(to, to_context, from, from_context, bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
    on: Handle,
) -> Status {
    call("cuMemcpyPeerAsync", || {
        asynchronous(between(to, to_context, from, from_context, bytes)?, on)
    })
}

/// One side of `CUDA_MEMCPY2D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Side2 {
    x: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: usize,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Copy2 {
    from: Side2,
    to: Side2,
    width: usize,
    height: usize,
}

/// One side of `CUDA_MEMCPY3D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Side3 {
    x: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: usize,
    reserved: usize,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Copy3 {
    from: Side3,
    to: Side3,
    size: [usize; 3],
}

impl Side3 {
    fn resolve(self, size: [usize; 3]) -> Outcome<Side> {
        let place = match self.kind {
            1 => Place::of(self.host)?,
            2 => Place::Device(self.device),
            4 => Place::of(self.device)?,
            3 => {
                eprintln!("softcuda: arrays are not supported");
                return Err(Error::NotSupported);
            }
            _ => return Err(Error::InvalidValue),
        };
        let [width, rows, slices] = size;
        let pitch = if self.pitch == 0 { width } else { self.pitch };
        let height = if self.height == 0 { rows } else { self.height };
        let slice = pitch.checked_mul(height).ok_or(Error::InvalidValue)?;
        let reach = |stride: usize, n: usize| stride.checked_mul(n).ok_or(Error::InvalidValue);
        let far = (
            reach(slice, self.z.saturating_add(slices))?,
            reach(pitch, self.y.saturating_add(rows))?,
        );
        if (rows > 1 && pitch < width) || far.0.checked_add(far.1).is_none() {
            return Err(Error::InvalidValue);
        }
        let offset = self.x + self.y * pitch + self.z * slice;
        Ok(Side { place: place.at(offset as u64), pitch: pitch as u64, slice: slice as u64 })
    }
}

impl Copy2 {
    fn resolve(self) -> Outcome<Copy> {
        let deep = |side: Side2| Side3 {
            x: side.x,
            y: side.y,
            z: 0,
            level: 0,
            kind: side.kind,
            host: side.host,
            device: side.device,
            array: side.array,
            reserved: 0,
            pitch: side.pitch,
            height: 0,
        };
        let (from, to) = (deep(self.from), deep(self.to));
        Copy3 { from, to, size: [self.width, self.height, 1] }.resolve()
    }
}

impl Copy3 {
    fn resolve(self) -> Outcome<Copy> {
        let size = self.size;
        let (from, to) = (self.from.resolve(size)?, self.to.resolve(size)?);
        Ok(Copy { to, from, size: size.map(|n| n as u64) })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2D_v2(copy: In<Copy2>) -> Status {
    call("cuMemcpy2D_v2", || synchronous(copy.get()?.resolve()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DUnaligned_v2(copy: In<Copy2>) -> Status {
    call("cuMemcpy2DUnaligned_v2", || synchronous(copy.get()?.resolve()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DAsync_v2(copy: In<Copy2>, on: Handle) -> Status {
    call("cuMemcpy2DAsync_v2", || asynchronous(copy.get()?.resolve()?, on))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy3D_v2(copy: In<Copy3>) -> Status {
    call("cuMemcpy3D_v2", || synchronous(copy.get()?.resolve()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy3DAsync_v2(copy: In<Copy3>, on: Handle) -> Status {
    call("cuMemcpy3DAsync_v2", || asynchronous(copy.get()?.resolve()?, on))
}

super::exports![
    cuMemcpyHtoD_v2,
    cuMemcpyHtoDAsync_v2,
    cuMemcpyDtoH_v2,
    cuMemcpyDtoHAsync_v2,
    cuMemcpyDtoD_v2,
    cuMemcpyDtoDAsync_v2,
    cuMemcpy,
    cuMemcpyAsync,
    cuMemcpyPeer,
    cuMemcpyPeerAsync,
    cuMemcpy2D_v2,
    cuMemcpy2DUnaligned_v2,
    cuMemcpy2DAsync_v2,
    cuMemcpy3D_v2,
    cuMemcpy3DAsync_v2,
];
