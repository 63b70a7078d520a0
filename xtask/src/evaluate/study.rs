//! Runs of the example with planted glyphs, with and without the guard: what `duplicates` and
//! `prevention` are made of.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use super::statistics;
use crate::shell;

const SEEDS: u64 = 3;
const STEPS: u64 = 800;

/// How many runs, and how long.
#[derive(Args)]
pub struct Arguments {
    /// Seeds 1 to this many.
    #[arg(long, default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Steps of each run.
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
    /// Write table and picture from the finished runs; start none.
    #[arg(long)]
    no_runs: bool,
}

/// A finished run.
pub struct Run {
    pub steps: u64,
    /// Loss of the public typefaces.
    pub public: f64,
    pub scores: Vec<Scores>,
    pub drawn: Vec<Drawn>,
}

/// The example's `study.json`: scores of all samples at several times, and drawn pictures.
#[derive(Deserialize)]
struct Study {
    scores: Vec<Scores>,
    drawn: Vec<Drawn>,
}

#[derive(Deserialize)]
pub struct Scores {
    pub step: u64,
    pub samples: Vec<SampleScore>,
}

#[derive(Clone, Deserialize)]
pub struct SampleScore {
    pub sample: u64,
    pub times: usize,
    pub shifted: bool,
    pub total: f64,
    pub deviation: f64,
    pub loss: f64,
}

#[derive(Clone, Deserialize)]
pub struct Drawn {
    pub sample: u64,
    pub times: usize,
    pub ratio: f64,
    pub nearest: bool,
}

#[derive(Deserialize)]
struct Outcome {
    steps: u64,
    losses: Losses,
}

#[derive(Deserialize)]
struct Losses {
    public: f64,
}

impl Arguments {
    /// The runs of every seed, those that are missing taken to their end first.
    pub fn runs(&self, guarded: bool) -> Result<Vec<Run>> {
        if !self.no_runs {
            shell::run(shell::cargo().args([
                "build",
                "--release",
                "--example",
                "glyph_diffusion",
            ]))?;
        }
        (1..=self.seeds).map(|seed| self.of_seed(seed, guarded)).collect()
    }

    /// The command that a page of these runs states.
    pub fn command(&self, what: &str) -> String {
        super::command(what, &[("seeds", self.seeds, SEEDS), ("steps", self.steps, STEPS)])
    }

    fn of_seed(&self, seed: u64, guarded: bool) -> Result<Run> {
        let name = if guarded { "guarded" } else { "open" };
        let folder = format!("runs/evaluate/guard/{name}-{seed}");
        let out = shell::root().join(&folder);
        if !self.no_runs && !out.join("result.json").exists() {
            self.train(seed, guarded, &out)?;
        }
        let read = |name: &str| -> Result<String> {
            let path: PathBuf = out.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let outcome: Outcome = serde_json::from_str(&read("result.json")?)?;
        let Study { scores, drawn } = serde_json::from_str(&read("study.json")?)?;
        let (steps, public) = (outcome.steps, outcome.losses.public);
        self.check(&folder, steps)?;
        Ok(Run { steps, public, scores, drawn })
    }

    /// A finished run is not trained again, so it must be of the length that is asked for.
    fn check(&self, folder: &str, steps: u64) -> Result<()> {
        ensure!(
            steps == self.steps,
            "{folder}: a run of {steps} steps, not {}; remove the folder to train anew, or ask for --steps {steps}",
            self.steps
        );
        Ok(())
    }

    fn train(&self, seed: u64, guarded: bool, out: &std::path::Path) -> Result<()> {
        let mut example =
            Command::new(shell::root().join("target/release/examples/glyph_diffusion"));
        example.arg("--out").arg(out);
        // The scores of an interrupted run are not kept: it begins anew.
        example.args(["--overwrite", "--policy", "none", "--plant", "study", "--no-report"]);
        example.args(["--commit-every", "400", "--seed", &seed.to_string()]);
        example.args(["--steps", &self.steps.to_string()]);
        if guarded {
            example.arg("--guard");
        }
        shell::run(&mut example)
    }
}

/// A value with its interval of 95 %.
#[derive(Clone, Copy)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Bootstrap over `units`: what is resampled are glyphs, each with all its copies or draws in every run,
/// since those depend on each other: all runs have the same glyphs planted. Resamples without a unit that the statistic is about, of which it
/// is not a number, are left out.
pub fn bootstrap(units: usize, statistic: impl Fn(&[usize]) -> f64) -> Estimate {
    let all: Vec<usize> = (0..units).collect();
    let Range { start: low, end: high } = statistics::bootstrap(units, &statistic);
    Estimate { value: statistic(&all), low, high }
}

/// Share of pairs in which a positive scores above a negative, ties by half. Both weighted.
pub fn auroc(mut scored: Vec<(f64, bool, f64)>) -> f64 {
    scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut won, mut positives) = (0.0, 0.0, 0.0);
    for equal in scored.chunk_by(|a, b| a.0 == b.0) {
        let weight =
            |of: bool| -> f64 { equal.iter().filter(|it| it.1 == of).map(|it| it.2).sum() };
        let (own, other) = (weight(true), weight(false));
        won += own * (below + 0.5 * other);
        below += other;
        positives += own;
    }
    won / (positives * below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auroc_counts_pairs() {
        let scored = vec![(0.1, false, 1.0), (0.4, true, 1.0), (0.4, false, 1.0), (0.9, true, 1.0)];
        assert_eq!(auroc(scored), 3.5 / 4.0);
        assert_eq!(auroc(vec![(1.0, true, 2.0), (0.0, false, 1.0)]), 1.0);
    }

    #[test]
    fn a_run_of_another_length_is_refused() {
        let asked = Arguments { seeds: 3, steps: 800, no_runs: true };
        asked.check("runs/open-1", 800).unwrap();
        let said = asked.check("runs/open-1", 100).unwrap_err().to_string();
        assert!(said.contains("runs/open-1") && said.contains("--steps 100"), "{said}");
    }

    #[test]
    fn an_interval_holds_its_value() {
        let values = [1.0, 2.0, 3.0, 4.0, 10.0];
        let mean = |at: &[usize]| at.iter().map(|&k| values[k]).sum::<f64>() / at.len() as f64;
        let it = bootstrap(values.len(), mean);
        assert_eq!(it.value, 4.0);
        assert!(it.low < 4.0 && it.high > 4.0 && it.low >= 1.0 && it.high <= 10.0);
    }

    #[test]
    fn resamples_that_say_nothing_are_left_out() {
        // The mean of one value, which a resample may lack.
        let of_first = |at: &[usize]| {
            let count = at.iter().filter(|&&k| k == 0).count() as f64;
            3.0 * count / count
        };
        let it = bootstrap(4, of_first);
        assert_eq!([it.value, it.low, it.high], [3.0; 3]);
        assert!(bootstrap(3, |_| f64::NAN).low.is_nan());
    }
}
