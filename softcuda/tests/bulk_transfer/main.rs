//! Bulk and tensor copies, stores into other blocks: what they do, and what is wrong with almost right uses.

#[path = "../common/mod.rs"]
mod common;

mod bulk;
mod cluster;
mod tensor;

use common::{Arg, Program, refused};
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;

const SCHEDULES: [Schedule; 4] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)];

/// A body that finds 8 KiB of shared memory at `%r10`, an mbarrier for one arrival at `%r12`, initialised
/// and fenced, `%p31` true in the first thread, and the thread's word in shared memory at `%r11`.
fn program(body: &str) -> Program {
    Program::body(
        "sm_90",
        &format!(
            ".shared .align 1024 .b8 tile[8192];\n.shared .align 8 .b64 bar;\n\
             mov.u32 %r10, tile;\nmad.lo.u32 %r11, %r63, 4, %r10;\nmov.u32 %r12, bar;\n\
             mul.wide.u32 %rd9, %r63, 4;\nsetp.eq.u32 %p31, %r63, 0;\n@!%p31 bra ready;\n\
             mbarrier.init.shared.b64 [%r12], 1;\nfence.mbarrier_init.release.cluster;\nready:\n\
             bar.sync 0;\n{body}"
        ),
    )
}

type Outcome = Result<Vec<u32>, Box<Report>>;

/// Runs with `a` holding `words` and `b` 1024 words of ones; returns `b`.
fn run(body: &str, words: &[u32], block: u32, schedule: Schedule) -> Outcome {
    let program = program(body).schedule(schedule);
    let (a, b) = (program.u32s(words), program.u32s(&[u32::MAX; 1024]));
    program.launch(1, block, &[Arg::U64(a), Arg::U64(b)])?;
    Ok(program.read_u32s(b, 1024))
}

fn good(body: &str, words: &[u32], block: u32) -> Vec<u32> {
    let results = SCHEDULES.map(|schedule| {
        let result = run(body, words, block, schedule);
        result.unwrap_or_else(|report| panic!("{schedule:?}: {report}\n{body}"))
    });
    assert!(results.iter().all(|result| *result == results[0]));
    results.into_iter().next().unwrap()
}

fn bad(body: &str, words: &[u32], block: u32) -> Check {
    let checks = SCHEDULES.map(|schedule| match run(body, words, block, schedule) {
        Ok(_) => panic!("{schedule:?}: not caught\n{body}"),
        Err(report) => report.check,
    });
    assert!(checks.iter().all(|check| *check == checks[0]), "{checks:?}\n{body}");
    checks[0]
}

fn ramp(n: u32) -> Vec<u32> {
    (0..n).map(|i| i * 7 + 3).collect()
}

const WAIT: &str =
    "again:\nmbarrier.try_wait.parity.shared.b64 %p1, [%r12], 0;\n@!%p1 bra again;\n";

#[test]
fn forms_that_do_not_exist_are_refused() {
    for instruction in [
        "cp.async.bulk.global.global.bulk_group [%rd0], [%rd1], 16;",
        "cp.async.bulk.shared::cluster.global.bulk_group [%r0], [%rd0], 16;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 16;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0, {%r1}], [%r1];",
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r0], [%rd0, {%r1, %r1, %r1, %r1}], [%r1], {%h0, %h0};",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group [%rd0], [%r0], 16;",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b16 [%r0], %h0, [%r1];",
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r0], %r1, [%r1];",
        "tensormap.replace.tile.global_address.global.b1024.b64 [%rd0], %rd1;",
    ] {
        let text = format!(
            ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k() {{\n\
             .reg .b32 %r<2>;\n.reg .b64 %rd<2>;\n.reg .b16 %h<2>;\n{instruction}\nret;\n}}\n"
        );
        assert!(refused(&text).starts_with("PTX line 8"), "{instruction}: {}", refused(&text));
    }
}
