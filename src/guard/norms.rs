//! Gradient norms by noise level, relative to the population's at the same level and time.

use serde::{Deserialize, Serialize};

/// Mean and variance of the logarithm of the norm, per bin, forgetting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Population {
    bins: Vec<Moments>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Moments {
    events: u64,
    mean: f64,
    variance: f64,
}

impl Population {
    pub fn new(bins: usize) -> Self {
        Self { bins: vec![Moments::default(); bins] }
    }

    /// Takes an event in; returns how far it lies from those before, in their standard
    /// deviations: 0 for the first ones, of which that cannot be said.
    pub fn take(&mut self, bin: usize, log_norm: f64, memory: f64) -> f32 {
        /// Events before a spread means anything.
        const ENOUGH: u64 = 8;
        let it = &mut self.bins[bin];
        let off = log_norm - it.mean;
        let deviation =
            if it.events < ENOUGH || it.variance == 0.0 { 0.0 } else { off / it.variance.sqrt() };
        it.events += 1;
        // A plain average at first, then the newest counts `1 − memory`.
        let weight = (1.0 - memory).max(1.0 / it.events as f64);
        it.mean += weight * off;
        it.variance = (1.0 - weight) * (it.variance + weight * off * off);
        deviation as f32
    }
}

/// One sample's deviations, per bin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Trajectory {
    bins: Vec<Trace>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Trace {
    events: u32,
    sum: f32,
    last: f32,
}

impl Trajectory {
    pub fn new(bins: usize) -> Self {
        Self { bins: vec![Trace::default(); bins] }
    }

    pub fn add(&mut self, bin: usize, deviation: f32) {
        let trace = &mut self.bins[bin];
        trace.events += 1;
        trace.sum += deviation;
        trace.last = deviation;
    }

    pub fn events(&self) -> u64 {
        self.bins.iter().map(|trace| u64::from(trace.events)).sum()
    }

    /// Mean deviation over all events, shrunk to 0 while there are few: `Σ / (events + 2)`.
    pub fn deviation(&self) -> f64 {
        let sum: f64 = self.bins.iter().map(|trace| f64::from(trace.sum)).sum();
        sum / (self.events() + 2) as f64
    }

    /// Mean over the bins it was seen in of the latest deviation there; 0 when never seen.
    pub fn latest(&self) -> f64 {
        let seen = self.bins.iter().filter(|trace| trace.events > 0);
        let (sum, count) =
            seen.fold((0.0, 0), |(sum, count), trace| (sum + f64::from(trace.last), count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }

    /// Events and mean deviation of each bin.
    pub fn by_level(&self) -> Vec<(u32, f32)> {
        self.bins.iter().map(|it| (it.events, it.sum / it.events.max(1) as f32)).collect()
    }
}
