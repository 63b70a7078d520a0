//! Mistakes are named, and nothing is written.

use gradroute::Error;
use gradroute::ops::{LayerOutputs, LinearInputs, Options, ParamGrad};
use gradroute::problem::{Linear, Norm, Rows};
use gradroute::projection::Sketch;
use gradroute::routing::{LayerRouting, RegionMap};

use crate::support::case::{Case, Problem};
use crate::support::catalogue::representatives;
use crate::support::run::{Ask, Tested, try_on};
use crate::support::weights::{Pattern, exact_sketches, record};

const KEPT: f32 = 7.0;

/// The call must fail naming `argument` and leave every buffer as it was.
fn refuses<B: Tested>(backend: &mut B, case: &Case<f32>, argument: &str) {
    let (result, outputs) = try_on(backend, case, Ask::all(), &|_| KEPT);
    match result {
        Err(Error::Argument { argument: named, .. }) => {
            assert_eq!(named, argument, "{}", case.name);
        }
        other => panic!("{}, {argument}: {other:?}", case.name),
    }
    for (name, values) in outputs.buffers() {
        assert!(values.iter().all(|&value| value == KEPT), "{}: {name} written", case.name);
    }
}

fn each_op<B: Tested>(mut check: impl FnMut(Case<f32>)) {
    for (c, (name, problem)) in representatives::<B>().into_iter().enumerate() {
        let mut case = Case::exact(&name, problem, c as u64);
        Pattern::Mixed.apply(&mut case, 1);
        record(&mut case.layers, exact_sketches()[c % 5], false, 1.0);
        check(case);
    }
}

/// Inputs that are too short or too long, tokens outside the vocabulary.
pub fn wrong_inputs<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    each_op::<B>(|case| {
        let mut changed = |change: &dyn Fn(&mut Case<f32>), argument: &str| {
            let mut case = case.clone();
            change(&mut case);
            refuses(&mut backend, &case, argument);
        };
        changed(&|case| case.dy.push(0.0), "dy");
        changed(&|case| case.dy.truncate(1), "dy");
        match &case.problem {
            Problem::Embedding(problem) => {
                changed(&|case| case.tokens.truncate(1), "tokens");
                let vocabulary = problem.vocabulary() as u32;
                changed(&move |case| case.tokens[2] = vocabulary, "tokens[2]");
                return;
            }
            Problem::Lora(_) => {
                changed(&|case| case.weights[0].push(0.0), "a");
                changed(&|case| case.weights[1].truncate(1), "b");
                changed(&|case| case.weights.push(vec![0.0]), "base");
            }
            _ => changed(&|case| case.weights[0].push(0.0), "weight"),
        }
        changed(&|case| case.x.truncate(1), "x");
        changed(&|case| case.x.push(0.0), "x");
    });
    assert!(matches!(Norm::batch(), Err(Error::Refused { what, .. }) if what == "BatchNorm"));
}

/// Routing of the wrong size, unknown categories, gates and scales that are no numbers.
pub fn wrong_routing<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    each_op::<B>(|case| {
        // The last layer: a mistake in LoRA's second factor must not leave the first written.
        let last = case.layers.len() - 1;
        let mut changed = |change: &dyn Fn(&mut crate::support::case::Setup), argument: &str| {
            let mut case = case.clone();
            change(&mut case.layers[last]);
            refuses(&mut backend, &case, argument);
        };
        changed(&|setup| setup.categories.push(0), "routing.categories");
        changed(&|setup| setup.categories[3] = 99, "routing.categories[3]");
        changed(&|setup| setup.gates = Some(vec![1.0]), "routing.gates");
        changed(&|setup| setup.gates.as_mut().unwrap()[1] = f32::NAN, "routing.gates[1]");
        changed(&|setup| setup.sample_scale = f32::INFINITY, "sample_scale");
        changed(
            &|setup| setup.routing = Some(LayerRouting::open(RegionMap::whole(999, 1), 3)),
            "routing.layer",
        );
    });
}

/// Outputs of the wrong length, or that the layer does not have.
pub fn wrong_outputs<B: Tested>(make: impl Fn() -> B) {
    let mut backend = make();
    let mut named = |bias: bool,
                     options: Options,
                     weight: bool,
                     dx: Option<&mut [f32]>,
                     out: LayerOutputs<f32>| {
        let layer = Linear::new(Rows::uniform(2, 1).unwrap(), 3, 2).unwrap().with_bias(bias);
        let inputs =
            LinearInputs { x: &[1.0; 6], dy: &[1.0; 4], weight: weight.then_some(&[1.0; 6][..]) };
        match backend.linear::<f32>(&layer, &options, inputs, dx, out).unwrap_err() {
            Error::Argument { argument, .. } => argument,
            other => panic!("{other}"),
        }
    };
    let (plain, short) = (Options::default(), &mut [KEPT; 1][..]);
    let out = LayerOutputs::default;
    assert_eq!(named(true, plain, true, Some(&mut *short), out()), "dx");
    assert_eq!(named(true, plain, false, Some(&mut [0.0; 6]), out()), "weight");
    let dw = || LayerOutputs { dw: Some(ParamGrad::F32(&mut [])), ..out() };
    assert_eq!(named(true, plain, true, None, dw()), "dw");
    let native = LayerOutputs { dw: Some(ParamGrad::Native(&mut *short)), ..out() };
    assert_eq!(named(true, plain, true, None, native), "dw");
    let db = LayerOutputs { db: Some(ParamGrad::F32(&mut *short)), ..out() };
    assert_eq!(named(true, plain, true, None, db), "db");
    let db = LayerOutputs { db: Some(ParamGrad::F32(&mut [0.0; 2])), ..out() };
    assert_eq!(named(false, plain, true, None, db), "db");
    let sq_norm = LayerOutputs { sq_norm: Some(&mut *short), ..out() };
    assert_eq!(named(true, plain, true, None, sq_norm), "sq_norm");
    let bias = LayerOutputs { sq_norm_bias: Some(&mut *short), ..out() };
    assert_eq!(named(true, plain, true, None, bias), "sq_norm_bias");
    let bias = LayerOutputs { sq_norm_bias: Some(&mut [0.0; 2]), ..out() };
    assert_eq!(named(false, plain, true, None, bias), "sq_norm_bias");
    let sketch = LayerOutputs { sketch: Some(&mut *short), ..out() };
    assert_eq!(named(true, plain, true, None, sketch), "options.sketch");
    let with = Options { sketch: Some(Sketch::two_sided(4, 0, 0).unwrap()), ..plain };
    let sketch = LayerOutputs { sketch: Some(&mut *short), ..out() };
    assert_eq!(named(true, with, true, None, sketch), "sketch");
    let touched = LayerOutputs { touched: Some(&mut []), ..out() };
    assert_eq!(named(true, plain, true, None, touched), "touched");
    assert_eq!(short, [KEPT]);
}
