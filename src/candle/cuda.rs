//! Layers whose tensors live on a CUDA device: forward by candle's own operations, backward by the
//! kernels on candle's stream and buffers, records to the host after each layer.
//!
//! ```no_run
//! use candle_core::{Device, Module, Tensor, Var};
//! use gradroute::candle::{Batch, Parameters, Recorder, RoutedLinear, Scope};
//! use gradroute::projection::SketchKind;
//!
//! let device = Device::new_cuda(0)?;
//! let recorder = Recorder::new(SketchKind::Count { buckets: 64 }, 7)?;
//! let parameters = Parameters::new(candle_core::DType::BF16, 1);
//! let scope = Scope::new(&parameters, &recorder);
//! let weight = Var::zeros((8, 4), candle_core::DType::BF16, &device)?;
//! let layer = RoutedLinear::from_tensors(&weight, None, &scope.at("layer"))?;
//! recorder.begin_step(Batch { step_size: 1e-3, ..Batch::new(vec![100], vec![0]) })?;
//! let x = Tensor::ones((1, 4), candle_core::DType::BF16, &device)?;
//! let gradients = recorder.backward(&layer.forward(&x)?.sum_all()?)?;
//! println!("{:?}", recorder.finish_step()?.sq_norm);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Layout, Shape, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr, ValidAsZeroBits};

use super::lora::{self, LoraOp};
use super::op::{Grads, LayerOp};
use super::problem::Problem;
use super::recorder::refused;
use super::tensors::Number;
use crate::cuda::{
    Cuda, Device, DeviceCategories, DeviceGrad, DeviceInputs, DeviceOutputs, DeviceRouted,
    DeviceRouting, DeviceRows, ImageLayout, Wish, plan_conv2d, plan_embedding, plan_linear,
    plan_lora, plan_norm, upload,
};
use crate::ops::plan::Request;
use crate::ops::{LayerOutputs, LoraOutputs, Options};
use crate::problem::{Element, GradientShape, Lora, Rows};
use crate::routing::LayerRouting;
use crate::{Error, Result};

/// A number that candle, cudarc and the ops know.
pub(super) trait DeviceNumber: Number + CudaDType + DeviceRepr + ValidAsZeroBits {}
impl<T: Number + CudaDType + DeviceRepr + ValidAsZeroBits> DeviceNumber for T {}

/// The devices that layers ran on.
#[derive(Default)]
pub(super) struct Devices(Vec<OnDevice>);

/// One of candle's devices, by its stream, with the routing of the layers there.
struct OnDevice {
    cuda: Cuda,
    routings: HashMap<usize, (LayerRouting, DeviceRouting)>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CUDA devices", self.0.len())
    }
}

impl Devices {
    fn get(&mut self, device: &CudaDevice) -> Result<&mut OnDevice> {
        let stream = device.cuda_stream();
        let same = |on: &OnDevice| {
            let known = on.cuda.stream();
            known.cu_stream() == stream.cu_stream() && known.context() == stream.context()
        };
        let at = match self.0.iter().position(same) {
            Some(at) => at,
            None => {
                let opened = Arc::new(Device::on(stream.context().clone())?);
                let cuda = Cuda::with_stream(opened, stream)?;
                self.0.push(OnDevice { cuda, routings: HashMap::new() });
                self.0.len() - 1
            }
        };
        Ok(&mut self.0[at])
    }
}

impl OnDevice {
    /// Copies a layer's tables to the device, unless they are there.
    fn upload(&mut self, index: usize, layer: &LayerRouting) -> Result<()> {
        if self.routings.get(&index).is_none_or(|(known, _)| known != layer) {
            let uploaded = DeviceRouting::upload(self.cuda.stream(), layer)?;
            self.routings.insert(index, (layer.clone(), uploaded));
        }
        Ok(())
    }
}

/// A call's operands on the device; an embedding has no `x`.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub x: Option<&'a Tensor>,
    pub weight: &'a Tensor,
    pub dy: &'a Tensor,
}

