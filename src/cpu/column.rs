//! Gradients that are one column of the gradient matrix: a bias, a norm's `γ` and `β`.
//!
//! They are small, so they are formed for every sample of the batch, `[N, outputs]`, and then
//! measured, sketched, routed and added up here.

use std::ops::Range;

use super::flush::add_scaled;
use super::regions::route;
use super::workspace::Grow;
use crate::ops::{Options, ParamGrad};
use crate::problem::{Element, GradientShape};
use crate::projection::{Side, SignMatrix, Sketch, SketchKind, micro_block};

/// One column of every sample's gradient matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a> {
    /// `[N, outputs]`.
    values: &'a [f32],
    outputs: usize,
    inputs: usize,
    /// Which column; the bias stands behind the inputs.
    index: usize,
}

impl<'a> Column<'a> {
    /// The bias column, `values [N, outputs]`.
    pub(crate) fn bias(shape: GradientShape, values: &'a [f32]) -> Self {
        Self { values, outputs: shape.outputs(), inputs: shape.inputs(), index: shape.inputs() }
    }

    /// The only weight column of a normalisation, `values [N, outputs]`.
    pub(crate) fn weight(shape: GradientShape, values: &'a [f32]) -> Self {
        debug_assert_eq!(shape.inputs(), 1);
        Self { values, outputs: shape.outputs(), inputs: 1, index: 0 }
    }

    fn samples(&self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.values.chunks_exact(self.outputs.max(1)).enumerate()
    }

    /// Ranges of outputs with their route weight for sample `n`.
    fn routes<'o>(
        &self,
        options: &'o Options<'o>,
        n: usize,
    ) -> impl Iterator<Item = (Range<usize>, f32)> + 'o {
        let (is_bias, outputs) = (self.index == self.inputs, self.outputs);
        let routed = options.routing.into_iter().flat_map(move |routing| {
            let regions = routing.layer.regions();
            regions.bias_tiles().iter().map(move |(range, region)| {
                // Norms cut their outputs at the same places for weight and bias.
                let region = if is_bias { *region } else { regions.region_at(range.start, 0) };
                (range.clone(), routing.route(n, region))
            })
        });
        let open = options.routing.is_none().then_some((0..outputs, 1.0));
        routed.chain(open)
    }

    /// `out [N] = scale² · ‖column‖²`.
    pub(crate) fn sq_norm(&self, scale: f32, out: &mut [f32]) {
        out.fill(0.0);
        let scale = f64::from(scale) * f64::from(scale);
        for (n, values) in self.samples() {
            let sum: f64 = values.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            out[n] = (scale * sum) as f32;
        }
    }

    /// `grad [outputs] (+)= Σ_n route_n · column_n`.
    pub(crate) fn reduce<T: Element>(
        &self,
        options: &Options,
        grad: &mut ParamGrad<T>,
        scratch: &mut Vec<f32>,
    ) {
        let total = scratch.grown(self.outputs);
        total.fill(0.0);
        for (n, values) in self.samples() {
            for (range, route) in self.routes(options, n) {
                if route != 0.0 {
                    add_scaled(&mut total[range.clone()], route, &values[range]);
                }
            }
        }
        write(grad, total, options.accumulate);
    }

    /// Adds the column's part to `out [N, K]`.
    pub(crate) fn sketch(
        &self,
        options: &Options,
        sketch: &Sketch,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let scale = options.sample_scale;
        let factors = |n: usize| {
            self.routes(options, n)
                .map(|(range, route)| (range, if options.sketch_routed { route } else { 1.0 }))
                .filter(|(_, factor)| *factor != 0.0)
        };
        match sketch.kind() {
            SketchKind::Count { buckets } => {
                let slots = scratch.grown(2 * self.outputs);
                self.hash(sketch, buckets, slots);
                for ((n, values), out) in self.samples().zip(out.chunks_exact_mut(buckets)) {
                    for (range, factor) in factors(n) {
                        let slots = slots[2 * range.start..2 * range.end].as_chunks::<2>().0;
                        for (g, [bucket, sign]) in values[range].iter().zip(slots) {
                            out[*bucket as usize] += scale * factor * sign * g;
                        }
                    }
                }
            }
            SketchKind::TwoSided { outputs: k_o, inputs: k_i } => {
                let scratch = scratch.grown(self.outputs * k_o + k_i + k_o);
                let (p_o, rest) = scratch.split_at_mut(self.outputs * k_o);
                let (p_i, sums) = rest.split_at_mut(k_i);
                SignMatrix::new(sketch.key(), Side::Outputs, self.outputs, k_o).rows(0, p_o);
                SignMatrix::new(sketch.key(), Side::Inputs, self.inputs, k_i)
                    .row(self.index as u32, p_i);
                for ((n, values), out) in self.samples().zip(out.chunks_exact_mut(k_o * k_i)) {
                    sums.fill(0.0);
                    for (range, factor) in factors(n) {
                        for o in range {
                            add_scaled(sums, factor * values[o], &p_o[o * k_o..][..k_o]);
                        }
                    }
                    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(k_i)) {
                        add_scaled(out, scale * sum, p_i);
                    }
                }
            }
        }
    }

    /// Bucket and sign of every element, in turn. A bucket is below 2²⁰, so `f32` holds it.
    fn hash(&self, sketch: &Sketch, buckets: usize, slots: &mut [f32]) {
        for (block, slots) in slots.chunks_mut(16).enumerate() {
            let (block_o, block_i) = (block as u32, (self.index / 8) as u32);
            let hash = micro_block(sketch.key(), block_o, block_i, buckets);
            for (o, slot) in slots.chunks_exact_mut(2).enumerate() {
                let e = 8 * o + self.index % 8;
                slot[0] = hash.bucket(e, buckets) as f32;
                slot[1] = hash.sign(e);
            }
        }
    }
}

/// Writes `values` to `grad`, or adds them.
fn write<T: Element>(grad: &mut ParamGrad<T>, values: &[f32], accumulate: bool) {
    match grad {
        ParamGrad::F32(grad) => write_to(grad, values, accumulate),
        ParamGrad::Native(grad) => write_to(grad, values, accumulate),
    }
}

/// As [`write`], to the first elements of a slice.
pub(crate) fn write_to<T: Element>(grad: &mut [T], values: &[f32], accumulate: bool) {
    for (grad, &value) in grad.iter_mut().zip(values) {
        if !accumulate {
            *grad = T::from_f32(value);
        } else if value != 0.0 {
            // Nothing to add leaves the element as it is, down to the sign of a zero.
            *grad = T::from_f32(grad.to_f32() + value);
        }
    }
}

/// Whether sample `n` has a weight other than 0 anywhere in the layer.
pub(crate) fn trains(options: &Options, n: usize) -> bool {
    let regions = options.routing.map_or(1, |routing| routing.layer.regions().len());
    (0..regions).any(|region| route(options, n, region) != 0.0)
}
