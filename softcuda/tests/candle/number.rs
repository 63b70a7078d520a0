//! Numbers of candle's types, between the bytes that kernels see and what CPU results are computed in.

use half::{bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    U8,
    U32,
    I16,
    I32,
    I64,
    F8,
    Bf16,
    F16,
    F32,
    F64,
}

use Dtype::{Bf16, F8, F16, F32, F64, I16, I32, I64, U8, U32};

/// An integer of any width, or a float.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    Int(i64),
    Float(f64),
}

use Value::{Float, Int};

/// How near a result must come.
#[derive(Debug, Clone, Copy)]
pub enum Tolerance {
    /// The exact result, rounded once: the same bits (any NaN for a NaN).
    Exact,
    /// Distance from the exact result: so many units in its last place, or so much.
    Near { ulps: f64, absolute: f64 },
}

impl Tolerance {
    pub fn ulps(ulps: f64) -> Self {
        Self::Near { ulps, absolute: 0.0 }
    }
}

impl Value {
    pub fn float(self) -> f64 {
        match self {
            Int(value) => value as f64,
            Float(value) => value,
        }
    }

    pub fn int(self) -> i64 {
        match self {
            Int(value) => value,
            Float(value) => panic!("{value} is no integer"),
        }
    }
}

impl Dtype {
    /// As in candle's kernel names.
    pub fn name(self) -> &'static str {
        match self {
            U8 => "u8",
            U32 => "u32",
            I16 => "i16",
            I32 => "i32",
            I64 => "i64",
            F8 => "f8_e4m3",
            Bf16 => "bf16",
            F16 => "f16",
            F32 => "f32",
            F64 => "f64",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            U8 | F8 => 1,
            I16 | Bf16 | F16 => 2,
            U32 | I32 | F32 => 4,
            I64 | F64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, F8 | Bf16 | F16 | F32 | F64)
    }

    /// Fraction bits, exponent of the smallest normal number, largest finite number.
    fn format(self) -> (i32, i32, f64) {
        match self {
            F8 => (3, -6, 448.0),
            Bf16 => (7, -126, bf16::MAX.to_f64()),
            F16 => (10, -14, f16::MAX.to_f64()),
            F32 => (23, -126, f32::MAX.into()),
            _ => (52, -1022, f64::MAX),
        }
    }

    /// The distance of neighbouring numbers around `x`.
    pub fn ulp(self, x: f64) -> f64 {
        let (fraction, smallest, _) = self.format();
        // Subnormal doubles have an exponent field of 0, which lies below every type's smallest.
        let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        power(exponent.max(smallest) - fraction)
    }

    /// A float to the nearest number of this type, ties to even; fp8 saturates as candle's do.
    fn nearest(self, x: f64) -> f64 {
        if self == F64 || !x.is_finite() && self != F8 {
            return x;
        }
        let (_, _, largest) = self.format();
        if self == F8 && x.abs() > largest {
            return largest.copysign(x);
        }
        let ulp = self.ulp(x);
        let rounded = (x / ulp).round_ties_even() * ulp;
        if rounded.abs() > largest { f64::INFINITY.copysign(x) } else { rounded }
    }

    /// The value as one of this type: integers wrap, floats round, and between the two as in C,
    /// saturating.
    pub fn round(self, value: Value) -> Value {
        match (self, value) {
            (U8, Int(x)) => Int((x as u8).into()),
            (U32, Int(x)) => Int((x as u32).into()),
            (I16, Int(x)) => Int((x as i16).into()),
            (I32, Int(x)) => Int((x as i32).into()),
            (I64, Int(_)) => value,
            (U8, Float(x)) => Int((x as u8).into()),
            (U32, Float(x)) => Int((x as u32).into()),
            (I16, Float(x)) => Int((x as i16).into()),
            (I32, Float(x)) => Int((x as i32).into()),
            (I64, Float(x)) => Int(x as i64),
            // A double holds not every 64-bit integer, and rounding twice is not rounding once.
            (F32, Int(x)) => Float((x as f32).into()),
            (_, Int(x)) => Float(self.nearest(x as f64)),
            (_, Float(x)) => Float(self.nearest(x)),
        }
    }

    fn encode_one(self, value: Value, into: &mut Vec<u8>) {
        let bits = match (self, self.round(value)) {
            (_, Int(x)) => x as u64,
            (F8, Float(x)) => fp8_bits(x).into(),
            (Bf16, Float(x)) => bf16::from_f64(x).to_bits().into(),
            (F16, Float(x)) => f16::from_f64(x).to_bits().into(),
            (F32, Float(x)) => (x as f32).to_bits().into(),
            (_, Float(x)) => x.to_bits(),
        };
        into.extend_from_slice(&bits.to_le_bytes()[..self.bytes()]);
    }

    pub fn encode(self, values: &[Value]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.bytes());
        values.iter().for_each(|value| self.encode_one(*value, &mut bytes));
        bytes
    }

    pub fn decode(self, bytes: &[u8]) -> Vec<Value> {
        let bits = |chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        };
        let value = |bits: u64| match self {
            U8 | U32 | I64 => Int(bits as i64),
            I16 => Int((bits as i16).into()),
            I32 => Int((bits as i32).into()),
            F8 => Float(fp8_value(bits as u8)),
            Bf16 => Float(bf16::from_bits(bits as u16).to_f64()),
            F16 => Float(f16::from_bits(bits as u16).to_f64()),
            F32 => Float(f32::from_bits(bits as u32).into()),
            F64 => Float(f64::from_bits(bits)),
        };
        bytes.chunks_exact(self.bytes()).map(|chunk| value(bits(chunk))).collect()
    }

    /// Whether a kernel's result is near enough to what it should be.
    pub fn accepts(self, got: Value, expected: Value, tolerance: Tolerance) -> bool {
        match (got, expected, tolerance) {
            (Float(got), Float(expected), Tolerance::Near { ulps, absolute }) => {
                let rounded = self.nearest(expected);
                if !got.is_finite() || !rounded.is_finite() {
                    return got == rounded || got.is_nan() && rounded.is_nan();
                }
                (got - expected).abs() <= (ulps * self.ulp(expected)).max(absolute)
            }
            _ => match (got, self.round(expected)) {
                (Int(got), Int(expected)) => got == expected,
                (Float(got), Float(expected)) => {
                    got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
                }
                _ => false,
            },
        }
    }
}

