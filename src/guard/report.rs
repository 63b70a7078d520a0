//! What the guard knows and did.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Guard, Level};

/// How much of one sample a run may be learning by heart, and what says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Score {
    /// The sample.
    pub sample: u64,
    /// Larger means more: `ln(1 + density) + |d| / (10 (1 + |d|))`, `d` the deviation. What is
    /// there more than once ranks above what is there once, and equals are told apart by their
    /// norms, whose sign flips in the course of a run and is left out for that.
    pub total: f64,
    /// Expected number of near-duplicates: 0 for a picture that is there once, 19 for one that
    /// is there twenty times.
    pub density: f64,
    /// Cosine of the most alike other fingerprint; none where there is none to compare.
    pub nearest: Option<f32>,
    /// Mean deviation of its log gradient norm from the population's at the same noise level and
    /// time, in standard deviations, shrunk while there are few: low for what is fitted already.
    pub deviation: f64,
    /// The same by its latest visit to each noise level.
    pub latest: f64,
    /// Events and mean deviation at each noise level's bin.
    pub by_level: Vec<(u32, f32)>,
    /// `Σ η · |route · gate| · ‖G‖`, in multiples of the mean sample's.
    pub exposure: f64,
    /// The same of its cluster, in multiples of the mean cluster's.
    pub cluster_exposure: f64,
    /// How unevenly the exposure is spread over the blocks: 0 evenly, 1 all in one.
    pub concentration: f64,
    /// The sample its cluster is named after, the first that was enlisted.
    pub cluster: u64,
}

/// A gate that was closed, in whole or in part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateEvent {
    /// The step it took effect in.
    pub step: u64,
    /// The sample.
    pub sample: u64,
    /// The gate.
    pub gate: f32,
    /// Whose budget was exceeded.
    pub level: Level,
    /// That exposure, in multiples of the mean.
    pub ratio: f64,
}

/// A cluster some of whose gates were closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gated {
    /// Its samples, ascending.
    pub members: Vec<u64>,
    /// Times a gate was below 1.
    pub times: u64,
    /// The lowest gate.
    pub lowest: f32,
    /// Share of the exposure its samples would have had, that was kept from them.
    pub withheld: f64,
    /// Whose budget last closed a gate.
    pub level: Level,
    /// That exposure, in multiples of the mean, at that time.
    pub ratio: f64,
}

/// What was gated and why, most often first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GuardReport {
    /// Samples known.
    pub samples: usize,
    /// Clusters of more than one sample.
    pub clusters: usize,
    /// Clusters with closed gates.
    pub gated: Vec<Gated>,
}

impl Guard {
    /// The scores of all samples, in the order in which they were first seen.
    pub fn scores(&mut self) -> Vec<Score> {
        self.settle();
        (0..self.len()).map(|row| self.score(row)).collect()
    }

    fn score(&self, row: usize) -> Score {
        let (density, trajectory) = (self.clusters.density(row), &self.trajectories[row]);
        let (deviation, root) = (trajectory.deviation(), self.clusters.root(row));
        let off = deviation.abs();
        Score {
            sample: self.ids[row],
            total: (1.0 + density).ln() + 0.1 * off / (1.0 + off),
            density,
            nearest: self.clusters.nearest(row),
            deviation,
            latest: trajectory.latest(),
            by_level: trajectory.by_level(),
            exposure: self.exposure.sample_ratio(row),
            cluster_exposure: self.exposure.cluster_ratio(root),
            concentration: concentration(self.exposure.of(row)),
            cluster: self.ids[root],
        }
    }

    /// What was gated so far, and why.
    pub fn report(&self) -> GuardReport {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for row in 0..self.len() {
            members.entry(self.clusters.root(row)).or_default().push(row);
        }
        let mut gated: Vec<Gated> = members.values().filter_map(|rows| self.gated(rows)).collect();
        gated.sort_by(|a, b| b.times.cmp(&a.times).then(a.members.cmp(&b.members)));
        let clusters = members.values().filter(|rows| rows.len() > 1).count();
        GuardReport { samples: self.len(), clusters, gated }
    }

    fn gated(&self, rows: &[usize]) -> Option<Gated> {
        let closed = || rows.iter().map(|&row| &self.closed[row]).filter(|it| it.times > 0);
        let last = closed().max_by_key(|it| it.step)?;
        let withheld: f64 = closed().map(|it| it.withheld).sum();
        let had: f64 = rows.iter().flat_map(|&row| self.exposure.of(row)).sum();
        let mut members: Vec<u64> = rows.iter().map(|&row| self.ids[row]).collect();
        members.sort_unstable();
        Some(Gated {
            members,
            times: closed().map(|it| it.times).sum(),
            lowest: closed().filter_map(|it| it.lowest).fold(1.0, f32::min),
            withheld: if withheld > 0.0 { withheld / (withheld + had) } else { 0.0 },
            level: last.level?,
            ratio: last.ratio,
        })
    }
}

impl fmt::Display for GuardReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} samples, {} clusters of near-duplicates, {} with closed gates",
            self.samples,
            self.clusters,
            self.gated.len()
        )?;
        for it in &self.gated {
            let level = match it.level {
                Level::Sample => "the sample's",
                Level::Cluster => "the cluster's",
                Level::Category => "the category's",
            };
            write!(
                f,
                "\n{} × sample {}: gated {} times, down to {:.2}, {:.0} % of its exposure \
                 withheld; {level} exposure was {:.2} times the mean",
                it.members.len(),
                it.members[0],
                it.times,
                it.lowest,
                100.0 * it.withheld,
                it.ratio
            )?;
        }
        Ok(())
    }
}

/// Herfindahl's index of the shares, brought to `0..=1`.
fn concentration(blocks: &[f64]) -> f64 {
    let (all, count) = (blocks.iter().sum::<f64>(), blocks.len() as f64);
    if all == 0.0 || blocks.len() < 2 {
        return 0.0;
    }
    let squares: f64 = blocks.iter().map(|part| (part / all).powi(2)).sum();
    ((squares - 1.0 / count) / (1.0 - 1.0 / count)).clamp(0.0, 1.0)
}
