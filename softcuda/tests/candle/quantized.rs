//! Quantised matrices: made plain, and multiplied.

use super::family::{Family, size};
use super::mmq::SUMS;
use super::number::Dtype::{self, Bf16, F16, F32, I16, U32};
use super::number::Tolerance::{self, Exact};
use super::number::Value::{self, Float, Int};
use super::quants::{Block, FORMATS, Format, Matrix, half};
use crate::common::Arg;
use softcuda::fault::Check;

/// Two blocks of 256 in a row, as many as the products take at once.
pub const COLUMNS: usize = 512;

pub fn quantized(family: &mut Family) {
    for format in &FORMATS {
        for dtype in [F32, F16] {
            dequantize(family, format, dtype);
        }
        if format.name != "q8_K" {
            get_rows(family, format);
            times_floats(family, format);
            for columns in 1..=8 {
                times_vectors(family, format, columns);
            }
            times_matrix(family, format);
            experts(family, format);
        }
    }
    for dtype in [F32, F16, Bf16] {
        get_plain_rows(family, dtype);
    }
}

fn bytes(family: &Family, matrix: &Matrix) -> Arg {
    Arg::U64(family.program.bytes(&matrix.bytes))
}

fn int(n: usize) -> Arg {
    Arg::I32(n as i32)
}

/// Products of small integers and a half are exact, so that there is one rounding, of a sum.
fn dequantize(family: &mut Family, format: &Format, dtype: Dtype) {
    let matrix = format.random(&mut family.random, 3, COLUMNS);
    let count = 3 * COLUMNS;
    let values = (0..3).flat_map(|row| matrix.values(row));
    let expected: Vec<Value> = values.map(|x| F32.round(Float(x))).collect();
    let out = family.output(dtype, count);
    let mut args = vec![bytes(family, &matrix), out.arg()];
    let (threads, blocks) = match format.name {
        "q5_0" | "q5_1" => (256, count.div_ceil(512)),
        "q2_K" | "q3_K" | "q5_K" | "q6_K" => (64, count / 256),
        _ => (32, count / 256),
    };
    if !format.is_k() {
        args.push(int(if threads == 256 { count } else { count / 32 }));
    }
    let kernel = format!("dequantize_block_{}_{}", format.name, dtype.name());
    if family.launch_blocks(&kernel, [blocks as u32, 1, 1], [threads, 1, 1], 0, &args) {
        family.check("", out, &expected, Exact);
    }
}

const IDS: [usize; 4] = [2, 0, 4, 2];

fn ids(family: &Family) -> Arg {
    family.input(U32, &IDS.map(|id| Int(id as i64)))
}

fn get_rows(family: &mut Family, format: &Format) {
    let matrix = format.random(&mut family.random, 5, COLUMNS);
    let expected = IDS.iter().flat_map(|id| matrix.values(*id)).map(Float).collect::<Vec<_>>();
    let out = family.output(F32, expected.len());
    let stride = matrix.bytes.len() / matrix.rows;
    let args = [bytes(family, &matrix), ids(family), out.arg(), size(COLUMNS), size(stride)];
    let (threads, blocks) = match format.name {
        "q4_K" => (32, COLUMNS / 256),
        _ if format.is_k() => (64, COLUMNS / 256),
        _ => (256, COLUMNS / 512),
    };
    let grid = [IDS.len() as u32, blocks as u32, 1];
    if family.launch_blocks(&format!("get_rows_{}", format.name), grid, [threads, 1, 1], 0, &args) {
        family.check("", out, &expected, Exact);
    }
}

fn get_plain_rows(family: &mut Family, dtype: Dtype) {
    let columns = 300;
    let values = family.random.any(dtype, 5 * columns);
    let expected: Vec<Value> =
        IDS.iter().flat_map(|id| values[id * columns..][..columns].to_vec()).collect();
    let out = family.output(F32, expected.len());
    let args = [family.input(dtype, &values), ids(family), out.arg(), size(columns), size(0)];
    let grid = [IDS.len() as u32, columns.div_ceil(256) as u32, 1];
    let kernel = format!("get_rows_{}", dtype.name());
    if family.launch_blocks(&kernel, grid, [256, 1, 1], 0, &args) {
        family.check("", out, &expected, Exact);
    }
}

