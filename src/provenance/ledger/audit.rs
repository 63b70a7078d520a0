//! Finding everything that was tampered with, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;

use super::files::{bad, digest, io, names};
use super::manifest::{CHECKPOINTS, Entry, FileEntry, MANIFEST, Manifest, RUN_FILES, SEGMENTS};
use crate::routing::Policy;
use crate::{Error, Result};

/// What an audit of a ledger found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Audit {
    /// Everything that is not as it was committed; empty for a ledger in order.
    pub findings: Vec<Finding>,
    /// Files that nothing can be said about, because the entry that names them was altered.
    pub unchecked: Vec<String>,
    /// What is worth knowing, but no sign of tampering by itself.
    pub notes: Vec<String>,
    /// Entries of the manifest that could be read.
    pub entries: usize,
    /// Files compared with their digests.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Hash of the last entry that could be read.
    pub head: Option<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file at fault, below the ledger's directory.
    pub file: String,
    /// The manifest's entry at fault, or the one that names the file.
    pub entry: Option<u64>,
    /// In which way.
    pub kind: FindingKind,
    /// In words.
    pub detail: String,
}

/// Ways of being wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The content is another.
    Altered,
    /// The file is shorter.
    Truncated,
    /// The file, or an entry of the manifest, is not there.
    Missing,
    /// The file holds the bytes of another committed file.
    Misplaced,
    /// The entry stands at another place, or twice.
    OutOfOrder,
    /// The entry does not continue the one before: one of the two was replaced as a whole.
    Broken,
    /// The expected head is not in the chain: it was cut off before it, or written anew.
    CutOff,
    /// The policy is not the one the run says it was governed by.
    Policy,
    /// The signature is not valid for this ledger.
    Signature,
}

impl Audit {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn find(
        &mut self,
        file: &str,
        entry: Option<u64>,
        kind: FindingKind,
        detail: impl Into<String>,
    ) {
        self.findings.push(Finding { file: file.to_owned(), entry, kind, detail: detail.into() });
    }
}

/// Checks everything that a ledger's manifest covers and reports all that is wrong, not only
/// the first: the manifest's form, the hash of each entry, the chain, every file's size and
/// digest, the policy against its hash. `progress` is called before each file with its name and
/// size.
///
/// `head` is a hash that [`LedgerReader::head`](super::LedgerReader::head) once returned. It
/// must be in the chain; without it, newest entries that were cut off cannot be told from a
/// shorter run. What a consistent forgery of everything looks like no audit can tell: keep the
/// head elsewhere, or sign it.
///
/// Reads the whole ledger once.
///
/// # Errors
/// [`Error::Ledger`] when there is no ledger; [`Error::Io`] when a file cannot be read for
/// another reason than that it is missing.
pub fn audit(
    dir: impl AsRef<Path>,
    head: Option<&str>,
    mut progress: impl FnMut(&str, u64),
) -> Result<Audit> {
    let dir = dir.as_ref();
    let mut audit = Audit::default();
    let Some(entries) = read_entries(dir, &mut audit)? else { return Ok(audit) };
    let trusted = trusted(&entries, &mut audit);
    let whole = trusted.len() == entries.len() && audit.is_clean();
    chain(&trusted, entries.len(), &mut audit);
    let at_the_end = head.is_some_and(|head| hold_to(head, &trusted, &mut audit));
    let notes = audit.notes.len();
    strays(dir, &trusted, &mut audit)?;
    // Nothing was cut off that the expected head covers, whatever lies beside.
    let none_cut = at_the_end || audit.notes.len() == notes;
    let in_chain = whole && audit.is_clean() && none_cut;
    for (at, entry) in entries.iter().enumerate() {
        if !trusted.iter().any(|(place, _)| *place == at) {
            let files = entry.iter().flat_map(|entry| &entry.files);
            audit.unchecked.extend(files.map(|file| file.name.clone()));
        }
    }
    check_files(dir, &trusted, in_chain, &mut audit, &mut progress)?;
    check_policy(dir, &mut audit)?;
    Ok(audit)
}

