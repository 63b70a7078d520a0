//! Global memory: the device's allocations.
//!
//! Addresses are never used twice, so that a use after free is always found; between two allocations
//! lies a wide gap.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard};

use super::global::Held;
use super::grid::Grid;
use super::page::{Known, PAGE_BYTES, Page, Words};
use crate::ir::DEVICE_BASE;

/// Allocations begin at multiples of this and, so that nobody relies on more, at no multiple of twice it.
const ALIGN: u64 = 512;
const PAGE: u64 = PAGE_BYTES as u64;
/// At least so much lies between two allocations.
const GAP: u64 = 1 << 20;
/// So many freed allocations are remembered.
const TOMBSTONES: usize = 1 << 16;

const GROUP: usize = 512;
type Group = [OnceLock<Page>; GROUP];

/// A piece of global memory.
#[derive(Debug)]
pub struct Allocation {
    pub begin: u64,
    pub bytes: u64,
    /// In groups, so that a large allocation costs little until it is used.
    groups: Box<[OnceLock<Box<Group>>]>,
    /// Memory shared with the host lies in one piece.
    host: Option<Box<[Words]>>,
}

/// Part of one page of an allocation.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    pub page: &'a Page,
    pub words: &'a Words,
    /// Offset in the page.
    pub offset: usize,
    pub bytes: usize,
    /// Address of the page.
    begin: u64,
}

impl<'a> Piece<'a> {
    pub fn held(&self, known: &'a mut Known) -> Held<'a> {
        Held { known, words: self.words, page: self.begin }
    }
}

impl Allocation {
    fn new(begin: u64, bytes: u64, host: Option<Box<[Words]>>) -> Self {
        let pages = (begin + bytes).div_ceil(PAGE) - begin / PAGE;
        let groups = pages.div_ceil(GROUP as u64);
        Self { begin, bytes, groups: (0..groups).map(|_| OnceLock::new()).collect(), host }
    }

    pub fn end(&self) -> u64 {
        self.begin + self.bytes
    }

    /// The page of an address inside.
    pub fn page(&self, address: u64) -> (&Page, &Words) {
        let index = (address / PAGE - self.begin / PAGE) as usize;
        let group =
            self.groups[index / GROUP].get_or_init(|| Box::new([const { OnceLock::new() }; GROUP]));
        let page = &group[index % GROUP];
        match &self.host {
            Some(words) => (page.get_or_init(Page::of_host), &words[index]),
            None => {
                let page = page.get_or_init(Page::new);
                (page, page.words().expect("a device page has words"))
            }
        }
    }

    /// A range inside the allocation, page by page.
    pub fn pieces(&self, from: u64, bytes: u64) -> impl Iterator<Item = Piece<'_>> {
        let end = from + bytes;
        let mut at = from;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let next = (at / PAGE + 1) * PAGE;
                let (page, words) = self.page(at);
                let (offset, bytes) = ((at % PAGE) as usize, (next.min(end) - at) as usize);
                at = next;
                Piece { page, words, offset, bytes, begin: next - PAGE }
            })
        })
    }
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<u64, Arc<Allocation>>,
    /// Begin and bytes of what was freed.
    freed: BTreeMap<u64, u64>,
    /// Where the next allocation may begin.
    next: u64,
    used: u64,
}

/// The launches that run, by number.
type Launches = BTreeMap<u64, Arc<Grid>>;

/// A launch that runs, until this is dropped.
#[derive(Debug)]
pub struct Running<'a> {
    device: &'a Device,
    number: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut launches = self.device.launches.lock().expect(UNPOISONED);
        launches.remove(&self.number);
    }
}

/// Global memory: every allocation of the device. Shared by all cores, hence `&self`.
#[derive(Debug, Default)]
pub struct Device {
    capacity: u64,
    table: RwLock<Table>,
    launches: Mutex<Launches>,
}

/// A host's copy or fill that leaves an allocation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{bytes} bytes at {address:#x} are not inside one allocation")]
pub struct OutsideAllocation {
    pub address: u64,
    pub bytes: u64,
}

