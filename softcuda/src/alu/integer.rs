//! Integer arithmetic. Source: PTX ISA, section 9.7.1. A division by zero gives all ones, as hardware does.

use super::lanes::{Lane, Lanes, Operands};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::Ty;
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Integer {
    pub op: Op,
    pub ty: Ty,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    AddSat,
    Sub,
    SubSat,
    Mul(Half),
    Mad(Half),
    MadHiSat,
    /// Products of the low 24 bits.
    Mul24(Half),
    Mad24(Half),
    Mad24HiSat,
    Sad,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    MinRelu,
    MaxRelu,
}

/// Which half of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Lo,
    Hi,
    Wide,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Integer> {
    let mut s = Suffixes::new(i);
    let ty = s.ty(l)?;
    let half = s.find(|part| match part {
        "lo" => Some(Half::Lo),
        "hi" => Some(Half::Hi),
        "wide" => Some(Half::Wide),
        _ => None,
    });
    let (sat, relu) = (s.take("sat"), s.take("relu"));
    s.end(l, i)?;
    let packed = matches!(ty, Ty::U16x2 | Ty::S16x2);
    let scalar = matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64);
    let word = matches!(ty, Ty::U32 | Ty::S32);
    let op = match (i.parts[0], half, sat, relu) {
        ("add", None, false, false) if scalar || packed => Op::Add,
        ("sub", None, false, false) if scalar || packed => Op::Sub,
        ("add", None, true, false) if ty == Ty::S32 => Op::AddSat,
        ("sub", None, true, false) if ty == Ty::S32 => Op::SubSat,
        ("mul", Some(Half::Wide), false, false) if scalar && ty.bits() < 64 => Op::Mul(Half::Wide),
        ("mad", Some(Half::Wide), false, false) if scalar && ty.bits() < 64 => Op::Mad(Half::Wide),
        ("mul", Some(half @ (Half::Lo | Half::Hi)), false, false) if scalar => Op::Mul(half),
        ("mad", Some(half @ (Half::Lo | Half::Hi)), false, false) if scalar => Op::Mad(half),
        ("mad", Some(Half::Hi), true, false) if ty == Ty::S32 => Op::MadHiSat,
        ("mul24", Some(half @ (Half::Lo | Half::Hi)), false, false) if word => Op::Mul24(half),
        ("mad24", Some(half @ (Half::Lo | Half::Hi)), false, false) if word => Op::Mad24(half),
        ("mad24", Some(Half::Hi), true, false) if ty == Ty::S32 => Op::Mad24HiSat,
        ("sad", None, false, false) if scalar => Op::Sad,
        ("div", None, false, false) if scalar => Op::Div,
        ("rem", None, false, false) if scalar => Op::Rem,
        ("abs", None, false, false) if scalar && ty.signed() => Op::Abs,
        ("neg", None, false, false) if scalar && ty.signed() || packed => Op::Neg,
        ("min", None, false, false) if scalar || packed => Op::Min,
        ("max", None, false, false) if scalar || packed => Op::Max,
        ("min", None, false, true) if matches!(ty, Ty::S32 | Ty::S16x2) => Op::MinRelu,
        ("max", None, false, true) if matches!(ty, Ty::S32 | Ty::S16x2) => Op::MaxRelu,
        _ => return refuse(l, i),
    };
    let wide = match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        _ => Ty::S64,
    };
    let operands = match op {
        Op::Mul(Half::Wide) => operands(l, i, wide, &[ty; 2])?,
        Op::Mad(Half::Wide) => operands(l, i, wide, &[ty, ty, wide])?,
        Op::Mad(_) | Op::MadHiSat | Op::Mad24(_) | Op::Mad24HiSat | Op::Sad => {
            operands(l, i, ty, &[ty; 3])?
        }
        Op::Abs | Op::Neg => operands(l, i, ty, &[ty])?,
        _ => operands(l, i, ty, &[ty; 2])?,
    };
    Ok(Integer { op, ty, operands })
}

pub fn execute(this: &Integer, lanes: &mut Lanes<'_>) {
    let o = &this.operands;
    match (this.op, this.ty) {
        (Op::AddSat, _) => lanes.binary(o, i32::saturating_add),
        (Op::SubSat, _) => lanes.binary(o, i32::saturating_sub),
        (Op::MadHiSat, _) => {
            lanes.ternary(o, |a: i32, b: i32, c: i32| a.high(b).saturating_add(c));
        }
        (Op::Mul24(_) | Op::Mad24(_) | Op::Mad24HiSat, ty) => short_product(this.op, ty, lanes, o),
        (_, Ty::U16) => scalar::<u16>(this.op, lanes, o),
        (_, Ty::S16) => scalar::<i16>(this.op, lanes, o),
        (_, Ty::U32) => scalar::<u32>(this.op, lanes, o),
        (_, Ty::S32) => scalar::<i32>(this.op, lanes, o),
        (_, Ty::U64) => scalar::<u64>(this.op, lanes, o),
        (_, Ty::S64) => scalar::<i64>(this.op, lanes, o),
        (Op::Add, _) => lanes.binary(o, by_halves(u16::wrapping_add)),
        (Op::Sub, _) => lanes.binary(o, by_halves(u16::wrapping_sub)),
        (Op::Neg, _) => lanes.unary(o, |a: u32| by_halves(u16::wrapping_sub)(0, a)),
        (Op::Min, Ty::U16x2) => lanes.binary(o, by_halves(u16::min)),
        (Op::Max, Ty::U16x2) => lanes.binary(o, by_halves(u16::max)),
        (Op::Min, _) => lanes.binary(o, by_signed_halves(i16::min)),
        (Op::Max, _) => lanes.binary(o, by_signed_halves(i16::max)),
        (Op::MinRelu, _) => lanes.binary(o, by_signed_halves(|a, b| a.min(b).max(0))),
        (Op::MaxRelu, _) => lanes.binary(o, by_signed_halves(|a, b| a.max(b).max(0))),
        _ => unreachable!("refused when lowered"),
    }
}

