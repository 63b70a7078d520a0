//! A layer with its buffers on the device, and its passes by the crate's kernels.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use gradroute::cuda::{
    ConvPlan, Cuda, DeviceRouting, ImageLayout, LinearPlan, LoraPlan, Plan, Pointers, RoutingShape,
    Wish, plan_conv2d, plan_linear, plan_lora,
};
use gradroute::ops::plan::Request;
use gradroute::problem::{Conv2d, Conv2dSpec, Dtype, GradientShape, Linear, Lora, Padding, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, Region, RegionMap};
use half::bf16;

use crate::support::noise;

/// What is asked of a layer.
#[derive(Clone, Copy, PartialEq)]
pub enum What {
    /// `dX` and `dW`.
    Plain,
    /// The same with route weights, exact norms and a sketch.
    Fused(Sketch),
    /// `dW` alone.
    PlainDw,
    /// `dW` alone, every other sample routed away.
    Half,
}

/// A layer of Stable Diffusion.
#[derive(Clone)]
pub enum Problem {
    Linear(Linear),
    Conv(Conv2d),
    Lora(Lora),
}

impl Problem {
    /// A linear layer of samples of equally many rows.
    pub fn linear(samples: usize, rows: usize, inputs: usize, outputs: usize) -> Self {
        let rows = Rows::uniform(samples, rows).expect("they fit");
        Self::Linear(Linear::new(rows, inputs, outputs).expect("it fits"))
    }

    /// A 3 × 3 convolution of square images.
    pub fn conv(samples: usize, edge: usize, inputs: usize, outputs: usize) -> Self {
        let spec = Conv2dSpec {
            samples,
            in_channels: inputs,
            out_channels: outputs,
            size: [edge, edge],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        Self::Conv(Conv2d::new(spec).expect("it fits"))
    }

    /// A LoRA branch beside a square linear layer.
    pub fn lora(samples: usize, rows: usize, features: usize, rank: usize) -> Self {
        let rows = Rows::uniform(samples, rows).expect("they fit");
        Self::Lora(Lora::new(rows, features, features, rank, 1.0).expect("it fits"))
    }

    /// Its parts: gradient matrix and numbers of `x`, `dy`, one or, of a LoRA branch, two.
    fn parts(&self) -> Vec<(GradientShape, [usize; 2])> {
        match self {
            Self::Linear(linear) => vec![part(linear)],
            Self::Lora(lora) => vec![part(&lora.a()), part(&lora.b())],
            Self::Conv(conv) => {
                let (spec, [height, width]) = (conv.spec(), conv.out_size());
                let x = spec.samples * spec.in_channels * spec.size[0] * spec.size[1];
                let dy = spec.samples * spec.out_channels * height * width;
                vec![(conv.gradient(), [x, dy])]
            }
        }
    }

    fn rows(&self) -> Rows {
        match self {
            Self::Linear(linear) => linear.rows().clone(),
            Self::Lora(lora) => lora.rows().clone(),
            Self::Conv(conv) => {
                let positions = conv.out_size().iter().product();
                Rows::uniform(conv.spec().samples, positions).expect("they fit")
            }
        }
    }
}

fn part(linear: &Linear) -> (GradientShape, [usize; 2]) {
    let total = linear.rows().total();
    (linear.gradient(), [linear.in_features() * total, linear.out_features() * total])
}

/// The buffers of one part.
pub struct Buffers {
    pub x: CudaSlice<bf16>,
    pub dy: CudaSlice<bf16>,
    pub weight: CudaSlice<bf16>,
    pub dx: CudaSlice<bf16>,
    pub dw: CudaSlice<f32>,
    pub sq_norm: CudaSlice<f32>,
    sketch: CudaSlice<f32>,
    /// Category ids of a mixed batch, and of one whose every other sample is routed away.
    categories: [CudaSlice<u32>; 2],
    /// Where nothing is owned, and where a sixteenth of the outputs is.
    routing: DeviceRouting,
    shape: RoutingShape,
}

#[allow(clippy::large_enum_variant)] // one lives at a time
enum Planned {
    Linear(LinearPlan),
    Conv(ConvPlan),
    Lora(LoraPlan),
}

/// A layer, its plans and buffers.
pub struct Layer<'a> {
    cuda: &'a Cuda,
    pub problem: Problem,
    pub parts: Vec<Buffers>,
    offsets: CudaSlice<u64>,
    workspace: CudaSlice<u8>,
}

impl<'a> Layer<'a> {
    /// Uploads noise.
    pub fn new(cuda: &'a Cuda, problem: Problem, asked: &[What]) -> Self {
        let stream = cuda.stream();
        let rows = problem.rows();
        let samples = rows.samples();
        let parts = problem.parts().into_iter().map(|part| buffers(stream, samples, part));
        let parts: Vec<Buffers> = parts.collect();
        let offsets = stream.clone_htod(rows.offsets()).expect("a copy");
        let empty = stream.alloc_zeros::<u8>(1).expect("a byte");
        let mut layer = Self { cuda, problem, parts, offsets, workspace: empty };
        let bytes = asked.iter().map(|&what| layer.plan(what).workspace_bytes()).max();
        let bytes = bytes.unwrap_or(0).max(1) as usize;
        layer.workspace = stream.alloc_zeros::<u8>(bytes).expect("a workspace");
        layer
    }

