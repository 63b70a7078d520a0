//! How a gate closes.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Limits of an exposure, in multiples of the mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Up to here the gate is open.
    pub soft: f64,
    /// From here it is shut.
    pub hard: f64,
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A sample's own.
    Sample,
    /// That of all its near-duplicates.
    Cluster,
    /// That of its category.
    Category,
}

impl Budget {
    /// The gate at an exposure of `ratio` times the mean: 1, then `1 − 3u² + 2u³` with `u` from 0
    /// at the soft to 1 at the hard limit, then 0; so it has no edges either.
    ///
    /// ```
    /// use gradroute::guard::Budget;
    /// let budget = Budget { soft: 1.0, hard: 2.0 };
    /// assert_eq!([0.3, 1.0, 1.5, 2.0].map(|ratio| budget.gate(ratio)), [1.0, 1.0, 0.5, 0.0]);
    /// ```
    pub fn gate(&self, ratio: f64) -> f32 {
        let u = ((ratio - self.soft) / (self.hard - self.soft)).clamp(0.0, 1.0);
        (1.0 - u * u * (3.0 - 2.0 * u)) as f32
    }

    pub(super) fn check(&self, name: &str) -> Result<()> {
        if self.soft > 0.0 && self.soft < self.hard && self.hard.is_finite() {
            return Ok(());
        }
        let given = format!("soft {}, hard {}", self.soft, self.hard);
        Err(Error::argument(name, "0 < soft < hard, both finite", given))
    }
}
