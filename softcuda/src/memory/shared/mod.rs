//! Shared memory of a block, with the races between warps and between lanes of a warp.

mod actor;
mod pending;

use super::access::aligned;
use super::elements::Buffer;
use super::shadow::{Cell, Conflict, Here, Touch, consecutive, groups};
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask};
use crate::registers::lanes;

use actor::place;
use pending::Pending;

pub use actor::{Actor, lane_of, party_of};

/// Bytes whose state is kept together.
pub const GRANULE: usize = 16;
/// Granules that get state together, when first needed.
const CHUNK: usize = 64;

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
