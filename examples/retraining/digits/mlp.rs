//! A perceptron with one hidden layer, trained by plain stochastic gradient descent through
//! [`Cpu`]'s ops.

use anyhow::Result;
use gradroute::cpu::Cpu;
use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad};
use gradroute::problem::{Linear, Rows};
use gradroute::projection::Sketch;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

/// Pixels, hidden units, classes.
pub const WIDTHS: [usize; 3] = [64, 64, 10];
/// Weights and biases of each layer.
pub const LAYERS: [usize; 2] = [(WIDTHS[0] + 1) * WIDTHS[1], (WIDTHS[1] + 1) * WIDTHS[2]];

/// Weights of both layers.
pub struct Mlp {
    weights: [Vec<f32>; 2],
    biases: [Vec<f32>; 2],
    cpu: Cpu,
}

/// What a forward pass leaves for the backward pass.
pub struct Pass<'a> {
    x: &'a [f32],
    hidden: Vec<f32>,
    /// Class probabilities, `[N, 10]`.
    probabilities: Vec<f32>,
}

/// Gradient of the batch's loss with respect to both layers' outputs.
struct Deltas([Vec<f32>; 2]);

impl Mlp {
    /// Fresh weights (He et al. 2015).
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = [0, 1].map(|layer| {
            let [inputs, outputs] = [WIDTHS[layer], WIDTHS[layer + 1]];
            let scale = (2.0 / inputs as f32).sqrt();
            (0..inputs * outputs).map(|_| scale * rng.sample::<f32, _>(StandardNormal)).collect()
        });
        Self { weights, biases: [1, 2].map(|at| vec![0.0; WIDTHS[at]]), cpu: Cpu::new() }
    }

    fn problem(layer: usize, samples: usize) -> Result<Linear> {
        let rows = Rows::uniform(samples, 1)?;
        Ok(Linear::new(rows, WIDTHS[layer], WIDTHS[layer + 1])?.with_bias(true))
    }

    /// `x [N, 64]`.
    pub fn forward<'a>(&mut self, x: &'a [f32]) -> Result<Pass<'a>> {
        let samples = x.len() / WIDTHS[0];
        let mut run = |layer: usize, x: &[f32]| -> Result<Vec<f32>> {
            let mut y = vec![0.0; samples * WIDTHS[layer + 1]];
            let bias = Some(&self.biases[layer][..]);
            let problem = Self::problem(layer, samples)?;
            self.cpu.linear_forward(&problem, x, &self.weights[layer], bias, &mut y)?;
            Ok(y)
        };
        let mut hidden = run(0, x)?;
        hidden.iter_mut().for_each(|value| *value = value.max(0.0));
        let mut probabilities = run(1, &hidden)?;
        probabilities.chunks_exact_mut(WIDTHS[2]).for_each(softmax);
        Ok(Pass { x, hidden, probabilities })
    }

    /// Backward to both layers' outputs; the loss is the mean over the batch.
    fn deltas(&mut self, pass: &Pass, labels: &[u8]) -> Result<Deltas> {
        let samples = labels.len();
        let mut out = pass.probabilities.clone();
        for (row, &label) in out.chunks_exact_mut(WIDTHS[2]).zip(labels) {
            row[usize::from(label)] -= 1.0;
            row.iter_mut().for_each(|value| *value /= samples as f32);
        }
        let mut hidden = vec![0.0; pass.hidden.len()];
        let inputs = LinearInputs { x: &pass.hidden, dy: &out, weight: Some(&self.weights[1]) };
        let (problem, options) = (Self::problem(1, samples)?, Options::default());
        self.cpu.linear(&problem, &options, inputs, Some(&mut hidden), LayerOutputs::default())?;
        for (delta, &value) in hidden.iter_mut().zip(&pass.hidden) {
            if value == 0.0 {
                *delta = 0.0;
            }
        }
        Ok(Deltas([hidden, out]))
    }

    /// One step down the gradient of the mean loss.
    pub fn step(&mut self, pass: &Pass, labels: &[u8], rate: f32) -> Result<()> {
        let Deltas(deltas) = self.deltas(pass, labels)?;
        for (layer, dy) in deltas.iter().enumerate() {
            let mut dw = vec![0.0; self.weights[layer].len()];
            let mut db = vec![0.0; self.biases[layer].len()];
            let inputs = LinearInputs { x: self.seen(pass, layer), dy, weight: None };
            let outputs = LayerOutputs {
                dw: Some(ParamGrad::F32(&mut dw)),
                db: Some(ParamGrad::F32(&mut db)),
                ..LayerOutputs::default()
            };
            let problem = Self::problem(layer, labels.len())?;
            self.cpu.linear(&problem, &Options::default(), inputs, None, outputs)?;
            let down = |(w, g): (&mut f32, f32)| *w -= rate * g;
            self.weights[layer].iter_mut().zip(dw).for_each(down);
            self.biases[layer].iter_mut().zip(db).for_each(down);
        }
        Ok(())
    }

    /// What layer `layer` saw.
    fn seen<'a>(&self, pass: &'a Pass, layer: usize) -> &'a [f32] {
        if layer == 0 { pass.x } else { &pass.hidden }
    }

    /// Sketches `[N, 2, K]` of each sample's own gradient.
    pub fn sketches(
        &mut self,
        pass: &Pass,
        labels: &[u8],
        sketch: impl Fn(u32) -> gradroute::Result<Sketch>,
    ) -> Result<Vec<f32>> {
        let samples = labels.len();
        let Deltas(deltas) = self.deltas(pass, labels)?;
        let mut sketches = Vec::new();
        for (layer, dy) in deltas.iter().enumerate() {
            let sketch = sketch(layer as u32)?;
            let length = sketch.len();
            sketches.resize(2 * samples * length, 0.0);
            let mut part = vec![0.0; samples * length];
            let inputs = LinearInputs { x: self.seen(pass, layer), dy, weight: None };
            let outputs = LayerOutputs { sketch: Some(&mut part), ..LayerOutputs::default() };
            let sample_scale = samples as f32;
            let options = Options { sketch: Some(sketch), sample_scale, ..Options::default() };
            let problem = Self::problem(layer, samples)?;
            self.cpu.linear(&problem, &options, inputs, None, outputs)?;
            for (n, part) in part.chunks_exact(length).enumerate() {
                sketches[(2 * n + layer) * length..][..length].copy_from_slice(part);
            }
        }
        Ok(sketches)
    }

    /// Each sample's whole gradient by layer, `[N, LAYERS[layer]]`, the bias after the weights.
    pub fn gradients(&mut self, pass: &Pass, labels: &[u8]) -> Result<[Vec<f32>; 2]> {
        let samples = labels.len();
        let Deltas(deltas) = self.deltas(pass, labels)?;
        Ok([0, 1].map(|layer| {
            let [inputs, outputs] = [WIDTHS[layer], WIDTHS[layer + 1]];
            let rows = self.seen(pass, layer).chunks_exact(inputs);
            let mut out = Vec::with_capacity(samples * LAYERS[layer]);
            for (x, dy) in rows.zip(deltas[layer].chunks_exact(outputs)) {
                let own = |d: &f32| d * samples as f32;
                out.extend(dy.iter().flat_map(|d| x.iter().map(move |x| own(d) * x)));
                out.extend(dy.iter().map(own));
            }
            out
        }))
    }
}

impl Pass<'_> {
    /// Cross-entropy of each sample.
    pub fn losses(&self, labels: &[u8]) -> Vec<f32> {
        (self.probabilities.chunks_exact(WIDTHS[2]).zip(labels))
            .map(|(row, &label)| -row[usize::from(label)].max(1e-30).ln())
            .collect()
    }
}

fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = (*value - top).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}
