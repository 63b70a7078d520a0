//! Buffers of the ops. All row-major and contiguous, shapes as in [`crate::problem`].

use crate::problem::Element;

/// Where a parameter gradient goes: `f32`, or the layer's own format, rounded once at the end.
#[derive(Debug)]
pub enum ParamGrad<'a, T> {
    /// Accumulated and kept in `f32`.
    F32(&'a mut [f32]),
    /// Accumulated in `f32`, written in the input's format.
    Native(&'a mut [T]),
}

impl<T: Element> ParamGrad<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Native(values) => values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `at`, widened.
    pub fn get(&self, at: usize) -> f32 {
        match self {
            Self::F32(values) => values[at],
            Self::Native(values) => values[at].to_f32(),
        }
    }

    /// Writes element `at`, rounded to the buffer's format.
    pub fn set(&mut self, at: usize, value: f32) {
        match self {
            Self::F32(values) => values[at] = value,
            Self::Native(values) => values[at] = T::from_f32(value),
        }
    }
}

/// What an op computes for one layer's parameters; each part only where it is asked for.
#[derive(Debug)]
pub struct LayerOutputs<'a, T> {
    /// Weight gradient, in the weight's own layout.
    pub dw: Option<ParamGrad<'a, T>>,
    /// Bias gradient, `[O]`.
    pub db: Option<ParamGrad<'a, T>>,
    /// Squared norm of each sample's weight gradient, `[N]`.
    pub sq_norm: Option<&'a mut [f32]>,
    /// Squared norm of each sample's bias gradient, `[N]`.
    pub sq_norm_bias: Option<&'a mut [f32]>,
    /// Sketch of each sample's gradient, `[N, K]`.
    pub sketch: Option<&'a mut [f32]>,
    /// Whether a region was touched by any sample, `[regions]`, or `[1]` without routing: a
    /// sample of at least one row with a weight other than 0 there. What an optimizer may skip.
    pub touched: Option<&'a mut [bool]>,
}

impl<T> Default for LayerOutputs<'_, T> {
    /// Nothing asked for.
    fn default() -> Self {
        Self { dw: None, db: None, sq_norm: None, sq_norm_bias: None, sketch: None, touched: None }
    }
}

/// Inputs of a linear layer's backward pass.
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs<'a, T> {
    /// `[R, I]`, whatever is asked for.
    pub x: &'a [T],
    /// `[R, O]`.
    pub dy: &'a [T],
    /// `[O, I]`, needed for `dx`.
    pub weight: Option<&'a [T]>,
}

/// Inputs of a convolution's backward pass.
#[derive(Clone, Copy, Debug)]
pub struct ConvInputs<'a, T> {
    /// `[N, C, H, W]`.
    pub x: &'a [T],
    /// `[N, O, Ho, Wo]`.
    pub dy: &'a [T],
    /// `[O, C / groups, kh, kw]`, needed for `dx`.
    pub weight: Option<&'a [T]>,
}

/// Inputs of a normalisation's backward pass; the statistics are computed anew from `x`.
#[derive(Clone, Copy, Debug)]
pub struct NormInputs<'a, T> {
    /// `[R, features]` or `[N, channels, positions]`.
    pub x: &'a [T],
    /// As `x`.
    pub dy: &'a [T],
    /// `γ [features]`, needed for `dx`.
    pub weight: Option<&'a [T]>,
}

/// Inputs of an embedding's backward pass. Tokens have no gradient, so there is no `dx`.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingInputs<'a, T> {
    /// `[R]`, each below the vocabulary.
    pub tokens: &'a [u32],
    /// `[R, features]`.
    pub dy: &'a [T],
}

/// Inputs of a LoRA branch's backward pass. `X Aᵀ` is computed anew.
#[derive(Clone, Copy, Debug)]
pub struct LoraInputs<'a, T> {
    /// `[R, I]`.
    pub x: &'a [T],
    /// `[R, O]`.
    pub dy: &'a [T],
    /// `[rank, I]`.
    pub a: &'a [T],
    /// `[O, rank]`.
    pub b: &'a [T],
    /// Weight `[O, I]` of the frozen layer that the branch stands beside: `dx` then holds the layer's
    /// part as well, whose flow nothing restricts. On CUDA both parts are rounded to `T` before they are
    /// added.
    pub base: Option<&'a [T]>,
}

/// Outputs of a LoRA branch: both factors as layers of their own.
#[derive(Debug)]
pub struct LoraOutputs<'a, T> {
    /// Of the first factor, `[rank, I]`.
    pub a: LayerOutputs<'a, T>,
    /// Of the second factor, `[O, rank]`.
    pub b: LayerOutputs<'a, T>,
}

impl<T> Default for LoraOutputs<'_, T> {
    /// Nothing asked for.
    fn default() -> Self {
        Self { a: LayerOutputs::default(), b: LayerOutputs::default() }
    }
}
