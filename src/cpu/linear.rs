//! The linear layer: carries out what [`crate::ops::plan`] decided.

use super::bias;
use super::blocks::{self, Projection};
use super::buffers::{widened, with_total, with_values};
use super::factored::{Gathered, Operands};
use super::flush::Hashes;
use super::formed::{self, Job, Partials, Signs};
use super::gemm::{Write, view, view_mut};
use super::packed::Packed;
use super::regions::mark_touched;
use super::signs;
use super::workspace::{Grow, Threads, bytes};
use crate::ops::plan::{Norms, Path, Request, Sketching, plan_linear};
use crate::ops::{LayerOutputs, LinearInputs, Options};
use crate::problem::{Element, Linear};
use crate::projection::SketchKind;

/// Buffers for operands that are not `f32` to begin with.
#[derive(Debug, Default)]
pub(crate) struct Wide {
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) dx: Vec<f32>,
}

impl Wide {
    pub(crate) fn bytes(&self) -> usize {
        bytes([&self.x, &self.dy, &self.weight, &self.dx])
    }
}

/// Buffers of the layer itself.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    total: Vec<f32>,
    bias_sums: Vec<f32>,
    bias: Vec<f32>,
    signs: [Vec<f32>; 2],
    projected: [Vec<f32>; 2],
    gathered: Gathered,
    hashes: Hashes,
    packed: Packed,
    pub(crate) partials: Partials,
    pub(crate) threads: Threads,
}

impl Buffers {
    pub(crate) fn bytes(&self) -> usize {
        let own = bytes([&self.total, &self.bias_sums, &self.bias]);
        let sketching = bytes(self.signs.iter().chain(&self.projected));
        let sketching = sketching + self.hashes.bytes();
        let copies = self.gathered.bytes() + self.packed.bytes();
        own + sketching + copies + self.partials.bytes() + self.threads.bytes()
    }
}

/// [`crate::ops::Backend::linear`] on checked arguments.
pub(crate) fn run<T: Element>(
    problem: &Linear,
    options: &Options,
    inputs: LinearInputs<T>,
    dx: Option<&mut [T]>,
    out: LayerOutputs<T>,
    wide: &mut Wide,
    buffers: &mut Buffers,
) {
    let inputs = LinearInputs {
        x: widened(inputs.x, &mut wide.x),
        dy: widened(inputs.dy, &mut wide.dy),
        weight: inputs.weight.map(|weight| widened(weight, &mut wide.weight)),
    };
    let Some(dx) = dx else { return backward(problem, options, inputs, None, out, buffers) };
    with_values(dx, &mut wide.dx, |dx| backward(problem, options, inputs, Some(dx), out, buffers));
}

/// The pass itself, on `f32` operands.
pub(crate) fn backward<T: Element>(
    problem: &Linear,
    options: &Options,
    inputs: LinearInputs<f32>,
    dx: Option<&mut [f32]>,
    mut out: LayerOutputs<T>,
    buffers: &mut Buffers,
) {
    let (rows, shape) = (problem.rows(), problem.gradient());
    let operands = Operands { rows, shape, options, inputs };
    let request = Request::of(dx.is_some(), &out);
    if let Some(touched) = &mut out.touched {
        mark_touched(touched, options, rows.samples(), |n| rows.range(n).is_empty());
    }
    if let (Some(dx), Some(weight)) = (dx, inputs.weight) {
        operands.dx(weight, dx);
    }
    records_and_dw(&operands, problem, request, &mut out, buffers);
    if bias::is_asked(shape, &out) {
        let sums = buffers.bias_sums.grown(rows.samples() * shape.outputs());
        operands.bias_sums(sums);
        bias::finish(shape, options, sums, &mut out, &mut buffers.bias);
    }
}

