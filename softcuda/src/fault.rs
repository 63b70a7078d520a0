//! What the checks find, and how it is told.
//!
//! ```
//! use softcuda::fault::Line;
//!
//! let place = ("scan.cu".to_owned(), 17);
//! let line = Line { ptx: 203, source: Some(place), inlined: Vec::new() };
//! assert_eq!(line.to_string(), "scan.cu:17 (PTX line 203)");
//! ```

use std::fmt;

/// The check that ended a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// An address outside every allocation, variable or frame, or in one already freed.
    OutOfBounds,
    Misaligned,
    /// A read of memory that nothing wrote.
    Uninitialised,
    /// Two accesses of shared memory, one of them a write, with nothing that orders them.
    SharedRace,
    /// The same in global memory, between blocks of one launch.
    GlobalRace,
    /// A barrier that not all threads reach, or reached with the wrong count.
    Barrier,
    /// A warp operation that names lanes which do not take part.
    InactiveLane,
    /// Data of an asynchronous copy used, or its source changed, before the copy was waited for.
    UnfinishedCopy,
    /// A write seen by the asynchronous proxy without a proxy fence.
    MissingFence,
    Deadlock,
    /// `trap`, or an operand outside what the instruction defines.
    Trap,
    /// `assert` in the kernel.
    Assert,
    StackOverflow,
    /// More instructions than the caller allowed.
    TooLong,
}

/// Another party to a fault, e.g. the earlier of two racing writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Party {
    /// Position of its instruction in the kernel's code.
    pub pc: u32,
    /// Linear block index in the grid.
    pub block: u32,
    /// Linear thread index in the block.
    pub thread: u32,
    /// What it did, e.g. `wrote`.
    pub did: &'static str,
}

/// A fault as an instruction raises it; where it happened is added by the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub check: Check,
    /// The first lane concerned, if it is one lane's fault.
    pub lane: Option<u32>,
    pub address: Option<u64>,
    pub detail: String,
    pub other: Option<Party>,
}

impl Fault {
    pub fn new(check: Check, detail: impl Into<String>) -> Self {
        Self { check, lane: None, address: None, detail: detail.into(), other: None }
    }

    pub fn lane(mut self, lane: usize) -> Self {
        self.lane = Some(lane as u32);
        self
    }

    pub fn address(mut self, address: u64) -> Self {
        self.address = Some(address);
        self
    }

    pub fn other(mut self, other: Party) -> Self {
        self.other = Some(other);
        self
    }
}

/// Where in the program: the PTX line, and the source line if the module has line information.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub ptx: u32,
    /// File and line.
    pub source: Option<(String, u32)>,
    /// Where the function of `source` was inlined, and that one's caller, and so on.
    pub inlined: Vec<(String, u32)>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.source {
            write!(f, "{file}:{line} ")?;
        }
        for (file, line) in &self.inlined {
            write!(f, "inlined at {file}:{line} ")?;
        }
        write!(f, "(PTX line {})", self.ptx)
    }
}

/// A fault with its place: what the user reads.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{check:?} in kernel {kernel} at {line}, block {block:?}, thread {thread:?}{}: {detail}{}",
    .address.map_or(String::new(), |address| format!(", address {address:#x}")),
    .other.as_ref().map_or(String::new(), |other| format!("; {other}"))
)]
pub struct Report {
    pub check: Check,
    pub kernel: String,
    pub line: Line,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    pub address: Option<u64>,
    pub detail: String,
    pub other: Option<OtherParty>,
}

/// The other party of a [`Report`].
#[derive(Debug, Clone, PartialEq)]
pub struct OtherParty {
    pub line: Line,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    pub did: &'static str,
}

impl fmt::Display for OtherParty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, block, thread, did } = self;
        write!(f, "block {block:?}, thread {thread:?} {did} it at {line}")
    }
}
