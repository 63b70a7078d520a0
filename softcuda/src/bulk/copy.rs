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
    WIDEST, count_global, count_shared, global_read, global_read_lanes, shared_write_lanes,
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
        let mut sizes = match self.source_bytes {
            Some(src) => ctx.warp.regs.read32(src, &ctx.warp.place),
            None => [self.bytes; LANES],
        };
        let ignored = self.ignore.map_or(0, |ignore| ctx.warp.regs.predicate(ignore));
        lanes(ignored).for_each(|lane| sizes[lane] = 0);
        let (to, from) = self.places(ctx, mask, (&to, &from), &sizes)?;
        let mut data = [[0; WIDEST]; LANES];
        // Mostly all lanes read the same number of bytes.
        let reading = |size: u32| lanes(mask).filter(move |&lane| sizes[lane] == size);
        let mut rest = mask & !lanes_of(reading(0));
        while rest != 0 {
            let size = sizes[rest.trailing_zeros() as usize];
            let same = lanes_of(reading(size));
            count_global(ctx, &from, same, size as usize);
            if size.is_power_of_two() {
                global_read_lanes(ctx, &from, same, size as usize, &mut data)?;
            } else {
                for lane in lanes(same) {
                    global_read(ctx, lane, from[lane], &mut data[lane][..size as usize])?;
                }
            }
            rest &= !same;
        }
        count_shared(ctx, &to.map(u64::from), mask, self.bytes as usize);
        shared_write_lanes(ctx, ctx.rank, &to, mask, self.bytes as usize, &data)?;
        for lane in lanes(mask) {
            let by = ctx.party(lane, "started a copy of");
            ctx.block().shared.mark_pending(to[lane], self.bytes, by.clone());
            let (group, bytes) = (ctx.warp.asyncs.open[lane], self.bytes);
            let (to, from, read) = (to[lane], from[lane], sizes[lane]);
            let data = *data[lane].first_chunk().expect("no copy is longer");
            ctx.warp.asyncs.copies.push(Issued { lane, group, to, from, data, bytes, read, by });
        }
        Ok(())
    }

    /// Where the lanes write in shared and read in global memory, after checking both.
    fn places(
        &self,
        ctx: &Context<'_>,
        mask: Mask,
        (to, from): (&[u64; LANES], &[u64; LANES]),
        sizes: &[u32; LANES],
    ) -> Result<([u32; LANES], [u64; LANES]), Fault> {
        let (mut targets, mut sources) = ([0; LANES], [0; LANES]);
        let size = u64::from(self.bytes);
        for lane in lanes(mask) {
            if sizes[lane] > self.bytes {
                let what = format!("copies {} of {} bytes", sizes[lane], self.bytes);
                return Err(Fault::new(Check::Trap, what).lane(lane));
            }
            aligned(lane, to[lane], size)?;
            targets[lane] = own_shared(ctx, self.to_space, lane, to[lane])?;
            if sizes[lane] > 0 {
                aligned(lane, from[lane], size)?;
                sources[lane] = global(ctx, self.from_space, lane, from[lane])?;
            }
        }
        Ok((targets, sources))
    }
}

fn lanes_of(lanes: impl Iterator<Item = usize>) -> Mask {
    lanes.fold(0, |mask, lane| mask | 1 << lane)
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
    }
    // Those that one instruction issued are written as it would.
    let together = |a: &Issued, b: &Issued| a.by.pc == b.by.pc && a.lane < b.lane;
    for copies in finished.chunk_by(together) {
        let (mut to, mut data) = ([0; LANES], [[0; WIDEST]; LANES]);
        for copy in copies {
            to[copy.lane] = copy.to;
            data[copy.lane][..copy.data.len()].copy_from_slice(&copy.data);
        }
        let mask = lanes_of(copies.iter().map(|copy| copy.lane));
        shared_write_lanes(ctx, ctx.rank, &to, mask, copies[0].bytes as usize, &data)?;
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
        let read = &self.data[..self.read as usize];
        if read.is_empty() || ctx.launch.device.view().holds(self.from, read) {
            return Ok(());
        }
        let what = "the source of a copy was changed before the copy was waited for";
        let fault = Fault::new(Check::UnfinishedCopy, what).address(self.from);
        Err(fault.other(self.by.clone()))
    }
}
