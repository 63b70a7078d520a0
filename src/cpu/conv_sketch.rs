//! The two-sided sketch of a convolution without its gradients: `(P_oᵀ dY) · patches · P_i`.
//!
//! Against the products of the backward pass it costs about `k_o / O`, one narrow product more
//! for each panel of patches.

use super::conv_records::Operands;
use super::conv2d::{COLUMNS, PANEL, group_dy, positions};
use super::formed::Signs;
use super::gemm::{Write, gemm, view, view_mut};
use super::im2col::gather;
use super::regions::route;
use super::tasks::for_blocks;
use super::workspace::{Grow, Scratch, Threads};
use crate::ops::Options;
use crate::problem::Conv2d;

/// Whether this is possible and costs less than projecting formed tiles.
pub(crate) fn by_rows(problem: &Conv2d, options: &Options, signs: Signs) -> bool {
    // The signs take in all outputs at once, before any region could weigh them.
    let regions = options.routing.map_or(1, |routing| routing.layer.regions().len());
    if options.sketch_routed && regions > 1 {
        return false;
    }
    let (shape, groups) = (problem.gradient(), problem.spec().groups);
    let rows =
        positions(problem) * signs.outputs.ncols() * (shape.outputs() + groups * shape.inputs());
    rows < shape.weights() * signs.inputs.ncols()
}

/// `out [N, k_o · k_i]`.
pub(crate) fn run(
    operands: &Operands,
    options: &Options,
    signs: Signs,
    out: &mut [f32],
    [left, parts]: &mut [Vec<f32>; 2],
    threads: &Threads,
) {
    let (problem, positions) = (operands.problem, positions(operands.problem));
    let (spec, inputs) = (problem.spec(), problem.gradient().inputs());
    let (k_o, k_i) = (signs.outputs.ncols(), signs.inputs.ncols());
    let outputs = spec.out_channels / spec.groups;
    let left_len = k_o * positions;
    let left = left.grown(spec.samples * spec.groups * left_len);
    for_blocks(left, 0..spec.samples * spec.groups, &|k| k * left_len, &|k, left| {
        let (n, g) = (k / spec.groups, k % spec.groups);
        let dy = view(group_dy(problem, operands.dy, n, g), outputs, positions, positions);
        let signs = signs.outputs.subrows(g * outputs, outputs).transpose();
        gemm(view_mut(left, k_o, positions, positions), Write::Replace, 1.0, signs, dy);
    });
    let tiles = inputs.div_ceil(COLUMNS);
    let parts = parts.grown(spec.samples * tiles * k_o * k_i);
    for_blocks(parts, 0..spec.samples * tiles, &|k| k * k_o * k_i, &|k, part| {
        let (n, start) = (k / tiles, k % tiles * COLUMNS);
        let columns = start..(start + COLUMNS).min(inputs);
        let width = columns.len();
        let mut own = threads.own();
        let Scratch { panel, projected, .. } = &mut *own;
        let sums = projected.grown(k_o * width);
        sums.fill(0.0);
        let band = (PANEL / width).max(1);
        for g in 0..spec.groups {
            let left = &left[(n * spec.groups + g) * left_len..][..left_len];
            let left = view(left, k_o, positions, positions);
            for start in (0..positions).step_by(band) {
                let count = band.min(positions - start);
                let panel = panel.grown(count * width);
                let channels = problem.channels_per_group();
                let seen = start..start + count;
                gather(problem, operands.image(n, g), channels, seen, columns.clone(), panel);
                let (sums, left) = (view_mut(sums, k_o, width, width), left.subcols(start, count));
                gemm(sums, Write::Add, 1.0, left, view(panel, count, width, width));
            }
        }
        let right = signs.inputs.subrows(columns.start, width);
        gemm(
            view_mut(part, k_o, k_i, k_i),
            Write::Replace,
            1.0,
            view(sums, k_o, width, width),
            right,
        );
    });
    for (n, out) in out.chunks_exact_mut(k_o * k_i).enumerate() {
        out.fill(0.0);
        let weight = if options.sketch_routed { route(options, n, 0) } else { 1.0 };
        if weight == 0.0 {
            continue;
        }
        for part in parts.chunks_exact(k_o * k_i).skip(n * tiles).take(tiles) {
            let factor = options.sample_scale * weight;
            out.iter_mut().zip(part).for_each(|(out, part)| *out += factor * part);
        }
    }
}
