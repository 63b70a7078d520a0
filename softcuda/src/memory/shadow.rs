//! Who touched a piece of memory last: what race detection remembers.
//!
//! A *cell* covers a few words (a granule of shared memory, a sector of global memory). A *mark* holds what
//! one party did to a cell in one interval: which bytes, and for each eighth of the cell the place in the
//! program. Nearly always one mark for writes and one for reads will do; more go to lists.
//!
//! Two accesses race if one of them writes, nothing orders them and not both are strong (atomic,
//! relaxed, volatile …). A write that leaves its bytes as they are does not race with other writes.

/// Eighths of a cell.
const PLACES: usize = 8;

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
    /// By eighth: thread and instruction, packed as the [`Happened`] at hand likes.
    at: [u32; PLACES],
}

/// An access about to happen.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    pub who: u32,
    pub interval: u32,
    /// Thread and instruction.
    pub at: u32,
    pub kind: Kind,
    pub write: bool,
}

/// An order of accesses, asked on behalf of one of them.
pub trait Happened {
    /// True if what `who` did in an interval, at a place, is ordered before this access.
    fn before(&self, who: u32, interval: u32, at: u32) -> bool;
    /// True if all that `who` did in an interval, wherever, is.
    fn all_before(&self, who: u32, interval: u32) -> bool;
    /// True if everybody has seen that interval, so that nobody can race with it any more.
    fn settled(&mut self, who: u32, interval: u32) -> bool;
    /// Two places of one party in the same eighth: what to keep.
    fn merge(earlier: u32, later: u32) -> u32;
}

/// The earlier of two accesses that race.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Earlier {
    pub who: u32,
    pub interval: u32,
    pub at: u32,
    pub wrote: bool,
}

/// What is remembered of a cell of 16 or 32 bytes.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    write: Mark,
    read: Mark,
    more: Option<Box<More>>,
}

#[derive(Debug, Clone, Default)]
struct More {
    writes: Vec<Mark>,
    reads: Vec<Mark>,
}

impl Mark {
    fn is(&self, touch: &Touch) -> bool {
        self.who == touch.who && self.interval == touch.interval && self.kind == touch.kind
    }

    fn both_strong(&self, touch: &Touch) -> bool {
        let weaker = self.kind.min(touch.kind);
        weaker == Kind::Strong
            || weaker == Kind::Volatile && self.who != touch.who
            || weaker == Kind::Volatile && self.kind != touch.kind
    }

    /// The place of the first byte that races, if one does.
    fn races<const BYTES: u32, H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        order: &H,
    ) -> Option<u32> {
        let common = self.bytes & bytes;
        if common == 0 || self.both_strong(touch) || order.all_before(self.who, self.interval) {
            return None;
        }
        let mut rest = common;
        while rest != 0 {
            let eighth = rest.trailing_zeros() / (BYTES / 8);
            let at = self.at[eighth as usize];
            if !order.before(self.who, self.interval, at) {
                return Some(at);
            }
            rest &= !eighth_of::<BYTES>(eighth);
        }
        None
    }

    fn add<const BYTES: u32, H: Happened>(&mut self, touch: &Touch, bytes: u32) {
        if self.bytes == 0 {
            self.at = [touch.at; PLACES];
            self.bytes = bytes;
            return;
        }
        let mut rest = bytes;
        while rest != 0 {
            let eighth = rest.trailing_zeros() / (BYTES / 8);
            let part = eighth_of::<BYTES>(eighth);
            let at = &mut self.at[eighth as usize];
            *at = match self.bytes & part {
                0 => touch.at,
                _ => H::merge(*at, touch.at),
            };
            rest &= !part;
        }
        self.bytes |= bytes;
    }

    /// True if a later access makes this mark superfluous.
    fn replaced<const BYTES: u32, H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        order: &mut H,
    ) -> bool {
        self.bytes == 0
            || order.settled(self.who, self.interval)
            || self.bytes & !bytes == 0
                && self.kind >= touch.kind
                && Touch { kind: Kind::Plain, ..*touch }.after::<BYTES, H>(self, order)
    }
}

impl Touch {
    fn after<const BYTES: u32, H: Happened>(&self, mark: &Mark, order: &H) -> bool {
        mark.races::<BYTES, H>(self, mark.bytes, order).is_none()
    }
}

