//! The kernels on an NVIDIA GPU: the fused pass over the plain pass by the same kernels, over cuBLASLt's
//! plain products, and over what a user would compose of such products.
//!
//! `cargo bench --bench cuda` times all with criterion, by events of the device. `cargo bench --bench
//! cuda -- --table` times them in turn in one process and writes the ratios to `benches/record/`; a word
//! after `--table` picks the shapes whose name holds it, and then nothing is written. Without a device
//! the `cpu` group runs instead, or with `GRADROUTE_REQUIRE_GPU=1` nothing, which is an error. Under
//! softcuda, which knows no time, every pass runs once on small layers.

#[path = "cuda/blas.rs"]
mod blas;
#[path = "cuda/clock.rs"]
mod clock;
#[path = "cuda/composed.rs"]
mod composed;
#[path = "cuda/layer.rs"]
mod layer;
#[allow(dead_code)] // the benchmarks of the CPU use the rest
mod support;

use std::cell::RefCell;
use std::time::Duration;

use blas::Blas;
use clock::{Clock, microseconds, ratio};
use composed::Composed;
use criterion::Criterion;
use cudarc::driver::{CudaSlice, DeviceRepr};
use gradroute::cuda::{Cuda, device_available};
use gradroute::projection::Sketch;
use half::bf16;
use layer::{Layer, Problem, What};
use support::Table;

/// Numbers of a sketch.
const NUMBERS: usize = 256;
/// How often all passes of a layer are timed in turn.
const ROUNDS: usize = 40;

const ABOUT: &str = "\
`dX` and `dW` (f32) of bf16 inputs; *two-sided* (16 × 16) and *count* (256): with route weights, exact norms\n\
and the sketch. Events of the device around each pass, the second-level cache flushed before it, clocks\n\
warmed up; all passes of a layer in turn: median (quartiles), of ratios round by round. *Plain*: by the same\n\
kernels. *Half*: `dW` alone with every other sample routed away, over the plain `dW`. *cuBLASLt*: its two\n\
plain products. *Composed*: each sample's gradient by a batched product, then norms, one weight a sample\n\
(the fused pass has one a sample and region) and the sketch, two-sided or by a dense matrix, by products.";

const COLUMNS: [&str; 11] = [
    "layer",
    "samples × rows × I × O",
    "plain, µs",
    "two-sided / plain",
    "count / plain",
    "half / plain dW",
    "plain / cuBLASLt",
    "two-sided / cuBLASLt",
    "count / cuBLASLt",
    "two-sided / composed",
    "count / composed",
];

