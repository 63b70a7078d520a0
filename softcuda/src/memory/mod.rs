//! State spaces, loads, stores, atomics and fences, and the checks on them.
//!
//! - [`Device`]: global and constant memory. Every access is checked against the exact bounds of an
//!   allocation, for alignment, for bytes that nothing has written, and for races between blocks.
//! - [`Shared`]: a block's memory, with races between warps and between lanes of a warp, and
//!   destinations of unfinished copies. [`Order`] knows what is ordered.
//! - [`Local`]: a lane's stack.
//!
//! Races in global memory are looked for between blocks only: inside a block, two warps that exchange data
//! through global memory without a barrier are not reported.
//!
//! ```
//! use softcuda::memory::Device;
//!
//! let device = Device::new(1 << 20);
//! let address = device.allocate(100).expect("room");
//! device.write(address, &[7; 100])?;
//! // Bounds are exact, and an allocation that was freed is none.
//! assert!(device.write(address + 1, &[7; 100]).is_err());
//! device.free(address);
//! assert!(device.read(address, &mut [0; 4]).is_err());
//! # Ok::<(), softcuda::memory::OutsideAllocation>(())
//! ```

mod access;
mod address;
mod atomic;
mod by_lane;
mod device;
mod elements;
mod global;
mod grid;
mod local;
mod lower;
mod order;
mod page;
mod shadow;
mod shared;
mod strong;
mod traffic;
mod transfer;

use crate::counters::Class;
use crate::ir::{Addr, Mask, Space};
use crate::machine::{Context, Executed, Flow};

use shadow::Kind;

pub use access::{
    Located, SHARED_STRIDE, cluster_address, cluster_shared, generic, global_read, global_write,
    read_generic, shared_read, shared_read_async, shared_write, shared_write_async,
};
pub use address::Address;
pub use atomic::{Atomic, Operation, reduce};
pub use by_lane::{global_read_lanes, shared_read_lanes, shared_write_lanes};
pub use device::{Device, OutsideAllocation};
pub use elements::{Buffer, Target, WIDEST};
pub use local::Local;
pub use lower::{forget_unread, lower};
pub use order::{Clock, Order};
pub use shared::Shared;
pub use traffic::{global as count_global, shared as count_shared};
pub use transfer::{Load, Store};

/// Local memory of a lane, as on hardware.
pub const LOCAL_BYTES: u32 = 512 << 10;

/// An instruction on memory or addresses.
#[derive(Debug, Clone, PartialEq)]
pub enum Access {
    Load(Load),
    Store(Store),
    Atomic(Atomic),
    Address(Address),
    Fence(Scope),
    /// Says something about caches or about memory that is not modelled: no effect.
    Hint(Class),
}

/// A memory operand, and what the access means to other threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    pub space: Space,
    pub addr: Addr,
    pub semantics: Semantics,
    pub scope: Scope,
}

/// All but weak accesses are *strong*: they don't race with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    Weak,
    Volatile,
    /// Also `.mmio`.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

/// Whose threads an access or fence is for, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Block,
    Cluster,
    Gpu,
    System,
}

impl Memory {
    fn strong(&self) -> bool {
        self.semantics != Semantics::Weak
    }

    fn kind(&self) -> Kind {
        match self.semantics {
            Semantics::Weak => Kind::Plain,
            Semantics::Volatile => Kind::Volatile,
            _ => Kind::Strong,
        }
    }

    /// As other blocks see it.
    fn global_kind(&self) -> Kind {
        if self.across_blocks() { self.kind() } else { Kind::Plain }
    }

    /// True if its strength reaches other blocks.
    fn across_blocks(&self) -> bool {
        self.scope > Scope::Block
    }

    fn may_be_global(&self) -> bool {
        matches!(self.space, Space::Global | Space::Generic)
    }
}

impl Access {
    pub fn class(&self) -> Class {
        match self {
            Self::Load(_) => Class::Load,
            Self::Store(_) => Class::Store,
            Self::Atomic(_) => Class::Atomic,
            Self::Address(_) => Class::Integer,
            Self::Fence(_) => Class::Fence,
            Self::Hint(class) => *class,
        }
    }

    /// True if blocks could talk to each other through it: launches with such an instruction run in a fixed order.
    pub fn talks(&self) -> bool {
        match self {
            Self::Load(load) => load.from.may_be_global() && load.from.strong(),
            Self::Atomic(atomic) => atomic.talks(),
            _ => false,
        }
    }
}

pub fn execute(op: &Access, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    match op {
        Access::Load(op) => return transfer::load(op, ctx, mask),
        Access::Store(op) => return transfer::store(op, ctx, mask),
        Access::Atomic(op) => return atomic::execute(op, ctx, mask),
        Access::Address(op) => address::execute(op, ctx, mask)?,
        Access::Fence(scope) => strong::fence(*scope, ctx, mask),
        Access::Hint(_) => {}
    }
    Ok(Flow::Next)
}