/// Sums in single precision, in another order than here: errors of some units of the magnitudes summed,
/// and one rounding to the result's type.
pub fn near(magnitudes: f64) -> Tolerance {
    Tolerance::Near { ulps: 0.55, absolute: 16.0 * F32.ulp(magnitudes) }
}

/// A warp per row, the vector in floats.
fn times_floats(family: &mut Family, format: &Format) {
    let rows = 5;
    let matrix = format.random(&mut family.random, rows, COLUMNS);
    let vector = family.random.between(F32, -1.0, 1.0, COLUMNS);
    let (mut expected, mut magnitude) = (Vec::new(), 0.0);
    for row in 0..rows {
        let products: Vec<f64> =
            matrix.values(row).iter().zip(&vector).map(|(x, y)| x * y.float()).collect();
        magnitude = products.iter().map(|x| x.abs()).sum::<f64>().max(magnitude);
        expected.push(Float(products.iter().sum()));
    }
    let out = family.output(F32, rows);
    let mut args = vec![
        bytes(family, &matrix),
        family.input(F32, &vector),
        out.arg(),
        int(COLUMNS),
        int(rows),
    ];
    let kernel = match format.name {
        _ if !format.is_k() => format!("dequantize_mul_mat_vec_{}_cuda", format.name),
        name => format!("dequantize_mul_mat_vec_{}", name.to_lowercase()),
    };
    if format.name == "q5_K" {
        args.pop(); // this kernel trusts its grid
    }
    if family.launch_blocks(&kernel, [rows as u32, 1, 1], [32, 1, 1], 0, &args) {
        family.check("", out, &expected, near(magnitude));
    }
}

/// The other factor of the integer products: blocks of 32 bytes, their scale and the sum of what they were
/// made of, as the device has quantised it.
pub struct Quantised {
    pub address: Arg,
    pub blocks: Vec<(f64, f64, Vec<f64>)>,
}

/// Quantises columns on the device, and compares with the CPU's arithmetic in single precision.
pub fn quantise(family: &mut Family, kernel: &str, dtype: Dtype, columns: usize) -> Quantised {
    let values = family.random.between(dtype, -1.0, 1.0, columns * COLUMNS);
    let count = columns * COLUMNS;
    let out = family.output(Dtype::U8, count / 32 * 36);
    let args = [family.input(dtype, &values), out.arg(), int(COLUMNS), int(COLUMNS)];
    let grid = [COLUMNS.div_ceil(256) as u32, columns as u32, 1];
    assert!(family.launch_blocks(kernel, grid, [256, 1, 1], 0, &args), "{:?}", family.failures);
    let bytes = family.program.read_bytes(out.address, count / 32 * 36);
    let (mut scales, mut sums, mut quants) = (Vec::new(), Vec::new(), Vec::new());
    let mut blocks = Vec::new();
    for (of, block) in values.chunks(32).zip(bytes.chunks(36)) {
        let of: Vec<f32> = of.iter().map(|x| x.float() as f32).collect();
        let scale = of.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
        scales.push((half(block, 0), f64::from(scale)));
        sums.push((half(block, 2), of.iter().map(|x| f64::from(*x)).sum::<f64>()));
        let quant: Vec<f64> = block[4..].iter().map(|x| f64::from(*x as i8)).collect();
        quants.extend(of.iter().map(|x| (x / scale).round()).zip(&quant).map(|(x, q)| (*q, x)));
        blocks.push((half(block, 0), half(block, 2), quant));
    }
    let floats = |pairs: &[(f64, f64)]| -> (Vec<Value>, Vec<Value>) {
        pairs.iter().map(|(got, expected)| (Float(*got), Float(*expected))).unzip()
    };
    let (got, expected) = floats(&scales);
    family.check_values("scales", F16, &got, &expected, Exact);
    let (got, expected) = floats(&sums);
    family.check_values("sums", F16, &got, &expected, SUMS);
    let quants =
        quants.iter().map(|(got, expected)| (Int(*got as i64), Int(f64::from(*expected) as i64)));
    let (got, expected): (Vec<_>, Vec<_>) = quants.unzip();
    family.check_values("numbers", I16, &got, &expected, Exact);
    Quantised { address: out.arg(), blocks }
}

