//! Tensor maps: what `cuTensorMapEncode*` makes and `cp.async.bulk.tensor` reads.
//!
//! ```
//! use softcuda::tensor_map::{DataType, Interleave, Mode, Swizzle, TensorMap};
//!
//! // A row-major matrix of 300 × 4096 bfloat16, copied in boxes of 128 rows and 64 columns.
//! let map = TensorMap {
//!     data_type: DataType::Bf16,
//!     rank: 2,
//!     address: 0xa00_0000_0000,
//!     sizes: [4096, 300, 1, 1, 1],
//!     strides: [8192, 0, 0, 0],
//!     mode: Mode::Tiled { extent: [64, 128, 1, 1, 1] },
//!     element_strides: [1; 5],
//!     interleave: Interleave::None,
//!     swizzle: Swizzle::Bytes128,
//!     promotion: 256,
//!     fill_nan: false,
//! };
//! assert_eq!(TensorMap::decode(&map.encode()?)?, map);
//! let misplaced = TensorMap { address: map.address + 8, ..map };
//! assert!(misplaced.encode().is_err());
//! # Ok::<(), softcuda::tensor_map::Refused>(())
//! ```

mod encoding;
mod requirements;

/// Bytes of an encoded map.
pub const BYTES: usize = 128;
/// Dimensions a map can have.
pub const MAX_RANK: usize = 5;

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
