//! What a launch would cost hardware, counted per instruction and summed per class and per line.
//!
//! ```
//! use softcuda::counters::{Counter, Counters};
//!
//! // A kernel of two instructions; the second reads 32 words that lie side by side.
//! let mut counters = Counters::new(2);
//! counters.add(1, Counter::GlobalBytes, 128);
//! counters.add(1, Counter::GlobalSectors, 4);
//! assert_eq!(counters.total(Counter::GlobalSectors) * 32, counters.total(Counter::GlobalBytes));
//! assert_eq!(counters.get(0, Counter::GlobalBytes), 0);
//! ```

use std::collections::BTreeMap;

use crate::fault::Line;
use crate::ir::Kernel;

/// What an instruction is, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Move,
    Integer,
    Logic,
    Compare,
    Convert,
    Half,
    Float32,
    Float64,
    /// Approximate functions, `rcp`, `sqrt`, `div`.
    Transcendental,
    Load,
    Store,
    Atomic,
    Fence,
    /// Shuffles, votes, matches, reductions over a warp.
    Warp,
    Barrier,
    Matrix,
    /// Asynchronous copies and their waits.
    Copy,
    Control,
}

/// A number kept for every instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Warp instructions issued.
    Issued,
    /// Lanes that took part, over all issues.
    Lanes,
    /// Requests to global memory: one per warp instruction that touches it.
    GlobalRequests,
    /// Bytes asked of global memory, over all lanes.
    GlobalBytes,
    /// Distinct 32-byte sectors touched, summed over requests.
    GlobalSectors,
    /// Distinct bytes touched, summed over requests: what the access needs at least.
    GlobalNeeded,
    /// Shared-memory wavefronts, and what they would be without bank conflicts.
    SharedWavefronts,
    SharedIdeal,
    /// Accesses to local memory, by lane.
    LocalAccesses,
    /// Atomic operations, by lane.
    Atomics,
    /// Multiply-adds of matrix instructions.
    MatrixOperations,
    /// Branches that split a warp.
    Divergent,
}

/// Every counter with its name in reports.
pub const COUNTERS: [(Counter, &str); 12] = [
    (Counter::Issued, "issued"),
    (Counter::Lanes, "lanes"),
    (Counter::GlobalRequests, "global_requests"),
    (Counter::GlobalBytes, "global_bytes"),
    (Counter::GlobalSectors, "global_sectors"),
    (Counter::GlobalNeeded, "global_needed"),
    (Counter::SharedWavefronts, "shared_wavefronts"),
    (Counter::SharedIdeal, "shared_ideal"),
    (Counter::LocalAccesses, "local_accesses"),
    (Counter::Atomics, "atomics"),
    (Counter::MatrixOperations, "matrix_operations"),
    (Counter::Divergent, "divergent_branches"),
];

/// Counts of one launch, by position in the kernel's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    rows: Vec<[u64; COUNTERS.len()]>,
}

impl Counters {
    pub fn new(instructions: usize) -> Self {
        Self { rows: vec![[0; COUNTERS.len()]; instructions] }
    }

    pub fn add(&mut self, pc: u32, counter: Counter, n: u64) {
        self.rows[pc as usize][counter as usize] += n;
    }

    pub fn get(&self, pc: u32, counter: Counter) -> u64 {
        self.rows[pc as usize][counter as usize]
    }

    pub fn total(&self, counter: Counter) -> u64 {
        self.rows.iter().map(|row| row[counter as usize]).sum()
    }

    /// Adds what another core counted.
    pub fn merge(&mut self, other: &Self) {
        for (row, other) in self.rows.iter_mut().zip(&other.rows) {
            row.iter_mut().zip(other).for_each(|(n, m)| *n += m);
        }
    }

    /// Warp instructions issued, by class.
    pub fn by_class(&self, kernel: &Kernel) -> BTreeMap<Class, u64> {
        let mut classes = BTreeMap::new();
        for (inst, row) in kernel.code.iter().zip(&self.rows) {
            *classes.entry(inst.op.class()).or_default() += row[Counter::Issued as usize];
        }
        classes.retain(|_, n| *n > 0);
        classes
    }

    /// One counter by line: the source line where known, else the PTX line.
    pub fn by_line(&self, kernel: &Kernel, counter: Counter) -> Vec<(Line, u64)> {
        let mut lines: BTreeMap<(u32, u32), (Line, u64)> = BTreeMap::new();
        for (pc, row) in self.rows.iter().enumerate() {
            let n = row[counter as usize];
            if n > 0 {
                let inst = &kernel.code[pc];
                let key = if inst.source > 0 { (inst.source, 0) } else { (0, inst.line) };
                lines.entry(key).or_insert_with(|| (kernel.line(pc as u32), 0)).1 += n;
            }
        }
        lines.into_values().collect()
    }

    /// Every counter's name and total, in a fixed order.
    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        COUNTERS.iter().map(|&(counter, name)| (name, self.total(counter))).collect()
    }
}
