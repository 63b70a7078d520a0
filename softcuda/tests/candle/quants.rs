//! Blocks of quantised numbers, read as their definitions in `quantized.cu` say.

use half::f16;

use super::number::Random;

/// How a block holds its numbers.
pub struct Format {
    pub name: &'static str,
    /// Numbers and bytes of a block.
    pub numbers: usize,
    pub bytes: usize,
    /// Where its scales in half precision lie.
    scales: &'static [usize],
    read: fn(&[u8]) -> Block,
}

/// A block's numbers are `scaled`, each 32 of them moved by an offset.
pub struct Block {
    pub scaled: Vec<f64>,
    pub offsets: Vec<f64>,
}

impl Block {
    pub fn value(&self, i: usize) -> f64 {
        match self.offsets[i / 32] {
            // A negative zero would become a positive one.
            0.0 => self.scaled[i],
            offset => self.scaled[i] + offset,
        }
    }
}

pub const FORMATS: [Format; 11] = [
    Format { name: "q4_0", numbers: 32, bytes: 18, scales: &[0], read: q4_0 },
    Format { name: "q4_1", numbers: 32, bytes: 20, scales: &[0, 2], read: q4_1 },
    Format { name: "q5_0", numbers: 32, bytes: 22, scales: &[0], read: q5_0 },
    Format { name: "q5_1", numbers: 32, bytes: 24, scales: &[0, 2], read: q5_1 },
    Format { name: "q8_0", numbers: 32, bytes: 34, scales: &[0], read: q8_0 },
    Format { name: "q2_K", numbers: 256, bytes: 84, scales: &[80, 82], read: q2_k },
    Format { name: "q3_K", numbers: 256, bytes: 110, scales: &[108], read: q3_k },
    Format { name: "q4_K", numbers: 256, bytes: 144, scales: &[0, 2], read: q4_k },
    Format { name: "q5_K", numbers: 256, bytes: 176, scales: &[0, 2], read: q5_k },
    Format { name: "q6_K", numbers: 256, bytes: 210, scales: &[208], read: q6_k },
    Format { name: "q8_K", numbers: 256, bytes: 292, scales: &[], read: q8_k },
];

/// A matrix of blocks, row by row.
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub bytes: Vec<u8>,
    pub blocks: Vec<Block>,
    numbers: usize,
}

impl Format {
    /// Blocks of random bytes with scales of ordinary size.
    pub fn random(&self, random: &mut Random, rows: usize, columns: usize) -> Matrix {
        let count = rows * columns / self.numbers;
        let mut bytes: Vec<u8> =
            (0..count * self.bytes).map(|_| (random.bits() >> 40) as u8).collect();
        let mut scale = || 0.01 + random.below(1000) as f64 / 1e4;
        for block in bytes.chunks_mut(self.bytes) {
            for &at in self.scales {
                block[at..at + 2].copy_from_slice(&f16::from_f64(scale()).to_le_bytes());
            }
            if self.scales.is_empty() {
                block[..4].copy_from_slice(&(scale() as f32).to_le_bytes());
            }
        }
        let blocks = bytes.chunks(self.bytes).map(self.read).collect();
        Matrix { rows, columns, bytes, blocks, numbers: self.numbers }
    }

    pub fn is_k(&self) -> bool {
        self.numbers == 256
    }
}

impl Matrix {
    pub fn row(&self, row: usize) -> &[Block] {
        let blocks = self.columns / self.numbers;
        &self.blocks[row * blocks..][..blocks]
    }

    pub fn values(&self, row: usize) -> Vec<f64> {
        let of = |block: &Block| (0..self.numbers).map(|i| block.value(i)).collect::<Vec<_>>();
        self.row(row).iter().flat_map(of).collect()
    }
}

/// The number in half precision at a byte.
pub fn half(bytes: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64()
}

