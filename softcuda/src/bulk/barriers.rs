//! The instructions on mbarriers, and the transfers that an mbarrier waits for.
//!
//! A transfer is checked and written when it is issued, but its bytes count, and its destination may be
//! touched, only when somebody waits at its mbarrier: the latest moment hardware could choose.

use std::collections::BTreeMap;

use super::copy::{self, Issued};
use super::mbarrier::{Kind, Mbarrier};
use super::place::{addresses, aligned, own_shared, shared};
use crate::fault::{Check, Fault, Party};
use crate::ir::{Addr, LANES, Mask, Reg, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::{Context, Executed, Flow, Why};
use crate::memory::{Clock, shared_read, shared_write};
use crate::ptx::ast::{Instruction, Operand};
use crate::registers::lanes;

/// How often `try_wait` waits before it says that the phase is not complete.
const PATIENCE: u64 = 16;
const BYTES: u32 = 8;

/// An instruction on an mbarrier.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub addr: Addr,
    pub space: Space,
    pub kind: Action,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Init(Src),
    Invalidate,
    Expect(Src),
    Complete(Src),
    Arrive {
        /// Gets the state before the arrival.
        state: Option<Reg>,
        kind: Kind,
        count: Src,
        expect: Option<Src>,
        release: bool,
    },
    Wait {
        done: u32,
        until: Until,
        /// `try_wait`, not `test_wait`.
        patient: bool,
        acquire: bool,
    },
    /// `cp.async.mbarrier.arrive`, and whether it is a further arrival of this phase.
    CopiesArrive {
        increment: bool,
    },
}

/// What a wait waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Until {
    State(Src),
    Parity(Src),
}

/// An mbarrier and what is under way to it.
#[derive(Debug)]
struct Entry {
    barrier: Mbarrier,
    /// As whom its transfers count in the order of accesses.
    unit: Option<usize>,
    flights: Vec<Flight>,
    by: Party,
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

impl Operation {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let mut space = Space::Generic;
        let (mut relaxed, mut expect, mut complete, mut parity) = (false, false, true, false);
        for &part in i.parts.get(2..).unwrap_or_default() {
            match part {
                "shared" | "shared::cta" => space = Space::Shared,
                "shared::cluster" => space = Space::Cluster,
                "relaxed" => relaxed = true,
                "expect_tx" => expect = true,
                "noComplete" => complete = false,
                "parity" => parity = true,
                "b64" | "release" | "acquire" | "cta" | "cluster" => {}
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let one = |l: &mut Lowerer<'a>| -> Lowered<(&'a Operand<'a>, Src)> {
            let [address, count] = operands(i)?;
            Ok((address, l.src(Ty::U32, count)?))
        };
        let (address, kind) = match i.parts[1] {
            "init" => one(l).map(|(address, count)| (address, Action::Init(count)))?,
            "expect_tx" => one(l).map(|(address, bytes)| (address, Action::Expect(bytes)))?,
            "complete_tx" => one(l).map(|(address, bytes)| (address, Action::Complete(bytes)))?,
            "inval" => {
                let [address] = operands(i)?;
                (address, Action::Invalidate)
            }
            "arrive" | "arrive_drop" => {
                let [state, address, rest @ ..] = i.operands.as_slice() else {
                    return l.error("expected a state and an address");
                };
                let state = match state {
                    Operand::Sink => None,
                    register => Some(l.dst(Ty::B64, register)?),
                };
                let number = match rest {
                    [] => Src::Imm(1),
                    [count] => l.src(Ty::U32, count)?,
                    _ => return l.error("too many operands"),
                };
                let (count, expect) =
                    if expect { (Src::Imm(1), Some(number)) } else { (number, None) };
                let kind = match (i.parts[1], complete) {
                    ("arrive", true) => Kind::Arrive,
                    ("arrive", false) => Kind::NoComplete,
                    (_, true) => Kind::Drop,
                    (_, false) => Kind::DropNoComplete,
                };
                (address, Action::Arrive { state, kind, count, expect, release: !relaxed })
            }
            "test_wait" | "try_wait" => {
                let patient = i.parts[1] == "try_wait";
                let (done, address, until) = match i.operands.as_slice() {
                    [done, address, until] => (done, address, until),
                    [done, address, until, _hint] if patient => (done, address, until),
                    _ => return l.error("expected a predicate, an address and what to wait for"),
                };
                let Reg::P(done) = l.dst(Ty::Pred, done)? else {
                    return l.error("expected a predicate");
                };
                let until = match parity {
                    true => Until::Parity(l.src(Ty::U32, until)?),
                    false => Until::State(l.src(Ty::B64, until)?),
                };
                (address, Action::Wait { done, until, patient, acquire: !relaxed })
            }
            _ => return l.error(format!("unknown form {}", i.parts.join("."))),
        };
        let (addr, space) = l.address(address, space)?;
        Ok(Self { addr, space, kind })
    }

