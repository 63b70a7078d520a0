//! A diffusion U-Net on glyphs, smaller than the other example's, so that it can be retrained
//! many times: some typefaces of each group, a third of their characters.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use gradroute::candle::{AdamW, AdamWConfig, Batch, Ema, Parameters, Recorder, Scope};
use gradroute::projection::SketchKind;
use gradroute::provenance::{Accumulator, StepRecord};
use gradroute::routing::Policy;
use serde_json::json;

use crate::data::{Conditions, Dataset, Order, Plant, SIDE, Sample};
use crate::diffusion::{Purpose, noise, noised, stratified_levels, stream};
use crate::model::{Size, UNet};
use crate::task::{Categories, Evidence, Part, Task, by_query};

const UNROUTED: &str = include_str!("../glyph_diffusion/policies/unrouted.toml");
const SIZE: Size = Size { widths: [8, 16, 16], own: [0, 0, 0], embed: 32 };

/// Steps for each typeface of a group: more data, as often seen.
const STEPS_PER_FACE: u64 = 200;
const BATCH: usize = 24;
const LEARNING_RATE: f64 = 6e-3;
const WARMUP: f64 = 30.0;
/// Share of the peak learning rate at the end.
const FINAL_RATE: f64 = 0.05;
/// Of the weights' moving average, which is what is asked.
const DECAY: f64 = 0.98;
const OPTIMIZER: AdamWConfig =
    AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };

/// Noise levels and draws of noise behind each loss and gradient that is asked for.
const DRAWS: usize = 8;
/// Images whose gradients are asked for at a time.
const CHUNK: usize = 64;
/// Of the recorded run, and the first of those retrained with.
const RECORDED_SEED: u64 = 1;
/// Phases of the run, at the end of each of which queries are asked.
const CHECKPOINTS: u64 = 4;

/// What is kept of each block's gradient; the run is repeated for each, the same bit by bit.
const SKETCHES: [(&str, SketchKind); 2] = [
    ("two-sided k=16", SketchKind::TwoSided { outputs: 16, inputs: 16 }),
    ("count sketch 256", SketchKind::Count { buckets: 256 }),
];
const SKETCH_SEED: u32 = 7;

/// The data. Every character is trained in some of the typefaces and asked about in others.
pub struct Glyphs {
    data: Dataset,
    steps: u64,
    faces: Vec<usize>,
    /// Their ids are their places.
    train: Vec<Sample>,
    queries: Vec<Sample>,
}

impl Glyphs {
    /// Of so many typefaces of each group.
    pub fn load(faces_per_group: usize) -> Result<Self> {
        let data = Dataset::load(Plant::None)?;
        let mut faces = Vec::new();
        for group in data.groups() {
            let of_group = (0..data.typefaces.len()).filter(|&f| data.typefaces[f].group == group);
            faces.extend(of_group.take(faces_per_group));
        }
        let third = |s: &Sample| {
            let face = faces.iter().position(|&face| face == s.typeface)?;
            (!s.is_copy()).then_some((s.character + face) % 3)
        };
        let take = |which| {
            let chosen = data.samples.iter().filter(|s| third(s) == Some(which));
            chosen.enumerate().map(|(k, s)| Sample { id: k as u64, ..*s }).collect()
        };
        let steps = STEPS_PER_FACE * faces_per_group as u64;
        Ok(Self { train: take(0), queries: take(1), faces, steps, data })
    }

    /// Trains on the samples present: the run it would have been without the others, with the
    /// same order and the same noise. `watch` is called after each step.
    fn train(
        &self,
        present: &[bool],
        seed: u64,
        recorder: Recorder,
        mut watch: impl FnMut(u64, &Model, &StepRecord) -> Result<()>,
    ) -> Result<Model> {
        let model = Model::new(self, seed, recorder)?;
        let mut optimizer = AdamW::new(&model.parameters, &model.recorder, OPTIMIZER)?;
        let mut average = Ema::new(&model.parameters)?;
        let mut order = Order::new(self.train.clone(), seed);
        for step in 0..self.steps {
            let Some(batch) = Drawn::new(&mut order, present, seed, step) else { continue };
            let rate = learning_rate(step, self.steps);
            let categories = batch.samples.iter().map(|s| s.typeface as u32).collect();
            model.recorder.begin_step(Batch {
                noise_levels: Some(batch.levels.clone()),
                step,
                step_size: rate as f32,
                ..Batch::new(batch.samples.iter().map(|s| s.id).collect(), categories)
            })?;
            let loss = model.losses(self, &batch)?.mean_all()?;
            let gradients = model.recorder.backward(&loss)?;
            let record = model.recorder.finish_step()?;
            optimizer.step(&gradients, rate)?;
            average.update(DECAY.min((1.0 + step as f64) / (10.0 + step as f64)))?;
            watch(step, &model, &record)?;
        }
        average.apply()?;
        Ok(model)
    }
}