impl Device {
    /// A device with so many bytes of memory.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Tells that a launch begins, of so many blocks; `talks` if they may order each other.
    #[must_use]
    pub fn begin(&self, number: u64, blocks: u64, talks: bool) -> Running<'_> {
        let mut launches = self.launches.lock().expect(UNPOISONED);
        launches.insert(number, Arc::new(Grid::new(blocks, talks)));
        Running { device: self, number }
    }

    /// A launch that runs.
    pub(super) fn grid(&self, number: u64) -> Arc<Grid> {
        let launches = self.launches.lock().expect(UNPOISONED);
        launches.get(&number).expect("it runs").clone()
    }

    /// The begin of a new allocation, 512-byte aligned; `None` when memory is full or `bytes` is 0.
    pub fn allocate(&self, bytes: u64) -> Option<u64> {
        let mut table = self.table.write().expect(UNPOISONED);
        table.reserve(self.capacity, bytes)?;
        let begin = table.next.max(DEVICE_BASE).next_multiple_of(2 * ALIGN) + ALIGN;
        table.next = begin + bytes + bytes.clamp(GAP, GAP << 10);
        table.live.insert(begin, Arc::new(Allocation::new(begin, bytes, None)));
        Some(begin)
    }

    /// Memory that the host reads and writes too, at the same address (managed, pinned). It counts as initialised.
    pub fn allocate_host(&self, bytes: u64) -> Option<u64> {
        let mut table = self.table.write().expect(UNPOISONED);
        table.reserve(self.capacity, bytes)?;
        let words: Box<[Words]> = (0..bytes.div_ceil(PAGE)).map(|_| Words::new()).collect();
        let begin = words.as_ptr().expose_provenance() as u64;
        // The allocator may give the same address again.
        table.freed.retain(|&old, &mut size| old + size <= begin || begin + bytes <= old);
        table.live.insert(begin, Arc::new(Allocation::new(begin, bytes, Some(words))));
        Some(begin)
    }

    /// False if no allocation begins there.
    pub fn free(&self, address: u64) -> bool {
        let mut table = self.table.write().expect(UNPOISONED);
        let Some(freed) = table.live.remove(&address) else { return false };
        table.used -= rounded(freed.bytes);
        table.freed.insert(address, freed.bytes);
        if table.freed.len() > TOMBSTONES {
            table.freed.pop_first();
        }
        true
    }

    /// Begin and bytes of the allocation that holds an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let view = self.view();
        let found = view.find(address)?;
        Some((found.begin, found.bytes))
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    pub fn used(&self) -> u64 {
        self.table.read().expect(UNPOISONED).used
    }

    /// Copies to the host; bytes nothing wrote read as they happen to be.
    pub fn read(&self, from: u64, into: &mut [u8]) -> Result<(), OutsideAllocation> {
        let found = self.inside(from, into.len() as u64)?;
        let mut rest = into;
        for piece in found.pieces(from, rest.len() as u64) {
            let (here, after) = rest.split_at_mut(piece.bytes);
            let _known = piece.page.lock();
            piece.words.read(piece.offset, here);
            rest = after;
        }
        Ok(())
    }

    /// Copies from the host.
    pub fn write(&self, to: u64, bytes: &[u8]) -> Result<(), OutsideAllocation> {
        let found = self.inside(to, bytes.len() as u64)?;
        let mut rest = bytes;
        for piece in found.pieces(to, bytes.len() as u64) {
            let (here, after) = rest.split_at(piece.bytes);
            piece.page.lock().initialise(piece.offset, piece.bytes);
            piece.words.write(piece.offset, here);
            rest = after;
        }
        Ok(())
    }

    /// Repeats a pattern of 1, 2 or 4 bytes `count` times.
    pub fn fill(&self, to: u64, pattern: &[u8], count: u64) -> Result<(), OutsideAllocation> {
        let bytes = count.saturating_mul(pattern.len() as u64);
        let found = self.inside(to, bytes)?;
        let mut done = 0;
        for piece in found.pieces(to, bytes) {
            // A page may end inside a repetition if the address isn't aligned.
            let repeated: Vec<u8> = (done..done + piece.bytes as u64)
                .map(|at| pattern[(at % pattern.len() as u64) as usize])
                .collect();
            piece.page.lock().initialise(piece.offset, piece.bytes);
            piece.words.write(piece.offset, &repeated);
            done += piece.bytes as u64;
        }
        Ok(())
    }

    /// Copies inside the device, with whether bytes are initialised.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), OutsideAllocation> {
        let source = self.inside(from, bytes)?;
        let target = self.inside(to, bytes)?;
        let mut buffer = vec![0; PAGE_BYTES];
        let mut done = 0;
        for piece in source.pieces(from, bytes) {
            let buffer = &mut buffer[..piece.bytes];
            let missing: Vec<usize> = {
                let known = piece.page.lock();
                piece.words.read(piece.offset, buffer);
                let absent = |&n: &usize| known.uninitialised(piece.offset + n, 1).is_some();
                match known.uninitialised(piece.offset, piece.bytes) {
                    None => Vec::new(),
                    Some(_) => (0..piece.bytes).filter(absent).collect(),
                }
            };
            let mut at = 0;
            for target in target.pieces(to + done, piece.bytes as u64) {
                let mut known = target.page.lock();
                target.words.write(target.offset, &buffer[at..at + target.bytes]);
                known.initialise(target.offset, target.bytes);
                for &n in missing.iter().filter(|&&n| (at..at + target.bytes).contains(&n)) {
                    known.forget(target.offset + n - at, 1);
                }
                at += target.bytes;
            }
            done += piece.bytes as u64;
        }
        Ok(())
    }

    fn inside(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, OutsideAllocation> {
        let view = self.view();
        let found = view.find_arc(address);
        let found = found.filter(|a| bytes <= a.end() - address);
        found.cloned().ok_or(OutsideAllocation { address, bytes })
    }

    /// The allocations, held still while an instruction looks at them.
    pub fn view(&self) -> View<'_> {
        View { table: self.table.read().expect(UNPOISONED) }
    }
}

