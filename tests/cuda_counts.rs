//! What the kernels cost, as softcuda counts it: a committed table, compared exactly.
//!
//! Runs under softcuda with `SOFTCUDA_COUNTERS` naming a file, as `cargo xtask test` does; elsewhere it
//! says so. `GRADROUTE_BLESS=1` writes the table instead.

use std::fmt::Write as _;
use std::fs;

use gradroute::cuda::Cuda;
use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options, ParamGrad, Routing};
use gradroute::problem::{Linear, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, RegionMap};
use half::bf16;
use serde_json::Value;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record/cuda-counts.md");

const HEAD: &str = "\
# What the CUDA kernels cost

Counts, not times: softcuda executes the PTX for compute capability 8.0 as on a device of 132
multiprocessors. `dW` in f32 of bf16 inputs, all launches of the call. *Plain*: without norms, sketch and
routing. *Two-sided* (16 × 16) and *count* (256): with route weights, exact norms and the sketch.
*Half*: `dW` alone, every other sample routed away. Millions of warp instructions, thousands of matrix
instructions and MB of 32-byte sectors, and their ratios to plain; *conflicts* are wavefronts of shared
memory beyond the ideal, over the ideal.

| samples × rows, layer | what | instructions | matrix | MB | ratios | conflicts |
|---|---|---|---|---|---|---|
";

/// One call's counts.
#[derive(Clone, Copy, Default)]
struct Counts {
    issued: u64,
    matrix: u64,
    sectors: u64,
    wavefronts: u64,
    ideal: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Plain,
    Recorded(Sketch),
    Half,
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
        let rows: Vec<Value> =
            text.lines().skip(seen).map(|line| serde_json::from_str(line).unwrap()).collect();
        seen += rows.len();
        rows.iter().fold(Counts::default(), |sum, row| {
            let total = |name: &str| row["totals"][name].as_u64().unwrap();
            Counts {
                issued: sum.issued + total("issued"),
                matrix: sum.matrix + total("matrix_operations") / (16 * 8 * 16),
                sectors: sum.sectors + total("global_sectors"),
                wavefronts: sum.wavefronts + total("shared_wavefronts"),
                ideal: sum.ideal + total("shared_ideal"),
            }
        })
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
    for (rows, inputs, outputs) in [(4096, 320, 320), (256, 1280, 1280), (77, 768, 320)] {
        let problem = Linear::new(Rows::uniform(16, rows).unwrap(), inputs, outputs).unwrap();
        let mut plain = Counts::default();
        for (name, what) in kinds {
            let counts = count(&mut || run(&mut cuda, &problem, what));
            if what == What::Plain {
                plain = counts;
            }
            let ratio = |of: fn(&Counts) -> u64| of(&counts) as f64 / of(&plain) as f64;
            writeln!(
                table,
                "| 16 × {rows}, {inputs} → {outputs} | {name} | {:.3} | {:.1} | {:.2} | \
                 {:.3}, {:.3}, {:.3} | {:.3} |",
                counts.issued as f64 / 1e6,
                counts.matrix as f64 / 1e3,
                counts.sectors as f64 * 32.0 / 1e6,
                ratio(|counts| counts.issued),
                ratio(|counts| counts.matrix),
                ratio(|counts| counts.sectors),
                counts.wavefronts as f64 / counts.ideal as f64 - 1.0,
            )
            .unwrap();
        }
    }
    if std::env::var("GRADROUTE_BLESS").is_ok_and(|value| value == "1") {
        fs::write(TABLE, table).unwrap();
        return;
    }
    assert_eq!(fs::read_to_string(TABLE).unwrap(), table, "the kernels' cost has changed");
}

fn run(cuda: &mut Cuda, problem: &Linear, what: What) {
    let (samples, total) = (problem.rows().samples(), problem.rows().total());
    let (inputs, outputs) = (problem.in_features(), problem.out_features());
    let x = vec![bf16::ONE; total * inputs];
    let dy = vec![bf16::ONE; total * outputs];
    // Two regions; category 1 trains nothing.
    let owned = gradroute::routing::Region { outputs: outputs / 2..outputs, inputs: 0..inputs };
    let regions = RegionMap::new(outputs, inputs, vec![owned]).unwrap();
    let routes = vec![1.0, 0.5, 0.0, 0.0];
    let layer = LayerRouting::new(regions, 2, routes, vec![1.0; 4]).unwrap();
    let away = |n: usize| u32::from(what == What::Half && n % 2 == 1);
    let categories: Vec<u32> = (0..samples).map(away).collect();
    let mut options = Options::default();
    if what != What::Plain {
        options.routing = Some(Routing { layer: &layer, categories: &categories, gates: None });
    }
    let mut dw = vec![0.0; outputs * inputs];
    let mut sq_norm = vec![0.0; samples];
    let mut sketch = Vec::new();
    let mut out = LayerOutputs { dw: Some(ParamGrad::F32(&mut dw)), ..LayerOutputs::default() };
    if let What::Recorded(kind) = what {
        options.sketch = Some(kind);
        sketch.resize(samples * kind.len(), 0.0);
        out.sq_norm = Some(&mut sq_norm);
        out.sketch = Some(&mut sketch);
    }
    let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
    cuda.linear(problem, &options, inputs, None, out).unwrap();
}
