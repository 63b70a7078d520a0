//! What was pushed: per sample and block, per cluster, per category.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Running sums of `η · |route · gate| · ‖G‖`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Exposure {
    blocks: usize,
    /// `[samples, blocks]`.
    samples: Vec<f64>,
    /// `[samples]`: by the cluster's root.
    clusters: Vec<f64>,
    categories: BTreeMap<u32, f64>,
    total: f64,
    /// Samples and clusters with any exposure.
    seen: [usize; 2],
}

impl Exposure {
    pub fn new(blocks: usize) -> Self {
        Self {
            blocks,
            samples: Vec::new(),
            clusters: Vec::new(),
            categories: BTreeMap::new(),
            total: 0.0,
            seen: [0; 2],
        }
    }

    pub fn grow(&mut self) {
        self.samples.resize(self.samples.len() + self.blocks, 0.0);
        self.clusters.push(0.0);
    }

    /// Adds an event to its sample; returns what it would have been with an open gate. A norm
    /// that is not finite counts as nothing.
    pub fn add(
        &mut self,
        row: usize,
        factor: f64,
        gate: f64,
        route: &[f32],
        squares: &[f32],
    ) -> f64 {
        let fresh = self.of(row).iter().all(|&sum| sum == 0.0);
        let sums = &mut self.samples[row * self.blocks..][..self.blocks];
        let mut pushed = 0.0;
        for ((sum, &route), &square) in sums.iter_mut().zip(route).zip(squares) {
            let norm = f64::from(square).sqrt();
            if norm.is_finite() && route != 0.0 {
                let one = factor * f64::from(route.abs()) * norm;
                *sum += gate * one;
                pushed += one;
            }
        }
        self.seen[0] += usize::from(fresh && pushed * gate > 0.0);
        pushed
    }

    /// Charges an event's exposure to its cluster and category.
    pub fn charge(&mut self, root: usize, category: Option<u32>, exposure: f64) {
        if exposure == 0.0 {
            return;
        }
        self.seen[1] += usize::from(self.clusters[root] == 0.0);
        self.clusters[root] += exposure;
        self.total += exposure;
        if let Some(category) = category {
            *self.categories.entry(category).or_default() += exposure;
        }
    }

    /// Adds up anew after clusters grew together.
    pub fn regroup(&mut self, samples: usize, root: impl Fn(usize) -> usize) {
        self.clusters.fill(0.0);
        for row in 0..samples {
            self.clusters[root(row)] += self.of(row).iter().sum::<f64>();
        }
        self.seen[1] = self.clusters.iter().filter(|&&sum| sum > 0.0).count();
    }

    /// Per block, `[B]`.
    pub fn of(&self, row: usize) -> &[f64] {
        &self.samples[row * self.blocks..][..self.blocks]
    }

    /// In multiples of the mean sample's.
    pub fn sample_ratio(&self, row: usize) -> f64 {
        self.ratio(self.of(row).iter().sum(), self.seen[0])
    }

    /// In multiples of the mean cluster's.
    pub fn cluster_ratio(&self, root: usize) -> f64 {
        self.ratio(self.clusters[root], self.seen[1])
    }

    /// The mean category's, over the samples that have one.
    pub fn mean_category(&self) -> f64 {
        self.categories.values().sum::<f64>() / self.categories.len() as f64
    }

    /// In multiples of the mean category's.
    pub fn category_ratio(&self, category: Option<u32>, mean: f64) -> f64 {
        let own = category.and_then(|category| self.categories.get(&category));
        own.map_or(0.0, |own| own / mean)
    }

    fn ratio(&self, own: f64, seen: usize) -> f64 {
        if seen == 0 { 0.0 } else { own / (self.total / seen as f64) }
    }
}
