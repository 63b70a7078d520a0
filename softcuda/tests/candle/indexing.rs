//! Selecting and adding along a dimension by index: `left × dimension × right` elements.

use super::family::{Family, Output, size};
use super::number::Dtype::{self, Bf16, F8, F16, F32, F64, I16, I32, I64, U8, U32};
use super::number::Tolerance::Exact;
use super::number::Value::{self, Float, Int};
use crate::common::Arg;

const LEFT: usize = 3;
const RIGHT: usize = 29;
/// Elements of the dimension, and indices into it.
const DIM: usize = 11;
const IDS: usize = 17;

pub fn indexing(family: &mut Family) {
    let dtypes = [U8, U32, I64, F8, Bf16, F16, F32, F64];
    for (id, dtype) in [U8, U32, I64, I16, I32].iter().flat_map(|id| dtypes.map(|d| (*id, d))) {
        let mut case = Case { family, id, dtype };
        for (name, run) in OPERATIONS {
            let kernel = format!("{name}_{}_{}", id.name(), dtype.name());
            if case.family.program.module.kernels.contains_key(&kernel) {
                run(&mut case, &kernel);
            }
        }
    }
}

struct Case<'a> {
    family: &'a mut Family,
    id: Dtype,
    dtype: Dtype,
}

type Operation = (&'static str, fn(&mut Case<'_>, &str));

const OPERATIONS: [Operation; 5] = [
    ("is", index_select),
    ("gather", gather),
    ("ia", index_add),
    ("s", |case, kernel| scatter(case, kernel, false)),
    ("sa", |case, kernel| scatter(case, kernel, true)),
];

impl Case<'_> {
    /// Indices into the dimension, and now and then the type's largest number, which means none. Without
    /// regard for which the kernels of fp8 add.
    fn ids(&mut self, n: usize, none: bool) -> Vec<Value> {
        let largest = match self.id {
            U8 => i64::from(u8::MAX),
            U32 => i64::from(u32::MAX),
            I16 => i64::from(i16::MAX),
            I32 => i64::from(i32::MAX),
            _ => i64::MAX,
        };
        let mut one = || match self.family.random.below(DIM + 1) {
            DIM if none => largest,
            index => (index % DIM) as i64,
        };
        (0..n).map(|_| Int(one())).collect()
    }

    fn values(&mut self, n: usize) -> Vec<Value> {
        if self.dtype.is_float() {
            self.family.random.between(self.dtype, -3.0, 3.0, n)
        } else {
            self.family.random.any(self.dtype, n)
        }
    }

    /// Addition with the roundings of the type.
    fn add(&self, x: Value, y: Value) -> Value {
        let sum = match (x, y) {
            (Int(x), Int(y)) => Int(x.wrapping_add(y)),
            (x, y) => Float(x.float() + y.float()),
        };
        self.dtype.round(sum)
    }

    fn input(&self, dtype: Dtype, values: &[Value]) -> Arg {
        self.family.input(dtype, values)
    }

    fn finish(
        &mut self,
        kernel: &str,
        threads: usize,
        args: &[Arg],
        out: Output,
        expected: &[Value],
    ) {
        if self.family.launch(kernel, threads, args) {
            self.family.check("", out, expected, Exact);
        }
    }
}

/// An index into the dimension; `None` for the largest number.
fn index(id: Value) -> Option<usize> {
    Some(id.int() as usize).filter(|&index| index < DIM)
}

fn zero(dtype: Dtype) -> Value {
    dtype.round(Int(0))
}

/// The input contiguous, and with its last dimension strided.
fn index_select(case: &mut Case<'_>, kernel: &str) {
    for strided in [false, true] {
        let ids = case.ids(IDS, true);
        let source = case.values(LEFT * DIM * RIGHT);
        let strides = if strided { [1, LEFT, LEFT * DIM] } else { [DIM * RIGHT, RIGHT, 1] };
        let element = |i: usize| {
            let (left, id, right) = (i / (IDS * RIGHT), i / RIGHT % IDS, i % RIGHT);
            let at = |id| left * strides[0] + id * strides[1] + right * strides[2];
            index(ids[id]).map_or(zero(case.dtype), |id| source[at(id)])
        };
        let expected: Vec<Value> = (0..LEFT * IDS * RIGHT).map(element).collect();
        let out = case.family.output(case.dtype, expected.len());
        let args = [
            size(expected.len()),
            size(3),
            case.family.sizes(&[[LEFT, DIM, RIGHT], strides].concat()),
            case.input(case.id, &ids),
            case.input(case.dtype, &source),
            out.arg(),
            size(LEFT),
            size(DIM),
            size(IDS),
            size(RIGHT),
        ];
        case.finish(kernel, expected.len(), &args, out, &expected);
    }
}

/// An index for every element.
fn gather(case: &mut Case<'_>, kernel: &str) {
    let ids = case.ids(LEFT * IDS * RIGHT, true);
    let source = case.values(LEFT * DIM * RIGHT);
    let element = |(i, id): (usize, &Value)| {
        let (left, right) = (i / (IDS * RIGHT), i % RIGHT);
        index(*id).map_or(zero(case.dtype), |id| source[(left * DIM + id) * RIGHT + right])
    };
    let expected: Vec<Value> = ids.iter().enumerate().map(element).collect();
    let out = case.family.output(case.dtype, expected.len());
    let args = [
        size(expected.len()),
        case.input(case.id, &ids),
        case.input(case.dtype, &source),
        out.arg(),
        size(LEFT),
        size(DIM),
        size(IDS),
        size(RIGHT),
    ];
    case.finish(kernel, expected.len(), &args, out, &expected);
}

/// Adds slices to those that the indices name, in their order.
fn index_add(case: &mut Case<'_>, kernel: &str) {
    let ids = case.ids(IDS, case.dtype != F8);
    let source = case.values(LEFT * IDS * RIGHT);
    let mut expected = case.values(LEFT * DIM * RIGHT);
    let out = case.family.filled(case.dtype, &expected);
    for (i, value) in source.iter().enumerate() {
        if let Some(id) = index(ids[i / RIGHT % IDS]) {
            let to = (i / (IDS * RIGHT) * DIM + id) * RIGHT + i % RIGHT;
            expected[to] = case.add(expected[to], *value);
        }
    }
    let args = [
        case.input(case.id, &ids),
        size(IDS),
        case.input(case.dtype, &source),
        out.arg(),
        size(LEFT),
        size(IDS),
        size(DIM),
        size(RIGHT),
    ];
    case.finish(kernel, LEFT * RIGHT, &args, out, &expected);
}

/// The inverse of gather; of several values for one place the last stays, or all are added.
fn scatter(case: &mut Case<'_>, kernel: &str, add: bool) {
    let ids = case.ids(LEFT * IDS * RIGHT, case.dtype != F8);
    let source = case.values(LEFT * IDS * RIGHT);
    let mut expected = case.values(LEFT * DIM * RIGHT);
    let out = case.family.filled(case.dtype, &expected);
    for (i, (value, id)) in source.iter().zip(&ids).enumerate() {
        if let Some(id) = index(*id) {
            let to = (i / (IDS * RIGHT) * DIM + id) * RIGHT + i % RIGHT;
            expected[to] = if add { case.add(expected[to], *value) } else { *value };
        }
    }
    let args = [
        case.input(case.id, &ids),
        case.input(case.dtype, &source),
        out.arg(),
        size(LEFT),
        size(IDS),
        size(DIM),
        size(RIGHT),
    ];
    case.finish(kernel, LEFT * RIGHT, &args, out, &expected);
}
