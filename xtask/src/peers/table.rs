//! The records in Markdown.

use std::fmt::Write as _;

use super::participants::Participant;
use super::statistics::Spread;
use super::timing::{Measured, STEPS, Timed, apart};
use super::{Setting, cores, correctness};

/// A message is cut here.
const LONGEST: usize = 220;
/// Errors of a norm up to this are rounding.
const ROUNDING: f64 = 1e-4;

/// Of the table of times.
const COLUMNS: [&str; 10] = [
    "workload",
    "by",
    "ms",
    "over own plain",
    "over PyTorch",
    "fastest, over own plain",
    "fastest, over PyTorch",
    "peak, MiB",
    "added, MiB",
    "added, over own plain",
];

/// What was timed on so many threads.
pub fn timing(setting: &Setting, timed: &[Timed], threads: usize, date: &str) -> String {
    let clock = match threads {
        1 => "processor time on one thread".to_owned(),
        _ => format!("wall-clock time on {threads} threads"),
    };
    let clock = match cores::chosen(threads) {
        Some(_) => format!("{clock}, everybody on the same of the machine's cores"),
        None => clock,
    };
    let mut text = format!(
        "# Side by side with the peers\n\n\
         {}, {date}, {}, {clock}.\n\
         Forward and backward keeping the parameters' gradients, and what is taken of each sample\n\
         beside them, all from the same weights and inputs, in turn in one run by `cargo xtask\n\
         peers`: median (quartiles) of milliseconds, of the ratio to the plain pass of the same\n\
         framework and to PyTorch's in the same round; the fastest pass over their fastest, which\n\
         says most where other programs slow the machine; memory of the whole process at its peak,\n\
         how much of that the passes added to model and inputs, and the latter over what the plain\n\
         pass of the same framework adds. For all of them the C library's allocator keeps what is\n\
         freed. Up to {most} passes each.\n\n",
        crate::machine::processor(),
        setting.format.name(),
        most = passes(timed),
    );
    if setting.blas.is_some() {
        let version = setting.versions.of("mkl").unwrap_or_default();
        writeln!(text, "Our side's large products are by MKL {version}, as PyTorch's are.\n")
            .expect("a string");
    }
    // Candle's own loops are written for the processor that the compiler is told of.
    if let Some(flags) = std::env::var("RUSTFLAGS").ok().filter(|flags| !flags.is_empty()) {
        writeln!(text, "Our side is built with `RUSTFLAGS=\"{flags}\"`.\n").expect("a string");
    }
    for peer in &setting.participants {
        writeln!(text, "- *{}*: {}.", versioned(setting, peer), peer.takes).expect("a string");
    }
    text.push('\n');
    row(&mut text, &COLUMNS.map(str::to_owned));
    row(&mut text, &COLUMNS.map(|_| "---".to_owned()));
    for timed in timed {
        rows(&mut text, timed);
    }
    for timed in timed {
        let Some(losses) = &timed.losses else { continue };
        let last = |at: usize| losses[at].last().copied().unwrap_or(f64::NAN);
        let first = losses[0].first().copied().unwrap_or(f64::NAN);
        writeln!(
            text,
            "\nLosses of {STEPS} steps of AdamW on {}, from the same weights: {first:.6} to {:.6}, \
             PyTorch's to {:.6}; largest relative difference at any step {:.1e}.",
            timed.workload,
            last(0),
            last(1),
            apart(losses),
        )
        .expect("a string");
    }
    text
}

/// The most passes that anybody ran.
fn passes(timed: &[Timed]) -> usize {
    let measured = timed.iter().flat_map(|timed| &timed.outcomes);
    measured
        .filter_map(|outcome| Some(outcome.measured.as_ref().ok()?.times.len()))
        .max()
        .unwrap_or(0)
}

