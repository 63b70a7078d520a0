//! Conversions: integers in 128 bits, rounding by searching neighbours, 8-bit formats by searching all values.

use super::bench::{Bench, cases, check, generator, lowered};

/// Name, bits, signed, bank of the register.
const INTEGERS: [(&str, u32, bool, char); 8] = [
    ("u8", 8, false, 'h'),
    ("s8", 8, true, 'h'),
    ("u16", 16, false, 'h'),
    ("s16", 16, true, 'h'),
    ("u32", 32, false, 'r'),
    ("s32", 32, true, 'r'),
    ("u64", 64, false, 'd'),
    ("s64", 64, true, 'd'),
];

fn width(bank: char) -> u32 {
    match bank {
        'h' => 16,
        'r' => 32,
        _ => 64,
    }
}

fn value(bits: u64, width: u32, signed: bool) -> i128 {
    let bits = bits & u64::MAX >> (64 - width);
    i128::from(bits) - if signed && bits >> (width - 1) == 1 { 1 << width } else { 0 }
}

fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// A number as a register wider than its type holds it.
fn extended(x: i128, bits: u32, signed: bool, register: u32) -> u64 {
    value(x as u64, bits, signed) as u64 & u64::MAX >> (64 - register)
}

#[test]
fn between_integers() {
    let mut values = vec![0, 1, u64::MAX, 100];
    for bits in [7, 8, 15, 16, 31, 32, 63] {
        values.extend([
            1u64 << bits,
            (1 << bits) - 1,
            (1 << bits) + 1,
            (1u64 << bits).wrapping_neg(),
        ]);
    }
    let all = cases::<1>(&values, 500);
    for (from, from_bits, from_signed, source) in INTEGERS {
        for (to, bits, signed, bank) in INTEGERS {
            // A register wider than the type: the result is extended to it.
            for bank in [bank, 'r', 'd'] {
                if width(bank) < bits {
                    continue;
                }
                let text = format!("cvt.{to}.{from} %{bank}8, %{source}0;");
                check(&text, &all, |[a]| {
                    extended(value(a, from_bits, from_signed), bits, signed, width(bank))
                });
            }
            let (low, high) = range(bits, signed);
            let (from_low, from_high) = range(from_bits, from_signed);
            if low <= from_low && from_high <= high {
                continue; // nothing to saturate
            }
            let text = format!("cvt.sat.{to}.{from} %{bank}8, %{source}0;");
            check(&text, &all, |[a]| {
                let clamped = value(a, from_bits, from_signed).clamp(low, high);
                extended(clamped, bits, signed, width(bank))
            });
        }
    }
    // A source register wider than the type is cut.
    check("cvt.s32.s8 %r8, %r0;", &all, |[a]| a as u8 as i8 as u32 as u64);
    check("cvt.u64.u16 %d8, %d0;", &all, |[a]| a & 0xffff);
}

/// Numbers around every integer limit, halves, extremes.
fn numbers() -> Vec<f64> {
    let mut all = vec![0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 3.5, 1e-30, 1e30, 1e-40, f64::INFINITY];
    for bits in [7, 8, 15, 16, 31, 32, 52, 63, 64] {
        let limit = 2f64.powi(bits);
        all.extend([limit, limit - 0.5, limit - 1.0, limit - 1.5, limit + 0.5, limit + 1.0]);
    }
    all.iter().flat_map(|&x| [x, -x]).chain([f64::NAN, -f64::NAN]).collect()
}

/// An integral number rounded as the suffix says, from floor and the distance to it.
fn rounded(x: f64, mode: &str) -> f64 {
    if !x.is_finite() || x.abs() >= 2f64.powi(53) {
        return x;
    }
    let floor = (x as i64 - i64::from((x as i64 as f64) > x)) as f64;
    let up = match mode {
        "rni" => x - floor > 0.5 || x - floor == 0.5 && floor as i64 % 2 != 0,
        "rzi" => x < 0.0 && x != floor,
        "rmi" => false,
        _ => x != floor,
    };
    (if up { floor + 1.0 } else { floor }).copysign(x)
}

#[test]
fn to_integers() {
    for (from, bank) in [("f64", 'd'), ("f32", 'r'), ("f16", 'h'), ("bf16", 'h')] {
        let narrow = |x: f64| narrowed(from, x);
        let all: Vec<[u64; 1]> = numbers().into_iter().map(|x| [narrow(x)]).collect();
        for (to, bits, signed, register) in INTEGERS {
            for mode in ["rni", "rzi", "rmi", "rpi"] {
                let text = format!("cvt.{mode}.{to}.{from} %{register}8, %{bank}0;");
                check(&text, &all, |[a]| {
                    let x = rounded(widened(from, a), mode);
                    let (low, high) = range(bits, signed);
                    let result = match x {
                        _ if x.is_nan() && (from == "f64" || bits == 64) => 1 << (bits - 1),
                        _ if x.is_nan() => 0,
                        _ if x <= low as f64 => low,
                        _ if x >= high as f64 => high,
                        _ => x as i128,
                    };
                    extended(result, bits, signed, width(register))
                });
            }
        }
    }
    check("cvt.ftz.rpi.s32.f32 %r8, %r0;", &[[1], [0x8000_0001]], |_| 0);
    check("cvt.rpi.s32.f32 %r8, %r0;", &[[1]], |_| 1);
    check("cvt.rmi.s32.f32 %r8, %r0;", &[[0x8000_0001]], |_| 0xffff_ffff);
}

