//! `cp.async`: copies of 4, 8 or 16 bytes from global to shared memory.
//!
//! The source is read when the copy is issued, and the destination written, but marked: until the copy
//! is waited for nobody may touch it. At the wait the source must still be what it was, and the
//! destination is written again, as of then: what another warp reads must come after the wait.

use super::place::{addresses, aligned, global, own_shared};
use crate::fault::{Check, Fault, Party};
use crate::ir::{Addr, LANES, Mask, PredSrc, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::machine::Context;
use crate::memory::{
    Buffer, WIDEST, count_global, count_shared, global_read, global_read_lanes, shared_write_lanes,
};
use crate::ptx::ast::{Instruction, Operand};
use crate::registers::lanes;

#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    pub to: Addr,
    pub to_space: Space,
    pub from: Addr,
    pub from_space: Space,
    pub bytes: u32,
    /// Bytes to read, the rest being zero.
    pub source_bytes: Option<Src>,
    /// Lanes whose predicate is true read nothing.
    pub ignore: Option<PredSrc>,
}

/// Copies that an instruction has issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Those not yet finished.
    lanes: Mask,
    /// The number of each copy's group among its lane's.
    groups: [u32; LANES],
    to: [u32; LANES],
    from: [u64; LANES],
    /// Bytes that were read, and what was found.
    read: [u32; LANES],
    data: Box<Buffer>,
    bytes: u32,
    /// The first lane's part in it.
    by: Party,
}

impl Copy {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let mut cached = None;
        let (mut to_space, mut hint) = (None, false);
        for &part in &i.parts[2..] {
            match part {
                "ca" | "cg" => cached = Some(part == "ca"),
                "shared" | "shared::cta" => to_space = Some(Space::Shared),
                "global" | "L2::64B" | "L2::128B" | "L2::256B" => {}
                "L2::cache_hint" => hint = true,
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let (Some(cached), Some(space)) = (cached, to_space) else {
            return l.error(format!("unknown form {}", i.parts.join(".")));
        };
        let mut rest = i.operands.as_slice();
        if hint {
            rest = &rest[..rest.len().saturating_sub(1)];
        }
        let [to, from, Operand::Int(bytes), rest @ ..] = rest else {
            return l.error("expected two addresses and the number of bytes");
        };
        if !(matches!(bytes, 4 | 8) && cached || *bytes == 16) {
            return l.error(format!("copies of {bytes} bytes don't exist"));
        }
        let (to, to_space) = l.address(to, space)?;
        let (from, from_space) = l.address(from, Space::Global)?;
        let (mut source_bytes, mut ignore) = (None, None);
        match rest {
            [] => {}
            [operand] if predicate(l, operand) => ignore = Some(l.predicate(operand)?),
            [operand] => source_bytes = Some(l.src(Ty::U32, operand)?),
            _ => return l.error("too many operands"),
        }
        let bytes = *bytes as u32;
        Ok(Self { to, to_space, from, from_space, bytes, source_bytes, ignore })
    }

    pub fn execute(&self, ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
        let to = addresses(ctx, self.to, self.to_space);
        let mut from = addresses(ctx, self.from, self.from_space);
        let mut read = match self.source_bytes {
            Some(src) => ctx.warp.regs.read32(src, &ctx.warp.place),
            None => [self.bytes; LANES],
        };
        let ignored = self.ignore.map_or(0, |ignore| ctx.warp.regs.predicate(ignore));
        let mut low = [0; LANES];
        for lane in lanes(mask) {
            if ignored >> lane & 1 == 1 {
                read[lane] = 0;
            }
            if read[lane] > self.bytes {
                let what = format!("copies {} of {} bytes", read[lane], self.bytes);
                return Err(Fault::new(Check::Trap, what).lane(lane));
            }
            low[lane] = own_shared(ctx, self.to_space, lane, to[lane])?;
            if read[lane] > 0 {
                aligned(lane, from[lane], u64::from(self.bytes))?;
                from[lane] = global(ctx, self.from_space, lane, from[lane])?;
            }
        }
        let mut data = ctx.warp.asyncs.spare.pop().unwrap_or_default();
        *data = [[0; WIDEST]; LANES];
        for (same, size) in sizes(&read, mask) {
            count_global(ctx, &from, same, size);
            if size == self.bytes as usize {
                global_read_lanes(ctx, &from, same, size, &mut data)?;
                continue;
            }
            for lane in lanes(same) {
                global_read(ctx, lane, from[lane], &mut data[lane][..size])?;
            }
        }
        count_shared(ctx, &to, mask, self.bytes as usize);
        shared_write_lanes(ctx, ctx.rank, &low, mask, self.bytes as usize, &data)?;
        let by = ctx.party(0, "started a copy of");
        for lane in lanes(mask) {
            let by = Party { thread: by.thread + lane as u32, ..by.clone() };
            ctx.block().shared.mark_pending(low[lane], self.bytes, by);
        }
        let (groups, bytes) = (ctx.warp.asyncs.open, self.bytes);
        let issued = Issued { lanes: mask, groups, to: low, from, read, data, bytes, by };
        ctx.warp.asyncs.copies.push(issued);
        Ok(())
    }
}

/// The lanes that read the same number of bytes, if any. Mostly all do.
fn sizes(read: &[u32; LANES], mask: Mask) -> impl Iterator<Item = (Mask, usize)> {
    let having = |rest: Mask, size: u32| {
        let same = lanes(rest).filter(|&lane| read[lane] == size);
        same.fold(0, |same, lane| same | 1 << lane)
    };
    let mut rest = mask & !having(mask, 0);
    std::iter::from_fn(move || {
        let size = *read.get(rest.trailing_zeros() as usize)?;
        let same = having(rest, size);
        rest &= !same;
        Some((same, size as usize))
    })
}

fn predicate<'a>(l: &mut Lowerer<'a>, operand: &Operand<'a>) -> bool {
    matches!(operand, Operand::Not(_)) || l.register_type(operand) == Some(Ty::Pred)
}

