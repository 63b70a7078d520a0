//! The 16-bit formats to and from f32, to nearest, without branches so that the loops over lanes vectorise.
//! [`Format`](super::round::Format) does the same for every format and direction, one lane at a time.

/// A 16-bit format.
pub trait Short: Copy {
    /// Bits of the exponent.
    const EXPONENT: u32;
    const ONE: u32;

    /// The value of the low 16 bits.
    fn widen(bits: u32) -> f32;

    /// Rounds an f32 that is exact or rounded to odd.
    fn narrow(x: f32) -> u32;

    /// Rounds an f64 that is exact or rounded to odd.
    fn narrow_wide(x: f64) -> u32 {
        Self::narrow(odd(x))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct F16;

#[derive(Debug, Clone, Copy)]
pub struct Bf16;

impl Short for F16 {
    const EXPONENT: u32 = 0x7c00;
    const ONE: u32 = 0x3c00;

    fn widen(bits: u32) -> f32 {
        let magnitude = (bits & 0x7fff) << 13;
        // Moves the exponent's bias, and normalises subnormals.
        let finite = (f32::from_bits(magnitude) * 2f32.powi(112)).to_bits();
        let special = magnitude | 0x7f80_0000;
        let magnitude = if magnitude >= Self::EXPONENT << 13 { special } else { finite };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }

    fn narrow(x: f32) -> u32 {
        const LEAST_NORMAL: u32 = (127 - 14) << 23;
        let (bits, magnitude) = (x.to_bits(), x.abs().to_bits());
        let even = magnitude >> 13 & 1;
        let normal = magnitude.wrapping_add(0xfff + even).wrapping_sub(112 << 23) >> 13;
        // The last place of 0.5 is that of the subnormals: adding it rounds.
        let subnormal = (x.abs() + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let finite = if magnitude < LEAST_NORMAL { subnormal } else { normal.min(0x7c00) };
        if magnitude > 0x7f80_0000 { 0x7fff } else { finite | (bits >> 16 & 0x8000) }
    }
}

impl Short for Bf16 {
    const EXPONENT: u32 = 0x7f80;
    const ONE: u32 = 0x3f80;

    fn widen(bits: u32) -> f32 {
        f32::from_bits(bits << 16)
    }

    fn narrow(x: f32) -> u32 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        if x.is_nan() { 0x7fff } else { rounded }
    }
}

/// Rounds an f64 to f32 to odd.
fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    let (found, wanted) = (f64::from(nearest).abs(), x.abs());
    // Towards zero, and the lowest bit set if anything was lost. A NaN differs from nothing.
    let towards_zero = nearest.to_bits().wrapping_sub(u32::from(found > wanted));
    f32::from_bits(towards_zero | u32::from((found > wanted) | (found < wanted)))
}
