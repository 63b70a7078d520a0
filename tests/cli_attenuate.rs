//! `gradroute attenuate`, from a ledger and a checkpoint to another checkpoint.

mod support_ledger;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use gradroute::projection::SketchKind;
use gradroute::provenance::ledger::{Ledger, RunInfo};
use gradroute::routing::{Categories, CompiledPolicy, LayerSpec, ModelLayout, Policy};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use support_ledger::{K, info, record};

const POLICY: &str = r#"
    block = [{ name = "down", layers = "down.*" }, { name = "up", layers = "up.*" }]
    profile = [{ category = "style" }, { category = "style/script", route = 0.0 }]
    [[region]]
    name = "script"
    owner = "style/script"
    switch = "strict"
    parts = [{ layers = "up.fc", outputs = "-2.." }]
"#;
const DIAL: [&str; 2] = ["--dial", "style/script=0.25"];

fn policy() -> CompiledPolicy {
    let layout = ModelLayout::new(vec![
        LayerSpec::linear("down.fc", 3, 4, false),
        LayerSpec::linear("up.fc", 4, 6, false).reading("down.fc"),
        LayerSpec::linear("up.out", 6, 2, false).reading("up.fc"),
    ])
    .unwrap();
    let categories: Vec<String> = info().samples.into_iter().map(|it| it.category).collect();
    let distinct = categories.iter().enumerate().filter(|(n, it)| !categories[..*n].contains(it));
    let categories = Categories::new(distinct.map(|(_, it)| it)).unwrap();
    Policy::from_toml(POLICY).unwrap().compile(&layout, &categories).unwrap()
}

/// A folder with a ledger, its checkpoint, and the policy's files beside them.
struct Run(tempfile::TempDir);

