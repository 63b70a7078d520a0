//! What loads, stores, atomics and instructions on addresses do, from the PTX ISA's definitions.

mod common;

use common::{Arg, Program, refused};
use softcuda::counters::{Class, Counter};

/// Runs a body with `a` holding these words and `b` being 64 words of zeros; gives both back.
fn run(block: u32, a: &[u32], body: &str) -> (Vec<u32>, Vec<u32>) {
    let program = Program::body("sm_90", body);
    let (from, to) = (program.u32s(a), program.u32s(&[0; 64]));
    let done = program.launch(1, block, &[Arg::U64(from), Arg::U64(to)]);
    done.unwrap_or_else(|report| panic!("{report}\n{body}"));
    (program.read_u32s(from, a.len()), program.read_u32s(to, 64))
}

#[test]
fn loads_extend_to_their_register() {
    let a = [0xfffe_8380, 0x1234_5678, 0x9abc_def0];
    for (ty, register, expected) in [
        ("u8", "%r1", 0x80),
        ("s8", "%r1", 0xffff_ff80),
        ("b16", "%r1", 0x8380),
        ("s16", "%r1", 0xffff_8380),
        ("u32", "%rd1", 0xfffe_8380),
        ("s32", "%rd1", 0xffff_ffff_fffe_8380),
        ("s8", "%rd1", 0xffff_ffff_ffff_ff80),
        ("f32", "%f1", 0xfffe_8380),
        ("b64", "%rd1", 0x1234_5678_fffe_8380u64),
    ] {
        let width = if register.starts_with("%rd") { "b64" } else { "b32" };
        let body =
            format!("ld.global.{ty} {register}, [%rd60];\nst.global.{width} [%rd61], {register};");
        let (_, b) = run(1, &a, &body);
        assert_eq!(u64::from(b[0]) | u64::from(b[1]) << 32, expected, "{ty} {register}");
    }
    // A 16-bit register holds 16 bits.
    let body = "ld.global.s8 %h1, [%rd60];\nmov.b32 %r1, {%h1, %h1};\nst.global.b32 [%rd61], %r1;";
    assert_eq!(run(1, &a, body).1[0], 0xff80_ff80);
}

#[test]
fn vectors_are_in_order() {
    let a: Vec<u32> = (100..108).collect();
    let quad =
        "ld.global.v4.u32 {%r1, %r2, _, %r4}, [%rd60+16];\nst.global.v2.u32 [%rd61+8], {%r1, %r4};";
    assert_eq!(run(1, &a, quad).1[..4], [0, 0, 104, 107]);
    let eight = "ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%rd60];\n\
        st.global.v8.b32 [%rd61], {%r8, %r7, %r6, %r5, %r4, %r3, %r2, %r1};";
    assert_eq!(run(1, &a, eight).1[..8], [107, 106, 105, 104, 103, 102, 101, 100]);
    let bytes = "ld.global.v4.u8 {%r1, %r2, %r3, %r4}, [%rd60];\nst.global.v4.u8 [%rd61], {%r4, %r3, %r2, %r1};";
    assert_eq!(run(1, &[0x0102_0304], bytes).1[0], 0x0403_0201);
    let halves = "ld.global.v2.b16 {%h1, %h2}, [%rd60];\nst.global.v2.b16 [%rd61], {%h2, %h1};";
    assert_eq!(run(1, &[0x0102_0304], halves).1[0], 0x0304_0102);
    let wide = ".reg .b128 %q<2>;\nld.global.b128 %q1, [%rd60];\nst.global.b128 [%rd61+16], %q1;";
    assert_eq!(run(1, &a, wide).1[..8], [0, 0, 0, 0, 100, 101, 102, 103]);
    let doubles =
        "ld.global.v2.f64 {%fd1, %fd2}, [%rd60];\nst.global.v2.f64 [%rd61], {%fd2, %fd1};";
    assert_eq!(run(1, &a, doubles).1[..4], [102, 103, 100, 101]);
}

