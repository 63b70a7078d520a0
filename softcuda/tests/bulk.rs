//! `cp.async` and `mbarrier`: what they do, and what is wrong with almost right uses of them.

mod common;

use common::{Arg, Program, refused};
use softcuda::counters::{Class, Counter, Counters};
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;

const SCHEDULES: [Schedule; 4] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)];

/// Words of the buffers.
const WORDS: usize = 1024;

/// Runs a body with `a` holding 0, 1, 2, … and `b` unwritten. It finds the address of 4 KiB of shared memory
/// in `%r10`, that of the thread's word there in `%r11`, of its words in `a` and `b` in `%rd10`, `%rd11`,
/// and an mbarrier's place in `%r12`.
fn run_on(body: &str, block: u32, schedule: Schedule) -> Result<(Vec<u32>, Counters), Box<Report>> {
    let program = Program::body(
        "sm_90",
        &format!(
            ".shared .align 128 .b8 tile[4096];\n.shared .align 8 .b64 bars[4];\n\
             mov.u32 %r10, tile;\nmad.lo.u32 %r11, %r63, 4, %r10;\nmov.u32 %r12, bars;\n\
             mul.wide.u32 %rd9, %r63, 4;\nadd.u64 %rd10, %rd60, %rd9;\nadd.u64 %rd11, %rd61, %rd9;\n\
             setp.eq.u32 %p31, %r63, 0;\nsetp.lt.u32 %p30, %r63, 32;\n{body}"
        ),
    )
    .schedule(schedule);
    let a = program.u32s(&(0..WORDS as u32).collect::<Vec<_>>());
    let b = program.u32s(&[u32::MAX; WORDS]);
    match program.launch(1, block, &[Arg::U64(a), Arg::U64(b)]) {
        Ok(counters) => {
            let kernel = program.kernel();
            assert!(counters.by_class(kernel).contains_key(&Class::Move));
            Ok((program.read_u32s(b, WORDS), counters))
        }
        Err(report) => Err(report),
    }
}

fn run(body: &str, block: u32) -> Result<(Vec<u32>, Counters), Box<Report>> {
    run_on(body, block, Schedule::Forward)
}

/// The result, the same under every schedule.
fn good(body: &str, block: u32) -> Vec<u32> {
    let results = SCHEDULES.map(|schedule| {
        let result = run_on(body, block, schedule);
        result.unwrap_or_else(|report| panic!("{schedule:?}: {report}\n{body}")).0
    });
    assert!(results.iter().all(|result| *result == results[0]));
    results.into_iter().next().unwrap()
}

/// The check that ends it, whichever the schedule.
fn bad(body: &str, block: u32) -> Check {
    let checks = SCHEDULES.map(|schedule| match run_on(body, block, schedule) {
        Ok(_) => panic!("{schedule:?}: not caught\n{body}"),
        Err(report) => report.check,
    });
    assert!(checks.iter().all(|check| *check == checks[0]), "{checks:?}\n{body}");
    checks[0]
}

/// True if it is always caught as something that is not in order: as what depends on who comes first.
fn unordered(body: &str, block: u32) -> bool {
    let checks = [Check::SharedRace, Check::Uninitialised, Check::UnfinishedCopy];
    SCHEDULES.iter().all(|&schedule| match run_on(body, block, schedule) {
        Ok(_) => panic!("{schedule:?}: not caught\n{body}"),
        Err(report) => checks.contains(&report.check),
    })
}

const KEEP: &str = "ld.shared.b32 %r1, [%r11];\nst.global.b32 [%rd11], %r1;\n";
const WAIT: &str = "cp.async.wait_all;\n";

