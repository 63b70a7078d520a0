//! The cores: how many threads execute blocks, over all launches that run.
//!
//! Whoever launches always works on its own launch; threads that help it are only begun while cores are
//! free. So launches of several streams run side by side, one core each, and a launch alone has them all.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// All threads of the process that work.
static WORKING: AtomicUsize = AtomicUsize::new(0);

/// A thread that executes blocks, until this is dropped.
#[derive(Debug)]
pub struct Working(());

impl Working {
    /// The thread that launches, cores free or not.
    pub fn launching() -> Self {
        WORKING.fetch_add(1, Relaxed);
        Self(())
    }

    /// A thread that helps, if fewer than `cores` work.
    pub fn helping(cores: usize) -> Option<Self> {
        let free = |working| (working < cores).then_some(working + 1);
        WORKING.fetch_update(Relaxed, Relaxed, free).ok().map(|_| Self(()))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.fetch_sub(1, Relaxed);
    }
}
