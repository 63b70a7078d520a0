//! Answers of a ledger against their definitions, worked out in `f64` from the records.

mod support_ledger;

use std::collections::BTreeMap;
use std::ops::Range;

use gradroute::provenance::query::{Archive, OutputOptions, Place, Subject};
use gradroute::provenance::{Draw, Query, Similarity, StepRecord};
use support_ledger::{BLOCKS, K, SAMPLES, category, draws, info, record, written};

const STEPS: u64 = 12;

fn archive() -> (tempfile::TempDir, Archive) {
    let dir = written(STEPS, 4);
    let archive = Archive::open(dir.path()).unwrap();
    (dir, archive)
}

/// `A` of the samples a predicate picks, summed, `[B][K]`.
fn summed(pick: impl Fn(u64) -> bool) -> Vec<Vec<f64>> {
    summed_over(0..STEPS, pick)
}

/// The same of some steps.
fn summed_over(steps: Range<u64>, pick: impl Fn(u64) -> bool) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; K]; BLOCKS];
    for record in steps.map(record) {
        for (n, _) in record.samples.iter().enumerate().filter(|(_, id)| pick(**id)) {
            for (b, sum) in sums.iter_mut().enumerate() {
                let sketch = &record.sketch[(n * BLOCKS + b) * K..][..K];
                let each = sum.iter_mut().zip(sketch);
                each.for_each(|(sum, &value)| *sum += record.factor() * f64::from(value));
            }
        }
    }
    sums
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    inner(a, a).sqrt()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{a} is not {b}");
}

fn events_of(pick: impl Fn(u64) -> bool + Copy) -> Vec<(StepRecord, usize)> {
    let events = (0..STEPS).map(record).flat_map(|record| {
        let rows: Vec<usize> =
            (0..record.samples.len()).filter(|&n| pick(record.samples[n])).collect();
        rows.into_iter().map(move |n| (record.clone(), n))
    });
    events.collect()
}

#[test]
fn forward_adds_up_what_was_recorded() {
    let (_dir, archive) = archive();
    let script: Subject = Subject::Category("style/script".parse().unwrap());
    let one = Subject::Sample(info().samples[3].id);
    for (subject, pick) in [
        (
            &script,
            Box::new(|id: u64| category(id).starts_with("style/script"))
                as Box<dyn Fn(u64) -> bool>,
        ),
        (&one, Box::new(|id| id == info().samples[3].id)),
    ] {
        let answer = archive.forward(subject).unwrap();
        let events = events_of(&pick);
        assert_eq!(answer.events, events.len() as u64);
        let steps: Vec<u64> = events.iter().map(|(record, _)| record.step).collect();
        assert_eq!(answer.citation.steps, Some([steps[0], *steps.last().unwrap()]));
        assert_eq!(answer.gated, events.len() as u64);
        let gates = events.iter().map(|(record, n)| f64::from(record.gates[*n]));
        close(answer.gate, gates.sum::<f64>() / events.len() as f64);
        let sums = summed(&pick);
        for (b, block) in answer.blocks.iter().enumerate() {
            close(block.moved.value, norm(&sums[b]));
            let [mut raw, mut unrouted, mut applied, mut path, mut left_out] = [0.0; 5];
            for (record, n) in &events {
                let at = n * BLOCKS + b;
                let (norm_n, factor) = (f64::from(record.sq_norm[at]).sqrt(), record.factor());
                let sketch: Vec<f64> =
                    record.sketch[at * K..][..K].iter().copied().map(f64::from).collect();
                path += factor.abs() * norm(&sketch);
                if !norm_n.is_finite() {
                    left_out += 1.0;
                    continue;
                }
                raw += norm_n;
                unrouted += factor.abs() * norm_n;
                let routed = f64::from(record.route[at]) * f64::from(record.gates[*n]);
                applied += (factor * routed).abs() * norm_n;
            }
            close(block.raw, raw);
            close(block.unrouted, unrouted);
            close(block.applied, applied);
            close(block.path, path);
            assert_eq!(block.not_finite as f64, left_out);
            let ids = info().samples.into_iter().map(|it| it.id).filter(|&id| pick(id));
            close(block.pushed, ids.map(|id| norm(&summed(|it| it == id)[b])).sum());
        }
        close(answer.blocks.iter().map(|it| it.share).sum(), 1.0);
        assert_eq!(answer.levels.iter().map(|it| it.events).sum::<u64>(), answer.events);
    }
    // Levels are those of the events.
    let answer = archive.forward(&script).unwrap();
    let pick = |id| category(id).starts_with("style/script");
    for level in &answer.levels[..3] {
        let within =
            |it: f32| level.from.is_none_or(|from| it >= from) && level.to.is_none_or(|to| it < to);
        let events = events_of(pick);
        let count = events.iter().filter(|(record, n)| within(record.noise_levels[*n])).count();
        assert_eq!(level.events, count as u64);
    }
    assert_eq!((answer.regions[0].region.as_str(), answer.regions[0].route), ("script", 1.0));
    assert_eq!(answer.regions[0].blocks, ["up"]);
    let serif = archive.forward(&Subject::Category("style/serif".parse().unwrap())).unwrap();
    assert_eq!(serif.regions, []);
    let error = archive.forward(&Subject::Category("style/scri".parse().unwrap())).unwrap_err();
    assert!(error.to_string().contains("style/script/kristi"), "{error}");
    assert!(archive.forward(&Subject::Sample(4)).is_err());
}

