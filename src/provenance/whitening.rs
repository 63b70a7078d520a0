//! Whitening: the directions that all samples share, divided out.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::solvers::{Llt, Solve};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Col, Mat, MatRef, Par, Side};
use rayon::prelude::*;

use super::Accumulator;
use crate::error::expect_len;
use crate::{Error, Result};

/// Samples worked on at a time, to bound the memory.
pub(super) const SLICE: usize = 1024;

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
    /// away from the data it is judged on; 0.3 is a start.
    /// Costs `B · (samples · K² + K³ / 3)` and holds `B · K²` doubles.
    ///
    /// # Errors
    /// [`Error::Argument`] when `damping` is not a positive finite number, or too small for the
    /// matrix to be factored.
    pub fn new(accumulator: &Accumulator, damping: f64) -> Result<Self> {
        let factors = (0..accumulator.blocks())
            .into_par_iter()
            .map(|block| factor(gram(accumulator, block, 0..accumulator.len()), damping))
            .collect::<Result<_>>()?;
        Ok(Self { sketch_len: accumulator.sketch_len(), factors })
    }

    /// The same from each block's `ΦᵀΦ [K, K]`, of which the lower triangle is read.
    #[cfg(feature = "ledger")]
    pub(super) fn of(
        grams: impl Iterator<Item = Result<Mat<f64>>>,
        sketch_len: usize,
        damping: f64,
    ) -> Result<Self> {
        let factors = grams.map(|gram| factor(gram?, damping)).collect::<Result<_>>()?;
        Ok(Self { sketch_len, factors })
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

    /// `⟨A_n, (ΦᵀΦ + λI)⁻¹ A_n⟩` of every sample and block, `[samples, B]`, as the square of
    /// `L⁻¹ A_n` with the factor `L Lᵀ`: never negative.
    pub(super) fn self_influence(&self, accumulator: &Accumulator) -> Vec<f64> {
        let (blocks, len) = (self.factors.len(), self.sketch_len);
        let mut squares = vec![0.0; accumulator.len() * blocks];
        squares.par_chunks_mut(SLICE * blocks).enumerate().for_each(|(slice, squares)| {
            let mut rows = Vec::new();
            for (block, factor) in self.factors.iter().enumerate() {
                let Some(factor) = factor else { continue };
                read_slice(accumulator, block, slice * SLICE, &mut rows);
                let rows = MatRef::from_row_major_slice(&rows, rows.len() / len, len);
                let mut solved = rows.transpose().to_owned();
                solve_lower_triangular_in_place(factor.L(), solved.as_mut(), Par::Seq);
                for (row, column) in solved.col_iter().enumerate() {
                    squares[row * blocks + block] = column.squared_norm_l2();
                }
            }
        });
        squares
    }
}

/// Adds rows `[n, K]` to the lower triangle of `ΦᵀΦ [K, K]`.
pub(super) fn add_rows(gram: &mut Mat<f64>, rows: &[f64], par: Par) {
    let len = gram.nrows();
    let rows = MatRef::from_row_major_slice(rows, rows.len() / len, len);
    let (all, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
    matmul(gram, lower, Accum::Add, rows.transpose(), all, rows, all, 1.0, par);
}

/// The lower triangle of `ΦᵀΦ [K, K]` of one block and some samples, by their places.
pub(super) fn gram(
    accumulator: &Accumulator,
    block: usize,
    mut places: impl Iterator<Item = usize>,
) -> Mat<f64> {
    let len = accumulator.sketch_len();
    let mut gram = Mat::zeros(len, len);
    let mut rows = Vec::new();
    loop {
        rows_of(accumulator, block, places.by_ref().take(SLICE), &mut rows);
        if rows.is_empty() {
            return gram;
        }
        add_rows(&mut gram, &rows, Par::Seq);
    }
}

/// One block's sketches of a slice of the samples, `[up to SLICE, K]`.
fn read_slice(accumulator: &Accumulator, block: usize, start: usize, rows: &mut Vec<f64>) {
    rows_of(accumulator, block, start..accumulator.len().min(start + SLICE), rows);
}

/// One block's sketches of some samples, by their places, `[places, K]`.
fn rows_of(
    accumulator: &Accumulator,
    block: usize,
    places: impl Iterator<Item = usize>,
    rows: &mut Vec<f64>,
) {
    let len = accumulator.sketch_len();
    rows.clear();
    for n in places {
        let sketch = &accumulator.sketch_at(n)[block * len..][..len];
        rows.extend(sketch.iter().map(|&value| f64::from(value)));
    }
}

fn factor(gram: Mat<f64>, damping: f64) -> Result<Option<Llt<f64>>> {
    let Some(lambda) = lambda(&gram, damping)? else { return Ok(None) };
    damped(gram, lambda).ok_or_else(|| indefinite(damping)).map(Some)
}

/// `damping` times the mean diagonal of `ΦᵀΦ`; none where nothing was done.
pub(super) fn lambda(gram: &Mat<f64>, damping: f64) -> Result<Option<f64>> {
    if !(damping.is_finite() && damping > 0.0) {
        return Err(Error::argument("damping", "a positive finite number", damping));
    }
    let len = gram.nrows();
    let mean = (0..len).map(|i| gram[(i, i)]).sum::<f64>() / len as f64;
    Ok((mean != 0.0).then_some(damping * mean))
}

/// Factors `ΦᵀΦ + λI`, from the lower triangle; none when it is not definite.
pub(super) fn damped(mut gram: Mat<f64>, lambda: f64) -> Option<Llt<f64>> {
    for i in 0..gram.nrows() {
        gram[(i, i)] += lambda;
    }
    Llt::new(gram.as_ref(), Side::Lower).ok()
}

/// That a damping is too small.
pub(super) fn indefinite(damping: f64) -> Error {
    Error::argument("damping", "one that makes ΦᵀΦ + λI definite", damping)
}
