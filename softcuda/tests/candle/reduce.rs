//! Reductions over the last dimension and over any, and sorting.

use super::family::{Family, size};
use super::number::Dtype::{self, Bf16, F16, F32, F64, I64, U8, U32};
use super::number::Tolerance::Exact;
use super::number::Value::{self, Float, Int};
use super::pointwise::View::{Contiguous, Transposed};
use super::pointwise::{COUNT, DIMS, View};
use crate::common::Arg;

const DTYPES: [Dtype; 7] = [U8, U32, I64, Bf16, F16, F32, F64];

/// A matrix whose rows are reduced, as it lies in memory.
struct Rows {
    rows: usize,
    columns: usize,
    transposed: bool,
    memory: Vec<Value>,
}

impl Rows {
    fn row(&self, row: usize) -> Vec<Value> {
        let [down, right] = self.strides();
        (0..self.columns).map(|column| self.memory[row * down + column * right]).collect()
    }

    fn strides(&self) -> [usize; 2] {
        if self.transposed { [1, self.rows] } else { [self.columns, 1] }
    }

    fn info(&self) -> Vec<usize> {
        [[self.rows, self.columns], self.strides()].concat()
    }
}

/// Whole numbers whose sums every type holds exactly, in any order. Each row has one smallest and one
/// largest: among equals the kernels take any.
fn matrix(
    family: &mut Family,
    dtype: Dtype,
    rows: usize,
    columns: usize,
    transposed: bool,
) -> Rows {
    let random = &mut family.random;
    let (low, middle) = if dtype.is_float() || dtype == I64 { (-4, 0) } else { (1, 5) };
    let mut memory: Vec<i64> = (0..rows * columns).map(|_| low + random.below(9) as i64).collect();
    let [down, right] = if transposed { [1, rows] } else { [columns, 1] };
    for row in 0..rows {
        let at = random.below(columns);
        memory[row * down + at * right] = middle + 5;
        memory[row * down + (at + 1 + random.below(columns - 1)) % columns * right] = middle - 5;
    }
    let memory = memory.into_iter().map(|x| dtype.round(Int(x))).collect();
    Rows { rows, columns, transposed, memory }
}

pub fn reduce(family: &mut Family) {
    for dtype in DTYPES {
        // Fewer columns than threads, some rounds of a block, and a part of one.
        for (columns, transposed) in [(100, false), (100, true), (2500, false), (2500, true)] {
            let matrix = matrix(family, dtype, 3, columns, transposed);
            fast(family, dtype, &matrix);
        }
        let transposed = matrix(family, dtype, 150, 7, true);
        sum_small(family, dtype, &transposed);
        let contiguous = matrix(family, dtype, 150, 31, false);
        sum_small(family, dtype, &contiguous);
    }
    for dtype in [Bf16, F16, F32, F64, U32] {
        for (dims, view) in [(&[1][..], Contiguous), (&[1], Transposed), (&[1, 2], Contiguous)] {
            sum(family, dtype, dims, view);
        }
    }
}

/// Position of the element that `better` prefers to all others.
fn position(row: &[Value], better: fn(f64, f64) -> bool) -> usize {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        best = if better(value.float(), row[best].float()) { at } else { best };
    }
    best
}

/// A block per row, of a power of two of threads.
fn fast(family: &mut Family, dtype: Dtype, matrix: &Rows) {
    let Rows { rows, columns, .. } = *matrix;
    let threads = columns.min(1024).next_power_of_two() as u32;
    let source = family.input(dtype, &matrix.memory);
    let info = family.sizes(&matrix.info());
    let less: fn(f64, f64) -> bool = |x, y| x < y;
    let more: fn(f64, f64) -> bool = |x, y| x > y;
    let index = |at: usize| Int(at as i64);
    type Reduction<'a> = (&'a str, Dtype, &'a dyn Fn(&[Value]) -> Value);
    let reductions: [Reduction<'_>; 5] = [
        ("sum", dtype, &total),
        ("min", dtype, &|row| row[position(row, less)]),
        ("max", dtype, &|row| row[position(row, more)]),
        ("argmin", U32, &|row| index(position(row, less))),
        ("argmax", U32, &|row| index(position(row, more))),
    ];
    for (name, result, of) in reductions {
        let out = family.output(result, rows);
        let shape = [size(rows * columns), size(columns), size(2)];
        let args = [shape.to_vec(), vec![info.clone(), source.clone(), out.arg()]].concat();
        let kernel = format!("fast_{name}_{}", dtype.name());
        if family.launch_blocks(&kernel, [rows as u32, 1, 1], [threads, 1, 1], 0, &args) {
            let expected: Vec<Value> = (0..rows).map(|row| of(&matrix.row(row))).collect();
            let what = format!("{columns} columns, transposed: {}", matrix.transposed);
            family.check(&what, out, &expected, Exact);
        }
    }
}

