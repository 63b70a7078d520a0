//! Softmax, norms and rotary embeddings.

use super::family::Family;
use super::number::Dtype::{self, Bf16, F16, F32, F64};
use super::number::Tolerance;
use super::number::Value::{self, Float};
use crate::common::Arg;

const DTYPES: [Dtype; 4] = [Bf16, F16, F32, F64];
const NULL: Arg = Arg::U64(0);

pub fn rows(family: &mut Family) {
    for dtype in DTYPES {
        for columns in [20, 77] {
            softmax(family, dtype, columns);
        }
        // candle gives a row a warp, or a block from 1024 columns on.
        for (columns, threads) in [(100, 32), (1500, 1024)] {
            for scaled in [false, true] {
                rmsnorm(family, dtype, columns, threads, scaled);
                layernorm(family, dtype, columns, threads, [scaled, false]);
                layernorm(family, dtype, columns, threads, [scaled, true]);
            }
        }
        rope(family, dtype, false);
        rope(family, dtype, true);
    }
}

/// On eighths, whose differences every type holds: what remains is the error of the exponential and
/// two roundings.
fn softmax(family: &mut Family, dtype: Dtype, columns: usize) {
    let rows = 5;
    let values: Vec<Value> =
        (0..rows * columns).map(|_| Float(family.random.below(49) as f64 / 8.0 - 3.0)).collect();
    let mut expected = Vec::new();
    for row in values.chunks(columns) {
        let sum: f64 = row.iter().map(|x| x.float().exp()).sum();
        expected.extend(row.iter().map(|x| Float(x.float().exp() / sum)));
    }
    let out = family.output(dtype, values.len());
    let args = [family.input(dtype, &values), out.arg(), Arg::I32(columns as i32)];
    let kernel = format!("softmax_{}", dtype.name());
    if family.launch_blocks(&kernel, [rows as u32, 1, 1], [1, 32, 1], 0, &args) {
        family.check(&format!("{columns} columns"), out, &expected, Tolerance::ulps(6.0));
    }
}

const ROWS: usize = 3;
const EPSILON: f32 = 1e-5;
/// Norms are computed in single precision whatever the type, and results are about 1.
const NORM: Tolerance = Tolerance::Near { ulps: 0.51, absolute: 4e-6 };

/// The arguments of a norm up to the number of columns, and the output.
fn launch_norm(
    family: &mut Family,
    kernel: &str,
    dtype: Dtype,
    (columns, threads): (usize, u32),
    values: &[Value],
    scales: &[Arg],
    expected: &[Value],
) {
    let out = family.output(dtype, values.len());
    let mut args = vec![family.input(dtype, values), out.arg()];
    args.extend(scales.iter().cloned());
    args.extend([Arg::I32(columns as i32), Arg::I32(threads as i32), Arg::F32(EPSILON)]);
    let kernel = format!("{kernel}_{}", dtype.name());
    if family.launch_blocks(&kernel, [ROWS as u32, 1, 1], [threads, 1, 1], 0, &args) {
        let given = scales.iter().map(|arg| !matches!(arg, Arg::U64(0)));
        let what = format!("{columns} columns, scales: {:?}", given.collect::<Vec<_>>());
        family.check(&what, out, expected, NORM);
    }
}

/// Per column, or the neutral one and a null pointer.
fn scale(family: &mut Family, dtype: Dtype, n: usize, given: bool, or: f64) -> (Vec<Value>, Arg) {
    if !given {
        return (vec![Float(or); n], NULL);
    }
    let values = family.random.between(dtype, 0.5, 1.0, n);
    let arg = family.input(dtype, &values);
    (values, arg)
}

fn rmsnorm(family: &mut Family, dtype: Dtype, columns: usize, threads: u32, scaled: bool) {
    let values = family.random.between(dtype, -1.0, 2.0, ROWS * columns);
    let (alpha, arg) = scale(family, dtype, columns, scaled, 1.0);
    let mut expected = Vec::new();
    for row in values.chunks(columns) {
        let square = row.iter().map(|x| x.float() * x.float()).sum::<f64>() / columns as f64;
        let factor = 1.0 / (square + f64::from(EPSILON)).sqrt();
        expected.extend(row.iter().zip(&alpha).map(|(x, a)| Float(x.float() * factor * a.float())));
    }
    launch_norm(family, "rmsnorm", dtype, (columns, threads), &values, &[arg], &expected);
}

