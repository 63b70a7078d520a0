//! The accumulated influence laid out for questions over all samples, in memory that does not
//! grow with the blocks.
//!
//! ```text
//! index.json                  blocks, sketch length, precision, digests of the tables, citation
//! block=0/part-0.parquet      sample: u64, scale: f32, square: f64 = ‖A_n‖², sketch: fixed-size
//! block=1/part-0.parquet      binary of K codes, with A_n ≈ scale · codes; blocks are numbered
//! …                           from input to output
//! block=0/_gram.safetensors   gram: f64 [K, K] = Σ A_n A_nᵀ, lower triangle: for the whitening
//! …
//! ```
//!
//! A block's table holds every sample seen, in the same order as the other blocks'. Codes are
//! little-endian `f16`, or signed bytes: see [`Precision`]. The tables are plain Parquet in Hive's
//! partition layout, neither compressed nor dictionary-encoded, so that reading is all there is to
//! decoding and any engine can ask the same question over many machines:
//! `SELECT sample, sum(scale * dot(block, sketch)) … GROUP BY sample`, with a function `dot` of a
//! few lines.
//!
//! Names that begin with an underscore are none of the table's to such engines. To have them ask the whitened
//! question, multiply the query by [`Index::whitening`].
//!
//! An [`Index`] is built from a ledger by [`Index::build`], or from other sums by an
//! [`IndexWriter`]. [`Index::top`] reads it block by block, a few thousand samples at a time: it
//! holds 24 bytes per sample and some megabytes for each thread, whatever the blocks.
//!
//! ```
//! use gradroute::projection::SketchKind;
//! use gradroute::provenance::StepRecord;
//! use gradroute::provenance::index::{Index, Precision, TopOptions};
//! use gradroute::provenance::ledger::{BlockInfo, Ledger, LedgerReader, RunInfo, SampleInfo};
//!
//! let sample = |id| SampleInfo { id, category: "style/serif".into(), content_hash: [0; 32] };
//! let info = RunInfo {
//!     samples: vec![sample(7), sample(9)],
//!     blocks: vec![BlockInfo { name: "down".into(), layers: vec![] }],
//!     ..RunInfo::new(SketchKind::Count { buckets: 64 }, 1)
//! };
//! let dir = tempfile::tempdir().unwrap();
//! let mut ledger = Ledger::create(dir.path().join("ledger"), info)?;
//! ledger.append(&StepRecord {
//!     step_size: 0.5,
//!     optimizer_scale: 1.0,
//!     blocks: 1,
//!     samples: vec![7, 9],
//!     noise_levels: vec![0.3; 2],
//!     gates: vec![1.0; 2],
//!     route: vec![1.0; 2],
//!     flow: vec![1.0; 2],
//!     sq_norm: vec![64.0; 2],
//!     sketch: [[-1.0; 64], [2.0; 64]].concat(),
//!     ..StepRecord::default()
//! })?;
//! ledger.commit()?;
//!
//! let reader = LedgerReader::open(dir.path().join("ledger"))?;
//! let index = Index::build(&reader, dir.path().join("index"), Precision::F16, |_, _| ())?;
//! let plain = TopOptions { whitening: None, ..TopOptions::default() };
//! let answer = index.top(&[1.0; 64], &plain, |_, _| ())?;
//! assert_eq!((answer.helpful[0].sample, answer.helpful[0].score), (9, 64.0));
//! assert_eq!((answer.harmful[0].sample, answer.harmful[0].score), (7, -32.0));
//! assert_eq!(answer.citation.ledger_head, reader.head());
//! # Ok::<(), gradroute::Error>(())
//! ```

mod build;
mod encoding;
mod part;
mod scan;
#[cfg(test)]
mod tests;
mod top;
mod writer;

use std::path::{Path, PathBuf};

use faer::{Mat, MatRef};
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::ledger::FileEntry;
use super::ledger::files::{bad, digest, io};
use super::query::Citation;
use super::whitening::Whitening;
use crate::Result;

pub use encoding::Precision;
pub use scan::Scores;
pub use top::{Ranked, Ranking, TopOptions};
pub use writer::IndexWriter;

/// Rows of a row group, all but the last of a table: what a thread reads at a time, 8 MiB of `f16`
/// at 256 numbers.
const ROWS: usize = 1 << 14;

/// The file that makes a directory an index; written last.
const INDEX: &str = "index.json";

/// Layout of the files.
const FORMAT: u32 = 2;

/// The tensor in a block's file of products.
const GRAM: &str = "gram";

/// A directory with the accumulated influence of a run, block by block.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    contents: Contents,
}

