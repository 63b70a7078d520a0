//! A cluster's blocks and warps, and the order in which its warps have their turns.

use super::barrier::{Barriers, ClusterBarrier};
use super::context::{BlockState, Cluster, Launch, WarpState, Why};
use super::schedule::Schedule;
use super::spare::Spare;
use super::warp::{Machine, Turn, Warp};
use crate::bulk::BlockAsync;
use crate::counters::Counters;
use crate::fault::{Check, Fault, Line, OtherParty, Party, Report};
use crate::ir::{Kernel, LANES, Mask};
use crate::memory::{Order, Shared};
use crate::registers::Place;

/// The blocks of a cluster with all their warps.
#[derive(Debug)]
pub struct Running {
    state: Cluster,
    /// By block, then warp.
    warps: Vec<Vec<Warp>>,
    schedule: Schedule,
}

/// What a round over all warps came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Done,
    Progress,
    /// Nothing happened that another warp could wait for: all are blocked, or only poll.
    Stuck,
}

impl Running {
    /// The cluster of number `index`, counted along x first.
    pub fn new(launch: &Launch<'_>, index: u64, schedule: Schedule, spare: &mut Spare) -> Self {
        let clusters: [u32; 3] = [0, 1, 2].map(|n| launch.grid[n] / launch.cluster[n]);
        let first = coordinates(index, clusters);
        let blocks = u64::from(launch.blocks_of_cluster());
        let block = |rank| {
            let inside = coordinates(rank, launch.cluster);
            [0, 1, 2].map(|n| first[n] * launch.cluster[n] + inside[n])
        };
        let warps = launch.warps() as usize;
        let units = blocks as usize * warps;
        let shared = launch.kernel.shared_bytes + launch.dynamic_shared;
        let mut state = Cluster {
            blocks: Vec::new(),
            order: Order::new(units),
            barrier: ClusterBarrier::new(units),
            changes: 0,
        };
        let mut all = Vec::new();
        for rank in 0..blocks {
            let linear = linear(block(rank), launch.grid);
            let of_block: Vec<Warp> = (0..warps as u32)
                .map(|warp| {
                    let registers = spare.registers(launch.kernel.slots);
                    let place = place(launch, block(rank), rank as u32, linear, warp);
                    Warp::new(WarpState::new(registers, place, alive(launch, warp)))
                })
                .collect();
            state.blocks.push(BlockState {
                shared: Shared::new(shared),
                barriers: Barriers::new(warps),
                asyncs: BlockAsync::default(),
                linear,
                alive: of_block.iter().map(|warp| warp.state.alive).collect(),
            });
            all.push(of_block);
        }
        Self { state, warps: all, schedule }
    }

    /// Ends it, and keeps its registers.
    pub fn retire(self, spare: &mut Spare) {
        self.warps.into_iter().flatten().for_each(|warp| spare.put(warp.state.regs));
    }

    /// Gives every warp its turn once; `budget` counts down the instructions the launch may still take.
    ///
    /// # Errors
    ///
    /// The first fault.
    pub fn round(
        &mut self,
        launch: &Launch<'_>,
        counters: &mut Counters,
        budget: &mut u64,
    ) -> Result<Round, Box<Report>> {
        let before = self.state.changes;
        let mut all_done = true;
        let mut worked = false;
        let per_block = launch.warps() as usize;
        for unit in self.schedule.order(self.warps.len() * per_block) {
            let (rank, index) = (unit / per_block, unit % per_block);
            let warp = &mut self.warps[rank][index];
            if warp.done() {
                continue;
            }
            let polls = warp.state.polls;
            let mut machine =
                Machine { launch, cluster: &mut self.state, rank, counters: &mut *counters };
            let turn = warp.turn(&mut machine, budget);
            let turn = turn.map_err(|(pc, fault)| {
                let first = warp.state.alive.trailing_zeros().min(LANES as u32 - 1);
                Box::new(report(launch, &warp.state.place, first, pc, fault))
            })?;
            all_done &= warp.done();
            // A spent turn without a poll is plain computing.
            worked |= turn == Turn::Done || turn == Turn::Spent && warp.state.polls == polls;
            if *budget == 0 {
                return Err(Box::new(self.too_long(launch, rank, index)));
            }
        }
        if all_done {
            return Ok(Round::Done);
        }
        let progress = worked || self.state.changes != before;
        Ok(if progress { Round::Progress } else { Round::Stuck })
    }

