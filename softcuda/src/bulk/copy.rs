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
use crate::memory::{count_global, count_shared, global_read, shared_write};
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

/// A copy a lane has issued.
#[derive(Debug, Clone)]
pub struct Issued {
    pub lane: usize,
    /// Number of its group among the lane's.
    group: u32,
    pub to: u32,
    from: u64,
    data: [u8; 16],
    pub bytes: u32,
    /// Bytes that were read.
    read: u32,
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
        let from = addresses(ctx, self.from, self.from_space);
        let sizes = match self.source_bytes {
            Some(src) => ctx.warp.regs.read32(src, &ctx.warp.place),
            None => [self.bytes; LANES],
        };
        let ignored = self.ignore.map_or(0, |ignore| ctx.warp.regs.predicate(ignore));
        for lane in lanes(mask) {
            let read = if ignored >> lane & 1 == 1 { 0 } else { sizes[lane] };
            self.issue(ctx, lane, (to[lane], from[lane]), read)?;
        }
        count_shared(ctx, &to, mask, self.bytes as usize);
        // Mostly all lanes read the same number of bytes.
        let reading = lanes(mask & !ignored).filter(|&lane| sizes[lane] > 0);
        let mut rest = reading.fold(0, |rest, lane| rest | 1 << lane);
        while rest != 0 {
            let size = sizes[Mask::trailing_zeros(rest) as usize];
            let same = lanes(rest).filter(|&lane| sizes[lane] == size);
            let same = same.fold(0, |same, lane| same | 1 << lane);
            count_global(ctx, &from, same, size as usize);
            rest &= !same;
        }
        Ok(())
    }

    fn issue(
        &self,
        ctx: &mut Context<'_>,
        lane: usize,
        (to, from): (u64, u64),
        read: u32,
    ) -> Result<(), Fault> {
        if read > self.bytes {
            let what = format!("copies {read} of {} bytes", self.bytes);
            return Err(Fault::new(Check::Trap, what).lane(lane));
        }
        let size = u64::from(self.bytes);
        aligned(lane, to, size)?;
        let to = own_shared(ctx, self.to_space, lane, to)?;
        let mut data = [0; 16];
        if read > 0 {
            aligned(lane, from, size)?;
            let from = global(ctx, self.from_space, lane, from)?;
            global_read(ctx, lane, from, &mut data[..read as usize])?;
        }
        shared_write(ctx, ctx.rank, lane, to, &data[..self.bytes as usize])?;
        let by = ctx.party(lane, "started a copy of");
        ctx.block().shared.mark_pending(to, self.bytes, by.clone());
        let group = ctx.warp.asyncs.open[lane];
        let bytes = self.bytes;
        ctx.warp.asyncs.copies.push(Issued { lane, group, to, from, data, bytes, read, by });
        Ok(())
    }
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
    let done = |copy: &Issued| {
        mask >> copy.lane & 1 == 1
            && u64::from(copy.group) + u64::from(allowed) < u64::from(open[copy.lane])
    };
    let finished: Vec<Issued> = ctx.warp.asyncs.copies.extract_if(.., |copy| done(copy)).collect();
    for copy in &finished {
        copy.finish(ctx)?;
        shared_write(ctx, ctx.rank, copy.lane, copy.to, &copy.data[..copy.bytes as usize])?;
    }
    // Those that have arrived at an mbarrier are ordered by it: they only end here, if all are waited for.
    if allowed == 0 {
        let unit = ctx.unit();
        let mbarriers = &mut ctx.cluster.blocks[ctx.rank].asyncs.mbarriers;
        for copy in mbarriers.copies_of(unit, mask) {
            copy.finish(ctx)?;
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
    /// Gives the destination free; the source must still be what it was.
    pub fn finish(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        ctx.block().shared.unmark_pending(self.to, self.bytes);
        let mut now = [0; 16];
        let read = self.read as usize;
        let readable = read == 0 || ctx.launch.device.read(self.from, &mut now[..read]).is_ok();
        if readable && now[..read] == self.data[..read] {
            return Ok(());
        }
        let what = "the source of a copy was changed before the copy was waited for";
        let fault = Fault::new(Check::UnfinishedCopy, what).address(self.from);
        Err(fault.other(self.by.clone()))
    }
}
