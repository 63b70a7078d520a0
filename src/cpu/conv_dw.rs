//! The weight gradient of a convolution where no record is asked of the same samples: patches
//! with channels first, gathered once, times `dY`, straight into the caller's `dw`.
//!
//! The samples that train a part of `dw` stand side by side in the product's inner dimension;
//! the others are never read. The cut into tasks depends on shapes alone, so the number of
//! threads changes no bit.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::conv2d::{COLUMNS, PANEL, positions};
use super::gemm::{Write, gemm, view, view_mut};
use super::patches::Taps;
use super::regions::{Rect, route};
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::Options;
use crate::problem::Conv2d;

/// Tasks a small gradient is cut into at least, where its channels allow.
const TASKS: usize = 4;
/// Outputs and channels are cut at multiples of it.
const EDGE: usize = 8;

/// `dw [O, C / groups, kh, kw] (+)= Σ_n route_n · G_n` from `x [N, C, H, W]` and
/// `dY [N, O, Ho, Wo]`.
pub(super) fn run(
    problem: &Conv2d,
    options: &Options,
    [x, dy]: [&[f32]; 2],
    dw: &mut [f32],
    accumulate: bool,
    (taps, members): (&Taps, &mut Vec<usize>),
    threads: &Threads,
) {
    if dw.is_empty() {
        return;
    }
    let (shape, kernel) = (problem.gradient(), problem.gradient().taps());
    let samples = if positions(problem) == 0 { 0 } else { problem.spec().samples };
    let mut dw = view_mut(dw, shape.outputs(), shape.inputs(), shape.inputs());
    let mut parts = parts(problem, options).peekable();
    while let Some((mut part, region)) = parts.next() {
        members.clear();
        members.extend((0..samples).filter(|&n| route(options, n, region) != 0.0));
        // What the same samples train is one product, if not with the same weights.
        let same = |other| {
            (0..samples)
                .all(|n| (route(options, n, region) != 0.0) == (route(options, n, other) != 0.0))
        };
        while let Some((next, _)) = parts.next_if(|(next, other)| {
            next.inputs == part.inputs && next.outputs.start == part.outputs.end && same(*other)
        }) {
            part.outputs.end = next.outputs.end;
        }
        let (outputs, inputs) = (part.outputs.clone(), part.inputs.clone());
        let mut dw = dw.rb_mut().submatrix_mut(
            outputs.start,
            inputs.start * kernel,
            outputs.len(),
            inputs.len() * kernel,
        );
        if !members.is_empty() {
            let write = Write::of(accumulate);
            let cut = Cut::new(problem, &part);
            let sum = Sum { problem, options, x, dy, taps, members, write, cut, threads };
            sum.split(dw, &part);
        } else if !accumulate {
            dw.fill(0.0);
        }
    }
}

/// The gradient cut into rectangles of outputs and input *features* that each lie in one region.
fn parts<'a>(problem: &Conv2d, options: &'a Options) -> impl Iterator<Item = (Rect, usize)> + 'a {
    let shape = problem.gradient();
    let whole = Rect { outputs: 0..shape.outputs(), inputs: 0..shape.features() };
    let tiles = options.routing.into_iter().flat_map(|routing| routing.layer.regions().tiles());
    let tiles = tiles.map(|tile| {
        (Rect { outputs: tile.outputs.clone(), inputs: tile.inputs.clone() }, tile.region)
    });
    options.routing.is_none().then_some((whole, 0)).into_iter().chain(tiles)
}

/// The most outputs and input features of a task.
#[derive(Clone, Copy, Debug)]
struct Cut {
    outputs: usize,
    features: usize,
}

impl Cut {
    fn new(problem: &Conv2d, part: &Rect) -> Self {
        let (kernel, per_group) = (problem.gradient().taps(), outputs_per_group(problem));
        let groups = part.outputs.len().div_ceil(per_group);
        let (outputs, features) = (part.outputs.len().min(per_group), part.inputs.len());
        let fit = |extent: usize, parts: usize| extent.div_ceil(parts).next_multiple_of(EDGE);
        // A product of many columns gains nothing from more of them.
        let blocks = (features * kernel).div_ceil(COLUMNS).max(TASKS.div_ceil(groups));
        let features_cut = fit(features, blocks);
        let blocks = features.div_ceil(features_cut);
        Self { outputs: fit(outputs, TASKS.div_ceil(groups * blocks)), features: features_cut }
    }
}