/// Gradients of the input, the weight and the bias, those that are wanted.
pub(super) struct Gradients<T> {
    pub dx: Option<CudaSlice<T>>,
    pub dw: Option<CudaSlice<T>>,
    pub db: Option<CudaSlice<T>>,
}

impl<T: DeviceNumber> Gradients<T> {
    /// Makes a place for the gradient of each tensor.
    pub fn new(device: &CudaDevice, like: [Option<&Tensor>; 3]) -> candle_core::Result<Self> {
        let place = |like: Option<&Tensor>| {
            like.map(|like| device.alloc_zeros::<T>(like.elem_count().max(1))).transpose()
        };
        let [dx, dw, db] = like;
        Ok(Self { dx: place(dx)?, dw: place(dw)?, db: place(db)? })
    }

    /// Where a plan writes them.
    fn outputs(&mut self, x: usize, shape: GradientShape) -> DeviceOutputs<'_, T> {
        DeviceOutputs {
            dx: self.dx.as_mut().map(|dx| dx.slice_mut(..x)),
            dw: self.dw.as_mut().map(|dw| DeviceGrad::Native(dw.slice_mut(..shape.weights()))),
            db: self.db.as_mut().map(|db| DeviceGrad::Native(db.slice_mut(..shape.biases()))),
            ..DeviceOutputs::default()
        }
    }

    /// As tensors of the shapes of these.
    pub fn tensors(self, device: &CudaDevice, like: [Option<&Tensor>; 3]) -> [Option<Tensor>; 3] {
        let Self { dx, dw, db } = self;
        let mut like = like.into_iter();
        [dx, dw, db].map(|values| {
            let like = like.next().flatten();
            values.zip(like).map(|(values, like)| {
                let storage = CudaStorage::wrap_cuda_slice(values, device.clone());
                let none = BackpropOp::none();
                Tensor::from_storage(Storage::Cuda(storage), like.shape(), none, false)
            })
        })
    }
}

/// The device that a tensor is on.
pub(super) fn device_of(tensor: &Tensor) -> Option<CudaDevice> {
    match tensor.device() {
        candle_core::Device::Cuda(device) => Some(device.clone()),
        _ => None,
    }
}

/// The numbers of a contiguous tensor on a CUDA device.
fn view<'a, T: DeviceNumber>(
    storage: &'a Storage,
    layout: &Layout,
) -> candle_core::Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::argument("layout", "contiguous", format!("{layout:?}")).into());
    };
    match storage {
        Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        _ => {
            let expected = "the CUDA device of the other operands";
            Err(Error::argument("device", expected, "another one").into())
        }
    }
}

/// What a batch says of a layer, on the device.
struct Batch {
    rows: DeviceRows,
    tokens: Option<CudaSlice<u32>>,
    categories: Option<DeviceCategories>,
    gates: Option<CudaSlice<f32>>,
}

impl Batch {
    fn upload(
        stream: &Arc<CudaStream>,
        rows: &Rows,
        tokens: Option<&[u32]>,
        options: &Options,
    ) -> Result<Self> {
        let categories = options.routing.map(|routing| {
            let known = routing.layer.categories() as u32;
            DeviceCategories::upload(stream, routing.categories, known)
        });
        let gates = options.routing.and_then(|routing| routing.gates);
        Ok(Self {
            rows: DeviceRows::upload(stream, rows)?,
            tokens: tokens.map(|tokens| upload(stream, tokens)).transpose()?,
            categories: categories.transpose()?,
            gates: gates.map(|gates| upload(stream, gates)).transpose()?,
        })
    }

    /// For a layer, whose routing is on the device if there are categories.
    fn routed<'a>(&'a self, on: &'a OnDevice, index: usize) -> Option<DeviceRouted<'a>> {
        self.categories.as_ref().map(|categories| DeviceRouted {
            layer: &on.routings[&index].1,
            categories,
            gates: self.gates.as_ref().map(|gates| gates.as_view()),
        })
    }
}

