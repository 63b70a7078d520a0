//! What a kernel was compiled from, so that only what changed is compiled again.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// Whether no file that the depfile names was modified after this moment, as far as can be told.
pub fn unchanged(depfile: &Path, since: SystemTime) -> bool {
    let files = fs::read_to_string(depfile).map(|text| dependencies(&text));
    files.is_ok_and(|files| files.iter().all(|file| modified(file).is_some_and(|at| at <= since)))
}

/// When a file was modified.
pub fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// The files of a depfile as nvcc writes it: the target, a colon, and a file on each line.
pub fn dependencies(depfile: &str) -> Vec<PathBuf> {
    let (_, files) = depfile.split_once(" : ").unwrap_or_default();
    let names = files.lines().map(|line| line.trim_end_matches('\\').trim().replace("\\ ", " "));
    names.filter(|name| !name.is_empty()).map(PathBuf::from).collect()
}
