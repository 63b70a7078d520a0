//! Plan and launches of a LoRA branch: two linear layers, between which numbers stay f32.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, CudaViewMut};

use super::buffers::{Operand, Operands, check_addresses};
use super::call::{Call, Pointers, aligned, launch};
use super::device::{Device, Grid};
use super::formed::{Extent, FormedPlan, plan_formed, tiles};
use super::generated::{GRADROUTE_THREADS, GradrouteLayer};
use super::linear::product;
use super::plan::{Common, Parts, Properties, Wish};
use super::routing::DeviceRouting;
use super::run::{self, DeviceInputs, DeviceOutputs, Guards};
use crate::Result;
use crate::problem::{Dtype, Element, Linear, Lora};

/// How a LoRA branch's backward pass runs on a device. `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlan {
    first: Common,
    second: Common,
    formed: [FormedPlan; 2],
    scale: f32,
    at: Places,
    workspace_bytes: u64,
}

/// Where the parts of the workspace begin, in bytes; all but one in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    /// `scale · X Aᵀ [R, rank]`.
    hidden: u64,
    /// The gradient of `X Aᵀ`.
    d_hidden: u64,
    /// `Aᵀ [I, rank]`, in the input's format.
    turned: u64,
    /// `A`.
    a: u64,
}

/// Plans a LoRA branch's backward pass; `wishes` are of `A` and of `B`. That `dx` is wanted is `A`'s.
///
/// # Errors
/// [`crate::Error::Argument`] for a layer or batch larger than a launch can be.
pub fn plan_lora(
    problem: &Lora,
    dtype: Dtype,
    wishes: [Wish; 2],
    properties: &Properties,
) -> Result<LoraPlan> {
    let (rows, rank) = (problem.rows(), problem.rank() as u64);
    let mut take = Parts::default();
    let mut one = |layer: Linear, wish: Wish| {
        let shape = layer.gradient();
        let mut common = Common::new(shape, rows, dtype, wish)?;
        let sides = [tiles(shape.outputs()), tiles(shape.inputs())];
        let extent = Extent::of(rows, false, false);
        let formed = plan_formed(&mut common, sides, extent, properties, &mut take)?;
        Ok((common, formed))
    };
    let (mut first, formed_first) = one(problem.a(), wishes[0])?;
    let (mut second, formed_second) = one(problem.b(), wishes[1])?;
    let between = 4 * rank * rows.total() as u64;
    let weights = rank * problem.in_features() as u64;
    let (a, b, dx) = (first.forms(), second.forms(), first.wish.request.dx);
    let (of_a, of_b) = (first.operands, second.operands);
    first.operands = Operands {
        x: Operand::new(a || b, of_a.x.elements),
        weight: Operand::new(b || dx, of_a.weight.elements),
        rows: b,
        ..Operands::NONE
    };
    second.operands = Operands {
        dy: Operand::new(a || b || dx, of_b.dy.elements),
        weight: Operand::new(a || dx, of_b.weight.elements),
        rows: a || dx,
        ..Operands::NONE
    };
    let at = Places {
        hidden: take.take(b, between),
        d_hidden: take.take(a || dx, between),
        turned: take.take(b, weights * dtype.size() as u64),
        a: take.take(dx && dtype.size() == 2, 4 * weights),
    };
    let formed = [formed_first, formed_second];
    let (scale, workspace_bytes) = (problem.scale(), take.bytes);
    Ok(LoraPlan { first, second, formed, scale, at, workspace_bytes })
}

impl LoraPlan {
    /// How the gradients of both factors arise.
    pub fn formed(&self) -> &[FormedPlan; 2] {
        &self.formed
    }

    /// Bytes of workspace that a launch needs.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }

    /// Queues the kernels on the caller's stream. Nothing is allocated and nothing is waited for.
    /// `at` and `routing` are of `A` and of `B`: `x`, `dx` and the workspace are among `A`'s, `dy` among
    /// `B`'s, and each has its own factor as weight.
    ///
    /// # Safety
    /// As [`super::Plan::launch`], for both.
    ///
    /// # Errors
    /// As [`super::Plan::launch`], names with `a.` or `b.` before them.
    pub unsafe fn launch(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        routing: [Option<&DeviceRouting>; 2],
        at: [&Pointers; 2],
    ) -> Result<()> {
        let of_b = Pointers { workspace: at[0].workspace, ..*at[1] };
        let layers = [("a.", &self.first, at[0]), ("b.", &self.second, &of_b)];
        check_addresses(layers, (at[0].workspace, self.workspace_bytes))?;
        let first = Call::new(device, stream, &self.first, routing[0], at[0])?;
        let second = Call::new(device, stream, &self.second, routing[1], &of_b)?;
        first.touched()?;
        second.touched()?;
        if self.second.forms() {
            let hidden = self.hidden(&first)?;
            self.form(&second, 1, [hidden, of_b.dy], (hidden, self.first.layer.outputs))?;
        }
        let dx = self.first.wish.request.dx;
        if !self.first.forms() && !dx {
            return Ok(());
        }
        let d = second.work(self.at.d_hidden);
        let bytes = self.second.dtype.size() as u32;
        let operands = [of_b.dy, of_b.weight, d];
        product(&second, &self.wide(&second), second.layer(), operands, self.scale, bytes)?;
        if self.first.forms() {
            self.form(&first, 0, [first.at.x, d], (d, self.first.layer.outputs))?;
        }
        if dx { self.dx(&first, d) } else { Ok(()) }
    }

