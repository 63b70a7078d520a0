//! Between the caller's number formats and the `f32` the backend computes in.

use rayon::prelude::*;

use super::workspace::Grow;
use crate::ops::ParamGrad;
use crate::problem::Element;

const CHUNK: usize = 1 << 14;

/// The values as `f32`: where they lie when they are, else widened into `buffer`.
pub(crate) fn widened<'a, T: Element>(values: &'a [T], buffer: &'a mut Vec<f32>) -> &'a [f32] {
    // Only a slice of `f32` has the alignment, size and type id for this.
    if let Some(values) = same(values) {
        return values;
    }
    let wide = buffer.grown(values.len());
    wide.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(wide, values)| {
        wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.to_f32());
    });
    wide
}

/// As [`widened`], on this thread alone: for a task that holds its thread's scratch.
pub(crate) fn widened_here<'a, T: Element>(values: &'a [T], buffer: &'a mut Vec<f32>) -> &'a [f32] {
    if let Some(values) = same(values) {
        return values;
    }
    let wide = buffer.grown(values.len());
    wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.to_f32());
    wide
}

/// Rounds to the caller's format.
pub(crate) fn narrow<T: Element>(values: &[f32], out: &mut [T]) {
    out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, values)| {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = T::from_f32(value));
    });
}

/// The slice itself where `T` is `f32`.
pub(crate) fn same<T: Element>(values: &[T]) -> Option<&[f32]> {
    (T::DTYPE == crate::problem::Dtype::F32).then(|| bytemuck::cast_slice(values))
}

/// As [`same`], to be written.
pub(crate) fn same_mut<T: Element>(values: &mut [T]) -> Option<&mut [f32]> {
    (T::DTYPE == crate::problem::Dtype::F32).then(|| bytemuck::cast_slice_mut(values))
}

/// Has `compute` write all of `out` in `f32`: in place where it is, else in `buffer`, which is rounded
/// into it.
pub(crate) fn with_values<T: Element>(
    out: &mut [T],
    buffer: &mut Vec<f32>,
    compute: impl FnOnce(&mut [f32]),
) {
    if let Some(out) = same_mut(out) {
        return compute(out);
    }
    let values = buffer.grown(out.len());
    compute(values);
    narrow(values, out);
}

/// Hands `compute` the `f32` matrix a parameter gradient accumulates in: the caller's own
/// buffer where that is `f32`, else `buffer`, which is rounded into the caller's once at the
/// end. `compute` is told whether to add to what is there.
pub(crate) fn with_total<T: Element>(
    out: &mut ParamGrad<T>,
    accumulate: bool,
    buffer: &mut Vec<f32>,
    compute: impl FnOnce(&mut [f32], bool),
) {
    let native = match out {
        ParamGrad::F32(values) => return compute(values, accumulate),
        ParamGrad::Native(values) => values,
    };
    if let Some(values) = same_mut(native) {
        return compute(values, accumulate);
    }
    let total = buffer.grown(native.len());
    if accumulate {
        total.iter_mut().zip(native.iter()).for_each(|(total, before)| *total = before.to_f32());
    }
    compute(total, accumulate);
    narrow(total, native);
}
