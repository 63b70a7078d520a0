//! Accumulated influence: what each sample did to each block over the whole run.

use std::collections::HashMap;

use super::StepRecord;
use super::influence::dot;
use crate::error::expect_len;
use crate::problem::product;
use crate::{Error, Result};

/// `A_n = Σ_t η_t · optimizer_scale_t · S_n^t` for every sample `n` and block, where `S_n^t` is
/// the sketch of the sample's routed gradient at step `t`.
///
/// Because a sketch keeps inner products, `⟨A_n, S(∇ℓ_q)⟩` estimates
/// `Σ_t η_t ⟨∇ℓ_n(θ_t), ∇ℓ_q⟩`: to first order, how much the updates made with sample `n`
/// lowered the loss of `q`. That is TracIn (Pruthi et al., 2020) summed along the real
/// trajectory of the routed run, with the query's gradient taken at one set of weights.
///
/// Sums of sketches are `f32`, running totals `f64`. Memory is `B · (4 K + 32) + 24 · bins`
/// bytes per sample seen, whatever the number of steps; adding a record costs `N · B · K`.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulator {
    blocks: usize,
    sketch_len: usize,
    edges: Vec<f32>,
    index: HashMap<u64, usize>,
    ids: Vec<u64>,
    /// `[samples, blocks, sketch_len]`.
    sketches: Vec<f32>,
    /// `[samples, blocks]`.
    totals: Vec<BlockTotals>,
    /// `[samples, bins]`.
    norms: Vec<NormTrace>,
}

/// Running sums of one sample in one block. A squared norm that is not finite is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockTotals {
    /// `Σ |η · optimizer_scale| · ‖S‖`: the length of the path the sample pushed the block
    /// along, by the sketch, exact routing included. `‖A_n‖` is how far it got.
    pub pushed: f64,
    /// `Σ |η · optimizer_scale · route · gate| · ‖G‖`, by the exact norm and the block's mean
    /// route weight: the exposure.
    pub exposure: f64,
    /// `Σ (η · optimizer_scale)² · ‖G‖²` of the unrouted gradient.
    pub stepped_sq: f64,
    /// `Σ ‖G‖²` of the unrouted gradient.
    pub sq_norm: f64,
}

impl BlockTotals {
    fn add(&mut self, other: &Self) {
        self.pushed += other.pushed;
        self.exposure += other.exposure;
        self.stepped_sq += other.stepped_sq;
        self.sq_norm += other.sq_norm;
    }
}

/// Gradient norm of one sample, all blocks together, at the noise levels of one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormTrace {
    /// Times the sample was seen.
    pub events: u32,
    /// Those of them whose norm was finite.
    pub measured: u32,
    /// Sum of the finite norms.
    pub sum: f64,
    /// The latest finite norm; 0 while there is none.
    pub last: f32,
}

impl NormTrace {
    /// Mean of the finite norms; none when there is none.
    pub fn mean(&self) -> Option<f64> {
        (self.measured > 0).then(|| self.sum / f64::from(self.measured))
    }

    pub(super) fn add(&mut self, later: &Self) {
        self.events += later.events;
        self.measured += later.measured;
        self.sum += later.sum;
        if later.measured > 0 {
            self.last = later.last;
        }
    }
}

impl Accumulator {
    /// For `blocks` blocks and sketches of `sketch_len` numbers; norms of all noise levels in
    /// one bin.
    ///
    /// # Errors
    /// [`Error::Argument`] when one of them is 0 or their product does not fit.
    pub fn new(blocks: usize, sketch_len: usize) -> Result<Self> {
        for (name, value) in [("blocks", blocks), ("sketch_len", sketch_len)] {
            if value == 0 {
                return Err(Error::argument(name, "at least 1", value));
            }
        }
        product("sketch_len", &[blocks, sketch_len])?;
        Ok(Self {
            blocks,
            sketch_len,
            edges: Vec::new(),
            index: HashMap::new(),
            ids: Vec::new(),
            sketches: Vec::new(),
            totals: Vec::new(),
            norms: Vec::new(),
        })
    }

