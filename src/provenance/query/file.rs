//! Queries as files, so that a trainer can hand them to the command line.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::provenance::{Draw, Query};
use crate::{Error, Result};

/// The document: a sketch `[B, K]`, row-major, for each draw.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    blocks: usize,
    draws: Vec<DrawnSketch>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrawnSketch {
    /// Null where the task has none.
    level: Option<f32>,
    noise: u64,
    sketch: Vec<f32>,
}

impl Query {
    /// Writes the query as JSON: `{"blocks": B, "draws": [{"level": …, "noise": …, "sketch":
    /// [B · K numbers]}, …]}`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let draws = self.draws().iter().zip(self.sketches()).map(|(draw, sketch)| DrawnSketch {
            level: (!draw.level.is_nan()).then_some(draw.level),
            noise: draw.noise,
            sketch: sketch.to_vec(),
        });
        let document = Document { blocks: self.blocks(), draws: draws.collect() };
        let text = serde_json::to_vec(&document).expect("finite numbers are valid JSON");
        let path = path.as_ref();
        std::fs::write(path, text).map_err(|source| Error::Io { path: path.into(), source })
    }

    /// Reads what [`Query::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Argument`] when the file is no query.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let wrong = |problem: String| Error::argument("query", "a query's JSON file", problem);
        let document: Document =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let len = document.draws.first().map_or(0, |draw| draw.sketch.len());
        if document.blocks == 0 || len == 0 || !len.is_multiple_of(document.blocks) {
            return Err(wrong(format!("{len} numbers for {} blocks", document.blocks)));
        }
        let mut query = Self::new(document.blocks, len / document.blocks);
        for DrawnSketch { level, noise, sketch } in document.draws {
            query.add(Draw { level: level.unwrap_or(f32::NAN), noise }, &sketch)?;
        }
        Ok(query)
    }
}