/// `dw`, `sq_norm` and the weight's part of `sketch`, as planned.
fn records_and_dw<T: Element>(
    operands: &Operands,
    problem: &Linear,
    request: Request,
    out: &mut LayerOutputs<T>,
    buffers: &mut Buffers,
) {
    let (shape, options) = (operands.shape, operands.options);
    let kind = options.sketch.map(|sketch| sketch.kind());
    let plan = plan_linear(problem, request, kind);
    let Buffers { total, signs, projected, gathered, hashes, packed, partials, threads, .. } =
        buffers;
    let signs = match (plan.sketch, kind, options.sketch) {
        (
            Some(Sketching::ProjectRows | Sketching::ProjectTiles),
            Some(SketchKind::TwoSided { outputs, inputs }),
            Some(sketch),
        ) => Some(signs::draw(sketch.key(), shape, [outputs, inputs], signs)),
        _ => None,
    };
    if plan.norms == Some(Norms::Blocks) {
        let buffers = blocks::Buffers { packed, partials, threads };
        return in_blocks(operands, signs, out, total, projected, buffers);
    }
    if let (Some(Sketching::ProjectRows), Some(signs), Some(sketch)) =
        (plan.sketch, signs, &mut out.sketch)
    {
        operands.sketches(signs, sketch, projected);
    }
    if let (Some(Sketching::CountRows), Some(projection), Some(sketch)) =
        (plan.sketch, options.sketch, &mut out.sketch)
    {
        let size = [shape.outputs(), shape.inputs()];
        hashes.set(projection.key(), projection.len(), [0, 0], size);
        operands.counts(hashes, sketch, threads);
    }
    if plan.path == Path::Factored {
        if let (Some(Norms::Gram), Some(sq_norm)) = (plan.norms, &mut out.sq_norm) {
            operands.norms(sq_norm, threads);
        }
        if let Some(dw) = &mut out.dw {
            with_total(dw, options.accumulate, total, |dw, accumulate| {
                operands.dw(dw, accumulate, gathered);
            });
        }
        return;
    }
    let tiles = matches!(plan.sketch, Some(Sketching::CountTiles | Sketching::ProjectTiles));
    let job = Job {
        shape,
        outputs: 0..shape.outputs(),
        samples: operands.rows.samples(),
        options,
        write: Write::of(options.accumulate),
        tile: plan.tile,
        norms: plan.norms.is_some(),
        count: plan.sketch == Some(Sketching::CountTiles),
        signs: signs.filter(|_| plan.sketch == Some(Sketching::ProjectTiles)),
    };
    let sq_norm = out.sq_norm.as_deref_mut();
    let sketch = out.sketch.as_deref_mut().filter(|_| tiles);
    let Some(dw) = &mut out.dw else {
        return formed::run(&job, operands, None, sq_norm, sketch, partials, threads);
    };
    with_total(dw, options.accumulate, total, |dw, _| {
        let dw = view_mut(dw, shape.outputs(), shape.inputs(), shape.inputs());
        formed::run(&job, operands, Some(dw), sq_norm, sketch, partials, threads);
    });
}

/// As [`records_and_dw`], by [`blocks`]; a two-sided sketch, if any, is of the rows.
fn in_blocks<T: Element>(
    operands: &Operands,
    signs: Option<Signs>,
    out: &mut LayerOutputs<T>,
    total: &mut Vec<f32>,
    projected: &mut [Vec<f32>; 2],
    buffers: blocks::Buffers,
) {
    let sq_norm = out.sq_norm.as_deref_mut().expect("what blocks are formed for");
    let (accumulate, rows) = (operands.options.accumulate, operands.rows.total());
    let write = Write::of(accumulate);
    let mut sketched = signs.zip(out.sketch.as_deref_mut());
    // On the way rows are multiplied whole and a few at a time: by signs of one region, and quickly.
    let region = operands.one_region().filter(|_| signs.is_some_and(Signs::are_narrow));
    if let (Some((signs, sketch)), None) = (&mut sketched, region) {
        operands.sketches(*signs, sketch, projected);
    }
    let [left, right] = projected;
    let projection = signs.filter(|_| region.is_some()).map(|signs| Projection {
        signs,
        left: left.grown(rows * signs.outputs.ncols()),
        right: right.grown(rows * signs.inputs.ncols()),
    });
    match &mut out.dw {
        None => blocks::run(operands, write, None, sq_norm, projection, buffers),
        Some(dw) => with_total(dw, accumulate, total, |dw, _| {
            blocks::run(operands, write, Some(dw), sq_norm, projection, buffers);
        }),
    }
    if let (Some((signs, sketch)), Some(region)) = (sketched, region) {
        let (k_o, k_i) = (signs.outputs.ncols(), signs.inputs.ncols());
        sketch.fill(0.0);
        let (left, right) = (view(left, rows, k_o, k_o), view(right, rows, k_i, k_i));
        operands.add_sketches(region, left, right, sketch);
    }
}
