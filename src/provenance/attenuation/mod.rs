//! Attenuation: the region dial as an operation on a checkpoint, safetensors in, safetensors out.
//!
//! A category that owns regions is attenuated by folding the region switch's dial into the
//! weights that read the region: the model then computes, with every switch at 1, what it
//! computed with the switch at that dial ([`Attenuation::apply`]). [`Attenuation::dry_run`] says
//! beforehand what would be touched and what else it may cost, a [`Predicted`]; only
//! [`Measured`], made from losses on both checkpoints, says what it did.
//!
//! A model trained without regions has no such dial. [`Projection`] takes from a linear layer the
//! input directions that the samples to forget use more than those to keep: an approximation,
//! with its collateral.
//!
//! ```
//! use std::collections::HashMap;
//! use gradroute::provenance::{Attenuation, Dial};
//! use gradroute::routing::{Categories, LayerSpec, ModelLayout, Policy};
//! use safetensors::tensor::{Dtype, SafeTensors, TensorView};
//!
//! let layout = ModelLayout::new(vec![
//!     LayerSpec::linear("first", 1, 2, false),
//!     LayerSpec::linear("second", 2, 1, false).reading("first"),
//! ])?;
//! let policy = Policy::from_toml(r#"
//!     block = [{ name = "all", layers = "*" }]
//!     region = [{ name = "script", owner = "style/script", parts = [{ layers = "first", outputs = "1" }] }]
//!     profile = [{ category = "style" }]
//! "#)?;
//! let policy = policy.compile(&layout, &Categories::new(["style/serif", "style/script"])?)?;
//!
//! let numbers = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
//! let (first, second) = (numbers([1.0, 2.0]), numbers([3.0, 4.0]));
//! let checkpoint = safetensors::serialize([
//!     ("first.weight", TensorView::new(Dtype::F32, vec![2, 1], &first).unwrap()),
//!     ("second.weight", TensorView::new(Dtype::F32, vec![1, 2], &second).unwrap()),
//! ], None).unwrap();
//!
//! let attenuation = Attenuation::new(&policy, &[Dial::new("style/script", 0.25)?])?;
//! let faded = attenuation.apply(&checkpoint)?;
//! let faded = SafeTensors::deserialize(&faded).unwrap();
//! assert_eq!(faded.tensor("second.weight").unwrap().data(), numbers([3.0, 1.0]));
//! # Ok::<(), gradroute::Error>(())
//! ```

mod checkpoint;
mod fold;
mod measured;
mod predicted;
mod projection;

pub use fold::{Attenuation, Dial, Edit, RowFade, folded};
pub use measured::{Change, Measured, Question};
pub use predicted::{BlockEffect, Overlap, Predicted, RegionEffect};
pub use projection::{Covariance, OutputChange, Projection};
