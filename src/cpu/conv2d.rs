//! Backward pass of a convolution, all kinds.
//!
//! `dw` and the records come from per-sample gradients formed tile by tile
//! ([`super::formed`]): a tile is `dY_n [outputs, positions]` times a panel of patches, which
//! never exist but for that panel. For `dx` see [`super::conv_dx`].
//! Time `O(N · O · Ho · Wo · kh · kw · C / groups)`.

use faer::MatMut;
use rayon::prelude::*;

use super::buffers::widened;
use super::formed::{self, Form, Job, Partials};
use super::gemm::{Write, gemm, view, view_mut};
use super::im2col::{channels_last, gather, transpose};
use super::regions::{Rect, mark_touched};
use super::tasks::for_blocks;
use super::workspace::{Grow, Threads, bytes};
use super::{bias, column, conv_dx, conv_sketch, signs};
use crate::ops::{ConvInputs, LayerOutputs, Options, ParamGrad};
use crate::problem::{Conv2d, Element};
use crate::projection::SketchKind;

/// Numbers a panel of patches holds.
pub(super) const PANEL: usize = 1 << 17;
/// Columns of a product that make it worth its while.
pub(super) const COLUMNS: usize = 384;

/// Numbers of `dw` that are summed channels last before they are turned, so that they stay in
/// the last-level cache meanwhile.
const BAND: usize = 1 << 21;
/// Outputs of a formed tile at most.
const OUTPUTS: usize = 128;

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct ConvBuffers {
    pub(super) image: Vec<f32>,
    dy: Vec<f32>,
    dy_last: Vec<f32>,
    pub(super) weight: Vec<f32>,
    total: Vec<f32>,
    bias_sums: Vec<f32>,
    bias: Vec<f32>,
    signs: [Vec<f32>; 2],
    projected: [Vec<f32>; 2],
    partials: Partials,
}

impl ConvBuffers {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let own = [
            &self.image,
            &self.dy,
            &self.dy_last,
            &self.weight,
            &self.total,
            &self.bias_sums,
            &self.bias,
        ];
        bytes(own.into_iter().chain(&self.signs).chain(&self.projected)) + self.partials.bytes()
    }
}

/// [`crate::ops::Backend::conv2d`] on checked arguments.
pub(crate) fn run<T: Element>(
    problem: &Conv2d,
    options: &Options,
    inputs: ConvInputs<T>,
    dx: Option<&mut [T]>,
    mut out: LayerOutputs<T>,
    buffers: &mut ConvBuffers,
    threads: &mut Threads,
) {
    let (shape, samples, positions) =
        (problem.gradient(), problem.spec().samples, positions(problem));
    if let Some(touched) = &mut out.touched {
        mark_touched(touched, options, samples, |_| positions == 0);
    }
    threads.prepare();
    let dy = widened(inputs.dy, &mut buffers.dy);
    if let (Some(dx), Some(weight)) = (dx, inputs.weight) {
        let scratch = (&mut buffers.weight, &mut buffers.dy_last);
        conv_dx::run(problem, options, dy, weight, dx, scratch, threads);
    }
    let ConvBuffers { image, total, bias_sums, signs, projected, partials, .. } = buffers;
    let recorded = out.sq_norm.is_some() || out.sketch.is_some();
    let taken = |n: usize| recorded || column::trains(options, n);
    if out.dw.is_some() || recorded {
        let image = image.grown(inputs.x.len());
        let (spec, channels) = (problem.spec(), problem.channels_per_group());
        let images = [samples * spec.groups, channels, spec.size[0] * spec.size[1]];
        channels_last(inputs.x, images, |image| taken(image / spec.groups), image);
        let operands = Operands { problem, image, dy };
        let scratch = Buffers { total, signs, projected, partials };
        weight_gradient(&operands, options, &mut out, scratch, threads);
    }
    if bias::is_asked(shape, &out) {
        let sums = bias_sums.grown(samples * shape.outputs());
        let recorded = out.sq_norm_bias.is_some() || out.sketch.is_some();
        let taken = |n: usize| recorded || column::trains(options, n);
        sum_positions(problem, dy, taken, sums);
        bias::finish(shape, options, sums, &mut out, &mut buffers.bias);
    }
}

