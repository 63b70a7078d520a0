//! Region switches in the forward pass.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::governance::scaled;
use super::recorder::{Phase, Recorder, refused};
use super::tensors::{Number, by_dtype, check_operand, cpu_slice};
use crate::Error;
use crate::routing::{CompiledPolicy, LayerKind, Switches};

impl Recorder {
    /// Puts the model under a policy, compiled for [`Recorder::layout`].
    ///
    /// # Errors
    /// [`Error::Refused`] in an open step; [`Error::Argument`] when the policy was compiled for
    /// another layout.
    pub fn govern(&self, policy: &CompiledPolicy) -> crate::Result<()> {
        let layout = self.layout()?;
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Idle) {
            return Err(refused("a change of policy", "a step is open; finish it first"));
        }
        if policy.layout() != &layout {
            let given = "another model's";
            return Err(Error::argument("policy", "one compiled for this layout", given));
        }
        state.set_policy(policy.clone());
        Ok(())
    }

    /// The switches of forward passes outside of steps (evaluation, generation) and of probes;
    /// a step's come with its [`super::Batch`].
    ///
    /// # Errors
    /// [`Error::Refused`] in an open step.
    pub fn set_switches(&self, switches: Option<Switches>) -> crate::Result<()> {
        let mut state = self.lock();
        if let Phase::Step(_) = state.phase {
            let reason = "a step is open, and its switches come with its batch";
            return Err(refused("set_switches", reason));
        }
        state.switches = switches;
        Ok(())
    }

    /// Multiplies the features that owned regions hold in `h`, the input of the layer at
    /// `path`, by each sample's switch: `h [N, C, …]` before a convolution or GroupNorm,
    /// `[N, …, C]` before other layers. Call it right before that layer. Where the policy
    /// places no region, `h` comes back as it is.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown path or an `h` that does not fit; [`Error::Refused`]
    /// when there are no switches for this pass.
    pub fn switch(&self, h: &Tensor, path: &str) -> Result<Tensor> {
        let Some(op) = self.switch_op(h, path)? else { return Ok(h.clone()) };
        #[cfg(feature = "candle-cuda")]
        if !h.device().is_cpu() {
            return op.apply_tensors(h);
        }
        h.contiguous()?.apply_op1(op)
    }

    fn switch_op(&self, h: &Tensor, path: &str) -> crate::Result<Option<SwitchOp>> {
        let mut state = self.lock();
        let Some(layer) = state.index(path) else {
            return Err(Error::argument("path", "the path of a routed layer", path));
        };
        let spans: Vec<(Range<usize>, usize)> = state.governance().reads_of(layer).to_vec();
        if spans.is_empty() {
            return Ok(None);
        }
        check_operand("h", h)?;
        let spec = &state.layers[layer].spec;
        let rank = h.rank();
        let axis = match spec.kind {
            LayerKind::Conv2d { .. } => 1,
            LayerKind::Norm(crate::problem::NormKind::Group { .. }) => 1,
            _ => rank.saturating_sub(1),
        };
        let width = spec.input_width();
        if rank < 2 || Some(h.dims()[axis]) != width {
            let expected = format!("{width:?} features before {path}");
            return Err(Error::argument("h", expected, format!("{:?}", h.dims())));
        }
        let switches = match &state.phase {
            Phase::Step(batch) => batch.switches.as_ref(),
            _ => state.switches.as_ref(),
        };
        let Some(switches) = switches else {
            let reason = "regions are owned here, and no switches are given: set `switches` of \
                          the batch, or call set_switches outside of a step";
            return Err(refused(format!("the switch before {path}"), reason));
        };
        let samples = h.dims()[0];
        if switches.samples() != samples {
            let expected = format!("those of the {samples} samples of h");
            return Err(Error::argument("switches", expected, switches.samples()));
        }
        let regions = spans.iter().map(|(_, region)| region + 1).max().unwrap_or(0);
        if switches.regions() < regions {
            let given = format!("{} regions", switches.regions());
            let expected = format!("those of a policy with {regions} regions or more");
            return Err(Error::argument("switches", expected, given));
        }
        let mut factors = vec![1.0; samples * h.dims()[axis]];
        for (n, row) in factors.chunks_exact_mut(h.dims()[axis]).enumerate() {
            for (span, region) in &spans {
                row[span.clone()].fill(switches.value(*region, n));
            }
        }
        let inner = h.dims()[axis + 1..].iter().product();
        Ok(Some(SwitchOp { factors, samples, width: h.dims()[axis], inner }))
    }
}

