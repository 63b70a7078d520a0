//! A sample's squared gradient norm from its rows: `Σ_{t,t'} (x_t · x_t')(dy_t · dy_t')`.
//!
//! Gram matrices are symmetric, and a GEMM library computes both halves and copies the rows into an
//! order of its own first. Here the rows are read where they lie, a few times a few of them at once,
//! and only pairs on and below the diagonal are formed.

use std::ops::Range;

use faer::MatRef;
use pulp::{Simd, WithSimd};

use super::gemm::row;
use super::workspace::Grow;

/// Columns that pass at a time, so that the rows of a block stay in the first-level cache while
/// those of the others come from the second.
const CHUNK: usize = 1024;

/// `‖dYᵀ X‖²` of row-major `x [T, I]` and `dy [T, O]`; `O(T² (I + O) / 2)`.
pub(crate) fn square(x: MatRef<f32>, dy: MatRef<f32>, scratch: &mut Vec<f32>) -> f64 {
    let t = x.nrows();
    let grams = scratch.grown(2 * t * t);
    grams.fill(0.0);
    let (gram_x, gram_dy) = grams.split_at_mut(t * t);
    add_lower(x, gram_x);
    add_lower(dy, gram_dy);
    inner(gram_x, gram_dy, t)
}

/// `gram [T, T] += of · ofᵀ` on and below the diagonal; what lies above is of any content.
pub(crate) fn add_lower(of: MatRef<f32>, gram: &mut [f32]) {
    pulp::Arch::new().dispatch(Lower { of, gram });
}

/// `Σ_{t,t'} a[t, t'] · b[t, t']` of symmetric matrices, read on and below the diagonal.
pub(crate) fn inner(a: &[f32], b: &[f32], t: usize) -> f64 {
    let product = |at: usize| f64::from(a[at]) * f64::from(b[at]);
    // Off the diagonal a pair stands for two.
    let row = |row: usize| -> f64 {
        let below: f64 = (row * t..row * t + row).map(product).sum();
        2.0 * below + product(row * t + row)
    };
    (0..t).map(row).sum()
}

/// `scale² · squares` as a squared norm: rounding may leave less than nothing of a sum that cancels.
pub(crate) fn scaled(squares: f64, scale: f32) -> f32 {
    let squares = if squares < 0.0 { 0.0 } else { squares };
    (squares * f64::from(scale) * f64::from(scale)) as f32
}

/// [`add_lower`].
struct Lower<'a> {
    of: MatRef<'a, f32>,
    gram: &'a mut [f32],
}

impl WithSimd for Lower<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as there are registers for, beside what they are made of.
        match S::REGISTER_COUNT {
            32.. => self.blocks::<S, 6, 4>(simd),
            _ => self.blocks::<S, 3, 3>(simd),
        }
    }
}

impl Lower<'_> {
    /// In blocks of `R` rows times `C` rows.
    #[inline(always)]
    fn blocks<S: Simd, const R: usize, const C: usize>(self, simd: S) {
        let Self { of, gram } = self;
        let t = of.nrows();
        for start in (0..of.ncols()).step_by(CHUNK) {
            let columns = start..(start + CHUNK).min(of.ncols());
            for i in (0..t).step_by(R) {
                let left = rows::<R>(of, i, &columns);
                for j in (0..t.min(i + R)).step_by(C) {
                    let dots = dots(simd, left, rows::<C>(of, j, &columns));
                    for (r, dots) in dots.iter().enumerate().take(t - i) {
                        let sums = &mut gram[(i + r) * t + j..][..C.min(t - j)];
                        sums.iter_mut().zip(dots).for_each(|(sum, dot)| *sum += dot);
                    }
                }
            }
        }
    }
}

