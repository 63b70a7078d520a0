//! What was tampered with is found, and nothing else is accused.

mod support_ledger;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gradroute::projection::philox4x32;
use gradroute::provenance::ledger::{
    Audit, FindingKind, LedgerReader, Signature, audit, audit_signature, replay, sign,
};
use support_ledger::{BLOCKS, K, KEY, public, record, written};

/// Tamperings of a default run; `GRADROUTE_TAMPERINGS=1000` is the long one.
const FEW: u32 = 60;

/// Always the same random numbers.
struct Random {
    seed: u32,
    at: u32,
}

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.at += 1;
        let [low, high, ..] = philox4x32([self.at, self.seed, 0, 0], [8, 9]);
        ((u64::from(high) << 32 | u64::from(low)) % end as u64) as usize
    }
}

/// Every file that the manifest covers, and the manifest itself.
fn covered(dir: &Path) -> Vec<String> {
    let reader = LedgerReader::open(dir).unwrap();
    let last = reader.entries().iter().rev().find(|entry| !entry.checkpoint.is_empty());
    let files = reader.entries().iter().flat_map(|entry| &entry.files);
    let checkpoint = last.into_iter().flat_map(|entry| &entry.checkpoint);
    let names = files.chain(checkpoint).map(|file| file.name.clone());
    names.chain(["manifest.json".to_owned()]).collect()
}

