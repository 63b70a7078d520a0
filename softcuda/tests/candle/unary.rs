//! Functions of one number.

use super::family::{Family, scalar};
use super::number::Dtype::{self, Bf16, F8, F16, F32, F64, I64, U8, U32};
use super::number::Tolerance::{self, Exact};
use super::number::Value::{self, Float};
use super::pointwise::View::{Contiguous, Transposed};
use super::pointwise::{COUNT, Pointwise};
use super::special::{erf, normcdf};

/// How much error a function may have.
#[derive(Clone, Copy)]
enum Error {
    /// One operation, rounded once: any input.
    None,
    /// A function of CUDA's library, with its documented error in single and double precision. Narrow
    /// types are computed in single and rounded: half a unit, and hardly more.
    Library(f64, f64),
    /// Some operations of the type itself. Some add to one or subtract it: then the error has the size of
    /// units of 1 also where the result is small.
    Steps { ulps: f64, ones: f64 },
}

struct Function {
    name: &'static str,
    of: fn(f64, Dtype) -> f64,
    range: (f64, f64),
    error: Error,
}

const fn exact(name: &'static str, of: fn(f64, Dtype) -> f64) -> Function {
    Function { name, of, range: (0.0, 0.0), error: Error::None }
}

const fn library(
    name: &'static str,
    of: fn(f64, Dtype) -> f64,
    range: (f64, f64),
    (single, double): (f64, f64),
) -> Function {
    Function { name, of, range, error: Error::Library(single, double) }
}

const fn steps(name: &'static str, of: fn(f64, Dtype) -> f64, ulps: f64, ones: f64) -> Function {
    Function { name, of, range: (-4.0, 4.0), error: Error::Steps { ulps, ones } }
}

/// Errors of single and double precision as in the appendix on mathematical functions of CUDA's
/// programming guide; for double precision, what the reference itself may err is in it.
const FUNCTIONS: [Function; 22] = [
    exact("ucopy", |x, _| x),
    exact("uneg", |x, _| -x),
    exact("urecip", |x, _| 1.0 / x),
    exact("uceil", |x, _| x.ceil()),
    exact("ufloor", |x, _| x.floor()),
    exact("uround", |x, _| x.round()),
    exact("uabs", |x, _| x.abs()),
    exact("usqr", |x, _| x * x),
    exact("usqrt", |x, _| x.sqrt()),
    exact("usign", |x, _| f64::from(i8::from(x > 0.0) - i8::from(x < 0.0))),
    exact("urelu", relu),
    library("uexp", |x, _| x.exp(), (-5.0, 5.0), (2.0, 2.0)),
    library("ulog", |x, _| x.ln(), (0.01, 20.0), (1.0, 2.0)),
    library("usin", |x, _| x.sin(), (-8.0, 8.0), (2.0, 3.0)),
    library("ucos", |x, _| x.cos(), (-8.0, 8.0), (2.0, 3.0)),
    library("utanh", |x, _| x.tanh(), (-4.0, 4.0), (2.0, 4.0)),
    library("uerf", |x, _| erf(x), (-4.0, 4.0), (2.0, 32.0)),
    library("unormcdf", |x, _| normcdf(x), (-4.0, 4.0), (5.0, 32.0)),
    steps("ugelu", gelu, 4.0, 4.0),
    // One rounding behind normcdf's error.
    steps("ugelu_erf", |x, _| x * normcdf(x), 12.0, 0.0),
    steps("usilu", |x, _| x / (1.0 + (-x).exp()), 4.0, 0.0),
    steps("usigmoid", |x, _| 1.0 / (1.0 + (-x).exp()), 4.0, 0.0),
];

/// A NaN becomes 0 where candle uses `fmax`, and stays one where it uses `__hmax_nan`.
fn relu(x: f64, dtype: Dtype) -> f64 {
    if matches!(dtype, F16 | Bf16) && x.is_nan() || x > 0.0 { x } else { 0.0 }
}

fn gelu(x: f64, _: Dtype) -> f64 {
    let alpha = x + 0.044715 * x * x * x;
    0.5 * x * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * alpha).tanh())
}

impl Error {
    fn tolerance(self, dtype: Dtype, name: &str) -> Tolerance {
        match self {
            Self::None => Exact,
            Self::Library(single, double) => match dtype {
                F32 => Tolerance::ulps(single),
                F64 => Tolerance::ulps(double),
                F16 if PATCHED.contains(&name) => Tolerance::ulps(1.51),
                _ => Tolerance::ulps(0.51),
            },
            Self::Steps { ulps, ones } => {
                // In double precision the reference errs as much as the kernel.
                let ulps = if dtype == F64 { ulps + 32.0 } else { ulps };
                Tolerance::Near { ulps, absolute: ones * dtype.ulp(1.0) }
            }
        }
    }
}

/// For some inputs, where hardware's approximation comes out on the wrong side of a tie, CUDA's half
/// precision functions add a unit to the result; a better approximation is then off by one.
const PATCHED: [&str; 4] = ["uexp", "ulog", "usin", "ucos"];

pub fn unary(family: &mut Family) {
    for dtype in [U8, U32, I64] {
        let copy = exact("ucopy", |x, _| x);
        run(family, dtype, &copy, &|x| x);
    }
    for dtype in [Bf16, F8, F16, F32, F64] {
        for function in &FUNCTIONS {
            run(family, dtype, function, &|x| Float((function.of)(x.float(), dtype)));
        }
        // With a parameter: `alpha * (exp(x) - 1)` below zero, and powers.
        let elu = steps("uelu", |x, dtype| elu(x, parameter(dtype)), 4.0, 2.0);
        run(family, dtype, &elu, &|x| Float((elu.of)(x.float(), dtype)));
        let power = library("upowf", |x, d| x.powf(parameter(d)), (0.1, 9.0), (4.0, 4.0));
        run(family, dtype, &power, &|x| Float((power.of)(x.float(), dtype)));
    }
}

fn elu(x: f64, alpha: f64) -> f64 {
    if x > 0.0 { x } else { alpha * x.exp_m1() }
}

fn parameter(dtype: Dtype) -> f64 {
    dtype.round(Float(1.3)).float()
}

fn run(family: &mut Family, dtype: Dtype, function: &Function, of: &dyn Fn(Value) -> Value) {
    let name = function.name;
    let suffix = if dtype == F8 && name != "ucopy" { "fp8_e4m3" } else { dtype.name() };
    let (low, high) = function.range;
    let values = match function.error {
        Error::None => family.random.any(dtype, COUNT),
        _ => family.random.between(dtype, low, high, COUNT),
    };
    let takes_parameter = matches!(name, "uelu" | "upowf");
    let before = Vec::from_iter(takes_parameter.then(|| scalar(dtype, Float(parameter(dtype)))));
    let pointwise = Pointwise {
        kernel: format!("{name}_{suffix}"),
        before,
        after: vec![],
        inputs: &[(dtype, values)],
        out: dtype,
        tolerance: function.error.tolerance(dtype, name),
    };
    pointwise.run(family, &[Contiguous], true, |x| of(x[0]));
    pointwise.run(family, &[Transposed], false, |x| of(x[0]));
}
