//! What all plans have in common: the workspace they need, and the launch.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaViewMut};

use super::buffers::check_addresses;
use super::call::{Call, Pointers};
use super::device::Device;
use super::plan::Common;
use super::routing::DeviceRouting;
use super::run::{self, DeviceInputs, DeviceOutputs, Guards};
use crate::Result;
use crate::problem::Element;

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

    /// Queues the kernels on the caller's stream, by raw addresses. Nothing is allocated on the device,
    /// no stream is made and nothing is waited for: a graph can capture it. [`Plan::run`] is the same
    /// without the contract.
    ///
    /// # Safety
    /// Each address that is given is that of a buffer of the stated shape and format in the stream's
    /// context, and lives until the stream is through, as does the routing, which was uploaded before in
    /// the stream's order. Offsets are those that the plan was made for, and categories are below the
    /// number that the routing has.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] naming an address that is needed and 0, not aligned, or that of a
    /// buffer that overlaps an output; a routing of another shape, or a stream or routing of another
    /// context; [`crate::Error::Driver`], [`crate::Error::DeviceUnsupported`].
    unsafe fn launch(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        routing: Option<&DeviceRouting>,
        at: &Pointers,
    ) -> Result<()> {
        check_addresses([("", self.common(), at)], (at.workspace, self.workspace_bytes()))?;
        let call = Call::new(device, stream, self.common(), routing, at)?;
        call.touched()?;
        self.queue(&call)
    }

    /// Queues the kernels on the caller's stream, with the caller's buffers and workspace. Nothing is
    /// allocated on the device, no stream is made and nothing is waited for.
    ///
    /// Views wait for each other and are kept as everywhere in `cudarc`. A graph can capture it where
    /// cudarc's event tracking is off (`CudaContext::disable_event_tracking`), as all of cudarc, and where
    /// a launch before has loaded the kernels; what a graph holds must outlive it.
    ///
    /// Whatever the buffers hold, no kernel reads or writes beside them. A token that is not in the
    /// vocabulary has no gradient; a gate that is not finite makes gradients that are not.
    ///
    /// # Errors
    /// As [`Plan::launch`], and [`crate::Error::Argument`] naming a buffer of another length or context,
    /// one that is missing or not asked for, rows or categories that the plan or the routing was not
    /// made for, a workspace that is too small; [`crate::Error::Refused`] for a stream that captures
    /// while events are tracked.
    fn run<T: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        inputs: DeviceInputs<T>,
        mut outputs: DeviceOutputs<T>,
        mut workspace: CudaViewMut<u8>,
    ) -> Result<()>
    where
        Self: Sized,
    {
        let common = self.common();
        run::check_stream(device, stream)?;
        run::check_capture(stream)?;
        run::check("", device, common, &inputs, &outputs)?;
        run::check_workspace(device, self.workspace_bytes(), &workspace)?;
        let mut guards = Guards::new(stream);
        let at = Pointers {
            workspace: guards.write(&mut workspace),
            ..run::pointers(&mut guards, &inputs, &mut outputs)
        };
        guards.check()?;
        // SAFETY: lengths and contexts were checked; offsets, categories and map come from types that
        // hold only what was checked; the guards keep every buffer until the launch is queued.
        unsafe { self.launch(device, stream, inputs.layer(), &at) }
    }
}
