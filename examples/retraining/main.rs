//! Retrains small models without some of their data, and asks the record of one training run what
//! that would do: the measurements behind `cargo xtask evaluate lds | removal | categories`.
//!
//! ```text
//! cargo run --release --example retraining -- digits lds
//! cargo run --release --example retraining -- --help
//! ```

#[path = "../../xtask/src/evaluate/amount.rs"]
mod amount;
mod categories;
#[allow(dead_code)] // the other example uses more of it
#[path = "../glyph_diffusion/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../glyph_diffusion/diffusion.rs"]
mod diffusion;
mod digits;
mod glyphs;
mod lds;
#[path = "../../xtask/src/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../glyph_diffusion/model.rs"]
mod model;
mod removal;
mod scores;
#[allow(dead_code)] // the last line is the table's
#[path = "../../xtask/src/evaluate/stamp.rs"]
mod stamp;
#[allow(dead_code)] // intervals are the table's
#[path = "../../xtask/src/evaluate/statistics.rs"]
mod statistics;
mod store;
mod subset;
mod task;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::amount::REPEATS;
use crate::lds::Halves;
use crate::removal::Extent;
use crate::task::Task;

/// Retrains small models without some of their data, and asks the record of one training run what
/// that would do. Interrupted measurements continue where they were.
#[derive(Debug, Parser)]
struct Cli {
    task: Which,
    protocol: Protocol,
    /// Where results lie; runs/evaluate/TASK when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Half-subsets retrained on: 200 for digits, 100 for the others.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    subsets: Option<u64>,
    /// Seeds each half is retrained with: 5 for digits, 1 for the others.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Seeds each model without a category or without a query's samples is retrained with.
    #[arg(long, default_value_t = REPEATS, value_parser = clap::value_parser!(u64).range(1..))]
    repeats: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// A perceptron on 8×8 digits.
    Digits,
    /// A diffusion U-Net on glyphs of 14 typefaces.
    Glyphs,
    /// The same on glyphs of 27 typefaces, trained twice as long.
    Typefaces,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    /// Do sums of scores order models retrained on halves of the data as their losses do?
    Lds,
    /// Does a query's loss rise without its highest-scoring samples?
    Removal,
    /// Do a category's summed scores say what training without it does?
    Categories,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // The models are so small that handing work to other threads costs more than the work: all
    // of it is done by the one thread of a pool.
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(|| run(&cli))
}

fn run(cli: &Cli) -> Result<()> {
    let (task, name): (Box<dyn Task>, _) = match cli.task {
        Which::Digits => (Box::new(digits::Digits::load()?), "digits"),
        Which::Glyphs => (Box::new(glyphs::Glyphs::load(2)?), "glyphs"),
        Which::Typefaces => (Box::new(glyphs::Glyphs::load(4)?), "typefaces"),
    };
    let out = cli.out.clone().unwrap_or_else(|| PathBuf::from("runs/evaluate").join(name));
    store::prepare(&out, &task.setup())?;
    let mut amount = amount::Halves::of(name);
    amount.subsets = cli.subsets.unwrap_or(amount.subsets);
    amount.seeds = cli.seeds.unwrap_or(amount.seeds);
    let halves = Halves::retrained(&*task, &out, amount)?;
    match cli.protocol {
        Protocol::Lds => lds::run(&*task, &out, &halves),
        Protocol::Removal => removal::run(&*task, &out, &halves, &extent(cli)),
        Protocol::Categories => categories::run(&*task, &out, &halves, cli.repeats),
    }
}

/// What fits into minutes.
fn extent(cli: &Cli) -> Extent {
    match cli.task {
        Which::Digits => Extent {
            queries: 60,
            seeds: cli.repeats,
            scores: &[
                ("count sketch 256", "whitened"),
                ("two-sided k=16", "whitened"),
                ("count sketch 256", "dot"),
            ],
        },
        Which::Glyphs | Which::Typefaces => {
            let scores =
                &[("count sketch 256", "whitened"), ("count sketch 256", "whitened, by phases")];
            Extent { queries: 16, seeds: cli.repeats, scores }
        }
    }
}