    /// `cp.async.mbarrier.arrive{.noinc}{.shared}.b64 [addr]`.
    pub fn lower_copies<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let (mut increment, mut space) = (true, Space::Generic);
        for &part in &i.parts[4..] {
            match part {
                "noinc" => increment = false,
                "shared" | "shared::cta" => space = Space::Shared,
                "b64" => {}
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let [address] = operands(i)?;
        let (addr, space) = l.address(address, space)?;
        Ok(Self { addr, space, kind: Action::CopiesArrive { increment } })
    }

    pub fn execute(&self, ctx: &mut Context<'_>, mask: Mask) -> Executed {
        let at = addresses(ctx, self.addr, self.space);
        if let Action::Wait { done, until, patient, acquire } = self.kind {
            return self.wait(ctx, mask, &at, (done, until, patient, acquire));
        }
        ctx.cluster.changes += 1;
        let read = |ctx: &Context<'_>, src: Src| ctx.warp.regs.read32(src, &ctx.warp.place);
        match self.kind {
            Action::Init(count) => {
                let counts = read(ctx, count);
                for lane in lanes(mask) {
                    let addr = own_shared(ctx, self.space, lane, at[lane])?;
                    init(ctx, lane, addr, counts[lane])?;
                }
            }
            Action::Invalidate => {
                for lane in lanes(mask) {
                    let addr = own_shared(ctx, self.space, lane, at[lane])?;
                    invalidate(ctx, lane, addr)?;
                }
            }
            Action::Expect(bytes) => {
                let bytes = read(ctx, bytes);
                self.each(ctx, mask, &at, |barrier, lane| barrier.expect(bytes[lane]))?;
            }
            Action::Complete(bytes) => {
                let bytes = read(ctx, bytes);
                self.each(ctx, mask, &at, |barrier, lane| barrier.receive(bytes[lane], None))?;
            }
            Action::Arrive { state, kind, count, expect, release } => {
                let (counts, bytes) = (read(ctx, count), expect.map(|bytes| read(ctx, bytes)));
                let unit = ctx.unit();
                let clock = release.then(|| ctx.cluster.order.release(unit));
                let mut states = [0; LANES];
                self.each(ctx, mask, &at, |barrier, lane| {
                    states[lane] = barrier.state();
                    bytes.map_or(Ok(()), |bytes| barrier.expect(bytes[lane]))?;
                    barrier.arrive(counts[lane], kind, clock.as_ref())
                })?;
                if let Some(state) = state {
                    ctx.warp.regs.write64(state, mask, &states);
                }
            }
            Action::CopiesArrive { increment } => {
                let unit = ctx.unit();
                let clock = ctx.cluster.order.release(unit);
                for group in groups(&at, mask) {
                    let lane = group.trailing_zeros() as usize;
                    let addr = own_shared(ctx, self.space, lane, at[lane])?;
                    touch(ctx, ctx.rank, lane, addr)?;
                    let copies = copy::take(&mut ctx.warp.asyncs.copies, group);
                    let arrivals = group.count_ones();
                    let entry = entry(ctx, ctx.rank, lane, addr)?;
                    if increment {
                        entry.barrier.increment(arrivals).map_err(|fault| fault.lane(lane))?;
                    }
                    let clock = clock.clone();
                    entry.flights.push(Flight::Copies { unit, copies, arrivals, clock });
                }
            }
            Action::Wait { .. } => unreachable!("handled above"),
        }
        Ok(Flow::Next)
    }

    /// Does something to each lane's mbarrier, which may be another block's.
    fn each(
        &self,
        ctx: &mut Context<'_>,
        mask: Mask,
        at: &[u64; LANES],
        mut act: impl FnMut(&mut Mbarrier, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        for lane in lanes(mask) {
            let (rank, addr) = shared(ctx, self.space, lane, at[lane])?;
            touch(ctx, rank, lane, addr)?;
            let entry = entry(ctx, rank, lane, addr)?;
            let by = entry.by.clone();
            let told = |fault: Fault| fault.lane(lane).address(u64::from(addr)).other(by);
            act(&mut entry.barrier, lane).map_err(told)?;
        }
        Ok(())
    }

    fn wait(
        &self,
        ctx: &mut Context<'_>,
        mask: Mask,
        at: &[u64; LANES],
        (target, until, patient, acquire): (u32, Until, bool, bool),
    ) -> Executed {
        let until = match until {
            Until::State(src) => (ctx.warp.regs.read64(src, &ctx.warp.place), false),
            Until::Parity(src) => (ctx.warp.regs.read32(src, &ctx.warp.place).map(u64::from), true),
        };
        let mut done = 0;
        for group in groups(at, mask) {
            let first = group.trailing_zeros() as usize;
            let addr = own_shared(ctx, self.space, first, at[first])?;
            let last = Mask::BITS - 1 - group.leading_zeros();
            touch(ctx, ctx.rank, first, addr)?;
            touch(ctx, ctx.rank, last as usize, addr)?;
            land(ctx, first, addr)?;
            let entry = entry(ctx, ctx.rank, first, addr)?;
            let mut of_group = 0;
            for lane in lanes(group) {
                let complete = match until {
                    (parities, true) => entry.barrier.done_parity(parities[lane] as u32),
                    (states, false) => {
                        entry.barrier.done(states[lane]).map_err(|fault| fault.lane(lane))?
                    }
                };
                of_group |= Mask::from(complete) << lane;
            }
            done |= of_group;
            if acquire && of_group != 0 {
                let clock = entry.barrier.completed.clone();
                let unit = ctx.unit();
                ctx.cluster.order.acquire_lanes(unit, of_group, &clock);
            }
        }
        if done != mask {
            let tries = ctx.token.unwrap_or(0);
            if patient && tries < PATIENCE {
                *ctx.token = Some(tries + 1);
                return Ok(Flow::Wait(Why::Mbarrier));
            }
            ctx.warp.polls += 1;
        }
        ctx.warp.regs.write_predicate(target, mask, done);
        Ok(Flow::Next)
    }
}

/// The lanes that give one address. Mostly all do.
fn groups(at: &[u64; LANES], mask: Mask) -> Vec<Mask> {
    let mut groups = Vec::new();
    let mut rest = mask;
    while rest != 0 {
        let first = at[rest.trailing_zeros() as usize];
        let group = lanes(rest).filter(|&lane| at[lane] == first);
        let group = group.fold(0, |group, lane| group | 1 << lane);
        groups.push(group);
        rest &= !group;
    }
    groups
}

fn init(ctx: &mut Context<'_>, lane: usize, addr: u32, count: u32) -> Result<(), Fault> {
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

fn invalidate(ctx: &mut Context<'_>, lane: usize, addr: u32) -> Result<(), Fault> {
    entry(ctx, ctx.rank, lane, addr)?;
    let block = ctx.block();
    block.asyncs.mbarriers.0.remove(&addr);
    block.shared.unmark_pending(addr, BYTES);
    shared_write(ctx, ctx.rank, lane, addr, &[0; BYTES as usize])
}

/// An mbarrier is used as its memory is read: that must come after its initialisation.
fn touch(ctx: &mut Context<'_>, rank: usize, lane: usize, addr: u32) -> Result<(), Fault> {
    let by = entry(ctx, rank, lane, addr)?.by.clone();
    ctx.cluster.blocks[rank].shared.unmark_pending(addr, BYTES);
    let read = shared_read(ctx, rank, lane, addr, &mut [0; BYTES as usize]);
    ctx.cluster.blocks[rank].shared.mark_pending(addr, BYTES, by);
    read
}

fn entry<'c>(
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
fn land(ctx: &mut Context<'_>, lane: usize, addr: u32) -> Result<(), Fault> {
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
