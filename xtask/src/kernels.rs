//! `cargo xtask kernels`: a CUDA compiler without a CUDA installation.
//!
//! NVIDIA publishes the compiler as Python packages. They go into a virtual environment in the
//! ignored `.tools/cuda`, where the crate's build script looks for `nvcc` too. libclang comes along,
//! for the test that compares the generated parameter structs with the C header.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Result, bail, ensure};

use crate::{python, shell};
use toolkit::Compiler;

#[allow(dead_code)] // the build script uses the rest
#[path = "../../build/toolkit.rs"]
pub mod toolkit;

/// The one version of all of NVIDIA's packages. A driver must know PTX of this version only where
/// the kernels have no machine code for its device.
const VERSION: &str = toolkit::PINNED;
/// The compiler, its headers and the disassembler.
const PACKAGES: [&str; 7] = [
    "nvidia-cuda-nvcc",
    "nvidia-cuda-crt",
    "nvidia-nvvm",
    "nvidia-cuda-runtime",
    "nvidia-cuda-cccl",
    "nvidia-cuda-cuobjdump",
    "nvidia-cuda-nvdisasm",
];
const LIBCLANG: &str = "libclang==18.1.1";
/// Its folder below `.tools`.
const ENVIRONMENT: &str = "cuda";

/// Fetches the compiler and builds the crate, and with it the kernels.
pub fn build() -> Result<()> {
    fetch()?;
    shell::run(shell::cargo().args(["build", "--release", "--all-targets"]))
}

/// Fetches the compiler, if it is not there yet, and makes the build script look for one again: it cannot watch a
/// folder that was not there when it ran, and what it found out then may have been that there is none.
fn fetch() -> Result<()> {
    let mut wanted = PACKAGES.map(|package| format!("{package}=={VERSION}")).to_vec();
    wanted.push(LIBCLANG.into());
    let arguments = std::iter::once("--quiet").chain(wanted.iter().map(String::as_str));
    let arguments: Vec<&str> = arguments.collect();
    python::environment(ENVIRONMENT, "the CUDA compiler", &wanted.join(" "), &arguments)?;
    let script = File::options().append(true).open(shell::root().join("build.rs"))?;
    Ok(script.set_modified(SystemTime::now())?)
}

/// The compiler: the user's own, or the fetched one; `None` if kernels are not wanted (`NVCC=off`).
pub fn compiler() -> Result<Option<PathBuf>> {
    let find = || toolkit::find(&|name| std::env::var_os(name), &shell::root());
    match find() {
        Compiler::Refused => return Ok(None),
        Compiler::Found(nvcc) => return Ok(Some(nvcc)),
        Compiler::Missing => fetch()?,
    }
    match find() {
        Compiler::Found(nvcc) => Ok(Some(nvcc)),
        _ => bail!("the fetched packages hold no nvcc"),
    }
}

/// Compiles a source to PTX for the lowest architecture, `<source>.ptx` in a folder.
pub fn text(nvcc: &Path, kernels: &Path, source: &str, folder: &Path) -> Result<()> {
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-std=c++17", "-O3"]);
    command.arg(format!("-arch=compute_{}", toolkit::ARCHITECTURES[0]));
    command.arg("-I").arg(kernels.join("include")).arg(kernels.join(format!("{source}.cu")));
    let output = command.arg("-o").arg(folder.join(format!("{source}.ptx"))).output()?;
    ensure!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The folder of the fetched libclang, if it was fetched.
pub fn libclang() -> Option<PathBuf> {
    let pythons = std::fs::read_dir(environment().join("lib")).ok()?;
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/clang/native"))
        .find(|folder| folder.exists())
}

fn environment() -> PathBuf {
    shell::tools().join(ENVIRONMENT)
}
