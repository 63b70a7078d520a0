//! A launch as global memory sees it: its blocks, and which of them have seen what of each other.
//!
//! Only launches whose blocks talk to each other have an order at all (see
//! [`crate::ir::Kernel::talks`]); in all others whatever two blocks do is unordered. A block counts as one:
//! a fence of any of its threads covers what the others did before.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

/// A launch as global memory sees it.
#[derive(Debug)]
pub struct Grid {
    /// False if it has one block only: nothing to check.
    pub several: bool,
    /// `None` if nothing can order its blocks.
    order: Option<Mutex<Blocks>>,
}

/// By block: the last interval of it that is ordered before.
type Seen = HashMap<u32, u32>;

#[derive(Debug, Default)]
struct Block {
    seen: Seen,
    /// What strong stores hand on: all at the last fence.
    published: Seen,
    /// What strong loads found.
    found: Seen,
    /// Intervals begun, beyond the first.
    begun: u32,
}

/// What the blocks of a launch have seen of each other.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: HashMap<u32, Block>,
    /// What strong stores left for those who read them, by address.
    words: HashMap<u64, Seen>,
}

/// How a strong access orders others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strength {
    pub acquire: bool,
    pub release: bool,
}

impl Grid {
    pub fn new(blocks: u64, talks: bool) -> Self {
        let order = (talks && blocks > 1).then(Mutex::default);
        Self { several: blocks > 1, order }
    }

    pub fn order(&self) -> Option<MutexGuard<'_, Blocks>> {
        self.order.as_ref().map(|order| order.lock().expect("no panic while the order is locked"))
    }
}

impl Blocks {
    /// The interval a block is in, from 1.
    pub fn now(&self, block: u32) -> u32 {
        1 + self.blocks.get(&block).map_or(0, |block| block.begun)
    }

    pub fn seen(&self, block: u32, other: u32, interval: u32) -> bool {
        let seen = self.blocks.get(&block).and_then(|block| block.seen.get(&other));
        seen.is_some_and(|&seen| seen >= interval)
    }

    fn release(&mut self, block: u32) -> Seen {
        let now = self.now(block);
        let this = self.blocks.entry(block).or_default();
        this.begun += 1;
        let mut seen = this.seen.clone();
        seen.insert(block, now);
        seen
    }

    /// A fence of scope `gpu` or `sys`.
    pub fn fence(&mut self, block: u32) {
        let this = self.blocks.entry(block).or_default();
        let found = std::mem::take(&mut this.found);
        join(&mut this.seen, &found);
        let published = self.release(block);
        self.blocks.entry(block).or_default().published = published;
    }

    /// A strong load of a word; part of a read-modify-write too.
    pub fn load(&mut self, block: u32, address: u64, strength: Strength) {
        let Some(left) = self.words.get(&address) else { return };
        let this = self.blocks.entry(block).or_default();
        join(if strength.acquire { &mut this.seen } else { &mut this.found }, left);
    }

    /// A strong store; a read-modify-write (`keeps`) hands on what the word held too.
    pub fn store(&mut self, block: u32, address: u64, strength: Strength, keeps: bool) {
        let mut left = match strength.release {
            true => self.release(block),
            false => match self.blocks.get(&block) {
                Some(block) => block.published.clone(),
                None => Seen::new(),
            },
        };
        if keeps && let Some(held) = self.words.get(&address) {
            join(&mut left, held);
        }
        if left.is_empty() {
            self.words.remove(&address);
        } else {
            self.words.insert(address, left);
        }
    }
}

fn join(into: &mut Seen, from: &Seen) {
    for (&block, &interval) in from {
        let seen = into.entry(block).or_default();
        *seen = interval.max(*seen);
    }
}
