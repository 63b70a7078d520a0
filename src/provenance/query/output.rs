//! From an output to what stands behind it.

use std::rc::Rc;

use serde::Serialize;

use super::{Archive, Citation};
use crate::projection::SketchKind;
use crate::provenance::influence::{dot, expect_shape};
use crate::provenance::{Accumulator, Draw, Estimate, Query, Scorer, Similarity};
use crate::{Error, Result};

/// How an output is traced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OutputOptions {
    /// Damping of the whitening, see [`Whitening::new`](crate::provenance::Whitening::new); none
    /// for the plain inner product.
    pub whitening: Option<f64>,
    /// What is done about the sizes of the two sides.
    pub similarity: Similarity,
    /// Names of a category's path that count; none for all.
    pub level: Option<usize>,
    /// Samples listed on either side.
    pub count: usize,
    /// Samples whose mean cosine over the blocks reaches this are reported as a group.
    pub alike: f64,
}

impl Default for OutputOptions {
    /// Whitened with a damping of 0.1, all of the path, ten samples, groups from a cosine of 0.9.
    fn default() -> Self {
        let (similarity, level) = (Similarity::Dot, None);
        Self { whitening: Some(0.1), similarity, level, count: 10, alike: 0.9 }
    }
}

/// What stands behind an output.
///
/// Deviations hold the projection's part, with a whitening taken as given, and that of the
/// query's draws. Within one answer, scores share both, so that ranks are surer than they look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Output {
    /// How it was traced.
    pub options: OutputOptions,
    /// Phases of the run that were judged apart; 1 for the run as a whole.
    pub phases: usize,
    /// The query's draws; compare answers only where these are the same.
    pub draws: Vec<Draw>,
    /// Names of the blocks, in the order of all shares.
    pub blocks: Vec<String>,
    /// Samples that made the output more likely, the most helpful first.
    pub helpful: Vec<SampleScore>,
    /// Samples that worked against it, the most harmful first.
    pub harmful: Vec<SampleScore>,
    /// Near-duplicates and copies among the listed samples: they split the credit, so here it is
    /// in one.
    pub groups: Vec<AlikeGroup>,
    /// Categories, by score.
    pub categories: Vec<CategoryScore>,
    /// What this rests on.
    pub citation: Citation,
}

/// A sample's influence on the output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleScore {
    /// The sample.
    pub sample: u64,
    /// Its category.
    pub category: String,
    /// The influence; negative works against the output.
    pub score: Estimate,
    /// Each block's part of it, `[B]`, signed; absolute values add up to 1.
    pub shares: Vec<f64>,
    /// Which of the groups it belongs to, if any.
    pub group: Option<usize>,
}

/// Samples that count as one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlikeGroup {
    /// The samples; copies by content hash are here even when they are not listed themselves.
    pub samples: Vec<u64>,
    /// Whether all have the same content hash.
    pub copies: bool,
    /// Influence of their sum.
    pub score: Estimate,
}

/// A category's influence on the output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CategoryScore {
    /// The category.
    pub category: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// Influence of their sum.
    pub score: Estimate,
    /// Each block's part of it, as in [`SampleScore::shares`].
    pub shares: Vec<f64>,
}

impl Archive {
    /// What stands behind an output, given as a [`Query`]: ranked samples, groups of those that
    /// are alike, and categories. Costs as the [`Scorer`], which is built anew.
    ///
    /// # Errors
    /// [`Error::Argument`] when the query is empty or of another shape, or the damping is not
    /// valid.
    pub fn output(&self, query: &Query, options: &OutputOptions) -> Result<Output> {
        self.output_over(self.influence(), query, options)
    }

    /// [`Archive::output`] by as many phases of the run as queries are given, of the output's gradient at the
    /// end of each: see [`Accumulator::side_by_side`]. The sketches of all phases are in memory at once.
    ///
    /// # Errors
    /// As [`Archive::output`], [`LedgerReader::phases`](crate::provenance::ledger::LedgerReader::phases) and
    /// [`Query::side_by_side`].
    pub fn output_by_phases(&self, queries: &[Query], options: &OutputOptions) -> Result<Output> {
        for (n, query) in queries.iter().enumerate() {
            expect_shape(format!("queries[{n}]"), self.influence().shape(), query.shape())?;
        }
        let query = Query::side_by_side(queries)?;
        let sums = Accumulator::side_by_side(&self.reader().phases(queries.len())?)?;
        self.output_over(&sums, &query, options)
    }

