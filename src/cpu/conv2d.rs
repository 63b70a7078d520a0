//! Backward pass of a convolution, all kinds.
//!
//! Where the records need per-sample gradients, `dw` comes from the same tiles
//! ([`super::conv_records`]), otherwise from one sum of products over all samples
//! ([`super::conv_dw`]). For `dx` see [`super::conv_dx`]. Patches never exist but for a panel.
//! Time `O(N · O · Ho · Wo · kh · kw · C / groups)`.

use rayon::prelude::*;

use super::buffers::{widened, with_total};
use super::conv_records::{self, Operands};
use super::formed::Partials;
use super::im2col::channels_last;
use super::patches::Taps;
use super::regions::mark_touched;
use super::workspace::{Grow, Threads, bytes};
use super::{bias, column, conv_dw, conv_dx};
use crate::ops::{ConvInputs, LayerOutputs, Options};
use crate::problem::{Conv2d, Element};

/// Numbers a panel of patches holds.
pub(super) const PANEL: usize = 1 << 17;
/// Columns of a product that make it worth its while.
pub(super) const COLUMNS: usize = 384;

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct ConvBuffers {
    pub(super) image: Vec<f32>,
    dy: Vec<f32>,
    pub(super) weight: Vec<f32>,
    /// Sums on their way to `dw`.
    total: Vec<f32>,
    bias_sums: Vec<f32>,
    bias: Vec<f32>,
    signs: [Vec<f32>; 2],
    projected: [Vec<f32>; 2],
    partials: Partials,
    pub(super) taps: Taps,
    /// The samples that train a part of `dw`.
    members: Vec<usize>,
}

impl ConvBuffers {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let own = [&self.image, &self.dy, &self.weight, &self.total, &self.bias_sums, &self.bias];
        let own = bytes(own.into_iter().chain(&self.signs).chain(&self.projected));
        own + self.partials.bytes()
            + self.taps.bytes()
            + size_of::<usize>() * self.members.capacity()
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
        let (taps, turned) = (&mut buffers.taps, &mut buffers.weight);
        let scratch = conv_dx::Buffers { taps, weight: turned, values: &mut buffers.image };
        conv_dx::run(problem, options, dy, weight, dx, scratch, threads);
    }
    let ConvBuffers { image, total, bias_sums, signs, projected, partials, taps, members, .. } =
        buffers;
    let mut done = out.dw.is_none();
    if out.sq_norm.is_some() || out.sketch.is_some() {
        let image = image.grown(inputs.x.len());
        let (spec, channels) = (problem.spec(), problem.channels_per_group());
        let images = [samples * spec.groups, channels, spec.size[0] * spec.size[1]];
        channels_last(inputs.x, images, image);
        let operands = Operands { problem, image, dy };
        let scratch = conv_records::Buffers { total, signs, projected, partials };
        done |= conv_records::run(&operands, options, &mut out, scratch, threads);
    }
    if let Some(out) = out.dw.as_mut().filter(|_| !done) {
        let x = widened(inputs.x, image);
        taps.set(problem);
        with_total(out, options.accumulate, total, |out, accumulate| {
            conv_dw::run(problem, options, [x, dy], out, accumulate, (taps, members), threads);
        });
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
    use crate::ops::{Backend, ConvInputs, LayerOutputs, Options, Routing};
    use crate::problem::{Conv2d, Conv2dSpec, Padding, PaddingMode};
    use crate::reference;
    use crate::routing::{LayerRouting, RegionMap};
    use half::f16;

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
            // Column 0 sees pixels 1, 0 and 3, whose first and last lie as a run's would.
            Conv2dSpec {
                size: [6, 4],
                dilation: [1, 3],
                padding: Padding::same([3, 3], [1, 3]),
                padding_mode: PaddingMode::Circular,
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
    fn every_kind_matches_the_reference() {
        kinds().into_iter().for_each(|spec| compare(spec, noise, 1e-5));
    }

    #[test]
    fn flow_is_applied_before_narrow_formats_round() {
        // 90 000 exceeds f16; half of it does not.
        let spec = Conv2dSpec { samples: 1, in_channels: 1, out_channels: 1, ..Default::default() };
        let conv = Conv2d::new(Conv2dSpec { size: [1, 1], kernel: [1, 1], ..spec }).unwrap();
        let regions = RegionMap::new(1, 1, Vec::new()).unwrap();
        let layer = LayerRouting::new(regions, 1, vec![1.0], vec![0.5]).unwrap();
        let routing = Routing { layer: &layer, categories: &[0], gates: None };
        let options = Options { routing: Some(routing), ..Options::default() };
        let [x, weight] = [[f16::ONE], [f16::from_f32(300.0)]];
        let inputs = ConvInputs { x: &x, dy: &weight, weight: Some(&weight) };
        let (mut dx, out) = ([f16::ZERO], LayerOutputs::default());
        Cpu::new().conv2d(&conv, &options, inputs, Some(&mut dx), out).unwrap();
        assert_eq!(dx, [f16::from_f32(45_000.0)]);
    }

    #[test]
    fn integers_match_the_reference_bit_for_bit() {
        kinds().into_iter().for_each(|spec| compare(spec, integers, 0.0));
    }
}
