//! Who touched a piece of memory last: what race detection remembers.
//!
//! A *cell* covers a few words (a granule of shared memory, a sector of global memory). A *mark* holds what
//! one party did to a cell in one interval: which bytes, and for each eighth of the cell the place in the
//! program (the low five bits of which are the lane). Nearly always one mark for writes and one for reads will do; more go to lists.
//!
//! Two accesses race if one of them writes, nothing orders them and not both are strong (atomic,
//! relaxed, volatile …). A write that leaves its bytes as they are does not race with other writes.

use crate::ir::{LANES, Mask};
use crate::registers::lanes;

/// Eighths of a cell.
pub const PLACES: usize = 8;

/// How strong an access is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Kind {
    #[default]
    Plain,
    /// Between lanes of a warp as plain as any: it doesn't make them take turns.
    Volatile,
    /// Atomic, relaxed, acquire, release.
    Strong,
}

/// One party's accesses of one kind in one of its intervals.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    pub who: u32,
    pub interval: u32,
    /// One bit per byte of the cell; none: no mark.
    bytes: u32,
    kind: Kind,
    at: Places,
}

/// By eighth of a cell: thread and instruction, packed as the [`Happened`] at hand likes.
pub type Places = [u32; PLACES];

/// The places of an access.
#[derive(Debug, Clone, Copy)]
pub struct Here {
    pub at: Places,
    /// True if at some place there were several threads.
    several: bool,
}

impl Here {
    /// One thread, wherever it touches the cell.
    pub fn alone(place: u32) -> Self {
        Self { at: [place; PLACES], several: false }
    }
}

/// An access about to happen: by whom, when, how.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    pub who: u32,
    pub interval: u32,
    pub kind: Kind,
    pub write: bool,
}

/// An order of accesses, asked on behalf of the one about to happen.
pub trait Happened {
    /// True if what `who` did in an interval, at a place, is ordered before this access at `here`.
    fn before(&self, who: u32, interval: u32, place: u32, here: u32) -> bool;
    /// True if all that `who` did in an interval is, wherever either is.
    fn all_before(&self, who: u32, interval: u32) -> bool;
    /// True if nothing orders different parties.
    fn never(&self) -> bool;
    /// True if everybody has seen that interval, so that nobody can race with it any more.
    fn settled(&mut self, who: u32, interval: u32) -> bool;
    /// Which bits of a place say who was there; no bit if it doesn't matter.
    const WHO: u32;
    /// Two places of one party in one eighth, made one; `same` if they touched the same bytes of it.
    /// `None` if they must be told apart.
    fn merge(earlier: u32, later: u32, same: bool) -> Option<u32>;
}

/// The earlier of two accesses that race, and the place of the later one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conflict {
    pub who: u32,
    pub place: u32,
    pub wrote: bool,
    pub here: u32,
    /// The first byte of the cell that is concerned.
    pub byte: u32,
}

/// What is remembered of a cell of `BYTES` bytes, 16 or 32.
#[derive(Debug, Clone, Default)]
pub struct Cell<const BYTES: usize> {
    write: Mark,
    /// Two warps or blocks that read the same are so common that both have their place here.
    reads: [Mark; 2],
    more: Option<Box<More>>,
}

/// Marks beyond the first.
#[derive(Debug, Clone, Default)]
struct More {
    writes: Vec<Mark>,
    reads: Vec<Mark>,
}

/// The eighth of a byte.
const fn eighth<const BYTES: usize>(byte: u32) -> usize {
    byte as usize / (BYTES / PLACES)
}

/// The bytes of an eighth.
const fn part<const BYTES: usize>(eighth: usize) -> u32 {
    let width = BYTES / PLACES;
    ((1 << width) - 1) << (eighth * width)
}

/// All bytes of a cell.
const fn whole<const BYTES: usize>() -> u32 {
    u32::MAX >> (32 - BYTES)
}

/// All bytes of the eighths that hold one of these.
const fn spread<const BYTES: usize>(bytes: u32) -> u32 {
    match BYTES / PLACES {
        2 => ((bytes | bytes >> 1) & 0x5555_5555) * 3,
        _ => ((bytes | bytes >> 1 | bytes >> 2 | bytes >> 3) & 0x1111_1111) * 15,
    }
}

