//! Forward passes on the backend's own products and workspace.
//!
//! The values are those of the layers in [`crate::problem`], in the input's format with `f32`
//! accumulation; what a training loop on this backend calls before the backward pass.
//!
//! ```
//! use gradroute::cpu::Cpu;
//! use gradroute::problem::{Linear, Rows};
//!
//! let layer = Linear::new(Rows::uniform(1, 2)?, 2, 1)?.with_bias(true);
//! let mut y = [0.0_f32; 2];
//! Cpu::new().linear_forward(&layer, &[1.0, 2.0, 3.0, 4.0], &[1.0, -1.0], Some(&[0.5]), &mut y)?;
//! assert_eq!(y, [-0.5, -0.5]);
//! # Ok::<(), gradroute::Error>(())
//! ```

use rayon::prelude::*;

use super::Cpu;
use super::buffers::{widened, widened_here, with_values};
use super::conv_forward::Convolution;
use super::conv2d::positions;
use super::gemm::{Write, par_gemm, view, view_mut};
use super::norm::Plan;
use super::tasks::for_blocks;
use crate::error::expect_len;
use crate::problem::{Conv2d, Element, Embedding, Linear, Norm};
use crate::{Error, Result};

impl Cpu {
    /// `y [N, O, Ho, Wo] = W ∗ x + b`, any kind of convolution.
    /// Time `O(N · O · Ho · Wo · kh · kw · C / groups)`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the buffer of the wrong size.
    pub fn conv2d_forward<T: Element>(
        &mut self,
        problem: &Conv2d,
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        let (spec, shape, positions) = (problem.spec(), problem.gradient(), positions(problem));
        let pixels = spec.size[0] * spec.size[1];
        expect_len("x", spec.samples * spec.in_channels * pixels, x.len())?;
        expect_len("weight", shape.weights(), weight.len())?;
        expect_len("y", spec.samples * spec.out_channels * positions, y.len())?;
        check_bias(shape.bias(), shape.outputs(), bias)?;
        if y.is_empty() {
            return Ok(());
        }
        let super::workspace::Workspace { wide, conv, linear, .. } = &mut self.workspace;
        linear.threads.prepare();
        conv.taps.set(problem);
        let x = widened(x, &mut wide.x);
        let weight = widened(weight, &mut wide.weight);
        let bias = bias.map(|bias| widened(bias, &mut wide.dy));
        let (taps, threads) = (&conv.taps, &linear.threads);
        with_values(y, &mut wide.dx, |y| {
            Convolution { problem, x, weight, taps, threads, scale: |_, _| 1.0 }.run(y);
            if let Some(bias) = bias {
                let planes = y.par_chunks_exact_mut(positions).enumerate();
                planes.for_each(|(k, plane)| {
                    plane.iter_mut().for_each(|y| *y += bias[k % spec.out_channels]);
                });
            }
        });
        Ok(())
    }

    /// `y [R, O] = x Wᵀ + b`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the buffer of the wrong size.
    pub fn linear_forward<T: Element>(
        &mut self,
        problem: &Linear,
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        let (rows, shape) = (problem.rows().total(), problem.gradient());
        let (inputs, outputs) = (shape.inputs(), shape.outputs());
        expect_len("x", rows * inputs, x.len())?;
        expect_len("weight", shape.weights(), weight.len())?;
        expect_len("y", rows * outputs, y.len())?;
        check_bias(shape.bias(), outputs, bias)?;
        if y.is_empty() {
            return Ok(());
        }
        let wide = &mut self.workspace.wide;
        let x = view(widened(x, &mut wide.x), rows, inputs, inputs);
        let weight = view(widened(weight, &mut wide.weight), outputs, inputs, inputs);
        let bias = bias.map(|bias| widened(bias, &mut wide.dy));
        let product = |y: &mut [f32]| {
            par_gemm(
                view_mut(y, rows, outputs, outputs),
                Write::Replace,
                1.0,
                x,
                weight.transpose(),
            );
            if let Some(bias) = bias {
                add_bias(y, bias);
            }
        };
        with_values(y, &mut wide.dx, product);
        Ok(())
    }

