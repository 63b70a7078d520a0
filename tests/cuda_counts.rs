//! What the kernels cost, as softcuda counts it: a committed table, compared exactly.
//!
//! Runs under softcuda with `SOFTCUDA_COUNTERS` naming a file, as `cargo xtask test` does; elsewhere it
//! says so. `GRADROUTE_BLESS=1` writes the table instead.

use std::fmt::Write as _;
use std::fs;

use gradroute::cuda::{
    Cuda, FormedPlan, ImageLayout, RoutingShape, Wish, plan_conv2d, plan_linear,
};
use gradroute::ops::plan::{Path, Request};
use gradroute::ops::{
    Backend, ConvInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, Options, ParamGrad,
    Routing,
};
use gradroute::problem::{Conv2d, Conv2dSpec, Dtype, GradientShape, Linear, Lora, Padding, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, RegionMap};
use half::bf16;
use serde_json::Value;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record/cuda-counts.md");

const HEAD: &str = "\
# What the CUDA kernels cost

Counts, not times: softcuda executes the PTX for compute capability 8.0 as on a device of 132
multiprocessors. `dW` in f32 of bf16 inputs, all launches of the call; convolutions have 3 × 3 kernels, a
padding of 1 and channels last. *Plain*: without norms, sketch and routing. *Two-sided* (16 × 16) and
*count* (256): with route weights, exact norms and the sketch. *Half*: `dW` alone, every other sample routed
away. *Path*: as planned.

Millions of warp instructions, thousands of matrix instructions, MB of 32-byte sectors, and their ratios to
plain. *Cycles*, in thousands: of issue slots, warp instructions / (4 schedulers × 132); and of matrix units,
8 for each m16n8k16 (2048 multiply-adds, 256 a cycle) / (4 units × 132). They are PTX instructions, all
multiprocessors evenly loaded: what they say is which of the two a kernel needs more of. *Least*: bytes over
the least possible for the tiling: each tile reads its columns of the samples' rows once, `dW` is written
once, running totals are written and read once, records are written. *Conflicts*: wavefronts of shared
memory beyond the ideal, over the ideal, of all accesses, and of those that run at least half as often as the
matrix instruction that runs most.

| samples × rows, layer | what | path | instructions | matrix | MB | ratios | cycles | least | conflicts |
|---|---|---|---|---|---|---|---|---|---|
";

const LORA_HEAD: &str = "
LoRA branches, `dW` of both factors from one read of the rows; *apart*: each factor by itself. *Least*: bytes
over those of `X` and `dY` read once and both gradients written; the factors themselves, read again for each
16 rows, count too.

| samples × rows, layer, rank | what | instructions | matrix | MB | ratios | least |
|---|---|---|---|---|---|---|
";

/// Multiprocessors, and schedulers and matrix units of all of them.
const UNITS: f64 = 4.0 * 132.0;

/// One call's counts.
#[derive(Clone, Copy, Default)]
struct Counts {
    issued: u64,
    matrix: u64,
    sectors: u64,
    /// Wavefronts of shared memory, and the ideal, of all lines and of the main loop's.
    shared: [[u64; 2]; 2],
}

