//! The accumulator and its queries against the plain sums of their definitions, in `f64`.

use super::*;
use crate::projection::philox4x32;

const BLOCKS: usize = 2;
const K: usize = 21;
const SAMPLES: u64 = 30;

/// Numbers between -1 and 1.
fn draws(what: u32, step: u64, count: usize) -> Vec<f32> {
    let draw = |n| philox4x32([n as u32, what, step as u32, 0], [7, 0])[0];
    (0..count).map(|n| draw(n) as f32 / 2f32.powi(31) - 1.0).collect()
}

fn record(step: u64) -> StepRecord {
    let batch = 8;
    StepRecord {
        step,
        step_size: 0.3 / (1.0 + step as f32),
        optimizer_scale: 0.5,
        blocks: BLOCKS,
        samples: (0..batch as u64).map(|n| (step * 11 + n) % SAMPLES + 100).collect(),
        noise_levels: draws(0, step, batch),
        gates: draws(1, step, batch),
        route: draws(2, step, batch * BLOCKS),
        flow: draws(3, step, batch * BLOCKS),
        sq_norm: draws(4, step, batch * BLOCKS).iter().map(|it| it * it).collect(),
        sketch: draws(5, step, batch * BLOCKS * K),
    }
}

fn accumulated(steps: u64) -> Accumulator {
    let mut accumulator = Accumulator::new(BLOCKS, K).unwrap();
    (0..steps).for_each(|step| accumulator.add(&record(step)).unwrap());
    accumulator
}

/// `A` of a sample in a block, from the definition.
fn expected(steps: u64, id: u64, block: usize) -> Vec<f64> {
    let mut sum = vec![0.0; K];
    for record in (0..steps).map(record) {
        for n in (0..record.samples.len()).filter(|&n| record.samples[n] == id) {
            let sketch = &record.sketch[(n * BLOCKS + block) * K..][..K];
            for (sum, &value) in sum.iter_mut().zip(sketch) {
                *sum += f64::from(record.step_size)
                    * f64::from(record.optimizer_scale)
                    * f64::from(value);
            }
        }
    }
    sum
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{a} is not {b}");
}

#[test]
fn sketches_add_up_as_defined() {
    let accumulator = accumulated(12);
    assert_eq!((accumulator.len(), accumulator.sketch(1)), (SAMPLES as usize, None));
    for &id in accumulator.ids() {
        for block in 0..BLOCKS {
            let sketch = &accumulator.sketch(id).unwrap()[block * K..][..K];
            let expected = expected(12, id, block);
            sketch.iter().zip(expected).for_each(|(&a, b)| close(f64::from(a), b));
        }
    }
}

#[test]
fn running_sums_leave_out_what_is_not_finite() {
    let mut accumulator = Accumulator::new(1, 2).unwrap().with_noise_edges(&[0.5]).unwrap();
    let mut record = StepRecord {
        step_size: -0.5,
        optimizer_scale: 2.0,
        blocks: 1,
        samples: vec![1],
        noise_levels: vec![0.5],
        gates: vec![0.5],
        route: vec![-3.0],
        flow: vec![1.0],
        sq_norm: vec![16.0],
        sketch: vec![3.0, 4.0],
        ..StepRecord::default()
    };
    accumulator.add(&record).unwrap();
    record.sq_norm = vec![f32::NAN];
    accumulator.add(&record).unwrap();
    record.noise_levels = vec![0.4];
    record.sq_norm = vec![9.0];
    record.step_size = 0.0;
    record.sketch = vec![f32::NAN; 2];
    accumulator.add(&record).unwrap();
    assert_eq!(accumulator.sketch(1).unwrap(), [-6.0, -8.0]);
    let totals = BlockTotals { pushed: 10.0, exposure: 6.0, stepped_sq: 16.0, sq_norm: 25.0 };
    assert_eq!(accumulator.totals(1).unwrap(), [totals]);
    let [low, high, none] = accumulator.norms(1).unwrap() else { panic!("three bins") };
    assert_eq!((low.events, low.mean(), low.last), (1, Some(3.0), 3.0));
    assert_eq!((high.events, high.measured, high.mean(), high.last), (2, 1, Some(4.0), 4.0));
    assert_eq!((none.events, none.mean()), (0, None));
    assert!(accumulator.with_noise_edges(&[]).is_err());
}

