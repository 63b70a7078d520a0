//! Norms of a convolution's gradients without the gradients: Gram matrices of a sample's patches and of
//! its `dY`, which are small where positions are few.

use rayon::prelude::*;

use super::conv_records::Operands;
use super::conv2d::{COLUMNS, group_dy, positions};
use super::formed::Partials;
use super::gemm::{Write, gemm, view, view_mut};
use super::gram;
use super::im2col::gather;
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::plan;
use crate::problem::Conv2d;

/// Columns of a task, whatever the number of threads.
const PART: usize = 8 * COLUMNS;
/// Images, one a sample and group, whose Gram matrices are kept at a time.
const IMAGES: usize = 16;

/// Whether this costs less than squaring formed tiles.
pub(super) fn is_cheaper(problem: &Conv2d) -> bool {
    let (shape, groups) = (problem.gradient(), problem.spec().groups);
    let sides = groups * shape.inputs() + shape.outputs();
    plan::gram_is_cheaper(positions(problem), sides, shape.weights())
}

/// `sq_norm [N]`; `O(N · positions² · (C · kh · kw + O))`. Where a sample's rows cancel to a fraction,
/// rounding weighs by that fraction's square (as [`plan::Norms::Gram`] says of linear layers).
pub(super) fn run(
    operands: &Operands,
    scale: f32,
    sq_norm: &mut [f32],
    (grams, partials): (&mut Vec<f32>, &mut Partials),
    threads: &Threads,
) {
    let (problem, rows) = (operands.problem, positions(operands.problem));
    let (groups, inputs) = (problem.spec().groups, problem.gradient().inputs());
    let (parts, square) = (inputs.div_ceil(PART), rows * rows);
    if parts * square == 0 {
        return sq_norm.fill(0.0);
    }
    let grams = grams.grown(IMAGES.min(sq_norm.len() * groups) * square);
    let squares = partials.norms(sq_norm.len() * groups * parts);
    for (block, squares) in squares.chunks_mut(IMAGES * parts).enumerate() {
        let image = |k: usize| (block * IMAGES + k) / groups;
        let group = |k: usize| (block * IMAGES + k) % groups;
        let of_dy = &mut grams[..squares.len() / parts * square];
        of_dy.par_chunks_exact_mut(square).enumerate().for_each(|(k, gram)| {
            let outputs = problem.spec().out_channels / groups;
            let dy = view(group_dy(problem, operands.dy, image(k), group(k)), outputs, rows, rows);
            gemm(view_mut(gram, rows, rows, rows), Write::Replace, 1.0, dy.transpose(), dy);
        });
        let of_dy = &*of_dy;
        squares.par_iter_mut().enumerate().for_each(|(k, squares)| {
            let (k, part) = (k / parts, k % parts);
            let image = operands.image(image(k), group(k));
            let mut own = threads.own();
            let Scratch { tile, panel, .. } = &mut *own;
            let gram = tile.grown(square);
            gram.fill(0.0);
            let end = ((part + 1) * PART).min(inputs);
            for start in (part * PART..end).step_by(COLUMNS) {
                let columns = start..(start + COLUMNS).min(end);
                let width = columns.len();
                let panel = panel.grown(rows * width);
                gather(problem, image, problem.channels_per_group(), 0..rows, columns, panel);
                gram::add_lower(view(panel, rows, width, width), gram);
            }
            *squares = gram::inner(gram, &of_dy[k * square..][..square], rows);
        });
    }
    for (out, squares) in sq_norm.iter_mut().zip(squares.chunks_exact(groups * parts)) {
        *out = gram::scaled(squares.iter().sum(), scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, integers};
    use crate::ops::{Backend, ConvInputs, Options};
    use crate::problem::{Conv2dSpec, Padding, PaddingMode};
    use crate::projection::Sketch;
    use crate::reference;

    #[test]
    fn parts_and_groups_add_up() {
        let spec = Conv2dSpec {
            samples: 2,
            in_channels: 700,
            out_channels: 40,
            size: [3, 2],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        let specs = [
            spec,
            Conv2dSpec { groups: 2, ..spec },
            Conv2dSpec { kernel: [4, 4], ..spec },
            Conv2dSpec { padding_mode: PaddingMode::Circular, ..spec },
            Conv2dSpec { samples: 9, groups: 2, in_channels: 30, size: [1, 2], ..spec },
        ];
        for spec in specs {
            let conv = Conv2d::new(spec).unwrap();
            let (shape, images) = (conv.gradient(), spec.samples * spec.groups);
            assert!(is_cheaper(&conv) && (shape.inputs() > PART || images > IMAGES));
            let pixels = spec.size[0] * spec.size[1];
            let x = integers(spec.samples * spec.in_channels * pixels, 1);
            let dy = integers(spec.samples * spec.out_channels * positions(&conv), 2);
            let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
            let sketch = Some(Sketch::two_sided(4, 1, 2).unwrap());
            let options = Options { sketch, sample_scale: 2.0, ..Options::default() };
            let expected = reference::conv2d(&conv, &options, inputs).unwrap();
            let mut buffers = Buffers::new(shape, spec.samples, 0, &options);
            let (_, out) = buffers.split(false);
            Cpu::new().conv2d(&conv, &options, inputs, None, out).unwrap();
            buffers.check(&expected, 0.0, &format!("{spec:?}"));
        }
    }
}
