//! The sketches' random structure, and what it promises: unbiased inner products, on one scale
//! for every layer shape, with the spread that theory gives.

mod support;

use gradroute::ops::{ConvInputs, EmbeddingInputs, LinearInputs, NormInputs};
use gradroute::problem::{Conv2d, Conv2dSpec, Element, Embedding, Linear, Norm, Padding, Rows};
use gradroute::projection::{Side, SignMatrix, Sketch, SketchKind, micro_block, philox4x32};
use gradroute::reference::{self, Gradients};

use support::case::{Case, Problem, Random};

/// The known-answer vectors that the Random123 distribution gives for `philox4x32 10`.
#[test]
fn philox_known_answers() {
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let known = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ];
    for (counter, key, words) in known {
        assert_eq!(philox4x32(counter, key), words, "{counter:x?} {key:x?}");
    }
}

#[test]
fn blocks_do_not_collide_inside() {
    for buckets in [64, 128, 192, 256, 1024, 4096] {
        for at in 0..200 {
            let block = micro_block([5, 9], at, at * 31, buckets);
            assert_eq!(block, micro_block([5, 9], at, at * 31, buckets));
            assert!(block.base.is_multiple_of(2) && block.xor < 64, "{block:?}");
            let mut taken = vec![false; buckets];
            for e in 0..64 {
                let bucket = block.bucket(e, buckets);
                assert!(!std::mem::replace(&mut taken[bucket], true), "{buckets}: {block:?}");
            }
        }
    }
}

#[test]
fn buckets_and_signs_are_even() {
    let (buckets, side) = (256, 64);
    let (mut uses, mut negative) = (vec![0u32; buckets], 0u32);
    for at in 0..side * side {
        let block = micro_block([1, 2], at / side, at % side, buckets);
        (0..64).for_each(|e| uses[block.bucket(e, buckets)] += 1);
        negative += block.signs.count_ones();
    }
    // Each bucket is used by a quarter of 4096 blocks: 1024 times, give or take 28.
    assert!(uses.iter().all(|&uses| (880..1170).contains(&uses)), "{uses:?}");
    // Half of 2¹⁸ signs, give or take 256.
    assert!(negative.abs_diff(1 << 17) < 1300, "{negative}");
}

#[test]
fn seeds_layers_and_sides_are_independent() {
    let of = |key, side, row| {
        let mut signs = [0.0; 256];
        SignMatrix::new(key, side, 1000, 256).row(row, &mut signs);
        signs
    };
    let one = of([1, 2], Side::Outputs, 3);
    assert!(one.iter().all(|sign| sign.abs() == 1.0 / 16.0));
    assert_eq!(one, of([1, 2], Side::Outputs, 3));
    for other in [
        of([1, 3], Side::Outputs, 3),
        of([2, 2], Side::Outputs, 3),
        of([1, 2], Side::Inputs, 3),
        of([1, 2], Side::Outputs, 4),
    ] {
        let cosine: f32 = one.iter().zip(&other).map(|(a, b)| a * b).sum();
        assert!(cosine.abs() < 0.3, "{cosine}");
    }
    assert_ne!(micro_block([1, 2], 0, 0, 4096), micro_block([2, 2], 0, 0, 4096));
    assert_ne!(micro_block([1, 2], 0, 0, 4096), micro_block([1, 3], 0, 0, 4096));
    assert_ne!(micro_block([1, 2], 0, 1, 4096), micro_block([1, 2], 1, 0, 4096));
}

/// Signs of a side's rows.
fn sign_rows(signs: &SignMatrix, rows: usize, k: usize) -> Vec<Vec<f32>> {
    let row = |row| {
        let mut out = vec![0.0; k];
        signs.row(row, &mut out);
        out.iter().map(|sign| sign.signum()).collect()
    };
    (0..rows as u32).map(row).collect()
}

/// A Walsh–Hadamard matrix, by Sylvester's construction.
fn hadamard(k: usize) -> Vec<Vec<f32>> {
    if k == 1 {
        return vec![vec![1.0]];
    }
    let half = hadamard(k / 2);
    let below = |sign: f32| {
        half.iter().map(move |row| {
            row.iter().copied().chain(row.iter().map(move |it| sign * it)).collect()
        })
    };
    below(1.0).chain(below(-1.0)).collect()
}

