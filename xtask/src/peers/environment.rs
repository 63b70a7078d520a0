//! The peers' throw-away Python environment.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Every package with its version, the peers' dependencies included.
const PINNED: &str = include_str!("../../peers/requirements.txt");

/// Installs what is pinned into `.tools/peers`, if it is not there yet; its Python.
pub fn install() -> Result<PathBuf> {
    let environment = shell::tools().join("peers");
    let (python, complete) = (environment.join("bin/python"), environment.join("complete"));
    if fs::read_to_string(&complete).is_ok_and(|found| found == PINNED) {
        return Ok(python);
    }
    println!("installing the peers into .tools/peers: about 6 GB, of which 3 GB are fetched");
    if !environment.join("bin/pip").exists() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
            .context("the peers are Python packages: Python 3.11 or later with venv is needed")?;
    }
    shell::run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"])
            .arg("--requirement")
            .arg(shell::root().join("xtask/peers/requirements.txt")),
    )
    .context("the peers could not be installed; pip has to reach the Python package index")?;
    fs::write(complete, PINNED)?;
    Ok(python)
}

/// Versions by package.
pub struct Versions(Vec<(String, String)>);

impl Versions {
    pub fn pinned() -> Self {
        Self::parse(PINNED)
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let pairs = lines.filter_map(|line| line.split_once("=="));
        Self(pairs.map(|(name, version)| (name.to_owned(), version.to_owned())).collect())
    }

    /// Of a package, or nothing.
    pub fn of(&self, package: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == package);
        found.map(|(_, version)| &version[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::participants;

    #[test]
    fn pins_are_read() {
        let versions = Versions::parse("# head\ntorch==2.15.0\n\nopacus==1.6.0 # why\nloose>=1\n");
        assert_eq!(versions.of("torch"), Some("2.15.0"));
        assert_eq!(versions.of("opacus"), Some("1.6.0"));
        assert_eq!(versions.of("loose"), None);
    }

    #[test]
    fn every_peer_is_pinned() {
        let versions = Versions::pinned();
        for peer in participants::chosen(&[]).unwrap() {
            let Some(package) = peer.package else { continue };
            assert!(versions.of(package).is_some(), "{package}");
        }
    }
}
