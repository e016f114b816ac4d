//! What concerns the whole process: signals, and its limit of open files.

use std::io;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_allowed_may_be_open() {
        let raised = raise_open_files().unwrap();
        assert!(raised >= 1024, "{raised}");
        assert_eq!(raise_open_files().unwrap(), raised);
    }
}