    /// Follows norms by noise level: bin `i` takes the levels in `edges[i - 1] .. edges[i]`, the
    /// first and the last of the `edges.len() + 1` bins are open, and one more bin at the end
    /// takes the events without a level.
    ///
    /// # Errors
    /// [`Error::Argument`] when the edges do not ascend, are not finite, or records were added.
    pub fn with_noise_edges(mut self, edges: &[f32]) -> Result<Self> {
        if !self.is_empty() {
            return Err(Error::argument("edges", "an accumulator without records", self.len()));
        }
        let ascending = edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || edges.iter().any(|edge| !edge.is_finite()) {
            return Err(Error::argument("edges", "finite, ascending", format!("{edges:?}")));
        }
        self.edges = edges.to_vec();
        Ok(self)
    }

    /// An empty one of the same shape.
    pub fn like(&self) -> Self {
        Self {
            edges: self.edges.clone(),
            index: HashMap::new(),
            ids: Vec::new(),
            sketches: Vec::new(),
            totals: Vec::new(),
            norms: Vec::new(),
            ..*self
        }
    }

    /// An empty one of as many times the blocks.
    pub(super) fn widened(&self, times: usize) -> Result<Self> {
        Self::new(times * self.blocks, self.sketch_len)?.with_noise_edges(&self.edges)
    }

    /// That another has the same shape and noise-level bins.
    pub(super) fn expect_like(&self, argument: &str, other: &Self) -> Result<()> {
        let shape = |it: &Self| format!("{} × {}, {:?}", it.blocks, it.sketch_len, it.edges);
        if shape(self) != shape(other) {
            return Err(Error::argument(argument, shape(self), shape(other)));
        }
        Ok(())
    }

