//! Routed convolution.

use candle_core::{Module, Result, Tensor};

use super::layers::{Layer, expect_shape};
use super::parameters::{Init, Scope};
use super::problem::Problem;
use crate::problem::{Conv2d, Conv2dSpec, Padding};
use crate::routing::LayerSpec;

/// Convolution of `X [N, C, H, W]` with `W [O, C / groups, kh, kw]`: groups, stride, dilation
/// and any padding of [`Conv2dSpec`].
#[derive(Clone, Debug)]
pub struct RoutedConv2d {
    layer: Layer,
    spec: Conv2dSpec,
}

impl RoutedConv2d {
    /// A new layer; weight and bias start uniform in `±1/√(C / groups · kh · kw)`, as PyTorch's
    /// do. `samples` and `size` of the spec are taken from each input instead.
    ///
    /// ```
    /// use candle_core::{DType, Device, Module, Tensor};
    /// use gradroute::candle::{Parameters, Recorder, RoutedConv2d, Scope};
    /// use gradroute::problem::{Conv2dSpec, Padding};
    /// let scope = Scope::new(&Parameters::new(DType::F32, 1), &Recorder::silent());
    /// let spec = Conv2dSpec {
    ///     in_channels: 3,
    ///     out_channels: 8,
    ///     kernel: [3, 3],
    ///     padding: Padding::same([3, 3], [1, 1]),
    ///     bias: true,
    ///     ..Conv2dSpec::default()
    /// };
    /// let conv = RoutedConv2d::new(spec, &scope.at("conv"))?;
    /// let x = Tensor::zeros((2, 3, 5, 7), DType::F32, &Device::Cpu)?;
    /// assert_eq!(conv.forward(&x)?.dims(), [2, 8, 5, 7]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Conv2d::new`]; when the scope's path is taken, or the recorder is in use already.
    pub fn new(spec: Conv2dSpec, scope: &Scope) -> Result<Self> {
        check(spec)?;
        let per_group = spec.in_channels / spec.groups;
        let shape = [spec.out_channels, per_group, spec.kernel[0], spec.kernel[1]];
        let fan_in = shape[1..].iter().product::<usize>().max(1);
        let init = Init::Uniform { bound: 1.0 / (fan_in as f32).sqrt() };
        let layer = Layer::create(scope, layer_spec(spec, scope), &shape, init, init)?;
        Ok(Self { layer, spec })
    }

    /// Of given tensors: variables are trained, plain tensors stay frozen. Channels, kernel and
    /// bias of the spec are taken from the tensors.
    ///
    /// # Errors
    /// As [`RoutedConv2d::new`], and for shapes that do not fit.
    pub fn from_tensors(
        weight: &Tensor,
        bias: Option<&Tensor>,
        spec: Conv2dSpec,
        scope: &Scope,
    ) -> Result<Self> {
        let (out_channels, per_group, kh, kw) = weight.dims4()?;
        let in_channels = per_group * spec.groups;
        let bias_given = bias.is_some();
        let spec =
            Conv2dSpec { in_channels, out_channels, kernel: [kh, kw], bias: bias_given, ..spec };
        check(spec)?;
        expect_shape("weight", weight, &[out_channels, per_group, kh, kw])?;
        let layer = Layer::adopt(scope, layer_spec(spec, scope), weight, bias)?;
        Ok(Self { layer, spec })
    }

    /// `[O, C / groups, kh, kw]`.
    pub fn weight(&self) -> &Tensor {
        &self.layer.weight
    }

    /// `[O]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.layer.bias.as_ref()
    }

    /// Path of the layer.
    pub fn path(&self) -> &str {
        self.layer.path()
    }
}

/// Checks everything but the size, which only an input tells.
fn check(spec: Conv2dSpec) -> Result<()> {
    Conv2d::new(Conv2dSpec { samples: 0, size: [0, 0], padding: Padding::default(), ..spec })?;
    Ok(())
}

fn layer_spec(spec: Conv2dSpec, scope: &Scope) -> LayerSpec {
    let Conv2dSpec { in_channels, out_channels, kernel, groups, bias, .. } = spec;
    LayerSpec::conv2d(scope.path(), in_channels, out_channels, kernel, groups, bias)
}

impl Module for RoutedConv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let fits = x.rank() == 4 && x.dim(1)? == self.spec.in_channels;
        self.layer.check_input(x, fits, &format!("[N, {}, H, W]", self.spec.in_channels))?;
        let (samples, _, h, w) = x.dims4()?;
        let problem = Conv2d::new(Conv2dSpec { samples, size: [h, w], ..self.spec })?;
        let [ho, wo] = problem.out_size();
        let dims = (samples, self.spec.out_channels, ho, wo);
        self.layer.call(Problem::Conv2d(problem), Some(x), dims)
    }
}
