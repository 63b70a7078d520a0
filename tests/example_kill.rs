//! The example under SIGKILL: its ledger opens after every kill with all but the open segment,
//! and the resumed run ends as if nothing had happened, guarded or not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gradroute::guard::Guard;
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

/// A run of [`STEPS`] steps, committed every [`COMMIT_EVERY`].
const PLAIN: &[&str] = &["--steps", "60", "--commit-every", "2", "--batch", "3"];
/// One in which copies come together often enough for their gates to close.
const GUARDED: &[&str] = &["--guard", "--steps", "24", "--commit-every", "6", "--batch", "24"];

/// Starts a run, or resumes it.
fn start(out: &Path, run: &[&str]) -> Child {
    let mut command = Command::new(example());
    command.arg("--out").arg(out).stdout(Stdio::piped());
    if out.join("run.json").exists() {
        command.arg("--resume");
    } else {
        command.args(run).args(["--questions", "6", "--no-report"]);
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
    finish(start(&whole, PLAIN));
    let pace = begin.elapsed() / (STEPS / COMMIT_EVERY) as u32;

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut reached = 0;
    for k in 0..KILLS {
        let printed = kill(start(&killed, PLAIN), &mut rng, pace);
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
    finish(start(&killed, PLAIN));

    let influence = |run: &Path| LedgerReader::open(run.join("ledger")).unwrap().accumulator();
    assert_eq!(influence(&killed).unwrap(), influence(&whole).unwrap(), "seed {seed}");
    let losses = |run: &Path| {
        let text = fs::read_to_string(run.join("result.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["losses"].clone()
    };
    assert_eq!(losses(&killed), losses(&whole), "seed {seed}");
}

/// Gates, and with them everything that was trained since, depend on what the guard saw before.
#[test]
fn a_guarded_run_resumes_with_its_guard() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    finish(start(&whole, GUARDED));
    // Killed at the third commit, when gates have closed already and will again.
    let mut child = start(&killed, GUARDED);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines.map(Result::unwrap).filter_map(|line| committed(&line));
    assert!(seen.take(3).last() == Some(18), "the run ended by itself");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    let open = |run: &Path| LedgerReader::open(run.join("ledger")).unwrap();
    let reached = open(&killed).next_step();
    finish(start(&killed, GUARDED));

    let [whole, killed] = [whole, killed].map(|run| open(&run));
    let events = |ledger: &LedgerReader| -> Vec<_> {
        let all = ledger.events().map(Result::unwrap);
        all.flat_map(|it| it.step.into_iter().zip(it.sample).zip(it.gate)).collect()
    };
    let gates = events(&whole);
    let closed = |from: u64, to: u64| {
        gates.iter().filter(|((step, _), gate)| (from..to).contains(step) && *gate < 1.0).count()
    };
    assert!(closed(0, reached) > 0 && closed(reached, 24) > 0, "the guard had nothing to do");
    assert_eq!(events(&killed), gates);
    let guard = |ledger: &LedgerReader| {
        let mut guard = Guard::of_run(ledger.info()).unwrap().unwrap();
        ledger.events().for_each(|events| guard.replay(&events.unwrap()).unwrap());
        guard
    };
    assert_eq!(guard(&killed), guard(&whole));
    for file in ["weights.safetensors", "average.safetensors", "optimizer.safetensors"] {
        let [a, b] =
            [&whole, &killed].map(|it| fs::read(it.checkpoint().unwrap().join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}
