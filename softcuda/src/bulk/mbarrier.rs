//! The state of an mbarrier. It lives beside shared memory: what the program sees of it is opaque.
//!
//! Source: PTX ISA, section 9.7.13 (`mbarrier`): a phase is complete when no arrivals are pending and no
//! bytes are outstanding.

use crate::fault::{Check, Fault};
use crate::memory::Clock;

/// The largest count of arrivals or of bytes.
pub const MAX_COUNT: u32 = (1 << 20) - 1;

#[derive(Debug, Clone)]
pub struct Mbarrier {
    /// Arrivals of every phase.
    expected: u32,
    /// Arrivals that this phase still waits for.
    pending: u32,
    /// Bytes that this phase still waits for; below zero if they came before they were expected.
    bytes: i64,
    /// How many phases are complete.
    phase: u32,
    /// What those did that arrived in this phase.
    gathered: Clock,
    /// The same of all complete phases.
    pub completed: Clock,
}

/// What an arrival does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Arrive,
    /// Later phases wait for one less, too.
    Drop,
    /// It must not complete the phase.
    NoComplete,
    DropNoComplete,
}

impl Mbarrier {
    pub fn new(count: u32) -> Result<Self, Fault> {
        if !(1..=MAX_COUNT).contains(&count) {
            return refuse(format!("an mbarrier for {count} arrivals"));
        }
        Ok(Self {
            expected: count,
            pending: count,
            bytes: 0,
            phase: 0,
            gathered: Clock::default(),
            completed: Clock::default(),
        })
    }

    /// The opaque state that `arrive` returns: phase and pending count before it.
    pub fn state(&self) -> u64 {
        u64::from(self.phase) << 32 | u64::from(self.pending)
    }

    /// `mbarrier.pending_count`.
    pub fn pending_count(state: u64) -> u32 {
        state as u32 & MAX_COUNT
    }

    /// # Errors
    ///
    /// [`Check::Barrier`] if more arrive than the phase waits for.
    pub fn arrive(&mut self, count: u32, kind: Kind, clock: Option<&Clock>) -> Result<(), Fault> {
        if count == 0 || count > self.pending {
            let pending = self.pending;
            let what = format!("{count} arrivals at an mbarrier whose phase waits for {pending}");
            return Err(Fault::new(Check::Barrier, what));
        }
        self.pending -= count;
        if let Some(clock) = clock {
            self.gathered.join(clock);
        }
        if matches!(kind, Kind::Drop | Kind::DropNoComplete) {
            self.expected -= count;
        }
        if matches!(kind, Kind::NoComplete | Kind::DropNoComplete) && self.pending == 0 {
            return refuse("an arrival with .noComplete completes the phase");
        }
        self.advance();
        Ok(())
    }

    /// `cp.async.mbarrier.arrive` without `.noinc`: so many arrivals more in this phase.
    pub fn increment(&mut self, by: u32) -> Result<(), Fault> {
        self.pending += by;
        if self.pending > MAX_COUNT { refuse("too many pending arrivals") } else { Ok(()) }
    }

    pub fn expect(&mut self, bytes: u32) -> Result<(), Fault> {
        self.bytes += i64::from(bytes);
        self.check_bytes()
    }

    /// Bytes that have come; what wrote them is ordered before whoever waits.
    pub fn receive(&mut self, bytes: u32, clock: Option<&Clock>) -> Result<(), Fault> {
        self.bytes -= i64::from(bytes);
        if let Some(clock) = clock {
            self.gathered.join(clock);
        }
        self.check_bytes()?;
        self.advance();
        Ok(())
    }

    fn check_bytes(&self) -> Result<(), Fault> {
        if self.bytes.unsigned_abs() > u64::from(MAX_COUNT) {
            return refuse(format!("an mbarrier that waits for {} bytes", self.bytes));
        }
        Ok(())
    }

    fn advance(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            let gathered = std::mem::take(&mut self.gathered);
            self.completed.join(&gathered);
        }
    }

    /// Whether the phase of a state is complete.
    ///
    /// # Errors
    ///
    /// If it is neither the current phase nor the one before.
    pub fn done(&self, state: u64) -> Result<bool, Fault> {
        match self.phase.wrapping_sub((state >> 32) as u32) {
            0 => Ok(false),
            1 => Ok(true),
            _ => refuse("waits for a phase that is neither the current one nor the one before"),
        }
    }

    /// Whether the phase of a parity is complete: the current one has the other parity.
    pub fn done_parity(&self, parity: u32) -> bool {
        self.phase & 1 != parity & 1
    }
}

fn refuse<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new(Check::Trap, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_arrivals_and_bytes() {
        let mut barrier = Mbarrier::new(2).unwrap();
        let first = barrier.state();
        assert_eq!(Mbarrier::pending_count(first), 2);
        barrier.arrive(1, Kind::Arrive, None).unwrap();
        assert_eq!(barrier.done(first), Ok(false));
        assert!(!barrier.done_parity(0));
        // Before the first phase is complete the one before it counts as such.
        assert!(barrier.done_parity(1));
        barrier.arrive(1, Kind::Arrive, None).unwrap();
        assert_eq!(barrier.done(first), Ok(true));
        assert!(barrier.done_parity(0) && !barrier.done_parity(1));

        barrier.expect(64).unwrap();
        barrier.arrive(2, Kind::Arrive, None).unwrap();
        assert!(!barrier.done_parity(1));
        assert_eq!(barrier.arrive(1, Kind::Arrive, None).unwrap_err().check, Check::Barrier);
        barrier.receive(60, None).unwrap();
        barrier.receive(4, None).unwrap();
        assert!(barrier.done_parity(1));
        assert_eq!(barrier.done(first).unwrap_err().check, Check::Trap);

        // Bytes may come before they are expected, as long as an arrival is pending.
        barrier.receive(16, None).unwrap();
        barrier.expect(16).unwrap();
        barrier.arrive(2, Kind::Arrive, None).unwrap();
        assert!(barrier.done_parity(0));
    }

    #[test]
    fn dropping_lowers_later_phases() {
        let mut barrier = Mbarrier::new(3).unwrap();
        barrier.arrive(1, Kind::Drop, None).unwrap();
        barrier.arrive(2, Kind::Arrive, None).unwrap();
        assert_eq!(Mbarrier::pending_count(barrier.state()), 2);
        barrier.increment(1).unwrap();
        barrier.arrive(2, Kind::NoComplete, None).unwrap();
        assert!(barrier.arrive(1, Kind::NoComplete, None).is_err());
        assert!(Mbarrier::new(0).is_err() && Mbarrier::new(1 << 20).is_err());
        assert!(Mbarrier::new(1).unwrap().expect(1 << 20).is_err());
    }
}
