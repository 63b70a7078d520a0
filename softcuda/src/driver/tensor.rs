//! Encoding of tensor maps.

use super::boundary::{In, Out, call};
use super::error::{Error, Outcome, Status};
use super::state::driver;
use crate::tensor_map::{BYTES, DataType, Interleave, MAX_RANK, Mode, Swizzle, TensorMap};

/// A `CUtensorMap`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Encoded([u8; BYTES]);

/// What all kinds of maps have: numbers as C gives them.
struct Common {
    data_type: u32,
    rank: u32,
    address: u64,
    sizes: In<u64>,
    strides: In<u64>,
    element_strides: In<u32>,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
}

fn array<T: Copy, const N: usize>(from: In<T>, rank: usize, rest: T) -> Outcome<[T; N]> {
    let mut values = [rest; N];
    for (index, value) in values.iter_mut().take(rank).enumerate() {
        *value = from.get_at(index)?;
    }
    Ok(values)
}

impl Common {
    fn map(&self, mode: impl FnOnce(usize) -> Outcome<Mode>) -> Outcome<TensorMap> {
        let rank = self.rank as usize;
        if !(1..=MAX_RANK).contains(&rank) || self.promotion > 3 || self.fill > 1 {
            return Err(Error::InvalidValue);
        }
        let wrong = Error::InvalidValue;
        Ok(TensorMap {
            data_type: DataType::from_number(self.data_type).ok_or(wrong)?,
            rank,
            address: self.address,
            sizes: array(self.sizes, rank, 1)?,
            strides: array(self.strides, rank - 1, 0)?,
            mode: mode(rank)?,
            element_strides: array(self.element_strides, rank, 1)?,
            interleave: Interleave::from_number(self.interleave).ok_or(wrong)?,
            swizzle: Swizzle::from_number(self.swizzle).ok_or(wrong)?,
            promotion: [0, 64, 128, 256][self.promotion as usize],
            fill_nan: self.fill == 1,
        })
    }
}

fn encode(into: Out<Encoded>, map: impl FnOnce() -> Outcome<TensorMap>) -> Outcome {
    // Also that it is aligned to 64 bytes.
    into.check()?;
    if driver()?.architecture.number < 90 {
        return Err(Error::NotSupported);
    }
    let bytes = map()?.encode().map_err(|error| {
        eprintln!("softcuda: {error}");
        Error::InvalidValue
    })?;
    into.set(Encoded(bytes))
}

/// A function of the API that encodes: what all kinds of maps have around what its own has, of which, given
/// the rank, it makes the mode.
macro_rules! encodes {
    ($name:ident($($own:ident: $ty:ty),*), $mode:expr) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            into: Out<Encoded>,
            data_type: u32,
            rank: u32,
            address: u64,
            sizes: In<u64>,
            strides: In<u64>,
            $($own: $ty,)*
            element_strides: In<u32>,
            interleave: u32,
            swizzle: u32,
            promotion: u32,
            fill: u32,
        ) -> Status {
            call(stringify!($name), || {
                let common = Common {
                    data_type,
                    rank,
                    address,
                    sizes,
                    strides,
                    element_strides,
                    interleave,
                    swizzle,
                    promotion,
                    fill,
                };
                encode(into, || common.map($mode))
            })
        }
    };
}

encodes!(cuTensorMapEncodeTiled(extent: In<u32>), |rank| {
    Ok(Mode::Tiled { extent: array(extent, rank, 1)? })
});

encodes!(
    cuTensorMapEncodeIm2col(lower: In<i32>, upper: In<i32>, channels: u32, pixels: u32),
    |rank| {
        let axes = rank.saturating_sub(2);
        let (lower, upper) = (array(lower, axes, 0)?, array(upper, axes, 0)?);
        Ok(Mode::Im2col { lower, upper, channels, pixels })
    }
);

#[unsafe(no_mangle)]
extern "C" fn cuTensorMapReplaceAddress(into: Out<Encoded>, address: u64) -> Status {
    call("cuTensorMapReplaceAddress", || {
        into.check()?;
        let held = TensorMap::decode(&into.get()?.0).map_err(|_| Error::InvalidValue)?;
        let moved = TensorMap { address, ..held };
        encode(into, || Ok(moved))
    })
}

super::exports![cuTensorMapEncodeTiled, cuTensorMapEncodeIm2col, cuTensorMapReplaceAddress];
