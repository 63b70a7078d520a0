//! Checked accesses of global memory by a warp's lanes.

use std::sync::{Arc, MutexGuard};

use super::access::{aligned, outside};
use super::device::{Device, View};
use super::grid::{Blocks, Grid};
use super::page::{Known, PAGE_BYTES, SECTOR, Words, spans};
use super::shadow::{Conflict, Happened, Here, Kind, Touch, consecutive, groups};
use crate::fault::{Check, Fault, Party};
use crate::ir::{LANES, Mask};
use crate::machine::Context;
use crate::registers::lanes;

/// The lanes of a warp as they touch global memory.
pub struct Toucher<'a> {
    pub device: &'a Device,
    grid: Option<&'a Arc<Grid>>,
    order: Option<MutexGuard<'a, Blocks>>,
    block: u32,
    first_thread: u32,
    pc: u32,
    kind: Kind,
}

/// A page, locked.
pub struct Held<'a> {
    pub known: &'a mut Known,
    pub words: &'a Words,
    /// Address of the page.
    pub page: u64,
}

impl<'a> Toucher<'a> {
    /// For the lanes of the context's warp.
    pub fn new(ctx: &'a mut Context<'_>, kind: Kind) -> Self {
        let launch = ctx.launch;
        let grid = ctx.cluster.order.grid.get_or_insert_with(|| launch.device.grid(launch.number));
        let grid: Option<&Arc<Grid>> = grid.several.then_some(grid);
        let place = &ctx.warp.place;
        Self {
            device: launch.device,
            grid,
            order: grid.and_then(|grid| grid.order()),
            block: place.linear_block,
            first_thread: place.thread(0),
            pc: ctx.pc,
            kind,
        }
    }

    /// For constants, which nobody writes.
    pub fn of_constants(ctx: &'a mut Context<'_>) -> Self {
        let place = &ctx.warp.place;
        Self {
            device: ctx.launch.device,
            grid: None,
            order: None,
            block: place.linear_block,
            first_thread: place.thread(0),
            pc: ctx.pc,
            kind: Kind::Plain,
        }
    }

    /// Reads as one lane, at an offset of a page.
    pub fn read(
        &self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        self.initialised(held, offset, lane, into.len())?;
        self.touch(held, offset, lane, into.len(), false, false)?;
        held.words.read(offset, into);
        Ok(())
    }

    pub fn initialised(
        &self,
        held: &Held<'_>,
        offset: usize,
        lane: usize,
        bytes: usize,
    ) -> Result<(), Fault> {
        match held.known.uninitialised(offset, bytes) {
            None => Ok(()),
            Some(byte) => Err(uninitialised(held.page + byte as u64, lane)),
        }
    }

    /// Writes as one lane, at an offset of a page.
    pub fn write(
        &self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let written = held.known.uninitialised(offset, bytes.len()).is_none();
        let changes = !written || !held.words.holds(offset, bytes);
        self.touch(held, offset, lane, bytes.len(), true, changes)?;
        held.known.initialise(offset, bytes.len());
        held.words.write(offset, bytes);
        Ok(())
    }

    /// Checks a lane's access against those of other blocks and remembers it.
    pub fn touch(
        &self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        bytes: usize,
        write: bool,
        changes: bool,
    ) -> Result<(), Fault> {
        let Some((grid, touch)) = self.checked(write) else { return Ok(()) };
        let (_, cells) = held.known.parts(Some(grid));
        let here = Here::alone(self.place(lane));
        let mut seen = self.seen();
        for (sector, mask) in spans(offset, bytes) {
            let done = cells[sector].touch(&touch, mask, &here, &mut seen, || changes);
            done.map_err(|conflict| self.race(conflict, held.page, sector))?;
        }
        Ok(())
    }

