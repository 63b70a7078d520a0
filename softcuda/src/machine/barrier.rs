//! The barriers of a block (`bar`, `barrier`) and of a cluster (`barrier.cluster`).
//!
//! A barrier without a thread count is complete when every thread that has not exited has arrived; one
//! with a count when so many have. Source: PTX ISA, section 9.7.13 (parallel synchronization).

use crate::fault::{Check, Fault};
use crate::ir::Mask;
use crate::memory::Clock;

/// Hardware has sixteen named barriers.
pub const NAMED: usize = 16;

/// One named barrier.
#[derive(Debug, Clone, Default)]
pub struct Barrier {
    /// How often it has completed.
    pub phase: u64,
    /// Lanes of each warp that have arrived in this phase.
    arrived: Vec<Mask>,
    threads: u32,
    expected: Option<u32>,
    /// How many arrived with a true predicate.
    votes: u32,
    /// What arriving threads did before, for those that leave.
    gathered: Clock,
    /// Of the phase that completed last.
    pub result: Completed,
}

/// What a completed phase hands to those that wait.
#[derive(Debug, Clone, Default)]
pub struct Completed {
    pub votes: u32,
    /// Lanes that arrived.
    pub voters: u32,
    pub clock: Clock,
}

/// An arrival of some lanes of a warp.
#[derive(Debug)]
pub struct Arrival {
    pub warp: usize,
    pub lanes: Mask,
    /// `.aligned` barriers count whole warps.
    pub threads: u32,
    pub expected: Option<u32>,
    pub votes: u32,
}

/// The named barriers of a block.
#[derive(Debug, Clone)]
pub struct Barriers {
    named: Vec<Barrier>,
}

impl Barriers {
    pub fn new(warps: usize) -> Self {
        let barrier = Barrier { arrived: vec![0; warps], ..Barrier::default() };
        Self { named: vec![barrier; NAMED] }
    }

    pub fn get(&self, id: usize) -> &Barrier {
        &self.named[id]
    }

    /// # Errors
    ///
    /// [`Check::Barrier`] if a lane arrives twice in one phase, or counts differ.
    pub fn arrive(&mut self, id: usize, arrival: &Arrival, clock: &Clock) -> Result<u64, Fault> {
        let barrier = &mut self.named[id];
        let fault = |what: String| Err(Fault::new(Check::Barrier, what));
        let twice = barrier.arrived[arrival.warp] & arrival.lanes;
        if twice != 0 {
            let what = format!("lanes {twice:#x} arrive twice at barrier {id} in one phase");
            return fault(what);
        }
        let first = barrier.arrived.iter().all(|&mask| mask == 0);
        if !first && barrier.expected != arrival.expected {
            return fault(format!(
                "barrier {id} is reached with thread count {:?} after {:?}",
                arrival.expected, barrier.expected
            ));
        }
        barrier.expected = arrival.expected;
        barrier.arrived[arrival.warp] |= arrival.lanes;
        barrier.threads += arrival.threads;
        barrier.votes += arrival.votes;
        barrier.gathered.join(clock);
        if let Some(expected) = barrier.expected.filter(|&expected| barrier.threads > expected) {
            let threads = barrier.threads;
            return fault(format!(
                "{threads} threads arrive at barrier {id}, which waits for {expected}"
            ));
        }
        Ok(barrier.phase)
    }

    /// Completes the barrier if all it waits for have arrived; `alive` are the lanes that have not exited.
    pub fn complete(&mut self, id: usize, alive: &[Mask]) -> bool {
        let barrier = &mut self.named[id];
        let done = match barrier.expected {
            Some(expected) => barrier.threads == expected,
            None => {
                alive.iter().zip(&barrier.arrived).all(|(alive, arrived)| alive & !arrived == 0)
            }
        };
        if done {
            barrier.phase += 1;
            barrier.result = Completed {
                votes: std::mem::take(&mut barrier.votes),
                voters: barrier.arrived.iter().map(|lanes| lanes.count_ones()).sum(),
                clock: std::mem::take(&mut barrier.gathered),
            };
            barrier.arrived.fill(0);
            barrier.threads = 0;
            barrier.expected = None;
        }
        done
    }

    /// Says which barriers wait for whom, for a report.
    pub fn describe(&self, alive: &[Mask]) -> String {
        let mut text = String::new();
        for (id, barrier) in self.named.iter().enumerate() {
            if barrier.threads == 0 {
                continue;
            }
            let missing: Vec<String> = (alive.iter().zip(&barrier.arrived).enumerate())
                .filter(|(_, (alive, arrived))| *alive & !*arrived != 0)
                .map(|(warp, (alive, arrived))| format!("{warp} (lanes {:#x})", alive & !arrived))
                .collect();
            let expected = barrier.expected.map_or(String::new(), |n| format!(" of {n}"));
            text += &format!(
                "; barrier {id}: {}{expected} threads arrived, missing warps {}",
                barrier.threads,
                missing.join(", ")
            );
        }
        text
    }
}

/// `barrier.cluster`: arrival and waiting are two steps, all threads of all blocks take part.
#[derive(Debug, Clone, Default)]
pub struct ClusterBarrier {
    pub phase: u64,
    /// By block × warps + warp: arrived lanes of this phase.
    arrived: Vec<Mask>,
    /// By the same: the phase each lane arrived in, for its wait.
    waits: Vec<[Option<u64>; crate::ir::LANES]>,
    gathered: Clock,
    pub clock: Clock,
}

impl ClusterBarrier {
    pub fn new(units: usize) -> Self {
        Self {
            arrived: vec![0; units],
            waits: vec![[None; crate::ir::LANES]; units],
            ..Self::default()
        }
    }

    /// # Errors
    ///
    /// [`Check::Barrier`] if a lane arrives twice without waiting.
    pub fn arrive(&mut self, unit: usize, mask: Mask, clock: &Clock) -> Result<(), Fault> {
        for lane in crate::registers::lanes(mask) {
            if self.waits[unit][lane].replace(self.phase).is_some() {
                let what = "barrier.cluster.arrive twice without a wait";
                return Err(Fault::new(Check::Barrier, what).lane(lane));
            }
        }
        self.arrived[unit] |= mask;
        self.gathered.join(clock);
        Ok(())
    }

    /// True when the phase these lanes arrived in is complete; `alive` by unit.
    ///
    /// # Errors
    ///
    /// [`Check::Barrier`] if a lane waits that has not arrived.
    pub fn wait(
        &mut self,
        unit: usize,
        mask: Mask,
        alive: impl Iterator<Item = Mask>,
    ) -> Result<bool, Fault> {
        if alive.zip(&self.arrived).all(|(alive, arrived)| alive & !arrived == 0) {
            self.phase += 1;
            self.arrived.fill(0);
            self.clock = std::mem::take(&mut self.gathered);
        }
        for lane in crate::registers::lanes(mask) {
            match self.waits[unit][lane] {
                None => {
                    let what = "barrier.cluster.wait without an arrival";
                    return Err(Fault::new(Check::Barrier, what).lane(lane));
                }
                Some(phase) if phase == self.phase => return Ok(false),
                Some(_) => {}
            }
        }
        for lane in crate::registers::lanes(mask) {
            self.waits[unit][lane] = None;
        }
        Ok(true)
    }
}
