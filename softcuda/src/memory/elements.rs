//! The elements of an access between registers and a buffer of bytes: all lanes of a warp at once.

use crate::ir::{LANES, Mask, Reg, Src};
use crate::machine::Context;

/// The most bytes of one lane's access.
pub const WIDEST: usize = 32;
/// What the lanes read or write, each from the first byte on.
pub type Buffer = [[u8; WIDEST]; LANES];

/// The register of an element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub reg: Reg,
    /// Signed: the register's width in bits, to which the value is extended.
    pub extend: Option<u32>,
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
