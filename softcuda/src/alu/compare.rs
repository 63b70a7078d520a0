//! Comparison and selection: `setp`, `set`, `selp`, `slct`, `testp`. Source: PTX ISA, sections 9.7.6 and
//! 9.7.7 (comparison), 9.7.3.1 (`testp`).

use super::float::flush;
use super::lanes::{Lane, Lanes, Operands, bits_of};
use super::short::{Bf16, F16, Short};
use super::suffix::{self, Suffixes, operands, refuse, sources};
use crate::ir::{LANES, Mask, PredSrc, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::{Instruction, Operand};

/// What the result of a comparison is combined with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Combine {
    pub with: BoolOp,
    pub predicate: PredSrc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

/// A comparison of two sources of type `ty`.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub test: Test,
    pub ty: Ty,
    pub ftz: bool,
    pub a: Src,
    pub b: Src,
    pub combine: Option<Combine>,
}

/// A comparison holds if the outcome is among these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    pub less: bool,
    pub equal: bool,
    pub greater: bool,
    pub unordered: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Compare {
    /// `p`, and `q` with the outcome negated; of a packed type, the low and the high element, of which
    /// without `q` nobody asks.
    Setp {
        comparison: Comparison,
        p: Reg,
        q: Option<Reg>,
    },
    /// `yes` where it holds, else zero, into each element of `dst`.
    Set {
        comparison: Comparison,
        dst: Reg,
        yes: u32,
    },
    Selp {
        wide: bool,
        operands: Operands,
        condition: PredSrc,
    },
    /// `a` where `c` is not negative.
    Slct {
        wide: bool,
        float: bool,
        ftz: bool,
        operands: Operands,
    },
    Testp {
        test: NumberClass,
        double: bool,
        operands: Operands,
    },
}

/// Classes of floating-point numbers that `testp` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberClass {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    match i.parts[0] {
        "setp" => setp(l, i),
        "set" => set(l, i),
        "selp" => selp(l, i),
        "slct" => slct(l, i),
        _ => testp(l, i),
    }
}

fn setp<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    let mut s = Suffixes::new(i);
    let (name, with, ftz) = comparison_suffixes(&mut s);
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    let comparison = comparison(l, i, (name, with, ftz, ty), rest)?;
    let (p, q) = match dst {
        Operand::Pair(p, q) => (p.as_ref(), Some(q.as_ref())),
        p => (p, None),
    };
    // The 16-bit formats have one result, the rest may have one or two.
    if q.is_some() && matches!(ty, Ty::F16 | Ty::Bf16) {
        return refuse(l, i);
    }
    let p = suffix::dst(l, Ty::Pred, p)?;
    let q = q.map(|q| suffix::dst(l, Ty::Pred, q)).transpose()?;
    Ok(Compare::Setp { comparison, p, q })
}

fn set<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    let mut s = Suffixes::new(i);
    let (name, with, ftz) = comparison_suffixes(&mut s);
    let (to, from) = (s.ty(l)?, s.ty(l)?);
    s.end(l, i)?;
    let packed = matches!(from, Ty::F16x2 | Ty::Bf16x2);
    let half = matches!(from, Ty::F16 | Ty::Bf16);
    let yes = match to {
        Ty::U32 | Ty::S32 if packed => 0xffff,
        Ty::U32 | Ty::S32 => u32::MAX,
        Ty::U16 | Ty::S16 if half => 0xffff,
        Ty::F32 if !packed && !half => 1f32.to_bits(),
        Ty::F16 if !packed && from != Ty::Bf16 => 0x3c00,
        Ty::Bf16 if !packed && !ftz => 0x3f80,
        Ty::F16x2 if from == Ty::F16x2 => 0x3c00,
        Ty::Bf16x2 if from == Ty::Bf16x2 => 0x3f80,
        _ => return refuse(l, i),
    };
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    let comparison = comparison(l, i, (name, with, ftz, from), rest)?;
    Ok(Compare::Set { comparison, dst: suffix::dst(l, to, dst)?, yes })
}

/// The name of the test, the combination, `.ftz`.
fn comparison_suffixes<'a>(s: &mut Suffixes<'a>) -> (Option<String>, Option<BoolOp>, bool) {
    let known = |part: &str| (test(part, false).is_some()).then(|| part.to_owned());
    let name = s.find(known);
    let with = s.find(|part| match part {
        "and" => Some(BoolOp::And),
        "or" => Some(BoolOp::Or),
        "xor" => Some(BoolOp::Xor),
        _ => None,
    });
    (name, with, s.take("ftz"))
}

