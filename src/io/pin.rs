//! Which processors this process may use, and pinning a thread to one.

use std::io;

/// Most processors that Linux can be built for is 8192; one mask holds 1024,
/// which is what `sched_setaffinity` takes without dynamic masks.
const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;

/// A thread cannot be pinned there.
#[derive(thiserror::Error, Debug)]
pub enum PinError {
    /// Not one of the processors that this process may use.
    #[error("CPU {cpu} is not available to this process; available are {available:?}")]
    Unavailable {
        /// As asked for.
        cpu: usize,
        /// What there is.
        available: Vec<usize>,
    },
    /// The kernel refused.
    #[error("cannot pin a thread to CPU {cpu}: {source}")]
    Refused {
        /// As asked for.
        cpu: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not say which there are.
    #[error("cannot read the CPU affinity: {0}")]
    Affinity(#[source] io::Error),
}

/// The processors that the calling thread may use, ascending: containers and
/// `taskset` narrow them.
pub fn available_cpus() -> Result<Vec<usize>, PinError> {
    // SAFETY: a cpu_set_t is plain bits; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the one set that it is given the size of.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(PinError::Affinity(io::Error::last_os_error()));
    }
    // SAFETY: the numbers are below the set's size.
    Ok((0..MAX_CPUS).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Pins the calling thread, and what it starts later, to one processor.
pub fn pin_thread(cpu: usize) -> Result<(), PinError> {
    let available = available_cpus()?;
    if !available.contains(&cpu) {
        return Err(PinError::Unavailable { cpu, available });
    }
    // SAFETY: as above; and `cpu` is below the set's size, as it is available.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if pinned != 0 {
        return Err(PinError::Refused { cpu, source: io::Error::last_os_error() });
    }
    Ok(())
}

/// Gives the calling thread the lowest priority: for work that should only fill
/// the gaps that others leave.
pub(in crate::io) fn yield_to_all() {
    const LOWEST: i32 = 19;
    // SAFETY: no memory; on Linux 0 names the calling thread. Refused only
    // where priorities are not to be had, and then nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_processor_and_no_other_can_be_asked_for() {
        std::thread::spawn(|| {
            let all = available_cpus().unwrap();
            let last = *all.last().unwrap();
            pin_thread(last).unwrap();
            assert_eq!(available_cpus().unwrap(), [last]);
            if all.len() > 1 {
                let error = pin_thread(all[0]).unwrap_err();
                assert!(matches!(error, PinError::Unavailable { .. }), "{error}");
            }
            let error = pin_thread(MAX_CPUS + 7).unwrap_err();
            assert!(error.to_string().contains("available are"), "{error}");
        })
        .join()
        .unwrap();
    }
}
