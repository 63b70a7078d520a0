//! Plan and launches of a LoRA branch: two linear layers, between which numbers stay f32.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, CudaViewMut};

use super::buffers::{Operand, Operands, check_addresses};
use super::call::{Call, Pointers, aligned, launch};
use super::device::{Device, Grid};
use super::formed::{Extent, FormedPlan, plan_formed, tiles};
use super::generated::{
    GRADROUTE_LORA_DY_WIDE as DY_WIDE, GRADROUTE_LORA_X_WIDE as X_WIDE, GRADROUTE_THREADS,
    GradrouteLayer,
};
use super::linear::product;
use super::lora_factors::{OnePass, plan_one_pass};
use super::plan::{Common, Parts, Properties, Wish};
use super::routing::DeviceRouting;
use super::run::{self, DeviceInputs, DeviceOutputs, Guards};
use crate::Result;
use crate::ops::plan::Path;
use crate::problem::{Dtype, Element, Linear, Lora};

/// How a LoRA branch's backward pass runs on a device. `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlan {
    first: Common,
    second: Common,
    formed: [FormedPlan; 2],
    /// Where both factors' gradients come from one read of the rows.
    one_pass: Option<OnePass>,
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

/// Which of a factor's `dy` and `x` are f32, for `lora_wgrad`.
const BOTH_WIDE: u32 = DY_WIDE | X_WIDE;

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
    let common = |layer: Linear, wish| Common::new(layer.gradient(), rows, dtype, wish);
    let (mut first, mut second) =
        (common(problem.a(), wishes[0])?, common(problem.b(), wishes[1])?);
    let (a, b, dx) = (first.forms(), second.forms(), first.wish.request.dx);
    let apart = wishes.iter().any(|wish| wish.path == Some(Path::Formed));
    let one_pass = match a && b && !apart {
        true => plan_one_pass(problem, dtype, properties, &mut take),
        false => None,
    };
    let mut extent = Extent::of(rows, false, false);
    if one_pass.is_some() {
        extent = Extent { rows: rank * rows.samples() as u64, longest: rank, ..extent };
    }
    let mut form = |common: &mut Common| {
        let sides = [common.layer.outputs, common.layer.inputs].map(|side| tiles(side as usize));
        plan_formed(common, sides, extent, properties, &mut take)
    };
    let formed = [form(&mut first)?, form(&mut second)?];
    let between = 4 * rank * rows.total() as u64;
    let weights = rank * problem.in_features() as u64;
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
        hidden: take.take(b && one_pass.is_none(), between),
        d_hidden: take.take(if one_pass.is_some() { dx } else { a || dx }, between),
        turned: take.take(b && one_pass.is_none(), weights * dtype.size() as u64),
        a: take.take(dx && dtype.size() == 2, 4 * weights),
    };
    let (scale, workspace_bytes) = (problem.scale(), take.bytes);
    Ok(LoraPlan { first, second, formed, one_pass, scale, at, workspace_bytes })
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
        let dx = self.first.wish.request.dx;
        if let Some(one_pass) = &self.one_pass {
            let d = if dx { second.work(self.at.d_hidden) } else { 0 };
            let rows = one_pass.queue([&first, &second], self.scale, d)?;
            let (of_a, of_b) = (rows.of(first.at), rows.of(second.at));
            self.form(&Call { at: &of_b, ..second }, 1, [rows.unit, rows.dy], BOTH_WIDE)?;
            self.form(&Call { at: &of_a, ..first }, 0, [rows.x, rows.unit], BOTH_WIDE)?;
            return if dx { self.dx(&first, d) } else { Ok(()) };
        }
        if self.second.forms() {
            let hidden = self.hidden(&first)?;
            self.form(&second, 1, [hidden, of_b.dy], X_WIDE)?;
        }
        if !self.first.forms() && !dx {
            return Ok(());
        }
        let d = second.work(self.at.d_hidden);
        let bytes = self.second.dtype.size() as u32;
        let operands = [of_b.dy, of_b.weight, d];
        product(&second, &self.wide(&second), second.layer(), operands, self.scale, bytes)?;
        if self.first.forms() {
            self.form(&first, 0, [first.at.x, d], DY_WIDE)?;
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

    /// Queues the gradient of factor `which` from `[x, dy]`, of which some are f32 whatever the others are.
    fn form(&self, call: &Call, which: usize, [x, dy]: [CUdeviceptr; 2], wide: u32) -> Result<()> {
        let (plan, mut layer) = (&self.formed[which], call.layer());
        if self.first.dtype == Dtype::F32 {
            let layer = call.aligned(&[(x, layer.inputs), (dy, layer.outputs)]);
            return call.form(plan, "linear_wgrad", "linear_wgrad", (layer, x, dy), 0);
        }
        let sides = [(dy, layer.outputs, DY_WIDE), (x, layer.inputs, X_WIDE)];
        let wide_sides = sides.iter().filter(|(.., flag)| wide & flag != 0);
        layer.flags |=
            aligned(&wide_sides.map(|&(at, width, _)| (at, width)).collect::<Vec<_>>(), 4);
        if let Some(one_pass) = &self.one_pass {
            layer.rows = u64::from(layer.samples) * one_pass.rank();
        }
        let head = (layer, x, dy, wide);
        call.form(plan, "lora_backward", "lora_wgrad", head, 0)
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
        if let Some(one_pass) = &self.one_pass {
            write!(
                f,
                "both factors from one read of a sample's rows in {} parts; ",
                one_pass.parts
            )?;
        }
        write!(f, "A {first}; B {second}; ")?;
        write!(f, "{} KiB of workspace", self.workspace_bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::plan::Request;
    use crate::problem::Rows;

    fn plan(
        rows: usize,
        features: usize,
        rank: usize,
        dtype: Dtype,
        wishes: [bool; 2],
    ) -> LoraPlan {
        let problem =
            Lora::new(Rows::uniform(16, rows).unwrap(), features, features, rank, 1.0).unwrap();
        let wishes = wishes.map(|dw| Wish {
            request: Request { dw, dx: true, ..Request::default() },
            ..Wish::default()
        });
        let properties = Properties { multiprocessors: 100, shared_bytes: 99 << 10 };
        plan_lora(&problem, dtype, wishes, &properties).unwrap()
    }

    #[test]
    fn both_factors_come_from_one_read_where_it_is_possible() {
        let one = |rows, features, rank, dtype, wishes| {
            plan(rows, features, rank, dtype, wishes).one_pass.is_some()
        };
        let (bf16, both) = (Dtype::Bf16, [true; 2]);
        assert!(one(4096, 320, 4, bf16, both) && one(1024, 640, 16, bf16, both));
        assert!(one(16, 320, 16, bf16, both) && one(77, 640, 32, bf16, both));
        // Few rows, ranks or columns beyond what a block holds, f32, one factor alone.
        assert!(!one(15, 320, 16, bf16, both) && !one(77, 320, 33, bf16, both));
        assert!(!one(77, 1296, 16, bf16, both) && !one(77, 656, 17, bf16, both));
        assert!(!one(77, 320, 16, Dtype::F32, both) && !one(77, 320, 16, bf16, [true, false]));
    }

    #[test]
    fn a_samples_rows_are_shared_among_blocks() {
        let parts = |rows| plan(rows, 320, 4, Dtype::F16, [true; 2]).one_pass.unwrap().parts;
        assert_eq!([16, 64, 65, 4096].map(parts), [1, 1, 2, 12]);
        let text = plan(4096, 320, 4, Dtype::F16, [true; 2]).to_string();
        assert!(
            text.starts_with("both factors from one read of a sample's rows in 12 parts"),
            "{text}"
        );
    }
}
