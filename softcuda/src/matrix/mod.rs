//! `ldmatrix`, `stmatrix`, `movmatrix`, `mma`, `wmma`, `wgmma`.
//!
//! All are done by the 32 lanes of a warp together.
//!
//! ```
//! use softcuda::counters::Class;
//! use softcuda::{lower, ptx};
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n.reg .f32 %f<4>;\n\
//!             .reg .b32 %a<4>;\n.reg .b32 %b<2>;\n\
//!             mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3},\n\
//!             {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%f0, %f1, %f2, %f3};\nret; }";
//! let module = ptx::parse(text)?;
//! let kernel = lower::kernels(&module, &lower::Symbols::new())?.remove(0);
//! assert_eq!(kernel.code[0].op.class(), Class::Matrix);
//! # Ok::<(), ptx::PtxError>(())
//! ```

mod descriptor;
mod element;
mod fragment;
mod ldmatrix;
mod mma;
mod product;
mod wgmma;
mod wmma;

use crate::counters::{Class, Counter};
use crate::fault::{Check, Fault};
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::{Context, Executed, Flow, Why};
use crate::ptx::ast::{Instruction, Operand};

pub use element::Element;
pub use mma::{Accumulator, Bits, Mma};
pub use wgmma::Groups as ProductGroups;

#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    Mma(Mma),
    Load(ldmatrix::Load),
    Store(ldmatrix::Store),
    Move(ldmatrix::Move),
    LoadFragment(wmma::Load),
    StoreFragment(wmma::Store),
    Wgmma(Box<wgmma::Wgmma>),
    /// `wgmma.fence`: orders registers only, which are in order here.
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
}

impl Matrix {
    pub fn class(&self) -> Class {
        match self {
            Matrix::Mma(_) | Matrix::Wgmma(_) => Class::Matrix,
            Matrix::WgmmaFence | Matrix::WgmmaCommit | Matrix::WgmmaWait(_) => Class::Fence,
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
        ("wgmma", "mma_async") => Matrix::Wgmma(Box::new(wgmma::Wgmma::lower(l, i)?)),
        ("wgmma", "fence") => Matrix::WgmmaFence,
        ("wgmma", "commit_group") => Matrix::WgmmaCommit,
        ("wgmma", "wait_group") => match operands(i)? {
            [Operand::Int(groups)] => Matrix::WgmmaWait(*groups as u32),
            _ => return l.error("expected the number of groups"),
        },
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
        Matrix::Wgmma(op) => {
            ctx.count(Counter::MatrixOperations, op.operations());
            op.execute(ctx)?;
        }
        Matrix::WgmmaFence => {}
        Matrix::WgmmaCommit => wgmma::commit(ctx),
        Matrix::WgmmaWait(groups) => wgmma::wait(ctx, *groups),
    }
    Ok(Flow::Next)
}
