//! Influence of every sample on a query.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Col, Mat, MatRef, Par, Side};
use rayon::prelude::*;

use super::Accumulator;
use crate::error::expect_len;
use crate::{Error, Result};

/// How a sample's accumulated sketch is compared with a query's sketch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Similarity {
    /// `⟨A_n, S_q⟩`: the first-order influence itself.
    Dot,
    /// `⟨A_n, S_q⟩ / (‖A_n‖ ‖S_q‖)`, so that samples with large gradients do not dominate;
    /// 0 where either is 0.
    Cosine,
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
        self.best(self.total(), count)
    }

    /// The `count` samples of highest score in one block, best first; equal scores by id.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn top_in_block(&self, block: usize, count: usize) -> Vec<(u64, f64)> {
        self.best(self.block(block), count)
    }

    fn column(&self, at: usize) -> impl Iterator<Item = f64> + '_ {
        self.scores.iter().skip(at).step_by(self.blocks + 1).copied()
    }

    fn best(&self, scores: impl Iterator<Item = f64>, count: usize) -> Vec<(u64, f64)> {
        let mut ranked: Vec<_> = self.ids.iter().copied().zip(scores).collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(count);
        ranked
    }
}

impl Accumulator {
    /// Compares every sample with a query, `[B, K]`: the sketch of the query's unrouted
    /// gradient, by the same projection. Costs `samples · B · K`.
    ///
    /// A query passed through [`Whitening::apply`] gives whitened scores with
    /// [`Similarity::Dot`].
    ///
    /// # Errors
    /// [`Error::Argument`] when the query has the wrong size or is not finite.
    pub fn influence(&self, query: &[f32], similarity: Similarity) -> Result<Influence> {
        self.check_query(query)?;
        let (blocks, len) = (self.blocks(), self.sketch_len());
        let query_sq: Vec<f64> = query.chunks_exact(len).map(|part| dot(part, part)).collect();
        let mut scores = vec![0.0; self.len() * (blocks + 1)];
        scores.par_chunks_exact_mut(blocks + 1).enumerate().for_each(|(n, scores)| {
            let (mut total, mut total_sq) = (0.0, 0.0);
            let parts = self.sketch_at(n).chunks_exact(len).zip(query.chunks_exact(len));
            for (b, (sketch, query)) in parts.enumerate() {
                let (product, sketch_sq) = (dot(sketch, query), dot(sketch, sketch));
                scores[b] = scale(similarity, product, sketch_sq * query_sq[b]);
                total += product;
                total_sq += sketch_sq;
            }
            let query_sq: f64 = query_sq.iter().sum();
            scores[blocks] = scale(similarity, total, total_sq * query_sq);
        });
        Ok(Influence { blocks, ids: self.ids().to_vec(), scores })
    }

    fn check_query(&self, query: &[f32]) -> Result<()> {
        expect_len("query", self.blocks() * self.sketch_len(), query.len())?;
        match query.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::argument("query", "finite numbers", value)),
            None => Ok(()),
        }
    }
}

