//! CUDA sources → PTX, where there is a compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../../build/toolkit.rs"]
mod toolkit;

/// The PTX of a source of this crate's tests; `None`, and a line that says so, without nvcc.
pub fn ptx(source: &str, arch: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = root.parent().expect("a workspace");
    let toolkit::Compiler::Found(nvcc) = toolkit::find(&|name| std::env::var_os(name), workspace)
    else {
        skipped("no nvcc (`cargo xtask kernels` fetches one)");
        return None;
    };
    let stem = source.replace(['/', '.'], "_");
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}_{arch}.ptx"));
    let output = Command::new(&nvcc)
        .args(["-ptx", "-std=c++17", "-lineinfo", "--expt-relaxed-constexpr"])
        .arg(format!("-arch={arch}"))
        .arg("-o")
        .arg(&to)
        .arg(root.join("tests").join(source))
        .output()
        .expect("nvcc starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(std::fs::read_to_string(&to).expect("nvcc wrote it"))
}

/// Says that a test is skipped for want of a tool; fails where `cargo xtask test` promised them.
pub fn skipped(why: &str) {
    let promised = std::env::var("GRADROUTE_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!promised, "tools were promised: {why}");
    eprintln!("skipped: {why}");
}
