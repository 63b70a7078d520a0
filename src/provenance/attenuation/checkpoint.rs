//! Tensors of a safetensors file, changed in place.

use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use crate::{Error, Result};

/// A copy of a checkpoint's bytes: shapes, dtypes and order stay as they are.
pub(super) struct Checkpoint {
    bytes: Vec<u8>,
    /// Where the tensors' data begins.
    data: usize,
    header: Metadata,
}

impl Checkpoint {
    /// # Errors
    /// [`Error::Argument`] when these are no safetensors.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let (header, data) = SafeTensors::read_metadata(bytes)
            .map(|(length, header)| (header, length + size_of::<u64>()))
            .map_err(|error| Error::argument("checkpoint", "safetensors", error))?;
        Ok(Self { bytes: bytes.to_vec(), data, header })
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is not there.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// Checks that a tensor is there with this shape and of a type that can be changed.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        let info = self.info(name)?;
        if info.shape != shape {
            let given = format!("{:?}", info.shape);
            return Err(Error::argument(name, format!("shape {shape:?}"), given));
        }
        match info.dtype {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(Error::argument(name, "F64, F32, F16 or BF16", format!("{other:?}"))),
        }
    }

    /// A tensor's numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::expect`].
    pub fn values(&self, name: &str) -> Result<Vec<f64>> {
        let info = self.info(name)?;
        self.expect(name, &info.shape)?;
        let (start, end) = info.data_offsets;
        let data = &self.bytes[self.data + start..self.data + end];
        Ok(match info.dtype {
            Dtype::F64 => numbers(data, f64::from_le_bytes),
            Dtype::F32 => numbers(data, |bytes| f32::from_le_bytes(bytes).into()),
            Dtype::F16 => numbers(data, |bytes| f16::from_le_bytes(bytes).into()),
            _ => numbers(data, |bytes| bf16::from_le_bytes(bytes).into()),
        })
    }

    /// Writes the numbers at these places, rounded to the tensor's type.
    ///
    /// # Errors
    /// As [`Checkpoint::expect`].
    pub fn set(&mut self, name: &str, values: impl Iterator<Item = (usize, f64)>) -> Result<()> {
        let info = self.info(name)?;
        let (dtype, (start, end)) = (info.dtype, info.data_offsets);
        let data = &mut self.bytes[self.data + start..self.data + end];
        for (at, value) in values {
            match dtype {
                Dtype::F64 => put(data, at, value.to_le_bytes()),
                Dtype::F32 => put(data, at, (value as f32).to_le_bytes()),
                Dtype::F16 => put(data, at, f16::from_f64(value).to_le_bytes()),
                _ => put(data, at, bf16::from_f64(value).to_le_bytes()),
            }
        }
        Ok(())
    }

    /// The file, with a line added to one entry of its metadata.
    ///
    /// # Errors
    /// [`Error::Argument`] when the file holds what cannot be written again.
    pub fn finish(self, key: &str, line: &str) -> Result<Vec<u8>> {
        let wrong = |error| Error::argument("checkpoint", "safetensors", error);
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(wrong)?;
        let mut notes: HashMap<String, String> = self.header.metadata().clone().unwrap_or_default();
        let note = notes.entry(key.to_owned()).or_default();
        if !note.is_empty() {
            note.push('\n');
        }
        note.push_str(line);
        safetensors::serialize(tensors.iter(), Some(notes)).map_err(wrong)
    }

    fn info(&self, name: &str) -> Result<&safetensors::tensor::TensorInfo> {
        let missing = || Error::argument("checkpoint", format!("a tensor {name}"), "none");
        self.header.info(name).ok_or_else(missing)
    }
}

fn numbers<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks().0.iter().map(|&bytes| number(bytes)).collect()
}

fn put<const N: usize>(data: &mut [u8], at: usize, bytes: [u8; N]) {
    data[at * N..][..N].copy_from_slice(&bytes);
}
