//! An index of many samples: makes one of invented sketches, asks it, and reads it plainly.
//!
//! `cargo xtask evaluate scale` runs this, each step in a process of its own, so that the memory
//! a step took at its highest is the system's figure for the process.
//!
//! ```text
//! cargo run --release --example scale -- make target/scale --samples 100000
//! cargo run --release --example scale -- ask target/scale
//! cargo run --release --example scale -- read target/scale
//! ```

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use gradroute::projection::{SketchKind, philox4x32};
use gradroute::provenance::index::{Index, IndexWriter, Precision};
use gradroute::provenance::query::{Citation, Coverage};
use gradroute::provenance::{Query, Similarity};
use indicatif::ProgressBar;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes an index, a query, and the query's scores by the sketches before they are rounded
    Make {
        folder: PathBuf,
        #[arg(long, default_value_t = 100_000)]
        samples: u64,
        #[arg(long, default_value_t = 64)]
        blocks: usize,
        #[arg(long, default_value_t = 256)]
        sketch: usize,
        #[arg(long)]
        int8: bool,
        #[arg(long, default_value_t = 1)]
        seed: u32,
    },
    /// Asks for the top samples
    Ask {
        folder: PathBuf,
        #[arg(long, default_value_t = 100)]
        count: usize,
        /// One block alone
        #[arg(long)]
        block: Option<usize>,
        /// Compare with the scores before rounding
        #[arg(long)]
        compare: bool,
    },
    /// Reads the tables from front to back and does nothing with them
    Read {
        folder: PathBuf,
        #[arg(long)]
        block: Option<usize>,
        /// Tables read at a time
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Make { folder, samples, blocks, sketch, int8, seed } => {
            let precision = if int8 { Precision::Int8 } else { Precision::F16 };
            make(&folder, Invented { seed, samples, len: sketch }, blocks, precision)
        }
        Task::Ask { folder, count, block, compare } => ask(&folder, count, block, compare),
        Task::Read { folder, block, threads } => read(&folder, block, threads),
    }
}

/// Sketches as a run might leave them: each sample has a size of its own, over two orders of
/// magnitude, and belongs to one of many groups that share a third of their direction.
#[derive(Clone, Copy)]
struct Invented {
    seed: u32,
    samples: u64,
    len: usize,
}

const GROUPS: u64 = 1000;
const SHARED: f32 = 0.33;
const SAMPLE: u32 = 0;
const GROUP: u32 = 1;
const QUERY: u32 = 2;

impl Invented {
    /// Numbers that are nearly normal, with a variance of 1/3: sums of four uniform ones.
    fn noise(&self, what: u32, n: u64, block: usize, out: &mut [f32]) {
        for (at, four) in out.chunks_mut(4).enumerate() {
            let counter = [at as u32, block as u32, n as u32, what];
            for (value, word) in four.iter_mut().zip(philox4x32(counter, [self.seed, 77])) {
                let sum: u32 = word.to_le_bytes().iter().map(|&byte| u32::from(byte)).sum();
                *value = (sum as f32 - 510.0) / 256.0;
            }
        }
    }

    /// `A_n` of one block, where `centres` holds the groups' directions there.
    fn sketch(&self, n: u64, block: usize, centres: &[f32], out: &mut [f32]) {
        self.noise(SAMPLE, n, block, out);
        let [size, ..] = philox4x32([0, 0, n as u32, 9], [self.seed, 77]);
        let size = 10_f32.powf(size as f32 / 2f32.powi(31) - 5.0);
        let centre = &centres[(n % GROUPS) as usize * self.len..][..self.len];
        let mixed = out.iter_mut().zip(centre);
        mixed.for_each(|(value, centre)| *value = size * (*value + SHARED * centre));
    }

    fn centres(&self, block: usize) -> Vec<f32> {
        let mut all = vec![0.0; GROUPS as usize * self.len];
        for (group, centre) in all.chunks_mut(self.len).enumerate() {
            self.noise(GROUP, group as u64, block, centre);
        }
        all
    }

    /// An output that the samples of one group are behind, as far as anyone is.
    fn query(&self, blocks: usize) -> Vec<f32> {
        let mut query = vec![0.0; blocks * self.len];
        for (block, part) in query.chunks_mut(self.len).enumerate() {
            self.noise(QUERY, 0, block, part);
            let centre = &self.centres(block)[7 * self.len..8 * self.len];
            part.iter_mut().zip(centre).for_each(|(value, centre)| *value += SHARED * centre);
        }
        query
    }
}

fn make(folder: &Path, invented: Invented, blocks: usize, precision: Precision) -> Result<()> {
    let Invented { samples, len, seed } = invented;
    fs::create_dir_all(folder)?;
    let query = invented.query(blocks);
    Query::single(blocks, len, &query)?.write(folder.join("query.json"))?;
    let names = (0..blocks).map(|block| format!("block {block}")).collect();
    let ids = (0..samples).collect();
    let citation = nothing(samples, SketchKind::Count { buckets: len }, seed);
    let mut writer =
        IndexWriter::create(folder.join("index"), ids, names, len, precision, citation)?;
    let mut exact = vec![0.0; samples as usize];
    let bar = ProgressBar::new(blocks as u64);
    let mut rows = vec![0.0; 4096 * len];
    for (block, query) in query.chunks(len).enumerate() {
        let centres = invented.centres(block);
        for start in (0..samples).step_by(4096) {
            let count = (samples - start).min(4096) as usize;
            let rows = &mut rows[..count * len];
            fill(invented, block, start, (&centres, query), rows, &mut exact[start as usize..]);
            writer.push(rows)?;
        }
        bar.inc(1);
    }
    writer.finish()?;
    bar.finish_and_clear();
    let mut file = BufWriter::new(File::create(folder.join("exact.f64"))?);
    for score in exact {
        file.write_all(&f64::to_le_bytes(score))?;
    }
    Ok(file.flush()?)
}

