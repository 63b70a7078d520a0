//! The recorder: layers register with it, report to it, and it makes the step's record.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, TensorId};

use super::backward::Passes;
use super::batch::Batch;
use super::governance::Governance;
use super::slot::Slot;
use crate::cpu::Cpu;
use crate::projection::{Sketch, SketchKind};
use crate::provenance::StepRecord;
use crate::routing::{CompiledPolicy, LayerSpec, ModelLayout, Switches};
use crate::{Error, Result};

/// Shared by all routed modules of a model; clones are the same recorder. Forward passes may run
/// in parallel, backward passes one after the other.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use gradroute::candle::{Batch, Parameters, Recorder, RoutedLinear, Scope};
/// use gradroute::projection::SketchKind;
///
/// let recorder = Recorder::new(SketchKind::Count { buckets: 64 }, 7)?;
/// let parameters = Parameters::new(DType::F32, 1);
/// let scope = Scope::new(&parameters, &recorder);
/// let head = RoutedLinear::new(3, 2, true, &scope.at("head"))?;
///
/// recorder.begin_step(Batch::new(vec![100, 101], vec![0, 0]))?;
/// let x = Tensor::new(&[[1f32, 0., 0.], [0., 2., 0.]], &Device::Cpu)?;
/// let loss = head.forward(&x)?.sqr()?.mean_all()?;
/// let gradients = recorder.backward(&loss)?;
/// let record = recorder.finish_step()?;
/// assert_eq!((record.samples.len(), record.blocks, record.sketch.len()), (2, 1, 2 * 64));
/// assert!(gradients.get(&parameters.get("head.weight").unwrap()).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<State>>);

/// What probing leaves behind: per-sample sketches of the **unrouted** gradient, to query with.
/// `N` samples, `B` blocks, `K` numbers; row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeRecord {
    /// `B`.
    pub blocks: usize,
    /// Squared norms, `[N, B]`.
    pub sq_norm: Vec<f32>,
    /// Sketches, `[N, B, K]`.
    pub sketch: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct State {
    pub backend: Cpu,
    #[cfg(feature = "candle-cuda")]
    pub devices: super::cuda::Devices,
    /// What is recorded; none routes only.
    pub sketch: Option<(SketchKind, u32)>,
    pub layers: Vec<Layer>,
    pub governance: Option<Governance>,
    pub phase: Phase,
    /// Region switches outside of steps.
    pub switches: Option<Switches>,
    /// Counts steps and probes; 0 before the first.
    pub serial: u64,
    /// Layers that the last finished step reached.
    pub reached: Vec<bool>,
    /// Backward passes under way.
    pub passes: Passes,
    /// Regions touched by the steps finished since the optimizer last took them.
    touched: Option<Touched>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Step(Batch),
    Probe(Batch),
}

#[derive(Debug)]
pub(super) struct Layer {
    pub spec: LayerSpec,
    pub sketch: Option<Sketch>,
    pub weight: TensorId,
    pub bias: Option<TensorId>,
    pub slot: Slot,
}

impl Layer {
    /// Whether a step's calls are kept until all have arrived, to be measured together.
    pub fn keeps_calls(&self) -> bool {
        self.sketch.is_some() && self.slot.calls > 1
    }
}

/// Per layer, which of its regions were touched; none where no gradient arrived.
pub(super) type Touched = Vec<Option<Vec<bool>>>;

impl Recorder {
    /// Records exact norms, and sketches of this kind with this seed.
    ///
    /// # Errors
    /// As [`Sketch::new`].
    pub fn new(sketch: SketchKind, seed: u32) -> Result<Self> {
        Sketch::new(sketch, seed, 0)?;
        Ok(Self::with(Some((sketch, seed))))
    }

    /// Routes, and measures neither norms (NaN in the record) nor sketches (of 0 numbers).
    pub fn silent() -> Self {
        Self::with(None)
    }

    fn with(sketch: Option<(SketchKind, u32)>) -> Self {
        Self(Arc::new(Mutex::new(State {
            backend: Cpu::new(),
            #[cfg(feature = "candle-cuda")]
            devices: super::cuda::Devices::default(),
            sketch,
            layers: Vec::new(),
            governance: None,
            phase: Phase::Idle,
            switches: None,
            serial: 0,
            reached: Vec::new(),
            passes: Passes::new(),
            touched: None,
        })))
    }

    /// The layers built so far, in the order they were built.
    ///
    /// # Errors
    /// As [`ModelLayout::new`].
    pub fn layout(&self) -> Result<ModelLayout> {
        ModelLayout::new(self.lock().specs())
    }

    /// Names of the blocks: the policy's, or without one every layer by itself.
    pub fn blocks(&self) -> Vec<String> {
        let mut state = self.lock();
        state.governance().blocks()
    }

