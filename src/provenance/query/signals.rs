//! What the record alone says about memorization.

use std::collections::HashMap;

use serde::Serialize;

use super::{Archive, Citation};
use crate::Result;
use crate::provenance::Pair;

/// Samples by signs of memorization that every ledger holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Signals {
    /// Those with most near-duplicates first, then the quietest.
    pub samples: Vec<SampleSignals>,
    /// Whether near-duplicates were searched for; copies by content hash are always known.
    pub searched: bool,
    /// What this rests on.
    pub citation: Citation,
}

/// One sample's signs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleSignals {
    /// The sample.
    pub sample: u64,
    /// Its category.
    pub category: String,
    /// Times it was in a batch.
    pub events: u64,
    /// `Σ |η · optimizer_scale · route · gate| ‖G‖`, added up over the blocks.
    pub exposure: f64,
    /// Mean over the noise levels of the logarithm of its gradient norm over the median sample's.
    /// What is fitted is quiet, late in training; early the sign is the other way round.
    pub loudness: f64,
    /// Other samples of the same content hash.
    pub copies: usize,
    /// Samples that did nearly the same to the model, copies included.
    pub alike: usize,
}

impl Archive {
    /// All pairs of at least this cosine, asked for in lists that grow until one holds others, too.
    fn pairs(&self, cosine: f64) -> Vec<Pair> {
        let mut count = self.influence().ids().len().saturating_mul(10);
        loop {
            let mut pairs = self.influence().near_duplicates(count);
            let within = pairs.partition_point(|pair| f64::from(pair.cosine) >= cosine);
            if within < count {
                pairs.truncate(within);
                return pairs;
            }
            count = count.saturating_mul(4);
        }
    }

    /// The `count` most conspicuous samples. Near-duplicates, of a mean cosine over the blocks of
    /// at least `alike`, are searched for among all pairs up to `most` samples:
    /// `samples² · B · K` multiplications.
    ///
    /// # Errors
    /// As opening a ledger.
    pub fn signals(&self, count: usize, alike: f64, most: usize) -> Result<Signals> {
        let ids = self.influence().ids();
        let searched = ids.len() <= most;
        let mut twins: HashMap<u64, usize> = HashMap::new();
        if searched {
            let pairs = self.pairs(alike);
            pairs
                .iter()
                .flat_map(|pair| pair.ids)
                .for_each(|id| *twins.entry(id).or_default() += 1);
        }
        let mut by_hash: HashMap<[u8; 32], usize> = HashMap::new();
        for &id in ids {
            *by_hash.entry(self.sample(id)?.content_hash).or_default() += 1;
        }
        by_hash.remove(&[0; 32]);
        let loudness = self.loudness();
        let mut samples = Vec::with_capacity(ids.len());
        for (&id, loudness) in ids.iter().zip(loudness) {
            let info = self.sample(id)?;
            let copies = by_hash.get(&info.content_hash).map_or(0, |it| it - 1);
            let norms = self.influence().norms(id).unwrap_or_default();
            let totals = self.influence().totals(id).unwrap_or_default();
            samples.push(SampleSignals {
                sample: id,
                category: info.category.clone(),
                events: norms.iter().map(|it| u64::from(it.events)).sum(),
                exposure: totals.iter().map(|it| it.exposure).sum(),
                loudness,
                copies,
                alike: twins.get(&id).copied().unwrap_or(0).max(copies),
            });
        }
        samples.sort_by(|a, b| {
            b.alike
                .cmp(&a.alike)
                .then(a.loudness.total_cmp(&b.loudness))
                .then(a.sample.cmp(&b.sample))
        });
        samples.truncate(count);
        let named = samples.iter().map(|it| it.sample).collect();
        Ok(Signals { samples, searched, citation: self.cite_all(named) })
    }

    /// Of every sample in the accumulator's order.
    fn loudness(&self) -> Vec<f64> {
        let (sums, bins) = (self.influence(), self.influence().bins());
        let level = |n: usize, bin: usize| sums.norms_at(n)[bin].mean().filter(|it| *it > 0.0);
        let medians: Vec<f64> = (0..bins)
            .map(|bin| {
                let mut all: Vec<f64> = (0..sums.len()).filter_map(|n| level(n, bin)).collect();
                all.sort_unstable_by(f64::total_cmp);
                all.get(all.len() / 2).copied().unwrap_or(1.0)
            })
            .collect();
        let of = |n: usize| {
            let heard = (0..bins).filter_map(|bin| Some((level(n, bin)? / medians[bin]).ln()));
            let heard: Vec<f64> = heard.collect();
            heard.iter().sum::<f64>() / heard.len().max(1) as f64
        };
        (0..sums.len()).map(of).collect()
    }
}