fn rows(text: &mut String, timed: &Timed) {
    let plain: Vec<Option<f64>> = timed
        .outcomes
        .iter()
        .map(|outcome| {
            let peers: Vec<Participant> = timed.outcomes.iter().map(|other| other.peer).collect();
            let base = &timed.outcomes[outcome.peer.base(&peers)];
            base.measured.as_ref().ok().map(added)
        })
        .collect();
    for (at, outcome) in timed.outcomes.iter().enumerate() {
        let name = if at == 0 { timed.workload.clone() } else { String::new() };
        let by = outcome.peer.name.to_owned();
        let cells = match &outcome.measured {
            Err(mistake) => {
                let said = format!("cannot: {}", short(mistake));
                let empty = [const { String::new() }; COLUMNS.len() - 3];
                [vec![name, by, said], empty.to_vec()].concat()
            }
            Ok(measured) => {
                let spread = |values: &[f64], digits| {
                    Spread::of(values).map_or_else(String::new, |spread| spread.cell(digits))
                };
                let own =
                    if outcome.peer.plain { String::new() } else { spread(&measured.over_own, 3) };
                let share = plain[at].filter(|_| !outcome.peer.plain);
                let share = share.map(|plain| added(measured) / plain);
                let [fastest_own, fastest_torch] =
                    measured.fastest.map(|over| format!("{over:.3}"));
                let fastest_own = if outcome.peer.plain { String::new() } else { fastest_own };
                vec![
                    name,
                    by,
                    spread(&measured.times, 2),
                    own,
                    spread(&measured.over_torch, 3),
                    fastest_own,
                    fastest_torch,
                    format!("{:.0}", measured.memory.peak_bytes as f64 / MIB),
                    format!("{:.1}", added(measured) / MIB),
                    share.map_or_else(String::new, |share| format!("{share:.2}")),
                ]
            }
        };
        row(text, &cells);
    }
}

const MIB: f64 = (1 << 20) as f64;

/// Bytes the passes added.
fn added(measured: &Measured) -> f64 {
    measured.memory.peak_bytes.saturating_sub(measured.memory.before_bytes) as f64
}

/// Norms against the truth.
pub fn correctness(setting: &Setting, checked: &[correctness::Checked], date: &str) -> String {
    let peers = correctness::participants(setting);
    let mut text = format!(
        "# Norms of single samples against the truth\n\n\
         {date}, f32. The norm of each of a few samples' gradients over all parameters of one\n\
         layer, or of the whole model, as each takes it in one batch, against the sample by itself\n\
         through PyTorch's autograd in double precision, from the same weights and inputs: the\n\
         largest relative error. Up to {ROUNDING:.0e} it is rounding. By `cargo xtask peers\n\
         --correctness`.\n\n",
    );
    let names = peers.iter().map(|peer| versioned(setting, peer));
    let head: Vec<String> = std::iter::once("layer".to_owned()).chain(names).collect();
    row(&mut text, &head);
    row(&mut text, &vec!["---".to_owned(); head.len()]);
    let mut notes: Vec<String> = Vec::new();
    for checked in checked {
        let cells = checked.errors.iter().zip(&peers).map(|(error, peer)| match error {
            Ok(error) if *error <= ROUNDING => format!("{error:.0e}"),
            Ok(error) => format!("**wrong by {:.1} %**", error * 100.0),
            Err(mistake) => {
                let note = format!("{}: {}", peer.name, short(mistake));
                let at = notes.iter().position(|known| *known == note).unwrap_or_else(|| {
                    notes.push(note);
                    notes.len() - 1
                });
                format!("cannot ({})", at + 1)
            }
        });
        row(&mut text, &std::iter::once(checked.kind.clone()).chain(cells).collect::<Vec<_>>());
    }
    text.push('\n');
    for (at, note) in notes.iter().enumerate() {
        writeln!(text, "{}. {note}", at + 1).expect("a string");
    }
    text
}

/// With the version of the package it comes from.
fn versioned(setting: &Setting, peer: &Participant) -> String {
    let version = peer.package.and_then(|package| setting.versions.of(package));
    match version {
        Some(version) => format!("{} {version}", peer.name),
        None => peer.name.to_owned(),
    }
}

fn row(text: &mut String, cells: &[String]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("a string");
}

/// One line that breaks no table and names no folder.
fn short(message: &str) -> String {
    let words = message.split_whitespace().map(|word| match word.rfind('/') {
        Some(at) if word.trim_start_matches(['"', '\'', '(']).starts_with('/') => &word[at + 1..],
        _ => word,
    });
    let line = words.collect::<Vec<_>>().join(" ").replace('|', "\\|");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} …", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