#[test]
fn a_citation_names_the_segments_that_hold_the_events() {
    let (_dir, archive) = archive();
    let answer = archive.forward(&Subject::Sample(info().samples[3].id)).unwrap();
    let [first, last] = answer.citation.steps.unwrap();
    let entries = archive.reader().entries();
    let expected: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.steps.is_some_and(|[a, b]| a <= last && first <= b))
        .map(|entry| entry.index)
        .collect();
    let cited = &answer.citation.segments;
    assert_eq!(cited.iter().map(|it| it.index).collect::<Vec<_>>(), expected);
    for segment in cited {
        let entry = &entries[segment.index as usize];
        assert_eq!(segment.entry, entry.hash);
        assert!(segment.blake3.iter().eq(entry.files.iter().map(|file| &file.blake3)));
    }
    assert_eq!(answer.citation.ledger_head, archive.reader().head());
    assert_eq!(answer.citation.policy_hash, info().policy_hash);
    assert_eq!(answer.citation.samples, [info().samples[3].id]);
    let coverage = &answer.citation.coverage;
    assert_eq!((coverage.samples, coverage.parameters), (SAMPLES as usize, Some(10_000)));
    close(coverage.share().unwrap(), coverage.parameters_recorded as f64 / 10_000.0);
}

#[test]
fn backward_ranks_who_moved_a_block() {
    let (_dir, archive) = archive();
    for (b, name) in ["down", "up"].into_iter().enumerate() {
        let answer = archive.backward(&Place::Block(name.into()), Some(2), 5).unwrap();
        let mut expected: BTreeMap<String, f64> = BTreeMap::new();
        for root in ["style/script", "style/serif"] {
            let moved = norm(&summed(|id| category(id).starts_with(root))[b]);
            expected.insert(root.into(), moved);
        }
        let all: f64 = expected.values().sum();
        assert_eq!(answer.categories.len(), 2);
        for it in &answer.categories {
            close(it.moved.value, expected[&it.category]);
            close(it.share, expected[&it.category] / all);
            assert!(it.pushed >= it.moved.value - 1e-6);
            close(it.moved.deviation, it.moved.value / (2.0 * K as f64).sqrt());
        }
        assert!(answer.categories[0].moved.value >= answer.categories[1].moved.value);
        let mut samples: Vec<(f64, u64)> =
            (info().samples.iter()).map(|it| (norm(&summed(|id| id == it.id)[b]), it.id)).collect();
        samples.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(answer.samples.len(), 5);
        for (got, (moved, id)) in answer.samples.iter().zip(samples) {
            assert_eq!(got.sample, id);
            close(got.moved.value, moved);
        }
    }
    let region = archive.backward(&Place::Region("script".into()), None, 50).unwrap();
    assert_eq!(region.blocks, ["up"]);
    assert!(region.categories.iter().all(|it| it.category.starts_with("style/script")));
    assert!(!region.samples.is_empty());
    for (place, known) in
        [(Place::Block("side".into()), "down, up"), (Place::Region("x".into()), "script")]
    {
        let error = archive.backward(&place, None, 1).unwrap_err().to_string();
        assert!(error.contains(known), "{error}");
    }
}

fn query(count: u32) -> Query {
    let mut query = Query::new(BLOCKS, K);
    for n in 0..count {
        let draw = Draw { level: n as f32 / count as f32, noise: u64::from(n) };
        query.add(draw, &draws(20 + n, 0, BLOCKS * K)).unwrap();
    }
    query
}

