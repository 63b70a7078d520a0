//! `ldmatrix`, `stmatrix`, `movmatrix`, `mma`, `wmma`, `wgmma`.
//!
//! All are done by the 32 lanes of a warp together.

mod element;
mod fragment;
mod ldmatrix;
mod mma;
mod product;
mod wmma;

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
    Load(ldmatrix::Load),
    Store(ldmatrix::Store),
    Move(ldmatrix::Move),
    LoadFragment(wmma::Load),
    StoreFragment(wmma::Store),
}

impl Matrix {
    pub fn class(&self) -> Class {
        match self {
            Matrix::Mma(_) => Class::Matrix,
            Matrix::Load(_) | Matrix::LoadFragment(_) => Class::Load,
            Matrix::Store(_) | Matrix::StoreFragment(_) => Class::Store,
            Matrix::Move(_) => Class::Warp,
        }
    }
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Option<Matrix>> {
    let part = i.parts.get(1).copied().unwrap_or("");
    Ok(Some(match (i.parts[0], part) {
        ("mma", _) => Matrix::Mma(mma::lower(l, i)?),
        ("ldmatrix", _) => Matrix::Load(ldmatrix::Load::lower(l, i)?),
        ("stmatrix", _) => Matrix::Store(ldmatrix::Store::lower(l, i)?),
        ("movmatrix", _) => Matrix::Move(ldmatrix::Move::lower(l, i)?),
        ("wmma", "load") => Matrix::LoadFragment(wmma::lower_load(l, i)?),
        ("wmma", "store") => Matrix::StoreFragment(wmma::lower_store(l, i)?),
        ("wmma", "mma") => Matrix::Mma(wmma::lower_mma(l, i)?),
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
        Matrix::Load(op) => op.execute(ctx)?,
        Matrix::Store(op) => op.execute(ctx)?,
        Matrix::Move(op) => op.execute(ctx),
        Matrix::LoadFragment(op) => op.execute(ctx)?,
        Matrix::StoreFragment(op) => op.execute(ctx)?,
    }
    Ok(Flow::Next)
}