fn scale(similarity: Similarity, product: f64, squares: f64) -> f64 {
    match similarity {
        Similarity::Dot => product,
        Similarity::Cosine if squares > 0.0 => product / squares.sqrt(),
        Similarity::Cosine => 0.0,
    }
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

/// Per block `(ΦᵀΦ + λI)⁻¹`, where the rows of `Φ [samples, K]` are the accumulated sketches.
///
/// Directions that all samples share say nothing about any one of them; whitening divides them
/// out, as TRAK does (Park et al., 2023, arXiv 2303.14186) with features of a final model where
/// here they are those of the whole trajectory.
///
/// ```
/// use gradroute::provenance::{Accumulator, Similarity, StepRecord, Whitening};
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
///     sq_norm: vec![100.0, 1.0],
///     sketch: vec![10.0, 1.0, 0.0, 1.0],
///     ..StepRecord::default()
/// })?;
/// let query = [1.0, 2.0];
/// // Sample 1 wins by its size alone; whitened, the direction of sample 2 counts for more.
/// assert_eq!(influence.influence(&query, Similarity::Dot)?.top(1)[0].0, 1);
/// let query = Whitening::new(&influence, 1e-3)?.apply(&query)?;
/// assert_eq!(influence.influence(&query, Similarity::Dot)?.top(1)[0].0, 2);
/// # Ok::<(), gradroute::Error>(())
/// ```
pub struct Whitening {
    sketch_len: usize,
    /// None for a block nothing was done to.
    factors: Vec<Option<Llt<f64>>>,
}

impl Whitening {
    /// Factors each block's matrix, in `f64`; `λ = damping · trace(ΦᵀΦ) / K`, so that one
    /// damping suits blocks of any gradient scale. It decides much of the quality: choose it
    /// away from the data it is judged on; 0.1 is a start.
    /// Costs `B · (samples · K² + K³ / 3)` and holds `B · K²` doubles.
    ///
    /// # Errors
    /// [`Error::Argument`] when `damping` is not a positive finite number, or too small for the
    /// matrix to be factored.
    pub fn new(accumulator: &Accumulator, damping: f64) -> Result<Self> {
        if !(damping.is_finite() && damping > 0.0) {
            return Err(Error::argument("damping", "a positive finite number", damping));
        }
        let factors = (0..accumulator.blocks())
            .into_par_iter()
            .map(|block| factor(gram(accumulator, block), damping))
            .collect::<Result<_>>()?;
        Ok(Self { sketch_len: accumulator.sketch_len(), factors })
    }

    /// The query `[B, K]`, multiplied by each block's inverse; 0 in a block nothing was done to.
    ///
    /// # Errors
    /// [`Error::Argument`] when the query has the wrong size.
    pub fn apply(&self, query: &[f32]) -> Result<Vec<f32>> {
        expect_len("query", self.factors.len() * self.sketch_len, query.len())?;
        let mut whitened = Vec::with_capacity(query.len());
        for (part, factor) in query.chunks_exact(self.sketch_len).zip(&self.factors) {
            let Some(factor) = factor else {
                whitened.resize(whitened.len() + part.len(), 0.0);
                continue;
            };
            let mut solved = Col::from_fn(part.len(), |i| f64::from(part[i]));
            factor.solve_in_place(&mut solved);
            whitened.extend(solved.iter().map(|&value| value as f32));
        }
        Ok(whitened)
    }
}

/// `ΦᵀΦ [K, K]` of one block, the samples taken in slices to bound the memory.
fn gram(accumulator: &Accumulator, block: usize) -> Mat<f64> {
    const SLICE: usize = 1024;
    let len = accumulator.sketch_len();
    let mut gram = Mat::zeros(len, len);
    let mut rows: Vec<f64> = Vec::with_capacity(SLICE * len);
    for start in (0..accumulator.len()).step_by(SLICE) {
        rows.clear();
        for n in start..accumulator.len().min(start + SLICE) {
            let sketch = &accumulator.sketch_at(n)[block * len..][..len];
            rows.extend(sketch.iter().map(|&value| f64::from(value)));
        }
        let rows = MatRef::from_row_major_slice(&rows, rows.len() / len, len);
        matmul(&mut gram, Accum::Add, rows.transpose(), rows, 1.0, Par::Seq);
    }
    gram
}

fn factor(mut gram: Mat<f64>, damping: f64) -> Result<Option<Llt<f64>>> {
    let len = gram.nrows();
    let mean = (0..len).map(|i| gram[(i, i)]).sum::<f64>() / len as f64;
    if mean == 0.0 {
        return Ok(None);
    }
    for i in 0..len {
        gram[(i, i)] += damping * mean;
    }
    match Llt::new(gram.as_ref(), Side::Lower) {
        Ok(factor) => Ok(Some(factor)),
        Err(_) => Err(Error::argument("damping", "one that makes ΦᵀΦ + λI definite", damping)),
    }
}