#[test]
fn output_ranks_helpers_and_harmers() {
    let (_dir, archive) = archive();
    let query = query(5);
    let mean: Vec<f64> = query.mean().iter().copied().map(f64::from).collect();
    let options = OutputOptions { whitening: None, count: 4, level: Some(2), ..Default::default() };
    let answer = archive.output(&query, &options).unwrap();
    let score = |sums: &[Vec<f64>]| -> Vec<f64> {
        sums.iter().zip(mean.chunks(K)).map(|(sum, q)| inner(sum, q)).collect()
    };
    let mut all: Vec<(f64, u64)> = (info().samples.iter())
        .map(|it| (score(&summed(|id| id == it.id)).iter().sum(), it.id))
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert_eq!((answer.helpful.len(), answer.harmful.len()), (4, 4));
    let best = answer.helpful.iter().zip(&all);
    for (got, (score_n, id)) in best.chain(answer.harmful.iter().zip(all.iter().rev())) {
        assert_eq!(got.sample, *id);
        close(got.score.value, *score_n);
        let parts = score(&summed(|it| it == *id));
        let sum: f64 = parts.iter().map(|it| it.abs()).sum();
        got.shares.iter().zip(&parts).for_each(|(share, part)| close(*share, part / sum));
        // Both parts of the deviation.
        let sums = summed(|it| it == *id);
        let sketch: f64 = sums
            .iter()
            .zip(mean.chunks(K))
            .map(|(a, q)| (inner(a, a) * inner(q, q) + inner(a, q).powi(2)) / K as f64)
            .sum();
        let each: Vec<f64> = query
            .sketches()
            .map(|draw| {
                let wide: Vec<f64> = draw.iter().copied().map(f64::from).collect();
                sums.iter().zip(wide.chunks(K)).map(|(a, q)| inner(a, q)).sum()
            })
            .collect();
        let middle = each.iter().sum::<f64>() / 5.0;
        let noise = each.iter().map(|it| (it - middle).powi(2)).sum::<f64>() / 4.0 / 5.0;
        close(got.score.deviation, (sketch + noise).sqrt());
    }
    assert!(answer.harmful.iter().all(|it| it.score.value < 0.0));
    for it in &answer.categories {
        let parts = score(&summed(|id| category(id).starts_with(&it.category)));
        close(it.score.value, parts.iter().sum());
    }
    assert_eq!(answer.draws.len(), 5);
    assert!(query.same_draws(&query) && !query.same_draws(&self::query(4)));
    assert!(archive.output(&Query::new(BLOCKS, K), &options).is_err());
    assert!(archive.output(&Query::single(1, K, &[0.0; K]).unwrap(), &options).is_err());
}

#[test]
fn output_by_phases_holds_each_to_its_own_size() {
    let (_dir, archive) = archive();
    let queries = [query(3), query(3), query(3)];
    let options =
        OutputOptions { whitening: None, count: 100, level: Some(2), ..Default::default() };
    let answer = archive.output_by_phases(&queries, &options).unwrap();
    assert_eq!((answer.phases, answer.blocks.len()), (3, BLOCKS));
    let mean: Vec<f64> = queries[0].mean().iter().copied().map(f64::from).collect();
    let phases: Vec<(Range<u64>, f64)> = (0..3)
        .map(|phase| {
            let steps = 4 * phase..4 * (phase + 1);
            let seen = info().samples.into_iter().map(|it| it.id);
            let seen = seen.filter(|id| steps.clone().any(|it| record(it).samples.contains(id)));
            let sums: Vec<f64> =
                seen.flat_map(|id| summed_over(steps.clone(), |it| it == id).concat()).collect();
            let size = (inner(&sums, &sums) / sums.len() as f64).sqrt();
            (steps, size)
        })
        .collect();
    let parts = |pick: &dyn Fn(u64) -> bool| -> Vec<f64> {
        let mut parts = vec![0.0; BLOCKS];
        for (steps, size) in &phases {
            let sums = summed_over(steps.clone(), pick);
            for (part, (sum, query)) in parts.iter_mut().zip(sums.iter().zip(mean.chunks(K))) {
                *part += inner(sum, query) / size;
            }
        }
        parts
    };
    let listed: Vec<_> = answer.helpful.iter().chain(&answer.harmful).collect();
    assert_eq!(listed.len(), archive.influence().len());
    for it in listed {
        let parts = parts(&|id| id == it.sample);
        close(it.score.value, parts.iter().sum());
        let all: f64 = parts.iter().map(|part| part.abs()).sum();
        it.shares.iter().zip(&parts).for_each(|(share, part)| close(*share, part / all));
    }
    for it in &answer.categories {
        let parts = parts(&|id| category(id).starts_with(&it.category));
        close(it.score.value, parts.iter().sum());
    }
    assert_eq!(archive.output(&query(3), &options).unwrap().phases, 1);
    let many = vec![query(3); 4]; // there are three segments
    assert!(archive.output_by_phases(&many, &options).is_err());
    assert!(archive.output_by_phases(&[query(3), query(2)], &options).is_err());
    let narrow = Query::single(BLOCKS, 1, &[1.0; BLOCKS]).unwrap();
    let refused = archive.output_by_phases(&[query(1), narrow], &options).unwrap_err().to_string();
    assert!(refused.contains("queries[1]") && refused.contains(&format!("× {K}")), "{refused}");
}

