//! Single and double precision: native arithmetic as the oracle of rounding to nearest, exact integers and
//! neighbouring numbers as that of the other directions.

use super::bench::{cases, check, generator};
use softcuda::alu::{Exact, Format, Rounding};

/// Zeros, ones, extremes, subnormals, infinities, NaN of either sign, and odd numbers.
fn singles() -> Vec<u64> {
    let positive = [0u32, 1, 2, 0x007f_ffff, 0x0080_0000, 0x0080_0001, 0x3f80_0000, 0x3f80_0001];
    let more = [0x3f7f_ffff, 0x4000_0000, 0x4b00_0001, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000];
    let last = [0x7f80_0001, 0x3eaa_aaab, 0x0d80_0000, 0x7149_f2ca, 0x1e3c_e508];
    let all = positive.into_iter().chain(more).chain(last);
    all.flat_map(|bits| [u64::from(bits), u64::from(bits | 1 << 31)]).collect()
}

fn doubles() -> Vec<u64> {
    let positive = [0u64, 1, (1 << 52) - 1, 1 << 52, 1.0f64.to_bits(), 1.5f64.to_bits() + 1];
    let more =
        [f64::MAX.to_bits(), f64::INFINITY.to_bits(), f64::NAN.to_bits(), 1e-160f64.to_bits()];
    let last = [1e160f64.to_bits(), 0.1f64.to_bits(), 3e-308f64.to_bits()];
    let all = positive.into_iter().chain(more).chain(last);
    all.flat_map(|bits| [bits, bits | 1 << 63]).collect()
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// Bits of a result, NaN made canonical.
fn bits(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn sat(x: f32) -> f32 {
    if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) }
}

#[test]
fn single_to_nearest() {
    let all = cases::<3>(&singles(), 20_000);
    type F = fn(f32, f32, f32) -> f32;
    let forms: [(&str, &str, F); 8] = [
        ("add", "", |a, b, _| a + b),
        ("add.rn", "", |a, b, _| a + b),
        ("sub", "", |a, b, _| a - b),
        ("mul", "", |a, b, _| a * b),
        ("mul.rn", "", |a, b, _| a * b),
        ("fma.rn", ", %r2", f32::mul_add),
        ("mad.rn", ", %r2", f32::mul_add),
        ("div.rn", "", |a, b, _| a / b),
    ];
    for (op, third, f) in forms {
        let run = |suffix: &str, oracle: &dyn Fn(f32, f32, f32) -> f32| {
            check(&format!("{op}{suffix}.f32 %r8, %r0, %r1{third};"), &all, |abc| {
                let [a, b, c] = abc.map(single);
                bits(oracle(a, b, c))
            });
        };
        run("", &f);
        run(".ftz", &|a, b, c| flush(f(flush(a), flush(b), flush(c))));
        if op != "div.rn" {
            run(".sat", &|a, b, c| sat(f(a, b, c)));
            run(".ftz.sat", &|a, b, c| sat(flush(f(flush(a), flush(b), flush(c)))));
        }
    }
    let all = cases::<1>(&singles(), 5000);
    check("rcp.rn.f32 %r8, %r0;", &all, |[a]| bits(1.0 / single(a)));
    check("sqrt.rn.f32 %r8, %r0;", &all, |[a]| bits(single(a).sqrt()));
    check("sqrt.rn.ftz.f32 %r8, %r0;", &all, |[a]| bits(flush(single(a)).sqrt()));
    // The sign alone changes, of NaN too.
    check("neg.f32 %r8, %r0;", &all, |[a]| (a ^ 1 << 31) & 0xffff_ffff);
    check("abs.f32 %r8, %r0;", &all, |[a]| a & 0x7fff_ffff);
    check("neg.ftz.f32 %r8, %r0;", &all, |[a]| u64::from((-flush(single(a))).to_bits()));
    check("copysign.f32 %r8, %r0, %r1;", &cases::<2>(&singles(), 500), |[a, b]| {
        (b & 0x7fff_ffff) | (a & 0x8000_0000)
    });
}

