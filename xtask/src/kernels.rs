//! `cargo xtask kernels`: a CUDA compiler without a CUDA installation.
//!
//! NVIDIA publishes the compiler as Python packages. They go into a virtual environment in the
//! ignored `.tools/cuda`, where the crate's build script looks for `nvcc` too. libclang comes along,
//! for the test that compares the generated parameter structs with the C header.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::shell;

/// The one version of all of NVIDIA's packages. A driver must know PTX of this version only where
/// the kernels have no machine code for its device.
const VERSION: &str = "13.2.86";
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

/// Fetches the compiler and builds the crate, and with it the kernels.
pub fn build() -> Result<()> {
    let environment = environment();
    if !environment.join("bin/pip").exists() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("the compiler comes as Python packages: Python 3 with venv is needed")?;
    }
    let wanted = PACKAGES.map(|package| format!("{package}=={VERSION}"));
    shell::run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", LIBCLANG])
            .args(wanted),
    )?;
    // The build script cannot watch a folder that was not there: make it run again.
    let script = File::options().append(true).open(shell::root().join("build.rs"))?;
    script.set_modified(SystemTime::now())?;
    shell::run(shell::cargo().args(["build", "--release", "--all-targets"]))
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
    shell::tools().join("cuda")
}
