//! Conversions of several numbers in a register: small formats by searching all their values.

use super::bench::{cases, check, generator};
use super::convert::{narrowed, numbers, range, value, widened};

/// The values of an 8-bit (or smaller) format by definition; `None` for NaN.
pub fn small(bits: u32, exponent: u32, mantissa: u32, infinities: bool, nan: bool) -> Option<f64> {
    let sign = bits >> (exponent + mantissa) & 1;
    let magnitude = bits & ((1 << (exponent + mantissa)) - 1);
    let (e, f) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
    let bias = (1 << (exponent - 1)) - 1;
    let step = 2f64.powi(e.max(1) as i32 - bias - mantissa as i32);
    let top = e == (1 << exponent) - 1;
    let value = match () {
        () if infinities && top && f == 0 => f64::INFINITY,
        () if infinities && top => return None,
        () if nan && magnitude == (1 << (exponent + mantissa)) - 1 => return None,
        () if e == 0 => f64::from(f) * step,
        () => f64::from(f + (1 << mantissa)) * step,
    };
    Some(if sign == 1 { -value } else { value })
}

#[test]
fn small_formats() {
    let mut next = generator(31);
    // Name, exponent, mantissa, infinities, NaN, distance of elements, bank of a pair.
    let formats = [
        ("e4m3", 4, 3, false, true, 8, 'h'),
        ("e5m2", 5, 2, true, true, 8, 'h'),
        ("e3m2", 3, 2, false, false, 8, 'h'),
        ("e2m3", 2, 3, false, false, 8, 'h'),
        ("e2m1", 2, 1, false, false, 4, 'h'),
    ];
    for (name, exponent, mantissa, infinities, nan, stride, bank) in formats {
        let count = 1u32 << (1 + exponent + mantissa);
        let of = |bits: u32| small(bits, exponent, mantissa, infinities, nan);
        let values: Vec<(u32, f64)> = (0..count / 2)
            .filter_map(|bits| Some((bits, of(bits)?)))
            .filter(|(_, x)| x.is_finite())
            .collect();
        let (max_bits, max) = values[values.len() - 1];
        // The nearest magnitude by search; among two, the even one.
        let encode = |x: f32| {
            let sign = if x.is_sign_negative() { count / 2 } else { 0 };
            if x.is_nan() {
                return if nan { count / 2 - 1 } else { max_bits };
            }
            let magnitude = f64::from(x.abs());
            if magnitude >= max {
                return sign | max_bits;
            }
            let distance = |&(bits, value): &(u32, f64)| ((value - magnitude).abs(), bits & 1);
            let best = values.iter().min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap());
            sign | best.unwrap().0
        };
        let mut points: Vec<f32> = numbers().into_iter().map(|x| x as f32).collect();
        for pair in values.windows(2) {
            let middle = ((pair[0].1 + pair[1].1) / 2.0) as f32;
            points.extend([
                pair[0].1 as f32,
                middle.next_down(),
                middle,
                -middle,
                middle.next_up(),
            ]);
        }
        points.extend((0..2000).map(|_| f32::from_bits(next() as u32)));
        let all: Vec<[u64; 2]> = (points.iter().zip(points.iter().rev()))
            .map(|(a, b)| [a.to_bits().into(), b.to_bits().into()])
            .collect();
        let float = |bits: u64| f32::from_bits(bits as u32);
        let text = format!("cvt.rn.satfinite.{name}x2.f32 %{bank}8, %r0, %r1;");
        check(&text, &all, |[a, b]| u64::from(encode(float(a)) << stride | encode(float(b))));
        let text = format!("cvt.rn.satfinite.relu.{name}x2.f32 %{bank}8, %r0, %r1;");
        let relu = |x: f32| if x.is_sign_negative() && !x.is_nan() { 0 } else { encode(x) };
        check(&text, &all, |[a, b]| u64::from(relu(float(a)) << stride | relu(float(b))));
        // Back: exact in f16.
        let every: Vec<[u64; 1]> =
            (0..count).map(|bits| [u64::from(bits << stride | (count - 1 - bits))]).collect();
        let wider = |suffix: &str, ty: &'static str, infinity: u64| {
            check(&format!("cvt.rn{suffix}.{ty}x2.{name}x2 %r8, %h0;"), &every, |[a]| {
                let element = |bits: u64| match of(bits as u32 & (count - 1)) {
                    Some(x) if x.is_infinite() => infinity | if x < 0.0 { 0x8000 } else { 0 },
                    Some(x) => narrowed(ty, x),
                    None => 0x7fff,
                };
                element(a >> stride) << 16 | element(a)
            });
        };
        wider("", "f16", 0x7c00);
        wider("", "bf16", 0x7f80);
        wider(".satfinite", "bf16", 0x7f7f);
        // From two halves.
        let halves: Vec<[u64; 1]> = (0..3000).map(|_| [next() & 0xffff_ffff]).collect();
        for ty in ["f16", "bf16"] {
            let text = format!("cvt.rn.satfinite.{name}x2.{ty}x2 %{bank}8, %r0;");
            check(&text, &halves, |[a]| {
                let element = |bits| encode(widened(ty, bits) as f32);
                u64::from(element(a >> 16) << stride | element(a))
            });
        }
    }
}

