//! The kernels as a [`Backend`] over host slices: each call copies its buffers there and back.
//!
//! For tests and trials; a training loop keeps its buffers on the device and launches the plans
//! itself ([`super::plan_linear`]).

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::conv::{ImageLayout, plan_conv2d};
use super::device::Device;
use super::driver::failed;
use super::embedding::plan_embedding;
use super::linear::plan_linear;
#[cfg(feature = "candle-cuda")]
use super::lora::LoraPlan;
use super::lora::plan_lora;
use super::norm::plan_norm;
use super::plan::{Properties, Wish};
use super::queue::Plan;
use super::resident::{Copied, Host, Places, Resident};
use super::routing::RoutingShape;
use super::run::check_stream;
#[cfg(feature = "candle-cuda")]
use super::run::{DeviceInputs, DeviceOutputs};
use crate::ops::plan::{Path, Request};
use crate::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, Options, ParamGrad,
};
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm, Rows};
use crate::{Error, Result};

/// A device, a stream on it, and the properties that plans are made for.
pub struct Cuda {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    properties: Properties,
    path: Option<Path>,
}

impl Cuda {
    /// The device with the given index, on a stream of its own.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::on(Arc::new(Device::open(ordinal)?))
    }

    /// An open device, on a stream of its own.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn on(device: Arc<Device>) -> Result<Self> {
        let stream = device.context().new_stream();
        let stream = stream.map_err(|error| failed("cuStreamCreate", error))?;
        Self::with_stream(device, stream)
    }

    /// An open device, on a stream of the caller's.
    ///
    /// # Errors
    /// [`Error::Argument`] for a stream of another context; [`Error::Driver`].
    pub fn with_stream(device: Arc<Device>, stream: Arc<CudaStream>) -> Result<Self> {
        check_stream(&device, &stream)?;
        let properties = device.properties()?;
        Ok(Self { device, stream, properties, path: None })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The properties that plans are made for.
    pub fn properties(&self) -> Properties {
        self.properties
    }

    /// Plans as for a device with these properties.
    #[must_use]
    pub fn planned_for(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// Takes this path for linear layers and the factors of LoRA branches wherever it is possible, for tests.
    #[must_use]
    pub fn forced_to(mut self, path: Path) -> Self {
        self.path = Some(path);
        self
    }

    /// [`Backend::conv2d`] on buffers of either layout.
    ///
    /// # Errors
    /// As [`plan_conv2d`] and [`Plan::run`].
    pub fn conv2d_laid_out<T: Element>(
        &mut self,
        problem: &Conv2d,
        layout: ImageLayout,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let wish = wish(options, dx.is_some(), &out)?;
        let plan = plan_conv2d(problem, layout, T::DTYPE, wish, &self.properties)?;
        let rows = Rows::uniform(problem.spec().samples, problem.out_size().iter().product())?;
        let ConvInputs { x, dy, weight } = inputs;
        let host = Host { x: Some(x), dy: Some(dy), weight, tokens: None, rows: &rows };
        self.call(host, options, &plan, dx, out)
    }

    /// The stream that its calls go to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// Whether parameter gradients are wanted in the input's format.
fn native<T: Element>(out: &LayerOutputs<T>) -> Result<bool> {
    let is_native = |grad: &ParamGrad<T>| matches!(grad, ParamGrad::Native(_));
    match (out.dw.as_ref().map(is_native), out.db.as_ref().map(is_native)) {
        (Some(dw), Some(db)) if dw != db => {
            Err(Error::argument("db", "the format of `dw`", "the other one"))
        }
        (dw, db) => Ok(dw.or(db).unwrap_or(false)),
    }
}

fn wish<T: Element>(options: &Options, dx: bool, out: &LayerOutputs<T>) -> Result<Wish> {
    Ok(Wish {
        request: Request::of(dx, out),
        bias_norms: out.sq_norm_bias.is_some(),
        touched: out.touched.is_some(),
        native: native(out)?,
        accumulate: options.accumulate,
        sketch: options.sketch,
        sketch_routed: options.sketch_routed,
        sample_scale: options.sample_scale,
        routing: options.routing.map(|routing| RoutingShape::of(routing.layer)),
        path: None,
    })
}

impl Cuda {
    /// Copies everything there, launches, and copies the outputs back.
    fn call<T: Element>(
        &self,
        host: Host<T>,
        options: &Options,
        plan: &impl Plan,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let stream = &self.stream;
        let resident = Resident::new(stream, host, options)?;
        let mut places = Places::new(stream, options.accumulate, dx.as_deref(), &out)?;
        let mut workspace = Copied::unwritten(stream, plan.workspace_bytes() as usize)?;
        let (inputs, outputs) = (resident.inputs(), places.outputs());
        plan.run(&self.device, stream, inputs, outputs, workspace.view_mut())?;
        places.fetch(stream, dx, out)
    }
}

#[cfg(feature = "candle-cuda")]
impl Cuda {
    /// The wish that options and records amount to.
    pub(crate) fn wish<T: Element>(
        &self,
        options: &Options,
        dx: bool,
        records: &LayerOutputs<T>,
    ) -> Result<Wish> {
        wish(options, dx, records)
    }

    /// A backward pass whose inputs and gradients are on the device, and whose records go to the host,
    /// where they are waited for.
    pub(crate) fn record<T: Element>(
        &self,
        plan: &impl Plan,
        inputs: DeviceInputs<T>,
        gradients: DeviceOutputs<T>,
        records: LayerOutputs<T>,
    ) -> Result<()> {
        let stream = &self.stream;
        let mut places = Places::new(stream, false, None, &records)?;
        let mut workspace = Copied::unwritten(stream, plan.workspace_bytes() as usize)?;
        let DeviceOutputs { dx, dw, db, .. } = gradients;
        let outputs = DeviceOutputs { dx, dw, db, ..places.outputs() };
        plan.run(&self.device, stream, inputs, outputs, workspace.view_mut())?;
        places.fetch(stream, None, records)
    }

    /// The same of a low-rank branch; everything is of `A` and of `B`.
    pub(crate) fn record_lora<T: Element>(
        &self,
        plan: &LoraPlan,
        inputs: [DeviceInputs<T>; 2],
        [of_a, of_b]: [DeviceOutputs<T>; 2],
        records: LoraOutputs<T>,
    ) -> Result<()> {
        let stream = &self.stream;
        let mut to_a = Places::new(stream, false, None, &records.a)?;
        let mut to_b = Places::new(stream, false, None, &records.b)?;
        let mut workspace = Copied::unwritten(stream, plan.workspace_bytes() as usize)?;
        let outputs = [
            DeviceOutputs { dx: of_a.dx, dw: of_a.dw, ..to_a.outputs() },
            DeviceOutputs { dw: of_b.dw, ..to_b.outputs() },
        ];
        plan.run(&self.device, stream, inputs, outputs, workspace.view_mut())?;
        to_a.fetch(stream, None, records.a)?;
        to_b.fetch(stream, None, records.b)
    }
}

impl Backend for Cuda {
    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let wish = Wish { path: self.path, ..wish(options, dx.is_some(), &out)? };
        let plan = plan_linear(problem, T::DTYPE, wish, &self.properties)?;
        let LinearInputs { x, dy, weight } = inputs;
        let host = Host { x: Some(x), dy: Some(dy), weight, tokens: None, rows: problem.rows() };
        self.call(host, options, &plan, dx, out)
    }

    fn run_conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        self.conv2d_laid_out(problem, ImageLayout::ChannelsFirst, options, inputs, dx, out)
    }

    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let wish = wish(options, dx.is_some(), &out)?;
        let plan = plan_norm(problem, T::DTYPE, wish)?;
        let NormInputs { x, dy, weight } = inputs;
        let host = Host { x: Some(x), dy: Some(dy), weight, tokens: None, rows: problem.rows() };
        self.call(host, options, &plan, dx, out)
    }

    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let wish = wish(options, false, &out)?;
        let plan = plan_embedding(problem, T::DTYPE, wish)?;
        let EmbeddingInputs { tokens, dy } = inputs;
        let host = Host {
            x: None,
            dy: Some(dy),
            weight: None,
            tokens: Some(tokens),
            rows: problem.rows(),
        };
        self.call(host, options, &plan, None, out)
    }

    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        mut dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        let LoraOutputs { a, b } = out;
        let wishes = [wish(options[0], dx.is_some(), &a)?, wish(options[1], false, &b)?]
            .map(|wish| Wish { path: self.path, ..wish });
        let plan = plan_lora(problem, T::DTYPE, wishes, &self.properties)?;
        let rows = problem.rows();
        let LoraInputs { x, dy, a: first, b: second, base } = inputs;
        let of_a = Host { x: Some(x), dy: None, weight: Some(first), tokens: None, rows };
        let of_b = Host { x: None, dy: Some(dy), weight: Some(second), tokens: None, rows };
        let stream = &self.stream;
        let first = Resident::new(stream, of_a, options[0])?;
        let second = Resident::new(stream, of_b, options[1])?;
        let mut to_a = Places::new(stream, options[0].accumulate, dx.as_deref(), &a)?;
        let mut to_b = Places::new(stream, options[1].accumulate, None, &b)?;
        let mut workspace = Copied::unwritten(stream, plan.workspace_bytes() as usize)?;
        let inputs = [first.inputs(), second.inputs()];
        let outputs = [to_a.outputs(), to_b.outputs()];
        plan.run(&self.device, stream, inputs, outputs, workspace.view_mut())?;
        to_a.fetch(stream, dx.as_deref_mut(), a)?;
        to_b.fetch(stream, None, b)?;
        let (Some(dx), Some(base)) = (dx, base) else { return Ok(()) };
        // A pass of its own: this backend's operands are on the host between calls anyway.
        let frozen = Linear::new(rows.clone(), problem.in_features(), problem.out_features())?;
        let mut beside = vec![T::from_f32(0.0); dx.len()];
        let inputs = LinearInputs { x, dy, weight: Some(base) };
        let nothing = LayerOutputs::default();
        self.run_linear(&frozen, &Options::default(), inputs, Some(&mut beside), nothing)?;
        for (dx, beside) in dx.iter_mut().zip(beside) {
            *dx = T::from_f32(dx.to_f32() + beside.to_f32());
        }
        Ok(())
    }
}
