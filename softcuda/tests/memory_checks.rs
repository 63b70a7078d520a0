//! Every check on memory: a program that must fault, and its twin that must not, under every schedule.

mod common;

use common::{Arg, Program};
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;

const SCHEDULES: [Schedule; 3] = [Schedule::Forward, Schedule::Reverse, Schedule::Random(7)];

/// Addresses: `%rd1` of the thread's word in `a`, `%r1` in the shared array `sm`, `%r2` of its neighbour's
/// there. `%r9` is 7.
const PLACES: &str = ".shared .align 16 .b8 sm[4096];\n.local .align 16 .b8 stack[64];\n\
    mul.wide.u32 %rd1, %r62, 4;\nadd.s64 %rd1, %rd60, %rd1;\nmov.u32 %r3, sm;\n\
    mad.lo.u32 %r1, %r63, 4, %r3;\nxor.b32 %r2, %r63, 1;\nmad.lo.u32 %r2, %r2, 4, %r3;\n\
    mov.u32 %r9, 7;\n";

struct Run {
    grid: u32,
    block: u32,
}

const WARP: Run = Run { grid: 1, block: 32 };
const WARPS: Run = Run { grid: 1, block: 64 };
const BLOCKS: Run = Run { grid: 2, block: 32 };

impl Run {
    /// `a` holds a written word for every thread, `b` as many that nothing has written, `c` one zero.
    fn report(&self, schedule: Schedule, body: &str) -> Option<Report> {
        let program = Program::body("sm_90", &format!("{PLACES}{body}")).schedule(schedule);
        let threads = self.grid * self.block;
        let a = program.u32s(&vec![1; threads as usize]);
        let b = program.unwritten(u64::from(threads) * 4);
        let c = program.u32s(&[0]);
        let args = [a, b, c, 0].map(Arg::U64);
        program.launch(self.grid, self.block, &args).err().map(|report| *report)
    }

    /// Under every schedule the first body is found out, and the second is not.
    fn check(&self, check: Check, wrong: &str, right: &str) {
        for schedule in SCHEDULES {
            let found = self.report(schedule, wrong);
            assert_eq!(found.as_ref().map(|report| report.check), Some(check), "{wrong}");
            let refused = self.report(schedule, right);
            assert!(refused.is_none(), "{}\n{right}", refused.expect("a report"));
        }
    }
}

#[test]
fn bounds_are_exact() {
    let out = Check::OutOfBounds;
    WARP.check(out, "ld.global.u32 %r4, [%rd1+4];", "ld.global.u32 %r4, [%rd1];");
    WARP.check(out, "st.global.u32 [%rd1+-4], %r9;", "st.global.u32 [%rd1], %r9;");
    // Partly inside is outside.
    let pair = |at: u32| format!("ld.global.v2.u32 {{%r4, %r5}}, [%rd60+{at}];");
    WARP.check(out, &pair(128), &pair(120));
    let byte = |at: u32| format!("st.global.u8 [%rd60+{at}], %r9;");
    WARP.check(out, &byte(128), &byte(127));
    WARP.check(out, "ld.u32 %r4, [%rd63];", "ld.u32 %r4, [%rd62];");
    let shared = |at: u32| format!("st.shared.u32 [sm+{at}], %r9;");
    WARP.check(out, &shared(4096), &shared(4092));
    WARP.check(out, "st.shared.u32 [%r3+-4], %r9;", "st.shared.u32 [%r3], %r9;");
    WARP.check(
        out,
        "mov.u32 %r4, 524288;\nst.local.u32 [%r4], %r9;",
        "mov.u32 %r4, 524284;\nst.local.u32 [%r4], %r9;",
    );
    let parameter = |at: u32| format!("mov.b32 %r4, {at};\nld.param.u64 %rd4, [%r4];");
    WARP.check(out, &parameter(32), &parameter(24));
    let atomic = |at: u32| format!("red.global.add.u32 [%rd60+{at}], 1;");
    WARP.check(out, &atomic(128), &atomic(124));
}

