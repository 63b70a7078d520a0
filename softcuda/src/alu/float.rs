//! Arithmetic in single and double precision. Source: PTX ISA, sections 9.7.3 and 9.7.5.

use super::lanes::{Lane, Lanes, Operands};
use super::round::{Exact, Format, Rounding, add_odd, fma_odd, to_odd};
use super::short::{Bf16, F16, Short};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::Ty;
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Float {
    pub op: Op,
    /// `F32`, `F64` or `F32x2`.
    pub ty: Ty,
    /// Of `a` (and of `b` in `fma`), if it is a narrower one: mixed precision.
    pub narrow: Option<Ty>,
    pub rounding: Rounding,
    /// Subnormal inputs and results become zeros of their sign.
    pub ftz: bool,
    /// Results are clamped to [0, 1], NaN to 0.
    pub sat: bool,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    Sqrt,
    Abs,
    Neg,
    Copysign,
    Select(Select),
}

/// `min` and `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Select {
    pub max: bool,
    /// A NaN among the sources gives NaN; else the others win.
    pub nan: bool,
    /// Of the magnitudes.
    pub abs: bool,
    /// With the exclusive or of the signs.
    pub xorsign: bool,
    pub sources: u8,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Float> {
    let mut s = Suffixes::new(i);
    let rounding = s.rounding();
    let (ftz, sat) = (s.take("ftz"), s.take("sat"));
    let select = select(&mut s, i);
    let ty = s.ty(l)?;
    let narrow = s.find(Ty::parse);
    s.end(l, i)?;
    let plain = rounding.is_none() && !sat;
    let double = ty == Ty::F64;
    // `rcp.rn.ftz.f64` means the same as without: f64 has no flushing, and only `rcp` may say so.
    if double && (ftz && i.parts[0] != "rcp" || sat) || ty == Ty::F32x2 && sat {
        return refuse(l, i);
    }
    let ftz = ftz && !double;
    let mixed = ty == Ty::F32 && !ftz && matches!(i.parts[0], "add" | "sub" | "fma");
    if narrow.is_some_and(|narrow| !mixed || !matches!(narrow, Ty::F16 | Ty::Bf16)) {
        return refuse(l, i);
    }
    // Without a direction, sums and products round to nearest (and may be contracted, which isn't done here).
    let op = match i.parts[0] {
        "add" => Op::Add,
        "sub" => Op::Sub,
        "mul" => Op::Mul,
        "fma" if rounding.is_some() => Op::Fma,
        // `mad.f64` and, since sm_20, `mad.f32` are fused too.
        "mad" if rounding.is_some() && ty != Ty::F32x2 => Op::Fma,
        _ if ty == Ty::F32x2 => return refuse(l, i),
        "div" if rounding.is_some() && !sat => Op::Div,
        "rcp" if rounding.is_some() && !sat => Op::Rcp,
        "sqrt" if rounding.is_some() && !sat => Op::Sqrt,
        "abs" if plain => Op::Abs,
        "neg" if plain => Op::Neg,
        "copysign" if plain && !ftz => Op::Copysign,
        "min" | "max" if plain => Op::Select(select),
        _ => return refuse(l, i),
    };
    if let (Op::Select(select), false) = (op, select_allowed(&select, double)) {
        return l.error(format!("unknown form {}: {select:?}", i.parts.join(".")));
    }
    let one = matches!(op, Op::Rcp | Op::Sqrt | Op::Abs | Op::Neg);
    let three = op == Op::Fma || matches!(op, Op::Select(select) if select.sources == 3);
    let sources = if one { 1 } else { 2 + usize::from(three) };
    let mut types = [ty; 3];
    if let Some(narrow) = narrow {
        types[..sources - 1].fill(narrow);
    }
    let operands = operands(l, i, ty, &types[..sources])?;
    let rounding = rounding.unwrap_or(Rounding::Nearest);
    Ok(Float { op, ty, narrow, rounding, ftz, sat, operands })
}

/// Two sources with both or neither of `.xorsign` and `.abs`, or three of single precision with `.abs` or not.
fn select_allowed(select: &Select, double: bool) -> bool {
    let modified = select.nan || select.abs || select.xorsign;
    match select.sources {
        2 => select.xorsign == select.abs && !(double && modified),
        _ => !select.xorsign && !double,
    }
}