#[test]
fn double_to_nearest() {
    let canonical = |x: f64| if x.is_nan() { 0x7ff8 << 48 } else { x.to_bits() };
    let all = cases::<3>(&doubles(), 20_000);
    type F = fn(f64, f64, f64) -> f64;
    let forms: [(&str, &str, F); 6] = [
        ("add", "", |a, b, _| a + b),
        ("sub.rn", "", |a, b, _| a - b),
        ("mul", "", |a, b, _| a * b),
        ("fma.rn", ", %d2", f64::mul_add),
        ("mad.rn", ", %d2", f64::mul_add),
        ("div.rn", "", |a, b, _| a / b),
    ];
    for (op, third, f) in forms {
        check(&format!("{op}.f64 %d8, %d0, %d1{third};"), &all, |abc| {
            let [a, b, c] = abc.map(f64::from_bits);
            canonical(f(a, b, c))
        });
    }
    let all = cases::<1>(&doubles(), 2000);
    for flushing in ["", ".ftz"] {
        let text = format!("rcp.rn{flushing}.f64 %d8, %d0;");
        check(&text, &all, |[a]| canonical(1.0 / f64::from_bits(a)));
    }
    check("sqrt.rn.f64 %d8, %d0;", &all, |[a]| canonical(f64::from_bits(a).sqrt()));
    check("neg.f64 %d8, %d0;", &all, |[a]| a ^ 1 << 63);
    check("abs.f64 %d8, %d0;", &all, |[a]| a & !(1 << 63));
}

/// Exact numbers rounded to nearest agree with the processor, over the whole range.
#[test]
fn exact_numbers_agree_with_native_arithmetic() {
    let mut next = generator(7);
    let special = doubles();
    let mut number = move || match next() % 8 {
        0 => f64::from_bits(special[next() as usize % special.len()]),
        // Close exponents, so that sums cancel.
        1 => f64::from_bits((1020 + next() % 8) << 52 | next() >> 12 & !0 << (next() % 50)),
        2 => f64::from_bits((next() % (64 << 52)) | (next() & 1 << 63)),
        _ => f64::from_bits(next()),
    };
    let nearest = |exact: Option<Exact>| {
        exact.map(|e| f64::from_bits(e.round(Format::F64, Rounding::Nearest)))
    };
    for _ in 0..200_000 {
        let (a, b, c) = (number(), number(), number());
        let (Some(x), Some(y), Some(z)) = (Exact::of(a), Exact::of(b), Exact::of(c)) else {
            continue;
        };
        assert_eq!(nearest(Some(x.times(y))), Some(a * b), "{a:e} * {b:e}");
        assert_eq!(nearest(Some(x.over(y))), Some(a / b), "{a:e} / {b:e}");
        assert_eq!(nearest(x.plus(y)).unwrap_or(0.0), a + b, "{a:e} + {b:e}");
        let fused = nearest(x.times(y).plus(z)).unwrap_or(0.0);
        assert_eq!(fused, a.mul_add(b, c), "{a:e} * {b:e} + {c:e}");
        let root = nearest(Some(Exact { negative: false, ..x }.root()));
        assert_eq!(root, Some(a.abs().sqrt()), "root of {a:e}");
    }
}

/// Downwards and upwards enclose the exact result as neighbours, nearest is one of the two, towards zero
/// the smaller.
fn directions(op: &str, bank: char, sources: usize, values: &[u64], widen: fn(u64) -> f64) {
    let (ty, next): (&str, fn(f64) -> f64) = match bank {
        'r' => ("f32", |x| f64::from((x as f32).next_up())),
        _ => ("f64", f64::next_up),
    };
    let list = &format!(", %{bank}0, %{bank}1, %{bank}2")[..5 * sources];
    for case in cases::<3>(values, 6000) {
        let result = |mode: &str| {
            let text = format!("{op}.{mode}.{ty} %{bank}8{list};");
            widen(RESULTS.with_borrow_mut(|known| known.of(&text, bank, case)))
        };
        let (rn, rz, rm, rp) = (result("rn"), result("rz"), result("rm"), result("rp"));
        let what = format!("{op}.{ty} of {case:x?}: {rm:e} {rn:e} {rp:e}");
        if rn.is_nan() {
            assert!(rz.is_nan() && rm.is_nan() && rp.is_nan(), "{what}");
            continue;
        }
        assert!(rm <= rn && rn <= rp && (rm == rp || next(rm) == rp), "{what}");
        let towards_zero = if rn > 0.0 || rn == 0.0 && rp > 0.0 { rm } else { rp };
        assert!(rz == towards_zero, "{what}, towards zero {rz:e}");
    }
}

use std::cell::RefCell;
use std::collections::HashMap;

/// Instructions lowered once, run on one case at a time.
#[derive(Default)]
struct Known(HashMap<String, Vec<softcuda::alu::Alu>>);

