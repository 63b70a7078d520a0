//! The two-sided sketch's sign matrices, drawn anew for every call.

use super::workspace::Grow;
use crate::projection::{Side, sign_row};

/// `P [rows, k]`, row-major, into `buffer`.
pub(crate) fn draw(
    key: [u32; 2],
    side: Side,
    rows: usize,
    k: usize,
    buffer: &mut Vec<f32>,
) -> &[f32] {
    let signs = buffer.grown(rows * k);
    for (row, signs) in signs.chunks_exact_mut(k).enumerate() {
        sign_row(key, side, row as u32, signs);
    }
    signs
}