fn widened(ty: &str, bits: u64) -> f64 {
    use softcuda::alu::Format;
    match ty {
        "f64" => f64::from_bits(bits),
        "f32" => f32::from_bits(bits as u32).into(),
        "f16" => Format::F16.widen(bits & 0xffff),
        _ => Format::BF16.widen(bits & 0xffff),
    }
}

fn narrowed(ty: &str, x: f64) -> u64 {
    use softcuda::alu::{Format, Rounding};
    match ty {
        "f64" => x.to_bits(),
        "f32" => (x as f32).to_bits().into(),
        "f16" => Format::F16.narrow(x, Rounding::Nearest),
        _ => Format::BF16.narrow(x, Rounding::Nearest),
    }
}

#[test]
fn to_integral_numbers() {
    for (ty, bank) in [("f64", 'd'), ("f32", 'r'), ("f16", 'h'), ("bf16", 'h')] {
        let all: Vec<[u64; 1]> = numbers().into_iter().map(|x| [narrowed(ty, x)]).collect();
        for mode in ["rni", "rzi", "rmi", "rpi"] {
            check(&format!("cvt.{mode}.{ty}.{ty} %{bank}8, %{bank}0;"), &all, |[a]| {
                let x = widened(ty, a);
                match ty {
                    _ if !x.is_nan() => narrowed(ty, rounded(x, mode)),
                    "f64" => 0x7ff8 << 48,
                    "f32" => 0x7fff_ffff,
                    _ => 0x7fff,
                }
            });
        }
    }
}

/// Exact distance comparisons: an integer, and the two candidates around it.
#[test]
fn from_integers() {
    let mut next = generator(17);
    let mut all: Vec<[u64; 1]> =
        vec![[0], [1], [u64::MAX], [1 << 63], [(1 << 63) + 1], [0xffff_ffff]];
    for _ in 0..3000 {
        all.push([next() >> (next() % 64)]);
        // Near ties of f32, f16 and bf16.
        let shift = next() % 40;
        all.push([((next() % 512 + 0x0100_0001) << shift)
            .wrapping_add(next() % 3)
            .wrapping_sub(1)]);
    }
    for (from, bits, signed, source) in INTEGERS {
        for (to, bank) in [("f64", 'd'), ("f32", 'r'), ("f16", 'h'), ("bf16", 'h')] {
            let result = |mode: &str| {
                let ops =
                    lowered(&format!("cvt.{mode}.{to}.{from} %{bank}8, %{source}0;")).unwrap();
                let run = |chunk: &[[u64; 1]]| {
                    let mut bench = Bench::new();
                    bench.set(0, |n| chunk[n % chunk.len()][0]);
                    bench.execute(&ops);
                    bench.get(bank, 8)[..chunk.len()].to_vec()
                };
                all.chunks(32).flat_map(run).collect::<Vec<u64>>()
            };
            let [rn, rz, rm, rp] = ["rn", "rz", "rm", "rp"].map(result);
            for (n, &[a]) in all.iter().enumerate() {
                let x = value(a, bits, signed);
                let [near, zero, down, up] = [rn[n], rz[n], rm[n], rp[n]].map(|r| widened(to, r));
                let what = format!("{to}.{from} of {x}: {down} {near} {up}");
                // Infinity lies beyond every integer.
                let exact = |y: f64| {
                    if y.is_infinite() { y.signum() as i128 * (1 << 100) } else { y as i128 }
                };
                assert!(exact(down) <= x && x <= exact(up), "{what}");
                let adjacent = if rm[n] == rp[n] {
                    exact(down) == x
                } else {
                    // Neighbours have consecutive bits.
                    rm[n].abs_diff(rp[n]) == 1
                };
                assert!(adjacent, "{what}");
                assert_eq!(zero, if x >= 0 { down } else { up }, "{what}");
                if up.is_finite() && down.is_finite() {
                    let (below, above) = (x - exact(down), exact(up) - x);
                    let even = if rm[n] & 1 == 0 { down } else { up };
                    let nearest = if below < above {
                        down
                    } else if above < below {
                        up
                    } else {
                        even
                    };
                    assert_eq!(near, nearest, "{what}");
                }
            }
        }
    }
    check("cvt.rn.sat.f32.s32 %r8, %r0;", &[[0], [5], [0xffff_ffff]], |[a]| {
        if a == 5 { 0x3f80_0000 } else { 0 }
    });
}

