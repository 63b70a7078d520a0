//! The memorization guard: what a training run is about to learn by heart, and gates against it.
//!
//! From the records of the training pass itself the [`Guard`] keeps, per sample and in memory
//! that does not grow with the run, the gradient norm by noise level relative to the population's
//! at that level and time, the exposure `Σ η · |route · gate| · ‖G‖` per block, and how many
//! other samples are near-duplicates. Near-duplicates form clusters, and a cluster shares one
//! budget: a picture that is in the data twenty times may teach as much as one that is there
//! once. Over budget, the gate closes smoothly.
//!
//! Budgets are multiples of the mean over all clusters, and the `route` that a record holds is the
//! mean over a block's parameters. Who trains a region of each block alone, with full weight, learns
//! there as fast as others do elsewhere: under a policy ([`Guard::govern`]) `route` is the largest
//! weight that a sample has in the block, so that a small region is no way around the budget.
//!
//! **Near-duplicates** are found by a fingerprint that the caller supplies with each sample
//! ([`Guard::enlist`]): any vector whose cosine is near 1 for pictures that count as the same,
//! such as the magnitude spectrum of small pictures (which a shift leaves as it is), an image
//! encoder's embedding, or the sketches of a probe at common noise levels and noise
//! (`Recorder::begin_probe` of the candle adapter). Sketches of the training pass itself do not
//! serve: each is taken at a noise level and noise of its own, which decide most of it. A
//! **norm** alone does not either: that of a duplicate is as high as others' until it is fitted,
//! and low from then on, so it enters the score by its distance from the population, whichever
//! way.
//!
//! ```
//! use gradroute::guard::{Guard, GuardConfig};
//! use gradroute::provenance::StepRecord;
//!
//! let mut guard = Guard::new(1, GuardConfig::default())?;
//! for (id, fingerprint) in [(1, [1.0, 0.0]), (2, [1.0, 0.001]), (3, [1.0, 0.0])] {
//!     guard.enlist(id, Some(0), Some(&fingerprint))?;
//! }
//! for step in 0..4 {
//!     let samples = vec![1, 2, 3, 4, 5, 6, 7];
//!     let gates = guard.gates(&samples);
//!     guard.observe(&StepRecord {
//!         step,
//!         step_size: 0.1,
//!         optimizer_scale: 1.0,
//!         blocks: 1,
//!         samples,
//!         noise_levels: vec![f32::NAN; 7],
//!         gates,
//!         route: vec![1.0; 7],
//!         flow: vec![1.0; 7],
//!         sq_norm: vec![4.0; 7],
//!         sketch: Vec::new(),
//!     })?;
//! }
//! let gates = guard.gates(&[1, 4]);
//! assert!(gates[0] < 0.9 && gates[1] == 1.0);
//! assert_eq!(guard.report().gated[0].members, [1, 2, 3]);
//! # Ok::<(), gradroute::Error>(())
//! ```

mod budget;
mod clusters;
mod config;
mod exposure;
mod norms;
#[cfg(feature = "ledger")]
mod replay;
mod report;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::provenance::StepRecord;
use crate::routing::CompiledPolicy;
use crate::{Error, Result};

use clusters::Clusters;
use exposure::Exposure;
use norms::{Population, Trajectory};

pub use budget::{Budget, Level};
pub use config::GuardConfig;
#[cfg(feature = "ledger")]
pub use replay::GUARD;
pub use report::{GateEvent, Gated, GuardReport, Score};

/// Watches a training run sample by sample, and sets its gates.
///
/// Memory per sample: its fingerprint, `8 · B` bytes of exposure and `12 · (edges + 2)` of norms.
/// All of it serialises (serde), so that it can be saved with a checkpoint. Better, the run keeps
/// what the guard began with ([`GuardConfig::record_in`], then [`Guard::of_run`]): the ledger's
/// events rebuild it ([`Guard::replay`]), for the trainer that resumes and for whoever asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    blocks: usize,
    config: GuardConfig,
    index: HashMap<u64, usize>,
    ids: Vec<u64>,
    categories: Vec<Option<u32>>,
    trajectories: Vec<Trajectory>,
    population: Population,
    exposure: Exposure,
    /// `[categories, blocks]`: largest route weights; empty without a policy.
    #[serde(default)]
    reach: Vec<f32>,
    clusters: Clusters,
    /// Gates that were asked for and not yet observed.
    pending: HashMap<u64, (f32, Level, f64)>,
    events: Vec<GateEvent>,
    closed: Vec<Closed>,
}