const UNPOISONED: &str = "no panic while the allocations are locked";

impl Table {
    fn reserve(&mut self, capacity: u64, bytes: u64) -> Option<()> {
        let used = self.used.checked_add(rounded(bytes))?;
        (bytes > 0 && used <= capacity).then(|| self.used = used)
    }
}

/// What an allocation takes of the capacity.
fn rounded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// The allocations while nobody can free them.
pub struct View<'a> {
    table: RwLockReadGuard<'a, Table>,
}

impl View<'_> {
    fn find_arc(&self, address: u64) -> Option<&Arc<Allocation>> {
        let (_, last) = self.table.live.range(..=address).next_back()?;
        (address < last.end()).then_some(last)
    }

    /// The allocation that holds an address.
    pub fn find(&self, address: u64) -> Option<&Allocation> {
        self.find_arc(address).map(|found| &**found)
    }

    /// True if these bytes, which lie in one page, are there.
    pub fn holds(&self, from: u64, bytes: &[u8]) -> bool {
        self.find(from).is_some_and(|found| {
            let (_, words) = found.page(from);
            from + bytes.len() as u64 <= found.end() && words.holds((from % PAGE) as usize, bytes)
        })
    }

    /// Says what an address outside every allocation is near to.
    pub fn describe(&self, address: u64) -> String {
        let before = self.table.live.range(..=address).next_back();
        let freed = self.table.freed.range(..=address).next_back();
        if let Some((begin, bytes)) = freed.filter(|(begin, bytes)| address < **begin + **bytes) {
            return format!("in an allocation already freed ({bytes} bytes at {begin:#x})");
        }
        let after = self.table.live.range(address..).next();
        let past = before.map(|(begin, a)| (address - a.end(), "behind", *begin, a.bytes));
        let ahead = after.map(|(begin, a)| (begin - address, "before", *begin, a.bytes));
        match past.into_iter().chain(ahead).min().filter(|(distance, ..)| *distance < GAP) {
            Some((distance, side, begin, bytes)) => {
                let side = if distance == 0 {
                    "right behind".to_owned()
                } else {
                    format!("{distance} bytes {side}")
                };
                format!("{side} the allocation of {bytes} bytes at {begin:#x}")
            }
            None => "outside every allocation".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_launch_outlives_many_short_ones() {
        let device = Device::new(1 << 20);
        let _long = device.begin(1, 1, false);
        for number in 2..1000 {
            let _short = device.begin(number, 1, false);
        }
        assert!(device.launches.lock().unwrap().keys().eq([&1]));
    }
}
