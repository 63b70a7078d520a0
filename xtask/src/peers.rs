//! `cargo xtask peers`: the same work by us and by whom we are measured against, side by side.
//!
//! The peers come from PyPI into a throw-away environment, `.tools/peers`. A program for each way
//! to run a workload is started, all are asked for passes in turn, and table and picture go to
//! `benches/record/`. On a machine that does something else the times mean nothing.

mod cores;
mod correctness;
mod environment;
mod growth;
mod participants;
mod picture;
mod statistics;
mod table;
mod timing;
mod worker;
mod workloads;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::machine::today;
use crate::shell;
use participants::Participant;
use workloads::{Group, Workload};

/// What to run, and how often.
#[derive(Args)]
pub struct Arguments {
    /// Tiny workloads, one thread, few passes: to see that everything works. Nothing is kept.
    #[arg(long)]
    quick: bool,
    /// These peers alone, by a part of their names; PyTorch and ours always run.
    #[arg(long, value_name = "PEER")]
    only: Vec<String>,
    /// These workloads alone, by a part of their names. Nothing is kept.
    #[arg(long, value_name = "NAME")]
    workload: Vec<String>,
    /// Compare norms with the truth, per kind of layer, and time nothing.
    #[arg(long)]
    correctness: bool,
    /// Our own passes alone, without peers: cost as the problem grows and as less of it trains, on one
    /// thread.
    #[arg(long, conflicts_with_all = ["quick", "only", "workload", "correctness", "threads", "mkl"])]
    growth: bool,
    /// Numbers of threads, each a table.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2], value_parser = threads)]
    threads: Vec<usize>,
    /// Format of parameters and activations.
    #[arg(long, value_enum, default_value_t = Format::F32)]
    dtype: Format,
    /// Least passes of each way to run a workload; one that takes above 5 s gets 3, above 20 s 1.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Go on with each workload for so many seconds: short passes are many, and the noise small.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Our large products by MKL, which is what PyTorch's are by; tables of their own.
    #[arg(long)]
    mkl: bool,
    /// Keep this run beside an earlier one, to see whether the ratios are the same.
    #[arg(long)]
    again: bool,
    /// Memory a peer may take, in GiB.
    #[arg(long, default_value_t = 12)]
    memory: u64,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number of at least 1".into()),
        Ok(threads) => Ok(threads),
    }
}

/// Formats both sides compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    F32,
    Bf16,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// The programs, what they are run on, and where their files go.
pub struct Setting {
    pub ours: PathBuf,
    pub python: PathBuf,
    /// Exchanged files; not kept.
    pub folder: PathBuf,
    pub participants: Vec<Participant>,
    pub versions: environment::Versions,
    pub format: Format,
    pub memory_bytes: u64,
    /// The BLAS our side is handed, if it is.
    pub blas: Option<PathBuf>,
}

/// Installs, runs, and writes `benches/record/peers*`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let all = workloads::read()?;
    let folder = shell::root().join("runs/peers");
    std::fs::create_dir_all(&folder)?;
    let python = if arguments.growth { PathBuf::new() } else { environment::install()? };
    let setting = Setting {
        blas: arguments.mkl.then(|| environment::mkl(&python)).transpose()?,
        python,
        ours: worker::build_ours()?,
        folder,
        participants: participants::chosen(&arguments.only)?,
        versions: environment::Versions::pinned(),
        format: arguments.dtype,
        memory_bytes: arguments.memory << 30,
    };
    if arguments.growth {
        return grow(&setting, arguments.rounds);
    }
    if arguments.correctness {
        return check(&setting, &pick(&all, &[Group::Kind], &arguments.workload)?, arguments);
    }
    let groups: &[Group] = match (arguments.quick, arguments.dtype) {
        (true, _) => &[Group::Quick],
        (false, Format::F32) => &[Group::Net, Group::Layer, Group::Model],
        // The example's model computes in f32.
        (false, Format::Bf16) => &[Group::Net, Group::Layer],
    };
    let chosen = pick(&all, groups, &arguments.workload)?;
    let threads = if arguments.quick { &[1][..] } else { &arguments.threads };
    let (least, seconds) =
        if arguments.quick { (3, 0) } else { (arguments.rounds, arguments.seconds) };
    let rounds = timing::Rounds { least, at_least: Duration::from_secs(seconds) };
    let whole = !arguments.quick && arguments.only.is_empty() && arguments.workload.is_empty();
    let record = if whole { shell::root().join("benches/record") } else { setting.folder.clone() };
    let [mkl, again] = [(arguments.mkl, "-mkl"), (arguments.again, "-again")]
        .map(|(asked, name)| if asked { name } else { "" });
    for &threads in threads {
        let timed = timing::measure(&setting, &chosen, threads, rounds)?;
        let text = table::timing(&setting, &timed, threads, &today());
        println!("\n{text}");
        let (format, instructions) = (arguments.dtype.name(), instructions());
        let name = format!("peers-{format}-{threads}{instructions}{mkl}{again}");
        keep(&record, &format!("{name}.md"), &text)?;
        picture::draw(&timed, &record.join(format!("{name}.svg")))?;
    }
    Ok(())
}

/// What tells records of machines with AVX-512 apart: all sides take other kernels there.
fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return "-avx512";
    }
    ""
}

fn grow(setting: &Setting, rounds: u32) -> Result<()> {
    let grown = growth::measure(setting, 1, rounds)?;
    let text = growth::page(setting, &grown, 1, &today());
    println!("\n{text}");
    let record = shell::root().join("benches/record");
    for growth in &grown {
        growth.draw(&record)?;
    }
    keep(&record, "growth.md", &text)
}

fn check(setting: &Setting, kinds: &[&Workload], arguments: &Arguments) -> Result<()> {
    ensure!(arguments.dtype == Format::F32, "the truth is compared with in f32 only");
    let checked = correctness::measure(setting, kinds)?;
    let text = table::correctness(setting, &checked, &today());
    println!("\n{text}");
    let whole = arguments.only.is_empty() && arguments.workload.is_empty();
    let record = if whole { shell::root().join("benches/record") } else { setting.folder.clone() };
    keep(&record, "peers-correctness.md", &text)
}

fn keep(folder: &std::path::Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text)?;
    println!("{} written", path.display());
    Ok(())
}

/// The workloads of these groups whose names hold one of the words, if there are any.
fn pick<'a>(all: &'a [Workload], groups: &[Group], words: &[String]) -> Result<Vec<&'a Workload>> {
    let holds = |w: &&Workload| words.is_empty() || words.iter().any(|word| w.name.contains(word));
    let chosen: Vec<_> = all.iter().filter(|w| groups.contains(&w.group)).filter(holds).collect();
    ensure!(!chosen.is_empty(), "no workload here is named like {words:?}");
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_785), (2026, 11, 28));
    }

    #[test]
    fn words_pick_workloads_of_their_groups() {
        let all = workloads::read().unwrap();
        let names = |groups: &[Group], word: &str| -> Vec<&str> {
            let found = pick(&all, groups, &[word.to_owned()]).unwrap();
            found.iter().map(|w| &w.name[..]).collect()
        };
        assert_eq!(names(&[Group::Model], "U-Net"), ["glyph U-Net"]);
        assert!(names(&[Group::Net], "MLP").len() == 2);
        assert!(pick(&all, &[Group::Net], &["no such".to_owned()]).is_err());
    }
}
