//! A group of receive buffers, of which the kernel picks one for each receive.
//!
//! Knows nothing of connections: it shows the bytes of a buffer that the kernel
//! handed out, and takes it back.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// See the module.
pub(crate) struct RecvBuffers {
    /// The kernel's ring of free buffers.
    list: NonNull<BufRingEntry>,
    /// Its places, a power of two.
    entries: u16,
    /// Start of each buffer.
    buffers: Vec<NonNull<u8>>,
    buffer_len: usize,
    /// Free-running count of buffers given to the kernel.
    tail: u16,
    published: u16,
    free: u16,
}

impl RecvBuffers {
    /// Bytes of the list of free buffers for so many.
    pub(in crate::io) fn list_len(buffers: usize) -> usize {
        buffers.next_power_of_two() * size_of::<BufRingEntry>()
    }

    /// Registers these buffers of `buffer_len` bytes, at most 32768, as group
    /// `group` of a ring.
    ///
    /// # Safety
    ///
    /// `list` must be aligned to a page and point to [`list_len`](Self::list_len)
    /// bytes, and each of the buffers to `buffer_len` initialised bytes. All of
    /// that must stay valid, and be used by nobody else, until the value and the
    /// ring are gone, or the group is unregistered.
    pub(in crate::io) unsafe fn register(
        submitter: &Submitter<'_>,
        group: u16,
        list: NonNull<u8>,
        buffers: Vec<NonNull<u8>>,
        buffer_len: usize,
    ) -> io::Result<Self> {
        let count = u16::try_from(buffers.len()).expect("a group has at most 32768 buffers");
        let entries = count.next_power_of_two();
        // SAFETY: the caller keeps the list as long as the kernel can use it.
        unsafe { submitter.register_buf_ring_with_flags(list.as_ptr() as u64, entries, group, 0)? };
        let list = list.cast();
        let mut all = Self { list, entries, buffers, buffer_len, tail: 0, published: 0, free: 0 };
        (0..count).for_each(|id| all.give_back(id));
        all.publish();
        Ok(all)
    }

    /// The first `len` bytes of buffer `id`, between the completion that named
    /// it and [`give_back`](Self::give_back).
    #[inline]
    pub(in crate::io) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(len <= self.buffer_len, "the kernel reports what a buffer holds");
        // SAFETY: the range lies within buffer `id`, which is initialised. The
        // kernel has handed it out and writes to it again only when it was given
        // back, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(id), len) }
    }

    /// Where buffer `id` starts.
    #[inline]
    pub(in crate::io) fn address(&self, id: u16) -> *const u8 {
        self.buffers[usize::from(id)].as_ptr()
    }

    /// Notes that the kernel has handed out a buffer.
    #[inline]
    pub(in crate::io) fn taken(&mut self) {
        assert!(self.free > 0, "more buffers were handed out than there are");
        self.free -= 1;
    }

    /// Buffers that the kernel has to receive into.
    #[inline]
    pub(in crate::io) fn free(&self) -> usize {
        usize::from(self.free)
    }

    /// Returns a buffer; the kernel sees it after [`publish`](Self::publish).
    #[inline]
    pub(in crate::io) fn give_back(&mut self, id: u16) {
        let address = self.address(id) as u64;
        let place = usize::from(self.tail & (self.entries - 1));
        // SAFETY: place < entries, so the entry lies within the list, which is
        // aligned; the kernel reads it only once the tail covers it. The setters
        // leave `resv` alone, which in entry 0 is the tail.
        unsafe {
            let entry = &mut *self.list.as_ptr().add(place);
            entry.set_addr(address);
            entry.set_len(self.buffer_len as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.free += 1;
        assert!(usize::from(self.free) <= self.buffers.len(), "a buffer was given back twice");
    }

    /// Shows the kernel what was given back.
    #[inline]
    pub(in crate::io) fn publish(&mut self) {
        if self.published != self.tail {
            self.published = self.tail;
            // SAFETY: the tail lies in the first entry of the list, 2-byte
            // aligned, and nobody else writes it.
            unsafe {
                let tail = BufRingEntry::tail(self.list.as_ptr());
                (*tail.cast::<AtomicU16>()).store(self.tail, Ordering::Release);
            }
        }
    }
}
