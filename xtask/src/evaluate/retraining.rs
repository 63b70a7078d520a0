//! What the protocols have in common: the example `retraining` measures and leaves JSON, and a
//! table and a picture are made of it.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::amount::{Halves, REPEATS};
use super::stamp::Stamp;
use crate::shell;

/// What to measure on, and how much.
#[derive(Args)]
pub struct Arguments {
    /// The model and its data.
    #[arg(value_enum)]
    pub task: Task,
    /// Half-subsets retrained on; the example's own number when absent.
    #[arg(long)]
    subsets: Option<usize>,
    /// Seeds each half is retrained with; the example's own number when absent.
    #[arg(long)]
    seeds: Option<u64>,
    /// Seeds each model without a category or without a query's samples is retrained with.
    #[arg(long)]
    repeats: Option<u64>,
    /// Write table and picture from the finished measurements; start none.
    #[arg(long)]
    no_runs: bool,
}

/// A model that is retrained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// A perceptron on 8×8 digits.
    Digits,
    /// A small diffusion U-Net on glyphs of 14 typefaces.
    Glyphs,
    /// The same on glyphs of 27 typefaces, trained twice as long.
    Typefaces,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Glyphs => "glyphs",
            Self::Typefaces => "typefaces",
        }
    }
}

/// How samples were compared with queries.
#[derive(Clone, Debug, Deserialize)]
pub struct Method {
    pub storage: String,
    pub name: String,
    pub damping: Option<f64>,
    pub extra_pass: bool,
}

impl Method {
    /// Storage and name, for a row or a line.
    pub fn title(&self) -> String {
        format!("{}, {}", self.name, self.storage)
    }

    /// The damping as a cell.
    pub fn damping(&self) -> String {
        self.damping.map_or("–".into(), |damping| damping.to_string())
    }
}

/// What defines a task's results.
#[derive(Debug, Deserialize)]
pub struct Setup {
    model: String,
    training: String,
    samples: usize,
    queries: usize,
    retraining: String,
}

impl Setup {
    /// As a paragraph.
    pub fn paragraph(&self) -> String {
        format!(
            "{}, {} training samples, {} queries that are none of them. {}. Retraining: {}.\n",
            self.model, self.samples, self.queries, self.training, self.retraining
        )
    }
}

/// Runs the example's protocol to its end, unless told not to, and reads what it wrote.
pub fn measured<T: DeserializeOwned>(arguments: &Arguments, protocol: &str) -> Result<T> {
    let task = arguments.task.name();
    let out = shell::root().join("runs/evaluate").join(task);
    if !arguments.no_runs {
        shell::run(shell::cargo().args(["build", "--release", "--example", "retraining"]))?;
        let mut example = Command::new(shell::root().join("target/release/examples/retraining"));
        example.args([task, protocol]).arg("--out").arg(&out);
        shell::keep_memory(&mut example);
        example.env("CANDLE_NUM_THREADS", "1");
        if let Some(subsets) = arguments.subsets {
            example.args(["--subsets", &subsets.to_string()]);
        }
        if let Some(seeds) = arguments.seeds {
            example.args(["--seeds", &seeds.to_string()]);
        }
        if let Some(repeats) = arguments.repeats {
            example.args(["--repeats", &repeats.to_string()]);
        }
        shell::run(&mut example)?;
    }
    let path = out.join(protocol).with_extension("json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Writes `benches/record/NAME.md`; the path of the picture beside it.
pub fn record(name: &str, page: &str) -> Result<PathBuf> {
    let folder = shell::root().join("benches/record");
    fs::create_dir_all(&folder)?;
    let path = folder.join(name).with_extension("md");
    fs::write(&path, page).with_context(|| path.display().to_string())?;
    println!("benches/record/{name}.md and .svg written");
    Ok(path.with_extension("svg"))
}

/// When and on what it was measured; nothing where that was not kept.
pub fn closing(stamp: Option<&Stamp>) -> String {
    stamp.map_or(String::new(), |stamp| stamp.line("one thread of "))
}

/// The command that a protocol's page states. What is not known of how it was measured counts as the default.
pub fn command(protocol: &str, task: Task, halves: Option<Halves>, repeats: Option<u64>) -> String {
    let own = Halves::of(task.name());
    let (halves, repeats) = (halves.unwrap_or(own), repeats.unwrap_or(REPEATS));
    let options = [
        ("subsets", halves.subsets, own.subsets),
        ("seeds", halves.seeds, own.seeds),
        ("repeats", repeats, REPEATS),
    ];
    super::command(&format!("{protocol} {}", task.name()), &options)
}

/// Whether a query is among every so many that chose the damping, which judge nothing.
pub fn chose(query: usize, every: usize) -> bool {
    query.is_multiple_of(every)
}

/// A value and its interval as a cell.
pub fn cell(value: f64, interval: &Range<f64>) -> String {
    format!("{value:.3} ({:.3} … {:.3})", interval.start, interval.end)
}

/// Whether a bar holds, as a cell.
pub fn verdict(holds: bool) -> &'static str {
    if holds { "yes" } else { "**no**" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_states_what_a_task_has_otherwise() {
        let own = Halves::of("digits");
        let said = command("lds", Task::Digits, Some(own), None);
        assert_eq!(said, "cargo xtask evaluate lds digits");
        let said = command("lds", Task::Digits, Some(Halves { seeds: 3, ..own }), None);
        assert_eq!(said, "cargo xtask evaluate lds digits --seeds 3");
        let said = command("categories", Task::Typefaces, None, Some(8));
        assert_eq!(said, "cargo xtask evaluate categories typefaces --repeats 8");
        let said = command("removal", Task::Glyphs, Some(own), Some(1));
        let options = "--subsets 200 --seeds 5 --repeats 1";
        assert_eq!(said, format!("cargo xtask evaluate removal glyphs {options}"));
    }

    #[test]
    fn a_page_drawn_again_says_when_it_was_measured() {
        let stamp: Stamp =
            serde_json::from_str(r#"{"date": "2026-01-02", "processor": "an abacus"}"#).unwrap();
        assert_eq!(closing(Some(&stamp)), "\n2026-01-02, one thread of an abacus.\n");
        assert_eq!(closing(None), "");
    }
}
