//! The chain of committed files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{bad, io, sync_dir, write_bytes};
use crate::Result;

/// Name of the manifest in the ledger's directory.
pub(super) const MANIFEST: &str = "manifest.json";
/// Where checkpoints stand.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Where segments stand.
pub(super) const SEGMENTS: &str = "segments";
/// What is written once, at the start.
pub(super) const RUN_FILES: [&str; 3] = ["run.json", "policy.toml", "samples.parquet"];
/// A segment's tables.
pub(super) const TABLES: [&str; 3] = ["events", "influence", "norms"];

const FORMAT: &str = "gradroute-ledger";
const VERSION: u32 = 2;
/// What the first entry names as the one before it.
pub(super) const NONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Everything committed so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: String,
    version: u32,
    pub(super) entries: Vec<Entry>,
}

/// One commit. The first, index 0, holds what describes the run; every other a segment, a
/// checkpoint or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Position in the chain.
    pub index: u64,
    /// First and last step of the segment; none where there is no segment.
    pub steps: Option<[u64; 2]>,
    /// The segment's tables.
    pub files: Vec<FileEntry>,
    /// The checkpoint that was saved with it; deleted once a later one is committed.
    pub checkpoint: Vec<FileEntry>,
    /// Hash of the entry before.
    pub previous: String,
    /// Hash of this entry.
    pub hash: String,
}

/// A committed file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path below the ledger's directory, with `/`.
    pub name: String,
    /// Rows of a table; none for other files.
    pub rows: Option<u64>,
    /// Size.
    pub bytes: u64,
    /// Digest, in hexadecimal digits.
    pub blake3: String,
}

impl Entry {
    fn computed_hash(&self) -> String {
        let content = Self { hash: String::new(), ..self.clone() };
        let json = serde_json::to_vec(&content).expect("numbers and strings are valid JSON");
        blake3::hash(&json).to_hex().to_string()
    }

    /// The problem with an entry that should follow `previous` at `index`, if any.
    fn problem(&self, index: usize, previous: &str, after: Option<u64>) -> Option<&'static str> {
        if self.index != index as u64 {
            return Some("is out of order or missing");
        }
        if self.previous != previous {
            return Some("does not continue the chain");
        }
        match self.steps {
            Some([first, _]) if after.is_some_and(|after| first <= after) => {
                Some("has steps out of order")
            }
            _ => self.own_problem(),
        }
    }

    /// The problem with an entry by itself, if any.
    pub(super) fn own_problem(&self) -> Option<&'static str> {
        if self.hash != self.computed_hash() {
            return Some("was altered: its hash is another");
        }
        let expected = match (self.index, self.steps) {
            (0, None) => RUN_FILES.map(str::to_owned).to_vec(),
            (0, Some(_)) => return Some("has steps, but describes the run"),
            (_, Some(_)) => TABLES.map(|table| table_name(self.index, table)).to_vec(),
            (_, None) => Vec::new(),
        };
        if !self.files.iter().map(|file| &file.name).eq(&expected) {
            return Some("names other files than its own");
        }
        let folder = format!("{}/", checkpoint_dir(self.index));
        let own = |file: &FileEntry| file.name.strip_prefix(&folder).is_some_and(is_plain);
        if !self.checkpoint.iter().all(own) {
            return Some("names other checkpoint files than its own");
        }
        match self.steps {
            Some([first, last]) if first > last => Some("has steps out of order"),
            _ => None,
        }
    }
}

/// Whether a name is that of a file in its directory and nowhere else.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\'])
}

/// Path of a segment's table.
pub(super) fn table_name(index: u64, table: &str) -> String {
    format!("{SEGMENTS}/{index:06}.{table}.parquet")
}

/// Path of a commit's checkpoint files.
pub(super) fn checkpoint_dir(index: u64) -> String {
    format!("{CHECKPOINTS}/{index:06}")
}

impl Manifest {
    pub(super) fn new() -> Self {
        Self { format: FORMAT.to_owned(), version: VERSION, entries: Vec::new() }
    }

    /// Reads the manifest and checks its chain; not the files it names.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(bad(dir, "there is no run here: no manifest.json"));
            }
            other => other.map_err(io(&path))?,
        };
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| bad(&path, error))?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    fn check(&self, path: &Path) -> Result<()> {
        if let Some(problem) = self.unknown() {
            return Err(bad(path, problem));
        }
        if self.entries.is_empty() {
            return Err(bad(path, "there is no entry"));
        }
        let (mut previous, mut after) = (NONE, None);
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(problem) = entry.problem(index, previous, after) {
                return Err(bad(path, format!("entry {index} {problem}")));
            }
            previous = &entry.hash;
            after = entry.steps.map(|[_, last]| last).or(after);
        }
        Ok(())
    }

    /// The problem with the format, if it is not this version's.
    pub(super) fn unknown(&self) -> Option<String> {
        let known = self.format == FORMAT && self.version == VERSION;
        (!known).then(|| format!("{} version {} is not known", self.format, self.version))
    }

    /// The file's content.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("numbers and strings are valid JSON")
    }

    /// The chain with one more entry.
    pub(super) fn with(
        &self,
        steps: Option<[u64; 2]>,
        files: Vec<FileEntry>,
        checkpoint: Vec<FileEntry>,
    ) -> Self {
        let (index, previous) = (self.next_index(), self.head().to_owned());
        let mut entry = Entry { index, steps, files, checkpoint, previous, hash: String::new() };
        entry.hash = entry.computed_hash();
        let mut next = self.clone();
        next.entries.push(entry);
        next
    }

    /// Replaces the manifest on disk: the commit.
    pub(super) fn publish(&self, dir: &Path) -> Result<()> {
        write_bytes(&dir.join(MANIFEST), &self.to_bytes())?;
        sync_dir(dir)
    }

    pub(super) fn next_index(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Hash of the last entry.
    pub(super) fn head(&self) -> &str {
        self.entries.last().map_or(NONE, |entry| &entry.hash)
    }

    /// One past the last committed step.
    pub(super) fn next_step(&self) -> u64 {
        let last = self.entries.iter().rev().find_map(|entry| entry.steps);
        last.map_or(0, |[_, last]| last.saturating_add(1))
    }

    /// The last entry that carries a checkpoint.
    pub(super) fn checkpoint(&self) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| !entry.checkpoint.is_empty())
    }
}
