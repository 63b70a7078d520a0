//! The two-sided sketch's sign matrices `P_o` and `P_i`.

use super::philox4x32;

/// Which side of the gradient a sign matrix multiplies; the third counter word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `P_o [outputs, k]`.
    Outputs = 1,
    /// `P_i [inputs, k]`, the bias column at row `inputs`.
    Inputs = 2,
}

/// Row `row` of a sign matrix with `out.len() = k` columns: entries `±1/√k`, where `k` is the
/// sketch's own dimension, not the layer's.
///
/// Column `j` takes bit `j % 32` of word `j / 32 % 4` of the Philox call at counter
/// `(row, j / 128, side, 0)`; a set bit is negative.
pub fn sign_row(key: [u32; 2], side: Side, row: u32, out: &mut [f32]) {
    let value = 1.0 / (out.len() as f32).sqrt();
    for (block, columns) in out.chunks_mut(128).enumerate() {
        let words = philox4x32([row, block as u32, side as u32, 0], key);
        for (j, entry) in columns.iter_mut().enumerate() {
            let negative = (words[j / 32] >> (j % 32)) & 1 == 1;
            *entry = if negative { -value } else { value };
        }
    }
}
