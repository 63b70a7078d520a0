//! The input gradient of a convolution, which with stride 1 is a convolution of `dY` with the kernel
//! turned around and its channels exchanged.
//!
//! Else ([`Scattered`]) `Wᵀ dY` gives the gradients of a panel of patches, which are added to the
//! pixels they were taken from: a task is one sample and one block of input channels, so no two
//! tasks write the same pixel.

use std::ops::Range;

use super::buffers::{same_mut, widened, with_values};
use super::conv_forward::Convolution;
use super::conv2d::{COLUMNS, PANEL, group_dy, positions};
use super::gemm::{Write, gemm, view, view_mut};
use super::patches::Taps;
use super::regions::flow;
use super::tasks::for_blocks;
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::Options;
use crate::problem::{Conv2d, Conv2dSpec, Element, Padding, PaddingMode};

/// Buffers of [`run`].
pub(super) struct Buffers<'a> {
    pub(super) taps: &'a mut Taps,
    pub(super) weight: &'a mut Vec<f32>,
    /// Of `dx`, where it is not `f32`.
    pub(super) values: &'a mut Vec<f32>,
}

/// `dx [N, C, H, W]`, the flow weights applied.
pub(super) fn run<T: Element>(
    problem: &Conv2d,
    options: &Options,
    dy: &[f32],
    weight: &[T],
    dx: &mut [T],
    Buffers { taps, weight: turned, values }: Buffers,
    threads: &Threads,
) {
    // Of input channel `c` of a group.
    let spans = options.routing.map_or(&[][..], |routing| routing.layer.regions().input_spans());
    let flow = |n: usize, c: usize| {
        let of = spans.iter().find(|(span, _)| span.contains(&c));
        of.map_or(1.0, |(_, region)| flow(options, n, *region))
    };
    if let Some(turned_around) = turned_around(problem) {
        taps.set(&turned_around);
        let weight = turn(problem, weight, turned);
        let groups = problem.spec().groups;
        let flow = |image: usize, c: usize| flow(image / groups, c);
        let problem = &turned_around;
        let convolution = Convolution { problem, x: dy, weight, taps, threads, scale: flow };
        return with_values(dx, values, |dx| convolution.run(dx));
    }
    taps.set(problem);
    let weight = widened(weight, turned);
    Scattered { problem, dy, weight, taps, threads, flow }.run(dx);
}

/// The convolution that takes `dY` to `dX`, where there is one.
fn turned_around(problem: &Conv2d) -> Option<Conv2d> {
    let spec = *problem.spec();
    let Conv2dSpec { in_channels, out_channels, padding, padding_mode, .. } = spec;
    if spec.stride != [1, 1] || padding_mode != PaddingMode::Zeros {
        return None;
    }
    let [height, width] = [0, 1].map(|axis| spec.dilation[axis] * (spec.kernel[axis] - 1));
    let padding = Padding {
        top: height.checked_sub(padding.top)?,
        bottom: height.checked_sub(padding.bottom)?,
        left: width.checked_sub(padding.left)?,
        right: width.checked_sub(padding.right)?,
    };
    Conv2d::new(Conv2dSpec {
        in_channels: out_channels,
        out_channels: in_channels,
        size: problem.out_size(),
        padding,
        bias: false,
        ..spec
    })
    .ok()
    .filter(|turned| turned.out_size() == spec.size)
}

/// `[C, O / groups, kh, kw]` from `W [O, C / groups, kh, kw]`, the kernel turned around.
fn turn<'a, T: Element>(problem: &Conv2d, weight: &[T], buffer: &'a mut Vec<f32>) -> &'a [f32] {
    /// Channels whose rows are written side by side.
    const CHANNELS: usize = 32;
    let (spec, shape, taps) = (problem.spec(), problem.gradient(), problem.gradient().taps());
    let (per_group, outputs) = (problem.channels_per_group(), spec.out_channels / spec.groups);
    let (blocks, row) = (per_group.div_ceil(CHANNELS), outputs * taps);
    let first = |k: usize| match blocks {
        0 => 0,
        _ => k / blocks * per_group + (k % blocks * CHANNELS).min(per_group),
    };
    let turned = buffer.grown(weight.len());
    for_blocks(turned, 0..spec.groups * blocks, &|k| first(k) * row, &|k, turned| {
        let (g, channel) = (k / blocks, first(k) % per_group);
        for o in 0..outputs {
            let from = &weight[(g * outputs + o) * shape.inputs() + channel * taps..];
            for (to, from) in turned.chunks_exact_mut(row).zip(from.chunks_exact(taps)) {
                let to = to[o * taps..(o + 1) * taps].iter_mut().rev();
                to.zip(from).for_each(|(to, from)| *to = from.to_f32());
            }
        }
    });
    turned
}

