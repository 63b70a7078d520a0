//! `cargo xtask evaluate scale`: a top-100 query over an index as large as the disk holds.
//!
//! Every step is a process of its own, `examples/scale.rs`. The tables are made under
//! `target/scale`, one precision after the other, and removed again. Times mean little on a machine
//! that does something else: the page says how busy it was. There is a page for each number of samples.

mod engines;
mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::chart;
use crate::shell;

/// Numbers per sketch.
const LEN: u64 = 256;

/// Samples asked for.
const TOP: usize = 100;

#[derive(Args)]
pub struct Arguments {
    /// Samples; a thousand of them take 33 MB with 64 blocks.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..))]
    samples: Option<u64>,
    /// Blocks.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    blocks: u64,
    /// Times that each measurement is taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// How sketches are kept.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["f16", "int8"])]
    precisions: Vec<Precision>,
    /// Ask DataFusion and Spark the same and compare the answers, in place of measuring. Installs them into
    /// .tools/scale, about 500 MB; Spark needs Java 17.
    #[arg(long)]
    engines: bool,
}

/// How sketches are kept, by the names the index has for it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    F16,
    Int8,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// What the example says of a query.
#[derive(Deserialize)]
struct Asked {
    seconds: f64,
    bytes: u64,
    peak_bytes: u64,
    top: Vec<(u64, f64)>,
    loss: Option<Loss>,
}

/// Against the scores of the sketches before they are rounded.
#[derive(Deserialize)]
struct Loss {
    /// Root of the squared error of all scores over that of the scores.
    error: f64,
    /// Largest relative error of a top score.
    top_error: f64,
    /// Top samples that are the same.
    overlap: usize,
}

#[derive(Deserialize)]
struct Read {
    seconds: f64,
    bytes: u64,
}

/// One precision; speeds in GB/s, one for each repeat.
struct Measured {
    precision: Precision,
    bytes: u64,
    seconds: Vec<f64>,
    peak_bytes: u64,
    loss: Loss,
    /// From the disk: plain reading, by one thread and by four, and the query.
    cold: [Vec<f64>; 3],
    /// One block from memory: plain reading, by one thread, and the query.
    warm: [Vec<f64>; 2],
    /// The machine's load, before and after.
    load: [String; 2],
}

/// Measures, or compares with an engine, and writes `benches/record/scale*.md`.
pub fn run(arguments: &Arguments) -> Result<()> {
    shell::run(shell::cargo().args(["build", "--release", "--example", "scale"]))?;
    let record = shell::root().join("benches/record");
    fs::create_dir_all(&record)?;
    if arguments.engines {
        let samples = arguments.samples.unwrap_or(20_000);
        let page = engines::compare(samples, arguments.blocks)?;
        println!("{page}");
        fs::write(record.join("scale-engines.md"), page)?;
        println!("benches/record/scale-engines.md written");
        return Ok(());
    }
    let samples = arguments.samples.unwrap_or(1_000_000);
    let measured: Vec<Measured> = (arguments.precisions.iter())
        .map(|&precision| measure(precision, samples, arguments.blocks, arguments.repeats))
        .collect::<Result<_>>()?;
    let page = page::write(&measured, samples, arguments.blocks);
    println!("{page}");
    let name = format!("scale-{samples}");
    fs::write(record.join(format!("{name}.md")), page)?;
    chart::intervals(&record.join(format!("{name}.svg")), "GB/s", &page::bars(&measured))?;
    println!("benches/record/{name}.md and .svg written");
    Ok(())
}