/// What the gates did to a sample so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Closed {
    times: u64,
    /// Exposure kept from it.
    withheld: f64,
    lowest: Option<f32>,
    /// What last closed its gate.
    level: Option<Level>,
    ratio: f64,
    /// When that was.
    #[serde(default)]
    step: u64,
}

impl Guard {
    /// For records of `blocks` blocks.
    ///
    /// # Errors
    /// [`Error::Argument`] for no blocks, or naming the field of `config` that does not hold.
    pub fn new(blocks: usize, config: GuardConfig) -> Result<Self> {
        if blocks == 0 {
            return Err(Error::argument("blocks", "at least 1", 0));
        }
        config.check()?;
        Ok(Self {
            blocks,
            index: HashMap::new(),
            ids: Vec::new(),
            categories: Vec::new(),
            trajectories: Vec::new(),
            population: Population::new(config.noise_edges.len() + 2),
            exposure: Exposure::new(blocks),
            reach: Vec::new(),
            clusters: Clusters::new(),
            pending: HashMap::new(),
            events: Vec::new(),
            closed: Vec::new(),
            config,
        })
    }

    /// What it was made with.
    pub fn config(&self) -> &GuardConfig {
        &self.config
    }

    /// Charges samples that have a category by the largest weight that the policy gives them in a
    /// block, instead of by the mean that records hold. What was charged before stays.
    /// [`Guard::of_run`] does so where the run has its policy.
    ///
    /// # Errors
    /// [`Error::Argument`] when the policy has another number of blocks.
    pub fn govern(&mut self, policy: &CompiledPolicy) -> Result<()> {
        let blocks = policy.blocks().len();
        if blocks != self.blocks {
            return Err(Error::argument("policy", format!("{} blocks", self.blocks), blocks));
        }
        let categories = policy.categories().ids();
        let all = |id| (0..blocks).map(move |block| policy.block_reach(id, block));
        self.reach = categories.flat_map(all).collect();
        Ok(())
    }

    /// Number of samples it knows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Introduces a sample: its category (for the category's budget) and its fingerprint, of any
    /// length, the same for all samples. A sample that is only observed has neither, and counts as
    /// unlike all others.
    ///
    /// Near-duplicates of new samples are searched when next asked for gates or scores, exactly:
    /// `new · all · length` multiplications, as GEMM.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sample was enlisted before, or the fingerprint is of another
    /// length than the others', not finite, or 0.
    pub fn enlist(
        &mut self,
        id: u64,
        category: Option<u32>,
        fingerprint: Option<&[f32]>,
    ) -> Result<()> {
        if self.index.contains_key(&id) {
            return Err(Error::argument("id", "a sample not known yet", id));
        }
        if let Some(fingerprint) = fingerprint {
            self.clusters.check(fingerprint)?;
        }
        let row = self.row(id);
        self.categories[row] = category;
        if let Some(fingerprint) = fingerprint {
            self.clusters.fingerprint(row, fingerprint);
        }
        Ok(())
    }

    /// The gates of a batch, `0..=1` each: 1 up to a budget's soft limit, 0 from its hard limit,
    /// continuous and falling in between. The strictest of sample, cluster and category decides.
    /// Samples it does not know pass.
    ///
    /// Call it before the step, and [`Guard::observe`] after, for every batch; with gradient
    /// accumulation a step has several.
    pub fn gates(&mut self, samples: &[u64]) -> Vec<f32> {
        self.settle();
        let mean = self.config.category.map_or(0.0, |_| self.exposure.mean_category());
        let gates = samples.iter().map(|&id| {
            let Some(&row) = self.index.get(&id) else { return 1.0 };
            let (gate, level, ratio) = self.gate(row, mean);
            if gate < 1.0 {
                self.pending.insert(id, (gate, level, ratio));
            } else {
                self.pending.remove(&id);
            }
            gate
        });
        gates.collect()
    }