impl Mark {
    fn is(&self, touch: &Touch) -> bool {
        self.who == touch.who && self.interval == touch.interval && self.kind == touch.kind
    }

    fn both_strong(&self, touch: &Touch) -> bool {
        match self.kind.min(touch.kind) {
            Kind::Plain => false,
            Kind::Volatile => self.kind != touch.kind || self.who != touch.who,
            Kind::Strong => true,
        }
    }

    /// True if in these bytes mark and access are the same thread's: what nearly all are that nothing
    /// else orders.
    #[inline]
    fn own<const BYTES: usize, H: Happened>(&self, common: u32, here: &Here) -> bool {
        let differs = |n: usize| self.at[n] ^ here.at[n];
        let all = (0..PLACES).fold(0, |apart, n| apart | differs(n));
        let apart = match all & H::WHO {
            0 => 0,
            _ => (0..PLACES)
                .filter(|&n| common & part::<BYTES>(n) != 0)
                .fold(0, |apart, n| apart | differs(n)),
        };
        H::WHO == 0 || apart & H::WHO == 0 && !here.several
    }

    /// An eighth in which an access races with this mark: of the first lane concerned.
    #[inline(always)]
    fn races<const BYTES: usize, H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        here: &Here,
        order: &H,
    ) -> Option<usize> {
        match self.bytes & bytes {
            0 => None,
            common => self.first_race::<BYTES, H>(touch, common, here, order),
        }
    }

    fn first_race<const BYTES: usize, H: Happened>(
        &self,
        touch: &Touch,
        common: u32,
        here: &Here,
        order: &H,
    ) -> Option<usize> {
        if self.both_strong(touch)
            || order.all_before(self.who, self.interval)
            || self.who == touch.who && self.own::<BYTES, H>(common, here)
        {
            return None;
        }
        let racing = (0..PLACES).filter(|&n| {
            common & part::<BYTES>(n) != 0
                && !order.before(self.who, self.interval, self.at[n], here.at[n])
        });
        racing.min_by_key(|&n| here.at[n] % LANES as u32)
    }

    /// Takes an access into the mark; false if it must have one of its own.
    #[inline]
    fn add<const BYTES: usize, H: Happened>(&mut self, bytes: u32, here: &Here) -> bool {
        let common = spread::<BYTES>(self.bytes) & spread::<BYTES>(bytes);
        if !self.own::<BYTES, H>(common, here) {
            return self.merge::<BYTES, H>(bytes, here);
        }
        if bytes == whole::<BYTES>() {
            self.at = here.at;
        } else {
            for (n, (place, &here)) in self.at.iter_mut().zip(&here.at).enumerate() {
                *place = if bytes & part::<BYTES>(n) != 0 { here } else { *place };
            }
        }
        self.bytes |= bytes;
        true
    }

    fn merge<const BYTES: usize, H: Happened>(&mut self, bytes: u32, here: &Here) -> bool {
        let mut merged = self.at;
        for (n, place) in merged.iter_mut().enumerate() {
            let (old, new) = (self.bytes & part::<BYTES>(n), bytes & part::<BYTES>(n));
            *place = match (old, new) {
                (_, 0) => self.at[n],
                (0, _) => here.at[n],
                _ => match H::merge(self.at[n], here.at[n], old == new) {
                    Some(place) => place,
                    None => return false,
                },
            };
        }
        self.at = merged;
        self.bytes |= bytes;
        true
    }

    /// True if an access makes this mark superfluous: it is ordered before, and what could race with it
    /// would race with that too.
    fn replaced<const BYTES: usize, H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        here: &Here,
        order: &mut H,
    ) -> bool {
        let plain = Touch { kind: Kind::Plain, ..*touch };
        self.bytes == 0
            || self.bytes & !bytes == 0
                && self.kind >= touch.kind
                && self.races::<BYTES, H>(&plain, self.bytes, here, order).is_none()
            || order.settled(self.who, self.interval)
    }
}

