//! The input gradient of a convolution: `dYᵀ W` gives the gradients of a panel of patches, which
//! are added to the pixels they were taken from.
//!
//! A task is one sample and one block of input channels, so no two tasks write the same pixel.

use std::ops::Range;

use faer::MatRef;

use super::buffers::widened;
use super::conv2d::{COLUMNS, PANEL, positions};
use super::gemm::{Write, gemm, view, view_mut};
use super::im2col::{channels_last, scatter, transpose};
use super::regions::flow;
use super::tasks::for_blocks;
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::Options;
use crate::problem::{Conv2d, Element};

/// `dx [N, C, H, W]`, the flow weights applied. The buffers are for the weight and for `dY`.
pub(crate) fn run<T: Element>(
    problem: &Conv2d,
    options: &Options,
    dy: &[f32],
    weight: &[T],
    dx: &mut [T],
    (weight_buffer, dy_buffer): (&mut Vec<f32>, &mut Vec<f32>),
    threads: &Threads,
) {
    let (spec, positions) = (problem.spec(), positions(problem));
    let outputs = spec.out_channels / spec.groups;
    let blocks = Blocks::new(problem, COLUMNS);
    // Either every weight or every patch has its channels put last: whichever are fewer.
    let arranged = problem.gradient().taps() == 1 || spec.samples * positions >= outputs;
    let weight = match arranged {
        true => blocks.arrange(weight, weight_buffer),
        false => widened(weight, weight_buffer),
    };
    // The product reads one position's outputs together.
    let dy_last = dy_buffer.grown(dy.len());
    channels_last(dy, [spec.samples * spec.groups, outputs, positions], dy_last);
    InputGradient { problem, blocks, options, dy: dy_last, weight, arranged, threads }.run(dx);
}

/// The weight cut into blocks of input channels, each `[O / groups, kh · kw · width]`: the right
/// side of a product of `COLUMNS` or so columns.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    problem: &'a Conv2d,
    width: usize,
    per_group: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(problem: &'a Conv2d, columns: usize) -> Self {
        let (channels, taps) = (problem.channels_per_group(), problem.gradient().taps());
        let wanted = (channels * taps).div_ceil(columns).max(1);
        let width = channels.div_ceil(wanted).next_multiple_of(8).min(channels).max(1);
        Self { problem, width, per_group: channels.div_ceil(width) }
    }

    fn count(&self) -> usize {
        self.problem.spec().groups * self.per_group
    }

    /// First input channel of block `k`, counted over all groups.
    fn first(&self, k: usize) -> usize {
        let channels = self.problem.channels_per_group();
        k / self.per_group.max(1) * channels
            + (k % self.per_group.max(1) * self.width).min(channels)
    }

    fn channels(&self, k: usize) -> Range<usize> {
        self.first(k)..self.first(k + 1)
    }

    /// Where block `k` starts in the arranged weight.
    fn offset(&self, k: usize) -> usize {
        let spec = self.problem.spec();
        self.first(k) * (spec.out_channels / spec.groups) * self.problem.gradient().taps()
    }

    pub(super) fn arrange<'b, T: Element>(
        &self,
        weight: &[T],
        buffer: &'b mut Vec<f32>,
    ) -> &'b [f32] {
        let (problem, taps) = (self.problem, self.problem.gradient().taps());
        let (per_group, inputs) = (problem.channels_per_group(), problem.gradient().inputs());
        let outputs = problem.spec().out_channels / problem.spec().groups;
        let arranged = buffer.grown(weight.len());
        for_blocks(arranged, 0..self.count(), &|k| self.offset(k), &|k, block| {
            let (g, channels) = (k / self.per_group, self.channels(k));
            let (first, width) = (channels.start - g * per_group, channels.len());
            for (o, block) in block.chunks_exact_mut(taps * width).enumerate() {
                let from = &weight[(g * outputs + o) * inputs + first * taps..];
                transpose(from, [width, taps], taps, block, width, T::to_f32);
            }
        });
        arranged
    }
}

struct InputGradient<'a> {
    problem: &'a Conv2d,
    blocks: Blocks<'a>,
    options: &'a Options<'a>,
    /// `[N, groups, positions, O / groups]`.
    dy: &'a [f32],
    weight: &'a [f32],
    /// Whether `weight` is in blocks, channels last, or as given.
    arranged: bool,
    threads: &'a Threads,
}

