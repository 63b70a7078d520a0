//! A single layer's passes by the ops alone, as a framework that links the crate calls them: no
//! modules, no automatic differentiation, which in candle adds every gradient to zeros, and results
//! in buffers that it keeps, as PyTorch's come from its allocator without being cleared.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use gradroute::cpu::{Cpu, LoraOperands};
use gradroute::ops::{
    Backend, ConvInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, Options, ParamGrad,
};
use gradroute::problem::{Conv2d, Linear, Lora, Rows};
use gradroute::projection::{Sketch, SketchKind};

use crate::sequence::{Layer, inner};
use crate::task::{SEED, Workload};

enum Problem {
    Linear(Linear),
    Conv2d(Conv2d),
    /// Beside a frozen layer of this weight.
    Lora(Lora, Vec<f32>),
}

/// A parameter, its gradient, and what is kept of each sample's.
struct Parameter {
    weight: Vec<f32>,
    dw: Vec<f32>,
    sq_norm: Vec<f32>,
    sketches: Vec<f32>,
    options: Options<'static>,
}

impl Parameter {
    /// The `layer`-th, with exact norms and sketches if a kind is given.
    fn new(weight: Vec<f32>, samples: usize, kind: Option<SketchKind>, layer: u32) -> Result<Self> {
        let sketch = kind.map(|kind| Sketch::new(kind, SEED, layer)).transpose()?;
        Ok(Self {
            dw: vec![0.0; weight.len()],
            weight,
            sq_norm: vec![0.0; kind.map_or(0, |_| samples)],
            sketches: vec![0.0; kind.map_or(0, |kind| samples * kind.len())],
            options: Options { sketch, ..Options::default() },
        })
    }

    /// Its weight, and what a pass is asked for and how.
    fn split(&mut self) -> (&[f32], Options<'static>, LayerOutputs<'_, f32>) {
        let dw = Some(ParamGrad::F32(&mut self.dw));
        let plain = LayerOutputs { dw, ..LayerOutputs::default() };
        let out = match self.options.sketch {
            None => plain,
            Some(_) => LayerOutputs {
                sq_norm: Some(&mut self.sq_norm),
                sketch: Some(&mut self.sketches),
                ..plain
            },
        };
        (&self.weight, self.options, out)
    }
}

/// A layer in `f32` without a bias, with input and the gradient that arrives at its output.
pub struct Bare {
    problem: Problem,
    backend: Cpu,
    /// One, of a LoRA layer two.
    parameters: Vec<Parameter>,
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
}

impl Bare {
    /// With the tensors of the workload's modules, sketched as `kind` says.
    pub fn new(
        workload: &Workload,
        tensors: &HashMap<String, Tensor>,
        kind: Option<SketchKind>,
    ) -> Result<Self> {
        let of = |end: &str| -> Result<Vec<f32>> {
            let mut all = tensors.iter();
            let found = all.find(|(name, _)| *name == end || name.ends_with(&format!(".{end}")));
            Ok(found.with_context(|| format!("no {end}"))?.1.flatten_all()?.to_vec1()?)
        };
        let rows = || -> Result<Rows> {
            let (_, rows) = workload.input.split_last().context("a row")?;
            Ok(Rows::uniform(workload.samples, rows.iter().product())?)
        };
        let (problem, names): (_, &[&str]) = match &workload.layers[..] {
            [Layer::Linear { inputs, outputs, bias: false }] => {
                (Problem::Linear(Linear::new(rows()?, *inputs, *outputs)?), &["weight"])
            }
            [Layer::Conv2d(conv)] if !conv.bias => {
                let mut spec = conv.spec();
                spec.samples = workload.samples;
                spec.size = [workload.input[1], workload.input[2]];
                (Problem::Conv2d(Conv2d::new(spec)?), &["weight"])
            }
            [Layer::Lora { inputs, outputs, rank }] => {
                let lora = Lora::new(rows()?, *inputs, *outputs, *rank, 1.0)?;
                (Problem::Lora(lora, of("base.weight")?), &["lora_a.weight", "lora_b.weight"])
            }
            _ => bail!("more than one layer, or one with a bias"),
        };
        let parameters = names.iter().zip(0..);
        let parameters = parameters
            .map(|(name, layer)| Parameter::new(of(name)?, workload.samples, kind, layer));
        let parameters = parameters.collect::<Result<_>>()?;
        let (x, dy) = (of("x")?, of("dy")?);
        let [y, dx] = [&dy, &x].map(|like| vec![0.0; like.len()]);
        Ok(Self { problem, backend: Cpu::new(), parameters, x, dy, y, dx })
    }

    /// Forward and backward with all gradients; `⟨y, dy⟩`.
    pub fn pass(&mut self) -> Result<f32> {
        let Self { problem, backend, parameters, x, dy, y, dx } = self;
        let (x, dy, y, dx) = (&x[..], &dy[..], &mut y[..], &mut dx[..]);
        match (problem, &mut parameters[..]) {
            (Problem::Linear(it), [only]) => {
                backend.linear_forward(it, x, &only.weight, None, y)?;
                let loss = inner(y, dy, |value| value);
                let (weight, options, out) = only.split();
                let inputs = LinearInputs { x, dy, weight: Some(weight) };
                backend.linear(it, &options, inputs, Some(dx), out)?;
                Ok(loss)
            }
            (Problem::Conv2d(it), [only]) => {
                backend.conv2d_forward(it, x, &only.weight, None, y)?;
                let loss = inner(y, dy, |value| value);
                let (weight, options, out) = only.split();
                let inputs = ConvInputs { x, dy, weight: Some(weight) };
                backend.conv2d(it, &options, inputs, Some(dx), out)?;
                Ok(loss)
            }
            (Problem::Lora(it, base), [first, second]) => {
                let (a, b) = (&first.weight, &second.weight);
                backend.lora_forward(it, LoraOperands { x, a, b, base, bias: None }, y)?;
                let loss = inner(y, dy, |value| value);
                let ((a, of_a, out_a), (b, of_b, out_b)) = (first.split(), second.split());
                let inputs = LoraInputs { x, dy, a, b, base: Some(base) };
                let out = LoraOutputs { a: out_a, b: out_b };
                backend.lora(it, [&of_a, &of_b], inputs, Some(dx), out)?;
                Ok(loss)
            }
            _ => unreachable!("as many parameters as the layer has"),
        }
    }
}