fn test(name: &str, float: bool) -> Option<Test> {
    let (less, equal, greater, mut unordered) = match name {
        "eq" => (false, true, false, false),
        "ne" => (true, false, true, false),
        "lt" | "lo" => (true, false, false, false),
        "le" | "ls" => (true, true, false, false),
        "gt" | "hi" => (false, false, true, false),
        "ge" | "hs" => (false, true, true, false),
        "equ" => (false, true, false, true),
        "neu" => (true, false, true, true),
        "ltu" => (true, false, false, true),
        "leu" => (true, true, false, true),
        "gtu" => (false, false, true, true),
        "geu" => (false, true, true, true),
        "num" => (true, true, true, false),
        "nan" => (false, false, false, true),
        _ => return None,
    };
    unordered &= float;
    Some(Test { less, equal, greater, unordered })
}

type Suffixed = (Option<String>, Option<BoolOp>, bool, Ty);

fn comparison<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    (name, with, ftz, ty): Suffixed,
    rest: &'a [Operand<'a>],
) -> Lowered<Comparison> {
    let Some(name) = name else { return refuse(l, i) };
    let float = ty.float();
    let known = match name.as_str() {
        "eq" | "ne" => ty.bits() >= 16 && ty != Ty::B128,
        "lt" | "le" | "gt" | "ge" => !matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
        "lo" | "ls" | "hi" | "hs" => matches!(ty, Ty::U16 | Ty::U32 | Ty::U64),
        _ => float,
    };
    let half = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2);
    let number = half || matches!(ty, Ty::F32 | Ty::F64);
    let whole = matches!(ty, Ty::B16 | Ty::B32 | Ty::B64)
        || matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64);
    let flushes = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2);
    if !known || !(number || whole) || ftz && !flushes {
        return refuse(l, i);
    }
    let (a_b, condition) = rest.split_at(rest.len().min(2));
    let [a, b, _] = sources(l, i, a_b, &[ty; 2])?;
    let combine = match (with, condition) {
        (None, []) => None,
        (Some(with), [predicate]) => Some(Combine { with, predicate: l.predicate(predicate)? }),
        _ => return refuse(l, i),
    };
    let Some(test) = test(&name, float) else { return refuse(l, i) };
    Ok(Comparison { test, ty, ftz, a, b, combine })
}

fn selp<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    let mut s = Suffixes::new(i);
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let [d, a, b, c] = crate::lower::operands(i)?;
    if !selectable(ty) {
        return refuse(l, i);
    }
    let src = [suffix::src(l, ty, a)?, suffix::src(l, ty, b)?, Src::Imm(0)];
    let operands = Operands { dst: suffix::dst(l, ty, d)?, src };
    Ok(Compare::Selp { wide: ty.bits() == 64, operands, condition: l.predicate(c)? })
}

/// Types of `selp` and `slct`.
fn selectable(ty: Ty) -> bool {
    matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::F32 | Ty::F64)
        || matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64)
}

fn slct<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    let mut s = Suffixes::new(i);
    let ftz = s.take("ftz");
    let (ty, by) = (s.ty(l)?, s.ty(l)?);
    s.end(l, i)?;
    if !selectable(ty) || !(by == Ty::F32 || by == Ty::S32 && !ftz) {
        return refuse(l, i);
    }
    let operands = operands(l, i, ty, &[ty, ty, by])?;
    Ok(Compare::Slct { wide: ty.bits() == 64, float: by == Ty::F32, ftz, operands })
}

fn testp<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Compare> {
    let mut s = Suffixes::new(i);
    let test = s.find(|part| {
        Some(match part {
            "finite" => NumberClass::Finite,
            "infinite" => NumberClass::Infinite,
            "number" => NumberClass::Number,
            "notanumber" => NumberClass::NotANumber,
            "normal" => NumberClass::Normal,
            "subnormal" => NumberClass::Subnormal,
            _ => return None,
        })
    });
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let Some(test) = test.filter(|_| matches!(ty, Ty::F32 | Ty::F64)) else { return refuse(l, i) };
    let operands = operands(l, i, Ty::Pred, &[ty])?;
    Ok(Compare::Testp { test, double: ty == Ty::F64, operands })
}

