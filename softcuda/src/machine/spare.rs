//! Registers of warps that are done, for those to come: what a block has in registers is megabytes, and memory
//! from the system costs more than most blocks' instructions.

use std::sync::{Mutex, PoisonError};

use crate::registers::Registers;

/// So much is kept by each thread that works.
const MOST: usize = 64 << 20;

/// What threads that are done left for those that begin.
static LEFT: Mutex<Vec<Vec<Registers>>> = Mutex::new(Vec::new());

/// One thread's spare registers.
#[derive(Debug)]
pub struct Spare(Vec<Registers>);

impl Spare {
    pub fn take() -> Self {
        Self(left().pop().unwrap_or_default())
    }

    /// Zeroed registers.
    pub fn registers(&mut self, slots: [u32; 3]) -> Registers {
        match self.0.pop() {
            Some(mut registers) => {
                registers.reset(slots);
                registers
            }
            None => Registers::new(slots),
        }
    }

    pub fn put(&mut self, registers: Registers) {
        self.0.push(registers);
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let mut room = MOST;
        let fitting = |registers: &Registers| {
            room.checked_sub(registers.bytes()).is_some_and(|rest| {
                room = rest;
                true
            })
        };
        let mut kept = std::mem::take(&mut self.0);
        kept.retain(fitting);
        if !kept.is_empty() {
            left().push(kept);
        }
    }
}

/// Steps on it are single, so a panic elsewhere leaves it whole.
fn left() -> std::sync::MutexGuard<'static, Vec<Vec<Registers>>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{LANES, Reg};

    #[test]
    fn used_registers_come_back_as_zeros() {
        let mut spare = Spare(Vec::new());
        let mut used = spare.registers([3, 40, 50]);
        // In part and as a whole, at both ends of what is zeroed together.
        used.write_predicate(2, 1, 1);
        used.write32(Reg::R(39), 0b101, &[8; LANES]);
        used.write32(Reg::D(7), !0, &[8; LANES]);
        used.write64(Reg::D(8), !0, &[9; LANES]);
        used.write64(Reg::R(0), !0, &[9; LANES]);
        let place = used.r().as_ptr();
        spare.put(used);
        // Fewer, then as many again: what was cut off comes back as zeros too.
        let fewer = spare.registers([5, 20, 51]);
        assert_eq!(fewer.r().as_ptr(), place);
        assert!(fewer.d().iter().flatten().all(|&bits| bits == 0));
        spare.put(fewer);
        let again = spare.registers([3, 40, 50]);
        assert_eq!(again.r(), [[0; LANES]; 40]);
        assert_eq!((again.d(), again.p.as_slice()), (&[[0; LANES]; 50][..], &[0; 3][..]));
    }
}
