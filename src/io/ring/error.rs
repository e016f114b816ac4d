//! Why there is no usable io_uring, told apart as far as the kernel lets one.

use std::io;

use crate::io::probe::{Limit, Resource, limit, seccomp_filtered};

/// Why io_uring cannot be used; the message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The administrator has switched it off.
    #[error(
        "io_uring is switched off: kernel.io_uring_disabled is {setting}. \
         Set it to 0 (sysctl -w kernel.io_uring_disabled=0, and in /etc/sysctl.d to keep it); \
         1 also serves when this user is in the group kernel.io_uring_group"
    )]
    Disabled {
        /// Value of `kernel.io_uring_disabled`: 1 (privileged only) or 2 (off).
        setting: u8,
    },
    /// A container's filter is the likely cause.
    #[error(
        "a seccomp filter forbids io_uring ({source}), as the default profiles of container \
         runtimes do. Allow io_uring_setup, io_uring_enter and io_uring_register in the \
         container's seccomp profile, or run it with --security-opt seccomp=unconfined"
    )]
    Seccomp {
        /// What io_uring_setup answered.
        source: io::Error,
    },
    /// Refused, and neither of the known reasons applies.
    #[error(
        "io_uring is forbidden ({source}), by neither kernel.io_uring_disabled nor seccomp: \
         look for a denial by a security module (SELinux, AppArmor) in the kernel's log"
    )]
    Forbidden {
        /// What io_uring_setup answered.
        source: io::Error,
    },
    /// The kernel was built without it.
    #[error("this kernel has no io_uring. Run Linux 6.1 or later, built with CONFIG_IO_URING")]
    NotInKernel,
    /// The set-up flags are not known.
    #[error(
        "this kernel's io_uring is too old: it does not know single-issuer rings with deferred \
         task work. Run Linux 6.1 or later"
    )]
    TooOld,
    /// Memory for the ring or for its buffers could not be pinned.
    #[error(
        "io_uring may not pin enough memory: RLIMIT_MEMLOCK is {limit} bytes. Raise it above \
         what serve gets as --memory (ulimit -l, LimitMEMLOCK= in a systemd unit, --ulimit \
         memlock=-1 for a container), or grant CAP_IPC_LOCK"
    )]
    LockedMemory {
        /// The limit in force.
        limit: Limit,
    },
    /// Something else went wrong while trying.
    #[error("io_uring could not be tried out: {step} failed: {source}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

impl RingError {
    /// Explains why no ring could be made.
    pub(in crate::io) fn from_setup(source: io::Error) -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let setting = disabled.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        explain(source, setting, seccomp_filtered())
    }

    /// Explains why memory could not be registered, which fails for want of
    /// locked memory before all else.
    pub(in crate::io) fn from_registering(step: &'static str, source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::ENOMEM) {
            return RingError::LockedMemory { limit: limit(Resource::LockedMemory) };
        }
        RingError::Failed { step, source }
    }
}

fn explain(source: io::Error, setting: u8, filtered: bool) -> RingError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if setting != 0 => RingError::Disabled { setting },
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) if filtered => RingError::Seccomp { source },
        Some(libc::EPERM | libc::EACCES) => RingError::Forbidden { source },
        Some(libc::ENOSYS) => RingError::NotInKernel,
        Some(libc::EINVAL) => RingError::TooOld,
        _ => RingError::from_registering("making a ring", source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errno: i32, setting: u8, filtered: bool) -> String {
        explain(io::Error::from_raw_os_error(errno), setting, filtered).to_string()
    }

    #[test]
    fn each_reason_gets_its_own_remedy() {
        for (errno, setting, filtered, remedy) in [
            (libc::EPERM, 2, false, "kernel.io_uring_disabled=0"),
            (libc::EPERM, 1, true, "kernel.io_uring_group"),
            (libc::EPERM, 0, true, "seccomp profile"),
            (libc::ENOSYS, 0, true, "seccomp profile"),
            (libc::EPERM, 0, false, "security module"),
            (libc::ENOSYS, 0, false, "CONFIG_IO_URING"),
            (libc::EINVAL, 0, false, "Linux 6.1 or later"),
            (libc::ENOMEM, 0, false, "RLIMIT_MEMLOCK"),
            (libc::EMFILE, 0, false, "Too many open files"),
        ] {
            let text = said(errno, setting, filtered);
            assert!(text.contains(remedy), "{errno} {setting} {filtered}: {text}");
        }
    }
}
