//! `cargo xtask evaluate attenuation`: does the dial do what never training would have done?

mod picture;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::shell;

/// How many runs, and how long.
#[derive(Args)]
pub struct Arguments {
    /// Seeds 1 to this many.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Steps of each run; the example's own number when absent.
    #[arg(long)]
    steps: Option<u64>,
    /// Runs at a time, sharing the processors evenly. Changes no result, and is faster than
    /// giving all of them to one run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Write table and picture from the finished runs; start none.
    #[arg(long)]
    no_runs: bool,
}

/// A way to train: the name of its runs and the example's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Unrouted,
    WithoutOwned,
    All,
    Up,
}

impl Variant {
    pub const EACH: [Self; 4] = [Self::Unrouted, Self::WithoutOwned, Self::All, Self::Up];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unrouted => "unrouted",
            Self::WithoutOwned => "without",
            Self::All => "all",
            Self::Up => "up",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Unrouted => &["--policy", "none"],
            Self::WithoutOwned => &["--policy", "none", "--without-owned"],
            Self::All => &["--policy", "all"],
            Self::Up => &["--policy", "up"],
        }
    }
}

/// What a run's `result.json` says, as far as it is needed here.
#[derive(Clone, Debug, Deserialize)]
pub struct Outcome {
    pub steps: u64,
    pub train_seconds: f64,
    pub parameters: usize,
    pub policy_hash: Option<String>,
    pub losses: Losses,
}

/// Noise-prediction losses; see the example's `evaluate` module.
#[derive(Clone, Debug, Deserialize)]
pub struct Losses {
    pub public: f64,
    pub public_region_on: f64,
    pub owned_no_style: f64,
    pub owned: Vec<DialLoss>,
}

/// The owned group's loss at one dial.
#[derive(Clone, Debug, Deserialize)]
pub struct DialLoss {
    pub dial: f64,
    pub loss: f64,
    pub row_kept: f64,
}

/// The four runs of one seed.
pub struct Seed {
    pub seed: u64,
    pub outcomes: [Outcome; 4],
}

impl Seed {
    pub fn of(&self, variant: Variant) -> &Outcome {
        let at = Variant::EACH.iter().position(|&known| known == variant);
        &self.outcomes[at.expect("every variant is listed")]
    }
}

/// Runs what is missing, then writes `benches/record/attenuation.{md,svg}`.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_runs {
        shell::run(shell::cargo().args(["build", "--release", "--example", "glyph_diffusion"]))?;
    }
    if !arguments.no_runs {
        train_all(arguments)?;
    }
    let seeds: Vec<Seed> = (1..=arguments.seeds)
        .map(|seed| {
            let outcomes = Variant::EACH.map(|variant| read(&folder(variant, seed)));
            let outcomes: Vec<Outcome> = outcomes.into_iter().collect::<Result<_>>()?;
            Ok(Seed { seed, outcomes: outcomes.try_into().expect("one per variant") })
        })
        .collect::<Result<_>>()?;
    let steps = seeds[0].outcomes[0].steps;
    let same = seeds.iter().flat_map(|seed| &seed.outcomes).all(|run| run.steps == steps);
    ensure!(same, "the finished runs differ in length; remove the odd ones and run again");
    let record = shell::root().join("benches/record");
    fs::create_dir_all(&record)?;
    fs::write(record.join("attenuation.md"), table::write(&seeds))?;
    picture::draw(&seeds, &record.join("attenuation.svg"))?;
    println!("benches/record/attenuation.md and .svg written");
    Ok(())
}

/// Where a run lives.
fn folder(variant: Variant, seed: u64) -> PathBuf {
    shell::root().join(format!("runs/evaluate/attenuation/{}-{seed}", variant.name()))
}

/// Takes every run to its end, some at a time.
fn train_all(arguments: &Arguments) -> Result<()> {
    let runs = (1..=arguments.seeds).flat_map(|seed| Variant::EACH.map(|variant| (variant, seed)));
    let waiting = Mutex::new(runs);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / arguments.jobs as usize).max(1);
    let work = || -> Result<()> {
        while let Some((variant, seed)) = next() {
            train(variant, seed, arguments.steps, threads)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| worker.join().expect("a worker only returns"));
        ends.collect::<Result<Vec<()>>>().map(drop)
    })
}

/// Starts a run, continues one that was interrupted, or leaves a finished one as it is.
fn train(variant: Variant, seed: u64, steps: Option<u64>, threads: usize) -> Result<()> {
    let out = folder(variant, seed);
    if out.join("result.json").exists() {
        println!("{}: finished", out.display());
        return Ok(());
    }
    let mut example = Command::new(shell::root().join("target/release/examples/glyph_diffusion"));
    example.env("RAYON_NUM_THREADS", threads.to_string()).arg("--out").arg(&out);
    if out.join("run.json").exists() {
        example.arg("--resume");
    } else {
        // Few commits, since nobody asks these ledgers anything.
        example.args(variant.options()).args(["--no-report", "--commit-every", "600"]);
        example.args(["--seed", &seed.to_string()]);
        if let Some(steps) = steps {
            example.args(["--steps", &steps.to_string()]);
        }
    }
    shell::run(&mut example)
}

fn read(out: &Path) -> Result<Outcome> {
    let path = out.join("result.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
