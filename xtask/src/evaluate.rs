//! `cargo xtask evaluate`: measurements over several seeds, resumable, recorded in `benches/record/`.

mod attenuation;
mod duplicates;
mod prevention;
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
}

impl Evaluation {
    /// Measures and records.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Attenuation(arguments) => attenuation::run(&arguments),
            Self::Duplicates(arguments) => duplicates::run(&arguments),
            Self::Prevention(arguments) => prevention::run(&arguments),
        }
    }
}
