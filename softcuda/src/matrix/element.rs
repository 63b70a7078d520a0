//! Element types of matrix operands, packed in 32-bit words, and what they are as numbers.

use crate::ir::LANES;

/// A type of the multiplied matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
    B1,
    F64,
}

impl Element {
    pub fn parse(part: &str) -> Option<Element> {
        Some(match part {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "tf32" => Element::Tf32,
            "e4m3" => Element::E4m3,
            "e5m2" => Element::E5m2,
            "s8" => Element::S8,
            "u8" => Element::U8,
            "s4" => Element::S4,
            "u4" => Element::U4,
            "b1" => Element::B1,
            "f64" => Element::F64,
            _ => return None,
        })
    }

    pub fn bits(self) -> u32 {
        match self {
            Element::F64 => 64,
            Element::Tf32 => 32,
            Element::F16 | Element::Bf16 => 16,
            Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 8,
            Element::S4 | Element::U4 => 4,
            Element::B1 => 1,
        }
    }

    /// Elements in a 32-bit word (an `f64` fills its own, wider register).
    pub fn per_word(self) -> usize {
        (32 / self.bits()).max(1) as usize
    }

    pub fn integer(self) -> bool {
        matches!(self, Element::S8 | Element::U8 | Element::S4 | Element::U4)
    }

    pub fn fp8(self) -> bool {
        matches!(self, Element::E4m3 | Element::E5m2)
    }

    /// Element `j` of every word. All these types are subsets of `f32`.
    #[inline(always)]
    pub fn decode(self, words: &[u32; LANES], j: usize) -> [f32; LANES] {
        let shift = j as u32 * self.bits();
        match self {
            Element::F16 => each(words, |word| from_f16(word >> shift & 0xffff)),
            Element::Bf16 => each(words, |word| f32::from_bits(word >> shift << 16)),
            // The low bits of a register that holds a tf32 do not count.
            Element::Tf32 => each(words, |word| f32::from_bits(word & !0x1fff)),
            Element::E4m3 => each(words, |word| E4M3[(word >> shift & 0xff) as usize]),
            Element::E5m2 => each(words, |word| from_f16((word >> shift & 0xff) << 8)),
            Element::S8 => each(words, |word| f32::from((word >> shift) as i8)),
            Element::U8 => each(words, |word| f32::from((word >> shift) as u8)),
            Element::S4 => each(words, |word| ((word << (28 - shift)) as i32 >> 28) as f32),
            Element::U4 => each(words, |word| (word >> shift & 15) as f32),
            Element::B1 | Element::F64 => unreachable!("not multiplied as f32"),
        }
    }
}

/// Applies a function lane by lane; a loop over a zeroed array is what LLVM vectorises.
#[inline(always)]
pub fn each<T: Copy, U: Copy + Default>(values: &[T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut results = [U::default(); LANES];
    for lane in 0..LANES {
        results[lane] = f(values[lane]);
    }
    results
}

/// The number in the low 16 bits, all other bits being zero.
#[inline]
pub fn from_f16(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent's bias differs by 112; a subnormal becomes normal by the same product.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x8000) << 16)
}

/// Rounded to nearest even; every NaN becomes the canonical one.
#[inline]
pub fn to_f16(value: f32) -> u32 {
    let bits = value.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    // Adding 0.5 leaves the subnormal, rounded, in the low bits of the sum.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let small = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let finite = if magnitude < 0x477f_f000 { small } else { 0x7c00 };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | finite }
}

static E4M3: [f32; 256] = e4m3_table();

/// Bias 7, no infinities, all ones is NaN.
const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut bits = 0u32;
    while bits < 256 {
        let (exponent, fraction) = (bits >> 3 & 15, bits & 7);
        let magnitude = if bits & 0x7f == 0x7f {
            f32::NAN
        } else if exponent == 0 {
            fraction as f32 / 512.0
        } else {
            f32::from_bits((exponent + 120) << 23 | fraction << 20)
        };
        table[bits as usize] = if bits >= 128 { -magnitude } else { magnitude };
        bits += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the bits of a small binary float mean, by the definition.
    fn value(bits: u32, exponent_bits: u32, fraction_bits: u32) -> f64 {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let exponent = (bits >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
        let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let sign = if bits >> (exponent_bits + fraction_bits) & 1 == 1 { -1.0 } else { 1.0 };
        match exponent {
            0 => sign * fraction * 2f64.powi(1 - bias),
            _ => sign * (1.0 + fraction) * 2f64.powi(exponent - bias),
        }
    }

    #[test]
    fn small_floats_mean_what_their_bits_say() {
        for bits in 0..0x1_0000u32 {
            let decoded = from_f16(bits);
            match bits & 0x7fff {
                0x7c00 => assert!(decoded.is_infinite()),
                magnitude if magnitude > 0x7c00 => assert!(decoded.is_nan()),
                _ => {
                    assert_eq!(f64::from(decoded).to_bits(), value(bits, 5, 10).to_bits());
                    assert_eq!(to_f16(decoded), bits);
                }
            }
        }
        for bits in 0..256u32 {
            let decoded = Element::E4m3.decode(&[bits << 8; LANES], 1)[0];
            match bits & 0x7f {
                0x7f => assert!(decoded.is_nan()),
                _ => assert_eq!(f64::from(decoded), value(bits, 4, 3)),
            }
        }
        let words = [0x8f7e_fe03; LANES];
        let all = |element: Element| -> Vec<f32> {
            (0..element.per_word()).map(|j| element.decode(&words, j)[5]).collect()
        };
        assert_eq!(all(Element::S8), [3.0, -2.0, 126.0, -113.0]);
        assert_eq!(all(Element::U8), [3.0, 254.0, 126.0, 143.0]);
        assert_eq!(all(Element::S4), [3.0, 0.0, -2.0, -1.0, -2.0, 7.0, -1.0, -8.0]);
        assert_eq!(all(Element::U4), [3.0, 0.0, 14.0, 15.0, 14.0, 7.0, 15.0, 8.0]);
        for bits in 0..0x7c {
            let decoded = Element::E5m2.decode(&[bits << 24; LANES], 3)[0];
            assert_eq!(f64::from(decoded), value(bits, 5, 2));
        }
    }

    #[test]
    fn rounding_to_f16_goes_to_the_nearest_even() {
        for bits in 0..0x7c00u32 {
            let (low, high) = (from_f16(bits), value(bits + 1, 5, 10) as f32);
            let middle = (low + high) / 2.0;
            let even = bits + (bits & 1);
            assert_eq!(to_f16(middle), even, "{bits:#x}");
            assert_eq!(to_f16(-middle), even | 0x8000);
            let next = |by: i32| f32::from_bits((middle.to_bits() as i32 + by) as u32);
            assert_eq!((to_f16(next(-1)), to_f16(next(1))), (bits, bits + 1));
        }
        assert_eq!(to_f16(f32::NAN), 0x7fff);
        assert_eq!(to_f16(f32::NEG_INFINITY), 0xfc00);
        assert_eq!(to_f16(1e-30), 0);
    }
}
