//! The memorization guard over a training run, and what a study of it needs to know.

use std::path::Path;

use anyhow::{Result, ensure};
use gradroute::guard::{Guard, GuardConfig};
use gradroute::provenance::StepRecord;
use gradroute::provenance::ledger::{LedgerReader, RunInfo};
use serde::Serialize;

use crate::data::{Dataset, Plant, SIDE};
use crate::diffusion::LEVELS;
use crate::options::RunOptions;

/// Bins of noise level in which norms and losses are compared.
const BINS: usize = 16;
/// Scores of a study are taken after each of so many equal parts of the run, but the first.
const PARTS: u64 = 10;

/// Watches where it is asked to guard, or a study is made; else does nothing.
pub struct Watch {
    guard: Option<Guard>,
    /// Gates are closed, not only recorded.
    closes: bool,
    /// The same comparison of losses, for a study: the baseline.
    losses: Guard,
    study: Option<Vec<Scores>>,
}

/// The scores of all samples at one time of the run.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    pub step: u64,
    pub samples: Vec<SampleScore>,
}

/// One sample's.
#[derive(Clone, Debug, Serialize)]
pub struct SampleScore {
    pub sample: u64,
    /// How often its glyph is in the data.
    pub times: usize,
    /// Whether it is a shifted copy.
    pub shifted: bool,
    /// The guard's score, and its parts.
    pub total: f64,
    pub nearest: f32,
    pub deviation: f64,
    pub exposure: f64,
    /// Deviation of its loss.
    pub loss: f64,
}

impl Watch {
    /// Of a run as its ledger describes it.
    pub fn new(options: &RunOptions, info: &RunInfo) -> Result<Self> {
        let guard = Guard::of_run(info)?;
        let study = (options.plant == Plant::Study).then(Vec::new);
        Ok(Self { guard, closes: options.guard, losses: Guard::new(1, config())?, study })
    }

    /// What the ledger knows of the run so far.
    pub fn replay(&mut self, ledger: &Path) -> Result<()> {
        ensure!(
            self.study.is_none(),
            "the losses of a study are in no ledger: begin it anew with --overwrite"
        );
        let Some(guard) = &mut self.guard else { return Ok(()) };
        for events in LedgerReader::open(ledger)?.events() {
            guard.replay(&events?)?;
        }
        Ok(())
    }

    pub fn gates(&mut self, ids: &[u64]) -> Option<Vec<f32>> {
        let closes = self.closes;
        self.guard.as_mut().filter(|_| closes).map(|guard| guard.gates(ids))
    }

    pub fn observe(&mut self, record: &StepRecord, losses: &[f32]) -> Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        guard.observe(record)?;
        if self.study.is_some() {
            let ones = vec![1.0; losses.len()];
            self.losses.observe(&StepRecord {
                blocks: 1,
                route: ones.clone(),
                flow: ones,
                sq_norm: losses.to_vec(),
                sketch: Vec::new(),
                ..record.clone()
            })?;
        }
        Ok(())
    }

    /// Takes a study's scores when it is time to.
    pub fn score(&mut self, done: u64, options: &RunOptions, data: &Dataset) {
        let (Some(guard), Some(study)) = (&mut self.guard, &mut self.study) else { return };
        let total = options.total_steps();
        let due = (2..=PARTS).any(|part| done == total * part / PARTS);
        if !due {
            return;
        }
        let losses = self.losses.scores();
        let loss =
            |id: u64| losses.iter().find(|it| it.sample == id).map_or(0.0, |it| it.deviation);
        let scores = guard.scores();
        let samples = scores.into_iter().filter_map(|score| {
            let sample = data.sample(score.sample)?;
            Some(SampleScore {
                sample: score.sample,
                times: data.times(sample),
                shifted: sample.shift != (0, 0),
                total: score.total,
                nearest: score.nearest.unwrap_or(-1.0),
                deviation: score.deviation,
                exposure: score.exposure,
                loss: loss(score.sample),
            })
        });
        study.push(Scores { step: done, samples: samples.collect() });
    }

    /// Lets go of what the ledger holds by now: which gates were closed.
    pub fn committed(&mut self) {
        if let Some(guard) = &mut self.guard {
            guard.take_events();
        }
    }

    /// Of a study, the scores so far.
    pub fn study(&self) -> Option<&[Scores]> {
        self.study.as_deref()
    }
}

fn config() -> GuardConfig {
    let width = (LEVELS[1] - LEVELS[0]) / BINS as f32;
    let edges = (1..BINS).map(|bin| LEVELS[0] + width * bin as f32).collect();
    GuardConfig { noise_edges: edges, ..GuardConfig::default() }
}

/// Has the ledger keep what the guard of a guarded run, or of a study, begins with.
pub fn describe(options: &RunOptions, data: &Dataset, info: &mut RunInfo) -> Result<()> {
    if !options.guard && options.plant != Plant::Study {
        return Ok(());
    }
    config().record_in(info)?;
    let spectra: Vec<Vec<f32>> = data.samples.iter().map(|it| spectrum(&data.image(it))).collect();
    // What all glyphs share says nothing about any of them.
    let mut mean = vec![0.0; spectra[0].len()];
    for spectrum in &spectra {
        mean.iter_mut().zip(spectrum).for_each(|(sum, x)| *sum += x / spectra.len() as f32);
    }
    let own = |spectrum: &Vec<f32>| -> Vec<f32> {
        spectrum.iter().zip(&mean).map(|(x, mean)| x - mean).collect()
    };
    info.fingerprints = spectra.iter().flat_map(own).collect();
    Ok(())
}

/// Magnitudes of the ink's Fourier transform, padded to twice the side: a shift that moves no
/// ink out of the picture leaves them as they are.
fn spectrum(image: &[f32]) -> Vec<f32> {
    let size = 2 * SIDE;
    let turn = |k: usize, x: usize| {
        let (sin, cos) = (std::f32::consts::TAU * (k * x % size) as f32 / size as f32).sin_cos();
        [cos, -sin]
    };
    // Real input: half of the columns say all.
    let columns = SIDE + 1;
    let mut rows = vec![[0.0f32; 2]; SIDE * columns];
    for (y, line) in image.chunks_exact(SIDE).enumerate() {
        for (x, &pixel) in line.iter().enumerate() {
            for k in 0..columns {
                let [cos, sin] = turn(k, x);
                rows[y * columns + k][0] += (pixel + 1.0) * cos;
                rows[y * columns + k][1] += (pixel + 1.0) * sin;
            }
        }
    }
    let magnitude = |j: usize, k: usize| {
        let sum = (0..SIDE).fold([0.0; 2], |[re, im], y| {
            let ([cos, sin], [a, b]) = (turn(j, y), rows[y * columns + k]);
            [re + a * cos - b * sin, im + a * sin + b * cos]
        });
        sum[0].hypot(sum[1])
    };
    (0..size)
        .flat_map(|j| (0..columns).map(move |k| (j, k)))
        .map(|(j, k)| magnitude(j, k))
        .collect()
}
