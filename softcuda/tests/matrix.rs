//! `mma` against plain matrix products, with fragments laid out as the table of an independent package has
//! them (`data/layouts.py`).

#[path = "data/numbers.rs"]
mod numbers;

use std::collections::HashMap;

use numbers::{Numbers, encode, width};
use softcuda::ir::{Kernel, LANES, Mask, Op, Reg, Src};
use softcuda::lower::kernels;
use softcuda::matrix::{Matrix, Mma};
use softcuda::ptx::parse;
use softcuda::registers::{Place, Registers};

/// One row of the table: `places[thread][value]`.
struct Layout {
    name: &'static str,
    operand: &'static str,
    places: Vec<Vec<usize>>,
}

fn layouts() -> Vec<Layout> {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let (name, operand) = (words.next().unwrap(), words.next().unwrap());
        let numbers: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        let places: Vec<Vec<usize>> =
            numbers[2..].chunks(numbers[1]).map(<[usize]>::to_vec).collect();
        assert_eq!(places.len(), numbers[0]);
        Layout { name, operand, places }
    };
    include_str!("data/layouts.txt").lines().map(line).collect()
}

fn place() -> Place {
    Place {
        tid: [std::array::from_fn(|lane| lane as u32), [0; LANES], [0; LANES]],
        block_dim: [32, 1, 1],
        block: [0; 3],
        grid: [1; 3],
        warp: 0,
        warps: 1,
        linear_block: 0,
        cluster_dim: [1; 3],
        cluster_rank: 0,
        explicit_cluster: false,
        launch: 1,
        static_shared: 0,
        dynamic_shared: 0,
        multiprocessors: 1,
        clock: 0,
        frame: 0,
    }
}

/// A kernel whose only instruction is `opcode` on registers `%d`, `%a`, `%b`, `%c` of so many each.
fn kernel(opcode: &str, types: [&str; 3], counts: [usize; 4]) -> Result<Kernel, String> {
    let [d, a, b, c] = counts;
    let names = |name: &str, n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("%{name}{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let text = format!(
        ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k() {{\n\
         .reg .{0} %d<{d}>;\n.reg .{1} %a<{a}>;\n.reg .{1} %b<{b}>;\n.reg .{2} %c<{c}>;\n\
         {opcode} {3}, {4}, {5}, {6};\nret;\n}}\n",
        types[0],
        types[1],
        types[2],
        names("d", d),
        names("a", a),
        names("b", b),
        names("c", c),
    );
    let module = parse(&text).map_err(|error| error.to_string())?;
    let kernels = kernels(&module, &HashMap::new()).map_err(|error| error.to_string())?;
    Ok(kernels.into_iter().next().unwrap())
}

/// Registers of every lane, with `matrix` (column by column) laid out by `layout`.
fn packed(layout: &Layout, ty: &str, matrix: &[i32]) -> Vec<[u64; LANES]> {
    let width = width(ty);
    let per = (32 / width).max(1);
    let mut registers = vec![[0; LANES]; layout.places[0].len() / per];
    for (lane, places) in layout.places.iter().enumerate() {
        for (value, &at) in places.iter().enumerate() {
            registers[value / per][lane] |= encode(ty, matrix[at]) << (value % per * width);
        }
    }
    registers
}

fn set(regs: &mut Registers, src: Src, values: &[u64; LANES]) {
    match src {
        Src::Reg(Reg::R(slot)) => regs.write64(Reg::R(slot), Mask::MAX, values),
        Src::Reg(Reg::D(slot)) => regs.write64(Reg::D(slot), Mask::MAX, values),
        other => panic!("{other:?} is not a register"),
    }
}

fn mma(kernel: &Kernel) -> &Mma {
    let Op::Matrix(op) = &kernel.code[0].op else { panic!("no matrix instruction") };
    let Matrix::Mma(mma) = &**op else { panic!("no product") };
    mma
}

