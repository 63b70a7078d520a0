//! Bitwise logic, shifts and byte permutation. Source: PTX ISA, sections 9.7.8 (logic and shift) and
//! 9.7.9.7 (`prmt`).

use super::lanes::{Lane, Lanes, Operands, bits_of};
use super::suffix::{self, Suffixes, operands, refuse, sources};
use crate::ir::{PredSrc, Reg, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::{Instruction, Operand};

#[derive(Debug, Clone, PartialEq)]
pub struct Logic {
    pub op: Op,
    pub ty: Ty,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    And,
    Or,
    Xor,
    Not,
    /// Logical negation of a whole word.
    Cnot,
    Shl,
    /// Arithmetic if the type is signed.
    Shr,
    Funnel {
        left: bool,
        /// `.wrap`: the amount modulo 32; else at most 32.
        wrap: bool,
    },
    Lop3(u8),
    Permute(Permute),
}

/// Modes of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permute {
    Index,
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}

/// `lop3.BoolOp`: a result and a predicate.
#[derive(Debug, Clone, PartialEq)]
pub struct Lop3Predicate {
    pub table: u8,
    pub and: bool,
    pub operands: Operands,
    pub predicate: Reg,
    pub with: PredSrc,
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Logic> {
    let mut s = Suffixes::new(i);
    let name = i.parts[0];
    if name == "shf" {
        let (left, wrap) = match (s.take("l"), s.take("r"), s.take("wrap"), s.take("clamp")) {
            (left, right, wrap, clamp) if left != right && wrap != clamp => (left, wrap),
            _ => return refuse(l, i),
        };
        let ty = s.ty(l)?;
        s.end(l, i)?;
        let operands = operands(l, i, Ty::B32, &[Ty::B32, Ty::B32, Ty::U32])?;
        return match ty {
            Ty::B32 => Ok(Logic { op: Op::Funnel { left, wrap }, ty, operands }),
            _ => refuse(l, i),
        };
    }
    let ty = s.ty(l)?;
    let permute = s.find(permute_mode);
    s.end(l, i)?;
    let bits = matches!(ty, Ty::B16 | Ty::B32 | Ty::B64);
    let whole = matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64);
    let op = match (name, permute) {
        ("and", None) if bits || ty == Ty::Pred => Op::And,
        ("or", None) if bits || ty == Ty::Pred => Op::Or,
        ("xor", None) if bits || ty == Ty::Pred => Op::Xor,
        ("not", None) if bits || ty == Ty::Pred => Op::Not,
        ("cnot", None) if bits => Op::Cnot,
        ("shl", None) if bits => Op::Shl,
        ("shr", None) if bits || whole => Op::Shr,
        ("prmt", mode) if ty == Ty::B32 => Op::Permute(mode.unwrap_or(Permute::Index)),
        _ => return refuse(l, i),
    };
    let operands = match op {
        Op::Not | Op::Cnot => operands(l, i, ty, &[ty])?,
        Op::Shl | Op::Shr => operands(l, i, ty, &[ty, Ty::U32])?,
        Op::Permute(_) => operands(l, i, ty, &[ty; 3])?,
        _ => operands(l, i, ty, &[ty; 2])?,
    };
    Ok(Logic { op, ty, operands })
}

fn permute_mode(part: &str) -> Option<Permute> {
    Some(match part {
        "f4e" => Permute::Forward4,
        "b4e" => Permute::Backward4,
        "rc8" => Permute::Replicate8,
        "ecl" => Permute::EdgeLeft,
        "ecr" => Permute::EdgeRight,
        "rc16" => Permute::Replicate16,
        _ => return None,
    })
}

/// Either form of `lop3`.
pub fn lower_lop3<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<super::Alu> {
    let mut s = Suffixes::new(i);
    let ty = s.ty(l)?;
    let and = s.take("and");
    let or = s.take("or");
    s.end(l, i)?;
    if ty != Ty::B32 || and && or {
        return refuse(l, i);
    }
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    let (Some(a_b_c), Some(Operand::Int(table))) = (rest.get(..3), rest.get(3)) else {
        return l.error("lop3 takes three sources and a table");
    };
    let table = *table as u8;
    let src = sources(l, i, a_b_c, &[ty; 3])?;
    if !and && !or {
        if rest.len() != 4 {
            return refuse(l, i);
        }
        let operands = Operands { dst: suffix::dst(l, ty, dst)?, src };
        return Ok(super::Alu::Logic(Logic { op: Op::Lop3(table), ty, operands }));
    }
    let (Operand::Pair(d, p), [_, _, _, _, with]) = (dst, rest) else { return refuse(l, i) };
    Ok(super::Alu::Lop3(Lop3Predicate {
        table,
        and,
        operands: Operands { dst: suffix::dst(l, ty, d)?, src },
        predicate: suffix::dst(l, Ty::Pred, p)?,
        with: l.predicate(with)?,
    }))
}

