//! When and on what something was measured. Kept with the outcome, so that a page drawn again says the same.

use serde::{Deserialize, Serialize};

use crate::machine;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stamp {
    date: String,
    processor: String,
}

impl Stamp {
    pub fn now() -> Self {
        Self { date: machine::today(), processor: machine::processor() }
    }

    /// As a page's last line; `share` is the part of the processor, or nothing.
    pub fn line(&self, share: &str) -> String {
        format!("\n{}, {share}{}.\n", self.date, self.processor)
    }
}