#[test]
fn sides_that_fit_are_orthonormal() {
    for (side, k, rows) in [
        (Side::Outputs, 1, 1),
        (Side::Outputs, 16, 10),
        (Side::Outputs, 16, 16),
        (Side::Inputs, 16, 15),
        (Side::Inputs, 32, 20),
        (Side::Outputs, 32, 32),
    ] {
        let (key, context) = ([8, k as u32], format!("{rows} {side:?} in {k}"));
        let signs = SignMatrix::new(key, side, rows, k);
        assert!(signs.fits(), "{context}");
        // Another construction of what is promised.
        let [first, own, ..] = philox4x32([0, 0, side as u32, 0], key);
        let sign = |bits: u32, at: usize| if bits >> at & 1 == 1 { -1.0 } else { 1.0 };
        // With a bias.
        let rows = rows + usize::from(side == Side::Inputs);
        for (i, (row, walsh)) in sign_rows(&signs, rows, k).iter().zip(hadamard(k)).enumerate() {
            for (j, (entry, walsh)) in row.iter().zip(walsh).enumerate() {
                assert_eq!(*entry, sign(own, i) * sign(first, j) * walsh, "{context}");
            }
        }
        let all = sign_rows(&signs, rows, k);
        for (i, one) in all.iter().enumerate() {
            for (j, other) in all.iter().enumerate() {
                let sum: f32 = one.iter().zip(other).map(|(a, b)| a * b).sum();
                assert_eq!(sum, if i == j { k as f32 } else { 0.0 }, "{context}: {i}, {j}");
            }
        }
    }
    for (side, k, rows) in [
        (Side::Outputs, 16, 17),
        // No room for a bias.
        (Side::Inputs, 16, 16),
        // More columns than a word has bits.
        (Side::Outputs, 64, 3),
        // No Walsh–Hadamard matrix.
        (Side::Outputs, 12, 3),
    ] {
        assert!(!SignMatrix::new([8, 8], side, rows, k).fits(), "{rows} {side:?} in {k}");
    }
}

/// Added up, as a block adds its layers', the sketches of different layers do not mix on average, and those of
/// a layer that fits on both sides are exact.
#[test]
fn layers_that_fit_stay_apart() {
    let problem = Linear::new(Rows::uniform(2, 3).unwrap(), 5, 8).unwrap().with_bias(true);
    let mut case = Case::random("fits", Problem::Linear(problem), 3);
    correlate(&mut case);
    let (truth, lengths) = truth(&case);
    let sketches = |seed, layer| {
        let all = gradients(&case, Some(Sketch::two_sided(8, seed, layer).unwrap()));
        let (one, two) = all.sketch.split_at(64);
        [one.to_vec(), two.to_vec()]
    };
    let mut mixed = Vec::new();
    for seed in 0..2000 {
        let [[one, two], [_, other]] = [sketches(seed, 1), sketches(seed, 2)];
        assert!((dot(&one, &two) / lengths - truth).abs() < 1e-6);
        mixed.push(dot(&one, &other) / lengths);
    }
    assert!(unbiased(&mixed, 0.0), "{:?}", mean_and_deviation(&mixed));
    // As far apart as two random projections' are: 1/k.
    let (_, deviation) = mean_and_deviation(&mixed);
    assert!((0.1..0.16).contains(&deviation), "{deviation}");
}

/// Two samples whose gradients are correlated, of every layer shape: square, wide, tall, a
/// vector, a convolution, a table.
fn pairs() -> Vec<Case<f32>> {
    let rows = |rows| Rows::uniform(2, rows).unwrap();
    let linear = |inputs, outputs, bias| {
        Problem::Linear(Linear::new(rows(6), inputs, outputs).unwrap().with_bias(bias))
    };
    let conv = Conv2dSpec {
        samples: 2,
        in_channels: 4,
        out_channels: 6,
        size: [5, 5],
        kernel: [3, 3],
        padding: Padding::symmetric(1, 1),
        groups: 2,
        bias: true,
        ..Conv2dSpec::default()
    };
    let problems = [
        ("square", linear(24, 24, false)),
        ("wide", linear(96, 3, true)),
        ("tall", linear(3, 96, true)),
        ("smaller than the sketch", linear(2, 3, false)),
        ("one row of inputs", linear(150, 1, false)),
        ("convolution", Problem::Conv2d(Conv2d::new(conv).unwrap())),
        ("vector", Problem::Norm(Norm::layer(rows(6), 40, 1e-5).unwrap())),
        ("vector without bias", Problem::Norm(Norm::rms(rows(6), 70, 1e-5).unwrap())),
        ("table", Problem::Embedding(Embedding::new(rows(6), 50, 7).unwrap())),
    ];
    let mut cases = Vec::new();
    for (seed, (name, problem)) in problems.into_iter().enumerate() {
        let mut case = Case::random(name, problem, seed as u64);
        correlate(&mut case);
        cases.push(case);
    }
    cases
}

