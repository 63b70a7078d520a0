//! `cvt.rs`: rounding by supplied bits, against its definition in exact steps of the format.

use super::bench::{check, generator};
use super::convert::{narrowed, numbers, widened};
use super::packed::small;

/// A finite number rounded away from zero if its random bits, added to as many of those below the format's last
/// place, carry, else towards zero: a multiple of the last place, which has `mantissa` bits above it.
fn rounded(x: f64, least: i32, mantissa: i32, random: u64, bits: i32) -> f64 {
    let exponent = if x == 0.0 { least } else { (x.abs().to_bits() >> 52) as i32 - 1023 };
    let step = 2f64.powi(exponent.max(least) - mantissa);
    let (whole, rest) = ((x.abs() / step).floor(), (x.abs() / step).fract());
    let carries = (rest * 2f64.powi(bits)).floor() + random as f64 >= 2f64.powi(bits);
    ((whole + f64::from(u8::from(carries))) * step).copysign(x)
}

/// Single-precision numbers with all kinds of low bits, and random bits that often nearly carry.
fn singles<const N: usize>(seed: u64) -> Vec<[u64; N]> {
    let mut next = generator(seed);
    let special: Vec<u64> = numbers().iter().map(|&x| (x as f32).to_bits().into()).collect();
    (0..8000)
        .map(|_| {
            let mut case = [0; N];
            for element in &mut case {
                *element = match next() % 4 {
                    0 => special[next() as usize % special.len()],
                    // Of magnitudes that small formats have.
                    1 | 2 => next() & 0x807f_ffff | (110 + next() % 24) << 23,
                    _ => next() & 0xffff_ffff,
                };
            }
            case[N - 1] = match next() % 4 {
                0 => [0, 0xffff_ffff, 0x8000_8000, 0x7fff_7fff, 0x0001_0001][next() as usize % 5],
                _ => next() & 0xffff_ffff,
            };
            case
        })
        .collect()
}

#[test]
fn pairs() {
    let all = singles::<3>(43);
    for (ty, least, mantissa, bits, infinity) in
        [("f16", -14, 10, 13, 0x7c00), ("bf16", -126, 7, 16, 0x7f80)]
    {
        // Half a place above what fits, rounding to nearest gives infinity too.
        let element = |x: u64, random: u64, relu: bool, greatest: u64| {
            let x = widened("f32", x);
            match narrowed(ty, rounded(x, least, mantissa, random & ((1 << bits) - 1), bits)) {
                _ if x.is_nan() => 0x7fff,
                _ if relu && x.is_sign_negative() => 0,
                bits if bits & 0x7fff == infinity => bits & 0x8000 | greatest,
                bits => bits,
            }
        };
        for (suffix, relu, greatest) in [
            ("", false, infinity),
            (".relu", true, infinity),
            (".satfinite", false, infinity - 1),
            (".relu.satfinite", true, infinity - 1),
        ] {
            let text = format!("cvt.rs{suffix}.{ty}x2.f32 %r8, %r0, %r1, %r2;");
            check(&text, &all, |[a, b, random]| {
                let element = |x, random| element(x, random, relu, greatest);
                element(a, random >> 16) << 16 | element(b, random)
            });
        }
    }
}

#[test]
fn fours() {
    let all = singles::<5>(47);
    let formats = [
        ("e4m3", 4, 3, false, true, 8),
        ("e5m2", 5, 2, true, true, 8),
        ("e3m2", 3, 2, false, false, 8),
        ("e2m3", 2, 3, false, false, 8),
        ("e2m1", 2, 1, false, false, 4),
    ];
    for (name, exponent, mantissa, infinities, nan, stride) in formats {
        let count = 1u32 << (1 + exponent + mantissa);
        let values: Vec<f64> = (0..count / 2)
            .filter_map(|bits| small(bits, exponent, mantissa, infinities, nan))
            .filter(|x| x.is_finite())
            .collect();
        let greatest = values.len() as u64 - 1;
        let element = |x: u64, random: u16, relu: bool| {
            let x = widened("f32", x);
            let sign = if x.is_sign_negative() { u64::from(count / 2) } else { 0 };
            let least = 2 - (1 << (exponent - 1));
            match rounded(x, least, mantissa as i32, random.into(), 16).abs() {
                _ if x.is_nan() && nan => u64::from(count / 2 - 1),
                _ if x.is_nan() => greatest,
                _ if relu && sign != 0 => 0,
                magnitude if magnitude >= values[values.len() - 1] => sign | greatest,
                magnitude => {
                    let found = values.iter().position(|&value| value == magnitude);
                    sign | found.expect("a value of the format") as u64
                }
            }
        };
        for (suffix, relu) in [("", false), (".relu", true)] {
            let bank = if stride == 4 { 'h' } else { 'r' };
            let text = format!(
                "cvt.rs{suffix}.satfinite.{name}x4.f32 %{bank}8, {{%r0, %r1, %r2, %r3}}, %r4;"
            );
            check(&text, &all, |[a, b, e, f, random]| {
                let bytes = (random as u32).to_be_bytes();
                let [upper, lower] = match stride {
                    8 => [[bytes[0], bytes[1]], [bytes[2], bytes[3]]],
                    _ => [[bytes[0], bytes[2]], [bytes[1], bytes[3]]],
                };
                let [upper, lower] = [upper, lower].map(u16::from_be_bytes);
                let elements = [
                    element(a, upper.reverse_bits(), relu),
                    element(b, upper, relu),
                    element(e, lower.reverse_bits(), relu),
                    element(f, lower, relu),
                ];
                elements.into_iter().fold(0, |all, element| all << stride | element)
            });
        }
    }
}
