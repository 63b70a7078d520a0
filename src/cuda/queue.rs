//! What all plans have in common: the workspace they need, and the launch.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::call::{Call, Pointers};
use super::device::Device;
use super::plan::Common;
use super::routing::DeviceRouting;
use crate::Result;

/// What a plan has of its own.
pub trait Queue {
    /// What the plans of all ops hold.
    fn common(&self) -> &Common;

    /// Queues the kernels of one call.
    fn queue(&self, call: &Call) -> Result<()>;
}

/// How an op's backward pass runs on a device. `Display` puts it into words.
pub trait Plan: Queue + fmt::Display {
    /// Bytes of workspace that a launch needs.
    fn workspace_bytes(&self) -> u64;

    /// Queues the kernels on the caller's stream. Nothing is allocated and nothing is waited for.
    ///
    /// # Safety
    /// Each address that the plan's wishes need is that of a buffer of the stated shape and format in
    /// the stream's context, lives until the stream is through, and none overlaps an output.
    /// Offsets, categories and regions are those that the plan was made for; every token is below the
    /// vocabulary.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], [`crate::Error::DeviceUnsupported`].
    unsafe fn launch(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        routing: Option<&DeviceRouting>,
        at: &Pointers,
    ) -> Result<()> {
        let call = Call::new(device, stream, self.common(), routing, at)?;
        call.touched()?;
        self.queue(&call)
    }
}