/// Gives the second sample the first one's inputs, and half of its `dy`.
fn correlate<T: Element>(case: &mut Case<T>) {
    let (x, dy) = (case.problem.x_of(0), case.problem.dy_of(0));
    match case.problem {
        Problem::Embedding(_) => case.tokens.copy_within(x.clone(), x.end),
        _ => case.x.copy_within(x.clone(), x.end),
    }
    for at in dy.clone() {
        let sum = case.dy[at].to_f32() + case.dy[at + dy.end].to_f32();
        case.dy[at + dy.end] = T::from_f32(sum);
    }
}

fn gradients(case: &Case<f32>, sketch: Option<Sketch>) -> Gradients {
    let (x, dy, weight) = (&case.x[..], &case.dy[..], None);
    let options = gradroute::ops::Options { sketch, ..Default::default() };
    let all = match &case.problem {
        Problem::Linear(p) => reference::linear(p, &options, LinearInputs { x, dy, weight }),
        Problem::Conv2d(p) => reference::conv2d(p, &options, ConvInputs { x, dy, weight }),
        Problem::Norm(p) => reference::norm(p, &options, NormInputs { x, dy, weight }),
        Problem::Embedding(p) => {
            reference::embedding(p, &options, EmbeddingInputs { tokens: &case.tokens, dy })
        }
        Problem::Lora(_) => unreachable!("two layers, tested as linear ones"),
    };
    all.unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Normalised inner product of a case's two gradients, bias included, and the product of their
/// lengths.
fn truth(case: &Case<f32>) -> (f64, f64) {
    let [one, two] = [0, 1].map(|n| {
        let all = gradients(&case.of_samples(&[n]), None);
        [all.dw, all.db].concat()
    });
    let lengths = f64::sqrt(dot(&one, &one) * dot(&two, &two));
    (dot(&one, &two) / lengths, lengths)
}

/// What the sketches of many seeds say that normalised inner product is.
fn estimates(case: &Case<f32>, kind: SketchKind, seeds: u32) -> Vec<f64> {
    let (_, lengths) = truth(case);
    (0..seeds)
        .map(|seed| {
            let all = gradients(case, Some(Sketch::new(kind, seed, 11).unwrap()));
            let (one, two) = all.sketch.split_at(all.sketch.len() / 2);
            dot(one, two) / lengths
        })
        .collect()
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, f64::sqrt(square / (count - 1.0)))
}

/// Whether the mean of the estimates is the truth, to 4.5 standard errors.
fn unbiased(estimates: &[f64], truth: f64) -> bool {
    let (mean, deviation) = mean_and_deviation(estimates);
    // Within one micro-block a count sketch is exact, and where both sides fit a two-sided one: leave room for
    // rounding, of `1/√k` in f32.
    (mean - truth).abs() < 4.5 * deviation / f64::sqrt(estimates.len() as f64) + 1e-6
}

/// The same estimates, had each sign matrix been scaled by the layer's dimension instead of the
/// sketch's: a mistake that was shipped elsewhere and re-weights layers by their shape.
fn scaled_by_the_layer(case: &Case<f32>, k: usize, estimates: &[f64]) -> Vec<f64> {
    let shape = case.problem.layers()[0];
    let factor = k as f64 / shape.columns() as f64;
    estimates.iter().map(|estimate| estimate * factor).collect()
}

#[test]
fn inner_products_are_unbiased_for_every_shape() {
    let kinds = [
        SketchKind::TwoSided { outputs: 8, inputs: 8 },
        SketchKind::TwoSided { outputs: 2, inputs: 5 },
        SketchKind::Count { buckets: 64 },
        SketchKind::Count { buckets: 192 },
    ];
    for case in pairs() {
        let (truth, _) = truth(&case);
        assert!(truth > 0.3, "{}: {truth} is too small to see a wrong scale", case.name);
        for kind in kinds {
            let all = estimates(&case, kind, 1000);
            let (mean, deviation) = mean_and_deviation(&all);
            let context = format!("{}, {kind:?}: {mean} ± {deviation}, not {truth}", case.name);
            assert!(unbiased(&all, truth), "{context}");
            if let SketchKind::TwoSided { inputs, .. } = kind {
                let wrong = scaled_by_the_layer(&case, inputs, &all);
                let same = case.problem.layers()[0].columns() == inputs;
                assert!(same || !unbiased(&wrong, truth), "{context}: wrong scale unseen");
            }
        }
    }
}

