//! What an instruction may touch while it executes.

use crate::bulk::{BlockAsync, WarpAsync};
use crate::counters::{Counter, Counters};
use crate::fault::{Fault, Party};
use crate::ir::{Inst, Kernel, LANES, Mask};
use crate::machine::Barriers;
use crate::memory::{Device, Local, Order, Shared};
use crate::registers::{Place, Registers};

/// A launch: what all its blocks share.
#[derive(Debug)]
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub device: &'a Device,
    /// The kernel's parameters, laid out as `kernel.parameters` says.
    pub parameters: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Blocks of a cluster by axis; `[1, 1, 1]` without clusters.
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
    /// All blocks are resident at once and may wait for each other.
    pub cooperative: bool,
    pub multiprocessors: u32,
    /// Number of the launch, from 1.
    pub number: u64,
}

impl Launch<'_> {
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub fn warps(&self) -> u32 {
        self.threads().div_ceil(LANES as u32)
    }

    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    pub fn blocks_of_cluster(&self) -> u32 {
        self.cluster.iter().product()
    }
}

/// State of a warp apart from where it is in the program.
#[derive(Debug)]
pub struct WarpState {
    pub regs: Registers,
    pub place: Place,
    pub local: Local,
    /// Copies and matrix products its lanes have started and not yet waited for.
    pub asyncs: WarpAsync,
    /// Lanes that have not exited.
    pub alive: Mask,
    /// Reads that may have been waiting for another thread: failed `try_wait`, volatile or acquiring
    /// loads, compare-and-swaps that changed nothing. A launch whose warps only poll is deadlocked.
    pub polls: u64,
    /// Meetings of lanes at `bar.warp.sync`, by member mask.
    meetings: Vec<(Mask, Meeting)>,
    /// Set when lanes of the warp that wait may now go on.
    pub wake: bool,
}

/// Lanes that meet at `bar.warp.sync` coming from different places.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meeting {
    pub arrived: Mask,
    /// How often all have met.
    pub phase: u64,
}

impl WarpState {
    pub fn new(regs: Registers, place: Place, alive: Mask) -> Self {
        Self {
            regs,
            place,
            local: Local::default(),
            asyncs: WarpAsync::default(),
            alive,
            polls: 0,
            meetings: Vec::new(),
            wake: false,
        }
    }

    /// The meeting of a member mask.
    pub fn meeting(&mut self, member: Mask) -> &mut Meeting {
        let known = self.meetings.iter().position(|(mask, _)| *mask == member);
        let index = known.unwrap_or_else(|| {
            self.meetings.push((member, Meeting::default()));
            self.meetings.len() - 1
        });
        &mut self.meetings[index].1
    }
}

/// State of a block.
#[derive(Debug)]
pub struct BlockState {
    pub shared: Shared,
    pub barriers: Barriers,
    pub asyncs: BlockAsync,
    /// Linear index in the grid.
    pub linear: u32,
    /// Lanes of each warp that have not exited.
    pub alive: Vec<Mask>,
}

/// State of the blocks that can reach each other's shared memory: one, unless launched as a cluster.
#[derive(Debug)]
pub struct Cluster {
    pub blocks: Vec<BlockState>,
    /// Which accesses are ordered before which, over all warps of the cluster (block × warps + warp).
    pub order: Order,
    /// `barrier.cluster`.
    pub barrier: crate::machine::ClusterBarrier,
    /// Raised by whatever could let a waiting warp go on: stores, arrivals, exits.
    pub changes: u64,
}

/// An executing instruction's view of the machine.
pub struct Context<'a> {
    pub launch: &'a Launch<'a>,
    pub inst: &'a Inst,
    pub pc: u32,
    /// Rank of the block in its cluster.
    pub rank: usize,
    pub warp: &'a mut WarpState,
    pub cluster: &'a mut Cluster,
    pub counters: &'a mut Counters,
    /// What an instruction that returned [`Flow::Wait`] wants to find again when it is tried next.
    pub token: &'a mut Option<u64>,
}

impl Context<'_> {
    pub fn block(&mut self) -> &mut BlockState {
        &mut self.cluster.blocks[self.rank]
    }

    /// Number of the warp in its cluster, as [`Order`] counts them.
    pub fn unit(&self) -> usize {
        self.rank * self.launch.warps() as usize + self.warp.place.warp as usize
    }

    pub fn count(&mut self, counter: Counter, n: u64) {
        self.counters.add(self.pc, counter, n);
    }

    /// This instruction as the other party of a later fault.
    pub fn party(&self, lane: usize, did: &'static str) -> Party {
        let place = &self.warp.place;
        Party { pc: self.pc, block: place.linear_block, thread: place.thread(lane), did }
    }
}

/// How execution goes on after an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Next,
    /// The instruction could not be done yet: it will be executed again, from the start.
    Wait(Why),
}

/// What a warp waits for; decides the report if it never comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Other lanes of the warp that the instruction names.
    Lanes,
    /// Other lanes of the warp, at a barrier that all must reach together.
    WholeWarp,
    Barrier,
    Mbarrier,
    /// Anything else another warp must do.
    Other,
}

pub type Executed = Result<Flow, Fault>;
