//! `cargo xtask evaluate`: measurements over several seeds, resumable, recorded in `benches/record/`.

mod attenuation;
mod categories;
mod chart;
mod duplicates;
mod lds;
mod prevention;
mod removal;
mod retraining;
mod scale;
mod statistics;
mod study;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub enum Evaluation {
    /// Switching a region off against never having trained on its owner: runs of the example
    /// over several seeds, about five minutes each on two cores. Finished runs are kept in
    /// runs/evaluate/attenuation and not repeated.
    Attenuation(attenuation::Arguments),
    /// Telling planted copies from what is there once, at any time of the run.
    Duplicates(study::Arguments),
    /// Drawing planted glyphs again, with the guard and without.
    Prevention(study::Arguments),
    /// Linear datamodeling score: recorded influence against models retrained on halves of the
    /// data, about two minutes for digits and half an hour for glyphs on one idle core. What was
    /// retrained is kept in runs/evaluate and not repeated; so in the next two.
    Lds(retraining::Arguments),
    /// Retraining without the samples that score highest for a query, against random ones.
    Removal(retraining::Arguments),
    /// Retraining without a category, against the category's share of the record.
    Categories(retraining::Arguments),
    /// A top-100 query over an index of a million samples (33 GB, made under target/): speed beside
    /// plain reading, memory, and what int8 loses; or, with --engines, the same answer from
    /// DataFusion and Spark.
    Scale(scale::Arguments),
}

impl Evaluation {
    /// Measures and records.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Attenuation(arguments) => attenuation::run(&arguments),
            Self::Duplicates(arguments) => duplicates::run(&arguments),
            Self::Prevention(arguments) => prevention::run(&arguments),
            Self::Lds(arguments) => lds::run(&arguments),
            Self::Removal(arguments) => removal::run(&arguments),
            Self::Categories(arguments) => categories::run(&arguments),
            Self::Scale(arguments) => scale::run(&arguments),
        }
    }
}