#[test]
fn every_space_and_hint_loads_the_same() {
    let a = [0xdead_beef, 7];
    for load in [
        "ld.global.nc.u32 %r1, [%rd60];",
        "ld.global.ca.u32 %r1, [%rd60];",
        "ld.global.L1::no_allocate.L2::128B.u32 %r1, [%rd60];",
        "createpolicy.fractional.L2::evict_last.b64 %rd5, 1.0;\nld.global.nc.L1::evict_last.L2::cache_hint.u32 %r1, [%rd60], %rd5;",
        "ld.volatile.global.u32 %r1, [%rd60];",
        "ld.relaxed.gpu.global.u32 %r1, [%rd60];",
        "ld.acquire.sys.u32 %r1, [%rd60];",
        "ld.mmio.relaxed.sys.global.u32 %r1, [%rd60];",
        "ld.weak.u32 %r1, [%rd60];",
        "ldu.global.u32 %r1, [%rd60];",
        "prefetch.global.L2 [%rd60];\nprefetchu.L1 [%rd60];\nld.u32 %r1, [%rd60];",
        "applypriority.global.L2::evict_normal [%rd60], 128;\nld.u32 %r1, [%rd60];",
        ".shared .u32 s;\nld.u32 %r2, [%rd60];\nst.shared.u32 [s], %r2;\nld.shared::cta.u32 %r1, [s];",
        ".shared .u32 s;\nld.u32 %r2, [%rd60];\nst.shared.u32 [s], %r2;\ncvta.shared.u64 %rd2, s;\nld.u32 %r1, [%rd2];",
        ".local .u32 s;\nld.u32 %r2, [%rd60];\nst.local.u32 [s], %r2;\ncvta.local.u64 %rd2, s;\nld.u32 %r1, [%rd2];",
        ".local .u32 s;\nmov.u32 %r3, s;\nld.u32 %r2, [%rd60];\nst.local.u32 [%r3], %r2;\nld.local.u32 %r1, [s];",
        "cvta.to.global.u64 %rd2, %rd60;\nld.global.u32 %r1, [%rd2];",
    ] {
        let (_, b) = run(1, &a, &format!("{load}\nst.global.u32 [%rd61], %r1;"));
        assert_eq!(b[0], 0xdead_beef, "{load}");
    }
}

#[test]
fn one_instruction_may_address_several_spaces() {
    let body = ".shared .align 4 .b8 s[128];\n.local .u32 l;\nmad.lo.u32 %r1, %r63, 4, 0;\nmov.u32 %r2, s;\n\
        add.u32 %r2, %r2, %r1;\nadd.u32 %r3, %r63, 100;\nst.shared.u32 [%r2], %r3;\nadd.u32 %r3, %r63, 200;\n\
        st.local.u32 [l], %r3;\ncvt.u64.u32 %rd1, %r2;\ncvta.shared.u64 %rd1, %rd1;\ncvta.local.u64 %rd2, l;\n\
        mul.wide.u32 %rd3, %r63, 4;\nadd.s64 %rd4, %rd60, %rd3;\nrem.u32 %r4, %r63, 3;\n\
        setp.eq.u32 %p1, %r4, 1;\nsetp.eq.u32 %p2, %r4, 2;\nselp.b64 %rd4, %rd1, %rd4, %p1;\n\
        selp.b64 %rd4, %rd2, %rd4, %p2;\nld.u32 %r5, [%rd4];\nst.u32 [%rd4], %r63;\nld.u32 %r6, [%rd4];\n\
        mad.lo.u32 %r5, %r5, 1000, %r6;\nadd.s64 %rd5, %rd61, %rd3;\nst.global.u32 [%rd5], %r5;";
    let (_, b) = run(32, &[1; 32], body);
    let expected = |t: u32| 1000 * [1, t + 100, t + 200][t as usize % 3] + t;
    assert_eq!(b[..32], (0..32).map(expected).collect::<Vec<_>>());
}

#[test]
fn isspacep_tells_spaces_apart() {
    let body = ".shared .u32 s;\n.local .u32 l;\ncvta.shared.u64 %rd1, s;\ncvta.local.u64 %rd2, l;\nmov.u32 %r5, 0;\n\
        mov.u64 %rd3, %rd60;\n";
    let mut expected = 0;
    let mut tests = String::new();
    let mut bit = 0;
    for (space, own) in
        [("shared", 1), ("shared::cluster", 1), ("local", 2), ("global", 3), ("const", 0)]
    {
        for register in 1..=3 {
            tests += &format!(
                "isspacep.{space} %p1, %rd{register};\n@%p1 or.b32 %r5, %r5, {};\n",
                1 << bit
            );
            expected |= u32::from(own == register) << bit;
            bit += 1;
        }
    }
    let (_, b) = run(1, &[0], &format!("{body}{tests}st.global.u32 [%rd61], %r5;"));
    assert_eq!(b[0], expected);
}

