//! Launches with cudarc's views instead of raw addresses: every mistake is found before the launch.
//!
//! ```
//! use std::sync::Arc;
//!
//! use cudarc::driver::CudaStream;
//! use gradroute::cuda::*;
//! use gradroute::ops::plan::Request;
//! use gradroute::problem::{Dtype, Linear, Rows};
//!
//! /// `dw [2, 3]` of 4 rows of ones, on the device.
//! fn backward(device: &Device, stream: &Arc<CudaStream>) -> anyhow::Result<Vec<f32>> {
//!     let rows = Rows::uniform(2, 2)?;
//!     let layer = Linear::new(rows.clone(), 3, 2)?;
//!     let wish = Wish {
//!         request: Request { dw: true, ..Request::default() },
//!         ..Wish::default()
//!     };
//!     let plan = plan_linear(&layer, Dtype::F32, wish, &device.properties()?)?;
//!     let rows = DeviceRows::upload(stream, &rows)?;
//!     let (x, dy) = (stream.clone_htod(&[1.0_f32; 12])?, stream.clone_htod(&[1.0_f32; 8])?);
//!     let mut dw = stream.alloc_zeros::<f32>(6)?;
//!     let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes() as usize)?;
//!     let inputs = DeviceInputs {
//!         x: Some(x.as_view()),
//!         dy: Some(dy.as_view()),
//!         ..DeviceInputs::new(&rows)
//!     };
//!     let outputs = DeviceOutputs {
//!         dw: Some(DeviceGrad::F32(dw.as_view_mut())),
//!         ..DeviceOutputs::default()
//!     };
//!     plan.run(device, stream, inputs, outputs, workspace.as_view_mut())?;
//!     Ok(stream.clone_dtoh(&dw)?)
//! }
//! ```

use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaContext, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice,
    SyncOnDrop,
};

use super::batch::{DeviceCategories, DeviceRows};
use super::buffers::{BUFFERS, Presence, Wanted};
use super::call::Pointers;
use super::device::Device;
use super::driver::failed;
use super::plan::Common;
use super::routing::DeviceRouting;
use crate::problem::Element;
use crate::{Error, Result};

/// Routing of one layer for one batch, on the device.
pub struct DeviceRouted<'a> {
    /// The layer's regions and mask tables.
    pub layer: &'a DeviceRouting,
    /// Category id of each sample.
    pub categories: &'a DeviceCategories,
    /// Gate of each sample, `[N]`; none means 1.
    pub gates: Option<CudaView<'a, f32>>,
}

/// Inputs of a call; shapes as in [`crate::ops`], but conv2d's as its plan's layout says.
pub struct DeviceInputs<'a, T> {
    /// The layer's input.
    pub x: Option<CudaView<'a, T>>,
    /// The gradient of its output.
    pub dy: Option<CudaView<'a, T>>,
    /// The layer's weight, for `dx`.
    pub weight: Option<CudaView<'a, T>>,
    /// An embedding's tokens, `[R]`.
    pub tokens: Option<CudaView<'a, u32>>,
    /// Which rows are whose; of a convolution, its output positions.
    pub rows: &'a DeviceRows,
    /// For a plan with routing.
    pub routing: Option<DeviceRouted<'a>>,
}

impl<'a, T> DeviceInputs<'a, T> {
    /// Of a batch with these rows, the rest left out.
    pub fn new(rows: &'a DeviceRows) -> Self {
        Self { x: None, dy: None, weight: None, tokens: None, rows, routing: None }
    }

    pub(super) fn layer(&self) -> Option<&DeviceRouting> {
        self.routing.as_ref().map(|routed| routed.layer)
    }
}

/// A parameter gradient on the device.
pub enum DeviceGrad<'a, T> {
    /// For a plan whose wish is not native.
    F32(CudaViewMut<'a, f32>),
    /// For one whose wish is.
    Native(CudaViewMut<'a, T>),
}

/// Outputs of a call, those that the plan's wish asks for; shapes as in [`crate::ops::LayerOutputs`].
pub struct DeviceOutputs<'a, T> {
    /// As `x`.
    pub dx: Option<CudaViewMut<'a, T>>,
    /// As the weight.
    pub dw: Option<DeviceGrad<'a, T>>,
    /// `[O]`.
    pub db: Option<DeviceGrad<'a, T>>,
    /// `[N]`.
    pub sq_norm: Option<CudaViewMut<'a, f32>>,
    /// `[N]`.
    pub sq_norm_bias: Option<CudaViewMut<'a, f32>>,
    /// `[N, K]`.
    pub sketch: Option<CudaViewMut<'a, f32>>,
    /// One byte for each region, 0 or 1.
    pub touched: Option<CudaViewMut<'a, u8>>,
}

impl<T> Default for DeviceOutputs<'_, T> {
    /// Nothing asked for.
    fn default() -> Self {
        Self {
            dx: None,
            dw: None,
            db: None,
            sq_norm: None,
            sq_norm_bias: None,
            sketch: None,
            touched: None,
        }
    }
}

/// What is checked of a view.
#[derive(Clone, Copy)]
struct Given<'a> {
    elements: usize,
    context: &'a CudaContext,
}

