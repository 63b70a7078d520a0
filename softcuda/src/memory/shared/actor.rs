//! Who accesses shared memory, and what is ordered before: asked by warp and lane.

use crate::memory::order::Order;
use crate::memory::shadow::{Happened, Kind, Touch};

/// The warp that accesses shared memory, and how.
pub struct Actor<'a> {
    pub order: &'a mut Order,
    /// As whom the access counts: the warp, or an asynchronous unit.
    pub unit: usize,
    pub warp: usize,
    pub pc: u32,
    pub kind: Kind,
}

const LANE: u32 = 31;

/// A place: the instruction, the lane and, if several lanes were there, another of them.
pub(super) fn place(pc: u32, lane: usize) -> u32 {
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
    pub(super) fn touch(&self, write: bool) -> Touch {
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
