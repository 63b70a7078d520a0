//! State spaces, loads, stores, atomics and fences, and the checks on them.

use crate::counters::Class;
use crate::fault::Fault;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow};
use crate::ptx::ast::Instruction;

/// Local memory of a lane, as on hardware.
pub const LOCAL_BYTES: u32 = 512 << 10;

#[derive(Debug, Clone, PartialEq)]
pub struct Access {}

impl Access {
    pub fn class(&self) -> Class {
        Class::Load
    }

    /// True if blocks could talk to each other through it: launches with such an instruction run in a fixed order.
    pub fn talks(&self) -> bool {
        false
    }
}

/// Global memory: every allocation of the device. Shared by all cores, hence `&self`.
#[derive(Debug, Default)]
pub struct Device {}

/// A host's copy or fill that leaves an allocation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{bytes} bytes at {address:#x} are not inside one allocation")]
pub struct OutsideAllocation {
    pub address: u64,
    pub bytes: u64,
}

impl Device {
    /// A device with so many bytes of memory.
    pub fn new(_capacity: u64) -> Self {
        Self {}
    }
    /// The begin of a new allocation, 512-byte aligned; `None` when memory is full or `bytes` is 0.
    pub fn allocate(&self, _bytes: u64) -> Option<u64> {
        None
    }
    /// Memory that the host reads and writes too, at the same address (managed, pinned). It counts as initialised.
    pub fn allocate_host(&self, _bytes: u64) -> Option<u64> {
        None
    }
    /// False if no allocation begins there.
    pub fn free(&self, _address: u64) -> bool {
        false
    }
    /// Begin and bytes of the allocation that holds an address.
    pub fn allocation(&self, _address: u64) -> Option<(u64, u64)> {
        None
    }
    pub fn capacity(&self) -> u64 {
        0
    }
    pub fn used(&self) -> u64 {
        0
    }
    /// Copies to the host; bytes nothing wrote read as they happen to be.
    pub fn read(&self, _from: u64, _into: &mut [u8]) -> Result<(), OutsideAllocation> {
        Ok(())
    }
    /// Copies from the host.
    pub fn write(&self, _to: u64, _bytes: &[u8]) -> Result<(), OutsideAllocation> {
        Ok(())
    }
    /// Repeats a pattern of 1, 2 or 4 bytes `count` times.
    pub fn fill(&self, _to: u64, _pattern: &[u8], _count: u64) -> Result<(), OutsideAllocation> {
        Ok(())
    }
    /// Copies inside the device, with whether bytes are initialised.
    pub fn copy(&self, _to: u64, _from: u64, _bytes: u64) -> Result<(), OutsideAllocation> {
        Ok(())
    }
}

/// Local memory of a warp's lanes.
#[derive(Debug, Default)]
pub struct Local {}

impl Local {
    /// Marks a frame as not yet written.
    pub fn clear(&mut self, _mask: Mask, _from: u32, _bytes: u32) {}
    /// Copies bytes of each lane, with whether they are initialised.
    pub fn copy(&mut self, _mask: Mask, _from: u32, _to: u32, _bytes: u32) {}
    pub fn read(&self, _lane: usize, _from: u32, _into: &mut [u8]) -> Result<(), Fault> {
        Ok(())
    }
    pub fn write(&mut self, _lane: usize, _to: u32, _bytes: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
}

/// Shared memory of a block.
#[derive(Debug)]
pub struct Shared {}

impl Shared {
    pub fn new(_bytes: u32) -> Self {
        Self {}
    }
}

/// Which accesses are ordered before which: a vector clock per warp.
#[derive(Debug)]
pub struct Order {}

impl Order {
    pub fn new(_units: usize) -> Self {
        Self {}
    }
    /// What `unit` did so far, for others to acquire; later accesses of it are not included.
    pub fn release(&mut self, _unit: usize) -> Clock {
        Clock::default()
    }
    /// Orders what `clock` holds before everything `unit` does from now on.
    pub fn acquire(&mut self, _unit: usize, _clock: &Clock) {}
    /// Orders the lanes of a mask among each other: `bar.warp.sync`.
    pub fn warp_sync(&mut self, _unit: usize, _mask: Mask) {}
}

/// A point in the order, as handed from those that arrive to those that leave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clock {}

impl Clock {
    pub fn join(&mut self, _other: &Clock) {}
}

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Access>> {
    Ok(None)
}

pub fn execute(_: &Access, _: &mut Context<'_>, _: Mask) -> Executed {
    Ok(Flow::Next)
}

/// Reads bytes at a generic address as a lane would.
pub fn read_generic(
    _: &mut Context<'_>,
    _lane: usize,
    _from: u64,
    _into: &mut [u8],
) -> Result<(), Fault> {
    Ok(())
}
