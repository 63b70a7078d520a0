//! `cargo xtask evaluate attenuation`: does the dial do what never training would have done?
//!
//! What a finished run came to is kept in `benches/record/attenuation`, so that the runs, hours in all, can be
//! taken on several days, and tables drawn again. Who changes what is trained removes that folder.

mod picture;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::shell;

/// How many runs, and how long.
#[derive(Args)]
pub struct Arguments {
    /// Seeds 1 to this many.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Groups whose rights are tracked, one after the other.
    #[arg(long, value_delimiter = ',', default_values = ["script", "blackletter", "display"])]
    groups: Vec<String>,
    /// Train the first group under the policy for the up blocks, too.
    #[arg(long)]
    up: bool,
    /// Steps of each run; the example's own number when absent.
    #[arg(long)]
    steps: Option<u64>,
    /// Steps of learning a group again.
    #[arg(long, default_value_t = 512)]
    relearn: u64,
    /// Runs at a time, sharing the processors evenly. Changes no result, and is faster than
    /// giving all of them to one run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Write table and pictures from the finished runs; start none.
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

    pub fn title(self) -> &'static str {
        match self {
            Self::Unrouted => "unrouted",
            Self::WithoutOwned => "without the group",
            Self::All => "all blocks",
            Self::Up => "up blocks",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            // Nobody is tracked: one run answers for every group.
            Self::Unrouted => &["--policy", "none", "--others"],
            Self::WithoutOwned => &["--policy", "none", "--without-owned"],
            Self::All => &["--policy", "all"],
            Self::Up => &["--policy", "up"],
        }
    }
}

/// What a run's `result.json` says, as far as it is needed here.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    pub steps: u64,
    pub train_seconds: f64,
    pub parameters: usize,
    pub policy_hash: Option<String>,
    pub losses: Losses,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    others: BTreeMap<String, Losses>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relearning: Vec<Curve>,
}

/// Noise-prediction losses; see the example's `evaluate` module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Losses {
    pub public: f64,
    pub public_region_on: f64,
    pub owned_no_style: f64,
    pub owned: Vec<DialLoss>,
}

/// The owned group's loss at one dial.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DialLoss {
    pub dial: f64,
    pub loss: f64,
    pub row_kept: f64,
}

/// How the group was learned again; see the example's `relearn` module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Curve {
    pub from: String,
    pub steps: Vec<u64>,
    pub losses: Vec<f64>,
}

/// A group's runs.
pub struct Group {
    pub name: String,
    /// The ways that were trained with every seed.
    pub variants: Vec<Variant>,
    pub seeds: Vec<Seed>,
}

/// The runs of one seed, one for each of the group's ways.
pub struct Seed {
    pub seed: u64,
    pub outcomes: Vec<(Variant, Outcome)>,
}

impl Seed {
    pub fn of(&self, variant: Variant) -> &Outcome {
        let found = self.outcomes.iter().find(|(known, _)| *known == variant);
        &found.expect("a variant of the group").1
    }
}

/// Runs what is missing, then writes `benches/record/attenuation.md` and its pictures.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.no_runs {
        shell::run(shell::cargo().args(["build", "--release", "--example", "glyph_diffusion"]))?;
        train_all(arguments)?;
    }
    let mut groups: Vec<Group> = Vec::new();
    for (at, name) in arguments.groups.iter().enumerate() {
        match read_group(name, at == 0, arguments) {
            Ok(group) => groups.push(group),
            Err(missing) => println!("{name} is left out: {missing:#}"),
        }
    }
    ensure!(!groups.is_empty(), "no group has all of its runs");
    let steps = groups[0].seeds[0].of(Variant::Unrouted).steps;
    let mut runs = groups.iter().flat_map(|group| &group.seeds).flat_map(|seed| &seed.outcomes);
    ensure!(
        runs.all(|(_, run)| run.steps == steps),
        "the finished runs differ in length; remove the odd ones and run again"
    );
    let record = shell::root().join("benches/record");
    fs::create_dir_all(&record)?;
    fs::write(record.join("attenuation.md"), table::write(&groups))?;
    picture::dials(&groups, &record.join("attenuation.svg"))?;
    picture::relearning(&groups, &record.join("attenuation-relearning.svg"))?;
    println!("benches/record/attenuation.md and its pictures written");
    Ok(())
}