fn total(row: &[Value]) -> Value {
    match row[0] {
        Int(_) => Int(row.iter().map(|x| x.int()).sum()),
        Float(_) => Float(row.iter().map(|x| x.float()).sum()),
    }
}

/// A thread per row.
fn sum_small(family: &mut Family, dtype: Dtype, matrix: &Rows) {
    let out = family.output(dtype, matrix.rows);
    let args = [
        size(matrix.rows),
        size(matrix.columns),
        size(2),
        family.sizes(&matrix.info()),
        family.input(dtype, &matrix.memory),
        out.arg(),
    ];
    if family.launch(&format!("fast_sum_small_{}", dtype.name()), matrix.rows, &args) {
        let expected: Vec<Value> = (0..matrix.rows).map(|row| total(&matrix.row(row))).collect();
        family.check(&format!("transposed: {}", matrix.transposed), out, &expected, Exact);
    }
}

/// A thread per element, which adds it to its sum atomically.
fn sum(family: &mut Family, dtype: Dtype, dims: &[usize], view: View) {
    let memory: Vec<Value> = (0..COUNT)
        .map(|_| dtype.round(Int(family.random.below(9) as i64 - if dtype == U32 { 0 } else { 4 })))
        .collect();
    let kept = |i: usize| {
        let place = [i / (DIMS[1] * DIMS[2]), i / DIMS[2] % DIMS[1], i % DIMS[2]];
        let rest = (0..3).filter(|dim| !dims.contains(dim));
        rest.fold(0, |index, dim| index * DIMS[dim] + place[dim])
    };
    let mut sums = vec![0; kept(COUNT - 1) + 1];
    for i in 0..COUNT {
        sums[kept(i)] += memory[view.index(i)].float() as i64;
    }
    let sums: Vec<Value> = sums.into_iter().map(|sum| dtype.round(Int(sum))).collect();
    let zeros = vec![dtype.round(Int(0)); sums.len()];
    let out = family.filled(dtype, &zeros);
    let mut info = [DIMS, view.strides()].concat();
    info.extend(dims.iter().map(|&dim| DIMS[dim]));
    info.extend(dims.iter().map(|&dim| DIMS[dim + 1..].iter().product::<usize>()));
    let args = [
        size(COUNT),
        size(3),
        size(dims.len()),
        family.sizes(&info),
        family.input(dtype, &memory),
        out.arg(),
    ];
    if family.launch(&format!("sum_{}", dtype.name()), COUNT, &args) {
        family.check(&format!("over {dims:?}, {view:?}"), out, &sums, Exact);
    }
}

/// Indices that sort rows of distinct numbers: a block per row, its indices in shared memory.
pub fn sort(family: &mut Family) {
    for dtype in DTYPES {
        // Narrow types have no more distinct integers.
        let columns = if matches!(dtype, U8 | Bf16 | F16) { 200 } else { 1500 };
        for columns in [37, columns] {
            let rows = 2;
            let mut memory = Vec::new();
            for _ in 0..rows {
                let mut row: Vec<i64> = (0..columns as i64).collect();
                (0..columns).for_each(|i| row.swap(i, family.random.below(columns)));
                memory.extend(row);
            }
            let values: Vec<Value> = memory.iter().map(|&x| dtype.round(Int(x))).collect();
            let source = family.input(dtype, &values);
            for descending in [false, true] {
                let order = if descending { "desc" } else { "asc" };
                let mut sorted = Vec::new();
                for row in memory.chunks(columns) {
                    let mut indices: Vec<usize> = (0..columns).collect();
                    indices.sort_by_key(|&i| if descending { -row[i] } else { row[i] });
                    sorted.extend(indices.into_iter().map(|i| Int(i as i64)));
                }
                let padded = columns.next_power_of_two() as u32;
                let out = family.output(U32, rows * columns);
                let args =
                    [source.clone(), out.arg(), Arg::I32(columns as i32), Arg::I32(padded as i32)];
                let (grid, block) = ([rows as u32, 1, 1], [padded.min(1024), 1, 1]);
                let kernel = format!("asort_{order}_{}", dtype.name());
                if family.launch_blocks(&kernel, grid, block, 4 * padded, &args) {
                    family.check(&format!("{columns} columns"), out, &sorted, Exact);
                }
            }
        }
    }
}
