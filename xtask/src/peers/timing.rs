//! Passes of all participants in turn.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::participants::{Participant, Side};
use super::statistics::ratios;
use super::worker::{Memory, Pass, Worker, begin};
use super::workloads::Workload;
use super::{Format, Setting};

/// Steps of training that show both sides do the same.
pub const STEPS: usize = 20;
/// Passes of a participant that takes above so many milliseconds; the first that holds.
const SLOW: [(f64, u32); 2] = [(20_000.0, 1), (5_000.0, 3)];
/// Between passes: threads that wait for more work by spinning have given up by then.
pub const REST: Duration = Duration::from_millis(15);

/// A workload's outcomes, in the order of the participants.
pub struct Timed {
    pub workload: String,
    pub outcomes: Vec<Outcome>,
    /// Our losses in training and PyTorch's, where the workload trains.
    pub losses: Option<[Vec<f64>; 2]>,
}

/// What became of a participant.
pub struct Outcome {
    pub peer: Participant,
    /// Or why not.
    pub measured: Result<Measured, String>,
}

/// Of one participant on one workload.
pub struct Measured {
    /// Milliseconds of each round.
    pub times: Vec<f64>,
    /// Over the plain pass of its own side in the same round.
    pub over_own: Vec<f64>,
    /// Over PyTorch's plain pass in the same round.
    pub over_torch: Vec<f64>,
    /// The fastest pass over the fastest of each of these two. Other programs only ever make a pass
    /// slower, so that this says most where they do.
    pub fastest: [f64; 2],
    pub memory: Memory,
}

/// How often the passes are run.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub least: u32,
    /// Short passes go on for as long.
    pub at_least: Duration,
}

impl Rounds {
    fn go_on(&self, done: u32, since: Instant) -> bool {
        done < self.least || since.elapsed() < self.at_least
    }
}

/// One participant under way.
struct Runner {
    worker: Worker,
    /// At most so many passes count.
    most: u32,
    times: Vec<f64>,
}

/// Measures every workload.
pub fn measure(
    setting: &Setting,
    workloads: &[&Workload],
    threads: usize,
    rounds: Rounds,
) -> Result<Vec<Timed>> {
    let each = setting.participants.len() as u64 * u64::from(rounds.least + 2);
    let bar = ProgressBar::new(each * workloads.len() as u64);
    let style = "{bar:32} {pos}/{len} passes · {wide_msg} · {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    let timed = workloads.iter().enumerate().map(|(at, workload)| {
        bar.set_message(format!("{} thread(s), {}", threads, workload.name));
        if bar.is_hidden() {
            println!("{threads} thread(s), {}", workload.name);
        }
        let timed = one(setting, workload, threads, rounds, &bar);
        bar.set_position(each * (at as u64 + 1));
        timed.with_context(|| workload.name.clone())
    });
    let timed = timed.collect();
    bar.finish_and_clear();
    timed
}

fn one(
    setting: &Setting,
    workload: &Workload,
    threads: usize,
    rounds: Rounds,
    bar: &ProgressBar,
) -> Result<Timed> {
    let peers = &setting.participants;
    let mut expected = None;
    let mut runners: Vec<Result<Runner, String>> = Vec::new();
    for (peer, worker) in peers.iter().zip(begin_all(setting, workload, threads)?) {
        bar.set_message(format!("{threads} thread(s), {}: {}", workload.name, peer.name));
        let runner = worker.and_then(|worker| warm(worker, setting.format, &mut expected));
        // Without the plain passes there is nothing to compare with.
        let runner = if peer.plain { Ok(runner?) } else { runner.map_err(|m| format!("{m:#}")) };
        runners.push(runner);
        bar.inc(2);
    }
    let since = Instant::now();
    for round in (0..).take_while(|&done| rounds.go_on(done, since)) {
        for runner in &mut runners {
            bar.inc(u64::from(round < rounds.least));
            let Ok(going) = runner else { continue };
            if round >= going.most {
                continue;
            }
            sleep(REST);
            match going.worker.pass() {
                Ok(pass) => going.times.push(counted(pass, threads)),
                Err(mistake) => *runner = Err(format!("{mistake:#}")),
            }
        }
    }
    let ended = runners.iter_mut().map(|runner| match runner {
        Ok(going) => going.worker.memory().map_err(|mistake| format!("{mistake:#}")),
        Err(mistake) => Err(mistake.clone()),
    });
    let memories: Vec<Result<Memory, String>> = ended.collect();
    let losses = workload.trains.then(|| train(peers, &mut runners)).transpose()?;
    let outcomes = outcomes(peers, &runners, memories);
    Ok(Timed { workload: workload.name.clone(), outcomes, losses })
}

