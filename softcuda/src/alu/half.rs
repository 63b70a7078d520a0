//! Arithmetic in half precision and bfloat16, single and packed. Computed in f64 and rounded once.
//! Source: PTX ISA, section 9.7.4.

use super::float::{Select, choose, select};
use super::lanes::{Lane, Lanes, Operands};
use super::round::{Format, Rounding, add_odd, fma_odd};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::{LANES, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Half {
    pub op: Op,
    pub format: Format,
    pub packed: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Fma,
    Neg,
    Abs,
    Select(Select),
    Ex2,
    Tanh,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Half> {
    let mut s = Suffixes::new(i);
    let rounding = s.rounding();
    let (ftz, sat, relu) = (s.take("ftz"), s.take("sat"), s.take("relu"));
    let approx = s.take("approx");
    let select = select(&mut s, i);
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let brain = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    let plain = rounding.is_none() && !sat && !relu;
    let nearest = matches!(rounding, None | Some(Rounding::Nearest));
    let op = match i.parts[0] {
        "add" if nearest && !relu && !approx => Op::Add,
        "sub" if nearest && !relu && !approx => Op::Sub,
        "mul" if nearest && !relu && !approx => Op::Mul,
        "fma" if rounding == Some(Rounding::Nearest) && !(relu && sat) && !approx => Op::Fma,
        "neg" if plain && !approx => Op::Neg,
        "abs" if plain && !approx => Op::Abs,
        "min" | "max" if plain && !approx && select.sources <= 2 => Op::Select(select),
        "ex2" if plain && approx && (!ftz || brain) => Op::Ex2,
        "tanh" if plain && approx && !ftz => Op::Tanh,
        _ => return refuse(l, i),
    };
    let bad_select = select.abs != select.xorsign;
    if brain && (sat || ftz != (op == Op::Ex2)) || bad_select {
        return refuse(l, i);
    }
    let sources = match op {
        Op::Neg | Op::Abs | Op::Ex2 | Op::Tanh => 1,
        Op::Fma => 3,
        _ => 2,
    };
    let operands = operands(l, i, ty, &[ty; 3][..sources])?;
    let format = if brain { Format::BF16 } else { Format::F16 };
    let packed = ty.bits() == 32;
    Ok(Half { op, format, packed, ftz, sat, relu, operands })
}

pub fn execute(this: &Half, lanes: &mut Lanes<'_>) {
    match this.format {
        Format::F16 => formatted::<F16>(this, lanes),
        _ => formatted::<Bf16>(this, lanes),
    }
}

fn formatted<F: Narrow>(this: &Half, lanes: &mut Lanes<'_>) {
    let ftz = this.ftz;
    let flush = move |bits: u32| if ftz && bits & F::EXPONENT == 0 { bits & 0x8000 } else { bits };
    let (sat, relu) = (this.sat, this.relu);
    let round = move |x: f64| -> u32 {
        let bits = flush(F::narrow(x));
        if sat {
            return if x > 0.0 { bits.min(F::ONE) } else { 0 };
        }
        if relu && (bits & 0x8000 != 0) && !x.is_nan() { 0 } else { bits }
    };
    let wide = move |bits: u32| F::widen(flush(bits));
    match this.op {
        Op::Add => apply(this, lanes, |[a, b, _]| round(add_odd(wide(a), wide(b)))),
        Op::Sub => apply(this, lanes, |[a, b, _]| round(add_odd(wide(a), -wide(b)))),
        Op::Mul => apply(this, lanes, |[a, b, _]| round(wide(a) * wide(b))),
        Op::Fma => apply(this, lanes, |[a, b, c]| round(fma_odd(wide(a), wide(b), wide(c)))),
        Op::Neg => apply(this, lanes, |[a, ..]| flush(a) ^ 0x8000),
        Op::Abs => apply(this, lanes, |[a, ..]| flush(a) & 0x7fff),
        Op::Select(how) => apply(this, lanes, |[a, b, _]| round(choose(how, wide(a), wide(b)))),
        Op::Ex2 => apply(this, lanes, |[a, ..]| round(wide(a).exp2())),
        Op::Tanh => apply(this, lanes, |[a, ..]| round(wide(a).tanh())),
    }
}

/// Applies `f` to the low halves of the sources, and to the high ones if packed.
fn apply(this: &Half, lanes: &mut Lanes<'_>, f: impl Fn([u32; 3]) -> u32) {
    let [a, b, c] = this.operands.src.map(|src| lanes.read::<u32>(src));
    let low: [u32; LANES] =
        std::array::from_fn(|n| f([a[n] & 0xffff, b[n] & 0xffff, c[n] & 0xffff]));
    if !this.packed {
        return lanes.write(this.operands.dst, &low);
    }
    let values: [u32; LANES] =
        std::array::from_fn(|n| low[n] | f([a[n] >> 16, b[n] >> 16, c[n] >> 16]) << 16);
    u32::write(lanes.regs, this.operands.dst, lanes.mask, &values);
}

/// A 16-bit format.
pub trait Narrow {
    const EXPONENT: u32;
    const ONE: u32;
    fn widen(bits: u32) -> f64;
    /// Of an f64 that is exact or rounded to odd, to nearest.
    fn narrow(x: f64) -> u32;
}

pub struct F16;
pub struct Bf16;

impl Narrow for F16 {
    const EXPONENT: u32 = 0x7c00;
    const ONE: u32 = 0x3c00;

    fn widen(bits: u32) -> f64 {
        Format::F16.widen(u64::from(bits))
    }

    fn narrow(x: f64) -> u32 {
        Format::F16.narrow(x, Rounding::Nearest) as u32
    }
}

impl Narrow for Bf16 {
    const EXPONENT: u32 = 0x7f80;
    const ONE: u32 = 0x3f80;

    fn widen(bits: u32) -> f64 {
        f64::from(f32::from_bits(bits << 16))
    }

    fn narrow(x: f64) -> u32 {
        Format::BF16.narrow(x, Rounding::Nearest) as u32
    }
}