#[test]
fn parts_of_a_run_merge_into_the_whole() {
    let mut parts = accumulated(5);
    let mut later = parts.like();
    (5..12).for_each(|step| later.add(&record(step)).unwrap());
    parts.merge(&later).unwrap();
    let whole = accumulated(12);
    assert_eq!(parts.ids(), whole.ids());
    for &id in whole.ids() {
        let pairs = parts.sketch(id).unwrap().iter().zip(whole.sketch(id).unwrap());
        pairs.for_each(|(&a, &b)| close(f64::from(a), f64::from(b)));
        let (a, b) = (&parts.norms(id).unwrap()[0], &whole.norms(id).unwrap()[0]);
        assert_eq!((a.events, a.last), (b.events, b.last));
    }
    assert!(parts.merge(&Accumulator::new(BLOCKS, K + 1).unwrap()).is_err());
}

#[test]
fn influence_is_the_inner_product() {
    let accumulator = accumulated(12);
    let query = draws(9, 0, BLOCKS * K);
    let wide: Vec<f64> = query.iter().copied().map(f64::from).collect();
    let dot = accumulator.influence(&query, Similarity::Dot).unwrap();
    let cosine = accumulator.influence(&query, Similarity::Cosine).unwrap();
    for (n, &id) in accumulator.ids().iter().enumerate() {
        let (mut total, mut square) = (0.0, 0.0);
        for block in 0..BLOCKS {
            let (sketch, query) = (expected(12, id, block), &wide[block * K..][..K]);
            let product = inner(&sketch, query);
            close(dot.block(block).nth(n).unwrap(), product);
            let norms = (inner(&sketch, &sketch) * inner(query, query)).sqrt();
            close(cosine.block(block).nth(n).unwrap(), product / norms);
            total += product;
            square += inner(&sketch, &sketch);
        }
        close(dot.total().nth(n).unwrap(), total);
        close(cosine.total().nth(n).unwrap(), total / (square * inner(&wide, &wide)).sqrt());
    }
    let top = dot.top(SAMPLES as usize + 5);
    assert_eq!(top.len(), SAMPLES as usize);
    assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    let best = dot.block(1).fold(f64::MIN, f64::max);
    assert_eq!(dot.top_in_block(1, 1)[0].1, best);
    for wrong in [vec![0.0; 3], vec![f32::NAN; BLOCKS * K]] {
        let error = accumulator.influence(&wrong, Similarity::Dot).unwrap_err().to_string();
        assert!(error.contains("query"), "{error}");
    }
}

#[test]
fn whitening_inverts_the_damped_gram_matrix() {
    let accumulator = accumulated(12);
    let (query, damping) = (draws(9, 0, BLOCKS * K), 0.1);
    let whitened = Whitening::new(&accumulator, damping).unwrap().apply(&query).unwrap();
    for block in 0..BLOCKS {
        let rows: Vec<_> = accumulator.ids().iter().map(|&id| expected(12, id, block)).collect();
        let trace: f64 = rows.iter().map(|row| inner(row, row)).sum();
        let solved: Vec<f64> = whitened[block * K..][..K].iter().copied().map(f64::from).collect();
        for i in 0..K {
            // (ΦᵀΦ + λI) applied to the answer gives the query back.
            let gram: f64 = rows.iter().map(|row| row[i] * inner(row, &solved)).sum();
            let back = gram + damping * trace / K as f64 * solved[i];
            let error = (back - f64::from(query[block * K + i])).abs();
            assert!(error < 1e-5, "block {block}, row {i}: off by {error}");
        }
    }
    let idle = Accumulator::new(1, 2).unwrap();
    assert_eq!(Whitening::new(&idle, 1.0).unwrap().apply(&[1.0, 2.0]).unwrap(), [0.0; 2]);
    for damping in [0.0, -1.0, f64::NAN] {
        assert!(Whitening::new(&accumulator, damping).is_err());
    }
}

