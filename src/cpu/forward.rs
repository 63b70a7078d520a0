//! The convolution itself, of any kind: what the adapters of frameworks whose own convolution is
//! slower, or knows fewer kinds, run forward.

use rayon::prelude::*;

use super::gemm::{Write, gemm, view, view_mut};
use super::im2col::{gather, transpose};
use crate::problem::{Conv2d, Element};

/// Output positions whose patches are gathered at a time.
const POSITIONS: usize = 64;

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    image: Vec<f32>,
    panel: Vec<f32>,
    sums: Vec<f32>,
}

/// `y [N, O, Ho, Wo]`, the convolution of `x [N, C, H, W]` with `weight [O, C / groups, kh, kw]`
/// and `bias [O]`. Sizes are the caller's to check. The same bits whatever the number of threads.
pub(crate) fn conv2d<T: Element>(
    problem: &Conv2d,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    let (spec, shape, [ho, wo]) = (problem.spec(), problem.gradient(), problem.out_size());
    let positions = ho * wo;
    let (x_each, y_each) =
        (spec.in_channels * spec.size[0] * spec.size[1], shape.outputs() * positions);
    if y_each == 0 {
        return;
    }
    let mut arranged = vec![0.0; shape.weights()];
    for (o, row) in arranged.chunks_exact_mut(shape.inputs().max(1)).enumerate() {
        for (i, value) in row.iter_mut().enumerate() {
            *value = weight[problem.weight_index(o, i)].to_f32();
        }
    }
    y.par_chunks_exact_mut(y_each).enumerate().for_each_init(
        Scratch::default,
        |scratch, (n, y)| {
            sample(problem, &x[n * x_each..][..x_each], &arranged, scratch);
            for (o, (y, sums)) in
                y.chunks_exact_mut(positions).zip(scratch.sums.chunks_exact(positions)).enumerate()
            {
                let bias = bias.map_or(0.0, |bias| bias[o].to_f32());
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::from_f32(sum + bias));
            }
        },
    );
}

/// One sample, into `scratch.sums [O, positions]`.
fn sample<T: Element>(problem: &Conv2d, x: &[T], weight: &[f32], scratch: &mut Scratch) {
    let (spec, shape, [ho, wo]) = (problem.spec(), problem.gradient(), problem.out_size());
    let (positions, pixels) = (ho * wo, spec.size[0] * spec.size[1]);
    let (channels, outputs) = (problem.channels_per_group(), shape.outputs() / spec.groups);
    let columns = shape.inputs();
    let Scratch { image, panel, sums } = scratch;
    image.resize(pixels * channels, 0.0);
    panel.resize(POSITIONS.min(positions) * columns, 0.0);
    sums.clear();
    sums.resize(shape.outputs() * positions, 0.0);
    for g in 0..spec.groups {
        let x = &x[g * channels * pixels..][..channels * pixels];
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || transpose(x, [channels, pixels], pixels, image, channels, T::to_f32),
        );
        let weight = view(&weight[g * outputs * columns..], outputs, columns, columns);
        let sums = &mut sums[g * outputs * positions..][..outputs * positions];
        for first in (0..positions).step_by(POSITIONS) {
            let range = first..(first + POSITIONS).min(positions);
            let panel = &mut panel[..range.len() * columns];
            gather(problem, image, channels, range.clone(), 0..columns, panel);
            let patches = view(panel, range.len(), columns, columns).transpose();
            let sums = view_mut(&mut sums[first..], outputs, range.len(), positions);
            gemm(sums, Write::Replace, 1.0, weight, patches);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::conv2d;
    use crate::cpu::testing::integers;
    use crate::problem::{Conv2d, Conv2dSpec, Padding, PaddingMode};

    /// Every output by its definition, from [`Conv2d::source`].
    fn by_definition(conv: &Conv2d, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (spec, [ho, wo], per_group) = (conv.spec(), conv.out_size(), conv.channels_per_group());
        let mut y = Vec::new();
        for (n, o) in (0..spec.samples).flat_map(|n| (0..spec.out_channels).map(move |o| (n, o))) {
            let group = o / (spec.out_channels / spec.groups);
            for (oy, ox) in (0..ho).flat_map(|oy| (0..wo).map(move |ox| (oy, ox))) {
                let mut sum = bias[o];
                for i in 0..conv.gradient().inputs() {
                    let (tap, c) = (i / per_group, i % per_group);
                    let (r, s) = (tap / spec.kernel[1], tap % spec.kernel[1]);
                    if let (Some(iy), Some(ix)) = (conv.source(0, oy, r), conv.source(1, ox, s)) {
                        let channel = n * spec.in_channels + group * per_group + c;
                        let pixel = (channel * spec.size[0] + iy) * spec.size[1] + ix;
                        sum += weight[conv.weight_index(o, i)] * x[pixel];
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    #[test]
    fn every_kind_matches_its_definition_bit_for_bit() {
        let base = Conv2dSpec {
            samples: 2,
            in_channels: 8,
            out_channels: 12,
            size: [9, 10],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            bias: true,
            ..Conv2dSpec::default()
        };
        let asymmetric = Padding { top: 0, bottom: 3, left: 2, right: 1 };
        for spec in [
            base,
            Conv2dSpec { stride: [2, 3], ..base },
            Conv2dSpec { groups: 4, dilation: [2, 1], ..base },
            Conv2dSpec { groups: 8, out_channels: 16, ..base },
            Conv2dSpec { padding: asymmetric, kernel: [2, 4], ..base },
            Conv2dSpec { padding_mode: PaddingMode::Circular, padding: asymmetric, ..base },
            Conv2dSpec { kernel: [1, 1], padding: Padding::default(), ..base },
            Conv2dSpec { in_channels: 0, ..base },
            Conv2dSpec { size: [0, 4], ..base },
            Conv2dSpec { samples: 0, ..base },
        ] {
            let conv = Conv2d::new(spec).unwrap();
            let len = spec.samples * spec.in_channels * spec.size[0] * spec.size[1];
            let (x, weight) = (integers(len, 1), integers(conv.gradient().weights(), 2));
            let bias = integers(spec.out_channels, 3);
            let expected = by_definition(&conv, &x, &weight, &bias);
            let mut y = vec![f32::NAN; expected.len()];
            conv2d(&conv, &x, &weight, Some(&bias), &mut y);
            assert_eq!(y, expected, "{spec:?}");
        }
    }
}