#[test]
fn copies_of_every_size() {
    let copy = "cp.async.ca.shared.global [%r11], [%rd10], 4;\n";
    assert_eq!(good(&format!("{copy}{WAIT}{KEEP}"), 64)[..64], (0..64).collect::<Vec<u32>>());
    for (op, size) in [("ca", 8u32), ("ca", 16), ("cg", 16), ("cg.shared::cta", 16)] {
        let shared = if op.contains("shared") { "" } else { ".shared" };
        let body = format!(
            "mad.lo.u32 %r2, %r63, {size}, %r10;\nmul.wide.u32 %rd1, %r63, {size};\n\
             add.u64 %rd2, %rd60, %rd1;\n\
             cp.async.{op}{shared}.global.L2::128B [%r2], [%rd2], {size};\n\
             cp.async.commit_group;\ncp.async.wait_group 0;\n\
             ld.shared.b32 %r1, [%r2+{}];\nst.global.b32 [%rd11], %r1;\n",
            size - 4
        );
        let words = size / 4;
        let expected: Vec<u32> = (0..32).map(|lane| (lane + 1) * words - 1).collect();
        assert_eq!(good(&body, 32)[..32], expected, "{op} {size}");
    }
}

#[test]
fn bytes_left_out_are_zero() {
    // Lane n reads n % 5 words' worth of 16 bytes … here 4 * (lane % 5) bytes.
    let body = |size: &str| {
        format!(
            "mad.lo.u32 %r2, %r63, 16, %r10;\nmul.wide.u32 %rd1, %r63, 16;\n\
             add.u64 %rd2, %rd60, %rd1;\nrem.u32 %r3, %r63, 5;\nmul.lo.u32 %r3, %r3, 4;\n\
             setp.gt.u32 %p1, %r3, 0;\n\
             cp.async.cg.shared.global [%r2], [%rd2], 16{size};\n{WAIT}\
             bar.sync 0;\n{KEEP}"
        )
    };
    let word = |at: u32, words: u32| if at % 4 < words { at } else { 0 };
    let expected: Vec<u32> = (0..128).map(|at| word(at, at / 4 % 5)).collect();
    assert_eq!(good(&body(", %r3"), 128)[..128], expected);
    let ignored: Vec<u32> = (0..128).map(|at| if at / 4 % 5 > 0 { 0 } else { at }).collect();
    assert_eq!(good(&body(", %p1"), 128)[..128], ignored);
    let hinted = "createpolicy.fractional.L2::evict_first.b64 %rd5, 1.0;\n".to_owned()
        + &body(", %r3, %rd5").replace("cg.shared.global", "cg.shared.global.L2::cache_hint");
    assert_eq!(good(&hinted, 128)[..128], expected);
    assert_eq!(bad(&body(", 20"), 128), Check::Trap);
}

#[test]
fn groups_finish_in_order() {
    let body = |wait: u32, read: u32| {
        format!(
            "cp.async.ca.shared.global [%r11], [%rd10], 4;\ncp.async.commit_group;\n\
             cp.async.ca.shared.global [%r11+1024], [%rd10+128], 4;\ncp.async.commit_group;\n\
             cp.async.wait_group {wait};\n\
             ld.shared.b32 %r1, [%r11+{read}];\nst.global.b32 [%rd11], %r1;\n{WAIT}"
        )
    };
    assert_eq!(good(&body(1, 0), 32)[5], 5);
    assert_eq!(good(&body(0, 1024), 32)[5], 37);
    assert_eq!(bad(&body(1, 1024), 32), Check::UnfinishedCopy);
    assert_eq!(bad(&body(2, 0), 32), Check::UnfinishedCopy);
    // Groups without a copy count too, and each lane has its own.
    let empty = body(2, 0).replacen(
        "cp.async.wait_group",
        "cp.async.commit_group;\ncp.async.wait_group",
        1,
    );
    assert_eq!(good(&empty, 32)[5], 5);
    let some = body(2, 0).replacen(
        "cp.async.wait_group",
        "@%p31 cp.async.commit_group;\ncp.async.wait_group",
        1,
    );
    assert_eq!(bad(&some, 32), Check::UnfinishedCopy);
    // A copy that nobody commits is not waited for by groups.
    let open = "cp.async.ca.shared.global [%r11], [%rd10], 4;\ncp.async.wait_group 0;\n";
    assert_eq!(bad(&format!("{open}{KEEP}"), 32), Check::UnfinishedCopy);
    // Nor need anything be waited for at the end.
    good(open, 32);
}