/// What `index.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    precision: Precision,
    sketch_len: usize,
    /// Names, from input to output.
    blocks: Vec<String>,
    samples: usize,
    /// The tables, in the order of the blocks.
    files: Vec<FileEntry>,
    /// The products of the sketches, likewise.
    grams: Vec<FileEntry>,
    citation: Citation,
}

impl Index {
    /// Opens an index.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Ledger`](crate::Error::Ledger) when there is
    /// none, or its description does not hold together.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let path = dir.join(INDEX);
        let text = std::fs::read(&path).map_err(io(&path))?;
        let contents: Contents =
            serde_json::from_slice(&text).map_err(|error| bad(&path, error))?;
        let named = |files: &[FileEntry], name: fn(usize) -> String| {
            let expected = (0..contents.blocks.len()).map(name);
            expected.eq(files.iter().map(|file| file.name.clone()))
        };
        if contents.format != FORMAT {
            return Err(bad(&path, format!("its format is {}, not {FORMAT}", contents.format)));
        }
        let whole = named(&contents.files, part_name) && named(&contents.grams, gram_name);
        let known = (1..=1 << 30).contains(&contents.sketch_len)
            && contents.blocks.len().checked_mul(contents.sketch_len).is_some();
        if !known || !whole {
            return Err(bad(&path, "blocks, sketch length and tables do not fit together"));
        }
        Ok(Self { dir, contents })
    }

    /// Names of the blocks, from input to output.
    pub fn blocks(&self) -> &[String] {
        &self.contents.blocks
    }

    /// Numbers per sketch, `K`.
    pub fn sketch_len(&self) -> usize {
        self.contents.sketch_len
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.contents.samples
    }

    /// How the sketches are kept.
    pub fn precision(&self) -> Precision {
        self.contents.precision
    }

    /// What the index was built from.
    pub fn citation(&self) -> &Citation {
        &self.contents.citation
    }

    /// Size of all tables in bytes.
    pub fn bytes(&self) -> u64 {
        self.contents.files.iter().map(|file| file.bytes).sum()
    }

    /// The table of a block.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn table(&self, block: usize) -> PathBuf {
        self.dir.join(&self.contents.files[block].name)
    }

    /// The whitening of all samples, from what was noted of them when the index was built: that of
    /// [`Whitening::new`], without reading a table. Costs `B · K³ / 3` and holds `B · K²` doubles.
    ///
    /// # Errors
    /// As [`Whitening::new`]; [`Error::Ledger`](crate::Error::Ledger) or
    /// [`Error::Io`](crate::Error::Io) naming the file that cannot be read.
    pub fn whitening(&self, damping: f64) -> Result<Whitening> {
        let grams = self.contents.grams.iter().map(|file| self.gram(&self.dir.join(&file.name)));
        Whitening::of(grams, self.sketch_len(), damping)
    }

    fn gram(&self, path: &Path) -> Result<Mat<f64>> {
        let len = self.sketch_len();
        let bytes = std::fs::read(path).map_err(io(path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| bad(path, error))?;
        let tensor = file.tensor(GRAM).map_err(|error| bad(path, error))?;
        if tensor.dtype() != Dtype::F64 || tensor.shape() != [len, len] {
            return Err(bad(path, format!("its tensor is not of {len} × {len} doubles")));
        }
        let (numbers, _) = tensor.data().as_chunks();
        let numbers: Vec<f64> = numbers.iter().map(|it| f64::from_le_bytes(*it)).collect();
        match numbers.iter().all(|it| it.is_finite()) {
            true => Ok(MatRef::from_row_major_slice(&numbers, len, len).to_owned()),
            false => Err(bad(path, "some samples' sums are not finite: ask without a whitening")),
        }
    }

    /// Reads every file and compares size and digest with those noted when it was built; `progress`
    /// is told files done and in all.
    ///
    /// # Errors
    /// [`Error::Ledger`](crate::Error::Ledger) or [`Error::Io`](crate::Error::Io) naming the first
    /// file that was altered or cannot be read.
    pub fn verify(&self, mut progress: impl FnMut(usize, usize)) -> Result<()> {
        let files: Vec<_> = self.contents.files.iter().chain(&self.contents.grams).collect();
        for (done, file) in files.iter().enumerate() {
            progress(done, files.len());
            let path = self.dir.join(&file.name);
            if digest(&path)? != (file.bytes, file.blake3.clone()) {
                return Err(bad(&path, "the file was altered: its size or digest is another"));
            }
        }
        progress(files.len(), files.len());
        Ok(())
    }
}

/// Name of a block's table below the index.
fn part_name(block: usize) -> String {
    format!("block={block}/part-0.parquet")
}

/// Name of a block's products of sketches below the index.
fn gram_name(block: usize) -> String {
    format!("block={block}/_gram.safetensors")
}
