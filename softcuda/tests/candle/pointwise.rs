//! Kernels with one thread per element: `(numel, num_dims, info, …, inputs, out)`.

use super::family::{Family, scalar, size};
use super::number::Dtype::{self, Bf16, F8, F16, F32, F64, I16, I32, I64, U8, U32};
use super::number::Tolerance::{self, Exact};
use super::number::Value::{self, Float, Int};
use crate::common::Arg;

/// No multiple of a block, of a warp or of a vector.
pub const DIMS: [usize; 3] = [5, 7, 37];
pub const COUNT: usize = 5 * 7 * 37;

/// How an input lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum View {
    Contiguous,
    /// With its first and last dimension exchanged.
    Transposed,
    /// One row, seen everywhere.
    Broadcast,
}

impl View {
    pub fn strides(self) -> [usize; 3] {
        match self {
            Self::Contiguous => [7 * 37, 37, 1],
            Self::Transposed => [1, 5, 5 * 7],
            Self::Broadcast => [0, 37, 1],
        }
    }

    /// Where element `i` lies.
    pub fn index(self, i: usize) -> usize {
        let [a, b, c] = self.strides();
        i / (7 * 37) * a + i / 37 % 7 * b + i % 37 * c
    }
}

use View::{Broadcast, Contiguous, Transposed};

/// One such kernel.
pub struct Pointwise<'a> {
    pub kernel: String,
    /// Scalars ahead of the inputs, and behind the output.
    pub before: Vec<Arg>,
    pub after: Vec<Arg>,
    pub inputs: &'a [(Dtype, Vec<Value>)],
    pub out: Dtype,
    pub tolerance: Tolerance,
}

impl Pointwise<'_> {
    /// Runs it with inputs that lie as `views` say, and compares with `expected` of each element. Where
    /// all are contiguous, candle tells so by `info` being null, if the kernel allows that.
    pub fn run(
        &self,
        family: &mut Family,
        views: &[View],
        null: bool,
        expected: impl Fn(&[Value]) -> Value,
    ) {
        let mut args = vec![size(COUNT), size(DIMS.len())];
        if null {
            args.push(Arg::U64(0));
        } else {
            let mut info = DIMS.to_vec();
            views.iter().for_each(|view| info.extend(view.strides()));
            args.push(family.sizes(&info));
        }
        args.extend(self.before.iter().cloned());
        args.extend(self.inputs.iter().map(|(dtype, values)| family.input(*dtype, values)));
        let out = family.output(self.out, COUNT);
        args.push(out.arg());
        args.extend(self.after.iter().cloned());
        if family.launch(&self.kernel, COUNT, &args) {
            let element = |i: usize| {
                let seen = views.iter().zip(self.inputs).map(|(view, (_, of))| of[view.index(i)]);
                expected(&seen.collect::<Vec<_>>())
            };
            let expected: Vec<Value> = (0..COUNT).map(element).collect();
            family.check(&format!("{views:?}"), out, &expected, self.tolerance);
        }
    }
}

/// `x * mul + add`: floats fused, as nvcc contracts them, but for half precision, whose operators are
/// inline PTX.
pub fn affine(family: &mut Family) {
    for dtype in [Bf16, F8, F16, F32, F64, U8, U32, I16, I32, I64] {
        let (mul, add) = match dtype.is_float() {
            true => (dtype.round(Float(-1.7)), dtype.round(Float(0.3))),
            false => (Int(3), Int(250)),
        };
        let inputs = [(dtype, family.random.any(dtype, COUNT))];
        let pointwise = Pointwise {
            kernel: format!("affine_{}", dtype.name()),
            before: vec![],
            after: vec![scalar(dtype, mul), scalar(dtype, add)],
            inputs: &inputs,
            out: dtype,
            tolerance: Exact,
        };
        let expected = |x: &[Value]| match (x[0], mul, add) {
            (Int(x), Int(mul), Int(add)) => Int(x.wrapping_mul(mul).wrapping_add(add)),
            (x, mul, add) => {
                let (x, mul, add) = (x.float(), mul.float(), add.float());
                match dtype {
                    F16 | Bf16 => Float(dtype.round(Float(x * mul)).float() + add),
                    F32 => Float((x as f32).mul_add(mul as f32, add as f32).into()),
                    F8 => F32.round(Float(x.mul_add(mul, add))),
                    _ => Float(x.mul_add(mul, add)),
                }
            }
        };
        pointwise.run(family, &[Contiguous], true, expected);
        pointwise.run(family, &[Contiguous], false, expected);
        pointwise.run(family, &[Transposed], false, expected);
    }
}

