//! The mbarriers of a block, and what is under way to each.

use std::collections::BTreeMap;

use crate::bulk::copy::{self, Issued};
use crate::bulk::mbarrier::{Kind, Mbarrier};
use crate::bulk::place::aligned;
use crate::fault::{Check, Fault, Party};
use crate::ir::Mask;
use crate::machine::Context;
use crate::memory::{Clock, shared_read, shared_write};

const BYTES: u32 = 8;

/// An mbarrier and what is under way to it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) barrier: Mbarrier,
    /// As whom its transfers count in the order of accesses.
    unit: Option<usize>,
    pub(super) flights: Vec<Flight>,
    pub(super) by: Party,
}

/// Something that ends when its mbarrier is waited for.
#[derive(Debug)]
pub enum Flight {
    Transfer {
        /// Destinations in the mbarrier's block: address, bytes.
        to: Vec<(u32, u32)>,
        bytes: u32,
        clock: Clock,
    },
    /// `cp.async` copies of some lanes of a warp, which then arrive.
    Copies { unit: usize, copies: Vec<Issued>, arrivals: u32, clock: Clock },
}

/// The mbarriers of a block by their address.
#[derive(Debug, Default)]
pub struct Mbarriers(BTreeMap<u32, Entry>);

pub(super) fn init(ctx: &mut Context<'_>, lane: usize, addr: u32, count: u32) -> Result<(), Fault> {
    aligned(lane, u64::from(addr), u64::from(BYTES))?;
    if let Some(entry) = ctx.block().asyncs.mbarriers.0.get(&addr) {
        let other = entry.by.clone();
        let what = "initialises an mbarrier that is in use";
        return Err(Fault::new(Check::Barrier, what).lane(lane).address(addr.into()).other(other));
    }
    shared_write(ctx, ctx.rank, lane, addr, &[0; BYTES as usize])?;
    let barrier = Mbarrier::new(count).map_err(|fault| fault.lane(lane))?;
    let by = ctx.party(lane, "initialised the mbarrier in");
    let block = ctx.block();
    block.shared.mark_pending(addr, BYTES, by.clone());
    let entry = Entry { barrier, unit: None, flights: Vec::new(), by };
    block.asyncs.mbarriers.0.insert(addr, entry);
    Ok(())
}

pub(super) fn invalidate(ctx: &mut Context<'_>, lane: usize, addr: u32) -> Result<(), Fault> {
    entry(ctx, ctx.rank, lane, addr)?;
    let block = ctx.block();
    block.asyncs.mbarriers.0.remove(&addr);
    block.shared.unmark_pending(addr, BYTES);
    shared_write(ctx, ctx.rank, lane, addr, &[0; BYTES as usize])
}

/// An mbarrier is used as its memory is read: that must come after its initialisation.
pub(super) fn touch(
    ctx: &mut Context<'_>,
    rank: usize,
    lane: usize,
    addr: u32,
) -> Result<(), Fault> {
    let by = entry(ctx, rank, lane, addr)?.by.clone();
    ctx.cluster.blocks[rank].shared.unmark_pending(addr, BYTES);
    let read = shared_read(ctx, rank, lane, addr, &mut [0; BYTES as usize]);
    ctx.cluster.blocks[rank].shared.mark_pending(addr, BYTES, by);
    read
}

pub(super) fn entry<'c>(
    ctx: &'c mut Context<'_>,
    rank: usize,
    lane: usize,
    addr: u32,
) -> Result<&'c mut Entry, Fault> {
    let block = ctx.cluster.blocks.get_mut(rank);
    block.and_then(|block| block.asyncs.mbarriers.0.get_mut(&addr)).ok_or_else(|| {
        let what = "no mbarrier was initialised here";
        Fault::new(Check::Barrier, what).lane(lane).address(u64::from(addr))
    })
}

/// Ends everything under way to an mbarrier of the block.
pub(super) fn land(ctx: &mut Context<'_>, lane: usize, addr: u32) -> Result<(), Fault> {
    let flights = std::mem::take(&mut entry(ctx, ctx.rank, lane, addr)?.flights);
    for flight in flights {
        ctx.cluster.changes += 1;
        match flight {
            Flight::Transfer { to, bytes, clock } => {
                for (addr, bytes) in to {
                    ctx.block().shared.unmark_pending(addr, bytes);
                }
                entry(ctx, ctx.rank, lane, addr)?.barrier.receive(bytes, Some(&clock))?;
            }
            Flight::Copies { copies, arrivals, clock, .. } => {
                for copy in &copies {
                    copy.finish_all(ctx)?;
                }
                let barrier = &mut entry(ctx, ctx.rank, lane, addr)?.barrier;
                for _ in 0..arrivals {
                    barrier.arrive(1, Kind::Arrive, Some(&clock))?;
                }
            }
        }
    }
    Ok(())
}

/// As whom the transfers of an mbarrier count.
pub fn unit(ctx: &mut Context<'_>, rank: usize, lane: usize, addr: u32) -> Result<usize, Fault> {
    touch(ctx, rank, lane, addr)?;
    if let Some(unit) = entry(ctx, rank, lane, addr)?.unit {
        return Ok(unit);
    }
    let unit = ctx.cluster.order.add_unit();
    entry(ctx, rank, lane, addr)?.unit = Some(unit);
    Ok(unit)
}

/// What a transfer brings: the parts of the mbarrier's block that nobody may touch before, and how many
/// bytes count.
pub struct Arriving {
    pub range: Vec<(u32, u32)>,
    pub bytes: u32,
}

/// Sends a transfer on its way that `writer` has written.
pub fn send(
    ctx: &mut Context<'_>,
    (rank, addr): (usize, u32),
    lane: usize,
    writer: usize,
    Arriving { range: to, bytes }: Arriving,
) -> Result<(), Fault> {
    touch(ctx, rank, lane, addr)?;
    let clock = ctx.cluster.order.release(writer);
    let by = ctx.party(lane, "started a transfer to");
    for &(addr, bytes) in &to {
        ctx.cluster.blocks[rank].shared.mark_pending(addr, bytes, by.clone());
    }
    ctx.cluster.changes += 1;
    entry(ctx, rank, lane, addr)?.flights.push(Flight::Transfer { to, bytes, clock });
    Ok(())
}

impl Mbarriers {
    /// Takes the copies of a warp's lanes that have arrived at an mbarrier.
    pub fn copies_of(&mut self, unit: usize, mask: Mask) -> Vec<Issued> {
        let mut taken = Vec::new();
        for flight in self.0.values_mut().flat_map(|entry| &mut entry.flights) {
            if let Flight::Copies { unit: of, copies, .. } = flight
                && *of == unit
            {
                taken.extend(copy::take(copies, mask));
            }
        }
        taken
    }
}
