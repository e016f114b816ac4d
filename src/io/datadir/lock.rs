//! Who uses a data directory: one broker, or any number that only look.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::error::{DataDirError, failed};

/// A lock on a data directory, held until dropped or until the process ends,
/// however it ends.
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
    exclusive: bool,
}

impl DirLock {
    /// For a broker. Writes the process id into the file.
    pub(super) fn exclusive(path: &Path) -> Result<DirLock, DataDirError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("open", path))?;
        lock(&file, libc::LOCK_EX, path)?;
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        match written {
            // Only the hint is lost who holds the lock. Reading must be
            // possible from a full disk too.
            Err(error) if is_full(&error) => {}
            other => other.map_err(failed("write", path))?,
        }
        Ok(DirLock { file, exclusive: true })
    }

    /// For looking only; `None` if there is no lock file, as in a copy.
    pub(super) fn shared(path: &Path) -> Result<Option<DirLock>, DataDirError> {
        match File::open(path) {
            Ok(file) => {
                lock(&file, libc::LOCK_SH, path)?;
                Ok(Some(DirLock { file, exclusive: false }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open", path)(error)),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // So that nobody takes this process for the holder later. If it fails,
        // the name of a process that ended is ignored anyway.
        if self.exclusive {
            let _ = self.file.set_len(0);
        }
        // Closing does not do it while a process that was just forked has not got
        // to its exec: until then it holds the file as well. If this fails, the
        // close that follows does it then.
        let _ = self.file.unlock();
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn lock(file: &File, kind: i32, path: &Path) -> Result<(), DataDirError> {
    loop {
        // SAFETY: flock on an open descriptor.
        if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => {
                return Err(DataDirError::Locked { path: path.to_owned(), holder: holder(path) });
            }
            _ => return Err(failed("lock", path)(error)),
        }
    }
}

/// The process that the lock file names, if it still runs.
fn holder(path: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    PathBuf::from(format!("/proc/{pid}")).exists().then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_when_it_was_given_up_whoever_else_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = DirLock::exclusive(&path).unwrap();
        // As a process has it between its fork and its exec.
        let forked = lock.file.try_clone().unwrap();
        assert!(matches!(DirLock::exclusive(&path), Err(DataDirError::Locked { .. })));
        drop(lock);
        drop(DirLock::exclusive(&path).unwrap());
        drop(forked);
    }
}
