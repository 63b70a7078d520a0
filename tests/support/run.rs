//! Running a case on a backend.

use gradroute::Result;
use gradroute::cpu::Cpu;
use gradroute::cuda::Cuda;
use gradroute::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, ParamGrad,
};
use gradroute::problem::{Element, GradientShape};
use gradroute::reference::Reference;

use super::case::{Case, Problem, Setup};

/// A backend under test.
pub trait Tested: Backend {
    /// Whether it takes long: the suite then leaves out what differs little from what it keeps.
    const SLOW: bool = false;

    /// Whether it computes such a problem.
    fn covers(_: &Problem) -> bool {
        true
    }
}

impl Tested for Reference {}
impl Tested for Cpu {}

impl Tested for Cuda {
    // As long as its device is executed on a CPU.
    const SLOW: bool = true;
}

/// Which outputs are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    pub dx: bool,
    pub dw: bool,
    pub db: bool,
    pub sq_norm: bool,
    pub sq_norm_bias: bool,
    pub sketch: bool,
    pub touched: bool,
    /// `dw` and `db` in the input's format.
    pub native: bool,
}

impl Ask {
    /// Every output, `dw` and `db` in f32.
    pub fn all() -> Self {
        Self {
            dx: true,
            dw: true,
            db: true,
            sq_norm: true,
            sq_norm_bias: true,
            sketch: true,
            touched: true,
            native: false,
        }
    }

    /// One output at a time.
    pub fn each() -> [Self; 7] {
        let none = Self::default();
        [
            Self { dx: true, ..none },
            Self { dw: true, ..none },
            Self { db: true, ..none },
            Self { sq_norm: true, ..none },
            Self { sq_norm_bias: true, ..none },
            Self { sketch: true, ..none },
            Self { touched: true, ..none },
        ]
    }
}

/// One layer's outputs, widened; empty where not asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerResult {
    pub dw: Vec<f32>,
    pub db: Vec<f32>,
    pub sq_norm: Vec<f32>,
    pub sq_norm_bias: Vec<f32>,
    pub sketch: Vec<f32>,
    pub touched: Vec<bool>,
}

/// Everything a backend wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    pub dx: Vec<f32>,
    pub layers: Vec<LayerResult>,
}

impl Outputs {
    /// Every float buffer with its name.
    pub fn buffers(&self) -> Vec<(String, &[f32])> {
        let mut all = vec![("dx".to_string(), &self.dx[..])];
        for (l, layer) in self.layers.iter().enumerate() {
            let named = [
                ("dw", &layer.dw),
                ("db", &layer.db),
                ("sq_norm", &layer.sq_norm),
                ("sq_norm_bias", &layer.sq_norm_bias),
                ("sketch", &layer.sketch),
            ];
            all.extend(named.map(|(name, values)| (format!("layer {l} {name}"), &values[..])));
        }
        all
    }

    /// Panics at the first buffer whose bits differ.
    pub fn assert_same_bits(&self, other: &Self, context: &str) {
        for ((name, a), (_, b)) in self.buffers().into_iter().zip(other.buffers()) {
            let at = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(a.len(), b.len(), "{context}: length of {name}");
            if let Some(at) = at {
                panic!("{context}: {name}[{at}] is {:?} and {:?}", a[at], b[at]);
            }
        }
        for (a, b) in self.layers.iter().zip(&other.layers) {
            assert_eq!(a.touched, b.touched, "{context}: touched");
        }
    }
}

/// Owned buffers of one layer.
struct Buffers<T> {
    f32: [Vec<f32>; 2],
    native: [Vec<T>; 2],
    records: [Vec<f32>; 3],
    touched: Vec<bool>,
}

impl<T: Element> Buffers<T> {
    fn new(
        shape: GradientShape,
        samples: usize,
        setup: &Setup,
        fill: &dyn Fn(usize) -> f32,
    ) -> Self {
        let vec = |len: usize| (0..len).map(fill).collect::<Vec<_>>();
        let native = |len: usize| (0..len).map(|at| T::from_f32(fill(at))).collect::<Vec<_>>();
        let regions = setup.routing.as_ref().map_or(1, |routing| routing.regions().len());
        Self {
            f32: [vec(shape.weights()), vec(shape.outputs())],
            native: [native(shape.weights()), native(shape.outputs())],
            records: [
                vec(samples),
                vec(samples),
                vec(samples * setup.sketch.map_or(0, |sketch| sketch.len())),
            ],
            touched: (0..regions).map(|r| r % 2 == 0).collect(),
        }
    }

