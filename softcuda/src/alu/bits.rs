//! Counting, finding, cutting and inserting bits, and dot products of bytes. Source: PTX ISA, section 9.7.1.

use super::lanes::{Lane, Lanes, Operands};
use super::suffix::{self, Suffixes, operands, refuse};
use crate::ir::{LANES, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct BitField {
    pub op: Op,
    pub ty: Ty,
    pub operands: Operands,
    /// The fourth source of `bfi`.
    pub length: Src,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Popc,
    Clz,
    Brev,
    Bfind {
        shift: bool,
    },
    Bfe,
    Bfi,
    Bmsk {
        wrap: bool,
    },
    Szext {
        wrap: bool,
    },
    Fns,
    /// Sums of four products of bytes.
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    /// Sums of two products of a half and a byte; `high` takes the upper two bytes.
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<BitField> {
    let mut s = Suffixes::new(i);
    let name = i.parts[0];
    if matches!(name, "dp4a" | "dp2a") {
        return dot(l, i, s);
    }
    let ty = s.ty(l)?;
    let mode = s.find(|part| match part {
        "wrap" => Some(true),
        "clamp" => Some(false),
        _ => None,
    });
    let shift = s.take("shiftamt");
    s.end(l, i)?;
    let bits = matches!(ty, Ty::B32 | Ty::B64);
    let whole = matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64);
    let op = match (name, mode, shift) {
        ("popc", None, false) if bits => Op::Popc,
        ("clz", None, false) if bits => Op::Clz,
        ("brev", None, false) if bits => Op::Brev,
        ("bfind", None, shift) if whole => Op::Bfind { shift },
        ("bfe", None, false) if whole => Op::Bfe,
        ("bfi", None, false) if bits => Op::Bfi,
        ("bmsk", Some(wrap), false) if ty == Ty::B32 => Op::Bmsk { wrap },
        ("szext", Some(wrap), false) if matches!(ty, Ty::U32 | Ty::S32) => Op::Szext { wrap },
        ("fns", None, false) if ty == Ty::B32 => Op::Fns,
        _ => return refuse(l, i),
    };
    let mut length = Src::Imm(0);
    let operands = match op {
        Op::Popc | Op::Clz | Op::Bfind { .. } => operands(l, i, Ty::U32, &[ty])?,
        Op::Brev => operands(l, i, ty, &[ty])?,
        Op::Bfe => operands(l, i, ty, &[ty, Ty::U32, Ty::U32])?,
        Op::Bfi => {
            let [d, a, b, position, bits] = crate::lower::operands(i)?;
            length = suffix::src(l, Ty::U32, bits)?;
            let src = [
                suffix::src(l, ty, a)?,
                suffix::src(l, ty, b)?,
                suffix::src(l, Ty::U32, position)?,
            ];
            Operands { dst: suffix::dst(l, ty, d)?, src }
        }
        Op::Fns => operands(l, i, ty, &[ty, Ty::B32, Ty::S32])?,
        _ => operands(l, i, ty, &[ty, Ty::U32])?,
    };
    Ok(BitField { op, ty, operands, length })
}

fn dot<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>, mut s: Suffixes<'a>) -> Lowered<BitField> {
    let high = s.find(|part| match part {
        "lo" => Some(false),
        "hi" => Some(true),
        _ => None,
    });
    let (a, b) = (s.ty(l)?, s.ty(l)?);
    s.end(l, i)?;
    let (a_signed, b_signed) = (a.signed(), b.signed());
    let word = |ty| matches!(ty, Ty::U32 | Ty::S32);
    let op = match (i.parts[0], high) {
        ("dp4a", None) if word(a) && word(b) => Op::Dp4a { a_signed, b_signed },
        ("dp2a", Some(high)) if word(a) && word(b) => Op::Dp2a { a_signed, b_signed, high },
        _ => return refuse(l, i),
    };
    let operands = operands(l, i, Ty::B32, &[Ty::B32; 3])?;
    Ok(BitField { op, ty: Ty::B32, operands, length: Src::Imm(0) })
}

pub fn execute(this: &BitField, lanes: &mut Lanes<'_>) {
    let o = &this.operands;
    match (this.op, this.ty.bits() == 64) {
        (Op::Popc, false) => lanes.unary(o, u32::count_ones),
        (Op::Popc, true) => lanes.unary(o, u64::count_ones),
        (Op::Clz, false) => lanes.unary(o, u32::leading_zeros),
        (Op::Clz, true) => lanes.unary(o, u64::leading_zeros),
        (Op::Brev, false) => lanes.unary(o, u32::reverse_bits),
        (Op::Brev, true) => lanes.unary(o, u64::reverse_bits),
        (Op::Bfind { shift }, wide) => find(this.ty.signed(), wide, shift, lanes, o),
        (Op::Bfe, wide) => extract(this.ty.signed(), wide, lanes, o),
        (Op::Bfi, false) => insert::<u32>(32, this.length, lanes, o),
        (Op::Bfi, true) => insert::<u64>(64, this.length, lanes, o),
        (Op::Bmsk { wrap }, _) => lanes.binary(o, |a, b| mask(wrap, a, b)),
        (Op::Szext { wrap }, _) => {
            let signed = this.ty.signed();
            lanes.binary(o, |a, n| size_extend(signed, wrap, a, n));
        }
        (Op::Fns, _) => lanes.ternary(o, nth_set),
        (Op::Dp4a { a_signed, b_signed }, _) => lanes.ternary(o, |a: u32, b: u32, c: u32| {
            let product = |n| part(a, 8, n, a_signed).wrapping_mul(part(b, 8, n, b_signed));
            (0..4).fold(c, |sum, n| sum.wrapping_add(product(n)))
        }),
        (Op::Dp2a { a_signed, b_signed, high }, _) => lanes.ternary(o, |a: u32, b: u32, c: u32| {
            let first = if high { 2 } else { 0 };
            let product =
                |n| part(a, 16, n, a_signed).wrapping_mul(part(b, 8, first + n, b_signed));
            (0..2).fold(c, |sum, n| sum.wrapping_add(product(n)))
        }),
    }
}

