//! A tensor map's 128 bytes. CUDA calls those of a `CUtensorMap` opaque, so their layout here is our own
//! (little endian):
//!
//! | bytes | what |
//! |---|---|
//! | 0–7 | `SOFTTMAP` |
//! | 8–15 | address |
//! | 16–35 | size of each dimension minus one, five u32 |
//! | 36–39 | data type, rank, 0 for tiled and 1 for im2col, 0 |
//! | 40–71 | strides of dimensions 1 to 4 in bytes, four u64 |
//! | 72–91 | tiled: box, five u16; im2col: lower and upper corner, six i16, channels u16, pixels u16 |
//! | 92–96 | element strides, five u8 |
//! | 97–100 | interleave, swizzle, L2 promotion, fill |
//! | 120–127 | checksum of the bytes before, so that a damaged or partly copied map is noticed |

use super::{BYTES, Checked, DataType, Interleave, Mode, Swizzle, TensorMap, refuse};

const MAGIC: [u8; 8] = *b"SOFTTMAP";
const SUM: usize = 120;
impl TensorMap {
    /// # Errors
    ///
    /// As [`TensorMap::validate`].
    pub fn encode(&self) -> Checked<[u8; BYTES]> {
        self.validate()?;
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
        put(0, &MAGIC);
        put(8, &self.address.to_le_bytes());
        for (n, size) in self.sizes.iter().enumerate() {
            put(16 + 4 * n, &((size.max(&1) - 1) as u32).to_le_bytes());
        }
        let im2col = matches!(self.mode, Mode::Im2col { .. });
        put(36, &[self.data_type as u8, self.rank as u8, u8::from(im2col)]);
        for (n, stride) in self.strides.iter().enumerate() {
            put(40 + 8 * n, &stride.to_le_bytes());
        }
        let numbers: Vec<u16> = match self.mode {
            Mode::Tiled { extent } => extent.map(|n| n as u16).to_vec(),
            Mode::Im2col { lower, upper, channels, pixels } => {
                let corners = lower.into_iter().chain(upper).map(|n| n as u16);
                corners.chain([channels as u16, pixels as u16]).collect()
            }
        };
        for (n, number) in numbers.iter().enumerate() {
            put(72 + 2 * n, &number.to_le_bytes());
        }
        put(92, &self.element_strides.map(|n| n as u8));
        let promotion = if self.promotion == 0 { 0 } else { self.promotion.ilog2() as u8 - 5 };
        let fill = u8::from(self.fill_nan);
        put(97, &[self.interleave as u8, self.swizzle as u8, promotion, fill]);
        let sum = checksum(&bytes[..SUM]);
        bytes[SUM..].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// # Errors
    ///
    /// If the bytes are not an encoded map, or a damaged one.
    pub fn decode(bytes: &[u8; BYTES]) -> Checked<Self> {
        if bytes[..8] != MAGIC {
            return refuse("these 128 bytes are no tensor map");
        }
        if u64_at(bytes, SUM) != checksum(&bytes[..SUM]) {
            return refuse("damaged, or only partly copied");
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let halves = |at: usize| [0, 2, 4].map(|n| i32::from(half(at + n) as i16));
        let mode = if bytes[38] == 0 {
            Mode::Tiled { extent: [0, 1, 2, 3, 4].map(|n| u32::from(half(72 + 2 * n))) }
        } else {
            Mode::Im2col {
                lower: halves(72),
                upper: halves(78),
                channels: u32::from(half(84)),
                pixels: u32::from(half(86)),
            }
        };
        let number = |at: usize| u32::from(bytes[at]);
        let (Some(data_type), Some(interleave), Some(swizzle)) = (
            DataType::from_number(number(36)),
            Interleave::from_number(number(97)),
            Swizzle::from_number(number(98)),
        ) else {
            return refuse("damaged");
        };
        let size = |n: usize| {
            let at = 16 + 4 * n;
            1 + u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
        };
        let map = Self {
            data_type,
            rank: usize::from(bytes[37]),
            address: u64_at(bytes, 8),
            sizes: [0, 1, 2, 3, 4].map(size),
            strides: [0, 1, 2, 3].map(|n| u64_at(bytes, 40 + 8 * n)),
            mode,
            element_strides: [0, 1, 2, 3, 4].map(|n| number(92 + n)),
            interleave,
            swizzle,
            promotion: if bytes[99] == 0 { 0 } else { 32 << bytes[99].min(3) },
            fill_nan: bytes[100] == 1,
        };
        map.validate()?;
        Ok(map)
    }
}

fn u64_at(bytes: &[u8; BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
