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

/// A side's sign matrix: entries `±1/√k`, where `k`, its number of columns, is the sketch's own
/// dimension, not the layer's.
///
/// Row `i` of a **random** matrix takes for column `j` bit `j % 32` of word `j / 32 % 4` of the
/// Philox call at counter `(i, j / 128, side, 0)`; a set bit is negative.
///
/// A side that **fits** loses nothing: where `k` is a power of two up to 32 and there are no more
/// rows (of the inputs with one for a bias), they are rows of the Walsh–Hadamard matrix, `−1` to
/// the number of ones in `i and j`, and so orthonormal. Column `j` has the sign that row 0 of the
/// random matrix has there, and row `i` the one it has at column `32 + i`, so that the sketches of
/// different layers stay unbiased when they are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignMatrix {
    key: [u32; 2],
    side: Side,
    columns: usize,
    fits: bool,
}

impl SignMatrix {
    /// Of `features` outputs or inputs, a bias not counted, and `columns` columns.
    pub fn new(key: [u32; 2], side: Side, features: usize, columns: usize) -> Self {
        let most = match side {
            Side::Outputs => columns,
            Side::Inputs => columns.saturating_sub(1),
        };
        let fits = columns.is_power_of_two() && columns <= 32 && features <= most;
        Self { key, side, columns, fits }
    }

    /// Whether the rows are orthonormal, so that inner products over this side are kept exactly.
    pub fn fits(&self) -> bool {
        self.fits
    }

    /// Row `row`, `[k]`.
    ///
    /// # Panics
    /// When `out` does not hold `k` numbers.
    pub fn row(&self, row: u32, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "columns");
        let value = 1.0 / (self.columns as f32).sqrt();
        let signed = |negative: u32| if negative & 1 == 1 { -value } else { value };
        let random = |row, block| philox4x32([row, block, self.side as u32, 0], self.key);
        if self.fits {
            let [columns, rows, ..] = random(0, 0);
            for (j, entry) in out.iter_mut().enumerate() {
                let walsh = (row & j as u32).count_ones();
                *entry = signed((columns >> j) ^ (rows >> (row % 32)) ^ walsh);
            }
            return;
        }
        for (block, entries) in out.chunks_mut(128).enumerate() {
            let words = random(row, block as u32);
            for (j, entry) in entries.iter_mut().enumerate() {
                *entry = signed(words[j / 32] >> (j % 32));
            }
        }
    }

    /// The rows `first..`, row-major, as [`SignMatrix::row`] draws them.
    #[inline(always)]
    pub(crate) fn rows(&self, first: usize, out: &mut [f32]) {
        const LANES: usize = 8;
        let (k, side) = (self.columns, self.side as u32);
        if self.fits {
            let rows = out.chunks_exact_mut(k).zip(first as u32..);
            return rows.for_each(|(out, row)| self.row(row, out));
        }
        let value = (1.0 / (k as f32).sqrt()).to_bits();
        for (group, rows) in out.chunks_mut(LANES * k).enumerate() {
            let numbers = std::array::from_fn(|l| (first + LANES * group + l) as u32);
            for block in 0..k.div_ceil(128) {
                let counters = [numbers, [block as u32; LANES], [side; LANES], [0; LANES]];
                let words = philox4x32_lanes(counters, self.key);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_the_single_rows() {
        for (k, features) in [(1, 30), (16, 30), (33, 30), (128, 200), (200, 300), (32, 21)] {
            let signs = SignMatrix::new([3, 4], Side::Inputs, features, k);
            let mut all = vec![0.0; 21 * k];
            let (head, tail) = all.split_at_mut(13 * k);
            signs.rows(0, head);
            signs.rows(13, tail);
            for (row, all) in all.chunks_exact(k).enumerate() {
                let mut one = vec![0.0; k];
                signs.row(row as u32, &mut one);
                assert_eq!(all, one, "row {row} of {k} columns");
            }
        }
    }
}
