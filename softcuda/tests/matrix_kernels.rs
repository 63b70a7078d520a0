//! `ldmatrix`, `stmatrix`, `movmatrix` and `wmma` in kernels, against the table of an independent package
//! (`data/layouts.py`) and plain products.

mod common;
#[path = "data/numbers.rs"]
mod numbers;

use common::{Arg, Program, refused};
use numbers::{encode, layout, width};
use softcuda::counters::{Class, Counter};
use softcuda::fault::Check;
use softcuda::machine::Schedule;

fn words(halves: &[u16]) -> Vec<u32> {
    halves.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

fn registers(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|i| format!("%r{i}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// Each lane copies 16 bytes of `a` to row `lane` of a tile with rows `pitch` bytes apart, the warp
/// synchronises, `middle` runs with the row's address in `%r10`.
fn tile(pitch: u32, middle: &str) -> Program {
    Program::body(
        "sm_90",
        &format!(
            ".shared .align 128 .b8 tile[8192];\n.reg .b32 %w<4>;\n\
             mul.lo.u32 %r11, %r63, 16;\ncvt.u64.u32 %rd1, %r11;\nadd.u64 %rd2, %rd60, %rd1;\n\
             mov.u32 %r10, tile;\nmad.lo.u32 %r10, %r63, {pitch}, %r10;\n\
             ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%rd2];\n\
             st.shared.v4.b32 [%r10], {{%w0, %w1, %w2, %w3}};\n{middle}"
        ),
    )
}

const SYNC: &str = "bar.warp.sync 0xffffffff;\n";

/// Stores `%r0`… of every lane to `b`.
fn keep(count: usize) -> String {
    let mut text = format!(
        "mul.lo.u32 %r12, %r63, {};\ncvt.u64.u32 %rd3, %r12;\nadd.u64 %rd4, %rd61, %rd3;\n",
        4 * count
    );
    for i in 0..count {
        text += &format!("st.global.b32 [%rd4+{}], %r{i};\n", 4 * i);
    }
    text
}

fn numbered() -> Vec<u32> {
    words(&(0..256).collect::<Vec<u16>>())
}

#[test]
fn ldmatrix_follows_the_table() {
    for (count, pitch) in [(1, 16), (2, 144), (4, 16), (4, 80)] {
        for trans in ["", ".trans"] {
            let load = format!(
                "{SYNC}ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {}, [%r10];\n{}",
                registers(count),
                keep(count)
            );
            let program = tile(pitch, &load);
            let (a, b) = (program.u32s(&numbered()), program.unwritten(128 * count as u64));
            let counters = program.launch(1, 32, &[Arg::U64(a), Arg::U64(b)]).unwrap();
            let found = program.read_u32s(b, 32 * count);
            for (lane, places) in
                layout(&format!("ldmatrix.x{count}{trans}"), "r").iter().enumerate()
            {
                let expected = words(&places.iter().map(|&at| at as u16).collect::<Vec<_>>());
                assert_eq!(found[lane * count..][..count], expected, "x{count}{trans} lane {lane}");
            }
            assert_eq!(counters.by_class(program.kernel())[&Class::Load], 6);
        }
    }
}

#[test]
fn ldmatrix_takes_generic_addresses() {
    let load = format!(
        "{SYNC}cvt.u64.u32 %rd10, %r10;\ncvta.shared.u64 %rd10, %rd10;\n\
         ldmatrix.sync.aligned.m8n8.x4.b16 {}, [%rd10];\n{}",
        registers(4),
        keep(4)
    );
    let program = tile(16, &load);
    let (a, b) = (program.u32s(&numbered()), program.unwritten(512));
    program.launch(1, 32, &[Arg::U64(a), Arg::U64(b)]).unwrap();
    assert_eq!(program.read_u32s(b, 4), words(&[0, 1, 64, 65, 128, 129, 192, 193]));
}

#[test]
fn stmatrix_is_the_inverse() {
    for count in [1, 2, 4] {
        for trans in ["", ".trans"] {
            let name = format!("stmatrix.x{count}{trans}");
            // Lane's registers from `c`, the tile back to `b`.
            let mut middle = format!("{SYNC}mul.lo.u32 %r12, %r63, {};\n", 4 * count);
            middle += "cvt.u64.u32 %rd3, %r12;\nadd.u64 %rd4, %rd62, %rd3;\n";
            for i in 0..count {
                middle += &format!("ld.global.b32 %r{i}, [%rd4+{}];\n", 4 * i);
            }
            middle += &format!(
                "stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r10], {};\n{SYNC}\
                 ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%r10];\n{}",
                registers(count),
                keep(4)
            );
            let program = tile(48, &middle);
            let lanes = layout(&name, "r");
            let held: Vec<u32> = lanes
                .iter()
                .flat_map(|places| {
                    words(&places.iter().map(|&at| at as u16 + 1).collect::<Vec<_>>())
                })
                .collect();
            let zeros = program.u32s(&[0; 128]);
            let (b, c) = (program.unwritten(512), program.u32s(&held));
            program.launch(1, 32, &[Arg::U64(zeros), Arg::U64(b), Arg::U64(c)]).unwrap();
            let elements = 64 * count as u16;
            let expected: Vec<u16> =
                (0..256).map(|e| if e < elements { e + 1 } else { 0 }).collect();
            assert_eq!(program.read_u32s(b, 128), words(&expected), "{name}");
        }
    }
}

#[test]
fn movmatrix_transposes() {
    let middle = format!(
        "ld.shared.b32 %r5, [%r10];\n{SYNC}movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r5;\n{}",
        keep(1)
    );
    let program = tile(16, &middle);
    // Word 4 * lane of the tile is the lane's register: rows of four lanes.
    let mut tile = vec![0; 128];
    for lane in 0..32u32 {
        tile[4 * lane as usize] = (2 * lane) | (2 * lane + 1) << 16;
    }
    let (a, b) = (program.u32s(&tile), program.unwritten(128));
    program.launch(1, 32, &[Arg::U64(a), Arg::U64(b)]).unwrap();
    let transposed: Vec<u16> = (0..64).map(|e| e % 8 * 8 + e / 8).collect();
    assert_eq!(program.read_u32s(b, 32), words(&transposed));
}

fn fault(program: &Program, block: u32) -> softcuda::fault::Report {
    let (a, b) = (program.u32s(&vec![0; 128 * 4]), program.unwritten(4096));
    *program.launch(1, block, &[Arg::U64(a), Arg::U64(b)]).unwrap_err()
}

#[test]
fn ldmatrix_is_checked() {
    let load = format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {}, [%r10];\n", registers(4));
    let check = |middle: &str, block| fault(&tile(16, middle), block).check;
    assert_eq!(check(&load, 32), Check::SharedRace);
    assert_eq!(check(&format!("{SYNC}add.u32 %r10, %r10, 8;\n{load}"), 32), Check::Misaligned);
    assert_eq!(check(&format!("{SYNC}add.u32 %r10, %r10, 8192;\n{load}"), 32), Check::OutOfBounds);
    assert_eq!(check(&format!("{SYNC}add.u32 %r10, %r10, 512;\n{load}"), 32), Check::Uninitialised);
    // Warps of fewer lanes, and lanes that go elsewhere.
    assert_eq!(check(&format!("bar.sync 0;\n{load}"), 48), Check::InactiveLane);
    let part = format!("{SYNC}setp.lt.u32 %p1, %r63, 16;\n@%p1 {load}");
    assert_eq!(check(&part, 32), Check::InactiveLane);
    let apart = format!(
        "{SYNC}setp.lt.u32 %p1, %r63, 16;\n@%p1 bra there;\n{load}bra end;\nthere:\n{load}end:\n"
    );
    assert_eq!(check(&apart, 32), Check::InactiveLane);
    // A wrong address is the fault of the lane that gives it.
    let report = fault(
        &tile(
            16,
            &format!("{SYNC}setp.eq.u32 %p1, %r63, 21;\n@%p1 add.u32 %r10, %r10, 2;\n{load}"),
        ),
        32,
    );
    assert_eq!((report.check, report.thread), (Check::Misaligned, [21, 0, 0]));
    assert_eq!(report.address, Some(21 * 16 + 2));
}

#[test]
fn stores_by_stmatrix_race() {
    let store = format!("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r10], {};\n", registers(4));
    let set = "mov.u32 %r0, 1;\nmov.u32 %r1, 1;\nmov.u32 %r2, 1;\nmov.u32 %r3, 1;\n";
    let read = |sync: &str| {
        let program = tile(16, &format!("{set}{SYNC}{store}{sync}ld.shared.b32 %r5, [%r10];\n"));
        let zeros = program.u32s(&[0; 128]);
        program.launch(1, 32, &[Arg::U64(zeros)]).map_err(|report| report.check)
    };
    assert!(read(SYNC).is_ok());
    // Not even the lane that gives a row's address wrote it.
    assert_eq!(read("").unwrap_err(), Check::SharedRace);
}

#[test]
fn bank_conflicts_of_ldmatrix() {
    for (pitch, wavefronts) in [(16, 4), (128, 32), (144, 4), (64, 16)] {
        let load =
            format!("{SYNC}ldmatrix.sync.aligned.m8n8.x4.shared.b16 {}, [%r10];\n", registers(4));
        let program = tile(pitch, &load);
        let a = program.u32s(&numbered());
        let counters = program.launch(1, 32, &[Arg::U64(a)]).unwrap();
        // The tile's store of 16 bytes a lane has the same pattern.
        assert_eq!(counters.total(Counter::SharedWavefronts), 2 * wavefronts, "pitch {pitch}");
        assert_eq!(counters.total(Counter::SharedIdeal), 8);
    }
}

/// A matrix in memory: `lines` of `length` values, `pitch` elements apart.
fn matrix(
    ty: &str,
    lines: usize,
    length: usize,
    pitch: usize,
    at: impl Fn(usize, usize) -> i32,
) -> Vec<u8> {
    let bits = width(ty);
    let mut bytes = vec![0u8; lines * pitch * bits / 8];
    for line in 0..lines {
        for i in 0..length {
            let position = (line * pitch + i) * bits;
            if bits < 8 {
                let value = at(line, i) as u8 & ((1 << bits) - 1);
                bytes[position / 8] |= value << (position % 8);
            } else {
                let value = encode(ty, at(line, i)).to_le_bytes();
                bytes[position / 8..][..bits / 8].copy_from_slice(&value[..bits / 8]);
            }
        }
    }
    bytes
}

struct Wmma {
    shape: (usize, usize, usize),
    ab: &'static str,
    c: &'static str,
    d: &'static str,
    rows: [bool; 3],
    shared: bool,
}

/// Registers of a fragment.
fn fragment(ty: &str, elements: usize, name: &str) -> (String, String) {
    let (register, per) = match ty {
        "f64" => ("f64", 1),
        "f32" | "s32" => (ty, 1),
        "tf32" => ("b32", 1),
        "f16" | "bf16" => ("b32", 2),
        "s8" | "u8" => ("b32", 4),
        "b1" => ("b32", 32),
        _ => ("b32", 8),
    };
    let factor = name != "c" && name != "d";
    let count = if ty == "f16" && factor { 8 } else { elements / 32 / per };
    let names: Vec<String> = (0..count).map(|i| format!("%{name}{i}")).collect();
    (format!(".reg .{register} %{name}<{count}>;\n"), format!("{{{}}}", names.join(", ")))
}

impl Wmma {
    fn run(&self) {
        let (m, n, k) = self.shape;
        let Self { ab, c, d, rows, .. } = *self;
        let unsigned = ab.starts_with('u') || ab == "b1";
        let number = |seed: usize| match ab {
            "b1" => (seed * seed / 7 % 2) as i32,
            _ if unsigned => (seed * 31 / 3 % 5) as i32,
            _ => (seed * 31 / 3 % 9) as i32 - 4,
        };
        let a_at = |row: usize, column: usize| number(row * 41 + column * 17);
        let b_at = |row: usize, column: usize| number(row * 13 + column * 29 + 5);
        let c_at = |row: usize, column: usize| (row * 3 + column) as i32 % 7 - 3;
        // Lines, their length, and a pitch that leaves a gap.
        let place = |row_major: bool, rows: usize, columns: usize, ty: &str| {
            let (lines, length) = if row_major { (rows, columns) } else { (columns, rows) };
            let gap = match ty {
                "b1" => 128,
                "s4" | "u4" => 32,
                _ => 16,
            };
            (lines, length, length + gap)
        };
        let store = |row_major: bool,
                     (lines, length, pitch),
                     ty: &str,
                     at: &dyn Fn(usize, usize) -> i32| {
            matrix(
                ty,
                lines,
                length,
                pitch,
                |line, i| {
                    if row_major { at(line, i) } else { at(i, line) }
                },
            )
        };
        let places = [place(rows[0], m, k, ab), place(rows[1], k, n, ab), place(rows[2], m, n, c)];
        let of_d = place(rows[2], m, n, d);
        let shape = format!("m{m}n{n}k{k}");
        let layout = |row_major: bool| if row_major { "row" } else { "col" };
        let (a_regs, a_list) = fragment(ab, m * k, "a");
        let (b_regs, b_list) = fragment(ab, k * n, "b");
        let (c_regs, c_list) = fragment(c, m * n, "c");
        let (d_regs, d_list) = fragment(d, m * n, "d");
        let (la, lb, lc) = (layout(rows[0]), layout(rows[1]), layout(rows[2]));
        let types = match ab {
            "f16" => format!("{d}.{c}"),
            _ => format!("{d}.{ab}.{ab}.{c}"),
        };
        let op = if ab == "b1" { ".xor.popc" } else { "" };
        let a_bytes = store(rows[0], places[0], ab, &a_at);
        let (mut prologue, mut space, mut address) = (String::new(), "global", "%rd60");
        if self.shared {
            // One lane copies A, then the warp synchronises.
            prologue = format!(
                ".shared .align 32 .b8 tile[{0}];\nsetp.ne.u32 %p1, %r63, 0;\n@%p1 bra ready;\n\
                 mov.u32 %r1, tile;\nmov.u32 %r2, 0;\nmov.u64 %rd1, %rd60;\nnext:\n\
                 ld.global.b32 %r3, [%rd1];\nst.shared.b32 [%r1], %r3;\nadd.u64 %rd1, %rd1, 4;\n\
                 add.u32 %r1, %r1, 4;\nadd.u32 %r2, %r2, 4;\nsetp.lt.u32 %p1, %r2, {0};\n\
                 @%p1 bra next;\nready:\nbar.warp.sync 0xffffffff;\nmov.u32 %r4, tile;\n",
                a_bytes.len()
            );
            (space, address) = ("shared", "%r4");
        }
        let [pa, pb, pc] = places.map(|(_, _, pitch)| pitch);
        let body = format!(
            "{a_regs}{b_regs}{c_regs}{d_regs}{prologue}\
             wmma.load.a.sync.aligned.{la}.{shape}.{space}.{ab} {a_list}, [{address}], {pa};\n\
             wmma.load.b.sync.aligned.{lb}.{shape}.{ab} {b_list}, [%rd61], {pb};\n\
             wmma.load.c.sync.aligned.{lc}.{shape}.global.{c} {c_list}, [%rd62], {pc};\n\
             wmma.mma{op}.sync.aligned.{la}.{lb}.{shape}.{types} {d_list}, {a_list}, {b_list}, {c_list};\n\
             wmma.store.d.sync.aligned.{lc}.{shape}.global.{d} [%rd63], {d_list}, {};\n",
            of_d.2
        );
        let program = Program::body("sm_90", &body);
        let zeros = store(rows[2], of_d, d, &|_, _| 0);
        let args = [
            program.bytes(&a_bytes),
            program.bytes(&store(rows[1], places[1], ab, &b_at)),
            program.bytes(&store(rows[2], places[2], c, &c_at)),
            program.bytes(&zeros),
        ];
        let counters = program.launch(1, 32, &args.map(Arg::U64)).unwrap();
        assert_eq!(counters.total(Counter::MatrixOperations), (m * n * k) as u64);
        let product = |row: usize, column: usize| {
            let term = |depth: usize| match ab {
                "b1" => a_at(row, depth) ^ b_at(depth, column),
                _ => a_at(row, depth) * b_at(depth, column),
            };
            c_at(row, column) + (0..k).map(term).sum::<i32>()
        };
        let expected = store(rows[2], of_d, d, &product);
        assert_eq!(program.read_bytes(args[3], zeros.len()), expected, "{shape} {types} {rows:?}");
    }
}

#[test]
fn wmma_multiplies_in_every_shape() {
    let wide = [(16, 16, 16), (32, 8, 16), (8, 32, 16)];
    for shape in wide {
        for rows in 0..8 {
            let rows = [rows & 1 != 0, rows & 2 != 0, rows & 4 != 0];
            for (c, d) in [("f32", "f32"), ("f16", "f16"), ("f16", "f32"), ("f32", "f16")] {
                let shared = c == "f32" && d == "f32";
                Wmma { shape, ab: "f16", c, d, rows, shared }.run();
            }
            Wmma { shape, ab: "bf16", c: "f32", d: "f32", rows, shared: true }.run();
            for ab in ["s8", "u8"] {
                Wmma { shape, ab, c: "s32", d: "s32", rows, shared: false }.run();
            }
            let shape = (16, 16, 8);
            Wmma { shape, ab: "tf32", c: "f32", d: "f32", rows, shared: true }.run();
            let shape = (8, 8, 4);
            Wmma { shape, ab: "f64", c: "f64", d: "f64", rows, shared: false }.run();
        }
    }
    for last in [true, false] {
        let rows = [true, false, last];
        for ab in ["s4", "u4"] {
            let shape = (8, 8, 32);
            Wmma { shape, ab, c: "s32", d: "s32", rows, shared: false }.run();
        }
        let shape = (8, 8, 128);
        Wmma { shape, ab: "b1", c: "s32", d: "s32", rows, shared: true }.run();
    }
}

#[test]
fn wmma_is_checked() {
    let body = |address: &str, stride: &str| {
        format!(
            ".reg .b32 %a<8>;\nmul.wide.u32 %rd1, %r63, 2;\n\
             wmma.load.a.sync.aligned.row.m16n16k16.global.f16 \
             {{%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}}, [{address}], {stride};\n"
        )
    };
    let run = |body: &str, elements: usize| {
        let program = Program::body("sm_80", body).schedule(Schedule::Reverse);
        let a = program.bytes(&vec![0; elements * 2]);
        program.launch(1, 32, &[Arg::U64(a)]).map_err(|report| report.check)
    };
    assert!(run(&body("%rd60", "16"), 256).is_ok());
    assert_eq!(run(&body("%rd60", "16"), 255).unwrap_err(), Check::OutOfBounds);
    assert_eq!(run(&body("%rd60", "24"), 256).unwrap_err(), Check::OutOfBounds);
    let apart = format!(
        "add.u64 %rd60, %rd60, %rd1;\n{}",
        body("%rd60", "16").replace("mul.wide.u32 %rd1, %r63, 2;\n", "")
    );
    let apart = format!("mul.wide.u32 %rd1, %r63, 2;\n{apart}");
    assert_eq!(run(&apart, 4096).unwrap_err(), Check::Trap);
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    for instruction in [
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r0, %r1, %r2}, [%r3];",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r0}, [%r3];",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 {%r0}, [%r3];",
        "ldmatrix.sync.aligned.m8n8.x1.global.b16 {%r0}, [%r3];",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r3], {%r0};",
        "movmatrix.sync.aligned.m8n8.b16 %r0, %r1;",
        "wmma.load.a.sync.aligned.row.m16n16k8.global.f16 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%rd0];",
        "wmma.load.b.sync.aligned.row.m8n8k32.global.s4 {%r0}, [%rd0];",
        "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32 \
         {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, {%r8,%r9}, {%r8,%r9}, {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7};",
    ] {
        let text = format!(
            ".version 8.7\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n\
             .reg .b32 %r<16>;\n.reg .b64 %rd<2>;\n{instruction}\nret;\n}}\n"
        );
        assert!(refused(&text).starts_with("PTX line 7"), "{instruction}: {}", refused(&text));
    }
}
