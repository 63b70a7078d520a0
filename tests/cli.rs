//! The binary `gradroute`, end to end on a small ledger.

mod support_ledger;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use gradroute::provenance::query::{Archive, Place, Subject};
use serde_json::Value;
use support_ledger::{COPIES, WATCHED, guarded, id, written};

fn gradroute(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gradroute")).args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = gradroute(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&text(&all)).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn answers_are_those_of_the_library() {
    let dir = written(9, 3);
    let ledger = path(dir.path());
    let archive = Archive::open(dir.path()).unwrap();
    let forward = archive.forward(&Subject::Category("style/script".parse().unwrap())).unwrap();
    let backward = archive.backward(&Place::Block("up".into()), Some(2), 3).unwrap();
    let depth = archive.depth(&Subject::Sample(id(3)), None).unwrap();
    let overlap = archive.overlap(&"style/script".parse().unwrap(), None).unwrap();
    let alone = archive.alone(Some(2), 0.1).unwrap();
    let like = id(3).to_string();
    let value = |answer: &dyn erased::Answer| answer.value();
    let cases: [(&[&str], Value); 5] = [
        (&["trace", "forward", ledger, "--category", "style/script"], value(&forward)),
        (
            &["trace", "backward", ledger, "--block", "up", "--level", "2", "--top", "3"],
            value(&backward),
        ),
        (&["depth", ledger, "--sample", &like], value(&depth)),
        (&["overlap", ledger, "--category", "style/script"], value(&overlap)),
        (&["alone", ledger, "--level", "2"], value(&alone)),
    ];
    for (arguments, expected) in cases {
        assert_eq!(json(arguments), expected, "{arguments:?}");
        // The same for people.
        let table = text(arguments);
        assert!(table.contains(archive.reader().head()), "{table}");
        assert!(table.contains('±'), "{table}");
    }
    let inspected = json(&["inspect", ledger]);
    assert_eq!(inspected["entries"].as_array().unwrap().len(), 4);
    assert!(text(&["inspect", ledger]).contains("style/serif/cardo"));
    let memorized = json(&["memorized", ledger, "--top", "2"]);
    assert_eq!(memorized["samples"][0]["copies"], 1);
}

/// Answers as JSON.
mod erased {
    pub trait Answer {
        fn value(&self) -> serde_json::Value;
    }

    impl<T: serde::Serialize> Answer for T {
        fn value(&self) -> serde_json::Value {
            // Through text, as the binary does it.
            serde_json::from_str(&serde_json::to_string(self).unwrap()).unwrap()
        }
    }
}

