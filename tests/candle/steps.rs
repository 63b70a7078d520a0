//! What a step takes and what it refuses; coverage; parameters.

use candle_core::{DType, Module, Tensor};
use gradroute::Error;
use gradroute::candle::{
    AdamW, AdamWConfig, Batch, Init, Parameters, Recorder, RoutedEmbedding, RoutedLinear,
    RoutedLora, Scope,
};
use gradroute::projection::SketchKind;
use gradroute::provenance::StepRecord;

use crate::support::*;

#[test]
fn a_layer_called_twice_adds_up_before_it_is_measured() {
    let (recorder, parameters, scope) = fresh();
    let layer = RoutedLinear::new(4, 4, true, &scope.at("l")).unwrap();
    let x = random(&[3, 2, 4], 1);
    let forward = |x: &Tensor| layer.forward(&layer.forward(x)?.silu()?);
    recorder.begin_step(batch(3)).unwrap();
    let grads = loss(&forward(&x).unwrap()).unwrap().backward().unwrap();
    let record = recorder.finish_step().unwrap();
    let plain = |x: &Tensor| {
        let once = |x: &Tensor| {
            x.broadcast_matmul(&layer.weight().t()?)?.broadcast_add(layer.bias().unwrap())
        };
        loss(&once(&once(x)?.silu()?)?)
    };
    let expected = plain(&x).unwrap().backward().unwrap();
    for name in ["l.weight", "l.bias"] {
        let given = gradient(&grads, &parameters, name);
        assert_close(name, &given, &gradient(&expected, &parameters, name), 1e-5);
    }
    for n in 0..3 {
        let alone = plain(&x.narrow(0, n, 1).unwrap()).unwrap().backward().unwrap();
        let (w, b) =
            (gradient(&alone, &parameters, "l.weight"), gradient(&alone, &parameters, "l.bias"));
        let sq: f32 = w.iter().chain(&b).map(|g| g * g).sum();
        assert_close("norm", &[record.sq_norm[n]], &[sq], 1e-5);
        let rows: Vec<f32> =
            w.chunks_exact(4).zip(&b).flat_map(|(w, b)| [w, &[*b]].concat()).collect();
        let given = &record.sketch[n * BUCKETS..][..BUCKETS];
        assert_close("sketch", given, &count_sketch(0, 5, &rows), 1e-5);
    }
}

#[test]
fn a_silent_recorder_keeps_nothing_of_a_layer_called_twice() {
    let gradients = |recorder: Recorder| {
        let parameters = Parameters::new(DType::F32, 3);
        let scope = Scope::new(&parameters, &recorder);
        let layer = RoutedLinear::new(4, 4, true, &scope.at("l")).unwrap();
        let frozen = RoutedLinear::from_tensors(&random(&[4, 4], 2), None, &scope.at("base"));
        let lora = RoutedLora::new(frozen.unwrap(), 2, 1.5, &scope.at("low")).unwrap();
        recorder.begin_step(batch(3)).unwrap();
        let once = |x: &Tensor| layer.forward(x).and_then(|x| lora.forward(&x));
        let y = once(&once(&random(&[3, 2, 4], 1)).unwrap()).unwrap();
        let grads = loss(&y).unwrap().backward().unwrap();
        let record = recorder.finish_step().unwrap();
        let all: Vec<_> = parameters.all().into_iter().map(|(name, _)| name).collect();
        let given = all.iter().map(|name| gradient(&grads, &parameters, name));
        (given.collect::<Vec<_>>(), record)
    };
    let (silent, record) = gradients(Recorder::silent());
    let measured = Recorder::new(SketchKind::Count { buckets: BUCKETS }, SEED).unwrap();
    assert_eq!(silent, gradients(measured).0);
    assert!(silent.iter().flatten().any(|&g| g != 0.0));
    assert!(record.sketch.is_empty() && record.sq_norm.iter().all(|sq| sq.is_nan()));
}

