//! Exact numbers and their one rounding to a format, in every direction.
//!
//! A result that must be rounded once to fewer bits than f64 has is first computed in f64 rounded *to odd*:
//! an inexact result gets its lowest bit set. It then lies strictly between the same neighbours as the exact
//! result, in any format two or more bits shorter, so that rounding it again gives what rounding the exact
//! result would (Boldo and Melquiond, 2008). Directed rounding in f64 itself goes through [`Exact`].

/// Directions of rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nearest, ties to even.
    Nearest,
    /// Nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
    /// Away from zero if these bits, added to the upper 16 of those that are dropped, carry.
    Random(u16),
}

/// A binary floating-point format of at most 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub exponent_bits: u32,
    pub mantissa_bits: u32,
    /// Bits of the largest finite number.
    pub max: u64,
    /// Bits of infinity, where there is one.
    pub infinity: Option<u64>,
    /// The canonical NaN, where there is one.
    pub nan: Option<u64>,
}

impl Format {
    const fn ieee(exponent_bits: u32, mantissa_bits: u32, nan: u64) -> Self {
        let infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
        let max = infinity - 1;
        Self { exponent_bits, mantissa_bits, max, infinity: Some(infinity), nan: Some(nan) }
    }

    const fn finite(exponent_bits: u32, mantissa_bits: u32, nan: Option<u64>) -> Self {
        let all = (1 << (exponent_bits + mantissa_bits)) - 1;
        let max = if nan.is_some() { all - 1 } else { all };
        Self { exponent_bits, mantissa_bits, max, infinity: None, nan }
    }

    pub const F64: Self = Self::ieee(11, 52, 0x7ff8_0000_0000_0000);
    pub const F32: Self = Self::ieee(8, 23, 0x7fff_ffff);
    /// The upper 19 bits of f32.
    pub const TF32: Self = Self::ieee(8, 10, 0x3_ffff);
    pub const BF16: Self = Self::ieee(8, 7, 0x7fff);
    pub const F16: Self = Self::ieee(5, 10, 0x7fff);
    pub const E5M2: Self = Self::ieee(5, 2, 0x7f);
    pub const E4M3: Self = Self::finite(4, 3, Some(0x7f));
    pub const E3M2: Self = Self::finite(3, 2, None);
    pub const E2M3: Self = Self::finite(2, 3, None);
    pub const E2M1: Self = Self::finite(2, 1, None);

    pub fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// Exponent of the smallest normal number.
    fn min_exponent(self) -> i32 {
        1 - self.bias()
    }

    pub fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The value of some bits; exact, as no format holds more than f64.
    pub fn widen(self, bits: u64) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let negative = bits & self.sign() != 0;
        let value = if self.infinity.is_some_and(|infinity| magnitude >= infinity)
            || self.nan == Some(magnitude)
        {
            if self.infinity == Some(magnitude) { f64::INFINITY } else { f64::NAN }
        } else {
            let (m, e) = (self.mantissa_bits, magnitude >> self.mantissa_bits);
            let fraction = magnitude & ((1 << m) - 1);
            let whole = if e == 0 { fraction } else { fraction | 1 << m };
            whole as f64 * power_of_two(e.max(1) as i32 - self.bias() - m as i32)
        };
        if negative { -value } else { value }
    }

    /// Rounds an f64 that is exact or rounded to odd. NaN becomes the canonical one; a format without
    /// NaN gets its largest number.
    pub fn narrow(self, value: f64, rounding: Rounding) -> u64 {
        match Exact::of(value) {
            Some(Exact { negative, exponent, mantissa }) => {
                round(negative, mantissa as u64, exponent, self, rounding)
            }
            None if value.is_nan() => self.nan.unwrap_or(self.max),
            None => {
                let magnitude = if value == 0.0 { 0 } else { self.infinity.unwrap_or(self.max) };
                magnitude | if value.is_sign_negative() { self.sign() } else { 0 }
            }
        }
    }
}

/// 2 to the power of `n`, for normal numbers.
pub fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// A nonzero number, `mantissa * 2^exponent`. If it is not exact, the lowest bit of the mantissa is set
/// and its top bit too: it then stands for a number strictly between its neighbours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exact {
    pub negative: bool,
    pub exponent: i32,
    pub mantissa: u128,
}

impl Exact {
    /// `None` for zero, infinity and NaN.
    pub fn of(value: f64) -> Option<Self> {
        let bits = value.to_bits();
        let (e, fraction) = (bits >> 52 & 0x7ff, bits & ((1 << 52) - 1));
        if e == 0x7ff || bits << 1 == 0 {
            return None;
        }
        let mantissa = u128::from(if e == 0 { fraction } else { fraction | 1 << 52 });
        Some(Self { negative: bits >> 63 == 1, exponent: e.max(1) as i32 - 1075, mantissa })
    }

    pub fn round(self, format: Format, rounding: Rounding) -> u64 {
        // 64 bits hold any format's mantissa, and what rounding asks of the rest.
        let shift = 64u32.saturating_sub(self.mantissa.leading_zeros());
        let mantissa = (self.mantissa >> shift) as u64;
        let lost = u128::from(mantissa) << shift != self.mantissa;
        let exponent = self.exponent + shift as i32;
        round(self.negative, mantissa | u64::from(lost), exponent, format, rounding)
    }

