//! Everything a bias is asked for, from each sample's summed `dY`.

use super::regions::route;
use super::workspace::Grow;
use crate::ops::{LayerOutputs, Options, ParamGrad};
use crate::problem::{Element, GradientShape};
use crate::projection::{Side, SketchKind, micro_block, sign_row};

/// Whether any output asks for the per-sample bias gradients.
pub(crate) fn is_asked<T>(shape: GradientShape, out: &LayerOutputs<T>) -> bool {
    let asked = out.db.is_some() || out.sq_norm_bias.is_some() || out.sketch.is_some();
    shape.bias() && asked
}

/// Writes `db` and `sq_norm_bias` and adds the bias column to `sketch`, which the weight's part
/// must have been written to. `sums [N, O]` holds each sample's bias gradient.
pub(crate) fn finish<T: Element>(
    shape: GradientShape,
    options: &Options,
    sums: &[f32],
    out: &mut LayerOutputs<T>,
    scratch: &mut Vec<f32>,
) {
    let outputs = shape.outputs();
    if let Some(db) = &mut out.db {
        write(db, options, outputs, sums, scratch.grown(outputs));
    }
    if outputs == 0 {
        out.sq_norm_bias.iter_mut().for_each(|sq_norm| sq_norm.fill(0.0));
        return;
    }
    let scale = options.sample_scale;
    if let Some(sq_norm) = &mut out.sq_norm_bias {
        for (out, sums) in sq_norm.iter_mut().zip(sums.chunks_exact(outputs)) {
            let squares: f64 = sums.iter().map(|&sum| f64::from(sum) * f64::from(sum)).sum();
            *out = (squares * f64::from(scale) * f64::from(scale)) as f32;
        }
    }
    if let (Some(sketch), Some(projection)) = (&mut out.sketch, options.sketch) {
        let kept = projection.len();
        let key = projection.key();
        match projection.kind() {
            SketchKind::Count { buckets } => {
                count(shape, options, key, buckets, sums, sketch);
            }
            SketchKind::TwoSided { outputs: k_o, inputs: k_i } => {
                let (signs, right) = scratch.grown(outputs * k_o + k_i).split_at_mut(outputs * k_o);
                for (o, signs) in signs.chunks_exact_mut(k_o).enumerate() {
                    sign_row(key, Side::Outputs, o as u32, signs);
                }
                sign_row(key, Side::Inputs, shape.inputs() as u32, right);
                for (n, sketch) in sketch.chunks_exact_mut(kept).enumerate() {
                    let sums = &sums[n * outputs..(n + 1) * outputs];
                    two_sided(options, n, sums, signs, right, sketch);
                }
            }
        }
    }
}

/// Ranges of output features with the region their bias belongs to.
fn spans<'a>(
    options: &'a Options,
    outputs: usize,
) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + 'a {
    let map = options.routing.map(|routing| routing.layer.regions());
    let cut = map.into_iter().flat_map(|map| map.bias_tiles().iter().cloned());
    map.is_none().then_some((0..outputs, 0)).into_iter().chain(cut)
}

fn write<T: Element>(
    db: &mut ParamGrad<T>,
    options: &Options,
    outputs: usize,
    sums: &[f32],
    total: &mut [f32],
) {
    total.fill(0.0);
    for (n, sums) in sums.chunks_exact(outputs.max(1)).enumerate() {
        for (span, region) in spans(options, outputs) {
            let weight = route(options, n, region);
            if weight != 0.0 {
                let total = total[span.clone()].iter_mut();
                total.zip(&sums[span]).for_each(|(total, sum)| *total += weight * sum);
            }
        }
    }
    for (o, &total) in total.iter().enumerate() {
        let before = if options.accumulate { db.get(o) } else { 0.0 };
        db.set(o, before + total);
    }
}

/// The factor the records of output feature span `region` take.
fn record_weight(options: &Options, n: usize, region: usize) -> f32 {
    if options.sketch_routed { route(options, n, region) } else { 1.0 }
}

fn count(
    shape: GradientShape,
    options: &Options,
    key: [u32; 2],
    buckets: usize,
    sums: &[f32],
    sketch: &mut [f32],
) {
    let (outputs, column) = (shape.outputs(), shape.inputs());
    for (span, region) in spans(options, outputs) {
        let mut o = span.start;
        while o < span.end {
            let end = ((o / 8 + 1) * 8).min(span.end);
            let hash = micro_block(key, (o / 8) as u32, (column / 8) as u32, buckets);
            for (n, sketch) in sketch.chunks_exact_mut(buckets).enumerate() {
                let weight = record_weight(options, n, region);
                if weight == 0.0 {
                    continue;
                }
                for o in o..end {
                    let e = 8 * (o % 8) + column % 8;
                    let factor = options.sample_scale * weight * hash.sign(e);
                    sketch[hash.bucket(e, buckets)] += factor * sums[n * outputs + o];
                }
            }
            o = end;
        }
    }
}

fn two_sided(
    options: &Options,
    n: usize,
    sums: &[f32],
    signs: &[f32],
    right: &[f32],
    sketch: &mut [f32],
) {
    let k_o = signs.len() / sums.len();
    for (span, region) in spans(options, sums.len()) {
        let weight = record_weight(options, n, region);
        if weight == 0.0 {
            continue;
        }
        for (a, row) in sketch.chunks_exact_mut(right.len()).enumerate() {
            let left: f32 = span.clone().map(|o| signs[o * k_o + a] * sums[o]).sum();
            let factor = options.sample_scale * weight * left;
            row.iter_mut().zip(right).for_each(|(out, right)| *out += factor * right);
        }
    }
}
