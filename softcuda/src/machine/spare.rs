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

    #[test]
    fn used_registers_come_back_as_zeros() {
        let mut spare = Spare(Vec::new());
        let mut used = spare.registers([3, 4, 5]);
        (used.p, used.r, used.d) = (vec![7; 3], vec![[8; 32]; 4], vec![[9; 32]; 5]);
        let place = used.r.as_ptr();
        spare.put(used);
        let again = spare.registers([5, 2, 6]);
        assert_eq!(again.r.as_ptr(), place);
        assert_eq!((again.p, again.r, again.d), (vec![0; 5], vec![[0; 32]; 2], vec![[0; 32]; 6]));
    }
}