/// Output positions of a sample.
pub(super) fn positions(problem: &Conv2d) -> usize {
    problem.out_size().iter().product()
}

/// `dY` of one sample and group, `[outputs / groups, positions]`.
pub(super) fn group_dy<'a>(problem: &Conv2d, dy: &'a [f32], n: usize, g: usize) -> &'a [f32] {
    let spec = problem.spec();
    let len = spec.out_channels / spec.groups * positions(problem);
    &dy[(n * spec.groups + g) * len..][..len]
}

/// What forms tiles of per-sample gradients.
pub(super) struct Operands<'a> {
    pub(super) problem: &'a Conv2d,
    /// `[N, groups, pixels, C / groups]`.
    image: &'a [f32],
    /// `[N, O, positions]`.
    pub(super) dy: &'a [f32],
}

impl Operands<'_> {
    pub(super) fn image(&self, n: usize, g: usize) -> &[f32] {
        let spec = self.problem.spec();
        let len = spec.size[0] * spec.size[1] * self.problem.channels_per_group();
        &self.image[(n * spec.groups + g) * len..][..len]
    }
}

impl Form for Operands<'_> {
    fn is_empty(&self, _: usize) -> bool {
        positions(self.problem) == 0
    }

    fn form(
        &self,
        n: usize,
        at: &Rect,
        mut out: MatMut<f32>,
        write: Write,
        alpha: f32,
        panel: &mut Vec<f32>,
    ) {
        let (spec, positions) = (self.problem.spec(), positions(self.problem));
        let (outputs, columns) = (spec.out_channels / spec.groups, at.inputs.len());
        let band = (PANEL / columns.max(1)).max(1).min(positions);
        for g in at.outputs.start / outputs..at.outputs.end.div_ceil(outputs) {
            let first = at.outputs.start.max(g * outputs);
            let last = at.outputs.end.min((g + 1) * outputs);
            let dy = view(group_dy(self.problem, self.dy, n, g), outputs, positions, positions);
            let dy = dy.subrows(first - g * outputs, last - first);
            let mut write = write;
            for start in (0..positions).step_by(band) {
                let count = band.min(positions - start);
                let panel = panel.grown(count * columns);
                let width = self.problem.channels_per_group();
                let seen = start..start + count;
                gather(self.problem, self.image(n, g), width, seen, at.inputs.clone(), panel);
                let out = out.as_mut().subrows_mut(first - at.outputs.start, last - first);
                let dy = dy.subcols(start, count);
                gemm(out, write, alpha, dy, view(panel, count, columns, columns));
                write = Write::Add;
            }
        }
    }
}

/// Buffers of [`weight_gradient`].
struct Buffers<'a> {
    total: &'a mut Vec<f32>,
    signs: &'a mut [Vec<f32>; 2],
    projected: &'a mut [Vec<f32>; 2],
    partials: &'a mut Partials,
}

