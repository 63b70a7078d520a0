//! The durable record of a run: Parquet segments, chained in a manifest.
//!
//! ```text
//! run.json              blocks, layout, categories, sketch, noise-level bins, policy hash, metadata
//! policy.toml           the policy's text
//! samples.parquet       sample, category, content_hash, and fingerprint where the run has them
//! segments/000001.events.parquet      step, batch, sample, noise_level, step_size, optimizer_scale,
//!                                     gate, and per block: route, flow, sq_norm
//! segments/000001.influence.parquet   sample, block, sketch (what the segment adds to A_n),
//!                                     pushed, exposure, stepped_sq, sq_norm
//! segments/000001.norms.parquet       sample, bin, events, measured, norm_sum, last_norm
//! checkpoints/000001/…                whatever the trainer saved with the last commit
//! manifest.json         every committed file with its BLAKE3 digest, entries chained by hash
//! ledger.lock           held by the writer while it lives
//! ```
//!
//! Records gather in memory until [`Ledger::commit`] writes a segment. Every file is written
//! under another name, flushed to disk and renamed; the rename of `manifest.json` is the one
//! moment at which a segment, and the checkpoint that belongs to it, come to be. A killed run
//! loses at most the open segment, and a reader sees whole segments only. Committed files never
//! change; of the checkpoints only the last is kept.
//!
//! Any Parquet reader can use the tables. `A_n` is the sum of `sketch` over all segments.
//!
//! Each manifest entry's `hash` is the BLAKE3 of the entry itself (compact JSON, fields in the
//! order of [`Entry`], `hash` empty), and `previous` is the hash of the entry before. So whoever
//! keeps [`LedgerReader::head`] elsewhere can tell whether anything up to there was altered;
//! without it, cutting off the newest entries cannot be told from a shorter run. With the feature
//! `signing` the head can be signed. [`audit()`] names everything that was altered; [`replay()`]
//! holds the records to a computation done again.
//!
//! ```
//! use gradroute::projection::SketchKind;
//! use gradroute::provenance::StepRecord;
//! use gradroute::provenance::ledger::{BlockInfo, Ledger, LedgerReader, RunInfo, SampleInfo};
//!
//! let sample = |id| SampleInfo { id, category: "style/serif".into(), content_hash: [0; 32] };
//! let info = RunInfo {
//!     samples: vec![sample(7), sample(9)],
//!     blocks: vec![BlockInfo { name: "down".into(), layers: vec![] }],
//!     ..RunInfo::new(SketchKind::Count { buckets: 64 }, 1)
//! };
//! let dir = tempfile::tempdir().unwrap();
//! let mut ledger = Ledger::create(dir.path(), info)?;
//! ledger.append(&StepRecord {
//!     step_size: 0.1,
//!     optimizer_scale: 1.0,
//!     blocks: 1,
//!     samples: vec![9],
//!     noise_levels: vec![0.3],
//!     gates: vec![1.0],
//!     route: vec![1.0],
//!     flow: vec![1.0],
//!     sq_norm: vec![64.0],
//!     sketch: vec![1.0; 64],
//!     ..StepRecord::default()
//! })?;
//! ledger.commit()?;
//!
//! let reader = LedgerReader::open(dir.path())?;
//! reader.verify()?;
//! assert_eq!(reader.next_step(), 1);
//! assert_eq!(&reader.accumulator()?, ledger.accumulator());
//! # Ok::<(), gradroute::Error>(())
//! ```

mod audit;
mod events;
pub(super) mod files;
mod info;
mod lock;
mod manifest;
mod reader;
mod replay;
mod segment;
#[cfg(feature = "signing")]
mod signature;
mod table;
mod writer;

pub use audit::{Audit, Finding, FindingKind, audit};
pub use events::Events;
pub use info::{BlockInfo, LayerInfo, RunInfo, SampleInfo};
pub use manifest::{Entry, FileEntry};
pub use reader::LedgerReader;
pub use replay::{Deviation, Replay, ReplayBatch, replay};
#[cfg(feature = "signing")]
pub use signature::{SIGNATURE, Signature, audit_signature, sign};
pub use writer::Ledger;
