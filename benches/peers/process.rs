//! What the process itself takes: time and memory, as the kernel tells them.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

static BEFORE: OnceLock<u64> = OnceLock::new();

/// The clock on the wall, and the processor time of all threads so far.
pub fn now() -> (Instant, Duration) {
    // Giving way makes the kernel bring its account of this thread up to date.
    std::thread::yield_now();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let spent = tasks.filter_map(|task| {
        let account = fs::read_to_string(task.path().join("schedstat")).ok()?;
        account.split(' ').next()?.parse::<u64>().ok()
    });
    (Instant::now(), Duration::from_nanos(spent.sum()))
}

/// Milliseconds since, of either kind.
pub fn since((wall, spent): (Instant, Duration)) -> [f64; 2] {
    let wall = wall.elapsed();
    [wall, now().1 - spent].map(|time| time.as_secs_f64() * 1e3)
}

/// Ends the setup: from here on the peak counts.
pub fn forget_peak() {
    // Where the kernel refuses, the peak is the setup's where that was higher.
    fs::write("/proc/self/clear_refs", "5").ok();
    if let Ok(bytes) = field("VmRSS") {
        BEFORE.get_or_init(|| bytes);
    }
}

/// Bytes resident after the setup, and at most since then.
pub fn memory() -> Result<[u64; 2]> {
    Ok([*BEFORE.get().context("setup comes first")?, field("VmHWM")?])
}

fn field(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(number.with_context(|| format!("{name} in /proc/self/status"))? * 1024)
}
