//! `ld`, `ldu` and `st`: all lanes of a warp at once.

use super::access::{self, Located, generic};
use super::global::Toucher;
use super::shadow::Kind;
use super::{Memory, traffic};
use crate::fault::{Check, Fault};
use crate::ir::{
    LANES, LOCAL_WINDOW, Mask, PARAM_WINDOW, Reg, SHARED_WINDOW, Space, Src, WINDOW_BYTES,
};
use crate::machine::{Context, Executed, Flow};
use crate::registers::lanes;

/// The most bytes of one lane's access.
pub const WIDEST: usize = 32;
/// What the lanes read or write, each from the first byte on.
pub type Buffer = [[u8; WIDEST]; LANES];

/// `ld`.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub from: Memory,
    /// Bytes of an element.
    pub width: usize,
    pub elements: Vec<Target>,
}

/// The register of an element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub reg: Reg,
    /// Signed: the register's width in bits, to which the value is extended.
    pub extend: Option<u32>,
}

/// `st`.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub to: Memory,
    pub width: usize,
    pub elements: Vec<Src>,
}

/// The address of each lane, in the operand's own space.
pub fn addresses(ctx: &Context<'_>, memory: &Memory, mask: Mask) -> Result<[u64; LANES], Fault> {
    let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
    let offset = memory.addr.offset;
    if matches!(memory.space, Space::Generic | Space::Global | Space::Const) {
        let base = regs.read64(memory.addr.base, place);
        return Ok(base.map(|base| base.wrapping_add_signed(offset)));
    }
    let base = regs.read32(memory.addr.base, place);
    let sums = base.map(|base| u64::from(base).wrapping_add_signed(offset));
    if sums.iter().fold(0, |all, sum| all | sum) <= u64::from(u32::MAX) {
        return Ok(sums);
    }
    match lanes(mask).find(|&lane| sums[lane] > u64::from(u32::MAX)) {
        None => Ok(sums),
        Some(lane) => {
            let what = "an address beyond 32 bits";
            Err(Fault::new(Check::OutOfBounds, what).lane(lane).address(sums[lane]))
        }
    }
}

/// The lanes of one space.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Global,
    Shared,
    Local,
    Parameters,
}

/// Splits lanes by the space they address. Generic addresses stay as they are.
pub fn parts(space: Space, addresses: &[u64; LANES], mask: Mask) -> [(Part, Mask); 4] {
    let only = |part| [(part, mask), (part, 0), (part, 0), (part, 0)];
    match space {
        Space::Global | Space::Const => only(Part::Global),
        Space::Shared | Space::Cluster => only(Part::Shared),
        Space::Local => only(Part::Local),
        Space::Param => only(Part::Parameters),
        Space::Generic => {
            let within = |window: u64| {
                (0..LANES).fold(0, |mask, lane| {
                    let here = addresses[lane] & !(WINDOW_BYTES - 1) == window;
                    mask | u32::from(here) << lane
                }) & mask
            };
            let shared = within(SHARED_WINDOW);
            let (local, parameters) = (within(LOCAL_WINDOW), within(PARAM_WINDOW));
            [
                (Part::Global, mask & !(shared | local | parameters)),
                (Part::Shared, shared),
                (Part::Local, local),
                (Part::Parameters, parameters),
            ]
        }
    }
}

/// The block and address in it that a lane addresses in shared memory.
pub fn shared_place(ctx: &Context<'_>, space: Space, address: u64) -> (usize, u32) {
    match space {
        Space::Shared => (ctx.rank, address as u32),
        Space::Cluster => access::cluster_shared(ctx, address as u32),
        _ => match generic(ctx, address) {
            Located::Shared { rank, addr } => (rank, addr),
            other => unreachable!("a shared address, not {other:?}"),
        },
    }
}