thread_local! {
    static RESULTS: RefCell<Known> = RefCell::default();
}

impl Known {
    fn of(&mut self, text: &str, bank: char, case: [u64; 3]) -> u64 {
        let lowered = || super::bench::lowered(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let ops = self.0.entry(text.to_owned()).or_insert_with(lowered);
        let mut bench = super::bench::Bench::new();
        (0..3).for_each(|n| bench.set(n, |_| case[n]));
        bench.mask = 1;
        bench.execute(ops);
        bench.get(bank, 8)[0]
    }
}

#[test]
fn directed_rounding_encloses() {
    let wide = |bits| f64::from(single(bits));
    for (op, sources) in
        [("add", 2), ("sub", 2), ("mul", 2), ("fma", 3), ("div", 2), ("rcp", 1), ("sqrt", 1)]
    {
        directions(op, 'r', sources, &singles(), wide);
        directions(op, 'd', sources, &doubles(), f64::from_bits);
    }
}

/// Directed results of moderate numbers against exact integers.
#[test]
fn directed_rounding_is_exact() {
    const SCALE: i32 = 84;
    // Exponents within ±18: sums and products are multiples of 2^-84 below 2^40.
    let fixed = |x: f64| {
        Exact::of(x).map_or(0, |e| {
            let (mantissa, shift) = (e.mantissa as i128, e.exponent + SCALE);
            // Only zeros are shifted out.
            let magnitude = if shift < 0 { mantissa >> -shift } else { mantissa << shift };
            if e.negative { -magnitude } else { magnitude }
        })
    };
    let mut next = generator(3);
    let mut all = Vec::new();
    for _ in 0..20_000 {
        all.push([0; 3].map(|_: u64| {
            let bits = next();
            (bits & 0x807f_ffff) | (109 + (bits >> 32) % 36) << 23
        }));
    }
    let check_mode = |mode: &str, bound: fn(i128, i128) -> bool, outward: fn(f32) -> f32| {
        let oracle = |[a, b, c]: [u64; 3]| {
            let [a, b, c] = [a, b, c].map(|x| f64::from(single(x)));
            let exact = fixed(a * b) + fixed(c);
            // The neighbours of a guess, until the bound separates them.
            let mut result = (a * b + c) as f32;
            while !bound(fixed(f64::from(result)), exact) {
                result = outward(result);
            }
            loop {
                let inner = if outward(0.0) > 0.0 { result.next_down() } else { result.next_up() };
                if !bound(fixed(f64::from(inner)), exact) {
                    return bits(result);
                }
                result = inner;
            }
        };
        check(&format!("fma.{mode}.f32 %r8, %r0, %r1, %r2;"), &all, oracle);
    };
    check_mode("rm", |x, exact| x <= exact, f32::next_down);
    check_mode("rp", |x, exact| x >= exact, f32::next_up);
}

#[test]
fn signs_of_zero_and_overflow_by_direction() {
    let one = |x: f32| u64::from(x.to_bits());
    let (zero, minus, max) = (one(0.0), one(-0.0), one(f32::MAX));
    let cancel = [[one(1.5), one(-1.5)], [zero, minus]];
    check("add.rm.f32 %r8, %r0, %r1;", &cancel, |_| minus);
    check("add.rp.f32 %r8, %r0, %r1;", &cancel, |_| zero);
    check("add.rz.f32 %r8, %r0, %r1;", &cancel, |_| zero);
    check("sub.rm.f32 %r8, %r0, %r0;", &[[one(1.0)]], |_| minus);
    check("add.rm.f32 %r8, %r0, %r0;", &[[zero], [minus]], |[a]| a);
    check("mul.rz.f32 %r8, %r0, %r0;", &[[max]], |_| max);
    check("mul.rm.f32 %r8, %r0, %r0;", &[[max]], |_| max);
    check("mul.rp.f32 %r8, %r0, %r0;", &[[max]], |_| one(f32::INFINITY));
    check("mul.rp.f32 %r8, %r0, %r1;", &[[max, one(-2.0)]], |_| one(f32::MIN));
    check("mul.rm.f32 %r8, %r0, %r1;", &[[one(1e-30), one(1e-30)]], |_| zero);
    check("mul.rp.f32 %r8, %r0, %r1;", &[[one(1e-30), one(1e-30)]], |_| 1);
    check("div.rz.f32 %r8, %r0, %r1;", &[[one(1.0), zero]], |_| one(f32::INFINITY));
    let double = f64::to_bits;
    let cancel = [[double(0.1), double(-0.1)], [double(0.0), double(-0.0)]];
    check("add.rm.f64 %d8, %d0, %d1;", &cancel, |_| double(-0.0));
    check("add.rp.f64 %d8, %d0, %d1;", &cancel, |_| 0);
    check("fma.rm.f64 %d8, %d0, %d1, %d2;", &[[double(2.0), double(3.0), double(-6.0)]], |_| {
        double(-0.0)
    });
    check("mul.rz.f64 %d8, %d0, %d0;", &[[double(f64::MAX)]], |_| double(f64::MAX));
    check("mul.rp.f64 %d8, %d0, %d0;", &[[double(1e-200)]], |_| 1);
    check("sqrt.rm.f64 %d8, %d0;", &[[double(-0.0)], [double(4.0)]], |[a]| {
        double(if a == double(4.0) { 2.0 } else { -0.0 })
    });
}

/// `min` and `max` as the ISA spells them out.
fn select(max: bool, nan: bool, a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::NAN,
        (true, false) => {
            if nan {
                f32::NAN
            } else {
                b
            }
        }
        (false, true) => {
            if nan {
                f32::NAN
            } else {
                a
            }
        }
        // The total order puts −0 below +0.
        _ => {
            if a.total_cmp(&b).is_lt() != max {
                a
            } else {
                b
            }
        }
    }
}

