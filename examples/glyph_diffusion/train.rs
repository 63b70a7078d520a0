//! The training loop: batches, steps, commits.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use gradroute::candle::{AdamW, AdamWConfig, Batch, Ema};
use gradroute::provenance::Accumulator;
use gradroute::provenance::ledger::{Ledger, RunInfo, SampleInfo};
use gradroute::provenance::query::MODEL_PARAMETERS;
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::data::{CHARACTERS, Conditions, Dataset, Order, SIDE, Sample};
use crate::diffusion::{LEVELS, Purpose, noise, noised, stratified_levels, stream};
use crate::governed::{Governed, SKETCH, SKETCH_SEED};
use crate::guarded::{self, Watch};
use crate::options::RunOptions;

const LEARNING_RATE: f64 = 3e-3;
/// A second moment short enough for a short run; no decay, so that what nobody trains stays.
pub const OPTIMIZER_CONFIG: AdamWConfig =
    AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
/// Share of the weights' moving average kept at each step, once it has warmed up.
const DECAY: f64 = 0.995;
/// Share of the peak learning rate at the end.
const FINAL_RATE: f64 = 0.05;
/// Steps until the learning rate is at its peak.
const WARMUP: f64 = 80.0;
/// Samples that are told neither character nor style, and samples not told the style alone.
const DROPPED: [f64; 2] = [0.08, 0.08];
/// Bins of noise level in which gradient norms are followed.
const NOISE_BINS: usize = 6;
/// Steps whose mean loss the progress bar shows.
const SHOWN: usize = 20;

// The files of a checkpoint.
const WEIGHTS: &str = "weights.safetensors";
const AVERAGE: &str = "average.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";

/// A run being trained.
pub struct Trainer<'a> {
    options: &'a RunOptions,
    data: &'a Dataset,
    model: &'a Governed,
    order: Order,
    optimizer: AdamW,
    average: Ema,
    ledger: Ledger,
    watch: Watch,
    progress: Progress,
}

/// What is known of the training so far; kept with the checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Loss of every step.
    pub curve: Vec<f32>,
    /// Seconds the steps took, in all processes that took them.
    pub seconds: f64,
    /// Share of the parameters whose per-sample gradients the last step recorded.
    pub coverage: f64,
    /// The same in words, naming the others.
    pub coverage_report: String,
}

impl Progress {
    /// Loss of the latest steps.
    fn recent_loss(&self) -> f32 {
        let recent = &self.curve[self.curve.len().saturating_sub(SHOWN)..];
        recent.iter().sum::<f32>() / recent.len() as f32
    }
}

impl<'a> Trainer<'a> {
    /// A new run, its ledger in `ledger`.
    pub fn begin(
        options: &'a RunOptions,
        data: &'a Dataset,
        model: &'a Governed,
        ledger: &Path,
    ) -> Result<Self> {
        let ledger = Ledger::create(ledger, run_info(options, data, model)?)?;
        Self::assemble(options, data, model, ledger)
    }

    /// The run in `ledger`, as it was at its last commit.
    pub fn resume(
        options: &'a RunOptions,
        data: &'a Dataset,
        model: &'a Governed,
        path: &Path,
    ) -> Result<Self> {
        let ledger = Ledger::resume(path)?;
        let hash = model.policy().hash().to_string();
        if ledger.info().policy_hash != hash {
            bail!("the run was governed by policy {}, not {hash}", ledger.info().policy_hash);
        }
        let mut trainer = Self::assemble(options, data, model, ledger)?;
        trainer.watch.replay(path)?;
        if let Some(checkpoint) = trainer.ledger.checkpoint() {
            trainer.load(&checkpoint)?;
        }
        Ok(trainer)
    }

