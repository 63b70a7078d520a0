//! A perceptron on 8×8 digits: hundreds of retrainings in minutes.

mod mlp;

use anyhow::{Context, Result, ensure};
use gradroute::projection::{Sketch, SketchKind};
use gradroute::provenance::{Accumulator, StepRecord};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::data::sheet::Sheet;
use crate::task::{Categories, Evidence, Part, Task, by_query};
use mlp::{LAYERS, Mlp, WIDTHS};

// The sheet.
const COUNT: usize = 1797;
const COLUMNS: usize = 60;
/// Share of the digits that is trained on, and asked about.
const TRAIN: usize = 1000;
const QUERIES: usize = 600;

const EPOCHS: usize = 30;
const BATCH: usize = 20;
/// Falls linearly to 0.
const RATE: f32 = 0.1;
/// Of the recorded run; none of those retrained with.
const RECORDED_SEED: u64 = 0;
/// Points of the run, the end among them, at which queries are asked.
const CHECKPOINTS: u64 = 6;

/// What is kept of each layer's gradient.
const SKETCHES: [(&str, SketchKind); 2] = [
    ("two-sided k=16", SketchKind::TwoSided { outputs: 16, inputs: 16 }),
    ("count sketch 256", SketchKind::Count { buckets: 256 }),
];
const SKETCH_SEED: u32 = 7;

/// The data, shuffled once.
pub struct Digits {
    train: Set,
    queries: Set,
}

/// Pictures `[N, 64]` in `0..=1`, and digits.
#[derive(Default)]
struct Set {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Set {
    fn take(&self, which: &[usize]) -> Self {
        let pixels = which.iter().flat_map(|&n| &self.pixels[n * WIDTHS[0]..][..WIDTHS[0]]);
        let labels = which.iter().map(|&n| self.labels[n]).collect();
        Self { pixels: pixels.copied().collect(), labels }
    }

    /// The sheet the program was built with.
    fn load() -> Result<Self> {
        const SHEET: &[u8] =
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits.png"));
        const LABELS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/digits.txt"));
        let sheet = Sheet::read(SHEET).context("data/digits.png")?;
        let labels: Vec<u8> = LABELS.trim().bytes().map(|digit| digit - b'0').collect();
        let room = sheet.width / 8 * (sheet.height / 8);
        ensure!(labels.len() == COUNT && room >= COUNT, "data/digits.*: not {COUNT} digits");
        let mut pixels = Vec::with_capacity(COUNT * WIDTHS[0]);
        for n in 0..COUNT {
            let (x, y) = (n % COLUMNS * 8, n / COLUMNS * 8);
            let at = |k: usize| sheet.at(x + k % 8, y + k / 8);
            pixels.extend((0..WIDTHS[0]).map(|k| f32::from(at(k)) / 240.0));
        }
        Ok(Self { pixels, labels })
    }
}

impl Digits {
    pub fn load() -> Result<Self> {
        let (all, order) = (Set::load()?, shuffled(COUNT, &mut StdRng::seed_from_u64(0)));
        let queries = all.take(&order[TRAIN..TRAIN + QUERIES]);
        Ok(Self { train: all.take(&order[..TRAIN]), queries })
    }

    /// Trains on the samples listed. `watch` is called before each step with its number, step
    /// size and batch.
    fn train(
        &self,
        samples: &[usize],
        seed: u64,
        mut watch: impl FnMut(u64, f32, &mut Mlp, &[usize]) -> Result<()>,
    ) -> Result<Mlp> {
        let mut model = Mlp::new(seed);
        let mut rng = StdRng::seed_from_u64(seed ^ 0x006f_7264_6572 << 8);
        let total = samples.len() / BATCH * EPOCHS;
        let mut step = 0;
        for _ in 0..EPOCHS {
            let order = shuffled(samples.len(), &mut rng);
            for batch in order.chunks_exact(BATCH) {
                let batch: Vec<usize> = batch.iter().map(|&k| samples[k]).collect();
                let rate = RATE * (1.0 - step as f32 / total as f32);
                watch(step, rate, &mut model, &batch)?;
                let batch = self.train.take(&batch);
                let pass = model.forward(&batch.pixels)?;
                model.step(&pass, &batch.labels, rate)?;
                step += 1;
            }
        }
        Ok(model)
    }
}

impl Task for Digits {
    fn samples(&self) -> usize {
        TRAIN
    }

    fn queries(&self) -> usize {
        QUERIES
    }

    fn categories(&self) -> Categories {
        let of = |set: &Set| set.labels.iter().map(|&digit| usize::from(digit)).collect();
        Categories {
            names: (0..WIDTHS[2]).map(|digit| digit.to_string()).collect(),
            samples: of(&self.train),
            queries: of(&self.queries),
        }
    }

    fn setup(&self) -> serde_json::Value {
        json!({
            "model": format!("perceptron {}-{}-{}", WIDTHS[0], WIDTHS[1], WIDTHS[2]),
            "parameters": LAYERS.iter().sum::<usize>(),
            "training": format!("{EPOCHS} epochs of plain SGD, batches of {BATCH}, step size {RATE} falling to 0"),
            "samples": TRAIN,
            "queries": QUERIES,
            "recorded_seed": RECORDED_SEED,
            "checkpoints": CHECKPOINTS,
            "sketches": SKETCHES.map(|(_, kind)| kind),
            "sketch_seed": SKETCH_SEED,
            "retraining": "initialisation and order of every retraining follow from its seed; \
                           the recorded run has another",
        })
    }

