//! Local memory of a warp's lanes, grown to what is used.

use super::LOCAL_BYTES;
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask};
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
