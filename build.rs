//! Compiles the CUDA kernels, where there is a compiler, and embeds them.
//!
//! Without one the crate builds all the same, with an empty table and a warning; with the feature
//! `require-kernels` it does not build.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/compile.rs"]
mod compile;
#[allow(dead_code)] // writing the table is for `cargo xtask gates`
#[path = "build/resources.rs"]
mod resources;
#[path = "build/toolkit.rs"]
mod toolkit;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use toolkit::{Compiler, Decision};

fn main() {
    for path in ["build.rs", "build", "kernels", resources::TABLE] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in toolkit::VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let folder = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR"));
    let found = toolkit::find(&|name| env::var_os(name), &root);
    if found == Compiler::Missing {
        // It may be one that is added to it.
        println!("cargo:rerun-if-env-changed=PATH");
    }
    let required = env::var_os("CARGO_FEATURE_REQUIRE_KERNELS").is_some();
    let documenting = env::var_os(toolkit::DOCUMENTING_VARIABLE).is_some();
    let table =
        match toolkit::decide(found, required, documenting).unwrap_or_else(|why| panic!("{why}")) {
            Decision::Silence => compile::table(&[], &[]),
            Decision::Warn(why) => {
                println!("cargo:warning={why}");
                compile::table(&[], &[])
            }
            Decision::Build(nvcc) => build(&nvcc, &root, &out).unwrap_or_else(|error| {
                panic!("the CUDA kernels do not build (NVCC=off leaves them out):\n{error}")
            }),
        };
    fs::write(out.join("kernels.rs"), table).expect("OUT_DIR can be written");
}

/// Compiles every kernel source and returns the table.
fn build(nvcc: &Path, root: &Path, out: &Path) -> Result<String, String> {
    let kernels = root.join("kernels");
    let known = compile::run(nvcc, &["--list-gpu-code".into()])?;
    let asked = env::var(toolkit::ARCHITECTURES_VARIABLE).ok();
    let archs = toolkit::architectures(asked.as_deref(), &known)?;
    let version = toolkit::version(&compile::run(nvcc, &["--version".into()])?);
    let sources = sources(&kernels)?;
    let include = kernels.join("include");
    let one = |source: &PathBuf| {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let target = out.join(format!("{name}.fatbin"));
        let arguments = compile::arguments(source, &target, &include, &archs);
        compile_if_changed(nvcc, &version, &arguments, &target).map(|()| name)
    };
    let built = thread::scope(|scope| {
        let running: Vec<_> = sources.iter().map(|source| scope.spawn(|| one(source))).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("it does not panic"));
        ended.collect::<Result<Vec<String>, String>>()
    })?;
    let complaints = complaints(root, out, &built).unwrap_or_else(|error| vec![error]);
    let checked = env::var_os(toolkit::UNCHECKED_VARIABLE).is_none();
    let binding = checked && toolkit::held_to_table(&version, &archs);
    if binding && !complaints.is_empty() {
        let advice = format!("`{}` writes {} anew", resources::BLESS, resources::TABLE);
        return Err(format!("{}\n{advice}", complaints.join("\n")));
    }
    if let Some(first) = complaints.first() {
        let count = complaints.len();
        println!(
            "cargo:warning=nvcc {version}: {count} differences from the table, first: {first}"
        );
    }
    Ok(compile::table(&archs, &built))
}

/// Compiles one source, unless its fat binary was made of the same files in the same way.
fn compile_if_changed(
    nvcc: &Path,
    version: &str,
    arguments: &[String],
    target: &Path,
) -> Result<(), String> {
    let [report, stamp_file] = ["report", "stamp"].map(|kind| target.with_extension(kind));
    let depfile = target.with_extension("d");
    let stamp = || cache::stamp(version, arguments, &depfile);
    let old = fs::read_to_string(&stamp_file).ok();
    if target.exists() && report.exists() && old.is_some() && old == stamp() {
        return Ok(());
    }
    let named = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    // A compile that is interrupted leaves files that the old stamp must not vouch for.
    if old.is_some() {
        fs::remove_file(&stamp_file).map_err(|error| named(&stamp_file, error))?;
    }
    // By the clock of the file system, which modification times are of.
    fs::write(&report, "").map_err(|error| named(&report, error))?;
    let start = cache::modified(&report);
    let said = compile::run(nvcc, arguments)?;
    fs::write(&report, said).map_err(|error| named(&report, error))?;
    // Nor may a new one vouch for a source that was edited meanwhile.
    let stamp = stamp().filter(|_| start.is_some_and(|start| cache::unchanged(&depfile, start)));
    stamp.map_or(Ok(()), |stamp| {
        fs::write(&stamp_file, stamp).map_err(|error| named(&stamp_file, error))
    })
}

/// What is wrong with what the kernels take, one line each.
fn complaints(root: &Path, out: &Path, built: &[String]) -> Result<Vec<String>, String> {
    let found = resources::collect(out, built)?;
    let committed = fs::read_to_string(root.join(resources::TABLE)).unwrap_or_default();
    let mut complaints = found.spills;
    complaints.extend(resources::regressions(&found.table, &resources::parse(&committed)?));
    Ok(complaints)
}

/// The kernel sources, in a fixed order.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    paths.sort();
    Ok(paths)
}
