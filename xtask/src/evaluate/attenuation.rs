//! `cargo xtask evaluate attenuation`: does the dial do what never training would have done?
//!
//! What a finished run came to is kept in `benches/record/attenuation`, so that the runs, hours in all, can be
//! taken on several days, and tables drawn again. Who changes what is trained removes that folder.

mod picture;
mod run;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::shell;
use run::Run;

const SEEDS: u64 = 3;
const GROUPS: [&str; 3] = ["script", "blackletter", "display"];
const STEPS: u64 = 2400;
const RELEARN: u64 = 512;

/// How many runs, and how long.
#[derive(Args)]
pub struct Arguments {
    /// Seeds 1 to this many.
    #[arg(long, default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Groups whose rights are tracked, one after the other.
    #[arg(long, value_delimiter = ',', default_values = GROUPS)]
    groups: Vec<String>,
    /// Steps of each run.
    #[arg(long, default_value_t = STEPS, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps of learning a group again.
    #[arg(long, default_value_t = RELEARN)]
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
    Strict,
}

impl Variant {
    pub const EACH: [Self; 4] = [Self::Unrouted, Self::WithoutOwned, Self::All, Self::Strict];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unrouted => "unrouted",
            Self::WithoutOwned => "without",
            Self::All => "all",
            Self::Strict => "strict",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Unrouted => "unrouted",
            Self::WithoutOwned => "without the group",
            Self::All => "all blocks",
            Self::Strict => "strict",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            // Nobody is tracked: one run answers for every group.
            Self::Unrouted => &["--policy", "none", "--others"],
            Self::WithoutOwned => &["--policy", "none", "--without-owned"],
            Self::All => &["--policy", "all"],
            Self::Strict => &["--policy", "strict"],
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
    // Before anything is trained.
    runs(arguments).iter().try_for_each(|run| run.check(arguments))?;
    if !arguments.no_runs {
        shell::run(shell::cargo().args(["build", "--release", "--example", "glyph_diffusion"]))?;
        train_all(arguments)?;
    }
    let mut groups: Vec<Group> = Vec::new();
    for name in &arguments.groups {
        match read_group(name, arguments) {
            Ok(group) => groups.push(group),
            Err(missing) => println!("{name} is left out: {missing:#}"),
        }
    }
    ensure!(!groups.is_empty(), "no group has all of its runs");
    let record = shell::root().join("benches/record");
    fs::create_dir_all(&record)?;
    fs::write(record.join("attenuation.md"), table::write(&groups, &command(&groups, arguments)))?;
    picture::dials(&groups, &record.join("attenuation.svg"))?;
    picture::relearning(&groups, &record.join("attenuation-relearning.svg"))?;
    println!("benches/record/attenuation.md and its pictures written");
    Ok(())
}

/// The command that makes the record of these groups.
fn command(groups: &[Group], arguments: &Arguments) -> String {
    let options = [
        ("seeds", arguments.seeds, SEEDS),
        ("steps", arguments.steps, STEPS),
        ("relearn", arguments.relearn, RELEARN),
    ];
    let mut command = super::command("attenuation", &options);
    let names: Vec<&str> = groups.iter().map(|group| &*group.name).collect();
    if names != GROUPS {
        command += &format!(" --groups {}", names.join(","));
    }
    command
}

/// What the runs of a group came to.
fn read_group(name: &str, arguments: &Arguments) -> Result<Group> {
    let seeds = (1..=arguments.seeds)
        .map(|seed| {
            let read = |variant: Variant| {
                let mut outcome = Run { variant, group: name, seed }.outcome()?;
                // An unrouted run has the losses of every group but the one it was started with aside.
                outcome.losses = outcome.others.remove(name).unwrap_or(outcome.losses);
                Ok((variant, outcome))
            };
            Ok(Seed { seed, outcomes: Variant::EACH.into_iter().map(read).collect::<Result<_>>()? })
        })
        .collect::<Result<_>>()?;
    Ok(Group { name: name.into(), seeds })
}

/// Every run that is asked for.
fn runs(arguments: &Arguments) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    for (at, group) in arguments.groups.iter().enumerate() {
        let asked = |variant: &Variant| at == 0 || *variant != Variant::Unrouted;
        for seed in 1..=arguments.seeds {
            let variants = Variant::EACH.into_iter().filter(asked);
            runs.extend(variants.map(|variant| Run { variant, group, seed }));
        }
    }
    runs
}

/// Takes every run to its end, some at a time.
fn train_all(arguments: &Arguments) -> Result<()> {
    let waiting = Mutex::new(runs(arguments).into_iter());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_the_groups_that_are_told_of() {
        let arguments = Arguments {
            seeds: 3,
            groups: GROUPS.map(String::from).into(),
            steps: STEPS,
            relearn: 64,
            jobs: 2,
            no_runs: true,
        };
        let group = |name: &str| Group { name: name.into(), seeds: Vec::new() };
        let said = "cargo xtask evaluate attenuation --relearn 64";
        assert_eq!(command(&GROUPS.map(group), &arguments), said);
        let one = [group("script")];
        assert_eq!(command(&one, &arguments), format!("{said} --groups script"));
    }
}
