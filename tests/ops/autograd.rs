//! Per-sample gradients that PyTorch's autograd computed (`tests/fixtures/make.py`).

use std::collections::HashMap;

use gradroute::problem::{
    Conv2d, Conv2dSpec, Embedding, Linear, Lora, Norm, Padding, PaddingMode, Rows,
};
use gradroute::projection::{Sketch, SketchKind};
use gradroute::reference::Gradients;
use gradroute::routing::{LayerRouting, RegionMap};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::reference::gradients;
use crate::support::case::{Case, Problem, Setup};
use crate::support::compare::{assert_close, length};
use crate::support::run::{Tested, run_all};

const BYTES: &[u8] = include_bytes!("../fixtures/autograd.safetensors");
const SEED: u32 = 7;

/// One case of the fixture: its inputs, and every stored array.
struct Stored {
    case: Case<f32>,
    arrays: HashMap<String, Vec<f64>>,
}

impl Stored {
    fn array(&self, layer: usize, key: &str) -> Option<&[f64]> {
        let prefix = match self.case.problem {
            Problem::Lora(_) => ["a", "b"][layer],
            _ => "",
        };
        self.arrays.get(&format!("{prefix}{key}")).map(Vec::as_slice)
    }
}

fn load() -> Vec<Stored> {
    let (_, metadata) = SafeTensors::read_metadata(BYTES).unwrap();
    let cases: Vec<Value> =
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    let tensors = SafeTensors::deserialize(BYTES).unwrap();
    let read = |name: &str| -> HashMap<String, Vec<f64>> {
        let own = tensors.iter().filter_map(|(key, view)| {
            let key = key.strip_prefix(name)?.strip_prefix('/')?;
            let words = |wide| view.data().chunks(wide);
            let values = match view.dtype() {
                Dtype::F64 => words(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::F32 => {
                    words(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
                }
                Dtype::U32 => {
                    words(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()).into()).collect()
                }
                other => panic!("{key}: {other:?}"),
            };
            Some((key.to_string(), values))
        });
        own.collect()
    };
    cases.iter().map(|about| stored(about, read(about["name"].as_str().unwrap()))).collect()
}

fn stored(about: &Value, arrays: HashMap<String, Vec<f64>>) -> Stored {
    let problem = problem(about);
    let narrow = |key: &str| arrays[key].iter().map(|&value| value as f32).collect::<Vec<_>>();
    let (mut x, mut tokens) = (Vec::new(), Vec::new());
    let weights = match &problem {
        Problem::Lora(_) => vec![narrow("aweight"), narrow("bweight")],
        _ => vec![narrow("weight")],
    };
    match &problem {
        Problem::Embedding(_) => tokens = arrays["x"].iter().map(|&t| t as u32).collect(),
        _ => x = narrow("x"),
    }
    let layers = vec![Setup::plain(); weights.len()];
    let (name, dy) = (about["name"].as_str().unwrap().to_string(), narrow("dy"));
    Stored { case: Case { name, problem, x, tokens, dy, weights, layers }, arrays }
}

fn problem(about: &Value) -> Problem {
    let number = |key: &str| about[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
    let several = |key: &str| -> Vec<usize> {
        about[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
    };
    let pair = |key: &str| -> [usize; 2] { several(key).try_into().unwrap() };
    let rows = || {
        let offsets: Vec<u64> = several("offsets").into_iter().map(|at| at as u64).collect();
        Rows::new(offsets).unwrap()
    };
    let eps = 2f32.powi(-10);
    let problem = match about["op"].as_str().unwrap() {
        "linear" => Linear::new(rows(), number("inputs"), number("outputs"))
            .map(|linear| Problem::Linear(linear.with_bias(true))),
        "lora" => {
            let scale = about["scale"].as_f64().unwrap() as f32;
            Lora::new(rows(), number("inputs"), number("outputs"), number("rank"), scale)
                .map(Problem::Lora)
        }
        "embedding" => {
            Embedding::new(rows(), number("vocabulary"), number("features")).map(Problem::Embedding)
        }
        "layer" => Norm::layer(rows(), number("features"), eps).map(Problem::Norm),
        "rms" => Norm::rms(rows(), number("features"), eps).map(Problem::Norm),
        "group" => Norm::group(3, number("channels"), number("positions"), number("groups"), eps)
            .map(Problem::Norm),
        "conv2d" => {
            let [left, right, top, bottom] = several("pad").try_into().unwrap();
            let circular = about["circular"].as_bool().unwrap();
            let [in_channels, out_channels] = pair("channels");
            Conv2d::new(Conv2dSpec {
                samples: 3,
                in_channels,
                out_channels,
                size: pair("size"),
                kernel: pair("kernel"),
                stride: pair("stride"),
                dilation: pair("dilation"),
                padding: Padding { top, bottom, left, right },
                padding_mode: if circular { PaddingMode::Circular } else { PaddingMode::Zeros },
                groups: number("groups"),
                bias: about["bias"].as_bool().unwrap(),
            })
            .map(Problem::Conv2d)
        }
        other => panic!("{other}"),
    };
    problem.unwrap()
}

/// Holds every output to the fixture. Weights of 1 for one sample and 0 for the others bring out
/// each sample's own gradient.
fn hold(
    covers: fn(&Problem) -> bool,
    mut run: impl FnMut(&Case<f32>) -> Vec<Gradients>,
    bound: f64,
) {
    let all = load();
    assert_eq!(all.len(), 15);
    for mut stored in all.into_iter().filter(|stored| covers(&stored.case.problem)) {
        let samples = stored.case.problem.samples();
        let shapes = stored.case.problem.layers();
        for chosen in 0..samples {
            for (l, setup) in stored.case.layers.iter_mut().enumerate() {
                let regions = RegionMap::whole(shapes[l].outputs(), shapes[l].features());
                let route = (0..samples).map(|n| f32::from(n == chosen)).collect();
                let routing = LayerRouting::new(regions, samples, route, vec![1.0; samples]);
                setup.routing = Some(routing.unwrap());
                setup.categories = (0..samples as u32).collect();
                let kind = match chosen % 2 {
                    0 => SketchKind::Count { buckets: 64 },
                    _ => SketchKind::TwoSided { outputs: 4, inputs: 4 },
                };
                setup.sketch = Some(Sketch::new(kind, SEED, l as u32).unwrap());
            }
            let got = run(&stored.case);
            let name = &stored.case.name;
            if let Some(dx) = stored.arrays.get("dx") {
                assert_close(&format!("{name}: dx"), &got[0].dx, dx, length(dx), 1, bound);
            }
            for (l, (got, shape)) in got.iter().zip(&shapes).enumerate() {
                let all = stored.array(l, "g").unwrap();
                let g = &all[chosen * shape.weights()..(chosen + 1) * shape.weights()];
                let close = |output: &str, got: &[f64], want: &[f64]| {
                    let what = format!("{name}: layer {l} {output} of sample {chosen}");
                    assert_close(&what, got, want, length(want), shape.inputs(), bound);
                };
                close("dw", &got.dw, g);
                let squares = |all: &[f64], len: usize| -> Vec<f64> {
                    all.chunks(len).map(|g| g.iter().map(|g| g * g).sum()).collect()
                };
                close("sq_norm", &got.sq_norm, &squares(all, shape.weights()));
                assert_eq!(shape.bias(), stored.array(l, "gb").is_some(), "{name}: bias");
                if let Some(gb) = stored.array(l, "gb") {
                    let own = &gb[chosen * shape.outputs()..(chosen + 1) * shape.outputs()];
                    close("db", &got.db, own);
                    close("sq_norm_bias", &got.sq_norm_bias, &squares(gb, shape.outputs()));
                }
                let key = if chosen % 2 == 0 { "count" } else { "two_sided" };
                close(key, &got.sketch, stored.array(l, key).unwrap());
            }
        }
    }
}

/// The reference's f64 functions, to the last few bits.
#[test]
fn reference_agrees_with_autograd() {
    hold(|_| true, gradients, 1e-13);
}

/// A backend, to f32's precision.
pub fn agrees<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let widen = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    hold(
        B::covers,
        |case| {
            let mut all = run_all(&mut backend, case);
            let mut dx: Vec<f64> = widen(std::mem::take(&mut all.dx));
            let each = all.layers.into_iter().map(|layer| Gradients {
                dx: std::mem::take(&mut dx),
                dw: widen(layer.dw),
                db: widen(layer.db),
                sq_norm: widen(layer.sq_norm),
                sq_norm_bias: widen(layer.sq_norm_bias),
                sketch: widen(layer.sketch),
                touched: layer.touched,
            });
            each.collect()
        },
        1e-5,
    );
}