    /// By sums whose blocks are the ledger's once or, side by side, several times.
    fn output_over(
        &self,
        sums: &Accumulator,
        query: &Query,
        options: &OutputOptions,
    ) -> Result<Output> {
        if query.draws().is_empty() {
            return Err(Error::argument("query", "at least one draw", 0));
        }
        let scorer = match options.whitening {
            Some(damping) => Scorer::whitened(sums, damping)?,
            None => Scorer::plain(sums),
        };
        let ranked = scorer.scores(&query.mean(), options.similarity)?.top(usize::MAX);
        let blocks = self.influence().blocks();
        let judge = Judge::new(self.kind(), blocks, scorer, query, options.similarity)?;
        let (best, worst) = (ranked.iter(), ranked.iter().rev());
        let best = best.take_while(|(_, score)| *score > 0.0).take(options.count);
        let worst = worst.take_while(|(_, score)| *score < 0.0).take(options.count);
        let mut helpful = self.listed(&judge, best)?;
        let mut harmful = self.listed(&judge, worst)?;
        let ids: Vec<u64> = helpful.iter().chain(&harmful).map(|it| it.sample).collect();
        let alike = self.alike(&ids, options.alike)?;
        for it in helpful.iter_mut().chain(&mut harmful) {
            it.group = alike.iter().position(|group| group.contains(&it.sample));
        }
        let groups = self.group_scores(&judge, alike)?;
        let mut named = ids;
        named.extend(groups.iter().flat_map(|group| &group.samples));
        named.sort_unstable();
        named.dedup();
        Ok(Output {
            options: *options,
            phases: sums.blocks() / blocks,
            draws: query.draws().to_vec(),
            blocks: self.blocks(),
            helpful,
            harmful,
            groups,
            categories: self.category_scores(&judge, options.level)?,
            citation: self.cite_all(named),
        })
    }

    fn listed<'a>(
        &self,
        judge: &Judge,
        ranked: impl Iterator<Item = &'a (u64, f64)>,
    ) -> Result<Vec<SampleScore>> {
        ranked
            .map(|&(sample, _)| {
                let category = self.sample(sample)?.category.clone();
                let (score, shares) = judge.of(sample);
                Ok(SampleScore { sample, category, score, shares, group: None })
            })
            .collect()
    }

    /// Sets of two and more of the samples that are alike, with their copies by content.
    fn alike(&self, ids: &[u64], least: f64) -> Result<Vec<Vec<u64>>> {
        let mut members: Vec<u64> = ids.to_vec();
        for id in ids {
            members.extend(self.copies(*id)?);
        }
        members.sort_unstable();
        members.dedup();
        // The first member of the set that each belongs to.
        let mut first: Vec<usize> = (0..members.len()).collect();
        for a in 0..members.len() {
            for b in a + 1..members.len() {
                if first[a] != first[b] && self.same(members[a], members[b], least)? {
                    let (keep, drop) = (first[a].min(first[b]), first[a].max(first[b]));
                    first.iter_mut().filter(|it| **it == drop).for_each(|it| *it = keep);
                }
            }
        }
        let sets = (0..members.len()).map(|at| -> Vec<u64> {
            let own = members.iter().zip(&first).filter(|(_, first)| **first == at);
            own.map(|(id, _)| *id).collect()
        });
        Ok(sets.filter(|set| set.len() > 1).collect())
    }

    /// Seen samples of the same content as this one, itself left out.
    pub(super) fn copies(&self, id: u64) -> Result<Vec<u64>> {
        let hash = self.sample(id)?.content_hash;
        if hash == [0; 32] {
            return Ok(Vec::new()); // the trainer gave none
        }
        let samples = self.reader().info().samples.iter();
        let same = samples.filter(|it| it.content_hash == hash && it.id != id);
        let seen = same.filter(|it| self.influence().sketch(it.id).is_some());
        Ok(seen.map(|it| it.id).collect())
    }

    fn same(&self, a: u64, b: u64, least: f64) -> Result<bool> {
        let hashes = [self.sample(a)?.content_hash, self.sample(b)?.content_hash];
        if hashes[0] == hashes[1] && hashes[0] != [0; 32] {
            return Ok(true);
        }
        let (Some(a), Some(b)) = (self.influence().sketch(a), self.influence().sketch(b)) else {
            return Ok(false);
        };
        let len = self.influence().sketch_len();
        let (mut sum, mut active) = (0.0, [0; 2]);
        for (a, b) in a.chunks_exact(len).zip(b.chunks_exact(len)) {
            let (a_sq, b_sq) = (dot(a, a), dot(b, b));
            active[0] += usize::from(a_sq > 0.0);
            active[1] += usize::from(b_sq > 0.0);
            if a_sq > 0.0 && b_sq > 0.0 {
                sum += dot(a, b) / (a_sq * b_sq).sqrt();
            }
        }
        Ok(sum >= least * ((active[0] * active[1]) as f64).sqrt() && sum > 0.0)
    }

    fn group_scores(&self, judge: &Judge, alike: Vec<Vec<u64>>) -> Result<Vec<AlikeGroup>> {
        let group_of = |id: u64| alike.iter().position(|set| set.contains(&id));
        let grouped = judge.scorer.accumulator().grouped(|id| group_of(id).map(|at| at as u64))?;
        let judge = judge.over(&grouped)?;
        (alike.iter().enumerate())
            .map(|(at, samples)| {
                let copies = self.copies(samples[0])?;
                Ok(AlikeGroup {
                    samples: samples.clone(),
                    copies: samples[1..].iter().all(|id| copies.contains(id)),
                    score: judge.of(at as u64).0,
                })
            })
            .collect()
    }

    fn category_scores(&self, judge: &Judge, level: Option<usize>) -> Result<Vec<CategoryScore>> {
        let grouping = self.grouping(level);
        let sums = judge.scorer.accumulator();
        let grouped = sums.grouped(|id| Some(*grouping.of.get(&id)? as u64))?;
        let judge = judge.over(&grouped)?;
        let mut counts = vec![0; grouping.names.len()];
        sums.ids().iter().for_each(|id| counts[grouping.of[id]] += 1);
        let seen = grouping.names.iter().zip(counts).enumerate().filter(|(_, (_, it))| *it > 0);
        let mut scores: Vec<CategoryScore> = seen
            .map(|(at, (name, samples))| {
                let (score, shares) = judge.of(at as u64);
                CategoryScore { category: name.clone(), samples, score, shares }
            })
            .collect();
        scores.sort_by(|a, b| b.score.value.total_cmp(&a.score.value));
        Ok(scores)
    }
}

