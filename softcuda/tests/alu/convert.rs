//! Conversions of single numbers: integers in 128 bits, rounding by searching neighbours.

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

pub fn value(bits: u64, width: u32, signed: bool) -> i128 {
    let bits = bits & u64::MAX >> (64 - width);
    i128::from(bits) - if signed && bits >> (width - 1) == 1 { 1 << width } else { 0 }
}

pub fn range(bits: u32, signed: bool) -> (i128, i128) {
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
pub fn numbers() -> Vec<f64> {
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

pub fn widened(ty: &str, bits: u64) -> f64 {
    use softcuda::alu::Format;
    match ty {
        "f64" => f64::from_bits(bits),
        "f32" => f32::from_bits(bits as u32).into(),
        "f16" => Format::F16.widen(bits & 0xffff),
        _ => Format::BF16.widen(bits & 0xffff),
    }
}

pub fn narrowed(ty: &str, x: f64) -> u64 {
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