/// 2ⁿ, for every n that is a double's.
fn power(n: i32) -> f64 {
    if n < -1022 {
        f64::from_bits(1 << (n + 1074))
    } else {
        f64::from_bits(((n + 1023) as u64) << 52)
    }
}

/// e4m3: no infinities, one NaN of either sign.
fn fp8_value(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => fraction * power(-9),
        _ => (8.0 + fraction) * power(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

fn fp8_bits(x: f64) -> u8 {
    let of = |bits: u8| fp8_value(bits).to_bits() == x.to_bits();
    if x.is_nan() { 0x7f } else { (0..=255).find(|&bits| of(bits)).expect("rounded before") }
}

/// Numbers that look random and are the same every time.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() >> 33) as usize % end
    }

    /// Evenly between two bounds, as numbers of a type.
    pub fn between(&mut self, dtype: Dtype, low: f64, high: f64, n: usize) -> Vec<Value> {
        let mut one = || low + (high - low) * (self.bits() >> 11) as f64 * power(-53);
        (0..n).map(|_| dtype.round(Float(one()))).collect()
    }

    /// Any bits at all: infinities, NaNs and subnormal numbers too.
    pub fn any(&mut self, dtype: Dtype, n: usize) -> Vec<Value> {
        let bytes: Vec<u8> = (0..n * dtype.bytes()).map(|_| (self.bits() >> 40) as u8).collect();
        dtype.decode(&bytes)
    }
}
