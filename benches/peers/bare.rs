//! A single layer's passes by the ops alone, as a framework that links the crate calls them: no
//! modules, no automatic differentiation, which in candle adds every gradient to zeros, and results
//! in buffers that it keeps, as PyTorch's come from its allocator without being cleared.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use gradroute::cpu::Cpu;
use gradroute::ops::{Backend, ConvInputs, LayerOutputs, LinearInputs, Options, ParamGrad};
use gradroute::problem::{Conv2d, Linear, Rows};

use crate::sequence::{Layer, inner};
use crate::task::Workload;

enum Problem {
    Linear(Linear),
    Conv2d(Conv2d),
}

/// A layer in `f32` without a bias, with input and the gradient that arrives at its output.
pub struct Bare {
    problem: Problem,
    backend: Cpu,
    x: Vec<f32>,
    weight: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

impl Bare {
    /// With the tensors of the workload's modules.
    pub fn new(workload: &Workload, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let problem = match &workload.layers[..] {
            [Layer::Linear { inputs, outputs, bias: false }] => {
                let (_, rows) = workload.input.split_last().context("a row")?;
                let rows = Rows::uniform(workload.samples, rows.iter().product())?;
                Problem::Linear(Linear::new(rows, *inputs, *outputs)?)
            }
            [Layer::Conv2d(conv)] if !conv.bias => {
                let mut spec = conv.spec();
                spec.samples = workload.samples;
                spec.size = [workload.input[1], workload.input[2]];
                Problem::Conv2d(Conv2d::new(spec)?)
            }
            _ => bail!("more than a linear layer or a convolution"),
        };
        let of = |end: &str| -> Result<Vec<f32>> {
            let found = tensors.iter().find(|(name, _)| name.split('.').next_back() == Some(end));
            Ok(found.context("the layer's tensor")?.1.flatten_all()?.to_vec1()?)
        };
        let [x, weight, dy] = ["x", "weight", "dy"].map(of);
        let (x, weight, dy) = (x?, weight?, dy?);
        let [y, dx, dw] = [&dy, &x, &weight].map(|like| vec![0.0; like.len()]);
        Ok(Self { problem, backend: Cpu::new(), x, weight, dy, y, dx, dw })
    }

    /// Forward and backward with all gradients; `⟨y, dy⟩`.
    pub fn pass(&mut self) -> Result<f32> {
        let Self { problem, backend, x, weight, dy, y, dx, dw } = self;
        let (x, weight, dy) = (&x[..], &weight[..], &dy[..]);
        match problem {
            Problem::Linear(it) => backend.linear_forward(it, x, weight, None, y)?,
            Problem::Conv2d(it) => backend.conv2d_forward(it, x, weight, None, y)?,
        }
        let loss = inner(y, dy, |value| value);
        let outputs = LayerOutputs { dw: Some(ParamGrad::F32(dw)), ..LayerOutputs::default() };
        let (options, weight) = (Options::default(), Some(weight));
        match problem {
            Problem::Linear(it) => {
                let inputs = LinearInputs { x, dy, weight };
                backend.linear(it, &options, inputs, Some(dx), outputs)?;
            }
            Problem::Conv2d(it) => {
                let inputs = ConvInputs { x, dy, weight };
                backend.conv2d(it, &options, inputs, Some(dx), outputs)?;
            }
        }
        Ok(loss)
    }
}
