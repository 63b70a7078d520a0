//! Products with a matrix of few columns: rows times the two-sided sketch's signs, or a LoRA factor.
//!
//! A GEMM library copies both operands into an order of its own first. With so few columns that
//! costs about as much as the product, so here the rows are read where they lie.

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};
use pulp::{Simd, WithSimd};

use super::gemm::{Write, gemm, par_gemm, row, row_mut};

/// Columns that one pass over the rows takes.
const COLUMNS: usize = 16;
/// Columns up to which this is the quicker way.
const MOST: usize = 64;

/// `c = alpha · a · b` on this thread, which starts no rayon task. Quick for row-major views of 16,
/// 32, 48 or 64 columns; everything else is the library's.
pub(crate) fn product(c: MatMut<f32>, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    if is_quick(&c, a, b) {
        return pulp::Arch::new().dispatch(Product { c, alpha, a, b });
    }
    gemm(c, Write::Replace, alpha, a, b);
}

/// As [`product`], on all threads of the current rayon pool. However it is cut, the bits are the same.
pub(crate) fn par_product(c: MatMut<f32>, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    /// Multiply-adds worth a task.
    const WORTH: usize = 1 << 18;
    /// A multiple of the rows that a processor takes at a time.
    const EDGE: usize = 8;
    if !is_quick(&c, a, b) {
        return par_gemm(c, Write::Replace, alpha, a, b);
    }
    let rows = a.nrows();
    let half = (rows / 2).next_multiple_of(EDGE);
    if rayon::current_num_threads() > 1 && half < rows && rows * a.ncols() * b.ncols() > WORTH {
        let ((c0, c1), (a0, a1)) = (c.split_at_row_mut(half), a.split_at_row(half));
        rayon::join(|| par_product(c0, alpha, a0, b), || par_product(c1, alpha, a1, b));
        return;
    }
    product(c, alpha, a, b);
}

/// Whether products with a row-major matrix of so many columns have the quick way.
pub(crate) fn is_narrow(columns: usize) -> bool {
    columns.is_multiple_of(COLUMNS) && columns <= MOST
}

/// Whether these views have the quick way.
fn is_quick(c: &MatMut<f32>, a: MatRef<f32>, b: MatRef<f32>) -> bool {
    is_narrow(b.ncols()) && a.col_stride() == 1 && b.col_stride() == 1 && c.col_stride() == 1
}

struct Product<'a> {
    c: MatMut<'a, f32>,
    alpha: f32,
    a: MatRef<'a, f32>,
    b: MatRef<'a, f32>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Rows share what is read of `b`, as many as hide the latency of a multiply-add.
        match S::F32_LANES {
            16 => self.rows::<S, 8, 1>(simd),
            8 => self.rows::<S, 4, 2>(simd),
            4 => self.rows::<S, 2, 4>(simd),
            1 => self.rows::<S, 1, 16>(simd),
            _ => gemm(self.c, Write::Replace, self.alpha, self.a, self.b),
        }
    }
}

impl Product<'_> {
    /// In blocks of `R` rows times 16 columns, which are `V` vectors.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const V: usize>(self, simd: S) {
        let Self { mut c, alpha, a, b } = self;
        let rows = a.nrows();
        let alpha = simd.splat_f32s(alpha);
        for column in (0..b.ncols()).step_by(COLUMNS) {
            for first in (0..rows).step_by(R) {
                // Beyond the end the last row stands in, and what it gives is dropped.
                let at = |r: usize| (first + r).min(rows - 1);
                let sums: [[S::f32s; V]; R] =
                    sums(simd, std::array::from_fn(|r| row(a, at(r))), b, column);
                for (r, sums) in sums.into_iter().enumerate().take(rows - first) {
                    let out = &mut row_mut(c.rb_mut(), first + r)[column..column + COLUMNS];
                    let (out, _) = S::as_mut_simd_f32s(out);
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = simd.mul_f32s(alpha, sum);
                    }
                }
            }
        }
    }
}

/// `R` rows times 16 columns of `b`.
#[inline(always)]
fn sums<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: [&[f32]; R],
    b: MatRef<f32>,
    column: usize,
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    let a = a.map(|row| &row[..b.nrows()]);
    for t in 0..b.nrows() {
        let (b, _) = S::as_simd_f32s(&row(b, t)[column..column + COLUMNS]);
        let b: [S::f32s; V] = std::array::from_fn(|v| b[v]);
        for r in 0..R {
            let a = simd.splat_f32s(a[r][t]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(a, b[v], sums[r][v]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::{view, view_mut};

    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * step) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn narrow_products_match_loops_at_every_remainder() {
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

    #[test]
    fn every_width_of_vectors_gives_the_same() {
        let (rows, depth, columns) = (11, 37, 32);
        let (a, b) = (numbers(rows * depth, 3), numbers(depth * columns, 7));
        let answer = |run: &dyn Fn(Product)| {
            let mut c = vec![f32::NAN; rows * columns];
            let (a, b) = (view(&a, rows, depth, depth), view(&b, depth, columns, columns));
            run(Product { c: view_mut(&mut c, rows, columns, columns), alpha: 2.0, a, b });
            c
        };
        let expected = answer(&|it| gemm(it.c, Write::Replace, it.alpha, it.a, it.b));
        assert_eq!(answer(&|it| it.with_simd(pulp::Scalar512b)), expected);
        assert_eq!(answer(&|it| it.with_simd(pulp::Scalar256b)), expected);
        assert_eq!(answer(&|it| it.with_simd(pulp::Scalar128b)), expected);
        assert_eq!(answer(&|it| it.with_simd(pulp::Scalar)), expected);
    }
}
