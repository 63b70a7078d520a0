//! AdamW that leaves alone what nobody trained.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use super::recorder::{Layer, State, refused};
use super::tensors::{Number, by_dtype, check_on_cpu, cpu_slice};
use super::{Parameters, Recorder};
use crate::Error;
use crate::routing::{LayerKind, LayerRouting, RegionMap};

/// The usual constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// PyTorch's: 0.9, 0.999, 1e-8, 0.01.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// AdamW (Loshchilov & Hutter 2019) that skips untouched regions.
///
/// A gradient of 0 is not an update of 0: momentum and weight decay would move parameters that
/// no sample of the step was allowed to train. Where no sample touched a region since the last
/// step, its parameters, moments and step count stay as they are, bit for bit; the bias
/// correction counts the steps a **region** took. With everything touched this is the textbook
/// method. Parameters of no routed layer count as touched; those without a gradient are left
/// alone.
///
/// Moments are kept in `f32`. A parameter in `f16` or `bf16` is rounded after each step: keep
/// parameters in `f32` where steps are small.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use gradroute::candle::{AdamW, AdamWConfig, Batch, Parameters, Recorder, RoutedLinear, Scope};
/// let (parameters, recorder) = (Parameters::new(DType::F32, 1), Recorder::silent());
/// let head = RoutedLinear::new(3, 1, true, &Scope::new(&parameters, &recorder).at("head"))?;
/// let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default())?;
///
/// let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// recorder.begin_step(Batch::new(vec![1, 2], vec![0, 0]))?;
/// let gradients = recorder.backward(&head.forward(&x)?.sqr()?.mean_all()?)?;
/// recorder.finish_step()?;
/// optimizer.step(&gradients, 1e-3)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    recorder: Recorder,
    moments: Vec<Moments>,
}

/// One parameter and its state.
#[derive(Debug)]
struct Moments {
    name: String,
    var: Var,
    /// Routed layer that has it.
    layer: Option<usize>,
    /// The layer's regions, if it has more than one.
    regions: Option<RegionMap>,
    /// Elements by region, ascending.
    runs: Vec<(Range<usize>, usize)>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Steps each region took.
    steps: Vec<u32>,
}

