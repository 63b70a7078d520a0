//! Shared memory of a block, with the races between warps and between lanes of a warp.

use super::access::aligned;
use super::order::Order;
use super::shadow::{Cell, Conflict, Happened, Here, Kind, Touch, consecutive, groups};
use super::transfer::Buffer;
use crate::fault::{Check, Fault, Party};
use crate::ir::{LANES, Mask};
use crate::registers::lanes;

/// Bytes whose state is kept together.
pub const GRANULE: usize = 16;
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
    touched: Touched,
}

/// Who touched each granule.
#[derive(Debug)]
struct Touched {
    /// In chunks.
    cells: Vec<Option<Box<[Cell<GRANULE>; CHUNK]>>>,
}

/// The warp that accesses shared memory, and how.
pub struct Actor<'a> {
    pub order: &'a mut Order,
    /// As whom the access counts: the warp, or an asynchronous unit.
    pub unit: usize,
    pub warp: usize,
    pub pc: u32,
    pub kind: Kind,
}

/// Why an access is refused.
#[derive(Debug)]
pub enum Refusal {
    Fault(Fault),
    /// It conflicts with an earlier one, in a granule.
    Conflict(Check, Conflict, usize),
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

fn first(place: u32) -> u32 {
    place & LANE
}

fn second(place: u32) -> u32 {
    place >> 5 & LANE
}

/// Instruction and lane of the earlier place of a conflict; of two lanes not the one that is `here` now.
pub fn party_of(place: u32, here: Option<u32>) -> (u32, u32) {
    let lane = if here == Some(first(place)) { second(place) } else { first(place) };
    (place >> 10, lane)
}

/// The lane of the later place.
pub fn lane_of(place: u32) -> u32 {
    first(place)
}

impl Actor<'_> {
    fn touch(&self, write: bool) -> Touch {
        let interval = self.order.now(self.unit);
        Touch { who: self.unit as u32, interval, kind: self.kind, write }
    }
}