/// A copy of a ledger.
fn copied(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&path, &to);
            } else {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

/// Entry of the manifest that the byte at `at` of the file stands in; none for the rest.
fn entry_at(text: &str, at: usize) -> Option<u64> {
    let starts: Vec<usize> = text.match_indices("\n    {\n").map(|(at, _)| at + 1).collect();
    let ends: Vec<usize> = text.match_indices("\n    }").map(|(at, it)| at + it.len()).collect();
    let within = starts.iter().zip(ends).position(|(&start, end)| (start..end).contains(&at));
    within.map(|index| index as u64)
}

/// Who may be accused: files, and of the manifest the entries.
#[derive(Debug)]
struct Culprits {
    files: BTreeSet<String>,
    /// None for a manifest that cannot be read by entries any more.
    entries: Option<BTreeSet<u64>>,
}

impl Culprits {
    fn file(name: &str) -> Self {
        Self { files: [name.to_owned()].into(), entries: None }
    }

    fn entries(indices: impl IntoIterator<Item = u64>) -> Self {
        let entries = Some(indices.into_iter().collect());
        Self { entries, ..Self::file("manifest.json") }
    }

    fn check(&self, audit: &Audit, what: &str) {
        assert!(!audit.is_clean(), "{what}: not found");
        let accused: BTreeSet<String> = audit.findings.iter().map(|it| it.file.clone()).collect();
        assert_eq!(accused, self.files, "{what}: {:#?}", audit.findings);
        if let Some(expected) = &self.entries {
            for finding in &audit.findings {
                // A manifest that is no JSON any more names a line instead.
                let named = finding.entry.is_none_or(|entry| expected.contains(&entry));
                assert!(named, "{what}: {finding:?}, not {expected:?}");
            }
        }
    }
}

fn flip(dir: &Path, random: &mut Random) -> (Culprits, String) {
    let files = covered(dir);
    // Half of the time the manifest, where most can go wrong.
    let name = match random.below(2) {
        0 => "manifest.json".to_owned(),
        _ => files[random.below(files.len())].clone(),
    };
    let path = dir.join(&name);
    let mut bytes = fs::read(&path).unwrap();
    let (at, bit) = (random.below(bytes.len()), random.below(8));
    let culprits = match (name.as_str(), entry_at(&String::from_utf8_lossy(&bytes), at)) {
        ("manifest.json", Some(entry)) => Culprits::entries([entry]),
        ("manifest.json", None) => Culprits::entries([]),
        _ => Culprits::file(&name),
    };
    bytes[at] ^= 1 << bit;
    fs::write(&path, bytes).unwrap();
    (culprits, format!("bit {bit} of byte {at} of {name}"))
}

fn drop_one(dir: &Path, random: &mut Random) -> (Culprits, String) {
    if random.below(2) == 0 {
        let files = covered(dir);
        let name = &files[random.below(files.len())];
        fs::remove_file(dir.join(name)).unwrap();
        return (Culprits::file(name), format!("{name} removed"));
    }
    let at = edit(
        dir,
        |entries, random| {
            let at = random.below(entries.len());
            entries.remove(at);
            at
        },
        random,
    );
    let last = LedgerReader::open(dir).map(|it| it.entries().len() == at).unwrap_or(false);
    let culprits = if last { Culprits::entries([]) } else { Culprits::entries([at as u64]) };
    (culprits, format!("entry {at} dropped"))
}

fn swap(dir: &Path, random: &mut Random) -> (Culprits, String) {
    let two = |random: &mut Random, count: usize| {
        let a = random.below(count);
        (a, (a + 1 + random.below(count - 1)) % count)
    };
    if random.below(2) == 0 {
        let files: Vec<_> = covered(dir).into_iter().filter(|it| it != "manifest.json").collect();
        let (a, b) = two(random, files.len());
        let [a, b] = [&files[a], &files[b]];
        let aside = dir.join("aside");
        for (from, to) in
            [(dir.join(a), &aside), (dir.join(b), &dir.join(a)), (aside.clone(), &dir.join(b))]
        {
            fs::rename(from, to).unwrap();
        }
        let files = [a.clone(), b.clone()].into();
        return (Culprits { files, entries: None }, format!("{a} and {b} swapped"));
    }
    let (a, b) = edit(
        dir,
        |entries, random| {
            let (a, b) = two(random, entries.len());
            entries.swap(a, b);
            (a, b)
        },
        random,
    );
    (Culprits::entries([a as u64, b as u64]), format!("entries {a} and {b} swapped"))
}

fn truncate(dir: &Path, random: &mut Random) -> (Culprits, String) {
    let files = covered(dir);
    let name = &files[random.below(files.len())];
    let bytes = fs::read(dir.join(name)).unwrap();
    let to = random.below(bytes.len());
    fs::write(dir.join(name), &bytes[..to]).unwrap();
    (Culprits::file(name), format!("{name} cut to {to} bytes"))
}

/// Edits the manifest's list of entries, in the form the writer leaves.
fn edit<T>(
    dir: &Path,
    edit: impl FnOnce(&mut Vec<serde_json::Value>, &mut Random) -> T,
    random: &mut Random,
) -> T {
    let path = dir.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    // Field order is kept by cutting the text, not by parsing it.
    let open = text.find("[\n    {").unwrap() + 2;
    let close = text.rfind("\n  ]").unwrap();
    let mut entries: Vec<serde_json::Value> = text[open..close]
        .split("\n    },\n")
        .map(|entry| serde_json::Value::String(entry.trim_end_matches("\n    }").to_owned()))
        .collect();
    let result = edit(&mut entries, random);
    let entries: Vec<String> =
        entries.iter().map(|entry| format!("{}\n    }}", entry.as_str().unwrap())).collect();
    let text = format!("{}{}{}", &text[..open], entries.join(",\n"), &text[close..]);
    fs::write(&path, text).unwrap();
    result
}

fn audited(dir: &Path, head: &str) -> Audit {
    audit(dir, Some(head), |_, _| {}).unwrap()
}

/// Tampers with a ledger; whom an audit must accuse, and what was done.
type Tampering = fn(&Path, &mut Random) -> (Culprits, String);

#[test]
fn every_tampering_is_found_and_nothing_else_accused() {
    let whole = written(12, 3);
    let head = LedgerReader::open(whole.path()).unwrap().head().to_owned();
    let clean = audited(whole.path(), &head);
    assert!(clean.is_clean() && clean.notes.is_empty() && clean.unchecked.is_empty(), "{clean:?}");
    assert_eq!((clean.entries, clean.files), (5, 3 + 4 * 3 + 1));
    let count = std::env::var("GRADROUTE_TAMPERINGS").map_or(FEW, |it| it.parse().unwrap());
    let kinds: [Tampering; 4] = [flip, drop_one, swap, truncate];
    for seed in 0..count {
        let (dir, mut random) = (copied(whole.path()), Random { seed, at: 0 });
        let (culprits, what) = kinds[seed as usize % 4](dir.path(), &mut random);
        culprits.check(&audited(dir.path(), &head), &format!("tampering {seed}: {what}"));
        // Nor does a run go on over it.
        assert!(
            LedgerReader::open(dir.path()).and_then(|it| it.verify()).is_err()
                || what.contains("dropped")
        );
    }
    println!("{count} tamperings, all found, none misattributed");
}

#[test]
fn forgeries_that_keep_their_own_hashes_are_found() {
    let whole = written(9, 3);
    let head = LedgerReader::open(whole.path()).unwrap().head().to_owned();
    // Another run's segment, with an entry that is right by itself.
    let other = written(6, 2);
    let [mine, theirs] = [whole.path(), other.path()]
        .map(|dir| fs::read_to_string(dir.join("manifest.json")).unwrap());
    let entry = |text: &str, at: usize| -> String {
        let starts: Vec<usize> =
            text.match_indices("    {\n      \"index\"").map(|it| it.0).collect();
        let end = text[starts[at]..].find("\n    }").unwrap();
        text[starts[at]..starts[at] + end].to_owned()
    };
    fs::write(
        whole.path().join("manifest.json"),
        mine.replace(&entry(&mine, 2), &entry(&theirs, 2)),
    )
    .unwrap();
    for name in ["events", "influence", "norms"] {
        let name = format!("segments/000002.{name}.parquet");
        fs::copy(other.path().join(&name), whole.path().join(&name)).unwrap();
    }
    let audit = audited(whole.path(), &head);
    let broken: Vec<u64> = (audit.findings.iter())
        .filter(|it| it.kind == FindingKind::Broken)
        .filter_map(|it| it.entry)
        .collect();
    assert_eq!(broken, [2, 3], "{:#?}", audit.findings);
    assert!(audit.findings.iter().all(|it| it.file == "manifest.json"));
}

#[test]
fn a_cut_off_end_is_found_by_the_head_alone() {
    let whole = written(9, 3);
    let head = LedgerReader::open(whole.path()).unwrap().head().to_owned();
    edit(whole.path(), |entries, _| entries.truncate(2), &mut Random { seed: 0, at: 0 });
    let without = audit(whole.path(), None, |_, _| {}).unwrap();
    assert!(
        without.notes[0].contains("000002") && without.notes[0].contains("head"),
        "{without:?}"
    );
    let audit = audited(whole.path(), &head);
    assert_eq!(audit.findings.len(), 1, "{:#?}", audit.findings);
    assert_eq!(audit.findings[0].kind, FindingKind::CutOff);
    // The checkpoint of the last entry left was superseded: nobody is accused of that.
    assert!(audit.unchecked[0].starts_with("checkpoints/000001"), "{audit:?}");
}

#[test]
fn an_edited_policy_is_named_even_when_its_digest_agrees() {
    let dir = written(3, 3);
    let path = dir.path().join("policy.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("style/script", "style/serif")).unwrap();
    let found = audit(dir.path(), None, |_, _| {}).unwrap();
    assert_eq!(found.findings.len(), 1);
    assert_eq!(
        (found.findings[0].file.as_str(), found.findings[0].entry),
        ("policy.toml", Some(0))
    );
    // A run that states another policy than the one it was given.
    let mut info = support_ledger::info();
    info.policy_hash = "0".repeat(64);
    let dir = tempfile::tempdir().unwrap();
    gradroute::provenance::ledger::Ledger::create(dir.path(), info).unwrap();
    let found = audit(dir.path(), None, |_, _| {}).unwrap();
    assert_eq!(found.findings[0].kind, FindingKind::Policy);
    let empty = tempfile::tempdir().unwrap();
    assert!(audit(empty.path(), None, |_, _| {}).is_err());
}

#[test]
fn a_signature_covers_the_chain_up_to_its_head() {
    let dir = written(6, 3);
    let check = |dir: &Path, key: &str| {
        let mut found = audit(dir, None, |_, _| {}).unwrap();
        audit_signature(dir, key, &mut found).unwrap();
        found
    };
    let key = public(&[7; 32]);
    let kind = |found: &Audit| found.findings.iter().map(|it| it.kind).collect::<Vec<_>>();
    assert_eq!(kind(&check(dir.path(), &key)), [FindingKind::Missing]);
    let signed = sign(dir.path(), KEY).unwrap();
    assert_eq!(Signature::read(dir.path()).unwrap().unwrap(), signed);
    assert!(check(dir.path(), &key).is_clean());
    assert_eq!(kind(&check(dir.path(), &public(&[8; 32]))), [FindingKind::Signature]);
    // Later commits are not covered, and said so.
    let longer = copied(dir.path());
    let mut ledger = gradroute::provenance::ledger::Ledger::resume(longer.path()).unwrap();
    ledger.append(&record(6)).unwrap();
    fs::write(ledger.checkpoint_dir().unwrap().join("weights"), "later").unwrap();
    ledger.commit().unwrap();
    drop(ledger);
    let found = check(longer.path(), &key);
    assert!(found.is_clean() && found.notes[0].contains("1 entries are newer"), "{found:?}");
    // An end that was cut off, and a signature that was altered.
    let cut = copied(dir.path());
    edit(cut.path(), |entries, _| entries.truncate(2), &mut Random { seed: 0, at: 0 });
    assert_eq!(kind(&check(cut.path(), &key)), [FindingKind::CutOff]);
    let path = dir.path().join("signature.json");
    let text = fs::read_to_string(&path).unwrap();
    for seed in 0..20 {
        let mut bytes = text.clone().into_bytes();
        let mut random = Random { seed, at: 0 };
        let at = text.find("signature").unwrap() + 13 + random.below(100);
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(kind(&check(dir.path(), &key)), [FindingKind::Signature], "byte {at}");
    }
    let error = sign(dir.path(), "no key").unwrap_err().to_string();
    assert!(error.contains("`key`"), "{error}");
}

#[test]
fn replay_compares_a_computation_done_again() {
    let dir = written(9, 3);
    let reader = LedgerReader::open(dir.path()).unwrap();
    let mut asked = Vec::new();
    let same = replay(&reader, 0..=u64::MAX, |batch| {
        let again = record(batch.step);
        assert_eq!(batch.samples, again.samples);
        assert_eq!((batch.step_size, batch.optimizer_scale), (again.step_size, 0.7));
        assert_eq!(
            (batch.gates, batch.noise_levels.len()),
            (&again.gates[..], again.samples.len())
        );
        asked.push(batch.step);
        Ok(again)
    })
    .unwrap();
    assert_eq!(asked, (0..9).collect::<Vec<_>>());
    assert!(same.agrees(0.0), "{same:?}");
    assert_eq!((same.segments.as_slice(), same.steps, same.events), (&[1, 2, 3][..], 9, 45));
    assert_eq!(same.sq_norm.compared, 45 * BLOCKS as u64);
    // A norm that differs, a sketch that differs, and a weight.
    type Spoil = fn(&mut gradroute::provenance::StepRecord);
    let spoils: [Spoil; 3] =
        [|it| it.sq_norm[1] *= 1.5, |it| it.sketch[K] += 0.5, |it| it.route[2] += 0.25];
    for (at, spoil) in spoils.into_iter().enumerate() {
        let other = replay(&reader, 2..=2, |batch| {
            let mut again = record(batch.step);
            if batch.step == 4 {
                spoil(&mut again);
            }
            Ok(again)
        })
        .unwrap();
        assert_eq!(other.segments, [2]);
        let largest = [other.sq_norm.clone(), other.influence.clone(), other.weights.clone()];
        for (kind, deviation) in largest.iter().enumerate() {
            assert_eq!(deviation.largest > 1e-3, kind == at, "spoil {at}: {other:?}");
        }
        assert!(!other.agrees(1e-3) && other.agrees(2.0));
        let (place, sample, _) = largest[at].at.unwrap();
        assert_eq!(place, if at == 1 { 2 } else { 4 });
        assert!(record(4).samples.contains(&sample));
    }
    let error = replay(&reader, 1..=1, |batch| Ok(record(batch.step + 1))).unwrap_err().to_string();
    assert!(error.contains("samples"), "{error}");
}