/// `(ΦᵀΦ + λI)⁻¹ v` of one block by plain elimination.
fn solved(rows: &[Vec<f64>], damping: f64, v: &[f64]) -> Vec<f64> {
    let trace: f64 = rows.iter().map(|row| inner(row, row)).sum();
    let mut table: Vec<Vec<f64>> = (0..K)
        .map(|i| {
            let gram = (0..K).map(|j| rows.iter().map(|row| row[i] * row[j]).sum::<f64>());
            let mut row: Vec<f64> = gram.chain([v[i]]).collect();
            row[i] += damping * trace / K as f64;
            row
        })
        .collect();
    for i in 0..K {
        for r in (0..K).filter(|&r| r != i) {
            let factor = table[r][i] / table[i][i];
            let pivot = table[i].clone();
            table[r].iter_mut().zip(pivot).for_each(|(it, pivot)| *it -= factor * pivot);
        }
    }
    (0..K).map(|i| table[i][K] / table[i][i]).collect()
}

#[test]
fn scores_are_their_definitions() {
    let accumulator = accumulated(12);
    let damping = 0.1;
    let scorers = [
        (Scorer::plain(&accumulator), None),
        (Scorer::whitened(&accumulator, damping).unwrap(), Some(damping)),
    ];
    for seed in 0..5 {
        let query = draws(9, seed, BLOCKS * K);
        let wide: Vec<f64> = query.iter().copied().map(f64::from).collect();
        for (scorer, damping) in &scorers {
            let scores = [Similarity::Dot, Similarity::Cosine, Similarity::SelfInfluence]
                .map(|similarity| scorer.scores(&query, similarity).unwrap());
            let mut sums = vec![[0.0; 3]; accumulator.len()];
            for block in 0..BLOCKS {
                let rows: Vec<_> =
                    accumulator.ids().iter().map(|&id| expected(12, id, block)).collect();
                let seen = |v: &[f64]| match damping {
                    Some(damping) => solved(&rows, *damping, v),
                    None => v.to_vec(),
                };
                let query = &wide[block * K..][..K];
                for (n, row) in rows.iter().enumerate() {
                    let parts = [
                        inner(row, &seen(query)),
                        inner(row, &seen(row)),
                        inner(query, &seen(query)),
                    ];
                    let got = scores.each_ref().map(|it| it.block(block).nth(n).unwrap());
                    assert_scores(got, parts);
                    close(scorer.self_influence()[n * BLOCKS + block], parts[1]);
                    sums[n].iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
                }
            }
            for (n, parts) in sums.into_iter().enumerate() {
                assert_scores(scores.each_ref().map(|it| it.total().nth(n).unwrap()), parts);
            }
        }
    }
}

/// The three scores from the inner product, the sample's square and the query's.
fn assert_scores(got: [f64; 3], [product, sample_sq, query_sq]: [f64; 3]) {
    close(got[0], product);
    close(got[1], product / (sample_sq * query_sq).sqrt());
    close(got[2], product / sample_sq.sqrt());
}

#[test]
fn a_sample_that_did_nothing_scores_zero() {
    let mut accumulator = accumulated(3);
    let idle = StepRecord { sketch: vec![0.0; 8 * BLOCKS * K], ..record(90) };
    let idle = StepRecord { samples: (900..908).collect(), ..idle };
    accumulator.add(&idle).unwrap();
    let query = draws(9, 0, BLOCKS * K);
    for scorer in [Scorer::plain(&accumulator), Scorer::whitened(&accumulator, 0.1).unwrap()] {
        for similarity in [Similarity::Dot, Similarity::Cosine, Similarity::SelfInfluence] {
            let scores = scorer.scores(&query, similarity).unwrap();
            let of_idle = scores.ids().iter().zip(scores.total()).filter(|(id, _)| **id >= 900);
            assert_eq!(of_idle.map(|(_, score)| score).collect::<Vec<_>>(), [0.0; 8]);
            let zero = scorer.scores(&[0.0; BLOCKS * K], similarity).unwrap();
            assert!(zero.total().all(|score| score == 0.0));
        }
        assert!(scorer.scores(&[0.0; 3], Similarity::Dot).is_err());
        assert!(scorer.scores(&[f32::NAN; BLOCKS * K], Similarity::Dot).is_err());
    }
}

