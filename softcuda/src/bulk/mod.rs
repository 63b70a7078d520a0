//! Asynchronous copies: `cp.async`, `cp.async.bulk`, tensor copies, `mbarrier`, proxy fences.

use crate::counters::Class;
use crate::ir::Mask;
use crate::lower::{Lowered, Lowerer};
use crate::machine::{Context, Executed, Flow};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Async {}

impl Async {
    pub fn class(&self) -> Class {
        Class::Copy
    }
}

/// Copies the lanes of a warp have started.
#[derive(Debug, Default)]
pub struct WarpAsync {}

/// Asynchronous state of a block.
#[derive(Debug, Default)]
pub struct BlockAsync {}

pub fn lower<'a>(_: &mut Lowerer<'a>, _: &'a Instruction<'a>) -> Lowered<Option<Async>> {
    Ok(None)
}

pub fn execute(_: &Async, _: &mut Context<'_>, _: Mask) -> Executed {
    Ok(Flow::Next)
}