/// The ways that a group is trained in.
fn variants(first: bool, arguments: &Arguments) -> Vec<Variant> {
    let asked = |variant: &Variant| *variant != Variant::Up || first && arguments.up;
    Variant::EACH.into_iter().filter(asked).collect()
}

/// What the runs of a group came to.
fn read_group(name: &str, first: bool, arguments: &Arguments) -> Result<Group> {
    let variants = variants(first, arguments);
    let seeds = (1..=arguments.seeds)
        .map(|seed| {
            let read = |&variant: &Variant| {
                let mut outcome = read(&Run { variant, group: name, seed }.kept())?;
                // An unrouted run has the losses of every group but the one it was started with aside.
                outcome.losses = outcome.others.remove(name).unwrap_or(outcome.losses);
                Ok((variant, outcome))
            };
            Ok(Seed { seed, outcomes: variants.iter().map(read).collect::<Result<_>>()? })
        })
        .collect::<Result<_>>()?;
    Ok(Group { name: name.into(), variants, seeds })
}

/// Takes every run to its end, some at a time.
fn train_all(arguments: &Arguments) -> Result<()> {
    let mut runs = Vec::new();
    for (at, group) in arguments.groups.iter().enumerate() {
        let mut variants = variants(at == 0, arguments);
        variants.retain(|&variant| at == 0 || variant != Variant::Unrouted);
        for seed in 1..=arguments.seeds {
            runs.extend(variants.iter().map(|&variant| Run { variant, group, seed }));
        }
    }
    let waiting = Mutex::new(runs.into_iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / arguments.jobs as usize).max(1);
    let work = || -> Result<()> {
        while let Some(run) = next() {
            run.train(arguments, threads)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| worker.join().expect("a worker only returns"));
        ends.collect::<Result<Vec<()>>>().map(drop)
    })
}

/// One run.
struct Run<'a> {
    variant: Variant,
    group: &'a str,
    seed: u64,
}

impl Run<'_> {
    fn name(&self) -> String {
        let (name, seed) = (self.variant.name(), self.seed);
        match self.variant {
            Variant::Unrouted => format!("{name}-{seed}"),
            _ => format!("{name}-{}-{seed}", self.group),
        }
    }

    /// Where stands what it came to.
    fn kept(&self) -> PathBuf {
        let file = format!("{}.json", self.name());
        shell::root().join("benches/record/attenuation").join(file)
    }

    /// Starts it, continues it where it was interrupted, or leaves it as it is; keeps what it came to.
    fn train(&self, arguments: &Arguments, threads: usize) -> Result<()> {
        let kept = self.kept();
        if kept.exists() {
            println!("{}: finished", self.name());
            return Ok(());
        }
        let out = shell::root().join("runs/evaluate/attenuation").join(self.name());
        let result = out.join("result.json");
        if !result.exists() {
            shell::run(&mut self.command(&out, arguments, threads))?;
        }
        fs::create_dir_all(kept.parent().expect("a file of a folder"))?;
        Ok(fs::write(kept, serde_json::to_string_pretty(&read(&result)?)? + "\n")?)
    }

    /// The example that starts or continues it.
    fn command(&self, out: &Path, arguments: &Arguments, threads: usize) -> Command {
        let program = shell::root().join("target/release/examples/glyph_diffusion");
        let mut example = Command::new(program);
        example.env("RAYON_NUM_THREADS", threads.to_string()).arg("--out").arg(out);
        if out.join("run.json").exists() {
            example.arg("--resume");
            return example;
        }
        // Few commits, since nobody asks these ledgers anything.
        example.args(self.variant.options()).args(["--no-report", "--commit-every", "600"]);
        example.args(["--own", self.group, "--seed", &self.seed.to_string()]);
        if self.variant != Variant::Unrouted {
            example.args(["--relearn", &arguments.relearn.to_string()]);
        }
        if let Some(steps) = arguments.steps {
            example.args(["--steps", &steps.to_string()]);
        }
        example
    }
}

fn read(path: &Path) -> Result<Outcome> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
