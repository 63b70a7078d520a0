//! Python packages, each set in a virtual environment of its own below `.tools`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Has pip install what its arguments name into `.tools/<name>`, unless the stamp says that this was
/// done; the environment's folder. `what` it is stands in messages.
pub fn environment(name: &str, what: &str, stamp: &str, arguments: &[&str]) -> Result<PathBuf> {
    let folder = shell::tools().join(name);
    let (pip, complete) = (folder.join("bin/pip"), folder.join("complete"));
    // Its programs name their interpreter's place: an environment that was moved does not work.
    let works = Command::new(&pip).arg("--version").output().is_ok_and(|it| it.status.success());
    if works && fs::read_to_string(&complete).is_ok_and(|found| found == stamp) {
        return Ok(folder);
    }
    println!("installing {what} into .tools/{name}");
    if !works {
        shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            .with_context(|| format!("{what}: Python packages, which need Python with venv"))?;
    }
    let install = ["install", "--disable-pip-version-check"];
    shell::run(Command::new(pip).args(install).args(arguments)).with_context(|| {
        format!("{what} could not be installed; pip has to reach the Python package index")
    })?;
    fs::write(complete, stamp)?;
    Ok(folder)
}

/// The same of a file that pins every package, dependencies included, given from the workspace's
/// root on; the environment's Python.
pub fn pinned(name: &str, what: &str, file: &str, pins: &str) -> Result<PathBuf> {
    let file = shell::root().join(file);
    let file = file.to_str().context("the workspace's path is not UTF-8")?;
    let arguments = ["--no-cache-dir", "--no-deps", "--requirement", file];
    Ok(environment(name, what, pins, &arguments)?.join("bin/python"))
}
