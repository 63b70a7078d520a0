//! The `cpu` backend's fused pass over the plain backward pass of the same convolution, patches
//! and products by the same GEMM library, and its forward pass over candle's.
//!
//! `cargo bench --bench cpu_conv` times the fused pass with criterion.
//! `cargo bench --bench cpu_conv -- --table` times both in turn in one process and writes the
//! ratios to `benches/record/`; a word after `--table` picks the shapes whose name holds it, and
//! then nothing is written.

mod support;

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::Criterion;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gradroute::cpu::Cpu;
use gradroute::ops::{Backend, ConvInputs, LayerOutputs, Options, ParamGrad, Routing};
use gradroute::problem::{Conv2d, Conv2dSpec, Padding};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, Region, RegionMap};
use rayon::prelude::*;
use support::{Ratios, Table, noise, pool, time};

/// A 3×3 convolution: name, samples, input and output channels, height and width.
type Shape = (&'static str, usize, usize, usize, usize);

const SHAPES: &[Shape] = &[
    ("ResNet 64²", 1, 320, 320, 64),
    ("ResNet 32²", 2, 640, 640, 32),
    ("ResNet 16²", 2, 1280, 1280, 16),
    ("ResNet 8²", 2, 1280, 1280, 8),
    ("ResNet 8², batch 8", 8, 1280, 1280, 8),
    ("small U-Net 16²", 64, 32, 48, 16),
    ("small U-Net 8²", 64, 64, 80, 8),
    ("small U-Net 4²", 64, 64, 80, 4),
];

/// One layer with its operands, buffers and backend.
struct Bench {
    problem: Conv2d,
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    y: Vec<f32>,
    columns: Vec<f32>,
    sq_norm: Vec<f32>,
    sketch: Vec<f32>,
    routing: LayerRouting,
    categories: Vec<u32>,
    cpu: Cpu,
    tensors: [Tensor; 2],
}

impl Bench {
    fn new((_, samples, inputs, outputs, edge): Shape) -> Self {
        let problem = Conv2d::new(Conv2dSpec {
            samples,
            in_channels: inputs,
            out_channels: outputs,
            size: [edge, edge],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        })
        .unwrap();
        // A sixteenth of the outputs is owned; categories 2 and 3 are routed to and from it.
        let owned = vec![Region { outputs: outputs - outputs / 16..outputs, inputs: 0..inputs }];
        let regions = RegionMap::new(outputs, inputs, owned).unwrap();
        let route = vec![1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.0];
        let pixels = edge * edge;
        let (x, weight) = (noise(samples * inputs * pixels, 1), noise(outputs * inputs * 9, 3));
        let tensor = |values: &[f32], dims: (usize, usize, usize, usize)| {
            Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
        };
        Self {
            tensors: [
                tensor(&x, (samples, inputs, edge, edge)),
                tensor(&weight, (outputs, inputs, 3, 3)),
            ],
            dy: noise(samples * outputs * pixels, 2),
            dx: vec![0.0; x.len()],
            dw: vec![0.0; weight.len()],
            y: vec![0.0; samples * outputs * pixels],
            columns: vec![0.0; inputs * 9 * pixels],
            sq_norm: vec![0.0; samples],
            sketch: vec![0.0; samples * 256],
            routing: LayerRouting::new(regions, 4, route, vec![1.0; 8]).unwrap(),
            categories: vec![0; samples],
            cpu: Cpu::new(),
            x,
            weight,
            problem,
        }
    }

    /// `dX` and `dW`, sample by sample: patches, two products, patches added back.
    fn plain(&mut self, with_dx: bool) {
        let (spec, threads) = (*self.problem.spec(), rayon::current_num_threads());
        let edge = spec.size[0];
        let (pixels, outputs, inputs) = (edge * edge, spec.out_channels, 9 * spec.in_channels);
        let weight = MatRef::from_row_major_slice(&self.weight, outputs, inputs);
        let image = spec.in_channels * pixels;
        for n in 0..spec.samples {
            let columns = self.columns.par_chunks_mut(9 * pixels);
            let channels = self.x[n * image..(n + 1) * image].par_chunks(pixels);
            columns.zip(channels).for_each(|(columns, x)| im2col(x, edge, columns));
            let dy = &self.dy[n * outputs * pixels..(n + 1) * outputs * pixels];
            let dy = MatRef::from_row_major_slice(dy, outputs, pixels);
            let patches = MatRef::from_row_major_slice(&self.columns, inputs, pixels);
            let dw = MatMut::from_row_major_slice_mut(&mut self.dw, outputs, inputs);
            let write = if n == 0 { Accum::Replace } else { Accum::Add };
            product(dw, write, dy, patches.transpose(), threads);
            if with_dx {
                let patches = MatMut::from_row_major_slice_mut(&mut self.columns, inputs, pixels);
                product(patches, Accum::Replace, weight.transpose(), dy, threads);
                let columns = self.columns.par_chunks(9 * pixels);
                let channels = self.dx[n * image..(n + 1) * image].par_chunks_mut(pixels);
                columns.zip(channels).for_each(|(columns, dx)| col2im(columns, edge, dx));
            }
        }
        black_box((&self.dx, &self.dw));
    }

    /// `dX` and `dW` with route weights, exact norms and a sketch of 256 numbers.
    fn fused(&mut self, sketch: Sketch) {
        let categories = self.categories.iter_mut().enumerate();
        categories.for_each(|(n, category)| *category = n as u32 % 3);
        self.call(Some(sketch));
    }

    /// `dW` alone, every other sample routed away.
    fn half(&mut self) {
        let categories = self.categories.iter_mut().enumerate();
        categories.for_each(|(n, category)| *category = 3 * (n as u32 % 2));
        self.call(None);
    }

    fn call(&mut self, sketch: Option<Sketch>) {
        let routing = Routing { layer: &self.routing, categories: &self.categories, gates: None };
        let options = Options { routing: Some(routing), sketch, ..Options::default() };
        let weight = sketch.map(|_| &self.weight[..]);
        let inputs = ConvInputs { x: &self.x, dy: &self.dy, weight };
        let records = sketch.is_some();
        let out = LayerOutputs {
            dw: Some(ParamGrad::F32(&mut self.dw)),
            sq_norm: records.then_some(&mut self.sq_norm),
            sketch: records.then_some(&mut self.sketch),
            ..LayerOutputs::default()
        };
        let dx = records.then_some(&mut self.dx[..]);
        self.cpu.conv2d::<f32>(&self.problem, &options, inputs, dx, out).unwrap();
        black_box((&self.dx, &self.dw, &self.sq_norm, &self.sketch));
    }

    fn forward(&mut self) {
        self.cpu.conv2d_forward(&self.problem, &self.x, &self.weight, None, &mut self.y).unwrap();
        black_box(&self.y);
    }

    fn candle_forward(&self) {
        let [x, weight] = &self.tensors;
        black_box(x.conv2d(weight, 1, 1, 1, 1).unwrap());
    }
}

/// One channel's patches, `[9, edge²]`.
fn im2col(x: &[f32], edge: usize, columns: &mut [f32]) {
    for (tap, plane) in columns.chunks_exact_mut(edge * edge).enumerate() {
        for (y, out) in plane.chunks_exact_mut(edge).enumerate() {
            let row = y + tap / 3;
            if row == 0 || row > edge {
                out.fill(0.0);
                continue;
            }
            let from = &x[(row - 1) * edge..row * edge];
            match tap % 3 {
                0 => {
                    out[0] = 0.0;
                    out[1..].copy_from_slice(&from[..edge - 1]);
                }
                1 => out.copy_from_slice(from),
                _ => {
                    out[..edge - 1].copy_from_slice(&from[1..]);
                    out[edge - 1] = 0.0;
                }
            }
        }
    }
}

/// The other way round.
fn col2im(columns: &[f32], edge: usize, dx: &mut [f32]) {
    dx.fill(0.0);
    for (tap, plane) in columns.chunks_exact(edge * edge).enumerate() {
        for (y, from) in plane.chunks_exact(edge).enumerate() {
            let row = y + tap / 3;
            if row == 0 || row > edge {
                continue;
            }
            let to = &mut dx[(row - 1) * edge..row * edge];
            let (to, from) = match tap % 3 {
                0 => (&mut to[..edge - 1], &from[1..]),
                1 => (to, from),
                _ => (&mut to[1..], &from[..edge - 1]),
            };
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

/// `c (+)= a · b` on so many threads, without the library's own, which wait by spinning and so
/// look bad on a busy machine.
fn product(c: MatMut<f32>, write: Accum, a: MatRef<f32>, b: MatRef<f32>, threads: usize) {
    if threads < 2 {
        return matmul(c, write, a, b, 1.0, Par::Seq);
    }
    let half = threads / 2;
    let cut = c.nrows() * half / threads;
    let ((c0, c1), (a0, a1)) = (c.split_at_row_mut(cut), a.split_at_row(cut));
    rayon::join(|| product(c0, write, a0, b, half), || product(c1, write, a1, b, threads - half));
}

fn sketches() -> [(&'static str, Sketch); 2] {
    [
        ("two-sided", Sketch::two_sided(16, 7, 1).unwrap()),
        ("count", Sketch::count(256, 7, 1).unwrap()),
    ]
}

const LEAST: Duration = Duration::from_millis(400);

/// Milliseconds of the plain pass; the ratios of either sketch, of half the samples and of the
/// forward pass.
fn pairs(shape: Shape) -> (f64, [String; 4]) {
    let bench = &RefCell::new(Bench::new(shape));
    let plain = |dx| move || bench.borrow_mut().plain(dx);
    let [two_sided, count] = sketches().map(|(_, sketch)| {
        Ratios::measure(LEAST, plain(true), || bench.borrow_mut().fused(sketch))
    });
    let half = Ratios::measure(LEAST, plain(false), || bench.borrow_mut().half());
    let candle = || bench.borrow().candle_forward();
    let forward = Ratios::measure(LEAST, candle, || bench.borrow_mut().forward());
    let milliseconds = two_sided.plain.as_secs_f64() * 1e3;
    (milliseconds, [two_sided.cell(), count.cell(), half.cell(), forward.cell()])
}

fn table(only: Option<&str>) {
    let about = "\
One call of the `cpu` backend (`dX`, `dW` with route weights, exact norms, 256 numbers of\n\
sketch) over patches and the two plain products of the same GEMM library, 3×3, f32, timed in\n\
turn in one process: median (quartiles) of the ratios, of processor time on one thread and of\n\
wall-clock time on two. *Half*: `dW` alone with every other sample routed away, over the plain\n\
`dW`; a single sample has no other half. *Forward*: over candle's own convolution.";
    let columns = [
        "layer",
        "N × C × O × H × W",
        "threads",
        "plain, ms",
        "two-sided",
        "count",
        "half",
        "forward",
    ];
    let mut table = Table::new("Convolutions on the CPU", about, &columns);
    for shape in SHAPES.iter().filter(|shape| only.is_none_or(|only| shape.0.contains(only))) {
        for threads in [1, 2] {
            let (milliseconds, cells) = pool(threads).install(|| pairs(*shape));
            let (name, samples, inputs, outputs, edge) = *shape;
            let size = format!("{samples} × {inputs} × {outputs} × {edge} × {edge}");
            let head = [name.into(), size, threads.to_string(), format!("{milliseconds:.2}")];
            table.row(head.into_iter().chain(cells));
        }
    }
    if only.is_none() {
        table.save("cpu-conv");
    }
}

fn criterion(criterion: &mut Criterion) {
    for shape in SHAPES.iter().filter(|shape| shape.0.starts_with("small")) {
        let group = &mut support::group(criterion, shape.0);
        for threads in [1, 2] {
            let (mut bench, pool) = (Bench::new(*shape), &pool(threads));
            time(group, pool, "plain", || bench.plain(true));
            for (kind, sketch) in sketches() {
                time(group, pool, kind, || bench.fused(sketch));
            }
            time(group, pool, "half dW", || bench.half());
            time(group, pool, "forward", || bench.forward());
        }
    }
}

fn main() {
    support::run(table, criterion);
}
