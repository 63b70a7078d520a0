//! The machine that executes kernels: grids of clusters of blocks of warps.
//!
//! ```
//! use softcuda::counters::Counter;
//! use softcuda::machine::{Launch, Settings, run};
//! use softcuda::{memory::Device, module::Module};
//!
//! let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry twice(.param .u64 data) {\n\
//!             .reg .b32 %r<2>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd0, [data];\nmov.u32 %r0, %tid.x;\n\
//!             mad.wide.u32 %rd1, %r0, 4, %rd0;\nld.global.u32 %r1, [%rd1];\nadd.u32 %r1, %r1, %r1;\n\
//!             st.global.u32 [%rd1], %r1;\nret; }";
//! let device = Device::new(1 << 20);
//! let module = Module::load(&device, text.as_bytes(), 90)?;
//! let data = device.allocate(128).expect("room");
//! device.write(data, &[1; 128])?;
//! let mut launch = Launch {
//!     kernel: &module.kernels["twice"],
//!     device: &device,
//!     parameters: &data.to_le_bytes(),
//!     grid: [1; 3],
//!     block: [32, 1, 1],
//!     cluster: [1; 3],
//!     dynamic_shared: 0,
//!     cooperative: false,
//!     multiprocessors: 1,
//!     number: 1,
//! };
//! let counters = run(&launch, &Settings::default())?;
//! assert_eq!(counters.total(Counter::GlobalSectors), 8);
//! let mut bytes = [0; 128];
//! device.read(data, &mut bytes)?;
//! assert_eq!(bytes, [2; 128]);
//!
//! // The thread beyond the end is caught, and named.
//! launch.block = [33, 1, 1];
//! let report = run(&launch, &Settings::default()).unwrap_err();
//! assert_eq!((report.thread, report.line.ptx), ([32, 0, 0], 10));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod barrier;
mod cluster;
mod context;
mod control;
mod cores;
mod grid;
mod printf;
mod schedule;
mod spare;
mod warp;

pub use barrier::{Arrival, Barriers, ClusterBarrier, Completed, NAMED};
pub use context::{BlockState, Cluster, Context, Executed, Flow, Launch, Meeting, WarpState, Why};
pub use grid::{Settings, run};
pub use schedule::Schedule;
