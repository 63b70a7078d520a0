//! The kernels as a [`Backend`] over host slices: each call copies its buffers there and back.
//!
//! For tests and trials; a training loop keeps its buffers on the device and launches the plans
//! itself ([`super::plan_linear`]).

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::call::Pointers;
use super::device::Device;
use super::driver::failed;
use super::embedding::plan_embedding;
use super::norm::plan_norm;
use super::plan::{Properties, Wish, plan_linear};
use super::routing::{DeviceRouting, RoutingShape, upload};
use crate::ops::plan::Request;
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
        Ok(Self { device, stream, properties })
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

    fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer> {
        upload(&self.stream, bytemuck::cast_slice::<_, u8>(values)).map(|copy| Buffer(Some(copy)))
    }

    /// A buffer that nothing has written.
    fn unwritten(&self, bytes: usize) -> Result<Buffer> {
        // SAFETY: what no kernel writes is not read back: each output is written as a whole.
        let buffer = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        Ok(Buffer(Some(buffer.map_err(|error| failed("cuMemAlloc", error))?)))
    }

    /// A buffer for an output: a copy of what is added to, else unwritten.
    fn output<T: Pod>(&self, to: Option<&[T]>, kept: bool) -> Result<Buffer> {
        match to {
            None => Ok(Buffer(None)),
            Some(values) if kept => self.upload(values),
            Some(values) => self.unwritten(size_of_val(values)),
        }
    }

    fn download<T: Pod>(&self, from: &Buffer, to: Option<&mut [T]>) -> Result<()> {
        let (Buffer(Some(from)), Some(to)) = (from, to) else { return Ok(()) };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        if bytes.is_empty() {
            return Ok(());
        }
        let copied = self.stream.memcpy_dtoh(from, bytes);
        copied.map_err(|error| failed("cuMemcpyDtoH", error))
    }

    fn address(&self, buffer: &Buffer) -> CUdeviceptr {
        buffer.0.as_ref().map_or(0, |slice| slice.device_ptr(&self.stream).0)
    }
}

/// Bytes on the device, if there are any.
struct Buffer(Option<CudaSlice<u8>>);

/// A parameter gradient on the device.
fn grad_buffer<T: Element>(
    cuda: &Cuda,
    to: Option<&ParamGrad<T>>,
    accumulate: bool,
) -> Result<Buffer> {
    match to {
        None => Ok(Buffer(None)),
        Some(ParamGrad::F32(values)) => cuda.output(Some(values), accumulate),
        Some(ParamGrad::Native(values)) => cuda.output(Some(values), accumulate),
    }
}

fn grad_download<T: Element>(cuda: &Cuda, from: &Buffer, to: Option<ParamGrad<T>>) -> Result<()> {
    match to {
        None => Ok(()),
        Some(ParamGrad::F32(values)) => cuda.download(from, Some(values)),
        Some(ParamGrad::Native(values)) => cuda.download(from, Some(values)),
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

fn not_there(what: &str) -> Error {
    Error::Refused {
        what: format!("{what} on cuda"),
        reason: "no kernel of this version computes it; the cpu backend does".into(),
    }
}

/// A call's inputs on the host.
struct Host<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    weight: Option<&'a [T]>,
    tokens: &'a [u32],
    rows: &'a Rows,
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
    })
}