#[test]
fn a_report_names_lane_address_and_neighbourhood() {
    let program = Program::body(
        "sm_90",
        "mul.wide.u32 %rd1, %r62, 4;\nadd.s64 %rd1, %rd60, %rd1;\nld.global.u32 %r1, [%rd1];",
    );
    let a = program.u32s(&[0; 30]);
    let beyond = *program.launch(1, 32, &[Arg::U64(a)]).expect_err("leaves it");
    assert_eq!((beyond.thread, beyond.address), ([30, 0, 0], Some(a + 120)));
    assert!(beyond.detail.contains("right behind the allocation of 120 bytes"), "{beyond}");
    program.device.free(a);
    let freed = *program.launch(1, 32, &[Arg::U64(a)]).expect_err("freed");
    assert_eq!((freed.check, freed.thread), (Check::OutOfBounds, [0, 0, 0]));
    assert!(freed.detail.contains("already freed"), "{freed}");
}

#[test]
fn accesses_are_aligned_to_their_whole_width() {
    let crooked = Check::Misaligned;
    WARP.check(crooked, "ld.global.u32 %r4, [%rd60+2];", "ld.global.u32 %r4, [%rd60+4];");
    let pair = |at: u32| format!("ld.global.v2.u32 {{%r4, %r5}}, [%rd60+{at}];");
    WARP.check(crooked, &pair(4), &pair(8));
    let eight =
        |at: u32| format!("st.global.v8.b32 [%rd60+{at}], {{%r9,%r9,%r9,%r9,%r9,%r9,%r9,%r9}};");
    WARP.check(crooked, &eight(16), &eight(32));
    let shared = |at: u32| format!("st.shared.v4.u32 [sm+{at}], {{%r9, %r9, %r9, %r9}};");
    WARP.check(crooked, &shared(8), &shared(16));
    let local = |at: u32| format!("st.local.u64 [stack+{at}], %rd60;");
    WARP.check(crooked, &local(4), &local(8));
    let atomic = |at: u32| format!("red.global.add.u64 [%rd60+{at}], 1;");
    WARP.check(crooked, &atomic(4), &atomic(8));
}

#[test]
fn nothing_is_read_that_nothing_wrote() {
    let unwritten = Check::Uninitialised;
    let global = "ld.global.u32 %r4, [%rd61];";
    let write = "st.global.u32 [%rd61], %r9;";
    WARP.check(unwritten, global, &format!("{write}\n{global}"));
    // Half a word written is not a word.
    let half = "st.global.u16 [%rd61], %r9;";
    let rest = "st.global.u16 [%rd61+2], %r9;";
    WARP.check(unwritten, &format!("{half}\n{global}"), &format!("{half}\n{rest}\n{global}"));
    let (write, read) = ("st.shared.u32 [%r1], %r9;", "ld.shared.u32 %r4, [%r1];");
    WARP.check(unwritten, read, &format!("{write}\n{read}"));
    let (write, read) = ("st.local.u32 [stack+8], %r9;", "ld.local.u32 %r4, [stack+8];");
    WARP.check(unwritten, read, &format!("{write}\n{read}"));
    // Each lane's own stack.
    let some = "setp.lt.u32 %p1, %r63, 31;\n@%p1 st.local.u32 [stack+8], %r9;";
    WARP.check(unwritten, &format!("{some}\n{read}"), &format!("{some}\n@%p1 {read}"));
    let add = "red.shared.add.u32 [%r1], 1;";
    WARP.check(unwritten, add, &format!("st.shared.u32 [%r1], %r9;\n{add}"));
}

#[test]
fn uninitialised_bytes_are_named() {
    let report = WARP.report(
        Schedule::Forward,
        "st.shared.v2.u8 [sm+32], {%r9, %r9};\nld.shared.u32 %r4, [sm+32];",
    );
    let report = report.expect("half of it is unwritten");
    assert_eq!(report.check, Check::Uninitialised);
    assert_eq!(report.address, Some(34));
}

const WRITE: &str = "st.shared.u32 [%r1], %r63;\n";
const READ_NEXT: &str = "ld.shared.u32 %r4, [%r2];\n";

/// `%r2`: the word of the same lane in the other warp.
const OTHER_WARP: &str = "xor.b32 %r2, %r63, 32;\nmad.lo.u32 %r2, %r2, 4, %r3;\n";

