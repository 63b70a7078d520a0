//! Linear datamodeling score (Park et al. 2023): does the sum of a half's scores order the models
//! retrained on the halves as their losses do?

use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use crate::scores::{self, Method, Scores};
use crate::stamp::Stamp;
use crate::statistics::{mean, spearman};
use crate::task::Task;
use crate::{amount, store, subset};

/// Every so many queries one chooses the damping; the others judge.
pub const VALIDATION: usize = 4;

#[derive(Serialize)]
struct Outcome {
    setup: serde_json::Value,
    samples: usize,
    #[serde(flatten)]
    halves: amount::Halves,
    /// See [`VALIDATION`].
    validation: usize,
    /// Spearman between two halves of the seeds, by query; empty with one seed.
    agreement: Vec<f64>,
    measured: Stamp,
    scores: Vec<Judged>,
}

#[derive(Serialize)]
struct Judged {
    method: Method,
    /// By query.
    lds: Vec<f64>,
}

/// The halves' models: losses `[seeds][subsets][queries]`.
pub struct Halves {
    members: Vec<Vec<usize>>,
    losses: Vec<Vec<Vec<f32>>>,
    pub amount: amount::Halves,
}

impl Halves {
    /// Retrains on each half with each seed, or reads what was done already.
    pub fn retrained(task: &dyn Task, out: &Path, amount: amount::Halves) -> Result<Self> {
        let members = (0..amount.subsets).map(|m| subset::half(task.samples(), m)).collect();
        let seed = |seed: u64| {
            let path = out.join(format!("halves-{seed}.f32"));
            store::rows(&path, task.queries(), amount.subsets as usize, |m| {
                task.retrain(&subset::present(task.samples(), m as u64), seed)
            })
        };
        let losses = (1..=amount.seeds).map(seed).collect::<Result<_>>()?;
        Ok(Self { members, losses, amount })
    }

    /// How much each half lowers each query's loss, up to a constant: `[queries][subsets]`,
    /// averaged over the seeds.
    fn gains(&self, seeds: std::ops::Range<usize>) -> Vec<Vec<f64>> {
        let queries = self.losses[0][0].len();
        let gain = |q: usize, m: usize| {
            let each: Vec<f64> = seeds.clone().map(|s| -f64::from(self.losses[s][m][q])).collect();
            mean(&each)
        };
        (0..queries).map(|q| (0..self.members.len()).map(|m| gain(q, m)).collect()).collect()
    }

    /// The score of each query.
    pub fn judge(&self, scores: &Scores) -> Vec<f64> {
        let gains = self.gains(0..self.losses.len());
        (gains.par_iter().zip(&scores.values))
            .map(|(gains, values)| {
                let sum = |half: &Vec<usize>| half.iter().map(|&n| values[n]).sum();
                spearman(&self.members.iter().map(sum).collect::<Vec<f64>>(), gains)
            })
            .collect()
    }

    fn agreement(&self) -> Vec<f64> {
        let seeds = self.losses.len();
        if seeds < 2 {
            return Vec::new();
        }
        let sides = [self.gains(0..seeds / 2), self.gains(seeds / 2..seeds)];
        sides[0].iter().zip(&sides[1]).map(|(a, b)| spearman(a, b)).collect()
    }
}

/// Of the scores of this name and storage, those whose damping the choosing queries like best.
pub fn chosen<'a>(
    scores: &'a [Scores],
    halves: &Halves,
    storage: &str,
    name: &str,
) -> Option<&'a Scores> {
    let worth = |scores: &&Scores| {
        let lds = halves.judge(scores);
        mean(&lds.into_iter().step_by(VALIDATION).collect::<Vec<_>>())
    };
    (scores.iter())
        .filter(|it| it.method.storage == storage && it.method.name == name)
        .map(|it| (worth(&it), it))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, it)| it)
}

/// Measures and writes `lds.json`.
pub fn run(task: &dyn Task, out: &Path, halves: &Halves) -> Result<()> {
    let mut judged = Vec::new();
    for evidence in task.record()? {
        println!("scores from {} …", evidence.storage);
        for scores in scores::all(&evidence)? {
            judged.push(Judged { lds: halves.judge(&scores), method: scores.method });
        }
    }
    let outcome = Outcome {
        setup: task.setup(),
        samples: task.samples(),
        halves: halves.amount,
        validation: VALIDATION,
        agreement: halves.agreement(),
        measured: Stamp::now(),
        scores: judged,
    };
    store::write(&out.join("lds.json"), &outcome)
}
