//! `cargo xtask kernels`: a CUDA compiler without a CUDA installation.
//!
//! NVIDIA publishes the compiler as Python packages. They go into a virtual environment in the
//! ignored `.tools/cuda`, where the crate's build script looks for `nvcc` too.

use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// The one version of all the compiler's packages. The driver a kernel runs on must know PTX of
/// this version only where it has no machine code for its device.
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

/// Fetches the compiler and builds the crate, and with it the kernels.
pub fn build() -> Result<()> {
    let environment = shell::tools().join("cuda");
    if !environment.join("bin/pip").exists() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("the compiler comes as Python packages: Python 3 with venv is needed")?;
    }
    let wanted = PACKAGES.map(|package| format!("{package}=={VERSION}"));
    shell::run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(wanted),
    )?;
    shell::run(shell::cargo().args(["build", "--release", "--lib"]))
}
