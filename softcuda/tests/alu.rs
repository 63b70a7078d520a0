//! One instruction at a time on all lanes, against independent arithmetic.

mod alu_bench;

use alu_bench::Bench;

#[test]
fn smoke() {
    let mut bench = Bench::new();
    bench.set32(0, |n| n as u32).set32(1, |_| 7);
    bench.run("add.s32 %r2, %r0, %r1;");
    assert_eq!(bench.get32(2)[5], 12);
    bench.run("mad.lo.s32 %r2, %r0, %r1, -3;");
    assert_eq!(bench.get32(2)[5], 32);
    bench.set32(0, |_| 1.5f32.to_bits()).set32(1, |_| 2f32.to_bits());
    bench.run("fma.rn.f32 %r2, %r0, %r1, 0f3F800000;");
    assert_eq!(f32::from_bits(bench.get32(2)[5]), 4.0);
    bench.run("cvt.rni.s32.f32 %r2, %r0;");
    assert_eq!(bench.get32(2)[5], 2);
    bench.run("{.reg .pred q; setp.gt.f32 q, %r0, %r1; selp.b32 %r2, 1, 0, q;}");
    assert_eq!(bench.get32(2)[5], 0);
}