#[test]
fn pairs_of_halves() {
    let mut next = generator(37);
    let mut all: Vec<[u64; 2]> = numbers()
        .into_iter()
        .map(|x| [(x as f32).to_bits().into(), (-x as f32).to_bits().into()])
        .collect();
    all.extend((0..5000).map(|_| [next() & 0xffff_ffff, next() & 0xffff_ffff]));
    let float = |bits: u64| f64::from(f32::from_bits(bits as u32));
    for ty in ["f16", "bf16"] {
        let (infinity, max) = if ty == "f16" { (0x7c00, 0x7bff) } else { (0x7f80, 0x7f7f) };
        check(&format!("cvt.rn.{ty}x2.f32 %r8, %r0, %r1;"), &all, |[a, b]| {
            narrowed(ty, float(a)) << 16 | narrowed(ty, float(b))
        });
        let relu = |x: f64| if x.is_sign_negative() && !x.is_nan() { 0 } else { narrowed(ty, x) };
        check(&format!("cvt.rn.relu.{ty}x2.f32 %r8, %r0, %r1;"), &all, |[a, b]| {
            relu(float(a)) << 16 | relu(float(b))
        });
        let finite = |x: f64| match narrowed(ty, x) {
            bits if bits & 0x7fff == infinity => bits & 0x8000 | max,
            bits => bits,
        };
        check(&format!("cvt.rn.satfinite.{ty}.f32 %h8, %r0;"), &all, |[a, _]| finite(float(a)));
        check(&format!("cvt.rn.satfinite.relu.{ty}.f32 %h8, %r0;"), &all, |[a, _]| {
            let x = float(a);
            if x.is_sign_negative() && !x.is_nan() { 0 } else { finite(x) }
        });
    }
    for rounding in ["", ".rn"] {
        let text = format!("cvt{rounding}.bf16.f16 %h8, %h0;");
        check(&text, &all, |[a, _]| narrowed("bf16", widened("f16", a)));
        let text = format!("cvt{rounding}.f16.bf16 %h8, %h0;");
        check(&text, &all, |[a, _]| narrowed("f16", widened("bf16", a)));
    }
    check(
        "cvt.rn.f16.f64 %h8, %d0;",
        &[[0x3ff0_0200_0000_0001], [0x3ff0_0200_0000_0000]],
        |[a]| {
            // Just above a tie, and the tie.
            0x3c00 + (a & 1)
        },
    );
    check("cvt.rz.sat.f16.f32 %h8, %r0;", &[[0x40a0_0000], [0xc0a0_0000], [0x7fc0_0000]], |[a]| {
        if a == 0x40a0_0000 { 0x3c00 } else { 0 }
    });
}

#[test]
fn packing_with_saturation() {
    let all = cases::<3>(
        &[0, 1, 127, 128, 255, 256, 32767, 32768, 65536, 0xffff_ffff, 0x8000_0000],
        2000,
    );
    for (ty, bits, signed) in [
        ("u8", 8, false),
        ("s8", 8, true),
        ("u4", 4, false),
        ("s4", 4, true),
        ("u2", 2, false),
        ("s2", 2, true),
    ] {
        check(&format!("cvt.pack.sat.{ty}.s32.b32 %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
            let (low, high) = range(bits, signed);
            let part = |x| value(x, 32, true).clamp(low, high) as u64 & ((1 << bits) - 1);
            (c << (2 * bits) | part(a) << bits | part(b)) & 0xffff_ffff
        });
    }
    check("cvt.pack.sat.s16.s32 %r8, %r0, %r1;", &all, |[a, b, _]| {
        let part = |x| value(x, 32, true).clamp(-32768, 32767) as u64 & 0xffff;
        part(a) << 16 | part(b)
    });
}

/// Powers of two from 2⁻¹²⁷ to 2¹²⁷, found by searching all of them.
#[test]
fn scales() {
    let power = |code: u64| 2f64.powi(code as i32 - 127);
    let encode = |x: f64, up: bool, greatest: u64| match x.abs() {
        x if x.is_nan() => 255,
        x if x.is_infinite() => greatest,
        x if up => (0..=254).find(|&code| power(code) >= x).unwrap_or(greatest),
        x => (0..=254).rev().find(|&code| power(code) <= x).unwrap_or(0),
    };
    let mut next = generator(41);
    let mut points: Vec<u64> = numbers().iter().map(|&x| (x as f32).to_bits().into()).collect();
    let around = |code| {
        let x = power(code) as f32;
        [x.next_down(), x, -x, x.next_up()].map(|x| u64::from(x.to_bits()))
    };
    points.extend((0..=254).flat_map(around));
    points.extend((0..2000).map(|_| next() & 0xffff_ffff));
    let all: Vec<[u64; 2]> =
        points.iter().zip(points.iter().rev()).map(|(a, b)| [*a, *b]).collect();
    for (suffix, up, greatest) in [
        ("rz", false, 255),
        ("rz.satfinite", false, 254),
        ("rp", true, 255),
        ("rp.satfinite", true, 254),
    ] {
        let one = |x: f64| encode(x, up, greatest);
        check(&format!("cvt.{suffix}.ue8m0x2.f32 %h8, %r0, %r1;"), &all, |[a, b]| {
            one(widened("f32", a)) << 8 | one(widened("f32", b))
        });
        check(&format!("cvt.{suffix}.ue8m0x2.bf16x2 %h8, %r0;"), &all, |[a, _]| {
            one(widened("bf16", a >> 16)) << 8 | one(widened("bf16", a))
        });
    }
    let every: Vec<[u64; 1]> = (0..256).map(|code| [code << 8 | (255 - code)]).collect();
    check("cvt.rn.bf16x2.ue8m0x2 %r8, %h0;", &every, |[a]| {
        let element = |code| if code == 255 { 0x7fff } else { narrowed("bf16", power(code)) };
        element(a >> 8) << 16 | element(a & 255)
    });
}
