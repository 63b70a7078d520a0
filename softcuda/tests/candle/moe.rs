//! Mixtures of experts: tokens sorted by the expert they go to, and multiplied with its matrix.

use half::f16;

use super::family::{Family, size};
use super::number::Dtype::{self, Bf16, F16, F32, I32};
use super::number::Tolerance::{self, Exact};
use super::number::Value::{self, Float, Int};
use super::quantized::{COLUMNS, near, quantise};
use super::quants::FORMATS;
use crate::common::Arg;
use softcuda::fault::Check;

fn int(n: usize) -> Arg {
    Arg::I32(n as i32)
}

fn ints(numbers: impl IntoIterator<Item = usize>) -> Vec<Value> {
    numbers.into_iter().map(|n| Int(n as i64)).collect()
}

/// Tokens' places in an order by expert, every expert's padded to whole blocks.
pub fn align(family: &mut Family) {
    let (experts, block, tokens) = (10, 16, 300);
    let chosen: Vec<usize> = (0..tokens).map(|_| family.random.below(experts)).collect();
    let room = tokens + experts * (block - 1);
    let blocks = room.div_ceil(block);
    let (mut begins, mut owners) = (vec![0], Vec::new());
    for expert in 0..experts {
        let own = chosen.iter().filter(|of| **of == expert).count().div_ceil(block);
        begins.push(begins[expert] + own * block);
        owners.extend(vec![expert as i64; own]);
    }
    let total = begins[experts];
    owners.resize(blocks, -1);
    let ids = family.input(I32, &ints(chosen.iter().copied()));
    let [sorted, owner, sum, ends] =
        [room, blocks, 1, experts + 1].map(|count| family.output(I32, count));
    let args = [
        ids.clone(),
        sorted.arg(),
        owner.arg(),
        sum.arg(),
        int(experts),
        int(32),
        int(32),
        int(block),
        size(tokens),
        ends.arg(),
        int(room),
    ];
    let kernel = "moe_align_block_size_kernel";
    if !family.launch_blocks(kernel, [2, 1, 1], [1024, 1, 1], 32 * 4, &args) {
        return;
    }
    let owners: Vec<Value> = owners.into_iter().map(Int).collect();
    family.check("owners", owner, &owners, Exact);
    family.check("begins", ends, &ints(begins.iter().copied()), Exact);
    family.check("total", sum, &ints([total]), Exact);
    family.check("empty", sorted, &ints(vec![tokens; room]), Exact);
    let args = [ids, sorted.arg(), ends.arg(), size(tokens), int(experts)];
    let grid = [1, tokens.div_ceil(256) as u32, 1];
    if family.launch_blocks("count_and_sort_expert_tokens", grid, [256, 1, 1], 0, &args) {
        // Inside an expert the order is that of atomic additions.
        let bytes = family.program.read_bytes(sorted.address, room * 4);
        let mut got: Vec<i64> = I32.decode(&bytes).iter().map(|x| x.int()).collect();
        let mut expected = vec![tokens; room];
        for expert in 0..experts {
            got[begins[expert]..begins[expert + 1]].sort_unstable();
            let own = (0..tokens).filter(|token| chosen[*token] == expert);
            own.enumerate().for_each(|(i, token)| expected[begins[expert] + i] = token);
        }
        let got: Vec<Value> = got.into_iter().map(Int).collect();
        family.check_values("sorted", I32, &got, &ints(expected), Exact);
    }
}

/// Tokens by expert: 37 of them, each gone to two of five experts, one of which gets none.
struct Routing {
    /// Numbers of (token, choice), sorted by expert, and the experts.
    sorted: Vec<usize>,
    experts: Vec<usize>,
    begins: Vec<usize>,
}

const EXPERTS: usize = 5;
const CHOICES: usize = 2;

fn routing(family: &mut Family, pairs: usize) -> Routing {
    let chosen: Vec<usize> = (0..pairs).map(|_| [0, 1, 2, 4][family.random.below(4)]).collect();
    let mut sorted: Vec<usize> = (0..pairs).collect();
    sorted.sort_by_key(|pair| chosen[*pair]);
    let experts: Vec<usize> = sorted.iter().map(|pair| chosen[*pair]).collect();
    let begins = (0..=EXPERTS).map(|e| experts.iter().filter(|x| **x < e).count()).collect();
    Routing { sorted, experts, begins }
}

/// How many tokens each expert gets, and where its begin.
fn offsets(family: &mut Family) {
    let routing = routing(family, 74);
    let counts = family.filled(I32, &ints([0; EXPERTS]));
    let experts = family.input(I32, &ints(routing.experts));
    let args = [experts, counts.arg(), int(74)];
    if family.launch_blocks("count_tokens_per_expert", [1, 1, 1], [256, 1, 1], 0, &args) {
        let expected = routing.begins.windows(2).map(|pair| pair[1] - pair[0]);
        family.check("", counts, &ints(expected), Exact);
    }
    let begins = family.output(I32, EXPERTS + 1);
    let args = [counts.arg(), begins.arg(), int(EXPERTS)];
    if family.launch_blocks("expert_prefix_sum", [1, 1, 1], [32, 1, 1], 32 * 4, &args) {
        family.check("", begins, &ints(routing.begins), Exact);
    }
}