/// `cp.async.commit_group`.
pub fn commit(ctx: &mut Context<'_>, mask: Mask) {
    for lane in lanes(mask) {
        ctx.warp.asyncs.open[lane] += 1;
    }
}

/// Waits until at most `allowed` of each lane's latest groups are unfinished.
pub fn wait(ctx: &mut Context<'_>, mask: Mask, allowed: u32) -> Result<(), Fault> {
    let open = ctx.warp.asyncs.open;
    let done = |groups: &[u32; LANES], lane: usize| {
        u64::from(groups[lane]) + u64::from(allowed) < u64::from(open[lane])
    };
    // Copies lie in the order of their issue, so they are finished in it.
    let mut copies = std::mem::take(&mut ctx.warp.asyncs.copies);
    for copy in &mut copies {
        let finished = lanes(copy.lanes & mask).filter(|&lane| done(&copy.groups, lane));
        let finished = finished.fold(0, |finished, lane| finished | 1 << lane);
        if finished != 0 {
            copy.finish(ctx, finished)?;
            shared_write_lanes(ctx, ctx.rank, &copy.to, finished, copy.bytes as usize, &copy.data)?;
            copy.lanes &= !finished;
        }
    }
    let finished = copies.extract_if(.., |copy| copy.lanes == 0);
    ctx.warp.asyncs.spare.extend(finished.map(|copy| copy.data));
    ctx.warp.asyncs.copies = copies;
    // Those that have arrived at an mbarrier are ordered by it: they only end here, if all are waited for.
    if allowed == 0 {
        let unit = ctx.unit();
        let mbarriers = &mut ctx.cluster.blocks[ctx.rank].asyncs.mbarriers;
        for copy in mbarriers.copies_of(unit, mask) {
            copy.finish_all(ctx)?;
        }
    }
    Ok(())
}

/// `cp.async.wait_all`: of the groups still open too.
pub fn wait_all(ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
    commit(ctx, mask);
    wait(ctx, mask, 0)
}

impl Issued {
    /// Gives destinations free; the sources must still be what they were.
    fn finish(&self, ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
        for lane in lanes(mask) {
            ctx.block().shared.unmark_pending(self.to[lane], self.bytes);
        }
        let view = ctx.launch.device.view();
        for lane in lanes(mask) {
            let read = &self.data[lane][..self.read[lane] as usize];
            if !read.is_empty() && !view.holds(self.from[lane], read) {
                let what = "the source of a copy was changed before the copy was waited for";
                let fault = Fault::new(Check::UnfinishedCopy, what).address(self.from[lane]);
                let by = Party { thread: self.by.thread + lane as u32, ..self.by.clone() };
                return Err(fault.other(by));
            }
        }
        Ok(())
    }

    /// Ends what is left of it.
    pub fn finish_all(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        self.finish(ctx, self.lanes)
    }

    /// Splits the copies of some lanes off.
    fn split(&mut self, mask: Mask) -> Option<Issued> {
        let lanes = self.lanes & mask;
        self.lanes &= !mask;
        (lanes != 0).then(|| Issued { lanes, ..self.clone() })
    }
}

/// Takes the copies of some lanes out of a list.
pub fn take(copies: &mut Vec<Issued>, mask: Mask) -> Vec<Issued> {
    let taken = copies.iter_mut().filter_map(|copy| copy.split(mask)).collect();
    copies.retain(|copy| copy.lanes != 0);
    taken
}