#[test]
fn between_single_and_double() {
    let mut next = generator(23);
    let single = |x: f64| if x.is_nan() { 0x7fff_ffffu64 } else { (x as f32).to_bits().into() };
    let mut all: Vec<[u64; 1]> = numbers().into_iter().map(|x| [x.to_bits()]).collect();
    // Exponents of f32 and around them, subnormal numbers included.
    all.extend((0..20_000).map(|_| [next() & !(0x7ff << 52) | (860 + next() % 310) << 52]));
    check("cvt.rn.f32.f64 %r8, %d0;", &all, |[a]| single(f64::from_bits(a)));
    let directed = |mode: &str, f: fn(f64, f32) -> f32| {
        check(&format!("cvt.{mode}.f32.f64 %r8, %d0;"), &all, |[a]| {
            let x = f64::from_bits(a);
            if x.is_nan() { 0x7fff_ffff } else { f(x, x as f32).to_bits().into() }
        });
    };
    directed("rm", |x, near| if f64::from(near) > x { near.next_down() } else { near });
    directed("rp", |x, near| {
        let result = if f64::from(near) < x { near.next_up() } else { near };
        // The next number above the negative subnormal ones is −0 here.
        if result == 0.0 { 0f32.copysign(x as f32) } else { result }
    });
    check("cvt.rn.ftz.f32.f64 %r8, %d0;", &all, |[a]| {
        let x = f64::from_bits(a) as f32;
        if x.is_nan() {
            0x7fff_ffff
        } else if x.is_subnormal() {
            u64::from(x.to_bits()) & 1 << 31
        } else {
            x.to_bits().into()
        }
    });
    let all = cases::<1>(&[0, 1, 0x8000_0001, 0x7f80_0000, 0x3f80_0000, 0x7f7f_ffff], 3000);
    check("cvt.f64.f32 %d8, %r0;", &all, |[a]| {
        let x = f64::from(f32::from_bits(a as u32));
        if x.is_nan() { 0x7ff8 << 48 } else { x.to_bits() }
    });
    check(
        "cvt.ftz.f64.f32 %d8, %r0;",
        &[[1], [0x8000_0001]],
        |[a]| if a == 1 { 0 } else { 1 << 63 },
    );
    check("cvt.sat.f32.f32 %r8, %r0;", &all, |[a]| {
        let x = f32::from_bits(a as u32);
        if x > 0.0 { x.min(1.0).to_bits().into() } else { 0 }
    });
    check(
        "cvt.sat.f64.f64 %d8, %d0;",
        &[[(-2f64).to_bits()], [7f64.to_bits()], [f64::NAN.to_bits()]],
        |[a]| {
            if a == 7f64.to_bits() { 1f64.to_bits() } else { 0 }
        },
    );
}

#[test]
fn tf32_keeps_ten_bits() {
    let mut next = generator(29);
    let mut all: Vec<[u64; 1]> = (0..5000).map(|_| [next() & 0xffff_ffff]).collect();
    all.extend((0..64).map(|n| [0x3f80_0000 + n * 0x800]));
    let finite = |a: u64| f32::from_bits(a as u32).is_finite();
    let nan = 0x7fff_e000;
    let run = |mode: &str, up: fn(u64, u64) -> bool| {
        check(&format!("cvt.{mode}.tf32.f32 %r8, %r0;"), &all, |[a]| {
            let (kept, rest) = (a >> 13, a & 0x1fff);
            match () {
                () if f32::from_bits(a as u32).is_nan() => nan,
                () if !finite(a) => a,
                () => (kept + u64::from(up(kept, rest))) << 13,
            }
        });
    };
    run("rna", |_, rest| rest >= 0x1000);
    run("rn", |kept, rest| rest > 0x1000 || rest == 0x1000 && kept & 1 == 1);
    run("rz", |_, _| false);
    check("cvt.rn.relu.tf32.f32 %r8, %r0;", &[[0xbf80_0000]], |_| 0);
    check("cvt.rna.satfinite.tf32.f32 %r8, %r0;", &[[0x7f7f_ffff], [0xff80_0000]], |[a]| {
        (a & 0x8000_0000) | 0x7f7f_e000
    });
}

/// The values of an 8-bit (or smaller) format by definition; `None` for NaN.
fn small(bits: u32, exponent: u32, mantissa: u32, infinities: bool, nan: bool) -> Option<f64> {
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
        check(&format!("cvt.rn.f16x2.{name}x2 %r8, %h0;"), &every, |[a]| {
            let element = |bits: u64| match of(bits as u32 & (count - 1)) {
                Some(x) => narrowed("f16", x),
                None => 0x7fff,
            };
            element(a >> stride) << 16 | element(a)
        });
        // From two halves.
        let halves: Vec<[u64; 1]> = (0..3000).map(|_| [next() & 0xffff_ffff]).collect();
        check(&format!("cvt.rn.satfinite.{name}x2.f16x2 %{bank}8, %r0;"), &halves, |[a]| {
            let element = |bits| encode(widened("f16", bits) as f32);
            u64::from(element(a >> 16) << stride | element(a))
        });
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
    check("cvt.rn.bf16.f16 %h8, %h0;", &all, |[a, _]| narrowed("bf16", widened("f16", a)));
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
