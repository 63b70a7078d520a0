//! When and on what something was measured. Kept with the outcome, so that a page drawn again says the same.

use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::machine;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stamp {
    date: String,
    processor: String,
}

impl Stamp {
    pub fn now() -> Self {
        let date = Command::new("date").args(["-u", "+%F"]).output();
        let date = date.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
        Self { date: date.unwrap_or_default(), processor: machine::processor() }
    }

    /// As a page's last line; `share` is the part of the processor, or nothing.
    pub fn line(&self, share: &str) -> String {
        format!("\n{}, {share}{}.\n", self.date, self.processor)
    }
}
