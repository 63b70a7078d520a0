//! Low-rank adapter: both factors, and on the CPU the frozen layer beside them, in one call of
//! [`crate::ops::Backend::lora`].

#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Module, Result, Shape, Tensor};

use super::layers::expect_shape;
use super::linear::RoutedLinear;
use super::op::{Call, Grads, options, shaped};
use super::parameters::Scope;
use super::problem::Problem;
use super::recorder::State;
use super::slot::Gradients;
use super::tensors::{Number, by_dtype, cpu_slice, slice};
use crate::Error;
use crate::cpu::LoraOperands;
use crate::ops::{Backend, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, Options};
use crate::problem::Lora;

/// A linear layer with a low-rank adapter (Hu et al. 2022): `Y = base(X) + scale · (X Aᵀ) Bᵀ`.
/// The factors are layers of their own, `path.lora_a` and `path.lora_b`; the base stays as it
/// is, frozen when it was made from plain tensors.
#[derive(Clone, Debug)]
pub struct RoutedLora {
    base: RoutedLinear,
    a: RoutedLinear,
    b: RoutedLinear,
    scale: f32,
}

impl RoutedLora {
    /// Wraps `base`; `A` starts uniform as a linear layer does, `B` at 0, `scale` is
    /// `alpha / rank`.
    ///
    /// # Errors
    /// As [`RoutedLinear::new`]; for a rank of 0 or an `alpha` that is not finite.
    pub fn new(base: RoutedLinear, rank: usize, alpha: f64, scope: &Scope) -> Result<Self> {
        let scale = scale(rank, alpha)?;
        let (out, input) = base.weight().dims2()?;
        let a = RoutedLinear::new(input, rank, false, &scope.at("lora_a"))?;
        let b_scope = scope.at("lora_b").reads(a.path()).zeros();
        let b = RoutedLinear::new(rank, out, false, &b_scope)?;
        expect_shape("lora_b", b.weight(), &[out, rank])?;
        Ok(Self { base, a, b, scale })
    }

    /// Wraps `base` with given factors, variables `a [rank, in]` and `b [out, rank]`.
    ///
    /// # Errors
    /// As [`RoutedLora::new`]; for shapes that do not fit, and factors that are no variables.
    pub fn from_tensors(
        base: RoutedLinear,
        a: &Tensor,
        b: &Tensor,
        alpha: f64,
        scope: &Scope,
    ) -> Result<Self> {
        let (out, input) = base.weight().dims2()?;
        let rank = a.dim(0)?;
        let scale = scale(rank, alpha)?;
        for (name, factor, shape) in [("a", a, [rank, input]), ("b", b, [out, rank])] {
            expect_shape(name, factor, &shape)?;
            if !factor.is_variable() {
                return Err(Error::argument(name, "a variable", "a plain tensor").into());
            }
        }
        let a = RoutedLinear::from_tensors(a, None, &scope.at("lora_a"))?;
        let b = RoutedLinear::from_tensors(b, None, &scope.at("lora_b").reads(a.path()))?;
        Ok(Self { base, a, b, scale })
    }

    /// The wrapped layer.
    pub fn base(&self) -> &RoutedLinear {
        &self.base
    }

    /// What is added to the base's output; with a base of its own, that output as well.
    fn branch(&self, x: &Tensor, base: Option<&RoutedLinear>) -> Result<Tensor> {
        let [(rank, input), (out, _)] = [self.a.weight().dims2()?, self.b.weight().dims2()?];
        if let Some(base) = base {
            base.0.rows(x, input, out)?;
        }
        let (rows, dims) = self.a.0.rows(x, input, out)?;
        let samples = rows.samples();
        let problem = Lora::new(rows, input, out, rank, self.scale)?;
        let op = LoraOp {
            calls: [self.a.0.announce(samples)?, self.b.0.announce(samples)?],
            problem,
            base: base.map(|base| (base.weight().clone(), base.bias().cloned())),
            output: dims.into(),
            #[cfg(feature = "candle-cuda")]
            ready: Default::default(),
        };
        let x = x.contiguous()?;
        #[cfg(feature = "candle-cuda")]
        if x.device().is_cuda() {
            op.ready.put(op.problem.forward_tensors(&x, self.a.weight(), self.b.weight())?)?;
        }
        x.apply_op3(self.a.weight(), self.b.weight(), op)
    }
}