/// Makes rows by two threads, and adds their part of the exact scores up.
fn fill(
    invented: Invented,
    block: usize,
    start: u64,
    (centres, query): (&[f32], &[f32]),
    rows: &mut [f32],
    exact: &mut [f64],
) {
    let half = rows.len() / invented.len / 2 + 1;
    let parts = rows.chunks_mut(half * invented.len).zip(exact.chunks_mut(half));
    std::thread::scope(|scope| {
        for (part, (rows, exact)) in parts.enumerate() {
            scope.spawn(move || {
                let first = start + (part * half) as u64;
                for (n, (row, exact)) in rows.chunks_mut(invented.len).zip(exact).enumerate() {
                    invented.sketch(first + n as u64, block, centres, row);
                    let terms = row.iter().zip(query).map(|(&a, &q)| f64::from(a) * f64::from(q));
                    *exact += terms.sum::<f64>();
                }
            });
        }
    });
}

/// The citation of a run that never was.
fn nothing(samples: u64, sketch: SketchKind, seed: u32) -> Citation {
    let samples = samples as usize;
    Citation {
        ledger_head: "invented".into(),
        policy_hash: String::new(),
        sketch,
        seed,
        steps: None,
        segments: Vec::new(),
        samples: Vec::new(),
        coverage: Coverage {
            samples_seen: samples,
            samples,
            parameters_recorded: 0,
            parameters: None,
        },
    }
}

fn ask(folder: &Path, count: usize, block: Option<usize>, compare: bool) -> Result<()> {
    let index = Index::open(folder.join("index"))?;
    let query = Query::read(folder.join("query.json"))?.mean();
    let begun = Instant::now();
    let scores = index.scores(&query, Similarity::Dot, block, |_, _| ())?;
    let top = scores.top(count);
    let seconds = begun.elapsed().as_secs_f64();
    let peak = peak_bytes()?;
    let loss = if compare { compared(folder, scores.values(), &top)? } else { json!(null) };
    let bytes = tables(&index, block).into_iter().map(|it| Ok(fs::metadata(it)?.len()));
    let bytes: u64 = bytes.sum::<Result<u64>>()?;
    let answer = json!({
        "seconds": seconds,
        "bytes": bytes,
        "peak_bytes": peak,
        "top": top,
        "loss": loss,
    });
    println!("{answer}");
    Ok(())
}

/// What rounding took off: the scores' error over their spread, and how many of the top samples
/// are the same.
fn compared(folder: &Path, scores: &[f64], top: &[(u64, f64)]) -> Result<serde_json::Value> {
    let bytes = fs::read(folder.join("exact.f64"))?;
    let exact: Vec<f64> = bytes.as_chunks().0.iter().map(|it| f64::from_le_bytes(*it)).collect();
    let mut ranked: Vec<usize> = (0..exact.len()).collect();
    ranked.sort_by(|&a, &b| exact[b].total_cmp(&exact[a]).then(a.cmp(&b)));
    ranked.truncate(top.len());
    let same = top.iter().filter(|(id, _)| ranked.contains(&(*id as usize))).count();
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>();
    let error = squares(&mut scores.iter().zip(&exact).map(|(a, b)| a - b));
    let size = squares(&mut exact.iter().copied());
    let worst = top.iter().map(|(id, score)| (score / exact[*id as usize] - 1.0).abs());
    Ok(json!({
        "error": (error / size).sqrt(),
        "top_error": worst.fold(0.0, f64::max),
        "overlap": same,
    }))
}

fn read(folder: &Path, block: Option<usize>, threads: usize) -> Result<()> {
    let index = Index::open(folder.join("index"))?;
    let tables = tables(&index, block);
    let begun = Instant::now();
    let parts = tables.chunks(tables.len().div_ceil(threads));
    let read = |part: &[PathBuf]| -> Result<u64> {
        let (mut buffer, mut bytes) = (vec![0; 8 << 20], 0);
        for path in part {
            let mut file = File::open(path)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => bytes += count as u64,
                }
            }
        }
        Ok(bytes)
    };
    let bytes: Result<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        workers.into_iter().map(|it| it.join().expect("a reader only returns")).sum()
    });
    println!("{}", json!({"seconds": begun.elapsed().as_secs_f64(), "bytes": bytes?}));
    Ok(())
}

fn tables(index: &Index, block: Option<usize>) -> Vec<PathBuf> {
    let blocks = block.map_or(0..index.blocks().len(), |block| block..block + 1);
    blocks.map(|block| index.table(block)).collect()
}

/// The most memory this process has held, as the system counts it.
fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("the peak needs Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|it| it.split_whitespace().next()).context("no VmHWM in status")?;
    Ok(kib.parse::<u64>()? << 10)
}
