//! `cargo xtask candle-cuda`: compiles the adapter's CUDA path, where no CUDA toolkit need be.
//!
//! Candle's build script compiles its kernels for minutes, and only a link takes them. So a stand-in
//! for nvcc goes before everything else in `PATH`: it answers with empty files. `NVCC=off` leaves our own
//! kernels out, and candle's script looks further.

use std::path::Path;

use anyhow::{Context, Result};

use crate::shell;

const STAND_IN: &str = r#"#!/bin/sh
# Stands in for nvcc where nothing is linked: an empty file for each output.
while [ $# -gt 0 ]; do
    case "$1" in
        --version) echo "release 13.0, V13.0.0" ;;
        --list-gpu-code) echo sm_90 ;;
        -o) : > "$2" ;;
        --output-directory) folder=$2 ;;
        *.cu) source=$1 ;;
    esac
    shift
done
[ -z "$folder" ] || : > "$folder/$(basename "$source" .cu).ptx"
"#;

/// Checks the library with the feature `candle-cuda`, warnings forbidden.
pub fn run() -> Result<()> {
    let folder = shell::tools().join("no-nvcc");
    stand_in(&folder).context("the stand-in for nvcc")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(folder).chain(std::env::split_paths(&path));
    let mut cargo = shell::cargo();
    cargo
        // Of this package alone, with whose features the dependencies were checked before.
        .args(["clippy", "--release", "--package", "gradroute", "--lib"])
        .args(["--features", "candle-cuda"])
        .args(["--", "-D", "warnings"])
        .env("PATH", std::env::join_paths(path)?)
        .env("NVCC", "off")
        .env("CUDA_COMPUTE_CAP", "90");
    shell::run(&mut cargo)
}

fn stand_in(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let script = folder.join("nvcc");
    std::fs::write(&script, STAND_IN)?;
    #[cfg(unix)]
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
