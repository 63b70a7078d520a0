//! CUDA code that nobody here wrote: the modules of `candle-kernels` all load, and kernels of every
//! family compute what the CPU computes, with no check finding fault.
//!
//! `cargo xtask candle-kernels` compiles them; without its PTX these tests are skipped.

mod candle;
mod common;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle::{FAMILIES, Family, modules};
use softcuda::memory::Device;
use softcuda::module::Module;

/// Modules of candle-kernels 0.11.1.
const MODULES: usize = 27;
/// So many of their kernels are to be run at least.
const KERNELS: usize = 200;

#[test]
fn every_module_loads() {
    let Some(modules) = modules() else { return };
    assert_eq!(modules.len(), MODULES);
    let count = AtomicUsize::new(0);
    let failures = on_all_cores(modules.iter(), |(name, path), failures| {
        let text = std::fs::read_to_string(path).expect("readable");
        match Module::load(&Device::new(1 << 30), text.as_bytes(), 90) {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(module) => {
                assert_eq!(module.kernels.len(), text.matches(".entry ").count(), "{name}");
                assert!(module.kernels.values().all(|kernel| !kernel.code.is_empty()), "{name}");
                count.fetch_add(module.kernels.len(), Ordering::Relaxed);
            }
        }
    });
    assert!(failures.is_empty(), "not loaded:\n{}", failures.join("\n"));
    println!("{} modules, {} kernels", modules.len(), count.into_inner());
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

#[test]
fn kernels_compute_what_the_cpu_computes() {
    let Some(modules) = modules() else { return };
    let ran = Mutex::new(BTreeMap::new());
    let failures = on_all_cores(FAMILIES.iter(), |(name, run), failures| {
        let mut family = Family::load(&modules[*name]);
        run(&mut family);
        failures.extend(family.failures);
        ran.lock().expect("no panics while held").insert(*name, family.ran);
    });
    let ran = ran.into_inner().expect("no panics while held");
    for (name, kernels) in &ran {
        let names: Vec<&str> = kernels.iter().map(String::as_str).collect();
        println!("{name}: {} kernels: {}", kernels.len(), names.join(" "));
    }
    let total: usize = ran.values().map(|kernels| kernels.len()).sum();
    println!("{total} kernels of {} modules", ran.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total >= KERNELS, "{total} kernels");
}
