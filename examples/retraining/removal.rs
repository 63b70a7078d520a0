//! Retraining without the samples that score highest for a query: does its loss rise, and more
//! than without as many drawn at random?

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lds::{self, Halves, VALIDATION};
use crate::scores::{self, Method, Scores};
use crate::stamp::Stamp;
use crate::task::Task;
use crate::{amount, store, subset};

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
    /// That chose the damping.
    halves: amount::Halves,
    measured: Stamp,
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

/// What a row of a table holds.
struct Row {
    /// Samples the model is retrained without.
    absent: Vec<usize>,
    /// Queries whose losses are kept.
    kept: Vec<usize>,
}

/// Retrains, and averages over the seeds.
struct Bench<'a> {
    task: &'a dyn Task,
    out: &'a Path,
    seeds: u64,
}

impl Bench<'_> {
    /// Mean over the seeds of a table, all of whose rows keep as many queries.
    fn mean(&self, name: &str, rows: &[Row]) -> Result<Vec<Vec<f64>>> {
        let width = rows[0].kept.len();
        let name = file_name(name, rows);
        let mut sums = vec![vec![0.0; width]; rows.len()];
        for seed in 1..=self.seeds {
            let path = self.out.join(format!("{name}-{seed}.f32"));
            let table = store::rows(&path, width, rows.len(), |at| {
                let present = subset::without(self.task.samples(), &rows[at].absent);
                let losses = self.task.retrain(&present, seed)?;
                Ok(rows[at].kept.iter().map(|&q| losses[q]).collect())
            })?;
            for (sums, row) in sums.iter_mut().zip(table) {
                let share = |loss| f64::from(loss) / self.seeds as f64;
                sums.iter_mut().zip(row).for_each(|(sum, loss)| *sum += share(loss));
            }
        }
        Ok(sums)
    }
}

/// `name` with a hash of what the rows hold. Which samples a score takes away hangs on the damping, so on how many halves
/// chose it: what was retrained for another ranking lies in another file.
fn file_name(name: &str, rows: &[Row]) -> String {
    let mut hasher = blake3::Hasher::new();
    for list in rows.iter().flat_map(|row| [&row.absent, &row.kept]) {
        for number in std::iter::once(&list.len()).chain(list) {
            hasher.update(&(*number as u64).to_le_bytes());
        }
    }
    format!("{name}-{}", &hasher.finalize().to_hex()[..12])
}

/// Measures and writes `removal.json`.
pub fn run(task: &dyn Task, out: &Path, halves: &Halves, extent: &Extent) -> Result<()> {
    // Spread evenly over the queries that did not choose the damping.
    let judges: Vec<usize> = (0..task.queries()).filter(|q| q % VALIDATION != 0).collect();
    let count = extent.queries.min(judges.len());
    let asked: Vec<usize> = (0..count).map(|k| judges[k * judges.len() / count]).collect();
    let sizes = SHARES.map(|share| (share * task.samples() as f64).round() as usize);
    let bench = Bench { task, out, seeds: extent.seeds };

    let all = |absent| Row { absent, kept: asked.clone() };
    let base = bench.mean("removal-none", &[all(Vec::new())])?.remove(0);
    let draw = |at: usize| all(subset::random(task.samples(), sizes[at / DRAWS], at as u64));
    let draws: Vec<Row> = (0..SHARES.len() * DRAWS).map(draw).collect();
    let rows = bench.mean("removal-random", &draws)?;
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
        let row = |(size, query)| Row { absent: highest(scores, query, size), kept: vec![query] };
        let each = sizes.iter().flat_map(|&size| asked.iter().map(move |&query| (size, query)));
        let losses = bench.mean(&file, &each.map(row).collect::<Vec<_>>())?;
        let rise = |(at, loss): (usize, &Vec<f64>)| loss[0] - base[at % count];
        let rises: Vec<f64> = losses.iter().enumerate().map(rise).collect();
        let rise = rises.chunks_exact(count).map(<[f64]>::to_vec).collect();
        top.push(Top { method: scores.method.clone(), rise });
    }
    let (setup, samples, seeds) = (task.setup(), task.samples(), extent.seeds);
    let (halves, measured) = (halves.amount, Stamp::now());
    let outcome =
        Outcome { setup, samples, halves, measured, seeds, shares: SHARES, base, random, top };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_other_samples_lie_in_another_file() {
        let row =
            |absent: &[usize], kept: &[usize]| Row { absent: absent.into(), kept: kept.into() };
        let name = |rows: &[Row]| file_name("removal", rows);
        let first = name(&[row(&[1, 2], &[0]), row(&[3], &[0])]);
        assert!(first.starts_with("removal-") && first.len() == "removal-".len() + 12, "{first}");
        assert_eq!(first, name(&[row(&[1, 2], &[0]), row(&[3], &[0])]));
        // Other samples, the same ones split otherwise, and other queries.
        assert_ne!(first, name(&[row(&[1, 4], &[0]), row(&[3], &[0])]));
        assert_ne!(first, name(&[row(&[1], &[0]), row(&[2, 3], &[0])]));
        assert_ne!(first, name(&[row(&[1, 2], &[5]), row(&[3], &[5])]));
    }
}
