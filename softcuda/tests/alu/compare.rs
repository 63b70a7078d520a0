//! Comparisons and selections against partial orders.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use super::bench::{cases, check};

/// Does a test hold for an outcome (`None`: unordered)?
fn holds(test: &str, outcome: Option<Ordering>) -> bool {
    match (test, outcome) {
        ("num", outcome) => outcome.is_some(),
        ("nan", outcome) => outcome.is_none(),
        (test, None) => test.len() == 3,
        (test, Some(outcome)) => match &test[..2] {
            "eq" => outcome == Equal,
            "ne" => outcome != Equal,
            "lt" | "lo" => outcome == Less,
            "le" | "ls" => outcome != Greater,
            "gt" | "hi" => outcome == Greater,
            _ => outcome != Less,
        },
    }
}

const SIGNED: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
const UNSIGNED: [&str; 10] = ["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"];
const FLOATS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

fn order(ty: &str, a: u64, b: u64) -> Option<Ordering> {
    use softcuda::alu::Format;
    match ty {
        "u16" | "b16" => (a as u16).partial_cmp(&(b as u16)),
        "s16" => (a as i16).partial_cmp(&(b as i16)),
        "u32" | "b32" => (a as u32).partial_cmp(&(b as u32)),
        "s32" => (a as i32).partial_cmp(&(b as i32)),
        "u64" | "b64" => a.partial_cmp(&b),
        "s64" => (a as i64).partial_cmp(&(b as i64)),
        "f32" => f32::from_bits(a as u32).partial_cmp(&f32::from_bits(b as u32)),
        "f64" => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        "f16" => Format::F16.widen(a & 0xffff).partial_cmp(&Format::F16.widen(b & 0xffff)),
        _ => Format::BF16.widen(a & 0xffff).partial_cmp(&Format::BF16.widen(b & 0xffff)),
    }
}