impl Cuda {
    /// Copies everything there, launches, and copies the outputs back.
    fn call<T: Element>(
        &self,
        host: Host<T>,
        options: &Options,
        workspace_bytes: u64,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
        launch: impl FnOnce(Option<&DeviceRouting>, &Pointers) -> Result<()>,
    ) -> Result<()> {
        let routing = options
            .routing
            .map(|routing| DeviceRouting::upload(&self.stream, routing.layer))
            .transpose()?;
        let gates = options.routing.and_then(|routing| routing.gates);
        let categories = self.optional(options.routing.map(|routing| routing.categories))?;
        let gates = self.optional(gates)?;
        let [x, dy] = [self.upload(host.x)?, self.upload(host.dy)?];
        let weight = self.optional(host.weight.filter(|_| dx.is_some()))?;
        let tokens = self.upload(host.tokens)?;
        let offsets = self.upload(host.rows.offsets())?;
        let dx_buffer = self.output(dx.as_deref(), false)?;
        let dw = grad_buffer(self, out.dw.as_ref(), options.accumulate)?;
        let db = grad_buffer(self, out.db.as_ref(), options.accumulate)?;
        let sq_norm = self.output(out.sq_norm.as_deref(), false)?;
        let sq_norm_bias = self.output(out.sq_norm_bias.as_deref(), false)?;
        let sketch = self.output(out.sketch.as_deref(), false)?;
        let mut flags = out.touched.as_ref().map(|touched| vec![0_u8; touched.len()]);
        let touched = self.output(flags.as_deref(), false)?;
        let workspace = self.unwritten(workspace_bytes as usize)?;
        launch(
            routing.as_ref(),
            &Pointers {
                x: self.address(&x),
                dy: self.address(&dy),
                weight: self.address(&weight),
                tokens: self.address(&tokens),
                offsets: self.address(&offsets),
                categories: self.address(&categories),
                gates: self.address(&gates),
                dx: self.address(&dx_buffer),
                dw: self.address(&dw),
                db: self.address(&db),
                sq_norm: self.address(&sq_norm),
                sq_norm_bias: self.address(&sq_norm_bias),
                sketch: self.address(&sketch),
                touched: self.address(&touched),
                workspace: self.address(&workspace),
            },
        )?;
        self.download(&dx_buffer, dx)?;
        grad_download(self, &dw, out.dw)?;
        grad_download(self, &db, out.db)?;
        self.download(&sq_norm, out.sq_norm)?;
        self.download(&sq_norm_bias, out.sq_norm_bias)?;
        self.download(&sketch, out.sketch)?;
        self.download(&touched, flags.as_deref_mut())?;
        let wait = self.stream.synchronize();
        wait.map_err(|error| failed("cuStreamSynchronize", error))?;
        if let (Some(touched), Some(flags)) = (out.touched, flags) {
            touched.iter_mut().zip(flags).for_each(|(touched, flag)| *touched = flag != 0);
        }
        Ok(())
    }

    fn optional<T: Pod>(&self, values: Option<&[T]>) -> Result<Buffer> {
        values.map_or(Ok(Buffer(None)), |values| self.upload(values))
    }
}

// Of all `launch`es below: every buffer is of the problem's shape and format, in the stream's context, and
// none is freed before the stream is through, since cudarc frees on the stream.
impl Backend for Cuda {
    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let wish = wish(options, dx.is_some(), &out)?;
        let plan = plan_linear(problem, T::DTYPE, wish, &self.properties)?;
        let LinearInputs { x, dy, weight } = inputs;
        let host = Host { x, dy, weight, tokens: &[], rows: problem.rows() };
        self.call(host, options, plan.workspace.bytes, dx, out, |routing, at| {
            // SAFETY: see above.
            unsafe { plan.launch(&self.device, &self.stream, routing, at) }
        })
    }

    fn run_conv2d<T: Element>(
        &mut self,
        _: &Conv2d,
        _: &Options,
        _: ConvInputs<T>,
        _: Option<&mut [T]>,
        _: LayerOutputs<T>,
    ) -> Result<()> {
        Err(not_there("conv2d"))
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
        self.call(host, options, plan.workspace_bytes, dx, out, |routing, at| {
            // SAFETY: see above.
            unsafe { plan.launch(&self.device, &self.stream, routing, at) }
        })
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
        self.call(host, options, plan.workspace_bytes, None, out, |routing, at| {
            // SAFETY: see above; the tokens were checked.
            unsafe { plan.launch(&self.device, &self.stream, routing, at) }
        })
    }

    fn run_lora<T: Element>(
        &mut self,
        _: &Lora,
        _: [&Options; 2],
        _: LoraInputs<T>,
        _: Option<&mut [T]>,
        _: LoraOutputs<T>,
    ) -> Result<()> {
        Err(not_there("lora"))
    }
}