#[test]
fn copies_are_checked() {
    let copy = "cp.async.ca.shared.global [%r11], [%rd10], 4;\n";
    assert_eq!(bad(&format!("{copy}{KEEP}"), 32), Check::UnfinishedCopy);
    assert_eq!(
        bad(&format!("{copy}st.shared.b32 [%r11], %r1;\n{WAIT}"), 32),
        Check::UnfinishedCopy
    );
    // Another copy to the same place.
    assert_eq!(bad(&format!("{copy}{copy}{WAIT}"), 32), Check::UnfinishedCopy);
    // The source changes before the wait, after it.
    let change = "mov.u32 %r1, 77;\nst.global.b32 [%rd10], %r1;\n";
    assert_eq!(bad(&format!("{copy}{change}{WAIT}"), 32), Check::UnfinishedCopy);
    good(&format!("{copy}{WAIT}{change}"), 32);

    let neighbour = "xor.b32 %r11, %r11, 128;\n";
    let other = |between: &str| format!("{copy}{between}{neighbour}{KEEP}");
    good(&other(&format!("{WAIT}bar.sync 0;\n")), 64);
    assert!(unordered(&other(WAIT), 64));
    // A barrier before the wait orders nothing.
    assert!(unordered(&other(&format!("bar.sync 0;\n{WAIT}")), 64));
    // Written while another warp still reads it.
    let over = format!(
        "st.shared.b32 [%r11], %r63;\nbar.sync 0;\n@%p30 bra copy;\nxor.b32 %r1, %r11, 128;\n\
         ld.shared.b32 %r2, [%r1];\nbra end;\ncopy:\n{copy}{WAIT}end:\n"
    );
    assert!(unordered(&over, 64));
    let shifted = |what: &str, by: u32| {
        let size = if what.starts_with("%rd") { "u64" } else { "u32" };
        bad(&format!("add.{size} {what}, {what}, {by};\n{copy}{WAIT}"), 32)
    };
    assert_eq!(shifted("%r11", 2), Check::Misaligned);
    assert_eq!(shifted("%rd10", 2), Check::Misaligned);
    assert_eq!(shifted("%rd10", 4096), Check::OutOfBounds);
    assert_eq!(shifted("%r11", 8192), Check::OutOfBounds);
    let report = run(&format!("{copy}{KEEP}"), 32).unwrap_err();
    assert_eq!(report.other.as_ref().unwrap().did, "started a copy of");
    assert_eq!(report.other.unwrap().line.ptx + 1, report.line.ptx);
}

#[test]
fn copies_count_like_loads_and_stores() {
    let body = "mad.lo.u32 %r2, %r63, 16, %r10;\nmul.wide.u32 %rd1, %r63, 32;\n\
                add.u64 %rd2, %rd60, %rd1;\ncp.async.cg.shared.global [%r2], [%rd2], 16;\n";
    let (_, counters) = run(body, 32).unwrap();
    assert_eq!(counters.total(Counter::GlobalRequests), 1);
    assert_eq!(counters.total(Counter::GlobalBytes), 512);
    assert_eq!(counters.total(Counter::GlobalNeeded), 512);
    assert_eq!(counters.total(Counter::GlobalSectors), 32);
    assert_eq!(counters.total(Counter::SharedWavefronts), 4);
    assert_eq!(counters.total(Counter::SharedIdeal), 4);
}

/// The first thread initialises `n` mbarriers for `count` arrivals, and all threads meet.
fn init(n: u32, count: u32) -> String {
    let all: String =
        (0..n).map(|i| format!("mbarrier.init.shared.b64 [%r12+{}], {count};\n", 8 * i)).collect();
    format!("@!%p31 bra ready;\n{all}ready:\nbar.sync 0;\n")
}