#[test]
fn scores_of_every_kind_agree_with_the_scorer() {
    use gradroute::provenance::Scorer;
    let (_dir, archive) = archive();
    let query = query(1);
    for whitening in [None, Some(0.1)] {
        let scorer = match whitening {
            None => Scorer::plain(archive.influence()),
            Some(damping) => Scorer::whitened(archive.influence(), damping).unwrap(),
        };
        for similarity in [Similarity::Dot, Similarity::Cosine, Similarity::SelfInfluence] {
            let options = OutputOptions { whitening, similarity, count: 100, ..Default::default() };
            let answer = archive.output(&query, &options).unwrap();
            let scores = scorer.scores(&query.mean(), similarity).unwrap();
            let expected: BTreeMap<u64, f64> =
                scores.ids().iter().copied().zip(scores.total()).collect();
            let listed: Vec<_> = answer.helpful.iter().chain(&answer.harmful).collect();
            assert_eq!(listed.len(), expected.len());
            for it in listed {
                close(it.score.value, expected[&it.sample]);
                assert!(it.score.deviation > 0.0);
            }
        }
    }
}

#[test]
fn copies_share_their_credit_as_a_group() {
    let (_dir, archive) = archive();
    // Samples 0 and 1 have the same content; asked about one, both are in one group.
    let [first, second] = [0, 1].map(|n| info().samples[n].id);
    let query = archive.query_like(first).unwrap();
    let options = OutputOptions { whitening: None, count: 1, ..Default::default() };
    let answer = archive.output(&query, &options).unwrap();
    assert_eq!((answer.helpful[0].sample, answer.helpful[0].group), (first, Some(0)));
    let group = &answer.groups[0];
    assert_eq!((group.samples.as_slice(), group.copies), (&[first, second][..], true));
    let mean: Vec<f64> = query.mean().iter().copied().map(f64::from).collect();
    let sums = summed(|id| id == first || id == second);
    close(group.score.value, sums.iter().zip(mean.chunks(K)).map(|(a, q)| inner(a, q)).sum());
    // By likeness alone when everything is alike enough.
    let options = OutputOptions { count: 3, alike: -1.0, ..options };
    let answer = archive.output(&query, &options).unwrap();
    assert!(answer.groups.iter().any(|group| !group.copies && group.samples.len() > 2));
}

#[test]
fn depth_is_a_centroid_and_a_spread() {
    let (_dir, archive) = archive();
    let subject = Subject::Category("style/script".parse().unwrap());
    let answer = archive.depth(&subject, Some(2)).unwrap();
    let moved = |root: &str| -> Vec<f64> {
        summed(|id| category(id).starts_with(root)).iter().map(|it| norm(it)).collect()
    };
    let (own, other) = (moved("style/script"), moved("style/serif"));
    let all: Vec<f64> = own.iter().zip(&other).map(|(a, b)| a + b).collect();
    let sum = |it: &[f64]| it.iter().sum::<f64>();
    for (b, block) in answer.blocks.iter().enumerate() {
        close(block.share.value, own[b] / sum(&own));
        close(block.corpus, all[b] / sum(&all));
        close(block.lift, block.share.value / block.corpus);
    }
    // Two blocks: the centroid is the second one's part.
    let part = own[1] / sum(&own);
    close(answer.profile.centroid.value, part);
    close(answer.profile.spread, (part * (1.0 - part)).sqrt());
    close(answer.corpus.centroid.value, all[1] / sum(&all));
    assert!(answer.profile.centroid.deviation > 0.0);
}

