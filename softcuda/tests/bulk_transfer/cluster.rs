//! Stores and copies into other blocks of a cluster.

use crate::common::{Arg, Program};
use crate::{SCHEDULES, ramp};
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;

/// Two blocks of a cluster; each finds its own and the other's mbarrier and tile.
fn cluster(middle: &str, schedule: Schedule) -> Result<Vec<u32>, Box<Report>> {
    let body = format!(
        ".shared .align 128 .b8 tile[1024];\n.shared .align 8 .b64 bar;\n\
         mov.u32 %r10, tile;\nmov.u32 %r12, bar;\nmov.u32 %r3, %cluster_ctarank;\nxor.b32 %r4, %r3, 1;\n\
         setp.eq.u32 %p31, %r63, 0;\nsetp.eq.u32 %p30, %r3, 0;\nmad.lo.u32 %r11, %r63, 4, %r10;\n\
         @!%p31 bra ready;\nmbarrier.init.shared.b64 [%r12], 1;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [%r12], 128;\nready:\n\
         fence.mbarrier_init.release.cluster;\n\
         barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n\
         mapa.shared::cluster.u32 %r20, %r10, %r4;\nmapa.shared::cluster.u32 %r22, %r12, %r4;\n\
         mad.lo.u32 %r21, %r63, 4, %r20;\nmad.lo.u32 %r1, %r3, 1000, %r63;\n{middle}\
         again:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r12], 0;\n\
         @!%p1 bra again;\nld.shared.b32 %r8, [%r11];\nmad.lo.u32 %r9, %r3, 32, %r63;\n\
         mul.wide.u32 %rd1, %r9, 4;\nadd.u64 %rd1, %rd61, %rd1;\nst.global.b32 [%rd1], %r8;\n\
         barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
    );
    let program = Program::body("sm_90", &body).schedule(schedule);
    let (a, b) = (program.u32s(&ramp(64)), program.unwritten(256));
    program.launch_3d([2, 1, 1], [32, 1, 1], [2, 1, 1], 0, &[Arg::U64(a), Arg::U64(b)])?;
    Ok(program.read_u32s(b, 64))
}

#[test]
fn blocks_store_into_each_other() {
    let crossed: Vec<u32> = (0..32).map(|i| 1000 + i).chain(0..32).collect();
    let sent =
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r21], %r1, [%r22];\n";
    let pairs = "and.b32 %r30, %r63, 1;\nsetp.eq.u32 %p2, %r30, 0;\nadd.u32 %r31, %r1, 1;\n\
                 @%p2 st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r21], {%r1, %r31}, [%r22];\n";
    let copied = "st.shared.b32 [%r11+512], %r1;\nfence.proxy.async;\nbar.warp.sync 0xffffffff;\n\
                  @%p31 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r20], [%r10+512], 128, [%r22];\n";
    for schedule in SCHEDULES {
        for middle in [sent, pairs, copied] {
            assert_eq!(cluster(middle, schedule).unwrap(), crossed, "{middle}");
        }
        // Every lane adds to one word, four bytes each.
        let added = "setp.eq.u32 %p2, %r63, 0;\nst.shared.b32 [%r11], 7;\n\
                     barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n\
                     red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r20], %r1, [%r22];\n";
        let found = cluster(added, schedule).unwrap();
        let sum: u32 = (0..32).sum();
        assert_eq!((found[0], found[32]), (7 + sum + 32000, 7 + sum));
        assert_eq!(found[1], 7);

        // One block copies to both.
        let multicast = "and.pred %p3, %p30, %p31;\nmov.u16 %h1, 3;\n\
            @%p3 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r10], [%rd60], 128, [%r12], %h1;\n";
        let both: Vec<u32> = ramp(32).into_iter().chain(ramp(32)).collect();
        assert_eq!(cluster(multicast, schedule).unwrap(), both);
        // The other block's mbarrier for a copy into this one's memory.
        let astray = copied.replace("[%r20], [%r10+512]", "[%r10], [%r10+512]");
        assert_eq!(cluster(&astray, schedule).unwrap_err().check, Check::Trap);
        let unfenced = copied.replace("fence.proxy.async;\n", "");
        assert_eq!(cluster(&unfenced, schedule).unwrap_err().check, Check::MissingFence);
    }
}