fn see<T>(view: Option<&impl DeviceSlice<T>>) -> Option<Given<'_>> {
    view.map(|view| Given { elements: view.len(), context: view.stream().context() })
}

fn see_grad<'a, T>(grad: Option<&'a DeviceGrad<'_, T>>) -> Option<Given<'a>> {
    match grad? {
        DeviceGrad::F32(view) => see(Some(view)),
        DeviceGrad::Native(view) => see(Some(view)),
    }
}

/// Checks that a stream is the device's.
pub(super) fn check_stream(device: &Device, stream: &CudaStream) -> Result<()> {
    check_context("stream", device, stream.context())
}

/// Checks that what cudarc does around a launch does not break a capture.
pub(super) fn check_capture(stream: &CudaStream) -> Result<()> {
    if !stream.context().is_managing_stream_synchronization() {
        return Ok(());
    }
    let status = stream.capture_status().map_err(|error| failed("cuStreamIsCapturing", error))?;
    if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(Error::Refused {
        what: "a launch into a stream that captures while cudarc tracks events".into(),
        reason: "a graph cannot wait for events from outside; call disable_event_tracking on the \
                 context before its buffers are made"
            .into(),
    })
}

fn check_context(name: &str, device: &Device, context: &CudaContext) -> Result<()> {
    if context == &**device.context() {
        return Ok(());
    }
    let of = |context: &CudaContext| {
        format!("context {:?} of device {}", context.cu_ctx(), context.ordinal())
    };
    Err(Error::argument(name, of(device.context()), of(context)))
}

/// Checks everything that a call gives for one layer; `prefix` goes before the names.
pub(super) fn check<T: Element>(
    prefix: &str,
    device: &Device,
    common: &Common,
    inputs: &DeviceInputs<T>,
    outputs: &DeviceOutputs<T>,
) -> Result<()> {
    if T::DTYPE != common.dtype {
        let expected = format!("{:?}, for which the plan was made", common.dtype);
        let name = format!("{prefix}inputs");
        return Err(Error::argument(name, expected, format!("{:?}", T::DTYPE)));
    }
    check_rows(prefix, common, inputs.rows)?;
    check_routing(prefix, device, common, inputs.layer())?;
    check_categories(prefix, inputs.routing.as_ref())?;
    for (name, grad) in [("dw", &outputs.dw), ("db", &outputs.db)] {
        let native = grad.as_ref().map(|grad| matches!(grad, DeviceGrad::Native(_)));
        if native.is_some_and(|native| native != common.wish.native) {
            let word = |native| if native { "the input's format" } else { "f32" };
            let (expected, given) = (word(common.wish.native), word(!common.wish.native));
            return Err(Error::argument(format!("{prefix}{name}"), expected, given));
        }
    }
    for (wanted, given) in common.wanted().iter().zip(given(inputs, outputs)) {
        check_one(prefix, device, wanted, given)?;
    }
    Ok(())
}

/// What is given, in the order of [`Common::wanted`].
fn given<'a, T>(
    inputs: &'a DeviceInputs<T>,
    outputs: &'a DeviceOutputs<T>,
) -> [Option<Given<'a>>; BUFFERS] {
    let routing = inputs.routing.as_ref();
    let categories = routing.map(|routed| Given {
        elements: routed.categories.samples,
        context: routed.categories.ids.context(),
    });
    [
        see(inputs.x.as_ref()),
        see(inputs.dy.as_ref()),
        see(inputs.weight.as_ref()),
        see(inputs.tokens.as_ref()),
        see(Some(&inputs.rows.offsets)),
        categories,
        see(routing.and_then(|routed| routed.gates.as_ref())),
        see(outputs.dx.as_ref()),
        see_grad(outputs.dw.as_ref()),
        see_grad(outputs.db.as_ref()),
        see(outputs.sq_norm.as_ref()),
        see(outputs.sq_norm_bias.as_ref()),
        see(outputs.sketch.as_ref()),
        see(outputs.touched.as_ref()),
    ]
}

fn check_one(prefix: &str, device: &Device, wanted: &Wanted, given: Option<Given>) -> Result<()> {
    let name = || format!("{prefix}{}", wanted.name);
    let Some(given) = given else {
        if wanted.presence == Presence::Needed && wanted.elements > 0 {
            let expected = format!("{} elements, since the plan needs it", wanted.elements);
            return Err(Error::argument(name(), expected, "none"));
        }
        return Ok(());
    };
    if wanted.presence == Presence::Refused {
        return Err(Error::argument(name(), "none, by the plan's op and wish", "a buffer"));
    }
    if given.elements as u64 != wanted.elements {
        let expected = format!("{} elements", wanted.elements);
        return Err(Error::argument(name(), expected, given.elements));
    }
    check_context(&name(), device, given.context)
}

fn check_rows(prefix: &str, common: &Common, rows: &DeviceRows) -> Result<()> {
    let (samples, total) = (u64::from(common.layer.samples), common.layer.rows);
    let expected = [samples, total, common.longest];
    let given = [rows.samples, rows.total, rows.longest];
    if given == expected {
        return Ok(());
    }
    let words = |[samples, total, longest]: [u64; 3]| {
        format!("{samples} samples of {total} rows, {longest} the most of one")
    };
    Err(Error::argument(format!("{prefix}rows"), words(expected), words(given)))
}

