//! Bulk and tensor copies, stores into other blocks: what they do, and what is wrong with almost right uses.

mod common;

use common::{Arg, Program, refused};
use softcuda::counters::Counter;
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;
use softcuda::tensor_map::{DataType, Interleave, MAX_RANK, Mode, Swizzle, TensorMap};

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

/// A tensor of 16-bit elements numbered from 1, and its map.
fn tensor(sizes: &[u64], pitch: u64, extent: &[u32], swizzle: Swizzle) -> (Vec<u16>, TensorMap) {
    let mut map = TensorMap {
        data_type: DataType::U16,
        rank: sizes.len(),
        address: 0,
        sizes: [1; MAX_RANK],
        strides: [0; MAX_RANK - 1],
        mode: Mode::Tiled { extent: [1; MAX_RANK] },
        element_strides: [1; MAX_RANK],
        interleave: Interleave::None,
        swizzle,
        promotion: 0,
        fill_nan: false,
    };
    map.sizes[..sizes.len()].copy_from_slice(sizes);
    let mut stride = pitch * 2;
    for (n, size) in sizes.iter().skip(1).enumerate() {
        map.strides[n] = stride;
        stride *= size;
    }
    let mut whole = [1; MAX_RANK];
    whole[..extent.len()].copy_from_slice(extent);
    map.mode = Mode::Tiled { extent: whole };
    let elements = stride / 2;
    ((1..=elements).map(|e| e as u16).collect(), map)
}

/// What a box holds, by the definition: innermost first, zero outside.
fn boxed(map: &TensorMap, data: &[u16], at: &[i32]) -> Vec<u16> {
    let Mode::Tiled { extent } = map.mode else { panic!("tiled") };
    let total: u32 = extent[..map.rank].iter().product();
    (0..total)
        .map(|linear| {
            let (mut rest, mut offset, mut inside) = (linear, 0i64, true);
            for n in 0..map.rank {
                let x = i64::from(at[n]) + i64::from(rest % extent[n]);
                rest /= extent[n];
                inside &= (0..map.sizes[n] as i64).contains(&x);
                offset += x * if n == 0 { 2 } else { map.strides[n - 1] as i64 };
            }
            if inside { data[offset as usize / 2] } else { 0 }
        })
        .collect()
}

/// Where element bytes of a box lie under a swizzle of `span` bytes.
fn swizzled(byte: usize, span: usize) -> usize {
    match span {
        0 => byte,
        _ => byte ^ ((byte / 128 % (span / 16)) * 16),
    }
}

/// Runs `body` with the map in `a`, the tensor at its address, 8 KiB of results at `b`.
fn run_tensor(
    body: &str,
    data: &[u16],
    map: &TensorMap,
    schedule: Schedule,
) -> Result<(Vec<u16>, Vec<u16>), Box<Report>> {
    let program = program(body).schedule(schedule);
    let bytes: Vec<u8> = data.iter().flat_map(|e| e.to_le_bytes()).collect();
    let address = program.bytes(&bytes);
    let map = TensorMap { address, ..map.clone() };
    let a = program.bytes(&map.encode().unwrap());
    let b = program.bytes(&[0xff; 8192]);
    program.launch(1, 32, &[Arg::U64(a), Arg::U64(b)])?;
    let read = |from: u64, n: usize| -> Vec<u16> {
        let bytes = program.read_bytes(from, n);
        bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    };
    Ok((read(b, 8192), read(address, bytes.len())))
}