#[test]
fn mbarriers_order_what_was_written_before() {
    let arrive = "mbarrier.arrive.shared.b64 %rd1, [%r12];\n";
    let wait = "again:\nmbarrier.try_wait.shared.b64 %p1, [%r12], %rd1;\n@!%p1 bra again;\n";
    let body = |arrive: &str, wait: &str| {
        format!(
            "{}st.shared.b32 [%r11], %r63;\n{arrive}{wait}xor.b32 %r11, %r11, 252;\n{KEEP}",
            init(1, 64)
        )
    };
    let expected: Vec<u32> = (0..64).map(|t| t ^ 63).collect();
    assert_eq!(good(&body(arrive, wait), 64)[..64], expected);
    assert_eq!(good(&body(arrive, &wait.replace("try_wait", "test_wait")), 64)[..64], expected);
    let parity = wait.replace("try_wait", "try_wait.parity").replace("%rd1", "0");
    assert_eq!(good(&body(arrive, &parity), 64)[..64], expected);
    let hint = parity.replace(", 0;", ", 0, 1000;");
    assert_eq!(good(&body(arrive, &hint), 64)[..64], expected);
    let scoped = arrive.replace("arrive.", "arrive.release.cta.");
    assert_eq!(
        good(&body(&scoped, &wait.replace("wait.", "wait.acquire.cta.")), 64)[..64],
        expected
    );
    let generic =
        "cvt.u64.u32 %rd2, %r12;\ncvta.shared.u64 %rd2, %rd2;\nmbarrier.arrive.b64 %rd1, [%rd2];\n";
    assert_eq!(good(&body(generic, wait), 64)[..64], expected);

    assert!(unordered(&body(arrive, ""), 64));
    // The wrong parity lets the first who come pass.
    let wrong = parity.replace(", 0;", ", 1;");
    assert!(
        [Check::SharedRace, Check::Uninitialised]
            .contains(&run(&body(arrive, &wrong), 64).unwrap_err().check)
    );
    let relaxed = arrive.replace("arrive.", "arrive.relaxed.cta.");
    assert_eq!(bad(&body(&relaxed, wait), 64), Check::SharedRace);
}

#[test]
fn mbarriers_are_checked() {
    let arrive = "mbarrier.arrive.shared.b64 _, [%r12];\n";
    let forever = "again:\nmbarrier.try_wait.parity.shared.b64 %p1, [%r12], 0;\n@!%p1 bra again;\n";
    // One arrival too many while bytes are outstanding, one too few, none initialised, or not yet for all.
    let expecting = "mbarrier.arrive.expect_tx.shared.b64 _, [%r12], 8;\n";
    assert_eq!(bad(&format!("{}{expecting}", init(1, 31)), 32), Check::Barrier);
    good(&format!("{}{expecting}", init(1, 32)), 32);
    assert_eq!(bad(&format!("{}{arrive}{forever}", init(1, 65)), 64), Check::Deadlock);
    assert_eq!(bad(arrive, 32), Check::Barrier);
    let early = init(1, 64).replace("bar.sync 0;\n", "bar.warp.sync 0xffffffff;\n");
    for schedule in SCHEDULES {
        let check = run_on(&format!("{early}{arrive}"), 64, schedule).unwrap_err().check;
        assert!([Check::SharedRace, Check::Barrier].contains(&check), "{check:?}");
    }
    // Its memory is not for others.
    assert_eq!(
        bad(&format!("{}ld.shared.b32 %r1, [%r12+4];\n", init(1, 1)), 32),
        Check::UnfinishedCopy
    );
    assert_eq!(
        bad(&format!("{}st.shared.b32 [%r12], %r1;\n", init(1, 1)), 32),
        Check::UnfinishedCopy
    );
    let again = "@%p31 mbarrier.init.shared.b64 [%r12], 3;\n";
    assert_eq!(bad(&format!("{}{again}", init(1, 1)), 32), Check::Barrier);
    good(&format!("{}@%p31 mbarrier.inval.shared.b64 [%r12];\n{again}", init(1, 1)), 32);
    let inval = "@%p31 mbarrier.inval.shared.b64 [%r12];\n@%p31 st.shared.b32 [%r12], %r1;\n";
    good(&format!("{}{inval}", init(1, 1)), 32);
    // Invalid while another warp may still use it.
    let racing = format!("{}@!%p30 bra use;\n{inval}bra end;\nuse:\n{arrive}end:\n", init(1, 64));
    for schedule in SCHEDULES {
        assert!(run_on(&racing, 64, schedule).is_err());
    }
    assert_eq!(bad("@%p31 mbarrier.init.shared.b64 [%r12+4], 1;\n", 32), Check::Misaligned);
    assert_eq!(bad("@%p31 mbarrier.init.shared.b64 [%r12], 0;\n", 32), Check::Trap);
    assert_eq!(
        bad(
            &format!("{}mbarrier.arrive.noComplete.shared.b64 %rd1, [%r12], 1;\n", init(1, 32)),
            32
        ),
        Check::Trap
    );
}