#[test]
fn a_variable_is_stored_once_under_whatever_name() {
    let (recorder, parameters, scope) = fresh();
    assert_eq!(recorder.sketch_len(), BUCKETS, "before there is a layer");
    let table = parameters.create("table", (3, 2), Init::Normal { std: 0.1 }).unwrap();
    RoutedEmbedding::from_tensors(&table, &scope.at("embedding")).unwrap();
    assert_eq!(parameters.all().len(), 1);
    let twice = parameters.insert("again", table).unwrap_err().to_string();
    assert!(twice.contains("again") && twice.contains("table"), "{twice}");
}

#[test]
fn what_cannot_be_recorded_is_refused_by_name() {
    let (recorder, parameters, scope) = fresh();
    let layer = RoutedLinear::new(4, 2, true, &scope.at("deep.layer")).unwrap();
    let refused = RoutedLinear::from_tensors(layer.weight(), None, &scope.at("tied")).unwrap_err();
    assert!(typed(&refused).contains("tied") && typed(&refused).contains("deep.layer"));
    assert!(
        typed(&RoutedLinear::new(4, 2, true, &scope.at("deep.layer")).unwrap_err())
            .contains("path")
    );
    let derived = (layer.weight() * 2.0).unwrap();
    let refused = RoutedLinear::from_tensors(&derived, None, &scope.at("derived")).unwrap_err();
    assert!(typed(&refused).contains("computed from variables"));
    assert!(recorder.finish_step().unwrap_err().to_string().contains("begin_step"));

    let x = random(&[3, 4], 1);
    let early = loss(&layer.forward(&x).unwrap()).unwrap();
    let text = typed(&early.backward().unwrap_err());
    assert!(text.contains("deep.layer") && text.contains("begin_step"), "{text}");
    recorder.begin_step(batch(3)).unwrap();
    assert!(recorder.begin_step(batch(3)).unwrap_err().to_string().contains("still open"));
    assert!(typed(&early.backward().unwrap_err()).contains("outside this step"));
    let text = typed(&layer.forward(&random(&[2, 4], 1)).unwrap_err());
    assert!(text.contains("deep.layer") && text.contains("samples of the batch"), "{text}");
    let late = RoutedLinear::new(4, 2, true, &scope.at("late")).unwrap_err();
    assert!(typed(&late).contains("late"));
    assert!(parameters.get("late.weight").is_none(), "a refused layer leaves nothing");

    let once = loss(&layer.forward(&x).unwrap()).unwrap();
    let grads = once.backward().unwrap();
    assert!(typed(&once.backward().unwrap_err()).contains("ran already"));
    let again = loss(&layer.forward(&x).unwrap()).unwrap();
    assert!(typed(&again.backward().unwrap_err()).contains("micro-batches"));
    let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default()).unwrap();
    assert!(typed(&optimizer.step(&grads, 1e-3).unwrap_err()).contains("finish_step"));
    recorder.abandon();
    assert!(typed(&optimizer.step(&grads, 1e-3).unwrap_err()).contains("no step was finished"));

    let short = Batch { gates: Some(vec![1.0]), ..batch(3) };
    assert!(recorder.begin_step(short).unwrap_err().to_string().contains("batch.gates"));
    let text = typed(&layer.forward(&random(&[3, 5], 1)).unwrap_err());
    assert!(text.contains("deep.layer") && text.contains("4"), "{text}");
    let half = x.to_dtype(DType::F16).unwrap();
    assert!(typed(&layer.forward(&half).unwrap_err()).contains("F32"));
    assert!(matches!(gradroute::problem::Norm::batch(), Err(Error::Refused { .. })));
}

