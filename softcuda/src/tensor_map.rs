//! Tensor maps: what `cuTensorMapEncode*` makes and `cp.async.bulk.tensor` reads.
//!
//! CUDA calls the 128 bytes of a `CUtensorMap` opaque, so their layout here is our own (little endian):
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
//!
//! The limits come from the documentation of `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col`.

/// Bytes of an encoded map.
pub const BYTES: usize = 128;
/// Dimensions a map can have.
pub const MAX_RANK: usize = 5;
const MAGIC: [u8; 8] = *b"SOFTTMAP";
const SUM: usize = 120;

/// Why a tensor map was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor map: {0}")]
pub struct Refused(String);

type Checked<T> = Result<T, Refused>;

fn refuse<T>(what: impl Into<String>) -> Checked<T> {
    Err(Refused(what.into()))
}

/// Lists an enumeration of the C API by its numbers.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$inner])* $variant = $number,)* }

        impl $name {
            /// From the C API's number.
            pub fn from_number(number: u32) -> Option<Self> {
                [$(Self::$variant),*].into_iter().find(|variant| *variant as u32 == number)
            }
        }
    };
}

numbered! {
    /// Type of a tensor's elements.
    DataType {
        U8 = 0, U16 = 1, U32 = 2, I32 = 3, U64 = 4, I64 = 5, F16 = 6, F32 = 7, F64 = 8, Bf16 = 9,
        F32Ftz = 10, Tf32 = 11, Tf32Ftz = 12,
        /// Sixteen 4-bit numbers in 8 bytes.
        Packed4Align8 = 13,
        /// Sixteen 4-bit numbers, spread to 16 bytes in shared memory.
        Packed4Align16 = 14,
        /// Sixteen 6-bit numbers, spread to 16 bytes in shared memory.
        Packed6Align16 = 15,
    }
}

numbered! {
    Interleave { None = 0, Bytes16 = 1, Bytes32 = 2, }
}

numbered! {
    /// How 16-byte (or, with an atom, larger) chunks change places in shared memory.
    Swizzle {
        None = 0, Bytes32 = 1, Bytes64 = 2, Bytes128 = 3, Bytes128Atom32 = 4,
        Bytes128Atom32Flip8 = 5, Bytes128Atom64 = 6,
    }
}

impl DataType {
    /// Bits of an element in global memory.
    pub fn bits(self) -> u32 {
        match self {
            DataType::U8 => 8,
            DataType::U16 | DataType::F16 | DataType::Bf16 => 16,
            DataType::U64 | DataType::I64 | DataType::F64 => 64,
            DataType::Packed4Align8 | DataType::Packed4Align16 => 4,
            DataType::Packed6Align16 => 6,
            _ => 32,
        }
    }

    pub fn float(self) -> bool {
        use DataType::{Bf16, F16, F32, F32Ftz, F64, Tf32, Tf32Ftz};
        matches!(self, F16 | F32 | F64 | Bf16 | F32Ftz | Tf32 | Tf32Ftz)
    }

    /// Packed types that are spread to 16 bytes.
    fn spread(self) -> bool {
        matches!(self, DataType::Packed4Align16 | DataType::Packed6Align16)
    }
}

impl Swizzle {
    /// Bytes of the span within which chunks change places.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            _ => 128,
        }
    }
}

/// Which part of the tensor one copy moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Elements along each dimension.
    Tiled { extent: [u32; MAX_RANK] },
    /// Corners of the pixels' bounding box, by dimension (W, H, D), and the column's size.
    Im2col { lower: [i32; 3], upper: [i32; 3], channels: u32, pixels: u32 },
}

/// A decoded tensor map. Dimension 0 is the innermost; those from `rank` up are 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    pub data_type: DataType,
    pub rank: usize,
    pub address: u64,
    pub sizes: [u64; MAX_RANK],
    /// Bytes from one index of dimension `n + 1` to the next.
    pub strides: [u64; MAX_RANK - 1],
    pub mode: Mode,
    pub element_strides: [u32; MAX_RANK],
    pub interleave: Interleave,
    pub swizzle: Swizzle,
    /// Bytes of L2 promotion: 0, 64, 128 or 256. A hint.
    pub promotion: u32,
    /// Elements outside the tensor are NaN instead of zero.
    pub fill_nan: bool,
}