/// What the branch is multiplied by.
fn scale(rank: usize, alpha: f64) -> crate::Result<f32> {
    if rank == 0 || !alpha.is_finite() {
        let expected = "a rank of at least 1 and a finite alpha";
        return Err(Error::argument("rank", expected, format!("{rank}, {alpha}")));
    }
    Ok((alpha / rank as f64) as f32)
}

impl Module for RoutedLora {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Together, candle need not add two outputs and two gradients.
        if self.base.0.is_frozen() && x.device().is_cpu() {
            return self.branch(x, Some(&self.base));
        }
        self.base.forward(x)? + self.branch(x, None)?
    }
}

/// One call of a branch.
#[derive(Debug)]
pub(super) struct LoraOp {
    /// Of `A` and of `B`.
    pub calls: [Call; 2],
    pub problem: Lora,
    /// Weight and bias of the frozen layer whose output and gradient are part of this call's.
    base: Option<(Tensor, Option<Tensor>)>,
    output: Shape,
    /// On a CUDA device, what candle computed.
    #[cfg(feature = "candle-cuda")]
    ready: super::cuda::Ready,
}

/// `X`, `A`, `B` and `dY`.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub x: &'a Tensor,
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub dy: &'a Tensor,
}

impl LoraOp {
    fn forward<T: Number>(&self, x: &[T], a: &[T], b: &[T]) -> Result<Vec<T>> {
        let (rank, scale) = (self.problem.rank(), self.problem.scale());
        let mut y = vec![T::from_f32(0.0); self.output.elem_count()];
        let recorder = &self.calls[0].handle.recorder;
        if let Some((base, bias)) = &self.base {
            let bias = bias.as_ref().map(Tensor::storage_and_layout);
            let base = base.storage_and_layout();
            let bias = bias.as_ref().map(|bias| slice::<T>(&bias.0, bias.1)).transpose()?;
            let operands = LoraOperands { x, a, b, base: slice(&base.0, base.1)?, bias };
            recorder.compute(|backend| backend.lora_forward(&self.problem, operands, &mut y))?;
            return Ok(y);
        }
        let mut hidden = vec![T::from_f32(0.0); self.problem.rows().total() * rank];
        recorder.compute(|backend| {
            backend.linear_forward(&self.problem.a(), x, a, None, &mut hidden)?;
            // The smaller of the two that could be scaled.
            hidden.iter_mut().for_each(|h| *h = T::from_f32(scale * h.to_f32()));
            backend.linear_forward(&self.problem.b(), &hidden, b, None, &mut y)
        })?;
        Ok(y)
    }

    fn backward(&self, tensors: Operands) -> Result<Grads> {
        let dtype = tensors.dy.dtype();
        let run = || {
            #[cfg(feature = "candle-cuda")]
            if let Some(device) = super::cuda::device_of(tensors.dy) {
                return by_dtype!(dtype, T => self.run_on_device::<T>(&device, tensors));
            }
            by_dtype!(dtype, T => self.run::<T>(tensors))
        };
        let recorder = &self.calls[0].handle.recorder;
        recorder.gather([Some(tensors.a), Some(tensors.b)], run()?)
    }

    fn run<T: Number>(&self, tensors: Operands) -> Result<Grads> {
        let mut guard = self.calls[0].handle.recorder.lock();
        let zeros = |tensor: &Tensor| vec![T::from_f32(0.0); tensor.elem_count()];
        let wanted = self.wanted(&guard, tensors);
        let [mut dx, mut da, mut db] = wanted.map(|tensor| tensor.map(zeros));
        {
            let Operands { x, a, b, dy } = tensors;
            let [x, a, b, dy] = [x, a, b, dy].map(Tensor::storage_and_layout);
            let base = self.base.as_ref().map(|(weight, _)| weight.storage_and_layout());
            let inputs = LoraInputs {
                x: slice::<T>(&x.0, x.1)?,
                dy: slice(&dy.0, dy.1)?,
                a: slice(&a.0, a.1)?,
                b: slice(&b.0, b.1)?,
                base: base.as_ref().map(|base| slice(&base.0, base.1)).transpose()?,
            };
            let gradients =
                [&mut da, &mut db].map(|dw| Gradients { dw: dw.as_deref_mut(), db: None });
            let mut backend = std::mem::take(&mut guard.backend);
            let done = self.record(&mut guard, gradients, |options, out| {
                backend.lora(&self.problem, options, inputs, dx.as_deref_mut(), out)
            });
            guard.backend = backend;
            done?;
        }
        self.stash(&mut guard, tensors)?;
        let [x, a, b] = wanted;
        Ok([shaped(dx, x)?, shaped(da, a)?, shaped(db, b)?])
    }