    /// Reads `width` bytes for each lane of a mask, then gives out where they lie.
    pub fn read_lanes(
        &self,
        held: &mut Held<'_>,
        offsets: &[u32; LANES],
        mask: Mask,
        width: usize,
        mut give: impl FnMut(usize, &Words, usize),
    ) -> Result<(), Fault> {
        let (page, checked) = (held.page, self.checked(false));
        let (initialised, cells) = held.known.parts(checked.map(|(grid, _)| grid));
        let mut seen = self.seen();
        let place = |lane| self.place(lane);
        groups::<SECTOR, Seen<'_>, _>(offsets, mask, width, false, place, |group| {
            let missing = group.bytes & !initialised[group.cell];
            if missing != 0 {
                let byte = (group.cell * SECTOR) as u32 + missing.trailing_zeros();
                let here = |&lane: &usize| offsets[lane] + width as u32 > byte;
                let lane = lanes(group.lanes).find(here).unwrap_or(0);
                return Err(uninitialised(page + u64::from(byte), lane));
            }
            let Some((_, touch)) = &checked else { return Ok(()) };
            let cell = &mut cells[group.cell];
            let done = cell.touch(touch, group.bytes, &group.here, &mut seen, || false);
            done.map_err(|conflict| self.race(conflict, page, group.cell))
        })?;
        lanes(mask).for_each(|lane| give(lane, held.words, offsets[lane] as usize));
        Ok(())
    }

    /// Writes `width` bytes for each lane of a mask.
    pub fn write_lanes<'b>(
        &self,
        held: &mut Held<'_>,
        offsets: &[u32; LANES],
        mask: Mask,
        width: usize,
        take: impl Fn(usize) -> &'b [u8],
    ) -> Result<(), Fault> {
        let (page, words, checked) = (held.page, held.words, self.checked(true));
        let (initialised, cells) = held.known.parts(checked.map(|(grid, _)| grid));
        let mut seen = self.seen();
        let place = |lane| self.place(lane);
        groups::<SECTOR, Seen<'_>, _>(offsets, mask, width, true, place, |group| {
            if let Some((_, touch)) = &checked {
                let written = group.bytes & !initialised[group.cell] == 0;
                let same = |lane: usize| words.holds(offsets[lane] as usize, take(lane));
                let changes = || !written || !lanes(group.lanes).all(same);
                let cell = &mut cells[group.cell];
                let done = cell.touch(touch, group.bytes, &group.here, &mut seen, changes);
                done.map_err(|conflict| self.race(conflict, page, group.cell))?;
            }
            initialised[group.cell] |= group.bytes;
            lanes(group.lanes).for_each(|lane| words.write(offsets[lane] as usize, take(lane)));
            Ok(())
        })
    }

    /// Finds the pages that the lanes of a mask address, `bytes` each, and has something done in every one,
    /// given the offsets of its lanes in it.
    pub fn each(
        &self,
        addresses: &[u64; LANES],
        mask: Mask,
        bytes: usize,
        mut act: impl FnMut(&Self, &mut Held<'_>, &[u32; LANES], Mask) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let view = self.device.view();
        let offsets = addresses.map(|address| address as u32 % PAGE_BYTES as u32);
        let first = addresses[0];
        // Lanes of different allocations may have consecutive offsets: every page counts.
        let together = first & (bytes as u64 - 1) == 0
            && consecutive(&offsets, mask, bytes)
            && addresses.iter().all(|&address| page_of(address) == page_of(first));
        if together {
            return self.in_page(&view, addresses, mask, bytes, &offsets, &mut act);
        }
        let crooked = mask & lanes_where(|lane| offsets[lane] as usize & (bytes - 1) != 0);
        if crooked != 0 {
            let lane = crooked.trailing_zeros() as usize;
            aligned(addresses[lane], bytes).map_err(|fault| fault.lane(lane))?;
        }
        let mut rest = mask;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let page = page_of(addresses[first]);
            let here = rest & lanes_where(|lane| page_of(addresses[lane]) == page);
            self.in_page(&view, addresses, here, bytes, &offsets, &mut act)?;
            rest &= !here;
        }
        Ok(())
    }

    /// Has something done for lanes that address one page.
    fn in_page(
        &self,
        view: &View<'_>,
        addresses: &[u64; LANES],
        mask: Mask,
        bytes: usize,
        offsets: &[u32; LANES],
        act: &mut impl FnMut(&Self, &mut Held<'_>, &[u32; LANES], Mask) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let first = mask.trailing_zeros() as usize;
        let page = page_of(addresses[first]);
        let Some(found) = view.find(addresses[first]) else {
            return Err(outside(view, first, addresses[first], bytes));
        };
        if page < found.begin || page + PAGE_BYTES as u64 > found.end() {
            let out = |&lane: &usize| {
                addresses[lane] < found.begin || addresses[lane] + bytes as u64 > found.end()
            };
            if let Some(lane) = lanes(mask).find(out) {
                return Err(outside(view, lane, addresses[lane], bytes));
            }
        }
        let (of_page, words) = found.page(addresses[first]);
        let mut known = of_page.lock();
        act(self, &mut Held { known: &mut known, words, page }, offsets, mask)
    }

    /// The launch, if its accesses are to be checked against each other, and this access.
    fn checked(&self, write: bool) -> Option<(&'a Arc<Grid>, Touch)> {
        let grid = self.grid?;
        let interval = self.order.as_ref().map_or(1, |order| order.now(self.block));
        Some((grid, Touch { who: self.block, interval, kind: self.kind, write }))
    }

    fn seen(&self) -> Seen<'_> {
        Seen { order: self.order.as_deref(), block: self.block }
    }

    /// A place: the instruction and the thread.
    fn place(&self, lane: usize) -> u32 {
        self.pc << 10 | (self.first_thread + lane as u32)
    }

    #[cold]
    fn race(&self, conflict: Conflict, page: u64, sector: usize) -> Fault {
        let address = page + (sector * SECTOR) as u64 + u64::from(conflict.byte);
        let other = Party {
            pc: conflict.place >> 10,
            block: conflict.who,
            thread: conflict.place & 1023,
            did: if conflict.wrote { "wrote" } else { "read" },
        };
        let lane = (conflict.here & 1023) - self.first_thread;
        let what = "nothing orders this access after that of another block";
        let fault = Fault::new(Check::GlobalRace, what).lane(lane as usize);
        fault.address(address).other(other)
    }
}

fn lanes_where(test: impl Fn(usize) -> bool) -> Mask {
    (0..LANES).fold(0, |mask, lane| mask | u32::from(test(lane)) << lane)
}

#[cold]
fn uninitialised(address: u64, lane: usize) -> Fault {
    let what = "reads global memory that nothing has written";
    Fault::new(Check::Uninitialised, what).lane(lane).address(address)
}

/// What one block has seen of the others.
struct Seen<'a> {
    order: Option<&'a Blocks>,
    block: u32,
}

impl Happened for Seen<'_> {
    fn before(&self, who: u32, interval: u32, _: u32, _: u32) -> bool {
        self.all_before(who, interval)
    }

    fn all_before(&self, who: u32, interval: u32) -> bool {
        who == self.block || self.order.is_some_and(|order| order.seen(self.block, who, interval))
    }

    fn never(&self) -> bool {
        self.order.is_none()
    }

    fn settled(&mut self, _: u32, _: u32) -> bool {
        false
    }

    /// Which threads they are doesn't matter inside a block.
    const WHO: u32 = 0;

    fn merge(_: u32, later: u32, _: bool) -> Option<u32> {
        Some(later)
    }
}

fn page_of(address: u64) -> u64 {
    address & !(PAGE_BYTES as u64 - 1)
}
