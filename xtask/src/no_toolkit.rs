//! Checking the crate with the feature `candle-cuda`, where no CUDA toolkit need be.
//!
//! Candle's build script compiles its kernels for minutes, and only a link takes them. So a stand-in
//! for nvcc goes before everything else in `PATH`: it answers with empty files. `NVCC=off` leaves our own
//! kernels out, and candle's script looks further.

use std::path::Path;
use std::process::Command;

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

/// Has a cargo that links nothing do without a CUDA compiler.
pub fn stand_in(cargo: &mut Command) -> Result<()> {
    let folder = shell::tools().join("no-nvcc");
    write(&folder).context("the stand-in for nvcc")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(folder).chain(std::env::split_paths(&path));
    cargo.env("PATH", std::env::join_paths(path)?).env("NVCC", "off").env("CUDA_COMPUTE_CAP", "90");
    Ok(())
}

fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let script = folder.join("nvcc");
    std::fs::write(&script, STAND_IN)?;
    #[cfg(unix)]
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
