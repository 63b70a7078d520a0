//! What accesses would cost hardware: sectors of global memory, wavefronts of shared memory.

use super::shadow::consecutive;
use crate::counters::Counter;
use crate::ir::{LANES, Mask};
use crate::machine::Context;
use crate::registers::lanes;

const SECTOR: u64 = 32;
const BANKS: usize = 32;

/// Counts a warp's access of global memory, `bytes` a lane, aligned to them.
pub fn global(ctx: &mut Context<'_>, addresses: &[u64; LANES], mask: Mask, bytes: usize) {
    let (sectors, distinct) = touched(addresses, mask, bytes);
    ctx.count(Counter::GlobalRequests, 1);
    ctx.count(Counter::GlobalBytes, bytes as u64 * u64::from(mask.count_ones()));
    ctx.count(Counter::GlobalSectors, sectors);
    ctx.count(Counter::GlobalNeeded, bytes as u64 * distinct);
}

/// Distinct sectors and distinct addresses. An aligned access lies in one sector, and two of the same
/// size are the same or apart.
fn touched(addresses: &[u64; LANES], mask: Mask, bytes: usize) -> (u64, u64) {
    let low = addresses.map(|address| address as u32);
    if consecutive(&low, mask, bytes) && addresses[0].is_multiple_of(bytes as u64) {
        let end = addresses[0] + (LANES * bytes) as u64;
        return (end.div_ceil(SECTOR) - addresses[0] / SECTOR, LANES as u64);
    }
    let mut active = [0; LANES];
    let mut n = 0;
    for lane in lanes(mask) {
        active[n] = addresses[lane];
        n += 1;
    }
    let active = &mut active[..n];
    if !active.is_sorted() {
        active.sort_unstable();
    }
    let mut counts = (1, 1);
    for pair in active.windows(2) {
        counts.0 += u64::from(pair[0] / SECTOR != pair[1] / SECTOR);
        counts.1 += u64::from(pair[0] != pair[1]);
    }
    counts
}

/// Counts a warp's access of shared memory, `bytes` a lane: a wavefront serves every bank once, the same
/// word to all who ask for it. Wide accesses go in parts of 128 bytes: half or quarter warps.
pub fn shared(ctx: &mut Context<'_>, addresses: &[u64; LANES], mask: Mask, bytes: usize) {
    let (wavefronts, ideal) = wavefronts(addresses, mask, bytes);
    ctx.count(Counter::SharedWavefronts, wavefronts);
    ctx.count(Counter::SharedIdeal, ideal);
}

fn wavefronts(addresses: &[u64; LANES], mask: Mask, bytes: usize) -> (u64, u64) {
    let words = bytes.div_ceil(4);
    let low = addresses.map(|address| address as u32);
    if consecutive(&low, mask, bytes) {
        return (words as u64, words as u64);
    }
    let group = LANES / words;
    let (mut total, mut ideal) = (0, 0);
    for first in (0..LANES).step_by(group) {
        let part = mask & (Mask::MAX >> (LANES - group)) << first;
        if part == 0 {
            continue;
        }
        ideal += 1;
        total += one_group(addresses, part, words as u64);
    }
    (total, ideal)
}

/// The most distinct words that one bank must serve. Accesses are aligned: one of several words takes
/// as many neighbouring banks, which are counted as one.
fn one_group(addresses: &[u64; LANES], mask: Mask, words: u64) -> u64 {
    let banks = BANKS as u64 / words;
    let mut held = [u64::MAX; BANKS];
    let mut conflict = false;
    let access = |lane: usize| addresses[lane] / (4 * words);
    for lane in lanes(mask) {
        let held = &mut held[(access(lane) % banks) as usize];
        conflict |= *held != u64::MAX && *held != access(lane);
        *held = access(lane);
    }
    if !conflict {
        return 1;
    }
    let (mut distinct, mut n) = ([0; LANES], 0);
    let mut counts = [0; BANKS];
    for lane in lanes(mask) {
        if !distinct[..n].contains(&access(lane)) {
            distinct[n] = access(lane);
            n += 1;
            counts[(access(lane) % banks) as usize] += 1;
        }
    }
    counts.into_iter().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(f: impl Fn(u64) -> u64) -> [u64; LANES] {
        std::array::from_fn(|lane| f(lane as u64))
    }

    #[test]
    fn sectors_and_needed_bytes() {
        assert_eq!(touched(&at(|lane| 4 * lane), Mask::MAX, 4), (4, 32));
        assert_eq!(touched(&at(|lane| 4 * lane + 16), Mask::MAX, 4), (5, 32));
        assert_eq!(touched(&at(|lane| 128 * (31 - lane)), Mask::MAX, 4), (32, 32));
        assert_eq!(touched(&at(|_| 64), Mask::MAX, 4), (1, 1));
        assert_eq!(touched(&at(|lane| 16 * lane), 0xff, 16), (4, 8));
        assert_eq!(touched(&at(|lane| 4 * (lane ^ 5)), Mask::MAX, 4), (4, 32));
    }

    #[test]
    fn banks() {
        for (stride, conflicts) in [(1, 1), (2, 2), (3, 1), (32, 32), (33, 1), (16, 16)] {
            let waves = wavefronts(&at(|lane| 4 * stride * lane), Mask::MAX, 4);
            assert_eq!(waves, (conflicts, 1), "stride {stride}");
        }
        // The same word for all; two words of one bank.
        assert_eq!(wavefronts(&at(|_| 12), Mask::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&at(|lane| 128 * (lane % 2)), Mask::MAX, 4), (2, 1));
        // Bytes of one word are no conflict.
        assert_eq!(wavefronts(&at(|lane| lane), Mask::MAX, 1), (1, 1));
        // Wide accesses: half and quarter warps.
        assert_eq!(wavefronts(&at(|lane| 8 * lane), Mask::MAX, 8), (2, 2));
        assert_eq!(wavefronts(&at(|lane| 16 * lane), Mask::MAX, 16), (4, 4));
        assert_eq!(wavefronts(&at(|lane| 128 * lane), Mask::MAX, 16), (32, 4));
        assert_eq!(wavefronts(&at(|lane| 16 * lane), 0xff, 16), (1, 1));
    }
}