#[test]
fn coverage_names_what_was_not_reached() {
    let (recorder, parameters, scope) = fresh();
    let used = RoutedLinear::new(4, 2, true, &scope.at("used")).unwrap();
    RoutedLinear::new(4, 2, false, &scope.at("idle")).unwrap();
    parameters.create("loose", 2, Init::Ones).unwrap();
    recorder.begin_step(batch(3)).unwrap();
    loss(&used.forward(&random(&[3, 4], 1)).unwrap()).unwrap().backward().unwrap();
    recorder.finish_step().unwrap();
    let coverage = recorder.coverage(&parameters);
    assert_eq!(coverage.share(), 0.5);
    let names: Vec<&str> = coverage.unobserved().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["idle.weight", "loose"]);
    let text = coverage.to_string();
    assert!(text.starts_with("50.00 %") && text.contains("layer idle was not reached"), "{text}");
}

#[test]
fn parameters_depend_on_their_name_only_and_survive_a_file() {
    let (_, parameters, scope) = fresh();
    RoutedLinear::new(4, 2, true, &scope.at("a")).unwrap();
    let kept = flat(&parameters.get("a.weight").unwrap());
    assert!(kept.iter().all(|x| x.abs() <= 0.5) && kept.iter().any(|x| x.abs() > 0.25));
    let (_, others, scope) = fresh();
    RoutedLinear::new(9, 9, true, &scope.at("first")).unwrap();
    RoutedLinear::new(4, 2, true, &scope.at("a")).unwrap();
    assert_eq!(flat(&others.get("a.weight").unwrap()), kept);
    let file = tempfile::NamedTempFile::new().unwrap();
    parameters.save(file.path()).unwrap();
    assert!(typed(&others.load(file.path()).unwrap_err()).contains("first.weight"));
    parameters.get("a.weight").unwrap().set(&random(&[2, 4], 8)).unwrap();
    parameters.load(file.path()).unwrap();
    assert_eq!(flat(&parameters.get("a.weight").unwrap()), kept);
}

#[test]
fn forward_passes_run_in_parallel() {
    use rayon::prelude::*;
    let (_, _, scope) = fresh();
    let layer = RoutedLinear::new(64, 64, true, &scope.at("l")).unwrap();
    let x = random(&[64, 16, 64], 1);
    let expected = flat(&layer.forward(&x).unwrap());
    let all: Vec<_> = (0..32).into_par_iter().map(|_| flat(&layer.forward(&x).unwrap())).collect();
    assert!(all.iter().all(|y| *y == expected));
}

#[test]
fn gates_hold_without_a_policy() {
    let (recorder, parameters, scope) = fresh();
    let head = RoutedLinear::new(3, 2, true, &scope.at("head")).unwrap();
    let x = random(&[2, 3], 1);
    let pass = |gates: Option<Vec<f32>>| {
        // Without a policy any category will do.
        recorder.begin_step(Batch { gates, categories: vec![7, 900], ..batch(2) }).unwrap();
        let grads = loss(&head.forward(&x).unwrap()).unwrap().backward().unwrap();
        let dw = gradient(&grads, &parameters, "head.weight");
        let db = gradient(&grads, &parameters, "head.bias");
        (recorder.finish_step().unwrap(), [dw, db].concat())
    };
    let (open, all) = pass(None);
    let (first, alone) = pass(Some(vec![1.0, 0.0]));
    let (gated, mixed) = pass(Some(vec![1.0, 0.25]));
    // The first alone, and a quarter of the rest.
    let expected: Vec<f32> = alone.iter().zip(&all).map(|(a, all)| a + 0.25 * (all - a)).collect();
    assert!(alone.iter().zip(&all).any(|(a, all)| (a - all).abs() > 1e-3));
    assert_close("gradients", &mixed, &expected, 1e-6);
    assert_eq!(gated.sq_norm, open.sq_norm);
    let of_second = |record: &StepRecord| record.sketch[BUCKETS..].to_vec();
    let quarter: Vec<f32> = of_second(&open).iter().map(|s| 0.25 * s).collect();
    assert_close("sketch", &of_second(&gated), &quarter, 1e-6);
    assert!(of_second(&first).iter().all(|&s| s == 0.0));
    assert_eq!(first.sketch[..BUCKETS], open.sketch[..BUCKETS]);
}
