//! Norms of a convolution's gradients without the gradients: Gram matrices of a sample's patches and of
//! its `dY`, which are small where positions are few.

use rayon::prelude::*;

use super::conv_records::Operands;
use super::conv2d::{COLUMNS, group_dy, positions};
use super::gemm::{Write, gemm, view, view_mut};
use super::gram;
use super::im2col::gather;
use super::tasks::for_blocks;
use super::workspace::{Grow, Threads};
use crate::ops::plan;
use crate::problem::Conv2d;

/// Columns of a task, whatever the number of threads.
const PART: usize = 8 * COLUMNS;

/// Whether this costs less than squaring formed tiles.
pub(super) fn is_cheaper(problem: &Conv2d) -> bool {
    let (shape, groups) = (problem.gradient(), problem.spec().groups);
    let sides = groups * shape.inputs() + shape.outputs();
    plan::gram_is_cheaper(positions(problem), sides, shape.weights())
}

/// `sq_norm [N]`; `O(N · positions² · (C · kh · kw + O))`.
pub(super) fn run(
    operands: &Operands,
    scale: f32,
    sq_norm: &mut [f32],
    grams: &mut Vec<f32>,
    threads: &Threads,
) {
    let (problem, rows) = (operands.problem, positions(operands.problem));
    let (groups, inputs) = (problem.spec().groups, problem.gradient().inputs());
    let (parts, square) = (inputs.div_ceil(PART), rows * rows);
    if parts * square == 0 {
        return sq_norm.fill(0.0);
    }
    let grams = grams.grown(sq_norm.len() * groups * parts * square);
    for_blocks(grams, 0..sq_norm.len() * groups * parts, &|k| k * square, &|k, gram| {
        let (image, start) = (k / parts, k % parts * PART);
        gram.fill(0.0);
        let image = operands.image(image / groups, image % groups);
        let mut own = threads.own();
        for start in (start..(start + PART).min(inputs)).step_by(COLUMNS) {
            let columns = start..(start + COLUMNS).min(inputs);
            let width = columns.len();
            let panel = own.panel.grown(rows * width);
            gather(problem, image, problem.channels_per_group(), 0..rows, columns, panel);
            gram::add_lower(view(panel, rows, width, width), gram);
        }
    });
    let outputs = problem.spec().out_channels / groups;
    let of_group = |n: usize, g: usize| -> f64 {
        let mut own = threads.own();
        let gram_dy = own.panel.grown(square);
        let dy = view(group_dy(problem, operands.dy, n, g), outputs, rows, rows);
        gemm(view_mut(gram_dy, rows, rows, rows), Write::Replace, 1.0, dy.transpose(), dy);
        let grams = &grams[(n * groups + g) * parts * square..][..parts * square];
        grams.chunks_exact(square).map(|part| gram::inner(part, gram_dy, rows)).sum()
    };
    sq_norm.par_iter_mut().enumerate().for_each(|(n, out)| {
        let squares: f64 = (0..groups).map(|g| of_group(n, g)).sum();
        // Rounding may leave less than nothing of a sum that cancels.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        *out = (squares * f64::from(scale) * f64::from(scale)) as f32;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, integers};
    use crate::ops::{Backend, ConvInputs, Options};
    use crate::problem::{Conv2dSpec, Padding};
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
        for spec in [spec, Conv2dSpec { groups: 2, ..spec }, Conv2dSpec { kernel: [4, 4], ..spec }]
        {
            let conv = Conv2d::new(spec).unwrap();
            let shape = conv.gradient();
            assert!(is_cheaper(&conv) && shape.inputs() > PART);
            let (x, dy) = (integers(8400, 1), integers(80 * positions(&conv), 2));
            let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
            let sketch = Some(Sketch::two_sided(4, 1, 2).unwrap());
            let options = Options { sketch, sample_scale: 2.0, ..Options::default() };
            let expected = reference::conv2d(&conv, &options, inputs).unwrap();
            let mut buffers = Buffers::new(shape, 2, 0, &options);
            let (_, out) = buffers.split(false);
            Cpu::new().conv2d(&conv, &options, inputs, None, out).unwrap();
            buffers.check(&expected, 0.0, &format!("{spec:?}"));
        }
    }
}