    fn assemble(
        options: &'a RunOptions,
        data: &'a Dataset,
        model: &'a Governed,
        ledger: Ledger,
    ) -> Result<Self> {
        let seen = |sample: &&Sample| !(options.without_owned && data.owned(sample));
        let samples = data.samples.iter().filter(seen).copied().collect();
        Ok(Self {
            options,
            data,
            model,
            order: Order::new(samples, options.seed),
            optimizer: AdamW::new(model.parameters(), model.recorder(), OPTIMIZER_CONFIG)?,
            average: Ema::new(model.parameters())?,
            watch: Watch::new(options, ledger.info())?,
            ledger,
            progress: Progress::default(),
        })
    }

    /// Trains to the end, or until `stop` is set; what was trained is committed. Says whether the
    /// end was reached.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<bool> {
        let (first, total) = (self.ledger.next_step(), self.options.total_steps());
        let bar = ProgressBar::new(total).with_position(first);
        bar.set_style(ProgressStyle::with_template(
            "{bar:32} step {pos}/{len} · {msg} · {eta} left",
        )?);
        let (start, before) = (Instant::now(), self.progress.seconds);
        for step in first..total {
            self.step(step)?;
            let seconds = start.elapsed().as_secs_f64();
            self.progress.seconds = before + seconds;
            let rate = ((step + 1 - first) * self.options.batch) as f64 / seconds;
            let message = format!("loss {:.4} · {rate:.0} images/s", self.progress.recent_loss());
            bar.set_message(message.clone());
            bar.inc(1);
            let (done, stopped) = (step + 1, stop.load(Ordering::Relaxed));
            if done == total || stopped || done.is_multiple_of(self.options.commit_every) {
                self.commit()?;
                if bar.is_hidden() {
                    // Not at a terminal: a line now and then instead of the bar.
                    println!("committed step {done}/{total} · {message}");
                }
            }
            if stopped {
                break;
            }
        }
        bar.abandon();
        Ok(self.ledger.next_step() == total)
    }

    /// How the training went.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the guard saw and did.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// What every sample did to every block.
    pub fn influence(&self) -> &Accumulator {
        self.ledger.accumulator()
    }

    /// Hash of the last commit.
    pub fn ledger_head(&self) -> &str {
        self.ledger.head()
    }

    /// Puts the averaged weights into the model: training is over.
    pub fn finish(&self) -> Result<()> {
        Ok(self.average.apply()?)
    }

    /// One step: the same whenever it is taken, since everything random in it follows from the
    /// seed and its number.
    fn step(&mut self, step: u64) -> Result<()> {
        let samples = self.order.batch(step, self.options.batch as usize);
        let mut rng = stream(self.options.seed, Purpose::Step, step);
        let drawn = Drawn::new(self.data, &samples, &mut rng)?;
        let conditions = self.drop_some(&mut rng, &samples);
        let rate = self.learning_rate(step);
        let ids: Vec<u64> = samples.iter().map(|sample| sample.id).collect();
        let categories: Vec<u32> = samples.iter().map(|sample| sample.typeface as u32).collect();
        let seed = self.options.seed as u32;
        let switches = self.model.policy().switches(seed, step, &ids, &categories)?;
        self.model.recorder().begin_step(Batch {
            switches: Some(switches),
            noise_levels: Some(drawn.levels.clone()),
            step,
            step_size: rate as f32,
            gates: self.watch.gates(&ids),
            ..Batch::new(ids, categories)
        })?;
        let losses = drawn.losses(self.model, &conditions)?;
        let loss = losses.mean_all()?;
        let gradients = self.model.recorder().backward(&loss)?;
        let record = self.model.recorder().finish_step()?;
        self.optimizer.step(&gradients, rate)?;
        self.average.update(DECAY.min((1.0 + step as f64) / (10.0 + step as f64)))?;
        let loss = loss.to_scalar::<f32>()?;
        if !loss.is_finite() {
            bail!("the loss of step {step} is {loss}");
        }
        self.progress.curve.push(loss);
        self.watch.observe(&record, &losses.to_vec1()?)?;
        self.watch.score(step + 1, self.options, self.data);
        Ok(self.ledger.append(&record)?)
    }

    /// Classifier-free dropout.
    fn drop_some(&self, rng: &mut StdRng, samples: &[Sample]) -> Conditions {
        let mut conditions = Conditions::of(samples);
        let [both, style] = DROPPED;
        for n in 0..samples.len() {
            let chance: f64 = rng.random();
            if chance < both + style {
                conditions.styles[n] = self.data.typefaces.len() as u32;
            }
            if chance < both {
                conditions.characters[n] = CHARACTERS.len() as u32;
            }
        }
        conditions
    }

    /// Warm-up, then half a cosine down.
    fn learning_rate(&self, step: u64) -> f64 {
        let done = step as f64 / self.options.total_steps() as f64;
        let fall =
            FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        LEARNING_RATE * fall * ((step as f64 + 1.0) / WARMUP).min(1.0)
    }

    /// Ledger and checkpoint advance together.
    fn commit(&mut self) -> Result<()> {
        let folder = self.ledger.checkpoint_dir()?;
        self.model.parameters().save(folder.join(WEIGHTS))?;
        self.average.save(folder.join(AVERAGE))?;
        self.optimizer.save(folder.join(OPTIMIZER))?;
        let coverage = self.model.recorder().coverage(self.model.parameters());
        self.progress.coverage = coverage.share();
        self.progress.coverage_report = coverage.to_string();
        std::fs::write(folder.join(PROGRESS), serde_json::to_vec(&self.progress)?)?;
        self.ledger.commit()?;
        self.watch.committed();
        Ok(())
    }

    fn load(&mut self, folder: &Path) -> Result<()> {
        let mut load = || -> Result<Progress> {
            self.model.parameters().load(folder.join(WEIGHTS))?;
            self.average.load(folder.join(AVERAGE))?;
            self.optimizer.load(folder.join(OPTIMIZER))?;
            Ok(serde_json::from_slice(&std::fs::read(folder.join(PROGRESS))?)?)
        };
        self.progress = load().with_context(|| folder.display().to_string())?;
        Ok(())
    }
}

