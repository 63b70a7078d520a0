//! Asynchronous copies: `cp.async`, `cp.async.bulk`, tensor copies, `mbarrier`, proxy fences.
//!
//! ```
//! use softcuda::ir::Op;
//! use softcuda::{bulk::Async, lower, ptx};
//!
//! let text = ".version 8.0\n.target sm_90\n.address_size 64\n\
//!             .visible .entry k() { cp.async.commit_group; cp.async.wait_group 1; ret; }";
//! let module = ptx::parse(text)?;
//! let kernel = lower::kernels(&module, &lower::Symbols::new())?.remove(0);
//! assert_eq!(kernel.code[1].op, Op::Async(Box::new(Async::Wait(1))));
//! # Ok::<(), ptx::PtxError>(())
//! ```

mod barriers;
mod copy;
mod mbarrier;
pub(crate) mod place;
mod remote;
mod tensor;
mod transfer;
mod work;

use crate::counters::Class;
use crate::ir::{LANES, Mask, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::{Context, Executed, Flow};
use crate::matrix::ProductGroups;
use crate::memory::Buffer;
use crate::ptx::ast::{Instruction, Operand};

#[derive(Debug, Clone, PartialEq)]
pub enum Async {
    Copy(copy::Copy),
    Commit,
    Wait(u32),
    WaitAll,
    Mbarrier(barriers::Operation),
    /// `mbarrier.pending_count`: count, state.
    PendingCount(Reg, Src),
    Transfer(Box<transfer::Transfer>),
    CommitTransfers,
    WaitTransfers(u32),
    Remote(Box<remote::Remote>),
    /// `fence.proxy.async`.
    ProxyFence,
    /// What only helps hardware along, or orders what is in order here.
    Nothing,
}

impl Async {
    /// True if blocks could tell in which order they come to it, as of a load or an atomic.
    pub fn talks(&self) -> bool {
        matches!(self, Async::Transfer(transfer) if transfer.talks())
    }

    pub fn class(&self) -> Class {
        match self {
            Async::Mbarrier(_) | Async::PendingCount(..) => Class::Barrier,
            Async::ProxyFence | Async::Nothing => Class::Fence,
            _ => Class::Copy,
        }
    }
}

/// Copies and products the lanes of a warp have started.
#[derive(Debug, Default)]
pub struct WarpAsync {
    /// `cp.async` copies not yet waited for, in the order of their issue.
    copies: Vec<copy::Issued>,
    /// Memory of finished copies, for others.
    #[allow(clippy::vec_box)] // taken out and put back without copying a kilobyte
    spare: Vec<Box<Buffer>>,
    /// The number of each lane's open group.
    open: [u32; LANES],
    groups: transfer::Groups,
    pub(crate) products: ProductGroups,
}

/// Asynchronous state of a block.
#[derive(Debug, Default)]
pub struct BlockAsync {
    mbarriers: barriers::Mbarriers,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Async>> {
    let part = |n: usize| i.parts.get(n).copied().unwrap_or("");
    Ok(Some(match (i.parts[0], part(1), part(2)) {
        ("cp", "async", "ca" | "cg") => Async::Copy(copy::Copy::lower(l, i)?),
        ("cp", "async", "commit_group") => Async::Commit,
        ("cp", "async", "wait_group") => match operands(i)? {
            [Operand::Int(groups)] => Async::Wait(*groups as u32),
            _ => return l.error("expected the number of groups"),
        },
        ("cp", "async", "wait_all") => Async::WaitAll,
        ("cp", "async", "bulk") if part(3) == "commit_group" => Async::CommitTransfers,
        ("cp", "async", "bulk") if part(3) == "wait_group" => match operands(i)? {
            [Operand::Int(groups)] => Async::WaitTransfers(*groups as u32),
            _ => return l.error("expected the number of groups"),
        },
        ("cp", "async", "bulk") if part(3) == "prefetch" => Async::Nothing,
        ("cp", "async" | "reduce", "bulk" | "async") if !part(3).is_empty() => {
            Async::Transfer(Box::new(transfer::Transfer::lower(l, i)?))
        }
        ("st" | "red", "async", _) => Async::Remote(Box::new(remote::Remote::lower(l, i)?)),
        ("prefetch", "tensormap", _) | ("prefetch", _, "tensormap") => Async::Nothing,
        ("cp", "async", "mbarrier") if part(3) == "arrive" => {
            Async::Mbarrier(barriers::Operation::lower_copies(l, i)?)
        }
        ("mbarrier", "pending_count", _) => {
            let [count, state] = operands(i)?;
            Async::PendingCount(l.dst(Ty::U32, count)?, l.src(Ty::B64, state)?)
        }
        ("mbarrier", ..) => Async::Mbarrier(barriers::Operation::lower(l, i)?),
        ("fence", "proxy", kind) if kind.starts_with("async") => Async::ProxyFence,
        ("fence", "mbarrier_init", _) => Async::Nothing,
        _ => return Ok(None),
    }))
}

pub fn execute(op: &Async, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    match op {
        Async::Copy(op) => op.execute(ctx, mask)?,
        Async::Commit => copy::commit(ctx, mask),
        Async::Wait(groups) => copy::wait(ctx, mask, *groups)?,
        Async::WaitAll => copy::wait_all(ctx, mask)?,
        Async::Mbarrier(op) => return op.execute(ctx, mask),
        Async::PendingCount(count, state) => {
            let states = ctx.warp.regs.read64(*state, &ctx.warp.place);
            let counts = states.map(mbarrier::Mbarrier::pending_count);
            ctx.warp.regs.write32(*count, mask, &counts);
        }
        Async::Transfer(op) => op.execute(ctx, mask)?,
        Async::CommitTransfers => transfer::commit(ctx, mask),
        Async::WaitTransfers(groups) => transfer::wait(ctx, mask, *groups),
        Async::Remote(op) => op.execute(ctx, mask)?,
        Async::ProxyFence => {
            let unit = ctx.unit();
            ctx.cluster.order.fence_async(unit);
        }
        Async::Nothing => {}
    }
    Ok(Flow::Next)
}
