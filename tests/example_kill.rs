//! The example under SIGKILL: its ledger opens after every kill with all but the open segment,
//! and the resumed run ends as if nothing had happened.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gradroute::provenance::ledger::LedgerReader;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KILLS: usize = 10;
const STEPS: u64 = 60;
const COMMIT_EVERY: u64 = 2;

/// Where cargo puts examples, seen from this test's own program.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/glyph_diffusion");
    let path = path.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "{} is not built; `cargo test --release` builds it, so does \
         `cargo build --release --example glyph_diffusion`",
        path.display()
    );
    path
}

/// Starts a run of [`STEPS`] steps, or resumes it.
fn start(out: &Path) -> Child {
    let mut command = Command::new(example());
    command.arg("--out").arg(out).stdout(Stdio::piped());
    if out.join("run.json").exists() {
        command.arg("--resume");
    } else {
        let (steps, every) = (STEPS.to_string(), COMMIT_EVERY.to_string());
        command.args(["--steps", &steps, "--commit-every", &every, "--batch", "3"]);
        command.args(["--questions", "6", "--no-report"]);
    }
    command.spawn().unwrap()
}

/// The step a line of output says to be committed.
fn committed(line: &str) -> Option<u64> {
    line.strip_prefix("committed step ")?.split('/').next()?.parse().ok()
}

fn finish(mut child: Child) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().for_each(|line| drop(line.unwrap()));
    assert!(child.wait().unwrap().success());
}

/// Lets the run go on for some commits and a random while, kills it, and says how far it was.
fn kill(mut child: Child, rng: &mut StdRng, pace: Duration) -> u64 {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = 0;
    for _ in 0..rng.random_range(0..3) {
        match lines.next() {
            Some(line) => last = last.max(committed(&line.unwrap()).unwrap_or(0)),
            None => break,
        }
    }
    std::thread::sleep(pace.mul_f64(rng.random_range(0.0..2.0)));
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the run ended before it was killed");
    // What it printed until it died.
    let rest = lines.map_while(Result::ok).filter_map(|line| committed(&line));
    rest.fold(last, u64::max)
}

#[test]
fn a_killed_run_loses_its_open_segment_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let begin = Instant::now();
    finish(start(&whole));
    let pace = begin.elapsed() / (STEPS / COMMIT_EVERY) as u32;

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut reached = 0;
    for k in 0..KILLS {
        let printed = kill(start(&killed), &mut rng, pace);
        let manifest = killed.join("ledger/manifest.json");
        if !manifest.exists() {
            assert_eq!((printed, reached), (0, 0), "kill {k} of seed {seed}: the ledger is gone");
            continue;
        }
        let ledger = LedgerReader::open(killed.join("ledger")).unwrap();
        ledger.verify().unwrap();
        let next = ledger.next_step();
        let context = format!("kill {k} of seed {seed}: step {next}, {printed} printed");
        // A commit may stand whose line was not printed any more.
        assert!((printed..=printed.max(reached) + COMMIT_EVERY).contains(&next), "{context}");
        assert!(next >= reached && next.is_multiple_of(COMMIT_EVERY), "{context}");
        reached = next;
    }
    finish(start(&killed));

    let influence = |run: &Path| LedgerReader::open(run.join("ledger")).unwrap().accumulator();
    assert_eq!(influence(&killed).unwrap(), influence(&whole).unwrap(), "seed {seed}");
    let losses = |run: &Path| {
        let text = fs::read_to_string(run.join("result.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["losses"].clone()
    };
    assert_eq!(losses(&killed), losses(&whole), "seed {seed}");
}
