//! Writing a ledger.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::events::Events;
use super::files::{bad, digest, io, is_open, names, remove, sync_dir, write_bytes};
use super::info::RunInfo;
use super::lock::{LOCK, Lock};
use super::manifest::{
    CHECKPOINTS, FileEntry, MANIFEST, Manifest, RUN_FILES, SEGMENTS, TABLES, checkpoint_dir,
    is_plain, table_name,
};
use super::reader::LedgerReader;
use super::segment::{write_events, write_influence, write_norms, write_samples};
use crate::provenance::{Accumulator, StepRecord};
use crate::{Error, Result};

/// Where the open segment's checkpoint is put together.
const OPEN_CHECKPOINT: &str = "open.tmp";

/// The one writer of a ledger. Dropping it loses what was not committed.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    _lock: Lock,
    info: RunInfo,
    known: HashSet<u64>,
    manifest: Manifest,
    total: Accumulator,
    /// The open segment.
    delta: Accumulator,
    events: Events,
    /// A commit failed at a point where it cannot be told whether it came to be.
    in_doubt: bool,
}

impl Ledger {
    /// Begins a run in a directory that does not exist, is empty, or holds what is left of a
    /// creation that was interrupted.
    ///
    /// # Errors
    /// [`Error::Argument`] when `info` does not hold together, [`Error::Ledger`] when the
    /// directory holds a run or something else, or another writer; [`Error::Io`].
    pub fn create(dir: impl AsRef<Path>, info: RunInfo) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        let (total, known) = (info.accumulator()?, info.ids()?);
        info.fingerprint_len()?;
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let present = names(&dir)?;
        if !present.is_empty() && !present.iter().any(|name| name == LOCK) {
            return Err(bad(&dir, "a new ledger needs an empty directory"));
        }
        let lock = Lock::take(&dir)?;
        if dir.join(MANIFEST).exists() {
            return Err(bad(&dir, "there is a run here already: resume it"));
        }
        sweep(&dir, &Manifest::new())?;
        for folder in [SEGMENTS, CHECKPOINTS].map(|name| dir.join(name)) {
            fs::create_dir_all(&folder).map_err(io(&folder))?;
        }
        let manifest = Manifest::new().with(None, write_run(&dir, &info)?, Vec::new());
        sync_dir(&dir)?;
        manifest.publish(&dir)?;
        let (delta, events) = (total.like(), Events::default());
        let in_doubt = false;
        Ok(Self { dir, _lock: lock, info, known, manifest, total, delta, events, in_doubt })
    }

    /// Continues a run after its last commit: verifies it, removes what an interrupted commit
    /// left, and rebuilds the accumulated influence. Continue at [`Ledger::next_step`], with the
    /// model of [`Ledger::checkpoint`].
    ///
    /// # Errors
    /// [`Error::Ledger`] when there is no run, another writer, or a file that is missing or was
    /// altered; [`Error::Io`]. Nothing is removed in that case.
    pub fn resume(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        if !dir.join(MANIFEST).exists() {
            return Err(bad(&dir, "there is no run here to resume"));
        }
        let lock = Lock::take(&dir)?;
        let reader = LedgerReader::open(&dir)?;
        reader.verify()?;
        let total = reader.accumulator()?;
        let (manifest, info) = reader.into_parts();
        sweep(&dir, &manifest)?;
        let (known, delta, events) = (info.ids()?, total.like(), Events::default());
        let in_doubt = false;
        Ok(Self { dir, _lock: lock, info, known, manifest, total, delta, events, in_doubt })
    }

    /// Samples, blocks, policy and projection.
    pub fn info(&self) -> &RunInfo {
        &self.info
    }

    /// The first step that is not committed.
    pub fn next_step(&self) -> u64 {
        self.manifest.next_step()
    }

    /// Directory of the last committed checkpoint, if any.
    pub fn checkpoint(&self) -> Option<PathBuf> {
        self.manifest.checkpoint().map(|entry| self.dir.join(checkpoint_dir(entry.index)))
    }

    /// Hash of the last commit, see [`LedgerReader::head`].
    pub fn head(&self) -> &str {
        self.manifest.head()
    }

    /// Accumulated influence up to the last commit.
    pub fn accumulator(&self) -> &Accumulator {
        &self.total
    }

    /// Adds a step to the open segment, in memory. Several records may belong to one step, all
    /// in one segment.
    ///
    /// # Errors
    /// [`Error::Argument`] when a step goes backwards, a sample is none of the run's, or the
    /// record is not valid (see [`StepRecord::check`]); nothing was added then.
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        let earliest = self.events.step.last().copied().unwrap_or(self.next_step());
        if record.step < earliest {
            return Err(Error::argument("step", format!("at least {earliest}"), record.step));
        }
        if record.step == u64::MAX {
            return Err(Error::argument("step", "one that another can follow", record.step));
        }
        if let Some(n) = record.samples.iter().position(|id| !self.known.contains(id)) {
            let place = format!("samples[{n}]");
            return Err(Error::argument(place, "a sample of the run", record.samples[n]));
        }
        self.delta.add(record)?;
        self.events.push(record);
        Ok(())
    }

    /// An empty directory for the model, the optimizer's state and the like: the files found in
    /// it are committed together with the open segment. Once a run has a checkpoint, every
    /// commit needs one, so that records and model never part.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn checkpoint_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join(CHECKPOINTS).join(OPEN_CHECKPOINT);
        remove(&dir)?;
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        Ok(dir)
    }

    /// Writes the open segment and its checkpoint durably, then deletes the checkpoint before.
    /// Does nothing when there is neither.
    ///
    /// A segment takes about `4 · B · K` bytes for every sample that it touched, however often,
    /// and a line per event: a segment per epoch or so keeps a ledger small.
    ///
    /// # Errors
    /// [`Error::Ledger`] when a checkpoint is lacking or is not made of plain files;
    /// [`Error::Io`] when the system refuses a write. The segment stays open and may be
    /// committed again, unless the error says that the run must be resumed.
    pub fn commit(&mut self) -> Result<()> {
        if self.in_doubt {
            return Err(bad(&self.dir, "a commit failed half-way: resume the run"));
        }
        let checkpoint = self.open_checkpoint()?;
        if self.events.is_empty() && checkpoint.is_empty() {
            return Ok(());
        }
        if checkpoint.is_empty() && self.manifest.checkpoint().is_some() {
            return Err(bad(&self.dir, "the run has checkpoints: this commit needs one as well"));
        }
        let index = self.manifest.next_index();
        let (steps, files) = self.write_segment(index)?;
        self.in_doubt = true;
        let checkpoint = self.place_checkpoint(index, &checkpoint)?;
        let next = self.manifest.with(steps, files, checkpoint);
        next.publish(&self.dir)?;
        self.in_doubt = false;
        self.manifest = next;
        self.total.merge(&self.delta)?;
        self.delta.clear();
        self.events = Events::default();
        // The commit stands; what could not be removed now will be at the next one.
        let _ = sweep(&self.dir, &self.manifest);
        Ok(())
    }

    /// Names of the files in the open checkpoint.
    fn open_checkpoint(&self) -> Result<Vec<String>> {
        let dir = self.dir.join(CHECKPOINTS).join(OPEN_CHECKPOINT);
        let names = names(&dir)?;
        match names.iter().find(|name| !is_plain(name) || !dir.join(name).is_file()) {
            Some(name) => Err(bad(&dir.join(name), "a checkpoint is made of plain files")),
            None => Ok(names),
        }
    }

    fn write_segment(&self, index: u64) -> Result<(Option<[u64; 2]>, Vec<FileEntry>)> {
        let (Some(&first), Some(&last)) = (self.events.step.first(), self.events.step.last())
        else {
            return Ok((None, Vec::new()));
        };
        let names = TABLES.map(|table| table_name(index, table));
        let [events, influence, norms] = names.each_ref().map(|name| self.dir.join(name));
        let rows = [
            write_events(&events, &self.events, self.info.blocks.len())?,
            write_influence(&influence, &self.delta)?,
            write_norms(&norms, &self.delta)?,
        ];
        sync_dir(&self.dir.join(SEGMENTS))?;
        let files = names.into_iter().zip(rows);
        let files = files.map(|(name, rows)| describe(&self.dir, name, Some(rows)));
        Ok((Some([first, last]), files.collect::<Result<_>>()?))
    }

    /// Flushes the open checkpoint to disk and gives it its own name.
    fn place_checkpoint(&self, index: u64, names: &[String]) -> Result<Vec<FileEntry>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let folder = checkpoint_dir(index);
        let (open, placed) =
            (self.dir.join(CHECKPOINTS).join(OPEN_CHECKPOINT), self.dir.join(&folder));
        for path in names.iter().map(|name| open.join(name)) {
            let file = File::options().write(true).open(&path);
            file.and_then(|file| file.sync_all()).map_err(io(&path))?;
        }
        sync_dir(&open)?;
        remove(&placed)?;
        fs::rename(&open, &placed).map_err(io(&placed))?;
        sync_dir(&self.dir.join(CHECKPOINTS))?;
        names.iter().map(|name| describe(&self.dir, format!("{folder}/{name}"), None)).collect()
    }
}