    /// Takes in a record of the training pass; its gates need not be the guard's own. Nothing
    /// changes when it is refused. Costs `N · B`.
    ///
    /// # Errors
    /// [`Error::Argument`], see [`StepRecord::check`]; the sketches are not used and may be
    /// missing.
    pub fn observe(&mut self, record: &StepRecord) -> Result<()> {
        let each = record.samples.len() * record.blocks;
        record.check(self.blocks, record.sketch.len() / each.max(1))?;
        self.settle();
        let factor = record.factor().abs();
        for (n, &id) in record.samples.iter().enumerate() {
            let row = self.row(id);
            let squares = &record.sq_norm[n * self.blocks..][..self.blocks];
            let by_policy = self.categories[row]
                .and_then(|category| self.reach.chunks_exact(self.blocks).nth(category as usize));
            let route =
                by_policy.unwrap_or_else(|| &record.route[n * self.blocks..][..self.blocks]);
            let norm = squares.iter().map(|&square| f64::from(square)).sum::<f64>().sqrt();
            if norm.is_finite() && norm > 0.0 {
                let bin = self.config.bin(record.noise_levels[n]);
                let deviation = self.population.take(bin, norm.ln(), self.config.memory);
                self.trajectories[row].add(bin, deviation);
            }
            let gate = f64::from(record.gates[n].abs());
            let pushed = self.exposure.add(row, factor, gate, route, squares);
            let root = self.clusters.root(row);
            self.exposure.charge(root, self.categories[row], pushed * gate);
            // Asked for, and heeded; of a sample that is there several times, each time.
            let closed = self.pending.get(&id).copied().filter(|_| record.gates[n] < 1.0);
            if let Some((gate, level, ratio)) = closed {
                self.events.push(GateEvent { step: record.step, sample: id, gate, level, ratio });
                let closed = &mut self.closed[row];
                closed.times += 1;
                closed.withheld += pushed * (1.0 - f64::from(gate));
                closed.lowest = Some(closed.lowest.map_or(gate, |lowest| lowest.min(gate)));
                (closed.level, closed.ratio, closed.step) = (Some(level), ratio, record.step);
            }
        }
        for id in &record.samples {
            self.pending.remove(id);
        }
        Ok(())
    }

    /// The gates that were closed since the last call, in the order they took effect.
    pub fn take_events(&mut self) -> Vec<GateEvent> {
        std::mem::take(&mut self.events)
    }

    /// Finds the near-duplicates of samples that were enlisted since.
    fn settle(&mut self) {
        if self.clusters.search(&self.config) {
            self.exposure.regroup(self.ids.len(), |row| self.clusters.root(row));
        }
    }

    /// Gate of a sample, what decides it, and how far that is in multiples of the budget's unit,
    /// which is `mean_category` for categories.
    fn gate(&self, row: usize, mean_category: f64) -> (f32, Level, f64) {
        let config = &self.config;
        let root = self.clusters.root(row);
        let of_category = self.exposure.category_ratio(self.categories[row], mean_category);
        let levels = [
            (config.cluster, Level::Cluster, self.exposure.cluster_ratio(root)),
            (config.sample, Level::Sample, self.exposure.sample_ratio(row)),
            (config.category, Level::Category, of_category),
        ];
        let mut strictest = (1.0, Level::Cluster, 0.0);
        for (budget, level, ratio) in levels {
            let gate = budget.map_or(1.0, |budget| budget.gate(ratio));
            if gate < strictest.0 {
                strictest = (gate, level, ratio);
            }
        }
        strictest
    }

    /// Dense index of a sample, which is made room for when it is new.
    fn row(&mut self, id: u64) -> usize {
        let next = self.ids.len();
        let row = *self.index.entry(id).or_insert(next);
        if row == next {
            self.ids.push(id);
            self.categories.push(None);
            self.trajectories.push(Trajectory::new(self.config.noise_edges.len() + 2));
            self.closed.push(Closed::default());
            self.exposure.grow();
            self.clusters.grow();
        }
        row
    }
}
