//! Shuffles, votes, matches, reductions, election: execution.

use super::{Collective, Reduce, Shuffle, ShuffleMode, Vote};
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask, Src};
use crate::machine::{Context, Executed, Flow, Why};
use crate::registers::lanes;

/// Lanes that execute together: of one member mask, all there.
pub(super) struct Group {
    pub lanes: Mask,
    pub member: Mask,
}

/// The groups of the executing lanes by member mask; `None` while some of a group's lanes are missing.
///
/// # Errors
///
/// [`Check::InactiveLane`] if a lane leaves itself out, or lanes that name each other differ.
pub(super) fn groups(
    context: &Context<'_>,
    member: Src,
    mask: Mask,
) -> Result<Option<Vec<Group>>, Fault> {
    let members = context.warp.regs.read32(member, &context.warp.place);
    let mut groups: Vec<Group> = Vec::new();
    for lane in lanes(mask) {
        let member = members[lane];
        if member >> lane & 1 == 0 {
            let what = format!("lane {lane} is not in its own member mask {member:#010x}");
            return Err(Fault::new(Check::InactiveLane, what).lane(lane));
        }
        match groups.iter_mut().find(|group| group.member == member) {
            Some(group) => group.lanes |= 1 << lane,
            None => groups.push(Group { lanes: 1 << lane, member }),
        }
    }
    for group in &groups {
        let named = group.member & context.warp.alive;
        let differ = named & mask & !group.lanes;
        if differ != 0 {
            let other = differ.trailing_zeros() as usize;
            let what = format!(
                "lane {other} is named by {:#010x} but itself names {:#010x}",
                group.member, members[other]
            );
            return Err(Fault::new(Check::InactiveLane, what).lane(other));
        }
        if named & !mask != 0 {
            return Ok(None);
        }
    }
    Ok(Some(groups))
}

pub(super) fn execute(op: &Collective, context: &mut Context<'_>, mask: Mask) -> Executed {
    let member = match op {
        Collective::Shuffle(op) => op.member,
        Collective::Vote { member, .. }
        | Collective::Match { member, .. }
        | Collective::Reduce { member, .. }
        | Collective::Elect { member, .. } => *member,
        Collective::ActiveMask { dst } => {
            context.warp.regs.write32(*dst, mask, &[mask; LANES]);
            return Ok(Flow::Next);
        }
        _ => unreachable!("barriers are executed elsewhere"),
    };
    let Some(groups) = groups(context, member, mask)? else { return Ok(Flow::Wait(Why::Lanes)) };
    for group in &groups {
        match op {
            Collective::Shuffle(op) => shuffle(op, context, group)?,
            Collective::Vote { kind, dst, value, .. } => {
                let votes = context.warp.regs.predicate(*value) & group.lanes;
                let result = match kind {
                    Vote::All => u32::from(votes == group.lanes),
                    Vote::Any => u32::from(votes != 0),
                    Vote::Uniform => u32::from(votes == 0 || votes == group.lanes),
                    Vote::Ballot => votes,
                };
                context.warp.regs.write32(*dst, group.lanes, &[result; LANES]);
            }
            Collective::Match { all, dst, found, value, .. } => {
                let values = context.warp.regs.read64(*value, &context.warp.place);
                let alike = |lane: usize| {
                    lanes(group.lanes)
                        .filter(|&other| values[other] == values[lane])
                        .fold(0, |mask: Mask, other| mask | 1 << other)
                };
                let mut result: [Mask; LANES] = std::array::from_fn(alike);
                if *all {
                    let same = result[group.lanes.trailing_zeros() as usize] == group.lanes;
                    result = [if same { group.lanes } else { 0 }; LANES];
                    if let Some(found) = found {
                        context.warp.regs.write32(*found, group.lanes, &[u32::from(same); LANES]);
                    }
                }
                context.warp.regs.write32(*dst, group.lanes, &result);
            }
            Collective::Reduce { kind, dst, value, .. } => {
                let values = context.warp.regs.read32(*value, &context.warp.place);
                let combined = lanes(group.lanes).map(|lane| values[lane]);
                let result = combined.reduce(|a, b| reduce(*kind, a, b)).expect("a lane");
                let result = finish(*kind, result);
                context.warp.regs.write32(*dst, group.lanes, &[result; LANES]);
            }
            Collective::Elect { dst, elected, .. } => {
                let leader = group.lanes.trailing_zeros();
                context.warp.regs.write32(*dst, group.lanes, &[leader; LANES]);
                let only = std::array::from_fn(|lane| u32::from(lane as u32 == leader));
                context.warp.regs.write32(*elected, group.lanes, &only);
            }
            _ => unreachable!("barriers are executed elsewhere"),
        }
    }
    Ok(Flow::Next)
}