/// The manifest's entries, none for one that cannot be read; none at all when the file cannot.
fn read_entries(dir: &Path, audit: &mut Audit) -> Result<Option<Vec<Option<Entry>>>> {
    let path = dir.join(MANIFEST);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !RUN_FILES.iter().any(|name| dir.join(name).exists()) {
                return Err(bad(dir, "there is no run here: no manifest.json"));
            }
            audit.find(MANIFEST, None, FindingKind::Missing, "the file is missing");
            return Ok(None);
        }
        other => other.map_err(io(&path))?,
    };
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
        if let Some(problem) = manifest.unknown() {
            audit.find(MANIFEST, None, FindingKind::Altered, problem);
        }
        if manifest.entries.is_empty() {
            audit.find(MANIFEST, None, FindingKind::Missing, "there is no entry");
        } else if manifest.to_bytes() != bytes {
            let detail = "the file is not in the form it was written in";
            audit.find(MANIFEST, None, FindingKind::Altered, detail);
        }
        return Ok(Some(manifest.entries.into_iter().map(Some).collect()));
    }
    let value = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(value) => value,
        Err(error) => {
            let kind = if error.is_eof() { FindingKind::Truncated } else { FindingKind::Altered };
            audit.find(MANIFEST, None, kind, format!("the file cannot be read: {error}"));
            return Ok(None);
        }
    };
    let Some(list) = value.get("entries").and_then(|it| it.as_array()) else {
        audit.find(MANIFEST, None, FindingKind::Altered, "the file holds no entries");
        return Ok(None);
    };
    let entries: Vec<Option<Entry>> = (list.iter().enumerate())
        .map(|(at, value)| match serde_json::from_value(value.clone()) {
            Ok(entry) => Some(entry),
            Err(error) => {
                let detail = format!("entry {at} cannot be read: {error}");
                audit.find(MANIFEST, Some(at as u64), FindingKind::Altered, detail);
                None
            }
        })
        .collect();
    if entries.iter().all(Option::is_some) {
        let detail = "the file's outermost fields are others";
        audit.find(MANIFEST, None, FindingKind::Altered, detail);
    }
    Ok(Some(entries))
}

/// The entries that are as they were written, with their places in the file.
fn trusted<'a>(entries: &'a [Option<Entry>], audit: &mut Audit) -> Vec<(usize, &'a Entry)> {
    audit.entries = entries.iter().flatten().count();
    audit.head = entries.iter().flatten().next_back().map(|entry| entry.hash.clone());
    let mut trusted = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(entry) = entry else { continue };
        match entry.own_problem() {
            Some(problem) => {
                let detail = format!("entry {at} {problem}");
                audit.find(MANIFEST, Some(at as u64), FindingKind::Altered, detail);
            }
            None => trusted.push((at, entry)),
        }
    }
    trusted
}

/// Dropped entries that are named one by one.
const MOST_GAPS: usize = 1000;