/// A sum over samples.
struct Sum<'a> {
    problem: &'a Conv2d,
    options: &'a Options<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    taps: &'a Taps,
    /// The samples, at least one, none of weight 0 anywhere in the part.
    members: &'a [usize],
    write: Write,
    cut: Cut,
    threads: &'a Threads,
}

impl Sum<'_> {
    /// Cuts a part of `dw` until a task is left.
    fn split(&self, dw: MatMut<f32>, part: &Rect) {
        let Rect { outputs, inputs } = part.clone();
        if let Some(o) = self.output_cut(&outputs) {
            let (dw0, dw1) = dw.split_at_row_mut(o - outputs.start);
            let part0 = Rect { outputs: outputs.start..o, inputs: inputs.clone() };
            let part1 = Rect { outputs: o..outputs.end, inputs };
            rayon::join(|| self.split(dw0, &part0), || self.split(dw1, &part1));
        } else if let Some(i) = middle(&inputs, self.cut.features) {
            let (dw0, dw1) =
                dw.split_at_col_mut((i - inputs.start) * self.problem.gradient().taps());
            let part0 = Rect { outputs: outputs.clone(), inputs: inputs.start..i };
            let part1 = Rect { outputs, inputs: i..inputs.end };
            rayon::join(|| self.split(dw0, &part0), || self.split(dw1, &part1));
        } else {
            self.task(dw, part);
        }
    }

    /// Where the outputs are to be cut: between groups, then within one.
    fn output_cut(&self, outputs: &Range<usize>) -> Option<usize> {
        let per_group = outputs_per_group(self.problem);
        let (first, last) = (outputs.start / per_group, (outputs.end - 1) / per_group);
        match last - first {
            0 => middle(outputs, self.cut.outputs),
            between => Some((first + between.div_ceil(2)) * per_group),
        }
    }

    /// One task: outputs of one group.
    fn task(&self, mut dw: MatMut<f32>, part: &Rect) {
        let (positions, columns) = (positions(self.problem), dw.ncols());
        let most = (PANEL / columns).max(1);
        let band = positions.div_ceil(positions.div_ceil(most));
        let mut own = self.threads.own();
        let Scratch { panel, tile: stacked, .. } = &mut *own;
        let mut write = self.write;
        for members in self.members.chunks((most / positions).max(1)) {
            for start in (0..positions).step_by(band) {
                let seen = start..(start + band).min(positions);
                let rows = members.len() * seen.len();
                let panel = panel.grown(columns * rows);
                self.gather(members, part, seen.clone(), panel);
                let (alpha, dy) = self.weighted(members, part, seen, stacked);
                gemm(dw.rb_mut(), write, alpha, dy, view(panel, columns, rows, rows).transpose());
                write = Write::Add;
            }
        }
    }

    /// `panel [columns, members · positions]`.
    fn gather(&self, members: &[usize], part: &Rect, seen: Range<usize>, panel: &mut [f32]) {
        let (spec, channels) = (self.problem.spec(), self.problem.channels_per_group());
        let pixels = spec.size[0] * spec.size[1];
        let first = part.outputs.start / outputs_per_group(self.problem) * channels;
        for (k, n) in members.iter().enumerate() {
            let image = &self.x[(n * spec.in_channels + first + part.inputs.start) * pixels..];
            let image = &image[..part.inputs.len() * pixels];
            let (panel, stride) = (&mut panel[k * seen.len()..], members.len() * seen.len());
            self.taps.gather(image, pixels, seen.clone(), panel, stride);
        }
    }

    /// `dY` of the part's outputs, `[outputs, members · positions]`, and a factor: together they
    /// make up the weights.
    fn weighted<'b>(
        &'b self,
        members: &[usize],
        part: &Rect,
        seen: Range<usize>,
        stacked: &'b mut Vec<f32>,
    ) -> (f32, MatRef<'b, f32>) {
        let (positions, rows) = (positions(self.problem), part.outputs.len());
        let dy = |n: usize| {
            let first = (n * self.problem.spec().out_channels + part.outputs.start) * positions;
            &self.dy[first..first + rows * positions]
        };
        let weight = |n: usize, o: usize| {
            let regions = self.options.routing.map(|routing| routing.layer.regions());
            let region = regions.map_or(0, |map| map.region_at(o, part.inputs.start));
            route(self.options, n, region)
        };
        let first = weight(members[0], part.outputs.start);
        if let [n] = *members
            && part.outputs.clone().all(|o| weight(n, o) == first)
        {
            return (
                first,
                view(dy(n), rows, positions, positions).subcols(seen.start, seen.len()),
            );
        }
        let stride = members.len() * seen.len();
        let stacked = stacked.grown(rows * stride);
        for (k, n) in members.iter().enumerate() {
            let dy = dy(*n).chunks_exact(positions);
            for ((o, dy), to) in part.outputs.clone().zip(dy).zip(stacked.chunks_exact_mut(stride))
            {
                let (weight, to) = (weight(*n, o), &mut to[k * seen.len()..][..seen.len()]);
                to.iter_mut().zip(&dy[seen.clone()]).for_each(|(to, dy)| *to = weight * dy);
            }
        }
        (1.0, view(stacked, rows, stride, stride))
    }
}