/// A warp per row and token, weighted or not.
pub fn gguf(family: &mut Family) {
    let (pairs, rows) = (8, 12);
    for format in &FORMATS {
        if !matches!(format.name, "q8_0" | "q2_K" | "q3_K" | "q4_K" | "q5_K" | "q6_K") {
            continue;
        }
        for weighted in [false, true] {
            let routing = routing(family, pairs);
            let matrix = format.random(&mut family.random, EXPERTS * rows, COLUMNS);
            let inputs = if weighted { pairs } else { pairs / CHOICES };
            let vectors = quantise(family, "quantize_q8_1", F32, inputs);
            let weights = family.random.between(F32, 0.0, 1.0, pairs);
            let (mut expected, mut most) = (vec![Float(0.0); pairs * rows], 0f64);
            for (pair, expert) in routing.sorted.iter().zip(&routing.experts) {
                for row in 0..rows {
                    let input = if weighted { *pair } else { pair / CHOICES };
                    let (sum, magnitudes) =
                        vectors.times(matrix.row(expert * rows + row), input, false);
                    let weight = if weighted { weights[*pair].float() } else { 1.0 };
                    expected[pair * rows + row] = Float(sum * weight);
                    most = most.max(magnitudes);
                }
            }
            let out = family.output(F32, expected.len());
            let null = Arg::U64(0);
            let pointers = [
                Arg::U64(family.program.bytes(&matrix.bytes)),
                vectors.address.clone(),
                family.input(I32, &ints(routing.sorted)),
                family.input(I32, &ints(routing.experts)),
                if weighted { family.input(F32, &weights) } else { null },
                out.arg(),
            ];
            let sizes = [EXPERTS, CHOICES, pairs, rows, COLUMNS, COLUMNS].map(int);
            let args = [pointers.to_vec(), sizes.to_vec()].concat();
            let shared = COLUMNS / format.numbers * format.bytes * 4 + 1024;
            let grid = [rows.div_ceil(4) as u32, pairs as u32, 1];
            let kernel = format!("10block_{}", format.name);
            if family.launch_blocks(&kernel, grid, [32, 4, 1], shared as u32, &args) {
                family.check(&format!("weighted: {weighted}"), out, &expected, near(most));
            }
        }
    }
}

/// Matrices of tokens and experts in half precision.
struct Grouped {
    routing: Routing,
    expected: Vec<Value>,
    /// Sums of the products' magnitudes, and roots of the sums of their squares: the largest.
    magnitude: f64,
    spread: f64,
    /// Pointers of the kernels up to the output, but for input and weights.
    pointers: Vec<Arg>,
    input: Arg,
}

/// Pairs of token and choice: more than a tile for some expert.
const PAIRS: usize = 150;

/// Products of the experts' rows with inputs, weighted by pair or not.
fn grouped(family: &mut Family, dtype: Dtype, weighted: bool, weights: &[Vec<f64>]) -> Grouped {
    let (rows, columns) = (weights.len() / EXPERTS, weights[0].len());
    let routing = routing(family, PAIRS);
    let inputs = if weighted { PAIRS } else { PAIRS / CHOICES };
    let input = family.random.between(dtype, -1.0, 1.0, inputs * columns);
    let factors = family.random.between(F32, 0.0, 1.0, PAIRS);
    let (mut expected, mut magnitude, mut spread) = (vec![Float(0.0); PAIRS * rows], 0f64, 0f64);
    for (pair, expert) in routing.sorted.iter().zip(&routing.experts) {
        let from = if weighted { *pair } else { pair / CHOICES };
        let factor = if weighted { factors[*pair].float() } else { 1.0 };
        for row in 0..rows {
            let products = weights[expert * rows + row].iter().zip(&input[from * columns..]);
            let products: Vec<f64> = products.map(|(x, y)| x * y.float()).collect();
            expected[pair * rows + row] = Float(products.iter().sum::<f64>() * factor);
            magnitude = magnitude.max(products.iter().map(|x| x.abs()).sum());
            spread = spread.max(products.iter().map(|x| x * x).sum::<f64>().sqrt());
        }
    }
    let pointers = vec![
        family.input(I32, &ints(routing.sorted.clone())),
        family.input(I32, &ints(routing.begins.clone())),
        if weighted { family.input(F32, &factors) } else { Arg::U64(0) },
    ];
    Grouped { routing, expected, magnitude, spread, pointers, input: family.input(dtype, &input) }
}