    /// `[B, K]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.blocks, self.sketch_len]
    }

    /// Forgets all samples; the memory is kept for the next ones.
    pub fn clear(&mut self) {
        self.index.clear();
        self.ids.clear();
        self.sketches.clear();
        self.totals.clear();
        self.norms.clear();
    }

    /// Number of blocks, `B`.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Numbers per sketch, `K`.
    pub fn sketch_len(&self) -> usize {
        self.sketch_len
    }

    /// Noise-level bins, the one for events without a level included.
    pub fn bins(&self) -> usize {
        self.edges.len() + 2
    }

    /// Number of samples seen.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no sample was seen.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Ids of the samples, in the order in which they were first seen.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// `A_n`, `[B, K]`; none for a sample never seen.
    pub fn sketch(&self, id: u64) -> Option<&[f32]> {
        self.index.get(&id).map(|&n| self.sketch_at(n))
    }

    /// Running sums of a sample, `[B]`; none for a sample never seen.
    pub fn totals(&self, id: u64) -> Option<&[BlockTotals]> {
        self.index.get(&id).map(|&n| self.totals_at(n))
    }

    /// Norms of a sample by noise level, `[bins]`; none for a sample never seen.
    pub fn norms(&self, id: u64) -> Option<&[NormTrace]> {
        self.index.get(&id).map(|&n| self.norms_at(n))
    }

    /// Adds one step. Nothing changes when the record is refused.
    ///
    /// # Errors
    /// [`Error::Argument`], see [`StepRecord::check`].
    pub fn add(&mut self, record: &StepRecord) -> Result<()> {
        record.check(self.blocks, self.sketch_len)?;
        let factor = record.factor();
        for (n, &id) in record.samples.iter().enumerate() {
            let row = self.row(id);
            let mut squared = 0.0;
            for b in 0..self.blocks {
                let at = n * self.blocks + b;
                let sq_norm = f64::from(record.sq_norm[at]);
                let routed = f64::from(record.route[at]) * f64::from(record.gates[n]);
                squared += sq_norm;
                let cell = row * self.blocks + b;
                let sketch = &record.sketch[at * self.sketch_len..][..self.sketch_len];
                let pushed = self.push(cell, factor, sketch);
                self.totals[cell].add(&totals(pushed, factor, routed, sq_norm));
            }
            let bin = row * self.bins() + self.bin(record.noise_levels[n]);
            self.norms[bin].add(&trace(squared.sqrt()));
        }
        Ok(())
    }

    /// Adds what came later in the same run.
    ///
    /// # Errors
    /// [`Error::Argument`] when the shapes or noise-level bins differ.
    pub fn merge(&mut self, later: &Self) -> Result<()> {
        self.expect_like("later", later)?;
        for (n, &id) in later.ids.iter().enumerate() {
            self.merge_row(id, later.sketch_at(n), later.totals_at(n), later.norms_at(n))?;
        }
        Ok(())
    }

    /// The sums of groups of samples, as those of a sample whose id is the group's index;
    /// `group_of` returns none for a sample that belongs to none. Groups without a sample are
    /// not there.
    ///
    /// # Errors
    /// None that can be met: the shapes are the accumulator's own.
    pub fn grouped(&self, group_of: impl Fn(u64) -> Option<u64>) -> Result<Self> {
        let mut sums = self.like();
        for (n, &id) in self.ids.iter().enumerate() {
            if let Some(group) = group_of(id) {
                let (sketch, norms) = (self.sketch_at(n), self.norms_at(n));
                sums.merge_row(group, sketch, self.totals_at(n), norms)?;
            }
        }
        Ok(sums)
    }

    /// [`Accumulator::merge`] for one sample: `sketch [B, K]`, `totals [B]`, `norms [bins]`.
    pub(crate) fn merge_row(
        &mut self,
        id: u64,
        sketch: &[f32],
        totals: &[BlockTotals],
        norms: &[NormTrace],
    ) -> Result<()> {
        expect_len("sketch", self.blocks * self.sketch_len, sketch.len())?;
        expect_len("totals", self.blocks, totals.len())?;
        expect_len("norms", self.bins(), norms.len())?;
        let row = self.row(id);
        let sums = &mut self.sketches[row * sketch.len()..][..sketch.len()];
        sums.iter_mut().zip(sketch).for_each(|(sum, value)| *sum += value);
        let sums = &mut self.totals[row * totals.len()..][..totals.len()];
        sums.iter_mut().zip(totals).for_each(|(sum, value)| sum.add(value));
        let traces = &mut self.norms[row * norms.len()..][..norms.len()];
        traces.iter_mut().zip(norms).for_each(|(trace, later)| trace.add(later));
        Ok(())
    }

    /// Where a sample stands among those seen.
    #[cfg(feature = "ledger")]
    pub(crate) fn position(&self, id: u64) -> Option<usize> {
        self.index.get(&id).copied()
    }

    /// `A` of the `n`-th sample seen, `[B, K]`.
    pub(crate) fn sketch_at(&self, n: usize) -> &[f32] {
        let len = self.blocks * self.sketch_len;
        &self.sketches[n * len..][..len]
    }

    pub(crate) fn totals_at(&self, n: usize) -> &[BlockTotals] {
        &self.totals[n * self.blocks..][..self.blocks]
    }

    pub(crate) fn norms_at(&self, n: usize) -> &[NormTrace] {
        &self.norms[n * self.bins()..][..self.bins()]
    }

    /// Dense index of a sample, which is made room for when it is new.
    fn row(&mut self, id: u64) -> usize {
        let next = self.ids.len();
        let row = *self.index.entry(id).or_insert(next);
        if row == next {
            let (blocks, bins) = (self.blocks, self.bins());
            self.ids.push(id);
            self.sketches.resize(self.sketches.len() + blocks * self.sketch_len, 0.0);
            self.totals.resize(self.totals.len() + blocks, BlockTotals::default());
            self.norms.resize(self.norms.len() + bins, NormTrace::default());
        }
        row
    }

    /// Adds `factor` times a sketch to a cell; its norm times `|factor|`. A factor of 0 selects.
    fn push(&mut self, cell: usize, factor: f64, sketch: &[f32]) -> f64 {
        if factor == 0.0 {
            return 0.0;
        }
        let (len, step) = (self.sketch_len, factor as f32);
        let sums = &mut self.sketches[cell * len..][..len];
        sums.iter_mut().zip(sketch).for_each(|(sum, &value)| *sum += step * value);
        factor.abs() * dot(sketch, sketch).sqrt()
    }

    fn bin(&self, level: f32) -> usize {
        if level.is_nan() {
            return self.edges.len() + 1;
        }
        self.edges.partition_point(|&edge| edge <= level)
    }
}

/// One event's share of the running sums.
fn totals(pushed: f64, factor: f64, routed: f64, sq_norm: f64) -> BlockTotals {
    if !sq_norm.is_finite() || sq_norm < 0.0 {
        return BlockTotals { pushed, ..BlockTotals::default() };
    }
    BlockTotals {
        pushed,
        exposure: (factor * routed).abs() * sq_norm.sqrt(),
        stepped_sq: factor * factor * sq_norm,
        sq_norm,
    }
}

/// One event's share of the norm trace.
fn trace(norm: f64) -> NormTrace {
    if !norm.is_finite() {
        return NormTrace { events: 1, ..NormTrace::default() };
    }
    NormTrace { events: 1, measured: 1, sum: norm, last: norm as f32 }
}