/// Order and links of the entries that are as they were written.
fn chain(trusted: &[(usize, &Entry)], count: usize, audit: &mut Audit) {
    let mut by_index: BTreeMap<u64, &Entry> = BTreeMap::new();
    for (at, entry) in trusted {
        if by_index.insert(entry.index, entry).is_some() {
            let detail = format!("entry {} is there twice, again at place {at}", entry.index);
            audit.find(MANIFEST, Some(entry.index), FindingKind::OutOfOrder, detail);
        }
    }
    // Places of entries that were altered are taken, whatever index they claim.
    let place_taken =
        |index: u64| index < count as u64 && !trusted.iter().any(|(at, _)| *at as u64 == index);
    let last = by_index.keys().next_back().copied().unwrap_or(0);
    let gaps = (0..last).filter(|at| !by_index.contains_key(at) && !place_taken(*at));
    // A forged index may leave any number of them.
    let missing: Vec<u64> = gaps.take(MOST_GAPS + 1).collect();
    for index in missing.iter().take(MOST_GAPS) {
        let detail = format!("entry {index} was dropped");
        audit.find(MANIFEST, Some(*index), FindingKind::Missing, detail);
    }
    if let Some(index) = missing.get(MOST_GAPS) {
        let detail = format!("entries from {index} on were dropped, all or some up to {last}");
        audit.find(MANIFEST, Some(*index), FindingKind::Missing, detail);
    }
    for (at, entry) in trusted {
        let mut before = trusted.iter().take_while(|(place, _)| place < at);
        let (out, detail) = match missing.is_empty() {
            true => (entry.index != *at as u64, format!("stands at place {at}")),
            false => (before.any(|(_, it)| it.index > entry.index), "follows a later one".into()),
        };
        // Of an entry that is there twice enough was said.
        let once = trusted.iter().filter(|(_, it)| it.index == entry.index).count() == 1;
        if out && once {
            let detail = format!("entry {} {detail}", entry.index);
            audit.find(MANIFEST, Some(entry.index), FindingKind::OutOfOrder, detail);
        }
    }
    let steps: Vec<(u64, [u64; 2])> =
        by_index.values().filter_map(|entry| Some((entry.index, entry.steps?))).collect();
    for pair in steps.windows(2) {
        let [(_, [_, end]), (index, [start, _])] = [pair[0], pair[1]];
        if start <= end {
            let detail =
                format!("entry {index} begins at step {start}, the one before ends at {end}");
            audit.find(MANIFEST, Some(index), FindingKind::OutOfOrder, detail);
        }
    }
    for (index, entry) in &by_index {
        let previous = match index.checked_sub(1) {
            None => Some(super::manifest::NONE),
            Some(before) => by_index.get(&before).map(|entry| entry.hash.as_str()),
        };
        if previous.is_some_and(|previous| previous != entry.previous) {
            let detail = format!(
                "entry {index} does not continue the one before it: one of the two was replaced"
            );
            audit.find(MANIFEST, Some(*index), FindingKind::Broken, detail);
        }
    }
}

/// The chain must reach a head that is known from elsewhere. Whether it ends there.
fn hold_to(head: &str, trusted: &[(usize, &Entry)], audit: &mut Audit) -> bool {
    match trusted.iter().position(|(_, entry)| entry.hash == head) {
        // Something else says already what became of it.
        None if !audit.is_clean() => {}
        None => {
            let entries = trusted.len();
            let detail = format!(
                "the expected head {head} is not in the chain of {entries} entries: it was cut \
                 off, or is another run's"
            );
            audit.find(MANIFEST, None, FindingKind::CutOff, detail);
        }
        Some(at) if at + 1 < trusted.len() => {
            let later = trusted.len() - at - 1;
            audit.notes.push(format!("{later} entries are newer than the expected head"));
        }
        Some(_) => return true,
    }
    false
}

/// Sizes and digests of the files of entries that are as they were written.
fn check_files(
    dir: &Path,
    trusted: &[(usize, &Entry)],
    in_chain: bool,
    audit: &mut Audit,
    progress: &mut impl FnMut(&str, u64),
) -> Result<()> {
    let newest = trusted.iter().filter(|(_, entry)| !entry.checkpoint.is_empty());
    let newest = newest.map(|(_, entry)| *entry).max_by_key(|entry| entry.index);
    let named = || {
        let files = trusted
            .iter()
            .flat_map(|(_, entry)| entry.files.iter().map(|file| (entry.index, file, false)));
        let checkpoint = newest
            .into_iter()
            .flat_map(|entry| entry.checkpoint.iter().map(|file| (entry.index, file, true)));
        files.chain(checkpoint)
    };
    let owners: HashMap<&str, &str> =
        named().map(|(_, file, _)| (file.blake3.as_str(), file.name.as_str())).collect();
    for (index, file, is_checkpoint) in named() {
        progress(&file.name, file.bytes);
        let found = match check_file(dir, file)? {
            None => {
                (audit.files, audit.bytes) = (audit.files + 1, audit.bytes + file.bytes);
                continue;
            }
            Some(found) => found,
        };
        // An entry that was cut off or altered may have superseded this checkpoint.
        if is_checkpoint && found.kind == FindingKind::Missing {
            let now = Manifest::read(dir).ok();
            let later = now.is_some_and(|it| it.checkpoint().is_some_and(|it| it.index > index));
            if !in_chain || later {
                audit.unchecked.push(file.name.clone());
                continue;
            }
        }
        let (kind, detail) = match owners.get(found.blake3.as_str()) {
            Some(owner) if *owner != file.name => {
                (FindingKind::Misplaced, format!("the file holds the bytes of {owner}"))
            }
            _ => (found.kind, found.detail),
        };
        audit.find(&file.name, Some(index), kind, detail);
    }
    Ok(())
}

