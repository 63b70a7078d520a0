//! What a kernel declares: slots for registers, room for variables in frames and in shared memory.

use super::Lowerer;
use crate::ir::{Reg, Ty};
use crate::lower::names::Binding;
use crate::lower::{Lowered, align, bank_of};
use crate::ptx::PtxError;
use crate::ptx::ast::Variable;

/// Marks the place of an unsized shared array until launch.
pub(super) const DYNAMIC_SHARED: u32 = u32::MAX;

impl<'a> Lowerer<'a> {
    pub(super) fn bind(&mut self, name: &'a str, binding: Binding<'a>) {
        self.scopes.last_mut().expect("inside a scope").bind(name, binding);
    }

    /// Slots for `count` registers of a type.
    pub(super) fn allocate(&mut self, ty: Ty, count: u32) -> Lowered<Reg> {
        let (bank, width) = match ty.bits() {
            1 => (0, 1),
            64 => (2, 1),
            128 => (2, 2),
            _ => (1, 1),
        };
        let first = self.slots[bank];
        let end = u64::from(first) + u64::from(count) * width;
        if end > 1 << 20 {
            return self.error("more than a million registers");
        }
        self.slots[bank] = end as u32;
        Ok(bank_of(ty, first))
    }

    pub(super) fn registers(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Lowered<()> {
        let Some(ty) = Ty::parse(ty) else {
            return self.error(format!("unknown register type .{ty}"));
        };
        let first = self.allocate(ty, count.unwrap_or(1))?;
        match count {
            None => self.bind(name, Binding::Register(first, ty)),
            Some(count) => {
                let scope = self.scopes.last_mut().expect("inside a scope");
                scope.bind_numbered(name, first, ty, count);
            }
        }
        Ok(())
    }

    pub(super) fn variable(&mut self, variable: &'a Variable<'a>) -> Lowered<()> {
        self.line = variable.line;
        match variable.space {
            "shared" => {
                let offset = self.shared_variable(variable)?;
                self.bind(variable.name, Binding::Shared(offset));
            }
            "local" | "param" | "reg" => drop(self.frame_variable(variable)?),
            _ => return self.error(format!(".{} inside a function", variable.space)),
        }
        Ok(())
    }

    pub(super) fn frame_variable(&mut self, variable: &'a Variable<'a>) -> Lowered<(u32, u32)> {
        let offset = align(self.frame, variable.align.max(4));
        self.frame = offset + variable.bytes();
        if self.frame > 512 << 10 {
            return Err(PtxError::new(variable.line, "more than 512 KiB of local memory"));
        }
        self.bind(variable.name, Binding::Frame(offset as u32));
        Ok((offset as u32, variable.bytes() as u32))
    }

    /// Static shared memory is laid out as met; all unsized arrays begin where it ends.
    pub(super) fn shared_variable(&mut self, variable: &Variable<'a>) -> Lowered<u32> {
        self.shared_align = self.shared_align.max(variable.align);
        if variable.count.is_none() {
            self.dynamic_align = self.dynamic_align.max(variable.align);
            return Ok(DYNAMIC_SHARED);
        }
        let offset = align(self.shared, variable.align);
        self.shared = offset + variable.bytes();
        if self.shared > 1 << 20 {
            return Err(PtxError::new(variable.line, "more than 1 MiB of shared memory"));
        }
        Ok(offset as u32)
    }

    /// The predicate slot that stands for the carry flag of extended-precision arithmetic.
    pub fn carry_flag(&mut self) -> Lowered<u32> {
        if let Some(slot) = self.carry {
            return Ok(slot);
        }
        let Reg::P(slot) = self.allocate(Ty::Pred, 1)? else { unreachable!("a predicate") };
        self.carry = Some(slot);
        Ok(slot)
    }
}