#[test]
fn constants_and_parameters() {
    let program = Program::module(
        ".version 8.7\n.target sm_90\n.address_size 64\n.const .align 4 .u32 table[4] = {10, 11, 12, 13};\n\
         .visible .entry k(.param .u64 out, .param .align 16 .b8 p[32])\n{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n\
         ld.param.u64 %rd1, [out];\nld.const.u32 %r1, [table+8];\nld.param.v4.u32 {%r2, %r3, %r4, %r5}, [p+16];\n\
         ld.param.s8 %r6, [p+3];\ncvta.const.u64 %rd2, table;\nld.u32 %r7, [%rd2+4];\ncvta.param.u64 %rd3, p;\n\
         ld.u32 %r8, [%rd3+28];\nst.global.v4.u32 [%rd1], {%r1, %r3, %r6, %r7};\nst.global.u32 [%rd1+16], %r8;\nret;\n}\n",
    );
    let out = program.unwritten(64);
    let bytes: Vec<u8> = (0..32).map(|n| 250 + n as u8 % 6).collect();
    let args = [Arg::U64(out), Arg::Bytes(bytes.clone())];
    let counted = program.launch(1, 1, &args).expect("runs");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    assert_eq!(program.read_u32s(out, 5), [12, word(20), bytes[3] as i8 as u32, 11, word(28)]);
    // Only the two stores go to global memory.
    assert_eq!(counted.total(Counter::GlobalRequests), 2 + 1, "the generic load is one too");
}

#[test]
fn atomics_give_the_old_value_and_store_the_new() {
    let minus = |n: i32| n as u32;
    for (op, operands, old, new) in [
        ("add.u32", "5", 7, 12),
        ("add.s32", "-9", 7, minus(-2)),
        ("inc.u32", "7", 7, 0),
        ("dec.u32", "7", 7, 6),
        ("min.s32", "-1", 7, minus(-1)),
        ("min.u32", "-1", 7, 7),
        ("max.u32", "9", 7, 9),
        ("and.b32", "6", 7, 6),
        ("or.b32", "8", 7, 15),
        ("xor.b32", "1", 7, 6),
        ("exch.b32", "1", 7, 1),
        ("cas.b32", "7, 1", 7, 1),
        ("cas.b32", "8, 1", 7, 7),
        ("acq_rel.cta.add.u32", "5", 7, 12),
        ("relaxed.sys.add.u32", "5", 7, 12),
        ("add.f32", "0f3F800000", 0x3f80_0000, 0x4000_0000),
        ("add.noftz.f16x2", "1", 0x3c00_0001, 0x3c00_0002),
        ("add.noftz.bf16x2", "0x3f803f80", 0x3f80_4000, 0x4000_4040),
    ] {
        for space in ["global", "shared"] {
            let body = format!(
                ".shared .u32 s;\nld.global.u32 %r1, [%rd60];\nst.shared.u32 [s], %r1;\nmov.u32 %r3, s;\n\
                 atom.{space}.{op} %r2, [{}], {operands};\nld.shared.u32 %r4, [s];\nst.global.u32 [%rd61], %r2;\nst.global.u32 [%rd61+4], %r4;",
                if space == "global" { "%rd60" } else { "%r3" }
            );
            let semantic = op.contains("cta.") || op.contains("sys.");
            let body = if semantic {
                // The space follows the scope.
                let (head, rest) = op.rsplit_once("add").expect("adds");
                body.replace(&format!("{space}.{op}"), &format!("{head}{space}.add{rest}"))
            } else {
                body
            };
            let (a, b) = run(1, &[old], &body);
            let held = if space == "global" { a[0] } else { b[1] };
            assert_eq!((b[0], held), (old, new), "{space} {op} {operands}");
        }
    }
    let (a, _) = run(32, &[0, 0], "red.global.add.u64 [%rd60], 3000000000;");
    assert_eq!(u64::from(a[0]) | u64::from(a[1]) << 32, 96_000_000_000);
}

