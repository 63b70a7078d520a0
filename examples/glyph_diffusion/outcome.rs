//! `result.json`: what a run came to.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::evaluate::Losses;
use crate::extraction::Drawn;
use crate::guarded::Scores;
use crate::options::RunOptions;
use crate::relearn::Curve;

/// A finished run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub options: RunOptions,
    /// None for an unrouted run.
    pub policy_hash: Option<String>,
    pub steps: u64,
    /// Seconds of training, in all processes that took part.
    pub train_seconds: f64,
    pub images_per_second: f64,
    /// Numbers in all parameters.
    pub parameters: usize,
    /// Share of them whose per-sample gradients were recorded.
    pub coverage: f64,
    /// Where the ledger is, as given on the command line.
    pub ledger: String,
    /// Its last commit's hash.
    pub ledger_head: String,
    pub losses: Losses,
    /// What the losses would be with another group in the tracked one's place, if that was asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, Losses>,
    /// How soon the tracked group is learned again, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relearning: Vec<Curve>,
}

/// `study.json`: how planted glyphs fared.
#[derive(Debug, Serialize)]
pub struct Study<'a> {
    /// Every sample's at several times of the run.
    pub scores: &'a [Scores],
    /// What drawing glyphs again gave.
    pub drawn: Vec<Drawn>,
}

/// Writes a file whole or not at all: who finds it finds all of it.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let open = path.with_extension("json.tmp");
    let write = || -> Result<()> {
        std::fs::write(&open, serde_json::to_vec_pretty(value)?)?;
        Ok(std::fs::rename(&open, path)?)
    };
    write().with_context(|| path.display().to_string())
}
