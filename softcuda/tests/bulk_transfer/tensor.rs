//! Copies of boxes of tensors, as tensor maps describe them.

use crate::common::{Arg, Program};
use crate::{SCHEDULES, WAIT, program};
use softcuda::fault::{Check, Report};
use softcuda::machine::Schedule;
use softcuda::tensor_map::{DataType, Interleave, MAX_RANK, Mode, Swizzle, TensorMap};

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