/// Name, kind, and samples, rows (or edge of the image), inputs and outputs (or rank).
type Shape = (&'static str, Kind, [usize; 4]);

#[derive(Clone, Copy)]
enum Kind {
    Linear,
    Conv,
    Lora,
}
use Kind::{Conv, Linear, Lora};

const SHAPES: &[Shape] = &[
    ("attention 64²", Linear, [16, 4096, 320, 320]),
    ("attention 32²", Linear, [16, 1024, 640, 640]),
    ("attention 16²", Linear, [16, 256, 1280, 1280]),
    ("attention 8²", Linear, [16, 64, 1280, 1280]),
    ("feed-forward in 64²", Linear, [4, 4096, 320, 2560]),
    ("feed-forward out 64²", Linear, [4, 4096, 1280, 320]),
    ("feed-forward in 32²", Linear, [8, 1024, 640, 5120]),
    ("feed-forward out 32²", Linear, [8, 1024, 2560, 640]),
    ("feed-forward in 16²", Linear, [16, 256, 1280, 10240]),
    ("feed-forward out 16²", Linear, [16, 256, 5120, 1280]),
    ("feed-forward in 8²", Linear, [16, 64, 1280, 10240]),
    ("feed-forward out 8²", Linear, [16, 64, 5120, 1280]),
    ("text 768 to 320", Linear, [16, 77, 768, 320]),
    ("text 768 to 640", Linear, [16, 77, 768, 640]),
    ("text 768 to 1280", Linear, [16, 77, 768, 1280]),
    ("text 1024 to 320", Linear, [16, 77, 1024, 320]),
    ("text 1024 to 640", Linear, [16, 77, 1024, 640]),
    ("text 1024 to 1280", Linear, [16, 77, 1024, 1280]),
    ("ResNet 64²", Conv, [8, 64, 320, 320]),
    ("ResNet 32²", Conv, [8, 32, 640, 640]),
    ("ResNet 16²", Conv, [8, 16, 1280, 1280]),
    ("ResNet 8²", Conv, [8, 8, 1280, 1280]),
    ("LoRA 64² rank 4", Lora, [16, 4096, 320, 4]),
    ("LoRA 32² rank 16", Lora, [16, 1024, 640, 16]),
    ("LoRA 16² rank 64", Lora, [16, 256, 1280, 64]),
    ("LoRA 8² rank 64", Lora, [16, 64, 1280, 64]),
];

/// Small enough for softcuda, with tiles that are not full.
const SMALL: &[Shape] = &[
    ("linear", Linear, [3, 40, 72, 136]),
    ("convolution", Conv, [2, 6, 16, 24]),
    ("LoRA", Lora, [2, 33, 40, 4]),
];

/// The ways to compute a layer's pass, in the table's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Plain,
    TwoSided,
    Count,
    PlainDw,
    Half,
    Blas,
    ComposedTwoSided,
    ComposedDense,
}
use Way::{ComposedDense, ComposedTwoSided, Count, Half, Plain, PlainDw, TwoSided};

/// A device with what the passes need of it.
struct Bench {
    cuda: Cuda,
    /// Or why there is none.
    blas: Result<Blas, String>,
}

/// A way, and its pass or why there is none.
type Passes<'a> = Vec<(Way, Result<Box<dyn FnMut() + 'a>, String>)>;

impl Bench {
    fn new() -> Self {
        let cuda = Cuda::new(0).expect("there is a device");
        let blas = Blas::open(cuda.stream());
        if let Err(why) = &blas {
            println!("{why}: columns that need it say so");
        }
        Self { cuda, blas }
    }