    /// A closure that queues a pass.
    pub fn pass(&self, what: What) -> impl FnMut() + '_ {
        let plan = self.plan(what);
        let at: Vec<Pointers> =
            (0..self.parts.len()).map(|part| self.pointers(part, what)).collect();
        move || self.queue(&plan, &at, what)
    }

    fn queue(&self, plan: &Planned, at: &[Pointers], what: What) {
        let (device, stream) = (self.cuda.device(), self.cuda.stream());
        let routed = matches!(what, What::Fused(_) | What::Half);
        let routing = |part: usize| routed.then(|| &self.parts[part].routing);
        // SAFETY: the buffers are those of the problem and as large as the plan says; they live as long as
        // the layer, which is dropped when the stream is through.
        let queued = unsafe {
            match plan {
                Planned::Linear(plan) => plan.launch(device, stream, routing(0), &at[0]),
                Planned::Conv(plan) => plan.launch(device, stream, routing(0), &at[0]),
                Planned::Lora(plan) => {
                    plan.launch(device, stream, [routing(0), routing(1)], [&at[0], &at[1]])
                }
            }
        };
        queued.expect("the kernels are queued");
    }

    fn plan(&self, what: What) -> Planned {
        let (properties, dtype) = (&self.cuda.properties(), Dtype::Bf16);
        let wish = |part: usize| wish(what, self.parts[part].shape);
        let plan = match &self.problem {
            Problem::Linear(linear) => {
                plan_linear(linear, dtype, wish(0), properties).map(Planned::Linear)
            }
            Problem::Conv(conv) => {
                let last = ImageLayout::ChannelsLast;
                plan_conv2d(conv, last, dtype, wish(0), properties).map(Planned::Conv)
            }
            Problem::Lora(lora) => {
                let wishes = [wish(0), wish(1)];
                plan_lora(lora, dtype, wishes, properties).map(Planned::Lora)
            }
        };
        plan.expect("a layer of usual size")
    }

    fn pointers(&self, part: usize, what: What) -> Pointers {
        let (own, stream) = (&self.parts[part], self.cuda.stream());
        let categories = &own.categories[usize::from(what == What::Half)];
        Pointers {
            x: address(stream, &own.x),
            dy: address(stream, &own.dy),
            weight: address(stream, &own.weight),
            offsets: address(stream, &self.offsets),
            categories: address(stream, categories),
            dx: address(stream, &own.dx),
            dw: address(stream, &own.dw),
            sq_norm: address(stream, &own.sq_norm),
            sketch: address(stream, &own.sketch),
            workspace: address(stream, &self.workspace),
            ..Pointers::default()
        }
    }
}

impl Planned {
    fn workspace_bytes(&self) -> u64 {
        match self {
            Self::Linear(plan) => plan.workspace_bytes(),
            Self::Conv(plan) => plan.workspace_bytes(),
            Self::Lora(plan) => plan.workspace_bytes(),
        }
    }
}

fn wish(what: What, shape: RoutingShape) -> Wish {
    let dx = matches!(what, What::Plain | What::Fused(_));
    let mut wish =
        Wish { request: Request { dx, dw: true, ..Request::default() }, ..Wish::default() };
    if let What::Fused(sketch) = what {
        wish.request = Request { norms: true, sketch: true, ..wish.request };
        wish.sketch = Some(sketch);
    }
    if matches!(what, What::Fused(_) | What::Half) {
        wish.routing = Some(shape);
    }
    wish
}

/// Allocates a part's buffers; inputs are noise.
fn buffers(
    stream: &Arc<CudaStream>,
    samples: usize,
    (shape, [x, dy]): (GradientShape, [usize; 2]),
) -> Buffers {
    let (outputs, features) = (shape.outputs(), shape.features());
    // Categories 1 and 2 are routed to and from the owned outputs, 3 nowhere.
    let owned =
        vec![Region { outputs: outputs - outputs.div_ceil(16)..outputs, inputs: 0..features }];
    let regions = RegionMap::new(outputs, features, owned).expect("one region");
    let routes = vec![1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.0];
    let layer = LayerRouting::new(regions, 4, routes, vec![1.0; 8]).expect("a table");
    let copy = |len, seed| {
        let numbers: Vec<bf16> = noise(len, seed).into_iter().map(bf16::from_f32).collect();
        stream.clone_htod(&numbers).expect("a copy")
    };
    let zeros = |len| stream.alloc_zeros::<f32>(len).expect("a buffer");
    let ids = |of: fn(u32) -> u32| {
        let ids: Vec<u32> = (0..samples as u32).map(of).collect();
        stream.clone_htod(&ids).expect("a copy")
    };
    Buffers {
        x: copy(x, 1),
        dy: copy(dy, 2),
        weight: copy(shape.weights(), 3),
        dx: stream.alloc_zeros::<bf16>(x).expect("a buffer"),
        dw: zeros(shape.weights()),
        sq_norm: zeros(samples),
        sketch: zeros(samples * crate::NUMBERS),
        categories: [ids(|n| n % 3), ids(|n| 3 * (n % 2))],
        routing: DeviceRouting::upload(stream, &layer).expect("a copy"),
        shape: RoutingShape::of(&layer),
    }
}

/// A buffer's address.
pub fn address<T>(stream: &Arc<CudaStream>, slice: &CudaSlice<T>) -> CUdeviceptr {
    slice.device_ptr(stream).0
}
