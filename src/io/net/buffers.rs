//! The group of buffers that all multishot receives of a core share.
//!
//! Knows nothing of connections: it shows the bytes of a buffer that the kernel
//! handed out, and takes it back.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::io::pool::PoolBuffer;
use crate::io::ring::Ring;
use crate::limits::CHUNK_LEN;

/// Number of the group on its ring.
pub const GROUP: u16 = 0;

/// Bytes of one buffer: a burst of 64 requests of 1 KiB in one receive.
/// Shorter ones cost a receive more for large messages.
pub const BUFFER_LEN: usize = 64 << 10;

const PER_CHUNK: usize = CHUNK_LEN / BUFFER_LEN;

/// The kernel's ring of free buffers takes the place of the first buffer.
const FIRST: u16 = 1;

/// See the module.
pub struct RecvBuffers {
    /// Start of each chunk. The chunks are in the ring's keeping.
    chunks: Vec<NonNull<u8>>,
    /// Places in the kernel's ring of free buffers, a power of two.
    entries: u16,
    /// Free-running count of buffers given to the kernel.
    tail: u16,
    published: u16,
    free: u16,
}

impl RecvBuffers {
    /// Makes buffers of `chunks` and registers them with `ring`, which keeps the
    /// memory as long as the kernel may write to it.
    pub fn register(ring: &mut Ring, mut chunks: Vec<PoolBuffer>) -> io::Result<RecvBuffers> {
        assert!(!chunks.is_empty(), "receive buffers need a chunk of memory");
        let count = chunks.len() * PER_CHUNK;
        let entries = count.next_power_of_two();
        assert!(entries * size_of::<BufRingEntry>() <= BUFFER_LEN, "the free list fits one buffer");
        // Of the whole chunk, not of its first byte: all of it is reached from there.
        let starts = chunks.iter_mut().map(|chunk| NonNull::from(&mut chunk[..]).cast()).collect();
        ring.keep(Box::new(chunks));
        let mut buffers =
            RecvBuffers { chunks: starts, entries: entries as u16, tail: 0, published: 0, free: 0 };
        let free_list = buffers.address(0).as_ptr() as u64;
        // SAFETY: the free list is page-aligned, lies in a chunk that the ring
        // keeps until it is gone, and nothing else uses that part of it.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(free_list, entries as u16, GROUP, 0)?;
        }
        (FIRST..count as u16).for_each(|id| buffers.give_back(id));
        buffers.publish();
        Ok(buffers)
    }

    /// The first `len` bytes of buffer `id`, between the completion that named
    /// it and [`give_back`](Self::give_back).
    #[inline]
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id >= FIRST && len <= BUFFER_LEN, "the kernel reports what a buffer holds");
        // SAFETY: the range lies within buffer `id` (`address` checks the id),
        // in memory that was initialised when it was mapped. The kernel has
        // handed the buffer out and writes to it again only when it was given
        // back, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(id).as_ptr(), len) }
    }

    /// Notes that the kernel has handed out a buffer.
    #[inline]
    pub fn taken(&mut self) {
        assert!(self.free > 0, "more buffers were handed out than there are");
        self.free -= 1;
    }

    /// Whether the kernel has a buffer to receive into.
    pub fn has_free(&self) -> bool {
        self.free > 0
    }

    /// Returns a buffer; the kernel sees it after [`publish`](Self::publish).
    #[inline]
    pub fn give_back(&mut self, id: u16) {
        let address = self.address(id).as_ptr() as u64;
        let place = usize::from(self.tail & (self.entries - 1));
        let list = self.address(0).cast::<BufRingEntry>();
        // SAFETY: place < entries, so the entry lies within the free list, which
        // is aligned; the kernel reads it only once the tail covers it. The
        // setters leave `resv` alone, which in entry 0 is the tail.
        unsafe {
            let entry = &mut *list.as_ptr().add(place);
            entry.set_addr(address);
            entry.set_len(BUFFER_LEN as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.free += 1;
        assert!(self.free < self.entries, "a buffer was given back twice");
    }

    /// Shows the kernel what was given back.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.tail {
            self.published = self.tail;
            // SAFETY: the tail lies in the first entry of the free list, 2-byte
            // aligned, and nobody else writes it.
            unsafe {
                let tail = BufRingEntry::tail(self.address(0).as_ptr().cast());
                (*tail.cast::<AtomicU16>()).store(self.tail, Ordering::Release);
            }
        }
    }

    #[inline]
    fn address(&self, id: u16) -> NonNull<u8> {
        let id = usize::from(id);
        // SAFETY: the offset is below CHUNK_LEN, so the result lies within the
        // chunk, which the ring keeps.
        unsafe { self.chunks[id / PER_CHUNK].add(id % PER_CHUNK * BUFFER_LEN) }
    }
}
