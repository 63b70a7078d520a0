//! Forms that PTX does not have, or that are not known here, are refused when lowered.

use super::bench::lowered;

#[test]
fn unknown_forms_are_refused() {
    let forms = [
        "add.sat.u32 %r8, %r0, %r1;",
        "add.s8 %r8, %r0, %r1;",
        "add.rn.s32 %r8, %r0, %r1;",
        "add.s32 %r8, %r0;",
        "add.s32 %r8, %r0, %r1, %r2;",
        "add.s32 5, %r0, %r1;",
        "add.f32 %r8, %r0, [%r1];",
        "add.ftz.f64 %d8, %d0, %d1;",
        "add.rz.f16 %h8, %h0, %h1;",
        "add.sat.bf16 %h8, %h0, %h1;",
        "add.rna.f32 %r8, %r0, %r1;",
        "add.ftz.f32.f16 %r8, %h0, %r1;",
        "mul.f32.f16 %r8, %h0, %r1;",
        "div.full.f64 %d8, %d0, %d1;",
        "min.abs.f32 %r8, %r0, %r1;",
        "cvt.sat.s32.s8 %r8, %h0;",
        "cvt.rn.f32.f32 %r8, %r0;",
        "cvt.rn.sat.bf16.f32 %h8, %r0;",
        "slct.ftz.b32.s32 %r8, %r0, %r1, %r2;",
        "setp.eq.f16 %p8|%p9, %h0, %h1;",
        "mul.s32 %r8, %r0, %r1;",
        "mul.wide.s64 %d8, %d0, %d1;",
        "mad.f32 %r8, %r0, %r1, %r2;",
        "fma.f32 %r8, %r0, %r1, %r2;",
        "fma.rn.relu.f32 %r8, %r0, %r1, %r2;",
        "fma.rn.sat.relu.f16 %h8, %h0, %h1, %h2;",
        "abs.u32 %r8, %r0;",
        "div.f32 %r8, %r0, %r1;",
        "sqrt.f32 %r8, %r0;",
        "rsqrt.rn.f32 %r8, %r0;",
        "sin.f32 %r8, %r0;",
        "tanh.approx.ftz.f32 %r8, %r0;",
        "rcp.approx.f64 %d8, %d0;",
        "ex2.approx.bf16 %h8, %h0;",
        "min.NaN.s32 %r8, %r0, %r1;",
        "min.NaN.f64 %d8, %d0, %d1;",
        "min.xorsign.f16 %h8, %h0, %h1;",
        "and.u32 %r8, %r0, %r1;",
        "shl.s32 %r8, %r0, %r1;",
        "shf.l.b32 %r8, %r0, %r1, %r2;",
        "lop3.b32 %r8, %r0, %r1, %r2, %r3;",
        "lop3.b32 %r8, %r0, %r1, %r2, 1, %p0;",
        "prmt.b32.x4 %r8, %r0, %r1, %r2;",
        "bfe.b32 %r8, %r0, %r1, %r2;",
        "popc.u32 %r8, %r0;",
        "dp4a.s32.f32 %r8, %r0, %r1, %r2;",
        "setp.lo.s32 %p8, %r0, %r1;",
        "setp.lt.b32 %p8, %r0, %r1;",
        "setp.equ.u32 %p8, %r0, %r1;",
        "setp.eq.ftz.f64 %p8, %d0, %d1;",
        "setp.eq.and.s32 %p8, %r0, %r1;",
        "setp.eq.s32 %p8, %r0, %r1, %p1;",
        "setp.lt.f16x2 %p8, %r0, %r1;",
        "set.eq.f64.f32 %d8, %r0, %r1;",
        "selp.b32 %r8, %r0, %r1, %r2;",
        "testp.zero.f32 %p8, %r0;",
        "cvt.s32.f32 %r8, %r0;",
        "cvt.rn.s32.f32 %r8, %r0;",
        "cvt.f32.s32 %r8, %r0;",
        "cvt.f32.f64 %r8, %d0;",
        "cvt.rni.f32.f64 %r8, %d0;",
        "cvt.ftz.f64.s32 %d8, %r0;",
        "cvt.rn.relu.f32.f64 %r8, %d0;",
        "cvt.rna.f16.f32 %h8, %r0;",
        "cvt.rn.e4m3x2.f32 %h8, %r0, %r1;",
        "cvt.rs.f16x2.f32 %r8, %r0, %r1, %r2;",
        "cvt.rn.satfinite.ue8m0x2.f32 %h8, %r0, %r1;",
        "cvt.pack.s16.s32 %r8, %r0, %r1;",
        "mov.b32 %d8, {%r0, %r1};",
        "mov.b32 %r8, {%h0, %h1, %h2};",
        "mov.b128 %q0, 5;",
        "mov.e4m3 %r8, %r0;",
        "mov.b32 %r8, nothing;",
        "addc.f32 %r8, %r0, %r1;",
        "frobnicate.b32 %r8, %r0;",
    ];
    for form in forms {
        let found = lowered(form);
        assert!(found.is_err(), "{form} gave {found:?}");
    }
}

/// The error names the instruction and its line.
#[test]
fn refusals_name_the_form_and_its_line() {
    let error = lowered("add.s32 %r8, %r0, %r1;\nadd.sat.u64 %d8, %d0, %d1;").unwrap_err();
    assert!(error.contains("add.sat.u64") && error.contains("line"), "{error}");
}