/// `dw` and the weight's part of the records, one band of output channels after the other.
fn weight_gradient<T: Element>(
    operands: &Operands,
    options: &Options,
    out: &mut LayerOutputs<T>,
    scratch: Buffers,
    threads: &mut Threads,
) {
    let (problem, shape) = (operands.problem, operands.problem.gradient());
    let sketch = options.sketch.filter(|_| out.sketch.is_some());
    let Buffers { total, signs, projected, partials } = scratch;
    let two_sided = sketch.and_then(|sketch| match sketch.kind() {
        SketchKind::TwoSided { outputs, inputs } => {
            Some(signs::draw(sketch.key(), shape, [outputs, inputs], signs))
        }
        SketchKind::Count { .. } => None,
    });
    let by_rows = two_sided.filter(|signs| conv_sketch::by_rows(problem, options, *signs));
    if let (Some(signs), Some(out)) = (by_rows, &mut out.sketch) {
        conv_sketch::run(operands, options, signs, out, projected, threads);
    }
    let count = sketch.is_some() && two_sided.is_none();
    let signs = two_sided.filter(|_| by_rows.is_none());
    let norms = out.sq_norm.is_some();
    if out.dw.is_none() && !norms && !count && signs.is_none() {
        return;
    }
    let (tile, inputs) = (tile(problem), shape.inputs());
    let band = (BAND / inputs.max(1) / tile[0]).max(1) * tile[0];
    for start in (0..shape.outputs().max(1)).step_by(band) {
        let outputs = start..(start + band).min(shape.outputs());
        let samples = problem.spec().samples;
        let rows = outputs.len();
        let weights = start * inputs..outputs.end * inputs;
        let write = Write::Replace;
        let job = Job { shape, outputs, samples, options, write, tile, norms, count, signs };
        let dw =
            out.dw.as_ref().map(|_| view_mut(total.grown(rows * inputs), rows, inputs, inputs));
        let sketch = out.sketch.as_deref_mut().filter(|_| by_rows.is_none());
        let sq_norm = out.sq_norm.as_deref_mut();
        formed::run(&job, operands, dw, sq_norm, sketch, partials, threads);
        let accumulate = options.accumulate;
        match &mut out.dw {
            Some(ParamGrad::F32(dw)) => {
                write_weight(problem, total, &mut dw[weights], accumulate, threads);
            }
            Some(ParamGrad::Native(dw)) => {
                write_weight(problem, total, &mut dw[weights], accumulate, threads);
            }
            None => {}
        }
    }
}

/// Extents of a formed tile: a product that runs at full speed, which with its share of `dw`
/// stays in a core's second-level cache.
fn tile(problem: &Conv2d) -> [usize; 2] {
    let shape = problem.gradient();
    let fit = |extent: usize, most: usize| {
        let parts = extent.div_ceil(most).max(1);
        extent.div_ceil(parts).next_multiple_of(8).max(8)
    };
    [fit(shape.outputs(), OUTPUTS), COLUMNS.min(shape.inputs().next_multiple_of(8)).max(8)]
}

/// Rows of `dw [O, C / groups, kh, kw] (+)=` those of `total [O, kh, kw, C / groups]`.
fn write_weight<T: Element>(
    problem: &Conv2d,
    total: &[f32],
    dw: &mut [T],
    accumulate: bool,
    threads: &Threads,
) {
    let (shape, taps) = (problem.gradient(), problem.gradient().taps());
    let (inputs, channels) = (shape.inputs(), problem.channels_per_group());
    for_blocks(dw, 0..dw.len() / inputs.max(1), &|o| o * inputs, &|o, dw| {
        let row = &total[o * inputs..(o + 1) * inputs];
        if taps == 1 {
            return column::write_to(dw, row, accumulate);
        }
        let mut own = threads.own();
        let turned = own.tile.grown(inputs);
        transpose(row, [taps, channels], channels, turned, taps, |value| value);
        column::write_to(dw, turned, accumulate);
    });
}

/// `sums [N, O] = Σ dY` over positions, for the samples taken.
fn sum_positions(
    problem: &Conv2d,
    dy: &[f32],
    taken: impl Fn(usize) -> bool + Sync,
    sums: &mut [f32],
) {
    let (outputs, positions) = (problem.spec().out_channels, positions(problem));
    if outputs == 0 || positions == 0 {
        return sums.fill(0.0);
    }
    sums.par_iter_mut().enumerate().with_min_len(64).for_each(|(k, sum)| {
        if taken(k / outputs) {
            *sum = lane_sum(&dy[k * positions..(k + 1) * positions]);
        }
    });
}

/// A sum in fixed lanes, so that it vectorises and repeats.
fn lane_sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    (lanes.iter().chain(rest).map(|value| f64::from(*value)).sum::<f64>()) as f32
}

