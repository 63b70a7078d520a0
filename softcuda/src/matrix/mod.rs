//! `ldmatrix`, `stmatrix`, `mma`, `wmma`, `wgmma`.

use crate::counters::Class;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {}

impl Matrix {
    pub fn class(&self) -> Class {
        Class::Matrix
    }
}

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Matrix>> {
    Ok(None)
}

pub fn execute(_: &Matrix, _: &mut Context<'_>, _: Mask) -> Executed {
    Ok(Flow::Next)
}
