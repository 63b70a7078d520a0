//! The guard of a run that a ledger records.

use std::collections::HashMap;
use std::ops::Range;

use super::{Guard, GuardConfig};
use crate::provenance::StepRecord;
use crate::provenance::ledger::{Events, RunInfo};
use crate::{Error, Result};

/// Key of [`RunInfo::metadata`] under which a run keeps its guard's configuration, as TOML.
pub const GUARD: &str = "guard";

impl GuardConfig {
    /// Says in a run's description that it is guarded, and how; the fingerprints are in
    /// [`RunInfo::fingerprints`].
    ///
    /// # Errors
    /// [`Error::Argument`] naming the field that does not hold.
    pub fn record_in(&self, info: &mut RunInfo) -> Result<()> {
        self.check()?;
        let text = toml::to_string(self).map_err(|error| Error::Refused {
            what: "this guard's configuration as TOML".into(),
            reason: error.to_string(),
        })?;
        info.metadata.insert(GUARD.into(), text);
        Ok(())
    }
}

impl Guard {
    /// The guard of a run before its first step: it knows the run's samples in their order, by
    /// category and, where the run has them, fingerprint, and the run's policy, where it has a
    /// layout to compile it for. None where the run is not guarded.
    ///
    /// # Errors
    /// [`Error::Argument`] when the description does not hold together; as [`RunInfo::compile`].
    pub fn of_run(info: &RunInfo) -> Result<Option<Self>> {
        let Some(text) = info.metadata.get(GUARD) else { return Ok(None) };
        let config = toml::from_str(text)
            .map_err(|error| Error::argument("metadata.guard", "a guard's configuration", error))?;
        let mut guard = Self::new(info.blocks.len(), config)?;
        if info.layout.is_some() {
            guard.govern(&info.compile()?)?;
        }
        let names = info.category_names().into_iter().zip(0..);
        let categories: HashMap<&str, u32> = names.collect();
        let width = info.fingerprint_len()?;
        for (n, sample) in info.samples.iter().enumerate() {
            let category = categories.get(sample.category.as_str()).copied();
            let fingerprint = &info.fingerprints[n * width..][..width];
            guard.enlist(sample.id, category, (width > 0).then_some(fingerprint))?;
        }
        Ok(Some(guard))
    }

    /// Rebuilds the state from a ledger's events, segment by segment: the same bits as
    /// [`Guard::observe`] left in the run, if the samples were enlisted as they were there, and
    /// the gates that were closed have their reasons again. (Ledgers whose events do not tell
    /// the batches of a step apart give the reasons only where a step had one.)
    ///
    /// # Errors
    /// As [`Guard::observe`].
    pub fn replay(&mut self, events: &Events) -> Result<()> {
        let mut first = 0;
        while first < events.len() {
            let batch = |row: usize| (events.step[row], events.batch[row]);
            let same = (first..events.len()).take_while(|&row| batch(row) == batch(first));
            let rows = first..first + same.count();
            first = rows.end;
            // For the reasons of those that were closed.
            self.gates(&events.sample[rows.clone()]);
            self.observe(&record(events, self.blocks, rows))?;
        }
        Ok(())
    }
}

/// Rows of one batch, without their sketches, which the guard does not use.
fn record(events: &Events, blocks: usize, rows: Range<usize>) -> StepRecord {
    let wide = rows.start * blocks..rows.end * blocks;
    StepRecord {
        step: events.step[rows.start],
        step_size: events.step_size[rows.start],
        optimizer_scale: events.optimizer_scale[rows.start],
        blocks,
        samples: events.sample[rows.clone()].to_vec(),
        noise_levels: events.noise_level[rows.clone()].to_vec(),
        gates: events.gate[rows].to_vec(),
        route: events.route[wide.clone()].to_vec(),
        flow: events.flow[wide.clone()].to_vec(),
        sq_norm: events.sq_norm[wide].to_vec(),
        sketch: Vec::new(),
    }
}