impl TensorMap {
    /// # Errors
    ///
    /// Names the requirement that the map does not meet.
    pub fn validate(&self) -> Checked<()> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return refuse(format!("rank {} is not in 1..=5", self.rank));
        }
        if self.interleave != Interleave::None && self.rank < 3 {
            return refuse("an interleaved tensor has rank 3 or more");
        }
        self.validate_memory()?;
        match self.mode {
            Mode::Tiled { extent } => self.validate_box(&extent)?,
            Mode::Im2col { lower, upper, channels, pixels } => {
                self.validate_columns(&lower, &upper, channels, pixels)?;
            }
        }
        let first = usize::from(self.interleave == Interleave::None);
        if self.element_strides[first.min(self.rank)..self.rank]
            .iter()
            .any(|n| !(1..=8).contains(n))
        {
            return refuse("an element stride is not in 1..=8");
        }
        if self.fill_nan && !self.data_type.float() {
            return refuse("only floating-point tensors can be filled with NaN");
        }
        self.validate_swizzle()
    }

    fn validate_memory(&self) -> Checked<()> {
        let wide = self.interleave == Interleave::Bytes32 || self.data_type.spread();
        let align = if wide { 32 } else { 16 };
        if !self.address.is_multiple_of(align) {
            return refuse(format!("address {:#x} is not aligned to {align} bytes", self.address));
        }
        let sizes = &self.sizes[..self.rank];
        if let Some(size) = sizes.iter().find(|size| !(1..=1 << 32).contains(*size)) {
            return refuse(format!("dimension of size {size}"));
        }
        let multiple = match self.data_type {
            DataType::Packed4Align16 | DataType::Packed6Align16 => 128,
            DataType::Packed4Align8 => 2,
            _ => 1,
        };
        if !self.sizes[0].is_multiple_of(multiple) {
            return refuse(format!(
                "innermost size {} is no multiple of {multiple}",
                self.sizes[0]
            ));
        }
        for (n, &stride) in self.strides[..self.rank - 1].iter().enumerate() {
            if !stride.is_multiple_of(align) || stride >= 1 << 40 {
                return refuse(format!(
                    "stride {stride} of dimension {} is no multiple of {align} below 2^40",
                    n + 1
                ));
            }
        }
        Ok(())
    }

    /// Bytes of `elements` along the innermost dimension.
    fn inner_bytes(&self, elements: u32) -> u32 {
        elements * self.data_type.bits() / 8
    }

    fn validate_box(&self, extent: &[u32; MAX_RANK]) -> Checked<()> {
        if let Some(n) = extent[..self.rank].iter().find(|n| !(1..=256).contains(*n)) {
            return refuse(format!("box size {n} is not in 1..=256"));
        }
        let inner = self.inner_bytes(extent[0]);
        if self.interleave == Interleave::None && !inner.is_multiple_of(16) {
            return refuse(format!("the box is {inner} bytes wide, no multiple of 16"));
        }
        if self.data_type.spread() && extent[0] != 128 {
            return refuse("the box of this packed type is 128 elements wide");
        }
        self.validate_inner(inner)
    }

    fn validate_columns(
        &self,
        lower: &[i32; 3],
        upper: &[i32; 3],
        channels: u32,
        pixels: u32,
    ) -> Checked<()> {
        if self.rank < 3 {
            return refuse("an im2col tensor has rank 3, 4 or 5");
        }
        let limit = [1 << 15, 1 << 7, 1 << 4][self.rank - 3];
        for axis in 0..self.rank - 2 {
            let inside = |corner: i32| (-limit..limit).contains(&corner);
            if !inside(lower[axis]) || !inside(upper[axis]) {
                return refuse(format!("a corner is not in {}..={}", -limit, limit - 1));
            }
            let size = self.sizes[axis + 1] as i64;
            if size + i64::from(upper[axis]) - i64::from(lower[axis]) <= 0 {
                return refuse("the bounding box of the pixels is empty");
            }
        }
        if !(1..=256).contains(&channels) || !(1..=1024).contains(&pixels) {
            return refuse("more than 256 channels or 1024 pixels, or none");
        }
        if self.data_type.spread() && channels != 128 {
            return refuse("the column of this packed type is 128 channels wide");
        }
        self.validate_inner(self.inner_bytes(channels))
    }

    fn validate_inner(&self, bytes: u32) -> Checked<()> {
        let span = self.swizzle.span();
        if self.interleave == Interleave::None && span > 0 && bytes > span {
            return refuse(format!("the box is {bytes} bytes wide, the swizzle only {span}"));
        }
        Ok(())
    }

    fn validate_swizzle(&self) -> Checked<()> {
        if self.interleave == Interleave::Bytes32 && self.swizzle != Swizzle::Bytes32 {
            return refuse("32-byte interleaving needs the 32-byte swizzle");
        }
        use Swizzle::{Bytes128, Bytes128Atom32, Bytes128Atom64, None};
        let allowed = match self.data_type {
            DataType::Packed6Align16 => {
                self.interleave == Interleave::None
                    && [None, Bytes128, Bytes128Atom32, Bytes128Atom64].contains(&self.swizzle)
            }
            DataType::Packed4Align16 => [None, Bytes128, Bytes128Atom32].contains(&self.swizzle),
            _ => true,
        };
        if allowed {
            Ok(())
        } else {
            refuse("this packed type has no such swizzle or interleaving")
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            data_type: DataType::Bf16,
            rank: 2,
            address: 0xa00_0000_0100,
            sizes: [1 << 32, 300, 1, 1, 1],
            strides: [1 << 33, 0, 0, 0],
            mode: Mode::Tiled { extent: [64, 256, 1, 1, 1] },
            element_strides: [1; 5],
            interleave: Interleave::None,
            swizzle: Swizzle::Bytes128,
            promotion: 256,
            fill_nan: true,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(TensorMap::decode(&map().encode().unwrap()).unwrap(), map());
        let columns = TensorMap {
            rank: 4,
            sizes: [64, 32, 32, 8, 1],
            strides: [128, 4096, 1 << 17, 0],
            mode: Mode::Im2col { lower: [-1, -1, 0], upper: [-1, 1, 0], channels: 64, pixels: 128 },
            promotion: 0,
            fill_nan: false,
            ..map()
        };
        assert_eq!(TensorMap::decode(&columns.encode().unwrap()).unwrap(), columns);
    }

    #[test]
    fn damage_is_noticed() {
        let good = map().encode().unwrap();
        for at in 0..BYTES {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(TensorMap::decode(&bad).is_err(), "byte {at}");
        }
        assert!(TensorMap::decode(&[0; BYTES]).is_err());
    }

    #[test]
    fn every_requirement_is_checked() {
        type Change = fn(&mut TensorMap);
        let wrong: [(&str, Change); 15] = [
            ("rank", |m| m.rank = 0),
            ("rank", |m| m.rank = 6),
            ("interleaved", |m| m.interleave = Interleave::Bytes16),
            ("aligned", |m| m.address += 8),
            ("size 0", |m| m.sizes[1] = 0),
            ("size", |m| m.sizes[0] += 1),
            ("stride", |m| m.strides[0] += 8),
            ("stride", |m| m.strides[0] = 1 << 40),
            ("box size", |m| m.mode = Mode::Tiled { extent: [64, 257, 1, 1, 1] }),
            ("multiple of 16", |m| m.mode = Mode::Tiled { extent: [4, 8, 1, 1, 1] }),
            ("swizzle only", |m| m.mode = Mode::Tiled { extent: [128, 8, 1, 1, 1] }),
            ("element stride", |m| m.element_strides[1] = 9),
            ("element stride", |m| m.element_strides[1] = 0),
            ("NaN", |m| m.data_type = DataType::U16),
            ("rank 3", |m| {
                m.mode = Mode::Im2col { lower: [0; 3], upper: [0; 3], channels: 8, pixels: 8 }
            }),
        ];
        for (expected, change) in wrong {
            let mut changed = map();
            change(&mut changed);
            let text = changed.encode().unwrap_err().to_string();
            assert!(text.contains(expected), "{expected}: {text}");
        }
        // The innermost element stride is ignored without interleaving.
        assert!(TensorMap { element_strides: [0, 1, 1, 1, 1], ..map() }.encode().is_ok());
    }
}
