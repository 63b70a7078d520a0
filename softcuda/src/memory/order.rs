//! Which accesses are ordered before which: vector clocks.
//!
//! A *unit* is a warp, or an asynchronous engine that acts for one. Each counts intervals; whatever it does
//! is stamped with its current one. A clock says up to which interval of each unit one has seen. Inside a
//! warp the lanes are ordered by `bar.warp.sync` only, each lane after itself.
//!
//! Source: Flanagan, Freund: FastTrack, efficient and precise dynamic race detection, PLDI 2009; the memory
//! consistency model of the PTX ISA for what fences and strong accesses order.

use std::collections::HashMap;

use crate::ir::{LANES, Mask};
use crate::registers::lanes;

/// A point in the order, as handed from those that arrive to those that leave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clock {
    /// By unit: the last interval of it that is ordered before.
    seen: Vec<u32>,
    /// The same for what the asynchronous proxy may rely on.
    fenced: Vec<u32>,
}

impl Clock {
    pub fn join(&mut self, other: &Clock) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
    }
}

fn join(into: &mut Vec<u32>, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    into.iter_mut().zip(from).for_each(|(into, &from)| *into = (*into).max(from));
}

fn at(clock: &[u32], unit: usize) -> u32 {
    clock.get(unit).copied().unwrap_or(0)
}

fn raise(clock: &mut Vec<u32>, unit: usize, to: u32) {
    if clock.len() <= unit {
        clock.resize(unit + 1, 0);
    }
    clock[unit] = clock[unit].max(to);
}

/// What the lanes of a warp have seen of each other.
#[derive(Debug, Clone, Default)]
struct Lanes {
    /// The interval up to which every lane has seen all others.
    all: u32,
    /// Beyond it, by observer and observed; only where lanes synchronise in parts.
    pairs: Option<Box<[[u32; LANES]; LANES]>>,
}

impl Lanes {
    fn seen(&self, observer: usize, observed: usize) -> u32 {
        self.pairs.as_ref().map_or(self.all, |pairs| pairs[observer][observed].max(self.all))
    }

    /// Everything of the warp up to an interval is before what these lanes do next.
    fn catch_up(&mut self, mask: Mask, to: u32) {
        if mask == Mask::MAX {
            self.all = self.all.max(to);
            return;
        }
        let pairs = self.pairs.get_or_insert_default();
        for lane in lanes(mask) {
            pairs[lane].iter_mut().for_each(|seen| *seen = (*seen).max(to));
        }
    }

    /// Everything up to an interval that one lane of the mask has seen or done, all of the mask have.
    fn meet(&mut self, mask: Mask, to: u32) {
        if mask == Mask::MAX {
            self.all = to;
            return;
        }
        let pairs = self.pairs.get_or_insert_default();
        let mut union = [0; LANES];
        for lane in lanes(mask) {
            for (union, &seen) in union.iter_mut().zip(&pairs[lane]) {
                *union = seen.max(*union);
            }
        }
        lanes(mask).for_each(|lane| union[lane] = to);
        lanes(mask).for_each(|lane| pairs[lane] = union);
    }
}

#[derive(Debug, Clone, Default)]
struct Unit {
    /// The current interval, from 1.
    now: u32,
    clock: Clock,
    lanes: Lanes,
    /// What strong stores hand on: the clock at the last fence.
    published: Clock,
    /// What strong loads have found, to be acquired at the next fence.
    found: Clock,
    /// The warp an asynchronous unit acts for; a warp's own number.
    owner: u32,
}

/// The clocks of all warps of a cluster and of the asynchronous units that act for them.
#[derive(Debug)]
pub struct Order {
    units: Vec<Unit>,
    warps: usize,
    /// By unit: the interval up to which every warp has seen it, as last computed.
    floor: Vec<u32>,
    /// By unit: how many things had been ordered then.
    computed: Vec<u64>,
    /// How often anything was ordered.
    ordered: u64,
    /// What strong stores left for those who load them, by word.
    words: HashMap<u64, Clock>,
    /// The launch's state in global memory, once looked up.
    pub(super) grid: Option<std::sync::Arc<super::grid::Grid>>,
}

impl Order {
    pub fn new(units: usize) -> Self {
        let mut order = Self {
            units: Vec::with_capacity(units),
            warps: units,
            floor: Vec::new(),
            computed: Vec::new(),
            ordered: 1,
            words: HashMap::new(),
            grid: None,
        };
        for _ in 0..units {
            order.add_unit();
        }
        order
    }

    /// A unit of its own, for asynchronous operations.
    pub fn add_unit(&mut self) -> usize {
        let unit = self.units.len();
        self.units.push(Unit { now: 1, owner: unit as u32, ..Unit::default() });
        self.floor.push(0);
        self.computed.push(0);
        unit
    }

    /// Begins a new interval.
    pub fn tick(&mut self, unit: usize) {
        self.units[unit].now += 1;
    }