fn eighth_of<const BYTES: u32>(eighth: u32) -> u32 {
    let width = BYTES / 8;
    ((1 << width) - 1) << (eighth * width)
}

impl Cell {
    /// Checks an access of some bytes and remembers it. `changes` says whether a write changes any byte.
    ///
    /// # Errors
    ///
    /// The earlier access that races with it.
    pub fn touch<const BYTES: u32, H: Happened>(
        &mut self,
        touch: &Touch,
        bytes: u32,
        changes: bool,
        order: &mut H,
    ) -> Result<(), Earlier> {
        if !touch.write || changes {
            self.check::<BYTES, H>(touch, bytes, true, order)?;
        }
        if touch.write {
            self.check::<BYTES, H>(touch, bytes, false, order)?;
            self.supersede::<BYTES, H>(touch, bytes, order);
        }
        self.remember::<BYTES, H>(touch, bytes, order);
        Ok(())
    }

    /// A write, overlapping these bytes, that the given test finds.
    pub fn find_write<const BYTES: u32>(
        &self,
        bytes: u32,
        mut test: impl FnMut(u32, u32) -> bool,
    ) -> Option<Earlier> {
        let more = self.more.iter().flat_map(|more| &more.writes);
        let found = std::iter::once(&self.write)
            .chain(more)
            .find(|mark| mark.bytes & bytes != 0 && test(mark.who, mark.interval))?;
        let eighth = (found.bytes & bytes).trailing_zeros() / (BYTES / 8);
        let at = found.at[eighth as usize];
        Some(Earlier { who: found.who, interval: found.interval, at, wrote: true })
    }

    fn check<const BYTES: u32, H: Happened>(
        &self,
        touch: &Touch,
        bytes: u32,
        writes: bool,
        order: &H,
    ) -> Result<(), Earlier> {
        let inline = if writes { &self.write } else { &self.read };
        let more = match &self.more {
            None => &[][..],
            Some(more) if writes => &more.writes,
            Some(more) => &more.reads,
        };
        for mark in std::iter::once(inline).chain(more) {
            if let Some(at) = mark.races::<BYTES, H>(touch, bytes, order) {
                let (who, interval) = (mark.who, mark.interval);
                return Err(Earlier { who, interval, at, wrote: writes });
            }
        }
        Ok(())
    }

    /// A plain write takes the place of all accesses ordered before it.
    fn supersede<const BYTES: u32, H: Happened>(&mut self, touch: &Touch, bytes: u32, order: &H) {
        if touch.kind != Kind::Plain {
            return;
        }
        let plain = |mark: &mut Mark| {
            let common = mark.bytes & bytes;
            if common != 0 && mark.races::<BYTES, H>(touch, bytes, order).is_none() {
                mark.bytes &= !common;
            }
        };
        plain(&mut self.read);
        if !self.write.is(touch) {
            plain(&mut self.write);
        }
        if let Some(more) = &mut self.more {
            more.reads.iter_mut().chain(&mut more.writes).for_each(plain);
        }
    }

    fn remember<const BYTES: u32, H: Happened>(
        &mut self,
        touch: &Touch,
        bytes: u32,
        order: &mut H,
    ) {
        let inline = if touch.write { &mut self.write } else { &mut self.read };
        if inline.is(touch) {
            return inline.add::<BYTES, H>(touch, bytes);
        }
        let mut mark =
            Mark { who: touch.who, interval: touch.interval, kind: touch.kind, ..Mark::default() };
        if inline.replaced::<BYTES, H>(touch, bytes, order) {
            mark.add::<BYTES, H>(touch, bytes);
            *inline = mark;
            if let Some(more) = &mut self.more {
                let list = if touch.write { &mut more.writes } else { &mut more.reads };
                list.retain(|mark| !order.settled(mark.who, mark.interval));
            }
            return;
        }
        let more = self.more.get_or_insert_default();
        let list = if touch.write { &mut more.writes } else { &mut more.reads };
        if let Some(own) = list.iter_mut().find(|mark| mark.is(touch)) {
            return own.add::<BYTES, H>(touch, bytes);
        }
        list.retain(|mark| !mark.replaced::<BYTES, H>(touch, bytes, order));
        mark.add::<BYTES, H>(touch, bytes);
        list.push(mark);
    }
}
