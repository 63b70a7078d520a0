//! Bulk copies between global and shared memory of a block.

use crate::common::Arg;
use crate::{SCHEDULES, WAIT, bad, good, program, ramp, run};
use softcuda::counters::Counter;
use softcuda::fault::Check;
use softcuda::machine::Schedule;

const KEEP: &str =
    "ld.shared.b32 %r1, [%r11];\nadd.u64 %rd11, %rd61, %rd9;\nst.global.b32 [%rd11], %r1;\n";

fn load(bytes: u32, expect: u32) -> String {
    format!(
        "@!%p31 bra loaded;\nmbarrier.arrive.expect_tx.shared.b64 _, [%r12], {expect};\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r10], [%rd60], {bytes}, [%r12];\n\
         loaded:\n"
    )
}

#[test]
fn bulk_loads_end_at_their_mbarrier() {
    let words = ramp(64);
    let whole = |load: &str, wait: &str| format!("{load}{wait}{KEEP}");
    assert_eq!(good(&whole(&load(256, 256), WAIT), &words, 64)[..64], words);
    let newer = load(256, 256).replace("shared::cluster.global", "shared::cta.global");
    assert_eq!(good(&whole(&newer, WAIT), &words, 64)[..64], words);
    let hinted = "createpolicy.fractional.L2::evict_first.b64 %rd5, 1.0;\n".to_owned()
        + &load(256, 256)
            .replace("bytes [", "bytes.L2::cache_hint [")
            .replace("[%r12];\nloaded", "[%r12], %rd5;\nloaded");
    assert_eq!(good(&whole(&hinted, WAIT), &words, 64)[..64], words);
    // Rounded up in parts: 32 bytes on a 16-byte boundary.
    let odd = whole(&load(32, 32), WAIT).replace("[%rd60]", "[%rd60+16]");
    assert_eq!(good(&odd, &words, 8)[..8], words[4..12]);

    assert_eq!(bad(&whole(&load(256, 256), ""), &words, 1), Check::UnfinishedCopy);
    assert_eq!(bad(&whole(&load(256, 272), WAIT), &words, 64), Check::Deadlock);
    assert_eq!(bad(&whole(&load(256, 240), WAIT), &words, 64), Check::Deadlock);
    assert_eq!(bad(&whole(&load(272, 272), WAIT), &words, 64), Check::OutOfBounds);
    assert_eq!(bad(&whole(&load(250, 250), WAIT), &words, 64), Check::Trap);
    assert_eq!(
        bad(&whole(&load(256, 256).replace("[%rd60]", "[%rd60+8]"), WAIT), &words, 64),
        Check::Misaligned
    );
    assert_eq!(
        bad(&whole(&load(256, 256).replace("[%r10]", "[%r10+8]"), WAIT), &words, 64),
        Check::Misaligned
    );
    assert_eq!(
        bad(&whole(&load(256, 256).replace("[%r10]", "[%r10+8000]"), WAIT), &words, 64),
        Check::OutOfBounds
    );
    let elsewhere = load(256, 256).replace("256, [%r12]", "256, [%r10]");
    assert_eq!(bad(&whole(&elsewhere, WAIT), &words, 64), Check::Barrier);
    let early = whole(&load(256, 256), &format!("{KEEP}{WAIT}"));
    assert_eq!(bad(&early, &words, 1), Check::UnfinishedCopy);
}

#[test]
fn loads_over_what_the_block_wrote_need_a_proxy_fence() {
    let words = ramp(64);
    let body = |fence: &str, barrier: &str| {
        format!("st.shared.b32 [%r11], %r63;\n{fence}{barrier}{}{WAIT}{KEEP}", load(256, 256))
    };
    let fence = "fence.proxy.async.shared::cta;\n";
    assert_eq!(good(&body(fence, "bar.sync 0;\n"), &words, 64)[..64], words);
    assert_eq!(bad(&body("", "bar.sync 0;\n"), &words, 64), Check::MissingFence);
    let apart = body(fence, "");
    for schedule in SCHEDULES {
        let check = run(&apart, &words, 64, schedule).unwrap_err().check;
        assert!([Check::SharedRace, Check::UnfinishedCopy].contains(&check), "{check:?}");
    }
    // Reading needs no fence, only order.
    let reads = |barrier: &str| {
        format!(
            "{}{WAIT}{KEEP}{barrier}{}",
            load(256, 256),
            load(256, 256).replace("loaded", "reloaded")
        )
    };
    good(&reads("bar.sync 0;\n"), &words, 64);
    assert_eq!(
        run(&reads(""), &words, 64, Schedule::Reverse).unwrap_err().check,
        Check::SharedRace
    );
}