#[test]
fn warps_race_without_a_barrier() {
    let race = Check::SharedRace;
    let cross = |between: &str, then: &str| {
        format!("{OTHER_WARP}{WRITE}bar.sync 0;\n{READ_NEXT}{between}{then}")
    };
    // Write after read, read after write, write after write.
    WARPS.check(
        race,
        &cross("", "st.shared.u32 [%r1], %r9;"),
        &cross("bar.sync 0;\n", "st.shared.u32 [%r1], %r9;"),
    );
    let after_write = |between: &str| {
        format!(
            "{OTHER_WARP}st.shared.u32 [%r1], %r9;\nbar.sync 0;\nst.shared.u32 [%r2], %r3;\n{between}ld.shared.u32 %r4, [%r1];"
        )
    };
    WARPS.check(race, &after_write(""), &after_write("bar.sync 0;\n"));
    let twice = |between: &str| {
        format!(
            "setp.lt.u32 %p1, %r63, 32;\n@%p1 st.shared.u32 [sm], %r9;\n{between}@!%p1 st.shared.u32 [sm], %r3;\n"
        )
    };
    let ordered = twice("bar.sync 0;\n");
    WARPS.check(race, &twice("").replace("%r3;", "%r60;"), &ordered.replace("%r3;", "%r60;"));
    // The same value is no race.
    WARPS.check(race, &twice("").replace("%r3;", "%r60;"), &twice("").replace("%r3;", "%r9;"));
}

#[test]
fn lanes_race_without_a_warp_barrier() {
    let race = Check::SharedRace;
    let sync = "bar.warp.sync 0xffffffff;\n";
    let exchange = |between: &str| format!("{WRITE}{between}{READ_NEXT}");
    WARP.check(race, &exchange(""), &exchange(sync));
    // A shuffle or vote orders nothing.
    let vote = "vote.sync.ballot.b32 %r5, 1, 0xffffffff;\n".replace("1,", "%p1,");
    WARP.check(race, &exchange(&vote), &exchange(sync));
    let after_read = |between: &str| format!("{}{between}{WRITE}", exchange(sync));
    WARP.check(race, &after_read(""), &after_read(sync));
    // Lanes that don't take part in it are not ordered by it.
    let half = "setp.lt.u32 %p1, %r63, 16;\n@%p1 bar.warp.sync 0xffff;\n";
    let own_half = exchange(half).replace(READ_NEXT, "@%p1 ld.shared.u32 %r4, [%r2];\n");
    WARP.check(race, &exchange(half), &own_half);
    // One instruction, one word, different values or one.
    WARP.check(race, "st.shared.u32 [sm], %r63;", "st.shared.u32 [sm], %r9;");
    // Volatile doesn't make lanes take turns.
    let volatile = exchange("").replace("shared", "volatile.shared");
    WARP.check(race, &volatile, &exchange(sync).replace("shared", "volatile.shared"));
}

#[test]
fn the_other_party_of_a_race_is_named() {
    let body = format!("{WRITE}{READ_NEXT}");
    let report = WARP.report(Schedule::Forward, &body).expect("a race");
    let other = report.other.expect("another party");
    // Lane 0 reads what lane 1 wrote, one line before.
    assert_eq!((report.thread, report.address), ([0, 0, 0], Some(4)));
    assert_eq!((other.thread, other.did), ([1, 0, 0], "wrote"));
    assert_eq!(other.line.ptx + 1, report.line.ptx);
    // All lanes read one word, then its first reader writes it.
    let body = "st.shared.u32 [sm], %r9;\nbar.warp.sync 0xffffffff;\nld.shared.u32 %r4, [sm];\n\
        setp.eq.u32 %p1, %r63, 0;\n@%p1 st.shared.u32 [sm], %r3;";
    let report = WARP.report(Schedule::Forward, body).expect("a race");
    let other = report.other.expect("another party");
    assert_eq!((report.thread, other.did), ([0, 0, 0], "read"));
    assert_ne!(other.thread, [0, 0, 0]);
}

#[test]
fn neighbours_in_a_word_do_not_race() {
    let narrow = |ty: &str, width: u32, between: &str| {
        format!(
            "mad.lo.u32 %r4, %r63, {width}, %r3;\nst.shared.{ty} [%r4], %r63;\n{between}ld.shared.{ty} %r5, [%r4];\n\
             st.shared.{ty} [%r4], %r5;"
        )
    };
    for (ty, width) in [("u8", 1), ("u16", 2), ("u32", 4)] {
        let shift = narrow(ty, width, "xor.b32 %r4, %r4, 1;\n");
        let shift = shift.replace("%r4, 1;", &format!("%r4, {width};"));
        WARPS.check(Check::SharedRace, &shift, &narrow(ty, width, ""));
    }
    // The same in global memory, of two blocks.
    let global = |ty: &str, width: u32| {
        format!(
            "mul.wide.u32 %rd2, %r62, {width};\nadd.s64 %rd2, %rd2, %rd60;\nst.global.{ty} [%rd2+10], %r62;\n\
             ld.global.{ty} %r5, [%rd2+10];"
        )
    };
    for (ty, width) in [("u8", 1), ("u16", 2)] {
        let overlap = global(ty, width).replace("%r62, ", "%r63, ");
        BLOCKS.check(Check::GlobalRace, &overlap, &global(ty, width));
    }
}

