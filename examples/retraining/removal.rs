//! Retraining without the samples that score highest for a query: does its loss rise, and more
//! than without as many drawn at random?

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lds::{self, Halves, VALIDATION};
use crate::scores::{self, Method, Scores};
use crate::task::Task;
use crate::{store, subset};

/// Shares of the training samples that are taken away.
const SHARES: [f64; 4] = [0.01, 0.02, 0.05, 0.1];
/// Random draws of each share.
const DRAWS: usize = 20;

/// How much is measured.
pub struct Extent {
    /// Queries whose samples are taken away.
    pub queries: usize,
    /// Seeds each model is retrained with.
    pub seeds: u64,
    /// Storage and name of the scores.
    pub scores: &'static [(&'static str, &'static str)],
}

#[derive(Serialize)]
struct Outcome {
    setup: serde_json::Value,
    samples: usize,
    seeds: u64,
    shares: [f64; 4],
    /// Loss with all samples, by query.
    base: Vec<f64>,
    /// Rise of the loss without random samples, `[shares][draws][queries]`.
    random: Vec<Vec<Vec<f64>>>,
    top: Vec<Top>,
}

#[derive(Serialize)]
struct Top {
    method: Method,
    /// Rise of the loss without the query's top samples, `[shares][queries]`.
    rise: Vec<Vec<f64>>,
}

/// Retrains, and averages over the seeds.
struct Bench<'a> {
    task: &'a dyn Task,
    out: &'a Path,
    seeds: u64,
}

impl Bench<'_> {
    /// Mean over the seeds of a table of `count` rows, `[count][width]`. `row` says which
    /// samples are absent and which queries' losses are kept.
    fn mean(
        &self,
        name: &str,
        width: usize,
        count: usize,
        row: impl Fn(usize) -> (Vec<usize>, Vec<usize>),
    ) -> Result<Vec<Vec<f64>>> {
        let mut sums = vec![vec![0.0; width]; count];
        for seed in 1..=self.seeds {
            let path = self.out.join(format!("{name}-{seed}.f32"));
            let table = store::rows(&path, width, count, |at| {
                let (absent, kept) = row(at);
                let present = subset::without(self.task.samples(), &absent);
                let losses = self.task.retrain(&present, seed)?;
                Ok(kept.into_iter().map(|q| losses[q]).collect())
            })?;
            for (sums, row) in sums.iter_mut().zip(table) {
                let share = |loss| f64::from(loss) / self.seeds as f64;
                sums.iter_mut().zip(row).for_each(|(sum, loss)| *sum += share(loss));
            }
        }
        Ok(sums)
    }
}

/// Measures and writes `removal.json`.
pub fn run(task: &dyn Task, out: &Path, halves: &Halves, extent: &Extent) -> Result<()> {
    // Spread evenly over the queries that did not choose the damping.
    let judges: Vec<usize> = (0..task.queries()).filter(|q| q % VALIDATION != 0).collect();
    let count = extent.queries.min(judges.len());
    let asked: Vec<usize> = (0..count).map(|k| judges[k * judges.len() / count]).collect();
    let sizes = SHARES.map(|share| (share * task.samples() as f64).round() as usize);
    let bench = Bench { task, out, seeds: extent.seeds };

    let base = bench.mean("removal-none", count, 1, |_| (Vec::new(), asked.clone()))?.remove(0);
    let rows = bench.mean("removal-random", count, SHARES.len() * DRAWS, |at| {
        (subset::random(task.samples(), sizes[at / DRAWS], at as u64), asked.clone())
    })?;
    let rise = |row: &Vec<f64>| row.iter().zip(&base).map(|(loss, base)| loss - base).collect();
    let rises: Vec<Vec<f64>> = rows.iter().map(rise).collect();
    let random = rises.chunks_exact(DRAWS).map(<[_]>::to_vec).collect();

    let mut all = Vec::new();
    for evidence in task.record()? {
        if extent.scores.iter().any(|(storage, _)| *storage == evidence.storage) {
            all.extend(scores::all(&evidence)?);
        }
    }
    let mut top = Vec::new();
    for (storage, name) in extent.scores {
        let scores = lds::chosen(&all, halves, storage, name)
            .with_context(|| format!("no score {name} of {storage}"))?;
        let file = format!("removal-{storage}-{name}").replace([' ', ',', '='], "_");
        let losses = bench.mean(&file, 1, SHARES.len() * count, |at| {
            let query = asked[at % count];
            (highest(scores, query, sizes[at / count]), vec![query])
        })?;
        let rise = |(at, loss): (usize, &Vec<f64>)| loss[0] - base[at % count];
        let rises: Vec<f64> = losses.iter().enumerate().map(rise).collect();
        let rise = rises.chunks_exact(count).map(<[f64]>::to_vec).collect();
        top.push(Top { method: scores.method.clone(), rise });
    }
    let (setup, samples, seeds) = (task.setup(), task.samples(), extent.seeds);
    let outcome = Outcome { setup, samples, seeds, shares: SHARES, base, random, top };
    store::write(&out.join("removal.json"), &outcome)
}

/// The samples of highest score for a query.
fn highest(scores: &Scores, query: usize, size: usize) -> Vec<usize> {
    let values = &scores.values[query];
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(size);
    order
}
