//! Warp collectives and barriers, from the PTX ISA's definitions.

mod common;

use common::{Arg, Program};
use softcuda::fault::Check;
use softcuda::machine::Schedule;

const STORE: &str =
    "mul.wide.u32 %rd1, %r62, 4;\nadd.s64 %rd1, %rd60, %rd1;\nst.global.u32 [%rd1], %r1;";

/// What each of `threads` threads leaves in `%r1`.
fn results(threads: u32, body: &str) -> Result<Vec<u32>, Check> {
    let program = Program::body("sm_90", &format!("{body}\n{STORE}"));
    let out = program.unwritten(u64::from(threads) * 4);
    match program.launch(1, threads, &[Arg::U64(out)]) {
        Ok(_) => Ok(program.read_u32s(out, threads as usize)),
        Err(report) => Err(report.check),
    }
}

fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn shuffles_follow_their_definition() {
    let shuffle = |instruction: &str| {
        let body = format!(
            "mul.lo.u32 %r2, %r63, 10;\n{instruction}\nselp.u32 %r3, 1000, 0, %p1;\nadd.u32 %r1, %r1, %r3;"
        );
        results(32, &body).expect("runs")
    };
    // In segments of eight; what falls out of the segment keeps its own value.
    let up = shuffle("shfl.sync.up.b32 %r1|%p1, %r2, 3, 0x1800, 0xffffffff;");
    assert_eq!(up, lanes(|l| if l % 8 >= 3 { 1000 + 10 * (l - 3) } else { 10 * l }));
    let down = shuffle("shfl.sync.down.b32 %r1|%p1, %r2, 3, 0x181f, 0xffffffff;");
    assert_eq!(down, lanes(|l| if l % 8 < 5 { 1000 + 10 * (l + 3) } else { 10 * l }));
    let bfly = shuffle("shfl.sync.bfly.b32 %r1|%p1, %r2, 5, 0x1f, 0xffffffff;");
    assert_eq!(bfly, lanes(|l| 1000 + 10 * (l ^ 5)));
    let idx = shuffle("shfl.sync.idx.b32 %r1|%p1, %r2, 11, 0x181f, 0xffffffff;");
    assert_eq!(idx, lanes(|l| 1000 + 10 * (l / 8 * 8 + 3)));
}

#[test]
fn votes_count_member_lanes_only() {
    let vote = |kind: &str| format!("setp.lt.u32 %p1, %r63, 7;\nvote.sync.{kind}");
    let ballot = results(32, &vote("ballot.b32 %r1, %p1, 0xffffffff;")).expect("runs");
    assert_eq!(ballot, vec![0x7f; 32]);
    let not = results(32, &vote("ballot.b32 %r1, !%p1, 0xffffffff;")).expect("runs");
    assert_eq!(not, vec![!0x7f; 32]);
    for (kind, expected) in [("all", 0), ("any", 1), ("uni", 0)] {
        let body = vote(&format!("{kind}.pred %p2, %p1, 0xffffffff;\nselp.u32 %r1, 1, 0, %p2;"));
        assert_eq!(results(32, &body).expect("runs"), vec![expected; 32], "{kind}");
    }
}

#[test]
fn matches_and_reductions() {
    let body = "shr.u32 %r2, %r63, 2;\nmatch.any.sync.b32 %r1, %r2, 0xffffffff;";
    assert_eq!(results(32, body).expect("runs"), lanes(|l| 0xf << (l / 4 * 4)));
    let body =
        "mov.b32 %r2, 5;\nmatch.all.sync.b32 %r1|%p1, %r2, 0xffffffff;\n@!%p1 mov.u32 %r1, 7;";
    assert_eq!(results(32, body).expect("runs"), vec![u32::MAX; 32]);
    for (op, expected) in [
        ("add.u32", 496),
        ("min.u32", 0),
        ("max.u32", 31),
        ("and.b32", 0),
        ("or.b32", 31),
        ("xor.b32", 0),
    ] {
        let body = format!("redux.sync.{op} %r1, %r63, 0xffffffff;");
        assert_eq!(results(32, &body).expect("runs"), vec![expected; 32], "{op}");
    }
    let body = "sub.s32 %r2, %r63, 16;\nredux.sync.min.s32 %r1, %r2, 0xffffffff;";
    assert_eq!(results(32, body).expect("runs"), vec![-16i32 as u32; 32]);
}

