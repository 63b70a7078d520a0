//! Routed linear layer.

use candle_core::{Module, Result, Tensor};

use super::layers::Layer;
use super::parameters::{Init, Scope};
use super::problem::Problem;
use crate::problem::Linear;
use crate::routing::LayerSpec;

/// `Y = X Wᵀ + b` over the last dimension: `X [N, …, in]`, `Y [N, …, out]`. A sample is the
/// first dimension; those between are its rows.
#[derive(Clone, Debug)]
pub struct RoutedLinear(pub(super) Layer);

impl RoutedLinear {
    /// A new layer; weight and bias start uniform in `±1/√in`, as PyTorch's do.
    ///
    /// # Errors
    /// When the scope's path is taken, or [`super::Recorder`] is in use already.
    pub fn new(in_features: usize, out_features: usize, bias: bool, scope: &Scope) -> Result<Self> {
        let init = Init::Uniform { bound: 1.0 / (in_features.max(1) as f32).sqrt() };
        let spec = LayerSpec::linear(scope.path(), in_features, out_features, bias);
        Ok(Self(Layer::create(scope, spec, &[out_features, in_features], init, init)?))
    }

    /// Of given tensors `weight [out, in]`, `bias [out]`: variables are trained, plain tensors
    /// stay frozen.
    ///
    /// # Errors
    /// As [`RoutedLinear::new`], and for shapes that do not fit.
    pub fn from_tensors(weight: &Tensor, bias: Option<&Tensor>, scope: &Scope) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        let spec = LayerSpec::linear(scope.path(), in_features, out_features, bias.is_some());
        Ok(Self(Layer::adopt(scope, spec, weight, bias)?))
    }

    /// `[out, in]`.
    pub fn weight(&self) -> &Tensor {
        &self.0.weight
    }

    /// `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.0.bias.as_ref()
    }

    /// Path of the layer.
    pub fn path(&self) -> &str {
        self.0.path()
    }
}

impl Module for RoutedLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out, input) = self.0.weight.dims2()?;
        let (rows, dims) = self.0.rows(x, input, out)?;
        let problem = Linear::new(rows, input, out)?.with_bias(self.0.bias.is_some());
        self.0.call(Problem::Linear(problem), Some(x), dims)
    }
}
