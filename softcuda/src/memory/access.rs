//! Checked accesses of single lanes: what other families build on.

use super::device::{Allocation, View};
use super::global::Toucher;
use super::shadow::Kind;
use super::shared::{self, Actor, Refusal};
use super::{Local, Shared};
use crate::fault::{Check, Fault, Party};
use crate::ir::{LANES, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::machine::{Cluster, Context};

/// Shared-memory addresses of the cluster: those below this are the block's own, then follow the
/// blocks by rank.
pub const SHARED_STRIDE: u32 = 1 << 24;

/// Where a generic address lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    Global(u64),
    Shared {
        /// Of the block in its cluster.
        rank: usize,
        addr: u32,
    },
    Local(u32),
    /// The kernel's parameters.
    Param(u32),
}

/// Where a generic address lies.
pub fn generic(ctx: &Context<'_>, addr: u64) -> Located {
    let low = addr as u32;
    match addr & !(WINDOW_BYTES - 1) {
        SHARED_WINDOW => {
            let (rank, addr) = cluster_shared(ctx, low);
            Located::Shared { rank, addr }
        }
        LOCAL_WINDOW => Located::Local(low),
        PARAM_WINDOW => Located::Param(low),
        _ => Located::Global(addr),
    }
}

/// The block (by rank) and the address in its shared memory of a `shared::cluster` address.
pub fn cluster_shared(ctx: &Context<'_>, addr: u32) -> (usize, u32) {
    match (addr / SHARED_STRIDE) as usize {
        0 => (ctx.rank, addr),
        block => (block - 1, addr % SHARED_STRIDE),
    }
}

/// The `shared::cluster` address of an address in a block's shared memory: `mapa`.
pub fn cluster_address(rank: usize, addr: u32) -> u32 {
    (rank as u32 + 1) * SHARED_STRIDE + addr % SHARED_STRIDE
}

/// Reads shared memory of the cluster's block `rank` as a lane.
pub fn shared_read(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    addr: u32,
    into: &mut [u8],
) -> Result<(), Fault> {
    let unit = ctx.unit();
    shared_read_async(ctx, rank, lane, unit, addr, into)
}

pub fn shared_write(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    addr: u32,
    bytes: &[u8],
) -> Result<(), Fault> {
    let unit = ctx.unit();
    shared_write_async(ctx, rank, lane, unit, addr, bytes)
}

/// Reads as `unit`, mostly for the asynchronous proxy, by an instruction of `lane`.
pub fn shared_read_async(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    unit: usize,
    addr: u32,
    into: &mut [u8],
) -> Result<(), Fault> {
    with_shared(ctx, (unit, rank, lane, addr, Kind::Plain), into.len(), |shared, actor| {
        shared.read(addr, into, lane, actor)
    })
}

pub fn shared_write_async(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    unit: usize,
    addr: u32,
    bytes: &[u8],
) -> Result<(), Fault> {
    ctx.cluster.changes += 1;
    with_shared(ctx, (unit, rank, lane, addr, Kind::Plain), bytes.len(), |shared, actor| {
        shared.write(addr, bytes, lane, actor)
    })
}

