//! Making the pool's memory known to a ring, slice by slice as it gets warm.

use std::io;

use io_uring::Submitter;

use super::{Pool, SLICE_LEN};
use crate::io::probe::effective_capability;

/// Lifts the limit on locked memory.
const CAP_IPC_LOCK: u32 = 14;

/// Why the pool's memory could not be registered with a ring.
#[derive(thiserror::Error, Debug)]
pub enum RegistrationError {
    /// More than this process may lock.
    #[error(
        "the kernel refuses to lock {bytes} bytes of memory for io_uring ({source}); the limit is {}, \
         and each core counts once: raise it (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the \
         service's unit), give less with --memory, or run with --unregistered-memory",
        show_limit(*.limit)
    )]
    Memlock {
        /// Length of the pool.
        bytes: usize,
        /// `RLIMIT_MEMLOCK` in bytes; `u64::MAX` is none.
        limit: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else.
    #[error("cannot register {bytes} bytes of memory with io_uring: {source}")]
    Other {
        /// Length of the pool.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RegistrationError {
    fn of(bytes: usize, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM) => {
                RegistrationError::Memlock { bytes, limit: memlock_limit(), source }
            }
            _ => RegistrationError::Other { bytes, source },
        }
    }
}

fn show_limit(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { format!("{limit} bytes") }
}

/// How much of a pool one ring knows.
#[derive(Debug)]
pub(in crate::io) struct Registered {
    pool: Pool,
    /// Slices before this one are registered.
    slices: usize,
    all: usize,
    refused: bool,
}

impl Registered {
    /// Registers what is warm. The ring must keep the value as long as it
    /// lives.
    pub(in crate::io) fn new(pool: &Pool, submitter: &Submitter<'_>) -> Result<Self, RegistrationError> {
        let (all, bytes) = (pool.len().div_ceil(SLICE_LEN), pool.len());
        if let Some(limit) = too_little_to_lock(bytes) {
            // Known now, though it would be met only when all is warm.
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(RegistrationError::Memlock { bytes, limit, source });
        }
        let failed = |source| RegistrationError::of(bytes, source);
        // In range: a pool has at most 16,384 slices.
        submitter.register_buffers_sparse(all as u32).map_err(failed)?;
        let mut registered = Registered { pool: pool.clone(), slices: 0, all, refused: false };
        registered.register_warm(submitter).map_err(failed)?;
        Ok(registered)
    }

    /// In which registered buffer the bytes lie.
    #[inline]
    pub(in crate::io) fn index(&self, bytes: &[u8]) -> Option<u16> {
        self.pool.fixed_index(bytes).filter(|&index| usize::from(index) < self.slices)
    }

    /// Registers what has got warm since the last time. Where that is refused,
    /// the rest stays unregistered, which only costs speed.
    #[inline]
    pub(in crate::io) fn catch_up(&mut self, submitter: &Submitter<'_>) {
        if self.slices < self.all
            && !self.refused
            && let Err(error) = self.register_warm(submitter)
        {
            self.refused = true;
            let (slices, all) = (self.slices, self.all);
            tracing::warn!(%error, slices, all, "the kernel registers no more of the memory: writes get slower");
        }
    }

    fn register_warm(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let warm = self.pool.warm_slices();
        while self.slices < warm {
            let at = self.slices * SLICE_LEN;
            let buffer = libc::iovec {
                iov_base: self.pool.shared.region.at(at).as_ptr().cast(),
                iov_len: SLICE_LEN.min(self.pool.len() - at),
            };
            // SAFETY: the slice lies in the region, which stays mapped as long
            // as the ring, which keeps this value and with it the pool.
            unsafe { submitter.register_buffers_update(self.slices as u32, &[buffer], None)? };
            self.slices += 1;
        }
        Ok(())
    }
}

/// The limit in bytes, if this process may not lock so many.
pub fn too_little_to_lock(bytes: usize) -> Option<u64> {
    let limit = memlock_limit();
    (limit < bytes as u64 && !effective_capability(CAP_IPC_LOCK)).then_some(limit)
}

fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the one struct that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    limit.rlim_cur
}
