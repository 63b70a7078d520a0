//! Integer arithmetic against 128-bit integers.

use super::bench::{cases, check};

/// An integer type of PTX.
#[derive(Clone, Copy)]
struct Int {
    name: &'static str,
    bits: u32,
    signed: bool,
    bank: char,
}

const fn int(name: &'static str, bits: u32, signed: bool, bank: char) -> Int {
    Int { name, bits, signed, bank }
}

const TYPES: [Int; 6] = [
    int("u16", 16, false, 'h'),
    int("s16", 16, true, 'h'),
    int("u32", 32, false, 'r'),
    int("s32", 32, true, 'r'),
    int("u64", 64, false, 'd'),
    int("s64", 64, true, 'd'),
];

impl Int {
    fn ones(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// The number some bits stand for.
    fn value(self, bits: u64) -> i128 {
        let bits = bits & self.ones();
        let negative = self.signed && bits >> (self.bits - 1) == 1;
        i128::from(bits) - if negative { 1 << self.bits } else { 0 }
    }

    fn wrap(self, value: i128) -> u64 {
        value as u64 & self.ones()
    }

    /// Values where something may go wrong.
    fn values(self) -> Vec<u64> {
        let half = 1u64 << (self.bits - 1);
        vec![0, 1, 2, 3, 7, 100, half - 1, half, half + 1, u64::MAX, u64::MAX - 1, u64::MAX << 7]
    }

    fn binary(self, op: &str, f: impl Fn(i128, i128) -> i128) {
        let Int { name, bank, .. } = self;
        let text = format!("{op}.{name} %{bank}8, %{bank}0, %{bank}1;");
        check(&text, &cases::<2>(&self.values(), 2000), |[a, b]| {
            self.wrap(f(self.value(a), self.value(b)))
        });
    }

    fn ternary(self, op: &str, f: impl Fn(i128, i128, i128) -> i128) {
        let Int { name, bank, .. } = self;
        let text = format!("{op}.{name} %{bank}8, %{bank}0, %{bank}1, %{bank}2;");
        check(&text, &cases::<3>(&self.values(), 2000), |[a, b, c]| {
            self.wrap(f(self.value(a), self.value(b), self.value(c)))
        });
    }

    fn unary(self, op: &str, f: impl Fn(i128) -> i128) {
        let Int { name, bank, .. } = self;
        let text = format!("{op}.{name} %{bank}8, %{bank}0;");
        check(&text, &cases::<1>(&self.values(), 2000), |[a]| self.wrap(f(self.value(a))));
    }
}

/// The upper half of a product; a product of two unsigned 64-bit numbers exceeds i128.
fn high(ty: Int, a: i128, b: i128) -> i128 {
    if ty.signed {
        a.wrapping_mul(b) >> ty.bits
    } else {
        ((a as u128 * b as u128) >> ty.bits) as i128
    }
}

#[test]
fn sums_products_and_quotients() {
    for ty in TYPES {
        ty.binary("add", |a, b| a + b);
        ty.binary("sub", |a, b| a - b);
        ty.binary("mul.lo", |a, b| a.wrapping_mul(b));
        ty.binary("mul.hi", |a, b| high(ty, a, b));
        ty.ternary("mad.lo", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
        ty.ternary("mad.hi", |a, b, c| high(ty, a, b) + c);
        ty.ternary("sad", |a, b, c| c + (a - b).abs());
        ty.binary("min", i128::min);
        ty.binary("max", i128::max);
        // A division by zero gives all ones.
        ty.binary("div", |a, b| if b == 0 { -1 } else { a / b });
        ty.binary("rem", |a, b| if b == 0 { -1 } else { a % b });
        if ty.signed {
            ty.unary("abs", i128::abs);
            ty.unary("neg", |a| -a);
        }
    }
}

#[test]
fn wide_products() {
    for (narrow, wide) in [(0, 2), (1, 3), (2, 4), (3, 5)] {
        let (n, w) = (TYPES[narrow], TYPES[wide]);
        let text = format!("mul.wide.{} %{}8, %{}0, %{}1;", n.name, w.bank, n.bank, n.bank);
        check(&text, &cases::<2>(&n.values(), 2000), |[a, b]| w.wrap(n.value(a) * n.value(b)));
        let text =
            format!("mad.wide.{} %{}8, %{b}0, %{b}1, %{}2;", n.name, w.bank, w.bank, b = n.bank);
        check(&text, &cases::<3>(&n.values(), 2000), |[a, b, c]| {
            w.wrap(n.value(a) * n.value(b) + w.value(c))
        });
    }
}

#[test]
fn saturation_and_relu() {
    let s32 = TYPES[3];
    let clamp = |x: i128| x.clamp(i32::MIN.into(), i32::MAX.into());
    s32.binary("add.sat", |a, b| clamp(a + b));
    s32.binary("sub.sat", |a, b| clamp(a - b));
    s32.ternary("mad.hi.sat", |a, b, c| clamp(((a * b) >> 32) + c));
    s32.binary("min.relu", |a, b| a.min(b).max(0));
    s32.binary("max.relu", |a, b| a.max(b).max(0));
}

#[test]
fn products_of_24_bits() {
    let (u32, s32) = (TYPES[2], TYPES[3]);
    let u = |a: i128| a & 0xff_ffff;
    let s = |a: i128| u(a) - if a >> 23 & 1 == 1 { 1 << 24 } else { 0 };
    u32.binary("mul24.lo", |a, b| u(a) * u(b));
    u32.binary("mul24.hi", |a, b| (u(a) * u(b)) >> 16);
    s32.binary("mul24.lo", |a, b| s(a) * s(b));
    s32.binary("mul24.hi", |a, b| (s(a) * s(b)) >> 16);
    s32.ternary("mad24.lo", |a, b, c| s(a) * s(b) + c);
    u32.ternary("mad24.hi", |a, b, c| ((u(a) * u(b)) >> 16) + c);
    s32.ternary("mad24.hi.sat", |a, b, c| {
        (((s(a) * s(b)) >> 16) + c).clamp(i32::MIN.into(), i32::MAX.into())
    });
}

#[test]
fn packed_halves() {
    let halves = |x: u64| [x & 0xffff, x >> 16 & 0xffff];
    let s16 = TYPES[1];
    let both = |a: u64, b: u64, f: &dyn Fn(i128, i128) -> i128, signed: bool| {
        let value = |x| if signed { s16.value(x) } else { i128::from(x) };
        let [low, high] =
            [0, 1].map(|n| f(value(halves(a)[n]), value(halves(b)[n])) as u64 & 0xffff);
        high << 16 | low
    };
    let all =
        cases::<2>(&[0, 1, 0xffff, 0x8000, 0x7fff, 0x8000_8000, 0x7fff_ffff, 0xffff_0001], 3000);
    let run = |op: &str, signed, f: &dyn Fn(i128, i128) -> i128| {
        check(&format!("{op} %r8, %r0, %r1;"), &all, |[a, b]| both(a, b, f, signed));
    };
    run("add.u16x2", false, &|a, b| a + b);
    run("add.s16x2", true, &|a, b| a + b);
    run("sub.u16x2", false, &|a, b| a - b);
    run("sub.s16x2", true, &|a, b| a - b);
    run("min.u16x2", false, &|a, b| a.min(b));
    run("max.u16x2", false, &|a, b| a.max(b));
    run("min.s16x2", true, &|a, b| a.min(b));
    run("max.s16x2", true, &|a, b| a.max(b));
    run("min.relu.s16x2", true, &|a, b| a.min(b).max(0));
    run("max.relu.s16x2", true, &|a, b| a.max(b).max(0));
    check("neg.s16x2 %r8, %r0;", &all, |[a, _]| both(0, a, &|a, b| a - b, true));
}

/// A 128-bit sum, difference and product in four steps of 32 or two of 64 bits.
#[test]
fn carries() {
    let wide = |a: u64, b: u64| u128::from(b) << 64 | u128::from(a);
    let values = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, 0xffff_ffff, 0xffff_ffff_0000_0000];
    let all = cases::<4>(&values, 2000);
    let high = |x: u128| (x >> 64) as u64;
    check("add.cc.u64 %d9, %d0, %d2; addc.u64 %d8, %d1, %d3;", &all, |[a, b, c, d]| {
        high(wide(a, b).wrapping_add(wide(c, d)))
    });
    check("sub.cc.s64 %d9, %d0, %d2; subc.s64 %d8, %d1, %d3;", &all, |[a, b, c, d]| {
        high(wide(a, b).wrapping_sub(wide(c, d)))
    });
    let words = "mov.b64 {%r0, %r1}, %d0; mov.b64 {%r2, %r3}, %d1;
                 mov.b64 {%r4, %r5}, %d2; mov.b64 {%r6, %r7}, %d3;";
    let steps = |name: &str| {
        format!(
            "{words} {name}.cc.u32 %r8, %r0, %r4; {name}c.cc.u32 %r9, %r1, %r5;
             {name}c.cc.u32 %r10, %r2, %r6; {name}c.u32 %r11, %r3, %r7; mov.b64 %d8, {{%r10, %r11}};"
        )
    };
    // `check` looks for `%h8`, `%r8`, `%d8` in this order: name the result's bank alone.
    let by_words = |name: &str| steps(name).replace("%r8", "%r12");
    check(&by_words("add"), &all, |[a, b, c, d]| high(wide(a, b).wrapping_add(wide(c, d))));
    check(&by_words("sub"), &all, |[a, b, c, d]| high(wide(a, b).wrapping_sub(wide(c, d))));
    // The product of two 64-bit numbers by 32-bit words, plus a 128-bit number; upper half.
    let product = "mov.b64 {%r0, %r1}, %d0; mov.b64 {%r2, %r3}, %d1;
        mov.b64 {%r4, %r5}, %d2; mov.b64 {%r6, %r7}, %d3;
        mad.lo.cc.u32 %r4, %r0, %r2, %r4; madc.hi.cc.u32 %r5, %r0, %r2, %r5;
        madc.lo.cc.u32 %r6, %r1, %r3, %r6; madc.hi.u32 %r7, %r1, %r3, %r7;
        mad.lo.cc.u32 %r5, %r0, %r3, %r5; madc.hi.cc.u32 %r6, %r0, %r3, %r6; addc.u32 %r7, %r7, 0;
        mad.lo.cc.u32 %r5, %r1, %r2, %r5; madc.hi.cc.u32 %r6, %r1, %r2, %r6; addc.u32 %r7, %r7, 0;
        mov.b64 %d8, {%r6, %r7};";
    check(product, &all, |[a, b, c, d]| {
        high((u128::from(a) * u128::from(b)).wrapping_add(wide(c, d)))
    });
    check(
        "mad.lo.cc.s64 %d9, %d0, %d1, %d2; madc.hi.s64 %d8, %d0, %d1, %d3;",
        &all,
        |[a, b, c, d]| {
            let product = i128::from(a as i64) * i128::from(b as i64);
            high((product as u128).wrapping_add(wide(c, d)))
        },
    );
    // A chain that ends in 16 bits.
    let all = cases::<4>(&[0, 1, 0xffff_ffff, 0x8000_8000, 0x7fff_ffff, 0x1_0000], 2000);
    let carry = |a: u64, b: u64| ((a & 0xffff_ffff) + (b & 0xffff_ffff)) >> 32;
    check("add.cc.u32 %r9, %r0, %r1; addc.u16 %h8, %h2, %h3;", &all, |[a, b, c, d]| {
        c.wrapping_add(d).wrapping_add(carry(a, b)) & 0xffff
    });
    check("sub.cc.u32 %r9, %r0, %r1; subc.s16 %h8, %h2, %h3;", &all, |[a, b, c, d]| {
        let borrow = u64::from((a as u32) < b as u32);
        c.wrapping_sub(d).wrapping_sub(borrow) & 0xffff
    });
    check("add.cc.u32 %r9, %r0, %r1; madc.lo.s16 %h8, %h2, %h3, %h0;", &all, |[a, b, c, d]| {
        c.wrapping_mul(d).wrapping_add(a).wrapping_add(carry(a, b)) & 0xffff
    });
}