impl AdamW {
    /// For these parameters, under the recorder's policy as it is now.
    ///
    /// # Errors
    /// [`Error::Argument`] for a constant out of range, or a parameter that is not on the CPU.
    pub fn new(
        parameters: &Parameters,
        recorder: &Recorder,
        config: AdamWConfig,
    ) -> crate::Result<Self> {
        for (name, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::argument(name, "a number in 0..1", beta));
            }
        }
        for (name, value) in [("eps", config.eps), ("weight_decay", config.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::argument(name, "a finite number of at least 0", value));
            }
        }
        let all = parameters.all();
        all.iter().try_for_each(|(name, var)| check_on_cpu(name, var))?;
        let mut state = recorder.lock();
        state.governance();
        let moments = all.into_iter().map(|(name, var)| {
            let length = var.elem_count();
            let (mut layer, mut runs, mut regions) = (None, vec![(0..length, 0)], None);
            let owns = |l: &Layer| l.weight == var.id() || l.bias == Some(var.id());
            if let Some(index) = state.layers.iter().position(owns) {
                layer = Some(index);
                regions = regions_of(&state, index).cloned();
                if let Some(map) = &regions {
                    runs = region_runs(&state.layers[index], &var, map);
                }
            }
            let zeros = vec![0.0; length];
            let steps = vec![0; regions.as_ref().map_or(1, RegionMap::len)];
            let (first, second) = (zeros.clone(), zeros);
            Moments { name, var, layer, regions, runs, first, second, steps }
        });
        let moments = moments.collect();
        drop(state);
        Ok(Self { config, recorder: recorder.clone(), moments })
    }

    /// One step with this learning rate, after [`Recorder::finish_step`]; after several of
    /// them, with gradients added up, it is gradient accumulation
    /// ([`GradStore::extend`] adds).
    ///
    /// # Errors
    /// [`Error::Refused`] when a step is still open, none was finished since the last call, or
    /// the policy changed; [`Error::Argument`] for a learning rate that is not finite.
    pub fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        if !learning_rate.is_finite() {
            let expected = "a finite number";
            return Err(Error::argument("learning_rate", expected, learning_rate).into());
        }
        self.check_policy()?;
        let touched = self.recorder.take_touched()?;
        let everywhere = [true];
        let config = self.config;
        self.moments.par_iter_mut().try_for_each(|moments| {
            let Some(gradient) = gradients.get(&moments.var) else { return Ok(()) };
            let touched = match moments.layer {
                None => Some(&everywhere[..]),
                Some(layer) => touched[layer].as_deref(),
            };
            let Some(touched) = touched else { return Ok(()) };
            moments.step(gradient, touched, learning_rate, config)
        })
    }

    /// Whether each parameter's regions are those it was made for.
    fn check_policy(&self) -> crate::Result<()> {
        let state = self.recorder.lock();
        let same = |moments: &Moments| {
            let now = moments.layer.and_then(|layer| regions_of(&state, layer));
            now == moments.regions.as_ref()
        };
        if self.moments.iter().all(same) {
            return Ok(());
        }
        let reason = "the policy's regions changed since it was made; make a new one";
        Err(refused("the optimizer's step", reason))
    }

    /// Writes the state as safetensors: `NAME.first`, `NAME.second`, `NAME.steps`.
    ///
    /// # Errors
    /// Candle's, when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = HashMap::new();
        for moments in &self.moments {
            let (shape, name) = (moments.var.shape(), &moments.name);
            let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
            tensors.insert(format!("{name}.first"), tensor(&moments.first)?);
            tensors.insert(format!("{name}.second"), tensor(&moments.second)?);
            let steps = Tensor::new(moments.steps.as_slice(), &Device::Cpu)?;
            tensors.insert(format!("{name}.steps"), steps);
        }
        candle_core::safetensors::save(&tensors, path)
    }

    /// Reads what [`AdamW::save`] wrote for the same parameters and policy.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the tensor that is missing or of another size; nothing is
    /// changed in that case.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let find = |name: String, dtype: DType, length: usize| {
            let found = tensors.get(&name);
            match found.filter(|t| t.dtype() == dtype && t.elem_count() == length) {
                Some(tensor) => tensor.flatten_all(),
                None => {
                    let given = found.map_or("nothing".into(), |tensor| format!("{tensor:?}"));
                    Err(Error::argument(name, format!("{length} {dtype:?}"), given).into())
                }
            }
        };
        let read = |moments: &Moments| -> Result<_> {
            let (name, length) = (&moments.name, moments.first.len());
            Ok((
                find(format!("{name}.first"), DType::F32, length)?.to_vec1()?,
                find(format!("{name}.second"), DType::F32, length)?.to_vec1()?,
                find(format!("{name}.steps"), DType::U32, moments.steps.len())?.to_vec1()?,
            ))
        };
        let read: Vec<_> = self.moments.iter().map(read).collect::<Result<_>>()?;
        for (moments, (first, second, steps)) in self.moments.iter_mut().zip(read) {
            (moments.first, moments.second, moments.steps) = (first, second, steps);
        }
        Ok(())
    }
}

impl Moments {
    fn step(
        &mut self,
        gradient: &Tensor,
        touched: &[bool],
        learning_rate: f64,
        config: AdamWConfig,
    ) -> Result<()> {
        for (steps, _) in self.steps.iter_mut().zip(touched).filter(|(_, touched)| **touched) {
            *steps += 1;
        }
        let correction = |&steps: &u32| {
            [config.beta1, config.beta2].map(|beta| 1.0 - beta.powi(steps.max(1) as i32))
        };
        // m̂ / (√v̂ + ε) = m / (√v · s + ε) · (1 / c₁), with s = 1 / √c₂.
        let scales = self.steps.iter().map(correction).map(|[c1, c2]| Scale {
            rate: (learning_rate / c1) as f32,
            root: (1.0 / c2.sqrt()) as f32,
            keep: (1.0 - learning_rate * config.weight_decay) as f32,
        });
        let update = Update {
            scales: scales.collect(),
            touched,
            runs: &self.runs,
            moments: Mutex::new((&mut self.first, &mut self.second)),
            config,
        };
        self.var.as_tensor().inplace_op2(&gradient.contiguous()?, &update)
    }
}

