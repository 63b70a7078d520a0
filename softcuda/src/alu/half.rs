//! Arithmetic in half precision and bfloat16, single and packed. Computed in f64 and rounded once.
//! Source: PTX ISA, section 9.7.4.

use super::float::{Select, choose, directed_sum, select};
use super::lanes::{Lane, Lanes, Operands};
use super::round::{Format, Rounding, add_odd, fma_odd};
use super::short::{Bf16, F16, Short};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::{LANES, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Half {
    pub op: Op,
    /// bfloat16 rather than half precision.
    pub brain: bool,
    pub packed: bool,
    pub rounding: Rounding,
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
        "fma" if rounding.is_some_and(|_| nearest || brain) && !(relu && sat) && !approx => Op::Fma,
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
    let packed = ty.bits() == 32;
    let rounding = rounding.unwrap_or(Rounding::Nearest);
    Ok(Half { op, brain, packed, rounding, ftz, sat, relu, operands })
}

pub fn execute(this: &Half, lanes: &mut Lanes<'_>) {
    if this.rounding != Rounding::Nearest {
        return directed(this, lanes);
    }
    let plain = !(this.ftz || this.sat || this.relu);
    match (this.brain, plain) {
        (false, true) => formatted::<F16, true>(this, lanes),
        (false, false) => formatted::<F16, false>(this, lanes),
        (true, true) => formatted::<Bf16, true>(this, lanes),
        (true, false) => formatted::<Bf16, false>(this, lanes),
    }
}

/// `PLAIN`: without `.ftz`, `.sat` and `.relu`, which the loops over lanes then need not ask for.
fn formatted<F: Short, const PLAIN: bool>(this: &Half, lanes: &mut Lanes<'_>) {
    let (ftz, sat, relu) = (this.ftz && !PLAIN, this.sat && !PLAIN, this.relu && !PLAIN);
    let flush = move |bits: u32| if ftz && bits & F::EXPONENT == 0 { bits & 0x8000 } else { bits };
    let round = move |x: f64| {
        let bits = flush(F::narrow_wide(x));
        if sat {
            // A NaN is not greater than zero.
            return if x > 0.0 { bits.min(F::ONE) } else { 0 };
        }
        if relu && bits & 0x8000 != 0 { 0 } else { bits }
    };
    // Separate loops over the lanes: each vectorises.
    let wide = |bits: [u32; LANES]| bits.map(|bits| f64::from(F::widen(flush(bits))));
    elementwise(this, lanes, |sources| {
        if let Op::Neg | Op::Abs = this.op {
            let [a, ..] = sources;
            return a
                .map(|a| if this.op == Op::Neg { flush(a) ^ 0x8000 } else { flush(a) & 0x7fff });
        }
        let [a, b, c] = sources.map(wide);
        let values: [f64; LANES] = match this.op {
            Op::Add => std::array::from_fn(|n| add_odd(a[n], b[n])),
            Op::Sub => std::array::from_fn(|n| add_odd(a[n], -b[n])),
            Op::Mul => std::array::from_fn(|n| a[n] * b[n]),
            Op::Fma => std::array::from_fn(|n| fma_odd(a[n], b[n], c[n])),
            Op::Select(how) => std::array::from_fn(|n| choose(how, a[n], b[n])),
            Op::Ex2 => a.map(f64::exp2),
            _ => a.map(f64::tanh),
        };
        values.map(round)
    });
}

/// `fma` of bfloat16 in a direction other than to nearest.
fn directed(this: &Half, lanes: &mut Lanes<'_>) {
    let mode = this.rounding;
    elementwise(this, lanes, |sources| {
        let [a, b, c] = sources.map(|bits| bits.map(|bits| f64::from(Bf16::widen(bits))));
        std::array::from_fn(|n| {
            let sum = directed_sum(a[n] * b[n], c[n], mode);
            let bits = Format::BF16.narrow(sum, mode) as u32;
            if this.relu && bits & 0x8000 != 0 { 0 } else { bits }
        })
    });
}

/// Applies `f` to the low halves of the sources, and to the high ones if packed.
fn elementwise(this: &Half, lanes: &mut Lanes<'_>, f: impl Fn([[u32; LANES]; 3]) -> [u32; LANES]) {
    let sources = this.operands.src.map(|src| lanes.read::<u32>(src));
    let mut values = f(sources.map(|words| words.map(|word| word & 0xffff)));
    if this.packed {
        let high = f(sources.map(|words| words.map(|word| word >> 16)));
        values = std::array::from_fn(|n| high[n] << 16 | values[n]);
    }
    u32::write(lanes.regs, this.operands.dst, lanes.mask, &values);
}
