//! Barriers of a warp, a block and a cluster: execution.

use super::warp::groups;
use super::{Barrier, BarrierKind};
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask, Src};
use crate::machine::{Arrival, Context, Executed, Flow, NAMED, Why};

/// `bar.warp.sync`: the named lanes meet, wherever in the program each executes its own.
pub(super) fn warp_sync(member: Src, context: &mut Context<'_>, mask: Mask) -> Executed {
    if let Some(groups) = groups(context, member, mask)?.filter(|_| context.token.is_none()) {
        let unit = context.unit();
        for group in groups {
            context.cluster.order.warp_sync(unit, group.lanes);
        }
        return Ok(Flow::Next);
    }
    // Some are elsewhere: they may come here, or to a barrier of their own.
    let members = context.warp.regs.read32(member, &context.warp.place);
    let member = members[mask.trailing_zeros() as usize];
    let alive = context.warp.alive;
    let meeting = context.warp.meeting(member);
    let phase = match *context.token {
        Some(phase) => phase,
        None => {
            meeting.arrived |= mask;
            *context.token.insert(meeting.phase)
        }
    };
    if meeting.arrived & member & alive == member & alive && meeting.phase == phase {
        meeting.phase += 1;
        meeting.arrived = 0;
        context.warp.wake = true;
        let unit = context.unit();
        context.cluster.order.warp_sync(unit, member & alive);
        return Ok(Flow::Next);
    }
    let over = meeting.phase > phase;
    Ok(if over { Flow::Next } else { Flow::Wait(Why::Lanes) })
}

pub(super) fn block(op: &Barrier, context: &mut Context<'_>, mask: Mask) -> Executed {
    if op.aligned && mask != context.warp.alive {
        return Ok(Flow::Wait(Why::WholeWarp));
    }
    let id = uniform(context, op.id, mask, "barrier")? as usize;
    if id >= NAMED {
        return Err(Fault::new(Check::Barrier, format!("barrier {id} of {NAMED}")));
    }
    let rank = context.rank;
    if context.token.is_none() {
        arrive(op, context, mask, id)?;
    }
    let block = &mut context.cluster.blocks[rank];
    let open = block.barriers.get(id).phase == context.token.unwrap_or_default();
    if open && block.barriers.complete(id, &block.alive) {
        context.cluster.changes += 1;
        context.warp.wake = true;
    }
    let barrier = context.cluster.blocks[rank].barriers.get(id);
    if op.kind == BarrierKind::Arrive {
        return Ok(Flow::Next);
    }
    if barrier.phase == context.token.unwrap_or_default() {
        return Ok(Flow::Wait(Why::Barrier));
    }
    let result = barrier.result.clone();
    let unit = context.unit();
    context.cluster.order.acquire(unit, &result.clock);
    context.cluster.order.warp_sync(unit, mask);
    let regs = &mut context.warp.regs;
    match op.kind {
        BarrierKind::Count { dst, .. } => regs.write32(dst, mask, &[result.votes; LANES]),
        BarrierKind::All { dst, .. } => {
            regs.write32(dst, mask, &[u32::from(result.votes == result.voters); LANES]);
        }
        BarrierKind::Any { dst, .. } => {
            regs.write32(dst, mask, &[u32::from(result.votes > 0); LANES]);
        }
        BarrierKind::Sync | BarrierKind::Arrive => {}
    }
    Ok(Flow::Next)
}

fn arrive(op: &Barrier, context: &mut Context<'_>, mask: Mask, id: usize) -> Result<(), Fault> {
    let expected = match op.threads {
        Some(threads) => Some(uniform(context, threads, mask, "thread count")?),
        None => None,
    };
    let warps = LANES as u32;
    if let Some(n) = expected.filter(|n| *n == 0 || n % warps != 0) {
        let what = format!("thread count {n} is no multiple of the warp size");
        return Err(Fault::new(Check::Barrier, what));
    }
    let votes = match op.kind {
        BarrierKind::Count { value, .. }
        | BarrierKind::All { value, .. }
        | BarrierKind::Any { value, .. } => {
            (context.warp.regs.predicate(value) & mask).count_ones()
        }
        BarrierKind::Sync | BarrierKind::Arrive => 0,
    };
    let unit = context.unit();
    let clock = context.cluster.order.release(unit);
    let arrival = Arrival {
        warp: context.warp.place.warp as usize,
        lanes: mask,
        threads: if op.aligned { warps } else { mask.count_ones() },
        expected,
        votes,
    };
    let phase = context.block().barriers.arrive(id, &arrival, &clock)?;
    *context.token = Some(phase);
    context.cluster.changes += 1;
    Ok(())
}

/// A value all executing lanes must agree on.
fn uniform(context: &Context<'_>, src: Src, mask: Mask, what: &str) -> Result<u32, Fault> {
    let values = context.warp.regs.read32(src, &context.warp.place);
    let value = values[mask.trailing_zeros() as usize];
    match crate::registers::lanes(mask).find(|&lane| values[lane] != value) {
        None => Ok(value),
        Some(lane) => {
            let what =
                format!("lanes of a warp differ in the {what}: {value} and {}", values[lane]);
            Err(Fault::new(Check::Barrier, what).lane(lane))
        }
    }
}

pub(super) fn cluster_arrive(
    aligned: bool,
    release: bool,
    context: &mut Context<'_>,
    mask: Mask,
) -> Executed {
    if aligned && mask != context.warp.alive {
        return Ok(Flow::Wait(Why::WholeWarp));
    }
    let unit = context.unit();
    let clock = if release { context.cluster.order.release(unit) } else { Default::default() };
    context.cluster.barrier.arrive(unit, mask, &clock)?;
    context.cluster.changes += 1;
    Ok(Flow::Next)
}

pub(super) fn cluster_wait(aligned: bool, context: &mut Context<'_>, mask: Mask) -> Executed {
    if aligned && mask != context.warp.alive {
        return Ok(Flow::Wait(Why::WholeWarp));
    }
    let unit = context.unit();
    let cluster = &mut *context.cluster;
    let alive = cluster.blocks.iter().flat_map(|block| block.alive.iter().copied());
    if !cluster.barrier.wait(unit, mask, alive)? {
        return Ok(Flow::Wait(Why::Barrier));
    }
    let clock = cluster.barrier.clock.clone();
    cluster.order.acquire(unit, &clock);
    cluster.order.warp_sync(unit, mask);
    Ok(Flow::Next)
}
