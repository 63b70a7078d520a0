//! Routed normalisations.

use candle_core::{Module, Result, Tensor};

use super::layers::{Layer, expect_shape};
use super::parameters::{Init, Scope};
use super::problem::Problem;
use crate::problem::{Norm, NormKind, Rows};
use crate::routing::LayerSpec;

/// GroupNorm with scale and bias over `X [N, C, …]`.
#[derive(Clone, Debug)]
pub struct RoutedGroupNorm {
    layer: Layer,
    groups: usize,
    eps: f32,
}

impl RoutedGroupNorm {
    /// A new layer: scale 1, bias 0.
    ///
    /// # Errors
    /// When `groups` does not divide `channels`, `eps` is no finite number of at least 0, the
    /// scope's path is taken, or the recorder is in use already.
    pub fn new(groups: usize, channels: usize, eps: f32, scope: &Scope) -> Result<Self> {
        Norm::group(0, channels, 0, groups, eps)?;
        let spec = LayerSpec::norm(scope.path(), NormKind::Group { groups }, channels, true);
        let layer = Layer::create(scope, spec, &[channels], Init::Ones, Init::Zeros)?;
        Ok(Self { layer, groups, eps })
    }

    /// Of given tensors `weight [C]`, `bias [C]`: variables are trained, plain tensors stay
    /// frozen.
    ///
    /// # Errors
    /// As [`RoutedGroupNorm::new`], and for shapes that do not fit.
    pub fn from_tensors(
        weight: &Tensor,
        bias: Option<&Tensor>,
        groups: usize,
        eps: f32,
        scope: &Scope,
    ) -> Result<Self> {
        let channels = weight.dims1()?;
        Norm::group(0, channels, 0, groups, eps)?;
        let kind = NormKind::Group { groups };
        let spec = LayerSpec::norm(scope.path(), kind, channels, bias.is_some());
        Ok(Self { layer: Layer::adopt(scope, spec, weight, bias)?, groups, eps })
    }

    /// `[C]`.
    pub fn weight(&self) -> &Tensor {
        &self.layer.weight
    }

    /// `[C]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.layer.bias.as_ref()
    }

    /// Path of the layer.
    pub fn path(&self) -> &str {
        self.layer.path()
    }
}

impl Module for RoutedGroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.layer.weight.dims1()?;
        let fits = x.rank() >= 2 && x.dim(1)? == channels;
        self.layer.check_input(x, fits, &format!("[N, {channels}, …]"))?;
        let (samples, positions) = (x.dim(0)?, x.dims()[2..].iter().product());
        let problem = Norm::group(samples, channels, positions, self.groups, self.eps)?
            .with_bias(self.layer.bias.is_some());
        self.layer.call(Problem::Norm(problem), Some(x), x.shape())
    }
}

/// LayerNorm, with scale and bias, over the last dimension of `X [N, …, features]`.
#[derive(Clone, Debug)]
pub struct RoutedLayerNorm(RowNorm);

/// RMSNorm, with a scale, over the last dimension of `X [N, …, features]`.
#[derive(Clone, Debug)]
pub struct RoutedRmsNorm(RowNorm);

#[derive(Clone, Debug)]
struct RowNorm {
    layer: Layer,
    kind: NormKind,
    eps: f32,
}

impl RoutedLayerNorm {
    /// A new layer: scale 1, bias 0.
    ///
    /// # Errors
    /// When `eps` is no finite number of at least 0, the scope's path is taken, or the recorder
    /// is in use already.
    pub fn new(features: usize, eps: f32, scope: &Scope) -> Result<Self> {
        Ok(Self(RowNorm::new(NormKind::Layer, features, true, eps, scope)?))
    }

    /// Of given tensors `weight [features]`, `bias [features]`.
    ///
    /// # Errors
    /// As [`RoutedLayerNorm::new`], and for shapes that do not fit.
    pub fn from_tensors(
        weight: &Tensor,
        bias: Option<&Tensor>,
        eps: f32,
        scope: &Scope,
    ) -> Result<Self> {
        Ok(Self(RowNorm::from_tensors(NormKind::Layer, weight, bias, eps, scope)?))
    }
}

impl RoutedRmsNorm {
    /// A new layer: scale 1.
    ///
    /// # Errors
    /// As [`RoutedLayerNorm::new`].
    pub fn new(features: usize, eps: f32, scope: &Scope) -> Result<Self> {
        Ok(Self(RowNorm::new(NormKind::Rms, features, false, eps, scope)?))
    }

    /// Of a given tensor `weight [features]`.
    ///
    /// # Errors
    /// As [`RoutedRmsNorm::new`].
    pub fn from_tensors(weight: &Tensor, eps: f32, scope: &Scope) -> Result<Self> {
        Ok(Self(RowNorm::from_tensors(NormKind::Rms, weight, None, eps, scope)?))
    }
}

impl RowNorm {
    fn new(kind: NormKind, features: usize, bias: bool, eps: f32, scope: &Scope) -> Result<Self> {
        Norm::layer(Rows::uniform(0, 0)?, features, eps)?;
        let spec = LayerSpec::norm(scope.path(), kind, features, bias);
        let layer = Layer::create(scope, spec, &[features], Init::Ones, Init::Zeros)?;
        Ok(Self { layer, kind, eps })
    }

    fn from_tensors(
        kind: NormKind,
        weight: &Tensor,
        bias: Option<&Tensor>,
        eps: f32,
        scope: &Scope,
    ) -> Result<Self> {
        let features = weight.dims1()?;
        Norm::layer(Rows::uniform(0, 0)?, features, eps)?;
        expect_shape("weight", weight, &[features])?;
        let spec = LayerSpec::norm(scope.path(), kind, features, bias.is_some());
        Ok(Self { layer: Layer::adopt(scope, spec, weight, bias)?, kind, eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let features = self.layer.weight.dims1()?;
        let fits = x.dims().last() == Some(&features);
        self.layer.check_input(x, fits, &format!("[N, …, {features}]"))?;
        let rows = Rows::uniform(x.dim(0)?, x.dims()[1..x.rank() - 1].iter().product())?;
        let bias = self.layer.bias.is_some();
        let problem = match self.kind == NormKind::Layer {
            true => Norm::layer(rows, features, self.eps)?.with_bias(bias),
            false => Norm::rms(rows, features, self.eps)?.with_bias(bias),
        };
        self.layer.call(Problem::Norm(problem), Some(x), x.shape())
    }
}

macro_rules! row_norm {
    ($norm:ty) => {
        impl $norm {
            /// `[features]`.
            pub fn weight(&self) -> &Tensor {
                &self.0.layer.weight
            }

            /// `[features]`.
            pub fn bias(&self) -> Option<&Tensor> {
                self.0.layer.bias.as_ref()
            }

            /// Path of the layer.
            pub fn path(&self) -> &str {
                self.0.layer.path()
            }
        }

        impl Module for $norm {
            fn forward(&self, x: &Tensor) -> Result<Tensor> {
                self.0.forward(x)
            }
        }
    };
}
row_norm!(RoutedLayerNorm);
row_norm!(RoutedRmsNorm);
