//! The two-sided sketch's sign matrices, drawn anew for every call.

use super::workspace::Grow;
use crate::projection::{Side, sign_rows};

/// `P [rows, k]`, row-major, into `buffer`.
pub(crate) fn draw(
    key: [u32; 2],
    side: Side,
    rows: usize,
    k: usize,
    buffer: &mut Vec<f32>,
) -> &[f32] {
    let signs = buffer.grown(rows * k);
    pulp::Arch::new().dispatch(|| sign_rows(key, side, k, signs));
    signs
}
