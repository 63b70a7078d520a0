//! Questions to a ledger, each answered with what the answer rests on.
//!
//! | question | call |
//! |---|---|
//! | what did this sample or category do, where, when, how much | [`Archive::forward`] |
//! | who made this block or region what it is | [`Archive::backward`] |
//! | what stands behind this output, for and against | [`Archive::output`], [`Archive::output_by_phases`] |
//! | how deep did a category go, against the whole corpus | [`Archive::depth`] |
//! | what else would attenuating a category touch | [`Archive::overlap`] |
//! | what did a category move that nobody else did | [`Archive::alone`] |
//! | does a sample look memorized, by the record alone | [`Archive::signals`] |
//!
//! Every answer holds a [`Citation`], and every number read off sketches its standard deviation.
//! Answers serialize with serde.
//!
//! ```
//! use gradroute::projection::SketchKind;
//! use gradroute::provenance::StepRecord;
//! use gradroute::provenance::ledger::{BlockInfo, Ledger, RunInfo, SampleInfo};
//! use gradroute::provenance::query::{Archive, Subject};
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
//!     step_size: 0.5,
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
//! let archive = Archive::open(dir.path())?;
//! let answer = archive.forward(&Subject::Sample(9))?;
//! assert_eq!((answer.events, answer.blocks[0].moved.value), (1, 4.0));
//! assert_eq!(answer.citation.ledger_head, ledger.head());
//! # Ok::<(), gradroute::Error>(())
//! ```

mod alone;
mod archive;
mod backward;
mod citation;
mod depth;
mod file;
mod forward;
mod output;
mod overlap;
mod regions;
mod signals;

pub use alone::{Alone, CategoryAlone};
pub use archive::{Archive, MODEL_PARAMETERS, Subject};
pub use backward::{Backward, CategoryThere, Place, SampleThere};
pub use citation::{Citation, Coverage, SegmentCitation};
pub use depth::{Depth, DepthBlock, Profile};
pub use forward::{Forward, ForwardBlock, LevelTrace};
pub use output::{AlikeGroup, CategoryScore, Output, OutputOptions, SampleScore};
pub use overlap::{Overlap, OverlapWith};
pub use regions::RegionRoute;
pub use signals::{SampleSignals, Signals};