fn outputs_per_group(problem: &Conv2d) -> usize {
    problem.spec().out_channels / problem.spec().groups
}

/// A cut of a range in two at a multiple of `most` from its start, if it is longer than that.
fn middle(range: &Range<usize>, most: usize) -> Option<usize> {
    (range.len() > most).then(|| range.start + range.len().div_ceil(most) / 2 * most)
}

#[cfg(test)]
mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::conv2d::tests::kinds;
    use crate::cpu::testing::{for_all_options, integers, noise};
    use crate::ops::{Backend, ConvInputs, LayerOutputs, Options, ParamGrad};
    use crate::problem::{Conv2d, Conv2dSpec, Padding};
    use crate::reference;

    /// Sizes beyond a task on every side: outputs, channels, samples, positions.
    fn large() -> [Conv2dSpec; 4] {
        let base = Conv2dSpec {
            samples: 3,
            in_channels: 50,
            out_channels: 20,
            size: [4, 5],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        [
            base,
            Conv2dSpec { samples: 60, size: [3, 4], in_channels: 48, groups: 2, ..base },
            Conv2dSpec { size: [50, 41], in_channels: 40, out_channels: 5, ..base },
            Conv2dSpec { samples: 40, in_channels: 3, out_channels: 70, ..base },
        ]
    }

    /// `dw` after calls that overwrite and then accumulate.
    fn twice(cpu: &mut Cpu, conv: &Conv2d, options: &Options, [x, dy]: [&[f32]; 2]) -> Vec<f32> {
        let mut dw = vec![f32::NAN; conv.gradient().weights()];
        for accumulate in [false, true] {
            let options = Options { accumulate, sketch: None, ..*options };
            let inputs = ConvInputs { x, dy, weight: None };
            let out = LayerOutputs { dw: Some(ParamGrad::F32(&mut dw)), ..LayerOutputs::default() };
            cpu.conv2d(conv, &options, inputs, None, out).unwrap();
        }
        dw
    }

    fn operands(conv: &Conv2d, numbers: fn(usize, u32) -> Vec<f32>) -> [Vec<f32>; 2] {
        let (spec, [height, width]) = (conv.spec(), conv.out_size());
        let pixels = spec.size[0] * spec.size[1];
        [
            numbers(spec.samples * spec.in_channels * pixels, 1),
            numbers(spec.samples * spec.out_channels * height * width, 2),
        ]
    }

    #[test]
    fn alone_it_matches_the_reference_bit_for_bit() {
        let mut cpu = Cpu::new();
        for spec in kinds().into_iter().chain(large()) {
            let conv = Conv2d::new(spec).unwrap();
            let [x, dy] = operands(&conv, integers);
            let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
            for_all_options(conv.gradient(), spec.samples, |options| {
                let expected = reference::conv2d(&conv, options, inputs).unwrap().dw;
                let got = twice(&mut cpu, &conv, options, [&x, &dy]);
                let same = got.iter().zip(&expected).all(|(got, dw)| f64::from(*got) == 2.0 * dw);
                assert!(same, "{spec:?} {options:?}");
            });
        }
    }

    #[test]
    fn threads_and_workspace_leave_no_trace() {
        for spec in large() {
            let conv = Conv2d::new(spec).unwrap();
            let [x, dy] = operands(&conv, noise);
            for_all_options(conv.gradient(), spec.samples, |options| {
                let answer = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| {
                        let mut cpu = Cpu::new();
                        let first = twice(&mut cpu, &conv, options, [&x, &dy]);
                        let held = cpu.workspace_bytes();
                        assert!(first == twice(&mut cpu, &conv, options, [&x, &dy]));
                        assert!(threads > 1 || held == cpu.workspace_bytes());
                        first
                    })
                };
                let one = answer(1);
                assert!(one == answer(2) && one == answer(3), "{spec:?} {options:?}");
            });
        }
    }
}
