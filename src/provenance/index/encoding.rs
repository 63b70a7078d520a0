//! Sketches in fewer bits.

use half::f16;
use serde::{Deserialize, Serialize};

/// How an index keeps the numbers of a sketch. Each sketch has its own scale, so that neither
/// large nor small gradients fall out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Half precision, times a power of two. A number is off by at most 2⁻¹¹ of itself, or 2⁻²⁵
    /// of the sketch's largest where that is more.
    F16,
    /// Signed bytes, times 1/127 of the sketch's largest number. A number is off by at most 1/254
    /// of the largest.
    Int8,
}

const LANES: usize = 8;

impl Precision {
    /// Bytes per number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Appends the codes of a sketch and returns its scale; NaN, with codes of 0, for a sketch
    /// that is not finite, so that its score is none either.
    pub(super) fn encode(self, sketch: &[f32], codes: &mut Vec<u8>) -> f32 {
        let finite = sketch.iter().all(|value| value.is_finite());
        let largest = sketch.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = match self {
            // Its exponent alone: codes are below 2, and dividing by it is exact.
            Self::F16 => f32::from_bits(largest.to_bits() & 0x7f80_0000).max(f32::MIN_POSITIVE),
            Self::Int8 => (largest / 127.0).max(f32::MIN_POSITIVE),
        };
        if !finite {
            codes.resize(codes.len() + sketch.len() * self.bytes(), 0);
            return f32::NAN;
        }
        let scaled = sketch.iter().map(|value| value / scale);
        match self {
            Self::F16 => codes.extend(scaled.flat_map(|it| f16::from_f32(it).to_le_bytes())),
            // The cast saturates.
            Self::Int8 => codes.extend(scaled.map(|it| (it.round() as i8).max(-127) as u8)),
        }
        scale
    }

    /// `⟨codes, query⟩` of every row of codes, without their scales: in `f64` and in a fixed
    /// order.
    pub(super) fn products(self, rows: &[u8], query: &[f64], products: &mut [f64]) {
        let rows = rows.chunks_exact(query.len() * self.bytes()).zip(products);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match self {
                Self::F16 => rows.for_each(|(row, product)| {
                    *product = dot(row.as_chunks().0, query, half_value) * HALF_UNIT;
                }),
                Self::Int8 => rows.for_each(|(row, product)| {
                    *product =
                        dot(row.as_chunks().0, query, |[code]: [u8; 1]| f64::from(code as i8));
                }),
            },
        );
    }
}

/// What a [`half_value`] is to be multiplied with: the exponents' biases differ by 127 - 15.
const HALF_UNIT: f64 = (1_u128 << 112) as f64;

/// A finite half moved to the bits of a single, `2⁻¹¹²` of its value. Unlike a conversion by
/// library or instruction, this is vectorised wherever integers are; infinities are never stored.
#[inline(always)]
fn half_value(code: [u8; 2]) -> f64 {
    let bits = u32::from(u16::from_le_bytes(code));
    f64::from(f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13))
}

/// Eight partial sums, so that it can be vectorised.
#[inline(always)]
fn dot<const N: usize>(codes: &[[u8; N]], query: &[f64], value: impl Fn([u8; N]) -> f64) -> f64 {
    let (code_parts, code_rest) = codes.as_chunks::<LANES>();
    let (query_parts, query_rest) = query.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (codes, query) in code_parts.iter().zip(query_parts) {
        for lane in 0..LANES {
            sums[lane] += value(codes[lane]) * query[lane];
        }
    }
    let rest = code_rest.iter().zip(query_rest).map(|(&code, query)| value(code) * query);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}
