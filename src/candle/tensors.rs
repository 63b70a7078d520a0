//! Slices out of candle's tensors, and errors on their way through candle.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, WithDType};

use crate::problem::Element;
use crate::{Error, Result};

/// A number both candle and the ops know.
pub(super) trait Number: Element + WithDType {}
impl<T: Element + WithDType> Number for T {}

/// Runs `$body` with `$T` bound to the element type of a [`DType`].
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => Err(super::tensors::unsupported(other).into()),
        }
    };
}
pub(super) use by_dtype;

pub(super) fn unsupported(dtype: DType) -> Error {
    Error::argument("dtype", "f32, f16 or bf16", format!("{dtype:?}"))
}

/// The elements of a contiguous tensor on the CPU.
pub(super) fn slice<'a, T: Number>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => cpu_slice(storage, layout),
        _ => Err(Error::argument("device", "the CPU", "another device")),
    }
}

/// As [`slice`], of a storage already known to be the CPU's.
pub(super) fn cpu_slice<'a, T: Number>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::argument("layout", "contiguous", format!("{layout:?}")));
    };
    let values = storage.as_slice::<T>().map_err(|_| {
        let given = format!("{:?}", storage.dtype());
        Error::argument(
            "dtype",
            format!("{:?} like the other operands", <T as WithDType>::DTYPE),
            given,
        )
    })?;
    Ok(&values[start..end])
}

/// Checks that a tensor lies where the ops run, in a format they take.
pub(super) fn check_operand(argument: &str, tensor: &Tensor) -> Result<()> {
    let device = tensor.device();
    let here = device.is_cpu() || cfg!(feature = "candle-cuda") && device.is_cuda();
    if !here {
        let expected = match cfg!(feature = "candle-cuda") {
            true => "a tensor on the CPU or a CUDA device",
            false => "a tensor on the CPU; the feature `candle-cuda` allows others",
        };
        return Err(Error::argument(argument, expected, format!("{:?}", device.location())));
    }
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => Err(Error::argument(argument, "f32, f16 or bf16", format!("{other:?}"))),
    }
}

/// Refuses a parameter on a device: the optimizer and the averages compute on the CPU.
pub(super) fn check_on_cpu(name: &str, parameter: &Tensor) -> Result<()> {
    let device = parameter.device();
    match device.is_cpu() {
        true => Ok(()),
        false => {
            let given = format!("{:?}", device.location());
            Err(Error::argument(name, "a parameter on the CPU", given))
        }
    }
}

impl From<Error> for candle_core::Error {
    /// Candle's errors have no place for another crate's typed one but `std::io::Error`'s,
    /// which keeps both the text and the type: [`super::cause`] finds it again.
    fn from(error: Error) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}

/// The typed error inside one of candle's, if it came from this crate.
///
/// ```
/// use gradroute::candle::cause;
/// let error: candle_core::Error = gradroute::problem::Norm::batch().unwrap_err().into();
/// assert!(matches!(cause(&error), Some(gradroute::Error::Refused { .. })));
/// ```
pub fn cause(error: &candle_core::Error) -> Option<&Error> {
    use candle_core::Error as E;
    match error {
        E::Io(error) => error.get_ref()?.downcast_ref(),
        E::WithBacktrace { inner, .. } | E::WithPath { inner, .. } | E::Context { inner, .. } => {
            cause(inner)
        }
        _ => None,
    }
}
