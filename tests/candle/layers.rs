//! Each routed layer against candle's own autograd.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use gradroute::candle::{
    Batch, Parameters, Recorder, RoutedConv2d, RoutedEmbedding, RoutedGroupNorm, RoutedLayerNorm,
    RoutedLinear, RoutedLora, RoutedRmsNorm, Scope, silu, upsample_nearest,
};
use gradroute::problem::{Conv2dSpec, Padding, PaddingMode};
use gradroute::projection::SketchKind;
use gradroute::routing::{Categories, Policy};

use crate::support::*;

#[test]
fn linear_layers_match_candles_gradients() {
    for bias in [false, true] {
        for dims in [vec![3, 5], vec![3, 4, 5], vec![3, 2, 2, 5]] {
            let (_, _, scope) = fresh();
            let layer = RoutedLinear::new(5, 4, bias, &scope.at("l")).unwrap();
            let plain: Plain = Box::new(|x, p| {
                let y = x.broadcast_matmul(&p[0].t()?)?;
                if let Some(b) = p.get(1) { y.broadcast_add(b) } else { Ok(y) }
            });
            compare(&format!("linear {dims:?}"), &layer, &scope, plain, &random(&dims, 1));
        }
    }
}

#[test]
fn convolutions_match_candles_gradients() {
    let spec = Conv2dSpec { in_channels: 4, out_channels: 6, bias: true, ..Default::default() };
    let kinds = [
        Conv2dSpec { kernel: [3, 3], padding: Padding::symmetric(1, 1), ..spec },
        Conv2dSpec { kernel: [3, 3], stride: [2, 2], ..spec },
        Conv2dSpec { kernel: [3, 3], dilation: [2, 2], groups: 2, ..spec },
        Conv2dSpec { bias: false, ..spec },
        Conv2dSpec { kernel: [2, 4], padding: Padding::same([2, 4], [1, 1]), ..spec },
        Conv2dSpec {
            kernel: [3, 3],
            padding: Padding { top: 2, bottom: 0, left: 1, right: 3 },
            padding_mode: PaddingMode::Circular,
            ..spec
        },
    ];
    for spec in kinds {
        let (_, _, scope) = fresh();
        let layer = RoutedConv2d::new(spec, &scope.at("c")).unwrap();
        let plain: Plain = Box::new(move |x, p| {
            let y = padded(x, &spec)?.conv2d(
                &p[0],
                0,
                spec.stride[0],
                spec.dilation[0],
                spec.groups,
            )?;
            match p.get(1) {
                Some(b) => y.broadcast_add(&b.reshape((1, (), 1, 1))?),
                None => Ok(y),
            }
        });
        compare(&format!("{spec:?}"), &layer, &scope, plain, &random(&[3, 4, 7, 7], 1));
    }
}

fn padded(x: &Tensor, spec: &Conv2dSpec) -> Result<Tensor> {
    let Padding { top, bottom, left, right } = spec.padding;
    let pad = |x: &Tensor, axis: usize, before: usize, after: usize| {
        let size = x.dim(axis)?;
        match spec.padding_mode {
            PaddingMode::Zeros => x.pad_with_zeros(axis, before, after),
            PaddingMode::Circular => {
                let parts = [x.narrow(axis, size - before, before)?, x.clone()];
                Tensor::cat(&[&parts[0], &parts[1], &x.narrow(axis, 0, after)?], axis)
            }
        }
    };
    pad(&pad(x, 2, top, bottom)?, 3, left, right)
}

#[test]
fn normalisations_match_candles_gradients() {
    let x = random(&[3, 4, 2, 6], 1);
    let (_, _, scope) = fresh();
    let layer = RoutedGroupNorm::new(2, 4, 1e-5, &scope.at("n")).unwrap();
    let plain: Plain = Box::new(|x, p| {
        let y = plain_norm(&x.reshape((3, 2, 2, 2, 6))?, 2, true)?.reshape(x.shape())?;
        let shape = (1, 4, 1, 1);
        y.broadcast_mul(&p[0].reshape(shape)?)?.broadcast_add(&p[1].reshape(shape)?)
    });
    compare("group", &layer, &scope, plain, &x);
    let (_, _, scope) = fresh();
    let layer = RoutedLayerNorm::new(6, 1e-5, &scope.at("n")).unwrap();
    let plain: Plain =
        Box::new(|x, p| plain_norm(x, 3, true)?.broadcast_mul(&p[0])?.broadcast_add(&p[1]));
    compare("layer", &layer, &scope, plain, &x);
    let (_, _, scope) = fresh();
    let layer = RoutedRmsNorm::new(6, 1e-5, &scope.at("n")).unwrap();
    let plain: Plain = Box::new(|x, p| plain_norm(x, 3, false)?.broadcast_mul(&p[0]));
    compare("rms", &layer, &scope, plain, &x);
}