    /// `y = γ ∘ x̂ + β`, shaped as `x`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the buffer of the wrong size.
    pub fn norm_forward<T: Element>(
        &mut self,
        problem: &Norm,
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        let len = problem.rows().total() * problem.features();
        expect_len("x", len, x.len())?;
        expect_len("weight", problem.features(), weight.len())?;
        expect_len("y", len, y.len())?;
        check_bias(problem.gradient().bias(), problem.features(), bias)?;
        let super::workspace::Workspace { wide, linear, .. } = &mut self.workspace;
        linear.threads.prepare();
        let threads = &linear.threads;
        let weight = widened(weight, &mut wide.weight);
        let bias = bias.map(|bias| widened(bias, &mut wide.dy));
        let plan = Plan::new(problem);
        for_blocks(y, 0..plan.tasks(), &|k| plan.elements_from(k), &|k, y| {
            let mut own = threads.own();
            let x = widened_here(&x[plan.elements(k)], &mut own.panel);
            plan.forward(k, x, weight, bias, y);
        });
        Ok(())
    }

    /// `y [R, features]`: the table's rows for the tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the buffer of the wrong size or the token out of range.
    pub fn embedding_forward<T: Element>(
        &mut self,
        problem: &Embedding,
        tokens: &[u32],
        weight: &[T],
        y: &mut [T],
    ) -> Result<()> {
        let features = problem.features();
        expect_len("tokens", problem.rows().total(), tokens.len())?;
        expect_len("weight", problem.vocabulary() * features, weight.len())?;
        expect_len("y", tokens.len() * features, y.len())?;
        if let Some(r) = tokens.iter().position(|&t| t as usize >= problem.vocabulary()) {
            let expected = format!("a token below {}", problem.vocabulary());
            return Err(Error::argument(format!("tokens[{r}]"), expected, tokens[r]));
        }
        for (y, &token) in y.chunks_exact_mut(features.max(1)).zip(tokens) {
            y.copy_from_slice(&weight[token as usize * features..][..features]);
        }
        Ok(())
    }
}

/// Adds a bias to each row of its length.
pub(super) fn add_bias(y: &mut [f32], bias: &[f32]) {
    y.par_chunks_mut(64 * bias.len().max(1)).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    });
}

