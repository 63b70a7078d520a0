use super::*;
use crate::peers::environment::Versions;
use crate::peers::timing::Outcome;
use crate::peers::worker::Memory;
use crate::peers::{Format, participants};

fn setting() -> Setting {
    Setting {
        ours: "ours".into(),
        python: "python".into(),
        folder: ".".into(),
        participants: participants::chosen(&["opacus".to_owned()]).unwrap(),
        versions: Versions::pinned(),
        blas: None,
        format: Format::F32,
        memory_bytes: 0,
    }
}

#[test]
fn a_row_each_with_ratios_or_the_message() {
    let setting = setting();
    let outcomes = setting.participants.iter().enumerate().map(|(at, peer)| {
        let measured = Measured {
            times: vec![2.0 + at as f64; 3],
            over_own: vec![1.5; 3],
            over_torch: vec![0.5; 3],
            fastest: [1.25, 0.75],
            memory: Memory { before_bytes: 1 << 20, peak_bytes: (3 + at as u64) << 20 },
        };
        let failed = peer.name == "Opacus";
        let measured = if failed { Err("a | b\n in /x/y.py".to_owned()) } else { Ok(measured) };
        Outcome { peer: *peer, measured }
    });
    let losses = Some([vec![1.0, 0.5], vec![1.0, 0.5]]);
    let timed = Timed { workload: "a net".into(), outcomes: outcomes.collect(), losses };
    let text = timing(&setting, &[timed], 1, "2026-01-01");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(lines.len(), 2 + setting.participants.len());
    assert!(lines[2].starts_with("| a net | gradroute, plain | 2.00 (2.00–2.00) |  | 0.500"));
    assert!(lines[2].contains("|  | 0.750 |"), "{}", lines[2]);
    assert!(lines[3].contains("| 1.500 (1.500–1.500) |"), "{}", lines[3]);
    assert!(lines[3].contains("| 1.250 | 0.750 |"), "{}", lines[3]);
    // Peak 4 MiB of which 1 before; the plain pass added 2.
    assert!(lines[3].ends_with("| 4 | 3.0 | 1.50 |"), "{}", lines[3]);
    assert!(lines[8].contains(r"cannot: a \| b in y.py"), "{}", lines[8]);
    let columns = |line: &&str| line.replace(r"\|", "").matches('|').count();
    assert!(lines.iter().all(|line| columns(line) == COLUMNS.len() + 1));
    assert!(text.contains("largest relative difference at any step 0.0e0"));
    assert!(text.contains("*Opacus 1"));
    assert!(text.contains("Up to 3 passes each."));
}

#[test]
fn errors_beyond_rounding_are_called_wrong_and_messages_noted_once() {
    let setting = setting();
    let checked = |kind: &str, error: Result<f64, String>| correctness::Checked {
        kind: kind.into(),
        errors: vec![Ok(1e-7), error],
    };
    let all = [
        checked("linear", Ok(2e-6)),
        checked("grouped", Ok(0.271)),
        checked("other", Err("no such layer".into())),
        checked("another", Err("no such layer".into())),
    ];
    let text = correctness(&setting, &all, "2026-01-01");
    assert!(text.contains("| linear | 1e-7 | 2e-6 |"), "{text}");
    assert!(text.contains("| grouped | 1e-7 | **wrong by 27.1 %** |"));
    assert!(text.contains("| another | 1e-7 | cannot (1) |"));
    assert_eq!(text.matches("no such layer").count(), 1);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let cut = short(&"é".repeat(1000));
    assert_eq!(cut.chars().count(), LONGEST + 2);
}
