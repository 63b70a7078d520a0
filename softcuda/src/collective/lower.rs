//! Syntax → [`Collective`].

use super::{Barrier, BarrierKind, Collective, Reduce, Shuffle, ShuffleMode, Vote};
use crate::ir::{Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer, Parts, operands};
use crate::ptx::ast::{Instruction, Operand};

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Collective>> {
    let parts = Parts(&i.parts[1..]);
    Ok(Some(match i.parts[0] {
        "shfl" if parts.has("sync") => shuffle(l, i, &parts)?,
        "vote" if parts.has("sync") => vote(l, i, &parts)?,
        "match" if parts.has("sync") => matching(l, i, &parts)?,
        "redux" if parts.has("sync") => reduce(l, i, &parts)?,
        "activemask" => {
            let [dst] = operands(i)?;
            Collective::ActiveMask { dst: l.dst(Ty::B32, dst)? }
        }
        "elect" if parts.has("sync") => {
            let [both, member] = operands(i)?;
            let (dst, elected) = pair(l, both, Ty::B32)?;
            let Some(elected) = elected else { return l.error("elect gives d|p") };
            Collective::Elect { dst, elected, member: l.src(Ty::B32, member)? }
        }
        "bar" if parts.has("warp") => {
            let [member] = operands(i)?;
            Collective::WarpSync { member: l.src(Ty::B32, member)? }
        }
        "barrier" if parts.has("cluster") => cluster(l, &parts)?,
        "bar" => Collective::Barrier(barrier(l, i, &parts, true)?),
        "barrier" => Collective::Barrier(barrier(l, i, &parts, parts.has("aligned"))?),
        _ => return Ok(None),
    }))
}

/// `d|p`, or `d` alone.
fn pair<'a>(l: &mut Lowerer<'a>, operand: &Operand<'a>, ty: Ty) -> Lowered<(Reg, Option<Reg>)> {
    match operand {
        Operand::Pair(dst, predicate) => Ok((l.dst(ty, dst)?, Some(l.dst(Ty::Pred, predicate)?))),
        dst => Ok((l.dst(ty, dst)?, None)),
    }
}

fn shuffle<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    parts: &Parts<'_, '_>,
) -> Lowered<Collective> {
    let [both, value, lane, clamp, member] = operands(i)?;
    let mode = match parts.0[1] {
        "up" => ShuffleMode::Up,
        "down" => ShuffleMode::Down,
        "bfly" => ShuffleMode::Butterfly,
        "idx" => ShuffleMode::Index,
        other => return l.error(format!("unknown shuffle mode .{other}")),
    };
    let (dst, found) = pair(l, both, Ty::B32)?;
    let mut source = |operand| l.src(Ty::B32, operand);
    Ok(Collective::Shuffle(Shuffle {
        mode,
        dst,
        found,
        value: source(value)?,
        lane: source(lane)?,
        clamp: source(clamp)?,
        member: source(member)?,
    }))
}

fn vote<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    parts: &Parts<'_, '_>,
) -> Lowered<Collective> {
    let [dst, value, member] = operands(i)?;
    let (kind, ty) = match parts.0[1] {
        "all" => (Vote::All, Ty::Pred),
        "any" => (Vote::Any, Ty::Pred),
        "uni" => (Vote::Uniform, Ty::Pred),
        "ballot" => (Vote::Ballot, Ty::B32),
        other => return l.error(format!("unknown vote .{other}")),
    };
    let dst = l.dst(ty, dst)?;
    let value = l.predicate(value)?;
    Ok(Collective::Vote { kind, dst, value, member: l.src(Ty::B32, member)? })
}

fn matching<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    parts: &Parts<'_, '_>,
) -> Lowered<Collective> {
    let [both, value, member] = operands(i)?;
    let ty = if parts.has("b64") { Ty::B64 } else { Ty::B32 };
    let (dst, found) = pair(l, both, Ty::B32)?;
    let value = l.src(ty, value)?;
    let member = l.src(Ty::B32, member)?;
    Ok(Collective::Match { all: parts.has("all"), dst, found, value, member })
}

fn reduce<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    parts: &Parts<'_, '_>,
) -> Lowered<Collective> {
    let [dst, value, member] = operands(i)?;
    let Some(&ty) = parts.types().first() else { return l.error("redux without a type") };
    let (absolute, nan) = (parts.has("abs"), parts.has("NaN"));
    let name = parts.0.iter().copied().find(|part| *part != "sync").unwrap_or("");
    let kind = match (name, ty) {
        ("add", Ty::U32 | Ty::S32) => Reduce::Add,
        ("min", Ty::U32) => Reduce::MinUnsigned,
        ("max", Ty::U32) => Reduce::MaxUnsigned,
        ("min", Ty::S32) => Reduce::MinSigned,
        ("max", Ty::S32) => Reduce::MaxSigned,
        ("and", Ty::B32) => Reduce::And,
        ("or", Ty::B32) => Reduce::Or,
        ("xor", Ty::B32) => Reduce::Xor,
        ("min", Ty::F32) => Reduce::MinFloat { absolute, nan },
        ("max", Ty::F32) => Reduce::MaxFloat { absolute, nan },
        _ => return l.error(format!("unknown reduction {}", i.parts.join("."))),
    };
    let dst = l.dst(ty, dst)?;
    let value = l.src(ty, value)?;
    Ok(Collective::Reduce { kind, dst, value, member: l.src(Ty::B32, member)? })
}

fn cluster(l: &Lowerer<'_>, parts: &Parts<'_, '_>) -> Lowered<Collective> {
    let aligned = parts.has("aligned");
    match parts.0[1] {
        "arrive" => Ok(Collective::ClusterArrive { aligned, release: !parts.has("relaxed") }),
        "wait" => Ok(Collective::ClusterWait { aligned }),
        other => l.error(format!("unknown barrier.cluster.{other}")),
    }
}

fn barrier<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    parts: &Parts<'_, '_>,
    aligned: bool,
) -> Lowered<Barrier> {
    let (mut given, red) = (i.operands.as_slice(), parts.has("red"));
    let kind = if red {
        let ([dst, .., value], true) = (given, given.len() >= 3) else {
            return l.error("expected a destination, a barrier and a predicate");
        };
        let ty = if parts.has("popc") { Ty::U32 } else { Ty::Pred };
        let (dst, value) = (l.dst(ty, dst)?, l.predicate(value)?);
        given = &given[1..given.len() - 1];
        match () {
            () if parts.has("popc") => BarrierKind::Count { dst, value },
            () if parts.has("and") => BarrierKind::All { dst, value },
            () if parts.has("or") => BarrierKind::Any { dst, value },
            () => return l.error("unknown barrier reduction"),
        }
    } else if parts.has("arrive") {
        BarrierKind::Arrive
    } else if parts.has("sync") {
        BarrierKind::Sync
    } else {
        return l.error(format!("unknown barrier {}", i.parts.join(".")));
    };
    let (id, threads): (Src, Option<Src>) = match given {
        [id] if kind != BarrierKind::Arrive => (l.src(Ty::U32, id)?, None),
        [id, threads] => (l.src(Ty::U32, id)?, Some(l.src(Ty::U32, threads)?)),
        _ => return l.error("expected a barrier and a thread count"),
    };
    Ok(Barrier { id, threads, aligned, kind })
}
