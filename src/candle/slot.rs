//! What one layer leaves behind in one step.

use candle_core::{Device, Tensor};

use super::problem::{Problem, Slices};
use super::tensors::{Number, by_dtype, slice};
use crate::Result;
use crate::ops::{Backend, LayerOutputs, Options, ParamGrad};
use crate::problem::Element;

/// Results of a layer, kept until the step is finished; the buffers are reused.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Calls in this step's forward pass.
    pub calls: usize,
    /// Calls whose gradient has arrived.
    pub done: usize,
    /// `[N]`, weight and bias apart.
    sq_norm: Vec<f32>,
    sq_norm_bias: Vec<f32>,
    /// `[N, K]`, all calls added up: a sketch is linear.
    pub sketch: Vec<f32>,
    /// `[regions]`, over all calls.
    pub touched: Vec<bool>,
    /// Calls of a layer called more than once: a norm is not linear, so it waits for all.
    stash: Vec<(Problem, Tensor, Tensor)>,
    scratch_sketch: Vec<f32>,
    scratch_touched: Vec<bool>,
}

/// Where a call's parameter gradients go.
pub(super) struct Gradients<'a, T> {
    pub dw: Option<&'a mut [T]>,
    pub db: Option<&'a mut [T]>,
}

impl Slot {
    pub fn clear(&mut self) {
        (self.calls, self.done) = (0, 0);
        self.stash.clear();
        self.touched.clear();
    }

    /// The outputs to compute for a call: gradients and, when `recording`, records. Buffers of
    /// the first call are the result; later calls are added by [`Slot::add`].
    pub fn outputs<'a, T: Element>(
        &'a mut self,
        (samples, bias): (usize, bool),
        gradients: Gradients<'a, T>,
        options: &Options,
    ) -> LayerOutputs<'a, T> {
        let regions = options.routing.map_or(1, |routing| routing.layer.regions().len());
        let sketch = options.sketch.map(|sketch| sketch.len());
        let measure = sketch.is_some() && self.calls == 1;
        resize(&mut self.scratch_touched, regions, false);
        let mut out = LayerOutputs {
            dw: gradients.dw.map(ParamGrad::Native),
            db: gradients.db.map(ParamGrad::Native),
            touched: Some(&mut self.scratch_touched),
            ..LayerOutputs::default()
        };
        if let Some(k) = sketch {
            resize(&mut self.scratch_sketch, samples * k, 0.0);
            out.sketch = Some(&mut self.scratch_sketch);
        }
        if sketch.is_some() {
            resize(&mut self.sq_norm, samples, 0.0);
            resize(&mut self.sq_norm_bias, if bias { samples } else { 0 }, 0.0);
        }
        if measure {
            out.sq_norm = Some(&mut self.sq_norm);
            out.sq_norm_bias = bias.then_some(&mut self.sq_norm_bias);
        }
        out
    }

    /// Takes the last call's outputs into the step's.
    pub fn add(&mut self) {
        if self.done == 0 {
            std::mem::swap(&mut self.sketch, &mut self.scratch_sketch);
            std::mem::swap(&mut self.touched, &mut self.scratch_touched);
        } else {
            self.sketch.iter_mut().zip(&self.scratch_sketch).for_each(|(sum, x)| *sum += x);
            self.touched.iter_mut().zip(&self.scratch_touched).for_each(|(all, x)| *all |= x);
        }
        self.done += 1;
    }

    /// Calls kept so far.
    pub fn stashed(&self) -> usize {
        self.stash.len()
    }

    /// Keeps one of several calls until all have arrived.
    pub fn stash(&mut self, problem: &Problem, x: &Tensor, dy: &Tensor) -> candle_core::Result<()> {
        // They are measured on the CPU, one sample after the other.
        let kept = |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu);
        self.stash.push((problem.clone(), kept(x)?, kept(dy)?));
        Ok(())
    }

    /// Squared norm of sample `n`, bias included.
    pub fn sq_norm_of(&self, n: usize) -> f32 {
        self.sq_norm[n] + self.sq_norm_bias.get(n).copied().unwrap_or(0.0)
    }

    /// Exact norms of a layer called more than once: each sample's gradient is formed over all
    /// calls, one sample after the other in one buffer.
    pub fn measure_calls(&mut self, backend: &mut impl Backend, scale: f32) -> Result<()> {
        let Some((first, ..)) = self.stash.first() else { return Ok(()) };
        let shape = first.gradient();
        let (mut dw, mut db) = (vec![0.0; shape.weights()], vec![0.0; shape.biases()]);
        let square = |g: &[f32]| {
            let sum: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            (sum * f64::from(scale) * f64::from(scale)) as f32
        };
        for n in 0..first.samples() {
            dw.fill(0.0);
            db.fill(0.0);
            for (problem, x, dy) in &self.stash {
                by_dtype!(dy.dtype(), T => {
                    add_gradient::<T>(problem, n, x, dy, backend, &mut dw, &mut db)
                })?;
            }
            self.sq_norm[n] = square(&dw);
            if shape.bias() {
                self.sq_norm_bias[n] = square(&db);
            }
        }
        self.stash.clear();
        Ok(())
    }
}

/// Adds sample `n`'s gradient of one call.
fn add_gradient<T: Number>(
    problem: &Problem,
    n: usize,
    x: &Tensor,
    dy: &Tensor,
    backend: &mut impl Backend,
    dw: &mut [f32],
    db: &mut [f32],
) -> Result<()> {
    let samples = problem.samples();
    let of_sample = |all: &'_ [T]| -> std::ops::Range<usize> {
        let each = all.len() / samples;
        n * each..(n + 1) * each
    };
    let ((xs, xl), (dys, dyl)) = (x.storage_and_layout(), dy.storage_and_layout());
    let dy = slice::<T>(&dys, dyl)?;
    // An embedding's input is its tokens, which the problem holds.
    let x: &[T] = match problem {
        Problem::Embedding(..) => &[],
        _ => slice::<T>(&xs, xl)?,
    };
    let slices = Slices { x: &x[of_sample(x)], dy: &dy[of_sample(dy)], weight: None };
    let options = Options { accumulate: true, ..Options::default() };
    let bias = problem.gradient().bias();
    let out = LayerOutputs {
        dw: Some(ParamGrad::F32(dw)),
        db: bias.then_some(ParamGrad::F32(db)),
        ..LayerOutputs::default()
    };
    problem.sample(n)?.backward(backend, &options, slices, None, out)
}

fn resize<T: Clone>(buffer: &mut Vec<T>, length: usize, value: T) {
    buffer.resize(length, value);
}