fn check_categories(prefix: &str, routed: Option<&DeviceRouted>) -> Result<()> {
    let Some(DeviceRouted { layer, categories, .. }) = routed else { return Ok(()) };
    if categories.known as usize > layer.categories {
        let expected = format!("ids below {}, the routing's categories", layer.categories);
        let given = format!("ids below {}", categories.known);
        return Err(Error::argument(format!("{prefix}categories"), expected, given));
    }
    Ok(())
}

/// Checks that a routing is there if the plan was made for one, of its shape and in the device's context.
pub(super) fn check_routing(
    prefix: &str,
    device: &Device,
    common: &Common,
    routing: Option<&DeviceRouting>,
) -> Result<()> {
    let shape = routing.map(|routing| routing.shape);
    if shape != common.wish.routing {
        let word = |shape| match shape {
            None => "none".to_string(),
            Some(shape) => format!("{shape:?}"),
        };
        let name = format!("{prefix}routing");
        return Err(Error::argument(name, word(common.wish.routing), word(shape)));
    }
    let Some(routing) = routing else { return Ok(()) };
    check_context(&format!("{prefix}routing"), device, routing.route.context())
}

/// Checks a workspace of so many bytes.
pub(super) fn check_workspace(
    device: &Device,
    bytes: u64,
    workspace: &CudaViewMut<u8>,
) -> Result<()> {
    if (workspace.len() as u64) < bytes {
        let expected = format!("at least {bytes} bytes");
        return Err(Error::argument("workspace", expected, workspace.len()));
    }
    check_context("workspace", device, workspace.stream().context())
}

/// Holds what cudarc does behind a launch: dropped only when that is queued.
pub(super) struct Guards<'a> {
    stream: &'a CudaStream,
    all: Vec<SyncOnDrop<'a>>,
}

impl<'a> Guards<'a> {
    pub(super) fn new(stream: &'a Arc<CudaStream>) -> Self {
        Self { stream, all: Vec::with_capacity(2 * BUFFERS) }
    }

    /// The address of what is read.
    pub(super) fn read<T>(&mut self, view: &'a impl DevicePtr<T>) -> CUdeviceptr {
        let (address, guard) = view.device_ptr(self.stream);
        self.all.push(guard);
        address
    }

    /// The address of what is written.
    pub(super) fn write<T>(&mut self, view: &'a mut impl DevicePtrMut<T>) -> CUdeviceptr {
        let (address, guard) = view.device_ptr_mut(self.stream);
        self.all.push(guard);
        address
    }

    fn write_grad<T>(&mut self, grad: &'a mut DeviceGrad<T>) -> CUdeviceptr {
        match grad {
            DeviceGrad::F32(view) => self.write(view),
            DeviceGrad::Native(view) => self.write(view),
        }
    }

    /// Whether the stream really waits for all of them; cudarc keeps such failures to itself.
    pub(super) fn check(&self) -> Result<()> {
        if !self.stream.context().is_managing_stream_synchronization() {
            return Ok(());
        }
        self.stream.context().check_err().map_err(|error| failed("cuStreamWaitEvent", error))
    }
}

/// The addresses of everything that a call gives for a layer.
pub(super) fn pointers<'a, T>(
    guards: &mut Guards<'a>,
    inputs: &'a DeviceInputs<T>,
    outputs: &'a mut DeviceOutputs<T>,
) -> Pointers {
    let routing = inputs.routing.as_ref();
    let gates = routing.and_then(|routed| routed.gates.as_ref());
    if let Some(DeviceRouting { route, flow, map, .. }) = inputs.layer() {
        guards.read(route);
        guards.read(flow);
        guards.read(map);
    }
    Pointers {
        x: inputs.x.as_ref().map_or(0, |view| guards.read(view)),
        dy: inputs.dy.as_ref().map_or(0, |view| guards.read(view)),
        weight: inputs.weight.as_ref().map_or(0, |view| guards.read(view)),
        tokens: inputs.tokens.as_ref().map_or(0, |view| guards.read(view)),
        offsets: guards.read(&inputs.rows.offsets),
        categories: routing.map_or(0, |routed| guards.read(&routed.categories.ids)),
        gates: gates.map_or(0, |view| guards.read(view)),
        dx: outputs.dx.as_mut().map_or(0, |view| guards.write(view)),
        dw: outputs.dw.as_mut().map_or(0, |grad| guards.write_grad(grad)),
        db: outputs.db.as_mut().map_or(0, |grad| guards.write_grad(grad)),
        sq_norm: outputs.sq_norm.as_mut().map_or(0, |view| guards.write(view)),
        sq_norm_bias: outputs.sq_norm_bias.as_mut().map_or(0, |view| guards.write(view)),
        sketch: outputs.sketch.as_mut().map_or(0, |view| guards.write(view)),
        touched: outputs.touched.as_mut().map_or(0, |view| guards.write(view)),
        workspace: 0,
    }
}