/// Does something for the lanes of each block whose shared memory they address, given the block's rank and
/// the addresses in it.
fn for_blocks(
    ctx: &mut Context<'_>,
    space: Space,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    mut act: impl FnMut(&mut Context<'_>, usize, &[u32; LANES], Mask) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let low = addresses.map(|address| address as u32);
    if bytes > 16 {
        let what = "accesses of more than 16 bytes work on global memory only";
        return Err(Fault::new(Check::Trap, what).lane(mask.trailing_zeros() as usize));
    }
    if space == Space::Shared {
        return act(ctx, ctx.rank, &low, mask);
    }
    let mut rest = mask;
    while rest != 0 {
        let block = |lane: usize| low[lane] / access::SHARED_STRIDE;
        let first = block(rest.trailing_zeros() as usize);
        let here = lanes(rest).filter(|&lane| block(lane) == first);
        let part = here.fold(0, |part, lane| part | 1 << lane);
        let (rank, _) = access::cluster_shared(ctx, first * access::SHARED_STRIDE);
        let addrs = low.map(|addr| addr % access::SHARED_STRIDE);
        act(ctx, rank, &addrs, part).map_err(|fault| match fault.lane {
            None => fault.lane(part.trailing_zeros() as usize),
            Some(_) => fault,
        })?;
        rest &= !part;
    }
    Ok(())
}

/// Reads `width` bytes, at most 16, of shared memory of a block for each lane: one address a lane, all checked as
/// plain accesses.
///
/// # Errors
///
/// What the checks find.
pub fn shared_read_lanes(
    ctx: &mut Context<'_>,
    rank: usize,
    addrs: &[u32; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    shared_read_as(ctx, Kind::Plain, (rank, addrs, mask), width, buffer)
}

fn shared_read_as(
    ctx: &mut Context<'_>,
    kind: Kind,
    (rank, addrs, mask): (usize, &[u32; LANES], Mask),
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    let unit = ctx.unit();
    access::with_block(ctx, unit, rank, kind, |shared, by| {
        shared.read_lanes(addrs, mask, width, by, buffer)
    })
}

/// The same for writing.
///
/// # Errors
///
/// What the checks find.
pub fn shared_write_lanes(
    ctx: &mut Context<'_>,
    rank: usize,
    addrs: &[u32; LANES],
    mask: Mask,
    width: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    ctx.cluster.changes += 1;
    shared_write_as(ctx, Kind::Plain, (rank, addrs, mask), width, buffer)
}

fn shared_write_as(
    ctx: &mut Context<'_>,
    kind: Kind,
    (rank, addrs, mask): (usize, &[u32; LANES], Mask),
    width: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    let unit = ctx.unit();
    access::with_block(ctx, unit, rank, kind, |shared, by| {
        shared.write_lanes(addrs, mask, width, by, |lane| &buffer[lane][..width])
    })
}

/// Reads `width` bytes, at most 32, of global memory for each lane.
///
/// # Errors
///
/// What the checks find.
pub fn global_read_lanes(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    read_by(&Toucher::new(ctx, Kind::Plain), addresses, mask, width, buffer)
}

fn read_by(
    toucher: &Toucher<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    width: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    toucher.each(addresses, mask, width, |toucher, held, offsets, mask| {
        toucher.read_lanes(held, offsets, mask, width, |lane, words, offset| {
            words.read(offset, &mut buffer[lane][..width]);
        })
    })
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
        Part::Local => return local_read(ctx, addresses, mask, bytes, buffer),
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
        Part::Local => return local_write(ctx, addresses, mask, bytes, buffer),
        Part::Parameters => {
            let lane = mask.trailing_zeros() as usize;
            let what = "the kernel's parameters are read only";
            let fault = Fault::new(Check::OutOfBounds, what).lane(lane);
            return Err(fault.address(addresses[lane]));
        }
    }
    Ok(())
}

/// True if the lanes address the same whole words of their local memory.
fn rowwise(addresses: &[u64; LANES], mask: Mask, bytes: usize) -> Option<u32> {
    let first = addresses[mask.trailing_zeros() as usize];
    let same = (0..LANES).all(|lane| mask >> lane & 1 == 0 || addresses[lane] == first);
    let addr = first as u32;
    let inside = u64::from(addr) + bytes as u64 <= u64::from(super::LOCAL_BYTES);
    let whole = bytes.is_multiple_of(4) && (addr as usize).is_multiple_of(bytes);
    (same && inside && whole).then_some(addr)
}

fn local_read(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    ctx.count(crate::counters::Counter::LocalAccesses, u64::from(mask.count_ones()));
    let local = &ctx.warp.local;
    if let Some(addr) = rowwise(addresses, mask, bytes) {
        let rows = (0..bytes).step_by(4).map(|at| local.row(mask, addr + at as u32));
        if let Some(rows) = rows.collect::<Option<Vec<_>>>() {
            for (at, row) in (0..).step_by(4).zip(rows) {
                for lane in lanes(mask) {
                    buffer[lane][at..at + 4].copy_from_slice(&row[lane].to_le_bytes());
                }
            }
            return Ok(());
        }
    }
    for lane in lanes(mask) {
        let addr = addresses[lane] as u32;
        access::aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
        local.read(lane, addr, &mut buffer[lane][..bytes])?;
    }
    Ok(())
}

fn local_write(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    ctx.count(crate::counters::Counter::LocalAccesses, u64::from(mask.count_ones()));
    let local = &mut ctx.warp.local;
    if let Some(addr) = rowwise(addresses, mask, bytes) {
        for at in (0..bytes).step_by(4) {
            let word = |lane: usize| &buffer[lane][at..at + 4];
            let words = std::array::from_fn(|lane| {
                u32::from_le_bytes(word(lane).try_into().expect("four bytes"))
            });
            local.set_row(mask, addr + at as u32, &words);
        }
        return Ok(());
    }
    for lane in lanes(mask) {
        let addr = addresses[lane] as u32;
        access::aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
        local.write(lane, addr, &buffer[lane][..bytes])?;
    }
    Ok(())
}

/// Writes an element of what the lanes read to its register.
pub fn put(
    ctx: &mut Context<'_>,
    target: Target,
    width: usize,
    mask: Mask,
    buffer: &Buffer,
    at: usize,
) {
    let regs = &mut ctx.warp.regs;
    if width == 4 && target.extend.is_none_or(|bits| bits == 32) {
        let words = std::array::from_fn(|lane| word(buffer, lane, at));
        return regs.write32(target.reg, mask, &words);
    }
    if width == 16 {
        let Reg::Q(slot) = target.reg else { unreachable!("128 bits go to a wide register") };
        let half = |at| std::array::from_fn(|lane| number(buffer, lane, at, 8));
        regs.write64(Reg::D(slot), mask, &half(at));
        return regs.write64(Reg::D(slot + 1), mask, &half(at + 8));
    }
    let values: [u64; LANES] = std::array::from_fn(|lane| {
        let value = number(buffer, lane, at, width);
        let Some(bits) = target.extend else { return value };
        let unused = 64 - 8 * width as u32;
        let extended = ((value << unused) as i64 >> unused) as u64;
        extended & (u64::MAX >> (64 - bits))
    });
    regs.write64(target.reg, mask, &values);
}

/// Reads an element's register for all lanes.
pub fn take(ctx: &Context<'_>, source: Src, width: usize, buffer: &mut Buffer, at: usize) {
    let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
    match (width, source) {
        (1 | 2 | 4, _) => {
            for (row, value) in buffer.iter_mut().zip(regs.read32(source, place)) {
                row[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
        (16, Src::Reg(Reg::Q(slot))) => {
            for half in [0, 1] {
                let at = at + 8 * half;
                take(ctx, Src::Reg(Reg::D(slot + half as u32)), 8, buffer, at);
            }
        }
        _ => {
            for (row, value) in buffer.iter_mut().zip(regs.read64(source, place)) {
                row[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

fn word(buffer: &Buffer, lane: usize, at: usize) -> u32 {
    u32::from_le_bytes(buffer[lane][at..at + 4].try_into().expect("four bytes"))
}

fn number(buffer: &Buffer, lane: usize, at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&buffer[lane][at..at + width]);
    u64::from_le_bytes(bytes)
}