#[test]
fn embeddings_match_candles_gradients_and_add_repeats() {
    let (recorder, parameters, scope) = fresh();
    let table = RoutedEmbedding::new(7, 3, &scope.at("e")).unwrap();
    let tokens = Tensor::new(&[[1u32, 6, 1], [0, 0, 0]], &Device::Cpu).unwrap();
    recorder.begin_step(batch(2)).unwrap();
    let y = table.forward(&tokens).unwrap();
    assert_eq!(y.dims(), [2, 3, 3]);
    let given = loss(&y).unwrap().backward().unwrap();
    let record = recorder.finish_step().unwrap();
    let plain = |tokens: &Tensor, rows: usize| {
        let y = table.weight().index_select(&tokens.flatten_all()?, 0)?;
        loss(&y.reshape((rows, 3, 3))?)
    };
    let expected = plain(&tokens, 2).unwrap().backward().unwrap();
    let name = "e.weight";
    let given = gradient(&given, &parameters, name);
    assert_close(name, &given, &gradient(&expected, &parameters, name), 1e-6);
    for n in 0..2 {
        let alone = plain(&tokens.narrow(0, n, 1).unwrap(), 1).unwrap().backward().unwrap();
        let sq: f32 = gradient(&alone, &parameters, name).iter().map(|g| g * g).sum();
        assert_close("norm", &[record.sq_norm[n]], &[sq], 1e-6);
    }
}

#[test]
fn an_adapter_trains_its_factors_and_leaves_the_base() {
    let (recorder, parameters, scope) = fresh();
    let (w, b) = (random(&[4, 5], 1), random(&[4], 2));
    let base = RoutedLinear::from_tensors(&w, Some(&b), &scope.at("base")).unwrap();
    let layer = RoutedLora::new(base, 2, 4.0, &scope.at("l")).unwrap();
    let names: Vec<String> = parameters.all().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["l.lora_a.weight", "l.lora_b.weight"]);
    assert_eq!(recorder.layout().unwrap().layers().len(), 2);
    // B starts at 0, and then A has no gradient.
    parameters.get(&names[1]).unwrap().set(&random(&[4, 2], 3)).unwrap();
    let plain: Plain = Box::new(move |x, p| {
        let branch = x.broadcast_matmul(&p[0].t()?)?.broadcast_matmul(&p[1].t()?)?;
        x.broadcast_matmul(&w.t()?)?.broadcast_add(&b)? + (branch * 2.0)?
    });
    compare("lora", &layer, &scope, plain, &random(&[3, 4, 5], 4));
}

/// Exact norms and sketches of a branch that was called once, and of one called twice.
#[test]
fn an_adapters_factors_are_measured_over_all_calls() {
    for calls in [1, 2] {
        let (recorder, parameters, scope) = fresh();
        let w = random(&[4, 4], 1);
        let base = RoutedLinear::from_tensors(&w, None, &scope.at("base")).unwrap();
        let variable = |dims: &[usize], salt| Var::from_tensor(&random(dims, salt)).unwrap();
        let (a, b) = (variable(&[2, 4], 2), variable(&[4, 2], 3));
        let layer = RoutedLora::from_tensors(base, &a, &b, 3.0, &scope.at("l")).unwrap();
        let x = random(&[3, 2, 4], 4);
        let plain = |x: &Tensor| {
            let branch = x.broadcast_matmul(&a.t()?)?.broadcast_matmul(&b.t()?)?;
            x.broadcast_matmul(&w.t()?)? + (branch * 1.5)?
        };
        let twice = |f: &dyn Fn(&Tensor) -> Result<Tensor>, x: &Tensor| {
            let y = (0..calls).try_fold(x.clone(), |x, _| f(&x)?.silu()).unwrap();
            loss(&y).unwrap().backward().unwrap()
        };
        recorder.begin_step(batch(3)).unwrap();
        let grads = twice(&|x| layer.forward(x), &x);
        let record = recorder.finish_step().unwrap();
        let expected = twice(&plain, &x);
        for (at, name) in ["l.lora_a.weight", "l.lora_b.weight"].into_iter().enumerate() {
            let given = gradient(&grads, &parameters, name);
            assert_close(name, &given, &gradient(&expected, &parameters, name), 1e-5);
            for n in 0..3 {
                let alone = twice(&plain, &x.narrow(0, n, 1).unwrap());
                let own = gradient(&alone, &parameters, name);
                let sq = own.iter().map(|g| g * g).sum();
                assert_close("norm", &[record.sq_norm[2 * n + at]], &[sq], 1e-5);
                let columns = [4, 2][at];
                let given = &record.sketch[(2 * n + at) * BUCKETS..][..BUCKETS];
                let expected = count_sketch(at, columns, &own);
                assert_close("sketch", given, &expected, 1e-5);
            }
        }
    }
}