    /// Numbers per sample and block sketch, `K`; 0 when nothing is recorded.
    pub fn sketch_len(&self) -> usize {
        self.lock().sketch_len()
    }

    /// Starts a step: what follows, up to [`Recorder::finish_step`], belongs to this batch.
    ///
    /// # Errors
    /// [`Error::Refused`] when another step is open; [`Error::Argument`] naming the field of
    /// `batch` that does not fit.
    pub fn begin_step(&self, mut batch: Batch) -> Result<()> {
        let mut state = self.lock();
        let known = state.governance().categories();
        batch.check(known)?;
        if known.is_none() {
            // Any id will do, and all of them are treated alike.
            batch.categories.fill(0);
        }
        state.begin(Phase::Step(batch))
    }

    /// Starts a probe of `samples` queries: backward passes sketch each sample's unrouted
    /// gradient, and compute no parameter gradients. `sample_scale` as in [`Batch`].
    ///
    /// # Errors
    /// As [`Recorder::begin_step`].
    pub fn begin_probe(&self, samples: usize, sample_scale: f32) -> Result<()> {
        let mut state = self.lock();
        let batch = Batch { samples: vec![0; samples], sample_scale, ..Batch::default() };
        let batch = Batch { categories: vec![0; samples], ..batch };
        batch.check(None)?;
        state.begin(Phase::Probe(batch))
    }

    /// Ends the step and hands out its record. Layers whose gradient did not arrive count as 0
    /// there and are named by [`Recorder::coverage`].
    ///
    /// # Errors
    /// [`Error::Refused`] when no step is open.
    pub fn finish_step(&self) -> Result<StepRecord> {
        let mut state = self.lock();
        let Phase::Step(_) = state.phase else {
            return Err(refused("finish_step", "no step is open; call begin_step first"));
        };
        state.finish_shared()?;
        state.collect_touched();
        let (sq_norm, sketch) = state.totals();
        state.reached = state.layers.iter().map(|layer| layer.slot.done > 0).collect();
        let Phase::Step(batch) = std::mem::replace(&mut state.phase, Phase::Idle) else {
            unreachable!("checked above");
        };
        let governance = state.governance();
        let weight = |which: usize| -> Vec<f32> {
            (batch.categories.iter())
                .flat_map(|&category| {
                    (0..governance.len())
                        .map(move |block| governance.weights(category, block)[which])
                })
                .collect()
        };
        let samples = batch.samples.len();
        Ok(StepRecord {
            step: batch.step,
            step_size: batch.step_size,
            optimizer_scale: 1.0,
            blocks: governance.len(),
            route: weight(0),
            flow: weight(1),
            noise_levels: batch.noise_levels.unwrap_or_else(|| vec![f32::NAN; samples]),
            gates: batch.gates.unwrap_or_else(|| vec![1.0; samples]),
            samples: batch.samples,
            sq_norm,
            sketch,
        })
    }

    /// Ends the probe.
    ///
    /// # Errors
    /// [`Error::Refused`] when no probe is open.
    pub fn finish_probe(&self) -> Result<ProbeRecord> {
        let mut state = self.lock();
        let Phase::Probe(_) = state.phase else {
            return Err(refused("finish_probe", "no probe is open; call begin_probe first"));
        };
        state.finish_shared()?;
        let (sq_norm, sketch) = state.totals();
        let blocks = state.governance().len();
        state.phase = Phase::Idle;
        Ok(ProbeRecord { blocks, sq_norm, sketch })
    }

    /// Drops the open step or probe, if any, with all it recorded: after an error, say.
    pub fn abandon(&self) {
        self.lock().phase = Phase::Idle;
    }

    /// Refuses a layer that [`register`](Self::register) would, before it has any parameters.
    pub(super) fn check_new(&self, path: &str) -> Result<()> {
        self.lock().check_new(path)
    }

