//! Approximate functions. Each is computed in f64 and rounded, hence within the bound PTX documents.
//! Source: PTX ISA, section 9.7.3.

use super::float::{canonical, finish, flush};
use super::lanes::{Lanes, Operands};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::Ty;
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Approximate {
    pub op: Op,
    pub ftz: bool,
    pub double: bool,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `a * (1 / b)`, the reciprocal flushed.
    Div,
    /// `div.full`.
    DivFull,
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

/// True for the instructions that this module handles.
pub fn is_approximate(i: &Instruction<'_>) -> bool {
    i.parts.iter().any(|part| matches!(*part, "approx" | "full"))
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Approximate> {
    let mut s = Suffixes::new(i);
    let (approx, full) = (s.take("approx"), s.take("full"));
    let ftz = s.take("ftz");
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let double = ty == Ty::F64;
    let op = match i.parts[0] {
        "div" if full && !approx && !double => Op::DivFull,
        _ if full => return refuse(l, i),
        "rcp" if !double || ftz => Op::Rcp,
        "rsqrt" => Op::Rsqrt,
        _ if double => return refuse(l, i),
        "div" => Op::Div,
        "sqrt" => Op::Sqrt,
        "sin" => Op::Sin,
        "cos" => Op::Cos,
        "lg2" => Op::Lg2,
        "ex2" => Op::Ex2,
        "tanh" if !ftz => Op::Tanh,
        _ => return refuse(l, i),
    };
    if !matches!(ty, Ty::F32 | Ty::F64) {
        return refuse(l, i);
    }
    let sources = if matches!(op, Op::Div | Op::DivFull) { 2 } else { 1 };
    let operands = operands(l, i, ty, &[ty; 2][..sources])?;
    Ok(Approximate { op, ftz, double, operands })
}

pub fn execute(this: &Approximate, lanes: &mut Lanes<'_>) {
    let (o, ftz) = (&this.operands, this.ftz);
    if this.double {
        return match this.op {
            Op::Rcp => lanes.unary(o, |a| coarse(a, ftz, |a| 1.0 / a)),
            _ => lanes.unary(o, |a| coarse(a, ftz, |a| 1.0 / a.sqrt())),
        };
    }
    let i = move |x: f32| f64::from(if ftz { flush(x) } else { x });
    let e = move |x: f64| finish(x as f32, ftz, false);
    match this.op {
        Op::Div => lanes.binary(o, |a: f32, b: f32| {
            // The reciprocal of a divisor beyond 2^126 would be subnormal, and counts as zero.
            let large = b.abs() > 2f32.powi(126) && b.is_finite();
            e(if large { i(a) * 0f64.copysign(i(b)) } else { i(a) / i(b) })
        }),
        Op::DivFull => lanes.binary(o, |a: f32, b: f32| e(i(a) / i(b))),
        Op::Rcp => lanes.unary(o, |a| e(1.0 / i(a))),
        Op::Sqrt => lanes.unary(o, |a| e(i(a).sqrt())),
        Op::Rsqrt => lanes.unary(o, |a| e(1.0 / i(a).sqrt())),
        Op::Sin => lanes.unary(o, |a| e(i(a).sin())),
        Op::Cos => lanes.unary(o, |a| e(i(a).cos())),
        Op::Lg2 => lanes.unary(o, |a| e(i(a).log2())),
        Op::Ex2 => lanes.unary(o, |a| e(i(a).exp2())),
        Op::Tanh => lanes.unary(o, |a| e(i(a).tanh())),
    }
}

/// The double-precision forms with `.ftz` read and write the upper 32 bits only; they begin a Newton
/// iteration.
fn coarse(a: f64, ftz: bool, f: impl Fn(f64) -> f64) -> f64 {
    const UPPER: u64 = 0xffff_ffff_0000_0000;
    let flush = |x: f64| if x.is_subnormal() { 0f64.copysign(x) } else { x };
    let a = if ftz { flush(f64::from_bits(a.to_bits() & UPPER)) } else { a };
    let result = f(a);
    if !ftz || !result.is_finite() {
        return canonical(result);
    }
    flush(f64::from_bits(result.to_bits().wrapping_add(1 << 31) & UPPER))
}
