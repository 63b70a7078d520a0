//! Ledgers whose hashes all agree, since whoever altered them made the hashes anew.

mod support_ledger;

use std::fs::{self, File};
use std::path::Path;

use arrow_array::{Array, RecordBatch, UInt64Array};
use gradroute::provenance::ledger::{
    Entry, FindingKind, LedgerReader, audit, audit_signature, replay, sign,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;
use support_ledger::{KEY, public, record, written};

#[derive(Serialize)]
struct Manifest<'a> {
    format: &'a str,
    version: u32,
    entries: &'a [Entry],
}

/// Edits the entries and makes every hash anew.
fn forge(dir: &Path, edit: impl FnOnce(&mut Vec<Entry>)) {
    let mut entries = LedgerReader::open(dir).unwrap().entries().to_vec();
    edit(&mut entries);
    let mut previous = "0".repeat(64);
    for entry in &mut entries {
        (entry.previous, entry.hash) = (previous, String::new());
        entry.hash = blake3::hash(&serde_json::to_vec(entry).unwrap()).to_hex().to_string();
        previous = entry.hash.clone();
    }
    let manifest = Manifest { format: "gradroute-ledger", version: 2, entries: &entries };
    fs::write(dir.join("manifest.json"), serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}

#[test]
fn a_signed_ledger_cannot_be_replaced_by_one_that_no_reader_opens() {
    let dir = written(9, 3);
    sign(dir.path(), KEY).unwrap();
    // Segments that overlap are no run's.
    forge(dir.path(), |entries| entries[2].steps = Some([2, 5]));
    assert!(LedgerReader::open(dir.path()).is_err());
    let mut found = audit(dir.path(), None, |_, _| {}).unwrap();
    let order = found.findings.iter().find(|it| it.kind == FindingKind::OutOfOrder).unwrap();
    assert!(order.entry == Some(2) && order.detail.contains("step 2"), "{order:?}");
    // Nor where the audit had nothing to say.
    found.findings.clear();
    audit_signature(dir.path(), &public(&[7; 32]), &mut found).unwrap();
    assert!(!found.is_clean());
}

#[test]
fn an_index_far_away_is_named_and_does_no_harm() {
    for index in [20_000_000, u64::MAX] {
        let dir = written(9, 3);
        forge(dir.path(), |entries| {
            let names = |name: &str| name.replace("000003", &format!("{index:06}"));
            let last = entries.last_mut().unwrap();
            last.index = index;
            for file in last.files.iter_mut().chain(&mut last.checkpoint) {
                file.name = names(&file.name);
            }
        });
        let found = audit(dir.path(), None, |_, _| {}).unwrap();
        let missing = found.findings.iter().filter(|it| it.kind == FindingKind::Missing);
        assert!((2..2000).contains(&missing.count()), "{}", found.findings.len());
    }
    // The last step there is: phases end within the run.
    let dir = written(9, 3);
    forge(dir.path(), |entries| entries[3].steps = Some([6, u64::MAX]));
    let reader = LedgerReader::open(dir.path()).unwrap();
    assert_eq!(reader.phases(1).unwrap().len(), 1);
    assert_eq!(reader.phases(2).unwrap().len(), 2);
}

#[test]
fn a_stray_file_excuses_no_missing_checkpoint() {
    let dir = written(9, 3);
    let head = LedgerReader::open(dir.path()).unwrap().head().to_owned();
    fs::remove_dir_all(dir.path().join("checkpoints/000003")).unwrap();
    fs::write(dir.path().join("segments/000009"), "").unwrap();
    let found = audit(dir.path(), Some(&head), |_, _| {}).unwrap();
    assert!(!found.is_clean(), "{found:?}");
    assert!(found.findings.iter().all(|it| it.file.starts_with("checkpoints/000003")));
}

/// Leaves the first sample out of a table; returns how many rows are left.
fn leave_out(path: &Path) -> u64 {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let [batch] = &batches[..] else { panic!("one batch of a small table") };
    let samples = batch.column_by_name("sample").unwrap();
    let samples: &UInt64Array = samples.as_any().downcast_ref().unwrap();
    let first = samples.iter().take_while(|it| *it == Some(samples.value(0))).count();
    let rest = batch.slice(first, batch.num_rows() - first);
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&rest).unwrap();
    writer.close().unwrap();
    rest.num_rows() as u64
}

#[test]
fn replay_misses_who_was_left_out() {
    let dir = written(9, 3);
    forge(dir.path(), |entries| {
        for file in &mut entries[2].files[1..] {
            let path = dir.path().join(&file.name);
            file.rows = Some(leave_out(&path));
            let bytes = fs::read(&path).unwrap();
            file.bytes = bytes.len() as u64;
            file.blake3 = blake3::hash(&bytes).to_hex().to_string();
        }
    });
    assert!(audit(dir.path(), None, |_, _| {}).unwrap().is_clean());
    let reader = LedgerReader::open(dir.path()).unwrap();
    let found = replay(&reader, 2..=2, |batch| Ok(record(batch.step))).unwrap();
    assert!(!found.agrees(1e3), "{found:?}");
    assert_eq!(found.influence.largest, f64::INFINITY);
    // What cannot be compared does not agree either.
    let dir = written(3, 3);
    let reader = LedgerReader::open(dir.path()).unwrap();
    let spoilt = replay(&reader, 1..=1, |batch| {
        let mut again = record(batch.step);
        again.route[0] = f32::NAN;
        Ok(again)
    });
    assert!(spoilt.is_err() || !spoilt.unwrap().agrees(1e3));
}