impl Counts {
    /// Adds one launch, a JSON object.
    fn add(&mut self, launch: &Value) {
        let of = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
        let total = |name: &str| of(&launch["totals"], name);
        self.issued += total("issued");
        self.matrix += total("matrix_operations") / (16 * 8 * 16);
        self.sectors += total("global_sectors");
        let lines = launch["lines"].as_array().unwrap();
        let matrix = lines.iter().filter(|line| of(line, "matrix_operations") > 0);
        let most = matrix.map(|line| of(line, "issued")).max().unwrap_or(u64::MAX);
        for line in lines {
            let counts = ["shared_wavefronts", "shared_ideal"].map(|name| of(line, name));
            let main = most < u64::MAX && 2 * of(line, "issued") >= most;
            for (sums, _) in self.shared.iter_mut().zip([true, main]).filter(|(_, counts)| *counts)
            {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
        }
    }

    fn conflicts(&self) -> [f64; 2] {
        let over = |[wavefronts, ideal]: [u64; 2]| wavefronts as f64 / ideal.max(1) as f64 - 1.0;
        self.shared.map(|counts| if counts[1] == 0 { 0.0 } else { over(counts) })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Plain,
    Recorded(Sketch),
    Half,
}

enum Layer {
    Linear(Linear),
    Conv(Conv2d),
}

#[test]
fn counts_are_those_of_the_table() {
    let Some(file) = std::env::var_os("SOFTCUDA_COUNTERS") else {
        println!("skipped: SOFTCUDA_COUNTERS is not set");
        return;
    };
    let mut seen = 0;
    let mut count = |call: &mut dyn FnMut()| {
        call();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut sum = Counts::default();
        for line in text.lines().skip(seen) {
            seen += 1;
            sum.add(&serde_json::from_str(line).unwrap());
        }
        sum
    };
    // What stands in the file already is another process' work.
    count(&mut || {});
    let mut cuda = Cuda::new(0).expect("softcuda is a device");
    let kinds = [
        ("plain", What::Plain),
        ("two-sided", What::Recorded(Sketch::two_sided(16, 1, 0).unwrap())),
        ("count", What::Recorded(Sketch::count(256, 1, 0).unwrap())),
        ("half", What::Half),
    ];
    let mut table = String::from(HEAD);
    for layer in layers() {
        let mut plain = Counts::default();
        for (name, what) in kinds {
            let counts = count(&mut || layer.run(&mut cuda, what));
            if what == What::Plain {
                plain = counts;
            }
            let plan = layer.plan(&cuda, what);
            table += &line(&layer, name, &plan, &counts, &plain, layer.least(&plan, what));
        }
    }
    table += LORA_HEAD;
    for [rows, features, rank] in [[256, 320, 4], [256, 640, 16]] {
        let lora = Lora::new(Rows::uniform(4, rows).unwrap(), features, features, rank, 1.0);
        let lora = lora.unwrap();
        let mut one_by_one = Cuda::new(0).unwrap().forced_to(Path::Formed);
        let mut plain = Counts::default();
        for (name, what) in kinds.into_iter().filter(|&(_, what)| what != What::Half) {
            let counts = count(&mut || run_lora(&lora, &mut cuda, what));
            if what == What::Plain {
                plain = counts;
            }
            table += &lora_line(&lora, name, &counts, &plain);
        }
        let apart = count(&mut || run_lora(&lora, &mut one_by_one, What::Plain));
        table += &lora_line(&lora, "plain, apart", &apart, &plain);
    }
    if std::env::var("GRADROUTE_BLESS").is_ok_and(|value| value == "1") {
        fs::write(TABLE, table).unwrap();
        return;
    }
    assert_eq!(fs::read_to_string(TABLE).unwrap(), table, "the kernels' cost has changed");
}

/// The shapes of the table.
fn layers() -> Vec<Layer> {
    let linear = |(rows, inputs, outputs)| {
        Layer::Linear(Linear::new(Rows::uniform(16, rows).unwrap(), inputs, outputs).unwrap())
    };
    let conv = |(edge, channels)| {
        let spec = Conv2dSpec {
            samples: 4,
            in_channels: channels,
            out_channels: channels,
            size: [edge, edge],
            kernel: [3, 3],
            padding: Padding::symmetric(1, 1),
            ..Conv2dSpec::default()
        };
        Layer::Conv(Conv2d::new(spec).unwrap())
    };
    let linears = [(4096, 320, 320), (256, 1280, 1280), (77, 768, 320), (1, 1280, 1280)];
    let convs = [(16, 320), (8, 640)];
    linears.map(linear).into_iter().chain(convs.map(conv)).collect()
}

fn line(
    layer: &Layer,
    name: &str,
    plan: &FormedPlan,
    counts: &Counts,
    plain: &Counts,
    least: f64,
) -> String {
    let ratio = |of: fn(&Counts) -> u64| of(counts) as f64 / of(plain) as f64;
    let bytes = counts.sectors as f64 * 32.0;
    let [all, main] = counts.conflicts();
    let path = if plan.path == Path::Formed { "formed" } else { "factored" };
    let mut text = format!("| {} | {name} | {path} in {}", layer.name(), plan.parts);
    write!(text, " | {:.3}", counts.issued as f64 / 1e6).unwrap();
    write!(text, " | {:.1} | {:.2}", counts.matrix as f64 / 1e3, bytes / 1e6).unwrap();
    write!(text, " | {:.3}, ", ratio(|counts| counts.issued)).unwrap();
    write!(text, "{:.3}, ", ratio(|counts| counts.matrix)).unwrap();
    write!(text, "{:.3}", ratio(|counts| counts.sectors)).unwrap();
    write!(text, " | {:.1}, ", counts.issued as f64 / UNITS / 1e3).unwrap();
    write!(text, "{:.1}", counts.matrix as f64 * 8.0 / UNITS / 1e3).unwrap();
    writeln!(text, " | {:.3} | {all:.3}, {main:.3} |", bytes / least).unwrap();
    text
}

fn lora_line(lora: &Lora, name: &str, counts: &Counts, plain: &Counts) -> String {
    let [samples, rows] = [lora.rows().samples(), lora.rows().longest()];
    let [features, rank] = [lora.in_features(), lora.rank()];
    let bytes = counts.sectors as f64 * 32.0;
    let least = 2.0 * features as f64 * (2 * samples * rows + 4 * rank) as f64;
    let ratio = |of: fn(&Counts) -> u64| of(counts) as f64 / of(plain) as f64;
    let mut text = format!("| {samples} × {rows}, {features} → {features}, {rank} | {name}");
    write!(text, " | {:.3}", counts.issued as f64 / 1e6).unwrap();
    write!(text, " | {:.1} | {:.2}", counts.matrix as f64 / 1e3, bytes / 1e6).unwrap();
    write!(text, " | {:.3}, ", ratio(|counts| counts.issued)).unwrap();
    write!(text, "{:.3}, ", ratio(|counts| counts.matrix)).unwrap();
    write!(text, "{:.3}", ratio(|counts| counts.sectors)).unwrap();
    writeln!(text, " | {:.3} |", bytes / least).unwrap();
    text
}

fn run_lora(lora: &Lora, cuda: &mut Cuda, what: What) {
    let [samples, rank] = [lora.rows().samples(), lora.rank()];
    let (features, rows) = (lora.in_features(), lora.rows().total());
    let x = vec![bf16::ONE; rows * features];
    let factor = vec![bf16::ONE; rank * features];
    let inputs = LoraInputs { x: &x, dy: &x, a: &factor, b: &factor, base: None };
    let categories = vec![0; samples];
    let sides = [lora.a().gradient(), lora.b().gradient()];
    let layers = sides.map(|shape| {
        let regions = RegionMap::whole(shape.outputs(), shape.features());
        LayerRouting::new(regions, 1, vec![0.5], vec![1.0]).unwrap()
    });
    let mut dw = [(); 2].map(|()| vec![0.0; rank * features]);
    let mut records = [(); 2].map(|()| (vec![0.0; samples], Vec::new()));
    let recorded = if let What::Recorded(kind) = what { Some(kind) } else { None };
    let options = layers.each_ref().map(|layer| Options {
        routing: recorded.map(|_| Routing { layer, categories: &categories, gates: None }),
        sketch: recorded,
        ..Options::default()
    });
    let mut outs = dw.iter_mut().zip(&mut records).map(|(dw, (sq_norm, sketch))| {
        let dw = Some(ParamGrad::F32(&mut dw[..]));
        let Some(kind) = recorded else { return LayerOutputs { dw, ..LayerOutputs::default() } };
        sketch.resize(samples * kind.len(), 0.0);
        LayerOutputs { dw, sq_norm: Some(sq_norm), sketch: Some(sketch), ..LayerOutputs::default() }
    });
    let out = LoraOutputs { a: outs.next().unwrap(), b: outs.next().unwrap() };
    let [a, b] = &options;
    cuda.lora(lora, [a, b], inputs, None, out).unwrap();
}

impl Layer {
    fn name(&self) -> String {
        let [samples, rows] = self.rows();
        match self {
            Self::Linear(linear) => {
                format!("{samples} × {rows}, {} → {}", linear.in_features(), linear.out_features())
            }
            Self::Conv(conv) => {
                let [high, wide] = conv.spec().size;
                format!("{samples} × {high}·{wide}, convolution of {}", conv.spec().in_channels)
            }
        }
    }

    fn shape(&self) -> GradientShape {
        match self {
            Self::Linear(linear) => linear.gradient(),
            Self::Conv(conv) => conv.gradient(),
        }
    }

    /// Samples, and rows of each.
    fn rows(&self) -> [usize; 2] {
        match self {
            Self::Linear(linear) => {
                [linear.rows().samples(), linear.rows().total() / linear.rows().samples()]
            }
            Self::Conv(conv) => [conv.spec().samples, conv.out_size().iter().product()],
        }
    }

    /// Two regions; category 1 trains nothing.
    fn routing(&self) -> LayerRouting {
        let (outputs, inputs) = (self.shape().outputs(), self.shape().features());
        let owned = gradroute::routing::Region { outputs: outputs / 2..outputs, inputs: 0..inputs };
        let regions = RegionMap::new(outputs, inputs, vec![owned]).unwrap();
        LayerRouting::new(regions, 2, vec![1.0, 0.5, 0.0, 0.0], vec![1.0; 4]).unwrap()
    }

    /// The plan of a call.
    fn plan(&self, cuda: &Cuda, what: What) -> FormedPlan {
        let sketch = if let What::Recorded(sketch) = what { Some(sketch) } else { None };
        let recorded = sketch.is_some();
        let wish = Wish {
            request: Request { dw: true, norms: recorded, sketch: recorded, ..Request::default() },
            sketch,
            routing: (what != What::Plain).then(|| RoutingShape::of(&self.routing())),
            ..Wish::default()
        };
        let properties = cuda.properties();
        match self {
            Self::Linear(linear) => {
                *plan_linear(linear, Dtype::Bf16, wish, &properties).unwrap().formed()
            }
            Self::Conv(conv) => {
                let layout = ImageLayout::ChannelsLast;
                *plan_conv2d(conv, layout, Dtype::Bf16, wish, &properties).unwrap().formed()
            }
        }
    }

    /// The least bytes that such a plan can move.
    fn least(&self, plan: &FormedPlan, what: What) -> f64 {
        let [samples, rows] = self.rows().map(|count| count as f64);
        let taken = if what == What::Half { samples / 2.0 } else { samples };
        let (outputs, inputs) = (self.shape().outputs() as f64, self.shape().inputs() as f64);
        // Numbers of a row of X that are there: what a convolution sees of its padding is not.
        let seen = match self {
            Self::Linear(_) => inputs,
            Self::Conv(conv) => {
                let inside = conv.spec().size.map(|edge| (3 * edge - 2) as f64 / (3 * edge) as f64);
                inputs * inside[0] * inside[1]
            }
        };
        let [down, across] = plan.tiles.map(f64::from);
        let operands = 2.0 * taken * rows * (down * seen + across * outputs);
        let totals = if plan.parts > 1 { 2.0 * f64::from(plan.parts) } else { 0.0 };
        let records = match what {
            What::Recorded(sketch) => 4.0 * samples * (1 + sketch.len()) as f64,
            _ => 0.0,
        };
        operands + 4.0 * outputs * inputs * (1.0 + totals) + records
    }

    fn run(&self, cuda: &mut Cuda, what: What) {
        let [samples, rows] = self.rows();
        let shape = self.shape();
        let pixels = match self {
            Self::Linear(linear) => rows * linear.in_features(),
            Self::Conv(conv) => {
                conv.spec().in_channels * conv.spec().size.iter().product::<usize>()
            }
        };
        let x = vec![bf16::ONE; samples * pixels];
        let dy = vec![bf16::ONE; samples * rows * shape.outputs()];
        let layer = self.routing();
        let away = |n: usize| u32::from(what == What::Half && n % 2 == 1);
        let categories: Vec<u32> = (0..samples).map(away).collect();
        let mut options = Options::default();
        if what != What::Plain {
            options.routing = Some(Routing { layer: &layer, categories: &categories, gates: None });
        }
        let mut dw = vec![0.0; shape.weights()];
        let mut sq_norm = vec![0.0; samples];
        let mut sketch = Vec::new();
        let mut out = LayerOutputs { dw: Some(ParamGrad::F32(&mut dw)), ..LayerOutputs::default() };
        if let What::Recorded(kind) = what {
            options.sketch = Some(kind);
            sketch.resize(samples * kind.len(), 0.0);
            out.sq_norm = Some(&mut sq_norm);
            out.sketch = Some(&mut sketch);
        }
        match self {
            Self::Linear(linear) => {
                let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
                cuda.linear(linear, &options, inputs, None, out).unwrap();
            }
            Self::Conv(conv) => {
                let inputs = ConvInputs { x: &x, dy: &dy, weight: None };
                let layout = ImageLayout::ChannelsLast;
                cuda.conv2d_laid_out(conv, layout, &options, inputs, None, out).unwrap();
            }
        }
    }
}
