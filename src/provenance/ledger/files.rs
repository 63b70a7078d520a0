//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Ending of a name that a file has while it is being written.
const OPEN: &str = ".tmp";

/// Names the file in an error of the operating system.
pub(in crate::provenance) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// An [`Error::Ledger`].
pub(in crate::provenance) fn bad(path: &Path, problem: impl ToString) -> Error {
    Error::Ledger { path: path.to_owned(), problem: problem.to_string() }
}

/// Writes a file under a temporary name, flushes it to disk and renames it. The rename is
/// durable once the directory is synced, see [`sync_dir`].
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(OPEN);
    let open = PathBuf::from(name);
    let mut file = File::create(&open).map_err(io(&open))?;
    write(&mut file)?;
    file.sync_all().map_err(io(&open))?;
    fs::rename(&open, path).map_err(io(path))
}

/// [`write_whole`] for bytes at hand.
pub(in crate::provenance) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes).map_err(io(path)))
}

/// Makes renames in a directory durable. Elsewhere than on Unix a directory cannot be opened,
/// and the file system orders them itself.
pub(in crate::provenance) fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))?;
    }
    Ok(())
}

/// Size and BLAKE3 of a file.
pub(in crate::provenance) fn digest(path: &Path) -> Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ())).map_err(io(path))?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

/// Names in a directory, sorted; empty where there is no directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io(dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io(dir))?.file_name();
        // Names that are no UTF-8 are none of ours.
        names.extend(name.into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a name is that of a file still being written.
pub(super) fn is_open(name: &str) -> bool {
    name.ends_with(OPEN)
}

/// Removes a file or directory, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}
