//! What kernels index memory with, on the device: rows and categories of a batch.
//!
//! A kernel trusts them, and nobody could look at them on the device without waiting for it. So they are
//! checked on the host and copied from there, and keep what was checked beside them: with these, safe
//! calls stay safe whatever else their buffers hold.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::driver::failed;
use super::routing::upload;
use crate::error::expect_len;
use crate::problem::Rows;
use crate::{Error, Result};

/// Row offsets of a batch, resident on a device.
pub struct DeviceRows {
    pub(super) offsets: CudaSlice<u64>,
    pub(super) samples: u64,
    pub(super) total: u64,
    pub(super) longest: u64,
}

impl DeviceRows {
    /// Copies the offsets of a batch to the stream's device.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn upload(stream: &Arc<CudaStream>, rows: &Rows) -> Result<Self> {
        Ok(Self {
            offsets: upload(stream, rows.offsets())?,
            samples: rows.samples() as u64,
            total: rows.total() as u64,
            longest: rows.longest() as u64,
        })
    }
}

/// Category ids of a batch's samples, resident on a device.
pub struct DeviceCategories {
    pub(super) ids: CudaSlice<u32>,
    pub(super) samples: usize,
    /// All ids are below this.
    pub(super) known: u32,
}

impl DeviceCategories {
    /// Copies ids to the stream's device: each is below `known`, the number of categories.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first id that is not; [`Error::Driver`].
    pub fn upload(stream: &Arc<CudaStream>, ids: &[u32], known: u32) -> Result<Self> {
        below(ids, known)?;
        Ok(Self { ids: upload(stream, ids)?, samples: ids.len(), known })
    }

    /// Puts the ids of another batch in the place of these, for graphs that have captured it.
    ///
    /// # Errors
    /// As [`DeviceCategories::upload`]; also for another number of samples.
    pub fn update(&mut self, stream: &Arc<CudaStream>, ids: &[u32]) -> Result<()> {
        expect_len("categories", self.samples, ids.len())?;
        below(ids, self.known)?;
        if ids.is_empty() {
            return Ok(());
        }
        stream.memcpy_htod(ids, &mut self.ids).map_err(|error| failed("cuMemcpyHtoD", error))
    }
}

fn below(ids: &[u32], known: u32) -> Result<()> {
    match ids.iter().position(|&id| id >= known) {
        None => Ok(()),
        Some(n) => {
            let expected = format!("an id below {known}");
            Err(Error::argument(format!("categories[{n}]"), expected, ids[n]))
        }
    }
}
