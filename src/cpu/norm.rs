//! Backward pass of LayerNorm, RMSNorm and GroupNorm.
//!
//! The statistics are computed anew from `x`. A task is a run of rows of one sample, or one
//! group of it; it leaves its part of the sample's `γ` and `β` gradients, which are then added
//! up in a fixed order. Time `O(R · features)`, memory a few numbers per sample and feature.

use std::ops::Range;

use super::buffers::widened_here;
use super::column::{self, Column};
use super::regions::{flow, mark_touched};
use super::tasks::for_block_pairs;

use super::workspace::{Grow, Scratch, Threads, bytes};
use crate::ops::{LayerOutputs, NormInputs, Options};
use crate::problem::{Element, Norm, NormKind};

/// Rows that make a task worth its while.
const ROWS: usize = 64;
/// Most tasks one sample is cut into.
const PARTS: usize = 32;
const LANES: usize = 16;

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct NormBuffers {
    gamma: Vec<f32>,
    partial: Vec<f32>,
    columns: Vec<f32>,
    column: Vec<f32>,
}

impl NormBuffers {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        bytes([&self.gamma, &self.partial, &self.columns, &self.column])
    }
}

/// [`crate::ops::Backend::norm`] on checked arguments.
pub(crate) fn run<T: Element>(
    problem: &Norm,
    options: &Options,
    inputs: NormInputs<T>,
    dx: Option<&mut [T]>,
    out: LayerOutputs<T>,
    buffers: &mut NormBuffers,
    threads: &mut Threads,
) {
    let (samples, features) = (problem.rows().samples(), problem.features());
    if let Some(touched) = out.touched {
        mark_touched(touched, options, samples, |n| problem.rows().range(n).is_empty());
    }
    let records = out.sq_norm.is_some() || out.sq_norm_bias.is_some() || out.sketch.is_some();
    let gradients = out.dw.is_some() || out.db.is_some();
    let plan = Plan { gradients: records || gradients, flows: dx.is_some(), ..Plan::new(problem) };
    let measured = |n: usize| records || (gradients && column::trains(options, n));
    if !plan.gradients && !plan.flows {
        return;
    }
    // A norm has one input feature, so one flow weight for each sample.
    let through = options.routing.map_or(0, |routing| routing.layer.regions().input_region_at(0));
    threads.prepare();
    let gamma: &[f32] = match inputs.weight {
        Some(weight) => widened_here(weight, &mut buffers.gamma),
        None => &[],
    };
    let part_len = 2 * plan.part_features();
    let partial = buffers.partial.grown(samples * plan.parts * part_len);
    for_block_pairs(
        dx.unwrap_or_default(),
        partial,
        0..plan.tasks(),
        &|k| if plan.flows { plan.elements_from(k) } else { 0 },
        &|k| k * part_len,
        &|k, dx, partial| {
            let n = k / plan.parts;
            let flow = if plan.flows { flow(options, n, through) } else { 0.0 };
            let measured = measured(n);
            if flow == 0.0 {
                dx.fill(T::from_f32(0.0));
            }
            if measured || flow != 0.0 {
                plan.part(k, gamma, inputs, flow, dx, partial, threads);
            }
        },
    );
    if !plan.gradients {
        return;
    }
    let columns = buffers.columns.grown(2 * samples * features);
    let (weights, biases) = columns.split_at_mut(samples * features);
    for n in (0..samples).filter(|&n| measured(n)) {
        let parts = &buffers.partial[n * plan.parts * part_len..][..plan.parts * part_len];
        let sample = n * features..(n + 1) * features;
        plan.gather(parts, &mut weights[sample.clone()], &mut biases[sample]);
    }
    let shape = problem.gradient();
    let (weight, bias) = (Column::weight(shape, weights), Column::bias(shape, biases));
    let scale = options.sample_scale;
    for (out, column) in [(out.sq_norm, weight), (out.sq_norm_bias, bias)] {
        if let Some(out) = out {
            column.sq_norm(scale, out);
        }
    }
    for (grad, column) in [(out.dw, weight), (out.db, bias)] {
        if let Some(mut grad) = grad {
            column.reduce(options, &mut grad, &mut buffers.column);
        }
    }
    if let (Some(out), Some(sketch)) = (out.sketch, &options.sketch) {
        out.fill(0.0);
        weight.sketch(options, sketch, out, &mut buffers.column);
        if shape.bias() {
            bias.sketch(options, sketch, out, &mut buffers.column);
        }
    }
}

