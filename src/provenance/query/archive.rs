//! A ledger opened for questions.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::projection::SketchKind;
use crate::provenance::ledger::{LedgerReader, SampleInfo};
use crate::provenance::{Accumulator, Query};
use crate::routing::CategoryPath;
use crate::{Error, Result};

/// Key of [`RunInfo::metadata`](crate::provenance::ledger::RunInfo::metadata) under which a
/// trainer leaves the model's number of parameters, so that answers can say which share of it
/// was recorded.
pub const MODEL_PARAMETERS: &str = "model_parameters";

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One sample, by its id.
    Sample(u64),
    /// All samples of a category or of the subtree under it; of a sample with several labels,
    /// one of them is enough.
    Category(CategoryPath),
}

/// A ledger and the accumulated influence of its samples, `samples · B · (4 K + 32)` bytes in
/// memory.
#[derive(Debug)]
pub struct Archive {
    reader: LedgerReader,
    influence: Accumulator,
    /// Where a sample stands in the run's list.
    index: HashMap<u64, usize>,
}

/// Samples by category.
pub(super) struct Grouping {
    pub names: Vec<String>,
    pub of: HashMap<u64, usize>,
}

impl Archive {
    /// Opens a ledger and adds its segments up. Does not verify it: see
    /// [`LedgerReader::verify`].
    ///
    /// # Errors
    /// As [`LedgerReader::open`] and [`LedgerReader::accumulator`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::new(LedgerReader::open(dir)?)
    }

    /// [`Archive::open`] of a ledger that is open.
    ///
    /// # Errors
    /// As [`LedgerReader::accumulator`].
    pub fn new(reader: LedgerReader) -> Result<Self> {
        let influence = reader.accumulator()?;
        let samples = reader.info().samples.iter().enumerate();
        let index = samples.map(|(at, sample)| (sample.id, at)).collect();
        Ok(Self { reader, influence, index })
    }

    /// The ledger.
    pub fn reader(&self) -> &LedgerReader {
        &self.reader
    }

    /// Accumulated influence.
    pub fn influence(&self) -> &Accumulator {
        &self.influence
    }

    /// What the run says of a sample.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is none of the run's.
    pub fn sample(&self, id: u64) -> Result<&SampleInfo> {
        match self.index.get(&id) {
            Some(&at) => Ok(&self.reader.info().samples[at]),
            None => Err(Error::argument("sample", "the id of a sample of the run", id)),
        }
    }

    /// Names of the blocks, from input to output.
    pub fn blocks(&self) -> Vec<String> {
        self.reader.info().blocks.iter().map(|block| block.name.clone()).collect()
    }

    /// The categories of the run's samples, sorted; cut to their first `level` names, if given.
    pub fn categories(&self, level: Option<usize>) -> Vec<String> {
        self.grouping(level).names
    }

    /// What a sample did to the model, as a query: its near relatives rank first. A stand-in
    /// where no model is at hand that the gradient of an output could be taken of.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sample was never seen.
    pub fn query_like(&self, sample: u64) -> Result<Query> {
        let Some(sketch) = self.influence.sketch(sample) else {
            return Err(Error::argument("sample", "one that was trained on", sample));
        };
        Query::single(self.influence.blocks(), self.influence.sketch_len(), sketch)
    }

    pub(super) fn kind(&self) -> SketchKind {
        self.reader.info().sketch
    }

    /// Index of a block.
    pub(super) fn block(&self, name: &str) -> Result<usize> {
        let blocks = &self.reader.info().blocks;
        blocks.iter().position(|block| block.name == name).ok_or_else(|| {
            Error::argument("block", format!("one of {}", self.blocks().join(", ")), name)
        })
    }

    /// Samples by category, cut to its first `level` names.
    pub(super) fn grouping(&self, level: Option<usize>) -> Grouping {
        let samples = &self.reader.info().samples;
        let cut: Vec<String> = samples.iter().map(|it| shorten(&it.category, level)).collect();
        let names: BTreeSet<&String> = cut.iter().collect();
        let at: HashMap<&String, usize> =
            names.iter().enumerate().map(|(n, &it)| (it, n)).collect();
        let of = samples.iter().zip(&cut).map(|(sample, name)| (sample.id, at[name])).collect();
        Grouping { names: names.into_iter().cloned().collect(), of }
    }

    /// The samples a question is about, in the run's order.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none.
    pub fn members(&self, subject: &Subject) -> Result<Vec<u64>> {
        match subject {
            Subject::Sample(id) => self.sample(*id).map(|sample| vec![sample.id]),
            Subject::Category(root) => {
                let samples = self.reader.info().samples.iter();
                let within = |it: &&SampleInfo| labels(&it.category).any(|it| it.within(root));
                let ids: Vec<u64> = samples.filter(within).map(|sample| sample.id).collect();
                if ids.is_empty() {
                    let known = self.categories(None);
                    let few = known.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
                    let more = if known.len() > 8 { ", …" } else { "" };
                    let expected = format!("a category with samples: {few}{more}");
                    return Err(Error::argument("category", expected, root));
                }
                Ok(ids)
            }
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Sample(id) => write!(f, "sample {id}"),
            Self::Category(path) => write!(f, "{path}"),
        }
    }
}

/// The labels of a category's name, see [`Categories::name`](crate::routing::Categories::name);
/// what is no path is left out.
pub(super) fn labels(category: &str) -> impl Iterator<Item = CategoryPath> + '_ {
    category.split(" + ").filter_map(|label| label.parse().ok())
}

/// A category's labels cut to their first names.
fn shorten(category: &str, level: Option<usize>) -> String {
    let Some(level) = level else { return category.to_owned() };
    let cut = |label: &str| label.split('/').take(level.max(1)).collect::<Vec<_>>().join("/");
    let labels: BTreeSet<String> = category.split(" + ").map(cut).collect();
    labels.into_iter().collect::<Vec<_>>().join(" + ")
}
