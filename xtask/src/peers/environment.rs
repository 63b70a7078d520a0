//! The peers' throw-away Python environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::python;

/// Every package with its version, the peers' dependencies included.
const PINNED: &str = include_str!("../../peers/requirements.txt");

/// Installs what is pinned into `.tools/peers`, if it is not there yet; its Python.
pub fn install() -> Result<PathBuf> {
    let what = "the peers (Python 3.11 or later; about 6 GB, of which 3 GB are fetched)";
    python::pinned("peers", what, "xtask/peers/requirements.txt", PINNED)
}

/// MKL's one library for all its interfaces, beside this environment's Python.
pub fn mkl(python: &Path) -> Result<PathBuf> {
    let folder = python.parent().and_then(Path::parent).context("an environment")?.join("lib");
    let files = std::fs::read_dir(&folder)?.filter_map(|file| Some(file.ok()?.path()));
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libmkl_rt.so"))
    };
    let mut found = files.filter(named);
    found.next().with_context(|| format!("{}: no libmkl_rt.so", folder.display()))
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
