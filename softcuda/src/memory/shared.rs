//! Shared memory of a block, with the races between warps and between lanes of a warp.

use super::order::Order;
use super::shadow::{Cell, Earlier, Happened, Kind, Touch};
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
    /// By granule, in chunks.
    cells: Vec<Option<Box<[Cell; CHUNK]>>>,
}

/// Who accesses shared memory, and how.
pub struct Actor<'a> {
    pub order: &'a mut Order,
    /// As whom the access counts: the warp, or an asynchronous unit.
    pub unit: usize,
    /// The warp that executes the instruction.
    pub warp: usize,
    pub lane: usize,
    pub pc: u32,
    pub kind: Kind,
}

/// Why an access is refused.
#[derive(Debug)]
pub enum Refusal {
    Fault(Fault),
    /// It conflicts with an earlier one.
    Conflict(Check, Earlier),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal::Fault(fault)
    }
}

const LANE: u32 = 31;

/// A place: the instruction, the lane and, if several lanes were there, another of them.
fn place(pc: u32, lane: usize) -> u32 {
    let lane = lane as u32;
    pc << 10 | lane << 5 | lane
}

/// Instruction and lane of a place as another lane reports it (`lane`, if it is of the same warp).
pub fn party_of(at: u32, lane: Option<usize>) -> (u32, usize) {
    let (first, second) = ((at & LANE) as usize, (at >> 5 & LANE) as usize);
    (at >> 10, if Some(first) == lane { second } else { first })
}

impl Happened for Actor<'_> {
    fn before(&self, who: u32, interval: u32, at: u32) -> bool {
        let who = who as usize;
        if who == self.unit && who != self.warp {
            return true;
        }
        if who != self.warp {
            return self.order.seen(self.warp, who, interval);
        }
        let seen = |of| self.order.seen_by_lane(who, self.lane, of as usize, interval);
        seen(at & LANE) && seen(at >> 5 & LANE)
    }

    fn all_before(&self, who: u32, interval: u32) -> bool {
        let who = who as usize;
        match who == self.warp {
            true => self.order.seen_by_all(who, interval),
            false => who == self.unit || self.order.seen(self.warp, who, interval),
        }
    }

    fn settled(&mut self, who: u32, interval: u32) -> bool {
        self.order.settled(who as usize, interval)
    }

    fn merge(earlier: u32, later: u32) -> u32 {
        if (earlier ^ later) & LANE == 0 {
            return later;
        }
        later & !(LANE << 5 | LANE) | (later & LANE) << 5 | earlier & LANE
    }
}

impl Shared {
    pub fn new(bytes: u32) -> Self {
        let granules = (bytes as usize).div_ceil(GRANULE);
        Self {
            bytes: vec![0; bytes as usize],
            initialised: vec![0; granules],
            pending: Vec::new(),
            pending_bytes: 0,
            cells: vec![const { None }; granules.div_ceil(CHUNK)],
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

    pub(super) fn read(
        &mut self,
        addr: u32,
        into: &mut [u8],
        actor: &mut Actor<'_>,
    ) -> Result<(), Refusal> {
        self.inside(addr, into.len())?;
        for (granule, mask) in spans(addr, into.len()) {
            self.written(granule, mask)?;
            self.touch(granule, mask, false, true, actor)?;
        }
        into.copy_from_slice(&self.bytes[addr as usize..addr as usize + into.len()]);
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        addr: u32,
        bytes: &[u8],
        actor: &mut Actor<'_>,
    ) -> Result<(), Refusal> {
        self.inside(addr, bytes.len())?;
        let old = &self.bytes[addr as usize..addr as usize + bytes.len()];
        let changes = old != bytes;
        for (granule, mask) in spans(addr, bytes.len()) {
            let changes = changes || mask & !self.initialised[granule] != 0;
            self.touch(granule, mask, true, changes, actor)?;
            self.initialised[granule] |= mask;
        }
        self.bytes[addr as usize..addr as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// A read-modify-write: gives the old bytes, and true if it changed them.
    pub(super) fn modify<const N: usize>(
        &mut self,
        addr: u32,
        old: &mut [u8],
        actor: &mut Actor<'_>,
        next: impl FnOnce(&[u8]) -> [u8; N],
    ) -> Result<bool, Refusal> {
        self.inside(addr, old.len())?;
        let range = addr as usize..addr as usize + old.len();
        old.copy_from_slice(&self.bytes[range.clone()]);
        let new = next(old);
        let new = &new[..old.len()];
        let changes = new != old;
        for (granule, mask) in spans(addr, old.len()) {
            self.written(granule, mask)?;
            self.touch(granule, mask, changes, changes, actor)?;
        }
        self.bytes[range].copy_from_slice(new);
        Ok(changes)
    }

    /// Refuses to read a granule's bytes unless all have been written.
    fn written(&self, granule: usize, mask: u16) -> Result<(), Fault> {
        let missing = mask & !self.initialised[granule];
        if missing == 0 {
            return Ok(());
        }
        let byte = granule * GRANULE + missing.trailing_zeros() as usize;
        let what = "reads shared memory that nothing has written";
        Err(Fault::new(Check::Uninitialised, what).address(byte as u64))
    }

    /// Checks an access of a granule's bytes against earlier ones and remembers it.
    fn touch(
        &mut self,
        granule: usize,
        mask: u16,
        write: bool,
        changes: bool,
        actor: &mut Actor<'_>,
    ) -> Result<(), Refusal> {
        let chunk = self.cells[granule / CHUNK]
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| Cell::default())));
        let cell = &mut chunk[granule % CHUNK];
        let touch = Touch {
            who: actor.unit as u32,
            interval: actor.order.now(actor.unit),
            at: place(actor.pc, actor.lane),
            kind: actor.kind,
            write,
        };
        let bytes = u32::from(mask);
        if actor.unit != actor.warp {
            let Actor { order, warp, .. } = &*actor;
            let unfenced = cell.find_write::<{ GRANULE as u32 }>(bytes, |who, interval| {
                let who = who as usize;
                !order.asynchronous(who)
                    && (who == *warp || order.seen(*warp, who, interval))
                    && !order.fenced(*warp, who, interval)
            });
            if let Some(earlier) = unfenced {
                return Err(Refusal::Conflict(Check::MissingFence, earlier));
            }
        }
        let raced = cell.touch::<{ GRANULE as u32 }, _>(&touch, bytes, changes, actor);
        raced.map_err(|earlier| Refusal::Conflict(Check::SharedRace, earlier))
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