fn shuffle(op: &Shuffle, context: &mut Context<'_>, group: &Group) -> Result<(), Fault> {
    let (regs, place) = (&mut context.warp.regs, &context.warp.place);
    let values = regs.read32(op.value, place);
    let (offsets, clamps) = (regs.read32(op.lane, place), regs.read32(op.clamp, place));
    let (mut result, mut found) = (values, [0; LANES]);
    for lane in lanes(group.lanes) {
        let (own, offset) = (lane as u32, offsets[lane] & 31);
        let (clamp, segment) = (clamps[lane] & 31, clamps[lane] >> 8 & 31);
        let last = (own & segment) | (clamp & !segment);
        let first = own & segment;
        let (source, inside) = match op.mode {
            // Here the clamp is the lowest lane of a segment.
            ShuffleMode::Up => {
                (own.wrapping_sub(offset), own as i32 - offset as i32 >= last as i32)
            }
            ShuffleMode::Down => (own + offset, own + offset <= last),
            ShuffleMode::Butterfly => (own ^ offset, own ^ offset <= last),
            ShuffleMode::Index => {
                let source = first | (offset & !segment);
                (source, source <= last)
            }
        };
        found[lane] = u32::from(inside);
        if inside {
            if group.lanes >> source & 1 == 0 {
                let why =
                    if group.member >> source & 1 == 0 { "not a member" } else { "not there" };
                let what = format!("shuffle from lane {source}, which is {why}");
                return Err(Fault::new(Check::InactiveLane, what).lane(lane));
            }
            result[lane] = values[source as usize];
        }
    }
    regs.write32(op.dst, group.lanes, &result);
    if let Some(slot) = op.found {
        regs.write32(slot, group.lanes, &found);
    }
    Ok(())
}

fn reduce(kind: Reduce, a: u32, b: u32) -> u32 {
    let float = |absolute: bool, nan: bool, less: bool| {
        let value = |bits: u32| {
            let value = f32::from_bits(bits);
            if absolute { value.abs() } else { value }
        };
        let (a, b) = (value(a), value(b));
        match (a.is_nan(), b.is_nan()) {
            (true, true) => f32::from_bits(CANONICAL_NAN),
            (true, false) | (false, true) if nan => f32::from_bits(CANONICAL_NAN),
            (true, false) => b,
            (false, true) => a,
            // -0 is less than +0.
            _ if less == (a.total_cmp(&b).is_le()) => a,
            _ => b,
        }
        .to_bits()
    };
    match kind {
        Reduce::Add => a.wrapping_add(b),
        Reduce::MinUnsigned => a.min(b),
        Reduce::MaxUnsigned => a.max(b),
        Reduce::MinSigned => (a as i32).min(b as i32) as u32,
        Reduce::MaxSigned => (a as i32).max(b as i32) as u32,
        Reduce::And => a & b,
        Reduce::Or => a | b,
        Reduce::Xor => a ^ b,
        Reduce::MinFloat { absolute, nan } => float(absolute, nan, true),
        Reduce::MaxFloat { absolute, nan } => float(absolute, nan, false),
    }
}

/// What a reduction over a single lane must still do.
fn finish(kind: Reduce, bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    match kind {
        Reduce::MinFloat { .. } | Reduce::MaxFloat { .. } if value.is_nan() => CANONICAL_NAN,
        Reduce::MinFloat { absolute: true, .. } | Reduce::MaxFloat { absolute: true, .. } => {
            value.abs().to_bits()
        }
        _ => bits,
    }
}

const CANONICAL_NAN: u32 = 0x7fff_ffff;