#[test]
fn minimum_and_maximum() {
    let all = cases::<3>(&singles(), 3000);
    for (op, max) in [("min", false), ("max", true)] {
        for (suffix, nan) in [("", false), (".NaN", true)] {
            let run = |modifier: &str, third: &str, f: &dyn Fn(f32, f32, f32) -> f32| {
                let text = format!("{op}{modifier}.f32 %r8, %r0, %r1{third};");
                check(&text, &all, |abc| {
                    let [a, b, c] = abc.map(single);
                    bits(f(a, b, c))
                });
            };
            run(suffix, "", &|a, b, _| select(max, nan, a, b));
            run(&format!(".ftz{suffix}"), "", &|a, b, _| select(max, nan, flush(a), flush(b)));
            run(&format!("{suffix}.xorsign.abs"), "", &|a, b, _| {
                let chosen = select(max, nan, a.abs(), b.abs());
                if a.is_sign_negative() != b.is_sign_negative() { -chosen } else { chosen }
            });
            run(suffix, ", %r2", &|a, b, c| select(max, nan, select(max, nan, a, b), c));
            run(&format!("{suffix}.abs"), ", %r2", &|a, b, c| {
                select(max, nan, select(max, nan, a.abs(), b.abs()), c.abs())
            });
        }
    }
    let all = cases::<2>(&doubles(), 1000);
    check("max.f64 %d8, %d0, %d1;", &all, |[a, b]| {
        let (x, y) = (f64::from_bits(a), f64::from_bits(b));
        match (x.is_nan(), y.is_nan()) {
            (true, true) => 0x7ff8 << 48,
            (true, false) => b,
            (false, true) => a,
            _ => {
                if x.total_cmp(&y).is_gt() {
                    a
                } else {
                    b
                }
            }
        }
    });
}

#[test]
fn pairs_of_singles() {
    let all = cases::<3>(&singles(), 3000);
    let packed: Vec<[u64; 3]> = all
        .iter()
        .zip(all.iter().rev())
        .map(|(low, high)| [0, 1, 2].map(|n| (high[n] & 0xffff_ffff) << 32 | low[n] & 0xffff_ffff))
        .collect();
    type F = fn(f32, f32, f32) -> f32;
    let forms: [(&str, &str, F); 4] = [
        ("add", "", |a, b, _| a + b),
        ("sub", "", |a, b, _| a - b),
        ("mul", "", |a, b, _| a * b),
        ("fma", ", %d2", f32::mul_add),
    ];
    for (op, third, f) in forms {
        check(&format!("{op}.rn.f32x2 %d8, %d0, %d1{third};"), &packed, |abc| {
            let half = |shift: u32| {
                let [a, b, c] = abc.map(|x| single(x >> shift));
                bits(f(a, b, c))
            };
            half(32) << 32 | half(0)
        });
    }
}

