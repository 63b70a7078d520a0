//! The durable record of a run and the questions it answers.
//!
//! A training loop yields one [`StepRecord`] per step. The [`Accumulator`] adds them up to the
//! influence of every sample on every block, in memory that does not grow with the number of
//! steps; queries on it are in [`Scorer`], [`Whitening`], [`GroupInfluence`], [`HeldOut`] and
//! [`Accumulator::near_duplicates`]; [`Accumulator::side_by_side`] is for questions by the phases of a run.
//! With the feature `ledger` (on by default), the module `ledger` writes the same records to disk and reads
//! them back, and `query` answers from there, each answer with what it rests on; `index` holds more samples
//! than fit into memory.
//!
//! ```
//! use gradroute::provenance::{Accumulator, Similarity, StepRecord};
//!
//! let mut influence = Accumulator::new(1, 2)?; // one block, sketches of two numbers
//! influence.add(&StepRecord {
//!     step_size: 0.5,
//!     optimizer_scale: 1.0,
//!     blocks: 1,
//!     samples: vec![7, 9],
//!     noise_levels: vec![f32::NAN; 2],
//!     gates: vec![1.0; 2],
//!     route: vec![1.0, 0.0],
//!     flow: vec![1.0; 2],
//!     sq_norm: vec![4.0, 1.0],
//!     sketch: vec![2.0, 0.0, 0.0, 0.0], // sample 9 is routed away
//!     ..StepRecord::default()
//! })?;
//! let scores = influence.influence(&[3.0, 1.0], Similarity::Dot)?;
//! assert_eq!(scores.top(1), [(7, 3.0)]);
//! # Ok::<(), gradroute::Error>(())
//! ```

mod accumulator;
mod attenuation;
mod draws;
mod duplicates;
mod groups;
mod held_out;
#[cfg(feature = "ledger")]
pub mod index;
mod influence;
#[cfg(feature = "ledger")]
pub mod ledger;
mod phases;
#[cfg(feature = "ledger")]
pub mod query;
mod record;
#[cfg(test)]
mod tests;
mod uncertainty;
mod whitening;

pub use accumulator::{Accumulator, BlockTotals, NormTrace};
pub use attenuation::{
    Attenuation, BlockEffect, Change, Covariance, Dial, Edit, Measured, OutputChange, Overlap,
    Predicted, Projection, Question, RegionEffect, RowFade, folded,
};
pub use draws::{Draw, Query};
pub use duplicates::Pair;
pub use groups::GroupInfluence;
pub use held_out::HeldOut;
pub use influence::{Influence, Scorer, Similarity};
pub use record::StepRecord;
pub use uncertainty::{Estimate, deviation};
pub use whitening::Whitening;
