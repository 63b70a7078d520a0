//! Reading a ledger, while it is written or after.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::audit::check_file;
use super::events::Events;
use super::files::{bad, io};
use super::info::RunInfo;
use super::manifest::{Entry, FileEntry, Manifest, RUN_FILES, checkpoint_dir};
use super::segment::{merge_segment, read_events, read_samples, stream_sketches};
use crate::provenance::Accumulator;
use crate::{Error, Result};

/// What was committed when it was opened; a writer may go on meanwhile.
#[derive(Debug)]
pub struct LedgerReader {
    dir: PathBuf,
    manifest: Manifest,
    info: RunInfo,
}

impl LedgerReader {
    /// Opens a ledger and checks the chain of its manifest and the files that describe the run;
    /// [`LedgerReader::verify`] checks the others.
    ///
    /// # Errors
    /// [`Error::Ledger`](crate::Error::Ledger) or [`Error::Io`](crate::Error::Io) naming the file that is missing or not as it should be.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let manifest = Manifest::read(&dir)?;
        for file in manifest.entries.iter().take(1).flat_map(|entry| &entry.files) {
            verify_file(&dir, file)?;
        }
        let [run, policy, samples] = RUN_FILES.map(|name| dir.join(name));
        let text = std::fs::read(&run).map_err(io(&run))?;
        let mut info: RunInfo = serde_json::from_slice(&text).map_err(|error| bad(&run, error))?;
        info.policy = std::fs::read_to_string(&policy).map_err(io(&policy))?;
        (info.samples, info.fingerprints) = read_samples(&samples)?;
        info.accumulator().map_err(|error| bad(&run, error))?;
        info.ids().map_err(|error| bad(&samples, error))?;
        Ok(Self { dir, manifest, info })
    }

    /// Samples, blocks, policy and projection.
    pub fn info(&self) -> &RunInfo {
        &self.info
    }

    /// The commits, oldest first; the first describes the run.
    pub fn entries(&self) -> &[Entry] {
        &self.manifest.entries
    }

    /// Hash of the last entry: who keeps it elsewhere can hold the ledger to it.
    pub fn head(&self) -> &str {
        self.manifest.head()
    }

    /// One past the last committed step.
    pub fn next_step(&self) -> u64 {
        self.manifest.next_step()
    }

    /// Directory of the last checkpoint, if any was committed.
    pub fn checkpoint(&self) -> Option<PathBuf> {
        self.manifest.checkpoint().map(|entry| self.dir.join(checkpoint_dir(entry.index)))
    }

    /// The events, segment by segment.
    ///
    /// # Errors
    /// Each item is an [`Error::Ledger`](crate::Error::Ledger) or [`Error::Io`](crate::Error::Io) where the file cannot be read.
    pub fn events(&self) -> impl Iterator<Item = Result<Events>> + '_ {
        self.segments().map(|entry| self.events_of(entry))
    }

    /// `A_n` of every sample and block, rebuilt; the same bits as the writer's own.
    ///
    /// # Errors
    /// [`Error::Ledger`](crate::Error::Ledger) or [`Error::Io`](crate::Error::Io) naming the file that cannot be read.
    pub fn accumulator(&self) -> Result<Accumulator> {
        let mut total = self.info.accumulator()?;
        self.segments().try_for_each(|entry| self.add_segment(entry, &mut total))?;
        Ok(total)
    }

    /// `A_n` of `count` phases of as many steps each, up to whole segments: a segment belongs to the phase
    /// that its last step lies in. Their sum is [`LedgerReader::accumulator`] but for rounding. For
    /// [`Accumulator::side_by_side`].
    ///
    /// # Errors
    /// [`Error::Argument`] when `count` is 0, or so large that no segment ends in one of the phases;
    /// otherwise as [`LedgerReader::accumulator`].
    pub fn phases(&self, count: usize) -> Result<Vec<Accumulator>> {
        let next = u128::from(self.next_step());
        let phase = |entry: &Entry| {
            let last = entry.steps.map_or(0, |[_, last]| last);
            let phase = (u128::from(last) * count as u128 / next.max(1)) as usize;
            phase.min(count.saturating_sub(1))
        };
        let ended: HashSet<usize> = self.segments().map(phase).collect();
        if count == 0 || ended.len() < count {
            let segments = self.segments().count();
            let expected = format!(
                "phases that each hold the end of one of the {segments} segments, which {count} \
                 phases of {next} steps do not"
            );
            return Err(Error::argument("count", expected, count));
        }
        let mut phases = vec![self.info.accumulator()?; count];
        for entry in self.segments() {
            self.add_segment(entry, &mut phases[phase(entry)])?;
        }
        Ok(phases)
    }

    /// [`LedgerReader::verify`] of what answers rest on: the run's files and the segments', not
    /// its checkpoints. `progress` is told files done and in all.
    ///
    /// # Errors
    /// As [`LedgerReader::verify`].
    pub fn verify_records(&self, mut progress: impl FnMut(usize, usize)) -> Result<()> {
        let files: Vec<_> = self.manifest.entries.iter().flat_map(|entry| &entry.files).collect();
        for (done, file) in files.iter().enumerate() {
            progress(done, files.len());
            verify_file(&self.dir, file)?;
        }
        progress(files.len(), files.len());
        Ok(())
    }

    /// Reads every file and compares size and digest with the manifest. Checkpoints that were
    /// superseded need not be there.
    ///
    /// # Errors
    /// [`Error::Ledger`](crate::Error::Ledger) naming the first file that is missing or was altered; [`audit`](super::audit())
    /// names all.
    pub fn verify(&self) -> Result<()> {
        self.verify_records(|_, _| ())?;
        let Some(entry) = self.manifest.checkpoint() else { return Ok(()) };
        for file in &entry.checkpoint {
            match verify_file(&self.dir, file) {
                // A writer may have superseded it just now.
                Err(error) if !self.dir.join(&file.name).exists() => {
                    let now = Manifest::read(&self.dir)?;
                    if now.checkpoint().is_none_or(|it| it.index <= entry.index) {
                        return Err(error);
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// What one segment adds to `A`, some rows at a time: samples, blocks, sketches `[rows, K]`.
    pub(in crate::provenance) fn sketches(
        &self,
        segment: usize,
        each: impl FnMut(&[u64], &[u32], &[f32]) -> Result<()>,
    ) -> Result<()> {
        let shape = [self.info.blocks.len(), self.info.sketch_len()?];
        let entry = self.segments().nth(segment);
        let Some([_, influence, _]) = entry.map(|entry| &entry.files[..]) else { return Ok(()) };
        stream_sketches(&self.dir.join(&influence.name), shape, each)
    }

    /// What one segment adds to the accumulated influence.
    pub(super) fn delta(&self, entry: &Entry) -> Result<Accumulator> {
        let mut delta = self.info.accumulator()?;
        self.add_segment(entry, &mut delta)?;
        Ok(delta)
    }

    fn add_segment(&self, entry: &Entry, to: &mut Accumulator) -> Result<()> {
        let [_, influence, norms] = &entry.files[..] else { return Ok(()) };
        merge_segment(to, &self.dir.join(&influence.name), &self.dir.join(&norms.name))
    }

    /// The events of one segment.
    pub(super) fn events_of(&self, entry: &Entry) -> Result<Events> {
        read_events(&self.dir.join(&entry.files[0].name), self.info.blocks.len())
    }

    /// Directory of the ledger.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entries that hold a segment.
    pub(super) fn segments(&self) -> impl Iterator<Item = &Entry> {
        self.manifest.entries.iter().filter(|entry| entry.steps.is_some())
    }

    pub(super) fn into_parts(self) -> (Manifest, RunInfo) {
        (self.manifest, self.info)
    }
}

fn verify_file(dir: &Path, file: &FileEntry) -> Result<()> {
    match check_file(dir, file)? {
        Some(wrong) => Err(bad(&dir.join(&file.name), wrong.detail)),
        None => Ok(()),
    }
}
