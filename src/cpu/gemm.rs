//! Matrix products by kept libraries, behind the two calls the backend needs.
//!
//! `C (+)= alpha · A · B` for `f32` views with any strides, so that a transpose costs nothing.
//! Each library walks the inner dimension in the same order for every element, so however the
//! product is cut, the same inputs give the same bits.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use gemm::Parallelism;

use super::blas;
use crate::ops::plan::has_avx512;

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

/// Row `r` of a row-major view.
#[inline(always)]
pub(crate) fn row<'a>(view: MatRef<'a, f32>, r: usize) -> &'a [f32] {
    let columns_first = view.transpose().try_as_col_major().expect("row-major");
    columns_first.col(r).as_slice()
}

/// As [`row`], to be written.
#[inline(always)]
pub(crate) fn row_mut<'a>(view: MatMut<'a, f32>, r: usize) -> &'a mut [f32] {
    let columns_first = view.transpose_mut().try_as_col_major_mut().expect("row-major");
    columns_first.col_mut(r).as_slice_mut()
}

/// Whether a product replaces what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// `C = …`; what was there is not read.
    Replace,
    /// `C += …`.
    Add,
}

impl Write {
    /// Adds where the caller accumulates.
    pub(crate) fn of(accumulate: bool) -> Self {
        if accumulate { Self::Add } else { Self::Replace }
    }
}

/// Whose products. Each is the faster by a tenth or more where it is taken (`docs/performance.md`).
#[derive(Clone, Copy, Debug)]
enum Library {
    /// With AVX-512.
    Gemm,
    /// For tiles and panels.
    Faer,
    /// Has no kernel for AVX-512.
    Matrixmultiply,
    /// The caller's, where there is one.
    Blas,
}

impl Library {
    /// For whole matrices, however they are cut.
    fn for_large() -> Self {
        if blas::in_use() {
            return Self::Blas;
        }
        Self::own()
    }

    /// As [`for_large`](Self::for_large), of those that the crate brings.
    fn own() -> Self {
        if has_avx512() { Self::Gemm } else { Self::Matrixmultiply }
    }

    /// For tiles and panels that a cache holds.
    fn for_small(a: MatRef<f32>) -> Self {
        // faer's take up to 1.7 times as long where `a` is a transpose.
        if a.col_stride() == 1 { Self::Faer } else { Self::for_large() }
    }

    fn multiply(self, c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
        match (self, write) {
            (Self::Gemm | Self::Blas, _) => self.in_runs(c, write, alpha, a, b),
            (Self::Faer, Write::Replace) => matmul(c, Accum::Replace, a, b, alpha, Par::Seq),
            (Self::Faer, Write::Add) => matmul(c, Accum::Add, a, b, alpha, Par::Seq),
            (Self::Matrixmultiply, _) => self.by_pointers(c, write, alpha, a, b),
        }
    }

    /// In runs of the inner dimension of a length that the library takes in one go. Longer ones `gemm`
    /// and MKL cut by the extents of `c`, so that how `c` is cut between threads would change the
    /// last bits.
    fn in_runs(self, mut c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
        const RUN: usize = 512;
        let k = a.ncols();
        for start in (0..k.max(1)).step_by(RUN) {
            let run = RUN.min(k - start);
            let write = if start == 0 { write } else { Write::Add };
            let (a, b) = (a.subcols(start, run), b.subrows(start, run));
            match self {
                Self::Blas if blas::multiply(c.rb_mut(), write, alpha, a, b) => {}
                Self::Blas => Self::own().multiply(c.rb_mut(), write, alpha, a, b),
                _ => self.by_pointers(c.rb_mut(), write, alpha, a, b),
            }
        }
    }

    /// By a library that has no interface but pointers and strides.
    #[allow(unsafe_code)]
    fn by_pointers(self, c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
        let (m, n, k) = (c.nrows(), c.ncols(), a.ncols());
        assert!(a.nrows() == m && b.nrows() == k && b.ncols() == n, "extents of a product agree");
        let [a_rows, b_rows] = [a, b].map(|view| view.row_stride());
        let [a_columns, b_columns] = [a, b].map(|view| view.col_stride());
        let (c_rows, c_columns) = (c.row_stride(), c.col_stride());
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_ptr_mut());
        // Of what was there; with 0 it is not read.
        let beta = if write == Write::Add { 1.0 } else { 0.0 };
        // SAFETY: a view's strides reach the elements within its extents and no others, the extents
        // agree, and `c` is borrowed by nobody else.
        unsafe {
            if let Self::Gemm = self {
                // Columns come before rows, and its `alpha` is our `beta`.
                #[rustfmt::skip]
                gemm::gemm(
                    m, n, k, c, c_columns, c_rows, write == Write::Add, a, a_columns, a_rows,
                    b, b_columns, b_rows, beta, alpha, false, false, false, Parallelism::None,
                );
            } else {
                #[rustfmt::skip]
                matrixmultiply::sgemm(
                    m, k, n, alpha, a, a_rows, a_columns, b, b_rows, b_columns, beta, c, c_rows,
                    c_columns,
                );
            }
        }
    }
}

/// `c (+)= alpha · a · b` on this thread, for operands that a cache holds.
pub(crate) fn gemm(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    Library::for_small(a).multiply(c, write, alpha, a, b);
}

/// As [`gemm`], for whole matrices, on all threads of the current rayon pool.
///
/// The library's own threads wait for each other by spinning, which starves a busy machine;
/// pieces of the product need no waiting.
pub(crate) fn par_gemm(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    // One each: what two each even out where other work takes from a thread is less than what their
    // operands' second copies take (`docs/performance.md`).
    split(c, write, alpha, a, b, rayon::current_num_threads());
}

/// Halves the longer side of `c` until `pieces` are left or none is worth a task.
fn split(c: MatMut<f32>, write: Write, alpha: f32, a: MatRef<f32>, b: MatRef<f32>, pieces: usize) {
    const SMALLEST: usize = 1 << 18;
    // `gemm` adds up products of a few elements in another order.
    const FEWEST: usize = 1 << 12;
    let (m, n) = (c.nrows(), c.ncols());
    if pieces < 2 || m * n < FEWEST || m * n * a.ncols() < SMALLEST {
        return Library::for_large().multiply(c, write, alpha, a, b);
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
                    for library in [Library::Gemm, Library::Faer, Library::Matrixmultiply] {
                        let mut c = vec![f32::NAN; m * n];
                        let (a, b) = (view(&a, k, m, m).transpose(), view(&b, k, n, n));
                        let c_view = view_mut(&mut c, m, n, n);
                        library.multiply(c_view, Write::Replace, 2.0, a, b);
                        for (at, c) in c.iter().enumerate() {
                            let (i, j) = (at / n, at % n);
                            let sum: f32 = (0..k).map(|t| a[(i, t)] * b[(t, j)]).sum();
                            assert_eq!(*c, 2.0 * sum, "{library:?} {m} {n} {k}");
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
        let noise = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|at| (at as f32 * step).sin()).collect()
        };
        // The second is where `gemm` would take a small product's kernel for the pieces alone.
        for (m, n, k) in [(130, 97, 1100), (4, 80, 1500)] {
            let (a, b) = (noise(m * k, 0.7), noise(k * n, 0.3));
            let product = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut c = vec![0.0; m * n];
                let (a, b) = (view(&a, m, k, k), view(&b, n, k, k).transpose());
                pool.install(|| par_gemm(view_mut(&mut c, m, n, n), Write::Replace, 1.0, a, b));
                c
            };
            let one = product(1);
            assert!(one == product(2), "two threads");
            assert!(one == product(3), "three threads");
        }
    }
}
