//! The records of a convolution's weight. Where positions are few, from rows ([`super::conv_gram`],
//! [`super::conv_sketch`]); else from per-sample gradients formed tile by tile ([`super::formed`]): a
//! tile is `dY_n [outputs, positions]` times a panel of patches, which never exist but for that panel.
//! `dw` comes from the same tiles.

use faer::MatMut;

use super::conv2d::{COLUMNS, PANEL, group_dy, positions};
use super::formed::{self, Form, Job, Partials};
use super::gemm::{Write, gemm, view, view_mut};
use super::im2col::{gather, transpose};
use super::regions::Rect;
use super::tasks::for_blocks;
use super::workspace::{Grow, Threads};
use super::{column, conv_gram, conv_sketch, signs};
use crate::ops::{LayerOutputs, Options, ParamGrad};
use crate::problem::{Conv2d, Element};
use crate::projection::SketchKind;

/// Numbers of `dw` that are summed channels last before they are turned, where a tile's outputs
/// have no more: few, for they are memory that a plain pass has no need of.
const BAND: usize = 1 << 19;
/// Outputs of a formed tile at most.
const OUTPUTS: usize = 128;

/// What forms tiles of per-sample gradients.
pub(super) struct Operands<'a> {
    pub(super) problem: &'a Conv2d,
    /// `[N, groups, pixels, C / groups]`.
    pub(super) image: &'a [f32],
    /// `[N, O, positions]`.
    pub(super) dy: &'a [f32],
}

impl Operands<'_> {
    pub(super) fn image(&self, n: usize, g: usize) -> &[f32] {
        let spec = self.problem.spec();
        let len = spec.size[0] * spec.size[1] * self.problem.channels_per_group();
        &self.image[(n * spec.groups + g) * len..][..len]
    }
}

impl Form for Operands<'_> {
    fn is_empty(&self, _: usize) -> bool {
        positions(self.problem) == 0
    }

    fn form(&self, n: usize, at: &Rect, mut out: MatMut<f32>, panel: &mut Vec<f32>) {
        let (spec, positions) = (self.problem.spec(), positions(self.problem));
        let (outputs, columns) = (spec.out_channels / spec.groups, at.inputs.len());
        let band = (PANEL / columns.max(1)).max(1).min(positions);
        for g in at.outputs.start / outputs..at.outputs.end.div_ceil(outputs) {
            let first = at.outputs.start.max(g * outputs);
            let last = at.outputs.end.min((g + 1) * outputs);
            let dy = view(group_dy(self.problem, self.dy, n, g), outputs, positions, positions);
            let dy = dy.subrows(first - g * outputs, last - first);
            let mut write = Write::Replace;
            for start in (0..positions).step_by(band) {
                let count = band.min(positions - start);
                let panel = panel.grown(count * columns);
                let width = self.problem.channels_per_group();
                let seen = start..start + count;
                gather(self.problem, self.image(n, g), width, seen, at.inputs.clone(), panel);
                let out = out.as_mut().subrows_mut(first - at.outputs.start, last - first);
                let dy = dy.subcols(start, count);
                gemm(out, write, 1.0, dy, view(panel, count, columns, columns));
                write = Write::Add;
            }
        }
    }
}

/// Buffers of [`run`].
pub(super) struct Buffers<'a> {
    pub(super) total: &'a mut Vec<f32>,
    pub(super) signs: &'a mut [Vec<f32>; 2],
    pub(super) projected: &'a mut [Vec<f32>; 2],
    pub(super) partials: &'a mut Partials,
}

/// The weight's part of the records. Where per-sample gradients are formed for them, `dw` comes
/// from the same pass; returns whether it did.
pub(super) fn run<T: Element>(
    operands: &Operands,
    options: &Options,
    out: &mut LayerOutputs<T>,
    scratch: Buffers,
    threads: &mut Threads,
) -> bool {
    let (problem, shape) = (operands.problem, operands.problem.gradient());
    let sketch = options.sketch.filter(|_| out.sketch.is_some());
    let Buffers { total, signs, projected, partials } = scratch;
    let two_sided = sketch.and_then(|sketch| match sketch.kind() {
        SketchKind::TwoSided { outputs, inputs } => {
            Some(signs::draw(sketch.key(), shape, [outputs, inputs], signs))
        }
        SketchKind::Count { .. } => None,
    });
    let by_rows = two_sided.filter(|signs| conv_sketch::by_rows(problem, options, *signs));
    if let (Some(signs), Some(out)) = (by_rows, &mut out.sketch) {
        conv_sketch::run(operands, options, signs, out, projected, threads);
    }
    let by_tiles = sketch.is_some() && by_rows.is_none();
    let mut norms = out.sq_norm.is_some();
    if let Some(out) = out.sq_norm.as_deref_mut().filter(|_| !by_tiles)
        && conv_gram::is_cheaper(problem)
    {
        let scratch = (&mut projected[0], &mut *partials);
        conv_gram::run(operands, options.sample_scale, out, scratch, threads);
        norms = false;
    }
    let job = Job {
        shape,
        outputs: 0..shape.outputs(),
        samples: problem.spec().samples,
        options,
        write: Write::Replace,
        tile: tile(problem),
        norms,
        count: sketch.is_some() && two_sided.is_none(),
        signs: two_sided.filter(|_| by_rows.is_none()),
    };
    let formed = job.norms || job.count || job.signs.is_some();
    if formed {
        form(&job, operands, out, total, partials, threads);
    }
    formed
}

