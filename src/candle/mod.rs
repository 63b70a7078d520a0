//! Drop-in routed modules for [candle](candle_core): forward through candle, backward through
//! [`crate::ops`], records through a shared [`Recorder`].
//!
//! The model is built of routed modules in a [`Scope`], which names them and makes their
//! [`Parameters`]; then, every step, the batch is announced, and the record collected.

mod adamw;
mod batch;
mod conv2d;
mod coverage;
mod elementwise;
mod ema;
mod embedding;
mod governance;
mod layers;
mod linear;
mod norm;
mod op;
mod parameters;
mod problem;
mod recorder;
mod slot;
mod switch;
mod tensors;

pub use adamw::{AdamW, AdamWConfig};
pub use batch::Batch;
pub use conv2d::RoutedConv2d;
pub use coverage::{Coverage, Observation, ParameterCoverage};
pub use elementwise::{silu, upsample_nearest};
pub use ema::Ema;
pub use embedding::RoutedEmbedding;
pub use linear::{RoutedLinear, RoutedLora};
pub use norm::{RoutedGroupNorm, RoutedLayerNorm, RoutedRmsNorm};
pub use parameters::{Init, Parameters, Scope};
pub use recorder::{ProbeRecord, Recorder};
pub use tensors::cause;
