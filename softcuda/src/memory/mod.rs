//! State spaces, loads, stores, atomics and fences, and the checks on them.

mod access;
mod device;
mod grid;
mod local;
mod order;
mod page;
mod shared;

use crate::counters::Class;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow};
use crate::ptx::ast::Instruction;

pub use access::{
    Located, SHARED_STRIDE, cluster_address, cluster_shared, generic, global_read, global_write,
    read_generic, shared_read, shared_read_async, shared_write, shared_write_async,
};
pub use device::{Device, OutsideAllocation};
pub use local::Local;
pub use order::{Clock, Order};
pub use shared::Shared;

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

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Access>> {
    Ok(None)
}

pub fn execute(_: &Access, _: &mut Context<'_>, _: Mask) -> Executed {
    Ok(Flow::Next)
}