    fn layer(&self, (_, kind, [samples, rows, inputs, outputs]): Shape) -> Layer<'_> {
        let problem = match kind {
            Linear => Problem::linear(samples, rows, inputs, outputs),
            Conv => Problem::conv(samples, rows, inputs, outputs),
            Lora => Problem::lora(samples, rows, inputs, outputs),
        };
        Layer::new(&self.cuda, problem, &own_ways().map(|(_, what)| what))
    }

    /// All ways to compute a layer.
    fn passes<'a>(&'a self, layer: &'a Layer<'a>, shape: Shape) -> Passes<'a> {
        let own = own_ways().map(|(way, what)| (way, Ok(Box::new(layer.pass(what)) as Box<_>)));
        let mut passes: Passes = own.into_iter().collect();
        passes.push((Way::Blas, self.products(layer, shape)));
        for (way, dense) in [(ComposedTwoSided, false), (ComposedDense, true)] {
            passes.push((way, self.composed(layer, shape, dense)));
        }
        passes
    }

    fn blas(&self, kind: Kind) -> Result<&Blas, String> {
        match (kind, &self.blas) {
            (Linear, Ok(blas)) => Ok(blas),
            (Linear, Err(why)) => Err(why.clone()),
            (Conv | Lora, _) => Err("–".into()),
        }
    }

    /// The plain pass by cuBLASLt, which must give what the kernels give.
    fn products<'a>(
        &'a self,
        layer: &'a Layer<'a>,
        (_, kind, sizes): Shape,
    ) -> Result<Box<dyn FnMut() + 'a>, String> {
        let own = &layer.parts[0];
        let mut pass = composed::plain(self.blas(kind)?, self.cuda.stream(), sizes, own)?;
        layer.pass(What::Plain)();
        let (dx, dw) = (self.read(&own.dx), self.read(&own.dw));
        pass();
        let widen =
            |numbers: &[bf16]| numbers.iter().map(|number| number.to_f32()).collect::<Vec<_>>();
        alike("dX", &widen(&dx), &widen(&self.read(&own.dx)), 0.01)?;
        alike("dW", &dw, &self.read(&own.dw), 0.01)?;
        Ok(Box::new(pass))
    }

    /// The composition, whose norms must be those of the fused pass.
    fn composed<'a>(
        &'a self,
        layer: &'a Layer<'a>,
        (_, kind, sizes): Shape,
        dense: bool,
    ) -> Result<Box<dyn FnMut() + 'a>, String> {
        let own = &layer.parts[0];
        let composed = Composed::new(self.blas(kind)?, self.cuda.stream(), sizes, own, dense)?;
        layer.pass(own_ways()[1].1)();
        composed.queue();
        alike("norms", &self.read(&own.sq_norm), &self.read(&composed.sq_norm), 0.02)?;
        Ok(Box::new(move || composed.queue()))
    }

    fn read<T: DeviceRepr + Clone + Default>(&self, slice: &CudaSlice<T>) -> Vec<T> {
        self.cuda.stream().clone_dtoh(slice).expect("a copy")
    }

    /// Runs every pass once.
    fn once(&self) {
        for &shape in SMALL {
            let layer = self.layer(shape);
            for (way, pass) in self.passes(&layer, shape) {
                let Ok(mut pass) = pass else { continue };
                pass();
                self.cuda.stream().synchronize().expect("the device is through");
                println!("{}: {way:?} ran", shape.0);
            }
            for part in &layer.parts {
                let norms = self.read(&part.sq_norm);
                assert!(norms.iter().all(|&norm| norm > 0.0), "{}: {norms:?}", shape.0);
                assert!(self.read(&part.dw).iter().any(|&number| number != 0.0), "{}", shape.0);
            }
        }
    }

    fn table(&self, only: Option<&str>) {
        let mut table = Table::of("The CUDA kernels on a GPU", &self.machine(), ABOUT, &COLUMNS);
        let mut clock = Clock::new(self.cuda.stream().clone());
        for shape in SHAPES.iter().filter(|shape| only.is_none_or(|only| shape.0.contains(only))) {
            table.row(self.row(&mut clock, *shape));
            // Each time, so that whoever stops here has a record too.
            if only.is_none() {
                table.save("cuda-gpu");
            }
        }
    }

    /// A layer's line of the table.
    fn row(&self, clock: &mut Clock, shape: Shape) -> Vec<String> {
        let layer = self.layer(shape);
        let mut passes = self.passes(&layer, shape);
        if let Some((_, Ok(plain))) = passes.first_mut() {
            clock.warm_up(plain);
        }
        let present = passes.iter_mut().filter_map(|(_, pass)| Some(&mut **pass.as_mut().ok()?));
        let mut present: Vec<&mut dyn FnMut()> = present.map(|pass| pass as _).collect();
        let mut times = clock.rounds(ROUNDS, &mut present).into_iter();
        let times: Vec<(Way, Result<Vec<f64>, String>)> = passes
            .iter()
            .map(|(way, pass)| match pass {
                Ok(_) => (*way, Ok(times.next().expect("one each"))),
                Err(why) => (*way, Err(why.clone())),
            })
            .collect();
        let of =
            |way: Way| &times.iter().find(|(other, _)| *other == way).expect("each is there").1;
        let cell = |(own, other)| match (of(own), of(other)) {
            (Ok(own), Ok(other)) => ratio(own, other),
            (Err(why), _) | (_, Err(why)) => why.clone(),
        };
        let plain = of(Plain).as_ref().map_or_else(Clone::clone, |times| microseconds(times));
        let (name, kind, [samples, rows, inputs, outputs]) = shape;
        let size = match kind {
            Linear => format!("{samples} × {rows} × {inputs} × {outputs}"),
            Conv => format!("{samples} × {rows}² × {inputs} · 9 × {outputs}"),
            Lora => format!("{samples} × {rows} × {inputs} × {inputs}, rank {outputs}"),
        };
        let pairs = [
            (TwoSided, Plain),
            (Count, Plain),
            (Half, PlainDw),
            (Plain, Way::Blas),
            (TwoSided, Way::Blas),
            (Count, Way::Blas),
            (TwoSided, ComposedTwoSided),
            (Count, ComposedDense),
        ];
        [name.into(), size, plain].into_iter().chain(pairs.map(cell)).collect()
    }

    fn criterion(&self, criterion: &mut Criterion) {
        let clock = &RefCell::new(Clock::new(self.cuda.stream().clone()));
        for &shape in SHAPES {
            let layer = self.layer(shape);
            let group = &mut support::group(criterion, shape.0);
            for (way, pass) in self.passes(&layer, shape) {
                let Ok(mut pass) = pass else { continue };
                clock.borrow_mut().warm_up(&mut pass);
                group.bench_function(format!("{way:?}"), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let mut clock = clock.borrow_mut();
                        (0..iterations).map(|_| clock.time(&mut pass)).sum::<Duration>()
                    });
                });
            }
        }
    }

    fn machine(&self) -> String {
        let context = self.cuda.device().context();
        let name = context.name().unwrap_or_else(|_| "unnamed".into());
        let (major, minor) = context.compute_capability().unwrap_or_default();
        let multiprocessors = self.cuda.properties().multiprocessors;
        format!("{name}, compute capability {major}.{minor}, {multiprocessors} multiprocessors")
    }
}

