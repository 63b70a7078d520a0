//! Where a lane's registers lie in the matrices of `mma` (and of `wgmma`, a warp's share of which is laid
//! out the same way). Source: PTX ISA, section 9.7.14 (warp-level matrix instructions).
//!
//! With `group = lane / 4`, `member = lane % 4` and `per` elements in a register, all shapes but `m8n8k4`
//! of `f16` follow one rule:
//!
//! - A: register `r` holds row `group`, or `group + 8` where `m` is 16 and `r` odd, and `per` columns from
//!   `per * member`, further right by `4 * per` for every register (or pair of registers, where `m` is 16).
//! - B: register `r` holds column `group` and `per` rows from `per * member + 4 * per * r`.
//! - C, D: value `i` is row `group + 8 * (i / 2)`, column `2 * member + i % 2`.

use crate::ir::LANES;

/// Columns of an accumulator: the width of every `mma`.
pub const COLUMNS: usize = 8;

/// Row and first column of register `r` of A.
pub fn place_a(m: usize, per: usize, lane: usize, r: usize) -> (usize, usize) {
    let halves = m / 8;
    (lane / 4 + 8 * (r % halves), lane % 4 * per + 4 * per * (r / halves))
}

/// First row and column of register `r` of B.
pub fn place_b(per: usize, lane: usize, r: usize) -> (usize, usize) {
    (lane % 4 * per + 4 * per * r, lane / 4)
}

/// Row and column of value `i` of C and D.
pub fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2)
}

/// Values `2 * half` and `2 * half + 1` of every lane out of eight rows of accumulators.
#[inline]
pub fn gather<T: Copy + Default>(rows: &[[T; COLUMNS]; 8]) -> [[T; LANES]; 2] {
    let mut values = [[T::default(); LANES]; 2];
    for (group, row) in rows.iter().enumerate() {
        for member in 0..4 {
            values[0][4 * group + member] = row[2 * member];
            values[1][4 * group + member] = row[2 * member + 1];
        }
    }
    values
}

/// The same two values into the accumulators.
#[inline]
pub fn scatter<T: Copy>(rows: &mut [[T; COLUMNS]; 8], values: &[[T; LANES]; 2]) {
    for (group, row) in rows.iter_mut().enumerate() {
        for member in 0..4 {
            row[2 * member] = values[0][4 * group + member];
            row[2 * member + 1] = values[1][4 * group + member];
        }
    }
}