/// Executes `opcode` on matrices of small integers and compares every element of D.
fn check(layouts: &[&Layout; 3], opcode: &str, [d, a, b]: [&str; 3], bits: Option<&str>) {
    let [la, lb, lc] = layouts;
    let registers = |layout: &Layout, ty: &str| layout.places[0].len() / (32 / width(ty)).max(1);
    let counts = [registers(lc, d), registers(la, a), registers(lb, b), registers(lc, d)];
    let (f, i) = (if a == "f64" { "f64" } else { "b32" }, if d == "f16" { "b32" } else { d });
    let kernel = kernel(opcode, [i, f, i], counts).unwrap();
    let mma = mma(&kernel);
    let Mma { m, n, k, .. } = *mma;
    let mut numbers = Numbers(m as u64 * 31 + k as u64);
    let (ma, mb) = (numbers.matrix(m * k, a), numbers.matrix(k * n, b));
    let mc = numbers.matrix(m * n, d);
    let mut regs = Registers::new(kernel.slots);
    let fill = |regs: &mut Registers, sources: &[Src], values: Vec<[u64; LANES]>| {
        sources.iter().zip(&values).for_each(|(&src, values)| set(regs, src, values));
    };
    fill(&mut regs, &mma.a_regs, packed(la, a, &ma));
    fill(&mut regs, &mma.b_regs, packed(lb, b, &mb));
    fill(&mut regs, &mma.c_regs, packed(lc, d, &mc));
    mma.execute(&mut regs, &place());

    let mut expected = mc;
    for row in 0..m {
        for column in 0..n {
            for depth in 0..k {
                let (x, y) = (ma[row + m * depth], mb[column + n * depth]);
                expected[row + m * column] += match bits {
                    Some("xor") => x ^ y,
                    Some(_) => x & y,
                    None => x * y,
                };
            }
        }
    }
    let read = |reg: Reg| match reg {
        Reg::R(slot) => regs.r()[slot as usize].map(u64::from),
        Reg::D(slot) => regs.d()[slot as usize],
        other => panic!("{other:?}"),
    };
    let found: Vec<[u64; LANES]> = mma.d_regs.iter().map(|&reg| read(reg)).collect();
    assert_eq!(found, packed(lc, d, &expected), "{opcode}");
}

#[test]
fn every_shape_multiplies_as_its_layout_says() {
    let layouts = layouts();
    let mut shapes = 0;
    for three in layouts.chunks(3) {
        let [la, lb, lc] = three else { break };
        let Some(rest) = la.name.strip_prefix("mma.") else { break };
        assert_eq!((la.operand, lb.operand, lc.operand), ("a", "b", "c"));
        shapes += 1;
        let (shape, bits) = rest.split_once('.').unwrap();
        let all = |shape: &str, types: &[(&str, &str, &str)], suffix: &str, bits: Option<&str>| {
            for &(d, a, b) in types {
                let opcode = format!("mma.sync.aligned.{shape}.row.col.{d}.{a}.{b}.{d}{suffix}");
                check(&[la, lb, lc], &opcode, [d, a, b], bits);
            }
        };
        let fours = ["s4", "u4"].map(|a| ["s4", "u4"].map(|b| ("s32", a, b)));
        let eights = ["s8", "u8"].map(|a| ["s8", "u8"].map(|b| ("s32", a, b)));
        let floats = ["e4m3", "e5m2"].map(|a| ["e4m3", "e5m2"].map(|b| ("f32", a, b)));
        match bits {
            "64" => all(shape, &[("f64", "f64", "f64")], "", None),
            "32" => all(shape, &[("f32", "tf32", "tf32")], "", None),
            "16" => {
                let types = [("f32", "f16", "f16"), ("f16", "f16", "f16"), ("f32", "bf16", "bf16")];
                all(shape, &types, "", None);
            }
            "8" => {
                all(shape, eights.as_flattened(), "", None);
                if shape != "m8n8k16" {
                    all(shape, floats.as_flattened(), "", None);
                    all(
                        shape,
                        &floats
                            .as_flattened()
                            .iter()
                            .map(|&(_, a, b)| ("f16", a, b))
                            .collect::<Vec<_>>(),
                        "",
                        None,
                    );
                }
            }
            "4" => all(shape, fours.as_flattened(), "", None),
            _ => {
                all(shape, &[("s32", "b1", "b1")], ".xor.popc", Some("xor"));
                all(shape, &[("s32", "b1", "b1")], ".and.popc", Some("and"));
            }
        }
    }
    assert_eq!(shapes, 17);
}

/// One `m16n8k16` on the given words; every lane's registers hold the same.
fn uniform(opcode: &str, types: [&str; 2], a: u32, b: u32, c: u32) -> u32 {
    let [d, bits] = types;
    let values = if d == "f16" { 2 } else { 4 };
    let a_words = if bits == "16" { 4 } else { 2 };
    let register = if d == "f16" { "b32" } else { d };
    let counts = [values, a_words, a_words / 2, values];
    let kernel = kernel(opcode, [register, "b32", register], counts).unwrap();
    let mma = mma(&kernel);
    let mut regs = Registers::new(kernel.slots);
    for (sources, word) in [(&mma.a_regs, a), (&mma.b_regs, b), (&mma.c_regs, c)] {
        sources.iter().for_each(|&src| set(&mut regs, src, &[u64::from(word); LANES]));
    }
    mma.execute(&mut regs, &place());
    let Reg::R(slot) = mma.d_regs[0] else { panic!("a 32-bit register") };
    assert!(regs.r()[slot as usize].iter().all(|&word| word == regs.r()[slot as usize][0]));
    regs.r()[slot as usize][0]
}

