//! What a guard is told.

use serde::{Deserialize, Serialize};

use super::Budget;
use crate::{Error, Result};

/// Limits and sensitivity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardConfig {
    /// Edges of the noise-level bins in which norms are compared: bin `i` takes the levels in
    /// `edges[i - 1]..edges[i]`; events without a level have a bin of their own.
    pub noise_edges: Vec<f32>,
    /// Share of the population's mean and spread of a bin that outlasts one more event in it.
    pub memory: f64,
    /// Cosine of two fingerprints from which they count as near-duplicates. 1 is the same
    /// picture; how far below it others lie is the fingerprint's matter: measure it.
    pub similarity: f32,
    /// Width of the step that counts near-duplicates: a pair counts
    /// `1 / (1 + exp((similarity − cosine) / width))`.
    pub width: f32,
    /// Budget of a single sample, in multiples of the mean sample's exposure so far.
    pub sample: Option<Budget>,
    /// Budget of a cluster of near-duplicates, in multiples of the mean cluster's.
    pub cluster: Option<Budget>,
    /// Budget of a category, in multiples of the mean category's.
    pub category: Option<Budget>,
}

impl Default for GuardConfig {
    /// One noise-level bin; near-duplicates from a cosine of .985; clusters within 1.5 to 3 times
    /// the mean, single samples and categories unlimited.
    ///
    /// A tighter budget meets samples that are there once, whose norms differ by chance: on the glyphs of the
    /// example 8 % of them end above 1.25 times the mean, 1 % above 1.5.
    fn default() -> Self {
        Self {
            noise_edges: Vec::new(),
            memory: 0.98,
            similarity: 0.985,
            width: 0.002,
            sample: None,
            cluster: Some(Budget { soft: 1.5, hard: 3.0 }),
            category: None,
        }
    }
}

impl GuardConfig {
    pub(super) fn check(&self) -> Result<()> {
        let ascending = self.noise_edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.noise_edges.iter().any(|edge| !edge.is_finite()) {
            let given = format!("{:?}", self.noise_edges);
            return Err(Error::argument("config.noise_edges", "finite, ascending", given));
        }
        if !(self.memory > 0.0 && self.memory < 1.0) {
            return Err(Error::argument("config.memory", "between 0 and 1", self.memory));
        }
        if !(self.similarity > 0.0 && self.similarity <= 1.0) {
            let expected = "above 0, at most 1";
            return Err(Error::argument("config.similarity", expected, self.similarity));
        }
        if !(self.width.is_finite() && self.width > 0.0) {
            return Err(Error::argument("config.width", "a positive number", self.width));
        }
        let budgets =
            [("sample", self.sample), ("cluster", self.cluster), ("category", self.category)];
        for (name, budget) in budgets {
            budget.map_or(Ok(()), |budget| budget.check(&format!("config.{name}")))?;
        }
        Ok(())
    }

    pub(super) fn bin(&self, level: f32) -> usize {
        if level.is_nan() {
            return self.noise_edges.len() + 1;
        }
        self.noise_edges.partition_point(|&edge| edge <= level)
    }
}