/// Starts everybody. The first is ours and writes the weights and inputs that the others read;
/// these start at once, since most of that is Python reading its libraries.
fn begin_all(
    setting: &Setting,
    workload: &Workload,
    threads: usize,
) -> Result<Vec<Result<Worker>>> {
    let file = setting.folder.join("workload.safetensors");
    let (first, others) = setting.participants.split_first().context("nobody takes part")?;
    ensure!(first.side == Side::Ours, "the first participant is ours");
    let mut ours = begin(setting, first, workload, &file, threads)?;
    ours.ask(&json!({ "do": "export", "file": file }))?;
    let mut workers = vec![Ok(ours)];
    std::thread::scope(|scope| {
        let file = &file;
        let start = move |peer: &Participant| {
            ensure!(peer.in_time(workload.group), "takes too long, as the small nets show");
            begin(setting, peer, workload, file, threads)
        };
        let starts = others.iter().map(|peer| scope.spawn(move || start(peer)));
        // All of them before the first is waited for.
        let starts: Vec<_> = starts.collect();
        workers.extend(starts.into_iter().map(|start| start.join().expect("it only returns")));
    });
    Ok(workers)
}

/// Two passes that do not count, one of those who need very long. The first participant says what the
/// loss has to be.
fn warm(mut worker: Worker, format: Format, expected: &mut Option<f64>) -> Result<Runner> {
    let mut pass = worker.pass()?;
    if pass.wall_ms < SLOW[0].0 {
        pass = worker.pass()?;
    }
    let loss = *expected.get_or_insert(pass.loss);
    let close = (pass.loss - loss).abs() <= tolerance(format) * loss.abs().max(1.0);
    ensure!(close, "other work: its loss is {}, ours {loss}", pass.loss);
    let most =
        SLOW.iter().find(|(above, _)| pass.wall_ms > *above).map_or(u32::MAX, |(_, most)| *most);
    Ok(Runner { worker, most, times: Vec::new() })
}

/// Relative difference of losses that are the same but for rounding.
fn tolerance(format: Format) -> f64 {
    match format {
        Format::F32 => 1e-3,
        Format::Bf16 => 5e-2,
    }
}

/// On one thread the processor's time, which other programs do not lengthen; else the wall's.
pub fn counted(pass: Pass, threads: usize) -> f64 {
    if threads == 1 { pass.cpu_ms } else { pass.wall_ms }
}

/// Both plain sides train; their losses.
fn train(peers: &[Participant], runners: &mut [Result<Runner, String>]) -> Result<[Vec<f64>; 2]> {
    let mut losses = |side| -> Result<Vec<f64>> {
        let plain = |peer: &Participant| peer.plain && peer.side == side;
        let at = peers.iter().position(plain).context("plain passes always take part")?;
        let Ok(runner) = &mut runners[at] else { return Ok(Vec::new()) };
        runner.worker.numbers(&json!({ "do": "train", "steps": STEPS }), "losses")
    };
    Ok([losses(Side::Ours)?, losses(Side::Python)?])
}

fn outcomes(
    peers: &[Participant],
    runners: &[Result<Runner, String>],
    memories: Vec<Result<Memory, String>>,
) -> Vec<Outcome> {
    let times = |at: usize| runners[at].as_ref().map_or(&[][..], |runner| &runner.times);
    let torch = peers.iter().position(|peer| peer.plain && peer.side == Side::Python);
    let each = peers.iter().zip(memories).enumerate().map(|(at, (peer, memory))| {
        let measured = memory.map(|memory| Measured {
            times: times(at).to_vec(),
            over_own: ratios(times(at), times(peer.base(peers))),
            over_torch: ratios(times(at), torch.map_or(&[], times)),
            fastest: [Some(peer.base(peers)), torch]
                .map(|base| fastest(times(at)) / fastest(base.map_or(&[], times))),
            memory,
        });
        Outcome { peer: *peer, measured }
    });
    each.collect()
}

fn fastest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The largest relative difference of two runs' losses.
pub fn apart(losses: &[Vec<f64>; 2]) -> f64 {
    let pairs = losses[0].iter().zip(&losses[1]);
    pairs.map(|(ours, theirs)| (ours / theirs - 1.0).abs()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::participants;

    #[test]
    fn one_thread_counts_the_processors_time() {
        let pass = Pass { wall_ms: 9.0, cpu_ms: 4.0, loss: 0.0 };
        assert_eq!((counted(pass, 1), counted(pass, 2)), (4.0, 9.0));
    }

    #[test]
    fn passes_go_on_until_both_are_enough() {
        let rounds = Rounds { least: 3, at_least: Duration::from_secs(3600) };
        assert!(rounds.go_on(100, Instant::now()));
        let rounds = Rounds { least: 3, at_least: Duration::ZERO };
        assert!(rounds.go_on(2, Instant::now()) && !rounds.go_on(3, Instant::now()));
    }

    #[test]
    fn the_fastest_pass_is_compared_with_the_fastest() {
        assert_eq!(fastest(&[3.0, 2.0, 5.0]) / fastest(&[4.0, 8.0]), 0.5);
    }

    #[test]
    fn losses_are_compared_step_by_step() {
        assert!((apart(&[vec![1.0, 2.2], vec![1.0, 2.0]]) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn who_failed_keeps_its_message() {
        let peers = participants::chosen(&["bergson".to_owned()]).unwrap();
        let failed: Vec<Result<Runner, String>> = peers.iter().map(|_| Err("no".into())).collect();
        let memories = peers.iter().map(|_| Err("no".to_owned())).collect();
        for outcome in outcomes(&peers, &failed, memories) {
            assert_eq!(outcome.measured.err().as_deref(), Some("no"), "{}", outcome.peer.name);
        }
    }
}