impl Default for Select {
    fn default() -> Self {
        Self { max: false, nan: false, abs: false, xorsign: false, sources: 2 }
    }
}

/// Takes the suffixes of `min` and `max`.
pub(super) fn select(s: &mut Suffixes<'_>, i: &Instruction<'_>) -> Select {
    if !matches!(i.parts[0], "min" | "max") {
        return Select::default();
    }
    Select {
        max: i.parts[0] == "max",
        nan: s.take("NaN"),
        abs: s.take("abs"),
        xorsign: s.take("xorsign"),
        sources: i.operands.len().saturating_sub(1) as u8,
    }
}

pub fn execute(this: &Float, lanes: &mut Lanes<'_>) {
    match this.ty {
        Ty::F32 if this.narrow.is_some() => mixed(this, lanes),
        Ty::F32 => single(this, lanes),
        Ty::F64 => double(this, lanes),
        _ => pairs(this, lanes),
    }
}

fn single(this: &Float, lanes: &mut Lanes<'_>) {
    let (o, ftz, sat) = (&this.operands, this.ftz, this.sat);
    let i = move |x: f32| if ftz { flush(x) } else { x };
    let e = move |x: f32| finish(x, ftz, sat);
    let wide = |x: f32| f64::from(i(x));
    let mode = this.rounding;
    let d = move |x: f64| e(f32::from_bits(Format::F32.narrow(x, mode) as u32));
    match (this.op, mode) {
        (Op::Add, Rounding::Nearest) => lanes.binary(o, |a, b| e(i(a) + i(b))),
        (Op::Sub, Rounding::Nearest) => lanes.binary(o, |a, b| e(i(a) - i(b))),
        (Op::Mul, Rounding::Nearest) => lanes.binary(o, |a, b| e(i(a) * i(b))),
        (Op::Fma, Rounding::Nearest) => {
            lanes.ternary(o, |a, b, c| e(fma_odd(wide(a), wide(b), wide(c)) as f32));
        }
        (Op::Div, Rounding::Nearest) => lanes.binary(o, |a, b| e(i(a) / i(b))),
        (Op::Rcp, Rounding::Nearest) => lanes.unary(o, |a| e(1.0 / i(a))),
        (Op::Sqrt, Rounding::Nearest) => lanes.unary(o, |a| e(i(a).sqrt())),
        (Op::Add, _) => lanes.binary(o, |a, b| d(directed_sum(wide(a), wide(b), mode))),
        (Op::Sub, _) => lanes.binary(o, |a, b| d(directed_sum(wide(a), -wide(b), mode))),
        (Op::Mul, _) => lanes.binary(o, |a, b| d(wide(a) * wide(b))),
        (Op::Fma, _) => {
            lanes.ternary(o, |a, b, c| d(directed_sum(wide(a) * wide(b), wide(c), mode)));
        }
        (Op::Div, _) => lanes.binary(o, |a, b| d(div_odd(wide(a), wide(b)))),
        (Op::Rcp, _) => lanes.unary(o, |a| d(div_odd(1.0, wide(a)))),
        (Op::Sqrt, _) => lanes.unary(o, |a| d(sqrt_odd(wide(a)))),
        (Op::Abs, _) => lanes.unary(o, |a| i(a).abs()),
        (Op::Neg, _) => lanes.unary(o, |a| -i(a)),
        (Op::Copysign, _) => lanes.binary(o, |a: f32, b: f32| b.copysign(a)),
        (Op::Select(how), _) if how.sources == 3 => {
            lanes.ternary(o, |a, b, c| e(choose(how, choose(how, i(a), i(b)), i(c))));
        }
        (Op::Select(how), _) => lanes.binary(o, |a, b| e(choose(how, i(a), i(b)))),
    }
}

/// Zero of the number's sign for a subnormal.
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// What happens to a rounded result: `.ftz`, `.sat`, the canonical NaN.
pub fn finish(x: f32, ftz: bool, sat: bool) -> f32 {
    let x = if ftz { flush(x) } else { x };
    if sat {
        // A NaN is not greater than zero.
        return if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    // By its bits: as numbers, one NaN is as good as another to the compiler.
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits })
}