fn layernorm(family: &mut Family, dtype: Dtype, columns: usize, threads: u32, given: [bool; 2]) {
    let values = family.random.between(dtype, -1.0, 2.0, ROWS * columns);
    let (alpha, alpha_arg) = scale(family, dtype, columns, given[0], 1.0);
    let (beta, beta_arg) = scale(family, dtype, columns, given[1], 0.0);
    let mut expected = Vec::new();
    for row in values.chunks(columns) {
        let n = columns as f64;
        let mean = row.iter().map(|x| x.float()).sum::<f64>() / n;
        let variance = row.iter().map(|x| (x.float() - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        expected.extend(
            (row.iter().zip(&alpha).zip(&beta))
                .map(|((x, a), b)| Float((x.float() - mean) * factor * a.float() + b.float())),
        );
    }
    let scales = [alpha_arg, beta_arg];
    launch_norm(family, "layernorm", dtype, (columns, threads), &values, &scales, &expected);
}

/// Batches, heads, tokens, numbers of a head.
const ROPE: [usize; 4] = [2, 3, 17, 24];

/// Pairs turned by angles of token and pair: the pair's halves lie side by side or half a head apart, and
/// tokens inside heads or heads inside tokens. Angles for all batches, or `batched`.
fn rope(family: &mut Family, dtype: Dtype, batched: bool) {
    let [batches, heads, tokens, dim] = ROPE;
    let count = batches * heads * tokens * dim;
    let pairs = dim / 2;
    let values = family.random.between(dtype, -2.0, 2.0, count);
    let angles = if batched { batches } else { 1 } * tokens * pairs;
    let angles: Vec<f64> =
        family.random.between(F64, 0.0, 6.0, angles).iter().map(|x| x.float()).collect();
    let cos: Vec<Value> = angles.iter().map(|x| dtype.round(Float(x.cos()))).collect();
    let sin: Vec<Value> = angles.iter().map(|x| dtype.round(Float(x.sin()))).collect();
    let stride = Arg::U32(if batched { (heads * tokens * dim) as u32 } else { 0 });
    let number = |n: usize| Arg::U32(n as u32);
    let rows = [number(batches * heads), number(tokens * dim)];
    let kinds: [(&str, bool, bool, Vec<Arg>); 3] = [
        ("rope_i", true, false, rows.to_vec()),
        ("rope", false, false, [rows.to_vec(), vec![number(dim)]].concat()),
        ("rope_thd", false, true, [batches, tokens, heads, dim].map(number).to_vec()),
    ];
    for (name, adjacent, heads_inside, shape) in kinds {
        let mut expected = values.clone();
        for i in 0..count / 2 {
            let (row, pair) = (i / pairs, i % pairs);
            let batch = row / (heads * tokens);
            let token = if heads_inside { row / heads % tokens } else { row % tokens };
            let angle = (if batched { batch * tokens } else { 0 } + token) * pairs + pair;
            let (first, second) = match adjacent {
                true => (row * dim + 2 * pair, row * dim + 2 * pair + 1),
                false => (row * dim + pair, row * dim + pair + pairs),
            };
            let (x, y) = (values[first].float(), values[second].float());
            let (c, s) = (cos[angle].float(), sin[angle].float());
            expected[first] = Float(x * c - y * s);
            expected[second] = Float(x * s + y * c);
        }
        let out = family.output(dtype, count);
        let tables = [family.input(dtype, &cos), family.input(dtype, &sin)];
        let args = [
            vec![family.input(dtype, &values)],
            tables.to_vec(),
            vec![out.arg()],
            shape,
            vec![stride.clone()],
        ]
        .concat();
        if family.launch(&format!("{name}_{}", dtype.name()), count / 2, &args) {
            // Two products and a sum, each rounded, of numbers up to 2.
            let tolerance = Tolerance::Near { ulps: 0.0, absolute: 3.0 * dtype.ulp(1.0) };
            family.check(&format!("batched: {batched}"), out, &expected, tolerance);
        }
    }
}
