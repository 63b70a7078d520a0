//! Layers that are matrices: linear, embedding and LoRA.

use super::{GradientShape, Rows, product};
use crate::{Error, Result};

/// Linear layer `Y = X Wᵀ + b`: `X [R, I]`, `dY [R, O]`, `W [O, I]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    rows: Rows,
    gradient: GradientShape,
}

impl Linear {
    /// Without a bias; see [`Linear::with_bias`].
    ///
    /// # Errors
    /// [`Error::Argument`] when a buffer would exceed the address space.
    pub fn new(rows: Rows, in_features: usize, out_features: usize) -> Result<Self> {
        product("x", &[rows.total(), in_features])?;
        product("dy", &[rows.total(), out_features])?;
        let gradient = GradientShape::new(out_features, in_features, false)?;
        Ok(Self { rows, gradient })
    }

    /// Whether the layer has a bias, which is then routed, measured and sketched too.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.gradient.bias = bias;
        self
    }

    /// The batch's row grouping.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// `I`.
    pub fn in_features(&self) -> usize {
        self.gradient.inputs
    }

    /// `O`.
    pub fn out_features(&self) -> usize {
        self.gradient.outputs
    }

    /// Shape of the parameter gradient.
    pub fn gradient(&self) -> GradientShape {
        self.gradient
    }
}

/// Embedding `Y[r] = W[token[r]]`: `W [vocabulary, features]`, `dY [R, features]`.
///
/// A linear layer over one-hot inputs, so its gradient matrix is `G [features, vocabulary]`,
/// the transpose of the table's layout. A token that repeats within a sample adds up before
/// anything is squared.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    rows: Rows,
    gradient: GradientShape,
}

impl Embedding {
    /// # Errors
    /// [`Error::Argument`] when a buffer would exceed the address space.
    pub fn new(rows: Rows, vocabulary: usize, features: usize) -> Result<Self> {
        product("dy", &[rows.total(), features])?;
        let gradient = GradientShape::new(features, vocabulary, false)?;
        Ok(Self { rows, gradient })
    }

    /// The batch's row grouping: one row per token.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Rows of the table.
    pub fn vocabulary(&self) -> usize {
        self.gradient.inputs
    }

    /// Columns of the table.
    pub fn features(&self) -> usize {
        self.gradient.outputs
    }

    /// Shape of the parameter gradient.
    pub fn gradient(&self) -> GradientShape {
        self.gradient
    }
}

/// LoRA branch `Y += scale · (X Aᵀ) Bᵀ`: `A [rank, I]`, `B [O, rank]`.
///
/// Two linear layers, `A` and `B`, that share `X` and `dY`; each has its own routing and sketch.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    rows: Rows,
    in_features: usize,
    out_features: usize,
    rank: usize,
    scale: f32,
}

impl Lora {
    /// `scale` is the usual `alpha / rank`.
    ///
    /// # Errors
    /// [`Error::Argument`] when a buffer would exceed the address space or `scale` is not finite.
    pub fn new(
        rows: Rows,
        in_features: usize,
        out_features: usize,
        rank: usize,
        scale: f32,
    ) -> Result<Self> {
        Linear::new(rows.clone(), in_features, rank)?;
        Linear::new(rows.clone(), rank, out_features)?;
        if !scale.is_finite() {
            return Err(Error::argument("scale", "a finite number", scale));
        }
        Ok(Self { rows, in_features, out_features, rank, scale })
    }

    /// The batch's row grouping.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// `I`.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// `O`.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Width between the factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Multiplier of the branch.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The first factor as a linear layer, `I → rank`.
    pub fn a(&self) -> Linear {
        let gradient =
            GradientShape { outputs: self.rank, inputs: self.in_features, taps: 1, bias: false };
        Linear { rows: self.rows.clone(), gradient }
    }

    /// The second factor as a linear layer, `rank → O`.
    pub fn b(&self) -> Linear {
        let gradient =
            GradientShape { outputs: self.out_features, inputs: self.rank, taps: 1, bias: false };
        Linear { rows: self.rows.clone(), gradient }
    }
}
