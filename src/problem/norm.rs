//! Normalisation layers with a per-sample gradient.

use serde::{Deserialize, Serialize};

use super::{GradientShape, Rows, product};
use crate::{Error, Result};

/// Which numbers are normalised together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance over the features of each row (Ba et al. 2016).
    Layer,
    /// Root mean square over the features of each row (Zhang & Sennrich 2019).
    Rms,
    /// Mean and variance over the channels of a group and all positions of a sample
    /// (Wu & He 2018).
    Group {
        /// Number of groups; divides the channels.
        groups: usize,
    },
}

/// `y = γ ∘ x̂ + β`, per feature or channel; its gradient matrix is `G [features, 1]` and the
/// bias column is `β`'s.
///
/// Layouts: [`NormKind::Layer`] and [`NormKind::Rms`] take `x [R, features]`;
/// [`NormKind::Group`] takes `x [N, channels, positions]`.
/// BatchNorm has no constructor: it mixes samples, so it has no per-sample gradient
/// (see [`Norm::batch`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    kind: NormKind,
    rows: Rows,
    gradient: GradientShape,
    eps: f32,
}

impl Norm {
    /// LayerNorm with a bias over rows of `features`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a size out of range or an `eps` that is negative or not finite.
    pub fn layer(rows: Rows, features: usize, eps: f32) -> Result<Self> {
        Self::new(NormKind::Layer, rows, features, true, eps)
    }

    /// RMSNorm, without a bias, over rows of `features`.
    ///
    /// # Errors
    /// As [`Norm::layer`].
    pub fn rms(rows: Rows, features: usize, eps: f32) -> Result<Self> {
        Self::new(NormKind::Rms, rows, features, false, eps)
    }

    /// GroupNorm with a bias over `samples` images of `channels` × `positions`.
    ///
    /// # Errors
    /// As [`Norm::layer`]; also when `groups` does not divide `channels`.
    pub fn group(
        samples: usize,
        channels: usize,
        positions: usize,
        groups: usize,
        eps: f32,
    ) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let expected = format!("a divisor of the {channels} channels");
            return Err(Error::argument("groups", expected, groups));
        }
        let rows = Rows::uniform(samples, positions)?;
        Self::new(NormKind::Group { groups }, rows, channels, true, eps)
    }

    /// Always [`Error::Refused`]: batch statistics tie the samples together, so no sample has
    /// a gradient of its own. Use GroupNorm.
    pub fn batch() -> Result<Self> {
        Err(Error::Refused {
            what: "BatchNorm".into(),
            reason: "its statistics mix the samples of a batch, so it has no per-sample \
                     gradient; use GroupNorm"
                .into(),
        })
    }

    fn new(kind: NormKind, rows: Rows, features: usize, bias: bool, eps: f32) -> Result<Self> {
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(Error::argument("eps", "a finite number of at least 0", eps));
        }
        product("x", &[rows.total(), features])?;
        let gradient = GradientShape::new(features, 1, bias)?;
        Ok(Self { kind, rows, gradient, eps })
    }

    /// Whether the layer has a `β`.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.gradient.bias = bias;
        self
    }

    /// Which numbers are normalised together.
    pub fn kind(&self) -> NormKind {
        self.kind
    }

    /// The row grouping; a row is a position.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Features of a row, or channels.
    pub fn features(&self) -> usize {
        self.gradient.outputs
    }

    /// Added to the variance (or mean square) before the root.
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// Shape of the parameter gradient.
    pub fn gradient(&self) -> GradientShape {
        self.gradient
    }
}