#[test]
fn elects_the_first_and_knows_who_is_active() {
    let body = "elect.sync %r1|%p1, 0xffffffff;\n@%p1 add.u32 %r1, %r1, 100;";
    assert_eq!(results(32, body).expect("runs"), lanes(|l| if l == 0 { 100 } else { 0 }));
    let body =
        "mov.u32 %r1, 0;\nsetp.lt.u32 %p1, %r63, 5;\n@!%p1 bra after;\nactivemask.b32 %r1;\nafter:";
    assert_eq!(results(32, body).expect("runs"), lanes(|l| if l < 5 { 0x1f } else { 0 }));
}

#[test]
fn lanes_that_part_meet_at_a_collective() {
    // The two halves come from different branches to one shuffle.
    let body = "setp.lt.u32 %p1, %r63, 16;\n@%p1 bra low;\nadd.u32 %r2, %r63, 100;\nbra join;\n\
                low:\nadd.u32 %r2, %r63, 200;\njoin:\nshfl.sync.bfly.b32 %r1, %r2, 16, 0x1f, 0xffffffff;";
    let expected = lanes(|l| if l < 16 { l + 16 + 100 } else { l - 16 + 200 });
    assert_eq!(results(32, body).expect("runs"), expected);
    // Each half has a warp barrier of its own.
    let body = "mov.u32 %r1, 1;\nsetp.lt.u32 %p1, %r63, 16;\n@%p1 bra low;\nbar.warp.sync 0xffffffff;\nbra join;\n\
                low:\nbar.warp.sync 0xffffffff;\njoin:\nmov.u32 %r1, 2;";
    assert_eq!(results(32, body), Ok(vec![2; 32]));
}

#[test]
fn shuffles_from_absent_lanes_are_faults() {
    let from_outside = "shfl.sync.idx.b32 %r1, %r63, 20, 0x1f, 0xffff;";
    let half = format!(
        "setp.ge.u32 %p1, %r63, 16;\nmov.u32 %r1, 0;\n@%p1 bra after;\n{from_outside}\nafter:"
    );
    assert_eq!(results(32, &half), Err(Check::InactiveLane));
    let not_me = "shfl.sync.idx.b32 %r1, %r63, 0, 0x1f, 0xffff;";
    assert_eq!(results(32, not_me), Err(Check::InactiveLane));
    let never = "setp.lt.u32 %p1, %r63, 16;\nmov.u32 %r1, 0;\n@%p1 bra after;\n\
                 shfl.sync.bfly.b32 %r1, %r63, 1, 0x1f, 0xffffffff;\nafter:\nbar.sync 0;";
    assert_eq!(results(32, never), Err(Check::InactiveLane));
}

#[test]
fn barriers_order_warps_under_every_schedule() {
    // Thread t reads what thread (t + 64) % 128 wrote.
    let body = ".shared .b32 tile[128];\nmov.u32 %r2, tile;\nshl.b32 %r3, %r63, 2;\nadd.u32 %r4, %r2, %r3;\n\
                st.shared.u32 [%r4], %r63;\nbar.sync 0;\nxor.b32 %r3, %r3, 256;\nadd.u32 %r4, %r2, %r3;\n\
                ld.shared.u32 %r1, [%r4];";
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)]
    {
        let program = Program::body("sm_80", &format!("{body}\n{STORE}")).schedule(schedule);
        let out = program.unwritten(512);
        program.launch(1, 128, &[Arg::U64(out)]).expect("no fault");
        let expected: Vec<u32> = (0..128).map(|t| t ^ 64).collect();
        assert_eq!(program.read_u32s(out, 128), expected);
    }
}

