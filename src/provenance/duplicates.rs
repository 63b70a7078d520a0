//! Near-duplicates: pairs of samples that did the same to the model.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::Accumulator;
use super::influence::dot;

/// Samples compared at a time, each way: a tile of scores stays in cache.
const TILE: usize = 256;

/// Two samples and how alike their accumulated sketches are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Ids, in the order in which the samples were first seen.
    pub ids: [u64; 2],
    /// Mean over the blocks of `⟨A_n, A_m⟩ / (‖A_n‖ ‖A_m‖)`; a block counts where the samples did
    /// something to it.
    pub cosine: f32,
}

impl Accumulator {
    /// The `count` most similar pairs of samples, best first; ties by the order of the samples.
    /// Samples that did nothing are left out. Each block counts the same: in a cosine over all of
    /// them, the block with the largest gradients would decide alone.
    ///
    /// A candidate list, no verdict: accumulated over few visits at random noise levels, a sketch
    /// holds more of the noise than of the sample, and copies stand out from the typical pair
    /// rather than from the most alike of millions.
    ///
    /// Exact search: costs `samples² · B · K` multiplications, as GEMM, and a normalised copy
    /// of the sketches.
    ///
    /// ```
    /// use gradroute::provenance::{Accumulator, StepRecord};
    ///
    /// let mut influence = Accumulator::new(1, 2)?;
    /// influence.add(&StepRecord {
    ///     step_size: 1.0,
    ///     optimizer_scale: 1.0,
    ///     blocks: 1,
    ///     samples: vec![1, 2, 3],
    ///     noise_levels: vec![0.0; 3],
    ///     gates: vec![1.0; 3],
    ///     route: vec![1.0; 3],
    ///     flow: vec![1.0; 3],
    ///     sq_norm: vec![1.0, 4.0, 1.0],
    ///     sketch: vec![1.0, 0.1, -1.0, 2.0, 2.0, 0.3],
    ///     ..StepRecord::default()
    /// })?;
    /// assert_eq!(influence.near_duplicates(1)[0].ids, [1, 3]);
    /// # Ok::<(), gradroute::Error>(())
    /// ```
    pub fn near_duplicates(&self, count: usize) -> Vec<Pair> {
        let (rows, unit) = self.normalised();
        let len = self.blocks() * self.sketch_len();
        let tiles = rows.len().div_ceil(TILE);
        let mut best: Vec<(usize, usize, f32)> = (0..tiles)
            .into_par_iter()
            .flat_map(|i| (i..tiles).into_par_iter().map(move |j| (i, j)))
            .map(|(i, j)| best_of_tile(&unit, len, [i * TILE, j * TILE], count))
            .reduce(Vec::new, |mut all, tile| {
                all.extend(tile);
                keep_best(&mut all, count);
                all
            });
        keep_best(&mut best, count);
        let id = |row: usize| self.ids()[rows[row]];
        best.iter().map(|&(a, b, cosine)| Pair { ids: [id(a), id(b)], cosine }).collect()
    }

    /// The samples that did anything, and their sketches, every block that is not 0 divided by
    /// its norm and all by the root of the number of such blocks.
    fn normalised(&self) -> (Vec<usize>, Vec<f32>) {
        let (mut rows, mut unit) = (Vec::new(), Vec::new());
        for n in 0..self.len() {
            let parts = self.sketch_at(n).chunks_exact(self.sketch_len());
            let norms: Vec<f64> = parts.clone().map(|part| dot(part, part).sqrt()).collect();
            let active = norms.iter().filter(|&&norm| norm > 0.0).count();
            if active == 0 {
                continue;
            }
            rows.push(n);
            for (part, norm) in parts.zip(norms) {
                let scale = if norm > 0.0 { 1.0 / (norm * (active as f64).sqrt()) } else { 0.0 };
                unit.extend(part.iter().map(|&value| (f64::from(value) * scale) as f32));
            }
        }
        (rows, unit)
    }
}

/// The best pairs `(row, later row, cosine)` of one tile of the cosine matrix.
fn best_of_tile(
    unit: &[f32],
    len: usize,
    at: [usize; 2],
    count: usize,
) -> Vec<(usize, usize, f32)> {
    let side = |start: usize| {
        let rows = (unit.len() / len - start).min(TILE);
        MatRef::from_row_major_slice(&unit[start * len..][..rows * len], rows, len)
    };
    let (a, b) = (side(at[0]), side(at[1]));
    let mut cosines = Mat::<f32>::zeros(a.nrows(), b.nrows());
    matmul(&mut cosines, Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
    let mut best = Vec::new();
    for (j, column) in cosines.col_iter().enumerate() {
        for (i, &cosine) in column.iter().enumerate() {
            if at[0] + i < at[1] + j {
                best.push((at[0] + i, at[1] + j, cosine));
            }
        }
    }
    keep_best(&mut best, count);
    best
}

/// Sorts by falling cosine, then by rows, and cuts; a total order, so that the result does not
/// depend on how the work was divided.
fn keep_best(pairs: &mut Vec<(usize, usize, f32)>, count: usize) {
    let order = |a: &(usize, usize, f32), b: &(usize, usize, f32)| {
        b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1)))
    };
    if count < pairs.len() {
        pairs.select_nth_unstable_by(count, order);
        pairs.truncate(count);
    }
    pairs.sort_unstable_by(order);
}
