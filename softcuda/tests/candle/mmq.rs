//! Quantised matrices times floats on tensor cores, the work split among blocks wherever it falls: tiles
//! that two blocks share are added up by a second kernel.

use half::f16;

use super::family::{Family, size};
use super::number::Dtype::{self, F16, F32, I16};
use super::number::Tolerance::{self, Exact};
use super::number::Value::{self, Float, Int};
use super::quantized::{COLUMNS, Quantised, near};
use super::quants::{FORMATS, Format, half};
use crate::common::Arg;
use softcuda::fault::Check;

/// How scales and sums of 128 numbers lie ahead of them: a scale per 32; a scale and a sum per 32, in half
/// precision; a scale per 64 and a sum per 16 of the first 96.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Scales,
    ScalesAndSums,
    ManySums,
}

use Layout::{ManySums, Scales, ScalesAndSums};

/// Bytes of 128 numbers with their scales.
const CHUNK: usize = 144;

fn layout(format: &Format) -> Layout {
    match format.name {
        "q2_K" => ManySums,
        "q4_0" | "q4_1" | "q5_1" | "q4_K" | "q5_K" => ScalesAndSums,
        _ => Scales,
    }
}

impl Layout {
    /// Numbers that share a scale, and that share a sum.
    fn groups(self) -> (usize, usize) {
        if self == ManySums { (64, 16) } else { (32, 32) }
    }

    fn sums(self) -> usize {
        match self {
            Scales => 0,
            ScalesAndSums => 4,
            ManySums => 6,
        }
    }

    fn scale_type(self) -> Dtype {
        if self == Scales { F32 } else { F16 }
    }

    /// Scales, sums and numbers of a chunk.
    fn read(self, chunk: &[u8]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let float = |i: usize| F32.decode(&chunk[4 * i..4 * i + 4])[0].float();
        let (scales, sums) = match self {
            Scales => ((0..4).map(float).collect(), vec![]),
            ScalesAndSums => (0..4).map(|i| (half(chunk, 4 * i), half(chunk, 4 * i + 2))).unzip(),
            ManySums => (
                (0..2).map(|i| half(chunk, 2 * i)).collect(),
                (2..8).map(|i| half(chunk, 2 * i)).collect(),
            ),
        };
        (scales, sums, chunk[16..].iter().map(|x| f64::from(*x as i8)).collect())
    }

    /// The same of 128 floats, in the arithmetic of the kernel.
    fn quantise(self, values: &[f32]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (of_scale, of_sum) = self.groups();
        let (mut scales, mut numbers) = (Vec::new(), Vec::new());
        for group in values.chunks(of_scale) {
            let inverse = 127.0 / group.iter().fold(0f32, |most, x| most.max(x.abs()));
            scales.push(f64::from(1.0 / inverse));
            numbers.extend(group.iter().map(|x| f64::from((x * inverse).round())));
        }
        let sums = values.chunks(of_sum).map(|group| group.iter().map(|x| f64::from(*x)).sum());
        (scales, sums.take(self.sums()).collect(), numbers)
    }

    fn write(self, (scales, sums, numbers): &(Vec<f64>, Vec<f64>, Vec<f64>)) -> Vec<u8> {
        let half = |x: &f64| f16::from_f64(*x).to_le_bytes().to_vec();
        let mut chunk: Vec<u8> = match self {
            Scales => scales.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
            ScalesAndSums => {
                scales.iter().zip(sums).flat_map(|(d, s)| [half(d), half(s)].concat()).collect()
            }
            ManySums => scales.iter().chain(sums).flat_map(half).collect(),
        };
        chunk.extend(numbers.iter().map(|x| *x as i8 as u8));
        chunk
    }
}

/// Random columns: the first 128 numbers of all, then the next.
fn columns(family: &mut Family, count: usize) -> Vec<Vec<f32>> {
    let mut one = || family.random.between(F32, -1.0, 1.0, COLUMNS);
    (0..count).map(|_| one().iter().map(|x| x.float() as f32).collect()).collect()
}

/// The kernels that make the floats' side ready.
pub fn quantize(family: &mut Family) {
    for (n, layout) in [Scales, ScalesAndSums, ManySums].into_iter().enumerate() {
        let count = 5;
        let columns = columns(family, count);
        let flat: Vec<Value> = columns.iter().flatten().map(|x| Float(f64::from(*x))).collect();
        let out = family.output(Dtype::U8, count * COLUMNS / 128 * CHUNK);
        let sizes = [COLUMNS, COLUMNS, 0, 0, COLUMNS].map(size);
        let mut args = vec![family.input(F32, &flat), Arg::U64(0), out.arg()];
        args.extend(sizes);
        args.extend([Arg::I32(count as i32), Arg::I32(1)]);
        let grid = [count as u32, (COLUMNS / 512) as u32, 1];
        let kernel = format!("mmq_q8_1_ds_layout{n}E");
        if !family.launch_blocks(&kernel, grid, [128, 1, 1], 0, &args) {
            continue;
        }
        let bytes = family.program.read_bytes(out.address, out.count);
        let (mut got, mut expected) = (Fields::default(), Fields::default());
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            got.add(layout.read(chunk));
            expected.add(layout.quantise(&columns[i % count][i / count * 128..][..128]));
        }
        let what = format!("{layout:?}");
        family.check_values(&what, layout.scale_type(), &got.scales, &expected.scales, Exact);
        family.check_values(&what, F16, &got.sums, &expected.sums, SUMS);
        family.check_values(&what, I16, &got.numbers, &expected.numbers, Exact);
    }
}

