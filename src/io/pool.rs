//! The broker's memory: one region, cut into chunks that all cores share.
//!
//! Everything that payload passes through is a piece of a chunk, so the bound
//! given at start is the bound. A piece may be dropped on any thread; its chunk
//! is free when the last piece of it is.

mod region;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use io_uring::Submitter;

use crate::buffer::{Buffer, BufferPool};
use crate::limits::{BLOCK_LEN, CHUNK_LEN};
use region::Region;

/// Longest piece of memory that the kernel registers as one buffer.
const REGISTERED_LEN: usize = 1 << 30;

/// Registered buffers are numbered by 16 bits, and the kernel takes 16,384.
const MAX_CHUNKS: usize = 16_384 * (REGISTERED_LEN / CHUNK_LEN);

const _: () = assert!(REGISTERED_LEN.is_multiple_of(CHUNK_LEN));

/// Why there is no pool.
#[derive(thiserror::Error, Debug)]
pub enum PoolError {
    /// Too little or too much.
    #[error("memory must be between {min} and {max} bytes, not {bytes}")]
    Size {
        /// As asked for.
        bytes: usize,
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
    },
    /// The kernel has no such memory.
    #[error("cannot map {bytes} bytes of memory: {source}")]
    Map {
        /// As asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

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

fn show_limit(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { format!("{limit} bytes") }
}

struct Shared {
    region: Region,
    /// Chunks that nobody holds.
    free: ArrayQueue<u32>,
    /// Pieces that are alive, for each chunk.
    pieces: Box<[AtomicU32]>,
}

/// A handle on the broker's memory. Clones share it.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Maps `bytes` of memory, rounded down to whole chunks; the kernel finds
    /// the pages when they are first used, or registered.
    pub fn new(bytes: usize) -> Result<Pool, PoolError> {
        let chunks = bytes / CHUNK_LEN;
        if chunks == 0 || chunks > MAX_CHUNKS {
            return Err(PoolError::Size { bytes, min: CHUNK_LEN, max: MAX_CHUNKS * CHUNK_LEN });
        }
        let region =
            Region::map(chunks * CHUNK_LEN, CHUNK_LEN).map_err(|source| PoolError::Map { bytes, source })?;
        let free = ArrayQueue::new(chunks);
        for chunk in 0..chunks as u32 {
            free.push(chunk).expect("the queue has a place for each chunk");
        }
        let pieces = (0..chunks).map(|_| AtomicU32::new(0)).collect();
        Ok(Pool { shared: Arc::new(Shared { region, free, pieces }) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.shared.region.len()
    }

    /// Never: a pool has at least one chunk.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Chunks in all.
    pub fn chunks(&self) -> usize {
        self.shared.pieces.len()
    }

    /// Finds all pages now, which registering would do otherwise.
    pub fn prefault(&self) -> io::Result<()> {
        self.shared.region.prefault()
    }

    /// In which of the buffers that [`Pool::register`] registers these bytes
    /// lie; `None` if they are other memory.
    #[inline]
    pub fn fixed_index(&self, bytes: &[u8]) -> Option<u16> {
        let start = (bytes.as_ptr() as usize).checked_sub(self.shared.region.base().as_ptr() as usize)?;
        let end = start.checked_add(bytes.len())?;
        if bytes.is_empty() || end > self.shared.region.len() {
            return None;
        }
        let index = start / REGISTERED_LEN;
        // In range: MAX_CHUNKS bounds it to 16,384.
        ((end - 1) / REGISTERED_LEN == index).then_some(index as u16)
    }

    /// Registers the region with a ring, in buffers of 1 GiB at most. The ring
    /// must keep a handle on the pool.
    pub(in crate::io) fn register(&self, submitter: &Submitter<'_>) -> Result<(), RegistrationError> {
        let (base, bytes) = (self.shared.region.base().as_ptr(), self.len());
        let buffers: Vec<libc::iovec> = (0..bytes)
            .step_by(REGISTERED_LEN)
            .map(|at| libc::iovec {
                iov_base: base.wrapping_add(at).cast(),
                iov_len: REGISTERED_LEN.min(bytes - at),
            })
            .collect();
        // SAFETY: the buffers lie in the region, which stays mapped as long as
        // the ring, which keeps a handle on it.
        unsafe { submitter.register_buffers(&buffers) }.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM) => {
                RegistrationError::Memlock { bytes, limit: memlock_limit(), source }
            }
            _ => RegistrationError::Other { bytes, source },
        })
    }
}

fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the one struct that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    limit.rlim_cur
}

impl BufferPool for Pool {
    type Buffer = PoolBuffer;

    #[inline]
    fn take(&mut self) -> Option<PoolBuffer> {
        let chunk = self.shared.free.pop()?;
        let previous = self.shared.pieces[chunk as usize].swap(1, Ordering::Relaxed);
        assert_eq!(previous, 0, "a free chunk has no pieces");
        let start = self.shared.region.at(chunk as usize * CHUNK_LEN);
        Some(PoolBuffer { shared: self.shared.clone(), start, len: CHUNK_LEN, chunk })
    }

    #[inline]
    fn available(&self) -> usize {
        self.shared.free.len()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("chunks", &self.chunks()).field("available", &self.available()).finish()
    }
}

/// A piece of a chunk, which nobody else has: see [`Buffer`].
pub struct PoolBuffer {
    shared: Arc<Shared>,
    start: NonNull<u8>,
    len: usize,
    chunk: u32,
}

// SAFETY: a piece is the only way to its bytes (`take` gives out whole chunks
// once, `split_off` divides without overlap), so where it is makes no
// difference; what it shares is atomic.
unsafe impl Send for PoolBuffer {}
// SAFETY: a shared piece can only be read.
unsafe impl Sync for PoolBuffer {}

impl PoolBuffer {
    /// Makes the piece read only and shared; its chunk is free when the last
    /// clone is gone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Buffer for PoolBuffer {
    fn split_off(&mut self, at: usize) -> PoolBuffer {
        assert!(at <= self.len && at.is_multiple_of(BLOCK_LEN), "cut at {at} of {} bytes", self.len);
        // Relaxed: this piece is alive, so the count cannot reach zero here.
        self.shared.pieces[self.chunk as usize].fetch_add(1, Ordering::Relaxed);
        let rest = PoolBuffer {
            shared: self.shared.clone(),
            // SAFETY: at <= len, so the result is within the piece, or its end.
            start: unsafe { self.start.add(at) },
            len: self.len - at,
            chunk: self.chunk,
        };
        self.len = at;
        rest
    }
}

impl AsRef<[u8]> for PoolBuffer {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: start..start+len lies in the region, which `shared` keeps;
        // its bytes were initialised when it was mapped. Nobody else writes to
        // them while this piece is borrowed: it is the only way to them, and a
        // ring that lets the kernel write owns the piece meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for PoolBuffer {
    #[inline]
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `as_ref`, and `&mut self` keeps other borrows away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl DerefMut for PoolBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut()
    }
}

impl std::fmt::Debug for PoolBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolBuffer").field("chunk", &self.chunk).field("len", &self.len).finish()
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        // Release: what this piece's holder did with it comes before the count;
        // Acquire: the last one sees what all others did before it lets the
        // chunk go to somebody new.
        let before = self.shared.pieces[self.chunk as usize].fetch_sub(1, Ordering::AcqRel);
        if before == 1 {
            let freed = self.shared.free.push(self.chunk);
            assert!(freed.is_ok(), "a chunk was freed twice");
        }
    }
}