fn scalar<T: Whole>(op: Op, lanes: &mut Lanes<'_>, o: &Operands) {
    match op {
        Op::Add => lanes.binary(o, T::plus),
        Op::Sub => lanes.binary(o, T::minus),
        Op::Mul(Half::Lo) => lanes.binary(o, T::times),
        Op::Mul(Half::Hi) => lanes.binary(o, T::high),
        Op::Mul(Half::Wide) => lanes.binary(o, T::wide),
        Op::Mad(Half::Lo) => lanes.ternary(o, |a: T, b, c| a.times(b).plus(c)),
        Op::Mad(Half::Hi) => lanes.ternary(o, |a: T, b, c| a.high(b).plus(c)),
        Op::Mad(Half::Wide) => lanes.ternary(o, |a: T, b, c| T::wide_plus(a.wide(b), c)),
        Op::Sad => {
            lanes
                .ternary(o, |a: T, b: T, c: T| c.plus(if a < b { b.minus(a) } else { a.minus(b) }));
        }
        Op::Div => lanes.binary(o, T::quotient),
        Op::Rem => lanes.binary(o, T::remainder),
        Op::Abs => lanes.unary(o, |a: T| if a < T::ZERO { T::ZERO.minus(a) } else { a }),
        Op::Neg => lanes.unary(o, |a: T| T::ZERO.minus(a)),
        Op::Min => lanes.binary(o, |a: T, b: T| a.min(b)),
        Op::Max => lanes.binary(o, |a: T, b: T| a.max(b)),
        Op::MinRelu => lanes.binary(o, |a: T, b: T| a.min(b).max(T::ZERO)),
        Op::MaxRelu => lanes.binary(o, |a: T, b: T| a.max(b).max(T::ZERO)),
        _ => unreachable!("handled by type"),
    }
}

/// `mul24`, `mad24`: the low or the high 32 bits of the 48-bit product.
fn short_product(op: Op, ty: Ty, lanes: &mut Lanes<'_>, o: &Operands) {
    let signed = ty.signed();
    let extend =
        |a: u32| if signed { i64::from((a << 8) as i32 >> 8) } else { i64::from(a & 0xff_ffff) };
    let low = |a: u32, b: u32| (extend(a) * extend(b)) as u32;
    let high = |a: u32, b: u32| ((extend(a) * extend(b)) >> 16) as u32;
    match op {
        Op::Mul24(Half::Lo) => lanes.binary(o, low),
        Op::Mul24(_) => lanes.binary(o, high),
        Op::Mad24(Half::Lo) => lanes.ternary(o, |a, b, c: u32| low(a, b).wrapping_add(c)),
        Op::Mad24(_) => lanes.ternary(o, |a, b, c: u32| high(a, b).wrapping_add(c)),
        _ => lanes.ternary(o, |a, b, c: i32| (high(a, b) as i32).saturating_add(c)),
    }
}

/// An operation on both halves of a word.
pub fn by_halves(f: impl Fn(u16, u16) -> u16) -> impl Fn(u32, u32) -> u32 {
    move |a, b| {
        let low = f(a as u16, b as u16);
        let high = f((a >> 16) as u16, (b >> 16) as u16);
        u32::from(high) << 16 | u32::from(low)
    }
}

fn by_signed_halves(f: impl Fn(i16, i16) -> i16) -> impl Fn(u32, u32) -> u32 {
    by_halves(move |a, b| f(a as i16, b as i16) as u16)
}

/// An integer type, its arithmetic wrapping around.
trait Whole: Lane + Ord {
    /// Of twice the width; 64 bits have none and stand for themselves.
    type Wide: Lane;
    const ZERO: Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn high(self, other: Self) -> Self;
    fn wide(self, other: Self) -> Self::Wide;
    fn wide_plus(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn quotient(self, other: Self) -> Self;
    fn remainder(self, other: Self) -> Self;
}

macro_rules! whole {
    ($($value:ty, $wide:ty, $product:ty);*) => {$(
        impl Whole for $value {
            type Wide = $wide;
            const ZERO: Self = 0;

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            fn high(self, other: Self) -> Self {
                ((self as $product * other as $product) >> <$value>::BITS) as $value
            }

            fn wide(self, other: Self) -> $wide {
                (self as $wide).wrapping_mul(other as $wide)
            }

            fn wide_plus(a: $wide, b: $wide) -> $wide {
                a.wrapping_add(b)
            }

            fn quotient(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }

            fn remainder(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_rem(other) }
            }
        }
    )*};
}

whole!(
    u16, u32, u32; i16, i32, i32; u32, u64, u64; i32, i64, i64; u64, u64, u128; i64, i64, i128
);
