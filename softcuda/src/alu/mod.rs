//! Arithmetic, logic, comparison, conversion and moves.

use crate::counters::Class;
use crate::fault::Fault;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;
use crate::registers::{Place, Registers};

#[derive(Debug, Clone, PartialEq)]
pub struct Alu {}

impl Alu {
    pub fn class(&self) -> Class {
        Class::Move
    }
}

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Alu>> {
    Ok(None)
}

pub fn execute(_: &Alu, _: &mut Registers, _: &Place, _: Mask) -> Result<(), Fault> {
    Ok(())
}