fn store(tail: &str) -> String {
    format!(
        "@!%p31 bra stored;\ncp.async.bulk.global.shared::cta.bulk_group [%rd61], [%r10], 256;\n\
         cp.async.bulk.commit_group;\n{tail}stored:\n"
    )
}

#[test]
fn bulk_stores_read_until_their_group_ends() {
    let set = "st.shared.b32 [%r11], %r63;\n";
    let fence = "fence.proxy.async;\n";
    let sync = "bar.sync 0;\n";
    let wait = "cp.async.bulk.wait_group.read 0;\n";
    let expected: Vec<u32> = (0..64).collect();
    let body = format!("{set}{fence}{sync}{}", store(wait));
    assert_eq!(good(&body, &[0], 64)[..64], expected);
    assert_eq!(bad(&format!("{set}{sync}{}", store(wait)), &[0], 64), Check::MissingFence);
    // The other warp may not have written yet, or not in order.
    let apart = format!("{set}{fence}{}", store(wait));
    for schedule in SCHEDULES {
        let check = run(&apart, &[0], 64, schedule).unwrap_err().check;
        assert!([Check::Uninitialised, Check::SharedRace].contains(&check));
    }
    // Written again before and after the group has read it.
    let again = |tail: &str| format!("{set}{fence}{sync}{}{sync}{set}", store(tail));
    good(&again(wait), &[0], 64);
    good(&again("cp.async.bulk.wait_group 0;\n"), &[0], 64);
    assert_eq!(bad(&again(""), &[0], 64), Check::SharedRace);
    assert_eq!(bad(&again("cp.async.bulk.wait_group.read 1;\n"), &[0], 64), Check::SharedRace);
    let uncommitted = again(wait).replace("cp.async.bulk.commit_group;\n", "");
    assert_eq!(bad(&uncommitted, &[0], 64), Check::SharedRace);
}

#[test]
fn bulk_reductions() {
    let body = |op: &str, value: &str| {
        format!(
            "{value}st.shared.b32 [%r11], %r1;\nfence.proxy.async;\nbar.sync 0;\n@!%p31 bra end;\n\
             cp.reduce.async.bulk.global.shared::cta.bulk_group.{op} [%rd61], [%r10], 256;\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nend:\n"
        )
    };
    let of_thread = "add.u32 %r1, %r63, 5;\n";
    let found = good(&body("add.u32", of_thread), &[0], 64);
    assert_eq!(found[..65], (0..64).map(|i| i + 4).chain([u32::MAX]).collect::<Vec<u32>>());
    assert_eq!(good(&body("min.s32", of_thread), &[0], 64)[7], u32::MAX);
    assert_eq!(good(&body("min.u32", of_thread), &[0], 64)[7], 12);
    // The order in which blocks add floats can be seen.
    let talks = |op: &str| program(&body(op, of_thread)).kernel().talks();
    assert!(talks("add.f32") && !talks("add.u32"));
    // f16 pairs: 2 + 0.5, where b begins as NaN, stays NaN.
    let halves = good(&body("add.noftz.f16", "mov.u32 %r1, 0x38004000;\n"), &[0], 64);
    assert!(halves[..64].iter().all(|&word| word & 0x7c00_7c00 == 0x7c00_7c00));
}

#[test]
fn bulk_copies_are_counted() {
    let program = program(&format!("{}{WAIT}", load(1024, 1024)));
    let a = program.u32s(&ramp(256));
    let counters = program.launch(1, 32, &[Arg::U64(a)]).unwrap();
    assert_eq!(counters.total(Counter::GlobalRequests), 1);
    assert_eq!(counters.total(Counter::GlobalBytes), 1024);
    assert_eq!(counters.total(Counter::GlobalSectors), 32);
    assert_eq!(counters.total(Counter::SharedWavefronts), 8);
}
