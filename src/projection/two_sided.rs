//! The two-sided sketch's sign matrices `P_o` and `P_i`.

use super::philox::{philox4x32, philox4x32_lanes};

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

/// The rows `first..` of a sign matrix with `k` columns, as [`sign_row`] draws them.
#[inline(always)]
pub(crate) fn sign_rows(key: [u32; 2], side: Side, first: usize, k: usize, out: &mut [f32]) {
    const LANES: usize = 8;
    let value = (1.0 / (k as f32).sqrt()).to_bits();
    for (group, rows) in out.chunks_mut(LANES * k).enumerate() {
        let numbers = std::array::from_fn(|l| (first + LANES * group + l) as u32);
        for block in 0..k.div_ceil(128) {
            let counters = [numbers, [block as u32; LANES], [side as u32; LANES], [0; LANES]];
            let words = philox4x32_lanes(counters, key);
            for (l, row) in rows.chunks_exact_mut(k).enumerate() {
                let columns = &mut row[128 * block..k.min(128 * (block + 1))];
                for (word, entries) in words.iter().zip(columns.chunks_mut(32)) {
                    for (bit, entry) in entries.iter_mut().enumerate() {
                        *entry = f32::from_bits(value | (((word[l] >> bit) & 1) << 31));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_the_single_rows() {
        for k in [1, 16, 33, 128, 200] {
            let mut all = vec![0.0; 21 * k];
            let (head, tail) = all.split_at_mut(13 * k);
            sign_rows([3, 4], Side::Inputs, 0, k, head);
            sign_rows([3, 4], Side::Inputs, 13, k, tail);
            for (row, signs) in all.chunks_exact(k).enumerate() {
                let mut one = vec![0.0; k];
                sign_row([3, 4], Side::Inputs, row as u32, &mut one);
                assert_eq!(signs, one, "row {row} of {k} columns");
            }
        }
    }
}