/// Everything that per-sample gradients give, one band of output channels after the other.
fn form<T: Element>(
    whole: &Job,
    operands: &Operands,
    out: &mut LayerOutputs<T>,
    total: &mut Vec<f32>,
    partials: &mut Partials,
    threads: &mut Threads,
) {
    let (problem, inputs) = (operands.problem, whole.shape.inputs());
    let (accumulate, end) = (whole.options.accumulate, whole.outputs.end);
    let band = (BAND / inputs.max(1) / whole.tile[0]).max(1) * whole.tile[0];
    for start in (0..end.max(1)).step_by(band) {
        let job = Job { outputs: start..(start + band).min(end), ..*whole };
        let (rows, weights) = (job.outputs.len(), start * inputs..job.outputs.end * inputs);
        let dw =
            out.dw.as_ref().map(|_| view_mut(total.grown(rows * inputs), rows, inputs, inputs));
        let sketch = out.sketch.as_deref_mut().filter(|_| job.count || job.signs.is_some());
        let sq_norm = out.sq_norm.as_deref_mut();
        formed::run(&job, operands, dw, sq_norm, sketch, partials, threads);
        match &mut out.dw {
            Some(ParamGrad::F32(dw)) => {
                write_weight(problem, total, &mut dw[weights], accumulate, threads);
            }
            Some(ParamGrad::Native(dw)) => {
                write_weight(problem, total, &mut dw[weights], accumulate, threads);
            }
            None => {}
        }
    }
}

/// Extents of a formed tile: a product that runs at full speed, which with its share of `dw`
/// stays in a core's second-level cache.
fn tile(problem: &Conv2d) -> [usize; 2] {
    let shape = problem.gradient();
    let fit = |extent: usize, most: usize| {
        let parts = extent.div_ceil(most).max(1);
        extent.div_ceil(parts).next_multiple_of(8).max(8)
    };
    [fit(shape.outputs(), OUTPUTS), COLUMNS.min(shape.inputs().next_multiple_of(8)).max(8)]
}

/// Rows of `dw [O, C / groups, kh, kw] (+)=` those of `total [O, kh, kw, C / groups]`.
fn write_weight<T: Element>(
    problem: &Conv2d,
    total: &[f32],
    dw: &mut [T],
    accumulate: bool,
    threads: &Threads,
) {
    let (shape, taps) = (problem.gradient(), problem.gradient().taps());
    let (inputs, channels) = (shape.inputs(), problem.channels_per_group());
    for_blocks(dw, 0..dw.len() / inputs.max(1), &|o| o * inputs, &|o, dw| {
        let row = &total[o * inputs..(o + 1) * inputs];
        if taps == 1 {
            return column::write_to(dw, row, accumulate);
        }
        if !accumulate {
            return transpose(row, [taps, channels], channels, dw, taps, T::from_f32);
        }
        let mut own = threads.own();
        let turned = own.tile.grown(inputs);
        transpose(row, [taps, channels], channels, turned, taps, |value| value);
        column::write_to(dw, turned, accumulate);
    });
}

#[cfg(test)]
mod tests {
    use crate::cpu::Cpu;
    use crate::cpu::testing::{Buffers, integers};
    use crate::ops::{Backend, ConvInputs, Options};
    use crate::problem::{Conv2d, Conv2dSpec, Padding};
    use crate::projection::Sketch;
    use crate::reference;

    #[test]
    fn bands_of_outputs_add_up() {
        let spec = Conv2dSpec {
            samples: 2,
            in_channels: 1000,
            out_channels: 264,
            size: [1, 1],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        let conv = Conv2d::new(spec).unwrap();
        let shape = conv.gradient();
        assert!(shape.weights() > super::BAND);
        let (x, dy) = (integers(2000, 1), integers(528, 2));
        let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
        for sketch in [Sketch::count(64, 1, 2), Sketch::two_sided(4, 1, 2)] {
            let options = Options { sketch: Some(sketch.unwrap()), ..Options::default() };
            let expected = reference::conv2d(&conv, &options, inputs).unwrap();
            let mut buffers = Buffers::new(shape, 2, 0, &options);
            let (_, out) = buffers.split(false);
            Cpu::new().conv2d(&conv, &options, inputs, None, out).unwrap();
            buffers.check(&expected, 0.0, &format!("{options:?}"));
        }
    }
}