impl<const BYTES: usize> Cell<BYTES> {
    /// Checks an access of some bytes and remembers it. `changes` tells whether a write changes any byte.
    ///
    /// # Errors
    ///
    /// The earlier access that races with it.
    #[inline]
    pub fn touch<H: Happened>(
        &mut self,
        touch: &Touch,
        bytes: u32,
        here: &Here,
        order: &mut H,
        changes: impl FnOnce() -> bool,
    ) -> Result<(), Conflict> {
        let ordered = |mark: &Mark| mark.races::<BYTES, H>(touch, bytes, here, order).is_none();
        if !touch.write
            && self.more.is_none()
            && ordered(&self.write)
            && self.reads.iter_mut().any(|mark| mark.is(touch) && mark.add::<BYTES, H>(bytes, here))
        {
            // What nearly all are: another read like the last one.
            return Ok(());
        }
        let after_writes = match self.conflict(touch, bytes, here, true, order) {
            None => true,
            Some(_) if touch.write && !changes() => false,
            Some(conflict) => return Err(conflict),
        };
        if touch.write {
            if let Some(conflict) = self.conflict(touch, bytes, here, false, order) {
                return Err(conflict);
            }
            if touch.kind == Kind::Plain {
                self.supersede(touch, bytes, after_writes);
            }
        }
        let mark = if touch.write { &mut self.write } else { &mut self.reads[0] };
        if !(mark.is(touch) && mark.add::<BYTES, H>(bytes, here)) {
            self.remember(touch, bytes, here, order);
        }
        Ok(())
    }

    /// A write that overlaps these bytes and of which the test, given party and interval, is true.
    pub fn find_write(
        &self,
        bytes: u32,
        here: &Here,
        test: impl Fn(u32, u32) -> bool,
    ) -> Option<Conflict> {
        let more = self.more.iter().flat_map(|more| &more.writes);
        let found = std::iter::once(&self.write)
            .chain(more)
            .find(|mark| mark.bytes & bytes != 0 && test(mark.who, mark.interval))?;
        let byte = (found.bytes & bytes).trailing_zeros();
        let n = eighth::<BYTES>(byte);
        Some(Conflict { who: found.who, place: found.at[n], wrote: true, here: here.at[n], byte })
    }

    fn conflict<H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        here: &Here,
        writes: bool,
        order: &H,
    ) -> Option<Conflict> {
        let test = |mark: &Mark| {
            let n = mark.races::<BYTES, H>(touch, bytes, here, order)?;
            let byte = (mark.bytes & bytes & part::<BYTES>(n)).trailing_zeros();
            Some(Conflict {
                who: mark.who,
                place: mark.at[n],
                wrote: writes,
                here: here.at[n],
                byte,
            })
        };
        let first = if writes { std::slice::from_ref(&self.write) } else { &self.reads };
        first.iter().find_map(test).or_else(|| {
            let more = self.more.as_ref()?;
            let list = if writes { &more.writes } else { &more.reads };
            list.iter().find_map(test)
        })
    }

    /// A plain write takes the place of all accesses before it: the reads and, but for one that raced
    /// harmlessly, the writes.
    fn supersede(&mut self, touch: &Touch, bytes: u32, writes: bool) {
        self.reads.iter_mut().for_each(|mark| mark.bytes &= !bytes);
        if let Some(more) = &mut self.more {
            more.reads.iter_mut().for_each(|mark| mark.bytes &= !bytes);
        }
        if writes {
            if !self.write.is(touch) {
                self.write.bytes &= !bytes;
            }
            if let Some(more) = &mut self.more {
                more.writes.iter_mut().for_each(|mark| mark.bytes &= !bytes);
            }
        }
    }

    fn remember<H: Happened>(&mut self, touch: &Touch, bytes: u32, here: &Here, order: &mut H) {
        let Touch { who, interval, kind, .. } = *touch;
        let mark = Mark { who, interval, bytes, kind, at: here.at };
        let first = match touch.write {
            true => std::slice::from_mut(&mut self.write),
            false => &mut self.reads[..],
        };
        let list = self.more.as_mut().map(|more| match touch.write {
            true => &mut more.writes,
            false => &mut more.reads,
        });
        // A party keeps its place, so that those who come in every interval find theirs at once.
        let (mut another, mut two) = (who, false);
        for held in first.iter_mut().chain(list.into_iter().flatten()) {
            if held.is(touch) && held.add::<BYTES, H>(bytes, here) {
                return;
            }
            if held.who == who && held.replaced::<BYTES, H>(touch, bytes, here, order) {
                *held = mark;
                return;
            }
            if held.who != who && bytes & !held.bytes == 0 && held.kind <= kind {
                two |= another != who && another != held.who;
                another = held.who;
            }
        }
        // Whatever would race with this read does with one of two other parties' reads.
        if !touch.write && two && order.never() {
            return;
        }
        for first in first {
            if first.replaced::<BYTES, H>(touch, bytes, here, order) {
                *first = mark;
                return;
            }
        }
        let more = self.more.get_or_insert_default();
        let list = if touch.write { &mut more.writes } else { &mut more.reads };
        list.retain(|mark| !mark.replaced::<BYTES, H>(touch, bytes, here, order));
        list.push(mark);
    }
}