impl Happened for Actor<'_> {
    fn before(&self, who: u32, interval: u32, place: u32, here: u32) -> bool {
        let who = who as usize;
        if who != self.warp {
            return self.all_before(who as u32, interval);
        }
        let seen = |lane, of| self.order.seen_by_lane(who, lane as usize, of as usize, interval);
        [first(here), second(here)]
            .iter()
            .all(|&lane| seen(lane, first(place)) && seen(lane, second(place)))
    }

    fn all_before(&self, who: u32, interval: u32) -> bool {
        let who = who as usize;
        match who == self.warp {
            true => self.order.seen_by_all(who, interval),
            false => who == self.unit || self.order.seen(self.warp, who, interval),
        }
    }

    fn never(&self) -> bool {
        false
    }

    fn settled(&mut self, who: u32, interval: u32) -> bool {
        self.order.settled(who as usize, interval)
    }

    const WHO: u32 = LANE << 5 | LANE;

    fn merge(earlier: u32, later: u32, same: bool) -> Option<u32> {
        let (one, other) = (first(earlier), second(later));
        if one == second(earlier) && one == first(later) && one == other {
            return Some(later);
        }
        let candidates = [other, first(later), second(earlier)];
        let different = candidates.into_iter().find(|&lane| lane != one).unwrap_or(one);
        same.then_some(later & !(LANE << 5 | LANE) | different << 5 | one)
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
            touched: Touched { cells: vec![const { None }; granules.div_ceil(CHUNK)] },
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
    #[cold]
    fn unfinished(&self, addr: u32, bytes: usize) -> Result<(), Fault> {
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
        if self.pending_bytes == 0 { Ok(()) } else { self.unfinished(addr, bytes) }
    }

    /// Reads as one lane.
    pub(super) fn read(
        &mut self,
        addr: u32,
        into: &mut [u8],
        lane: usize,
        actor: &mut Actor<'_>,
    ) -> Result<(), Refusal> {
        self.inside(addr, into.len())?;
        let (touch, here) = (actor.touch(false), Here::alone(place(actor.pc, lane)));
        for (granule, mask) in spans(addr, into.len()) {
            self.written(granule, mask)?;
            self.touched.check(granule, mask, &touch, &here, actor, || true)?;
        }
        copy(into, &self.bytes[addr as usize..addr as usize + into.len()]);
        Ok(())
    }

    /// Writes as one lane.
    pub(super) fn write(
        &mut self,
        addr: u32,
        bytes: &[u8],
        lane: usize,
        actor: &mut Actor<'_>,
    ) -> Result<(), Refusal> {
        self.inside(addr, bytes.len())?;
        let (touch, here) = (actor.touch(true), Here::alone(place(actor.pc, lane)));
        let range = addr as usize..addr as usize + bytes.len();
        let differs = self.bytes[range.clone()] != *bytes;
        for (granule, mask) in spans(addr, bytes.len()) {
            let changes = differs || mask & !self.initialised[granule] != 0;
            self.touched.check(granule, mask, &touch, &here, actor, || changes)?;
            self.initialised[granule] |= mask;
        }
        copy(&mut self.bytes[range], bytes);
        Ok(())
    }

    /// A read-modify-write of a lane: gives the old bytes, and true if it changed them.
    pub(super) fn modify<const N: usize>(
        &mut self,
        addr: u32,
        old: &mut [u8],
        lane: usize,
        actor: &mut Actor<'_>,
        next: impl FnOnce(&[u8]) -> [u8; N],
    ) -> Result<bool, Refusal> {
        self.inside(addr, old.len())?;
        let range = addr as usize..addr as usize + old.len();
        old.copy_from_slice(&self.bytes[range.clone()]);
        let new = next(old);
        let new = &new[..old.len()];
        let changes = new != old;
        let (touch, here) = (actor.touch(changes), Here::alone(place(actor.pc, lane)));
        for (granule, mask) in spans(addr, old.len()) {
            self.written(granule, mask)?;
            self.touched.check(granule, mask, &touch, &here, actor, || changes)?;
        }
        self.bytes[range].copy_from_slice(new);
        Ok(changes)
    }

    /// Reads `width` bytes, at most a granule, for each lane of a mask.
    pub(super) fn read_lanes(
        &mut self,
        addrs: &[u32; LANES],
        mask: Mask,
        width: usize,
        actor: &mut Actor<'_>,
        buffer: &mut Buffer,
    ) -> Result<(), Refusal> {
        self.lanes_inside(addrs, mask, width)?;
        let (touch, pc) = (actor.touch(false), actor.pc);
        let place = |lane| place(pc, lane);
        groups::<GRANULE, Actor<'_>, _>(addrs, mask, width, false, place, |group| {
            self.written(group.cell, group.bytes as u16).map_err(|fault| {
                let at =
                    |&lane: &usize| Some(u64::from(addrs[lane]) + width as u64) > fault.address;
                let lane = lanes(group.lanes).find(at);
                fault.lane(lane.unwrap_or(0))
            })?;
            self.touched.check(group.cell, group.bytes as u16, &touch, &group.here, actor, || true)
        })?;
        match width {
            4 => self.gather::<4>(addrs, mask, buffer),
            8 => self.gather::<8>(addrs, mask, buffer),
            16 => self.gather::<16>(addrs, mask, buffer),
            _ => {
                for lane in lanes(mask) {
                    let from = &self.bytes[addrs[lane] as usize..][..width];
                    buffer[lane][..width].copy_from_slice(from);
                }
            }
        }
        Ok(())
    }

    fn gather<const N: usize>(&self, addrs: &[u32; LANES], mask: Mask, buffer: &mut Buffer) {
        for (lane, (row, &addr)) in buffer.iter_mut().zip(addrs).enumerate() {
            if mask >> lane & 1 == 1 {
                chunk::<N>(row, &self.bytes[addr as usize..]);
            }
        }
    }

    /// Writes `width` bytes, at most a granule, for each lane of a mask.
    pub(super) fn write_lanes<'b>(
        &mut self,
        addrs: &[u32; LANES],
        mask: Mask,
        width: usize,
        actor: &mut Actor<'_>,
        take: impl Fn(usize) -> &'b [u8],
    ) -> Result<(), Refusal> {
        self.lanes_inside(addrs, mask, width)?;
        let (touch, pc) = (actor.touch(true), actor.pc);
        let place = |lane| place(pc, lane);
        let Self { bytes, initialised, touched, .. } = self;
        groups::<GRANULE, Actor<'_>, _>(addrs, mask, width, true, place, |group| {
            let written = group.bytes as u16 & !initialised[group.cell] == 0;
            let same = |lane: usize| take(lane) == &bytes[addrs[lane] as usize..][..width];
            let changes = || !written || !lanes(group.lanes).all(same);
            touched.check(group.cell, group.bytes as u16, &touch, &group.here, actor, changes)?;
            initialised[group.cell] |= group.bytes as u16;
            for lane in lanes(group.lanes) {
                copy(&mut bytes[addrs[lane] as usize..][..width], take(lane));
            }
            Ok(())
        })
    }

    /// Refuses lanes whose accesses are not aligned or lie outside, or in an unfinished copy.
    fn lanes_inside(&self, addrs: &[u32; LANES], mask: Mask, width: usize) -> Result<(), Refusal> {
        let end = u64::from(addrs[LANES - 1]) + width as u64;
        if consecutive(addrs, mask, width)
            && (addrs[0] as usize).is_multiple_of(width)
            && end <= self.bytes.len() as u64
            && self.pending_bytes == 0
        {
            return Ok(());
        }
        for lane in lanes(mask) {
            let addr = addrs[lane];
            aligned(u64::from(addr), width)
                .and_then(|()| self.inside(addr, width))
                .map_err(|fault| fault.lane(lane))?;
        }
        Ok(())
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
}