/// Thread 0 writes a word and raises a flag; thread 32 waits for the flag and reads the word.
fn message(write: &str, publish: &str, poll: &str, then: &str) -> String {
    format!(
        "st.shared.u32 [sm+64], 0;\nbar.sync 0;\nsetp.eq.u32 %p1, %r63, 0;\n@!%p1 bra NEXT;\n\
         {write}\n{publish}\nbra END;\nNEXT:\nsetp.ne.u32 %p1, %r63, 32;\n@%p1 bra END;\n\
         POLL:\n{poll}\nsetp.eq.u32 %p2, %r5, 0;\n@%p2 bra POLL;\n{then}\nld.shared.u32 %r4, [sm];\nEND:\n"
    )
    .replace(", 0;\nbar", ", %r10;\nbar")
    .replacen("st.shared", "mov.u32 %r10, 0;\nst.shared", 1)
}

#[test]
fn flags_order_as_their_semantics_say() {
    let race = Check::SharedRace;
    let write = "st.shared.u32 [sm], %r9;";
    let release = "st.release.cta.shared.u32 [sm+64], %r9;";
    let acquire = "ld.acquire.cta.shared.u32 %r5, [sm+64];";
    let (volatile, poll) =
        ("st.volatile.shared.u32 [sm+64], %r9;", "ld.volatile.shared.u32 %r5, [sm+64];");
    let fenced = format!("membar.cta;\n{volatile}");
    let right = message(write, release, acquire, "");
    WARPS.check(race, &message(write, volatile, poll, ""), &right);
    WARPS.check(race, &message(write, volatile, poll, "membar.cta;"), &right);
    WARPS.check(
        race,
        &message(write, &fenced, poll, ""),
        &message(write, &fenced, poll, "membar.cta;"),
    );
    let relaxed = "ld.relaxed.cta.shared.u32 %r5, [sm+64];";
    WARPS.check(
        race,
        &message(write, release, relaxed, ""),
        &message(write, release, relaxed, "fence.acq_rel.cta;"),
    );
    let exchange = "atom.shared.exch.b32 %r6, [sm+64], %r9;";
    WARPS.check(
        race,
        &message(write, exchange, acquire, ""),
        &message(write, &exchange.replace("shared", "release.cta.shared"), acquire, ""),
    );
    // A plain flag is itself a race.
    WARPS.check(race, &message(write, &release.replace("release.cta.", ""), acquire, ""), &right);
}

#[test]
fn named_barriers_order_those_who_meet() {
    let three = Run { grid: 1, block: 96 };
    // Warps 0 and 1 meet at barrier 1; warp 2 reads what warp 0 wrote.
    let meet = |reader: u32| {
        format!(
            "shr.u32 %r4, %r63, 5;\nsetp.eq.u32 %p1, %r4, 0;\nsetp.eq.u32 %p2, %r4, {reader};\n\
             setp.eq.u32 %p3, %r4, 2;\nand.b32 %r5, %r63, 31;\nmad.lo.u32 %r6, %r5, 4, %r3;\n\
             @%p1 st.shared.u32 [%r6], %r63;\n@!%p3 bar.sync 1, 64;\n@%p2 ld.shared.u32 %r7, [%r6];"
        )
    };
    let reports: Vec<_> =
        [2, 1].map(|reader| three.report(Schedule::Forward, &meet(reader))).into();
    assert_eq!(reports[0].as_ref().map(|report| report.check), Some(Check::SharedRace));
    assert!(reports[1].is_none());
}

