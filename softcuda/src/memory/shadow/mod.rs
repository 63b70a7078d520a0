//! Who touched a piece of memory last: what race detection remembers.
//!
//! A *cell* covers a few words (a granule of shared memory, a sector of global memory). A *mark* holds what
//! one party did to a cell in one interval: which bytes, and for each eighth of the cell the place in the
//! program (the low five bits of which are the lane). Nearly always one mark for writes and one for reads will do; more go to lists.
//!
//! Two accesses race if one of them writes, nothing orders them and not both are strong (atomic,
//! relaxed, volatile …). A write that leaves its bytes as they are does not race with other writes.

mod group;
mod mark;

use mark::{Mark, eighth, part};

pub use group::{consecutive, groups};

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
