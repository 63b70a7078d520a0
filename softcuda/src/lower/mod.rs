//! Syntax tree → [`Kernel`]: registers get slots, labels positions, symbols addresses. Every instruction
//! of every kernel is lowered when its module is loaded, so an unknown one is refused there, by line.
//!
//! ```
//! use softcuda::{lower, ptx};
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n\
//!             .reg .b32 %r<2>;\nfrobnicate.b32 %r0, %r1;\nret; }";
//! let module = ptx::parse(text)?;
//! let error = lower::kernels(&module, &lower::Symbols::new()).unwrap_err();
//! assert_eq!(error.to_string(), "PTX line 6: unknown instruction frobnicate.b32");
//! # Ok::<(), ptx::PtxError>(())
//! ```

mod control;
mod function;
mod names;

use std::collections::HashMap;

use crate::ir::{FUNCTION_WINDOW, Kernel, Reg, Src, Ty};
use crate::ptx::PtxError;
use crate::ptx::ast::{Function, Init, Instruction, Module, Operand, Variable};

pub use function::Lowerer;

pub type Lowered<T> = Result<T, PtxError>;

/// Where the module's variables lie on the device.
pub type Symbols<'a> = HashMap<&'a str, u64>;

/// Lowers all kernels of a module whose global and const variables lie at `symbols`.
///
/// # Errors
///
/// Names the line and what is wrong with it: an unknown instruction, register or symbol, an operand of
/// the wrong kind.
pub fn kernels<'a>(module: &'a Module<'a>, symbols: &Symbols<'a>) -> Lowered<Vec<Kernel>> {
    let entries = module.functions.iter().filter(|f| f.entry && f.body.is_some());
    entries.map(|entry| Lowerer::kernel(module, symbols, entry)).collect()
}

/// Functions whose addresses stand in initial values of variables. They get the indices from 1 up in
/// every kernel, so that the addresses mean the same in all.
pub fn addressed<'a>(module: &'a Module<'a>) -> Vec<&'a Function<'a>> {
    let mut functions: Vec<&Function<'a>> = Vec::new();
    for init in module.variables.iter().flat_map(|variable| &variable.init) {
        let Init::Address { name, .. } = init else { continue };
        let function = function_named(module, name).filter(|f| !f.entry);
        if let Some(function) = function
            && functions.iter().all(|known| known.name != function.name)
        {
            functions.push(function);
        }
    }
    functions
}

/// Rounds up to a multiple of a power of two.
pub(crate) fn align(offset: u64, to: u64) -> u64 {
    offset.next_multiple_of(to.max(1))
}

/// Lays variables out one behind the other: `(offset, bytes)` each, and the end.
pub(crate) fn layout(variables: &[Variable<'_>]) -> Lowered<(Vec<(u32, u32)>, u32)> {
    let mut end = 0u64;
    let mut places = Vec::new();
    for variable in variables {
        let offset = align(end, variable.align);
        end = offset + variable.bytes();
        if end > 1 << 20 {
            return Err(PtxError::new(variable.line, "parameters larger than 1 MiB"));
        }
        places.push((offset as u32, variable.bytes() as u32));
    }
    Ok((places, end as u32))
}

/// An opcode's parts after its name, with questions that lowering asks of them.
pub struct Parts<'i, 'a>(pub &'i [&'a str]);

impl Parts<'_, '_> {
    pub fn has(&self, part: &str) -> bool {
        self.0.contains(&part)
    }

    /// All parts that are types, in order.
    pub fn types(&self) -> Vec<Ty> {
        self.0.iter().filter_map(|part| Ty::parse(part)).collect()
    }
}

/// The operands of an instruction, exactly as many as expected.
pub fn operands<'i, 'a, const N: usize>(
    instruction: &'i Instruction<'a>,
) -> Lowered<[&'i Operand<'a>; N]> {
    let found: Vec<&Operand<'a>> = instruction.operands.iter().collect();
    found.try_into().map_err(|found: Vec<_>| {
        PtxError::new(
            instruction.line,
            &format!("{} takes {N} operands, found {}", instruction.parts[0], found.len()),
        )
    })
}

/// Functions by name, definitions before declarations.
fn function_named<'a>(module: &'a Module<'a>, name: &str) -> Option<&'a Function<'a>> {
    let name = module.aliases.iter().find(|(new, _)| *new == name).map_or(name, |(_, old)| old);
    let named = || module.functions.iter().filter(move |f| f.name == name);
    named().find(|f| f.body.is_some()).or_else(|| named().next())
}

pub(crate) fn function_address(index: u32) -> Src {
    Src::Imm(FUNCTION_WINDOW + u64::from(index))
}

pub(crate) fn bank_of(ty: Ty, slot: u32) -> Reg {
    match ty.bits() {
        1 => Reg::P(slot),
        64 => Reg::D(slot),
        128 => Reg::Q(slot),
        _ => Reg::R(slot),
    }
}