/// Tiles of 32 by 32 with tensor cores, in two shapes of a warp's part.
pub fn wmma(family: &mut Family) {
    offsets(family);
    let (rows, columns) = (72, 56);
    for (dtype, name) in [(F16, "I6__half"), (Bf16, "I13__nv_bfloat16")] {
        for (shape, weighted) in [("Li16ELi16E", false), ("Li16ELi16E", true), ("Li8ELi32E", true)]
        {
            let weights = family.random.between(dtype, -1.0, 1.0, EXPERTS * rows * columns);
            let plain: Vec<f64> = weights.iter().map(|x| x.float()).collect();
            let plain: Vec<Vec<f64>> = plain.chunks(columns).map(<[f64]>::to_vec).collect();
            let grouped = grouped(family, dtype, weighted, &plain);
            assert!(grouped.routing.begins.windows(2).any(|pair| pair[1] - pair[0] > 32));
            let out = family.output(dtype, grouped.expected.len());
            let mut args = vec![grouped.input.clone(), family.input(dtype, &weights)];
            args.extend(grouped.pointers.iter().cloned());
            args.push(out.arg());
            args.extend([EXPERTS, CHOICES, PAIRS, rows, columns].map(int));
            let grid = [EXPERTS as u32, rows.div_ceil(32) as u32, 1];
            let kernel = format!("grouped_kernel{name}{shape}");
            if family.launch_blocks(&kernel, grid, [128, 1, 1], 2048 + 4096, &args) {
                let what = format!("weighted: {weighted}");
                if dtype == F16 {
                    // candle converts to half precision twice: it takes the bits of the result for an
                    // integer. A small error in a number near zero moves these by more.
                    let bits = |x: &Value| f16::from_f64(x.float()).to_bits();
                    let expected: Vec<Value> =
                        grouped.expected.iter().map(|x| Float(bits(x).into())).collect();
                    let tolerance = Tolerance::Near { ulps: 2.0, absolute: 256.0 };
                    family.check(&what, out, &expected, tolerance);
                } else {
                    family.check(&what, out, &grouped.expected, near(grouped.magnitude));
                }
            }
        }
    }
}

/// The same with quantised weights, made plain tile by tile.
pub fn wmma_gguf(family: &mut Family) {
    offsets(family);
    for (kind, name) in ["q8_0", "q4_K", "q2_K", "q3_K", "q5_K", "q6_K"].iter().enumerate() {
        let format = FORMATS.iter().find(|format| format.name == *name).expect("a format");
        for (dtype, prefix) in [(F16, "I6__half"), (Bf16, "I13__nv_bfloat16")] {
            // One block of a row and no part of a tile; else see below.
            for (rows, columns, fault) in [
                (64, format.numbers, None),
                (40, format.numbers, Some(Check::Uninitialised)),
                (64, 2 * format.numbers, Some(Check::SharedRace)),
            ] {
                let matrix = format.random(&mut family.random, EXPERTS * rows, columns);
                // Weights are rounded to the type before they are multiplied.
                let rounded = |x: f64| dtype.round(Float(x)).float();
                let plain = |row| matrix.values(row).into_iter().map(rounded).collect();
                let plain: Vec<Vec<f64>> = (0..EXPERTS * rows).map(plain).collect();
                let grouped = grouped(family, dtype, kind % 2 == 0, &plain);
                let out = family.output(F32, grouped.expected.len());
                let weights = Arg::U64(family.program.bytes(&matrix.bytes));
                let mut args = vec![grouped.input.clone(), weights];
                args.extend(grouped.pointers.iter().cloned());
                args.push(out.arg());
                args.extend([EXPERTS, CHOICES, PAIRS, rows, columns, kind].map(int));
                let grid = [EXPERTS as u32, rows.div_ceil(32) as u32, 1];
                let lanes = if matches!(*name, "q8_0" | "q4_K") { 32 } else { 64 };
                let shared = 2 * 32 * format.numbers * 2 + 32 * format.bytes + 32 * 32 * 4;
                let kernel = format!("prefill_kernel{prefix}Li{}E10block_{name}", format.numbers);
                let shape = (grid, [lanes, 4, 1], shared as u32);
                if let Some(check) = fault {
                    // Rows of a tile that the matrix lacks are multiplied though nothing was put there;
                    // and nothing keeps a warp from loading the next tile while another multiplies.
                    family.faults(&kernel, shape, &args, check);
                } else if family.launch_blocks(&kernel, shape.0, shape.1, shape.2, &args) {
                    // But for q8_0, weights come out of half precision arithmetic, some units off.
                    let absolute = match format.is_k() {
                        true => 8.0 * dtype.ulp(1.0) / 2.0 * grouped.spread,
                        false => 16.0 * F32.ulp(grouped.magnitude),
                    };
                    let tolerance = Tolerance::Near { ulps: 0.0, absolute };
                    family.check("", out, &grouped.expected, tolerance);
                }
            }
        }
    }
}