impl Run {
    fn new(described: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy = policy();
        let tensors: Vec<(&str, Vec<usize>)> = vec![
            ("down.fc.weight", vec![4, 3]),
            ("up.fc.weight", vec![6, 4]),
            ("up.out.weight", vec![2, 6]),
        ];
        let numbers: Vec<u8> = (1..=24).flat_map(|n| (n as f32).to_le_bytes()).collect();
        let views = tensors.iter().map(|(name, shape)| {
            let bytes = &numbers[..4 * shape.iter().product::<usize>()];
            (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let kept = [("a", "1"), ("format", "pt"), ("z", "2")];
        let kept = kept.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let checkpoint = safetensors::serialize(views, Some(kept)).unwrap();
        fs::write(dir.path().join("model.safetensors"), &checkpoint).unwrap();
        fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let layout = serde_json::to_string(policy.layout()).unwrap();
        fs::write(dir.path().join("layout.json"), layout).unwrap();

        let mut described_run = RunInfo {
            samples: info().samples,
            noise_edges: info().noise_edges,
            ..RunInfo::new(SketchKind::Count { buckets: K }, 5).governed(&policy)
        };
        if !described {
            described_run.layout = None;
        }
        let mut ledger = Ledger::create(dir.path().join("ledger"), described_run).unwrap();
        (0..6).for_each(|step| ledger.append(&record(step)).unwrap());
        let folder = ledger.checkpoint_dir().unwrap();
        fs::write(folder.join("weights.safetensors"), checkpoint).unwrap();
        ledger.commit().unwrap();
        Self(dir)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_on("model.safetensors", arguments)
    }

    fn run_on(&self, checkpoint: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradroute"));
        command.current_dir(self.0.path()).args(["attenuate", checkpoint]);
        command.args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.run(arguments).stdout).unwrap()
    }

    /// What a refused command line says.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        errors
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path().join(name)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

fn numbers(checkpoint: &[u8], name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(checkpoint).unwrap();
    let data = tensors.tensor(name).unwrap().data().as_chunks().0.to_vec();
    data.into_iter().map(f32::from_le_bytes).collect()
}

#[test]
fn a_dry_run_predicts_and_writes_nothing() {
    let run = Run::new(true);
    let files = run.files();
    let arguments = [&DIAL[..], &["--ledger", "ledger", "--dry-run"]].concat();
    let answer = run.json(&arguments);
    let table = run.text(&arguments);
    assert_eq!(run.files(), files);
    assert_eq!(answer["attenuated"]["file"], Value::Null);
    assert_eq!((&answer["measured"], &answer["ledger_entry"]), (&Value::Null, &json!(1)));
    let blocks = answer["predicted"]["blocks"].as_array().unwrap();
    assert_eq!(
        (blocks.len(), &blocks[0]["name"], &blocks[0]["touched"]),
        (1, &json!("up"), &json!(4))
    );
    let region = &answer["predicted"]["regions"][0];
    assert_eq!((&region["contained"], &region["public_off"]), (&json!(true), &json!(1.0)));
    let reached = answer["predicted"]["reached"].as_f64().unwrap();
    assert!(reached > 0.0 && reached < 1.0, "{reached}");
    let others = answer["predicted"]["overlap"][0]["others"].as_array().unwrap();
    assert!(others.iter().all(|it| it["category"].as_str().unwrap().starts_with("style/serif")));
    assert_eq!(answer["citation"]["policy_hash"], answer["policy_hash"]);
    for expected in
        ["Nothing.", "A prediction, no measurement", "entry 1", "style/serif/cardo", "±"]
    {
        assert!(table.contains(expected), "{expected}: {table}");
    }
}

#[test]
fn a_checkpoint_is_attenuated_once() {
    let run = Run::new(true);
    let before = run.read("model.safetensors");
    let arguments = [&DIAL[..], &["--ledger", "ledger", "--out", "faded.safetensors"]].concat();
    let answer = run.json(&arguments);
    let after = run.read("faded.safetensors");
    assert_eq!(answer["attenuated"]["blake3"], blake3::hash(&after).to_hex().as_str());
    assert_eq!(answer["checkpoint"]["blake3"], blake3::hash(&before).to_hex().as_str());
    let expected = [1., 2., 3., 4., 1.25, 1.5, 7., 8., 9., 10., 2.75, 3.];
    assert_eq!(numbers(&after, "up.out.weight"), expected);
    for name in ["down.fc.weight", "up.fc.weight"] {
        assert_eq!(numbers(&after, name), numbers(&before, name));
    }
    let (_, header) = SafeTensors::read_metadata(&after).unwrap();
    let notes = header.metadata().as_ref().unwrap();
    assert_eq!((notes["format"].as_str(), notes["z"].as_str()), ("pt", "2"));
    assert!(notes["gradroute.attenuation"].contains("style/script 0.25"), "{notes:?}");

    // Once more multiplies, and says so; a dial at 1 does nothing, and says that.
    assert!(answer["earlier"].as_array().unwrap().is_empty());
    let dry = [&DIAL[..], &["--ledger", "ledger", "--dry-run"]].concat();
    let again = String::from_utf8(run.run_on("faded.safetensors", &dry).stdout).unwrap();
    assert!(again.contains("factors multiply") && again.contains("style/script 0.25"), "{again}");
    let open = run.text(&["--dial", "style/script=1", "--ledger", "ledger", "--dry-run"]);
    assert!(open.contains("every dial is at 1") && !open.contains("collateral"), "{open}");

    // What is there stays, unless it is said not to.
    let files = run.files();
    let other = ["--dial", "style/script=0", "--ledger", "ledger", "--out", "faded.safetensors"];
    assert!(run.refused(&other, 1).contains("--force"));
    assert_eq!(run.read("faded.safetensors"), after);
    let forced = run.json(&[&other[..], &["--force"]].concat());
    assert_ne!(forced["attenuated"]["blake3"], answer["attenuated"]["blake3"]);
    assert_eq!(numbers(&run.read("faded.safetensors"), "up.out.weight")[4..6], [0.0, 0.0]);
    let itself = [&other[..5], &["./model.safetensors", "--force"]].concat();
    assert!(run.refused(&itself, 1).contains("another file"));
    assert_eq!(run.read("model.safetensors"), before);
    assert_eq!(run.files(), files, "nothing is left over");

    // Without the ledger, and for one block: the same bytes but for the note; and again.
    let alone = ["--policy", "policy.toml", "--layout", "layout.json", "--out"];
    let first = run.json(&[&DIAL[..], &alone, &["alone.safetensors"]].concat());
    assert_eq!(first["attenuated"]["blake3"], answer["attenuated"]["blake3"]);
    assert_eq!((&first["citation"], &first["predicted"]["reached"]), (&Value::Null, &Value::Null));
    let block = ["--dial", "style/script=0.25@up"];
    run.json(&[&block[..], &alone, &["block.safetensors"]].concat());
    assert_eq!(numbers(&run.read("block.safetensors"), "up.out.weight"), expected);
}

#[test]
fn only_losses_of_these_checkpoints_are_a_measurement() {
    let run = Run::new(true);
    let arguments = [&DIAL[..], &["--ledger", "ledger", "--dry-run"]].concat();
    let answer = run.json(&arguments);
    let side = |which: &str, forget: [f64; 3], retain: [f64; 3]| json!({"blake3": answer[which]["blake3"], "forget": forget, "retain": retain});
    let before = side("checkpoint", [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]);
    let after = side("attenuated", [2.0, 3.5, 3.5], [1.0, 1.1, 0.9]);
    let losses = run.0.path().join("losses.json");
    fs::write(&losses, json!({"before": before, "after": after}).to_string()).unwrap();
    let arguments = [&arguments[..], &["--losses", "losses.json"]].concat();
    let measured = run.json(&arguments)["measured"].clone();
    assert_eq!(
        (&measured["forget"]["before"], &measured["forget"]["after"]),
        (&json!(2.0), &json!(3.0))
    );
    assert_eq!(measured["retain"]["count"], 3);
    let table = run.text(&arguments);
    assert!(table.contains("The loss to forget rose by 50.0 %."), "{table}");
    assert!(table.contains("The loss to retain: no change that"), "{table}");

    // The other way round they are of other checkpoints.
    fs::write(&losses, json!({"before": after, "after": before}).to_string()).unwrap();
    let errors = run.refused(&arguments, 1);
    assert!(errors.contains("losses.before.blake3") && errors.contains("b3sum"), "{errors}");
    let one = json!({"blake3": answer["checkpoint"]["blake3"], "forget": [1.0], "retain": [1.0]});
    let other = json!({"blake3": answer["attenuated"]["blake3"], "forget": [1.0], "retain": [1.0]});
    fs::write(&losses, json!({"before": one, "after": other}).to_string()).unwrap();
    assert!(run.refused(&arguments, 1).contains("at least 2"));
    let page = [&arguments[..4], &["--dry-run", "--html", "page.html"]].concat();
    run.text(&page);
    assert!(String::from_utf8(run.read("page.html")).unwrap().contains("<svg"));
}

#[test]
fn what_cannot_be_attenuated_is_refused_with_advice() {
    let run = Run::new(false);
    fn of<'a>(dial: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["--dial", dial, "--ledger", "ledger", "--dry-run"], more].concat()
    }
    let layout = ["--layout", "layout.json"];
    assert!(run.refused(&of("style/script=0", &[]), 1).contains("--layout"));
    assert_eq!(run.json(&of("style/script=0", &layout))["predicted"]["blocks"][0]["touched"], 4);
    let cases = [
        ("style/script=0@down", 1, "would change"),
        ("style/script=0@side", 1, "gradroute inspect"),
        ("style/script/kristi=0", 1, "dial style/script"),
        ("style/serif=0", 1, "owns no region"),
        ("style/script=2", 2, "from 0 to 1"),
        ("style/script", 2, "CATEGORY"),
    ];
    for (dial, code, advice) in cases {
        let errors = run.refused(&of(dial, &layout), code);
        assert!(errors.contains(advice), "{dial}: {errors}");
    }
    assert!(run.refused(&["--dial", "style/script=0", "--dry-run"], 2).contains("--ledger"));
    assert!(run.refused(&["--dial", "style/script=0", "--ledger", "ledger"], 2).contains("--out"));
    let missing = Path::new("model.safetensors");
    fs::write(run.0.path().join(missing), b"nothing").unwrap();
    assert!(run.refused(&of("style/script=0", &layout), 1).contains("safetensors"));
    let help = run.text(&["--help"]);
    for expected in ["Examples:", "--dry-run", "--losses", "Projection", "[@BLOCK]"] {
        assert!(help.contains(expected), "{help}");
    }
}