fn block(numbers: usize, scaled: impl Fn(usize) -> f64, offset: impl Fn(usize) -> f64) -> Block {
    let offsets = (0..numbers / 32).map(offset).collect();
    Block { scaled: (0..numbers).map(scaled).collect(), offsets }
}

/// Of 16 bytes, the low halves are numbers 0 to 15, the high halves 16 to 31.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

fn q4_0(b: &[u8]) -> Block {
    let d = half(b, 0);
    block(32, |i| d * f64::from(nibble(&b[2..], i)), |_| -8.0 * d)
}

fn q4_1(b: &[u8]) -> Block {
    let d = half(b, 0);
    block(32, |i| d * f64::from(nibble(&b[4..], i)), |_| half(b, 2))
}

/// Four bits of the number, and the fifth from 32 bits before them.
fn five(bytes: &[u8], i: usize) -> f64 {
    f64::from(nibble(&bytes[4..], i) | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

fn q5_0(b: &[u8]) -> Block {
    let d = half(b, 0);
    block(32, |i| d * five(&b[2..], i), |_| -16.0 * d)
}

fn q5_1(b: &[u8]) -> Block {
    let d = half(b, 0);
    block(32, |i| d * five(&b[4..], i), |_| half(b, 2))
}

fn q8_0(b: &[u8]) -> Block {
    let d = half(b, 0);
    block(32, |i| d * f64::from(b[2 + i] as i8), |_| 0.0)
}

/// Two bits of each of 256 numbers: of 32 bytes the lowest pairs of bits first, then the next.
fn pair(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

fn q2_k(b: &[u8]) -> Block {
    let (d, min) = (half(b, 80), half(b, 82));
    let number = |i: usize| {
        let scale = b[i / 16];
        d * f64::from(scale & 15) * f64::from(pair(&b[16..], i)) - min * f64::from(scale >> 4)
    };
    block(256, number, |_| 0.0)
}

fn q3_k(b: &[u8]) -> Block {
    let (high, low, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(b, 108));
    let number = |i: usize| {
        let group = i / 16;
        let four = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let two = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = f64::from(four | two << 4) - 32.0;
        let missing = if high[i % 32] >> (i / 32) & 1 == 1 { 0.0 } else { 4.0 };
        d * scale * (f64::from(pair(low, i)) - missing)
    };
    block(256, number, |_| 0.0)
}

/// Scale and minimum of 32 numbers, of six bits each in twelve bytes.
fn scale_and_min(bytes: &[u8], j: usize) -> (f64, f64) {
    let (scale, min) = match j {
        0..4 => (bytes[j] & 63, bytes[j + 4] & 63),
        _ => (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4),
    };
    (scale.into(), min.into())
}

/// Of 32 bytes the low halves are 32 numbers, the high halves the next.
fn long_nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

fn q4_k(b: &[u8]) -> Block {
    let number = |i: usize| {
        half(b, 0) * scale_and_min(&b[4..], i / 32).0 * f64::from(long_nibble(&b[16..], i))
    };
    block(256, number, |j| -half(b, 2) * scale_and_min(&b[4..], j).1)
}

fn q5_k(b: &[u8]) -> Block {
    let number = |i: usize| {
        let quant = long_nibble(&b[48..], i) | (b[16 + i % 32] >> (i / 32) & 1) << 4;
        half(b, 0) * scale_and_min(&b[4..], i / 32).0 * f64::from(quant)
    };
    block(256, number, |j| -half(b, 2) * scale_and_min(&b[4..], j).1)
}

fn q6_k(b: &[u8]) -> Block {
    let number = |i: usize| {
        let low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        let quant = f64::from(low | pair(&b[128..], i) << 4) - 32.0;
        half(b, 208) * f64::from(b[192 + i / 16] as i8) * quant
    };
    block(256, number, |_| 0.0)
}

fn q8_k(b: &[u8]) -> Block {
    let d = f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    block(256, |i| d * f64::from(b[4 + i] as i8), |_| 0.0)
}
