//! Checked accesses of global memory by a warp's lanes.

use std::sync::MutexGuard;

use super::access::{aligned, outside};
use super::device::Device;
use super::grid::{Blocks, Grid};
use super::page::{Known, PAGE_BYTES, SECTOR, Words, spans};
use super::shadow::{Earlier, Happened, Kind, Touch};
use crate::fault::{Check, Fault, Party};
use crate::ir::{LANES, Mask};
use crate::machine::Context;
use crate::registers::lanes;

/// The lanes of a warp as they touch global memory.
pub struct Toucher<'a> {
    pub device: &'a Device,
    grid: Option<&'a Grid>,
    order: Option<MutexGuard<'a, Blocks>>,
    block: u32,
    first_thread: u32,
    pc: u32,
    kind: Kind,
}

/// Part of a page, locked.
pub struct Held<'a> {
    pub known: &'a mut Known,
    pub words: &'a Words,
    /// Address of the page.
    pub page: u64,
}

impl<'a> Toucher<'a> {
    /// For the lanes of the context's warp; of what kind they are.
    pub fn new(ctx: &'a mut Context<'_>, kind: Kind) -> Self {
        let launch = ctx.launch;
        let grid = ctx.cluster.order.grid.get_or_insert_with(|| launch.device.grid(launch.number));
        let grid: Option<&Grid> = grid.several.then_some(grid);
        let place = &ctx.warp.place;
        Self {
            device: launch.device,
            grid,
            order: grid.and_then(Grid::order),
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

    /// Reads `into.len()` bytes at an offset of a page that lie in it.
    pub fn read(
        &mut self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        self.initialised(held, offset, lane, into.len())?;
        self.touch(held, offset, lane, into.len(), false, true)?;
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
        let Some(byte) = held.known.uninitialised(offset, bytes) else { return Ok(()) };
        let what = "reads global memory that nothing has written";
        let fault = Fault::new(Check::Uninitialised, what).lane(lane);
        Err(fault.address(held.page + byte as u64))
    }

    pub fn write(
        &mut self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        if self.grid.is_some() {
            let mut old = [0; SECTOR];
            let known = held.known.uninitialised(offset, bytes.len()).is_none();
            let same = known
                && bytes.chunks(SECTOR).zip((offset..).step_by(SECTOR)).all(|(bytes, offset)| {
                    let old = &mut old[..bytes.len()];
                    held.words.read(offset, old);
                    old == bytes
                });
            self.touch(held, offset, lane, bytes.len(), true, !same)?;
        }
        held.known.initialise(offset, bytes.len());
        held.words.write(offset, bytes);
        Ok(())
    }

    /// Checks an access against those of other blocks and remembers it.
    pub fn touch(
        &mut self,
        held: &mut Held<'_>,
        offset: usize,
        lane: usize,
        bytes: usize,
        write: bool,
        changes: bool,
    ) -> Result<(), Fault> {
        let Some(grid) = self.grid else { return Ok(()) };
        let touch = Touch {
            who: self.block,
            interval: self.order.as_ref().map_or(1, |order| order.now(self.block)),
            at: self.pc << 10 | (self.first_thread + lane as u32),
            kind: self.kind,
            write,
        };
        let mut order = Seen { order: self.order.as_deref(), block: self.block };
        let cells = held.known.cells(grid.id);
        for (sector, mask) in spans(offset, bytes) {
            let raced =
                cells[sector].touch::<{ SECTOR as u32 }, _>(&touch, mask, changes, &mut order);
            raced.map_err(|earlier| race(earlier, held.page + offset as u64, lane))?;
        }
        Ok(())
    }

    /// Has every lane of the mask do something where its address lies, page by page.
    pub fn each(
        mut self,
        addresses: &[u64; LANES],
        mask: Mask,
        bytes: usize,
        mut act: impl FnMut(&mut Self, &mut Held<'_>, usize, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let view = self.device.view();
        let mut rest = mask;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let address = addresses[first];
            aligned(address, bytes).map_err(|fault| fault.lane(first))?;
            let Some(found) = view.find(address) else {
                return Err(outside(&view, first, address, bytes));
            };
            let page = page_of(address);
            let (of_page, words) = found.page(address);
            let mut known = of_page.lock();
            let mut held = Held { known: &mut known, words, page };
            for lane in lanes(rest) {
                let address = addresses[lane];
                if page_of(address) != page {
                    continue;
                }
                rest &= !(1 << lane);
                aligned(address, bytes).map_err(|fault| fault.lane(lane))?;
                if address < found.begin || address + bytes as u64 > found.end() {
                    return Err(outside(&view, lane, address, bytes));
                }
                act(&mut self, &mut held, lane, (address - page) as usize)?;
            }
        }
        Ok(())
    }
}

#[cold]
fn race(earlier: Earlier, address: u64, lane: usize) -> Fault {
    let other = Party {
        pc: earlier.at >> 10,
        block: earlier.who,
        thread: earlier.at & 1023,
        did: if earlier.wrote { "wrote" } else { "read" },
    };
    let what = "nothing orders this access after that of another block";
    Fault::new(Check::GlobalRace, what).lane(lane).address(address).other(other)
}

/// What one block has seen of the others.
struct Seen<'a> {
    order: Option<&'a Blocks>,
    block: u32,
}

impl Happened for Seen<'_> {
    fn before(&self, who: u32, interval: u32, _: u32) -> bool {
        self.all_before(who, interval)
    }

    fn all_before(&self, who: u32, interval: u32) -> bool {
        who == self.block || self.order.is_some_and(|order| order.seen(self.block, who, interval))
    }

    fn settled(&mut self, _: u32, _: u32) -> bool {
        false
    }

    fn merge(_: u32, later: u32) -> u32 {
        later
    }
}

/// The page of an address.
pub fn page_of(address: u64) -> u64 {
    address & !(PAGE_BYTES as u64 - 1)
}
