//! The count sketch's hash, by micro-blocks of 8 × 8 elements.

use std::ops::Range;

use super::philox::{philox4x32, philox4x32_lanes};

/// Signs and buckets of one 8 × 8 block of the gradient matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBlock {
    /// Bit `8 · (o % 8) + i % 8` set means the element is subtracted.
    pub signs: u64,
    /// First bucket of the block; even.
    pub base: u32,
    /// Permutes the 64 elements, `0..64`.
    pub xor: u32,
}

impl MicroBlock {
    /// Bucket of the block's element `e = 8 · (o % 8) + i % 8` among `buckets`.
    pub fn bucket(&self, e: usize, buckets: usize) -> usize {
        (self.base as usize + (e ^ self.xor as usize)) % buckets
    }

    /// `+1` or `-1` for the block's element `e`.
    pub fn sign(&self, e: usize) -> f32 {
        if (self.signs >> e) & 1 == 1 { -1.0 } else { 1.0 }
    }
}

impl MicroBlock {
    fn of([r0, r1, r2, r3]: [u32; 4], buckets: usize) -> Self {
        Self {
            signs: u64::from(r0) | (u64::from(r1) << 32),
            base: 2 * ((u64::from(r2) * (buckets as u64 / 2)) >> 32) as u32,
            xor: r3 % 64,
        }
    }
}

/// The block that holds element `(o, i)` with `o / 8 = block_o`, `i / 8 = block_i`.
/// One Philox call at counter `(block_o, block_i, 0, 0)`.
pub fn micro_block(key: [u32; 2], block_o: u32, block_i: u32, buckets: usize) -> MicroBlock {
    MicroBlock::of(philox4x32([block_o, block_i, 0, 0], key), buckets)
}

/// Hands [`micro_block`] of each `block_i` to `push`, in order.
#[inline(always)]
pub(crate) fn micro_blocks(
    key: [u32; 2],
    block_o: u32,
    block_i: Range<u32>,
    buckets: usize,
    mut push: impl FnMut(MicroBlock),
) {
    const LANES: usize = 8;
    for first in block_i.clone().step_by(LANES) {
        let lanes = std::array::from_fn(|l| first.wrapping_add(l as u32));
        let words = philox4x32_lanes([[block_o; LANES], lanes, [0; LANES], [0; LANES]], key);
        for l in 0..LANES.min((block_i.end - first) as usize) {
            push(MicroBlock::of(words.map(|word| word[l]), buckets));
        }
    }
}
