//! `wgmma` against plain products: operands laid out in shared memory and fragments as the table of
//! `data/layouts.py` has them.

mod common;
#[path = "data/numbers.rs"]
mod numbers;

use common::{Arg, Program, refused};
use numbers::{Numbers, encode, layout, width};
use softcuda::counters::Counter;
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;

/// Byte offset of B's operand in shared memory.
const B: usize = 16384;

#[derive(Clone, Copy)]
struct Case {
    types: [&'static str; 3],
    n: usize,
    /// Swizzles of A and B by their table's name, `mn-…` where rows are contiguous.
    places: [&'static str; 2],
    a_in_registers: bool,
    negate: bool,
    add: bool,
}

const PLAIN: Case = Case {
    types: ["f32", "bf16", "bf16"],
    n: 64,
    places: ["k-128", "k-128"],
    a_in_registers: false,
    negate: false,
    add: true,
};

impl Case {
    fn depth(&self) -> usize {
        256 / width(self.types[1])
    }

    fn descriptor(place: &str, at: usize) -> u64 {
        let mode = match place.rsplit('-').next() {
            Some("128") => 1u64,
            Some("64") => 2,
            Some("32") => 3,
            _ => 0,
        };
        // The table's leading and stride offsets, in bytes.
        let (leading, stride) = (4096, if mode == 0 { 256 } else { 1024 });
        [mode << 62, stride << 28, leading << 12, at as u64 >> 4].into_iter().sum()
    }

    /// An operand's bits in shared memory; `at` gives the number of row and k.
    fn place(place: &str, ty: &str, rows: usize, at: impl Fn(usize, usize) -> i32) -> Vec<u8> {
        let offsets = layout("descriptor", place);
        let bits = width(ty);
        let mut bytes = vec![0u8; B];
        for k in 0..256 / bits {
            let bit = k * bits;
            for (row, offset) in offsets[bit / 16].iter().enumerate().take(rows) {
                // Offsets of the table are in elements of 16 bits.
                let base = offset * 16 + bit % 16;
                let value = encode(ty, at(row, k)).to_le_bytes();
                for n in 0..bits {
                    bytes[(base + n) / 8] |= (value[n / 8] >> (n % 8) & 1) << ((base + n) % 8);
                }
            }
        }
        bytes
    }

    /// Instructions; `before` stands ahead of the product, `after` behind its commit.
    fn body(&self, before: &str, after: &str) -> String {
        let [d, a, b] = self.types;
        let (n, k) = (self.n, self.depth());
        let (count, register) = match d {
            "f16" => (n / 4, "b32"),
            _ => (n / 2, d),
        };
        let list = |name: &str, n: usize| {
            let names: Vec<String> = (0..n).map(|i| format!("%{name}{i}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let three = match d {
            "f32" => "0f40400000",
            "f16" => "0x42004200",
            _ => "3",
        };
        let mov = if register == "s32" { "u32" } else { register };
        let set: String = (0..count).map(|i| format!("mov.{mov} %d{i}, {three};\n")).collect();
        let keep: String =
            (0..count).map(|i| format!("st.global.b32 [%rd5+{}], %d{i};\n", 4 * i)).collect();
        let transposed = |place: &str| u8::from(place.starts_with("mn"));
        let scale = if self.negate { -1 } else { 1 };
        let scales = match (a, self.a_in_registers) {
            ("s8" | "u8" | "b1", _) => String::new(),
            ("f16" | "bf16", true) => format!(", {scale}, 1, {}", transposed(self.places[1])),
            ("f16" | "bf16", false) => {
                format!(
                    ", {scale}, 1, {}, {}",
                    transposed(self.places[0]),
                    transposed(self.places[1])
                )
            }
            _ => format!(", 1, {scale}"),
        };
        let op = if a == "b1" { ".and.popc" } else { "" };
        let a_operand = if self.a_in_registers { list("a", 4) } else { "%rd10".to_owned() };
        format!(
            ".shared .align 1024 .b8 tile[{0}];\n.reg .{register} %d<{count}>;\n.reg .b32 %a<4>;\n.reg .b32 %w<4>;\n\
             mov.u32 %r10, tile;\nmul.wide.u32 %rd1, %r63, 16;\nadd.u64 %rd1, %rd60, %rd1;\n\
             mad.lo.u32 %r11, %r63, 16, %r10;\nmov.u32 %r1, 0;\nnext:\n\
             ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%rd1];\nst.shared.v4.b32 [%r11], {{%w0, %w1, %w2, %w3}};\n\
             add.u64 %rd1, %rd1, 2048;\nadd.u32 %r11, %r11, 2048;\nadd.u32 %r1, %r1, 2048;\n\
             setp.lt.u32 %p1, %r1, {0};\n@%p1 bra next;\n\
             mul.wide.u32 %rd2, %r63, 16;\nadd.u64 %rd2, %rd62, %rd2;\n\
             ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%rd2];\n\
             cvt.u64.u32 %rd3, %r10;\nshr.u64 %rd3, %rd3, 4;\n\
             mov.u64 %rd10, {1};\nadd.u64 %rd10, %rd10, %rd3;\nmov.u64 %rd11, {2};\nadd.u64 %rd11, %rd11, %rd3;\n\
             {set}setp.eq.u32 %p2, 0, {3};\n{before}wgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n{n}k{k}.{d}.{a}.{b}{op} {4}, {a_operand}, %rd11, %p2{scales};\n\
             wgmma.commit_group.sync.aligned;\n{after}\
             mul.wide.u32 %rd5, %r63, {5};\nadd.u64 %rd5, %rd61, %rd5;\n{keep}",
            2 * B,
            Self::descriptor(self.places[0], 0),
            Self::descriptor(self.places[1], B),
            u8::from(!self.add),
            list("d", count),
            4 * count,
        )
    }

    fn run(&self, body: &str, schedule: Schedule) -> Result<(), Box<Report>> {
        let [d, a, b] = self.types;
        let (n, k) = (self.n, self.depth());
        let mut numbers = Numbers((n + k) as u64);
        let (ma, mb) = (numbers.matrix(64 * k, a), numbers.matrix(n * k, b));
        let at = |row: usize, depth: usize| ma[row + 64 * depth];
        let bt = |row: usize, depth: usize| mb[row + n * depth];
        let mut image = Self::place(self.places[0], a, 64, at);
        image.extend(Self::place(self.places[1], b, n, bt));
        // A in registers: those of mma, warp by warp.
        let fragment = layout(&format!("mma.m16n8k{k}.{}", width(a)), "a");
        let per = 32 / width(a);
        let registers: Vec<u32> = (0..128 * 4)
            .map(|word| {
                let (thread, r) = (word / 4, word % 4);
                (0..per).fold(0, |bits, j| {
                    let place = fragment[thread % 32][r * per + j];
                    let value = encode(a, at(thread / 32 * 16 + place % 16, place / 16)) as u32;
                    bits | value << (j * width(a))
                })
            })
            .collect();
        let program = Program::body("sm_90a", body).schedule(schedule);
        let per_register = if d == "f16" { 2 } else { 1 };
        let count = n / 2 / per_register;
        let (a_buffer, c_buffer) = (program.bytes(&image), program.u32s(&registers));
        let out = program.unwritten(128 * 4 * count as u64);
        let args = [a_buffer, out, c_buffer].map(Arg::U64);
        let counters = program.launch(1, 128, &args)?;
        assert_eq!(counters.total(Counter::MatrixOperations), (64 * n * k) as u64);
        let found = program.read_u32s(out, 128 * count);
        let product = |row: usize, column: usize| {
            let term = |depth: usize| match a {
                "b1" => at(row, depth) & bt(column, depth),
                _ => at(row, depth) * bt(column, depth),
            };
            let sum: i32 = (0..k).map(term).sum();
            (if self.add { 3 } else { 0 }) + if self.negate { -sum } else { sum }
        };
        // All widths are laid out like the first columns of a wider one.
        let places = layout(&format!("wgmma.m64n{}", n.min(64)), "c");
        for (thread, places) in places.iter().enumerate() {
            for (value, &place) in places.iter().enumerate() {
                let word = found[thread * count + value / per_register];
                let bits =
                    word >> (16 * (value % per_register)) & (u32::MAX >> (32 - 32 / per_register));
                let expected = encode(d, product(place % 64, place / 64)) as u32;
                assert_eq!(bits, expected, "{:?} {:?} {thread} {value}", self.types, self.places);
            }
        }
        Ok(())
    }
}

const FENCE: &str = "fence.proxy.async.shared::cta;\nbar.sync 0;\n";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;\n";

fn good(case: Case) {
    case.run(&case.body(FENCE, WAIT), Schedule::Random(3))
        .unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn every_type_multiplies() {
    for types in [
        ["f32", "f16", "f16"],
        ["f16", "f16", "f16"],
        ["f32", "bf16", "bf16"],
        ["f32", "tf32", "tf32"],
        ["f32", "e4m3", "e5m2"],
        ["f16", "e5m2", "e5m2"],
        ["s32", "s8", "u8"],
        ["s32", "u8", "u8"],
    ] {
        for a_in_registers in [false, true] {
            good(Case { types, a_in_registers, ..PLAIN });
            good(Case { types, a_in_registers, add: false, n: 8, ..PLAIN });
        }
    }
    good(Case { types: ["s32", "b1", "b1"], ..PLAIN });
}

#[test]
fn every_layout_of_operands() {
    for a in ["k-none", "k-32", "k-64", "k-128", "mn-none", "mn-32", "mn-64", "mn-128"] {
        for b in ["k-none", "k-32", "k-64", "k-128", "mn-none", "mn-32", "mn-64", "mn-128"] {
            good(Case { places: [a, b], ..PLAIN });
        }
        good(Case { places: ["k-none", a], a_in_registers: true, ..PLAIN });
    }
}

#[test]
fn widths_and_scales() {
    good(Case { n: 24, ..PLAIN });
    for a_in_registers in [false, true] {
        for types in [["f32", "f16", "f16"], ["f32", "tf32", "tf32"], ["f32", "e4m3", "e4m3"]] {
            good(Case { types, a_in_registers, negate: true, ..PLAIN });
        }
    }
}

#[test]
fn operands_are_checked() {
    let check = |before: &str, after: &str| {
        let report = PLAIN.run(&PLAIN.body(before, after), Schedule::Forward).unwrap_err();
        report.check
    };
    assert_eq!(check("bar.sync 0;\n", WAIT), Check::MissingFence);
    assert_eq!(check("fence.proxy.async.shared::cta;\n", WAIT), Check::SharedRace);
    // An operand is written while it may still be read.
    let one = "setp.eq.u32 %p3, %r63, 0;\n@%p3 st.shared.b32 [%r10], %r1;\n";
    let body = |wait: &str| PLAIN.body(FENCE, &format!("{wait}bar.sync 0;\n{one}"));
    PLAIN.run(&body(WAIT), Schedule::Forward).unwrap();
    assert_eq!(PLAIN.run(&body(""), Schedule::Forward).unwrap_err().check, Check::SharedRace);
    let late = WAIT.replace('0', "1");
    assert_eq!(PLAIN.run(&body(&late), Schedule::Forward).unwrap_err().check, Check::SharedRace);
    let never = PLAIN.body(FENCE, WAIT).replace("tile[32768]", "tile[24576]");
    assert!(PLAIN.run(&never, Schedule::Forward).is_err());
    // A descriptor with a base offset, lanes with different ones, half a warp group.
    let offset = "mov.u64 %rd12, 562949953421312;\nor.b64 %rd11, %rd11, %rd12;\n";
    assert_eq!(check(&format!("{FENCE}{offset}"), WAIT), Check::Trap);
    let apart = "cvt.u64.u32 %rd12, %r63;\nadd.u64 %rd11, %rd11, %rd12;\n";
    assert_eq!(check(&format!("{FENCE}{apart}"), WAIT), Check::Trap);
    let part = "setp.lt.u32 %p3, %r63, 8;\n@%p3 bra over;\n";
    let body = PLAIN.body(&format!("{FENCE}{part}"), &format!("{WAIT}over:\n"));
    assert_eq!(PLAIN.run(&body, Schedule::Forward).unwrap_err().check, Check::InactiveLane);
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    let regs = |n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("%f{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    for (form, operands) in [
        ("m64n8k16.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0", regs(4))),
        ("m64n8k16.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 2, 1, 0, 0", regs(4))),
        ("m64n8k16.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(2))),
        ("m64n8k16.bf16.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(4))),
        ("m64n12k16.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(6))),
        ("m64n8k8.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(4))),
        ("m64n8k8.f32.tf32.tf32", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(4))),
        ("m64n40k32.s32.s8.s8", format!("{}, %rd0, %rd1, %p0", regs(20))),
        ("sp.m64n8k32.f32.bf16.bf16", format!("{}, %rd0, %rd1, %p0, 1, 1, 0, 0", regs(4))),
    ] {
        let text = format!(
            ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k() {{\n\
             .reg .b32 %f<32>;\n.reg .b64 %rd<2>;\n.reg .pred %p<2>;\n\
             wgmma.mma_async.sync.aligned.{form} {operands};\nret;\n}}\n"
        );
        assert!(refused(&text).starts_with("PTX line 8"), "{form}: {}", refused(&text));
    }
}