#[cfg(test)]
pub(super) mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, for_all_options, integers, noise};
    use crate::ops::{Backend, ConvInputs, Options};
    use crate::problem::{Conv2d, Conv2dSpec, Padding, PaddingMode};
    use crate::projection::Sketch;
    use crate::reference;

    pub(crate) fn kinds() -> Vec<Conv2dSpec> {
        let base = Conv2dSpec {
            samples: 3,
            in_channels: 8,
            out_channels: 16,
            size: [6, 7],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            bias: true,
            ..Conv2dSpec::default()
        };
        let same = Padding::same([2, 4], [2, 1]);
        vec![
            base,
            Conv2dSpec { stride: [2, 3], ..base },
            Conv2dSpec { dilation: [2, 1], padding: Padding::default(), ..base },
            Conv2dSpec { groups: 4, ..base },
            Conv2dSpec { groups: 8, out_channels: 24, ..base },
            Conv2dSpec { in_channels: 6, out_channels: 10, groups: 2, bias: false, ..base },
            Conv2dSpec { padding_mode: PaddingMode::Circular, ..base },
            Conv2dSpec {
                padding: Padding { top: 0, bottom: 3, left: 2, right: 5 },
                padding_mode: PaddingMode::Circular,
                stride: [1, 2],
                ..base
            },
            Conv2dSpec { kernel: [2, 4], dilation: [2, 1], padding: same, ..base },
            Conv2dSpec { padding: Padding { top: 2, bottom: 0, left: 0, right: 1 }, ..base },
            Conv2dSpec { kernel: [1, 1], padding: Padding::default(), in_channels: 5, ..base },
            Conv2dSpec { in_channels: 1, out_channels: 1, samples: 1, ..base },
            // Few positions: the two-sided sketch comes from the rows.
            Conv2dSpec { in_channels: 48, out_channels: 32, size: [2, 2], ..base },
            Conv2dSpec { in_channels: 16, out_channels: 48, size: [1, 3], groups: 2, ..base },
            Conv2dSpec { in_channels: 100, out_channels: 3, size: [2, 2], ..base },
            Conv2dSpec { in_channels: 0, out_channels: 0, ..base },
            Conv2dSpec { in_channels: 0, ..base },
            Conv2dSpec { out_channels: 0, ..base },
            Conv2dSpec { samples: 0, ..base },
            Conv2dSpec { size: [0, 4], ..base },
        ]
    }

    fn compare(spec: Conv2dSpec, numbers: fn(usize, u32) -> Vec<f32>, tolerance: f64) {
        let conv = Conv2d::new(spec).unwrap();
        let (shape, [ho, wo]) = (conv.gradient(), conv.out_size());
        let len = spec.samples * spec.in_channels * spec.size[0] * spec.size[1];
        let x = numbers(len, 1);
        let dy = numbers(spec.samples * spec.out_channels * ho * wo, 2);
        let weight = numbers(shape.weights(), 3);
        let inputs = ConvInputs { x: &x, dy: &dy, weight: Some(&weight) };
        for_all_options(shape, spec.samples, |options| {
            let expected = reference::conv2d(&conv, options, inputs).unwrap();
            let mut buffers = Buffers::new(shape, spec.samples, len, options);
            let (dx, out) = buffers.split(shape.bias());
            Cpu::new().conv2d(&conv, options, inputs, Some(dx), out).unwrap();
            buffers.check(&expected, tolerance, &format!("{spec:?} {options:?}"));
        });
    }

    #[test]
    fn bands_of_outputs_add_up() {
        let spec = Conv2dSpec {
            samples: 2,
            in_channels: 1000,
            out_channels: 264,
            size: [1, 1],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        let conv = Conv2d::new(spec).unwrap();
        let shape = conv.gradient();
        assert!(shape.weights() > super::BAND);
        let (x, dy) = (integers(2000, 1), integers(528, 2));
        let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
        for sketch in [Sketch::count(64, 1, 2), Sketch::two_sided(4, 1, 2)] {
            let options = Options { sketch: Some(sketch.unwrap()), ..Options::default() };
            let expected = reference::conv2d(&conv, &options, inputs).unwrap();
            let mut buffers = Buffers::new(shape, 2, 0, &options);
            let (_, out) = buffers.split(false);
            Cpu::new().conv2d(&conv, &options, inputs, None, out).unwrap();
            buffers.check(&expected, 0.0, &format!("{options:?}"));
        }
    }

    #[test]
    fn every_kind_matches_the_reference() {
        kinds().into_iter().for_each(|spec| compare(spec, noise, 1e-5));
    }

    #[test]
    fn integers_match_the_reference_bit_for_bit() {
        kinds().into_iter().for_each(|spec| compare(spec, integers, 0.0));
    }
}
