//! Destinations of unfinished asynchronous copies.

use super::{CHUNK, GRANULE, Shared, spans};
use crate::fault::{Check, Fault, Party};

/// Words that an unfinished asynchronous copy will write, in one granule.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    bytes: u16,
    /// By word: the copy.
    by: [Option<Party>; GRANULE / 4],
}

impl Shared {
    /// Marks the destination of an asynchronous copy: an access before its end is a fault.
    pub fn mark_pending(&mut self, addr: u32, bytes: u32, by: Party) {
        let chunks = self.initialised.len().div_ceil(CHUNK);
        self.pending.resize(chunks, None);
        for (granule, mask) in spans(addr, bytes as usize) {
            let Some(chunk) = self.pending.get_mut(granule / CHUNK) else { return };
            let chunk =
                chunk.get_or_insert_with(|| Box::new(std::array::from_fn(|_| Pending::default())));
            let pending = &mut chunk[granule % CHUNK];
            self.pending_bytes += (mask & !pending.bytes).count_ones();
            pending.bytes |= mask;
            for (word, slot) in pending.by.iter_mut().enumerate() {
                if mask >> (4 * word) & 0xf != 0 {
                    *slot = Some(by.clone());
                }
            }
        }
    }

    pub fn unmark_pending(&mut self, addr: u32, bytes: u32) {
        for (granule, mask) in spans(addr, bytes as usize) {
            let chunk = self.pending.get_mut(granule / CHUNK).and_then(Option::as_mut);
            let Some(chunk) = chunk else { continue };
            let pending = &mut chunk[granule % CHUNK];
            self.pending_bytes -= (mask & pending.bytes).count_ones();
            pending.bytes &= !mask;
        }
    }

    /// The fault of an access that meets an unfinished copy.
    #[cold]
    pub(super) fn unfinished(&self, addr: u32, bytes: usize) -> Result<(), Fault> {
        for (granule, mask) in spans(addr, bytes) {
            let chunk = self.pending[granule / CHUNK].as_ref();
            let Some(pending) = chunk.map(|chunk| &chunk[granule % CHUNK]) else { continue };
            let hit = pending.bytes & mask;
            if hit != 0 {
                let byte = hit.trailing_zeros() as usize;
                let what = "touches shared memory that an unfinished copy writes";
                let fault = Fault::new(Check::UnfinishedCopy, what);
                let fault = fault.address((granule * GRANULE + byte) as u64);
                return Err(match pending.by[byte / 4].clone() {
                    Some(by) => fault.other(by),
                    None => fault,
                });
            }
        }
        Ok(())
    }
}