/// The cut into tasks.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    problem: &'a Norm,
    /// Tasks for each sample.
    parts: usize,
    gradients: bool,
    flows: bool,
}

impl<'a> Plan<'a> {
    /// Computes nothing yet.
    pub(super) fn new(problem: &'a Norm) -> Self {
        let parts = match problem.kind() {
            NormKind::Group { groups } => groups,
            _ => problem.rows().longest().div_ceil(ROWS).clamp(1, PARTS),
        };
        Self { problem, parts, gradients: false, flows: false }
    }

    /// Number of tasks.
    pub(super) fn tasks(&self) -> usize {
        self.problem.rows().samples() * self.parts
    }

    /// Features a task leaves gradients of.
    fn part_features(&self) -> usize {
        match self.problem.kind() {
            NormKind::Group { groups } => self.problem.features() / groups,
            _ => self.problem.features(),
        }
    }

    /// First element of task `k`, which ends where task `k + 1` begins.
    pub(super) fn elements_from(&self, k: usize) -> usize {
        let (rows, features) = (self.problem.rows(), self.problem.features());
        let (n, part) = (k / self.parts, k % self.parts);
        if n == rows.samples() {
            return rows.total() * features;
        }
        let range = rows.range(n);
        match self.problem.kind() {
            NormKind::Group { .. } => {
                range.start * features + part * self.part_features() * range.len()
            }
            _ => (range.start + range.len() * part / self.parts) * features,
        }
    }

    pub(super) fn elements(&self, k: usize) -> Range<usize> {
        self.elements_from(k)..self.elements_from(k + 1)
    }

    /// One task: its part of the `γ` gradient, then of the `β` gradient, in `partial`.
    #[allow(clippy::too_many_arguments)]
    fn part<T: Element>(
        &self,
        k: usize,
        gamma: &[f32],
        inputs: NormInputs<T>,
        flow: f32,
        dx: &mut [T],
        partial: &mut [f32],
        threads: &Threads,
    ) {
        let (features, elements) = (self.part_features(), self.elements(k));
        let mut own = threads.own();
        let Scratch { panel, projected, tile, .. } = &mut *own;
        let x = widened_here(&inputs.x[elements.clone()], panel);
        let dy = widened_here(&inputs.dy[elements], projected);
        let (gamma_part, beta_part) = partial.split_at_mut(features);
        let (eps, kind) = (self.problem.eps(), self.problem.kind());
        let first =
            if matches!(kind, NormKind::Group { .. }) { k % self.parts * features } else { 0 };
        // Without dx the gammas are not given.
        let gamma = gamma.get(first..first + features).unwrap_or(&[]);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match kind {
                NormKind::Group { .. } => {
                    let scale = standardise(x, true, eps);
                    group(x, dy, scale, gamma, flow, dx, gamma_part, beta_part);
                }
                _ => {
                    gamma_part.fill(0.0);
                    beta_part.fill(0.0);
                    let slopes = tile.grown(features);
                    let rows = |of| <[f32]>::chunks_exact(of, features.max(1));
                    for (r, (x, dy)) in rows(x).zip(rows(dy)).enumerate() {
                        let centred = kind == NormKind::Layer;
                        let scale = standardise(x, centred, eps);
                        if self.gradients {
                            add_row(x, dy, scale, gamma_part, beta_part);
                        }
                        if flow != 0.0 {
                            let dx = &mut dx[r * features..][..features];
                            row_dx(x, dy, scale, centred, gamma, flow, slopes, dx);
                        }
                    }
                }
            },
        );
    }

    /// `y` of task `k` from its `x`.
    pub(super) fn forward<T: Element>(
        &self,
        k: usize,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [T],
    ) {
        let features = self.part_features();
        // A set is normalised together, in runs of one feature: a row of one-element runs, or
        // a group of channels.
        let (first, set, run, centred) = match self.problem.kind() {
            NormKind::Group { .. } => {
                let run = x.len() / features.max(1);
                (k % self.parts * features, x.len(), run, true)
            }
            kind => (0, features, 1, kind == NormKind::Layer),
        };
        let (weight, bias) = (&weight[first..], bias.map(|bias| &bias[first..]));
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let sets = x.chunks_exact(set.max(1)).zip(y.chunks_exact_mut(set.max(1)));
                for (x, y) in sets {
                    let scale = standardise(x, centred, self.problem.eps());
                    let runs = x.chunks_exact(run.max(1)).zip(y.chunks_exact_mut(run.max(1)));
                    for (c, (x, y)) in runs.enumerate() {
                        let gamma = weight[c] * scale.inverse;
                        let beta = bias.map_or(0.0, |bias| bias[c]);
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = T::from_f32((x - scale.mean) * gamma + beta);
                        }
                    }
                }
            },
        );
    }

    /// One sample's gradients from those of its parts.
    fn gather(&self, parts: &[f32], weight: &mut [f32], bias: &mut [f32]) {
        let features = self.part_features();
        if features == 0 {
            return;
        }
        if let NormKind::Group { .. } = self.problem.kind() {
            for (g, part) in parts.chunks_exact(2 * features).enumerate() {
                weight[g * features..][..features].copy_from_slice(&part[..features]);
                bias[g * features..][..features].copy_from_slice(&part[features..]);
            }
            return;
        }
        weight.fill(0.0);
        bias.fill(0.0);
        for part in parts.chunks_exact(2 * features) {
            for (to, from) in [&mut *weight, &mut *bias].into_iter().zip(part.chunks(features)) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    }
}