    fn too_long(&self, launch: &Launch<'_>, rank: usize, index: usize) -> Report {
        let warp = &self.warps[rank][index];
        let what = "the launch takes more instructions than allowed";
        let pc = warp.splits.first().map_or(0, |split| split.pc);
        report(launch, &warp.state.place, 0, pc, Fault::new(Check::TooLong, what))
    }

    /// The report of a cluster that cannot go on.
    pub fn deadlock(&self, launch: &Launch<'_>) -> Report {
        let splits = || {
            let warps = self.warps.iter().flatten();
            warps.flat_map(|warp| warp.splits.iter().map(move |split| (warp, split)))
        };
        // The narrowest reason tells most.
        let reasons = [Why::Lanes, Why::WholeWarp, Why::Barrier, Why::Mbarrier, Why::Other];
        let found = reasons.iter().find_map(|why| splits().find(|(_, s)| s.waiting == Some(*why)));
        let (warp, split) = found.or_else(|| splits().next()).expect("a stuck cluster has splits");
        let block = &self.state.blocks[warp.state.place.cluster_rank as usize];
        let barriers = block.barriers.describe(&block.alive);
        let (check, what) = match split.waiting {
            Some(Why::Lanes) => (Check::InactiveLane, "waits for lanes that never come".to_owned()),
            Some(Why::WholeWarp) => (
                Check::Barrier,
                format!("only lanes {:#x} of the warp reach this barrier{barriers}", split.mask),
            ),
            Some(Why::Barrier) => (Check::Barrier, format!("not all threads reach it{barriers}")),
            Some(Why::Mbarrier) => (Check::Deadlock, "no one completes this mbarrier".to_owned()),
            Some(Why::Other) | None => (
                Check::Deadlock,
                format!("all warps wait, none for anything that can come{barriers}"),
            ),
        };
        let mut fault = Fault::new(check, what);
        // Where another split of the same warp stands is the other half of the story.
        let elsewhere = warp.splits.iter().find(|other| other.pc != split.pc);
        if let Some(other) = elsewhere {
            let lane = other.mask.trailing_zeros() as usize;
            let place = &warp.state.place;
            let thread = place.thread(lane);
            fault = fault.other(Party {
                pc: other.pc,
                block: place.linear_block,
                thread,
                did: "does not reach",
            });
        }
        report(launch, &warp.state.place, split.mask.trailing_zeros(), split.pc, fault)
    }
}

/// The lanes of a warp that there are.
fn alive(launch: &Launch<'_>, warp: u32) -> Mask {
    let threads = (launch.threads() - warp * LANES as u32).min(LANES as u32);
    Mask::MAX >> (LANES as u32 - threads)
}

fn place(launch: &Launch<'_>, block: [u32; 3], rank: u32, linear_block: u32, warp: u32) -> Place {
    let kernel = launch.kernel;
    let first = warp * LANES as u32;
    let tid = |axis: usize| {
        std::array::from_fn(|lane| coordinates(u64::from(first) + lane as u64, launch.block)[axis])
    };
    Place {
        tid: [tid(0), tid(1), tid(2)],
        block_dim: launch.block,
        block,
        grid: launch.grid,
        warp,
        warps: launch.warps(),
        linear_block,
        cluster_dim: launch.cluster,
        cluster_rank: rank,
        explicit_cluster: launch.cluster != [1; 3],
        launch: launch.number,
        static_shared: kernel.shared_bytes,
        dynamic_shared: launch.dynamic_shared,
        multiprocessors: launch.multiprocessors,
        clock: 0,
        frame: 0,
    }
}

/// `[x, y, z]` of a linear index, x fastest.
fn coordinates(index: u64, dims: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = dims.map(u64::from);
    [index % x, index / x % y, index / x / y].map(|n| n as u32)
}

fn linear(at: [u32; 3], dims: [u32; 3]) -> u32 {
    at[0] + dims[0] * (at[1] + dims[1] * at[2])
}

fn report(launch: &Launch<'_>, place: &Place, first: u32, pc: u32, fault: Fault) -> Report {
    let kernel: &Kernel = launch.kernel;
    let lane = fault.lane.unwrap_or(first);
    let other = fault.other.map(|party: Party| OtherParty {
        line: kernel.line(party.pc),
        block: coordinates(u64::from(party.block), launch.grid),
        thread: coordinates(u64::from(party.thread), launch.block),
        did: party.did,
    });
    let line: Line = kernel.line(pc);
    Report {
        check: fault.check,
        kernel: kernel.name.clone(),
        line,
        block: place.block,
        thread: coordinates(u64::from(place.thread(lane as usize)), launch.block),
        address: fault.address,
        detail: fault.detail,
        other,
    }
}