    /// The operands whose gradients are wanted.
    pub fn wanted<'a>(&self, state: &State, of: Operands<'a>) -> [Option<&'a Tensor>; 3] {
        let [a, b] = &self.calls;
        [
            Some(of.x).filter(|x| x.track_op()),
            Some(of.a).filter(|factor| a.trains(state, factor)),
            Some(of.b).filter(|factor| b.trains(state, factor)),
        ]
    }

    /// Where the factors are in the recorder.
    pub fn indices(&self) -> [usize; 2] {
        let index = |call: &Call| call.handle.index;
        self.calls.each_ref().map(|call| index(call).expect("the factors are variables"))
    }

    /// The backward pass, by `run`, into the recorder.
    pub fn record<T: Number, E: From<Error>>(
        &self,
        state: &mut State,
        [of_a, of_b]: [Gradients<T>; 2],
        run: impl FnOnce([&Options; 2], LoraOutputs<T>) -> crate::Result<(), E>,
    ) -> crate::Result<(), E> {
        let (indices, samples) = (self.indices(), self.problem.rows().samples());
        for (call, index) in self.calls.iter().zip(indices) {
            call.check(state, index)?;
        }
        let State { layers, governance, phase, .. } = state;
        let [a, b] = layers.get_disjoint_mut(indices).expect("each factor has a place of its own");
        let [first, second] = [(&*a, indices[0]), (&*b, indices[1])]
            .map(|(layer, index)| options(governance.as_ref(), phase, index, layer.sketch));
        let out = LoraOutputs {
            a: a.slot.outputs((samples, false), of_a, &first),
            b: b.slot.outputs((samples, false), of_b, &second),
        };
        run([&first, &second], out)?;
        a.slot.add();
        b.slot.add();
        Ok(())
    }

    /// Keeps the call's tensors, if the branch is called more than once: as calls of its factors.
    pub fn stash(&self, state: &mut State, of: Operands) -> Result<()> {
        let indices = self.indices();
        if !state.layers[indices[0]].keeps_calls() {
            return Ok(());
        }
        let (rows, rank) = (self.problem.rows().total(), self.problem.rank());
        let host = |tensor: &Tensor| {
            let last = tensor.dims().last().copied().unwrap_or_default();
            let tensor = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            tensor.reshape((tensor.elem_count() / last.max(1), last))
        };
        let [x, a, b, dy] = [host(of.x)?, host(of.a)?, host(of.b)?, host(of.dy)?];
        let dy = (dy * f64::from(self.problem.scale()))?;
        let hidden = x.matmul(&a.t()?)?;
        let mut d = vec![0.0f32; rows * rank];
        {
            let [hidden, dy, b] = [&hidden, &dy, &b].map(Tensor::storage_and_layout);
            let inputs = LinearInputs {
                x: slice::<f32>(&hidden.0, hidden.1)?,
                dy: slice(&dy.0, dy.1)?,
                weight: Some(slice(&b.0, b.1)?),
            };
            let State { governance, phase, backend, .. } = state;
            let options = options(governance.as_ref(), phase, indices[1], None);
            let out = LayerOutputs::default();
            backend.linear(&self.problem.b(), &options, inputs, Some(&mut d), out)?;
        }
        let d = Tensor::from_vec(d, (rows, rank), &Device::Cpu)?;
        let [of_a, of_b] = [self.problem.a(), self.problem.b()].map(Problem::Linear);
        state.layers[indices[0]].slot.stash(&of_a, &x, &d)?;
        state.layers[indices[1]].slot.stash(&of_b, &hidden, &dy)
    }
}

impl CustomOp3 for LoraOp {
    fn name(&self) -> &'static str {
        "routed-lora"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        by_dtype!(x.dtype(), T => {
            let (x, a) = (cpu_slice::<T>(x, x_layout)?, cpu_slice(a, a_layout)?);
            let y = self.forward(x, a, cpu_slice(b, b_layout)?)?;
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(y), self.output.clone()))
        })
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
        self.ready.take(&self.calls[0].handle.path, &self.output)
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = &dy.contiguous()?;
        let [dx, da, db] = self.backward(Operands { x, a, b, dy })?;
        Ok((dx, da, db))
    }
}