#[test]
fn barrier_reductions_count_threads() {
    let body = "setp.lt.u32 %p1, %r63, 70;\nbar.red.popc.u32 %r1, 1, %p1;\nbar.red.and.pred %p2, 1, %p1;\n\
                bar.red.or.pred %p3, 1, %p1;\nselp.u32 %r2, 1000, 0, %p2;\nselp.u32 %r3, 2000, 0, %p3;\n\
                add.u32 %r1, %r1, %r2;\nadd.u32 %r1, %r1, %r3;";
    assert_eq!(results(96, body), Ok(vec![2070; 96]));
    // The last warp is not full.
    assert_eq!(results(80, body), Ok(vec![2070; 80]));
}

#[test]
fn exited_threads_are_not_waited_for() {
    let body = "mov.u32 %r1, 1;\nsetp.ge.u32 %p1, %r63, 40;\n@%p1 bra out;\nbar.sync 0;\nmov.u32 %r1, 2;\nout:";
    let early = "setp.ge.u32 %p1, %r63, 40;\nmov.u32 %r1, 3;\n@%p1 bra store;\nbar.sync 0;\nmov.u32 %r1, 2;\nstore:";
    for body in [body, early] {
        // Threads from 40 on store and exit; the others' barrier then completes.
        let got = results(64, body).expect("runs");
        assert_eq!(&got[..40], &[2; 40]);
    }
}

#[test]
fn divergent_and_miscounted_barriers_are_faults() {
    let two = "mov.u32 %r1, 0;\nsetp.lt.u32 %p1, %r63, 16;\n@%p1 bra other;\nbar.sync 0;\nbra join;\n\
               other:\nbar.sync 0;\njoin:";
    assert_eq!(results(32, two), Err(Check::Barrier));
    let different = "mov.u32 %r1, 0;\nsetp.lt.u32 %p1, %r63, 32;\n@%p1 bra other;\nbar.sync 1;\nbra join;\n\
                     other:\nbar.sync 2;\njoin:";
    assert_eq!(results(64, different), Err(Check::Barrier));
    let counts =
        "mov.u32 %r1, 0;\nsetp.lt.u32 %p1, %r63, 32;\n@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 1, 96;";
    assert_eq!(results(96, counts), Err(Check::Barrier));
    let odd = "mov.u32 %r1, 0;\nbar.sync 1, 33;";
    assert_eq!(results(32, odd), Err(Check::Barrier));
    let many = "mov.u32 %r1, 0;\nbar.sync 16;";
    assert_eq!(results(32, many), Err(Check::Barrier));
}

#[test]
fn producers_arrive_and_consumers_wait() {
    let body = ".shared .b32 box;\nmov.u32 %r2, box;\nmov.u32 %r1, 0;\nsetp.lt.u32 %p1, %r63, 32;\n@!%p1 bra consume;\n\
                setp.eq.u32 %p2, %r63, 0;\n@%p2 st.shared.u32 [%r2], 77;\nbar.arrive 3, 64;\nbra join;\n\
                consume:\nbar.sync 3, 64;\nld.shared.u32 %r1, [%r2];\njoin:";
    let got = results(64, body).expect("runs");
    assert_eq!(&got[32..], &[77; 32]);
}

#[test]
fn clusters_meet() {
    let body = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nmov.u32 %r1, %cluster_ctarank;";
    let program = Program::body("sm_90", &format!("{body}\n{STORE}"));
    let out = program.unwritten(4 * 4 * 32);
    program.launch_3d([4, 1, 1], [32, 1, 1], [2, 1, 1], 0, &[Arg::U64(out)]).expect("no fault");
    let ranks: Vec<u32> = program.read_u32s(out, 128).into_iter().step_by(32).collect();
    assert_eq!(ranks, [0, 1, 0, 1]);
    let twice = "barrier.cluster.arrive;\nbarrier.cluster.arrive;\nmov.u32 %r1, 0;";
    assert_eq!(results(32, twice), Err(Check::Barrier));
}
