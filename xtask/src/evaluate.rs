//! `cargo xtask evaluate`: measurements over several seeds, resumable, recorded in `benches/record/`.

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub enum Evaluation {}

impl Evaluation {
    /// Measures and records.
    pub fn run(self) -> Result<()> {
        match self {}
    }
}
