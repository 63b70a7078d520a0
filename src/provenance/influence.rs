//! Influence of every sample on a query.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Accumulator, Whitening};
use crate::error::expect_len;
use crate::{Error, Result};

/// How a sample's accumulated sketch is compared with a query's sketch. Inner product and norms
/// are those of the [`Scorer`]: plain ones, or whitened per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// `⟨A_n, S_q⟩`: the first-order influence itself.
    Dot,
    /// `⟨A_n, S_q⟩ / (‖A_n‖ ‖S_q‖)`, so that samples with large gradients do not dominate;
    /// 0 where either is 0.
    Cosine,
    /// `⟨A_n, S_q⟩ / ‖A_n‖`, by the root of the sample's influence on itself: outliers, which
    /// influence everything, are held back, and scores of one block against another keep their
    /// scale. 0 where the sample did nothing. The ℓ-RelatIF of Barshan et al. (2020, arXiv
    /// 2003.11630), with the accumulated gradient for the final one.
    SelfInfluence,
}

/// A score of every sample, per block and in total; larger means that training on the sample
/// lowered the query's loss more.
#[derive(Clone, Debug, PartialEq)]
pub struct Influence {
    blocks: usize,
    ids: Vec<u64>,
    /// `[samples, blocks + 1]`, the total last.
    scores: Vec<f64>,
}

impl Influence {
    /// Ids of the samples, in the accumulator's order.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// The scores of all samples in one block.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block(&self, block: usize) -> impl Iterator<Item = f64> + '_ {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        self.column(block)
    }

    /// The scores of all samples over all blocks.
    pub fn total(&self) -> impl Iterator<Item = f64> + '_ {
        self.column(self.blocks)
    }

    /// The `count` samples of highest total score, best first; equal scores by id.
    pub fn top(&self, count: usize) -> Vec<(u64, f64)> {
        ranked(&self.ids, self.total(), count)
    }

    /// The `count` samples of highest score in one block, best first; equal scores by id.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn top_in_block(&self, block: usize, count: usize) -> Vec<(u64, f64)> {
        ranked(&self.ids, self.block(block), count)
    }

    fn column(&self, at: usize) -> impl Iterator<Item = f64> + '_ {
        self.scores.iter().skip(at).step_by(self.blocks + 1).copied()
    }
}

/// Compares an accumulator's samples with queries: what does not depend on the query is worked
/// out once.
///
/// ```
/// use gradroute::provenance::{Accumulator, Scorer, Similarity, StepRecord};
///
/// let mut influence = Accumulator::new(1, 2)?;
/// influence.add(&StepRecord {
///     step_size: 1.0,
///     optimizer_scale: 1.0,
///     blocks: 1,
///     samples: vec![1, 2],
///     noise_levels: vec![0.0; 2],
///     gates: vec![1.0; 2],
///     route: vec![1.0; 2],
///     flow: vec![1.0; 2],
///     sq_norm: vec![101.0, 1.0],
///     sketch: vec![10.0, 1.0, 0.0, 1.0],
///     ..StepRecord::default()
/// })?;
/// let query = [1.0, 2.0];
/// let plain = Scorer::plain(&influence);
/// // Sample 1 wins by its size alone; held to its own size, or whitened, sample 2 does.
/// assert_eq!(plain.scores(&query, Similarity::Dot)?.top(1)[0].0, 1);
/// assert_eq!(plain.scores(&query, Similarity::SelfInfluence)?.top(1)[0].0, 2);
/// let whitened = Scorer::whitened(&influence, 1e-3)?;
/// assert_eq!(whitened.scores(&query, Similarity::Dot)?.top(1)[0].0, 2);
/// # Ok::<(), gradroute::Error>(())
/// ```
pub struct Scorer<'a> {
    accumulator: &'a Accumulator,
    whitening: Option<Arc<Whitening>>,
    /// `⟨A_n, A_n⟩`, `[samples, B]`.
    squares: Vec<f64>,
}

impl<'a> Scorer<'a> {
    /// By the plain inner product. Costs `samples · B · K`.
    pub fn plain(accumulator: &'a Accumulator) -> Self {
        let len = accumulator.sketch_len();
        let squares = (0..accumulator.len()).into_par_iter().flat_map_iter(|n| {
            accumulator.sketch_at(n).chunks_exact(len).map(|part| dot(part, part))
        });
        Self { accumulator, whitening: None, squares: squares.collect() }
    }

    /// By the inner product `⟨a, (ΦᵀΦ + λI)⁻¹ b⟩` of each block, with `λ` as in
    /// [`Whitening::new`]. Costs `B · (samples · K² + K³ / 3)`.
    ///
    /// # Errors
    /// As [`Whitening::new`].
    pub fn whitened(accumulator: &'a Accumulator, damping: f64) -> Result<Self> {
        let whitening = Whitening::new(accumulator, damping)?;
        let squares = whitening.self_influence(accumulator);
        Ok(Self { accumulator, whitening: Some(Arc::new(whitening)), squares })
    }