/// The lesser or greater of two numbers; −0 is less than +0.
pub(super) fn choose<T: Number>(how: Select, a: T, b: T) -> T {
    let negative = a.negative() != b.negative();
    let (a, b) = if how.abs { (a.magnitude(), b.magnitude()) } else { (a, b) };
    let (a_nan, b_nan) = (a.nan(), b.nan());
    let equal = a == b;
    // Zeros of either sign are equal; all else is ordered, or a NaN. No branches: loops vectorise.
    let ordered = (equal & (a.negative() != how.max)) | (!equal & ((a < b) != how.max));
    let first =
        (a_nan & (how.nan | b_nan)) | (!a_nan & b_nan & !how.nan) | (!a_nan & !b_nan & ordered);
    let chosen = if first { a } else { b };
    if how.xorsign && !chosen.nan() { chosen.with_sign(negative) } else { chosen }
}

/// What choosing needs of f32 and f64.
pub(super) trait Number: Copy + PartialOrd {
    fn nan(self) -> bool;
    fn negative(self) -> bool;
    fn magnitude(self) -> Self;
    fn with_sign(self, negative: bool) -> Self;
}

macro_rules! number {
    ($($value:ty),*) => {$(
        impl Number for $value {
            fn nan(self) -> bool {
                self.is_nan()
            }

            fn negative(self) -> bool {
                self.is_sign_negative()
            }

            fn magnitude(self) -> Self {
                self.abs()
            }

            fn with_sign(self, negative: bool) -> Self {
                if negative { -self.abs() } else { self.abs() }
            }
        }
    )*};
}

number!(f32, f64);

/// A sum rounded to odd, for a directed rounding afterwards: an exact zero from two addends is −0 downwards.
pub(super) fn directed_sum(a: f64, b: f64, rounding: Rounding) -> f64 {
    let sum = add_odd(a, b);
    let both_plus = a.is_sign_positive() && b.is_sign_positive();
    if sum == 0.0 && rounding == Rounding::Down && !both_plus { -0.0 } else { sum }
}

/// `a / b` of two f32 rounded to odd.
fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || quotient == 0.0 || !b.is_finite() {
        return quotient;
    }
    // The remainder has the error's sign if the divisor is positive.
    to_odd(quotient, (-quotient).mul_add(b, a) * b.signum())
}

/// The root of an f32 rounded to odd.
fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() { root } else { to_odd(root, (-root).mul_add(root, a)) }
}

fn double(this: &Float, lanes: &mut Lanes<'_>) {
    let (o, mode) = (&this.operands, this.rounding);
    let e = canonical;
    match (this.op, mode) {
        (Op::Add, Rounding::Nearest) => lanes.binary(o, |a: f64, b: f64| e(a + b)),
        (Op::Sub, Rounding::Nearest) => lanes.binary(o, |a: f64, b: f64| e(a - b)),
        (Op::Mul, Rounding::Nearest) => lanes.binary(o, |a: f64, b: f64| e(a * b)),
        (Op::Fma, Rounding::Nearest) => {
            lanes.ternary(o, |a: f64, b: f64, c: f64| e(a.mul_add(b, c)));
        }
        (Op::Div, Rounding::Nearest) => lanes.binary(o, |a: f64, b: f64| e(a / b)),
        (Op::Rcp, Rounding::Nearest) => lanes.unary(o, |a: f64| e(1.0 / a)),
        (Op::Sqrt, Rounding::Nearest) => lanes.unary(o, |a: f64| e(a.sqrt())),
        (Op::Add, _) => lanes.binary(o, |a, b| directed_fma(a, 1.0, b, mode)),
        (Op::Sub, _) => lanes.binary(o, |a, b: f64| directed_fma(a, 1.0, -b, mode)),
        (Op::Mul, _) => lanes.binary(o, |a: f64, b: f64| {
            directed(a * b, mode, || Some(Exact::of(a)?.times(Exact::of(b)?)))
        }),
        (Op::Fma, _) => lanes.ternary(o, |a, b, c| directed_fma(a, b, c, mode)),
        (Op::Div, _) => lanes.binary(o, |a: f64, b: f64| {
            directed(a / b, mode, || Some(Exact::of(a)?.over(Exact::of(b)?)))
        }),
        (Op::Rcp, _) => lanes.unary(o, |a: f64| {
            directed(1.0 / a, mode, || Some(Exact::of(1.0)?.over(Exact::of(a)?)))
        }),
        (Op::Sqrt, _) => lanes.unary(o, |a: f64| {
            directed(a.sqrt(), mode, || Exact::of(a).filter(|a| !a.negative).map(Exact::root))
        }),
        (Op::Abs, _) => lanes.unary(o, f64::abs),
        (Op::Neg, _) => lanes.unary(o, |a: f64| -a),
        (Op::Copysign, _) => lanes.binary(o, |a: f64, b: f64| b.copysign(a)),
        (Op::Select(how), _) => lanes.binary(o, |a: f64, b: f64| e(choose(how, a, b))),
    }
}