/// The operations of two numbers: on integers, on floats.
type Operation = (&'static str, fn(i64, i64) -> i64, fn(f64, f64) -> f64);

const ARITHMETIC: [Operation; 6] = [
    ("badd", i64::wrapping_add, |x, y| x + y),
    ("bsub", i64::wrapping_sub, |x, y| x - y),
    ("bmul", i64::wrapping_mul, |x, y| x * y),
    ("bdiv", |x, y| x / y, |x, y| x / y),
    ("bmaximum", i64::max, maximum),
    ("bminimum", i64::min, |x, y| -maximum(-x, -y)),
];

type Comparison = (&'static str, fn(i64, i64) -> bool, fn(f64, f64) -> bool);

const COMPARISONS: [Comparison; 6] = [
    ("eq", |x, y| x == y, |x, y| x == y),
    ("ne", |x, y| x != y, |x, y| x != y),
    ("lt", |x, y| x < y, |x, y| x < y),
    ("le", |x, y| x <= y, |x, y| x <= y),
    ("gt", |x, y| x > y, |x, y| x > y),
    ("ge", |x, y| x >= y, |x, y| x >= y),
];

/// The larger, with +0 above -0; a NaN only of two.
fn maximum(x: f64, y: f64) -> f64 {
    if x == y {
        return if x.is_sign_negative() { y } else { x };
    }
    x.max(y)
}

pub fn binary(family: &mut Family) {
    for dtype in [Bf16, F8, F16, F32, F64, U8, U32, I64] {
        let mut inputs = [0; 2].map(|_| (dtype, family.random.any(dtype, COUNT)));
        // Equal pairs are rare among random ones.
        for i in (0..COUNT).step_by(3) {
            inputs[1].1[i] = inputs[0].1[i];
        }
        let mut divisors = inputs.clone();
        if !dtype.is_float() {
            divisors[1]
                .1
                .iter_mut()
                .for_each(|y| *y = Int(if matches!(y, Int(-1 | 0)) { 7 } else { y.int() }));
        }
        for (name, of_ints, of_floats) in ARITHMETIC {
            let inputs = if name == "bdiv" { &divisors } else { &inputs };
            // `__hmax_nan` of half precision, `fmax` of the others.
            let keeps_nan = matches!(dtype, F16 | Bf16) && name.contains("imum");
            run_binary(family, name, dtype, dtype, inputs, |x, y| match (x, y) {
                (Int(x), Int(y)) => Int(of_ints(x, y)),
                (Float(x), Float(y)) if keeps_nan && (x.is_nan() || y.is_nan()) => Float(f64::NAN),
                (x, y) => Float(of_floats(x.float(), y.float())),
            });
        }
        for (name, of_ints, of_floats) in COMPARISONS {
            run_binary(family, name, dtype, U8, &inputs, |x, y| match (x, y) {
                (Int(x), Int(y)) => Int(of_ints(x, y).into()),
                (x, y) => Int(of_floats(x.float(), y.float()).into()),
            });
        }
    }
}

fn run_binary(
    family: &mut Family,
    name: &str,
    dtype: Dtype,
    out: Dtype,
    inputs: &[(Dtype, Vec<Value>)],
    expected: impl Fn(Value, Value) -> Value,
) {
    let kernel = format!("{name}_{}", dtype.name());
    let (before, after, tolerance) = (vec![], vec![], Exact);
    let pointwise = Pointwise { kernel, before, after, inputs, out, tolerance };
    let expected = |x: &[Value]| expected(x[0], x[1]);
    pointwise.run(family, &[Contiguous, Contiguous], true, expected);
    pointwise.run(family, &[Contiguous, Broadcast], false, expected);
    pointwise.run(family, &[Transposed, Contiguous], false, expected);
    pointwise.run(family, &[Broadcast, Transposed], false, expected);
}
