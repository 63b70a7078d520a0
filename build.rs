//! Compiles the CUDA kernels, where there is a compiler, and embeds them.
//!
//! Without one the crate builds all the same, with an empty table and a warning.

#[path = "build/compile.rs"]
mod compile;
#[path = "build/toolkit.rs"]
mod toolkit;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use toolkit::Compiler;

fn main() {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in toolkit::VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let folder = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR"));
    let table = match toolkit::find(&|name| env::var_os(name), &root) {
        Compiler::Refused => compile::table(&[], &[]),
        Compiler::Missing => {
            println!(
                "cargo:warning=no nvcc: built without CUDA kernels (`cargo xtask kernels` \
                 fetches one, NVCC=off silences this)"
            );
            compile::table(&[], &[])
        }
        Compiler::Found(nvcc) => {
            build(&nvcc, &root.join("kernels"), &out).unwrap_or_else(|error| {
                panic!("the CUDA kernels do not build (NVCC=off leaves them out):\n{error}")
            })
        }
    };
    fs::write(out.join("kernels.rs"), table).expect("OUT_DIR can be written");
}

/// Compiles every kernel source and returns the table.
fn build(nvcc: &Path, kernels: &Path, out: &Path) -> Result<String, String> {
    let known = compile::run(nvcc, &["--list-gpu-code".into()])?;
    let asked = env::var(toolkit::ARCHITECTURES_VARIABLE).ok();
    let archs = toolkit::architectures(asked.as_deref(), &known)?;
    let one = |source: &Path| {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let target = out.join(format!("{name}.fatbin"));
        let arguments = compile::arguments(source, &target, &kernels.join("include"), &archs);
        compile::check_resources(&compile::run(nvcc, &arguments)?)?;
        Ok(name)
    };
    let sources = sources(kernels)?;
    let built = thread::scope(|scope| {
        let running: Vec<_> = sources.iter().map(|source| scope.spawn(|| one(source))).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("it does not panic"));
        ended.collect::<Result<Vec<String>, String>>()
    })?;
    Ok(compile::table(&archs, &built))
}

/// The kernel sources, in a fixed order.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    paths.sort();
    Ok(paths)
}