fn coordinates(at: &[i32]) -> String {
    at.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

/// Loads a box, waits, and copies all of shared memory that was loaded to `b`.
fn load_box(at: &[i32], bytes: usize, mode: &str) -> String {
    format!(
        "@!%p31 bra loaded;\nmbarrier.arrive.expect_tx.shared.b64 _, [%r12], {bytes};\n\
         cp.async.bulk.tensor.{}d.shared::cluster.global{mode}.mbarrier::complete_tx::bytes \
         [%r10], [%rd60, {{{}}}], [%r12];\nloaded:\n{WAIT}\
         mov.u32 %r5, 0;\nnext:\nadd.u32 %r6, %r11, %r5;\nld.shared.b32 %r1, [%r6];\n\
         cvt.u64.u32 %rd1, %r5;\nadd.u64 %rd1, %rd1, %rd9;\nadd.u64 %rd1, %rd1, %rd61;\n\
         st.global.b32 [%rd1], %r1;\nadd.u32 %r5, %r5, 128;\nsetp.lt.u32 %p2, %r5, {bytes};\n\
         @%p2 bra next;\n",
        at.len(),
        coordinates(at)
    )
}

/// Sizes, pitch, box, swizzle, coordinates.
type Case = (&'static [u64], u64, &'static [u32], Swizzle, &'static [i32]);

#[test]
fn boxes_are_loaded_in_every_rank_and_swizzle() {
    let cases: [Case; 9] = [
        (&[256], 256, &[64], Swizzle::None, &[40]),
        (&[100], 104, &[64], Swizzle::None, &[70]),
        (&[40, 30], 40, &[64, 16], Swizzle::None, &[-5, 20]),
        (&[40, 30], 48, &[16, 32], Swizzle::Bytes32, &[8, 3]),
        (&[70, 30], 72, &[32, 16], Swizzle::Bytes64, &[40, -2]),
        (&[70, 40], 72, &[64, 32], Swizzle::Bytes128, &[3, 5]),
        (&[20, 6, 5], 24, &[8, 4, 4], Swizzle::None, &[12, 3, -1]),
        (&[20, 4, 3, 4], 24, &[64, 2, 2, 4], Swizzle::Bytes128, &[-4, 1, 2, 1]),
        (&[16, 3, 3, 2, 3], 16, &[8, 2, 2, 2, 2], Swizzle::None, &[8, 2, -1, 1, 2]),
    ];
    for (sizes, pitch, extent, swizzle, at) in cases {
        let (data, map) = tensor(sizes, pitch, extent, swizzle);
        let expected = boxed(&map, &data, at);
        let bytes = expected.len() * 2;
        let span = swizzle.span() as usize;
        for schedule in SCHEDULES {
            let mode = if schedule == Schedule::Reverse { ".tile" } else { "" };
            let found = run_tensor(&load_box(at, bytes, mode), &data, &map, schedule).unwrap().0;
            for (element, &value) in expected.iter().enumerate() {
                assert_eq!(found[swizzled(2 * element, span) / 2], value, "{sizes:?} {element}");
            }
        }
    }
}

#[test]
fn what_lies_outside_can_be_nan() {
    let (data, mut map) = tensor(&[40, 30], 40, &[8, 8], Swizzle::None);
    map.data_type = DataType::F16;
    map.fill_nan = true;
    let found =
        run_tensor(&load_box(&[36, 26], 128, ""), &data, &map, Schedule::Forward).unwrap().0;
    let inside = boxed(&map, &data, &[36, 26]);
    for (element, &value) in inside.iter().enumerate() {
        let nan = element % 8 >= 4 || element >= 32;
        assert_eq!(found[element], if nan { 0x7fff } else { value });
    }
}

/// Fills shared memory with element numbers from 1000, stores (or reduces) a box.
fn store_box(at: &[i32], op: &str) -> String {
    format!(
        "mov.u32 %r5, 0;\nfill:\nadd.u32 %r6, %r11, %r5;\nshr.u32 %r1, %r5, 1;\nmad.lo.u32 %r1, %r63, 2, %r1;\n\
         add.u32 %r1, %r1, 1000;\nadd.u32 %r2, %r1, 1;\nshl.b32 %r2, %r2, 16;\nor.b32 %r1, %r1, %r2;\n\
         st.shared.b32 [%r6], %r1;\nadd.u32 %r5, %r5, 128;\nsetp.lt.u32 %p2, %r5, 4096;\n@%p2 bra fill;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\n@!%p31 bra end;\n\
         cp{}.async.bulk.tensor.{}d.global.shared::cta{op}.bulk_group [%rd60, {{{}}}], [%r10];\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nend:\n",
        if op.is_empty() { "" } else { ".reduce" },
        at.len(),
        coordinates(at)
    )
}

#[test]
fn boxes_are_stored_and_added() {
    let cases: [Case; 4] = [
        (&[40, 30], 40, &[16, 8], Swizzle::None, &[-5, 26]),
        (&[70, 40], 72, &[64, 16], Swizzle::Bytes128, &[30, 5]),
        (&[40, 40], 48, &[32, 16], Swizzle::Bytes64, &[16, 30]),
        (&[20, 6, 5], 24, &[8, 4, 4], Swizzle::None, &[4, -1, 2]),
    ];
    for (sizes, pitch, extent, swizzle, at) in cases {
        let (data, map) = tensor(sizes, pitch, extent, swizzle);
        // Numbers of the tensor's elements in the box, in the box's order.
        let places = boxed(&map, &data, at);
        for op in ["", ".add"] {
            let mut expected = data.clone();
            for (element, &place) in places.iter().enumerate().filter(|(_, place)| **place > 0) {
                let value = 1000 + swizzled(2 * element, swizzle.span() as usize) as u16 / 2;
                let slot = &mut expected[usize::from(place) - 1];
                *slot = if op.is_empty() { value } else { *slot + value };
            }
            let op = if op.is_empty() { "" } else { op };
            let mut map = map.clone();
            if !op.is_empty() {
                // Sums of 16 bits exist for floats only: pairs of them as 32-bit integers.
                map.data_type = DataType::U32;
                map.sizes[0] /= 2;
                let Mode::Tiled { extent } = &mut map.mode else { panic!("tiled") };
                extent[0] /= 2;
            }
            let mut at = at.to_vec();
            if !op.is_empty() {
                if at[0] % 2 != 0 {
                    continue;
                }
                at[0] /= 2;
            }
            let (_, found) =
                run_tensor(&store_box(&at, op), &data, &map, Schedule::Forward).unwrap();
            assert_eq!(found, expected, "{sizes:?} {op}");
        }
    }
}

#[test]
fn tensor_copies_are_checked() {
    let (data, map) = tensor(&[40, 30], 40, &[8, 8], Swizzle::None);
    let check = |body: &str, map: &TensorMap| {
        run_tensor(body, &data, map, Schedule::Forward).unwrap_err().check
    };
    let body = load_box(&[0, 0], 128, "");
    assert!(run_tensor(&body, &data, &map, Schedule::Forward).is_ok());
    // No tensor map there, one of another rank, one whose tensor isn't all allocated.
    assert_eq!(check(&body.replace("[%rd60,", "[%rd61,"), &map), Check::Trap);
    assert_eq!(check(&load_box(&[0, 0, 0], 128, ""), &map), Check::Trap);
    let larger = TensorMap { sizes: [40, 300, 1, 1, 1], ..map.clone() };
    assert_eq!(check(&load_box(&[0, 299], 128, ""), &larger), Check::OutOfBounds);
    // Too few bytes expected, a destination not at 128 bytes, no wait.
    assert_eq!(check(&load_box(&[0, 0], 96, ""), &map), Check::Deadlock);
    assert_eq!(check(&body.replace("[%r10]", "[%r10+64]"), &map), Check::Misaligned);
    assert_eq!(
        check(&body.replace(WAIT, "bar.warp.sync 0xffffffff;\n"), &map),
        Check::UnfinishedCopy
    );
    assert_eq!(
        check(&store_box(&[0, 0], "").replace("fence.proxy.async.shared::cta;\n", ""), &map),
        Check::MissingFence
    );
    let narrow = TensorMap { swizzle: Swizzle::Bytes128, ..map.clone() };
    assert_eq!(check(&body, &narrow), Check::Trap);
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

#[test]
fn tensor_maps_are_kernel_parameters() {
    let text = ".version 8.7\n.target sm_90a\n.address_size 64\n\
        .visible .entry k(.param .align 64 .b8 map[128], .param .u64 out)\n{\n\
        .reg .b32 %r<8>;\n.reg .b64 %rd<8>;\n.reg .pred %p<2>;\n\
        .shared .align 128 .b8 tile[128];\n.shared .align 8 .b64 bar;\n\
        mov.b64 %rd1, map;\ncvta.param.u64 %rd2, %rd1;\nmov.u32 %r1, tile;\nmov.u32 %r2, bar;\n\
        prefetch.tensormap [%rd2];\n\
        mbarrier.init.shared::cta.b64 [%r2], 1;\nfence.proxy.async.shared::cta;\n\
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;\nmov.u32 %r3, 8;\n\
        cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd2, {%r3}], [%r2];\n\
        again:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0;\n@!%p1 bra again;\n\
        ld.shared.u32 %r4, [tile+4];\nld.param.u64 %rd3, [out];\nst.global.u32 [%rd3], %r4;\nret;\n}\n";
    let program = Program::module(text);
    let (data, map) = tensor(&[128], 128, &[64], Swizzle::None);
    let bytes: Vec<u8> = data.iter().flat_map(|e| e.to_le_bytes()).collect();
    let map = TensorMap { address: program.bytes(&bytes), ..map };
    let out = program.unwritten(4);
    program.launch(1, 1, &[Arg::Bytes(map.encode().unwrap().to_vec()), Arg::U64(out)]).unwrap();
    assert_eq!(program.read_u32s(out, 1), [11 | 12 << 16]);
}

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