/// What is wrong with a file, and the digest that it has.
pub(super) struct WrongFile {
    pub kind: FindingKind,
    pub detail: String,
    blake3: String,
}

/// Compares a file with its line of the manifest.
pub(super) fn check_file(dir: &Path, file: &FileEntry) -> Result<Option<WrongFile>> {
    let wrong = |kind, detail: String, blake3| Ok(Some(WrongFile { kind, detail, blake3 }));
    let (bytes, blake3) = match digest(&dir.join(&file.name)) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return wrong(FindingKind::Missing, "the file is missing".into(), String::new());
        }
        other => other?,
    };
    if bytes != file.bytes {
        let kind = if bytes < file.bytes { FindingKind::Truncated } else { FindingKind::Altered };
        let detail = format!("the file was altered: {bytes} bytes, not {}", file.bytes);
        return wrong(kind, detail, blake3);
    }
    if blake3 != file.blake3 {
        let detail = "the file was altered: its digest is another".into();
        return wrong(FindingKind::Altered, detail, blake3);
    }
    Ok(None)
}

/// Whether the policy's text is the one whose hash the run states. A text that is no policy says
/// nothing.
fn check_policy(dir: &Path, audit: &mut Audit) -> Result<()> {
    let [run, policy, _] = RUN_FILES;
    let at_fault = |it: &Finding| it.file == run || it.file == policy;
    if audit.findings.iter().any(at_fault) {
        return Ok(());
    }
    let [run_text, policy_text] = [run, policy].map(|name| std::fs::read_to_string(dir.join(name)));
    let (Ok(run_text), Ok(policy_text)) = (run_text, policy_text) else { return Ok(()) };
    let stated = serde_json::from_str::<serde_json::Value>(&run_text)
        .ok()
        .and_then(|it| Some(it.get("policy_hash")?.as_str()?.to_owned()));
    let (Some(stated), Ok(read)) = (stated, Policy::from_toml(&policy_text)) else { return Ok(()) };
    let hash = read.hash().to_string();
    if hash != stated {
        let detail = format!("the policy's hash is {hash}, the run was governed by {stated}");
        audit.find(policy, Some(0), FindingKind::Policy, detail);
    }
    Ok(())
}

/// Segments and checkpoints beyond the chain's end.
fn strays(dir: &Path, trusted: &[(usize, &Entry)], audit: &mut Audit) -> Result<()> {
    let next = trusted.iter().map(|(_, entry)| entry.index.saturating_add(1)).max().unwrap_or(0);
    let mut beyond = Vec::new();
    for folder in [SEGMENTS, CHECKPOINTS] {
        for name in names(&dir.join(folder))? {
            let index = name.split('.').next().and_then(|index| index.parse::<u64>().ok());
            if index.is_some_and(|index| index >= next) {
                beyond.push(format!("{folder}/{name}"));
            }
        }
    }
    if !beyond.is_empty() {
        audit.notes.push(format!(
            "not in the manifest: {}. A commit was interrupted, or the manifest cut off: hold the \
             ledger to a head that was kept elsewhere",
            beyond.join(", ")
        ));
    }
    Ok(())
}