#[test]
fn blocks_race_in_global_memory() {
    let race = Check::GlobalRace;
    // Every block writes the word: its own number, or the same.
    BLOCKS.check(race, "st.global.u32 [%rd60], %r61;", "st.global.u32 [%rd60], %r9;");
    BLOCKS.check(race, "st.global.u32 [%rd60], %r61;", "st.global.u32 [%rd1], %r61;");
    // One reads what the other writes.
    let other = "xor.b32 %r4, %r62, 32;\nmul.wide.u32 %rd2, %r4, 4;\nadd.s64 %rd2, %rd60, %rd2;\n\
        ld.global.u32 %r4, [%rd2];\nst.global.u32 [%rd1], %r4;";
    BLOCKS.check(
        race,
        &other.replace("%r62, 32", "%r62, 33"),
        &other.replace("%r62, 32", "%r62, 0"),
    );
    let add = "red.global.add.u32 [%rd62], 1;";
    BLOCKS.check(race, &format!("{add}\nld.global.u32 %r4, [%rd62];"), add);
    // An atomic operation for the block only is none for others.
    BLOCKS.check(
        race,
        &add.replace("red", "red.relaxed.cta"),
        &add.replace("red", "red.relaxed.gpu"),
    );
    let one = Run { grid: 1, block: 32 };
    assert!(
        one.report(Schedule::Forward, "st.global.u32 [%rd60], %r9;\nld.global.u32 %r4, [%rd60];")
            .is_none()
    );
}

/// Every block writes its word, and the one that comes last reads all.
fn last_block(publish: &str, observe: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r63, 0;\n@%p1 bra END;\nmul.wide.u32 %rd2, %r61, 4;\nadd.s64 %rd2, %rd61, %rd2;\n\
         st.global.u32 [%rd2], %r61;\n{publish}\natom.global.inc.u32 %r4, [%rd62], 1;\n\
         setp.ne.u32 %p1, %r4, 1;\n@%p1 bra END;\n{observe}\nld.global.v2.u32 {{%r5, %r6}}, [%rd61];\nEND:\n"
    )
}

#[test]
fn the_last_block_may_read_what_all_published() {
    let race = Check::GlobalRace;
    let right = last_block("membar.gl;", "membar.gl;");
    BLOCKS.check(race, &last_block("", "membar.gl;"), &right);
    BLOCKS.check(race, &last_block("membar.gl;", ""), &right);
    // A fence for the block is too narrow.
    BLOCKS.check(race, &last_block("membar.cta;", "membar.gl;"), &right);
    let semantics = last_block("", "").replace("atom", "atom.acq_rel.gpu");
    BLOCKS.check(race, &last_block("", "").replace("atom", "atom.acquire.gpu"), &semantics);
}

#[test]
fn launches_do_not_race_with_each_other() {
    let program = Program::body(
        "sm_90",
        &format!("{PLACES}st.global.u32 [%rd60], %r9;\nld.global.u32 %r4, [%rd61];"),
    );
    let (a, b) = (program.u32s(&[0]), program.u32s(&[0]));
    for args in [[a, b], [b, a], [a, b]] {
        program.launch(2, 32, &args.map(Arg::U64)).expect("one after the other");
    }
}

#[test]
fn blocks_of_a_cluster_reach_each_other() {
    // Every thread stores into the next block, and reads what came.
    let body = |between: &str| {
        format!(
            "{PLACES}mov.u32 %r4, %cluster_ctarank;\nxor.b32 %r5, %r4, 1;\nmapa.shared::cluster.u32 %r6, %r1, %r5;\n\
             getctarank.shared::cluster.u32 %r7, %r6;\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\n\
             st.shared::cluster.u32 [%r6], %r7;\n{between}ld.shared.u32 %r8, [%r1];\nst.global.u32 [%rd1], %r8;\n\
             barrier.cluster.arrive;\nbarrier.cluster.wait;\n"
        )
    };
    let run = |between: &str| {
        let program = Program::body("sm_90", &body(between));
        let out = program.unwritten(256);
        let run = program.launch_3d([2, 1, 1], [32, 1, 1], [2, 1, 1], 0, &[Arg::U64(out)]);
        run.map(|_| program.read_u32s(out, 64)).map_err(|report| report.check)
    };
    let meet = "barrier.cluster.arrive;\nbarrier.cluster.wait;\n";
    let expected: Vec<u32> = (0..64).map(|thread| thread / 32).collect();
    assert_eq!(run(meet), Ok(expected));
    assert!(matches!(run(""), Err(Check::SharedRace | Check::Uninitialised)));
}

#[test]
fn whichever_of_many_readers_writes_is_found() {
    let blocks = Run { grid: 5, block: 32 };
    for writer in 0..5 {
        let body = |at: &str| {
            format!(
                "ld.global.u32 %r4, [%rd62];\nsetp.eq.u32 %p1, %r61, {writer};\n\
                 @%p1 st.global.u32 [{at}], %r9;"
            )
        };
        blocks.check(Check::GlobalRace, &body("%rd62"), &body("%rd1"));
    }
}