    fn outputs(&mut self, shape: GradientShape, setup: &Setup, ask: Ask) -> LayerOutputs<'_, T> {
        let [dw, db] = &mut self.f32;
        let [native_dw, native_db] = &mut self.native;
        let [sq_norm, sq_norm_bias, sketch] = &mut self.records;
        let grad = |asked: bool, wide, native| {
            let chosen = if ask.native { ParamGrad::Native(native) } else { ParamGrad::F32(wide) };
            asked.then_some(chosen)
        };
        LayerOutputs {
            dw: grad(ask.dw, &mut dw[..], &mut native_dw[..]),
            db: grad(ask.db && shape.bias(), &mut db[..], &mut native_db[..]),
            sq_norm: ask.sq_norm.then_some(&mut sq_norm[..]),
            sq_norm_bias: (ask.sq_norm_bias && shape.bias()).then_some(&mut sq_norm_bias[..]),
            sketch: (ask.sketch && setup.sketch.is_some()).then_some(&mut sketch[..]),
            touched: ask.touched.then_some(&mut self.touched[..]),
        }
    }

    fn finish(self, shape: GradientShape, setup: &Setup, ask: Ask) -> LayerResult {
        let [sq_norm, sq_norm_bias, sketch] = self.records;
        let [dw, db] = match ask.native {
            true => self.native.map(|values| values.iter().map(|v| v.to_f32()).collect()),
            false => self.f32,
        };
        let if_asked = |asked: bool, values: Vec<f32>| if asked { values } else { Vec::new() };
        LayerResult {
            dw: if_asked(ask.dw, dw),
            db: if_asked(ask.db && shape.bias(), db),
            sq_norm: if_asked(ask.sq_norm, sq_norm),
            sq_norm_bias: if_asked(ask.sq_norm_bias && shape.bias(), sq_norm_bias),
            sketch: if_asked(ask.sketch && setup.sketch.is_some(), sketch),
            touched: if ask.touched { self.touched } else { Vec::new() },
        }
    }
}

/// Runs a case; every buffer first holds `fill(position)`. Buffers are given back even after an
/// error, to see what it left.
pub fn try_on<B: Backend, T: Element>(
    backend: &mut B,
    case: &Case<T>,
    ask: Ask,
    fill: &dyn Fn(usize) -> f32,
) -> (Result<()>, Outputs) {
    let (shapes, samples) = (case.problem.layers(), case.problem.samples());
    let buffers =
        |(shape, setup): (&GradientShape, &Setup)| Buffers::new(*shape, samples, setup, fill);
    let mut buffers: Vec<Buffers<T>> = shapes.iter().zip(&case.layers).map(buffers).collect();
    let asks_dx = ask.dx && !matches!(case.problem, Problem::Embedding(_));
    let x_len = samples.checked_sub(1).map_or(0, |last| case.problem.x_of(last).end);
    let mut dx: Vec<T> = (0..x_len).map(|at| T::from_f32(fill(at))).collect();
    let outputs = buffers
        .iter_mut()
        .zip(shapes.iter().zip(&case.layers))
        .map(|(buffers, (shape, setup))| buffers.outputs(*shape, setup, ask))
        .collect();
    let result = call(backend, case, asks_dx.then_some(&mut dx[..]), outputs);
    let layers = buffers
        .into_iter()
        .zip(shapes.iter().zip(&case.layers))
        .map(|(buffers, (shape, setup))| buffers.finish(*shape, setup, ask))
        .collect();
    let dx = if asks_dx { dx.into_iter().map(Element::to_f32).collect() } else { Vec::new() };
    (result, Outputs { dx, layers })
}

fn call<B: Backend, T: Element>(
    backend: &mut B,
    case: &Case<T>,
    dx: Option<&mut [T]>,
    outputs: Vec<LayerOutputs<T>>,
) -> Result<()> {
    let options: Vec<_> = case.layers.iter().map(Setup::options).collect();
    let mut outputs = outputs.into_iter();
    let out = outputs.next().unwrap();
    let (x, dy) = (&case.x[..], &case.dy[..]);
    let weight = dx.is_some().then_some(&case.weights[0][..]);
    match &case.problem {
        Problem::Linear(problem) => {
            backend.linear(problem, &options[0], LinearInputs { x, dy, weight }, dx, out)
        }
        Problem::Conv2d(problem) => {
            backend.conv2d(problem, &options[0], ConvInputs { x, dy, weight }, dx, out)
        }
        Problem::Norm(problem) => {
            backend.norm(problem, &options[0], NormInputs { x, dy, weight }, dx, out)
        }
        Problem::Embedding(problem) => {
            let inputs = EmbeddingInputs { tokens: &case.tokens, dy };
            backend.embedding(problem, &options[0], inputs, out)
        }
        Problem::Lora(problem) => {
            let base = case.weights.get(2).map(Vec::as_slice);
            let inputs = LoraInputs { x, dy, a: &case.weights[0], b: &case.weights[1], base };
            let out = LoraOutputs { a: out, b: outputs.next().unwrap() };
            backend.lora(problem, [&options[0], &options[1]], inputs, dx, out)
        }
    }
}

/// [`try_on`] for a case that is in order.
pub fn run_on<B: Backend, T: Element>(
    backend: &mut B,
    case: &Case<T>,
    ask: Ask,
    fill: &dyn Fn(usize) -> f32,
) -> Outputs {
    let (result, outputs) = try_on(backend, case, ask, fill);
    result.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    outputs
}

/// [`run_on`] with every output asked for and every buffer full of NaN.
pub fn run_all<B: Backend, T: Element>(backend: &mut B, case: &Case<T>) -> Outputs {
    run_on(backend, case, Ask::all(), &|_| f32::NAN)
}
