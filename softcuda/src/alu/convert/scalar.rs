//! Conversions of one number.

use super::{How, number};
use crate::alu::float::{self, flush};
use crate::alu::lanes::Lanes;
use crate::alu::round::{Exact, Format, Rounding, odd_from};
use crate::alu::short::{Bf16, F16, Short};
use crate::ir::{LANES, Reg, Src, Ty};

/// Executes a conversion.
pub(super) fn execute(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    match (number(from), number(to)) {
        (false, false) => between_integers(from, to, how, lanes, dst, src),
        (true, false) => to_integer(from, to, how, lanes, dst, src),
        (false, true) => from_integer(from, to, how, lanes, dst, src),
        (true, true) => between_floats(from, to, how, lanes, dst, src),
    }
}

/// An integer source, extended to 64 bits.
fn integers(ty: Ty, lanes: &Lanes<'_>, src: Src) -> [i64; LANES] {
    match ty {
        Ty::U8 => lanes.read::<u8>(src).map(i64::from),
        Ty::S8 => lanes.read::<i8>(src).map(i64::from),
        Ty::U16 => lanes.read::<u16>(src).map(i64::from),
        Ty::S16 => lanes.read::<i16>(src).map(i64::from),
        Ty::U32 => lanes.read::<u32>(src).map(i64::from),
        Ty::S32 => lanes.read::<i32>(src).map(i64::from),
        _ => lanes.read::<i64>(src),
    }
}

/// The range of an integer type.
pub(super) fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Writes integers of type `to` into a register that may be wider.
fn write_integers(to: Ty, width: u32, lanes: &mut Lanes<'_>, dst: Reg, values: &[i64; LANES]) {
    let (unused, seen) = (64 - to.bits(), u64::MAX >> (64 - width.clamp(to.bits(), 64)));
    let signed = to.signed();
    let extended = values.map(|value| {
        let top = value << unused;
        (if signed { top >> unused } else { (top as u64 >> unused) as i64 }) as u64 & seen
    });
    lanes.write(dst, &extended);
}

fn between_integers(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let mut values = integers(from, lanes, src);
    if how.sat {
        let (low, high) = range(to);
        let exact =
            |value: i64| if from == Ty::U64 { i128::from(value as u64) } else { value.into() };
        values = values.map(|value| exact(value).clamp(low, high) as i64);
    }
    write_integers(to, how.width, lanes, dst, &values);
}

/// A floating-point source; exact in f64.
fn floats(ty: Ty, ftz: bool, lanes: &Lanes<'_>, src: Src) -> [f64; LANES] {
    match ty {
        Ty::F16 => lanes.read::<u32>(src).map(|bits| f64::from(F16::widen(bits))),
        Ty::Bf16 => lanes.read::<u32>(src).map(|bits| f64::from(Bf16::widen(bits))),
        Ty::F32 if ftz => lanes.read::<f32>(src).map(|x| f64::from(flush(x))),
        Ty::F32 => lanes.read::<f32>(src).map(f64::from),
        _ => lanes.read::<f64>(src),
    }
}

fn integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Away => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
        Rounding::Random(_) => unreachable!("not to integral values"),
    }
}

fn to_integer(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let values = floats(from, how.ftz, lanes, src);
    let rounding = how.rounding;
    let of_nan = if from == Ty::F64 || to.bits() == 64 { 1i64 << (to.bits() - 1) } else { 0 };
    let (low, high) = range(to);
    let (low, high) = (low as i64, high as u64);
    let signed = to.signed();
    let convert = |x: f64| {
        let x = if rounding == Rounding::Zero { x } else { integral(x, rounding) };
        if x.is_nan() {
            of_nan
        } else if signed {
            (x as i64).clamp(low, high as i64)
        } else {
            (x as u64).min(high) as i64
        }
    };
    write_integers(to, how.width, lanes, dst, &values.map(convert));
}

