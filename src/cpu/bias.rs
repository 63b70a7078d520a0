//! Everything a bias is asked for, from each sample's summed `dY`.

use super::column::Column;
use crate::ops::{LayerOutputs, Options};
use crate::problem::{Element, GradientShape};

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
    let column = Column::bias(shape, sums);
    if let Some(db) = &mut out.db {
        column.reduce(options, db, scratch);
    }
    if let Some(sq_norm) = &mut out.sq_norm_bias {
        column.sq_norm(options.sample_scale, sq_norm);
    }
    if let (Some(out), Some(sketch)) = (&mut out.sketch, &options.sketch) {
        column.sketch(options, sketch, out, scratch);
    }
}
