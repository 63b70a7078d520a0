//! Operations of a warp's lanes together (shuffle, vote, match, reduce) and barriers.
//!
//! Source: PTX ISA, sections 9.7.9 (`shfl`), 9.7.13 (parallel synchronization).
//!
//! ```
//! use softcuda::counters::Class;
//! use softcuda::{lower, ptx};
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n\
//!             .reg .b32 %r<2>;\nshfl.sync.bfly.b32 %r0, %r1, 16, 31, -1;\nbar.sync 0;\nret; }";
//! let module = ptx::parse(text)?;
//! let kernel = lower::kernels(&module, &lower::Symbols::new())?.remove(0);
//! let classes: Vec<Class> = kernel.code.iter().map(|inst| inst.op.class()).collect();
//! assert_eq!(classes[..2], [Class::Warp, Class::Barrier]);
//! # Ok::<(), ptx::PtxError>(())
//! ```

mod barrier;
mod lower;
mod warp;

use crate::counters::Class;
use crate::ir::{Mask, PredSrc, Reg, Src};
use crate::machine::{Context, Executed};

pub use lower::lower;

#[derive(Debug, Clone, PartialEq)]
pub enum Collective {
    Shuffle(Shuffle),
    Vote {
        kind: Vote,
        dst: Reg,
        value: PredSrc,
        member: Src,
    },
    Match {
        all: bool,
        dst: Reg,
        /// Slot of the predicate `match.all` also gives.
        found: Option<Reg>,
        value: Src,
        member: Src,
    },
    Reduce {
        kind: Reduce,
        dst: Reg,
        value: Src,
        member: Src,
    },
    ActiveMask {
        dst: Reg,
    },
    Elect {
        dst: Reg,
        elected: Reg,
        member: Src,
    },
    WarpSync {
        member: Src,
    },
    Barrier(Barrier),
    ClusterArrive {
        aligned: bool,
        /// `.relaxed` orders nothing.
        release: bool,
    },
    ClusterWait {
        aligned: bool,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Shuffle {
    pub mode: ShuffleMode,
    pub dst: Reg,
    /// Predicate: was the source lane in range?
    pub found: Option<Reg>,
    pub value: Src,
    /// Lane or offset.
    pub lane: Src,
    /// Clamp in bits 0–4, segment mask in bits 8–12.
    pub clamp: Src,
    pub member: Src,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    Add,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    /// Of f32: absolute values or not, NaN wins or loses.
    MinFloat {
        absolute: bool,
        nan: bool,
    },
    MaxFloat {
        absolute: bool,
        nan: bool,
    },
}

/// `bar`, `barrier`.
#[derive(Debug, Clone, PartialEq)]
pub struct Barrier {
    pub id: Src,
    pub threads: Option<Src>,
    /// All threads of the warp execute it together.
    pub aligned: bool,
    pub kind: BarrierKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum BarrierKind {
    Sync,
    Arrive,
    Count { dst: Reg, value: PredSrc },
    All { dst: Reg, value: PredSrc },
    Any { dst: Reg, value: PredSrc },
}

impl Collective {
    pub fn class(&self) -> Class {
        match self {
            Self::WarpSync { .. }
            | Self::Barrier(_)
            | Self::ClusterArrive { .. }
            | Self::ClusterWait { .. } => Class::Barrier,
            _ => Class::Warp,
        }
    }
}

pub fn execute(op: &Collective, context: &mut Context<'_>, mask: Mask) -> Executed {
    match op {
        Collective::WarpSync { member } => barrier::warp_sync(*member, context, mask),
        Collective::Barrier(op) => barrier::block(op, context, mask),
        Collective::ClusterArrive { aligned, release } => {
            barrier::cluster_arrive(*aligned, *release, context, mask)
        }
        Collective::ClusterWait { aligned } => barrier::cluster_wait(*aligned, context, mask),
        other => warp::execute(other, context, mask),
    }
}