impl Devices {
    /// The backward pass of a layer's call: gradients stay on the device, records go to `out`, and are
    /// waited for. `index` is the layer's, for its routing.
    pub fn backward<T: DeviceNumber>(
        &mut self,
        device: &CudaDevice,
        (problem, index): (&Problem, usize),
        options: &Options,
        operands: Operands,
        gradients: &mut Gradients<T>,
        out: LayerOutputs<T>,
    ) -> candle_core::Result<()> {
        let on = self.get(device)?;
        let tokens = match problem {
            Problem::Embedding(_, tokens) => Some(&**tokens),
            _ => None,
        };
        let batch = Batch::upload(on.cuda.stream(), &problem.rows()?, tokens, options)?;
        if let Some(routing) = options.routing {
            on.upload(index, routing.layer)?;
        }
        let x = operands.x.map(|x| x.storage_and_layout());
        let (weight, weight_layout) = operands.weight.storage_and_layout();
        let (dy, dy_layout) = operands.dy.storage_and_layout();
        let mut inputs = DeviceInputs::<T>::new(&batch.rows);
        inputs.dy = Some(view(&dy, dy_layout)?);
        if let Some((x, layout)) = &x {
            inputs.x = Some(view(x, layout)?);
            inputs.weight = Some(view(&weight, weight_layout)?);
        }
        inputs.tokens = batch.tokens.as_ref().map(|tokens| tokens.as_view());
        inputs.routing = batch.routed(on, index);
        let wish = on.wish(options, gradients, &out)?;
        let elements = operands.x.map_or(0, |x| x.elem_count());
        let outputs = gradients.outputs(elements, problem.gradient());
        on.run(problem, wish, inputs, outputs, out)?;
        Ok(())
    }

    /// The same of a low-rank branch: `options`, `gradients` and `indices` are of `A` and of `B`.
    pub fn backward_lora<T: DeviceNumber>(
        &mut self,
        device: &CudaDevice,
        (problem, indices): (&Lora, [usize; 2]),
        options: [&Options; 2],
        operands: lora::Operands,
        gradients: [&mut Gradients<T>; 2],
        out: LoraOutputs<T>,
    ) -> candle_core::Result<()> {
        let on = self.get(device)?;
        let batch = Batch::upload(on.cuda.stream(), problem.rows(), None, options[0])?;
        for (index, options) in indices.into_iter().zip(options) {
            if let Some(routing) = options.routing {
                on.upload(index, routing.layer)?;
            }
        }
        let lora::Operands { x, a, b, dy } = operands;
        let [x, a, b, dy] = [x, a, b, dy].map(Tensor::storage_and_layout);
        let mut inputs = [DeviceInputs::<T>::new(&batch.rows), DeviceInputs::new(&batch.rows)];
        for (inputs, index) in inputs.iter_mut().zip(indices) {
            inputs.routing = batch.routed(on, index);
        }
        let [of_a, of_b] = &mut inputs;
        (of_a.x, of_a.weight) = (Some(view(&x.0, x.1)?), Some(view(&a.0, a.1)?));
        (of_b.dy, of_b.weight) = (Some(view(&dy.0, dy.1)?), Some(view(&b.0, b.1)?));
        let [to_a, to_b] = gradients;
        let wishes = [on.wish(options[0], to_a, &out.a)?, on.wish(options[1], to_b, &out.b)?];
        let plan = plan_lora(problem, <T as Element>::DTYPE, wishes, &on.cuda.properties())?;
        let elements = operands.x.elem_count();
        let outputs = [
            to_a.outputs(elements, problem.a().gradient()),
            to_b.outputs(elements, problem.b().gradient()),
        ];
        on.cuda.record_lora(&plan, inputs, outputs, out)?;
        Ok(())
    }
}

impl OnDevice {
    /// What is wished for: gradients that have a place on the device, and records.
    fn wish<T: DeviceNumber>(
        &self,
        options: &Options,
        gradients: &Gradients<T>,
        records: &LayerOutputs<T>,
    ) -> Result<Wish> {
        let wish = self.cuda.wish(options, gradients.dx.is_some(), records)?;
        let (dw, db) = (gradients.dw.is_some(), gradients.db.is_some());
        let request = Request { dw, db, ..wish.request };
        Ok(Wish { native: true, request, ..wish })
    }

