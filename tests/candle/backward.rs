//! The recorder's backward pass beside candle's: the same gradients, and nothing left over.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Module, Result, Shape, Tensor};
use gradroute::candle::{
    AdamW, AdamWConfig, Batch, Init, RoutedConv2d, RoutedEmbedding, RoutedGroupNorm, RoutedLinear,
    RoutedLora, Scope,
};
use gradroute::problem::Conv2dSpec;

use crate::net::Net;
use crate::support::*;

/// What a loss makes of a model.
type Backward<'a> = &'a dyn Fn(&Tensor) -> Result<GradStore>;

/// Gradients of all parameters, and what was recorded, in a step of three samples.
fn step(scope: &Scope, forward: &dyn Fn() -> Result<Tensor>, backward: Backward) -> Vec<Vec<f32>> {
    scope.recorder().begin_step(batch(3)).unwrap();
    let grads = backward(&forward().unwrap()).unwrap();
    let record = scope.recorder().finish_step().unwrap();
    let parameters = scope.parameters();
    let of = |(name, _): (String, _)| gradient(&grads, parameters, &name);
    let mut all: Vec<Vec<f32>> = parameters.all().into_iter().map(of).collect();
    assert!(all.iter().all(|gradient| gradient.iter().any(|&g| g != 0.0)));
    all.extend([record.sq_norm, record.sketch]);
    all
}

/// Both ways give the same numbers, whichever is first.
fn assert_same(name: &str, scope: &Scope, forward: &dyn Fn() -> Result<Tensor>) {
    let candles = || step(scope, forward, &|loss| loss.backward());
    let expected = candles();
    let given = step(scope, forward, &|loss| scope.recorder().backward(loss));
    assert_eq!(given, expected, "{name}");
    assert_eq!(candles(), expected, "{name}, again");
}

#[test]
fn every_layers_gradients_are_those_of_candles_pass() {
    let (_, _, scope) = fresh();
    let linear = RoutedLinear::new(5, 4, true, &scope.at("l")).unwrap();
    assert_same("linear", &scope, &|| loss(&linear.forward(&random(&[3, 2, 5], 1))?));

    let (_, _, scope) = fresh();
    let spec = Conv2dSpec { in_channels: 4, out_channels: 6, bias: true, ..spec3() };
    let conv = RoutedConv2d::new(spec, &scope.at("c")).unwrap();
    let norm = RoutedGroupNorm::new(2, 6, 1e-5, &scope.at("n")).unwrap();
    let image = random(&[3, 4, 5, 5], 2);
    assert_same("conv and norm", &scope, &|| loss(&norm.forward(&conv.forward(&image)?)?));

    let (_, _, scope) = fresh();
    let table = RoutedEmbedding::new(7, 3, &scope.at("e")).unwrap();
    let tokens = Tensor::new(&[[0u32, 3], [6, 3], [2, 2]], image.device()).unwrap();
    assert_same("embedding", &scope, &|| loss(&table.forward(&tokens)?));
}

#[test]
fn an_adapters_gradients_are_those_of_candles_pass_and_its_base_has_none() {
    let (recorder, parameters, scope) = fresh();
    let w = random(&[4, 5], 1);
    let base = RoutedLinear::from_tensors(&w, Some(&random(&[4], 2)), &scope.at("base")).unwrap();
    let layer = RoutedLora::new(base, 2, 4.0, &scope.at("l")).unwrap();
    parameters.get("l.lora_b.weight").unwrap().set(&random(&[4, 2], 3)).unwrap();
    let forward = || loss(&layer.forward(&random(&[3, 4, 5], 4))?);
    assert_same("lora", &scope, &forward);
    recorder.begin_step(batch(3)).unwrap();
    let grads = recorder.backward(&forward().unwrap()).unwrap();
    assert!(
        [Some(&w), layer.base().bias()].iter().all(|frozen| grads.get(frozen.unwrap()).is_none())
    );
}

/// A layer called twice, a penalty on a weight, a weight that is an input too, and parameters of no layer.
#[test]
fn gradients_that_arrive_by_several_ways_are_added() {
    let (recorder, parameters, scope) = fresh();
    let layer = RoutedLinear::new(3, 3, true, &scope.at("l")).unwrap();
    let table = RoutedLinear::new(3, 3, false, &scope.at("t")).unwrap();
    let free = parameters.create("free", 3, Init::Ones).unwrap();
    let twice = || {
        let x = random(&[3, 3], 1).broadcast_mul(&free)?;
        loss(&table.forward(&layer.forward(&layer.forward(&x)?.silu()?)?)?)
    };
    assert_same("twice", &scope, &twice);
    let weight = table.weight();
    let penalized = || twice()? + (weight.sqr()?.sum_all()? * 0.1)?;
    assert_same("with a penalty", &scope, &penalized);
    assert_same("as an input", &scope, &|| twice()? + loss(&layer.forward(weight)?)?);
    // What they were computed from is not kept with them.
    recorder.begin_step(batch(3)).unwrap();
    let grads = recorder.backward(&penalized().unwrap()).unwrap();
    assert!(!grads.get(weight).unwrap().track_op());
}

