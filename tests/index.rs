//! An index against the ledger it was built from, and what becomes of a damaged one.

mod support_ledger;

use std::fs;
use std::path::Path;

use gradroute::Error;
use gradroute::provenance::index::{Index, IndexWriter, Precision, TopOptions};
use gradroute::provenance::ledger::LedgerReader;
use gradroute::provenance::query::{Archive, OutputOptions};
use gradroute::provenance::{Query, Scorer, Similarity, Whitening};
use support_ledger::{BLOCKS, K, draws, id, written};

const SIMILARITIES: [Similarity; 3] =
    [Similarity::Dot, Similarity::Cosine, Similarity::SelfInfluence];

struct Both {
    dir: tempfile::TempDir,
    archive: Archive,
    index: Index,
}

fn both(precision: Precision) -> Both {
    let dir = written(12, 4);
    let reader = LedgerReader::open(dir.path()).unwrap();
    let mut seen = Vec::new();
    let out = dir.path().join("index");
    let index = Index::build(&reader, &out, precision, |done, of| seen.push((done, of))).unwrap();
    assert_eq!(seen, (0..=5).map(|done| (done, 5)).collect::<Vec<_>>());
    assert!(!dir.path().join("index.building").exists());
    Both { archive: Archive::new(reader).unwrap(), index, dir }
}

/// The plain inner product.
fn plain(count: usize) -> TopOptions {
    TopOptions { whitening: None, count, ..TopOptions::default() }
}

/// How far a product may be off: the bounds that `Precision` states, times the query.
fn bound(precision: Precision, sketch: &[f32], query: &[f32]) -> f64 {
    let parts = sketch.chunks(K).zip(query.chunks(K));
    parts
        .map(|(sketch, query)| {
            let largest = sketch.iter().fold(0.0_f32, |most, it| most.max(it.abs()));
            let each = sketch.iter().zip(query).map(|(value, query)| {
                let off = match precision {
                    Precision::F16 => (value.abs() / 2048.0).max(largest / 2f32.powi(25)),
                    Precision::Int8 => largest / 254.0 * 1.00001,
                };
                f64::from(off) * f64::from(query.abs())
            });
            each.sum::<f64>()
        })
        .sum()
}

#[test]
fn scores_are_the_archives_within_the_stated_bound() {
    for precision in [Precision::F16, Precision::Int8] {
        let Both { archive, index, dir: _dir } = both(precision);
        let influence = archive.influence();
        let scorer = Scorer::plain(influence);
        let query = draws(9, 1, BLOCKS * K);
        for similarity in SIMILARITIES {
            let exact = scorer.scores(&query, similarity).unwrap();
            let scores = index.scores(&query, similarity, None, |_, _| ()).unwrap();
            assert_eq!(scores.ids(), influence.ids());
            let pairs = scores.values().iter().zip(exact.total()).zip(influence.ids());
            let mut different = 0;
            for ((&found, exact), id) in pairs {
                let sketch = influence.sketch(*id).unwrap();
                // What `similarity` divides by, which is not rounded.
                let dot = scorer.scores(&query, Similarity::Dot).unwrap();
                let at = influence.ids().iter().position(|it| it == id).unwrap();
                let divisor = exact / dot.total().nth(at).unwrap();
                let bound = bound(precision, sketch, &query) * divisor.abs() + 1e-12;
                assert!((found - exact).abs() <= bound, "{found} is not {exact} by {bound}");
                different += usize::from(found != exact);
            }
            assert!(different > 0, "{precision:?} rounds");
            for block in 0..BLOCKS {
                let found = index.scores(&query, similarity, Some(block), |_, _| ()).unwrap();
                for (found, exact) in found.values().iter().zip(exact.block(block)) {
                    assert!((found - exact).abs() <= 2e-2 * (1.0 + exact.abs()));
                }
            }
        }
    }
}

#[test]
fn an_answer_ranks_both_sides_and_cites_the_ledger() {
    let Both { archive, index, dir } = both(Precision::F16);
    let query = draws(9, 2, BLOCKS * K);
    let exact = Scorer::plain(archive.influence()).scores(&query, Similarity::Dot).unwrap();
    let exact = exact.top(usize::MAX);
    for index in [&index, &Index::open(dir.path().join("index")).unwrap()] {
        let answer = index.top(&query, &plain(3), |_, _| ()).unwrap();
        let ids = |ranked: &[(u64, f64)]| ranked.iter().map(|it| it.0).collect::<Vec<_>>();
        let found: Vec<u64> = answer.helpful.iter().map(|it| it.sample).collect();
        assert_eq!(found, ids(&exact[..3]));
        let mut worst = ids(&exact[exact.len() - 3..]);
        worst.reverse();
        assert_eq!(answer.harmful.iter().map(|it| it.sample).collect::<Vec<_>>(), worst);
        assert!(answer.harmful.iter().all(|it| it.score < 0.0));
        let mut cited = [found, worst].concat();
        cited.sort_unstable();
        assert_eq!(answer.citation.samples, cited);
        let mut whole = answer.citation.clone();
        whole.samples.clear();
        assert_eq!(whole, archive.citation());
    }
    index.verify(|_, _| ()).unwrap();
}

