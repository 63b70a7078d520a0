//! A workload, as `xtask/peers/workloads.toml` describes it, and how it is run.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use gradroute::candle::{AdamW, AdamWConfig, Batch, Parameters, Recorder, Scope};
use gradroute::projection::SketchKind;
use gradroute::provenance::StepRecord;
use gradroute::routing::{Categories, CompiledPolicy, Policy};
use serde::Deserialize;

use crate::glyph::Glyph;
use crate::sequence::{Layer, Sequence};

/// Initial weights and projections.
pub const SEED: u32 = 1;
/// What `train` trains with; the peers' side has the same.
const RATE: f64 = 1e-3;

/// Layers in a row, or the example's U-Net.
#[derive(Clone, Debug, Deserialize)]
pub struct Workload {
    pub samples: usize,
    /// Extents of one sample; none for the U-Net.
    #[serde(default)]
    pub input: Vec<usize>,
    /// Whether the gradient of the input is wanted.
    #[serde(default)]
    pub dx: bool,
    /// Numbers of a sketch.
    #[serde(default = "width")]
    pub width: usize,
    /// Share of the samples, spread evenly, that nothing is to train on.
    #[serde(default)]
    pub away: f64,
    pub layers: Vec<Layer>,
}

fn width() -> usize {
    256
}

/// What is taken beside the parameters' gradients.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nothing.
    Plain,
    /// Nothing, by the ops alone.
    Bare,
    /// As `TwoSided`, by the ops alone.
    BareTwoSided,
    /// Exact norms and a two-sided sketch of √width × √width numbers per layer.
    TwoSided,
    /// Exact norms and a count sketch of `width` numbers per layer.
    Count,
}

/// Format of parameters and activations.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    F32,
    Bf16,
}

impl Method {
    /// What is sketched with.
    pub fn sketch(self, width: usize) -> Option<SketchKind> {
        let side = width.isqrt();
        match self {
            Self::Plain | Self::Bare => None,
            Self::TwoSided | Self::BareTwoSided => {
                Some(SketchKind::TwoSided { outputs: side, inputs: side })
            }
            Self::Count => Some(SketchKind::Count { buckets: width }),
        }
    }

    fn recorder(self, width: usize) -> gradroute::Result<Recorder> {
        self.sketch(width).map_or(Ok(Recorder::silent()), |kind| Recorder::new(kind, SEED))
    }
}

enum Model {
    Sequence(Box<Sequence>),
    Glyph(Box<Glyph>),
}

/// What a pass left.
pub struct Passed {
    pub loss: f32,
    /// Of each sample, over all layers; NaN where no norms are taken.
    pub sq_norm: Vec<f32>,
}

/// A model with its inputs.
pub struct Task {
    model: Model,
    parameters: Parameters,
    recorder: Recorder,
    policy: Option<CompiledPolicy>,
    samples: usize,
    away: f64,
}

/// Two categories, the second of which trains nothing.
fn govern(recorder: &Recorder) -> Result<CompiledPolicy> {
    let policy = Policy::from_toml(
        r#"
        [[block]]
        name = "all"
        layers = "*"
        [[profile]]
        category = "here"
        [[profile]]
        category = "away"
        route = 0.0
        "#,
    )?;
    let policy = policy.compile(&recorder.layout()?, &Categories::new(["here", "away"])?)?;
    recorder.govern(&policy)?;
    Ok(policy)
}

impl Task {
    pub fn new(workload: &Workload, method: Method, format: Format) -> Result<Self> {
        let dtype = match format {
            Format::F32 => DType::F32,
            Format::Bf16 => DType::BF16,
        };
        let (parameters, recorder) =
            (Parameters::new(dtype, SEED), method.recorder(workload.width)?);
        let scope = Scope::new(&parameters, &recorder);
        let model = match &workload.layers[..] {
            [Layer::GlyphUnet] => Model::Glyph(Box::new(Glyph::new(&scope, workload.samples)?)),
            _ => Model::Sequence(Box::new(Sequence::new(&scope, workload, dtype)?)),
        };
        let policy = match workload.away {
            0.0 => None,
            _ => Some(govern(&recorder)?),
        };
        let Workload { samples, away, .. } = *workload;
        Ok(Self { model, parameters, recorder, policy, samples, away })
    }

    /// Parameters and inputs, by name.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let all = self.parameters.all().into_iter();
        let mut tensors: HashMap<String, Tensor> =
            all.map(|(name, var)| (name, var.as_tensor().clone())).collect();
        tensors.extend(match &self.model {
            Model::Sequence(sequence) => sequence.tensors(),
            Model::Glyph(glyph) => glyph.tensors()?,
        });
        Ok(tensors)
    }

    /// Forward and backward of the first batch.
    pub fn pass(&self) -> Result<Passed> {
        let (loss, _, record) = self.step(0)?;
        let blocks = record.blocks.max(1);
        let sq_norm = record.sq_norm.chunks(blocks).map(|blocks| blocks.iter().sum()).collect();
        Ok(Passed { loss, sq_norm })
    }

    /// Losses of as many steps of AdamW.
    pub fn train(&self, steps: usize) -> Result<Vec<f32>> {
        let mut optimizer = AdamW::new(&self.parameters, &self.recorder, AdamWConfig::default())?;
        let step = |at| -> Result<f32> {
            let (loss, gradients, _) = self.step(at)?;
            optimizer.step(&gradients, RATE)?;
            Ok(loss)
        };
        (0..steps).map(step).collect()
    }

    fn step(&self, at: usize) -> Result<(f32, GradStore, StepRecord)> {
        let ids: Vec<u64> = (0..self.samples as u64).collect();
        let away = |n: f64| (n * self.away).floor() as u32;
        let labels: Vec<u32> = ids.iter().map(|&n| away(n as f64 + 1.0) - away(n as f64)).collect();
        let policy = self.policy.as_ref();
        let switches = policy.map(|policy| policy.switches(0, 0, &ids, &labels)).transpose()?;
        let batch = Batch { switches, ..Batch::new(ids, labels) };
        // A sum over the samples needs no scaling back; the U-Net's loss is a mean.
        let sample_scale = match &self.model {
            Model::Sequence(_) => 1.0,
            Model::Glyph(_) => batch.sample_scale,
        };
        self.recorder.begin_step(Batch { sample_scale, ..batch })?;
        let loss = match &self.model {
            Model::Sequence(sequence) => sequence.loss()?,
            Model::Glyph(glyph) => glyph.loss(at)?,
        };
        let gradients = self.recorder.backward(&loss)?;
        let record = self.recorder.finish_step()?;
        Ok((loss.to_dtype(DType::F32)?.to_scalar()?, gradients, record))
    }
}