/// Samples with noise levels and noise.
struct Drawn {
    samples: Vec<Sample>,
    levels: Vec<f32>,
    noise: Vec<f32>,
}

impl Drawn {
    /// Those of a training step's batch that are present; none where nobody is.
    fn new(order: &mut Order, present: &[bool], seed: u64, step: u64) -> Option<Self> {
        let samples = order.batch(step, BATCH);
        let mut rng = stream(seed, Purpose::Step, step);
        let levels = stratified_levels(&mut rng, samples.len());
        let noise = noise(&mut rng, samples.len());
        let here: Vec<usize> =
            (0..samples.len()).filter(|&n| present[samples[n].id as usize]).collect();
        let image = |&n: &usize| &noise[n * SIDE * SIDE..][..SIDE * SIDE];
        (!here.is_empty()).then(|| Self {
            samples: here.iter().map(|&n| samples[n]).collect(),
            levels: here.iter().map(|&n| levels[n]).collect(),
            noise: here.iter().flat_map(image).copied().collect(),
        })
    }

    /// The samples as they are asked about in a draw: all at one level and with one noise.
    fn asked(samples: &[Sample], draw: usize) -> Self {
        let mut rng = stream(0, Purpose::Evaluation, 0);
        let level = stratified_levels(&mut rng, DRAWS)[draw];
        let noise = noise(&mut stream(0, Purpose::Evaluation, 1 + draw as u64), 1);
        Self {
            samples: samples.to_vec(),
            levels: vec![level; samples.len()],
            noise: noise.repeat(samples.len()),
        }
    }
}

struct Model {
    unet: UNet,
    parameters: Parameters,
    recorder: Recorder,
}

impl Model {
    fn new(task: &Glyphs, seed: u64, recorder: Recorder) -> Result<Self> {
        let parameters = Parameters::new(DType::F32, seed as u32);
        let scope = Scope::new(&parameters, &recorder);
        let unet = UNet::new(&scope, &SIZE, task.data.typefaces.len())?;
        let categories = task.data.categories()?;
        let policy = Policy::from_toml(UNROUTED)?;
        recorder.govern(&policy.compile(&recorder.layout()?, &categories)?)?;
        Ok(Self { unet, parameters, recorder })
    }

    /// Mean squared error of the predicted noise, `[N]`.
    fn losses(&self, task: &Glyphs, drawn: &Drawn) -> Result<Tensor> {
        let shape = (drawn.samples.len(), 1, SIDE, SIDE);
        let images = task.data.images(&drawn.samples);
        let x = noised(&images, &drawn.noise, &drawn.levels, &Device::Cpu)?;
        let target = Tensor::from_slice(&drawn.noise, shape, &Device::Cpu)?;
        let guess = self.unet.forward(&x, &drawn.levels, &Conditions::of(&drawn.samples))?;
        Ok((guess - target)?.sqr()?.mean((1, 2, 3))?)
    }

    /// Each query's loss, averaged over the draws.
    fn query_losses(&self, task: &Glyphs) -> Result<Vec<f32>> {
        let mut sums = vec![0.0; task.queries.len()];
        for draw in 0..DRAWS {
            let losses = self.losses(task, &Drawn::asked(&task.queries, draw))?;
            let losses: Vec<f32> = losses.detach().to_vec1()?;
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss / DRAWS as f32);
        }
        Ok(sums)
    }

    /// Each sample's gradient, averaged over the draws and sketched, `[samples][B · K]`.
    fn gradients(&self, task: &Glyphs, samples: &[Sample]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(samples.len());
        for samples in samples.chunks(CHUNK) {
            let mut sums = vec![Vec::new(); samples.len()];
            for draw in 0..DRAWS {
                self.recorder.begin_probe(samples.len(), samples.len() as f32)?;
                let losses = self.losses(task, &Drawn::asked(samples, draw))?;
                self.recorder.backward(&losses.mean_all()?)?;
                let sketch = self.recorder.finish_probe()?.sketch;
                let width = sketch.len() / samples.len();
                for (sum, sketch) in sums.iter_mut().zip(sketch.chunks_exact(width)) {
                    sum.resize(width, 0.0);
                    sum.iter_mut().zip(sketch).for_each(|(s, v)| *s += v / DRAWS as f32);
                }
            }
            all.extend(sums);
        }
        Ok(all)
    }
}