    /// What `unit` did so far, for others to acquire; later accesses of it are not included.
    pub fn release(&mut self, unit: usize) -> Clock {
        let now = self.now(unit);
        self.tick(unit);
        let mut clock = self.units[unit].clock.clone();
        raise(&mut clock.seen, unit, now);
        if unit >= self.warps {
            // The asynchronous proxy needs no fence against itself.
            raise(&mut clock.fenced, unit, now);
        }
        clock
    }

    /// Orders what `clock` holds before everything `unit` does from now on.
    pub fn acquire(&mut self, unit: usize, clock: &Clock) {
        self.acquire_lanes(unit, Mask::MAX, clock);
    }

    /// The same for some lanes of a warp: what other lanes of it released is ordered before these only.
    pub fn acquire_lanes(&mut self, unit: usize, mask: Mask, clock: &Clock) {
        self.ordered += 1;
        let this = &mut self.units[unit];
        this.clock.join(clock);
        let own = at(&clock.seen, unit);
        if own > this.lanes.all {
            this.lanes.catch_up(mask, own);
        }
    }

    /// Orders the lanes of a mask among each other: `bar.warp.sync`.
    pub fn warp_sync(&mut self, unit: usize, mask: Mask) {
        self.ordered += 1;
        let this = &mut self.units[unit];
        this.lanes.meet(mask, this.now);
        this.now += 1;
    }

    /// `fence.proxy.async`: everything the unit has done and seen may be relied on by the asynchronous proxy.
    pub fn fence_async(&mut self, unit: usize) {
        let this = &mut self.units[unit];
        let now = this.now;
        this.now += 1;
        join(&mut this.clock.fenced, &this.clock.seen);
        raise(&mut this.clock.fenced, unit, now);
    }

    /// A fence: what strong loads found is acquired, and strong stores hand on everything so far.
    pub fn fence(&mut self, unit: usize, mask: Mask) {
        let found = std::mem::take(&mut self.units[unit].found);
        self.acquire_lanes(unit, mask, &found);
        self.units[unit].published = self.release(unit);
    }

    /// A strong load of a word, by name: acquires what its last store left, or keeps it for a fence.
    pub(super) fn strong_load(&mut self, unit: usize, lane: usize, word: u64, acquire: bool) {
        let Some(clock) = self.words.get(&word) else { return };
        if acquire {
            let clock = clock.clone();
            self.acquire_lanes(unit, 1 << lane, &clock);
        } else {
            self.units[unit].found.join(clock);
        }
    }

    /// A strong store; a read-modify-write (`keeps`) hands on what the word held too.
    pub(super) fn strong_store(&mut self, unit: usize, word: u64, release: bool, keeps: bool) {
        let mut left = match release {
            true => self.release(unit),
            false => self.units[unit].published.clone(),
        };
        if keeps && let Some(held) = self.words.get(&word) {
            left.join(held);
        }
        if left == Clock::default() {
            self.words.remove(&word);
        } else {
            self.words.insert(word, left);
        }
    }

    /// The interval `unit` is in.
    pub(super) fn now(&self, unit: usize) -> u32 {
        self.units[unit].now
    }

    /// True if what `other` did in an interval is ordered before what another `unit` does now.
    pub(super) fn seen(&self, unit: usize, other: usize, interval: u32) -> bool {
        at(&self.units[unit].clock.seen, other) >= interval
    }

    /// The same for what the asynchronous proxy may rely on.
    pub(super) fn fenced(&self, unit: usize, other: usize, interval: u32) -> bool {
        at(&self.units[unit].clock.fenced, other) >= interval
    }

    /// True if what a lane did in an interval is ordered before what another lane of its warp does now.
    pub(super) fn seen_by_lane(&self, unit: usize, lane: usize, of: usize, interval: u32) -> bool {
        lane == of || self.units[unit].lanes.seen(lane, of) >= interval
    }

    /// True if every lane of a warp has seen what the others did in an interval.
    pub(super) fn seen_by_all(&self, unit: usize, interval: u32) -> bool {
        self.units[unit].lanes.all >= interval
    }

    /// True if every lane of every warp has seen an interval of a unit: it can't race any more.
    pub(super) fn settled(&mut self, unit: usize, interval: u32) -> bool {
        if self.floor[unit] >= interval || self.computed[unit] == self.ordered {
            return self.floor[unit] >= interval;
        }
        self.computed[unit] = self.ordered;
        let warps = &self.units[..self.warps];
        let seen = warps.iter().enumerate().map(|(warp, state)| match warp == unit {
            true => state.lanes.all,
            false => at(&state.clock.seen, unit),
        });
        self.floor[unit] = seen.min().unwrap_or(u32::MAX);
        self.floor[unit] >= interval
    }

    pub(super) fn asynchronous(&self, unit: usize) -> bool {
        unit >= self.warps
    }

    /// Whom an asynchronous unit acts for now.
    pub(super) fn set_owner(&mut self, unit: usize, warp: usize) {
        self.units[unit].owner = warp as u32;
    }

    pub(super) fn owner(&self, unit: usize) -> usize {
        self.units[unit].owner as usize
    }
}
