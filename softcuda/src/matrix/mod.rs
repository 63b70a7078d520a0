//! `ldmatrix`, `stmatrix`, `movmatrix`, `mma`, `wmma`, `wgmma`.
//!
//! All are done by the 32 lanes of a warp together.

mod element;
mod fragment;
mod mma;
mod product;

use crate::counters::{Class, Counter};
use crate::fault::{Check, Fault};
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow, Why};
use crate::ptx::ast::Instruction;

pub use element::Element;
pub use mma::{Accumulator, Bits, Mma};

#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    Mma(Mma),
}

impl Matrix {
    pub fn class(&self) -> Class {
        match self {
            Matrix::Mma(_) => Class::Matrix,
        }
    }
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Matrix>> {
    Ok(Some(match i.parts[0] {
        "mma" => Matrix::Mma(mma::lower(l, i)?),
        _ => return Ok(None),
    }))
}

pub fn execute(op: &Matrix, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    if mask != ctx.warp.alive {
        return Ok(Flow::Wait(Why::Lanes));
    }
    if mask != Mask::MAX {
        let what = "a matrix instruction needs all 32 lanes of its warp";
        return Err(Fault::new(Check::InactiveLane, what));
    }
    match op {
        Matrix::Mma(op) => {
            ctx.count(Counter::MatrixOperations, op.operations());
            op.execute(&mut ctx.warp.regs, &ctx.warp.place);
        }
    }
    Ok(Flow::Next)
}