#[test]
fn overlap_is_the_cosine_of_the_sums() {
    let (_dir, archive) = archive();
    let answer = archive.overlap(&"style/script".parse().unwrap(), None).unwrap();
    assert!(answer.others.iter().all(|it| !it.category.starts_with("style/script")));
    let own = summed(|id| category(id).starts_with("style/script"));
    for it in &answer.others {
        let theirs = summed(|id| category(id) == it.category);
        let product: f64 = own.iter().zip(&theirs).map(|(a, b)| inner(a, b)).sum();
        let [own_sq, their_sq] =
            [&own, &theirs].map(|it| it.iter().map(|it| inner(it, it)).sum::<f64>());
        close(it.cosine.value, product / (own_sq * their_sq).sqrt());
        close(it.loses.value, product / their_sq);
        for (b, cosine) in it.by_block.iter().enumerate() {
            close(*cosine, inner(&own[b], &theirs[b]) / (norm(&own[b]) * norm(&theirs[b])));
        }
    }
    assert!(answer.others.is_sorted_by(|a, b| a.loses.value >= b.loses.value));
}

/// `x` of `matrix · x = b` for a definite matrix, by elimination.
fn solved(mut matrix: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let len = b.len();
    for pivot in 0..len {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        for (row, at) in below.iter_mut().zip(pivot + 1..) {
            let factor = row[pivot] / above[pivot][pivot];
            row.iter_mut().zip(&above[pivot]).for_each(|(to, from)| *to -= factor * from);
            b[at] -= factor * b[pivot];
        }
    }
    for row in (0..len).rev() {
        let later: f64 = (row + 1..len).map(|column| matrix[row][column] * b[column]).sum();
        b[row] = (b[row] - later) / matrix[row][row];
    }
    b
}

#[test]
fn alone_is_what_the_others_do_not_explain() {
    const DAMPING: f64 = 0.3;
    let (_dir, archive) = archive();
    let answer = archive.alone(Some(2), DAMPING).unwrap();
    assert!(answer.categories.len() > 1);
    let seen: Vec<u64> = archive.influence().ids().to_vec();
    let singles: Vec<_> = seen.iter().map(|&id| summed(|it| it == id)).collect();
    let trace = |b: usize| singles.iter().map(|it| inner(&it[b], &it[b])).sum::<f64>();
    for it in &answer.categories {
        let own = |id: u64| category(id).starts_with(&it.category);
        assert_eq!(it.samples, seen.iter().filter(|&&id| own(id)).count());
        let sum = summed(own);
        let parts: Vec<f64> = (0..BLOCKS)
            .map(|b| {
                let mut rest = vec![vec![0.0; K]; K];
                for (_, single) in seen.iter().zip(&singles).filter(|(id, _)| !own(**id)) {
                    for (i, row) in rest.iter_mut().enumerate() {
                        row.iter_mut().zip(&single[b]).for_each(|(to, x)| *to += single[b][i] * x);
                    }
                }
                (0..K).for_each(|i| rest[i][i] += DAMPING * trace(b) / K as f64);
                inner(&sum[b], &solved(rest, sum[b].clone()))
            })
            .collect();
        let all: f64 = parts.iter().sum();
        close(it.alone.value, all);
        assert!(it.alone.deviation > 0.0);
        it.shares.iter().zip(&parts).for_each(|(share, part)| close(*share, part / all));
    }
    assert!(answer.categories.is_sorted_by(|a, b| a.alone.value >= b.alone.value));
    let error = archive.alone(None, 0.0).unwrap_err().to_string();
    assert!(error.contains("damping"), "{error}");
}

#[test]
fn signals_count_copies_and_exposure() {
    let (_dir, archive) = archive();
    let answer = archive.signals(100, 0.99, 1000).unwrap();
    assert!(answer.searched);
    assert_eq!(answer.samples.len(), SAMPLES as usize);
    let copies: Vec<u64> = info().samples[..2].iter().map(|it| it.id).collect();
    let first: Vec<u64> = answer.samples[..2].iter().map(|it| it.sample).collect();
    assert!(copies.iter().all(|id| first.contains(id)), "{first:?}");
    assert_eq!(answer.samples.iter().map(|it| it.copies).sum::<usize>(), 2);
    for it in &answer.samples {
        let events = events_of(|id| id == it.sample);
        assert_eq!(it.events, events.len() as u64);
    }
    assert!(!archive.signals(5, 0.99, 1).unwrap().searched);
}
