//! Verifying and signing.

use std::path::Path;

use gradroute::provenance::ledger::{LedgerReader, audit, audit_signature};
use gradroute::provenance::query::Archive;
use gradroute::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::VerifyArguments;
use crate::progress::{bar, told};
use crate::shown::{Part, Shown, head};
use crate::{FINE, FOUND};

/// A ledger whose files, as far as answers cite them, are as they were written.
pub fn checked(ledger: &Path, quiet: bool) -> Result<LedgerReader> {
    let reader = LedgerReader::open(ledger)?;
    let bar = bar(quiet, "files checked");
    reader.verify_records(told(&bar))?;
    bar.finish_and_clear();
    Ok(reader)
}

/// The same, to answer from.
pub fn opened(ledger: &Path, quiet: bool) -> Result<Archive> {
    Archive::new(checked(ledger, quiet)?)
}

pub fn verify(question: &VerifyArguments, quiet: bool) -> Result<(Shown, u8)> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {bytes} checked, {bytes_per_sec} · {msg}");
    bar.set_style(style.expect("a valid template"));
    let head_given = question.head.as_deref();
    let mut found = audit(&question.ledger, head_given, |name, bytes| {
        bar.set_message(name.to_owned());
        bar.inc(bytes);
    })?;
    bar.finish_and_clear();
    if let Some(path) = &question.public_key {
        audit_signature(&question.ledger, &read(path)?, &mut found)?;
    }
    let rows = found.findings.iter().map(|it| {
        let entry = it.entry.map_or(String::new(), |entry| entry.to_string());
        let kind = serde_json::to_value(it.kind).ok();
        let kind = kind.and_then(|it| Some(it.as_str()?.replace('_', " "))).unwrap_or_default();
        vec![it.file.clone(), entry, kind, it.detail.clone()]
    });
    let title = match found.findings.len() {
        0 => format!("{}: in order", question.ledger.display()),
        1 => format!("{}: 1 finding", question.ledger.display()),
        count => format!("{}: {count} findings", question.ledger.display()),
    };
    let mut shown = Shown::new(title, &found)?;
    if !found.is_clean() {
        shown = shown.with(Part {
            title: "Not as it was committed".into(),
            head: head(["file", "entry", "what", "detail"]),
            rows: rows.collect(),
            ..Part::default()
        });
    }
    let mut lead = format!(
        "{} entries, {} files, {} bytes compared with their digests. Head {}.",
        found.entries,
        found.files,
        found.bytes,
        found.head.as_deref().unwrap_or("none")
    );
    if head_given.is_none() && question.public_key.is_none() {
        lead += " Without --head or --public-key, newest entries that were cut off do not show.";
    }
    let notes = found.notes.iter().map(|note| vec!["note".into(), note.clone()]);
    let unchecked = found.unchecked.iter().map(|name| vec!["not checked".into(), name.clone()]);
    let rows = notes.chain(unchecked).collect();
    let shown = shown.with(Part { title: "Checked".into(), lead, rows, ..Part::default() });
    Ok((shown, if found.is_clean() { FINE } else { FOUND }))
}

pub fn sign(ledger: &Path, key: &Path) -> Result<Shown> {
    let signed = gradroute::provenance::ledger::sign(ledger, &read(key)?)?;
    let facts = [
        ("head", signed.head.clone()),
        ("entries", signed.entries.to_string()),
        ("public key", signed.public_key.clone()),
    ];
    let rows = facts.map(|(name, fact)| vec![name.to_owned(), fact]).into();
    let part = Part { title: "Signed".into(), rows, ..Part::default() };
    Ok(Shown::new(format!("{}", ledger.display()), &signed)?.with(part))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })
}
