//! Tensors of a safetensors file, changed in place.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Serialize;

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
        let (length, header) = header(bytes)?;
        Ok(Self { bytes: bytes.to_vec(), data: length + size_of::<u64>(), header })
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

    /// The file, with a line added to one entry of its metadata; the same bytes every time.
    ///
    /// # Errors
    /// [`Error::Argument`] when the header cannot be written again.
    pub fn finish(self, key: &str, line: &str) -> Result<Vec<u8>> {
        let wrong = |error| Error::argument("checkpoint", "safetensors", error);
        let metadata = self.header.metadata().iter().flatten();
        let mut notes: BTreeMap<_, _> = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
        let note = notes.entry(key.to_owned()).or_default();
        if !note.is_empty() {
            note.push('\n');
        }
        note.push_str(line);
        let tensors: BTreeMap<_, _> = self.header.tensors().into_iter().collect();
        let mut header = serde_json::to_vec(&Header { notes, tensors }).map_err(wrong)?;
        // The data begins at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        let length = (header.len() as u64).to_le_bytes();
        Ok([&length[..], &header[..], &self.bytes[self.data..]].concat())
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::argument("checkpoint", format!("a tensor {name}"), "none");
        self.header.info(name).ok_or_else(missing)
    }
}

/// Length of a checkpoint's header, and the header.
///
/// # Errors
/// [`Error::Argument`] when these are no safetensors.
pub(super) fn header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::argument("checkpoint", "safetensors", error))
}

/// A safetensors header, in the order of its names; `safetensors::serialize` orders the metadata
/// at random.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    notes: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, &'a TensorInfo>,
}

fn numbers<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks().0.iter().map(|&bytes| number(bytes)).collect()
}

fn put<const N: usize>(data: &mut [u8], at: usize, bytes: [u8; N]) {
    data[at * N..][..N].copy_from_slice(&bytes);
}
