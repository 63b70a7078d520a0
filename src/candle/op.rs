//! The custom op behind every routed layer: forward through candle, backward through
//! [`crate::ops`], records into the recorder.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType,
};

use super::governance::Governance;
use super::problem::{Problem, Slices};
use super::recorder::{Layer, Phase, Recorder, State, refused};
use super::slot::Gradients;
use super::tensors::{Number, by_dtype, cpu_slice, slice};
use crate::Error;
use crate::ops::{LayerOutputs, Options, Routing};
use crate::problem::Element;
use crate::projection::Sketch;

/// A layer's parameters and its place in the recorder; a frozen layer has none.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub recorder: Recorder,
    pub path: String,
    pub index: Option<usize>,
}

impl Handle {
    /// Announces a call in the forward pass, of so many samples. The result belongs to the open step or
    /// probe, or to none, and then it has no backward.
    pub fn call(&self, given: usize) -> crate::Result<Call> {
        let mut state = self.recorder.lock();
        if let Some(expected) = state.samples() {
            if given != expected {
                let argument = format!("first dimension of the input of {}", self.path);
                let expected = format!("{expected}, the samples of the batch");
                return Err(Error::argument(argument, expected, given));
            }
            if let Some(index) = self.index {
                state.layers[index].slot.calls += 1;
            }
        }
        let serial = if matches!(state.phase, Phase::Idle) { 0 } else { state.serial };
        Ok(Call { handle: self.clone(), serial, used: AtomicBool::new(false) })
    }
}

/// One call of a layer, as the recorder knows it.
#[derive(Debug)]
pub(super) struct Call {
    pub handle: Handle,
    /// The step it belongs to; 0 for none.
    serial: u64,
    /// Whether its gradient has arrived.
    used: AtomicBool,
}

impl Call {
    /// Whether the gradient of a parameter of the layer is wanted.
    pub fn trains(&self, state: &State, parameter: &Tensor) -> bool {
        let recorded = self.handle.index.is_some() && !matches!(state.phase, Phase::Probe(_));
        recorded && parameter.track_op()
    }

    /// Refuses a gradient that cannot be recorded.
    pub fn check(&self, state: &State, index: usize) -> crate::Result<()> {
        let what = || format!("backward of layer {}", self.handle.path);
        if matches!(state.phase, Phase::Idle) {
            return Err(refused(
                what(),
                "no step is open; call begin_step before the forward pass",
            ));
        }
        if self.serial != state.serial {
            let reason = "its forward pass ran outside this step; call begin_step first";
            return Err(refused(what(), reason));
        }
        if self.used.swap(true, Ordering::Relaxed) {
            let reason = "it ran already in this step, and a second gradient cannot be added to \
                          exact norms; sum the losses and call backward once";
            return Err(refused(what(), reason));
        }
        let slot = &state.layers[index].slot;
        let kept = state.layers[index].keeps_calls();
        if kept && slot.done > 0 && slot.stashed() < slot.done {
            let reason = "the layer was called again after its backward in the same step; \
                          finish the step between micro-batches";
            return Err(refused(what(), reason));
        }
        Ok(())
    }
}

/// One call of a layer.
#[derive(Debug)]
pub(super) struct LayerOp {
    pub call: Call,
    pub problem: Problem,
    pub output: Shape,
    /// On a CUDA device, what candle computed.
    #[cfg(feature = "candle-cuda")]
    ready: super::cuda::Ready,
}

/// Gradients of `x`, the weight and the bias.
pub(super) type Grads = [Option<Tensor>; 3];

/// A forward operand.
type Operand<'a> = (&'a CpuStorage, &'a Layout);

impl LayerOp {
    pub fn new(call: Call, problem: Problem, output: Shape) -> Self {
        Self {
            call,
            problem,
            output,
            #[cfg(feature = "candle-cuda")]
            ready: Default::default(),
        }
    }

    fn forward(
        &self,
        x: Option<Operand>,
        weight: Operand,
        bias: Option<Operand>,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(weight.0.dtype(), T => {
            let values = |(storage, layout)| cpu_slice::<T>(storage, layout);
            let x = x.map(values).transpose()?.unwrap_or_default();
            let bias = bias.map(values).transpose()?;
            let mut y = vec![T::from_f32(0.0); self.output.elem_count()];
            let weight = values(weight)?;
            let recorder = &self.call.handle.recorder;
            recorder.compute(|backend| self.problem.forward(backend, x, weight, bias, &mut y))?;
            Ok((<T as WithDType>::to_cpu_storage_owned(y), self.output.clone()))
        })
    }

