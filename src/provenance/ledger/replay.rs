//! Doing a run's computation again and comparing it with its records.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::events::Events;
use super::manifest::Entry;
use super::reader::LedgerReader;
use crate::error::expect_len;
use crate::provenance::{Accumulator, StepRecord};
use crate::{Error, Result};

/// One step of the ledger, as the trainer is to do it again: `N` samples in their order.
#[derive(Clone, Copy, Debug)]
pub struct ReplayBatch<'a> {
    /// Optimizer step.
    pub step: u64,
    /// `[N]`.
    pub samples: &'a [u64],
    /// `[N]`; NaN where there was none.
    pub noise_levels: &'a [f32],
    /// `[N]`.
    pub gates: &'a [f32],
    /// `η`.
    pub step_size: f32,
    /// What the optimizer multiplied the gradient by, beside `η`.
    pub optimizer_scale: f32,
}

/// How far a computation done again lies from the records.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Replay {
    /// Indices of the segments that were compared.
    pub segments: Vec<u64>,
    /// Steps done again.
    pub steps: u64,
    /// Events compared.
    pub events: u64,
    /// Squared norms, relative to the recorded one.
    pub sq_norm: Deviation,
    /// Route and flow weights and gates, absolute.
    pub weights: Deviation,
    /// What the segment added to `A_n`, `‖ΔA' - ΔA‖ / ‖ΔA‖` per sample and block.
    pub influence: Deviation,
}

/// Deviations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Deviation {
    /// Numbers compared.
    pub compared: u64,
    /// Those that are not equal bit for bit.
    pub unequal: u64,
    /// The largest deviation; infinite where one side is not finite and the other is.
    pub largest: f64,
    /// Where that is: step (or segment, for the influence), sample, block.
    pub at: Option<(u64, u64, usize)>,
}

impl Deviation {
    fn add(&mut self, deviation: f64, equal: bool, at: (u64, u64, usize)) {
        self.compared += 1;
        self.unequal += u64::from(!equal);
        // Of numbers that are none.
        let none = if equal { 0.0 } else { f64::INFINITY };
        let deviation = if deviation.is_nan() { none } else { deviation };
        if deviation > self.largest {
            (self.largest, self.at) = (deviation, Some(at));
        }
    }
}

impl Replay {
    /// Whether no deviation exceeds the tolerance: 0 for the same bits, some 1e-4 for another
    /// backend or order of summation.
    pub fn agrees(&self, tolerance: f64) -> bool {
        let kinds = [&self.sq_norm, &self.weights, &self.influence];
        kinds.iter().all(|it| it.largest <= tolerance && (tolerance > 0.0 || it.unequal == 0))
    }
}

/// Goes through the segments with these indices (1 is the first; those without steps are passed
/// over), has every step done again by `again`, and compares: samples, weights and norms with
/// the events, and the sum of the sketches with what the segment added to the influence.
///
/// The ledger says which samples, noise levels, gates and step sizes a step had. Model and
/// optimizer as they were before the first of the segments, the data, and what else is random
/// are the trainer's: start from a checkpoint that was kept, or from the first step.
///
/// # Errors
/// What `again` returns; [`Error::Argument`] when a record is of other samples or not valid;
/// otherwise as reading a ledger.
pub fn replay(
    reader: &LedgerReader,
    segments: RangeInclusive<u64>,
    mut again: impl FnMut(ReplayBatch) -> Result<StepRecord>,
) -> Result<Replay> {
    let mut outcome = Replay::default();
    for entry in reader.segments().filter(|entry| segments.contains(&entry.index)) {
        let events = reader.events_of(entry)?;
        let mut delta = reader.info().accumulator()?;
        let mut from = 0;
        while from < events.len() {
            let to = from
                + events.step[from..].iter().take_while(|it| **it == events.step[from]).count();
            let record = again(batch(&events, from, to))?;
            outcome.compare(&events, from, to, &record, delta.blocks())?;
            delta.add(&record)?;
            (from, outcome.steps) = (to, outcome.steps + 1);
        }
        outcome.compare_influence(entry, &reader.delta(entry)?, &delta);
        outcome.segments.push(entry.index);
    }
    Ok(outcome)
}

fn batch(events: &Events, from: usize, to: usize) -> ReplayBatch<'_> {
    ReplayBatch {
        step: events.step[from],
        samples: &events.sample[from..to],
        noise_levels: &events.noise_level[from..to],
        gates: &events.gate[from..to],
        step_size: events.step_size[from],
        optimizer_scale: events.optimizer_scale[from],
    }
}

impl Replay {
    fn compare(
        &mut self,
        events: &Events,
        from: usize,
        to: usize,
        record: &StepRecord,
        blocks: usize,
    ) -> Result<()> {
        let step = events.step[from];
        if record.samples != events.sample[from..to] {
            let expected = format!("the samples of step {step}, in their order");
            return Err(Error::argument("samples", expected, format!("{:?}", record.samples)));
        }
        for (name, given) in
            [("route", &record.route), ("flow", &record.flow), ("sq_norm", &record.sq_norm)]
        {
            expect_len(name, (to - from) * blocks, given.len())?;
        }
        expect_len("gates", to - from, record.gates.len())?;
        self.events += (to - from) as u64;
        for (n, row) in (from..to).enumerate() {
            let sample = events.sample[row];
            let weight = |it: &mut Self, given: f32, recorded: f32, block| {
                let distance = f64::from((given - recorded).abs());
                it.weights.add(distance, same(given, recorded), (step, sample, block));
            };
            weight(self, record.gates[n], events.gate[row], 0);
            for b in 0..blocks {
                let (new, old) = (n * blocks + b, row * blocks + b);
                weight(self, record.route[new], events.route[old], b);
                weight(self, record.flow[new], events.flow[old], b);
                let (given, recorded) = (record.sq_norm[new], events.sq_norm[old]);
                self.sq_norm.add(
                    relative(given, recorded),
                    same(given, recorded),
                    (step, sample, b),
                );
            }
        }
        Ok(())
    }

    fn compare_influence(&mut self, entry: &Entry, recorded: &Accumulator, given: &Accumulator) {
        let len = recorded.sketch_len();
        let ids: BTreeSet<u64> = recorded.ids().iter().chain(given.ids()).copied().collect();
        for id in ids {
            let (Some(old), Some(new)) = (recorded.sketch(id), given.sketch(id)) else {
                // Left out of the table, or invented.
                for b in 0..recorded.blocks() {
                    self.influence.add(f64::INFINITY, false, (entry.index, id, b));
                }
                continue;
            };
            for (b, (old, new)) in old.chunks_exact(len).zip(new.chunks_exact(len)).enumerate() {
                let square = |it: f32| f64::from(it) * f64::from(it);
                let apart: f64 = old.iter().zip(new).map(|(old, new)| square(new - old)).sum();
                let whole: f64 = old.iter().map(|&old| square(old)).sum();
                let deviation = if apart == 0.0 { 0.0 } else { (apart / whole).sqrt() };
                let equal = old.iter().zip(new).all(|(&old, &new)| same(new, old));
                self.influence.add(deviation, equal, (entry.index, id, b));
            }
        }
    }
}

/// Whether both are the same number, or both none.
fn same(given: f32, recorded: f32) -> bool {
    given == recorded || (given.is_nan() && recorded.is_nan())
}

fn relative(given: f32, recorded: f32) -> f64 {
    if same(given, recorded) {
        return 0.0;
    }
    let apart = (f64::from(given) - f64::from(recorded)).abs() / f64::from(recorded).abs();
    if apart.is_nan() { f64::INFINITY } else { apart }
}