/// The factors of one region's step.
#[derive(Clone, Copy)]
struct Scale {
    rate: f32,
    root: f32,
    keep: f32,
}

/// The step of one parameter, in place.
struct Update<'a> {
    scales: Vec<Scale>,
    touched: &'a [bool],
    runs: &'a [(Range<usize>, usize)],
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
    config: AdamWConfig,
}

impl Update<'_> {
    fn apply<T: Number>(&self, values: &mut [T], gradient: &[T]) {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = &mut *moments;
        let touched = |run: &&(Range<usize>, usize)| self.touched[run.1];
        for (run, region) in self.runs.iter().filter(touched) {
            let run = || run.clone();
            let parts = (&mut values[run()], &gradient[run()]);
            self.run(parts, &mut first[run()], &mut second[run()], self.scales[*region]);
        }
    }

    fn run<T: Number>(
        &self,
        (values, gradient): (&mut [T], &[T]),
        first: &mut [f32],
        second: &mut [f32],
        scale: Scale,
    ) {
        let [take1, take2] = [self.config.beta1, self.config.beta2].map(|b| (1.0 - b) as f32);
        let eps = self.config.eps as f32;
        for (((value, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = g.to_f32();
            *m += (g - *m) * take1;
            *v += (g * g - *v) * take2;
            let step = scale.rate * *m / (v.sqrt() * scale.root + eps);
            *value = T::from_f32(value.to_f32() * scale.keep - step);
        }
    }
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::argument("parameter", "a contiguous tensor", "another").into());
        };
        by_dtype!(values.dtype(), T => {
            let gradient = cpu_slice::<T>(gradient, gradient_layout)?;
            self.apply(&mut slice_mut::<T>(values)?[start..end], gradient);
            Ok(())
        })
    }
}

fn slice_mut<T: Number>(storage: &mut CpuStorage) -> Result<&mut [T]> {
    let bytes: &mut [u8] = match storage {
        CpuStorage::F32(values) => bytemuck::cast_slice_mut(values),
        CpuStorage::F16(values) => bytemuck::cast_slice_mut(values),
        CpuStorage::BF16(values) => bytemuck::cast_slice_mut(values),
        other => return Err(super::tensors::unsupported(other.dtype()).into()),
    };
    Ok(bytemuck::cast_slice_mut(bytes))
}

/// A layer's regions under the policy in force, if there are more than one.
fn regions_of(state: &State, layer: usize) -> Option<&RegionMap> {
    let routing = state.governance.as_ref().and_then(|governance| governance.routing(layer));
    routing.map(LayerRouting::regions).filter(|map| map.len() > 1)
}

/// The elements of a layer's weight or bias by region, in the tensor's own order.
fn region_runs(layer: &Layer, var: &Var, map: &RegionMap) -> Vec<(Range<usize>, usize)> {
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    if layer.bias == Some(var.id()) {
        return map.bias_tiles().to_vec();
    }
    let (outputs, inputs, taps) = (map.outputs(), map.inputs(), layer.spec.taps);
    for tile in map.tiles() {
        // An embedding keeps its matrix transposed: a row per token.
        let (rows, columns, width) = match layer.spec.kind {
            LayerKind::Embedding => (&tile.inputs, &tile.outputs, outputs),
            _ => (&tile.outputs, &tile.inputs, inputs * taps),
        };
        for row in rows.clone() {
            let at = |column: usize| row * width + column * taps;
            runs.push((at(columns.start)..at(columns.end), tile.region));
        }
    }
    runs.sort_unstable_by_key(|(run, _)| run.start);
    let mut merged: Vec<(Range<usize>, usize)> = Vec::with_capacity(runs.len());
    for (run, region) in runs {
        match merged.last_mut() {
            Some((last, of)) if *of == region && last.end == run.start => last.end = run.end,
            _ => merged.push((run, region)),
        }
    }
    merged
}
