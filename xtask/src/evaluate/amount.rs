//! How much is retrained unless something else is asked for.

use serde::{Deserialize, Serialize};

/// Seeds each model without a category or without a query's samples is retrained with.
pub const REPEATS: u64 = 3;

/// Halves of the data that models are retrained on.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Halves {
    pub subsets: u64,
    /// That each of them is retrained with.
    pub seeds: u64,
}

impl Halves {
    /// A task's own number.
    pub fn of(task: &str) -> Self {
        match task {
            "digits" => Self { subsets: 200, seeds: 5 },
            _ => Self { subsets: 100, seeds: 1 },
        }
    }
}
