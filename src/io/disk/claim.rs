//! Who may still write to a segment.
//!
//! A process that is killed leaves direct writes behind: the kernel does not wait
//! for them, so the directory's lock is free while they are still on their way,
//! and one that lands late would overwrite what the next start has put in its
//! place. But a write in flight keeps the open file that it goes through. So each
//! open file is locked before the first write through it: that lock is free when
//! the last of them has ended, and not before.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a start waits for writes of the broker before. A device that hangs
/// for longer is given up by most drivers.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Locks an open file for as long as it is open, or a write through it is in
/// flight.
pub(super) fn claim(file: &impl AsFd) -> io::Result<()> {
    flock(file, libc::LOCK_EX | libc::LOCK_NB)
}

/// Unlocks an open file through which no write is in flight. (Closing it would
/// not do it while a process that was just forked has it too.)
pub(super) fn give_up(file: &impl AsFd) {
    // If it fails, the close that follows does it.
    let _ = flock(file, libc::LOCK_UN);
}

/// Returns when no write is in flight to the file that its process does not know
/// of. There can be no new ones: the caller has locked the directory.
pub(super) fn wait_for_writes(file: &File, path: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut waited = false;
    loop {
        match flock(file, libc::LOCK_SH | libc::LOCK_NB) {
            Ok(()) => break,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() >= deadline => {
                let text = format!("not ended after {} s: is the device hung?", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(_) => {}
        }
        if !waited {
            tracing::warn!(path = %path.display(), "waiting for writes that a broker has left in flight when it ended");
        }
        waited = true;
        std::thread::sleep(LOOK_EVERY);
    }
    give_up(file);
    Ok(())
}

fn flock(file: &impl AsFd, operation: i32) -> io::Result<()> {
    loop {
        // SAFETY: flock on a descriptor that is borrowed, so it is open.
        if unsafe { libc::flock(file.as_fd().as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
