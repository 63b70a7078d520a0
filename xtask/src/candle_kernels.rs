//! `cargo xtask candle-kernels`: CUDA code that nobody here wrote, for softcuda's tests.
//!
//! The sources come as the crate `candle-kernels` through cargo itself; nothing of them is kept in the
//! repository. PTX goes to the ignored `.tools/candle-kernels/ptx`, once per version and compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use crate::{kernels, shell};

const VERSION: &str = "0.11.1";
/// The lowest architecture that has all of its kernels.
const ARCHITECTURE: &str = "sm_90";

/// Products of quantised matrices come in ten formats, each up to a minute to compile. These have two of the three
/// layouts that there are; the third is q2_k's, which takes longest.
const FORMATS_IN_TESTS: [&str; 2] = ["q4_0", "q8_0"];

/// How much of the crate.
#[derive(Clone, Copy, PartialEq)]
pub enum Share {
    All,
    /// What `cargo xtask test` has the time for.
    Tests,
}

impl Share {
    fn has(self, module: &str) -> bool {
        let format = module.strip_prefix("mmq_gguf_mmq_instance_");
        self == Self::All || format.is_none_or(|format| FORMATS_IN_TESTS.contains(&format))
    }
}

/// Compiles what is not compiled yet.
pub fn compile(share: Share) -> Result<()> {
    let Some(nvcc) = kernels::compiler()? else { return Ok(()) };
    let folder = shell::tools().join("candle-kernels");
    let ptx = folder.join("ptx");
    std::fs::create_dir_all(&ptx)?;
    let sources = sources(&fetch(&folder)?)?;
    let missing: Vec<(PathBuf, PathBuf)> = (sources.into_iter())
        .filter(|(_, name)| share.has(name))
        .map(|(source, name)| (source, ptx.join(format!("{VERSION}-{name}.ptx"))))
        .filter(|(_, to)| !to.exists())
        .collect();
    let progress = ProgressBar::new(missing.len() as u64);
    let queue = Mutex::new(missing);
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().expect("no panics while held").pop();
            let Some((source, to)) = next else { return Ok(()) };
            module(&nvcc, &source, &to)?;
            progress.inc(1);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panics"))
    })
}

/// One source to PTX, whole or not at all.
fn module(nvcc: &Path, source: &Path, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    let output = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"])
        .arg(format!("-arch={ARCHITECTURE}"))
        .arg("-o")
        .arg(&part)
        .arg(source)
        .output()?;
    if !output.status.success() {
        bail!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(std::fs::rename(part, to)?)
}

/// Downloads the crate; its `src` folder.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let wrapper = folder.join("wrapper");
    std::fs::create_dir_all(wrapper.join("src"))?;
    std::fs::write(wrapper.join("src/lib.rs"), "")?;
    let manifest = wrapper.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"wrapper\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
         [dependencies]\ncandle-kernels = \"={VERSION}\"\n"
    );
    std::fs::write(&manifest, text)?;
    let output = shell::cargo()
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(&manifest)
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let found = packages.iter().find(|package| package["name"] == "candle-kernels");
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    Ok(Path::new(manifest.context("candle-kernels is not there")?).with_file_name("src"))
}

/// Every `.cu` file below a folder, with its path from there as a name.
fn sources(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "cu") {
                let name = path
                    .with_extension("")
                    .strip_prefix(folder)?
                    .to_string_lossy()
                    .replace('/', "_");
                found.push((path, name));
            }
        }
    }
    found.sort();
    Ok(found)
}