/// Scores with their deviations.
struct Judge<'a> {
    kind: SketchKind,
    /// The ledger's; the sums may have them several times.
    blocks: usize,
    scorer: Scorer<'a>,
    similarity: Similarity,
    query: Rc<Seen>,
}

/// The query as sketches are multiplied with it.
struct Seen {
    mean: Vec<f32>,
    /// The mean's square in each block.
    squares: Vec<f64>,
    draws: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    fn new(
        kind: SketchKind,
        blocks: usize,
        scorer: Scorer<'a>,
        query: &Query,
        similarity: Similarity,
    ) -> Result<Self> {
        let plain = query.mean();
        let mean = scorer.seen(&plain)?.into_owned();
        let len = scorer.accumulator().sketch_len();
        let parts = plain.chunks_exact(len).zip(mean.chunks_exact(len));
        let squares = parts.map(|(plain, seen)| dot(plain, seen)).collect();
        let draws = query.sketches().map(|it| Ok(scorer.seen(it)?.into_owned()));
        let draws = draws.collect::<Result<_>>()?;
        let query = Rc::new(Seen { mean, squares, draws });
        Ok(Self { kind, blocks, scorer, similarity, query })
    }

    /// The same query over other sums.
    fn over<'b>(&self, grouped: &'b Accumulator) -> Result<Judge<'b>> {
        let scorer = self.scorer.over(grouped)?;
        let (kind, similarity, query) = (self.kind, self.similarity, self.query.clone());
        Ok(Judge { kind, blocks: self.blocks, scorer, similarity, query })
    }

    /// Score and signed shares of the blocks.
    fn of(&self, id: u64) -> (Estimate, Vec<f64>) {
        let sums = self.scorer.accumulator();
        let (blocks, len) = (sums.blocks(), sums.sketch_len());
        let Some(at) = sums.position(id) else {
            return (Estimate::default(), vec![0.0; self.blocks]);
        };
        let sketch = sums.sketch_at(at);
        let own = &self.scorer.self_influence()[at * blocks..][..blocks];
        let sample_sq: f64 = own.iter().sum();
        let query_sq: f64 = self.query.squares.iter().sum();
        let squares = own.iter().zip(&self.query.squares).map(|(&own, &query)| [own, query]);
        let product = Estimate::whitened(self.kind, sketch, &self.query.mean, len, squares);
        let (divisor, mut score) = match self.similarity {
            Similarity::Dot => (1.0, product),
            Similarity::SelfInfluence => (sample_sq.sqrt(), product.over(sample_sq.sqrt())),
            Similarity::Cosine => {
                let norms = (sample_sq * query_sq).sqrt();
                (norms, Estimate::cosine(product, norms))
            }
        };
        if divisor > 0.0 {
            let draws = self.draw_variance(sketch, len).sqrt() / divisor;
            score.deviation = score.deviation.hypot(draws);
        }
        let mut parts = vec![0.0; self.blocks];
        let pairs = sketch.chunks_exact(len).zip(self.query.mean.chunks_exact(len));
        pairs.enumerate().for_each(|(n, (a, q))| parts[n % self.blocks] += dot(a, q));
        let all: f64 = parts.iter().map(|part| part.abs()).sum();
        let share = |part: &f64| if all > 0.0 { part / all } else { 0.0 };
        (score, parts.iter().map(share).collect())
    }

    /// Variance of the mean over the draws; 0 for a single one.
    fn draw_variance(&self, sketch: &[f32], len: usize) -> f64 {
        let count = self.query.draws.len() as f64;
        if self.query.draws.len() < 2 {
            return 0.0;
        }
        let product = |draw: &Vec<f32>| -> f64 {
            sketch.chunks_exact(len).zip(draw.chunks_exact(len)).map(|(a, q)| dot(a, q)).sum()
        };
        let products: Vec<f64> = self.query.draws.iter().map(product).collect();
        let mean = products.iter().sum::<f64>() / count;
        let squares: f64 = products.iter().map(|it| (it - mean).powi(2)).sum();
        squares / (count - 1.0) / count
    }
}
