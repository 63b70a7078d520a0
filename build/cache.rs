//! What a kernel was compiled from, so that only what changed is compiled again.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// A text that changes with the compiler, its arguments and every file that the depfile names;
/// `None` if one of them cannot be read.
pub fn stamp(compiler: &str, arguments: &[String], depfile: &Path) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    (compiler, arguments).hash(&mut hasher);
    for path in dependencies(&fs::read_to_string(depfile).ok()?) {
        fs::read(&path).ok()?.hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

/// The files of a depfile as nvcc writes it: the target, a colon, and a file on each line.
pub fn dependencies(depfile: &str) -> Vec<PathBuf> {
    let (_, files) = depfile.split_once(" : ").unwrap_or_default();
    let names = files.lines().map(|line| line.trim_end_matches('\\').trim().replace("\\ ", " "));
    names.filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}