/// What brings a set of numbers to mean 0 and variance 1: `(x - mean) · inverse`.
#[derive(Clone, Copy)]
struct Scale {
    mean: f32,
    inverse: f32,
}

#[inline(always)]
fn standardise(x: &[f32], centred: bool, eps: f32) -> Scale {
    let count = x.len().max(1) as f64;
    let mean = if centred { (sum(x, x, |x, _| x) / count) as f32 } else { 0.0 };
    let square = sum(x, x, |x, _| (x - mean) * (x - mean)) / count;
    Scale { mean, inverse: (1.0 / (square + f64::from(eps)).sqrt()) as f32 }
}

/// `Σ f(a, b)` in fixed lanes, so that it vectorises and repeats.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    // Short runs keep the rounding of a long sum small.
    const RUN: usize = 64 * LANES;
    let mut total = 0.0;
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] += f(a[lane], b[lane]);
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(f(*a, *b)));
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() + rest.sum::<f64>();
    }
    total
}

#[inline(always)]
fn add_row(x: &[f32], dy: &[f32], scale: Scale, gamma_part: &mut [f32], beta_part: &mut [f32]) {
    for (((x, dy), gamma), beta) in x.iter().zip(dy).zip(gamma_part).zip(beta_part) {
        *gamma += dy * ((x - scale.mean) * scale.inverse);
        *beta += dy;
    }
}

/// `dx` of one row; `slopes` is scratch for `γ ∘ dy`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn row_dx<T: Element>(
    x: &[f32],
    dy: &[f32],
    scale: Scale,
    centred: bool,
    gamma: &[f32],
    flow: f32,
    slopes: &mut [f32],
    dx: &mut [T],
) {
    for ((slope, dy), gamma) in slopes.iter_mut().zip(dy).zip(gamma) {
        *slope = dy * gamma;
    }
    let count = x.len() as f64;
    let mean = if centred { (sum(slopes, slopes, |d, _| d) / count) as f32 } else { 0.0 };
    let along = sum(slopes, x, |d, x| d * ((x - scale.mean) * scale.inverse)) / count;
    finish(x, slopes, scale, 1.0, flow, [mean, along as f32], dx);
}