/// What the policy keeps from the second factor does not reach the first.
#[test]
fn an_adapters_routing_holds_between_its_factors() {
    let policy = |flow: f64| {
        format!(
            r#"
            [[block]]
            name = "a"
            layers = "l.lora_a"
            [[block]]
            name = "b"
            layers = "l.lora_b"
            [[profile]]
            category = "one"
            [[profile]]
            category = "other"
            blocks.b = {{ route = 1.0, flow = {flow:?} }}
            "#
        )
    };
    let run = |flow: f64, calls: usize| {
        let (recorder, parameters, scope) = fresh();
        let base = RoutedLinear::from_tensors(&random(&[4, 4], 1), None, &scope.at("base"));
        let base = base.unwrap();
        let layer = RoutedLora::new(base, 2, 3.0, &scope.at("l")).unwrap();
        let b = parameters.get("l.lora_b.weight").unwrap();
        b.set(&random(&[4, 2], 3)).unwrap();
        let categories = Categories::new(["one", "other"]).unwrap();
        let policy = Policy::from_toml(&policy(flow)).unwrap();
        recorder
            .govern(&policy.compile(&recorder.layout().unwrap(), &categories).unwrap())
            .unwrap();
        recorder.begin_step(Batch::new(vec![1, 2], vec![0, 1])).unwrap();
        let x = random(&[2, 3, 4], 4);
        let y = (0..calls).try_fold(x, |x, _| layer.forward(&x)).unwrap();
        loss(&y).unwrap().backward().unwrap();
        recorder.finish_step().unwrap().sq_norm
    };
    for calls in [1, 2] {
        let (open, shut) = (run(1.0, calls), run(0.0, calls));
        assert!(open.iter().all(|&norm| norm > 0.0), "{open:?}");
        assert_eq!(open[..2], shut[..2], "{calls}");
        assert_eq!(shut[2], 0.0, "{calls}");
    }
}

#[test]
fn factors_that_do_not_fit_are_refused_by_name() {
    let (_, _, scope) = fresh();
    let base = RoutedLinear::from_tensors(&random(&[4, 5], 1), None, &scope.at("base")).unwrap();
    let variable = |dims: &[usize]| Var::from_tensor(&random(dims, 2)).unwrap();
    let (a, b) = (variable(&[2, 5]), variable(&[4, 2]));
    let wrap = |a: &Tensor, b: &Tensor, alpha| {
        typed(&RoutedLora::from_tensors(base.clone(), a, b, alpha, &scope.at("l")).unwrap_err())
    };
    assert!(wrap(&variable(&[2, 4]), &b, 1.0).contains('a'));
    assert!(wrap(&a, &variable(&[4, 3]), 1.0).contains("[4, 2]"));
    assert!(wrap(&random(&[2, 5], 2), &b, 1.0).contains("a variable"));
    assert!(wrap(&a, &b, f64::NAN).contains("finite alpha"));
}

#[test]
fn half_precision_follows_single_precision() {
    for (dtype, tolerance) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let run = |dtype: DType| {
            let recorder = Recorder::new(SketchKind::Count { buckets: 64 }, SEED).unwrap();
            let parameters = Parameters::new(dtype, 3);
            let scope = Scope::new(&parameters, &recorder);
            let spec = Conv2dSpec { in_channels: 2, out_channels: 4, bias: true, ..spec3() };
            let conv = RoutedConv2d::new(spec, &scope.at("conv")).unwrap();
            let norm = RoutedGroupNorm::new(2, 4, 1e-5, &scope.at("norm")).unwrap();
            let head = RoutedLinear::new(36, 3, true, &scope.at("head")).unwrap();
            recorder.begin_step(batch(2)).unwrap();
            let x = random(&[2, 2, 3, 3], 1).to_dtype(dtype).unwrap();
            let h = silu(&norm.forward(&conv.forward(&x).unwrap()).unwrap()).unwrap();
            let y = head.forward(&h.flatten_from(1).unwrap()).unwrap();
            let grads = loss(&y).unwrap().backward().unwrap();
            let record = recorder.finish_step().unwrap();
            let mut all: Vec<Vec<f32>> =
                (parameters.all().iter()).map(|(_, var)| flat(grads.get(var).unwrap())).collect();
            assert_eq!(grads.get(head.weight()).unwrap().dtype(), dtype);
            all.extend([record.sq_norm, record.sketch]);
            all
        };
        for (given, expected) in run(dtype).iter().zip(&run(DType::F32)) {
            assert_close(&format!("{dtype:?}"), given, expected, tolerance);
        }
    }
}

#[test]
fn activations_match_candles() {
    let x = (random(&[2, 3, 4, 5], 1) * 8.0).unwrap();
    let plain: Plain = Box::new(|x, _| x.silu());
    let (_, _, scope) = fresh();
    compare("silu", &|x: &Tensor| silu(x), &scope, plain, &x);
    for factor in [1, 2, 3] {
        let plain: Plain = Box::new(move |x, _| x.upsample_nearest2d(4 * factor, 5 * factor));
        compare("upsample", &|x: &Tensor| upsample_nearest(x, factor), &scope, plain, &x);
    }
}