/// Whitened as the archive's sums are, and with the archive's shares; only the sketches are rounded.
#[test]
fn a_whitened_answer_is_the_archives() {
    let Both { archive, index, dir: _dir } = both(Precision::F16);
    let query = draws(9, 5, BLOCKS * K);
    let own = Whitening::new(archive.influence(), 0.2).unwrap().apply(&query).unwrap();
    let noted = index.whitening(0.2).unwrap().apply(&query).unwrap();
    for (noted, own) in noted.iter().zip(&own) {
        assert!((noted - own).abs() <= 1e-5 * own.abs().max(1e-3), "{noted} is not {own}");
    }
    let options = OutputOptions { count: 4, ..OutputOptions::default() };
    let exact = archive.output(&Query::single(BLOCKS, K, &query).unwrap(), &options).unwrap();
    let shared = TopOptions { count: 4, shares: true, ..TopOptions::default() };
    let answer = index.top(&query, &shared, |_, _| ()).unwrap();
    assert_eq!(answer.blocks, exact.blocks);
    for (found, exact) in [(&answer.helpful, &exact.helpful), (&answer.harmful, &exact.harmful)] {
        assert_eq!(found.len(), 4);
        for (found, exact) in found.iter().zip(exact) {
            assert_eq!(found.sample, exact.sample);
            // Rounding shows most in the directions that no sample took, which whitening magnifies.
            let close = (found.score / exact.score.value - 1.0).abs() < 0.02;
            assert!(close, "{found:?} is not {exact:?}");
            for (found, exact) in found.shares.iter().zip(&exact.shares) {
                assert!((found - exact).abs() < 0.02, "{found} is not {exact}");
            }
        }
    }
    // One block alone: its share is all there is.
    let one = TopOptions { block: Some(1), ..shared };
    let answer = index.top(&query, &one, |_, _| ()).unwrap();
    assert_eq!(
        (&answer.blocks[..], &answer.helpful[0].shares[..]),
        (&["up".to_owned()][..], &[1.0][..])
    );
    let cosine = TopOptions { similarity: Similarity::Cosine, ..shared };
    let problem = index.top(&query, &cosine, |_, _| ()).unwrap_err().to_string();
    assert!(problem.contains("`similarity`: expected the inner product"), "{problem}");
    assert!(index.whitening(0.0).err().unwrap().to_string().contains("`damping`"));
}

#[test]
fn rows_past_a_page_and_a_row_group_are_found_in_every_block() {
    // 16 384 rows make a group, 1 MiB a page: two groups and a bit, each of several pages.
    const LEN: usize = 80;
    const SAMPLES: usize = 2 * 16_384 + 77;
    let Both { index: other, .. } = both(Precision::F16);
    for precision in [Precision::F16, Precision::Int8] {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<u64> = (0..SAMPLES as u64).map(id).collect();
        let (blocks, citation) = (vec!["a".to_owned(), "b".to_owned()], other.citation().clone());
        let mut writer =
            IndexWriter::create(dir.path(), ids.clone(), blocks, LEN, precision, citation).unwrap();
        // Whole numbers, that both precisions hold exactly: 127 is the largest of each sketch.
        let padded = |values: [f32; 3]| {
            let mut row = [0.0; LEN];
            row[LEN - 3..].copy_from_slice(&values);
            row
        };
        let value = |block: usize, n: usize| padded([127.0, (n % 101) as f32, -(block as f32)]);
        for block in 0..2 {
            let rows: Vec<f32> = (0..SAMPLES).flat_map(|n| value(block, n)).collect();
            for rows in rows.chunks(LEN * 5000) {
                writer.push(rows).unwrap();
            }
        }
        let problem = writer.push(&[0.0; LEN]).unwrap_err().to_string();
        assert!(problem.contains("at most 0"), "{problem}");
        let index = writer.finish().unwrap();
        let query = [padded([0.5, 1.0, 2.0]), padded([0.25, -3.0, 1.0])].concat();
        let scores = index.scores(&query, Similarity::Dot, None, |_, _| ()).unwrap();
        assert_eq!(scores.ids(), ids);
        for (n, score) in scores.values().iter().enumerate() {
            let exact = 63.5 + (n % 101) as f64 + 31.75 - 3.0 * (n % 101) as f64 - 1.0;
            assert!((score - exact).abs() < 1e-4, "sample {n}: {score} is not {exact}");
        }
        index.verify(|_, _| ()).unwrap();
    }
}

