//! The kernels as a [`Backend`] over host slices: each call copies its buffers there and back.
//!
//! For tests and trials; a training loop keeps its buffers on the device and launches the plans
//! itself ([`super::plan_linear`]).

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr};

use super::conv::{ImageLayout, plan_conv2d};
use super::device::Device;
use super::driver::failed;
use super::embedding::plan_embedding;
use super::linear::plan_linear;
use super::lora::plan_lora;
use super::norm::plan_norm;
use super::plan::{Properties, Wish};
use super::queue::Plan;
use super::resident::{Buffer, Host, Resident};
use super::routing::{RoutingShape, upload};
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

    /// Takes this path for linear layers wherever it is possible, for tests.
    #[must_use]
    pub fn forced_to(mut self, path: Path) -> Self {
        self.path = Some(path);
        self
    }

    /// [`Backend::conv2d`] on buffers of either layout. Their sizes are not checked again.
    ///
    /// # Errors
    /// As [`plan_conv2d`] and [`Plan::launch`].
    ///
    /// # Panics
    /// If a buffer is shorter than the layout says.
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
        let host = Host { x, dy, weight, tokens: &[], rows: &rows };
        self.call(host, options, &plan, dx, out)
    }

    /// The stream that its calls go to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer> {
        upload(&self.stream, bytemuck::cast_slice::<_, u8>(values)).map(|copy| Buffer(Some(copy)))
    }

    /// A buffer that nothing has written.
    pub(super) fn unwritten(&self, bytes: usize) -> Result<Buffer> {
        // SAFETY: what no kernel writes is not read back: each output is written as a whole.
        let buffer = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        Ok(Buffer(Some(buffer.map_err(|error| failed("cuMemAlloc", error))?)))
    }

    /// A buffer for an output: a copy of what is added to, else unwritten.
    pub(super) fn output<T: Pod>(&self, to: Option<&[T]>, kept: bool) -> Result<Buffer> {
        match to {
            None => Ok(Buffer(None)),
            Some(values) if kept => self.upload(values),
            Some(values) => self.unwritten(size_of_val(values)),
        }
    }

    pub(super) fn download<T: Pod>(&self, from: &Buffer, to: Option<&mut [T]>) -> Result<()> {
        let (Buffer(Some(from)), Some(to)) = (from, to) else { return Ok(()) };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        if bytes.is_empty() {
            return Ok(());
        }
        let copied = self.stream.memcpy_dtoh(from, bytes);
        copied.map_err(|error| failed("cuMemcpyDtoH", error))
    }

    pub(super) fn address(&self, buffer: &Buffer) -> CUdeviceptr {
        buffer.0.as_ref().map_or(0, |slice| slice.device_ptr(&self.stream).0)
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
        let resident = Resident::new(self, host, options, dx.as_deref(), &out)?;
        let workspace = self.unwritten(plan.workspace_bytes() as usize)?;
        let (routing, at) = (resident.routing.as_ref(), resident.pointers(self, &workspace));
        // SAFETY: every buffer is of the problem's shape and format, in the stream's context, and none is
        // freed before the stream is through, since cudarc frees on the stream; the tokens were checked.
        unsafe { plan.launch(&self.device, &self.stream, routing, &at) }?;
        resident.fetch(self, dx, out)
    }

    pub(super) fn optional<T: Pod>(&self, values: Option<&[T]>) -> Result<Buffer> {
        values.map_or(Ok(Buffer(None)), |values| self.upload(values))
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
        let host = Host { x, dy, weight, tokens: &[], rows: problem.rows() };
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
        let host = Host { x, dy, weight, tokens: &[], rows: problem.rows() };
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
        let host = Host { x: &[], dy, weight: None, tokens, rows: problem.rows() };
        self.call(host, options, &plan, None, out)
    }

    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        let LoraOutputs { a, b } = out;
        let wishes = [wish(options[0], dx.is_some(), &a)?, wish(options[1], false, &b)?];
        let plan = plan_lora(problem, T::DTYPE, wishes, &self.properties)?;
        let rows = problem.rows();
        let LoraInputs { x, dy, a: first, b: second } = inputs;
        let of_a = Host { x, dy: &[], weight: Some(first), tokens: &[], rows };
        let of_b = Host { x: &[], dy, weight: Some(second), tokens: &[], rows };
        let first = Resident::new(self, of_a, options[0], dx.as_deref(), &a)?;
        let second = Resident::new(self, of_b, options[1], None, &b)?;
        let workspace = self.unwritten(plan.workspace_bytes() as usize)?;
        let at = [first.pointers(self, &workspace), second.pointers(self, &workspace)];
        let routing = [first.routing.as_ref(), second.routing.as_ref()];
        // SAFETY: as in `call`.
        unsafe { plan.launch(&self.device, &self.stream, routing, [&at[0], &at[1]]) }?;
        first.fetch(self, dx, a)?;
        second.fetch(self, None, b)
    }
}