pub fn execute(this: &Compare, lanes: &mut Lanes<'_>) {
    match this {
        Compare::Setp { comparison, p, q } => {
            let [low, high] = outcome(comparison, lanes);
            let packed = matches!(comparison.ty, Ty::F16x2 | Ty::Bf16x2);
            let second = combined(comparison, lanes, if packed { high } else { !low });
            let first = combined(comparison, lanes, low);
            lanes.write_mask(*p, first);
            if let Some(q) = q {
                lanes.write_mask(*q, second);
            }
        }
        Compare::Set { comparison, dst, yes } => {
            let results = outcome(comparison, lanes);
            let [low, high] = results.map(|result| combined(comparison, lanes, result));
            let of = |mask: Mask, n: usize| if mask >> n & 1 == 1 { *yes } else { 0 };
            let packed = matches!(comparison.ty, Ty::F16x2 | Ty::Bf16x2);
            let high = if packed { high } else { 0 };
            let values: [u32; LANES] = std::array::from_fn(|n| of(high, n) << 16 | of(low, n));
            lanes.write(*dst, &values);
        }
        Compare::Selp { wide, operands, condition } => {
            let condition = lanes.regs.predicate(*condition);
            if *wide {
                select::<u64>(lanes, operands, condition);
            } else {
                select::<u32>(lanes, operands, condition);
            }
        }
        Compare::Slct { wide, float, ftz, operands } => {
            let c = lanes.read::<u32>(operands.src[2]);
            let condition = bits_of(c.map(|c| {
                let number = f32::from_bits(c);
                let number = if *ftz { flush(number) } else { number };
                if *float { number >= 0.0 } else { c as i32 >= 0 }
            }));
            if *wide {
                select::<u64>(lanes, operands, condition);
            } else {
                select::<u32>(lanes, operands, condition);
            }
        }
        Compare::Testp { test, double, operands } => {
            let holds = if *double {
                bits_of(lanes.read::<f64>(operands.src[0]).map(|x| class(x.classify(), *test)))
            } else {
                bits_of(lanes.read::<f32>(operands.src[0]).map(|x| class(x.classify(), *test)))
            };
            lanes.write_mask(operands.dst, holds);
        }
    }
}

fn select<T: Lane>(lanes: &mut Lanes<'_>, o: &Operands, condition: Mask) {
    let (a, b) = (lanes.read::<T>(o.src[0]), lanes.read::<T>(o.src[1]));
    lanes.write(o.dst, &std::array::from_fn(|n| if condition >> n & 1 == 1 { a[n] } else { b[n] }));
}

fn class(category: std::num::FpCategory, test: NumberClass) -> bool {
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
    match test {
        NumberClass::Finite => !matches!(category, Nan | Infinite),
        NumberClass::Infinite => category == Infinite,
        NumberClass::Number => category != Nan,
        NumberClass::NotANumber => category == Nan,
        // Zeros count as normal.
        NumberClass::Normal => matches!(category, Normal | Zero),
        NumberClass::Subnormal => category == Subnormal,
    }
}

fn combined(comparison: &Comparison, lanes: &Lanes<'_>, result: Mask) -> Mask {
    let Some(Combine { with, predicate }) = comparison.combine else { return result };
    let other = lanes.regs.predicate(predicate);
    match with {
        BoolOp::And => result & other,
        BoolOp::Or => result | other,
        BoolOp::Xor => result ^ other,
    }
}

/// Where the test holds: the element, or the low and the high one.
fn outcome(c: &Comparison, lanes: &Lanes<'_>) -> [Mask; 2] {
    let ftz = c.ftz;
    let i = move |x: f32| if ftz { flush(x) } else { x };
    let one = |mask| [mask, 0];
    match c.ty {
        Ty::U16 | Ty::B16 => one(holds::<u16, _>(c, lanes, |x| x)),
        Ty::S16 => one(holds::<i16, _>(c, lanes, |x| x)),
        Ty::U32 | Ty::B32 => one(holds::<u32, _>(c, lanes, |x| x)),
        Ty::S32 => one(holds::<i32, _>(c, lanes, |x| x)),
        Ty::U64 | Ty::B64 => one(holds::<u64, _>(c, lanes, |x| x)),
        Ty::S64 => one(holds::<i64, _>(c, lanes, |x| x)),
        Ty::F32 => one(holds::<f32, _>(c, lanes, i)),
        Ty::F64 => one(holds::<f64, _>(c, lanes, |x| x)),
        Ty::F16 | Ty::F16x2 => short::<F16>(c, lanes),
        _ => short::<Bf16>(c, lanes),
    }
}

/// Of the low and the high element.
fn short<F: Short>(c: &Comparison, lanes: &Lanes<'_>) -> [Mask; 2] {
    let ftz = c.ftz;
    let widen = move |bits: u32| {
        let subnormal = ftz && bits & F::EXPONENT == 0;
        F::widen(if subnormal { bits & 0x8000 } else { bits & 0xffff })
    };
    let packed = matches!(c.ty, Ty::F16x2 | Ty::Bf16x2);
    let high = if packed { holds::<u32, _>(c, lanes, |x| widen(x >> 16)) } else { 0 };
    [holds::<u32, _>(c, lanes, widen), high]
}

fn holds<T: Lane, V: PartialOrd>(
    c: &Comparison,
    lanes: &Lanes<'_>,
    value: impl Fn(T) -> V,
) -> Mask {
    let (a, b) = (lanes.read::<T>(c.a), lanes.read::<T>(c.b));
    let test = c.test;
    bits_of(std::array::from_fn(|n| {
        let (a, b) = (value(a[n]), value(b[n]));
        let (less, equal, greater) = (a < b, a == b, a > b);
        (test.less & less)
            | (test.equal & equal)
            | (test.greater & greater)
            | (test.unordered & !(less | equal | greater))
    }))
}
