//! A convolution, `W` times patches with channels first, straight into its result: a layer's forward
//! pass, and with the kernel turned around its way back ([`super::conv_dx`]).
//!
//! A task is a band of positions of one sample and group, whose patches are gathered a run of channels
//! at a time. The cut depends on shapes alone, so the number of threads changes no bit.

use std::ops::Range;

use faer::MatMut;

use super::conv2d::{PANEL, positions};
use super::gemm::{Write, gemm, view, view_mut};
use super::patches::Taps;
use super::tasks::for_blocks;
use super::workspace::{Grow, Scratch, Threads};
use crate::problem::Conv2d;

/// Columns of `W` that are multiplied at a time, or one channel's.
const RUN: usize = 512;
/// Tasks that outputs are cut for where images and bands of positions are fewer.
const TASKS: usize = 4;

pub(super) struct Convolution<'a, F> {
    pub(super) problem: &'a Conv2d,
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) taps: &'a Taps,
    pub(super) threads: &'a Threads,
    /// What output `o` of an image, a sample's channel group, is multiplied by; 0 selects.
    pub(super) scale: F,
}

impl<F: Fn(usize, usize) -> f32 + Sync> Convolution<'_, F> {
    /// `y [N, O, Ho, Wo]`.
    pub(super) fn run(&self, y: &mut [f32]) {
        if y.is_empty() {
            return;
        }
        let (spec, positions) = (self.problem.spec(), positions(self.problem));
        let (outputs, images) = (spec.out_channels / spec.groups, spec.samples * spec.groups);
        let bands = positions.div_ceil(self.band(positions));
        // Patches are gathered once more for each piece; by shapes alone, so that threads change no bit.
        let pieces = TASKS.div_ceil(images * bands);
        for_blocks(y, 0..images, &|k| k * outputs * positions, &|k, y| {
            let mut rest = view_mut(y, outputs, positions, positions);
            let mut start = 0;
            while start < outputs {
                let scale = (self.scale)(k, start);
                let same = (start..outputs).take_while(|&o| (self.scale)(k, o) == scale).count();
                let (mut y, others) = rest.split_at_row_mut(same);
                match scale {
                    0.0 => y.fill(0.0),
                    _ => self.split(k, y, start..start + same, 0..positions, pieces),
                }
                (rest, start) = (others, start + same);
            }
        });
    }

    /// Channels that are multiplied at a time.
    fn channels(&self) -> usize {
        (RUN / self.problem.gradient().taps()).clamp(1, self.problem.channels_per_group().max(1))
    }

    /// Positions that are seen at a time.
    fn band(&self, positions: usize) -> usize {
        let columns = self.channels() * self.problem.gradient().taps();
        let most = (PANEL / columns).max(1);
        positions.div_ceil(positions.div_ceil(most))
    }

    /// Cuts positions, then outputs, until a task is left.
    fn split(
        &self,
        image: usize,
        y: MatMut<f32>,
        outputs: Range<usize>,
        seen: Range<usize>,
        pieces: usize,
    ) {
        let band = self.band(positions(self.problem));
        if seen.len() > band {
            let middle = seen.len().div_ceil(band) / 2 * band;
            let (y0, y1) = y.split_at_col_mut(middle);
            let middle = seen.start + middle;
            rayon::join(
                || self.split(image, y0, outputs.clone(), seen.start..middle, pieces),
                || self.split(image, y1, outputs.clone(), middle..seen.end, pieces),
            );
        } else if pieces > 1 && outputs.len() > 1 {
            let (half, middle) = (pieces / 2, outputs.len() * (pieces / 2) / pieces);
            let (y0, y1) = y.split_at_row_mut(middle);
            let middle = outputs.start + middle;
            rayon::join(
                || self.split(image, y0, outputs.start..middle, seen.clone(), half),
                || self.split(image, y1, middle..outputs.end, seen.clone(), pieces - half),
            );
        } else {
            self.task(image, y, outputs, seen);
        }
    }

    fn task(&self, image: usize, mut y: MatMut<f32>, outputs: Range<usize>, seen: Range<usize>) {
        let (spec, shape) = (self.problem.spec(), self.problem.gradient());
        let (channels, inputs) = (self.problem.channels_per_group(), shape.inputs());
        let pixels = spec.size[0] * spec.size[1];
        let first = image % spec.groups * (spec.out_channels / spec.groups) + outputs.start;
        let weight = &self.weight[first * inputs..][..outputs.len() * inputs];
        let weight = view(weight, outputs.len(), inputs, inputs);
        let mut own = self.threads.own();
        let Scratch { panel, .. } = &mut *own;
        let scale = (self.scale)(image, outputs.start);
        let mut write = Write::Replace;
        for start in (0..channels.max(1)).step_by(self.channels()) {
            let count = self.channels().min(channels - start);
            let planes = &self.x[(image * channels + start) * pixels..][..count * pixels];
            let columns = count * shape.taps();
            let panel = panel.grown(columns * seen.len());
            self.taps.gather(planes, pixels, seen.clone(), panel, seen.len());
            let patches = view(panel, columns, seen.len(), seen.len());
            let weight = weight.subcols(start * shape.taps(), columns);
            gemm(y.as_mut(), write, scale, weight, patches);
            write = Write::Add;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::testing::noise;
    use crate::problem::{Conv2d, Conv2dSpec, Padding};

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        // More channels than a run, more positions than a band, and fewer images than threads.
        let base = Conv2dSpec {
            samples: 1,
            in_channels: 120,
            out_channels: 10,
            size: [30, 23],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        for spec in [base, Conv2dSpec { size: [3, 4], groups: 2, ..base }] {
            let conv = Conv2d::new(spec).unwrap();
            let x = noise(spec.in_channels * spec.size[0] * spec.size[1], 1);
            let weight = noise(conv.gradient().weights(), 2);
            let answer = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let mut y = vec![f32::NAN; 10 * spec.size[0] * spec.size[1]];
                pool.unwrap().install(|| {
                    Cpu::new().conv2d_forward(&conv, &x, &weight, None, &mut y).unwrap();
                });
                y
            };
            let one = answer(1);
            assert!(one.iter().all(|y| y.is_finite()));
            assert!(one == answer(2) && one == answer(3) && one == answer(7), "{spec:?}");
        }
    }
}