/// Does something to the shared memory of a block: unit, rank, lane, address and kind of access.
pub(super) fn with_shared<T>(
    ctx: &mut Context<'_>,
    (unit, rank, lane, addr, kind): (usize, usize, usize, u32, Kind),
    bytes: usize,
    act: impl FnOnce(&mut Shared, &mut Actor<'_>) -> Result<T, Refusal>,
) -> Result<T, Fault> {
    aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
    let done = with_block(ctx, unit, rank, kind, act);
    done.map_err(|fault| if fault.lane.is_none() { fault.lane(lane) } else { fault })
}

/// Does something to the shared memory of the block of a rank, for lanes of the context's warp.
pub(super) fn with_block<T>(
    ctx: &mut Context<'_>,
    unit: usize,
    rank: usize,
    kind: Kind,
    act: impl FnOnce(&mut Shared, &mut Actor<'_>) -> Result<T, Refusal>,
) -> Result<T, Fault> {
    let (warp, pc) = (ctx.unit(), ctx.pc);
    let Cluster { blocks, order, .. } = &mut *ctx.cluster;
    let Some(block) = blocks.get_mut(rank) else {
        let what = format!("the cluster has no block of rank {rank}");
        return Err(Fault::new(Check::OutOfBounds, what));
    };
    if unit != warp {
        order.set_owner(unit, warp);
    }
    let mut actor = Actor { order, unit, warp, pc, kind };
    act(&mut block.shared, &mut actor).map_err(|refusal| refused(ctx, refusal))
}

#[cold]
fn refused(ctx: &Context<'_>, refusal: Refusal) -> Fault {
    let (check, conflict, granule) = match refusal {
        Refusal::Fault(fault) => return fault,
        Refusal::Conflict(check, conflict, granule) => (check, conflict, granule),
    };
    let address = (granule * shared::GRANULE) as u64 + u64::from(conflict.byte);
    let warps = ctx.launch.warps() as usize;
    let warp = ctx.cluster.order.owner(conflict.who as usize);
    let lane = shared::lane_of(conflict.here);
    let own = (warp == ctx.unit()).then_some(lane);
    let (pc, thread) = shared::party_of(conflict.place, own);
    let what = match check {
        Check::MissingFence => "written, but no proxy fence makes it visible to this access",
        _ if own.is_some() => "nothing orders this access after that of another lane of the warp",
        _ => "nothing orders this access after that of another warp",
    };
    let other = Party {
        pc,
        block: ctx.cluster.blocks[warp / warps].linear,
        thread: (warp % warps * LANES) as u32 + thread,
        did: if conflict.wrote { "wrote" } else { "read" },
    };
    Fault::new(check, what).lane(lane as usize).address(address).other(other)
}

/// Reads global memory as a lane.
pub fn global_read(
    ctx: &mut Context<'_>,
    lane: usize,
    addr: u64,
    into: &mut [u8],
) -> Result<(), Fault> {
    let toucher = Toucher::new(ctx, Kind::Plain);
    aligned(addr, into.len()).map_err(|fault| fault.lane(lane))?;
    let view = toucher.device.view();
    let found = inside(&view, lane, addr, into.len())?;
    let mut rest = into;
    for piece in found.pieces(addr, rest.len() as u64) {
        let (here, after) = rest.split_at_mut(piece.bytes);
        toucher.read(&mut piece.held(&mut piece.page.lock()), piece.offset, lane, here)?;
        rest = after;
    }
    Ok(())
}

/// Writes global memory as a lane.
pub fn global_write(
    ctx: &mut Context<'_>,
    lane: usize,
    addr: u64,
    bytes: &[u8],
) -> Result<(), Fault> {
    ctx.cluster.changes += 1;
    let toucher = Toucher::new(ctx, Kind::Plain);
    aligned(addr, bytes.len()).map_err(|fault| fault.lane(lane))?;
    let view = toucher.device.view();
    let found = inside(&view, lane, addr, bytes.len())?;
    let mut rest = bytes;
    for piece in found.pieces(addr, bytes.len() as u64) {
        let (here, after) = rest.split_at(piece.bytes);
        toucher.write(&mut piece.held(&mut piece.page.lock()), piece.offset, lane, here)?;
        rest = after;
    }
    Ok(())
}

fn inside<'v>(
    view: &'v View<'_>,
    lane: usize,
    addr: u64,
    bytes: usize,
) -> Result<&'v Allocation, Fault> {
    let found = view.find(addr).filter(|found| bytes as u64 <= found.end() - addr);
    found.ok_or_else(|| outside(view, lane, addr, bytes))
}

/// Reads bytes at a generic address as a lane would.
pub fn read_generic(
    ctx: &mut Context<'_>,
    lane: usize,
    from: u64,
    into: &mut [u8],
) -> Result<(), Fault> {
    match generic(ctx, from) {
        Located::Global(addr) => global_read(ctx, lane, addr, into),
        Located::Shared { rank, addr } => shared_read(ctx, rank, lane, addr, into),
        Located::Local(addr) => Local::read(&ctx.warp.local, lane, addr, into),
        Located::Param(addr) => parameter(ctx, lane, addr, into),
    }
}

/// Reads the kernel's parameters.
pub(super) fn parameter(
    ctx: &Context<'_>,
    lane: usize,
    addr: u32,
    into: &mut [u8],
) -> Result<(), Fault> {
    let from = addr as usize;
    match ctx.launch.parameters.get(from..from + into.len()) {
        Some(bytes) => into.copy_from_slice(bytes),
        None => {
            let what = "outside the kernel's parameters";
            let fault = Fault::new(Check::OutOfBounds, what).lane(lane);
            return Err(fault.address(u64::from(addr)));
        }
    }
    Ok(())
}

/// Accesses of 2, 4, 8, 16 or 32 bytes lie at multiples of their size.
pub(super) fn aligned(addr: u64, bytes: usize) -> Result<(), Fault> {
    if bytes.is_power_of_two() && bytes <= 32 && addr & (bytes as u64 - 1) != 0 {
        let what = format!("an access of {bytes} bytes at no multiple of them");
        return Err(Fault::new(Check::Misaligned, what).address(addr));
    }
    Ok(())
}

#[cold]
pub(super) fn outside(view: &View<'_>, lane: usize, addr: u64, bytes: usize) -> Fault {
    let inside = view.find(addr).map(|a| (addr.saturating_sub(a.begin), a.bytes, a.begin));
    let what = match inside {
        Some((offset, of, begin)) => format!(
            "{bytes} bytes at offset {offset} leave the allocation of {of} bytes at {begin:#x}"
        ),
        None => format!("{bytes} bytes {}", view.describe(addr)),
    };
    Fault::new(Check::OutOfBounds, what).lane(lane).address(addr)
}