/// Part `n` of a word, each of so many bits, extended.
fn part(word: u32, bits: u32, n: u32, signed: bool) -> u32 {
    let top = word << (32 - bits * (n + 1));
    if signed { (top as i32 >> (32 - bits)) as u32 } else { top >> (32 - bits) }
}

/// Position of the highest bit that differs from the sign, or of its distance from the top.
fn find(signed: bool, wide: bool, shift: bool, lanes: &mut Lanes<'_>, o: &Operands) {
    let position = move |bits: u64, width: u32| {
        let found = bits.checked_ilog2();
        found.map_or(u32::MAX, |at| if shift { width - 1 - at } else { at })
    };
    if wide {
        let fold = move |a: u64| if signed { a ^ (a as i64 >> 63) as u64 } else { a };
        lanes.unary(o, |a| position(fold(a), 64));
    } else {
        let fold = move |a: u32| if signed { a ^ (a as i32 >> 31) as u32 } else { a };
        lanes.unary(o, |a| position(u64::from(fold(a)), 32));
    }
}

/// `bfe`: bits beyond the word read as its sign, or as zero.
fn extract(signed: bool, wide: bool, lanes: &mut Lanes<'_>, o: &Operands) {
    let field = |a: i128, position: u32, length: u32| {
        let (position, length) = (position & 0xff, length & 0xff);
        let low = (a >> position.min(127)) & ((1 << length.min(64)) - 1);
        // A field of 64 bits or fewer: its top bit is the sign.
        let unused = 128 - length.min(64);
        if signed && length > 0 { low << unused >> unused } else { low }
    };
    match (wide, signed) {
        (false, false) => lanes.ternary(o, |a: u32, b, c| field(a.into(), b, c) as u32),
        (false, true) => lanes.ternary(o, |a: i32, b, c| field(a.into(), b, c) as u32),
        (true, false) => lanes.ternary(o, |a: u64, b, c| field(a.into(), b, c) as u64),
        (true, true) => lanes.ternary(o, |a: i64, b, c| field(a.into(), b, c) as u64),
    }
}

/// `bfi`: a field of `a` into `b`; what lies beyond the word is dropped.
fn insert<T: Lane + Into<u64>>(width: u32, length: Src, lanes: &mut Lanes<'_>, o: &Operands) {
    let (a, b) = (lanes.read::<T>(o.src[0]), lanes.read::<T>(o.src[1]));
    let (position, length) = (lanes.read::<u32>(o.src[2]), lanes.read::<u32>(length));
    let values: [u64; LANES] = std::array::from_fn(|n| {
        let (position, length) = (position[n] & 0xff, length[n] & 0xff);
        let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
        let field = if position >= width { 0 } else { ones << position };
        let moved = a[n].into().checked_shl(position).unwrap_or(0);
        (b[n].into() & !field) | (moved & field)
    });
    if width == 64 {
        lanes.write(o.dst, &values);
    } else {
        lanes.write(o.dst, &values.map(|value| value as u32));
    }
}

/// `bmsk`: `length` ones from `position` up.
fn mask(wrap: bool, position: u32, length: u32) -> u32 {
    let limit = |n: u32| if wrap { n & 31 } else { n.min(32) };
    (((1u64 << limit(length)) - 1) << limit(position)) as u32
}

/// `szext`: the low `n` bits, extended.
fn size_extend(signed: bool, wrap: bool, a: u32, n: u32) -> u32 {
    let n = if wrap { n & 31 } else { n.min(32) };
    if n == 0 {
        return 0;
    }
    let top = a << (32 - n);
    if signed { (top as i32 >> (32 - n)) as u32 } else { top >> (32 - n) }
}

/// `fns`: position of the n-th set bit of a mask, counted from `base` upwards, or downwards if negative.
fn nth_set(word: u32, base: u32, nth: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    let set = |at: &u32| word >> at & 1 == 1;
    let wanted = nth.unsigned_abs().saturating_sub(1) as usize;
    let found = match nth {
        0 => Some(base).filter(set),
        1.. => (base..32).filter(set).nth(wanted),
        _ => (0..=base).rev().filter(set).nth(wanted),
    };
    found.unwrap_or(u32::MAX)
}
