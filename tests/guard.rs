//! A guard rebuilt from a ledger is the guard that watched the run.

mod support_ledger;

use gradroute::guard::{GUARD, Guard};
use gradroute::provenance::ledger::{Ledger, LedgerReader};
use support_ledger::{COPIES, WATCHED, guarded, guarded_info, id, info};

fn replayed(reader: &LedgerReader) -> Guard {
    let mut guard = Guard::of_run(reader.info()).unwrap().unwrap();
    reader.events().for_each(|events| guard.replay(&events.unwrap()).unwrap());
    guard
}

#[test]
fn a_replayed_guard_has_the_same_bits() {
    let (dir, mut live) = guarded(22, 1);
    let reader = LedgerReader::open(dir.path()).unwrap();
    assert_eq!(reader.info().fingerprints, guarded_info().fingerprints);
    let mut again = replayed(&reader);
    assert_eq!(again, live);
    // It says the same, and has something to say.
    assert_eq!(again.scores(), live.scores());
    let report = live.report();
    assert_eq!(again.report(), report);
    assert_eq!(report.gated[0].members, (WATCHED - COPIES..WATCHED).map(id).collect::<Vec<_>>());
    let events = live.take_events();
    assert!(events.iter().any(|it| it.gate == 0.0) && events.iter().any(|it| it.gate > 0.0));
    assert_eq!(again.take_events(), events);
    // Told nothing of the pictures, it could not.
    let mut info = reader.info().clone();
    info.fingerprints.clear();
    let mut blind = Guard::of_run(&info).unwrap().unwrap();
    reader.events().for_each(|events| blind.replay(&events.unwrap()).unwrap());
    assert!(blind.take_events() != events && blind.scores() != live.scores());
    // It goes on the same way.
    let samples: Vec<u64> = (0..WATCHED).map(id).collect();
    assert_eq!(again.gates(&samples), live.gates(&samples));
}

#[test]
fn the_batches_of_a_step_are_told_apart() {
    let (dir, mut live) = guarded(6, 4);
    let mut again = replayed(&LedgerReader::open(dir.path()).unwrap());
    assert_eq!(again, live);
    let events = live.take_events();
    assert!(!events.is_empty());
    assert_eq!(again.take_events(), events);
}

#[test]
fn what_does_not_hold_together_is_refused() {
    assert_eq!(Guard::of_run(&info()).unwrap(), None);
    let mut info = guarded_info();
    info.metadata.insert(GUARD.into(), "memory = true".into());
    assert!(Guard::of_run(&info).unwrap_err().to_string().contains("metadata.guard"));
    let (dir, mut info) = (tempfile::tempdir().unwrap(), guarded_info());
    info.fingerprints.pop();
    let error = Ledger::create(dir.path(), info).unwrap_err();
    assert!(error.to_string().contains("fingerprints"), "{error}");
}
