//! `ld`, `ldu` and `st`: all lanes of a warp at once.

use super::by_lane::{
    Part, addresses, for_blocks, misplaced, parts, read_by, shared_read_as, shared_write_as,
};
use super::elements::{Buffer, Target, WIDEST, put, take};
use super::global::Toucher;
use super::{Memory, access, local, traffic};
use crate::fault::Fault;
use crate::ir::{LANES, Mask, Space, Src};
use crate::machine::{Context, Executed, Flow};
use crate::registers::lanes;

/// `ld`.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub from: Memory,
    /// Bytes of an element.
    pub width: usize,
    pub elements: Vec<Target>,
}

/// `st`.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub to: Memory,
    pub width: usize,
    pub elements: Vec<Src>,
}

pub fn load(op: &Load, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    let addresses = addresses(ctx, &op.from, mask)?;
    let bytes = op.width * op.elements.len();
    if op.from.strong() {
        ctx.warp.polls += 1;
    }
    let mut buffer = [[0; WIDEST]; LANES];
    for (part, mask) in parts(op.from.space, &addresses, mask) {
        if mask != 0 {
            read(part, &op.from, ctx, &addresses, mask, bytes, &mut buffer)?;
        }
    }
    for (index, target) in op.elements.iter().enumerate() {
        put(ctx, *target, op.width, mask, &buffer, index * op.width);
    }
    Ok(Flow::Next)
}

fn read(
    part: Part,
    from: &Memory,
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    let (kind, strong) = (from.kind(), from.strong());
    match part {
        Part::Global => {
            let constant = from.space == Space::Const;
            if !constant {
                traffic::global(ctx, addresses, mask, bytes);
            }
            let toucher = match constant {
                true => Toucher::of_constants(ctx),
                false => Toucher::new(ctx, from.global_kind()),
            };
            read_by(&toucher, addresses, mask, bytes, buffer)?;
            drop(toucher);
            if strong {
                super::strong::loads(from, ctx, addresses, mask);
            }
        }
        Part::Shared => {
            traffic::shared(ctx, addresses, mask, bytes);
            for_blocks(ctx, from.space, addresses, mask, bytes, |ctx, rank, addrs, mask| {
                shared_read_as(ctx, kind, (rank, addrs, mask), bytes, buffer)
            })?;
            if strong {
                super::strong::loads(from, ctx, addresses, mask);
            }
        }
        Part::Local => return local::read_lanes(ctx, addresses, mask, bytes, buffer),
        Part::Parameters => {
            for lane in lanes(mask) {
                let addr = addresses[lane] as u32;
                access::aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
                access::parameter(ctx, lane, addr, &mut buffer[lane][..bytes])?;
            }
        }
    }
    Ok(())
}

pub fn store(op: &Store, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    let addresses = addresses(ctx, &op.to, mask)?;
    let bytes = op.width * op.elements.len();
    let mut buffer = [[0; WIDEST]; LANES];
    for (index, source) in op.elements.iter().enumerate() {
        take(ctx, *source, op.width, &mut buffer, index * op.width);
    }
    for (part, mask) in parts(op.to.space, &addresses, mask) {
        if mask != 0 {
            write(part, &op.to, ctx, &addresses, mask, bytes, &buffer)?;
        }
    }
    Ok(Flow::Next)
}

fn write(
    part: Part,
    to: &Memory,
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    let (kind, strong) = (to.kind(), to.strong());
    match part {
        Part::Global => {
            ctx.cluster.changes += 1;
            traffic::global(ctx, addresses, mask, bytes);
            if strong {
                super::strong::stores(to, ctx, addresses, mask, false);
            }
            let toucher = Toucher::new(ctx, to.global_kind());
            toucher.each(addresses, mask, bytes, |toucher, held, offsets, mask| {
                toucher.write_lanes(held, offsets, mask, bytes, |lane| &buffer[lane][..bytes])
            })?;
        }
        Part::Shared => {
            ctx.cluster.changes += 1;
            traffic::shared(ctx, addresses, mask, bytes);
            if strong {
                super::strong::stores(to, ctx, addresses, mask, false);
            }
            for_blocks(ctx, to.space, addresses, mask, bytes, |ctx, rank, addrs, mask| {
                shared_write_as(ctx, kind, (rank, addrs, mask), bytes, buffer)
            })?;
        }
        Part::Local => return local::write_lanes(ctx, addresses, mask, bytes, buffer),
        Part::Parameters => {
            return Err(misplaced("the kernel's parameters are read only", addresses, mask));
        }
    }
    Ok(())
}
