//! What an instruction names: registers, constants, addresses, labels and functions.

use super::Lowerer;
use super::declarations::DYNAMIC_SHARED;
use crate::ir::{Addr, PredSrc, Reg, Space, Special, Src, Ty};
use crate::lower::names::{Binding, special};
use crate::lower::{Lowered, align, function_address, function_named};
use crate::ptx::ast::{Operand, Variable};

impl<'a> Lowerer<'a> {
    pub(super) fn find(&mut self, name: &str) -> Option<Binding<'a>> {
        if let Some(found) = self.scopes.iter().rev().find_map(|scope| scope.find(name)) {
            return Some(found);
        }
        if let Some(&address) = self.symbols.get(name) {
            return Some(Binding::Global(address));
        }
        if let Some(&offset) = self.shared_names.get(name) {
            return Some(Binding::Shared(offset));
        }
        let module = self.module;
        let variable = module.variables.iter().find(|v| v.space == "shared" && v.name == name)?;
        let offset = self.shared_variable(variable).ok()?;
        self.shared_names.insert(variable.name, offset);
        Some(Binding::Shared(offset))
    }

    pub(super) fn predicate_slot(&mut self, name: &str) -> Lowered<PredSrc> {
        match self.find(name) {
            Some(Binding::Register(Reg::P(slot), _)) => Ok(PredSrc { slot, negated: false }),
            _ => self.error(format!("{name} is not a predicate")),
        }
    }

    /// A predicate operand, `p` or `!p`.
    pub fn predicate(&mut self, operand: &Operand<'a>) -> Lowered<PredSrc> {
        match operand {
            Operand::Name(name) => self.predicate_slot(name),
            Operand::Not(name) => Ok(PredSrc { negated: true, ..self.predicate_slot(name)? }),
            _ => self.error("expected a predicate"),
        }
    }

    /// The declared type of a register operand, if it is one.
    pub fn register_type(&mut self, operand: &Operand<'a>) -> Option<Ty> {
        let Operand::Name(name) = operand else { return None };
        match self.find(name) {
            Some(Binding::Register(_, ty)) => Some(ty),
            _ => None,
        }
    }

    /// A register to write; `_` gives one nobody reads, of the given type.
    pub fn dst(&mut self, ty: Ty, operand: &Operand<'a>) -> Lowered<Reg> {
        match operand {
            Operand::Sink => self.allocate(ty, 1),
            Operand::Name(name) => match self.find(name) {
                Some(Binding::Register(reg, _)) => {
                    let right = match reg {
                        Reg::P(_) => ty == Ty::Pred,
                        Reg::Q(_) => ty == Ty::B128,
                        // A register wider than the type is allowed where PTX says so.
                        Reg::D(_) => ty.bits() <= 64 && ty != Ty::Pred,
                        Reg::R(_) => ty.bits() <= 32 && ty != Ty::Pred,
                    };
                    if !right {
                        return self.error(format!("{name} does not fit type {ty:?}"));
                    }
                    self.touched.writes.push(reg);
                    Ok(reg)
                }
                _ => self.error(format!("{name} is not a register")),
            },
            _ => self.error("expected a register to write"),
        }
    }

    /// A source operand read as `ty`: a register (a wider one is cut), an immediate, a special register,
    /// or the address of a symbol in its own space.
    pub fn src(&mut self, ty: Ty, operand: &Operand<'a>) -> Lowered<Src> {
        let cut = |bits: u64| if ty.bits() >= 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
        Ok(match operand {
            Operand::Int(bits) if ty == Ty::F32 => {
                Src::Imm(u64::from((*bits as i64 as f32).to_bits()))
            }
            Operand::Int(bits) if ty == Ty::F64 => Src::Imm((*bits as i64 as f64).to_bits()),
            Operand::Int(bits) => Src::Imm(cut(*bits)),
            Operand::Float32(bits) if ty == Ty::F64 => {
                Src::Imm(f64::from(f32::from_bits(*bits)).to_bits())
            }
            Operand::Float32(bits) => Src::Imm(u64::from(*bits)),
            Operand::Float64(bits) if ty.bits() == 32 => {
                Src::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits()))
            }
            Operand::Float64(bits) => Src::Imm(*bits),
            Operand::Name(name) => self.named(name, 0)?,
            Operand::NameOffset(name, offset) => self.named(name, *offset)?,
            _ => return self.error("expected a register or a constant"),
        })
    }

    fn named(&mut self, name: &str, offset: i64) -> Lowered<Src> {
        let plus = |base: u64| base.wrapping_add(offset as u64);
        Ok(match self.find(name) {
            Some(Binding::Register(reg, _)) if offset == 0 => {
                self.touched.reads.push(reg);
                Src::Reg(reg)
            }
            Some(Binding::Frame(base)) => Src::Frame(plus(u64::from(base)) as u32),
            Some(Binding::Parameter(base)) => Src::Imm(plus(u64::from(base))),
            Some(Binding::Shared(DYNAMIC_SHARED)) => return self.dynamic_shared(offset),
            Some(Binding::Shared(base)) => Src::Imm(plus(u64::from(base))),
            Some(Binding::Global(base)) => Src::Imm(plus(base)),
            Some(_) => return self.error(format!("{name} cannot be read here")),
            None => match special(name) {
                Some(special) => Src::Special(special),
                None => match self.function_index(name) {
                    Some(index) => function_address(index),
                    None => return self.error(format!("unknown name {name}")),
                },
            },
        })
    }

    /// Address of dynamic shared memory: known at launch only through a special register.
    fn dynamic_shared(&mut self, offset: i64) -> Lowered<Src> {
        if offset != 0 {
            return self.error("offset from an unsized shared array: add it in the address");
        }
        Ok(Src::Special(Special::DynamicSmemBegin))
    }

    /// `[base+offset]`, and the space the symbol forces (parameters of functions live in local memory).
    pub fn address(&mut self, operand: &Operand<'a>, space: Space) -> Lowered<(Addr, Space)> {
        let Operand::Address { base, offset, .. } = operand else {
            return self.error("expected an address in brackets");
        };
        let ty = if space == Space::Shared || space == Space::Cluster { Ty::U32 } else { Ty::U64 };
        let wide = match &**base {
            Operand::Name(name) if space == Space::Param => match self.find(name) {
                Some(Binding::Frame(_)) => {
                    return Ok((self.addr(ty, base, *offset)?, Space::Local));
                }
                Some(Binding::Parameter(_) | Binding::Register(..)) => ty,
                _ => return self.error(format!("{name} is not a parameter")),
            },
            _ => ty,
        };
        Ok((self.addr(wide, base, *offset)?, space))
    }

    fn addr(&mut self, ty: Ty, base: &Operand<'a>, offset: i64) -> Lowered<Addr> {
        Ok(Addr { base: self.src(ty, base)?, offset })
    }

    /// The elements of `{a, b, …}`, or the operand alone.
    pub fn vector<'o>(&self, operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match operand {
            Operand::Vector(elements) => elements,
            single => std::slice::from_ref(single),
        }
    }

    // For control flow.

    /// A label's number, made a position when the function ends.
    pub fn label(&mut self, name: &str) -> Lowered<u32> {
        match self.find(name) {
            Some(Binding::Label(label)) => Ok(label as u32),
            _ => self.error(format!("{name} is not a label")),
        }
    }

    pub fn branch_targets(&mut self, name: &str) -> Lowered<Vec<u32>> {
        match self.find(name) {
            Some(Binding::Targets(names)) => names.into_iter().map(|n| self.label(n)).collect(),
            _ => self.error(format!("{name} is not a list of branch targets")),
        }
    }

    /// Sizes of the returned values and parameters of a `.callprototype`.
    pub fn prototype(&mut self, name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
        match self.find(name) {
            Some(Binding::Prototype { returns, parameters }) => Some((returns, parameters)),
            _ => None,
        }
    }

    /// Offset in the frame of a `.param` variable.
    pub fn frame_offset(&mut self, name: &str) -> Lowered<u32> {
        match self.find(name) {
            Some(Binding::Frame(offset)) => Ok(offset),
            _ => self.error(format!("{name} is not a .param variable of this function")),
        }
    }

    /// The index in [`Kernel::functions`](crate::ir::Kernel::functions) of a function, which is lowered too from now on.
    pub fn function_index(&mut self, name: &str) -> Option<u32> {
        let function = function_named(self.module, name)?;
        let known = self.reached.iter().position(|reached| reached.name == function.name);
        Some(known.unwrap_or_else(|| {
            self.reached.push(function);
            self.reached.len() - 1
        }) as u32)
    }

    pub fn function_signature(&self, name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
        let function = function_named(self.module, name)?;
        let bytes =
            |variables: &[Variable<'_>]| variables.iter().map(|v| v.bytes() as u32).collect();
        Some((bytes(&function.returns), bytes(&function.parameters)))
    }

    /// Bytes of the frame so far: a callee's begins behind it, aligned.
    pub fn frame_end(&self) -> u32 {
        align(self.frame, 16) as u32
    }
}