fn from_integer(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let values = integers(from, lanes, src);
    let unsigned = from == Ty::U64;
    let widest =
        move |value: i64| if unsigned { i128::from(value as u64) } else { i128::from(value) };
    match (to, how.rounding, how.sat) {
        (Ty::F32, Rounding::Nearest, false) if unsigned => {
            lanes.write(dst, &values.map(|value| value as u64 as f32));
        }
        (Ty::F32, Rounding::Nearest, false) => lanes.write(dst, &values.map(|value| value as f32)),
        (Ty::F64, Rounding::Nearest, false) if unsigned => {
            lanes.write(dst, &values.map(|value| value as u64 as f64));
        }
        (Ty::F64, Rounding::Nearest, false) => lanes.write(dst, &values.map(|value| value as f64)),
        (Ty::F64, rounding, false) => {
            let exact = |value| directed_double(widest(value), rounding);
            lanes.write(dst, &values.map(exact));
        }
        (to, ..) if from.bits() < 64 => {
            rounded(to, how, lanes, dst, &values.map(|value| value as f64));
        }
        (to, ..) => rounded(to, how, lanes, dst, &values.map(|value| odd_from(widest(value)))),
    }
}

/// An integer rounded to f64 in a given direction.
fn directed_double(value: i128, rounding: Rounding) -> u64 {
    let exact = Exact { negative: value < 0, exponent: 0, mantissa: value.unsigned_abs() };
    if value == 0 { 0 } else { exact.round(Format::F64, rounding) }
}

fn format(ty: Ty) -> Format {
    match ty {
        Ty::F16 => Format::F16,
        Ty::Bf16 => Format::BF16,
        Ty::Tf32 => Format::TF32,
        Ty::F32 => Format::F32,
        _ => Format::F64,
    }
}

/// Bits of a number rounded to a format, clamped as asked.
pub(super) fn finish(x: f64, format: Format, how: &How) -> u64 {
    let x = if how.relu && x < 0.0 { 0.0 } else { x };
    let bits = if format == Format::F64 {
        float::canonical(x).to_bits()
    } else {
        format.narrow(x, how.rounding)
    };
    let magnitude = bits & (format.sign() - 1);
    let negative = bits & format.sign() != 0;
    let nan = x.is_nan();
    if how.sat {
        let one = (format.bias() as u64) << format.mantissa_bits;
        return if negative || nan { 0 } else { magnitude.min(one) };
    }
    if how.relu && negative && !nan {
        return 0;
    }
    if how.satfinite && !nan && magnitude > format.max {
        return bits & format.sign() | format.max;
    }
    bits
}

/// Rounds numbers that are exact or rounded to odd, and writes them.
fn rounded(to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, values: &[f64; LANES]) {
    let plain = how.rounding == Rounding::Nearest && !how.sat && !how.relu && !how.satfinite;
    match to {
        Ty::F16 if plain => lanes.write(dst, &values.map(F16::narrow_wide)),
        Ty::Bf16 if plain => lanes.write(dst, &values.map(Bf16::narrow_wide)),
        _ => {
            let (format, how) = (format(to), *how);
            let shift = if to == Ty::Tf32 { 13 } else { 0 };
            let flushes = how.ftz && to == Ty::F32;
            let bits = values.map(|x| match finish(x, format, &how) << shift {
                bits if flushes => u64::from(flush(f32::from_bits(bits as u32)).to_bits()),
                bits => bits,
            });
            lanes.write(dst, &bits);
        }
    }
}

fn between_floats(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let mut values = floats(from, how.ftz, lanes, src);
    let mut how = *how;
    if how.integral {
        values = values.map(|x| integral(x, how.rounding));
        how.rounding = Rounding::Nearest;
    }
    if to == Ty::F32 && how.rounding == Rounding::Nearest {
        let (flushes, sat) = (how.ftz, how.sat);
        lanes.write(dst, &values.map(|x| float::finish(x as f32, flushes, sat)));
    } else {
        rounded(to, &how, lanes, dst, &values);
    }
}