    /// The same inner product for other sums of the same run: groups of its samples, say.
    ///
    /// # Errors
    /// [`Error::Argument`] when the shapes differ.
    pub fn over<'b>(&self, other: &'b Accumulator) -> Result<Scorer<'b>> {
        expect_shape("other", self.accumulator.shape(), other.shape())?;
        let Some(whitening) = &self.whitening else { return Ok(Scorer::plain(other)) };
        let squares = whitening.self_influence(other);
        Ok(Scorer { accumulator: other, whitening: Some(whitening.clone()), squares })
    }

    /// Scores of all samples for a query `[B, K]`: the sketch of its unrouted gradient, by the
    /// same projection. Costs `samples · B · K`, and `B · K²` when whitened.
    ///
    /// # Errors
    /// [`Error::Argument`] when the query has the wrong size or is not finite.
    pub fn scores(&self, query: &[f32], similarity: Similarity) -> Result<Influence> {
        let (blocks, len) = (self.accumulator.blocks(), self.accumulator.sketch_len());
        let seen = self.seen(query)?;
        let query_sq: Vec<f64> =
            query.chunks_exact(len).zip(seen.chunks_exact(len)).map(|(q, w)| dot(q, w)).collect();
        let all_sq: f64 = query_sq.iter().sum();
        let mut scores = vec![0.0; self.accumulator.len() * (blocks + 1)];
        scores.par_chunks_exact_mut(blocks + 1).enumerate().for_each(|(n, scores)| {
            let (mut total, mut total_sq) = (0.0, 0.0);
            let parts = self.accumulator.sketch_at(n).chunks_exact(len).zip(seen.chunks_exact(len));
            for (b, (sketch, query)) in parts.enumerate() {
                let (product, square) = (dot(sketch, query), self.squares[n * blocks + b]);
                scores[b] = scale(similarity, product, square, query_sq[b]);
                total += product;
                total_sq += square;
            }
            scores[blocks] = scale(similarity, total, total_sq, all_sq);
        });
        Ok(Influence { blocks, ids: self.accumulator.ids().to_vec(), scores })
    }

    /// `⟨A_n, A_n⟩` of every sample, in the accumulator's order, and block, `[samples, B]`: the
    /// sample's influence on itself.
    pub fn self_influence(&self) -> &[f64] {
        &self.squares
    }

    /// The sums that are compared.
    pub fn accumulator(&self) -> &'a Accumulator {
        self.accumulator
    }

    /// The query as the sketches are multiplied with it: itself, or whitened.
    pub(super) fn seen<'q>(&self, query: &'q [f32]) -> Result<Cow<'q, [f32]>> {
        check_query(self.accumulator.blocks() * self.accumulator.sketch_len(), query)?;
        match &self.whitening {
            Some(whitening) => Ok(whitening.apply(query)?.into()),
            None => Ok(query.into()),
        }
    }
}

impl Accumulator {
    /// [`Scorer::scores`] by the plain inner product, for a single query.
    ///
    /// # Errors
    /// As [`Scorer::scores`].
    pub fn influence(&self, query: &[f32], similarity: Similarity) -> Result<Influence> {
        Scorer::plain(self).scores(query, similarity)
    }
}

/// That something is of as many blocks and numbers a sketch, `[B, K]`, as something else.
pub(super) fn expect_shape(
    argument: impl Into<String>,
    expected: [usize; 2],
    given: [usize; 2],
) -> Result<()> {
    if expected == given {
        return Ok(());
    }
    let text = |[blocks, len]: [usize; 2]| format!("{blocks} × {len}");
    Err(Error::argument(argument, text(expected), text(given)))
}

/// That a query has the numbers it should have, all of them finite.
pub(super) fn check_query(len: usize, query: &[f32]) -> Result<()> {
    expect_len("query", len, query.len())?;
    match query.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::argument("query", "finite numbers", value)),
        None => Ok(()),
    }
}

/// The `count` samples of highest score, best first; equal scores by id.
pub(super) fn ranked(
    ids: &[u64],
    scores: impl Iterator<Item = f64>,
    count: usize,
) -> Vec<(u64, f64)> {
    let mut ranked: Vec<_> = ids.iter().copied().zip(scores).collect();
    let order = |a: &(u64, f64), b: &(u64, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, order);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(order);
    ranked
}

pub(super) fn scale(similarity: Similarity, product: f64, sample_sq: f64, query_sq: f64) -> f64 {
    let square = match similarity {
        Similarity::Dot => return product,
        Similarity::Cosine => sample_sq * query_sq,
        Similarity::SelfInfluence => sample_sq,
    };
    if square > 0.0 { product / square.sqrt() } else { 0.0 }
}

/// `⟨a, b⟩` in `f64`, in a fixed order: eight partial sums, so that it can be vectorised.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_parts, b_parts) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder());
    let rest: f64 = rest.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}