/// Approximations: the documented results of special numbers, and a bound elsewhere.
#[test]
fn approximations() {
    let inf = f32::INFINITY;
    let run = |op: &str, cases: &[(f32, f32)]| {
        for &(a, expected) in cases {
            check(&format!("{op}.f32 %r8, %r0;"), &[[u64::from(a.to_bits())]], |_| bits(expected));
        }
    };
    let least = f32::from_bits(1);
    run("rcp.approx", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0), (f32::NAN, f32::NAN)]);
    run("rcp.approx.ftz", &[(least, inf), (-least, -inf), (2f32.powi(127), 0.0), (4.0, 0.25)]);
    run("sqrt.approx", &[(-0.0, -0.0), (-1.0, f32::NAN), (inf, inf), (-inf, f32::NAN), (9.0, 3.0)]);
    run("sqrt.approx.ftz", &[(least, 0.0), (-least, -0.0)]);
    run("rsqrt.approx", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, f32::NAN), (4.0, 0.5)]);
    run("sin.approx", &[(0.0, 0.0), (-0.0, -0.0), (inf, f32::NAN), (-inf, f32::NAN)]);
    run("cos.approx", &[(0.0, 1.0), (-0.0, 1.0), (inf, f32::NAN)]);
    run("lg2.approx", &[(0.0, -inf), (-0.0, -inf), (-1.0, f32::NAN), (inf, inf), (8.0, 3.0)]);
    run("lg2.approx.ftz", &[(least, -inf), (-least, -inf)]);
    run("ex2.approx", &[(-inf, 0.0), (inf, inf), (0.0, 1.0), (-149.0, least), (128.0, inf)]);
    run("ex2.approx.ftz", &[(-149.0, 0.0), (least, 1.0), (3.0, 8.0)]);
    run("tanh.approx", &[(0.0, 0.0), (-0.0, -0.0), (inf, 1.0), (-inf, -1.0), (f32::NAN, f32::NAN)]);
    let divide = |op: &str, a: f32, b: f32, expected: f32| {
        let case = [a, b].map(|x| u64::from(x.to_bits()));
        check(&format!("{op}.f32 %r8, %r0, %r1;"), &[case], |_| bits(expected));
    };
    let large = 2f32.powi(127);
    divide("div.approx", 6.0, 3.0, 2.0);
    divide("div.approx", 1e30, large, 0.0);
    divide("div.approx", -1e30, large, -0.0);
    divide("div.approx", inf, large, f32::NAN);
    divide("div.approx", 1.0, inf, 0.0);
    divide("div.full", large, large, 1.0);
    divide("div.full.ftz", least, 1.0, 0.0);
    // Two units in the last place are within every bound that is relative.
    let mut next = generator(11);
    let all: Vec<[u64; 1]> = (0..5000).map(|_| [next() & 0x3fff_ffff | 0x2000_0000]).collect();
    type F = fn(f64) -> f64;
    let functions: [(&str, F); 4] = [
        ("rcp", |x| 1.0 / x),
        ("sqrt", f64::sqrt),
        ("rsqrt", |x| 1.0 / x.sqrt()),
        ("tanh", f64::tanh),
    ];
    for (name, f) in functions {
        check(&format!("{name}.approx.f32 %r8, %r0;"), &all, |[a]| {
            bits(f(f64::from(single(a))) as f32)
        });
    }
    // The gross approximations in double precision: 20 bits, the lower 32 zero.
    for (name, f) in [("rcp", (|x| 1.0 / x) as F), ("rsqrt", |x: f64| 1.0 / x.sqrt())] {
        let ops = super::bench::lowered(&format!("{name}.approx.ftz.f64 %d8, %d0;")).unwrap();
        let mut bench = super::bench::Bench::new();
        bench.set(0, |n| (0.37 + n as f64 * 1.618).to_bits());
        bench.execute(&ops);
        for (n, result) in bench.get('d', 8).into_iter().enumerate() {
            let (exact, found) = (f(0.37 + n as f64 * 1.618), f64::from_bits(result));
            assert!(result & 0xffff_ffff == 0 && (found / exact - 1.0).abs() < 2f64.powi(-19));
        }
    }
    let double = |op: &str, a: f64, expected: f64| {
        check(&format!("{op}.f64 %d8, %d0;"), &[[a.to_bits()]], |_| expected.to_bits());
    };
    double("rcp.approx.ftz", 0.0, f64::INFINITY);
    double("rcp.approx.ftz", -1e-310, f64::NEG_INFINITY);
    double("rcp.approx.ftz", 1e308, 0.0);
    double("rsqrt.approx", 0.25, 2.0);
    double("rsqrt.approx.ftz", f64::INFINITY, 0.0);
}