/// Writes what describes the run.
fn write_run(dir: &Path, info: &RunInfo) -> Result<Vec<FileEntry>> {
    let [run, policy, samples] = RUN_FILES.map(|name| dir.join(name));
    let json = serde_json::to_vec_pretty(info).map_err(|error| bad(&run, error))?;
    write_bytes(&run, &json)?;
    write_bytes(&policy, info.policy.as_bytes())?;
    let rows = write_samples(&samples, info)?;
    let rows = [None, None, Some(rows)];
    RUN_FILES.iter().zip(rows).map(|(name, rows)| describe(dir, name.to_string(), rows)).collect()
}

/// The manifest's line for a file that is on disk.
fn describe(dir: &Path, name: String, rows: Option<u64>) -> Result<FileEntry> {
    let (bytes, blake3) = digest(&dir.join(&name))?;
    Ok(FileEntry { name, rows, bytes, blake3 })
}

/// Removes what no commit refers to: files still being written, segments that were not
/// committed, all checkpoints but the last. Names of another form are none of ours and stay.
fn sweep(dir: &Path, manifest: &Manifest) -> Result<()> {
    for name in names(dir)?.into_iter().filter(|name| is_open(name)) {
        remove(&dir.join(name))?;
    }
    let next = manifest.next_index();
    let uncommitted = |name: &str| {
        let index = name.split('.').next().and_then(|index| index.parse::<u64>().ok());
        is_open(name) || (name.ends_with(".parquet") && index.is_some_and(|index| index >= next))
    };
    for name in names(&dir.join(SEGMENTS))?.into_iter().filter(|name| uncommitted(name)) {
        remove(&dir.join(SEGMENTS).join(name))?;
    }
    let last = manifest.checkpoint().map(|entry| entry.index);
    let superseded =
        |name: &str| is_open(name) || name.parse::<u64>().is_ok_and(|index| Some(index) != last);
    for name in names(&dir.join(CHECKPOINTS))?.into_iter().filter(|name| superseded(name)) {
        remove(&dir.join(CHECKPOINTS).join(name))?;
    }
    Ok(())
}
