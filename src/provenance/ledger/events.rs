//! The events of a segment, column by column.

use crate::provenance::StepRecord;

/// One row per sample and step, in the order of the run; `E` rows, `B` blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// Optimizer step, `[E]`.
    pub step: Vec<u64>,
    /// Which of its step's records the row is of, `[E]`: with gradient accumulation a step has
    /// several, else all are 0. So are those of ledgers that do not say.
    pub batch: Vec<u32>,
    /// Sample id, `[E]`.
    pub sample: Vec<u64>,
    /// `[E]`; NaN where there is none.
    pub noise_level: Vec<f32>,
    /// `η`, `[E]`.
    pub step_size: Vec<f32>,
    /// What the optimizer multiplied the gradient by, beside `η`, `[E]`.
    pub optimizer_scale: Vec<f32>,
    /// `[E]`.
    pub gate: Vec<f32>,
    /// `[E, B]`.
    pub route: Vec<f32>,
    /// `[E, B]`.
    pub flow: Vec<f32>,
    /// Of the unrouted gradient, `[E, B]`.
    pub sq_norm: Vec<f32>,
}

impl Events {
    /// Number of rows, `E`.
    pub fn len(&self) -> usize {
        self.sample.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.sample.is_empty()
    }

    /// Adds one row per sample of the record.
    pub(super) fn push(&mut self, record: &StepRecord) {
        let rows = self.len() + record.samples.len();
        let same = self.step.last() == Some(&record.step);
        let batch = self.batch.last().filter(|_| same).map_or(0, |batch| batch + 1);
        self.batch.resize(rows, batch);
        self.step.resize(rows, record.step);
        self.step_size.resize(rows, record.step_size);
        self.optimizer_scale.resize(rows, record.optimizer_scale);
        self.sample.extend(&record.samples);
        self.noise_level.extend(&record.noise_levels);
        self.gate.extend(&record.gates);
        self.route.extend(&record.route);
        self.flow.extend(&record.flow);
        self.sq_norm.extend(&record.sq_norm);
    }
}
