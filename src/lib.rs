//! Fused gradient routing and influence sketching for training loops.
//!
//! One call per layer of the backward pass *routes* each sample's gradient to the
//! regions its category may train, with the weight it may have, and *sketches* it:
//! a low-dimensional random projection and the exact norm of the per-sample gradient,
//! which itself is never kept.
//!
//! Data flows one way: [`routing`] (policy to mask table and category ids) → [`ops`]
//! (gradients to the optimizer, records to the ledger) → [`provenance`] (queries). The
//! [`guard`] watches the same records and closes gates.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod cpu;
mod error;
pub mod guard;
pub mod ops;
pub mod problem;
pub mod projection;
pub mod provenance;
pub mod reference;
#[cfg(feature = "cli")]
pub mod report;
pub mod routing;

#[cfg(feature = "candle")]
pub mod candle;
// Calls of the driver are unsafe by nature; nothing else in the crate is, but for the calls
// of two libraries in `cpu::gemm`.
#[allow(unsafe_code)]
pub mod cuda;

pub use error::{Error, Result};

/// The README's example, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
