//! CUDA code that nobody here wrote: the modules of `candle-kernels` all load, and kernels of every
//! family compute what the CPU computes, with no check finding fault.
//!
//! `cargo xtask candle-kernels` compiles them; without its PTX these tests are skipped.

mod candle;
mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;

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
    let mut failures = Vec::new();
    let mut kernels = 0;
    for (name, path) in &modules {
        let text = std::fs::read_to_string(path).expect("readable");
        match Module::load(&Device::new(1 << 30), text.as_bytes(), 90) {
            Err(error) => failures.push(format!("{name}: {error}")),
            Ok(module) => {
                assert_eq!(module.kernels.len(), text.matches(".entry ").count(), "{name}");
                assert!(module.kernels.values().all(|kernel| !kernel.code.is_empty()), "{name}");
                kernels += module.kernels.len();
            }
        }
    }
    assert!(failures.is_empty(), "not loaded:\n{}", failures.join("\n"));
    println!("{} modules, {kernels} kernels", modules.len());
}

#[test]
fn kernels_compute_what_the_cpu_computes() {
    let Some(modules) = modules() else { return };
    let queue = Mutex::new(FAMILIES.iter().rev().collect::<Vec<_>>());
    let ran = Mutex::new(BTreeMap::new());
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = queue.lock().unwrap().pop();
            let Some((name, run)) = next else { return };
            let mut family = Family::load(&modules[*name]);
            run(&mut family);
            failures.lock().unwrap().extend(family.failures);
            ran.lock().unwrap().insert(*name, family.ran);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let ran = ran.into_inner().unwrap();
    for (name, kernels) in &ran {
        let names: Vec<&str> = kernels.iter().map(String::as_str).collect();
        println!("{name}: {} kernels: {}", kernels.len(), names.join(" "));
    }
    let total: usize = ran.values().map(|kernels| kernels.len()).sum();
    println!("{total} kernels of {} modules", ran.len());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total >= KERNELS, "{total} kernels");
}