#[test]
fn sketches_of_any_size_keep_their_digits() {
    let Both { index: other, .. } = both(Precision::F16);
    let values = [3e38_f32, 1e-30, 1e-42, 0.0, f32::NAN];
    for precision in [Precision::F16, Precision::Int8] {
        let dir = tempfile::tempdir().unwrap();
        let (ids, blocks) = ((0..values.len() as u64).collect(), vec!["a".to_owned()]);
        let citation = other.citation().clone();
        let mut writer =
            IndexWriter::create(dir.path(), ids, blocks, 2, precision, citation).unwrap();
        writer.push(&values.map(|it| [it, -it]).concat()).unwrap();
        let index = writer.finish().unwrap();
        let scores = index.scores(&[1.0, 0.0], Similarity::Dot, None, |_, _| ()).unwrap();
        for (found, exact) in scores.values().iter().zip(values.map(f64::from)) {
            // Next to the smallest number there is, 2⁻²⁵ or 1/254 of it.
            let bound = 2f64.powi(-11) * exact.abs() + 2f64.powi(-126) / 127.0;
            let close = (found - exact).abs() <= bound;
            assert!(close || (found.is_nan() && exact.is_nan()), "{found} is not {exact}");
        }
        // What is not a number does not hide the rest.
        let answer = index.top(&[1.0, 0.0], &plain(1), |_, _| ()).unwrap();
        assert_eq!(answer.helpful[0].sample, 0);
        let problem = index.top(&[1.0, 0.0], &TopOptions::default(), |_, _| ()).unwrap_err();
        assert!(problem.to_string().contains("not finite: ask without"), "{problem}");
    }
}

#[test]
fn what_cannot_be_asked_or_built_is_named() {
    let Both { index, archive, dir } = both(Precision::F16);
    let ask = |query: &[f32], block| {
        let asked = index.scores(query, Similarity::Dot, block, |_, _| ());
        asked.unwrap_err().to_string()
    };
    assert!(ask(&[0.0; 3], None).contains("`query`: expected 128 elements, got 3"));
    assert!(ask(&[f32::NAN; BLOCKS * K], None).contains("`query`: expected finite numbers"));
    assert!(ask(&[0.0; BLOCKS * K], Some(2)).contains("`block`: expected below 2, got 2"));
    let full = Index::build(archive.reader(), dir.path(), Precision::F16, |_, _| ());
    assert!(matches!(full.unwrap_err(), Error::Ledger { .. }));
    let empty = written(0, 1);
    let reader = LedgerReader::open(empty.path()).unwrap();
    let out = empty.path().join("index");
    let problem = Index::build(&reader, out, Precision::F16, |_, _| ()).unwrap_err().to_string();
    assert!(problem.contains("`ids`: expected at least one"), "{problem}");
    assert!(matches!(Index::open(empty.path()).unwrap_err(), Error::Io { .. }));
}

#[test]
fn the_command_line_gives_the_librarys_answer() {
    let Both { index, dir, .. } = both(Precision::Int8);
    let [ledger, query, out] = ["", "query.json", "by-command"].map(|name| dir.path().join(name));
    let sketch = draws(9, 2, BLOCKS * K);
    Query::single(BLOCKS, K, &sketch).unwrap().write(&query).unwrap();
    let run = |arguments: &[&str]| -> serde_json::Value {
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_gradroute"))
            .args(arguments)
            .arg("--json")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&command.stderr).into_owned();
        serde_json::from_slice(&command.stdout).unwrap_or_else(|_| errors.into())
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (ledger, query, out) = (path(&ledger), path(&query), path(&out));
    let built = run(&["index", &ledger, "--out", &out, "--int8"]);
    assert_eq!(built["bytes"], index.bytes());
    for (name, block) in [(None, None), (Some("up"), Some(1))] {
        for whitening in [None, Some(0.3)] {
            let mut arguments = vec!["top", &out, "--query", &query, "--top", "4", "--check"];
            arguments.extend(name.into_iter().flat_map(|name| ["--block", name]));
            let mut options = TopOptions { whitening, block, ..plain(4) };
            if whitening.is_none() {
                options.similarity = Similarity::SelfInfluence;
                arguments.extend(["--score", "self-influence", "--plain"]);
            } else {
                options.shares = true;
                arguments.extend(["--damping", "0.3", "--shares"]);
            }
            let answer = run(&arguments);
            let exact = index.top(&sketch, &options, |_, _| ()).unwrap();
            let exact = serde_json::to_string(&exact).unwrap();
            assert_eq!(answer, serde_json::from_str::<serde_json::Value>(&exact).unwrap());
        }
    }
    let refused = run(&["top", &out, "--query", &query, "--score", "cosine"]);
    assert!(refused.as_str().unwrap().contains("--plain"), "{refused}");
    let refused = run(&["top", &out, "--query", &query, "--block", "middle"]);
    assert!(refused.as_str().unwrap().contains("expected one of down, up"), "{refused}");
    // The table of a block is another's now.
    let [from, to] =
        [0, 1].map(|block| Path::new(&out).join(format!("block={block}/part-0.parquet")));
    fs::copy(from, to).unwrap();
    let refused = run(&["top", &out, "--query", &query, "--check"]);
    let refused = refused.as_str().unwrap();
    assert!(refused.contains("altered") && refused.contains("`gradroute index`"), "{refused}");
}

