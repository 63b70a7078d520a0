//! What an answer rests on.

use serde::{Deserialize, Serialize};

use super::{Archive, MODEL_PARAMETERS};
use crate::projection::SketchKind;
use crate::provenance::ledger::LedgerReader;

/// Enough to find again, and to check, what an answer was read from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// Hash of the ledger's last entry, by which all before it is fixed.
    pub ledger_head: String,
    /// Content hash of the policy in force.
    pub policy_hash: String,
    /// The projection.
    pub sketch: SketchKind,
    /// Its seed.
    pub seed: u32,
    /// First and last step that the answer rests on.
    pub steps: Option<[u64; 2]>,
    /// The segments that hold them.
    pub segments: Vec<SegmentCitation>,
    /// The samples that the answer names.
    pub samples: Vec<u64>,
    /// What of run and model was recorded.
    pub coverage: Coverage,
}

/// A segment by its digests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentCitation {
    /// Position in the manifest.
    pub index: u64,
    /// First and last step.
    pub steps: [u64; 2],
    /// Hash of the manifest's entry.
    pub entry: String,
    /// Digests of the tables: events, influence, norms.
    pub blake3: Vec<String>,
}

/// What was recorded, of what there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Samples that appear in a committed step.
    pub samples_seen: usize,
    /// Samples of the run.
    pub samples: usize,
    /// Parameters in recorded layers.
    pub parameters_recorded: u64,
    /// Parameters of the model; none where the trainer did not say, see [`MODEL_PARAMETERS`].
    pub parameters: Option<u64>,
}

impl Coverage {
    /// Share of the model's parameters that was recorded, where it is known.
    pub fn share(&self) -> Option<f64> {
        let all = self.parameters.filter(|&all| all > 0)?;
        Some(self.parameters_recorded as f64 / all as f64)
    }
}

impl Citation {
    /// Cites a whole run, and no sample in particular.
    pub(in crate::provenance) fn of_run(reader: &LedgerReader, samples_seen: usize) -> Self {
        let steps = reader.entries().iter().filter_map(|entry| entry.steps);
        let all = steps.reduce(|[first, _], [_, last]| [first, last]);
        Self::new(reader, samples_seen, all, Vec::new())
    }

    /// Cites the segments that overlap `steps`; none of them where there is no step.
    fn new(
        reader: &LedgerReader,
        samples_seen: usize,
        steps: Option<[u64; 2]>,
        samples: Vec<u64>,
    ) -> Self {
        let info = reader.info();
        let overlap =
            |[first, last]: [u64; 2]| steps.is_some_and(|[from, to]| first <= to && from <= last);
        let segments = reader.entries().iter().filter_map(|entry| {
            let steps = entry.steps.filter(|&steps| overlap(steps))?;
            let blake3 = entry.files.iter().map(|file| file.blake3.clone()).collect();
            let (index, entry) = (entry.index, entry.hash.clone());
            Some(SegmentCitation { index, steps, entry, blake3 })
        });
        let layers = info.blocks.iter().flat_map(|block| &block.layers);
        Self {
            ledger_head: reader.head().to_owned(),
            policy_hash: info.policy_hash.clone(),
            sketch: info.sketch,
            seed: info.seed,
            steps,
            segments: segments.collect(),
            samples,
            coverage: Coverage {
                samples_seen,
                samples: info.samples.len(),
                parameters_recorded: layers.map(|layer| layer.parameters).sum(),
                parameters: info.metadata.get(MODEL_PARAMETERS).and_then(|it| it.parse().ok()),
            },
        }
    }
}

impl Archive {
    /// Cites the segments that overlap `steps`; none of them where there is no step.
    pub(super) fn cite(&self, steps: Option<[u64; 2]>, samples: Vec<u64>) -> Citation {
        Citation::new(self.reader(), self.influence().len(), steps, samples)
    }

    /// Cites the whole run, and no sample in particular.
    pub fn citation(&self) -> Citation {
        self.cite_all(Vec::new())
    }

    /// Cites the whole run.
    pub(super) fn cite_all(&self, samples: Vec<u64>) -> Citation {
        Citation { samples, ..Citation::of_run(self.reader(), self.influence().len()) }
    }
}