#[test]
fn wide_and_vector_atomics() {
    let swap = ".reg .b128 %q<4>;\nld.global.b128 %q1, [%rd60];\nld.global.b128 %q2, [%rd60+16];\n\
        atom.global.cas.b128 %q3, [%rd60], %q1, %q2;\nst.global.b128 [%rd61], %q3;";
    let (a, b) = run(1, &[1, 2, 3, 4, 5, 6, 7, 8], swap);
    assert_eq!((&a[..4], &b[..4]), (&[5, 6, 7, 8][..], &[1, 2, 3, 4][..]));
    let narrow = "mov.b16 %h1, 2;\nmov.b16 %h2, 9;\natom.global.cas.b16 %h3, [%rd60+2], %h1, %h2;\nst.global.b16 [%rd61], %h3;";
    let (a, b) = run(1, &[0x0002_0001], narrow);
    assert_eq!((a[0], b[0]), (0x0009_0001, 2));
    let one = 1f32.to_bits();
    let floats = "mov.f32 %f1, 0f3F800000;\nmov.f32 %f2, 0f40000000;\n\
        atom.global.v2.f32.add {%f3, %f4}, [%rd60], {%f1, %f2};\nst.global.v2.f32 [%rd61], {%f3, %f4};";
    let (a, b) = run(1, &[one, one], floats);
    assert_eq!(a, [2f32.to_bits(), 3f32.to_bits()]);
    assert_eq!(b[..2], [one, one]);
    let halves = "mov.b16 %h1, 0x3c00;\nred.global.add.noftz.v2.f16 [%rd60], {%h1, %h1};";
    assert_eq!(run(1, &[0x3c00_4000], halves).0, [0x4000_4200]);
    let least = "mov.b32 %r1, 0x3f80bf80;\nred.global.v2.bf16x2.min.noftz [%rd60], {%r1, %r1};";
    assert_eq!(run(1, &[0x4000_0000, 0], least).0, [0x3f80_bf80, 0x0000_bf80]);
}

#[test]
fn lanes_take_turns_at_one_word() {
    let body = "atom.global.add.u32 %r1, [%rd60], %r63;\nmul.wide.u32 %rd1, %r63, 4;\nadd.s64 %rd1, %rd61, %rd1;\n\
        st.global.u32 [%rd1], %r1;";
    let (a, b) = run(32, &[0], body);
    assert_eq!(a, [496]);
    assert_eq!(b[..32], (0..32).map(|n| n * (n - 1i32) / 2).map(|n| n as u32).collect::<Vec<_>>());
}

#[test]
fn a_lock_of_all_threads_is_fair_enough() {
    // Every thread takes the lock in its turn and adds to a plain word.
    let body = "LOCK:\natom.global.cas.b32 %r1, [%rd60], 0, 1;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra LOCK;\nmembar.gl;\n\
        ld.global.u32 %r2, [%rd60+4];\nadd.u32 %r2, %r2, %r63;\nst.global.u32 [%rd60+4], %r2;\nmembar.gl;\n\
        atom.global.exch.b32 %r3, [%rd60], 0;";
    assert_eq!(run(96, &[0, 0], body).0, [0, 96 * 95 / 2]);
    let shared =
        body.replace("global", "shared").replace("%rd60+4", "%r50+4").replace("%rd60", "%r50");
    let body = format!(
        ".shared .align 8 .b8 s[8];\nmov.u32 %r50, s;\nmov.u32 %r51, 0;\nsetp.eq.u32 %p2, %r63, 0;\n\
         @%p2 st.shared.v2.u32 [s], {{%r51, %r51}};\nbar.sync 0;\n{shared}\nbar.sync 0;\nld.shared.u32 %r4, [s+4];\n\
         @%p2 st.global.u32 [%rd61], %r4;"
    );
    assert_eq!(run(96, &[0], &body).1[0], 96 * 95 / 2);
}

