//! A whole launch: its clusters on all cores, or, where blocks talk to each other, on one in a fixed order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cluster::{Round, Running};
use super::context::Launch;
use super::cores::Working;
use super::schedule::Schedule;
use super::spare::Spare;
use crate::counters::Counters;
use crate::fault::Report;

/// How launches are executed.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub schedule: Schedule,
    /// Cores that all launches share.
    pub threads: usize,
    /// Warp instructions a launch may take.
    pub limit: u64,
    /// Blocks resident at once, when they wait for each other.
    pub resident: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { schedule: Schedule::Forward, threads, limit: u64::MAX, resident: 1024 }
    }
}

/// Rounds in which nothing changed before a launch counts as deadlocked.
const PATIENCE: u32 = 64;

/// Executes a launch. The counts don't depend on the number of threads.
///
/// # Errors
///
/// The first fault, by block index where blocks ran side by side.
pub fn run(launch: &Launch<'_>, settings: &Settings) -> Result<Counters, Box<Report>> {
    let clusters = launch.blocks() / u64::from(launch.blocks_of_cluster());
    let talks = launch.cooperative || launch.kernel.talks();
    let _running = launch.device.begin(launch.number, launch.blocks(), talks);
    let launching = Working::launching();
    if talks {
        return together(launch, settings, clusters);
    }
    let next = AtomicU64::new(0);
    let failed: Mutex<Option<(u64, Box<Report>)>> = Mutex::new(None);
    // Blocks behind a fault need not run, those before it may hold an earlier one.
    let end = AtomicU64::new(clusters);
    let work = |helpers: &mut dyn FnMut()| {
        let mut counters = Counters::new(launch.kernel.code.len());
        let mut spare = Spare::take();
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            if position >= end.load(Ordering::Relaxed) {
                return counters;
            }
            helpers();
            let index = match settings.schedule {
                Schedule::Reverse => clusters - 1 - position,
                _ => position,
            };
            let mut budget = settings.limit;
            if let Err(report) =
                alone(launch, settings, index, &mut spare, &mut counters, &mut budget)
            {
                let mut failed = failed.lock().expect("no panics while held");
                end.fetch_min(position, Ordering::Relaxed);
                if failed.as_ref().is_none_or(|(earlier, _)| position < *earlier) {
                    *failed = Some((position, report));
                }
            }
        }
    };
    let counters = std::thread::scope(|scope| {
        let mut others = Vec::new();
        // Before every block: a core may have become free.
        let mut counters = work(&mut || {
            while next.load(Ordering::Relaxed) < end.load(Ordering::Relaxed)
                && let Some(helping) = Working::helping(settings.threads)
            {
                others.push(scope.spawn(|| {
                    let _helping = helping;
                    work(&mut || {})
                }));
            }
        });
        drop(launching);
        for other in others {
            match other.join() {
                Ok(counted) => counters.merge(&counted),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        counters
    });
    match failed.into_inner().expect("no panics while held") {
        Some((_, report)) => Err(report),
        None => Ok(counters),
    }
}

/// One cluster from beginning to end.
fn alone(
    launch: &Launch<'_>,
    settings: &Settings,
    index: u64,
    spare: &mut Spare,
    counters: &mut Counters,
    budget: &mut u64,
) -> Result<(), Box<Report>> {
    let mut cluster = Running::new(launch, index, settings.schedule.of_part(index), spare);
    let mut stuck = 0;
    loop {
        match cluster.round(launch, counters, budget)? {
            Round::Done => {
                cluster.retire(spare);
                return Ok(());
            }
            Round::Progress => stuck = 0,
            Round::Stuck => stuck += 1,
        }
        if stuck > PATIENCE {
            return Err(Box::new(cluster.deadlock(launch)));
        }
    }
}

/// Clusters that may wait for each other: in order, the next one started when those running are stuck
/// (or all at once, if the launch is cooperative).
fn together(
    launch: &Launch<'_>,
    settings: &Settings,
    clusters: u64,
) -> Result<Counters, Box<Report>> {
    let mut counters = Counters::new(launch.kernel.code.len());
    let mut spare = Spare::take();
    let mut budget = settings.limit;
    let mut schedule = settings.schedule;
    let resident = if launch.cooperative { clusters } else { settings.resident.max(1) };
    let start = |position: u64, spare: &mut Spare| {
        let reverse = settings.schedule == Schedule::Reverse;
        let index = if reverse { clusters - 1 - position } else { position };
        Running::new(launch, index, settings.schedule.of_part(index), spare)
    };
    let mut running: Vec<Running> = Vec::new();
    let mut started = 0;
    let first = if launch.cooperative { clusters } else { 1.min(clusters) };
    while started < first {
        running.push(start(started, &mut spare));
        started += 1;
    }
    let mut stuck = 0;
    while !running.is_empty() {
        let mut progress = false;
        let mut done = Vec::new();
        let mut order = if launch.cooperative { schedule } else { Schedule::Forward };
        for index in order.order(running.len()) {
            match running[index].round(launch, &mut counters, &mut budget)? {
                Round::Done => done.push(index),
                Round::Progress => progress = true,
                Round::Stuck => {}
            }
        }
        schedule = if let Schedule::Random(_) = schedule { order } else { schedule };
        progress |= !done.is_empty();
        done.sort_unstable();
        done.into_iter().rev().for_each(|index| running.remove(index).retire(&mut spare));
        stuck = if progress { 0 } else { stuck + 1 };
        if started < clusters
            && (running.is_empty() || stuck > 0 && (running.len() as u64) < resident)
        {
            running.push(start(started, &mut spare));
            started += 1;
            stuck = 0;
        }
        if stuck > PATIENCE {
            return Err(Box::new(running[0].deadlock(launch)));
        }
    }
    Ok(counters)
}
