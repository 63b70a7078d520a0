//! Operations of a warp's lanes together, and barriers.

use crate::counters::Class;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Collective {}

impl Collective {
    pub fn class(&self) -> Class {
        Class::Warp
    }
}

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Collective>> {
    Ok(None)
}

pub fn execute(_: &Collective, _: &mut Context<'_>, _: Mask) -> Executed {
    Ok(Flow::Next)
}
