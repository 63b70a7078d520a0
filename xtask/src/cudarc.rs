//! `cargo xtask cudarc`: the driver-level unit tests of cudarc, as published, on softcuda.
//!
//! The sources are those that Cargo fetched for the workspace. Tests need NVIDIA's run-time compiler, which
//! comes as a Python package into the ignored `.tools/nvrtc`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

const CRATE: &str = "cudarc-0.19.10";
/// The last compiler that knows compute capability 5.3, for which one test compiles.
const PACKAGES: [&str; 2] =
    ["nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-runtime-cu12==12.9.79"];
/// `cuda-12090` has the most tests.
const FEATURES: &str = "std,driver,nvrtc,f16,fallback-dynamic-loading,cuda-12090";

/// Tests that cannot pass, each with its reason.
const LEFT_OUT: [(&str, &str); 6] = [
    (
        "test_default_pinned_host_reads_are_faster_than_write_combined",
        "times write-combined memory, which softcuda has not: reading it is as fast as any",
    ),
    ("test_pinned_copy_is_faster", "times the bus between host and device, and there is none"),
    (
        "test_par_launch",
        "times two kernels side by side against one after the other: needs idle cores",
    ),
    ("peer_transfer_contexts", "needs two devices; cudarc ignores it too"),
    ("re_associate_context_for_memory_op", "needs two devices; cudarc ignores it too"),
    ("test_peer_memcpy_waits_for_src_stream", "needs two devices; cudarc ignores it too"),
];
/// Tests that cudarc wants run one by one.
const ALONE: [&str; 2] = [
    "driver::safe::core::tests::test_post_alloc_memory",
    "driver::safe::launch::tests::test_device_side_assert",
];

/// Builds the tests and runs them; `all` those too that measure time.
pub fn run(all: bool) -> Result<()> {
    let packages = packages()?;
    let tests = build()?;
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--package", "softcuda"]))?;
    let mut together = softcuda(&packages, &tests);
    for (name, reason) in LEFT_OUT {
        let timed = reason.starts_with("times");
        if !(all && timed) {
            println!("left out: {name}: {reason}");
            together.args(["--skip", name]);
        }
    }
    shell::run(&mut together)?;
    for name in ALONE {
        let mut alone = softcuda(&packages, &tests);
        shell::run(alone.args([name, "--exact", "--ignored"]))?;
    }
    Ok(())
}

/// The tests' program under the driver, with the compiler in its search path. It is given a view of
/// `/usr/include` with CUDA's headers, where one test looks for them.
fn softcuda(packages: &Path, tests: &Path) -> Command {
    let headers = packages.join("cuda_runtime/include");
    let overlay = format!("lowerdir={}:/usr/include", headers.display());
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t overlay overlay -o \"$0\" /usr/include && exec \"$@\"")
        .arg(overlay)
        .arg(shell::root().join("target/release/softcuda"))
        .arg("--")
        .arg(tests)
        .env("LD_LIBRARY_PATH", packages.join("cuda_nvrtc/lib"))
        // As on hardware: launches return before they are done.
        .env("CUDA_LAUNCH_BLOCKING", "0");
    command
}

/// Builds the crate's unit tests from a copy that stands alone; its sources are as published.
fn build() -> Result<PathBuf> {
    let copy = shell::tools().join(CRATE);
    shell::run(Command::new("rm").arg("-rf").arg(&copy))?;
    std::fs::create_dir_all(shell::tools())?;
    shell::run(Command::new("cp").arg("-r").arg(published()?).arg(&copy))?;
    let manifest = copy.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, text + "\n[workspace]\n")?;
    let target = shell::tools().join("cudarc-target");
    let output = shell::cargo()
        .args(["test", "--lib", "--no-run", "--no-default-features", "--features", FEATURES])
        .args(["--message-format", "json"])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", target)
        // The workspace's own version would come on top of the feature's.
        .env("CUDARC_CUDA_VERSION", "12090")
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.context("cargo built no tests")
}

/// Where Cargo keeps the published sources.
fn published() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["fetch", "--quiet", "--locked"]))?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = std::fs::read_dir(home.context("no CARGO_HOME")?.join("registry/src"))?;
    let mut sources = registries.flatten().map(|registry| registry.path().join(CRATE));
    let Some(found) = sources.find(|source| source.exists()) else {
        bail!("{CRATE} is not among Cargo's sources");
    };
    Ok(found)
}

/// The folder of NVIDIA's packages.
fn packages() -> Result<PathBuf> {
    let environment = shell::tools().join("nvrtc");
    if !environment.join("bin/pip").exists() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("the compiler comes as Python packages: Python 3 with venv is needed")?;
    }
    shell::run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PACKAGES),
    )?;
    let pythons = std::fs::read_dir(environment.join("lib"))?;
    let mut found = pythons.flatten().map(|python| python.path().join("site-packages/nvidia"));
    found.find(|folder| folder.exists()).context("the packages are not where they should be")
}
