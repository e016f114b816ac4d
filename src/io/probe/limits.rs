//! Resource limits and capabilities of this process.

use std::fmt;

/// A limit that Ringbolt runs into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// `RLIMIT_NOFILE`: descriptors, so connections and segments.
    OpenFiles,
    /// `RLIMIT_MEMLOCK`: bytes that may be pinned, so registered buffers.
    LockedMemory,
}

/// A soft limit and the hard limit up to which the process may raise it;
/// `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// In force.
    pub soft: Option<u64>,
    /// The most that can be asked for without privilege.
    pub hard: Option<u64>,
}

impl Limit {
    /// True when at least `wanted` is or can be had without privilege.
    pub fn allows(&self, wanted: u64) -> bool {
        self.hard.is_none_or(|hard| hard >= wanted)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: Option<u64>| v.map_or("unlimited".to_owned(), |v| v.to_string());
        write!(f, "{} (hard {})", show(self.soft), show(self.hard))
    }
}

/// Reads a limit of this process.
pub fn limit(resource: Resource) -> Limit {
    let which = match resource {
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
    };
    let mut raw = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `raw` is a valid place for the one struct that the kernel writes.
    let answer = unsafe { libc::getrlimit(which, &mut raw) };
    assert_eq!(answer, 0, "getrlimit fails only for an unknown resource");
    let known = |v: u64| (v != libc::RLIM_INFINITY).then_some(v);
    Limit { soft: known(raw.rlim_cur), hard: known(raw.rlim_max) }
}

/// True when this process has the capability with this number (`CAP_IPC_LOCK`
/// is 14) in effect; false also where `/proc` is missing.
///
/// Root of a user namespace, as in a container without root, has all of them
/// there, and none over the machine, which is what counts here.
pub fn effective_capability(number: u32) -> bool {
    /// What the kernel calls the namespace that it starts with
    /// (`PROC_USER_INIT_INO`).
    const INITIAL: &str = "user:[4026531837]";
    if !std::fs::read_link("/proc/self/ns/user").is_ok_and(|namespace| namespace.as_os_str() == INITIAL) {
        return false;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status_field(&status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|set| set >> number & 1 == 1)
}

/// True when a seccomp filter is on this process.
pub(in crate::io) fn seccomp_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status_field(&status, "Seccomp") == Some("2")
}

fn status_field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_judged_by_what_the_process_may_raise_it_to() {
        let limit = Limit { soft: Some(1024), hard: Some(4096) };
        assert!(limit.allows(4096));
        assert!(!limit.allows(4097));
        assert!(Limit { soft: Some(1), hard: None }.allows(u64::MAX));
        assert_eq!(limit.to_string(), "1024 (hard 4096)");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "SeccompX:\t9\nSeccomp:\t2\nSeccomp_filters:\t1\nCapEff:\t0000000000004000\n";
        assert_eq!(status_field(status, "Seccomp"), Some("2"));
        assert_eq!(status_field(status, "CapEff"), Some("0000000000004000"));
        assert_eq!(status_field(status, "Threads"), None);
    }
}
