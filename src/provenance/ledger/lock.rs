//! One writer at a time.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::files::{bad, io};
use crate::{Error, Result};

/// In the ledger's directory.
pub const LOCK: &str = "ledger.lock";

/// Held while it lives; the system lets go of it whatever way the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the writer's lock.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let options = File::options().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(bad(&path, "another writer has the ledger open")),
            Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
        }
    }
}

impl Drop for Lock {
    /// Closing the file does not do: a process that is being started by another thread has the file open too,
    /// until it runs its program.
    fn drop(&mut self) {
        // The file is closed in any case.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_writer_though_a_starting_process_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        assert!(Lock::take(dir.path()).is_err());
        let inherited = lock.0.try_clone().unwrap();
        drop(lock);
        Lock::take(dir.path()).unwrap();
        drop(inherited);
    }
}