pub fn execute(this: &Logic, lanes: &mut Lanes<'_>) {
    let o = &this.operands;
    match (this.op, this.ty) {
        (Op::Funnel { left, wrap }, _) => {
            let amount = move |c: u32| if wrap { c & 31 } else { c.min(32) };
            let pair = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
            if left {
                lanes.ternary(o, |a, b, c| (pair(a, b) << amount(c) >> 32) as u32);
            } else {
                lanes.ternary(o, |a, b, c| (pair(a, b) >> amount(c)) as u32);
            }
        }
        (Op::Lop3(table), _) => lanes.ternary(o, |a, b, c| lop3(table, a, b, c)),
        (Op::Permute(mode), _) => lanes.ternary(o, |a, b, c| permute(mode, a, b, c)),
        (_, Ty::Pred) => predicates(this.op, lanes, o),
        (_, Ty::B16) => bits::<u16>(this.op, lanes, o),
        (_, Ty::B32) => bits::<u32>(this.op, lanes, o),
        (_, Ty::B64) => bits::<u64>(this.op, lanes, o),
        (_, Ty::U16) => lanes.binary(o, <u16 as Bits>::right),
        (_, Ty::U32) => lanes.binary(o, <u32 as Bits>::right),
        (_, Ty::U64) => lanes.binary(o, <u64 as Bits>::right),
        (_, Ty::S16) => lanes.binary(o, |a: i16, n: u32| a >> n.min(15)),
        (_, Ty::S32) => lanes.binary(o, |a: i32, n: u32| a >> n.min(31)),
        (_, _) => lanes.binary(o, |a: i64, n: u32| a >> n.min(63)),
    }
}

pub fn execute_lop3(this: &Lop3Predicate, lanes: &mut Lanes<'_>) {
    let [a, b, c] = this.operands.src.map(|src| lanes.read::<u32>(src));
    let with = lanes.regs.predicate(this.with);
    let d = std::array::from_fn(|n| lop3(this.table, a[n], b[n], c[n]));
    let set = bits_of(d.map(|d: u32| d != 0));
    lanes.write(this.operands.dst, &d);
    lanes.write_mask(this.predicate, if this.and { set & with } else { set | with });
}

fn predicates(op: Op, lanes: &mut Lanes<'_>, o: &Operands) {
    let (a, b) = (lanes.mask_of(o.src[0]), lanes.mask_of(o.src[1]));
    let result = match op {
        Op::And => a & b,
        Op::Or => a | b,
        Op::Xor => a ^ b,
        _ => !a,
    };
    lanes.write_mask(o.dst, result);
}

fn bits<T: Bits>(op: Op, lanes: &mut Lanes<'_>, o: &Operands) {
    match op {
        Op::And => lanes.binary(o, |a: T, b: T| a & b),
        Op::Or => lanes.binary(o, |a: T, b: T| a | b),
        Op::Xor => lanes.binary(o, |a: T, b: T| a ^ b),
        Op::Not => lanes.unary(o, |a: T| !a),
        Op::Cnot => lanes.unary(o, |a: T| T::from(a == T::from(false))),
        Op::Shl => lanes.binary(o, T::left),
        _ => lanes.binary(o, T::right),
    }
}

/// Any function of three bits, for every bit: the table's bit `a * 4 + b * 2 + c`.
fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let entry = |n: u8| 0u32.wrapping_sub(u32::from(table >> n & 1));
    let of_a = |n: u8| {
        let of_b = |n: u8| (entry(n) & !c) | (entry(n + 1) & c);
        (of_b(n) & !b) | (of_b(n + 2) & b)
    };
    (of_a(0) & !a) | (of_a(4) & a)
}

fn permute(mode: Permute, a: u32, b: u32, c: u32) -> u32 {
    let pool = u64::from(b) << 32 | u64::from(a);
    let byte = |n: u32| (pool >> (8 * (n & 7))) as u32 & 0xff;
    let first = c & 3;
    let result = |f: &dyn Fn(u32) -> u32| (0..4).fold(0, |word, n| word | f(n) << (8 * n));
    match mode {
        Permute::Index => result(&|n| {
            let selector = c >> (4 * n) & 15;
            let value = byte(selector & 7);
            // The selector's top bit spreads the byte's sign.
            if selector & 8 == 0 { value } else { (value >> 7) * 0xff }
        }),
        Permute::Forward4 => result(&|n| byte(first + n)),
        Permute::Backward4 => result(&|n| byte(first.wrapping_sub(n))),
        Permute::Replicate8 => result(&|_| byte(first)),
        Permute::EdgeLeft => result(&|n| byte(first.max(n))),
        Permute::EdgeRight => result(&|n| byte(first.min(n))),
        Permute::Replicate16 => result(&|n| byte((first & 1) * 2 + (n & 1))),
    }
}

/// A word of bits; shifts by its width or more leave nothing.
trait Bits:
    Lane
    + PartialEq
    + From<bool>
    + std::ops::BitAnd<Output = Self>
    + std::ops::BitOr<Output = Self>
    + std::ops::BitXor<Output = Self>
    + std::ops::Not<Output = Self>
{
    fn left(self, n: u32) -> Self;
    fn right(self, n: u32) -> Self;
}

macro_rules! bits {
    ($($value:ty),*) => {$(
        impl Bits for $value {
            fn left(self, n: u32) -> Self {
                if n < <$value>::BITS { self << n } else { 0 }
            }

            fn right(self, n: u32) -> Self {
                if n < <$value>::BITS { self >> n } else { 0 }
            }
        }
    )*};
}

bits!(u16, u32, u64);
