//! Shared memory of a block.

use crate::fault::{Check, Fault, Party};

/// Bytes whose state is kept together.
const GRANULE: usize = 16;
/// Granules that get state together, when first needed.
const CHUNK: usize = 64;

/// Words that an unfinished asynchronous copy will write, in one granule.
#[derive(Debug, Clone, Default)]
struct Pending {
    bytes: u16,
    /// By word: the copy.
    by: [Option<Party>; GRANULE / 4],
}

/// Shared memory of a block.
#[derive(Debug)]
pub struct Shared {
    bytes: Vec<u8>,
    /// One bit per byte, by granule.
    initialised: Vec<u16>,
    pending: Vec<Option<Box<[Pending; CHUNK]>>>,
    /// How many bytes are pending: mostly none.
    pending_bytes: u32,
}

impl Shared {
    pub fn new(bytes: u32) -> Self {
        let granules = (bytes as usize).div_ceil(GRANULE);
        Self {
            bytes: vec![0; bytes as usize],
            initialised: vec![0; granules],
            pending: Vec::new(),
            pending_bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

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
    fn unfinished(&self, addr: u32, bytes: usize) -> Result<(), Fault> {
        if self.pending_bytes == 0 {
            return Ok(());
        }
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

    /// Refuses what lies outside, or is the destination of an unfinished copy.
    pub(super) fn inside(&self, addr: u32, bytes: usize) -> Result<(), Fault> {
        if addr as usize + bytes > self.bytes.len() {
            let what = format!("outside the block's {} bytes of shared memory", self.bytes.len());
            return Err(Fault::new(Check::OutOfBounds, what).address(u64::from(addr)));
        }
        self.unfinished(addr, bytes)
    }

    pub(super) fn read(&self, addr: u32, into: &mut [u8]) -> Result<(), Fault> {
        self.inside(addr, into.len())?;
        for (granule, mask) in spans(addr, into.len()) {
            let missing = mask & !self.initialised[granule];
            if missing != 0 {
                let byte = granule * GRANULE + missing.trailing_zeros() as usize;
                let what = "reads shared memory that nothing has written";
                return Err(Fault::new(Check::Uninitialised, what).address(byte as u64));
            }
        }
        into.copy_from_slice(&self.bytes[addr as usize..addr as usize + into.len()]);
        Ok(())
    }

    pub(super) fn write(&mut self, addr: u32, bytes: &[u8]) -> Result<(), Fault> {
        self.inside(addr, bytes.len())?;
        for (granule, mask) in spans(addr, bytes.len()) {
            self.initialised[granule] |= mask;
        }
        self.bytes[addr as usize..addr as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// The granules of a range, each with a bit per byte.
fn spans(addr: u32, bytes: usize) -> impl Iterator<Item = (usize, u16)> {
    let (from, end) = (addr as usize, addr as usize + bytes);
    (from / GRANULE..end.div_ceil(GRANULE)).map(move |granule| {
        let begin = granule * GRANULE;
        let low = from.saturating_sub(begin);
        let high = (end - begin).min(GRANULE);
        (granule, u16::MAX << low & u16::MAX >> (GRANULE - high))
    })
}