#[test]
fn counters_of_memory() {
    let body = ".local .align 8 .b8 l[8];\nmul.wide.u32 %rd1, %r63, 8;\nadd.s64 %rd1, %rd60, %rd1;\n\
        ld.global.u32 %r1, [%rd1];\nst.local.u32 [l], %r1;\nred.global.add.u32 [%rd60], 1;\nmembar.gl;";
    let program = Program::body("sm_90", body);
    let a = program.u32s(&[0; 64]);
    let counted = program.launch(1, 32, &[Arg::U64(a)]).expect("runs");
    assert_eq!(counted.total(Counter::GlobalRequests), 2);
    // The allocation begins with a sector: every other word of eight sectors, and one word.
    assert_eq!(counted.total(Counter::GlobalSectors), 8 + 1);
    assert_eq!(counted.total(Counter::GlobalNeeded), 128 + 4);
    assert_eq!(counted.total(Counter::GlobalBytes), 256);
    assert_eq!(counted.total(Counter::LocalAccesses), 32);
    assert_eq!(counted.total(Counter::Atomics), 32);
    let classes = counted.by_class(program.kernel());
    assert_eq!(
        (classes[&Class::Atomic], classes[&Class::Fence], classes[&Class::Store]),
        (1, 1, 1)
    );
}

#[test]
fn blocks_that_talk_run_in_order() {
    let talks = |body: &str| Program::body("sm_90", body).kernel().talks();
    assert!(talks("atom.global.add.u32 %r1, [%rd60], 1;\nst.global.u32 [%rd60], %r1;"));
    assert!(talks("red.global.add.f32 [%rd60], 0f3F800000;"));
    assert!(talks("ld.acquire.gpu.u32 %r1, [%rd60];"));
    assert!(talks("ld.volatile.global.u32 %r1, [%rd60];"));
    assert!(!talks("red.global.add.u32 [%rd60], 1;"));
    assert!(!talks("mov.u32 %r2, 0;\natom.shared.add.u32 %r1, [%r2], 1;"));
    // A result that nobody reads tells nobody anything.
    assert!(!talks("atom.global.add.u32 %r1, [%rd60], 1;"));
    assert!(!talks("atom.global.max.u32 _, [%rd60], 1;"));
    assert!(talks("atom.global.exch.b32 _, [%rd60], 1;"));
}

#[test]
fn what_does_not_exist_is_refused() {
    let body = |line: &str| {
        format!(
            ".version 8.7\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n.reg .b64 %rd<4>;\n.reg .b32 %r<9>;\n\
             .reg .b16 %h<2>;\n.reg .pred %p<2>;\n.reg .b128 %q<2>;\n{line}\nret;\n}}"
        )
    };
    for (line, named) in [
        ("ld.global.foo.u32 %r1, [%rd1];", "foo"),
        ("ld.global.u32 %h1, [%rd1];", "16 bits"),
        ("ld.global.v2.u32 %r1, [%rd1];", "2 elements"),
        ("ld.global.v8.b64 {%rd1,%rd1,%rd1,%rd1,%rd1,%rd1,%rd1,%rd1}, [%rd1];", "64 bytes"),
        ("ld.shared.v8.b32 {%r1,%r1,%r1,%r1,%r1,%r1,%r1,%r1}, [%r1];", "32 bytes"),
        ("st.const.u32 [%rd1], %r1;", "read only"),
        ("st.acquire.gpu.u32 [%rd1], %r1;", "acquire"),
        ("ld.release.gpu.u32 %r1, [%rd1];", "release"),
        ("st.global.b128 [%rd1], %rd2;", "128"),
        ("atom.global.add.b32 %r1, [%rd1], 1;", "atom.global.add.b32"),
        ("atom.global.inc.s32 %r1, [%rd1], 1;", "atom.global.inc.s32"),
        ("red.global.exch.b32 [%rd1], 1;", "red.global.exch.b32"),
        ("atom.local.add.u32 %r1, [%r2], 1;", "global and shared"),
        ("atom.global.add.f16x2.v8 {%r1}, [%rd1], {%r1};", "not defined"),
        ("fence.sometimes;", "fence.sometimes"),
        ("isspacep.everywhere %p1, %rd1;", "isspacep"),
    ] {
        let error = refused(&body(line));
        assert!(error.contains(named) && error.contains("line 10"), "{line}: {error}");
    }
}