/// PTX leaves a NaN's payload open: the same one always, for results to repeat.
pub(super) fn canonical(x: f64) -> f64 {
    let bits = x.to_bits();
    f64::from_bits(if bits << 1 > 0x7ff << 53 { 0x7ff8 << 48 } else { bits })
}

/// The exact result rounded, or `native` where zeros, infinities or NaN are involved.
fn directed(native: f64, rounding: Rounding, exact: impl Fn() -> Option<Exact>) -> f64 {
    match exact() {
        Some(exact) => f64::from_bits(exact.round(Format::F64, rounding)),
        None => canonical(native),
    }
}

fn directed_fma(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let product = Exact::of(a).zip(Exact::of(b)).map(|(a, b)| a.times(b));
    let exact = match (product, Exact::of(c)) {
        (Some(product), Some(c)) => match product.plus(c) {
            Some(sum) => Some(sum),
            None if rounding == Rounding::Down => return -0.0,
            None => return 0.0,
        },
        // Adding a zero; an infinite or missing number is left to native arithmetic.
        (Some(product), None) if c == 0.0 => Some(product),
        (None, Some(c)) if a * b == 0.0 => Some(c),
        _ => None,
    };
    let zeros = exact.is_none() && a * b == 0.0 && c == 0.0;
    if zeros && rounding == Rounding::Down && (a * b).is_sign_positive() != c.is_sign_positive() {
        return -0.0;
    }
    directed(a.mul_add(b, c), rounding, || exact)
}

/// `.f32x2`: the same on both halves of a 64-bit register.
fn pairs(this: &Float, lanes: &mut Lanes<'_>) {
    let [a, b, c] = this.operands.src.map(|src| lanes.read::<u64>(src));
    let half = |bits: u64, high: bool| f32::from_bits((bits >> if high { 32 } else { 0 }) as u32);
    let (ftz, mode) = (this.ftz, this.rounding);
    let wide = |bits, high| {
        let x = half(bits, high);
        f64::from(if ftz { flush(x) } else { x })
    };
    let values = std::array::from_fn(|n| {
        let one = |high| {
            let (a, b, c) = (wide(a[n], high), wide(b[n], high), wide(c[n], high));
            let exact = match this.op {
                Op::Add => directed_sum(a, b, mode),
                Op::Sub => directed_sum(a, -b, mode),
                Op::Mul => a * b,
                _ => directed_sum(a * b, c, mode),
            };
            let bits = Format::F32.narrow(exact, mode) as u32;
            u64::from(finish(f32::from_bits(bits), ftz, false).to_bits())
        };
        one(true) << 32 | one(false)
    });
    u64::write(lanes.regs, this.operands.dst, lanes.mask, &values);
}

/// Mixed precision: the narrower sources are exact in single precision, the result is rounded once.
fn mixed(this: &Float, lanes: &mut Lanes<'_>) {
    let widen = if this.narrow == Some(Ty::F16) { F16::widen } else { Bf16::widen };
    let [a, b, c] = this.operands.src.map(|src| lanes.read::<u32>(src));
    let (short, single) =
        (|bits: u32| f64::from(widen(bits)), |bits: u32| f64::from(f32::from_bits(bits)));
    let (mode, sat) = (this.rounding, this.sat);
    let values = std::array::from_fn(|n| {
        let exact = match this.op {
            Op::Add => directed_sum(short(a[n]), single(b[n]), mode),
            Op::Sub => directed_sum(short(a[n]), -single(b[n]), mode),
            _ => directed_sum(short(a[n]) * short(b[n]), single(c[n]), mode),
        };
        finish(f32::from_bits(Format::F32.narrow(exact, mode) as u32), false, sat)
    });
    f32::write(lanes.regs, this.operands.dst, lanes.mask, &values);
}
