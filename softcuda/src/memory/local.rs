//! Local memory of a warp's lanes, grown to what is used.

use super::elements::Buffer;
use super::{LOCAL_BYTES, access};
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask};
use crate::machine::Context;
use crate::registers::lanes;

/// One word of every lane, with the lanes in which each of its bytes has been written.
#[derive(Debug, Clone, Default)]
struct Row {
    words: [u32; LANES],
    written: [Mask; 4],
}

/// Local memory of a warp's lanes.
#[derive(Debug, Default)]
pub struct Local {
    rows: Vec<Row>,
}

impl Local {
    /// Marks a frame as not yet written.
    pub fn clear(&mut self, mask: Mask, from: u32, bytes: u32) {
        for byte in from..from.saturating_add(bytes).min(self.rows.len() as u32 * 4) {
            self.rows[byte as usize / 4].written[byte as usize % 4] &= !mask;
        }
    }

    /// Copies bytes of each lane, with whether they are initialised.
    pub fn copy(&mut self, mask: Mask, from: u32, to: u32, bytes: u32) {
        self.grow(from.max(to) + bytes);
        for byte in 0..bytes {
            let (source, target) = ((from + byte) as usize, (to + byte) as usize);
            let row = &self.rows[source / 4];
            let (words, written) = (row.words, row.written[source % 4]);
            let row = &mut self.rows[target / 4];
            let old = &mut row.written[target % 4];
            *old = (*old & !mask) | (written & mask);
            for lane in lanes(mask) {
                let value = words[lane].to_le_bytes()[source % 4];
                set_byte(&mut row.words[lane], target % 4, value);
            }
        }
    }

    pub fn read(&self, lane: usize, from: u32, into: &mut [u8]) -> Result<(), Fault> {
        check(lane, from, into.len())?;
        for (at, byte) in (from as usize..).zip(into) {
            match self.rows.get(at / 4) {
                Some(row) if row.written[at % 4] >> lane & 1 == 1 => {
                    *byte = row.words[lane].to_le_bytes()[at % 4];
                }
                _ => {
                    let what = "reads local memory that the thread has not written";
                    return Err(fault(Check::Uninitialised, what, lane, at as u32));
                }
            }
        }
        Ok(())
    }

    pub fn write(&mut self, lane: usize, to: u32, bytes: &[u8]) -> Result<(), Fault> {
        check(lane, to, bytes.len())?;
        self.grow(to + bytes.len() as u32);
        for (at, &byte) in (to as usize..).zip(bytes) {
            let row = &mut self.rows[at / 4];
            row.written[at % 4] |= 1 << lane;
            set_byte(&mut row.words[lane], at % 4, byte);
        }
        Ok(())
    }

    /// A word that all lanes read at the same aligned address, if all of them have written it.
    pub(super) fn row(&self, mask: Mask, from: u32) -> Option<&[u32; LANES]> {
        let row = self.rows.get(from as usize / 4)?;
        let [a, b, c, d] = row.written;
        (mask & !(a & b & c & d) == 0).then_some(&row.words)
    }

    /// Writes a word of each lane at the same aligned address, which lies inside local memory.
    pub(super) fn set_row(&mut self, mask: Mask, to: u32, words: &[u32; LANES]) {
        self.grow(to + 4);
        let row = &mut self.rows[to as usize / 4];
        row.written.iter_mut().for_each(|written| *written |= mask);
        lanes(mask).for_each(|lane| row.words[lane] = words[lane]);
    }

    fn grow(&mut self, end: u32) {
        let rows = end.div_ceil(4) as usize;
        if self.rows.len() < rows {
            self.rows.resize(rows, Row::default());
        }
    }
}

fn set_byte(word: &mut u32, index: usize, byte: u8) {
    let mut bytes = word.to_le_bytes();
    bytes[index] = byte;
    *word = u32::from_le_bytes(bytes);
}

fn check(lane: usize, at: u32, bytes: usize) -> Result<(), Fault> {
    if u64::from(at) + bytes as u64 > u64::from(LOCAL_BYTES) {
        return Err(fault(Check::OutOfBounds, "outside the thread's local memory", lane, at));
    }
    Ok(())
}

fn fault(check: Check, what: &str, lane: usize, at: u32) -> Fault {
    Fault::new(check, what).lane(lane).address(u64::from(at))
}

/// True if the lanes address the same whole words of their local memory.
fn rowwise(addresses: &[u64; LANES], mask: Mask, bytes: usize) -> Option<u32> {
    let first = addresses[mask.trailing_zeros() as usize];
    let same = (0..LANES).all(|lane| mask >> lane & 1 == 0 || addresses[lane] == first);
    let addr = first as u32;
    let inside = u64::from(addr) + bytes as u64 <= u64::from(LOCAL_BYTES);
    let whole = bytes.is_multiple_of(4) && (addr as usize).is_multiple_of(bytes);
    (same && inside && whole).then_some(addr)
}

/// Reads `bytes` bytes of each lane.
pub fn read_lanes(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    ctx.count(crate::counters::Counter::LocalAccesses, u64::from(mask.count_ones()));
    let local = &ctx.warp.local;
    if let Some(addr) = rowwise(addresses, mask, bytes) {
        let rows = (0..bytes).step_by(4).map(|at| local.row(mask, addr + at as u32));
        if let Some(rows) = rows.collect::<Option<Vec<_>>>() {
            for (at, row) in (0..).step_by(4).zip(rows) {
                for lane in lanes(mask) {
                    buffer[lane][at..at + 4].copy_from_slice(&row[lane].to_le_bytes());
                }
            }
            return Ok(());
        }
    }
    for lane in lanes(mask) {
        let addr = addresses[lane] as u32;
        access::aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
        local.read(lane, addr, &mut buffer[lane][..bytes])?;
    }
    Ok(())
}

/// Writes `bytes` bytes of each lane.
pub fn write_lanes(
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    bytes: usize,
    buffer: &Buffer,
) -> Result<(), Fault> {
    ctx.count(crate::counters::Counter::LocalAccesses, u64::from(mask.count_ones()));
    let local = &mut ctx.warp.local;
    if let Some(addr) = rowwise(addresses, mask, bytes) {
        for at in (0..bytes).step_by(4) {
            let word = |lane: usize| &buffer[lane][at..at + 4];
            let words = std::array::from_fn(|lane| {
                u32::from_le_bytes(word(lane).try_into().expect("four bytes"))
            });
            local.set_row(mask, addr + at as u32, &words);
        }
        return Ok(());
    }
    for lane in lanes(mask) {
        let addr = addresses[lane] as u32;
        access::aligned(u64::from(addr), bytes).map_err(|fault| fault.lane(lane))?;
        local.write(lane, addr, &buffer[lane][..bytes])?;
    }
    Ok(())
}