#[test]
fn states_counts_and_drops() {
    // Thread 0 alone: pending counts, a phase's end, test_wait on both sides of it.
    let body = format!(
        "{}@!%p31 bra end;\n\
         mbarrier.arrive.noComplete.shared.b64 %rd1, [%r12], 2;\nmbarrier.pending_count.b64 %r1, %rd1;\n\
         st.global.b32 [%rd61], %r1;\n\
         mbarrier.test_wait.shared.b64 %p1, [%r12], %rd1;\nselp.u32 %r1, 1, 0, %p1;\n\
         st.global.b32 [%rd61+4], %r1;\n\
         mbarrier.arrive_drop.shared.b64 %rd2, [%r12];\nmbarrier.pending_count.b64 %r1, %rd2;\n\
         st.global.b32 [%rd61+8], %r1;\n\
         mbarrier.test_wait.shared.b64 %p1, [%r12], %rd1;\nselp.u32 %r1, 1, 0, %p1;\n\
         st.global.b32 [%rd61+12], %r1;\n\
         mbarrier.expect_tx.relaxed.cta.shared.b64 [%r12], 100;\n\
         mbarrier.arrive.shared.b64 %rd3, [%r12], 2;\nmbarrier.pending_count.b64 %r1, %rd3;\n\
         st.global.b32 [%rd61+16], %r1;\n\
         mbarrier.complete_tx.relaxed.cta.shared.b64 [%r12], 60;\n\
         mbarrier.test_wait.shared.b64 %p1, [%r12], %rd3;\nselp.u32 %r1, 1, 0, %p1;\n\
         st.global.b32 [%rd61+20], %r1;\n\
         mbarrier.complete_tx.shared.b64 [%r12], 40;\n\
         mbarrier.test_wait.shared.b64 %p1, [%r12], %rd3;\nselp.u32 %r1, 1, 0, %p1;\n\
         st.global.b32 [%rd61+24], %r1;\nend:\n",
        init(1, 3)
    );
    assert_eq!(good(&body, 32)[..7], [3, 0, 1, 1, 2, 0, 1]);
    let stale = body.replace("end:\n", "mbarrier.test_wait.shared.b64 %p1, [%r12], %rd1;\nend:\n");
    assert_eq!(bad(&stale, 32), Check::Trap);
}

