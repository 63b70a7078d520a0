//! Products with a matrix of few columns: rows times the two-sided sketch's signs, or a LoRA factor.
//!
//! A GEMM library copies both operands into an order of its own first. With so few columns that
//! costs about as much as the product, so here the rows are read where they lie.

use faer::{MatMut, MatRef};

use super::gemm::{Write, gemm, par_gemm};

/// Columns that one pass over the rows takes: two vectors of 8.
const COLUMNS: usize = 16;
/// Columns up to which this is the quicker way.
const MOST: usize = 64;
/// Rows that share what is read of `b`: with two vectors each, as many sums as hide the latency
/// of a multiply-add.
const ROWS: usize = 4;

/// `c = alpha · a · b` on this thread, which starts no rayon task. Quick for row-major views of 16,
/// 32, 48 or 64 columns; everything else is the library's.
pub(crate) fn product(c: MatMut<f32>, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new()
        && is_quick(&c, a, b)
    {
        return simd.vectorize(avx2::Product { simd, c, alpha, a, b });
    }
    gemm(c, Write::Replace, alpha, a, b);
}

/// As [`product`], on all threads of the current rayon pool. However it is cut, the bits are the same.
pub(crate) fn par_product(c: MatMut<f32>, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    /// Multiply-adds worth a task.
    const WORTH: usize = 1 << 18;
    if !is_quick(&c, a, b) {
        return par_gemm(c, Write::Replace, alpha, a, b);
    }
    let rows = a.nrows();
    let half = (rows / 2).next_multiple_of(ROWS);
    if rayon::current_num_threads() > 1 && half < rows && rows * a.ncols() * b.ncols() > WORTH {
        let ((c0, c1), (a0, a1)) = (c.split_at_row_mut(half), a.split_at_row(half));
        rayon::join(|| par_product(c0, alpha, a0, b), || par_product(c1, alpha, a1, b));
        return;
    }
    product(c, alpha, a, b);
}

/// Whether this processor and these views have the quick way.
fn is_quick(c: &MatMut<f32>, a: MatRef<f32>, b: MatRef<f32>) -> bool {
    let few = b.ncols().is_multiple_of(COLUMNS) && b.ncols() <= MOST;
    let row_major = a.col_stride() == 1 && b.col_stride() == 1 && c.col_stride() == 1;
    has_vectors() && few && row_major
}

fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return pulp::x86::V3::try_new().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use pulp::{cast, f32x8, x86::V3};

    use super::{COLUMNS, MatMut, MatRef, ROWS};
    use crate::cpu::gemm::{row, row_mut};
    use faer::prelude::ReborrowMut;

    pub(super) struct Product<'a> {
        pub(super) simd: V3,
        pub(super) c: MatMut<'a, f32>,
        pub(super) alpha: f32,
        pub(super) a: MatRef<'a, f32>,
        pub(super) b: MatRef<'a, f32>,
    }

    impl pulp::NullaryFnOnce for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self { simd, mut c, alpha, a, b } = self;
            let rows = a.nrows();
            for column in (0..b.ncols()).step_by(COLUMNS) {
                for first in (0..rows).step_by(ROWS) {
                    // Beyond the end the last row stands in, and what it gives is dropped.
                    let at = |r: usize| (first + r).min(rows - 1);
                    let sums = sums(simd, std::array::from_fn(|r| row(a, at(r))), b, column);
                    for (r, sums) in sums.iter().enumerate().take(rows - first) {
                        let out = &mut row_mut(c.rb_mut(), first + r)[column..column + COLUMNS];
                        let sums: [f32; COLUMNS] = cast(*sums);
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = alpha * sum);
                    }
                }
            }
        }
    }

    /// Four rows times 16 columns of `b`.
    #[inline(always)]
    fn sums(simd: V3, a: [&[f32]; ROWS], b: MatRef<f32>, column: usize) -> [[f32x8; 2]; ROWS] {
        let mut sums = [[simd.splat_f32x8(0.0); 2]; ROWS];
        let a = a.map(|row| &row[..b.nrows()]);
        for t in 0..b.nrows() {
            let (halves, _) = row(b, t)[column..column + COLUMNS].as_chunks::<8>();
            let b: [f32x8; 2] = [cast(halves[0]), cast(halves[1])];
            for r in 0..ROWS {
                let a = simd.splat_f32x8(a[r][t]);
                sums[r] = [0, 1].map(|half| simd.mul_add_f32x8(a, b[half], sums[r][half]));
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{view, view_mut};

    #[test]
    fn narrow_products_match_loops_at_every_remainder() {
        let numbers = |len: usize, step: usize| -> Vec<f32> {
            (0..len).map(|at| ((at * step) % 11) as f32 - 5.0).collect()
        };
        for rows in [0, 1, 3, 4, 5, 700] {
            for (depth, columns) in [(0, 16), (1, 16), (37, 32), (40, 8), (9, 3)] {
                // Rows of `a` and `c` lie further apart than they are long.
                let (wide, apart) = (depth + 2, columns + 5);
                let (a, b) = (numbers(rows * wide, 3), numbers(depth * columns, 7));
                let mut c = vec![f32::NAN; rows * apart];
                par_product(
                    view_mut(&mut c, rows, columns, apart),
                    2.0,
                    view(&a, rows, depth, wide),
                    view(&b, depth, columns, columns),
                );
                for (at, c) in c.iter().enumerate() {
                    let (i, j) = (at / apart, at % apart);
                    let sum: f32 = (0..depth)
                        .map(|t| a[i * wide + t] * b.get(t * columns + j).copied().unwrap_or(0.0))
                        .sum();
                    match j < columns {
                        true => assert_eq!(*c, 2.0 * sum, "{rows} {depth} {columns}"),
                        false => assert!(c.is_nan(), "what lies between rows is left alone"),
                    }
                }
            }
        }
    }
}
