//! How many hardware registers a kernel would need: the most 32-bit values alive at once.

use crate::ir::Inst;

/// An estimate until liveness is computed: what every kernel needs at least.
pub fn estimate(_code: &[Inst]) -> u32 {
    16
}