/// Multiplies `[N, rows, width, inner]` by `factors [N, width]`; its own backward.
struct SwitchOp {
    factors: Vec<f32>,
    samples: usize,
    width: usize,
    inner: usize,
}

impl SwitchOp {
    fn apply<T: Number>(&self, x: &[T]) -> Vec<T> {
        let mut y = x.to_vec();
        let each = x.len() / self.samples.max(1);
        let (width, inner) = (self.width, self.inner.max(1));
        if each == 0 {
            return y;
        }
        y.par_chunks_mut(each).zip(self.factors.par_chunks(width)).for_each(|(sample, factors)| {
            for (run, &factor) in sample.chunks_mut(inner).zip(factors.iter().cycle()) {
                if factor != 1.0 {
                    run.iter_mut().for_each(|value| *value = scaled(*value, factor));
                }
            }
        });
        y
    }
}

#[cfg(any(test, feature = "candle-cuda"))]
impl SwitchOp {
    /// The same by candle's own operations, on whatever device; a factor of 0 selects here too.
    fn apply_tensors(&self, h: &Tensor) -> Result<Tensor> {
        let (samples, width, inner) = (self.samples, self.width, self.inner.max(1));
        let rows = h.elem_count() / (samples * width * inner).max(1);
        let split = h.reshape((samples, rows, width, inner))?;
        let factors = Tensor::from_slice(&self.factors, (samples, 1, width, 1), h.device())?;
        let on = factors.ne(0_f32)?.broadcast_as(split.shape())?;
        let scaled = split.broadcast_mul(&factors.to_dtype(h.dtype())?)?;
        on.where_cond(&scaled, &split.zeros_like()?)?.reshape(h.shape())
    }
}

impl CustomOp1 for SwitchOp {
    fn name(&self) -> &'static str {
        "region-switch"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = by_dtype!(candle_core::backend::BackendStorage::dtype(storage), T => {
            let values = self.apply(cpu_slice::<T>(storage, layout)?);
            Ok::<_, Error>(<T as candle_core::WithDType>::to_cpu_storage_owned(values))
        })?;
        Ok((values, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let again = Self { factors: self.factors.clone(), ..*self };
        dy.contiguous()?.apply_op1_no_bwd(&again).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn both_ways_of_switching_agree() {
        let (samples, width, inner) = (2, 3, 4);
        let op =
            || SwitchOp { factors: vec![1.0, 0.0, 0.5, 0.0, 1.0, -2.0], samples, width, inner };
        let mut values: Vec<f32> = (0..48).map(|at| at as f32 - 20.0).collect();
        // Of the first sample's second feature, which is off.
        values[5] = f32::NAN;
        let h = Var::from_vec(values, (2, 2, 3, 4), &Device::Cpu).unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let both = [h.apply_op1(op()).unwrap(), op().apply_tensors(&h).unwrap()];
        assert_eq!(flat(&both[0]), flat(&both[1]));
        assert!(flat(&both[0])[5] == 0.0 && flat(&both[0])[8] == -6.0);
        let slopes = both.map(|y| {
            let gradients = y.sum_all().unwrap().backward().unwrap();
            flat(gradients.get(&h).unwrap())
        });
        assert_eq!(slopes[0], slopes[1]);
    }
}