#[test]
fn answers_do_not_depend_on_the_number_of_threads() {
    let (samples, len) = (700, 300);
    let mut accumulator = Accumulator::new(1, len).unwrap();
    let record = StepRecord {
        step_size: 1.0,
        optimizer_scale: 1.0,
        blocks: 1,
        samples: (0..samples as u64).collect(),
        noise_levels: vec![0.0; samples],
        gates: vec![1.0; samples],
        route: vec![1.0; samples],
        flow: vec![1.0; samples],
        sq_norm: vec![1.0; samples],
        sketch: draws(1, 0, samples * len),
        ..StepRecord::default()
    };
    accumulator.add(&record).unwrap();
    let query = draws(2, 0, len);
    let answers = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let whitened = Whitening::new(&accumulator, 0.1).unwrap().apply(&query).unwrap();
            let scores = accumulator.influence(&whitened, Similarity::Cosine).unwrap();
            (scores.top(samples), accumulator.near_duplicates(50))
        })
    };
    let alone = answers(1);
    for threads in [2, 3, 7] {
        assert!(answers(threads) == alone, "{threads} threads");
    }
}

#[test]
fn groups_add_up_and_overlap() {
    let accumulator = accumulated(12);
    let group_of = |id: u64| (id % 4 < 3).then_some((id % 4) as usize);
    let groups = accumulator.groups(3, group_of).unwrap();
    for block in 0..BLOCKS {
        let sums: Vec<Vec<f64>> = (0..3)
            .map(|group| {
                let members: Vec<_> = accumulator
                    .ids()
                    .iter()
                    .filter(|&&id| group_of(id) == Some(group))
                    .map(|&id| expected(12, id, block))
                    .collect();
                assert_eq!(groups.samples(group), members.len());
                let pushed: f64 = members.iter().map(|it| inner(it, it).sqrt()).sum();
                close(groups.pushed(group, block), pushed);
                assert!(groups.path(group, block) >= pushed - 1e-6);
                (0..K).map(|i| members.iter().map(|it| it[i]).sum()).collect()
            })
            .collect();
        let norm = |group: usize| inner(&sums[group], &sums[group]).sqrt();
        (0..3).for_each(|group| close(groups.moved(group, block), norm(group)));
        let cosine = inner(&sums[0], &sums[2]) / (norm(0) * norm(2));
        close(groups.overlap(0, 2, block), cosine);
    }
    let error = accumulator.groups(2, group_of).unwrap_err().to_string();
    assert!(error.contains("group_of("), "{error}");
}

#[test]
fn near_duplicates_are_the_best_pairs_of_all() {
    // More than one tile, one exact duplicate far from its twin, one sample that did nothing.
    let (samples, len) = (600, BLOCKS * K);
    let mut sketch = draws(1, 0, samples * len);
    let twin = sketch[3 * len..4 * len].to_vec();
    sketch[590 * len..591 * len].iter_mut().zip(&twin).for_each(|(it, &value)| *it = 2.5 * value);
    sketch[7 * len..8 * len].fill(0.0);
    let mut accumulator = Accumulator::new(BLOCKS, K).unwrap();
    let record = StepRecord {
        step_size: 1.0,
        optimizer_scale: 1.0,
        blocks: BLOCKS,
        samples: (0..samples as u64).collect(),
        noise_levels: vec![0.0; samples],
        gates: vec![1.0; samples],
        route: vec![1.0; samples * BLOCKS],
        flow: vec![1.0; samples * BLOCKS],
        sq_norm: vec![1.0; samples * BLOCKS],
        sketch,
        ..StepRecord::default()
    };
    accumulator.add(&record).unwrap();
    let wide = |n: usize| -> Vec<f64> {
        record.sketch[n * len..][..len].iter().copied().map(f64::from).collect()
    };
    let rows: Vec<_> = (0..samples).filter(|&n| n != 7).map(|n| (n, wide(n))).collect();
    let mut all = Vec::new();
    for (at, (a, row)) in rows.iter().enumerate() {
        for (b, other) in &rows[at + 1..] {
            let cosine = |(row, other): (&[f64], &[f64])| {
                inner(row, other) / (inner(row, row) * inner(other, other)).sqrt()
            };
            let blocks = row.chunks(K).zip(other.chunks(K));
            all.push(([*a as u64, *b as u64], blocks.map(cosine).sum::<f64>() / BLOCKS as f64));
        }
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let pairs = accumulator.near_duplicates(5);
    assert_eq!(pairs[0].ids, [3, 590]);
    for (pair, (ids, cosine)) in pairs.iter().zip(&all) {
        assert_eq!(&pair.ids, ids);
        close(f64::from(pair.cosine), *cosine);
    }
    assert_eq!(accumulator.near_duplicates(usize::MAX).len(), all.len());
    assert_eq!(accumulator.near_duplicates(0), []);
}
