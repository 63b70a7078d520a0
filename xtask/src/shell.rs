//! Running other programs, and where the workspace lies.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// The ignored folder for what a task downloads.
pub fn tools() -> PathBuf {
    root().join(".tools")
}

/// The cargo that started this task, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Has the C library's allocator keep what a program frees. As it comes, it gives large blocks
/// back to the system, and a program that allocates the same ones for every pass pays for their
/// pages each time.
pub fn keep_memory(command: &mut Command) {
    // 32 MiB is the most that glibc takes; a larger value is ignored.
    command.env("MALLOC_MMAP_THRESHOLD_", (32 << 20).to_string());
    command.env("MALLOC_TRIM_THRESHOLD_", (1 << 30).to_string());
}

/// Runs a program to its end and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}
