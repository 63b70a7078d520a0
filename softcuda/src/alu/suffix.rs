//! The suffixes of an opcode, taken as an instruction's lowering asks for them. What nobody took refuses
//! the instruction: a form that isn't known must not run as another one.

use super::lanes::Operands;
use super::round::Rounding;
use crate::ir::{Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::{Instruction, Operand};

pub struct Suffixes<'a> {
    left: Vec<&'a str>,
}

impl<'a> Suffixes<'a> {
    pub fn new(i: &Instruction<'a>) -> Self {
        Self { left: i.parts[1..].to_vec() }
    }

    /// Takes a suffix if it is there.
    pub fn take(&mut self, suffix: &str) -> bool {
        let found = self.left.iter().position(|part| *part == suffix);
        found.map(|at| self.left.remove(at)).is_some()
    }

    /// Takes the first suffix that `f` knows.
    pub fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = self.left.iter().enumerate().find_map(|(n, part)| Some((n, f(part)?)))?;
        self.left.remove(at);
        Some(value)
    }

    /// The next type.
    pub fn ty(&mut self, l: &Lowerer<'_>) -> Lowered<Ty> {
        match self.find(Ty::parse) {
            Some(ty) => Ok(ty),
            None => l.error("an instruction without a type"),
        }
    }

    /// `.rn`, `.rz`, `.rm`, `.rp`.
    pub fn rounding(&mut self) -> Option<Rounding> {
        self.find(|part| {
            Some(match part {
                "rn" => Rounding::Nearest,
                "rz" => Rounding::Zero,
                "rm" => Rounding::Down,
                "rp" => Rounding::Up,
                _ => return None,
            })
        })
    }

    /// Refuses the instruction if a suffix is left.
    pub fn end(self, l: &Lowerer<'_>, i: &Instruction<'_>) -> Lowered<()> {
        match self.left.first() {
            None => Ok(()),
            Some(part) => l.error(format!("unknown form {}: .{part}", i.parts.join("."))),
        }
    }
}

/// Refuses an instruction whose suffixes are known but don't go together.
pub fn refuse<T>(l: &Lowerer<'_>, i: &Instruction<'_>) -> Lowered<T> {
    l.error(format!("unknown form {}", i.parts.join(".")))
}

/// A register to write, exactly as wide as its type. (Only `ld`, `st` and `cvt` may name a wider one.)
pub fn dst<'a>(l: &mut Lowerer<'a>, ty: Ty, operand: &Operand<'a>) -> Lowered<Reg> {
    same_width(l, ty, operand)?;
    l.dst(ty, operand)
}

/// A source; a register is exactly as wide as its type.
pub fn src<'a>(l: &mut Lowerer<'a>, ty: Ty, operand: &Operand<'a>) -> Lowered<Src> {
    same_width(l, ty, operand)?;
    l.src(ty, operand)
}

fn same_width<'a>(l: &mut Lowerer<'a>, ty: Ty, operand: &Operand<'a>) -> Lowered<()> {
    match l.register_type(operand) {
        Some(found) if found.bits() != ty.bits() => {
            l.error(format!("a {found:?} register where {ty:?} belongs"))
        }
        _ => Ok(()),
    }
}

/// The operands `d, a, …`: a register of type `d` and one source for each type of `s`.
pub fn operands<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    d: Ty,
    s: &[Ty],
) -> Lowered<Operands> {
    let [dst, sources @ ..] = i.operands.as_slice() else {
        return l.error("expected a register to write");
    };
    let dst = self::dst(l, d, dst)?;
    Ok(Operands { dst, src: self::sources(l, i, sources, s)? })
}

/// Exactly as many sources as `types`; the rest is zero.
pub fn sources<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    operands: &'a [Operand<'a>],
    types: &[Ty],
) -> Lowered<[Src; 3]> {
    if operands.len() != types.len() {
        let (name, expected, found) = (i.parts[0], types.len(), operands.len());
        return l.error(format!("{name} takes {expected} sources here, found {found}"));
    }
    let mut found = [Src::Imm(0); 3];
    for ((found, operand), &ty) in found.iter_mut().zip(operands).zip(types) {
        *found = src(l, ty, operand)?;
    }
    Ok(found)
}