    fn backward(
        &self,
        x: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<Grads> {
        let dy = dy.contiguous()?;
        let run = || {
            #[cfg(feature = "candle-cuda")]
            if let Some(device) = super::cuda::device_of(&dy) {
                return by_dtype!(dy.dtype(), T => {
                    self.run_on_device::<T>(&device, x, weight, bias, &dy)
                });
            }
            by_dtype!(dy.dtype(), T => self.run::<T>(x, weight, bias, &dy))
        };
        self.call.handle.recorder.gather([Some(weight), bias], run()?)
    }

    fn run<T: Number>(
        &self,
        x: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<Grads> {
        let mut guard = self.call.handle.recorder.lock();
        let zeros = |tensor: &Tensor| vec![T::from_f32(0.0); tensor.elem_count()];
        let wanted = self.wanted(&guard, x, weight, bias);
        let [mut dx, mut dw, mut db] = wanted.map(|tensor| tensor.map(zeros));
        {
            let xs = x.map(|x| x.storage_and_layout());
            let (ws, wl) = weight.storage_and_layout();
            let (dys, dyl) = dy.storage_and_layout();
            let x = match &xs {
                Some((xs, xl)) => slice::<T>(xs, xl)?,
                None => &[],
            };
            let slices =
                Slices { x, dy: slice::<T>(&dys, dyl)?, weight: Some(slice::<T>(&ws, wl)?) };
            let gradients = Gradients { dw: dw.as_deref_mut(), db: db.as_deref_mut() };
            let mut backend = std::mem::take(&mut guard.backend);
            let done = self.record(&mut guard, gradients, |options, out| {
                let dx = dx.as_deref_mut();
                self.problem.backward(&mut backend, options, slices, dx, out)
            });
            guard.backend = backend;
            done?;
        }
        self.stash(&mut guard, x, dy)?;
        Ok([shaped(dx, x)?, shaped(dw, Some(weight))?, shaped(db, bias)?])
    }

    /// The operands whose gradients are wanted.
    pub fn wanted<'a>(
        &self,
        state: &State,
        x: Option<&'a Tensor>,
        weight: &'a Tensor,
        bias: Option<&'a Tensor>,
    ) -> [Option<&'a Tensor>; 3] {
        let parameter = |tensor: &&Tensor| self.call.trains(state, tensor);
        [x.filter(|x| x.track_op()), Some(weight).filter(parameter), bias.filter(parameter)]
    }

    /// Keeps the call's tensors, if its layer is called more than once.
    pub fn stash(&self, state: &mut State, x: Option<&Tensor>, dy: &Tensor) -> Result<()> {
        let Some(index) = self.call.handle.index else { return Ok(()) };
        let layer = &mut state.layers[index];
        if layer.keeps_calls() {
            layer.slot.stash(&self.problem, x.unwrap_or(dy), dy)?;
        }
        Ok(())
    }

    /// The backward pass, by `run`, into the recorder; that of a layer that is not registered leaves
    /// nothing there.
    pub fn record<T: Number, E: From<Error>>(
        &self,
        state: &mut State,
        gradients: Gradients<T>,
        run: impl FnOnce(&Options, LayerOutputs<T>) -> crate::Result<(), E>,
    ) -> crate::Result<(), E> {
        let Some(index) = self.call.handle.index else {
            return run(&Options::default(), LayerOutputs::default());
        };
        self.call.check(state, index)?;
        let State { layers, governance, phase, .. } = state;
        let Layer { slot, sketch, .. } = &mut layers[index];
        let options = options(governance.as_ref(), phase, index, *sketch);
        let bias = self.problem.gradient().bias();
        let out = slot.outputs((self.problem.samples(), bias), gradients, &options);
        run(&options, out)?;
        slot.add();
        Ok(())
    }
}

/// A gradient, if there is one, in the shape of what it is of.
pub(super) fn shaped<T: Number>(
    values: Option<Vec<T>>,
    like: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let both = values.zip(like);
    both.map(|(values, like)| Tensor::from_vec(values, like.shape(), like.device())).transpose()
}

/// What is said of a layer's gradient in the open step or probe; a probe's is not routed.
pub(super) fn options<'a>(
    governance: Option<&'a Governance>,
    phase: &'a Phase,
    index: usize,
    sketch: Option<Sketch>,
) -> Options<'a> {
    let (batch, routing) = match phase {
        Phase::Step(batch) => (batch, governance.and_then(|all| all.routing_of(index, batch))),
        Phase::Probe(batch) => (batch, None),
        Phase::Idle => unreachable!("every gradient is checked first"),
    };
    Options {
        routing: routing.map(|routing| Routing {
            layer: routing,
            categories: &batch.categories,
            gates: batch.gates.as_deref(),
        }),
        sketch,
        sketch_routed: routing.is_some(),
        accumulate: false,
        sample_scale: batch.sample_scale,
    }
}

/// Applies a layer to contiguous operands; an embedding has no `x`.
pub(super) fn apply(
    op: LayerOp,
    x: Option<&Tensor>,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    #[cfg(feature = "candle-cuda")]
    if weight.device().is_cuda() {
        op.ready.put(op.problem.forward_tensors(x, weight, bias)?)?;
    }
    match (x, bias) {
        (None, _) => weight.apply_op1(op),
        (Some(x), None) => x.apply_op2(weight, op),
        (Some(x), Some(bias)) => x.apply_op3(weight, bias, op),
    }
}

impl CustomOp1 for LayerOp {
    fn name(&self) -> &'static str {
        "routed-embedding"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(None, (weight, layout), None)
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.ready.take(&self.call.handle.path, &self.output)
    }

    fn bwd(&self, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [_, dw, _] = self.backward(None, weight, None, dy)?;
        Ok(dw)
    }
}

impl CustomOp2 for LayerOp {
    fn name(&self) -> &'static str {
        "routed-layer"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(Some((x, x_layout)), (weight, weight_layout), None)
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.ready.take(&self.call.handle.path, &self.output)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.backward(Some(x), weight, None, dy)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for LayerOp {
    fn name(&self) -> &'static str {
        "routed-layer"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(Some((x, x_layout)), (weight, weight_layout), Some((bias, bias_layout)))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.ready.take(&self.call.handle.path, &self.output)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.backward(Some(x), weight, Some(bias), dy)?;
        Ok((dx, dw, db))
    }
}
