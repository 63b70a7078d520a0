//! The command line, and the part of it that defines a run.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::data::{GROUPS, OWNED, Plant};

/// Trains a small diffusion model on real typefaces under a routing policy, records every
/// sample's influence and writes a report that answers whose data shaped what.
#[derive(Debug, Parser)]
pub struct Cli {
    #[command(flatten)]
    pub run: RunOptions,
    /// Where the run lives: ledger, checkpoints, result.json and report.html.
    #[arg(long, default_value = "runs/glyph_diffusion")]
    pub out: PathBuf,
    /// Continue the run in --out, with the options it was started with.
    #[arg(long, conflicts_with_all = ["policy", "own", "without_owned", "others", "relearn", "plant", "guard", "seed", "steps", "batch", "quick", "questions", "commit_every", "no_report"])]
    pub resume: bool,
    /// Delete the run in --out, if there is one, and begin anew.
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
}

/// What defines a run. Kept in `run.json`, so that a resumed run is the same run.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct RunOptions {
    /// What the rights-tracked group trains.
    #[arg(long, value_enum, default_value = "all")]
    pub policy: PolicyChoice,
    /// The group whose rights are tracked.
    #[arg(long, value_parser = GROUPS, default_value = OWNED)]
    pub own: String,
    /// Train without the rights-tracked group: what attenuation is measured against.
    #[arg(long)]
    pub without_owned: bool,
    /// Measure an unrouted run with each other group in the tracked one's place, too.
    #[arg(long, requires = "policy")]
    pub others: bool,
    /// Afterwards teach the tracked group alone for so many steps, from a dial of 0; in a run without the
    /// group from there and from new weights. For result.json.
    #[arg(long, value_name = "STEPS")]
    pub relearn: Option<u64>,
    /// Which glyphs are planted several times.
    #[arg(long, value_enum, default_value = "few")]
    pub plant: Plant,
    /// Let the memorization guard close the gates of what is seen too often.
    #[arg(long)]
    pub guard: bool,
    /// Seed of weights, batches and noise.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Training steps.
    #[arg(long, default_value_t = 2400, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Samples per step.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub batch: u64,
    /// A short run of about a minute: fewer steps, fewer pictures.
    #[arg(long)]
    pub quick: bool,
    /// Questions the trained model is asked about each side; 1024, or 128 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub questions: Option<u64>,
    /// Steps between commits of ledger and checkpoint.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    pub commit_every: u64,
    /// Stop after result.json: no pictures, no queries.
    #[arg(long)]
    pub no_report: bool,
}

/// Which of the shipped policies governs the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyChoice {
    /// A region of the group in every block; its samples train the rest with a quarter of their weight.
    All,
    /// The same region, and the group trains nothing else.
    Strict,
    /// Everybody trains everything.
    None,
}

impl RunOptions {
    /// Steps of a `--quick` run.
    const QUICK_STEPS: u64 = 300;

    /// Refuses what would be asked for and never measured, before the training is spent on it.
    pub fn check(&self) -> Result<()> {
        let routed = self.policy != PolicyChoice::None;
        ensure!(
            !self.others || !routed && !self.without_owned,
            "--others compares groups that were all trained alike: give --policy none, and leave \
             out --without-owned; or leave out --others"
        );
        ensure!(
            self.relearn.is_none() || routed || self.without_owned,
            "--relearn begins at a dial of 0 or with weights that never saw the group, and \
             --policy none gives neither: choose another --policy, add --without-owned, or leave \
             out --relearn"
        );
        Ok(())
    }

    /// The steps this run takes.
    pub fn total_steps(&self) -> u64 {
        if self.quick { self.steps.min(Self::QUICK_STEPS) } else { self.steps }
    }

    /// Questions the trained model is asked about each side.
    pub fn questions(&self) -> usize {
        self.questions.unwrap_or(if self.quick { 128 } else { 1024 }) as usize
    }

    /// DDIM steps behind each picture.
    pub fn drawing_steps(&self) -> usize {
        if self.quick { 8 } else { 24 }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Cli;

    fn refused(options: &str) -> Option<String> {
        let cli = Cli::parse_from(["glyph_diffusion"].into_iter().chain(options.split(' ')));
        cli.run.check().err().map(|error| error.to_string())
    }

    #[test]
    fn what_would_measure_nothing_is_refused() {
        for options in ["--policy all --others", "--policy none --without-owned --others"] {
            assert!(refused(options).is_some_and(|said| said.contains("--others")), "{options}");
        }
        let said = refused("--policy none --relearn 8");
        assert!(said.is_some_and(|said| said.contains("--relearn")));
        for options in [
            "--policy none --others",
            "--policy all --relearn 8",
            "--policy none --without-owned --relearn 8",
        ] {
            assert_eq!(refused(options), None, "{options}");
        }
    }
}
