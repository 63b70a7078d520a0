//! The kept GEMM library, faer's, behind the two calls the backend needs.
//!
//! `C (+)= alpha · A · B` for `f32` views with any strides, so that a transpose costs nothing.
//! The library walks the inner dimension in the same order for every element, so however the
//! product is cut, the same inputs give the same bits.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Row-major view of `rows × columns`, consecutive rows `stride` apart.
pub(crate) fn view(data: &[f32], rows: usize, columns: usize, stride: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(data, rows, columns, stride)
}

/// As [`view`], to be written.
pub(crate) fn view_mut(
    data: &mut [f32],
    rows: usize,
    columns: usize,
    stride: usize,
) -> MatMut<'_, f32> {
    // Not the row-major constructor: faer 0.24.4 swaps its strides.
    MatMut::from_column_major_slice_with_stride_mut(data, columns, rows, stride).transpose_mut()
}

/// Whether a product replaces what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// `C = …`; what was there is not read.
    Replace,
    /// `C += …`.
    Add,
}

/// `c (+)= alpha · a · b` on this thread.
pub(crate) fn gemm(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    let accum = match write {
        Write::Replace => Accum::Replace,
        Write::Add => Accum::Add,
    };
    matmul(c, accum, a, b, alpha, Par::Seq);
}

/// As [`gemm`], on all threads of the current rayon pool.
///
/// The library's own threads wait for each other by spinning, which starves a busy machine;
/// pieces of the product need no waiting.
pub(crate) fn par_gemm(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    let threads = rayon::current_num_threads();
    // Two pieces each even out what other work takes from a thread.
    let pieces = if threads == 1 { 1 } else { 2 * threads };
    split(c, write, alpha, a, b, pieces);
}

/// Halves the longer side of `c` until `pieces` are left or none is worth a task.
fn split(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>, pieces: usize) {
    const SMALLEST: usize = 1 << 18;
    let (m, n) = (c.nrows(), c.ncols());
    if pieces < 2 || m * n * a.ncols() < SMALLEST {
        return gemm(c, write, alpha, a, b);
    }
    let half = pieces / 2;
    // Multiples of the micro-kernel's extents leave no ragged edge in between.
    let cut = |extent: usize| (extent * half / pieces).next_multiple_of(24).min(extent);
    if m >= n {
        let ((c0, c1), (a0, a1)) = (c.split_at_row_mut(cut(m)), a.split_at_row(cut(m)));
        rayon::join(
            || split(c0, write, alpha, a0, b, half),
            || split(c1, write, alpha, a1, b, pieces - half),
        );
    } else {
        let ((c0, c1), (b0, b1)) = (c.split_at_col_mut(cut(n)), b.split_at_col(cut(n)));
        rayon::join(
            || split(c0, write, alpha, a, b0, half),
            || split(c1, write, alpha, a, b1, pieces - half),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers, so that every order of summation gives the same bits.
    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * step) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn transposed_product_matches_loops_at_every_small_size() {
        for m in 0..4 {
            for n in [0, 1, 2, 9, 33] {
                for k in [0, 1, 2, 5, 17] {
                    let (a, b) = (numbers(k * m, 3), numbers(k * n, 7));
                    let mut c = vec![f32::NAN; m * n];
                    let a_view = view(&a, k, m, m).transpose();
                    gemm(view_mut(&mut c, m, n, n), Write::Replace, 2.0, a_view, view(&b, k, n, n));
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f32 = (0..k).map(|t| a[t * m + i] * b[t * n + j]).sum();
                            assert_eq!(c[i * n + j], 2.0 * sum, "{m} {n} {k}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn large_products_match_loops() {
        // Around the library's own cache blocking, in both storage orders of the operands.
        for (m, n, k) in [(700, 40, 30), (33, 900, 65), (270, 290, 600)] {
            let (a, b) = (numbers(k * m, 3), numbers(k * n, 7));
            let mut c = vec![1.0; m * n];
            let a_view = view(&a, k, m, m).transpose();
            par_gemm(view_mut(&mut c, m, n, n), Write::Add, 1.0, a_view, view(&b, k, n, n));
            for (i, j) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3), (m / 3, n - 2)] {
                let sum: f32 = (0..k).map(|t| a[t * m + i] * b[t * n + j]).sum();
                assert_eq!(c[i * n + j], 1.0 + sum, "{m} {n} {k}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, n, k) = (130, 97, 1100);
        let noise = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|at| (at as f32 * step).sin()).collect()
        };
        let (a, b) = (noise(m * k, 0.7), noise(k * n, 0.3));
        let product = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![0.0; m * n];
            let (a, b) = (view(&a, m, k, k), view(&b, k, n, n));
            pool.install(|| par_gemm(view_mut(&mut c, m, n, n), Write::Replace, 1.0, a, b));
            c
        };
        let one = product(1);
        assert!(one == product(2), "two threads");
        assert!(one == product(3), "three threads");
    }
}