impl Task for Glyphs {
    fn samples(&self) -> usize {
        self.train.len()
    }

    fn queries(&self) -> usize {
        self.queries.len()
    }

    fn categories(&self) -> Categories {
        let place = |s: &Sample| self.faces.iter().position(|&face| face == s.typeface);
        let of = |samples: &[Sample]| samples.iter().filter_map(place).collect();
        Categories {
            names: self.faces.iter().map(|&face| self.data.typefaces[face].category()).collect(),
            samples: of(&self.train),
            queries: of(&self.queries),
        }
    }

    fn setup(&self) -> serde_json::Value {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = OPTIMIZER;
        json!({
            "model": format!("diffusion U-Net of {:?} channels at 16², 8² and 4²", SIZE.widths),
            "training": format!("{} steps of AdamW, batches of {BATCH}, step size {LEARNING_RATE} falling to {FINAL_RATE} of it; weights averaged (decay {DECAY})", self.steps),
            "samples": self.train.len(),
            "queries": self.queries.len(),
            "draws": DRAWS,
            "embed": SIZE.embed,
            "optimizer": { "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay },
            "warmup": WARMUP,
            "recorded_seed": RECORDED_SEED,
            "checkpoints": CHECKPOINTS,
            "sketches": SKETCHES.map(|(_, kind)| kind),
            "sketch_seed": SKETCH_SEED,
            "retraining": "the recorded run without the absent samples: same initialisation, \
                           order, noise levels and noise (seed 1), or those of another seed",
        })
    }

    fn retrain(&self, present: &[bool], seed: u64) -> Result<Vec<f32>> {
        self.train(present, seed, Recorder::silent(), |_, _, _| Ok(()))?.query_losses(self)
    }

    fn record(&self) -> Result<Vec<Evidence>> {
        SKETCHES.iter().map(|(name, kind)| self.record_by(name, *kind)).collect()
    }
}

impl Glyphs {
    fn record_by(&self, storage: &str, kind: SketchKind) -> Result<Evidence> {
        println!("recording by {storage} …");
        let recorder = Recorder::new(kind, SKETCH_SEED)?;
        let (mut phases, mut checkpoints) = (Vec::<Accumulator>::new(), Vec::new());
        let length = self.steps / CHECKPOINTS;
        let all = vec![true; self.train.len()];
        let model = self.train(&all, RECORDED_SEED, recorder, |step, model, made| {
            if step.is_multiple_of(length) {
                phases.push(Accumulator::new(made.blocks, model.recorder.sketch_len())?);
            }
            let done = step + 1;
            if done < self.steps && done.is_multiple_of(length) {
                checkpoints.push(model.gradients(self, &self.queries)?);
            }
            Ok(phases.last_mut().expect("the first step begins one").add(made)?)
        })?;
        checkpoints.push(model.gradients(self, &self.queries)?);
        let mut record = phases[0].like();
        phases.iter().try_for_each(|phase| record.merge(phase))?;
        let mut end = record.like();
        end.add(&self.at_the_end(&model, record.blocks())?)?;
        let phases = Some(Accumulator::side_by_side(&phases)?);
        let parts = vec![Part { record, end, phases, asked: by_query(&checkpoints) }];
        Ok(Evidence { storage: storage.to_owned(), reference: false, parts })
    }

    /// The gradients of all training samples by the final model, as one step.
    fn at_the_end(&self, model: &Model, blocks: usize) -> Result<StepRecord> {
        let (count, cells) = (self.train.len(), self.train.len() * blocks);
        Ok(StepRecord {
            step_size: 1.0,
            optimizer_scale: 1.0,
            blocks,
            samples: self.train.iter().map(|s| s.id).collect(),
            noise_levels: vec![f32::NAN; count],
            gates: vec![1.0; count],
            route: vec![1.0; cells],
            flow: vec![1.0; cells],
            sq_norm: vec![f32::NAN; cells],
            sketch: model.gradients(self, &self.train)?.concat(),
            ..StepRecord::default()
        })
    }
}

/// Warm-up, then half a cosine down.
fn learning_rate(step: u64, steps: u64) -> f64 {
    let done = step as f64 / steps as f64;
    let fall = FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    LEARNING_RATE * fall * ((step as f64 + 1.0) / WARMUP).min(1.0)
}