/// Of up to 32 numbers up to 1, in single precision, then rounded to half.
pub const SUMS: Tolerance = Tolerance::Near { ulps: 0.6, absolute: 2.5e-6 };

#[derive(Default)]
struct Fields {
    scales: Vec<Value>,
    sums: Vec<Value>,
    numbers: Vec<Value>,
}

impl Fields {
    fn add(&mut self, (scales, sums, numbers): (Vec<f64>, Vec<f64>, Vec<f64>)) {
        self.scales.extend(scales.into_iter().map(Float));
        self.sums.extend(sums.into_iter().map(Float));
        self.numbers.extend(numbers.into_iter().map(|x| Int(x as i64)));
    }
}

/// Columns quantised here, as the products read them.
fn pack(family: &mut Family, layout: Layout, count: usize) -> Quantised {
    let columns = columns(family, count);
    let mut bytes = Vec::new();
    let mut read = vec![Vec::new(); count];
    for at in (0..COLUMNS).step_by(128) {
        for (column, read) in columns.iter().zip(&mut read) {
            let chunk = layout.write(&layout.quantise(&column[at..at + 128]));
            let (scales, sums, numbers) = layout.read(&chunk);
            for (i, numbers) in numbers.chunks(32).enumerate() {
                let scale = scales[i * scales.len() / 4];
                let sum = if layout == ScalesAndSums { sums[i] } else { 0.0 };
                read.push((scale, sum, numbers.to_vec()));
            }
            bytes.extend(chunk);
        }
    }
    // Tiles reach behind the last column; candle leaves what they read there to chance.
    bytes.extend(vec![0; 128 * CHUNK]);
    Quantised { address: Arg::U64(family.program.bytes(&bytes)), blocks: read.concat() }
}

/// The products of one format.
pub fn products(family: &mut Family, name: &str) {
    let format = FORMATS.iter().find(|format| format.name.to_lowercase() == name);
    let format = format.expect("a format");
    for tile in [8, 24, 64, 128] {
        product(family, format, tile, (2 * TILE_ROWS, false));
        product(family, format, tile, (2 * TILE_ROWS, true));
        product(family, format, tile, (2 * TILE_ROWS - 56, true));
    }
}

/// Blocks, fewer than would share the tiles evenly.
const BLOCKS: u32 = 3;
const TILE_ROWS: usize = 128;

/// Two tiles of 128 rows and `tile` columns, in the variant that expects the lower one to be full or not.
fn product(family: &mut Family, format: &Format, tile: usize, (rows, checks): (usize, bool)) {
    let (count, layout) = (tile - 3, layout(format));
    let matrix = format.random(&mut family.random, rows, COLUMNS);
    let vectors = pack(family, layout, count);
    // Of q4_0 the offset is subtracted from the integers, and sums are ignored.
    let sums = layout == ScalesAndSums && format.name != "q4_0";
    let (expected, magnitude) = vectors.products(&matrix, count, sums);
    let out = family.output(F32, rows * count);
    let int = |n: usize| Arg::I32(n as i32);
    let (x, null) = (Arg::U64(family.program.bytes(&matrix.bytes)), Arg::U64(0));
    let shared_tiles = family.program.unwritten(u64::from(BLOCKS) * (TILE_ROWS * tile * 4) as u64);
    let fix = Arg::U64(shared_tiles);
    let variant = format!("ELi{tile}ELb{}E", u8::from(checks));
    // Words of a row in shared memory, as the kernel pads them.
    let row = match format.name {
        "q2_K" => 100,
        "q3_K" => 84,
        _ => 76,
    };
    let shared = tile * 4 + TILE_ROWS * row * 4 + (tile * CHUNK).next_multiple_of(1024);
    let pointers = [x, vectors.address.clone(), null.clone(), null.clone(), out.arg(), fix.clone()];
    let stride = COLUMNS / format.numbers;
    let sizes = [COLUMNS, rows, count, stride, count, rows, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, count];
    let args = [pointers.to_vec(), sizes.map(int).to_vec()].concat();
    let name = |kernel: &str| -> String {
        let kernels = family.program.module.kernels.keys();
        let mut found = kernels.filter(|name| name.contains(kernel) && name.contains(&variant));
        found.next().expect("such a kernel").clone()
    };
    let (multiply, fixup) = (name("9mul_mat_qI"), name("stream_k_fixupI"));
    let (grid, block) = ([BLOCKS, 1, 1], [32, 8, 1]);
    if !rows.is_multiple_of(TILE_ROWS) {
        // Rows that the matrix lacks are not loaded but multiplied nevertheless, and not stored.
        let shape = (grid, block, shared as u32);
        return family.faults(&multiply, shape, &args, Check::Uninitialised);
    }
    if !family.launch_blocks(&multiply, grid, block, shared as u32, &args) {
        return;
    }
    let args = [
        [null.clone(), null, out.arg(), fix].to_vec(),
        [COLUMNS, rows, count].map(int).to_vec(),
        vec![size(rows), int(1), size(0), int(1), size(0), int(count)],
    ]
    .concat();
    if family.launch_blocks(&fixup, grid, block, 0, &args) {
        let tolerance = match format.name {
            // Scales times minima are rounded to half precision; of q2_K the minimum besides counts
            // times sums of what was quantised, each up to 16 halves off.
            "q4_K" | "q5_K" => Tolerance::Near { ulps: 0.0, absolute: magnitude / 2048.0 },
            "q2_K" => Tolerance::Near { ulps: 0.0, absolute: magnitude / 512.0 },
            _ => near(magnitude),
        };
        family.check(&format!("checks: {checks}"), out, &expected, tolerance);
        family.ran.insert(multiply);
    }
}
