//! A mark: what one party did to a cell in one interval, and whether an access races with it.

use super::{Happened, Here, Kind, PLACES, Places, Touch};
use crate::ir::LANES;

/// One party's accesses of one kind in one of its intervals.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    pub who: u32,
    pub interval: u32,
    /// One bit per byte of the cell; none: no mark.
    pub(super) bytes: u32,
    pub(super) kind: Kind,
    pub(super) at: Places,
}

/// The eighth of a byte.
pub(super) const fn eighth<const BYTES: usize>(byte: u32) -> usize {
    byte as usize / (BYTES / PLACES)
}

/// The bytes of an eighth.
pub(super) const fn part<const BYTES: usize>(eighth: usize) -> u32 {
    let width = BYTES / PLACES;
    ((1 << width) - 1) << (eighth * width)
}

/// All bytes of a cell.
pub(super) const fn whole<const BYTES: usize>() -> u32 {
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
    pub(super) fn is(&self, touch: &Touch) -> bool {
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
    pub(super) fn races<const BYTES: usize, H: Happened>(
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
    pub(super) fn add<const BYTES: usize, H: Happened>(&mut self, bytes: u32, here: &Here) -> bool {
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
    pub(super) fn replaced<const BYTES: usize, H: Happened>(
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
