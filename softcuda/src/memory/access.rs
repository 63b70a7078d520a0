//! Checked accesses of single lanes: what other families build on.

use super::{Local, page};
use crate::fault::{Check, Fault};
use crate::ir::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::machine::Context;

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
    let Some(block) = ctx.cluster.blocks.get(rank) else { return Err(no_block(rank, lane, addr)) };
    aligned(u64::from(addr), into.len())
        .and_then(|()| block.shared.read(addr, into))
        .map_err(|f| f.lane(lane))
}

pub fn shared_write(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    addr: u32,
    bytes: &[u8],
) -> Result<(), Fault> {
    ctx.cluster.changes += 1;
    let Some(block) = ctx.cluster.blocks.get_mut(rank) else {
        return Err(no_block(rank, lane, addr));
    };
    aligned(u64::from(addr), bytes.len())
        .and_then(|()| block.shared.write(addr, bytes))
        .map_err(|f| f.lane(lane))
}

/// Reads as the asynchronous proxy, for `unit`, by an instruction of `lane`.
pub fn shared_read_async(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    _unit: usize,
    addr: u32,
    into: &mut [u8],
) -> Result<(), Fault> {
    shared_read(ctx, rank, lane, addr, into)
}

pub fn shared_write_async(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    _unit: usize,
    addr: u32,
    bytes: &[u8],
) -> Result<(), Fault> {
    shared_write(ctx, rank, lane, addr, bytes)
}

/// Reads global memory as a lane.
pub fn global_read(
    ctx: &mut Context<'_>,
    lane: usize,
    addr: u64,
    into: &mut [u8],
) -> Result<(), Fault> {
    let view = ctx.launch.device.view();
    let found = view.find(addr).filter(|a| into.len() as u64 <= a.end() - addr);
    let Some(found) = found else { return Err(outside(&view, lane, addr, into.len())) };
    aligned(addr, into.len()).map_err(|f| f.lane(lane))?;
    let mut rest = into;
    for piece in found.pieces(addr, rest.len() as u64) {
        let (here, after) = rest.split_at_mut(piece.bytes);
        let known = piece.page.lock();
        if let Some(byte) = known.uninitialised(piece.offset, piece.bytes) {
            let what = "reads global memory that nothing has written";
            let page = addr & !(page::PAGE_BYTES as u64 - 1);
            let fault = Fault::new(Check::Uninitialised, what).lane(lane);
            return Err(fault.address(page + byte as u64));
        }
        piece.words.read(piece.offset, here);
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
    let view = ctx.launch.device.view();
    let found = view.find(addr).filter(|a| bytes.len() as u64 <= a.end() - addr);
    let Some(found) = found else { return Err(outside(&view, lane, addr, bytes.len())) };
    aligned(addr, bytes.len()).map_err(|f| f.lane(lane))?;
    let mut rest = bytes;
    for piece in found.pieces(addr, bytes.len() as u64) {
        let (here, after) = rest.split_at(piece.bytes);
        piece.page.lock().initialise(piece.offset, piece.bytes);
        piece.words.write(piece.offset, here);
        rest = after;
    }
    Ok(())
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
fn aligned(addr: u64, bytes: usize) -> Result<(), Fault> {
    if bytes.is_power_of_two() && bytes <= 32 && addr & (bytes as u64 - 1) != 0 {
        let what = format!("an access of {bytes} bytes at no multiple of them");
        return Err(Fault::new(Check::Misaligned, what).address(addr));
    }
    Ok(())
}

fn outside(view: &super::device::View<'_>, lane: usize, addr: u64, bytes: usize) -> Fault {
    let inside = view.find(addr).map(|a| (addr.saturating_sub(a.begin), a.bytes, a.begin));
    let what = match inside {
        Some((offset, of, begin)) => format!(
            "{bytes} bytes at offset {offset} leave the allocation of {of} bytes at {begin:#x}"
        ),
        None => format!("{bytes} bytes {}", view.describe(addr)),
    };
    Fault::new(Check::OutOfBounds, what).lane(lane).address(addr)
}

fn no_block(rank: usize, lane: usize, addr: u32) -> Fault {
    let what = format!("the cluster has no block of rank {rank}");
    Fault::new(Check::OutOfBounds, what).lane(lane).address(u64::from(addr))
}
