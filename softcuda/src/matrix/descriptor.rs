//! Where `wgmma` finds its operands in shared memory.
//!
//! A descriptor gives the start, two strides and the swizzle; the instruction says which of rows and `k` lies
//! contiguous. Either way an operand is made of chunks of 16 bytes, `k` being 32 bytes deep. With
//! `leading` (L), `stride` (S) and a swizzle of W bytes, by chunk:
//!
//! | | none | W = 32, 64, 128 |
//! |---|---|---|
//! | `k` contiguous: row `r`, chunk `c` | `r % 8 * 16 + r / 8 * S + c * L` | `r % 8 * W + r / 8 * S + c * 16` |
//! | rows contiguous: chunk `c` of rows, `k` | `c * S + k % 8 * 16 + k / 8 * L` | `c % (W / 16) * 16 + c / (W / 16) * L + k % 8 * W + k / 8 * S` |
//!
//! Source: PTX ISA, section 9.7.15 (asynchronous warpgroup-level matrix instructions).

use crate::bulk::place::swizzled;
use crate::fault::{Check, Fault};

/// Bytes of a chunk.
pub const CHUNK: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    /// Address bits that are exchanged: 0 to 3, for 16 << bits bytes.
    swizzle: u32,
}

impl Descriptor {
    /// # Errors
    ///
    /// [`Check::Trap`] for a base offset, which is not supported.
    pub fn decode(bits: u64) -> Result<Self, Fault> {
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * 16;
        if bits >> 49 & 7 != 0 {
            let what = "a base offset in a matrix descriptor is not supported";
            return Err(Fault::new(Check::Trap, what));
        }
        let swizzle = [0, 3, 2, 1][(bits >> 62) as usize];
        Ok(Self { start: field(0), leading: field(16), stride: field(32), swizzle })
    }

    /// Where the 16 bytes of a row's chunk lie, `k` being contiguous.
    pub fn along_k(&self, row: usize, chunk: usize) -> u32 {
        let (row, chunk) = (row as u32, chunk as u32);
        let (of_row, of_chunk) = match self.swizzle {
            0 => (16, self.leading),
            bits => (16 << bits, 16),
        };
        self.at(row % 8 * of_row + row / 8 * self.stride + chunk * of_chunk)
    }

    /// Where 8 rows of 16 bits lie at one `k`, rows being contiguous.
    pub fn along_rows(&self, chunk: usize, k: usize) -> u32 {
        let (chunk, k) = (chunk as u32, k as u32);
        self.at(match self.swizzle {
            0 => chunk * self.stride + k % 8 * 16 + k / 8 * self.leading,
            bits => {
                let (across, width) = (1 << bits, 16 << bits);
                chunk % across * 16
                    + chunk / across * self.leading
                    + k % 8 * width
                    + k / 8 * self.stride
            }
        })
    }

    fn at(&self, offset: u32) -> u32 {
        swizzled(self.start + offset, self.swizzle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_lie_where_the_table_says() {
        let table = include_str!("../../tests/data/layouts.txt");
        let lines = table.lines().filter_map(|line| line.strip_prefix("descriptor "));
        let mut layouts = 0;
        for line in lines {
            let mut words = line.split(' ');
            let (major, swizzle) = words.next().unwrap().split_once('-').unwrap();
            let mode =
                ["none", "128", "64", "32"].iter().position(|name| *name == swizzle).unwrap();
            // The table's offsets, in bytes.
            let (leading, stride) = (2 * 2048, if mode == 0 { 2 * 128 } else { 2 * 512 });
            let bits = [(mode as u64) << 62, stride << 28, leading << 12, 0x400 >> 4];
            let bits = bits.into_iter().sum();
            let descriptor = Descriptor::decode(bits).unwrap();
            let places: Vec<u32> = words.skip(2).map(|word| word.parse().unwrap()).collect();
            for (k, places) in places.chunks(64).enumerate() {
                for (row, place) in places.iter().enumerate() {
                    let found = match major {
                        "k" => descriptor.along_k(row, k / 8) + k as u32 % 8 * 2,
                        _ => descriptor.along_rows(row / 8, k) + row as u32 % 8 * 2,
                    };
                    assert_eq!(found - 0x400, 2 * place, "{major} {swizzle} {row} {k}");
                }
            }
            layouts += 1;
        }
        assert_eq!(layouts, 8);
        assert!(Descriptor::decode(1 << 49).is_err());
    }
}
