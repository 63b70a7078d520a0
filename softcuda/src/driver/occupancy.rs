//! Occupancy: what fits on a multiprocessor at once.

use super::boundary::{In, Out, SharedOfBlock, call};
use super::error::{Error, Outcome, Status};
use super::function::{Function, function};
use super::launch::{Config, resident};
use super::state::{Handle, driver};
use crate::architecture::{BlockNeeds, WARP};

fn blocks(function: &Function, threads: i32, shared: usize) -> Outcome<u32> {
    let threads = u32::try_from(threads).ok().filter(|n| *n > 0).ok_or(Error::InvalidValue)?;
    let Ok(shared) = u32::try_from(shared) else { return Ok(0) };
    if threads > function.max_threads() {
        return Ok(0);
    }
    let shared = function.kernel.shared_bytes.saturating_add(shared);
    let needs = BlockNeeds { threads, registers: function.registers(), shared };
    let device = driver()?.architecture;
    Ok(if shared > device.shared_opt_in { 0 } else { device.resident_blocks(needs) })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    count: Out<i32>,
    handle: Handle,
    threads: i32,
    shared: usize,
) -> Status {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", || {
        count.check()?;
        count.set(blocks(&*function(handle)?, threads, shared)? as i32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    count: Out<i32>,
    handle: Handle,
    threads: i32,
    shared: usize,
    flags: u32,
) -> Status {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", || {
        count.check()?;
        if flags > 1 {
            return Err(Error::InvalidValue);
        }
        count.set(blocks(&*function(handle)?, threads, shared)? as i32)
    })
}

/// The block size with the most resident threads (the largest such), and the grid that fills the device.
fn potential(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_of: Option<SharedOfBlock>,
    shared: usize,
    limit: i32,
) -> Outcome {
    grid.check()?;
    block.check()?;
    let function = function(handle)?;
    let most = function.max_threads();
    let most = if limit > 0 { most.min(limit as u32) } else { most };
    let mut best = (0, 0, 0);
    // Whole warps, from the largest down, and the limit itself.
    let mut threads = most;
    while threads > 0 {
        let shared = shared_of.map_or(shared, |shared_of| shared_of(threads as i32));
        let count = blocks(&function, threads as i32, shared)?;
        if count * threads > best.0 {
            best = (count * threads, threads, count);
        }
        threads = (threads - 1) / WARP * WARP;
    }
    grid.set((best.2 * driver()?.architecture.multiprocessors) as i32)?;
    block.set(best.1 as i32)
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_of: Option<SharedOfBlock>,
    shared: usize,
    limit: i32,
) -> Status {
    call("cuOccupancyMaxPotentialBlockSize", || {
        potential(grid, block, handle, shared_of, shared, limit)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    shared_of: Option<SharedOfBlock>,
    shared: usize,
    limit: i32,
    flags: u32,
) -> Status {
    call("cuOccupancyMaxPotentialBlockSizeWithFlags", || match flags {
        0 | 1 => potential(grid, block, handle, shared_of, shared, limit),
        _ => Err(Error::InvalidValue),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    handle: Handle,
    count: i32,
    threads: i32,
) -> Status {
    call("cuOccupancyAvailableDynamicSMemPerBlock", || {
        bytes.check()?;
        let function = function(handle)?;
        let most = blocks(&function, threads, 0)?;
        let count = u32::try_from(count).ok().filter(|n| (1..=most).contains(n));
        let count = count.ok_or(Error::InvalidValue)?;
        let fixed = function.kernel.shared_bytes;
        bytes.set(driver()?.architecture.dynamic_shared(count, fixed) as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxPotentialClusterSize(
    size: Out<i32>,
    handle: Handle,
    config: In<Config>,
) -> Status {
    call("cuOccupancyMaxPotentialClusterSize", || {
        size.check()?;
        let function = function(handle)?;
        let (blocks, _) = resident(&function, &config.get()?.shape(&function)?)?;
        let [portable, most] = driver()?.architecture.cluster.ok_or(Error::NotSupported)?;
        let large = function.large_cluster.load(std::sync::atomic::Ordering::Relaxed);
        size.set(if blocks == 0 {
            0
        } else if large {
            most as i32
        } else {
            portable as i32
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveClusters(
    count: Out<i32>,
    handle: Handle,
    config: In<Config>,
) -> Status {
    call("cuOccupancyMaxActiveClusters", || {
        count.check()?;
        let function = function(handle)?;
        driver()?.architecture.cluster.ok_or(Error::NotSupported)?;
        let mut shape = config.get()?.shape(&function)?;
        shape.cluster = shape.cluster.or(function.cluster());
        count.set(resident(&function, &shape)?.1 as i32)
    })
}

super::exports![
    cuOccupancyMaxActiveBlocksPerMultiprocessor,
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags,
    cuOccupancyMaxPotentialBlockSize,
    cuOccupancyMaxPotentialBlockSizeWithFlags,
    cuOccupancyAvailableDynamicSMemPerBlock,
    cuOccupancyMaxPotentialClusterSize,
    cuOccupancyMaxActiveClusters,
];