/// A refusal and a panic in the middle: the head's gradient has arrived, the body's has not.
#[test]
fn a_pass_that_fails_leaves_nothing_behind() {
    let (recorder, _, scope) = fresh();
    let body = RoutedLinear::new(4, 4, true, &scope.at("body")).unwrap();
    let head = RoutedLinear::new(4, 2, true, &scope.at("head")).unwrap();
    let x = random(&[3, 4], 1);
    let forward = || loss(&head.forward(&body.forward(&x)?)?);
    let expected = step(&scope, &forward, &|loss| loss.backward());
    for panics in [false, true] {
        recorder.begin_step(batch(3)).unwrap();
        let h = body.forward(&x).unwrap();
        if panics {
            let h = h.apply_op1(Meanwhile(|| panic!("in the middle"))).unwrap();
            let loss = loss(&head.forward(&h).unwrap()).unwrap();
            assert!(catch_unwind(AssertUnwindSafe(|| recorder.backward(&loss))).is_err());
        } else {
            recorder.backward(&loss(&h).unwrap()).unwrap();
            let again = recorder.backward(&loss(&head.forward(&h).unwrap()).unwrap());
            assert!(typed(&again.unwrap_err()).contains("ran already"));
        }
        recorder.abandon();
        assert_eq!(step(&scope, &forward, &|loss| loss.backward()), expected);
        assert_eq!(step(&scope, &forward, &|loss| recorder.backward(loss)), expected);
    }
}

/// While a pass is under way, others of the same thread and of another, by the recorder and by candle.
#[test]
fn a_pass_gathers_its_own_gradients_only() {
    let (recorder, _, scope) = fresh();
    let layer = |name| RoutedLinear::new(4, 4, false, &scope.at(name)).unwrap();
    let all = ["first", "last", "inner", "other"].map(layer);
    let weights = all.each_ref().map(|layer| layer.weight().clone());
    let has = move |grads: &GradStore| weights.each_ref().map(|w| grads.get(w).is_some());
    let [first, last, inner, other] = all;
    let x = random(&[3, 4], 1);
    recorder.begin_step(batch(3)).unwrap();
    let of = |layer: &RoutedLinear| loss(&layer.forward(&x).unwrap()).unwrap();
    let (of_inner, of_other) = (of(&inner), of(&other));
    let (nested, meanwhile) = (recorder.clone(), has.clone());
    let op = Meanwhile(move || {
        assert_eq!(meanwhile(&nested.backward(&of_inner).unwrap()), [false, false, true, false]);
        let (of_other, elsewhere) = (of_other.clone(), meanwhile.clone());
        let there = std::thread::spawn(move || elsewhere(&of_other.backward().unwrap()));
        assert_eq!(there.join().unwrap(), [false, false, false, true]);
    });
    let y = last.forward(&first.forward(&x).unwrap().apply_op1(op).unwrap()).unwrap();
    let grads = recorder.backward(&loss(&y).unwrap()).unwrap();
    assert_eq!(has(&grads), [true, true, false, false]);
}

#[test]
fn the_optimizer_steps_alike_on_either() {
    let train = |ours: bool| {
        let (recorder, parameters, net, policy) = Net::governed();
        let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default()).unwrap();
        for at in 0..3 {
            let switches = Some(policy.switches(1, 0, &[0, 1], &[0, 1]).unwrap());
            let categories = vec![0, 1];
            recorder.begin_step(Batch { categories, switches, ..batch(2) }).unwrap();
            let loss = net.loss(&recorder, &random(&[2, 3, 4, 4], at)).unwrap();
            let grads = if ours { recorder.backward(&loss) } else { loss.backward() }.unwrap();
            recorder.finish_step().unwrap();
            optimizer.step(&grads, 0.01).unwrap();
        }
        parameters.all().iter().map(|(_, var)| flat(var)).collect::<Vec<_>>()
    };
    assert_eq!(train(true), train(false));
}

/// Does something of its own when the gradient passes by.
struct Meanwhile<F>(F);

impl<F: Fn() + Send + Sync> CustomOp1 for Meanwhile<F> {
    fn name(&self) -> &'static str {
        "meanwhile"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((x.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        (self.0)();
        Ok(Some(dy.clone()))
    }
}
