//! Where the lanes of an access go, by state space and block, and what they do there all at once.

use super::Memory;
use super::access::{self, Located, generic};
use super::elements::Buffer;
use super::global::Toucher;
use super::shadow::Kind;
use crate::fault::{Check, Fault};
use crate::ir::{LANES, LOCAL_WINDOW, Mask, PARAM_WINDOW, SHARED_WINDOW, Space, WINDOW_BYTES};
use crate::machine::Context;
use crate::registers::lanes;

/// The address of each lane, in the operand's own space.
pub fn addresses(ctx: &Context<'_>, memory: &Memory, mask: Mask) -> Result<[u64; LANES], Fault> {
    let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
    let offset = memory.addr.offset;
    if matches!(memory.space, Space::Generic | Space::Global | Space::Const) {
        let base = regs.read64(memory.addr.base, place);
        return Ok(base.map(|base| base.wrapping_add_signed(offset)));
    }
    let base = regs.read32(memory.addr.base, place);
    let sums = base.map(|base| u64::from(base).wrapping_add_signed(offset));
    if sums.iter().fold(0, |all, sum| all | sum) <= u64::from(u32::MAX) {
        return Ok(sums);
    }
    match lanes(mask).find(|&lane| sums[lane] > u64::from(u32::MAX)) {
        None => Ok(sums),
        Some(lane) => {
            let what = "an address beyond 32 bits";
            Err(Fault::new(Check::OutOfBounds, what).lane(lane).address(sums[lane]))
        }
    }
}

/// The lanes of one space.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Global,
    Shared,
    Local,
    Parameters,
}

/// Splits lanes by the space they address. Generic addresses stay as they are.
pub fn parts(space: Space, addresses: &[u64; LANES], mask: Mask) -> [(Part, Mask); 4] {
    let only = |part| [(part, mask), (part, 0), (part, 0), (part, 0)];
    match space {
        Space::Global | Space::Const => only(Part::Global),
        Space::Shared | Space::Cluster => only(Part::Shared),
        Space::Local => only(Part::Local),
        Space::Param => only(Part::Parameters),
        Space::Generic => {
            let within = |window: u64| {
                (0..LANES).fold(0, |mask, lane| {
                    let here = addresses[lane] & !(WINDOW_BYTES - 1) == window;
                    mask | u32::from(here) << lane
                }) & mask
            };
            let shared = within(SHARED_WINDOW);
            let (local, parameters) = (within(LOCAL_WINDOW), within(PARAM_WINDOW));
            [
                (Part::Global, mask & !(shared | local | parameters)),
                (Part::Shared, shared),
                (Part::Local, local),
                (Part::Parameters, parameters),
            ]
        }
    }
}

/// The fault of lanes that address memory where their access cannot work: that of the first.
pub fn misplaced(what: &str, addresses: &[u64; LANES], mask: Mask) -> Fault {
    let lane = mask.trailing_zeros() as usize;
    Fault::new(Check::OutOfBounds, what).lane(lane).address(addresses[lane])
}

/// The block and address in it that a lane addresses in shared memory.
pub fn shared_place(ctx: &Context<'_>, space: Space, address: u64) -> (usize, u32) {
    match space {
        Space::Shared => (ctx.rank, address as u32),
        Space::Cluster => access::cluster_shared(ctx, address as u32),
        _ => match generic(ctx, address) {
            Located::Shared { rank, addr } => (rank, addr),
            other => unreachable!("a shared address, not {other:?}"),
        },
    }
}

/// Does something for the lanes of each block whose shared memory they address, given the block's rank and
/// the addresses in it.
pub fn for_blocks(
    ctx: &mut Context<'_>,
    space: Space,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    mut act: impl FnMut(&mut Context<'_>, usize, &[u32; LANES], Mask) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let low = addresses.map(|address| address as u32);
    if bytes > 16 {
        let what = "accesses of more than 16 bytes work on global memory only";
        return Err(Fault::new(Check::Trap, what).lane(mask.trailing_zeros() as usize));
    }
    if space == Space::Shared {
        return act(ctx, ctx.rank, &low, mask);
    }
    let mut rest = mask;
    while rest != 0 {
        let block = |lane: usize| low[lane] / access::SHARED_STRIDE;
        let first = block(rest.trailing_zeros() as usize);
        let here = lanes(rest).filter(|&lane| block(lane) == first);
        let part = here.fold(0, |part, lane| part | 1 << lane);
        let (rank, _) = access::cluster_shared(ctx, first * access::SHARED_STRIDE);
        let addrs = low.map(|addr| addr % access::SHARED_STRIDE);
        act(ctx, rank, &addrs, part).map_err(|fault| match fault.lane {
            None => fault.lane(part.trailing_zeros() as usize),
            Some(_) => fault,
        })?;
        rest &= !part;
    }
    Ok(())
}

/// Reads `width` bytes, at most 16, of shared memory of a block for each lane: one address a lane, all checked as
/// plain accesses.
///
/// # Errors
///
/// What the checks find.
pub fn shared_read_lanes(
    ctx: &mut Context<'_>,
    rank: usize,
    addrs: &[u32; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    shared_read_as(ctx, Kind::Plain, (rank, addrs, mask), width, buffer)
}

pub fn shared_read_as(
    ctx: &mut Context<'_>,
    kind: Kind,
    (rank, addrs, mask): (usize, &[u32; LANES], Mask),
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    let unit = ctx.unit();
    access::with_block(ctx, unit, rank, kind, |shared, by| {
        shared.read_lanes(addrs, mask, width, by, buffer)
    })
}

/// The same for writing.
///
/// # Errors
///
/// What the checks find.
pub fn shared_write_lanes(
    ctx: &mut Context<'_>,
    rank: usize,
    addrs: &[u32; LANES],
    mask: Mask,
    width: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    ctx.cluster.changes += 1;
    shared_write_as(ctx, Kind::Plain, (rank, addrs, mask), width, buffer)
}

pub fn shared_write_as(
    ctx: &mut Context<'_>,
    kind: Kind,
    (rank, addrs, mask): (usize, &[u32; LANES], Mask),
    width: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    let unit = ctx.unit();
    access::with_block(ctx, unit, rank, kind, |shared, by| {
        shared.write_lanes(addrs, mask, width, by, |lane| &buffer[lane][..width])
    })
}

/// Reads `width` bytes, at most 32, of global memory for each lane.
///
/// # Errors
///
/// What the checks find.
pub fn global_read_lanes(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    read_by(&Toucher::new(ctx, Kind::Plain), addresses, mask, width, buffer)
}

pub fn read_by(
    toucher: &Toucher<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    toucher.each(addresses, mask, width, |toucher, held, offsets, mask| {
        toucher.read_lanes(held, offsets, mask, width, |lane, words, offset| {
            words.read(offset, &mut buffer[lane][..width]);
        })
    })
}
