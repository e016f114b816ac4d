//! The broker's memory: one region, cut into chunks that all cores share.
//!
//! Everything that payload passes through is a piece of a chunk, so the bound
//! given at start is the bound. A piece may be dropped on any thread; its chunk
//! is free when the last piece of it is.
//!
//! Touching memory for the first time is slow: on a virtual machine whose host
//! has to find it as well, 512 MiB took 1.3 s of processor time. So a broker
//! starts when the first chunks are warm, and a thread of the lowest priority
//! warms the others.

mod region;
mod registration;
#[cfg(test)]
mod tests;
mod warming;

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;

use crate::buffer::{Buffer, BufferPool};
use crate::limits::{BLOCK_LEN, CHUNK_LEN};
use region::Region;
pub(in crate::io) use registration::Registered;
pub use registration::{RegistrationError, too_little_to_lock};

/// Unit in which the pool is registered with a ring, in bytes: each as soon as
/// it is warm.
const SLICE_LEN: usize = 32 << 20;

/// The kernel takes 16,384 registered buffers.
const MAX_CHUNKS: usize = 16_384 * (SLICE_LEN / CHUNK_LEN);

/// Chunks that are warm before the pool can be used: enough for receiving and
/// for a recovery.
const FIRST_CHUNKS: usize = SLICE_LEN / CHUNK_LEN;

/// What a processor fetches at once, in bytes.
const CACHE_LINE_LEN: usize = 64;

const _: () = assert!(SLICE_LEN.is_multiple_of(CHUNK_LEN));

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
    /// The thread that warms the memory cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

struct Shared {
    region: Region,
    /// Chunks that nobody holds, warm or at least used before.
    free: ArrayQueue<u32>,
    /// This chunk and all after it were never touched, and nobody holds them.
    first_cold: AtomicUsize,
    /// Chunks before this one are warm.
    warm: AtomicUsize,
    /// Pieces that are alive, for each chunk.
    pieces: Box<[AtomicU32]>,
}

/// A handle on the broker's memory. Clones share it.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Maps `bytes` of memory, rounded down to whole chunks. The first 32 MiB
    /// are warm when this returns, the rest soon after; a chunk can be taken
    /// before it is.
    pub fn new(bytes: usize) -> Result<Pool, PoolError> {
        let chunks = bytes / CHUNK_LEN;
        if chunks == 0 || chunks > MAX_CHUNKS {
            return Err(PoolError::Size { bytes, min: CHUNK_LEN, max: MAX_CHUNKS * CHUNK_LEN });
        }
        let region =
            Region::map(chunks * CHUNK_LEN, CHUNK_LEN).map_err(|source| PoolError::Map { bytes, source })?;
        let shared = Arc::new(Shared {
            region,
            free: ArrayQueue::new(chunks),
            first_cold: AtomicUsize::new(0),
            warm: AtomicUsize::new(0),
            pieces: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
        });
        shared.warm_up_to(FIRST_CHUNKS);
        warming::start(&shared).map_err(PoolError::Thread)?;
        Ok(Pool { shared })
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

    /// Warms the memory now, where waiting for it is no matter.
    pub fn prefault(&self) {
        self.shared.warm_up_to(self.chunks());
    }

    /// In which slice of the pool these bytes lie, which is the number of the
    /// registered buffer once that slice is registered; `None` if they are
    /// other memory.
    #[inline]
    pub fn fixed_index(&self, bytes: &[u8]) -> Option<u16> {
        let start = (bytes.as_ptr() as usize).checked_sub(self.shared.region.base().as_ptr() as usize)?;
        let end = start.checked_add(bytes.len())?;
        if bytes.is_empty() || end > self.shared.region.len() {
            return None;
        }
        let index = start / SLICE_LEN;
        // In range: MAX_CHUNKS bounds it to 16,384.
        ((end - 1) / SLICE_LEN == index).then_some(index as u16)
    }
}

impl BufferPool for Pool {
    type Buffer = PoolBuffer;

    #[inline]
    fn take(&mut self) -> Option<PoolBuffer> {
        let chunk = self.shared.free.pop().or_else(|| self.shared.claim_cold())?;
        let previous = self.shared.pieces[chunk as usize].swap(1, Ordering::Relaxed);
        assert_eq!(previous, 0, "a free chunk has no pieces");
        let start = self.shared.region.at(chunk as usize * CHUNK_LEN);
        Some(PoolBuffer { shared: self.shared.clone(), start, len: CHUNK_LEN, chunk })
    }

    #[inline]
    fn available(&self) -> usize {
        self.shared.free.len() + self.shared.cold()
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

    #[inline]
    fn prefetch(&self, bytes: Range<usize>) {
        let end = bytes.end.min(self.len);
        for line in (bytes.start.min(end)..end).step_by(CACHE_LINE_LEN) {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: a hint, which has no effect that a program can see; line < len, so the
            // place is within the piece.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(self.start.as_ptr().add(line).cast());
            }
            #[cfg(any(not(target_arch = "x86_64"), miri))]
            let _ = line;
        }
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
