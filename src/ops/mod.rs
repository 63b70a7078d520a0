//! The fused operations: what goes in, what comes out, and the [`Backend`]s that compute it.
//!
//! Every output is optional, and what is not asked for is not computed:
//!
//! | output | definition |
//! |---|---|
//! | `dx` | `flow_n · dY_n W` |
//! | `dw` | `(+)= Σ_n route_n[o, i] · G_n`, `G_n = dY_nᵀ X_n` |
//! | `db` | `(+)= Σ_n route_n[o] · Σ_rows dY_n` |
//! | `sq_norm`, `sq_norm_bias` | `‖G_n‖²` of the unrouted gradient, the bias part beside it |
//! | `sketch` | of the unrouted `G_n`, the bias as one more column |
//!
//! A weight of exactly 0 selects, it does not multiply: a sample that is routed away may hold
//! NaN or infinities without touching `dw`.
//!
//! ```
//! use gradroute::cpu::Cpu;
//! use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad};
//! use gradroute::problem::{Linear, Rows};
//!
//! let layer = Linear::new(Rows::uniform(2, 1)?, 2, 1)?; // two samples of one row, 2 → 1
//! let inputs = LinearInputs { x: &[1.0, 2.0, 3.0, 4.0], dy: &[1.0, -1.0], weight: None };
//! let (mut dw, mut sq_norm) = ([0.0; 2], [0.0; 2]);
//! let outputs = LayerOutputs {
//!     dw: Some(ParamGrad::F32(&mut dw)),
//!     sq_norm: Some(&mut sq_norm),
//!     ..LayerOutputs::default()
//! };
//! Cpu::new().linear::<f32>(&layer, &Options::default(), inputs, None, outputs)?;
//! assert_eq!(dw, [-2.0, -2.0]);
//! assert_eq!(sq_norm, [5.0, 25.0]); // each sample's own gradient
//! # Ok::<(), gradroute::Error>(())
//! ```

mod backend;
mod check;
mod inputs;
pub mod plan;

pub use backend::Backend;
pub use inputs::{
    ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, NormInputs,
    ParamGrad,
};

use crate::projection::Sketch;
use crate::routing::LayerRouting;

/// How one layer's gradients are routed, recorded and written.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Route and flow weights; none means 1 everywhere.
    pub routing: Option<Routing<'a>>,
    /// The projection, needed when `sketch` is asked for.
    pub sketch: Option<Sketch>,
    /// Sketch the routed gradient, `route_n[o, i] · G_n`, instead of the unrouted one: what a
    /// sample really changed in a layer whose regions have different weights.
    pub sketch_routed: bool,
    /// Add to `dw` and `db` instead of overwriting them.
    pub accumulate: bool,
    /// Brings `dY` back to the sample's own loss in the **records** (`sq_norm`, `sketch`): a
    /// loss that is a mean over `N` samples divides each by `N`, so state `N` here. Gradients
    /// (`dx`, `dw`, `db`) are never rescaled.
    pub sample_scale: f32,
}

impl Default for Options<'_> {
    /// No routing, no sketch, overwrite, scale 1.
    fn default() -> Self {
        Self {
            routing: None,
            sketch: None,
            sketch_routed: false,
            accumulate: false,
            sample_scale: 1.0,
        }
    }
}

/// The routing of one layer for one batch: `route_n = table[category_n, region] · gate_n`.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// The layer's regions and mask tables.
    pub layer: &'a LayerRouting,
    /// Category id of each sample, `[N]`.
    pub categories: &'a [u32],
    /// Gate of each sample, `[N]`; none means 1. Multiplies the route weight only.
    pub gates: Option<&'a [f32]>,
}

impl Routing<'_> {
    /// The weight of sample `n` in a region.
    pub fn route(&self, n: usize, region: usize) -> f32 {
        let gate = self.gates.map_or(1.0, |gates| gates[n]);
        // A closed gate and a weight of 0 both select.
        if gate == 0.0 {
            return 0.0;
        }
        self.layer.route(self.categories[n], region) * gate
    }

    /// The flow weight of sample `n` for the input columns of a region.
    pub fn flow(&self, n: usize, region: usize) -> f32 {
        self.layer.flow(self.categories[n], region)
    }
}