    /// As [`super::Plan::run`]: `inputs` and `outputs` are of `A` and of `B`, as `at` of
    /// [`LoraPlan::launch`].
    ///
    /// # Errors
    /// As [`super::Plan::run`], names with `a.` or `b.` before them.
    pub fn run<T: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        inputs: [DeviceInputs<T>; 2],
        mut outputs: [DeviceOutputs<T>; 2],
        mut workspace: CudaViewMut<u8>,
    ) -> Result<()> {
        run::check_stream(device, stream)?;
        run::check_capture(stream)?;
        run::check("a.", device, &self.first, &inputs[0], &outputs[0])?;
        run::check("b.", device, &self.second, &inputs[1], &outputs[1])?;
        run::check_workspace(device, self.workspace_bytes, &workspace)?;
        let mut guards = Guards::new(stream);
        let [of_a, of_b] = &mut outputs;
        let workspace = guards.write(&mut workspace);
        let a = Pointers { workspace, ..run::pointers(&mut guards, &inputs[0], of_a) };
        let b = run::pointers(&mut guards, &inputs[1], of_b);
        guards.check()?;
        let routing = inputs.each_ref().map(|inputs| inputs.layer());
        // SAFETY: as in `Plan::run`.
        unsafe { self.launch(device, stream, routing, [&a, &b]) }
    }

    /// Queues the gradient of factor `which` from `[x, dy]`, of which `wide`, and its width, is f32.
    fn form(
        &self,
        call: &Call,
        which: usize,
        [x, dy]: [CUdeviceptr; 2],
        wide: (CUdeviceptr, u32),
    ) -> Result<()> {
        let (plan, mut layer) = (&self.formed[which], call.layer());
        if self.first.dtype == Dtype::F32 {
            let layer = call.aligned(&[(x, layer.inputs), (dy, layer.outputs)]);
            return call.form(plan, "linear_wgrad", "linear_wgrad", (layer, x, dy));
        }
        layer.flags |= aligned(&[wide], 4);
        let head = (layer, x, dy, u32::from(wide.0 == dy));
        call.form(plan, "lora_backward", "lora_wgrad", head)
    }

    /// The kernel whose product is f32.
    fn wide(&self, call: &Call) -> String {
        let narrow = self.first.dtype.size() == 2;
        call.name(if narrow { "linear_dgrad_wide" } else { "linear_dgrad" })
    }

    /// `scale · X Aᵀ`.
    fn hidden(&self, call: &Call) -> Result<CUdeviceptr> {
        let (layer, at) = (call.layer(), call.at);
        let [turned, hidden] = [self.at.turned, self.at.hidden].map(|part| call.work(part));
        let (rank, inputs) = (layer.outputs, layer.inputs);
        if rank > 0 && inputs > 0 {
            call.transpose(at.weight, turned, [1, u64::from(rank), u64::from(inputs)])?;
        }
        // As a layer of as many outputs as there are inputs; nothing flows yet.
        let turned_layer = GradrouteLayer { outputs: inputs, inputs: rank, regions: 0, ..layer };
        let bytes = self.first.dtype.size() as u32;
        // The branch's scale goes in here, once.
        product(call, &self.wide(call), turned_layer, [at.x, turned, hidden], self.scale, bytes)?;
        Ok(hidden)
    }

    fn dx(&self, call: &Call, d: CUdeviceptr) -> Result<()> {
        let (layer, at) = (call.layer(), call.at);
        if self.first.dtype == Dtype::F32 {
            let name = call.name("linear_dgrad");
            return product(call, &name, layer, [d, at.weight, at.dx], 1.0, 4);
        }
        let a = call.work(self.at.a);
        let length = u64::from(layer.outputs) * u64::from(layer.inputs);
        if length > 0 {
            let blocks = length.div_ceil(u64::from(GRADROUTE_THREADS)).min(4096) as u32;
            launch! { call, "lora_backward", &call.name("lora_widen"), Grid::plain(blocks, 1);
            at.weight, a, length }?;
        }
        product(call, &call.name("linear_dgrad_narrow"), layer, [d, a, at.dx], 1.0, 4)
    }
}

impl fmt::Display for LoraPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.formed;
        write!(f, "A {first}; B {second}; ")?;
        write!(f, "{} KiB of workspace", self.workspace_bytes.div_ceil(1024))
    }
}