/// Some columns of the rows from one on; beyond the end the last one stands in, and what it gives
/// is dropped.
#[inline(always)]
fn rows<'a, const R: usize>(
    of: MatRef<'a, f32>,
    first: usize,
    columns: &Range<usize>,
) -> [&'a [f32]; R] {
    let mut rows = [&[][..]; R];
    for (r, to) in rows.iter_mut().enumerate() {
        *to = &row(of, (first + r).min(of.nrows() - 1))[columns.clone()];
    }
    rows
}

/// The inner products of `R` rows with `C` rows of the same length.
///
/// In loops over indices: what closures compute here would leave the registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dots<S: Simd, const R: usize, const C: usize>(
    simd: S,
    left: [&[f32]; R],
    right: [&[f32]; C],
) -> [[f32; C]; R] {
    let zero = simd.splat_f32s(0.0);
    let mut sums = [[zero; C]; R];
    let (mut a, mut b) = ([(&[][..], zero); R], [(&[][..], zero); C]);
    for r in 0..R {
        let (whole, rest) = S::as_simd_f32s(left[r]);
        a[r] = (whole, simd.partial_load_f32s(rest));
    }
    let count = a[0].0.len();
    for c in 0..C {
        let (whole, rest) = S::as_simd_f32s(right[c]);
        b[c] = (&whole[..count], simd.partial_load_f32s(rest));
    }
    for r in 0..R {
        a[r].0 = &a[r].0[..count];
    }
    for k in 0..count {
        let mut own = [zero; R];
        for r in 0..R {
            own[r] = a[r].0[k];
        }
        for c in 0..C {
            let other = b[c].0[k];
            for r in 0..R {
                sums[r][c] = simd.mul_add_f32s(own[r], other, sums[r][c]);
            }
        }
    }
    let mut dots = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            dots[r][c] = simd.reduce_sum_f32s(simd.mul_add_f32s(a[r].1, b[c].1, sums[r][c]));
        }
    }
    dots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::view;

    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * step) % 11) as f32 - 5.0).collect()
    }

    /// `‖dYᵀ X‖²` by forming the gradient.
    fn formed(x: &[f32], dy: &[f32], [t, inputs, outputs]: [usize; 3], wide: usize) -> f64 {
        let element = |o: usize, i: usize| -> f64 {
            let products =
                (0..t).map(|t| dy[t * (outputs + wide) + o] * x[t * (inputs + wide) + i]);
            products.map(f64::from).sum()
        };
        (0..outputs * inputs).map(|at| element(at / inputs, at % inputs).powi(2)).sum()
    }

    #[test]
    fn integers_give_the_formed_gradients_norm_at_every_remainder() {
        let mut scratch = vec![f32::NAN; 7];
        for t in [0, 1, 2, 3, 4, 6, 7, 13, 24] {
            // Beyond a chunk as well.
            for (inputs, outputs) in [(0, 3), (1, 1), (15, 17), (16, 40), (1024, 5), (2100, 3)] {
                // Rows lie further apart than they are long.
                for wide in [0, 3] {
                    let x = numbers(t * (inputs + wide), 3);
                    let dy = numbers(t * (outputs + wide), 7);
                    let got = square(
                        view(&x, t, inputs, inputs + wide),
                        view(&dy, t, outputs, outputs + wide),
                        &mut scratch,
                    );
                    let expected = formed(&x, &dy, [t, inputs, outputs], wide);
                    assert_eq!(got, expected, "{t} rows of {inputs} and {outputs}");
                }
            }
        }
    }

    #[test]
    fn narrower_registers_give_the_same() {
        let (t, inputs) = (11, 530);
        let x = numbers(t * inputs, 3);
        let gram = |wide: bool| {
            let mut gram = vec![1.0; t * t];
            let lower = Lower { of: view(&x, t, inputs, inputs), gram: &mut gram };
            match wide {
                true => pulp::Arch::new().dispatch(lower),
                false => lower.blocks::<_, 3, 3>(pulp::Scalar256b),
            }
            gram
        };
        let (one, other) = (gram(true), gram(false));
        for i in 0..t {
            assert_eq!(one[i * t..][..=i], other[i * t..][..=i]);
        }
    }
}
