//! Moves: copies, immediates, special registers, addresses, vectors; and what inactive lanes keep.

use super::bench::{Bench, cases, check};

fn one(text: &str, bank: char) -> u64 {
    let mut bench = Bench::new();
    bench.run(text);
    bench.get(bank, 8)[7]
}

#[test]
fn copies_and_immediates() {
    let all = cases::<1>(&[0, 1, u64::MAX, 0x8000_0000, 0x1234_5678_9abc_def0], 200);
    for ty in ["b32", "u32", "s32", "f32"] {
        check(&format!("mov.{ty} %r8, %r0;"), &all, |[a]| a & 0xffff_ffff);
    }
    for ty in ["b64", "u64", "s64", "f64"] {
        check(&format!("mov.{ty} %d8, %d0;"), &all, |[a]| a);
    }
    for ty in ["b16", "u16", "s16"] {
        check(&format!("mov.{ty} %h8, %h0;"), &all, |[a]| a & 0xffff);
    }
    check("mov.pred %p8, %p0;", &all, |[a]| a & 1);
    assert_eq!(one("mov.u32 %r8, -1;", 'r'), 0xffff_ffff);
    assert_eq!(one("mov.u16 %h8, -2;", 'h'), 0xfffe);
    assert_eq!(one("mov.f32 %r8, 0f40490FDB;", 'r'), 0x4049_0fdb);
    assert_eq!(one("mov.f32 %r8, 1.5;", 'r'), u64::from(1.5f32.to_bits()));
    assert_eq!(one("mov.f64 %d8, 0d4000000000000000;", 'd'), 2f64.to_bits());
    assert_eq!(one("mov.pred %p8, 1;", 'p'), 1);
    assert_eq!(one("mov.b64 %d8, 0xFEDCBA9876543210;", 'd'), 0xfedc_ba98_7654_3210);
}

#[test]
fn special_registers_and_addresses() {
    assert_eq!(one("mov.u32 %r8, %tid.x;", 'r'), 7);
    assert_eq!(one("mov.u32 %r8, %ctaid.z;", 'r'), 7);
    assert_eq!(one("mov.u32 %r8, %nctaid.y;", 'r'), 9);
    assert_eq!(one("mov.u32 %r8, %laneid;", 'r'), 7);
    assert_eq!(one("mov.u32 %r8, %lanemask_lt;", 'r'), 0x7f);
    assert_eq!(one("mov.u64 %d8, %clock64;", 'd'), 99);
    assert_eq!(one("mov.u32 %r8, %clock_hi;", 'r'), 0);
    assert_eq!(one("mov.u64 %d8, symbol;", 'd'), 0x0a00_1234_5678_9abc);
    assert_eq!(one("mov.u64 %d8, symbol+16;", 'd'), 0x0a00_1234_5678_9acc);
    // Where the frame begins, plus the variable's offset in it.
    assert_eq!(one("mov.u64 %d8, place+8;", 'd') - one("mov.u64 %d8, place;", 'd'), 8);
    assert!(one("mov.u32 %r8, place;", 'r') >= 256);
    // Special registers are operands of arithmetic too.
    assert_eq!(one("mad.lo.s32 %r8, %ntid.x, 2, %tid.x;", 'r'), 71);
}

#[test]
fn vectors() {
    let all = cases::<4>(&[0, 1, u64::MAX, 0x8000_0000, 0x1234_5678_9abc_def0], 500);
    let (h, r) = (|x: u64| x & 0xffff, |x: u64| x & 0xffff_ffff);
    check("mov.b32 %r8, {%h0, %h1};", &all, |[a, b, ..]| h(b) << 16 | h(a));
    check("mov.b64 %d8, {%r0, %r1};", &all, |[a, b, ..]| r(b) << 32 | r(a));
    check("mov.b64 %d8, {%h0, %h1, %h2, %h3};", &all, |[a, b, c, d]| {
        h(d) << 48 | h(c) << 32 | h(b) << 16 | h(a)
    });
    check("mov.b32 {_, %h8}, %r0;", &all, |[a, ..]| a >> 16 & 0xffff);
    check("mov.b64 {%h9, %h10, %h8, _}, %d0;", &all, |[a, ..]| a >> 32 & 0xffff);
    check("mov.b64 {%r8, %r9}, %d0;", &all, |[a, ..]| r(a));
    check("mov.b64 {%r9, %r8}, %d0;", &all, |[a, ..]| a >> 32);
    let bytes = "{.reg .b8 x, y; cvt.u8.u16 x, %h0; cvt.u8.u16 y, %h1; mov.b16 %h8, {x, y};}";
    check(bytes, &all, |[a, b, ..]| (b & 0xff) << 8 | a & 0xff);
    // 128 bits, in both directions and as a whole.
    check(
        "mov.b128 %q0, {%d0, %d1}; mov.b128 %q1, %q0; mov.b128 {%d9, %d8}, %q1;",
        &all,
        |[_, b, ..]| b,
    );
    check("mov.b128 %q0, {%r0, %r1, %r2, %r3}; mov.b128 {%d8, %d9}, %q0;", &all, |[a, b, ..]| {
        r(b) << 32 | r(a)
    });
    let mut bench = Bench::new();
    bench.set(0, |n| n as u64);
    bench.set(1, |_| 9);
    bench.run("mov.b128 %q2, {%d0, %d1};");
    assert_eq!(bench.get128(2)[5], 9 << 64 | 5);
}

#[test]
fn inactive_lanes_keep_their_values() {
    let mut bench = Bench::new();
    for index in 0..16 {
        bench.set(index, |n| 1000 + n as u64);
    }
    bench.mask = 0x0000_ff01;
    bench.run(
        "mov.b32 %r8, 5; add.s64 %d8, %d0, 1; add.f16 %h8, %h0, %h1; setp.ne.s32 %p8, 0, 0;
         cvt.u8.u32 %r9, %r1; mov.b64 {%r10, %r11}, %d1; add.cc.u32 %r12, %r0, %r0; not.pred %p9, %p9;",
    );
    for lane in 0..32 {
        let old = 1000 + lane as u64;
        let active = bench.mask >> lane & 1 == 1;
        assert_eq!(bench.get('r', 8)[lane], if active { 5 } else { old });
        assert_eq!(bench.get('d', 8)[lane], if active { old + 1 } else { old });
        assert_eq!(bench.get('p', 8)[lane], if active { 0 } else { old & 1 });
        assert_eq!(bench.get('p', 9)[lane], if active { 1 - (old & 1) } else { old & 1 });
        assert_eq!(bench.get('r', 9)[lane], if active { old & 0xff } else { old });
        assert_eq!(bench.get('r', 11)[lane], if active { 0 } else { old });
        assert_eq!(bench.get('r', 12)[lane], if active { 2 * old } else { old });
    }
}
