//! The count sketch's hash, by micro-blocks of 8 × 8 elements.

use super::philox4x32;

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

/// The block that holds element `(o, i)` with `o / 8 = block_o`, `i / 8 = block_i`.
/// One Philox call at counter `(block_o, block_i, 0, 0)`.
pub fn micro_block(key: [u32; 2], block_o: u32, block_i: u32, buckets: usize) -> MicroBlock {
    let [r0, r1, r2, r3] = philox4x32([block_o, block_i, 0, 0], key);
    MicroBlock {
        signs: u64::from(r0) | (u64::from(r1) << 32),
        base: 2 * ((u64::from(r2) * (buckets as u64 / 2)) >> 32) as u32,
        xor: r3 % 64,
    }
}
