//! Correct kernels pass under every schedule; every planted bug is caught, by a check that names the
//! right source line or, where the source says so, by the result.

mod common;

use common::{Arg, Program, nvcc};
use softcuda::fault::Report;
use softcuda::machine::Schedule;
use softcuda::tensor_map::{DataType, Interleave, Mode, Swizzle, TensorMap};

const SCHEDULES: [Schedule; 4] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)];

/// `Ok(true)` if the result is right.
type Outcome = Result<bool, Box<Report>>;

/// Runs kernel `name` of kernels/`name`.cu and its mutants. `launch` runs the mutant selected in the
/// program; it gets the mutant's number too, for bugs that are the caller's.
fn check(name: &str, arch: &str, callers: &[u32], launch: impl Fn(&Program, u32) -> Outcome) {
    let file = format!("kernels/{name}.cu");
    let Some(ptx) = nvcc::ptx(&file, arch) else { return };
    let path = format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(path).expect("the source is there");
    let instances = marked(&source, "INSTANCE(").into_iter();
    let mutants: Vec<u32> =
        instances.filter_map(|(_, n)| n.split(')').next()?.parse().ok()).collect();
    let mut program = Program::module(&ptx);
    program.settings.limit = 20_000_000;
    let mut missed = Vec::new();
    for mutant in mutants.into_iter().chain(callers.iter().copied()) {
        let at = |mark: &str| -> Vec<u32> {
            let lines = marked(&source, &format!("// {mark} ")).into_iter();
            let named = lines.filter(|(_, rest)| numbers(rest).any(|n| n == mutant));
            named.map(|(line, _)| line).collect()
        };
        let (caught, result) = (at("caught"), at("result"));
        assert!(
            mutant == 0 || !caught.is_empty() || !result.is_empty(),
            "{name} {mutant} unmarked"
        );
        let instance = if callers.contains(&mutant) { 0 } else { mutant };
        program.select(&format!("{name}ILi{instance}E"));
        let mut found = false;
        for schedule in SCHEDULES {
            program.settings.schedule = schedule;
            match launch(&program, mutant) {
                Ok(true) => {}
                _ if mutant == 0 => missed.push(format!("{name} under {schedule:?} is refused")),
                Ok(false) => {
                    found |= !result.is_empty();
                    if result.is_empty() {
                        missed.push(format!(
                            "{name} {mutant}, {schedule:?}: only the result is wrong"
                        ));
                    }
                }
                Err(report) => {
                    let right = lines(&report, &file).iter().any(|line| caught.contains(line));
                    found |= right;
                    if !right {
                        missed.push(format!("{name} {mutant}, {schedule:?}, elsewhere: {report}"));
                    }
                }
            }
        }
        if mutant > 0 && !found {
            missed.push(format!("{name} {mutant} is not caught"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Lines that contain a mark, from 1, with what follows the mark.
fn marked<'s>(source: &'s str, mark: &str) -> Vec<(u32, &'s str)> {
    let lines = source.lines().zip(1..);
    let parts = lines.flat_map(|(text, line)| {
        text.match_indices(mark)
            .map(move |(at, _)| (line, &text[at + mark.len()..]))
            .collect::<Vec<_>>()
    });
    parts.collect()
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split([' ', ',']).map_while(|word| word.parse().ok())
}

/// The lines of `file` that a report names.
fn lines(report: &Report, file: &str) -> Vec<u32> {
    let lines = [Some(&report.line), report.other.as_ref().map(|other| &other.line)];
    let places =
        lines.into_iter().flatten().flat_map(|line| line.source.iter().chain(&line.inlined));
    places.filter(|(path, _)| path.ends_with(file)).map(|(_, line)| *line).collect()
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 101) as f32 - 50.0).collect()
}

#[test]
fn transpose() {
    check("transpose", "sm_80", &[], |program, _| {
        let (rows, cols) = (70, 41);
        let input = ramp(rows * cols);
        let (from, to) = (program.f32s(&input), program.unwritten((rows * cols * 4) as u64));
        let args = [Arg::U64(from), Arg::U64(to), Arg::I32(rows as i32), Arg::I32(cols as i32)];
        program.launch_3d([2, 3, 1], [32, 8, 1], [1; 3], 0, &args)?;
        let output = program.read_f32s(to, rows * cols);
        Ok((0..rows * cols).all(|i| output[i] == input[i % rows * cols + i / rows]))
    });
}

#[test]
fn reduce() {
    check("reduce", "sm_80", &[], |program, _| {
        let (rows, n) = (3, 300);
        let input = ramp(rows * n);
        let (from, sums) = (program.f32s(&input), program.unwritten(4 * rows as u64));
        let total = program.f32s(&[0.0]);
        let args = [Arg::U64(from), Arg::U64(sums), Arg::U64(total), Arg::I32(n as i32)];
        program.launch(rows as u32, 256, &args)?;
        let expected: Vec<f32> = input.chunks(n).map(|row| 2.0 * row.iter().sum::<f32>()).collect();
        let total = program.read_f32s(total, 1)[0];
        Ok(program.read_f32s(sums, rows) == expected && total == 1.5 * expected.iter().sum::<f32>())
    });
}

#[test]
fn histogram() {
    check("histogram", "sm_80", &[], |program, _| {
        let n = 4096;
        let input: Vec<u8> = (0..n).map(|i| ((i * i + i / 7) % 251) as u8).collect();
        let (from, bins) = (program.bytes(&input), program.u32s(&[0; 256]));
        program.launch(3, 128, &[Arg::U64(from), Arg::U64(bins), Arg::I32(n)])?;
        let mut expected = [0; 256];
        input.iter().for_each(|&v| expected[usize::from(v)] += 1);
        Ok(program.read_u32s(bins, 256) == expected)
    });
}

#[test]
fn scan() {
    check("scan", "sm_80", &[10], |program, mutant| {
        let (n, threads) = (1000usize, 256u32);
        let input: Vec<i32> = (0..n as i32).map(|i| i * 31 % 17 - 5).collect();
        let blocks = n.div_ceil(threads as usize);
        let (from, to) = (program.i32s(&input), program.unwritten(4 * n as u64));
        let prefix = program.unwritten(4 * blocks as u64);
        let ready = program.u32s(&vec![0; blocks]);
        if mutant == 10 {
            program.device.free(from);
        }
        let args = [from, to, prefix, ready].map(Arg::U64).to_vec();
        program.launch(blocks as u32, threads, &[args, vec![Arg::I32(n as i32)]].concat())?;
        let mut sum = 0;
        let expected = input.iter().map(|v| {
            sum += v;
            sum as u32
        });
        Ok(program.read_u32s(to, n) == expected.collect::<Vec<_>>())
    });
}

/// bf16 bits of small whole numbers, exactly.
fn bf16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// `A · Bᵀ`, `A` `[m, k]`, `B` `[n, k]`: whole numbers, so exact in any order.
fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.chunks(k).flat_map(|x| b.chunks(k).map(move |y| dot(x, y))).collect()
}

fn small(n: usize, step: usize) -> Vec<f32> {
    (0..n).map(|i| (i * step % 13) as f32 - 6.0).collect()
}

#[test]
fn gemm() {
    // Mutant 12: the caller reserves too little shared memory.
    check("gemm", "sm_80", &[12], |program, mutant| {
        let (m, n, k) = (128, 64, 128);
        let (a, b) = (small(m * k, 7), small(n * k, 5));
        let (pa, pb) = (program.bytes(&bf16s(&a)), program.bytes(&bf16s(&b)));
        let to = program.unwritten((m * n * 4) as u64);
        let shared = if mutant == 8 { 4 * 64 * 41 * 2 } else { 4 * 64 * 40 * 2 };
        let shared = if mutant == 12 { shared / 2 } else { shared };
        let args =
            [Arg::U64(pa), Arg::U64(pb), Arg::U64(to), Arg::I32(n as i32), Arg::I32(k as i32)];
        program.launch_3d([1, 2, 1], [128, 1, 1], [1; 3], shared, &args)?;
        Ok(program.read_f32s(to, m * n) == product(&a, &b, k))
    });
}

/// The map of a row-major bf16 matrix, in boxes of 64 x 64, rows of 128 bytes swizzled.
fn tensor_map(address: u64, rows: usize, columns: usize) -> Arg {
    let map = TensorMap {
        data_type: DataType::Bf16,
        rank: 2,
        address,
        sizes: [columns as u64, rows as u64, 1, 1, 1],
        strides: [2 * columns as u64, 0, 0, 0],
        mode: Mode::Tiled { extent: [64, 64, 1, 1, 1] },
        element_strides: [1; 5],
        interleave: Interleave::None,
        swizzle: Swizzle::Bytes128,
        promotion: 0,
        fill_nan: false,
    };
    Arg::Bytes(map.encode().expect("a valid map").to_vec())
}

#[test]
fn wgmma() {
    check("wgmma", "sm_90a", &[], |program, _| {
        let (m, n, k) = (128, 64, 256);
        let (a, b) = (small(m * k, 7), small(n * k, 5));
        let (pa, pb) = (program.bytes(&bf16s(&a)), program.bytes(&bf16s(&b)));
        let to = program.unwritten((m * n * 4) as u64);
        let (n32, k32) = (Arg::I32(n as i32), Arg::I32(k as i32));
        let maps = [tensor_map(pa, m, k), tensor_map(pb, n, k)];
        let args = [maps.to_vec(), vec![Arg::U64(to), Arg::F32(2.0), n32, k32]].concat();
        program.launch_3d([1, 2, 1], [128, 1, 1], [1; 3], 4 * 64 * 64 * 2, &args)?;
        let twice: Vec<f32> = a.iter().map(|v| 2.0 * v).collect();
        Ok(program.read_f32s(to, m * n) == product(&twice, &b, k))
    });
}
