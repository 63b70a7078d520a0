//! CUDA code that nobody here wrote: the modules of `candle-kernels` all load, and kernels of every
//! family compute what the CPU computes, with no check finding fault.
//!
//! `cargo xtask candle-kernels` compiles them; without its PTX these tests are skipped.

mod candle;
mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;

use candle::{FAMILIES, Family, modules};

/// So many kernels of candle-kernels 0.11.1 are to be run at least: of all 27 modules, and of the 19 that are
/// compiled for the tests.
const KERNELS: [(usize, usize); 2] = [(27, 1100), (19, 1000)];

/// What a family did: kernels loaded and run.
struct Done {
    loaded: usize,
    ran: BTreeSet<String>,
}

#[test]
fn every_module_loads_and_its_kernels_compute_what_the_cpu_computes() {
    let Some(modules) = modules() else { return };
    let known: BTreeSet<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
    assert!(modules.keys().all(|name| known.contains(name.as_str())), "{modules:?}");
    let done = Mutex::new(BTreeMap::new());
    let there = FAMILIES.iter().filter(|(name, _)| modules.contains_key(*name));
    let failures =
        on_all_cores(there, |(name, run), failures| match Family::load(&modules[*name]) {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(mut family) => {
                run(&mut family);
                failures.extend(family.failures);
                let loaded = family.program.module.kernels.len();
                let report = Done { loaded, ran: family.ran };
                done.lock().expect("no panics while held").insert(*name, report);
            }
        });
    let done = done.into_inner().expect("no panics while held");
    for (name, Done { loaded, ran }) in &done {
        let names: Vec<&str> = ran.iter().map(String::as_str).collect();
        println!("{name}: {} of {loaded} kernels run: {}", ran.len(), names.join(" "));
    }
    let total: usize = done.values().map(|done| done.ran.len()).sum();
    let loaded: usize = done.values().map(|done| done.loaded).sum();
    println!("{total} of {loaded} kernels of {} modules", done.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let (_, least) =
        KERNELS.into_iter().find(|(all, _)| modules.len() >= *all).expect("19 at least");
    assert!(total >= least, "{total} kernels");
}

/// Hands items out to threads, which may note failures.
fn on_all_cores<T: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T, &mut Vec<String>) + Sync,
) -> Vec<String> {
    let queue = Mutex::new(items.collect::<VecDeque<_>>());
    let worker = || {
        let mut failures = Vec::new();
        loop {
            let next = queue.lock().expect("no panics while held").pop_front();
            let Some(next) = next else { return failures };
            work(next, &mut failures);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panics")).collect()
    })
}
