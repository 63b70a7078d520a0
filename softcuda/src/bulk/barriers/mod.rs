//! The instructions on mbarriers, and the transfers that an mbarrier waits for.
//!
//! A transfer is checked and written when it is issued, but its bytes count, and its destination may be
//! touched, only when somebody waits at its mbarrier: the latest moment hardware could choose.

mod lower;
mod table;

use super::copy;
use super::mbarrier::{Kind, Mbarrier};
use super::place::{addresses, own_shared, shared};
use crate::fault::Fault;
use crate::ir::{Addr, LANES, Mask, Reg, Space, Src};
use crate::machine::{Context, Executed, Flow, Why};
use crate::registers::lanes;

use table::{Flight, entry, init, invalidate, land, touch};

pub use table::{Arriving, Mbarriers, send, unit};

/// How often `try_wait` waits before it says that the phase is not complete.
const PATIENCE: u64 = 16;

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

impl Operation {
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