impl Quantised {
    /// Product of a row, from its blocks on, with a column, and the magnitudes summed. Offsets times a
    /// block's numbers, or times its stored sum.
    pub fn times(&self, row: &[Block], column: usize, sums: bool) -> (f64, f64) {
        let (mut total, mut magnitudes) = (0.0, 0.0);
        let scaled = row.iter().flat_map(|block| block.scaled.chunks(32));
        let offsets = row.iter().flat_map(|block| &block.offsets);
        let blocks = &self.blocks[column * COLUMNS / 32..][..COLUMNS / 32];
        for ((scaled, offset), (scale, sum, quants)) in scaled.zip(offsets).zip(blocks) {
            let moved = if sums { *sum } else { scale * quants.iter().sum::<f64>() };
            let products: Vec<f64> =
                scaled.iter().zip(quants).map(|(x, q)| x * q * scale).collect();
            total += products.iter().sum::<f64>() + offset * moved;
            magnitudes += products.iter().map(|x| x.abs()).sum::<f64>() + (offset * moved).abs();
        }
        (total, magnitudes)
    }

    /// All rows with all columns, column by column.
    pub fn products(&self, matrix: &Matrix, columns: usize, sums: bool) -> (Vec<Value>, f64) {
        let pairs = (0..columns).flat_map(|column| (0..matrix.rows).map(move |row| (row, column)));
        let (mut expected, mut most) = (Vec::new(), 0.0);
        for (row, column) in pairs {
            let (total, magnitudes) = self.times(matrix.row(row), column, sums);
            expected.push(Float(total));
            most = f64::max(most, magnitudes);
        }
        (expected, most)
    }
}

/// A block for one row and a vector, or for two rows and some.
fn times_vectors(family: &mut Family, format: &Format, columns: usize) {
    let kernel = format!("mul_mat_vec_{}_q8_1_cuda{columns}", format.name);
    let vectors = quantise(family, "quantize_q8_1", F32, columns);
    let sizes = |rows: usize| vec![int(COLUMNS), int(rows), int(COLUMNS), int(rows)];
    run_vectors(family, &kernel, format, columns, (&vectors, F32), sizes);
    if columns == 2 {
        // With an odd number of rows, the last block writes the row behind: the next column's first.
        let matrix = format.random(&mut family.random, 6, COLUMNS);
        let out = family.output(F32, 2 * 5);
        let mut args = vec![bytes(family, &matrix), vectors.address.clone(), out.arg()];
        args.extend(sizes(5));
        family.faults(&kernel, ([3, 1, 1], [32, 4, 1], 0), &args, Check::GlobalRace);
    }
}

/// The same for other types of vectors and results.
pub fn mmvq(family: &mut Family) {
    for format in FORMATS.iter().filter(|format| format.name != "q8_K") {
        for (dtype, columns) in [F32, F16, Bf16].iter().flat_map(|d| (1..=8).map(|n| (*d, n))) {
            let (name, to) = (format.name.to_lowercase(), dtype.name());
            let kernel = format!("mmvq_gguf_{name}_{to}_plain_cuda{columns}");
            let quantise_kernel = format!("mmvq_gguf_quantize_q8_1_{to}");
            let vectors = quantise(family, &quantise_kernel, dtype, columns);
            let sizes = |rows: usize| vec![int(COLUMNS), int(rows), int(COLUMNS / 32), int(rows)];
            run_vectors(family, &kernel, format, columns, (&vectors, dtype), sizes);
        }
    }
}

