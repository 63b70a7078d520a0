//! The custom op behind every routed layer: forward through candle, backward through
//! [`crate::ops`], records into the recorder.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType,
};

use super::problem::{Problem, Slices};
use super::recorder::{Phase, Recorder, State, refused};
use super::slot::Gradients;
use super::tensors::{Number, by_dtype, cpu_slice, slice};
use crate::Error;
use crate::ops::{LayerOutputs, Options, Routing};
use crate::problem::Element;

/// A layer's parameters and its place in the recorder; a frozen layer has none.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub recorder: Recorder,
    pub path: String,
    pub index: Option<usize>,
}

impl Handle {
    /// Announces a call in the forward pass. The result belongs to the open step or probe, or
    /// to none, and then it has no backward.
    pub fn call(&self, problem: Problem, output: Shape) -> crate::Result<LayerOp> {
        let mut state = self.recorder.lock();
        if let Some(expected) = state.samples() {
            let given = problem.samples();
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
        let (handle, used) = (self.clone(), AtomicBool::new(false));
        #[cfg(feature = "candle-cuda")]
        let ready = std::sync::Mutex::default();
        Ok(LayerOp {
            handle,
            problem,
            output,
            serial,
            used,
            #[cfg(feature = "candle-cuda")]
            ready,
        })
    }
}

/// One call of a layer.
#[derive(Debug)]
pub(super) struct LayerOp {
    pub handle: Handle,
    pub problem: Problem,
    pub output: Shape,
    /// The step it belongs to; 0 for none.
    serial: u64,
    /// Whether its gradient has arrived.
    used: AtomicBool,
    /// On a CUDA device, what candle computed.
    #[cfg(feature = "candle-cuda")]
    pub ready: std::sync::Mutex<Option<Tensor>>,
}

/// Gradients of `x`, the weight and the bias.
pub(super) type Grads = [Option<Tensor>; 3];

/// A forward operand.
type Operand<'a> = (&'a CpuStorage, &'a Layout);

impl LayerOp {
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
            // Not under the lock: a thread that waits here for its share of the work may be
            // given another forward pass of the same model meanwhile.
            let mut backend = std::mem::take(&mut self.handle.recorder.lock().backend);
            let done = self.problem.forward(&mut backend, x, values(weight)?, bias, &mut y);
            self.handle.recorder.lock().backend = backend;
            done?;
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
        #[cfg(feature = "candle-cuda")]
        if let Some(device) = super::cuda::device_of(&dy) {
            return by_dtype!(dy.dtype(), T => {
                self.run_on_device::<T>(&device, x, weight, bias, &dy)
            });
        }
        by_dtype!(dy.dtype(), T => self.run::<T>(x, weight, bias, &dy))
    }

    fn run<T: Number>(
        &self,
        x: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<Grads> {
        let mut guard = self.handle.recorder.lock();
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
        let tensor = |values: Option<Vec<T>>, like: Option<&Tensor>| {
            values
                .zip(like)
                .map(|(values, like)| Tensor::from_vec(values, like.shape(), like.device()))
                .transpose()
        };
        Ok([tensor(dx, x)?, tensor(dw, Some(weight))?, tensor(db, bias)?])
    }

    /// The operands whose gradients are wanted.
    pub fn wanted<'a>(
        &self,
        state: &State,
        x: Option<&'a Tensor>,
        weight: &'a Tensor,
        bias: Option<&'a Tensor>,
    ) -> [Option<&'a Tensor>; 3] {
        let trains = self.handle.index.is_some() && !matches!(state.phase, Phase::Probe(_));
        let parameter = |tensor: &&Tensor| trains && tensor.track_op();
        [x.filter(|x| x.track_op()), Some(weight).filter(parameter), bias.filter(parameter)]
    }

    /// Keeps the call's tensors, if its layer is called more than once.
    pub fn stash(&self, state: &mut State, x: Option<&Tensor>, dy: &Tensor) -> Result<()> {
        let Some(index) = self.handle.index else { return Ok(()) };
        let slot = &mut state.layers[index].slot;
        if slot.calls > 1 {
            slot.stash(&self.problem, x.unwrap_or(dy), dy)?;
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
        let Some(index) = self.handle.index else {
            return run(&Options::default(), LayerOutputs::default());
        };
        self.check(state, index)?;
        let State { layers, governance, phase, .. } = state;
        let layer = &mut layers[index];
        let (batch, probes) = match phase {
            Phase::Step(batch) => (batch, false),
            Phase::Probe(batch) => (batch, true),
            Phase::Idle => unreachable!("checked above"),
        };
        let routing = governance
            .as_ref()
            .filter(|_| !probes)
            .and_then(|governance| governance.routing(index));
        let options = Options {
            routing: routing.map(|routing| Routing {
                layer: routing,
                categories: &batch.categories,
                gates: batch.gates.as_deref(),
            }),
            sketch: layer.sketch,
            sketch_routed: routing.is_some(),
            accumulate: false,
            sample_scale: batch.sample_scale,
        };
        let regions = routing.map_or(1, |routing| routing.regions().len());
        let length = layer.sketch.map(|sketch| sketch.len());
        let out = layer.slot.outputs(&self.problem, gradients, regions, length);
        run(&options, out)?;
        layer.slot.add();
        Ok(())
    }

    fn check(&self, state: &State, index: usize) -> crate::Result<()> {
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
        if slot.done > 0 && slot.calls > 1 && slot.stashed() < slot.done {
            let reason = "the layer was called again after its backward in the same step; \
                          finish the step between micro-batches";
            return Err(refused(what(), reason));
        }
        Ok(())
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
        let y = op.problem.forward_tensors(x, weight, bias)?.contiguous()?;
        *op.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(y);
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
        self.ready()
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
        self.ready()
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
        self.ready()
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