/// A fifth of the table's bytes, and many lengths: an error that names the file, or an answer; never
/// a panic. `verify` finds each.
#[test]
fn a_damaged_index_is_refused_or_found() {
    let Both { index, dir, .. } = both(Precision::F16);
    let (query, table) = (draws(9, 3, BLOCKS * K), index.table(1));
    let whole = fs::read(&table).unwrap();
    let mut refused = 0;
    let mut damage = |bytes: &[u8], what: &str| {
        fs::write(&table, bytes).unwrap();
        let named = |error: &Error| match error {
            Error::Ledger { path, .. } | Error::Io { path, .. } => path == &table,
            _ => false,
        };
        if let Err(error) = index.scores(&query, Similarity::Dot, None, |_, _| ()) {
            assert!(named(&error), "{what}: {error}");
            refused += 1;
        }
        assert!(named(&index.verify(|_, _| ()).unwrap_err()), "{what}");
    };
    for at in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        damage(&bytes, &format!("byte {at} flipped"));
    }
    for len in (0..whole.len()).step_by(197) {
        damage(&whole[..len], &format!("cut to {len}"));
    }
    assert!(refused > whole.len() / 197, "{refused} were refused");
    fs::remove_file(&table).unwrap();
    assert!(matches!(index.verify(|_, _| ()).unwrap_err(), Error::Io { .. }));
    fs::write(&table, whole).unwrap();
    index.verify(|_, _| ()).unwrap();
    swapped(&index, dir.path());
}

/// The same of what is noted for the whitening.
#[test]
fn damaged_products_are_refused_or_found() {
    let Both { index, dir: _dir, .. } = both(Precision::F16);
    let path = index.table(1).with_file_name("_gram.safetensors");
    let whole = fs::read(&path).unwrap();
    let (mut refused, header) = (0, whole.len() - 8 * K * K);
    for at in (0..header).chain((header..whole.len()).step_by(1013)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = index.whitening(0.1) {
            assert!(error.to_string().contains("_gram") || at >= header, "{at}: {error}");
            refused += 1;
        }
        assert!(index.verify(|_, _| ()).unwrap_err().to_string().contains("_gram"), "byte {at}");
    }
    assert!(refused > header / 2, "{refused} of {header}");
    fs::write(&path, &whole[..whole.len() - 8]).unwrap();
    assert!(index.whitening(0.1).err().unwrap().to_string().contains("_gram"));
    fs::write(&path, whole).unwrap();
    index.verify(|_, _| ()).unwrap();
}

/// Tables of other samples do not add up with the rest.
fn swapped(index: &Index, dir: &Path) {
    let (other, query) = (dir.join("other"), draws(9, 3, BLOCKS * K));
    let mut ids: Vec<u64> =
        index.scores(&query, Similarity::Dot, None, |_, _| ()).unwrap().ids().to_vec();
    ids.reverse();
    let (rows, citation) = (vec![0.5; ids.len() * K], index.citation().clone());
    let mut writer =
        IndexWriter::create(&other, ids, index.blocks().to_vec(), K, Precision::F16, citation)
            .unwrap();
    (0..BLOCKS).for_each(|_| writer.push(&rows).unwrap());
    fs::copy(writer.finish().unwrap().table(1), index.table(1)).unwrap();
    let error = index.scores(&query, Similarity::Dot, None, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("not those of the other blocks"), "{error}");
}