fn run_vectors(
    family: &mut Family,
    kernel: &str,
    format: &Format,
    columns: usize,
    (vectors, to): (&Quantised, Dtype),
    sizes: impl Fn(usize) -> Vec<Arg>,
) {
    // Even, where the kernels take two rows at once.
    let rows = if columns == 1 { 5 } else { 6 };
    let matrix = format.random(&mut family.random, rows, COLUMNS);
    let (expected, magnitude) = vectors.products(&matrix, columns, !format.is_k());
    let out = family.output(to, rows * columns);
    let mut args = vec![bytes(family, &matrix), vectors.address.clone(), out.arg()];
    args.extend(sizes(rows));
    let blocks = if columns == 1 { rows } else { rows / 2 };
    let block = [32, if columns <= 4 { 4 } else { 2 }, 1];
    if family.launch_blocks(kernel, [blocks as u32, 1, 1], block, 0, &args) {
        family.check("", out, &expected, near(magnitude));
    }
}

/// Tiles of 64 or 128 rows and columns in shared memory. Rows fill a tile: for those that don't, all
/// warps write one row of the tile, the same numbers, which is a race nevertheless.
fn times_matrix(family: &mut Family, format: &Format) {
    let (rows, columns) = (128, 5);
    let matrix = format.random(&mut family.random, rows, COLUMNS);
    let vectors = quantise(family, "quantize_q8_1", F32, columns);
    let sums = matches!(format.name, "q4_0" | "q4_1" | "q5_1" | "q4_K" | "q5_K");
    let (expected, magnitude) = vectors.products(&matrix, columns, sums);
    let out = family.output(F32, rows * columns);
    let args = [
        bytes(family, &matrix),
        vectors.address.clone(),
        out.arg(),
        int(COLUMNS),
        int(rows),
        int(columns),
        int(COLUMNS),
        int(rows),
    ];
    let tile = if matches!(format.name, "q5_0" | "q5_1" | "q8_0" | "q6_K") { 64 } else { 128 };
    let grid = [(rows / tile) as u32, 1, 1];
    let kernel = format!("mul_mat_{}", format.name);
    if family.launch_blocks(&kernel, grid, [32, 4, 1], 0, &args) {
        family.check("", out, &expected, near(magnitude));
    }
}

/// Each of two inputs times the matrices of two experts of four.
fn experts(family: &mut Family, format: &Format) {
    let name = format.name.replace("_K", "k");
    let kernel = format!("indexed_moe_forward_{name}_q8_1");
    if !family.program.module.kernels.contains_key(&kernel) {
        return;
    }
    let (rows, batch, chosen) = (6, 2, [3, 1, 0, 2]);
    let matrix = format.random(&mut family.random, 4 * rows, COLUMNS);
    let inputs = quantise(family, "quantize_q8_1", F32, batch);
    // The kernel takes every block for one of 256 numbers. With blocks of 32, an expert begins an
    // eighth of the way to where it lies, and six rows hold twelve such blocks.
    let apart = if format.is_k() { rows * COLUMNS } else { rows * COLUMNS / 8 };
    let (mut expected, mut magnitude) = (Vec::new(), 0.0);
    for (task, expert) in chosen.iter().enumerate() {
        for row in 0..rows {
            let begin = (expert * apart + row * COLUMNS) / format.numbers;
            let (total, magnitudes) =
                inputs.times(&matrix.blocks[begin..], task / 2, !format.is_k());
            expected.push(Float(total));
            magnitude = f64::max(magnitude, magnitudes);
        }
    }
    let ids = family.input(U32, &chosen.map(|expert| Int(expert as i64)));
    let out = family.output(F32, expected.len());
    let sizes = [rows, COLUMNS, batch, 2, COLUMNS, 1].map(int);
    let pointers = [bytes(family, &matrix), inputs.address.clone(), ids, out.arg()];
    let args = [pointers.to_vec(), sizes.to_vec()].concat();
    if family.launch_blocks(&kernel, [rows as u32, batch as u32, 2], [32, 4, 1], 0, &args) {
        family.check("", out, &expected, near(magnitude));
    }
}