    /// The same number with its top bit at bit 125: room for a carry, and for a sign.
    fn normal(self) -> Self {
        let shift = self.mantissa.leading_zeros() as i32 - 2;
        Self { exponent: self.exponent - shift, mantissa: self.mantissa << shift, ..self }
    }

    pub fn times(self, other: Self) -> Self {
        Self {
            negative: self.negative != other.negative,
            exponent: self.exponent + other.exponent,
            mantissa: self.mantissa * other.mantissa,
        }
    }

    /// The sum; `None` if it is exactly zero.
    pub fn plus(self, other: Self) -> Option<Self> {
        let (a, b) = (self.normal(), other.normal());
        let (a, b) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
        let shift = (a.exponent - b.exponent) as u32;
        let shifted = b.mantissa.checked_shr(shift).unwrap_or(0);
        let lost = shifted.checked_shl(shift).unwrap_or(0) != b.mantissa;
        let b_mantissa = shifted | u128::from(lost);
        if a.negative == b.negative {
            return Some(Self { mantissa: a.mantissa + b_mantissa, ..a });
        }
        let (larger, smaller, negative) = if a.mantissa >= b_mantissa {
            (a.mantissa, b_mantissa, a.negative)
        } else {
            (b_mantissa, a.mantissa, b.negative)
        };
        let mantissa = larger - smaller;
        (mantissa != 0).then_some(Self { negative, mantissa, ..a })
    }

    pub fn over(self, other: Self) -> Self {
        let numerator = self.mantissa << (self.mantissa.leading_zeros() - 1);
        let exponent = self.exponent - (self.mantissa.leading_zeros() as i32 - 1);
        let quotient = numerator / other.mantissa;
        let lost = quotient * other.mantissa != numerator;
        Self {
            negative: self.negative != other.negative,
            exponent: exponent - other.exponent,
            mantissa: quotient | u128::from(lost),
        }
    }

    /// The root of a positive number.
    pub fn root(self) -> Self {
        let shift = self.mantissa.leading_zeros() as i32 - 2;
        let shift = shift + ((self.exponent - shift) & 1);
        let square = self.mantissa << shift;
        let root = square.isqrt();
        let lost = root * root != square;
        // At least 63 bits; one more for what was lost.
        Self {
            negative: false,
            exponent: (self.exponent - shift) / 2 - 1,
            mantissa: root << 1 | u128::from(lost),
        }
    }
}

/// `mantissa * 2^exponent` rounded; a mantissa of 64 bits may have lost some below, its lowest bit is then set.
fn round(negative: bool, mantissa: u64, exponent: i32, format: Format, rounding: Rounding) -> u64 {
    let sign = if negative { format.sign() } else { 0 };
    let m = format.mantissa_bits as i32;
    let top = exponent + 63 - mantissa.leading_zeros() as i32;
    let base = top.max(format.min_exponent());
    // Bits of the mantissa below the format's last place.
    let dropped = base - m - exponent;
    let (kept, rest) = match dropped {
        ..=0 => (mantissa << -dropped, 0),
        1..=63 => (mantissa >> dropped, mantissa << (64 - dropped)),
        64 => (0, mantissa),
        65..=127 => (0, mantissa >> (dropped - 64) | 1),
        _ => (0, 1),
    };
    const HALF: u64 = 1 << 63;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || rest == HALF && kept & 1 == 1,
        Rounding::Away => rest >= HALF,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
        Rounding::Random(bits) => rest.checked_add(u64::from(bits) << 48).is_none(),
    };
    // A normal number's leading bit, and a carry out of the mantissa, raise the exponent by one.
    let magnitude = (((base - format.min_exponent()) as u64) << m) + kept + u64::from(up);
    if magnitude <= format.max {
        return sign | magnitude;
    }
    let to_infinity = match rounding {
        Rounding::Nearest | Rounding::Away | Rounding::Random(_) => true,
        Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
    };
    match format.infinity {
        Some(infinity) if to_infinity => sign | infinity,
        _ => sign | format.max,
    }
}

/// Makes a rounded-to-nearest result rounded to odd, given its error (exact result − `nearest`), of which
/// only the sign counts.
pub fn to_odd(nearest: f64, error: f64) -> f64 {
    let inexact = (error > 0.0) | (error < 0.0);
    // Towards zero, and the lowest bit set if anything was lost.
    let beyond = inexact & ((error > 0.0) != (nearest > 0.0));
    f64::from_bits(nearest.to_bits().wrapping_sub(u64::from(beyond)) | u64::from(inexact))
}

/// `a + b` rounded to odd; exact in range as long as nothing overflows.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    // Knuth's error term.
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    to_odd(sum, error)
}

/// `a * b + c` rounded to odd, for factors of at most 26 bits each: their product is exact.
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// An integer rounded to odd.
pub fn odd_from(value: i128) -> f64 {
    let nearest = value as f64;
    to_odd(nearest, (value - nearest as i128) as f64)
}
