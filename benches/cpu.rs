//! The `cpu` backend's fused pass over its plain backward pass of the same linear layer.
//!
//! `cargo bench --bench cpu` times both with criterion. `cargo bench --bench cpu -- --table`
//! times them in turn in one process and writes the ratios to `benches/record/`; a word after
//! `--table` picks the shapes whose name holds it, and then nothing is written.

mod support;

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use gradroute::cpu::Cpu;
use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad, Routing};
use gradroute::problem::{Linear, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, Region, RegionMap};
use support::{Ratios, Table, noise, pool, time};

/// A layer of Stable Diffusion: name, samples, rows per sample, input and output features.
type Shape = (&'static str, usize, usize, usize, usize);

const SHAPES: &[Shape] = &[
    ("attention 64²", 4, 4096, 320, 320),
    ("attention 32²", 4, 1024, 640, 640),
    ("attention 16²", 8, 256, 1280, 1280),
    ("attention 8²", 8, 64, 1280, 1280),
    ("attention 16² 640", 8, 256, 640, 640),
    ("attention 8² 640", 8, 64, 640, 640),
    ("attention 8² 320", 8, 64, 320, 320),
    ("feed-forward in 64²", 2, 4096, 320, 2560),
    ("feed-forward out 64²", 2, 4096, 1280, 320),
    ("feed-forward in 32²", 4, 1024, 640, 5120),
    ("feed-forward out 32²", 4, 1024, 2560, 640),
    ("feed-forward in 16²", 4, 256, 1280, 10240),
    ("feed-forward out 16²", 4, 256, 5120, 1280),
    ("feed-forward in 8²", 4, 64, 1280, 10240),
    ("feed-forward out 8²", 8, 64, 5120, 1280),
    ("text 768 to 320", 8, 77, 768, 320),
    ("text 768 to 1280", 8, 77, 768, 1280),
    ("text 1024 to 640", 8, 77, 1024, 640),
    ("one row, batch 8", 8, 1, 320, 1280),
    ("one row, batch 64", 64, 1, 320, 1280),
    ("one row, batch 64, 1280", 64, 1, 1280, 1280),
];

/// One layer with its operands, buffers and backend.
struct Bench {
    problem: Linear,
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    sq_norm: Vec<f32>,
    sketch: Vec<f32>,
    routing: LayerRouting,
    categories: Vec<u32>,
    cpu: Cpu,
}

impl Bench {
    fn new((_, samples, rows, inputs, outputs): Shape) -> Self {
        let total = samples * rows;
        let problem = Linear::new(Rows::uniform(samples, rows).unwrap(), inputs, outputs).unwrap();
        // A sixteenth of the outputs is owned; categories 2 and 3 are routed to and from it.
        let owned = vec![Region { outputs: outputs - outputs / 16..outputs, inputs: 0..inputs }];
        let regions = RegionMap::new(outputs, inputs, owned).unwrap();
        let route = vec![1.0, 1.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.0];
        let routing = LayerRouting::new(regions, 4, route, vec![1.0; 8]).unwrap();
        Self {
            x: noise(total * inputs, 1),
            dy: noise(total * outputs, 2),
            weight: noise(outputs * inputs, 3),
            dx: vec![0.0; total * inputs],
            dw: vec![0.0; outputs * inputs],
            sq_norm: vec![0.0; samples],
            sketch: vec![0.0; samples * 256],
            categories: vec![0; samples],
            cpu: Cpu::new(),
            problem,
            routing,
        }
    }

    /// `dX` and `dW` alone: two products.
    fn plain(&mut self, with_dx: bool) {
        let inputs = LinearInputs { x: &self.x, dy: &self.dy, weight: Some(&self.weight[..]) };
        let dw = Some(ParamGrad::F32(&mut self.dw));
        let out = LayerOutputs { dw, ..LayerOutputs::default() };
        let dx = with_dx.then_some(&mut self.dx[..]);
        self.cpu.linear::<f32>(&self.problem, &Options::default(), inputs, dx, out).unwrap();
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
        let inputs = LinearInputs { x: &self.x, dy: &self.dy, weight };
        let records = sketch.is_some();
        let out = LayerOutputs {
            dw: Some(ParamGrad::F32(&mut self.dw)),
            sq_norm: records.then_some(&mut self.sq_norm),
            sketch: records.then_some(&mut self.sketch),
            ..LayerOutputs::default()
        };
        let dx = records.then_some(&mut self.dx[..]);
        self.cpu.linear::<f32>(&self.problem, &options, inputs, dx, out).unwrap();
        black_box((&self.dx, &self.dw, &self.sq_norm, &self.sketch));
    }
}

fn sketches() -> [(&'static str, Sketch); 2] {
    [
        ("two-sided", Sketch::two_sided(16, 7, 1).unwrap()),
        ("count", Sketch::count(256, 7, 1).unwrap()),
    ]
}

/// Milliseconds of the plain pass; the ratios of either sketch and of half the samples.
fn pairs(shape: Shape) -> (f64, [String; 3]) {
    let bench = &RefCell::new(Bench::new(shape));
    let least = Duration::from_millis(400);
    let plain = |dx| move || bench.borrow_mut().plain(dx);
    let [two_sided, count] = sketches().map(|(_, sketch)| {
        Ratios::measure(least, plain(true), || bench.borrow_mut().fused(sketch))
    });
    let half = Ratios::measure(least, plain(false), || bench.borrow_mut().half());
    let milliseconds = two_sided.plain.as_secs_f64() * 1e3;
    (milliseconds, [two_sided.cell(), count.cell(), half.cell()])
}

fn table(only: Option<&str>) {
    let about = "\
One call of the `cpu` backend (`dX`, `dW` with route weights, exact norms, 256 numbers of\n\
sketch) over one that asks for `dX` and `dW` alone, f32, timed in turn in one\n\
process: median (quartiles) of the ratios, of processor time on one thread and of wall-clock\n\
time on two. *Half*: `dW` alone with every other sample routed\n\
away, over the plain `dW`.";
    let columns =
        ["layer", "samples × rows × I × O", "threads", "plain, ms", "two-sided", "count", "half"];
    let mut table = Table::new("Linear layers on the CPU", about, &columns);
    for shape in SHAPES.iter().filter(|shape| only.is_none_or(|only| shape.0.contains(only))) {
        for threads in [1, 2] {
            let (milliseconds, cells) = pool(threads).install(|| pairs(*shape));
            let (name, samples, rows, inputs, outputs) = *shape;
            let size = format!("{samples} × {rows} × {inputs} × {outputs}");
            let head = [name.into(), size, threads.to_string(), format!("{milliseconds:.2}")];
            table.row(head.into_iter().chain(cells));
        }
    }
    if only.is_none() {
        table.save("cpu-linear");
    }
}

fn criterion(criterion: &mut Criterion) {
    for shape in SHAPES.iter().filter(|(_, samples, rows, i, o)| samples * rows * i * o < 1 << 31) {
        let group = &mut support::group(criterion, shape.0);
        for threads in [1, 2] {
            let (mut bench, pool) = (Bench::new(*shape), &pool(threads));
            time(group, pool, "plain", || bench.plain(true));
            for (kind, sketch) in sketches() {
                time(group, pool, kind, || bench.fused(sketch));
            }
            time(group, pool, "half dW", || bench.half());
        }
    }
}

fn main() {
    support::run(table, criterion);
}