fn check_bias<T>(has: bool, outputs: usize, bias: Option<&[T]>) -> Result<()> {
    match bias {
        Some(_) if !has => {
            Err(Error::argument("bias", "none for a layer without a bias", "a buffer"))
        }
        Some(bias) => expect_len("bias", outputs, bias.len()),
        None if has => Err(Error::argument("bias", "the layer's bias", "none")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::cpu::conv2d::tests::kinds;
    use crate::cpu::testing::{integers, noise};
    use crate::problem::Rows;

    fn convolve(problem: &Conv2d, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (spec, shape, [ho, wo]) = (problem.spec(), problem.gradient(), problem.out_size());
        let (channels, [h, w]) = (problem.channels_per_group(), spec.size);
        let mut y = Vec::new();
        for (n, o) in (0..spec.samples).flat_map(|n| (0..spec.out_channels).map(move |o| (n, o))) {
            let g = o / (spec.out_channels / spec.groups);
            for at in 0..ho * wo {
                let mut sum = bias.map_or(0.0, |bias| bias[o]);
                for i in 0..shape.inputs() {
                    let (tap, c) = (i / channels, i % channels + g * channels);
                    let row = problem.source(0, at / wo, tap / spec.kernel[1]);
                    let column = problem.source(1, at % wo, tap % spec.kernel[1]);
                    let (Some(row), Some(column)) = (row, column) else { continue };
                    let pixel = ((n * spec.in_channels + c) * h + row) * w + column;
                    sum += weight[problem.weight_index(o, i)] * x[pixel];
                }
                y.push(sum);
            }
        }
        y
    }

    #[test]
    fn every_kind_of_convolution_matches_loops_bit_for_bit() {
        let mut cpu = Cpu::new();
        for spec in kinds() {
            let conv = Conv2d::new(spec).unwrap();
            let x = integers(spec.samples * spec.in_channels * spec.size[0] * spec.size[1], 1);
            let weight = integers(conv.gradient().weights(), 2);
            let bias = spec.bias.then(|| integers(spec.out_channels, 3));
            let expected = convolve(&conv, &x, &weight, bias.as_deref());
            let mut y = vec![f32::NAN; expected.len()];
            cpu.conv2d_forward(&conv, &x, &weight, bias.as_deref(), &mut y).unwrap();
            assert_eq!(y, expected, "{spec:?}");
            let half =
                |values: &[f32]| values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>();
            let mut y = half(&y);
            let bias = bias.map(|bias| half(&bias));
            cpu.conv2d_forward(&conv, &half(&x), &half(&weight), bias.as_deref(), &mut y).unwrap();
            assert_eq!(y, half(&expected), "{spec:?}");
        }
    }

    #[test]
    fn linear_matches_loops_bit_for_bit() {
        let layer = Linear::new(Rows::new([0, 3, 70]).unwrap(), 20, 33).unwrap().with_bias(true);
        let (x, weight, bias) = (integers(70 * 20, 1), integers(33 * 20, 2), integers(33, 3));
        let mut y = vec![f32::NAN; 70 * 33];
        Cpu::new().linear_forward(&layer, &x, &weight, Some(&bias), &mut y).unwrap();
        for (at, y) in y.iter().enumerate() {
            let (x, weight) = (&x[at / 33 * 20..][..20], &weight[at % 33 * 20..][..20]);
            let sum: f32 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
            assert_eq!(*y, sum + bias[at % 33]);
        }
        let missing = Cpu::new().linear_forward(&layer, &x, &weight, None, &mut y);
        assert!(missing.unwrap_err().to_string().contains("bias"));
    }

    #[test]
    fn norms_have_the_moments_they_promise() {
        let rows = || Rows::new([0, 2, 2, 90]).unwrap();
        let norms = [
            Norm::layer(rows(), 40, 0.0).unwrap(),
            Norm::rms(rows(), 40, 0.0).unwrap(),
            Norm::group(3, 40, 30, 5, 0.0).unwrap(),
        ];
        for norm in norms {
            let len = norm.rows().total() * 40;
            let (x, weight, zero) = (noise(len, 1), vec![2.0; 40], vec![0.5; 40]);
            let bias = norm.gradient().bias().then_some(&zero[..]);
            let mut y = vec![f32::NAN; len];
            Cpu::new().norm_forward(&norm, &x, &weight, bias, &mut y).unwrap();
            let set = if matches!(norm.kind(), crate::problem::NormKind::Group { .. }) {
                240
            } else {
                40
            };
            for (x, y) in x.chunks(set).zip(y.chunks(set)) {
                let moment = |power: i32| {
                    y.iter()
                        .map(|y| ((y - bias.map_or(0.0, |b| b[0])) / 2.0).powi(power))
                        .sum::<f32>()
                        / set as f32
                };
                assert!((moment(2) - 1.0).abs() < 1e-4, "{norm:?}: {}", moment(2));
                assert!(bias.is_none() || moment(1).abs() < 1e-5);
                assert!((x[0] > x[1]) == (y[0] > y[1]));
            }
        }
    }

    #[test]
    fn tokens_pick_rows() {
        let table = Embedding::new(Rows::uniform(1, 3).unwrap(), 2, 2).unwrap();
        let mut y = [0.0f32; 6];
        Cpu::new().embedding_forward(&table, &[1, 0, 1], &[1.0, 2.0, 3.0, 4.0], &mut y).unwrap();
        assert_eq!(y, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        let wrong = Cpu::new().embedding_forward(&table, &[1, 2, 1], &[0.0; 4], &mut y);
        assert!(wrong.unwrap_err().to_string().contains("tokens[1]"));
    }
}