    fn retrain(&self, present: &[bool], seed: u64) -> Result<Vec<f32>> {
        let samples: Vec<usize> = (0..TRAIN).filter(|&n| present[n]).collect();
        let mut model = self.train(&samples, seed, |_, _, _, _| Ok(()))?;
        let pass = model.forward(&self.queries.pixels)?;
        Ok(pass.losses(&self.queries.labels))
    }

    fn record(&self) -> Result<Vec<Evidence>> {
        let mut run = Recorded::new()?;
        let total = (TRAIN / BATCH * EPOCHS) as u64;
        let all: Vec<usize> = (0..TRAIN).collect();
        let mut model = self.train(&all, RECORDED_SEED, |step, rate, model, batch| {
            if step > 0 && step.is_multiple_of(total / CHECKPOINTS) {
                run.ask(model, &self.queries)?;
            }
            run.record(model, &self.train, step, rate, batch)
        })?;
        run.ask(&mut model, &self.queries)?;
        run.finish(&mut model, &self.train)
    }
}

/// One training run, by all storages at once.
struct Recorded {
    /// Of each storage and part.
    records: Vec<Vec<Accumulator>>,
    /// The queries' gradients at the checkpoints.
    asked: Vec<Gradients>,
}

impl Recorded {
    fn new() -> Result<Self> {
        Ok(Self { records: accumulators()?, asked: Vec::new() })
    }

    fn ask(&mut self, model: &mut Mlp, queries: &Set) -> Result<()> {
        self.asked.push(gradients(model, queries)?);
        Ok(())
    }

    fn record(
        &mut self,
        model: &mut Mlp,
        train: &Set,
        step: u64,
        rate: f32,
        batch: &[usize],
    ) -> Result<()> {
        let gradients = gradients(model, &train.take(batch))?;
        add(&mut self.records, &gradients, step, rate, batch)
    }

    fn finish(self, model: &mut Mlp, train: &Set) -> Result<Vec<Evidence>> {
        let mut ends = accumulators()?;
        let all: Vec<usize> = (0..TRAIN).collect();
        add(&mut ends, &gradients(model, train)?, 0, 1.0, &all)?;
        let names = SKETCHES.iter().map(|(name, _)| *name).chain(["full gradient"]);
        let mut evidence = Vec::new();
        for (s, ((records, ends), name)) in
            self.records.into_iter().zip(ends).zip(names).enumerate()
        {
            let part = |(p, (record, end)): (usize, (Accumulator, Accumulator))| {
                let at = |checkpoint: &Gradients| checkpoint[s][p].clone();
                let checkpoints: Vec<_> = self.asked.iter().map(at).collect();
                Part { record, end, phases: None, asked: by_query(&checkpoints) }
            };
            evidence.push(Evidence {
                storage: name.to_owned(),
                reference: s == SKETCHES.len(),
                parts: records.into_iter().zip(ends).enumerate().map(part).collect(),
            });
        }
        Ok(evidence)
    }
}

/// Empty ones of every storage: a sketch has the layers as its blocks, the full gradient has one
/// part for each layer.
fn accumulators() -> Result<Vec<Vec<Accumulator>>> {
    let mut all = Vec::new();
    for (_, kind) in SKETCHES {
        let length = Sketch::new(kind, SKETCH_SEED, 0)?.len();
        all.push(vec![Accumulator::new(LAYERS.len(), length)?]);
    }
    all.push(LAYERS.iter().map(|&length| Accumulator::new(1, length)).collect::<Result<_, _>>()?);
    Ok(all)
}

/// Vectors `[storages][parts][samples]`.
type Gradients = Vec<Vec<Vec<Vec<f32>>>>;

/// Each sample's gradient as every storage keeps it.
fn gradients(model: &mut Mlp, set: &Set) -> Result<Gradients> {
    let samples = set.labels.len();
    let pass = model.forward(&set.pixels)?;
    let split = |values: Vec<f32>| -> Vec<Vec<f32>> {
        values.chunks_exact(values.len() / samples).map(<[f32]>::to_vec).collect()
    };
    let mut all = Vec::new();
    for (_, kind) in SKETCHES {
        let sketch = |layer| Sketch::new(kind, SKETCH_SEED, layer);
        all.push(vec![split(model.sketches(&pass, &set.labels, sketch)?)]);
    }
    all.push(model.gradients(&pass, &set.labels)?.map(split).into());
    Ok(all)
}

/// Adds a step's gradients to the records.
fn add(
    records: &mut [Vec<Accumulator>],
    gradients: &Gradients,
    step: u64,
    rate: f32,
    batch: &[usize],
) -> Result<()> {
    for (records, gradients) in records.iter_mut().zip(gradients) {
        for (record, gradients) in records.iter_mut().zip(gradients) {
            let cells = batch.len() * record.blocks();
            record.add(&StepRecord {
                step,
                step_size: rate,
                optimizer_scale: 1.0,
                blocks: record.blocks(),
                samples: batch.iter().map(|&n| n as u64).collect(),
                noise_levels: vec![f32::NAN; batch.len()],
                gates: vec![1.0; batch.len()],
                route: vec![1.0; cells],
                flow: vec![1.0; cells],
                // Nobody asks for norms here.
                sq_norm: vec![f32::NAN; cells],
                sketch: gradients.concat(),
            })?;
        }
    }
    Ok(())
}

fn shuffled(count: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    for k in (1..count).rev() {
        all.swap(k, rng.random_range(0..=k));
    }
    all
}
