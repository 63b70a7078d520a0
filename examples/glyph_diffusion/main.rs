//! Trains a small diffusion model on real typefaces under a routing policy, records every
//! sample's influence, and writes a report that answers whose data shaped what.
//!
//! ```text
//! cargo run --release --example glyph_diffusion
//! cargo run --release --example glyph_diffusion -- --help
//! ```

mod data;
mod diffusion;
mod evaluate;
mod extraction;
mod governed;
mod guarded;
mod model;
mod options;
mod outcome;
mod probe;
mod relearn;
mod report;
mod sampling;
mod train;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::data::{Dataset, Plant};
use crate::evaluate::Losses;
use crate::governed::Governed;
use crate::options::{Cli, RunOptions};
use crate::outcome::{Outcome, Study, write_json};
use crate::report::Report;
use crate::train::Trainer;

// The files of a run.
const OPTIONS: &str = "run.json";
const LEDGER: &str = "ledger";
const RESULT: &str = "result.json";
const REPORT: &str = "report.html";
const STUDY: &str = "study.json";

fn main() -> Result<()> {
    let cli = Cli::parse();
    let options = if cli.resume { read_options(&cli.out)? } else { begin(&cli)? };
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    ctrlc::set_handler(move || {
        // A second Ctrl-C does not wait for the step.
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    let data = Dataset::load(options.plant)?.tracking(&options.own)?;
    let model = Governed::new(options.policy, &data, options.seed)?;
    let ledger = cli.out.join(LEDGER);
    // A run killed before its ledger's first commit begins anew.
    let mut trainer = if ledger.join("manifest.json").exists() {
        Trainer::resume(&options, &data, &model, &ledger)?
    } else {
        Trainer::begin(&options, &data, &model, &ledger)?
    };
    if !trainer.run(&stop)? {
        let out = cli.out.display();
        if options.plant == Plant::Study {
            // The guard's scores so far, and the losses beside them, are in no ledger.
            println!(
                "\nLedger and checkpoint are committed, but a study cannot go on: --overwrite"
            );
            return Ok(());
        }
        println!("\nLedger and checkpoint are committed. To continue:");
        println!("  cargo run --release --example glyph_diffusion -- --resume --out {out}");
        return Ok(());
    }
    trainer.finish()?;
    conclude(&cli.out, &options, &data, &model, &trainer)
}

/// A new run: its folder and options.
fn begin(cli: &Cli) -> Result<RunOptions> {
    cli.run.check()?;
    let path = cli.out.join(OPTIONS);
    if cli.overwrite && path.exists() {
        std::fs::remove_dir_all(&cli.out).with_context(|| cli.out.display().to_string())?;
    }
    ensure!(
        !path.exists(),
        "{}: there is a run here; continue it with --resume, replace it with --overwrite, or \
         choose another --out",
        cli.out.display()
    );
    std::fs::create_dir_all(&cli.out).with_context(|| cli.out.display().to_string())?;
    write_json(&path, &cli.run)?;
    Ok(cli.run.clone())
}

fn read_options(out: &Path) -> Result<RunOptions> {
    let path = out.join(OPTIONS);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: no run to resume", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Losses with every other group in the tracked one's place, of a run that treats all groups alike.
fn others(
    options: &RunOptions,
    data: &Dataset,
    model: &Governed,
) -> Result<BTreeMap<String, Losses>> {
    let alike = !model.has_region() && !options.without_owned && options.others;
    let others = data.groups().into_iter().filter(|&group| alike && group != options.own);
    others
        .map(|group| {
            let losses =
                evaluate::losses(model, &data.clone().tracking(group)?, options.questions())?;
            Ok((group.to_owned(), losses))
        })
        .collect()
}

/// Evaluates the averaged weights and writes what the run came to.
fn conclude(
    out: &Path,
    options: &RunOptions,
    data: &Dataset,
    model: &Governed,
    trainer: &Trainer,
) -> Result<()> {
    println!("measuring …");
    let progress = trainer.progress();
    let images = (options.total_steps() * options.batch) as f64;
    let outcome = Outcome {
        options: options.clone(),
        policy_hash: model.has_region().then(|| model.policy().hash().to_string()),
        steps: options.total_steps(),
        train_seconds: progress.seconds,
        images_per_second: images / progress.seconds.max(1e-9),
        parameters: model.parameters().numbers(),
        coverage: progress.coverage,
        ledger: out.join(LEDGER).display().to_string(),
        ledger_head: trainer.ledger_head().to_owned(),
        losses: evaluate::losses(model, data, options.questions())?,
        others: others(options, data, model)?,
        relearning: relearn::curves(options, data, model)?,
    };
    if let Some(scores) = trainer.watch().study() {
        println!("drawing planted glyphs …");
        let drawn = extraction::draw(model, data, options.drawing_steps())?;
        write_json(&out.join(STUDY), &Study { scores, drawn })?;
    }
    if !options.no_report {
        println!("drawing …");
        let report = Report {
            data,
            model,
            influence: trainer.influence(),
            outcome: &outcome,
            progress,
            drawing_steps: options.drawing_steps(),
        };
        report.write(&out.join(REPORT))?;
        println!("{}", out.join(REPORT).display());
    }
    // Last, so that who finds a result knows the run is finished.
    write_json(&out.join(RESULT), &outcome)?;
    println!("{}", out.join(RESULT).display());
    Ok(())
}