impl InputGradient<'_> {
    /// `dx [N, C, H, W]`; a task is one sample and block of channels.
    fn run<T: Element>(&self, dx: &mut [T]) {
        let spec = self.problem.spec();
        let (pixels, count) = (spec.size[0] * spec.size[1], self.blocks.count());
        let bound =
            |k: usize| (k / count * spec.in_channels + self.blocks.first(k % count)) * pixels;
        for_blocks(dx, 0..spec.samples * count, &bound, &|k, dx| {
            let (n, block) = (k / count, k % count);
            let flows = |c: usize| self.flow(n, c % self.problem.channels_per_group());
            if pixels == 0 || self.blocks.channels(block).all(|c| flows(c) == 0.0) {
                return dx.fill(T::from_f32(0.0));
            }
            let width = dx.len() / pixels;
            let mut own = self.threads.own();
            let Scratch { tile, panel, projected, .. } = &mut *own;
            let image = tile.grown(pixels * width);
            image.fill(0.0);
            self.block(n, block, image, [panel, projected]);
            // Before they are rounded to `T`; 0 selects, since what is not finite does not flow either.
            for (at, c) in self.blocks.channels(block).enumerate() {
                let channel = image[at..].iter_mut().step_by(width);
                match flows(c) {
                    1.0 => {}
                    0.0 => channel.for_each(|dx| *dx = 0.0),
                    flow => channel.for_each(|dx| *dx *= flow),
                }
            }
            let transposed = |dx: &mut [T]| {
                transpose(image, [pixels, width], width, dx, pixels, T::from_f32);
            };
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || transposed(dx),
            );
        });
    }

    /// Flow weight of input channel `c` within its group.
    fn flow(&self, n: usize, c: usize) -> f32 {
        let spans = self.options.routing.map_or(&[][..], |r| r.layer.regions().input_spans());
        let of = spans.iter().find(|(span, _)| span.contains(&c));
        of.map_or(1.0, |(_, region)| flow(self.options, n, *region))
    }

    /// The block's part of the weight, `[O / groups, columns]`.
    fn weight(&self, block: usize) -> MatRef<'_, f32> {
        let (spec, shape) = (self.problem.spec(), self.problem.gradient());
        let outputs = spec.out_channels / spec.groups;
        let channels = self.blocks.channels(block);
        let columns = channels.len() * shape.taps();
        if self.arranged {
            let part = &self.weight[self.blocks.offset(block)..self.blocks.offset(block + 1)];
            return view(part, outputs, columns, columns);
        }
        let (g, inputs) = (block / self.blocks.per_group, shape.inputs());
        let first = (channels.start - g * self.problem.channels_per_group()) * shape.taps();
        let part = &self.weight[g * outputs * inputs..(g + 1) * outputs * inputs];
        view(part, outputs, inputs, inputs).subcols(first, columns)
    }

    /// Gradient of one block's `image [pixels, width]`.
    fn block(
        &self,
        n: usize,
        block: usize,
        image: &mut [f32],
        [panel, turned]: [&mut Vec<f32>; 2],
    ) {
        let (spec, positions) = (self.problem.spec(), positions(self.problem));
        let (outputs, taps) = (spec.out_channels / spec.groups, self.problem.gradient().taps());
        let width = self.blocks.channels(block).len();
        let columns = width * taps;
        let g = block / self.blocks.per_group;
        let dy = &self.dy[(n * spec.groups + g) * positions * outputs..][..positions * outputs];
        let dy = view(dy, positions, outputs, outputs);
        let band = (PANEL / columns.max(1)).max(1);
        for start in (0..positions).step_by(band) {
            let count = band.min(positions - start);
            let mut panel = panel.grown(count * columns);
            let out = view_mut(panel, count, columns, columns);
            gemm(out, Write::Replace, 1.0, dy.subrows(start, count), self.weight(block));
            if !self.arranged {
                let turned = turned.grown(count * columns);
                let patches = turned.chunks_exact_mut(columns);
                for (to, from) in patches.zip(panel.chunks_exact(columns)) {
                    transpose(from, [width, taps], taps, to, width, |value| value);
                }
                panel = turned;
            }
            scatter(self.problem, panel, start..start + count, image, width);
        }
    }
}
