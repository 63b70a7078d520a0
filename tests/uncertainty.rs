//! The deviation that sketches give of themselves, against that over many projections.

use gradroute::projection::{Side, SignMatrix, SketchKind, micro_block, philox4x32};
use gradroute::provenance::ledger::{BlockInfo, Ledger, RunInfo, SampleInfo};
use gradroute::provenance::query::{Archive, OutputOptions};
use gradroute::provenance::{Estimate, Query, StepRecord, deviation};

const SIDE: usize = 40;

/// Roughly normal numbers, always the same.
fn draws(what: u32, count: usize) -> Vec<f64> {
    let draw = |n: usize| {
        let words = philox4x32([n as u32, what, 0, 0], [3, 4]);
        words.iter().map(|&word| f64::from(word) / 2f64.powi(32) - 0.5).sum::<f64>()
    };
    (0..count).map(draw).collect()
}

/// A gradient `[SIDE, SIDE]` of `rows` rows, `Σ_t dy_t x_tᵀ`.
fn gradient(what: u32, rows: usize) -> Vec<f64> {
    let (dy, x) = (draws(2 * what, rows * SIDE), draws(2 * what + 1, rows * SIDE));
    let mut sum = vec![0.0; SIDE * SIDE];
    for t in 0..rows {
        for (at, sum) in sum.iter_mut().enumerate() {
            *sum += dy[t * SIDE + at / SIDE] * x[t * SIDE + at % SIDE];
        }
    }
    sum
}

/// `share` of the first and the rest of the second.
fn mixed(a: &[f64], b: &[f64], share: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| share * a + (1.0 - share) * b).collect()
}

