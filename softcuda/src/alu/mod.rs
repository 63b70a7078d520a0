//! Arithmetic, logic, comparison, conversion and moves: everything that only touches registers of its own
//! lane. One module per family; `lower` resolves operation, type and modifiers, so that executing is one
//! match and one loop over the lanes.
//!
//! ```
//! use softcuda::alu::{Format, Rounding};
//!
//! // 0.1 in bfloat16, to nearest and towards zero, and what the nearest one is worth.
//! assert_eq!(Format::BF16.narrow(0.1, Rounding::Nearest), 0x3dcd);
//! assert_eq!(Format::BF16.narrow(0.1, Rounding::Zero), 0x3dcc);
//! assert_eq!(Format::BF16.widen(0x3dcd), 0.10009765625);
//! ```

pub mod approximate;
pub mod bits;
pub mod carry;
pub mod compare;
pub mod convert;
pub mod float;
pub mod half;
pub mod integer;
mod lanes;
pub mod logic;
pub mod moves;
mod round;
mod short;
mod suffix;

pub use lanes::Operands;
pub use round::{Exact, Format, Rounding};

use crate::counters::Class;
use crate::fault::Fault;
use crate::ir::{Mask, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;
use crate::registers::{Place, Registers};
use lanes::Lanes;

#[derive(Debug, Clone, PartialEq)]
pub enum Alu {
    Move(moves::Move),
    Integer(integer::Integer),
    Carry(carry::Carry),
    Bits(bits::BitField),
    Logic(logic::Logic),
    Lop3(logic::Lop3Predicate),
    Compare(compare::Compare),
    Convert(convert::Convert),
    Half(half::Half),
    Float(float::Float),
    Approximate(approximate::Approximate),
}

impl Alu {
    pub fn class(&self) -> Class {
        match self {
            Alu::Move(_) => Class::Move,
            Alu::Integer(_) | Alu::Carry(_) => Class::Integer,
            Alu::Bits(op) => match op.op {
                bits::Op::Dp4a { .. } | bits::Op::Dp2a { .. } => Class::Integer,
                _ => Class::Logic,
            },
            Alu::Logic(_) | Alu::Lop3(_) => Class::Logic,
            Alu::Compare(_) => Class::Compare,
            Alu::Convert(_) => Class::Convert,
            Alu::Half(op) => match op.op {
                half::Op::Ex2 | half::Op::Tanh => Class::Transcendental,
                _ => Class::Half,
            },
            Alu::Float(op) => match (op.op, op.ty) {
                (float::Op::Div | float::Op::Rcp | float::Op::Sqrt, _) => Class::Transcendental,
                (_, Ty::F64) => Class::Float64,
                _ => Class::Float32,
            },
            Alu::Approximate(_) => Class::Transcendental,
        }
    }
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Alu>> {
    Ok(Some(match i.parts[0] {
        "mov" => Alu::Move(moves::lower(l, i)?),
        "add" | "addc" | "sub" | "subc" | "mad" | "madc" if carry::is_carry(i) => {
            Alu::Carry(carry::lower(l, i)?)
        }
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "abs" | "neg" | "min" | "max"
        | "copysign" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => {
            arithmetic(l, i)?
        }
        "mul24" | "mad24" | "sad" => Alu::Integer(integer::lower(l, i)?),
        "popc" | "clz" | "bfind" | "brev" | "bfe" | "bfi" | "bmsk" | "szext" | "fns" | "dp4a"
        | "dp2a" => Alu::Bits(bits::lower(l, i)?),
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "prmt" => {
            Alu::Logic(logic::lower(l, i)?)
        }
        "lop3" => logic::lower_lop3(l, i)?,
        "setp" | "set" | "selp" | "slct" | "testp" => Alu::Compare(compare::lower(l, i)?),
        "cvt" => Alu::Convert(convert::lower(l, i)?),
        _ => return Ok(None),
    }))
}

/// Arithmetic by the type it works on.
fn arithmetic<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Alu> {
    // The first type: mixed precision names the narrower one last.
    let ty = i.parts[1..].iter().find_map(|part| Ty::parse(part));
    Ok(match ty {
        Some(Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2) => Alu::Half(half::lower(l, i)?),
        Some(ty) if ty.float() => {
            if approximate::is_approximate(i) {
                Alu::Approximate(approximate::lower(l, i)?)
            } else {
                Alu::Float(float::lower(l, i)?)
            }
        }
        _ => Alu::Integer(integer::lower(l, i)?),
    })
}

pub fn execute(op: &Alu, regs: &mut Registers, place: &Place, mask: Mask) -> Result<(), Fault> {
    let lanes = &mut Lanes { regs, place, mask };
    match op {
        Alu::Move(op) => moves::execute(op, lanes),
        Alu::Integer(op) => integer::execute(op, lanes),
        Alu::Carry(op) => carry::execute(op, lanes),
        Alu::Bits(op) => bits::execute(op, lanes),
        Alu::Logic(op) => logic::execute(op, lanes),
        Alu::Lop3(op) => logic::execute_lop3(op, lanes),
        Alu::Compare(op) => compare::execute(op, lanes),
        Alu::Convert(op) => convert::execute(op, lanes),
        Alu::Half(op) => half::execute(op, lanes),
        Alu::Float(op) => float::execute(op, lanes),
        Alu::Approximate(op) => approximate::execute(op, lanes),
    }
    Ok(())
}
