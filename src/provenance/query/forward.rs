//! From a sample or category to what it did.

use std::collections::HashSet;

use serde::Serialize;

use super::{Archive, Citation, RegionRoute, Subject};
use crate::Result;
use crate::provenance::ledger::Events;
use crate::provenance::{Estimate, NormTrace};

/// What a sample or category did: where, when, at which noise levels, how much.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forward {
    /// The sample or category.
    pub subject: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// Times that one of them was in a batch.
    pub events: u64,
    /// Events whose gate was not 1.
    pub gated: u64,
    /// Mean gate; NaN without an event.
    pub gate: f64,
    /// By block, from input to output.
    pub blocks: Vec<ForwardBlock>,
    /// By noise level.
    pub levels: Vec<LevelTrace>,
    /// The regions it trains, by the policy.
    pub regions: Vec<RegionRoute>,
    /// What this rests on.
    pub citation: Citation,
}

/// Amounts in one block.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ForwardBlock {
    /// The block.
    pub block: String,
    /// `‖Σ A_n‖`: how far it moved the block.
    pub moved: Estimate,
    /// The block's part of the squares of `moved`, which add up over the blocks.
    pub share: f64,
    /// `Σ ‖A_n‖`: how much its samples pushed, each by what became of it.
    pub pushed: f64,
    /// `Σ |η · optimizer_scale| ‖S‖`: the length of all single pushes.
    pub path: f64,
    /// Applied: `Σ |η · optimizer_scale · route · gate| ‖G‖`, by exact norms.
    pub applied: f64,
    /// The same had nothing been routed or gated: `Σ |η · optimizer_scale| ‖G‖`.
    pub unrouted: f64,
    /// Raw: `Σ ‖G‖`, no step size either.
    pub raw: f64,
    /// Mean route weight of the events; NaN without one.
    pub route: f64,
    /// Events whose norm was not finite and is left out of the sums.
    pub not_finite: u64,
}

/// Gradient norms at the noise levels of one bin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LevelTrace {
    /// From here, up to but without `to`; none is open or, with both none, has no level.
    pub from: Option<f32>,
    /// See `from`.
    pub to: Option<f32>,
    /// Events in the bin.
    pub events: u64,
    /// Mean gradient norm over all blocks; none without a finite one.
    pub norm: Option<f64>,
}

impl Archive {
    /// What a sample or category did. Reads all events, one segment at a time.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when the run has no such sample or category;
    /// otherwise as reading a ledger.
    pub fn forward(&self, subject: &Subject) -> Result<Forward> {
        let ids = self.members(subject)?;
        let seen: HashSet<u64> = ids.iter().copied().collect();
        let mut answer = Forward {
            subject: subject.to_string(),
            samples: ids.iter().filter(|&&id| self.influence().sketch(id).is_some()).count(),
            events: 0,
            gated: 0,
            gate: 0.0,
            blocks: self.moved_and_pushed(&seen)?,
            levels: self.levels(&ids),
            regions: self.trained_regions(subject),
            citation: self.cite(None, Vec::new()),
        };
        let mut steps: Option<[u64; 2]> = None;
        for events in self.reader().events() {
            let events = events?;
            for row in (0..events.len()).filter(|&row| seen.contains(&events.sample[row])) {
                answer.count(&events, row);
                let step = events.step[row];
                steps = Some(steps.map_or([step; 2], |[first, last]| [first, last.max(step)]));
            }
        }
        let count = answer.events as f64;
        answer.gate /= count;
        answer.blocks.iter_mut().for_each(|block| block.route /= count);
        answer.citation = self.cite(steps, ids);
        Ok(answer)
    }

    fn moved_and_pushed(&self, seen: &HashSet<u64>) -> Result<Vec<ForwardBlock>> {
        let group = self.influence().groups(1, |id| seen.contains(&id).then_some(0))?;
        let blocks = self.blocks().into_iter().enumerate().map(|(b, block)| {
            let sum: Vec<f32> = group.sum(0, b).iter().map(|&value| value as f32).collect();
            ForwardBlock {
                block,
                moved: Estimate::norm(self.kind(), &sum, sum.len()),
                pushed: group.pushed(0, b),
                path: group.path(0, b),
                ..ForwardBlock::default()
            }
        });
        let mut blocks: Vec<_> = blocks.collect();
        let all: f64 = blocks.iter().map(|block| block.moved.value.powi(2)).sum();
        for block in &mut blocks {
            block.share = if all > 0.0 { block.moved.value.powi(2) / all } else { 0.0 };
        }
        Ok(blocks)
    }

    fn levels(&self, ids: &[u64]) -> Vec<LevelTrace> {
        let edges = &self.reader().info().noise_edges;
        let bins = self.influence().bins();
        let mut sums = vec![NormTrace::default(); bins];
        for norms in ids.iter().filter_map(|&id| self.influence().norms(id)) {
            for (sum, trace) in sums.iter_mut().zip(norms) {
                sum.events += trace.events;
                sum.measured += trace.measured;
                sum.sum += trace.sum;
            }
        }
        let traces = sums.into_iter().enumerate().map(|(bin, trace)| LevelTrace {
            from: bin.checked_sub(1).filter(|_| bin + 1 < bins).map(|at| edges[at]),
            to: edges.get(bin).copied(),
            events: u64::from(trace.events),
            norm: trace.mean(),
        });
        traces.collect()
    }

    fn trained_regions(&self, subject: &Subject) -> Vec<RegionRoute> {
        let Some(policy) = self.policy() else { return Vec::new() };
        match subject {
            Subject::Category(path) => self.regions(&policy, path.as_str()),
            Subject::Sample(id) => {
                self.sample(*id).map_or(Vec::new(), |it| self.regions(&policy, &it.category))
            }
        }
    }
}

impl Forward {
    fn count(&mut self, events: &Events, row: usize) {
        let factor = f64::from(events.step_size[row]) * f64::from(events.optimizer_scale[row]);
        let gate = f64::from(events.gate[row]);
        self.events += 1;
        self.gated += u64::from(gate != 1.0);
        self.gate += gate;
        let count = self.blocks.len();
        for (b, block) in self.blocks.iter_mut().enumerate() {
            let route = f64::from(events.route[row * count + b]);
            let norm = f64::from(events.sq_norm[row * count + b]).sqrt();
            block.route += route;
            if !norm.is_finite() {
                block.not_finite += 1;
                continue;
            }
            block.raw += norm;
            block.unrouted += factor.abs() * norm;
            block.applied += (factor * route * gate).abs() * norm;
        }
    }
}