/// `dx = flow · inverse · (gamma · dy - mean - x̂ · along)`.
#[inline(always)]
fn finish<T: Element>(
    x: &[f32],
    dy: &[f32],
    scale: Scale,
    gamma: f32,
    flow: f32,
    [mean, along]: [f32; 2],
    dx: &mut [T],
) {
    let factor = flow * scale.inverse;
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        let normalised = (x - scale.mean) * scale.inverse;
        *dx = T::from_f32(factor * (gamma * dy - mean - normalised * along));
    }
}

/// One group of a sample: `x` and `dy` are `[channels, positions]`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn group<T: Element>(
    x: &[f32],
    dy: &[f32],
    scale: Scale,
    gamma: &[f32],
    flow: f32,
    dx: &mut [T],
    gamma_part: &mut [f32],
    beta_part: &mut [f32],
) {
    let channels = gamma_part.len();
    let positions = x.len() / channels.max(1);
    let (mut mean, mut along) = (0.0, 0.0);
    for c in 0..channels {
        let channel = c * positions..(c + 1) * positions;
        let (x, dy) = (&x[channel.clone()], &dy[channel]);
        let slope = sum(dy, x, |dy, x| dy * ((x - scale.mean) * scale.inverse));
        let offset = sum(dy, dy, |dy, _| dy);
        (gamma_part[c], beta_part[c]) = (slope as f32, offset as f32);
        if let Some(&gamma) = gamma.get(c) {
            mean += f64::from(gamma) * offset;
            along += f64::from(gamma) * slope;
        }
    }
    if flow == 0.0 {
        return;
    }
    let count = x.len().max(1) as f64;
    let moments = [(mean / count) as f32, (along / count) as f32];
    for (c, &gamma) in gamma.iter().enumerate() {
        let channel = c * positions..(c + 1) * positions;
        let (x, dy) = (&x[channel.clone()], &dy[channel.clone()]);
        finish(x, dy, scale, gamma, flow, moments, &mut dx[channel]);
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, for_all_options, noise};
    use crate::ops::{Backend, NormInputs};
    use crate::problem::{Norm, Rows};
    use crate::reference;

    #[test]
    fn all_outputs_match_the_reference() {
        let ragged = || Rows::new([0, 3, 3, 200, 201]).unwrap();
        let norms = [
            Norm::layer(ragged(), 37, 1e-5).unwrap(),
            Norm::layer(ragged(), 1, 1e-5).unwrap(),
            Norm::rms(ragged(), 24, 1e-6).unwrap(),
            Norm::rms(ragged(), 5, 1e-6).unwrap().with_bias(true),
            Norm::group(5, 12, 25, 3, 1e-5).unwrap(),
            Norm::group(3, 4, 1, 1, 1e-5).unwrap().with_bias(false),
            Norm::group(2, 4, 0, 2, 1e-5).unwrap(),
            Norm::layer(Rows::uniform(0, 4).unwrap(), 3, 1e-5).unwrap(),
        ];
        let mut cpu = Cpu::new();
        for norm in norms {
            let (shape, samples) = (norm.gradient(), norm.rows().samples());
            let len = norm.rows().total() * norm.features();
            let (x, dy, weight) = (noise(len, 1), noise(len, 2), noise(norm.features(), 3));
            let inputs = NormInputs { x: &x, dy: &dy, weight: Some(&weight) };
            for_all_options(shape, samples, |options| {
                let expected = reference::norm(&norm, options, inputs).unwrap();
                let mut buffers = Buffers::new(shape, samples, len, options);
                let (dx, out) = buffers.split(shape.bias());
                Cpu::new().norm(&norm, options, inputs, Some(dx), out).unwrap();
                buffers.check(&expected, 1e-5, &format!("{norm:?} {options:?}"));
            });
            // The workspace left by other shapes changes nothing.
            let mut dx = vec![f32::NAN; len];
            let options = crate::ops::Options::default();
            cpu.norm(&norm, &options, inputs, Some(&mut dx), Default::default()).unwrap();
            let mut fresh = vec![f32::NAN; len];
            Cpu::new().norm(&norm, &options, inputs, Some(&mut fresh), Default::default()).unwrap();
            assert_eq!(dx, fresh);
        }
    }
}
