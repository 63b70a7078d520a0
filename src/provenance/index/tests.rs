//! What the public calls cannot show.

use bytes::BytesMut;

use super::part::Part;
use super::{Index, IndexWriter, Precision, ROWS};
use crate::projection::SketchKind;
use crate::provenance::StepRecord;
use crate::provenance::ledger::{BlockInfo, Ledger, LedgerReader, RunInfo, SampleInfo};

const K: usize = 64;

/// A ledger in which samples come back in later segments.
fn ledger(dir: &std::path::Path) -> LedgerReader {
    let sample = |id| SampleInfo { id, category: "style".into(), content_hash: [0; 32] };
    let block = |name: &str| BlockInfo { name: name.into(), layers: vec![] };
    let info = RunInfo {
        samples: (0..9).map(sample).collect(),
        blocks: vec![block("down"), block("up")],
        ..RunInfo::new(SketchKind::Count { buckets: K }, 1)
    };
    let mut ledger = Ledger::create(dir, info).unwrap();
    for step in 0..6 {
        let samples = vec![8 - step, (2 * step) % 9];
        let value = |n: usize| ((n as u64 * 2_654_435_761 + step) % 1999) as f32 / 1000.0 - 1.0;
        let record = StepRecord {
            step,
            step_size: 0.1,
            optimizer_scale: 1.0,
            blocks: 2,
            samples: if samples[0] == samples[1] { vec![samples[0]] } else { samples },
            ..StepRecord::default()
        };
        let n = record.samples.len();
        ledger
            .append(&StepRecord {
                noise_levels: vec![0.5; n],
                gates: vec![1.0; n],
                route: vec![1.0; 2 * n],
                flow: vec![1.0; 2 * n],
                sq_norm: vec![1.0; 2 * n],
                sketch: (0..2 * n * K).map(value).collect(),
                ..record
            })
            .unwrap();
        if step % 2 == 1 {
            ledger.commit().unwrap();
        }
    }
    LedgerReader::open(dir).unwrap()
}

#[test]
fn sums_taken_in_slices_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let reader = ledger(&dir.path().join("ledger"));
    let exact = reader.accumulator().unwrap();
    let all = Index::build(&reader, dir.path().join("all"), Precision::F16, |_, _| ()).unwrap();
    // Room for two samples at a time, and for less than one.
    for bytes in [2 * 4 * K, 1] {
        let out = dir.path().join(bytes.to_string());
        let sliced = Index::build_within(&reader, &out, Precision::F16, bytes, |_, _| ()).unwrap();
        for block in 0..2 {
            let [all, sliced] = [&all, &sliced].map(|it| std::fs::read(it.table(block)).unwrap());
            assert!(all == sliced, "block {block}");
        }
    }
    // The squares are of the sums before they are rounded, so they show them bit for bit.
    let part = Part::open(&all.table(1), exact.len(), 2 * K).unwrap();
    let (group, _) = part.read(0, BytesMut::new()).unwrap();
    let squares = group.squares.iter().flat_map(|page| page.as_chunks().0);
    for (n, square) in squares.enumerate() {
        let sums = &exact.sketch_at(n)[K..];
        assert_eq!(f64::from_le_bytes(*square), super::super::influence::dot(sums, sums));
    }
}

#[test]
fn a_row_group_is_all_that_is_read_at_a_time_into_the_same_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let citation = {
        let reader = ledger(&dir.path().join("ledger"));
        crate::provenance::query::Citation::of_run(&reader, 9)
    };
    let ids: Vec<u64> = (0..2 * ROWS as u64 + 5).collect();
    let (out, blocks) = (dir.path().join("index"), vec!["down".to_owned()]);
    let samples = ids.len();
    let mut writer = IndexWriter::create(out, ids, blocks, K, Precision::Int8, citation).unwrap();
    writer.push(&vec![1.0; samples * K]).unwrap();
    let index = writer.finish().unwrap();
    let part = Part::open(&index.table(0), samples, K).unwrap();
    let (mut buffer, mut place) = (BytesMut::new(), None);
    for group in 0..2 {
        let (values, bytes) = part.read(group, buffer).unwrap();
        // The values, and headers of pages: not as much as a hundredth.
        let least = ROWS * (K + 20);
        assert!((least..least + least / 100).contains(&bytes.len()), "{}", bytes.len());
        assert!(place.is_none_or(|place| place == bytes.as_ptr()), "read into another buffer");
        // Values are where they were read to, not copied.
        let inside = bytes.as_ptr_range();
        assert!(values.codes.iter().all(|page| inside.contains(&page.as_ptr())));
        place = Some(bytes.as_ptr());
        drop(values);
        buffer = bytes.try_into_mut().expect("no value is held");
    }
}
