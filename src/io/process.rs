//! What concerns the whole process: signals, and its limit of open files.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::io::probe::{Resource, limit};

/// SIGTERM and SIGINT, kept from their default effect and taken one by one.
#[derive(Debug)]
pub struct StopSignals {
    set: libc::sigset_t,
}

impl StopSignals {
    /// Holds the signals back for this thread and those that it starts later:
    /// to be called before any other thread is there.
    pub fn hold() -> io::Result<StopSignals> {
        // SAFETY: a sigset_t is plain bits, and sigemptyset makes it valid.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: both take the set that is there, and valid signal numbers.
        let failed = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if failed != 0 { Err(io::Error::from_raw_os_error(failed)) } else { Ok(StopSignals { set }) }
    }

    /// Waits for the next one and returns its number.
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: the set is valid, and the number is written to an int. It
        // fails only for an invalid set.
        unsafe { libc::sigwait(&self.set, &mut signal) };
        signal
    }
}

/// Raises the number of files and connections that this process may have open
/// as far as it may, and returns it.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads the struct that it is given.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Makes the kernel's table of this process's descriptors large enough for `count`
/// of them, or for as many as may be open.
///
/// It would grow by itself, to twice its size each time. But in a process with more
/// than one thread, whoever opens the file that no longer fits then waits until
/// every processor has passed a quiescent state of RCU (`expand_fdtable`), 10 to
/// 15 ms here: with a core's thread waits all that it serves. A producer beside the
/// first 10,000 connections had a p99 of 12 ms, and has 0.7 ms.
///
/// # Errors
/// What the kernel said: no memory, or no descriptor left.
pub fn reserve_descriptors(count: u64) -> io::Result<()> {
    let allowed = limit(Resource::OpenFiles).soft.unwrap_or(u64::MAX);
    let last = count.min(allowed).saturating_sub(1).try_into().unwrap_or(i32::MAX);
    // SAFETY: eventfd makes a new descriptor, or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let any = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: makes a new descriptor, the lowest free one from `last` on, or -1.
    let fd = unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_allowed_may_be_open() {
        let raised = raise_open_files().unwrap();
        assert!(raised >= 1024, "{raised}");
        assert_eq!(raise_open_files().unwrap(), raised);
    }

    /// How many descriptors fit into the kernel's table.
    fn table_size() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        size.trim().parse().unwrap()
    }

    #[test]
    fn the_table_of_descriptors_is_as_large_as_wanted_before_they_are_there() {
        let count = raise_open_files().unwrap().min(5_000);
        reserve_descriptors(count).unwrap();
        assert!(table_size() >= count, "{} of {count}", table_size());
    }
}