fn sketched(kind: SketchKind, seed: u32, gradient: &[f64]) -> Vec<f32> {
    match kind {
        SketchKind::Count { buckets } => {
            let mut sketch = vec![0f64; buckets];
            for (at, value) in gradient.iter().enumerate() {
                let (o, i) = (at / SIDE, at % SIDE);
                let block = micro_block([seed, 0], o as u32 / 8, i as u32 / 8, buckets);
                let e = 8 * (o % 8) + i % 8;
                sketch[block.bucket(e, buckets)] += f64::from(block.sign(e)) * value;
            }
            sketch.iter().map(|&value| value as f32).collect()
        }
        SketchKind::TwoSided { outputs, inputs } => {
            let signs = |side, k| -> Vec<f32> {
                let mut rows = vec![0.0; SIDE * k];
                for (row, out) in rows.chunks_exact_mut(k).enumerate() {
                    SignMatrix::new([seed, 0], side, SIDE, k).row(row as u32, out);
                }
                rows
            };
            let (po, pi) = (signs(Side::Outputs, outputs), signs(Side::Inputs, inputs));
            let mut half = vec![0f64; SIDE * inputs];
            for o in 0..SIDE {
                for i in 0..SIDE {
                    for b in 0..inputs {
                        half[o * inputs + b] +=
                            gradient[o * SIDE + i] * f64::from(pi[i * inputs + b]);
                    }
                }
            }
            let mut sketch = vec![0f64; outputs * inputs];
            for o in 0..SIDE {
                for a in 0..outputs {
                    for b in 0..inputs {
                        sketch[a * inputs + b] +=
                            f64::from(po[o * outputs + a]) * half[o * inputs + b];
                    }
                }
            }
            sketch.iter().map(|&value| value as f32).collect()
        }
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Root mean square of the errors, of the deviations that were told, and the share of errors
/// within two deviations.
fn simulated(kind: SketchKind, g: &[f64], h: &[f64], seeds: u32) -> [f64; 3] {
    let (mut errors, mut told, mut within) = (0.0, 0.0, 0);
    for seed in 0..seeds {
        let (a, b) = (sketched(kind, seed, g), sketched(kind, seed, h));
        let (error, deviation) = (dot(&a, &b) - inner(g, h), deviation(kind, &a, &b));
        errors += error * error;
        told += deviation * deviation;
        within += u32::from(error.abs() <= 2.0 * deviation);
    }
    let count = f64::from(seeds);
    [(errors / count).sqrt(), (told / count).sqrt(), f64::from(within) / count]
}

#[test]
fn sketches_tell_how_far_they_are_off() {
    let seeds = 200;
    let kinds = [
        SketchKind::Count { buckets: 64 },
        SketchKind::Count { buckets: 256 },
        SketchKind::TwoSided { outputs: 16, inputs: 16 },
        SketchKind::TwoSided { outputs: 8, inputs: 32 },
    ];
    for rows in [1, 4, 64] {
        let (g, other) = (gradient(1, rows), gradient(2, rows));
        for share in [0.0, 0.5, 1.0] {
            let h = mixed(&g, &other, share);
            for kind in kinds {
                let [real, told, within] = simulated(kind, &g, &h, seeds);
                let ratio = told / real;
                let place = format!(
                    "{kind:?}, {rows} rows, {share} alike: {real:.3}, told {told:.3} \
                     ({ratio:.2}), {within:.3} within two"
                );
                println!("{place}");
                assert!((0.85..1.2).contains(&ratio), "{place}");
                // A single row's errors have long tails.
                assert!(within >= if rows == 1 { 0.75 } else { 0.85 }, "{place}");
            }
        }
    }
}

/// The same of whitened scores, as answers give them, against their spread over projections.
#[test]
fn whitened_scores_tell_it_too() {
    let (samples, seeds) = (80, 40);
    for kind in [SketchKind::Count { buckets: 64 }, SketchKind::TwoSided { outputs: 8, inputs: 8 }]
    {
        let shared = gradient(50, 64);
        let gradients: Vec<Vec<f64>> =
            (0..samples).map(|n| mixed(&gradient(100 + n, 64), &shared, 0.8)).collect();
        let query = mixed(&gradients[0], &gradient(99, 64), 0.6);
        let answers: Vec<_> =
            (0..seeds).map(|seed| scored(kind, seed, &gradients, &query)).collect();
        for sample in [0, 7] {
            let of = |it: &Vec<(u64, Estimate)>| {
                it.iter().find(|(id, _)| *id == sample).map(|(_, score)| *score).unwrap()
            };
            let scores: Vec<Estimate> = answers.iter().map(of).collect();
            let count = scores.len() as f64;
            let mean = scores.iter().map(|it| it.value).sum::<f64>() / count;
            let real = scores.iter().map(|it| (it.value - mean).powi(2)).sum::<f64>() / count;
            let told = scores.iter().map(|it| it.deviation.powi(2)).sum::<f64>() / count;
            let ratio = (told / real).sqrt();
            println!(
                "{kind:?}, whitened, sample {sample}: {mean:.4} ± {:.4}, {ratio:.2}",
                real.sqrt()
            );
            assert!((0.8..2.0).contains(&ratio), "{kind:?}, sample {sample}: {ratio}");
        }
    }
}

/// Scores of all samples in a ledger of one step that was sketched with this seed.
fn scored(
    kind: SketchKind,
    seed: u32,
    gradients: &[Vec<f64>],
    query: &[f64],
) -> Vec<(u64, Estimate)> {
    let count = gradients.len();
    let ids = 0..count as u64;
    let info = RunInfo {
        samples: ids
            .clone()
            .map(|id| SampleInfo { id, category: "a".into(), content_hash: [0; 32] })
            .collect(),
        blocks: vec![BlockInfo { name: "all".into(), layers: vec![] }],
        ..RunInfo::new(kind, seed)
    };
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::create(dir.path(), info).unwrap();
    let record = StepRecord {
        step_size: 1.0,
        optimizer_scale: 1.0,
        blocks: 1,
        samples: ids.collect(),
        noise_levels: vec![f32::NAN; count],
        gates: vec![1.0; count],
        route: vec![1.0; count],
        flow: vec![1.0; count],
        sq_norm: vec![1.0; count],
        sketch: gradients.iter().flat_map(|it| sketched(kind, seed, it)).collect(),
        ..StepRecord::default()
    };
    ledger.append(&record).unwrap();
    ledger.commit().unwrap();
    let archive = Archive::open(dir.path()).unwrap();
    let query = sketched(kind, seed, query);
    let query = Query::single(1, query.len(), &query).unwrap();
    let options = OutputOptions { count, ..OutputOptions::default() };
    let answer = archive.output(&query, &options).unwrap();
    answer.helpful.iter().chain(&answer.harmful).map(|it| (it.sample, it.score)).collect()
}