fn measure(precision: Precision, samples: u64, blocks: u64, repeats: u32) -> Result<Measured> {
    let folder = make(precision, samples, blocks)?;
    let before = load();
    let (mut cold, mut warm): ([Vec<f64>; 3], [Vec<f64>; 2]) = Default::default();
    let (mut seconds, mut peak_bytes, mut bytes, mut loss) = (Vec::new(), 0, 0, None);
    let speed = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e9;
    for _ in 0..repeats {
        for (threads, speeds) in [("1", 0), ("4", 1)] {
            forget(&folder)?;
            let read: Read = example(&folder, &["read", "--threads", threads])?;
            cold[speeds].push(speed(read.bytes, read.seconds));
        }
        forget(&folder)?;
        let asked: Asked = example(&folder, &["ask", "--compare"])?;
        cold[2].push(speed(asked.bytes, asked.seconds));
        seconds.push(asked.seconds);
        peak_bytes = peak_bytes.max(asked.peak_bytes);
        (bytes, loss) = (asked.bytes, asked.loss);
    }
    let one = ["--block", "0"];
    example::<Read>(&folder, &["read", one[0], one[1]])?;
    for _ in 0..repeats {
        let read: Read = example(&folder, &["read", one[0], one[1]])?;
        warm[0].push(speed(read.bytes, read.seconds));
        let asked: Asked = example(&folder, &["ask", one[0], one[1]])?;
        warm[1].push(speed(asked.bytes, asked.seconds));
    }
    let load = [before, load()];
    fs::remove_dir_all(&folder)?;
    let loss = loss.context("the example compares when it is asked to")?;
    Ok(Measured { precision, bytes, seconds, peak_bytes, loss, cold, warm, load })
}

/// Makes an index; its folder.
fn make(precision: Precision, samples: u64, blocks: u64) -> Result<PathBuf> {
    let folder = shell::root().join("target/scale").join(precision.name());
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let (needed, free) = (samples * blocks * (LEN * precision.bytes() + 24), free(&folder)?);
    ensure!(
        needed < free,
        "{samples} samples of {blocks} blocks take {needed} bytes and {} has {free}: give \
         --samples or --blocks",
        folder.display(),
    );
    println!("making {} GB of {}", needed / 1_000_000_000, precision.name());
    let mut command = program(&folder, &["make"]);
    command.args(["--samples", &samples.to_string(), "--blocks", &blocks.to_string()]);
    command.args(["--sketch", &LEN.to_string()]);
    if precision == Precision::Int8 {
        command.arg("--int8");
    }
    shell::run(&mut command)?;
    Ok(folder)
}

/// The example, with a task and its options.
fn program(folder: &Path, task: &[&str]) -> Command {
    let mut command = Command::new(shell::root().join("target/release/examples/scale"));
    command.arg(task[0]).arg(folder).args(&task[1..]);
    command
}

fn example<T: DeserializeOwned>(folder: &Path, task: &[&str]) -> Result<T> {
    answer(&mut program(folder, task))
}

/// Runs a program to its end and reads the last line it prints.
fn answer<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let shown = format!("{command:?}");
    let out = command.stderr(std::process::Stdio::inherit()).output();
    let out = out.with_context(|| format!("cannot start {shown}"))?;
    ensure!(out.status.success(), "{shown} ended with {}", out.status);
    let text = String::from_utf8(out.stdout)?;
    let line = text.lines().last().with_context(|| format!("{shown} said nothing"))?;
    serde_json::from_str(line).with_context(|| format!("{shown} said {line}"))
}

/// Takes the tables out of the system's cache, so that they are read from the disk.
fn forget(folder: &Path) -> Result<()> {
    for block in fs::read_dir(folder.join("index"))? {
        let table = block?.path().join("part-0.parquet");
        if table.exists() {
            let file = format!("if={}", table.display());
            let out = Command::new("dd").args([&file, "iflag=nocache", "count=0"]).output()?;
            ensure!(out.status.success(), "GNU dd is needed: {:?}", out.stderr);
        }
    }
    Ok(())
}

/// Bytes that the file system has left.
fn free(folder: &Path) -> Result<u64> {
    let out = Command::new("df").args(["--output=avail", "-B1"]).arg(folder).output()?;
    let text = String::from_utf8(out.stdout)?;
    Ok(text.lines().last().context("df said nothing")?.trim().parse()?)
}

/// Mean number of processes that wanted to run in the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}