    fn run<T: Element>(
        &self,
        problem: &Problem,
        wish: Wish,
        inputs: DeviceInputs<T>,
        outputs: DeviceOutputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let (cuda, properties) = (&self.cuda, self.cuda.properties());
        match problem {
            Problem::Linear(problem) => {
                let plan = plan_linear(problem, T::DTYPE, wish, &properties)?;
                cuda.record(&plan, inputs, outputs, out)
            }
            Problem::Conv2d(problem) => {
                let layout = ImageLayout::ChannelsFirst;
                let plan = plan_conv2d(problem, layout, T::DTYPE, wish, &properties)?;
                cuda.record(&plan, inputs, outputs, out)
            }
            Problem::Norm(problem) => {
                cuda.record(&plan_norm(problem, T::DTYPE, wish)?, inputs, outputs, out)
            }
            Problem::Embedding(problem, _) => {
                cuda.record(&plan_embedding(problem, T::DTYPE, wish)?, inputs, outputs, out)
            }
        }
    }
}

impl LayerOp {
    /// On a CUDA device: the gradients stay there.
    pub fn run_on_device<T: DeviceNumber>(
        &self,
        device: &CudaDevice,
        x: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dy: &Tensor,
    ) -> candle_core::Result<Grads> {
        let mut guard = self.call.handle.recorder.lock();
        let wanted = self.wanted(&guard, x, weight, bias);
        let mut gradients = Gradients::<T>::new(device, wanted)?;
        let mut devices = std::mem::take(&mut guard.devices);
        let operands = Operands { x, weight, dy };
        let call = (&self.problem, self.call.handle.index.unwrap_or(usize::MAX));
        let none = super::slot::Gradients { dw: None, db: None };
        let done = self.record(&mut guard, none, |options, out| {
            devices.backward(device, call, options, operands, &mut gradients, out)
        });
        guard.devices = devices;
        done?;
        self.stash(&mut guard, x, dy)?;
        Ok(gradients.tensors(device, wanted))
    }
}

impl LoraOp {
    /// As [`LayerOp::run_on_device`].
    pub fn run_on_device<T: DeviceNumber>(
        &self,
        device: &CudaDevice,
        tensors: lora::Operands,
    ) -> candle_core::Result<Grads> {
        let mut guard = self.calls[0].handle.recorder.lock();
        let [x, a, b] = self.wanted(&guard, tensors);
        let mut of_a = Gradients::<T>::new(device, [x, a, None])?;
        let mut of_b = Gradients::<T>::new(device, [None, b, None])?;
        let mut devices = std::mem::take(&mut guard.devices);
        let call = (&self.problem, self.indices());
        let none = || super::slot::Gradients { dw: None, db: None };
        let done = self.record(&mut guard, [none(), none()], |options, out| {
            let gradients = [&mut of_a, &mut of_b];
            devices.backward_lora(device, call, options, tensors, gradients, out)
        });
        guard.devices = devices;
        done?;
        self.stash(&mut guard, tensors)?;
        let [dx, da, _] = of_a.tensors(device, [x, a, None]);
        let [_, db, _] = of_b.tensors(device, [None, b, None]);
        Ok([dx, da, db])
    }
}

/// What candle computed from tensors on a CUDA device, on its way through the op that has its gradient.
#[derive(Debug, Default)]
pub(super) struct Ready(Mutex<Option<Tensor>>);

impl Ready {
    pub fn put(&self, y: Tensor) -> candle_core::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(y.contiguous()?);
        Ok(())
    }

    /// As a layer's forward pass hands it over, with this shape.
    pub fn take(&self, path: &str, shape: &Shape) -> candle_core::Result<(CudaStorage, Shape)> {
        let Some(y) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Err(refused(
                format!("a forward pass of layer {path}"),
                "its operands are on a CUDA device, but its weight is not",
            )
            .into());
        };
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, shape.clone())),
            _ => unreachable!("it was computed from tensors on a CUDA device"),
        }
    }
}