#[test]
fn copies_arrive_at_mbarriers() {
    // Warp 0 copies, warp 1 waits and reads.
    let body = |count: u32, copy: &str| {
        format!(
            "{}@%p30 bra copy;\nagain:\nmbarrier.try_wait.parity.shared.b64 %p1, [%r12], 0;\n\
             @!%p1 bra again;\nxor.b32 %r11, %r11, 128;\n{KEEP}bra end;\ncopy:\n{copy}end:\n",
            init(1, count)
        )
    };
    let copy = "cp.async.ca.shared.global [%r11], [%rd10], 4;\n";
    let noinc = format!("{copy}cp.async.mbarrier.arrive.noinc.shared.b64 [%r12];\n");
    let expected: Vec<u32> = (0..32).collect();
    assert_eq!(good(&body(32, &noinc), 64)[32..64], expected);
    // Without .noinc the arrival adds itself to those waited for.
    let inc = noinc.replace(".noinc", "") + "mbarrier.arrive.shared.b64 _, [%r12];\n";
    assert_eq!(good(&body(32, &inc), 64)[32..64], expected);
    // An arrival that does not wait for the copies.
    let early = format!("{copy}mbarrier.arrive.shared.b64 _, [%r12];\n");
    assert_eq!(bad(&body(32, &early), 64), Check::UnfinishedCopy);
    // The thread may wait for its copies as well.
    let both = format!("{noinc}{WAIT}ld.shared.b32 %r1, [%r11];\n");
    assert_eq!(good(&body(32, &both), 64)[32..64], expected);
}

#[test]
fn blocks_of_a_cluster_arrive_at_each_other() {
    let text = |arrive: &str| {
        format!(
            ".shared .align 8 .b64 bar;\n.shared .align 4 .b32 word;\n\
             mov.u32 %r1, bar;\nmov.u32 %r2, word;\nmov.u32 %r3, %cluster_ctarank;\nxor.b32 %r4, %r3, 1;\n\
             mbarrier.init.shared.b64 [%r1], 1;\nfence.mbarrier_init.release.cluster;\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n\
             mapa.shared::cluster.u32 %r5, %r1, %r4;\nmapa.shared::cluster.u32 %r6, %r2, %r4;\n\
             add.u32 %r7, %r3, 100;\nst.shared::cluster.b32 [%r6], %r7;\n{arrive}\
             again:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r1], 0;\n\
             @!%p1 bra again;\nld.shared.b32 %r8, [%r2];\n\
             mul.wide.u32 %rd1, %r3, 4;\nadd.u64 %rd1, %rd60, %rd1;\nst.global.b32 [%rd1], %r8;\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
        )
    };
    let run = |arrive: &str, schedule: Schedule| {
        let program = Program::body("sm_90", &text(arrive)).schedule(schedule);
        let out = program.unwritten(8);
        let args = [Arg::U64(out)];
        program.launch_3d([2, 1, 1], [1, 1, 1], [2, 1, 1], 0, &args)?;
        Ok::<_, Box<Report>>(program.read_u32s(out, 2))
    };
    for schedule in SCHEDULES {
        let arrive = "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];\n";
        assert_eq!(run(arrive, schedule).unwrap(), [101, 100]);
        // At one's own.
        let own = "mbarrier.arrive.shared.b64 _, [%r1];\n";
        let check = run(own, schedule).unwrap_err().check;
        assert!([Check::SharedRace, Check::Uninitialised].contains(&check));
    }
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    for instruction in [
        "cp.async.cg.shared.global [%r0], [%rd0], 8;",
        "cp.async.ca.shared.global [%r0], [%rd0], 12;",
        "cp.async.ca.global.shared [%rd0], [%r0];",
        "cp.async.ca.shared.global.L1::evict [%r0], [%rd0], 4;",
        "cp.async.wait_group %r0;",
        "mbarrier.arrive.shared.b32 _, [%r0];",
        "mbarrier.init.shared.b64 [%r0];",
        "mbarrier.test_wait.parity.shared.b64 %p0, [%r0], 0, 100;",
        "mbarrier.phase.shared.b64 %rd0, [%r0];",
        "cp.async.mbarrier.arrive.now.shared.b64 [%r0];",
    ] {
        let text = format!(
            ".version 8.7\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n\
             .reg .b32 %r<2>;\n.reg .b64 %rd<2>;\n.reg .pred %p<2>;\n{instruction}\nret;\n}}\n"
        );
        assert!(refused(&text).starts_with("PTX line 8"), "{instruction}: {}", refused(&text));
    }
}