    /// Registers a layer.
    pub(super) fn register(
        &self,
        spec: LayerSpec,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<usize> {
        let mut state = self.lock();
        state.check_new(&spec.path)?;
        for tensor in [Some(weight), bias].into_iter().flatten() {
            let holds =
                |layer: &&Layer| layer.weight == tensor.id() || layer.bias == Some(tensor.id());
            if let Some(other) = state.layers.iter().find(holds) {
                let what = format!("layer {}", spec.path);
                let reason = format!(
                    "its parameter already belongs to layer {}; call that layer twice instead, \
                     so that each sample's gradients are added before they are measured",
                    other.spec.path
                );
                return Err(refused(what, reason));
            }
        }
        let index = state.layers.len();
        let sketch = match state.sketch {
            Some((kind, seed)) => Some(Sketch::new(kind, seed, index as u32)?),
            None => None,
        };
        let (weight, bias) = (weight.id(), bias.map(Tensor::id));
        state.layers.push(Layer { spec, sketch, weight, bias, slot: Slot::default() });
        Ok(index)
    }

    /// Takes the regions touched since the last call, for the optimizer.
    pub(super) fn take_touched(&self) -> Result<Touched> {
        let mut state = self.lock();
        if let Phase::Step(_) = state.phase {
            return Err(refused("the optimizer's step", "a step is open; call finish_step first"));
        }
        state.touched.take().ok_or_else(|| {
            refused("the optimizer's step", "no step was finished since the last one")
        })
    }

    /// Runs a forward pass with the recorder's buffers. Not under the lock: a thread that waits there for its share
    /// of the work may be given another forward pass of the same model meanwhile.
    pub(super) fn compute<R>(&self, run: impl FnOnce(&mut Cpu) -> R) -> R {
        let mut backend = std::mem::take(&mut self.lock().backend);
        let done = run(&mut backend);
        self.lock().backend = backend;
        done
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The policy in force; opening it fixes the list of layers.
    pub fn governance(&mut self) -> &Governance {
        if self.governance.is_none() {
            self.governance = Some(Governance::open(&self.specs()));
        }
        self.governance.as_ref().expect("just set")
    }

    /// Puts a policy in force; what was touched under another one no longer counts.
    pub fn set_policy(&mut self, policy: CompiledPolicy) {
        self.governance = Some(Governance::Policy(Box::new(policy)));
        (self.touched, self.reached) = (None, Vec::new());
    }

    fn check_new(&self, path: &str) -> Result<()> {
        if self.governance.is_some() {
            let reason = "the recorder is in use; build all layers first";
            return Err(refused(format!("layer {path}"), reason));
        }
        if self.index(path).is_some() {
            return Err(Error::argument("path", "a path no other layer has", path));
        }
        Ok(())
    }

    pub fn index(&self, path: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.spec.path == path)
    }

    pub fn specs(&self) -> Vec<LayerSpec> {
        self.layers.iter().map(|layer| layer.spec.clone()).collect()
    }

    fn sketch_len(&self) -> usize {
        self.sketch.map_or(0, |(kind, _)| kind.len())
    }

    fn begin(&mut self, phase: Phase) -> Result<()> {
        if !matches!(self.phase, Phase::Idle) {
            let reason = "the last one is still open; finish or abandon it first";
            return Err(refused("a new step or probe", reason));
        }
        self.governance();
        self.serial += 1;
        self.phase = phase;
        for layer in &mut self.layers {
            layer.slot.clear();
        }
        Ok(())
    }

    /// Samples of the open step or probe.
    pub fn samples(&self) -> Option<usize> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Step(batch) | Phase::Probe(batch) => Some(batch.samples.len()),
        }
    }

    /// Per-sample norms of layers that were called more than once.
    fn finish_shared(&mut self) -> Result<()> {
        let (Phase::Step(batch) | Phase::Probe(batch)) = &self.phase else { return Ok(()) };
        for layer in &mut self.layers {
            layer.slot.measure_calls(&mut self.backend, batch.sample_scale)?;
        }
        Ok(())
    }

    fn collect_touched(&mut self) {
        let touched = self.touched.get_or_insert_with(|| vec![None; self.layers.len()]);
        for (all, layer) in touched.iter_mut().zip(&self.layers) {
            if layer.slot.done == 0 {
                continue;
            }
            match all {
                Some(all) => {
                    all.iter_mut().zip(&layer.slot.touched).for_each(|(all, now)| *all |= now);
                }
                None => *all = Some(layer.slot.touched.clone()),
            }
        }
    }

    /// Squared norms `[N, B]` and sketches `[N, B, K]`, layers added up in their order.
    fn totals(&self) -> (Vec<f32>, Vec<f32>) {
        let (Some(samples), Some(governance)) = (self.samples(), &self.governance) else {
            return Default::default();
        };
        let (blocks, k) = (governance.len(), self.sketch_len());
        if self.sketch.is_none() {
            return (vec![f32::NAN; samples * blocks], Vec::new());
        }
        let mut sq_norm = vec![0.0; samples * blocks];
        let mut sketch = vec![0.0; samples * blocks * k];
        for (index, layer) in self.layers.iter().enumerate() {
            let block = governance.block_of(index).filter(|_| layer.slot.done > 0);
            let Some(block) = block else { continue };
            for n in 0..samples {
                let at = n * blocks + block;
                sq_norm[at] += layer.slot.sq_norm_of(n);
                let sum = &mut sketch[at * k..][..k];
                for (sum, value) in sum.iter_mut().zip(&layer.slot.sketch[n * k..][..k]) {
                    *sum += value;
                }
            }
        }
        (sq_norm, sketch)
    }
}

pub(super) fn refused(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Refused { what: what.into(), reason: reason.into() }
}
