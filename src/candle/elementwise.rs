//! Activations and resizing as custom ops: candle's own run on one thread and go through
//! several temporaries in the backward pass.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use pulp::Arch;
use rayon::prelude::*;

use super::tensors::{Number, by_dtype, cpu_slice, slice};
use crate::Error;
use crate::problem::Element;

/// Elements handled by one task.
const CHUNK: usize = 1 << 13;

/// `x · σ(x)`, with its exact derivative.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[-1f32, 0., 1.], &Device::Cpu)?;
/// let y = gradroute::candle::silu(&x)?.to_vec1::<f32>()?;
/// assert!((y[0] + 0.26894142).abs() < 1e-6 && y[1] == 0.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// For a tensor that is not in `f32`, `f16` or `bf16`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.silu();
    }
    x.contiguous()?.apply_op1(Silu)
}

/// Each pixel of `x [N, C, H, W]` repeated `factor` times both ways (nearest neighbour).
///
/// # Errors
/// [`Error::Argument`] for a factor of 0 or an `x` without four dimensions.
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    if factor == 0 || x.rank() != 4 {
        let given = format!("{factor}, {:?}", x.dims());
        return Err(Error::argument("factor", "at least 1, and x [N, C, H, W]", given).into());
    }
    if !x.device().is_cpu() {
        return x.upsample_nearest2d(x.dim(2)? * factor, x.dim(3)? * factor);
    }
    x.contiguous()?.apply_op1(Upsample { factor })
}

struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = by_dtype!(storage.dtype(), T => {
            let x = cpu_slice::<T>(storage, layout)?;
            let y = map(x, x, |x, _| x * sigmoid(x));
            Ok::<_, Error>(<T as WithDType>::to_cpu_storage_owned(y))
        })?;
        Ok((values, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (dys, dyl)) = (x.storage_and_layout(), dy.storage_and_layout());
        by_dtype!(x.dtype(), T => {
            let dx = map(slice::<T>(&xs, xl)?, slice::<T>(&dys, dyl)?, |x, dy| {
                let s = sigmoid(x);
                dy * s * (1.0 + x * (1.0 - s))
            });
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// `f` of every pair, in parallel and vectorised.
fn map<T: Number>(a: &[T], b: &[T], f: impl Fn(f32, f32) -> f32 + Copy + Sync) -> Vec<T> {
    let mut out = vec![T::from_f32(0.0); a.len()];
    out.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(
        |(out, (a, b))| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                        *out = T::from_f32(f(Element::to_f32(*a), Element::to_f32(*b)));
                    }
                },
            );
        },
    );
    out
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `eˣ` to about one unit in the last place, without branches so that loops vectorise:
/// `x = n ln 2 + r`, a polynomial in `r`, and `n` added to the exponent. Beyond ±87 it stays at
/// the end of the range; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough for n · part to be exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let clamped = if x > 87.0 { 87.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2[0]) - n * LN2[1];
    // The Taylor series up to r⁷ / 7!: |r| ≤ ln 2 / 2 leaves less than an f32 can hold.
    let mut p = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + factor;
    }
    // The low bits of the shifted number are n.
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    p * f32::from_bits(exponent)
}

#[derive(Clone, Copy)]
struct Upsample {
    factor: usize,
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = layout.shape().dims4()?;
        let (f, large) = (self.factor, w * self.factor);
        let values = by_dtype!(storage.dtype(), T => {
            let x = cpu_slice::<T>(storage, layout)?;
            let mut y = vec![T::from_f32(0.0); x.len() * f * f];
            let rows = y.par_chunks_mut((large * f).max(1)).zip(x.par_chunks(w.max(1)));
            rows.with_min_len(64).for_each(|(rows, x)| {
                let (first, others) = rows.split_at_mut(large);
                for (run, x) in first.chunks_exact_mut(f).zip(x) {
                    run.fill(*x);
                }
                others.chunks_exact_mut(large).for_each(|row| row.copy_from_slice(first));
            });
            Ok::<_, Error>(<T as WithDType>::to_cpu_storage_owned(y))
        })?;
        Ok((values, Shape::from((n, c, h * f, large))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (storage, layout) = dy.storage_and_layout();
        let (f, w) = (self.factor, x.dim(3)?);
        by_dtype!(dy.dtype(), T => {
            let dy = slice::<T>(&storage, layout)?;
            let mut dx = vec![T::from_f32(0.0); x.elem_count()];
            let rows = dx.par_chunks_mut(w.max(1)).zip(dy.par_chunks((w * f * f).max(1)));
            rows.with_min_len(64).for_each(|(dx, dy)| {
                for (at, dx) in dx.iter_mut().enumerate() {
                    let rows = dy.chunks_exact(w * f).flat_map(|row| &row[at * f..][..f]);
                    *dx = T::from_f32(rows.map(|&dy| Element::to_f32(dy)).sum());
                }
            });
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn the_exponential_is_accurate() {
        for k in -8700..=8700 {
            let x = k as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}): relative error {error:e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) >= 0.0);
    }
}
