//! How fast kernels execute with all checks: lane-instructions a second, on one core and on all.
//!
//! `cargo bench -p softcuda [-- WORD]` prints a table, of the kernels whose name holds the word if there
//! is one. They are those of the tests; nvcc is needed.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Arg, Program, nvcc};
use softcuda::counters::Counter;

const RUNS: usize = 5;

fn main() {
    println!("| kernel | lane-instructions | threads | million a second | against one |");
    println!("|---|---|---|---|---|");
    if let Some(program) = program("kernels/gemm.cu", "gemmILi0E") {
        let size = 512u64;
        let zeros = || program.bytes(&vec![0; 2 * (size * size) as usize]);
        let to = program.unwritten(4 * size * size);
        let (n, shared) = (Arg::I32(size as i32), 4 * 64 * 40 * 2);
        let args = [Arg::U64(zeros()), Arg::U64(zeros()), Arg::U64(to), n.clone(), n];
        let grid = [size as u32 / 64, size as u32 / 64, 1];
        report("bf16 GEMM 512³ (cp.async, ldmatrix, mma)", program, |program| {
            program.launch_3d(grid, [128, 1, 1], [1; 3], shared, &args)
        });
    }
    if let Some(program) = program("kernels/cost.cu", "padded") {
        let n = 1024u64;
        let from = program.f32s(&vec![1.0; (n * n) as usize]);
        let to = program.unwritten(4 * n * n);
        let args = [Arg::U64(from), Arg::U64(to), Arg::I32(n as i32)];
        report("transpose 1024² through shared memory", program, |program| {
            program.launch_3d([32, 32, 1], [32, 8, 1], [1; 3], 0, &args)
        });
    }
    if let Some(program) = program("kernels/reduce.cu", "reduceILi0E") {
        let (rows, n) = (256u32, 4096);
        let from = program.f32s(&vec![1.0; rows as usize * n]);
        let (sums, total) = (program.unwritten(4 * u64::from(rows)), program.f32s(&[0.0]));
        let args = [Arg::U64(from), Arg::U64(sums), Arg::U64(total), Arg::I32(n as i32)];
        // Its blocks add to one float: they run in order, on one core.
        report("row sums 256 × 4096 (shuffles, atomics)", program, |program| {
            program.launch_3d([rows, 1, 1], [256, 1, 1], [1; 3], 0, &args)
        });
    }
}

fn program(source: &str, kernel: &str) -> Option<Program> {
    let mut program = Program::module(&nvcc::ptx(source, "sm_80")?);
    program.select(kernel);
    Some(program)
}

/// The median of a few runs, on one core and on all.
fn report(
    name: &str,
    mut program: Program,
    launch: impl Fn(&Program) -> Result<softcuda::counters::Counters, Box<softcuda::fault::Report>>,
) {
    let word = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    if word.is_some_and(|word| !name.contains(&word)) {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut one = None;
    for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
        program.settings.threads = threads;
        let mut lanes = 0;
        let mut times: Vec<f64> = (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                let counters = launch(&program).unwrap_or_else(|report| panic!("{report}"));
                lanes = counters.total(Counter::Lanes);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let rate = lanes as f64 / times[RUNS / 2] / 1e6;
        let against = rate / *one.get_or_insert(rate);
        println!("| {name} | {lanes} | {threads} | {rate:.0} | {against:.2} |");
    }
}