#[test]
fn an_output_is_traced_from_a_query_file() {
    let dir = written(9, 3);
    let (ledger, file) = (path(dir.path()), dir.path().join("query.json"));
    let archive = Archive::open(dir.path()).unwrap();
    let query = archive.query_like(id(3)).unwrap();
    query.write(&file).unwrap();
    assert_eq!(gradroute::provenance::Query::read(&file).unwrap().sketches().count(), 1);
    let from_file = json(&["trace", "output", ledger, "--query", path(&file), "--plain"]);
    let like = id(3).to_string();
    let from_like = json(&["trace", "output", ledger, "--like", &like, "--plain"]);
    assert_eq!(from_file["helpful"], from_like["helpful"]);
    assert_eq!(from_file["helpful"][0]["sample"], id(3));
    for score in ["dot", "cosine", "self-influence"] {
        let arguments = ["trace", "output", ledger, "--like", &like, "--score", score];
        assert!(!json(&arguments)["helpful"].as_array().unwrap().is_empty());
    }
    let twice = ["trace", "output", ledger, "--query", path(&file), "--query", path(&file)];
    assert_eq!(json(&twice)["phases"], 2);
    assert!(text(&twice).contains("in 2 phases"));
    let page = dir.path().join("page.html");
    text(&["trace", "output", ledger, "--like", &like, "--html", path(&page)]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"), "{page}");
    // Of another shape, one phase's is named, and the advice is the same.
    let other = dir.path().join("other.json");
    let mut shape: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    shape["draws"][0]["sketch"].as_array_mut().unwrap().truncate(8);
    shape["blocks"] = 1.into();
    fs::write(&other, shape.to_string()).unwrap();
    let phases = ["trace", "output", ledger, "--query", path(&file), "--query", path(&other)];
    let said = String::from_utf8_lossy(&gradroute(&phases).stderr).into_owned();
    assert!(said.contains("queries[1]") && said.contains("Query::write"), "{said}");
    fs::write(&file, "{\"blocks\": 2}").unwrap();
    let refused = gradroute(&["trace", "output", ledger, "--query", path(&file)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Query::write"));
}

#[test]
fn verify_says_what_was_altered_by_its_exit_code_too() {
    let dir = written(9, 3);
    let ledger = path(dir.path());
    let head = Archive::open(dir.path()).unwrap().reader().head().to_owned();
    let commits = text(&["inspect", ledger]);
    assert_eq!([commits.matches("superseded").count(), commits.matches("kept").count()], [2, 1]);
    let shouted = format!("{}\n", head.to_ascii_uppercase());
    for head in [&head, &shouted] {
        assert!(text(&["verify", ledger, "--head", head]).contains("in order"));
    }
    let table = dir.path().join("segments/000002.influence.parquet");
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    let output = gradroute(&["verify", ledger, "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["findings"][0]["file"], "segments/000002.influence.parquet");
    assert_eq!(found["findings"].as_array().unwrap().len(), 1);
    // Nothing is answered from it, under a head that it no longer has.
    for asked in [&["depth", ledger, "--category", "style"][..], &["inspect", ledger]] {
        let refused = gradroute(asked);
        assert_eq!(refused.status.code(), Some(1), "{asked:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("000002.influence") && said.contains("gradroute verify"), "{said}");
    }
    for mistyped in [&head[..12], "xyz", ""] {
        assert_eq!(gradroute(&["verify", ledger, "--head", mistyped]).status.code(), Some(2));
    }
    let other = gradroute(&["verify", path(written(3, 3).path()), "--head", &head]);
    assert_eq!(other.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&other.stdout).contains("cut off"));
}

#[test]
fn a_signed_ledger_verifies_with_its_key_only() {
    use ed25519_dalek::SigningKey;
    use ed25519_dalek::pkcs8::{EncodePrivateKey, EncodePublicKey};
    let (dir, keys) = (written(3, 3), tempfile::tempdir().unwrap());
    let ledger = path(dir.path());
    let files: Vec<[std::path::PathBuf; 2]> = [7, 8]
        .map(|seed| {
            let key = SigningKey::from_bytes(&[seed; 32]);
            let [private, public] =
                ["key", "public"].map(|name| keys.path().join(format!("{name}{seed}.pem")));
            fs::write(&private, key.to_pkcs8_pem(Default::default()).unwrap().as_bytes()).unwrap();
            let pem = key.verifying_key().to_public_key_pem(Default::default()).unwrap();
            fs::write(&public, pem).unwrap();
            [private, public]
        })
        .into();
    text(&["sign", ledger, "--key", path(&files[0][0])]);
    text(&["verify", ledger, "--public-key", path(&files[0][1])]);
    let other = gradroute(&["verify", ledger, "--public-key", path(&files[1][1])]);
    assert_eq!(other.status.code(), Some(3));
}

#[test]
fn tables_are_exported_in_three_forms() {
    let dir = written(9, 3);
    let (ledger, out) = (path(dir.path()), tempfile::tempdir().unwrap());
    let export = |table: &str, format: &str, more: &[&str]| {
        let file = out.path().join(format!("{table}.{format}"));
        let arguments = ["export", ledger, table, "--format", format, "--out", path(&file)];
        text(&arguments.iter().chain(more).copied().collect::<Vec<_>>());
        fs::read(file).unwrap()
    };
    let csv = String::from_utf8(export("influence", "csv", &[])).unwrap();
    assert!(csv.starts_with("sample,category,block,moved,path,applied,"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 12 * 2);
    let events: Value = serde_json::from_slice(&export("events", "json", &[])).unwrap();
    assert_eq!(events.as_array().unwrap().len(), 9 * 5);
    assert!(events[0]["sq_norm.up"].is_number());
    let parquet = export("samples", "parquet", &["--category", "style/serif"]);
    assert_eq!((&parquet[..4], &parquet[parquet.len() - 4..]), (&b"PAR1"[..], &b"PAR1"[..]));
    let one = id(3).to_string();
    let csv = String::from_utf8(export("samples", "csv", &["--sample", &one])).unwrap();
    assert_eq!(csv.lines().count(), 2);
}

#[test]
fn a_guarded_run_says_what_was_gated_and_why() {
    let (dir, mut guard) = guarded(22, 1);
    let ledger = path(dir.path());
    let answer = json(&["memorized", ledger, "--top", "9"]);
    let watched = &answer["guard"];
    let copies: Vec<u64> = (WATCHED - COPIES..WATCHED).map(id).collect();
    assert_eq!(watched["samples"], WATCHED);
    assert_eq!(watched["scores"].as_array().unwrap().len(), 9);
    let most = guard.scores().into_iter().max_by(|a, b| a.total.total_cmp(&b.total)).unwrap();
    assert_eq!(watched["scores"][0]["sample"], most.sample);
    assert_eq!(watched["scores"][0]["total"], most.total);
    assert!(copies.contains(&most.sample));
    // The copies are one group, and its gates are the guard's own.
    let (gated, events) = (&guard.report().gated[0], guard.take_events());
    assert_eq!(watched["clusters"].as_array().unwrap().len(), 1);
    assert_eq!(watched["clusters"][0]["members"], serde_json::json!(copies));
    assert_eq!(watched["clusters"][0]["closed"], gated.times);
    assert_eq!(watched["gated"][0]["times"], gated.times);
    assert_eq!(watched["gated"][0]["level"], "cluster");
    let steps = [events[0].step, events.last().unwrap().step];
    assert_eq!(watched["gated"][0]["steps"], serde_json::json!(steps));
    // And not the gates of a run that closed none.
    assert_eq!(json(&["memorized", path(written(9, 3).path())])["guard"], Value::Null);
    let page = dir.path().join("memorized.html");
    text(&["memorized", ledger, "--html", path(&page)]);
    let table = text(&["memorized", ledger]);
    for text in [table, fs::read_to_string(page).unwrap()] {
        assert!(text.contains("the cluster's exposure"), "{text}");
        assert!(text.contains(&format!("{} to {}", steps[0], steps[1])), "{text}");
    }
}

#[test]
fn who_stops_reading_makes_no_error() {
    let dir = written(3, 3);
    let mut child = Command::new(env!("CARGO_BIN_EXE_gradroute"))
        .args(["inspect", path(dir.path()), "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Before anything is written: the ledger is read first.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

#[test]
fn a_page_that_cannot_be_written_is_noticed_before_anything_is_done() {
    let dir = written(3, 3);
    let (page, out) = (dir.path().join("missing/page.html"), dir.path().join("index"));
    let arguments = ["index", path(dir.path()), "--out", path(&out), "--html", path(&page)];
    let refused = gradroute(&arguments);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && told.contains("missing"), "{told}");
    assert!(!out.exists());
    let folder = gradroute(&["inspect", path(dir.path()), "--html", path(dir.path())]);
    assert!(folder.status.code() == Some(1) && folder.stdout.is_empty());
}

#[test]
fn mistakes_say_what_to_do() {
    let dir = written(3, 3);
    let (ledger, empty) = (path(dir.path()), tempfile::tempdir().unwrap());
    let cases: [(&[&str], i32, &str); 6] = [
        (&["inspect", path(empty.path())], 1, "manifest.json"),
        (&["trace", "backward", ledger, "--block", "side"], 1, "down, up"),
        (&["depth", ledger, "--category", "nobody"], 1, "gradroute inspect"),
        (&["depth", ledger], 2, "--category"),
        (&["trace", "forward", ledger, "--sample", "x"], 2, "invalid value"),
        (&["verify"], 2, "<LEDGER>"),
    ];
    for (arguments, code, advice) in cases {
        let output = gradroute(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(advice), "{arguments:?}: {errors}");
    }
    let help = text(&["--help"]);
    for expected in ["Exit status:", "Examples:", "verify", "trace", "depth", "attenuate"] {
        assert!(help.contains(expected), "{help}");
    }
}
