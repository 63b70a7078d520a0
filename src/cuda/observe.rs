//! Who looks on while kernels are launched: for tracing, and for timing without a second code path.
//!
//! ```
//! use gradroute::cuda::{Launch, LaunchObserver};
//!
//! /// Prints every launch.
//! struct Trace;
//!
//! impl LaunchObserver for Trace {
//!     fn before(&self, launch: &Launch) {
//!         println!("{} in {:?} blocks of {}", launch.kernel, launch.grid, launch.threads);
//!     }
//! }
//! # fn on(device: &gradroute::cuda::Device) {
//! device.observe(Some(std::sync::Arc::new(Trace)));
//! # }
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::driver::failed;
use crate::Result;

/// A kernel that is about to be queued, or was.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel's entry, its format included, such as `linear_wgrad_bf16`.
    pub kernel: &'a str,
    /// Blocks along each side.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Where it is queued.
    pub stream: &'a Arc<CudaStream>,
}

/// Told of every launch on a device that it looks at ([`super::Device::observe`]).
///
/// Both calls come from the launching thread, several threads may launch at once, and the context is
/// current. Whatever an observer queues stands in the stream beside the kernel.
pub trait LaunchObserver: Send + Sync {
    /// The kernel is queued next.
    fn before(&self, _launch: &Launch) {}

    /// The kernel was queued; it may not have run. Not called for a launch that the driver refused.
    fn after(&self, _launch: &Launch) {}
}

/// One launch's time on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// As [`Launch::kernel`].
    pub kernel: String,
    /// From the event before it to the event behind it.
    pub milliseconds: f32,
}

/// A launch between its two events.
struct Span {
    kernel: String,
    stream: u64,
    begin: CudaEvent,
    end: Option<CudaEvent>,
}

#[derive(Default)]
struct Spans {
    all: Vec<Span>,
    failure: Option<DriverError>,
}

/// An observer that records an event before and behind every launch.
///
/// Events are made as they are needed, so what it times costs the host more; and launches that a graph
/// captures have no time of their own: time the graph.
#[derive(Default)]
pub struct LaunchTimer {
    spans: Mutex<Spans>,
}

impl LaunchTimer {
    fn with<T>(&self, change: impl FnOnce(&mut Spans) -> T) -> T {
        change(&mut self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Times of all launches since the last call, in the order they were queued. Waits for them.
    ///
    /// # Errors
    /// [`crate::Error::Driver`] if an event could not be recorded or read.
    pub fn take(&self) -> Result<Vec<Timed>> {
        let Spans { all, failure } = self.with(std::mem::take);
        if let Some(error) = failure {
            return Err(failed("cuEventRecord", error));
        }
        all.into_iter()
            .filter_map(|span| {
                let end = span.end?;
                let time = end.synchronize().and_then(|()| span.begin.elapsed_ms(&end));
                let timed = |milliseconds| Timed { kernel: span.kernel, milliseconds };
                Some(time.map(timed).map_err(|error| failed("cuEventElapsedTime", error)))
            })
            .collect()
    }
}

/// An event that takes the time, behind what the stream holds.
fn mark(launch: &Launch) -> Result<CudaEvent, DriverError> {
    launch.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
}

impl LaunchObserver for LaunchTimer {
    fn before(&self, launch: &Launch) {
        let stream = launch.stream.cu_stream() as u64;
        let marked = mark(launch);
        self.with(|spans| match marked {
            Ok(begin) => {
                spans.all.push(Span { kernel: launch.kernel.into(), stream, begin, end: None });
            }
            Err(error) => spans.failure = Some(error),
        });
    }

    fn after(&self, launch: &Launch) {
        let stream = launch.stream.cu_stream() as u64;
        let marked = mark(launch);
        self.with(|spans| match marked {
            Ok(end) => {
                let open = |span: &&mut Span| {
                    span.end.is_none() && span.stream == stream && span.kernel == launch.kernel
                };
                if let Some(span) = spans.all.iter_mut().rev().find(open) {
                    span.end = Some(end);
                }
            }
            Err(error) => spans.failure = Some(error),
        });
    }
}
