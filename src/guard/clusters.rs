//! Near-duplicates by fingerprint, and the clusters they form.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::GuardConfig;
use crate::error::expect_len;
use crate::{Error, Result};

/// Samples compared at a time, each way: a tile of cosines stays in cache.
const TILE: usize = 256;

/// Union-find over the pairs whose fingerprints are alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Clusters {
    /// `[samples]`: the cluster's first sample, always the lowest row of it.
    root: Vec<usize>,
    /// `[samples]`: expected number of near-duplicates.
    density: Vec<f64>,
    /// `[samples]`: cosine of the most alike other; −1 where there is none.
    nearest: Vec<f32>,
    length: usize,
    /// Rows that have a fingerprint, and the fingerprints, of norm 1.
    rows: Vec<usize>,
    fingerprints: Vec<f32>,
    /// So many of `rows` are compared with each other already.
    compared: usize,
}

/// A pair of positions in [`Clusters::rows`] worth remembering.
struct Alike {
    pair: [usize; 2],
    cosine: f32,
}

impl Clusters {
    pub fn new() -> Self {
        Self {
            root: Vec::new(),
            density: Vec::new(),
            nearest: Vec::new(),
            length: 0,
            rows: Vec::new(),
            fingerprints: Vec::new(),
            compared: 0,
        }
    }

    pub fn grow(&mut self) {
        self.root.push(self.root.len());
        self.density.push(0.0);
        self.nearest.push(-1.0);
    }

    pub fn check(&self, fingerprint: &[f32]) -> Result<()> {
        if !self.rows.is_empty() {
            expect_len("fingerprint", self.length, fingerprint.len())?;
        }
        let square: f64 = fingerprint.iter().map(|&x| f64::from(x).powi(2)).sum();
        if !square.is_finite() || square == 0.0 {
            let expected = "finite numbers, not all 0";
            return Err(Error::argument("fingerprint", expected, format!("norm² {square}")));
        }
        Ok(())
    }

    pub fn fingerprint(&mut self, row: usize, fingerprint: &[f32]) {
        let norm = fingerprint.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        self.length = fingerprint.len();
        self.rows.push(row);
        self.fingerprints.extend(fingerprint.iter().map(|&x| (f64::from(x) / norm) as f32));
    }

    /// The cluster's lowest row.
    pub fn root(&self, row: usize) -> usize {
        let mut at = row;
        while self.root[at] != at {
            at = self.root[at];
        }
        at
    }

    pub fn density(&self, row: usize) -> f64 {
        self.density[row]
    }

    pub fn nearest(&self, row: usize) -> Option<f32> {
        (self.nearest[row] > -1.0).then_some(self.nearest[row])
    }

    /// Compares the fingerprints that are new with all; says whether there were any.
    pub fn search(&mut self, config: &GuardConfig) -> bool {
        let (from, to) = (self.compared, self.rows.len());
        if from == to {
            return false;
        }
        // A row of tiles at a time bounds what is held; in their order, so that the sums have the
        // same bits each time.
        for i in from / TILE..to.div_ceil(TILE) {
            let row = (0..=i).into_par_iter();
            let found: Vec<_> = row.map(|j| self.tile([i, j], from, config)).collect();
            for (alike, nearest) in found {
                for (at, cosine) in nearest {
                    let best = &mut self.nearest[self.rows[at]];
                    *best = best.max(cosine);
                }
                alike.into_iter().for_each(|alike| self.join(&alike, config));
            }
        }
        self.compared = to;
        true
    }

    /// Pairs of one tile of the cosine matrix whose first is new, and the best of every row and
    /// column.
    fn tile(
        &self,
        [i, j]: [usize; 2],
        from: usize,
        config: &GuardConfig,
    ) -> (Vec<Alike>, Vec<(usize, f32)>) {
        let side = |tile: usize| {
            let rows = (self.rows.len() - tile * TILE).min(TILE);
            let values = &self.fingerprints[tile * TILE * self.length..][..rows * self.length];
            MatRef::from_row_major_slice(values, rows, self.length)
        };
        let (a, b) = (side(i), side(j));
        let mut cosines = Mat::<f32>::zeros(a.nrows(), b.nrows());
        matmul(&mut cosines, Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
        // Below this a pair counts less than a ten-thousandth.
        let floor = config.similarity - 9.0 * config.width;
        let (mut alike, mut best) = (Vec::new(), vec![-1.0f32; a.nrows() + b.nrows()]);
        for (y, column) in cosines.col_iter().enumerate() {
            for (x, &cosine) in column.iter().enumerate() {
                let pair = [i * TILE + x, j * TILE + y];
                if pair[0] < from || pair[0] <= pair[1] {
                    continue;
                }
                best[x] = best[x].max(cosine);
                best[a.nrows() + y] = best[a.nrows() + y].max(cosine);
                if cosine >= floor {
                    alike.push(Alike { pair, cosine });
                }
            }
        }
        let place = |at: usize| match at.checked_sub(a.nrows()) {
            None => i * TILE + at,
            Some(y) => j * TILE + y,
        };
        let best = best.into_iter().enumerate().map(|(at, cosine)| (place(at), cosine));
        (alike, best.collect())
    }

    fn join(&mut self, alike: &Alike, config: &GuardConfig) {
        let [a, b] = alike.pair.map(|at| self.rows[at]);
        let over = f64::from(alike.cosine - config.similarity) / f64::from(config.width);
        let count = 1.0 / (1.0 + (-over).exp());
        self.density[a] += count;
        self.density[b] += count;
        if alike.cosine < config.similarity {
            return;
        }
        let (a, b) = (self.root(a), self.root(b));
        let low = a.min(b);
        (self.root[a], self.root[b]) = (low, low);
    }
}