/// Type, bank, tests.
fn types() -> Vec<(&'static str, char, &'static [&'static str])> {
    vec![
        ("b16", 'h', &SIGNED[..2]),
        ("b32", 'r', &SIGNED[..2]),
        ("b64", 'd', &SIGNED[..2]),
        ("u16", 'h', &UNSIGNED),
        ("u32", 'r', &UNSIGNED),
        ("u64", 'd', &UNSIGNED),
        ("s16", 'h', &SIGNED),
        ("s32", 'r', &SIGNED),
        ("s64", 'd', &SIGNED),
        ("f16", 'h', &FLOATS),
        ("bf16", 'h', &FLOATS),
        ("f32", 'r', &FLOATS),
        ("f64", 'd', &FLOATS),
    ]
}

const VALUES: [u64; 16] = [
    0,
    1,
    u64::MAX,
    0x8000,
    0x7fff,
    0x7c00,
    0xfc00,
    0x7f80,
    0x3f80_0000,
    0xbf80_0000,
    0x8000_0000,
    0x7fc0_0000,
    0x7f80_0000,
    1 << 63,
    0x7ff0 << 48,
    0x3ff0 << 48,
];

#[test]
fn setp_and_set() {
    let all = cases::<3>(&VALUES, 500);
    for (ty, bank, tests) in types() {
        for test in tests {
            let of = |[a, b, _]: [u64; 3]| holds(test, order(ty, a, b));
            let (a, b) = (format!("%{bank}0"), format!("%{bank}1"));
            check(&format!("setp.{test}.{ty} %p8, {a}, {b};"), &all, |c| of(c).into());
            // The second predicate holds the opposite.
            let half = ty.ends_with("f16");
            if !half {
                check(&format!("setp.{test}.{ty} %p9|%p8, {a}, {b};"), &all, |c| (!of(c)).into());
            }
            check(&format!("set.{test}.u32.{ty} %r8, {a}, {b};"), &all, |c| {
                if of(c) { 0xffff_ffff } else { 0 }
            });
            if half {
                continue;
            }
            check(&format!("set.{test}.f32.{ty} %r8, {a}, {b};"), &all, |c| {
                if of(c) { 0x3f80_0000 } else { 0 }
            });
        }
        let of = |[a, b, _]: [u64; 3]| holds("ne", order(ty, a, b));
        let (a, b) = (format!("%{bank}0"), format!("%{bank}1"));
        type Combine = fn(bool, bool) -> bool;
        let combinations: [(&str, Combine); 3] =
            [("and", |a, b| a && b), ("or", |a, b| a || b), ("xor", |a, b| a != b)];
        for (name, combine) in combinations {
            check(&format!("setp.ne.{name}.{ty} %p8, {a}, {b}, %p2;"), &all, |c| {
                combine(of(c), c[2] & 1 == 1).into()
            });
            // Both results are combined.
            if !ty.ends_with("f16") {
                check(&format!("setp.ne.{name}.{ty} _|%p8, {a}, {b}, !%p2;"), &all, |c| {
                    combine(!of(c), c[2] & 1 == 0).into()
                });
            }
            check(&format!("set.ne.{name}.s32.{ty} %r8, {a}, {b}, %p2;"), &all, |c| {
                if combine(of(c), c[2] & 1 == 1) { 0xffff_ffff } else { 0 }
            });
        }
    }
}

#[test]
fn flushed_and_packed() {
    let all =
        cases::<2>(&[0, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x0001_8001, 0x3c00_3c00], 500);
    check("setp.eq.ftz.f32 %p8, %r0, %r1;", &all, |[a, b]| {
        let flush = |x: u64| {
            let x = f32::from_bits(x as u32);
            if x.is_subnormal() { 0.0 } else { x }
        };
        (flush(a) == flush(b)).into()
    });
    for ty in ["f16", "bf16"] {
        let low = |a, b| holds("lt", order(ty, a, b));
        check(&format!("setp.lt.{ty}x2 %p8|%p9, %r0, %r1;"), &all, |[a, b]| low(a, b).into());
        check(&format!("setp.lt.{ty}x2 %p8, %r0, %r1;"), &all, |[a, b]| low(a, b).into());
        check(&format!("setp.lt.{ty}x2 %p9|%p8, %r0, %r1;"), &all, |[a, b]| {
            low(a >> 16, b >> 16).into()
        });
        let one = if ty == "f16" { 0x3c00 } else { 0x3f80 };
        let pair = |a, b, yes: u64| {
            let part = |a, b| if low(a, b) { yes } else { 0 };
            part(a >> 16, b >> 16) << 16 | part(a, b)
        };
        check(&format!("set.lt.{ty}x2.{ty}x2 %r8, %r0, %r1;"), &all, |[a, b]| pair(a, b, one));
        check(&format!("set.lt.u32.{ty}x2 %r8, %r0, %r1;"), &all, |[a, b]| pair(a, b, 0xffff));
        check(
            &format!("set.lt.{ty}.{ty} %h8, %h0, %h1;"),
            &all,
            |[a, b]| {
                if low(a, b) { one } else { 0 }
            },
        );
        check(
            &format!("set.lt.u16.{ty} %h8, %h0, %h1;"),
            &all,
            |[a, b]| {
                if low(a, b) { 0xffff } else { 0 }
            },
        );
    }
    check("setp.eq.ftz.f16 %p8, %h0, %h1;", &all, |[a, b]| {
        let flush = |x: u64| if x & 0x7c00 == 0 { 0 } else { x & 0xffff };
        (order("f16", flush(a), flush(b)) == Some(Equal)).into()
    });
}

#[test]
fn selections() {
    let all = cases::<3>(&VALUES, 500);
    for (ty, bank, ones) in [
        ("b16", 'h', 0xffff),
        ("u16", 'h', 0xffff),
        ("s32", 'r', 0xffff_ffffu64),
        ("f32", 'r', 0xffff_ffff),
        ("b64", 'd', u64::MAX),
        ("f64", 'd', u64::MAX),
    ] {
        let (a, b) = (format!("%{bank}0"), format!("%{bank}1"));
        check(&format!("selp.{ty} %{bank}8, {a}, {b}, %p2;"), &all, |[a, b, p]| {
            ones & if p & 1 == 1 { a } else { b }
        });
        check(&format!("selp.{ty} %{bank}8, {a}, {b}, !%p2;"), &all, |[a, b, p]| {
            ones & if p & 1 == 1 { b } else { a }
        });
        check(&format!("slct.{ty}.s32 %{bank}8, {a}, {b}, %r2;"), &all, |[a, b, c]| {
            ones & if c as i32 >= 0 { a } else { b }
        });
        check(&format!("slct.{ty}.f32 %{bank}8, {a}, {b}, %r2;"), &all, |[a, b, c]| {
            // −0 counts as zero, NaN as negative.
            ones & if f32::from_bits(c as u32) >= 0.0 { a } else { b }
        });
    }
    check("slct.ftz.b32.f32 %r8, %r0, %r1, %r2;", &[[1, 2, 0x8000_0001]], |_| 1);
}

#[test]
fn classes_of_numbers() {
    type Test = fn(f64) -> bool;
    let tests: [(&str, Test); 4] = [
        ("finite", f64::is_finite),
        ("infinite", f64::is_infinite),
        ("number", |x| !x.is_nan()),
        ("notanumber", f64::is_nan),
    ];
    let all =
        cases::<1>(&[0, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x007f_ffff, 0x0080_0000], 500);
    let single = |a| f32::from_bits(a as u32);
    let doubles =
        cases::<1>(&[0, 1, 0x7ff0 << 48, 0xfff0 << 48, 0x7ff8 << 48, 1 << 52, 1 << 63], 500);
    for (name, test) in tests {
        check(&format!("testp.{name}.f32 %p8, %r0;"), &all, |[a]| test(single(a).into()).into());
        check(&format!("testp.{name}.f64 %p8, %d0;"), &doubles, |[a]| {
            test(f64::from_bits(a)).into()
        });
    }
    check("testp.normal.f32 %p8, %r0;", &all, |[a]| {
        (single(a).is_normal() || single(a) == 0.0).into()
    });
    check("testp.subnormal.f32 %p8, %r0;", &all, |[a]| single(a).is_subnormal().into());
    check("testp.subnormal.f64 %p8, %d0;", &doubles, |[a]| f64::from_bits(a).is_subnormal().into());
}
