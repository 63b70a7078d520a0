//! What all routed modules share: building, registering, calling.

use candle_core::{Result, Shape, Tensor};

use super::op::{Call, Handle, LayerOp, apply};
use super::parameters::{Init, Scope};
use super::problem::Problem;
use super::recorder::refused;
use crate::Error;
use crate::problem::Rows;
use crate::routing::LayerSpec;

/// Weight and bias of a module and its place in the recorder.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    handle: Handle,
}

impl Layer {
    /// A new layer, its parameters made by `weight` and `bias`.
    pub fn create(
        scope: &Scope,
        spec: LayerSpec,
        shape: &[usize],
        weight: Init,
        bias: Init,
    ) -> Result<Self> {
        scope.recorder().check_new(&spec.path)?;
        let outputs = spec.outputs;
        let with_bias = spec.bias;
        let weight = scope.create("weight", shape, weight)?;
        let bias = with_bias.then(|| scope.create("bias", outputs, bias)).transpose()?;
        Self::register(scope, spec, weight, bias)
    }

    /// A layer of tensors given by the caller, already checked for their shapes.
    pub fn adopt(
        scope: &Scope,
        spec: LayerSpec,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        if weight.is_variable() {
            scope.recorder().check_new(&spec.path)?;
        }
        if let Some(bias) = bias {
            expect_shape("bias", bias, &[spec.outputs])?;
            if bias.is_variable() != weight.is_variable() {
                let reason = "weight and bias are both variables or both frozen";
                return Err(refused(format!("layer {}", spec.path), reason).into());
            }
            scope.adopt("bias", bias)?;
        }
        scope.adopt("weight", weight)?;
        Self::register(scope, spec, weight.clone(), bias.cloned())
    }

    fn register(
        scope: &Scope,
        mut spec: LayerSpec,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Self> {
        spec.reads = scope.sources().to_vec();
        let (recorder, path) = (scope.recorder().clone(), spec.path.clone());
        // A frozen layer has nothing to route or record.
        let index = match weight.is_variable() {
            true => Some(recorder.register(spec, &weight, bias.as_ref())?),
            false => None,
        };
        Ok(Self { weight, bias, handle: Handle { recorder, path, index } })
    }

    /// Path of the layer.
    pub fn path(&self) -> &str {
        &self.handle.path
    }

    /// Whether it has nothing to route or record.
    pub fn is_frozen(&self) -> bool {
        self.handle.index.is_none()
    }

    /// Refuses an input whose format is not the weight's, or whose shape does not fit.
    pub fn check_input(&self, x: &Tensor, fits: bool, expected: &str) -> Result<()> {
        let argument = || format!("input of {}", self.path());
        if !fits || x.rank() < 2 {
            return Err(Error::argument(argument(), expected, format!("{:?}", x.shape())).into());
        }
        if x.dtype() != self.weight.dtype() {
            let (expected, given) = (self.weight.dtype(), x.dtype());
            let expected = format!("{expected:?}, the weight's format");
            return Err(Error::argument(argument(), expected, format!("{given:?}")).into());
        }
        Ok(())
    }

    /// The rows of an input `[N, …, input]`, and the dimensions of an output of `out` features for each.
    pub fn rows(&self, x: &Tensor, input: usize, out: usize) -> Result<(Rows, Vec<usize>)> {
        let fits = x.dims().last() == Some(&input);
        self.check_input(x, fits, &format!("[N, …, {input}]"))?;
        let rows = x.dims()[1..x.rank() - 1].iter().product();
        let mut dims = x.dims().to_vec();
        dims[x.rank() - 1] = out;
        Ok((Rows::uniform(x.dim(0)?, rows)?, dims))
    }

    /// One call, with an output of these dimensions.
    pub fn call(
        &self,
        problem: Problem,
        x: Option<&Tensor>,
        output: impl Into<Shape>,
    ) -> Result<Tensor> {
        let op = LayerOp::new(self.announce(problem.samples())?, problem, output.into());
        let x = x.map(Tensor::contiguous).transpose()?;
        apply(op, x.as_ref(), &self.weight, self.bias.as_ref())
    }

    /// Announces a call of so many samples.
    pub fn announce(&self, samples: usize) -> crate::Result<Call> {
        self.handle.call(samples)
    }
}

/// Checks a tensor's shape.
pub(super) fn expect_shape(argument: &str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(Error::argument(argument, format!("{dims:?}"), format!("{:?}", tensor.dims())).into())
}
