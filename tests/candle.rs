//! The candle adapter against candle's own autograd and against the reference.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use gradroute::candle::{Batch, Parameters, Recorder, RoutedLinear, Scope};
use gradroute::projection::SketchKind;

const KIND: SketchKind = SketchKind::Count { buckets: 64 };

/// A fresh recorder, store and scope.
fn fresh() -> (Recorder, Parameters, Scope) {
    let recorder = Recorder::new(KIND, 5).unwrap();
    let parameters = Parameters::new(DType::F32, 3);
    let scope = Scope::new(&parameters, &recorder);
    (recorder, parameters, scope)
}

fn batch(samples: usize) -> Batch {
    Batch::new((0..samples as u64).collect(), vec![0; samples])
}

/// Values without a pattern, the same every time.
fn values(length: usize, salt: u32) -> Vec<f32> {
    let word = |at: usize| gradroute::projection::philox4x32([at as u32, 0, 0, 0], [salt, 9])[0];
    (0..length).map(|at| word(at) as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

fn random(dims: &[usize], salt: u32) -> Tensor {
    Tensor::from_vec(values(dims.iter().product(), salt), dims, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Relative error of `given` in the Euclidean norm.
fn error(given: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(given.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = given.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (off / expected.iter().map(|&b| square(b)).sum::<f64>().max(1e-30)).sqrt()
}

fn assert_close(name: &str, given: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(given.dims(), expected.dims(), "{name}");
    let error = error(&flat(given), &flat(expected));
    assert!(error <= tolerance, "{name}: relative error {error:e}");
}

/// A loss with a different gradient everywhere.
fn loss(y: &Tensor) -> Result<Tensor> {
    let weights = random(y.dims(), 77).to_dtype(y.dtype())?;
    (y.sqr()? * weights)?.mean_all()
}

/// A module and the same computed by candle's own ops from its parameters.
type Plain = Box<dyn Fn(&Tensor, &[Tensor]) -> Result<Tensor>>;

/// Output, `dx` and all parameter gradients of `routed` equal `plain`'s. `x` is made
/// non-contiguous on the way in, and so is the gradient on the way back.
fn compare(name: &str, routed: &dyn Module, parameters: &Parameters, plain: Plain, x: &Tensor) {
    let strided = |x: &Tensor| x.t().unwrap().contiguous().unwrap().t().unwrap();
    let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let x = Var::from_tensor(x).unwrap();
        let y = f(&strided(&x)).unwrap();
        let grads = loss(&y.t().unwrap().contiguous().unwrap()).unwrap().backward().unwrap();
        let mut all = vec![y.detach(), grads.get(&x).unwrap().clone()];
        all.extend(parameters.all().iter().map(|(_, var)| grads.get(var).unwrap().clone()));
        all
    };
    let given = run(&|x| routed.forward(x));
    let vars: Vec<Tensor> = parameters.all().into_iter().map(|(_, var)| var.into_inner()).collect();
    let expected = run(&|x| plain(x, &vars));
    for (k, (given, expected)) in given.iter().zip(&expected).enumerate() {
        assert_close(&format!("{name}, {k}"), given, expected, 1e-5);
    }
}

#[test]
fn linear_matches_candles_gradients() {
    for bias in [false, true] {
        for dims in [vec![3, 5], vec![3, 4, 5], vec![3, 2, 2, 5]] {
            let (recorder, parameters, scope) = fresh();
            let layer = RoutedLinear::new(5, 4, bias, &scope.at("l")).unwrap();
            recorder.begin_step(batch(3)).unwrap();
            let plain: Plain = Box::new(|x, p| {
                let y = x.broadcast_matmul(&p[0].t()?)?;
                if let Some(b) = p.get(1) { y.broadcast_add(b) } else { Ok(y) }
            });
            compare(&format!("linear {dims:?}"), &layer, &parameters, plain, &random(&dims, 1));
            recorder.finish_step().unwrap();
        }
    }
}