/// Samples at noise levels, with their noise.
pub struct Drawn {
    levels: Vec<f32>,
    x: Tensor,
    noise: Tensor,
}

impl Drawn {
    pub fn new(data: &Dataset, samples: &[Sample], rng: &mut StdRng) -> Result<Self> {
        let levels = stratified_levels(rng, samples.len());
        let noise = noise(rng, samples.len());
        let x = noised(&data.images(samples), &noise, &levels, &Device::Cpu)?;
        let noise = Tensor::from_vec(noise, (samples.len(), 1, SIDE, SIDE), &Device::Cpu)?;
        Ok(Self { levels, x, noise })
    }

    /// The samples' losses.
    pub fn losses(&self, model: &Governed, conditions: &Conditions) -> Result<Tensor> {
        let guess = model.unet().forward(&self.x, &self.levels, conditions)?;
        Ok((guess - &self.noise)?.sqr()?.mean((1, 2, 3))?)
    }
}

/// What is fixed for the whole run.
fn run_info(options: &RunOptions, data: &Dataset, model: &Governed) -> Result<RunInfo> {
    let samples = data.samples.iter().map(|sample| SampleInfo {
        id: sample.id,
        category: data.typefaces[sample.typeface].category(),
        content_hash: *blake3::hash(bytemuck::cast_slice(&data.image(sample))).as_bytes(),
    });
    let width = (LEVELS[1] - LEVELS[0]) / NOISE_BINS as f32;
    let mut info = RunInfo {
        samples: samples.collect(),
        noise_edges: (1..NOISE_BINS).map(|bin| LEVELS[0] + width * bin as f32).collect(),
        metadata: [
            ("options".to_owned(), serde_json::to_string(options)?),
            (MODEL_PARAMETERS.to_owned(), model.parameters().numbers().to_string()),
        ]
        .into(),
        ..RunInfo::new(SKETCH, SKETCH_SEED).governed(model.policy())
    };
    guarded::describe(options, data, &mut info)?;
    Ok(info)
}
