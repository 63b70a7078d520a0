//! From f64 results to the caller's buffers.

use super::Gradients;
use crate::Result;
use crate::ops::{LayerOutputs, Options, ParamGrad};
use crate::problem::Element;

/// Whether no output is asked for.
pub(super) fn asks_nothing<T>(out: &LayerOutputs<T>) -> bool {
    out.dw.is_none()
        && out.db.is_none()
        && out.sq_norm.is_none()
        && out.sq_norm_bias.is_none()
        && out.sketch.is_none()
        && out.touched.is_none()
}

/// Computes, if anything is asked for, and writes what is.
pub(super) fn answer<T: Element>(
    dx: Option<&mut [T]>,
    out: LayerOutputs<T>,
    options: &Options,
    compute: impl FnOnce() -> Gradients,
) -> Result<()> {
    if dx.is_none() && asks_nothing(&out) {
        return Ok(());
    }
    let all = compute();
    if let Some(dx) = dx {
        for (to, from) in dx.iter_mut().zip(&all.dx) {
            *to = T::from_f32(*from as f32);
        }
    }
    for (out, values) in [(out.dw, &all.dw), (out.db, &all.db)] {
        if let Some(out) = out {
            write(out, values, options.accumulate);
        }
    }
    for (out, values) in [
        (out.sq_norm, &all.sq_norm),
        (out.sq_norm_bias, &all.sq_norm_bias),
        (out.sketch, &all.sketch),
    ] {
        if let Some(out) = out {
            out.iter_mut().zip(values).for_each(|(to, from)| *to = *from as f32);
        }
    }
    if let Some(touched) = out.touched {
        touched.copy_from_slice(&all.touched);
    }
    Ok(())
}

fn write<T: Element>(mut out: ParamGrad<T>, values: &[f64], accumulate: bool) {
    for (at, &value) in values.iter().enumerate() {
        if !accumulate {
            out.set(at, value as f32);
        } else if value != 0.0 {
            // Nothing to add leaves the element as it is, down to the sign of a zero.
            out.set(at, (f64::from(out.get(at)) + value) as f32);
        }
    }
}