#[test]
fn integers_wrap_or_saturate() {
    let opcode = |suffix: &str| format!("mma.sync.aligned.m16n8k16.row.col{suffix}.s32.u8.s8.s32");
    let run = |suffix: &str, b, c| uniform(&opcode(suffix), ["s32", "8"], 0xffff_ffff, b, c);
    let (most, least) = (i32::MAX as u32, i32::MIN as u32);
    // 16 × 255 × 127 and 16 × 255 × -128.
    let (up, down) = (518_160u32, -522_240i32 as u32);
    assert_eq!(run("", 0x7f7f_7f7f, most), most.wrapping_add(up));
    assert_eq!(run(".satfinite", 0x7f7f_7f7f, most), most);
    assert_eq!(run("", 0x8080_8080, least), least.wrapping_add(down));
    assert_eq!(run(".satfinite", 0x8080_8080, least), least);
    assert_eq!(run(".satfinite", 0x8080_8080, 5), down.wrapping_add(5));
}

#[test]
fn infinities_and_nans_are_kept() {
    let f32s = |a, b, c: f32| {
        let opcode = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";
        f32::from_bits(uniform(opcode, ["f32", "16"], a, b, c.to_bits()))
    };
    // f16: 0x7c00 is infinite, 0x0001 the smallest subnormal, 2^-24.
    assert_eq!(f32s(0x7c00_7c00, 0x3c00_3c00, 1.0), f32::INFINITY);
    assert_eq!(f32s(0x0001_0001, 0x0001_0001, 0.0), 16.0 * 2f32.powi(-48));
    let nan = f32s(0x7c00_7c00, 0x0000_0000, 1.0);
    assert_eq!(nan.to_bits(), 0x7fff_ffff);
    let opcode = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16";
    let f16s = |a, b, c| uniform(opcode, ["f16", "16"], a, b, c);
    // 16 × 64 × 64 is 65536: beyond f16. The sum is rounded once: 2048 + 16/16 + … keeps its 17.
    assert_eq!(f16s(0x5400_5400, 0x5400_5400, 0), 0x7c00_7c00);
    assert_eq!(f16s(0x3c00_3c00, 0x3c00_3c00, 0x6800_6800), 0x6808_6808);
}

#[test]
fn sums_are_within_the_bound_of_f32_accumulation() {
    let kernel = kernel(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        ["f32", "b32", "f32"],
        [4, 4, 2, 4],
    )
    .unwrap();
    let mma = mma(&kernel);
    let layouts = layouts();
    let of = |operand: &str| {
        let mut found = layouts.iter().filter(|l| l.name == "mma.m16n8k16.16");
        found.find(|l| l.operand == operand).unwrap()
    };
    let mut numbers = Numbers(7);
    let mut random = |n: usize, bits: u32| -> Vec<f32> {
        let one = |_| {
            let value = numbers.next() as f32 / 2f32.powi(30) - 1.0;
            let scaled = value * 2f32.powi((numbers.next() % 9) as i32 - 4);
            f32::from_bits(scaled.to_bits() >> (32 - bits) << (32 - bits))
        };
        (0..n).map(one).collect()
    };
    let (a, b, c) = (random(256, 16), random(128, 16), random(128, 32));
    let mut regs = Registers::new(kernel.slots);
    let mut fill = |sources: &[Src], layout: &Layout, matrix: &[f32], per: usize| {
        for (r, &src) in sources.iter().enumerate() {
            let word = |lane: usize| {
                let at = |j: usize| matrix[layout.places[lane][r * per + j]].to_bits();
                u64::from(if per == 2 { at(0) >> 16 | at(1) } else { at(0) })
            };
            set(&mut regs, src, &std::array::from_fn(word));
        }
    };
    fill(&mma.a_regs, of("a"), &a, 2);
    fill(&mma.b_regs, of("b"), &b, 2);
    fill(&mma.c_regs, of("c"), &c, 1);
    mma.execute(&mut regs, &place());
    for (r, &reg) in mma.d_regs.iter().enumerate() {
        let Reg::R(slot) = reg else { panic!("a 32-bit register") };
        for lane in 0..LANES {
            let at = of("c").places[lane][r];
            let (row, column) = (at % 16, at / 16);
            let terms: Vec<f64> = (0..16)
                .map(|k| f64::from(a[row + 16 * k]) * f64::from(b[column + 8 * k]))
                .chain([f64::from(c[at])])
                .collect();
            let (exact, sizes): (f64, f64) =
                (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum());
            let found = f64::from(f32::from_bits(regs.r()[slot as usize][lane]));
            assert!((found - exact).abs() <= 17.0 * sizes * 2f64.powi(-24), "{found} {exact}");
        }
    }
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    let refused = |opcode: &str, counts| {
        let error = kernel(opcode, ["b32", "b32", "b32"], counts).unwrap_err();
        assert!(error.starts_with("PTX line 9"), "{opcode}: {error}");
    };
    for opcode in [
        "mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.col.row.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.s8.s8.f32",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32",
        "mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e3m2.e3m2.f32",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32",
    ] {
        refused(opcode, [4, 4, 2, 4]);
    }
    // The right form with a register too few.
    refused("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", [4, 3, 2, 4]);
}
