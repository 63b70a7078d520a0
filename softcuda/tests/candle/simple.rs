//! Casts, selections, fills and copies.

use super::family::{Family, scalar, size};
use super::number::Dtype::{self, Bf16, F8, F16, F32, F64, I16, I32, I64, U8, U32};
use super::number::Tolerance::Exact;
use super::number::Value::{self, Float, Int};
use super::pointwise::View::{Broadcast, Contiguous, Transposed};
use super::pointwise::{COUNT, Pointwise};
use crate::common::Arg;

/// Every pair there is; integers wrap. Floats outside an integer's range are not cast: C leaves open
/// what comes out.
pub fn cast(family: &mut Family) {
    let all = [U8, U32, I64, I32, F8, Bf16, F16, F32, F64];
    for (from, to) in all.iter().flat_map(|from| all.map(|to| (*from, to))) {
        let kernel = format!("cast_{}_{}", from.name(), to.name());
        if !family.program.module.kernels.contains_key(&kernel) {
            continue;
        }
        let range = match to {
            U8 => Some((0.0, 255.0)),
            U32 => Some((0.0, 4.29e9)),
            I32 => Some((-2.1e9, 2.1e9)),
            I64 => Some((-9.2e18, 9.2e18)),
            _ => None,
        };
        let random = &mut family.random;
        let values = match range {
            Some((low, high)) if from.is_float() => {
                // Small numbers too: those have a fraction to cut off.
                let mut values = random.between(from, low, high, COUNT);
                values.truncate(COUNT / 2);
                values.extend(random.between(
                    from,
                    f64::max(low, -100.0),
                    100.0,
                    COUNT - COUNT / 2,
                ));
                // Rounding may have left the range.
                let inside = |x: Value| (low..=high).contains(&x.float());
                values.into_iter().map(|x| if inside(x) { x } else { Float(64.0) }).collect()
            }
            _ => random.any(from, COUNT),
        };
        let pointwise = Pointwise {
            kernel,
            before: vec![],
            after: vec![],
            inputs: &[(from, values)],
            out: to,
            tolerance: Exact,
        };
        // fp8 is made from floats; other types are converted directly.
        let expected = |x: &[Value]| if to == F8 { F32.round(x[0]) } else { x[0] };
        pointwise.run(family, &[Contiguous], true, expected);
        pointwise.run(family, &[Transposed], false, expected);
    }
}

/// `ids ? t : f`.
pub fn ternary(family: &mut Family) {
    let dtypes = [U8, U32, I64, F8, Bf16, F16, F32, F64];
    for (id, dtype) in [U8, U32, I64, I16, I32].iter().flat_map(|id| dtypes.map(|d| (*id, d))) {
        let name = if dtype == F8 { "fp8_e4m3" } else { dtype.name() };
        let kernel = format!("where_{}_{name}", id.name());
        if !family.program.module.kernels.contains_key(&kernel) {
            continue;
        }
        let random = &mut family.random;
        let ids = (0..COUNT).map(|_| Int([0, 1, 0, -1][random.below(4)]));
        let ids = ids.map(|x| id.round(x)).collect();
        let values = [0; 2].map(|_| (dtype, random.any(dtype, COUNT)));
        let inputs = [vec![(id, ids)], values.to_vec()].concat();
        let pointwise = Pointwise {
            kernel,
            before: vec![],
            after: vec![],
            inputs: &inputs,
            out: dtype,
            tolerance: Exact,
        };
        let expected = |x: &[Value]| if x[0].int() != 0 { x[1] } else { x[2] };
        pointwise.run(family, &[Contiguous; 3], false, expected);
        pointwise.run(family, &[Contiguous, Broadcast, Transposed], false, expected);
    }
}

pub fn fill(family: &mut Family) {
    for dtype in [U8, U32, I64, F8, Bf16, F16, F32, F64] {
        let value = family.random.any(dtype, 1)[0];
        let name = dtype.name();
        let out = family.output(dtype, COUNT);
        let args = [out.arg(), scalar(dtype, value), size(COUNT)];
        if family.launch(&format!("fill_{name}"), COUNT, &args) {
            family.check("", out, &[value; COUNT], Exact);
        }
        copy2d(family, dtype);
        const_set(family, dtype, value);
    }
}

/// Rows of 29 out of rows of 31 to rows of 37, what lies between untouched.
fn copy2d(family: &mut Family, dtype: Dtype) {
    let (rows, columns, from_pitch, to_pitch) = (43, 29, 31, 37);
    let from = family.random.any(dtype, rows * from_pitch);
    let mut to = family.random.any(dtype, rows * to_pitch);
    let out = family.filled(dtype, &to);
    let mut args = vec![family.input(dtype, &from), out.arg()];
    args.extend([rows, columns, from_pitch, to_pitch].map(|n| Arg::U32(n as u32)));
    for row in 0..rows {
        to[row * to_pitch..][..columns].copy_from_slice(&from[row * from_pitch..][..columns]);
    }
    if family.launch(&format!("copy2d_{}", dtype.name()), rows * columns, &args) {
        family.check("", out, &to, Exact);
    }
}

/// A whole tensor, and one with gaps that stay as they were.
fn const_set(family: &mut Family, dtype: Dtype, value: Value) {
    let kernel = format!("const_set_{}", dtype.name());
    let (rows, columns, pitch) = (19, 11, 23);
    let elements = rows * columns;
    for strided in [false, true] {
        let mut expected = family.random.any(dtype, rows * pitch);
        let out = family.filled(dtype, &expected);
        let info = if strided { family.sizes(&[rows, columns, pitch, 2]) } else { Arg::U64(0) };
        for i in 0..elements {
            let at = if strided { i / columns * pitch + i % columns * 2 } else { i };
            expected[at] = value;
        }
        let args = [size(elements), size(2), info, scalar(dtype, value), out.arg()];
        if family.launch(&kernel, elements, &args) {
            family.check(&format!("strided: {strided}"), out, &expected, Exact);
        }
    }
}
