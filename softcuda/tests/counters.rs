//! Counters equal what one derives by hand, and don't depend on cores or, for these kernels, schedules.

mod common;

use common::{Arg, Program, nvcc};
use softcuda::counters::{Class, Counter, Counters};
use softcuda::machine::Schedule;

fn program(source: &str, arch: &str, kernel: &str) -> Option<Program> {
    let mut program = Program::module(&nvcc::ptx(source, arch)?);
    program.select(kernel);
    Some(program)
}

#[test]
fn a_vector_copy_moves_each_sector_once() {
    let Some(program) = program("kernels/cost.cu", "sm_80", "copy") else { return };
    let n = 4096u64; // floats, both ways
    let from = program.f32s(&vec![1.0; n as usize]);
    let to = program.unwritten(4 * n);
    let counted = program.launch(8, 128, &[Arg::U64(from), Arg::U64(to)]).expect("no fault");
    let warps = n / 4 / 32;
    assert_eq!(counted.total(Counter::GlobalRequests), 2 * warps);
    assert_eq!(counted.total(Counter::GlobalBytes), 2 * 4 * n);
    assert_eq!(counted.total(Counter::GlobalNeeded), 2 * 4 * n);
    assert_eq!(counted.total(Counter::GlobalSectors), 2 * 4 * n / 32);
    let classes = counted.by_class(program.kernel());
    assert_eq!(classes[&Class::Store], warps);
    assert_eq!(counted.total(Counter::SharedWavefronts), 0);
    assert_eq!(counted.total(Counter::Divergent), 0);
}

#[test]
fn a_strided_gather_touches_a_sector_per_lane() {
    let Some(program) = program("kernels/cost.cu", "sm_80", "gather") else { return };
    let from = program.f32s(&vec![1.0; 64 * 16]);
    for (stride, sectors) in [(1, 4), (2, 8), (4, 16), (8, 32), (16, 32)] {
        let to = program.unwritten(4 * 64);
        let args = [Arg::U64(from), Arg::U64(to), Arg::I32(stride)];
        let counted = program.launch(1, 64, &args).expect("no fault");
        // Two warps read, two warps write four sectors each.
        assert_eq!(counted.total(Counter::GlobalSectors), 2 * sectors + 2 * 4, "stride {stride}");
        assert_eq!(counted.total(Counter::GlobalNeeded), 2 * 64 * 4);
    }
}

#[test]
fn padding_removes_the_conflicts_of_a_transpose() {
    for (name, column) in [("unpadded", 32), ("padded", 1)] {
        let Some(program) = program("kernels/cost.cu", "sm_80", name) else { return };
        let n = 64u64;
        let from = program.f32s(&vec![1.0; (n * n) as usize]);
        let to = program.unwritten(4 * n * n);
        let args = [Arg::U64(from), Arg::U64(to), Arg::I32(n as i32)];
        let counted = program.launch_3d([2, 2, 1], [32, 8, 1], [1; 3], 0, &args).expect("no fault");
        let rows = n * n / 32; // warps' worth of numbers
        assert_eq!(counted.total(Counter::SharedIdeal), 2 * rows, "{name}");
        assert_eq!(counted.total(Counter::SharedWavefronts), rows + column * rows, "{name}");
        assert_eq!(counted.total(Counter::GlobalSectors), 2 * 4 * rows, "{name}");
        let barriers = counted.by_class(program.kernel())[&Class::Barrier];
        assert_eq!(barriers, 4 * 8, "a barrier per warp");
        let lines = counted.by_line(program.kernel(), Counter::SharedWavefronts);
        let mut waves: Vec<u64> = lines.iter().map(|(_, waves)| *waves).collect();
        waves.sort_unstable();
        let mut expected = [rows, column * rows];
        expected.sort_unstable();
        assert_eq!(waves, expected, "{name}: one line fills, one drains");
    }
}

fn gemm(program: &Program, m: u64, n: u64, k: u64) -> Counters {
    let zeros = |count: u64| program.bytes(&vec![0; 2 * count as usize]);
    let args = [
        Arg::U64(zeros(m * k)),
        Arg::U64(zeros(n * k)),
        Arg::U64(program.unwritten(4 * m * n)),
        Arg::I32(n as i32),
        Arg::I32(k as i32),
    ];
    let grid = [n as u32 / 64, m as u32 / 64, 1];
    program.launch_3d(grid, [128, 1, 1], [1; 3], 4 * 64 * 40 * 2, &args).expect("no fault")
}

#[test]
fn a_tiled_product_costs_what_its_tiles_cost() {
    let Some(mut program) = program("kernels/gemm.cu", "sm_80", "gemmILi0E") else { return };
    let (m, n, k) = (128, 192, 256);
    let counted = gemm(&program, m, n, k);
    assert_eq!(counted.total(Counter::MatrixOperations), m * n * k);
    // Each block reads its 64 rows of A and of B once, and writes its tile; 4-byte stores of 8 rows
    // of 32 bytes per warp instruction.
    let blocks = m / 64 * (n / 64);
    let read = blocks * 2 * 64 * k * 2;
    assert_eq!(counted.total(Counter::GlobalBytes), read + 4 * m * n);
    let stores = m * n / 32;
    assert_eq!(counted.total(Counter::GlobalRequests), read / 16 / 32 + stores);
    // Rows of 64 bytes are two sectors; a store instruction writes every other number of 8 sectors.
    assert_eq!(counted.total(Counter::GlobalSectors), read / 32 + stores * 8);
    let classes = counted.by_class(program.kernel());
    // Two barriers per 32 of k and warp.
    assert_eq!(classes[&Class::Barrier], blocks * 4 * k / 32 * 2);
    // Per warp and 16 of k: 4 ldmatrix of 4 conflict-free wavefronts each, and what cp.async writes.
    let loads = blocks * 4 * k / 16 * 4 * 4;
    let copies = read / 16 / 32 * 4;
    assert_eq!(counted.total(Counter::SharedIdeal), loads + copies);
    // A quarter warp copies two rows of 64 bytes, 80 apart: they share four banks.
    assert_eq!(counted.total(Counter::SharedWavefronts), loads + 2 * copies);
    // The same on two cores and in another order.
    program.settings.threads = 2;
    assert_eq!(gemm(&program, m, n, k), counted);
    program.settings.schedule = Schedule::Reverse;
    assert_eq!(gemm(&program, m, n, k), counted);
}
