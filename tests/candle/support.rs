//! Helpers of the tests.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use gradroute::Error;
use gradroute::candle::{Batch, Parameters, Recorder, Scope, cause};
use gradroute::problem::{Conv2dSpec, Padding};
use gradroute::projection::{SketchKind, micro_block, philox4x32};

pub const BUCKETS: usize = 128;
pub const SEED: u32 = 5;

/// A fresh recorder, store and scope.
pub fn fresh() -> (Recorder, Parameters, Scope) {
    let recorder = Recorder::new(SketchKind::Count { buckets: BUCKETS }, SEED).unwrap();
    let parameters = Parameters::new(DType::F32, 3);
    let scope = Scope::new(&parameters, &recorder);
    (recorder, parameters, scope)
}

pub fn batch(samples: usize) -> Batch {
    Batch::new((0..samples as u64).collect(), vec![0; samples])
}

/// Values without a pattern, the same every time.
pub fn random(dims: &[usize], salt: u32) -> Tensor {
    let word = |at: usize| philox4x32([at as u32, 0, 0, 0], [salt, 9])[0];
    let values = (0..dims.iter().product()).map(|at| word(at) as f32 / u32::MAX as f32 * 2.0 - 1.0);
    Tensor::from_vec(values.collect(), dims, &Device::Cpu).unwrap()
}

pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts the relative error in the Euclidean norm.
pub fn assert_close(name: &str, given: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(given.len(), expected.len(), "{name}");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = given.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let size: f64 = expected.iter().map(|&b| square(b)).sum();
    let error = (off / size.max(1e-30)).sqrt();
    assert!(error <= tolerance && size > 0.0, "{name}: relative error {error:e}, size {size}");
}

/// A loss with a different gradient everywhere, of each sample for itself.
pub fn loss(y: &Tensor) -> Result<Tensor> {
    let mut dims = y.dims().to_vec();
    dims[0] = 1;
    let weights = random(&dims, 77).to_dtype(y.dtype())?;
    y.sqr()?.broadcast_mul(&weights)?.mean_all()
}

pub fn gradient(grads: &GradStore, parameters: &Parameters, name: &str) -> Vec<f32> {
    flat(grads.get(&parameters.get(name).unwrap()).unwrap())
}

pub fn typed(error: &candle_core::Error) -> String {
    let found = cause(error).unwrap_or_else(|| panic!("untyped: {error}"));
    assert!(matches!(found, Error::Refused { .. } | Error::Argument { .. }));
    found.to_string()
}

/// The same layer by candle's own ops, from its parameters.
pub type Plain = Box<dyn Fn(&Tensor, &[Tensor]) -> Result<Tensor>>;

/// Output, `dx` and all parameter gradients of `routed` equal `plain`'s, in a step of its own.
/// `x` is made non-contiguous on the way in, and so is the gradient on the way back.
pub fn compare(name: &str, routed: &dyn Module, scope: &Scope, plain: Plain, x: &Tensor) {
    let parameters = scope.parameters();
    let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let x = Var::from_tensor(x).unwrap();
        let y = f(&x.t().unwrap().contiguous().unwrap().t().unwrap()).unwrap();
        let grads = loss(&y.t().unwrap()).unwrap().backward().unwrap();
        let mut all = vec![flat(&y), flat(grads.get(&x).unwrap())];
        all.extend(parameters.all().iter().map(|(_, var)| flat(grads.get(var).unwrap())));
        all
    };
    scope.recorder().begin_step(batch(x.dims()[0])).unwrap();
    let given = run(&|x| routed.forward(x));
    scope.recorder().finish_step().unwrap();
    let vars: Vec<Tensor> = parameters.all().into_iter().map(|(_, var)| var.into_inner()).collect();
    let expected = run(&|x| plain(x, &vars));
    for (k, (given, expected)) in given.iter().zip(&expected).enumerate() {
        assert_close(&format!("{name}, {k}"), given, expected, 1e-5);
    }
}

pub fn plain_norm(x: &Tensor, axes_from: usize, centred: bool) -> Result<Tensor> {
    let rows = x.flatten_from(axes_from)?;
    let last = rows.rank() - 1;
    let rows = if centred { rows.broadcast_sub(&rows.mean_keepdim(last)?)? } else { rows };
    let scale = (rows.sqr()?.mean_keepdim(last)? + 1e-5)?.sqrt()?;
    rows.broadcast_div(&scale)?.reshape(x.shape())
}

pub fn spec3() -> Conv2dSpec {
    Conv2dSpec { kernel: [3, 3], padding: Padding::symmetric(1, 1), ..Default::default() }
}

/// The count sketch by its definition.
pub fn count_sketch(layer: usize, columns: usize, matrix: &[f32]) -> Vec<f32> {
    let mut sketch = vec![0.0; BUCKETS];
    for (at, value) in matrix.iter().enumerate() {
        let (o, i) = (at / columns, at % columns);
        let key = [SEED, layer as u32];
        let block = micro_block(key, (o / 8) as u32, (i / 8) as u32, BUCKETS);
        let e = 8 * (o % 8) + i % 8;
        sketch[block.bucket(e, BUCKETS)] += block.sign(e) * value;
    }
    sketch
}
