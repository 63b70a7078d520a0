//! The products themselves, fragment by fragment: a register of B with the one or two registers of A that
//! hold the same columns is a product of depth `4 * per`.
//!
//! `f32` accumulation: every product is exact (the factors have at most 12 significant bits), and they are
//! added to the accumulator one by one in the order of `k`, each sum rounded to nearest. Hardware adds in
//! another order and cuts instead of rounding, so this is within its bound. Integers up to 8 bits take
//! the same way: their sums stay below 2^24, where `f32` is exact.

use super::element::Element;
use super::fragment::COLUMNS;
use super::mma::Bits;
use crate::ir::LANES;

/// Eight rows of accumulators.
pub type Half<T> = [[T; COLUMNS]; 8];

/// `sums += a × b`: `a` has a register of each half's rows for every register of `b`.
pub fn multiply(
    types: (Element, Element),
    a: &[[u32; LANES]],
    b: &[[u32; LANES]],
    sums: &mut [Half<f32>],
) {
    for (a, b) in a.chunks(sums.len()).zip(b) {
        match types.0.per_word() {
            1 => multiply_words::<1>(types, a, b, sums),
            2 => multiply_words::<2>(types, a, b, sums),
            4 => multiply_words::<4>(types, a, b, sums),
            _ => multiply_words::<8>(types, a, b, sums),
        }
    }
}

/// One register of B with those of A that hold the same columns.
fn multiply_words<const PER: usize>(
    (a_type, b_type): (Element, Element),
    a: &[[u32; LANES]],
    b: &[u32; LANES],
    sums: &mut [Half<f32>],
) {
    let mut rows = [[[0.0; COLUMNS]; PER]; 4];
    for j in 0..PER {
        let values = b_type.decode(b, j);
        for (member, rows) in rows.iter_mut().enumerate() {
            for (column, value) in rows[j].iter_mut().enumerate() {
                *value = values[4 * column + member];
            }
        }
    }
    for (a, sums) in a.iter().zip(sums) {
        let mut factors = [[0.0; LANES]; PER];
        for (j, factors) in factors.iter_mut().enumerate() {
            *factors = a_type.decode(a, j);
        }
        add_products(&factors, &rows, sums);
    }
}

/// Four rows at a time hide each other's latency.
fn add_products<const PER: usize>(
    factors: &[[f32; LANES]; PER],
    rows: &[[[f32; COLUMNS]; PER]; 4],
    sums: &mut Half<f32>,
) {
    for (four, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut now = *sums;
        for (member, rows) in rows.iter().enumerate() {
            for (factors, row) in factors.iter().zip(rows) {
                for (group, now) in now.iter_mut().enumerate() {
                    let factor = factors[16 * four + 4 * group + member];
                    for column in 0..COLUMNS {
                        now[column] += factor * row[column];
                    }
                }
            }
        }
        *sums = now;
    }
}

/// The same in `f64`, as a chain of fused multiply-adds in the order of `k`.
pub fn multiply_f64(a: &[[u64; LANES]], b: &[[u64; LANES]], sums: &mut [Half<f64>]) {
    let halves = sums.len();
    for (a, b) in a.chunks(halves).zip(b) {
        for (a, sums) in a.iter().zip(&mut *sums) {
            for member in 0..4 {
                for (group, row) in sums.iter_mut().enumerate() {
                    let factor = f64::from_bits(a[4 * group + member]);
                    for (column, sum) in row.iter_mut().enumerate() {
                        *sum = factor.mul_add(f64::from_bits(b[4 * column + member]), *sum);
                    }
                }
            }
        }
    }
}

/// Single bits: the number of ones in each row of A combined with each column of B.
pub fn multiply_bits(bits: Bits, a: &[[u32; LANES]], b: &[[u32; LANES]], sums: &mut [Half<f32>]) {
    let combine = |a: u32, b: u32| match bits {
        Bits::Xor => a ^ b,
        Bits::And => a & b,
    };
    let halves = sums.len();
    for (a, b) in a.chunks(halves).zip(b) {
        for (a, sums) in a.iter().zip(&mut *sums) {
            for (group, row) in sums.iter_mut().enumerate() {
                for (column, sum) in row.iter_mut().enumerate() {
                    let ones = |member| combine(a[4 * group + member], b[4 * column + member]);
                    *sum += (0..4).map(|member| ones(member).count_ones()).sum::<u32>() as f32;
                }
            }
        }
    }
}

/// Accumulators leave with one NaN, as from hardware.
#[inline]
pub fn canonical(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}