/// The ways of the crate's own kernels.
fn own_ways() -> [(Way, What); 5] {
    let two_sided = Sketch::two_sided(16, 7, 1).expect("16 by 16");
    let count = Sketch::count(NUMBERS, 7, 1).expect("256 buckets");
    [
        (Plain, What::Plain),
        (TwoSided, What::Fused(two_sided)),
        (Count, What::Fused(count)),
        (PlainDw, What::PlainDw),
        (Half, What::Half),
    ]
}

/// Whether two results differ by no more than so much, relative, in the second norm.
fn alike(what: &str, own: &[f32], other: &[f32], most: f64) -> Result<(), String> {
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        own.iter().zip(other).map(|(&own, &other)| of(own.into(), other.into())).sum()
    };
    let difference = (sum(&|own, other| (own - other).powi(2)) / sum(&|own, _| own * own)).sqrt();
    // Written so that NaN differs.
    if difference <= most { Ok(()) } else { Err(format!("{what} differ by {difference:.3}")) }
}

/// The group that needs no device, with the same arguments.
fn cpu_instead(why: &str) {
    println!("no CUDA device: {why}; the cpu group instead");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["bench", "--bench", "cpu", "--"]);
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let status = command.args(arguments).status().expect("cargo starts");
    std::process::exit(status.code().unwrap_or(1));
}

fn main() {
    blas::check_layouts();
    if let Err(why) = device_available() {
        // As for the device's tests: where one is promised, the cpu group must not pass for it.
        if std::env::var("GRADROUTE_REQUIRE_GPU").is_ok_and(|value| value == "1") {
            eprintln!("GRADROUTE_REQUIRE_GPU=1, but no CUDA device: {why}");
            std::process::exit(1);
        }
        return cpu_instead(&why.to_string());
    }
    let bench = Bench::new();
    if std::env::var("SOFTCUDA").is_ok_and(|value| value == "1") {
        println!("softcuda knows no time: every pass runs once");
        return bench.once();
    }
    support::run(|only| bench.table(only), |criterion| bench.criterion(criterion));
}