/// Any kind of convolution.
struct Scattered<'a, F> {
    problem: &'a Conv2d,
    /// `[N, O, positions]`.
    dy: &'a [f32],
    weight: &'a [f32],
    taps: &'a Taps,
    threads: &'a Threads,
    /// Flow weight of a sample and input channel within its group.
    flow: F,
}

impl<F: Fn(usize, usize) -> f32 + Sync> Scattered<'_, F> {
    fn run<T: Element>(&self, dx: &mut [T]) {
        let (spec, channels) = (self.problem.spec(), self.problem.channels_per_group());
        let pixels = spec.size[0] * spec.size[1];
        let wanted = (channels * self.problem.gradient().taps()).div_ceil(COLUMNS).max(1);
        let width = channels.div_ceil(wanted).next_multiple_of(8).min(channels).max(1);
        let blocks = channels.div_ceil(width);
        let first = |k: usize| match blocks {
            0 => 0,
            _ => k / blocks * channels + k % blocks * width,
        };
        let tasks = spec.samples * spec.groups * blocks;
        for_blocks(dx, 0..tasks, &|k| first(k) * pixels, &|k, dx| {
            let (n, start) = (first(k) / spec.in_channels, first(k) % spec.in_channels);
            let block = start..start + dx.len() / pixels.max(1);
            let flow = |c: usize| (self.flow)(n, c % channels);
            if dx.is_empty() || block.clone().all(|c| flow(c) == 0.0) {
                return dx.fill(T::from_f32(0.0));
            }
            let mut own = self.threads.own();
            let Scratch { tile, panel, .. } = &mut *own;
            let image = match same_mut(dx) {
                Some(image) => image,
                None => tile.grown(block.len() * pixels),
            };
            image.fill(0.0);
            self.block(n, block.clone(), image, panel);
            // Before they are rounded to `T`; 0 selects, since what is not finite does not flow either.
            for (c, plane) in block.zip(image.chunks_exact_mut(pixels)) {
                match flow(c) {
                    1.0 => {}
                    0.0 => plane.fill(0.0),
                    flow => plane.iter_mut().for_each(|dx| *dx *= flow),
                }
            }
            if same_mut(dx).is_none() {
                dx.iter_mut().zip(&tile[..]).for_each(|(dx, value)| *dx = T::from_f32(*value));
            }
        });
    }

    /// Adds to one block's `image [channels, pixels]`.
    fn block(&self, n: usize, channels: Range<usize>, image: &mut [f32], panel: &mut Vec<f32>) {
        let (spec, shape) = (self.problem.spec(), self.problem.gradient());
        let (positions, outputs) = (positions(self.problem), spec.out_channels / spec.groups);
        let (taps, columns) = (shape.taps(), channels.len() * shape.taps());
        let g = channels.start / self.problem.channels_per_group();
        let first = channels.start % self.problem.channels_per_group() * taps;
        let weight = &self.weight[g * outputs * shape.inputs()..][..outputs * shape.inputs()];
        let weight = view(weight, outputs, shape.inputs(), shape.inputs()).subcols(first, columns);
        let dy = view(group_dy(self.problem, self.dy, n, g), outputs, positions, positions);
        let band = (PANEL / columns.max(1)).max(1);
        for start in (0..positions).step_by(band) {
            let count = band.min(positions - start);
            let panel = panel.grown(count * columns);
            let out = view_mut(panel, columns, count, count);
            gemm(out, Write::Replace, 1.0, weight.transpose(), dy.subcols(start, count));
            let seen = start..start + count;
            self.taps.scatter(panel, seen, image, spec.size[0] * spec.size[1]);
        }
    }
}