/// Consecutive lanes' accesses of one cell, which count as one.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub cell: usize,
    /// One bit per byte of the cell.
    pub bytes: u32,
    pub here: Here,
    pub lanes: Mask,
}

/// Puts the lanes' accesses of `width` bytes, each aligned to its width and no wider than a cell, together by
/// cell, in the order of lanes. Lanes that write the same byte stay apart.
pub fn groups<const BYTES: usize, H: Happened, E>(
    offsets: &[u32; LANES],
    mask: Mask,
    width: usize,
    write: bool,
    place: impl Fn(usize) -> u32,
    mut act: impl FnMut(&Group) -> Result<(), E>,
) -> Result<(), E> {
    if width >= BYTES / PLACES
        && (offsets[0] as usize).is_multiple_of(BYTES)
        && consecutive(offsets, mask, width)
    {
        return in_order::<BYTES, E>(offsets[0] as usize / BYTES, width, place, act);
    }
    let all = u32::MAX >> (32 - width);
    let eighths = width.div_ceil(BYTES / PLACES);
    let empty = Here { at: [0; PLACES], several: false };
    let mut group = Group { cell: usize::MAX, bytes: 0, here: empty, lanes: 0 };
    for lane in lanes(mask) {
        let offset = offsets[lane] as usize;
        let (cell, from) = (offset / BYTES, offset % BYTES);
        let (bytes, here) = (all << from, place(lane));
        let first = from / (BYTES / PLACES);
        let mut joins = cell == group.cell && !(write && group.bytes & bytes != 0);
        if joins {
            for n in first..first + eighths {
                let (old, new) = (group.bytes & part::<BYTES>(n), bytes & part::<BYTES>(n));
                let at = &mut group.here.at[n];
                group.here.several |= old != 0;
                match if old == 0 { Some(here) } else { H::merge(*at, here, old == new) } {
                    Some(place) => *at = place,
                    None => joins = false,
                }
            }
        }
        if !joins {
            if group.lanes != 0 {
                act(&group)?;
            }
            group = Group { cell, bytes: 0, here: empty, lanes: 0 };
            group.here.at[first..first + eighths].fill(here);
        }
        group.bytes |= bytes;
        group.lanes |= 1 << lane;
    }
    if group.lanes != 0 { act(&group) } else { Ok(()) }
}

/// True if all lanes access one piece of memory, each its own part of it in the order of lanes.
pub fn consecutive(offsets: &[u32; LANES], mask: Mask, width: usize) -> bool {
    let mut strayed = 0;
    for (lane, &offset) in offsets.iter().enumerate() {
        strayed |= offset.wrapping_sub(offsets[0]) ^ (lane * width) as u32;
    }
    mask == Mask::MAX && strayed == 0
}

/// The groups of a piece of memory that begins with a cell.
fn in_order<const BYTES: usize, E>(
    first: usize,
    width: usize,
    place: impl Fn(usize) -> u32,
    mut act: impl FnMut(&Group) -> Result<(), E>,
) -> Result<(), E> {
    let lanes = BYTES / width;
    let each = PLACES / lanes;
    let bytes = whole::<BYTES>();
    for cell in 0..LANES / lanes {
        let from = cell * lanes;
        let at = std::array::from_fn(|n| place(from + n / each));
        let lanes = (Mask::MAX >> (LANES - lanes)) << from;
        let here = Here { at, several: false };
        act(&Group { cell: first + cell, bytes, here, lanes })?;
    }
    Ok(())
}
