//! The machine that executes kernels: grids of clusters of blocks of warps.

mod barrier;
mod cluster;
mod context;
mod control;
mod grid;
mod printf;
mod schedule;
mod warp;

pub use barrier::{Arrival, Barriers, ClusterBarrier, Completed, NAMED};
pub use context::{BlockState, Cluster, Context, Executed, Flow, Launch, Meeting, WarpState, Why};
pub use grid::{Settings, run};
pub use schedule::Schedule;
