//! PTX text → syntax tree.
//!
//! ```
//! let module = softcuda::ptx::parse(
//!     ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }",
//! )?;
//! assert_eq!(module.functions[0].name, "nothing");
//! # Ok::<(), softcuda::ptx::PtxError>(())
//! ```
//!
//! Source: NVIDIA, *Parallel Thread Execution ISA*, chapters 4 (syntax), 5 (state spaces, types,
//! variables), 7 (calls) and 11 (directives).

pub mod ast;
mod body;
mod lexer;
mod parser;

/// Why a PTX text was refused, and where.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("PTX line {line}: {what}")]
pub struct PtxError {
    pub line: u32,
    pub what: String,
}

impl PtxError {
    pub fn new(line: u32, what: &str) -> Self {
        Self { line, what: what.to_owned() }
    }
}

/// Parses a module.
///
/// # Errors
///
/// The first line that isn't PTX, and what was expected there.
pub fn parse(text: &str) -> Result<ast::Module<'_>, PtxError> {
    parser::Parser::new(text)?.module()
}