#[test]
fn lengths_are_on_one_scale_across_shapes() {
    // Widest ratio between two shapes of E‖S(G)‖² / ‖G‖².
    let spread = |ratios: &[f64]| {
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        ratios.iter().copied().fold(0.0, f64::max) / least
    };
    for kind in
        [SketchKind::TwoSided { outputs: 16, inputs: 16 }, SketchKind::Count { buckets: 256 }]
    {
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        for case in pairs() {
            // Two samples that are the same.
            let case = case.of_samples(&[0, 0]);
            let all = estimates(&case, kind, 600);
            right.push(mean_and_deviation(&all).0);
            wrong.push(mean_and_deviation(&scaled_by_the_layer(&case, 16, &all)).0);
        }
        assert!(spread(&right) < 1.15, "{kind:?}: {right:?}");
        assert!(spread(&wrong) > 5.0, "{kind:?}: {wrong:?}");
    }
}

/// A pair of linear gradients of so many rows, half correlated row by row, as a batch's are.
fn correlated_linear(rows: usize, seed: u64) -> Case<f32> {
    let problem = Linear::new(Rows::uniform(2, rows).unwrap(), 40, 32).unwrap();
    let mut case = Case::random("pair", Problem::Linear(problem), 900 + seed);
    for values in [&mut case.x, &mut case.dy] {
        let half = values.len() / 2;
        let (one, two) = values.split_at_mut(half);
        two.iter_mut().zip(one).for_each(|(two, one)| *two = 0.75f32.sqrt() * *two + 0.5 * *one);
    }
    case
}

/// Standard deviation of the estimated normalised inner product over pairs and seeds.
fn deviation(rows: usize, estimate: impl Fn(&Case<f32>, u32) -> Vec<f64>) -> f64 {
    let errors: Vec<f64> = (0..6)
        .flat_map(|pair| {
            let case = correlated_linear(rows, pair);
            let (truth, _) = truth(&case);
            estimate(&case, 250).into_iter().map(move |estimate| estimate - truth)
        })
        .collect();
    mean_and_deviation(&errors).1
}

/// The textbook count sketch: a random bucket and sign for every single element.
fn fully_random_count(case: &Case<f32>, seeds: u32) -> Vec<f64> {
    let (_, lengths) = truth(case);
    let pair = [0, 1].map(|n| gradients(&case.of_samples(&[n]), None).dw);
    let one = |seed: u32| {
        let mut random = Random::new(u64::from(seed));
        let mut sketches = [[0.0; 256]; 2];
        for (one, two) in pair[0].iter().zip(&pair[1]) {
            let (bucket, sign) = (random.below(256), random.one_of(&[-1.0, 1.0]));
            sketches[0][bucket] += sign * one;
            sketches[1][bucket] += sign * two;
        }
        dot(&sketches[0], &sketches[1]) / lengths
    };
    (0..seeds).map(one).collect()
}

/// At 256 numbers no sketch without knowledge of the data does better than 1/16.
#[test]
fn deviations_are_those_of_theory() {
    let count =
        |case: &Case<f32>, seeds| estimates(case, SketchKind::Count { buckets: 256 }, seeds);
    let two_sided = |case: &Case<f32>, seeds| {
        estimates(case, SketchKind::TwoSided { outputs: 16, inputs: 16 }, seeds)
    };
    for rows in [1, 64] {
        let (micro, full) = (deviation(rows, count), deviation(rows, fully_random_count));
        assert!((0.055..0.070).contains(&micro), "{rows} rows: {micro}");
        assert!((0.9..1.1).contains(&(micro / full)), "{rows} rows: {micro}, {full}");
    }
    // Signs on both sides of few rows spread more: the two errors multiply.
    for (rows, expected) in [(64, 0.09), (4, 0.13), (1, 0.22)] {
        let found = deviation(rows, two_sided);
        assert!((0.85..1.15).contains(&(found / expected)), "{rows} rows: {found}");
    }
}