impl Touched {
    /// Checks an access of a granule's bytes against earlier ones and remembers it.
    fn check(
        &mut self,
        granule: usize,
        mask: u16,
        touch: &Touch,
        here: &Here,
        actor: &mut Actor<'_>,
        changes: impl FnOnce() -> bool,
    ) -> Result<(), Refusal> {
        let chunk = self.cells[granule / CHUNK]
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| Cell::default())));
        let cell = &mut chunk[granule % CHUNK];
        let bytes = u32::from(mask);
        if actor.unit != actor.warp {
            let Actor { order, warp, .. } = &*actor;
            let unfenced = cell.find_write(bytes, here, |who, interval| {
                let who = who as usize;
                !order.asynchronous(who)
                    && (who == *warp || order.seen(*warp, who, interval))
                    && !order.fenced(*warp, who, interval)
            });
            if let Some(conflict) = unfenced {
                return Err(Refusal::Conflict(Check::MissingFence, conflict, granule));
            }
        }
        let checked = cell.touch(touch, bytes, here, actor, changes);
        checked.map_err(|conflict| Refusal::Conflict(Check::SharedRace, conflict, granule))
    }
}

/// The granules of a range, each with a bit per byte.
#[inline]
fn spans(addr: u32, bytes: usize) -> impl Iterator<Item = (usize, u16)> {
    let (from, end) = (addr as usize, addr as usize + bytes);
    (from / GRANULE..end.div_ceil(GRANULE)).map(move |granule| {
        let begin = granule * GRANULE;
        let low = from.saturating_sub(begin);
        let high = (end - begin).min(GRANULE);
        (granule, u16::MAX << low & u16::MAX >> (GRANULE - high))
    })
}

/// Copies between slices of one length; those of accesses without a call.
pub fn copy(into: &mut [u8], from: &[u8]) {
    match into.len() {
        4 => chunk::<4>(into, from),
        8 => chunk::<8>(into, from),
        16 => chunk::<16>(into, from),
        _ => into.copy_from_slice(from),
    }
}

fn chunk<const N: usize>(into: &mut [u8], from: &[u8]) {
    if let (Some(into), Some(from)) = (into.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *into = *from;
    }
}
