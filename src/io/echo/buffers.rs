//! Memory for a bare ring: a mapping, and a group of provided buffers on it.
//!
//! Knows nothing of connections: it hands out bytes by buffer id and takes ids
//! back.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// A huge page, in bytes.
const HUGE: usize = 2 << 20;

/// Anonymous memory of its own, page-aligned, zeroed, and unmapped on drop.
pub(crate) struct Mapping {
    /// What was mapped.
    mapped: NonNull<u8>,
    mapped_len: usize,
    /// What is used of it.
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that this value alone owns; nothing about
// it is tied to the thread that made it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes. From a quarter of a huge page on they lie on huge
    /// pages if the kernel has any: a direct write or a walk over many buffers
    /// otherwise costs something for each 4 KiB.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        assert!(len > 0, "an empty mapping has no address");
        let huge = len >= HUGE / 4;
        let mapped_len = if huge { len.next_multiple_of(HUGE) + HUGE } else { len };
        // SAFETY: a fresh anonymous private mapping touches no existing memory.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never maps page zero");
        let mut base = mapped;
        if huge {
            // SAFETY: the next multiple of a huge page is less than one away,
            // and the mapping is longer than that by `len` and more.
            base = unsafe { mapped.add(mapped.align_offset(HUGE)) };
            // SAFETY: the advised range ends inside the mapping, as that is one
            // huge page longer; advice changes no contents, and its failure
            // changes nothing at all.
            unsafe { libc::madvise(base.as_ptr().cast(), len.next_multiple_of(HUGE), libc::MADV_HUGEPAGE) };
        }
        Ok(Self { mapped, mapped_len, base, len })
    }

    /// The whole of it, as the kernel's registrations want it.
    pub(crate) fn as_iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.base.as_ptr().cast(), iov_len: self.len }
    }

    /// Address of byte `at`, which must lie inside the mapping.
    pub(crate) fn at(&self, at: usize) -> *mut u8 {
        assert!(at < self.len, "address outside the mapping");
        // SAFETY: at < len, so the result stays inside the one allocation.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// The bytes, while the kernel works on none of them.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: base..base+len is mapped readable and writable and zeroed, and
        // &mut self keeps every other Rust reference away meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, unmapped once.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

/// A group of equally long receive buffers that the kernel picks from.
pub(crate) struct RecvBuffers {
    ring: Mapping,
    buffers: Mapping,
    entries: u16,
    buffer_len: usize,
    tail: u16,
    free: u16,
}

impl RecvBuffers {
    /// Registers `entries` (a power of two, at most 32768) buffers of
    /// `buffer_len` bytes as buffer group `group`; `flags` are `IOU_PBUF_RING_*`.
    ///
    /// # Safety
    ///
    /// The value may be dropped only when no receive from the group is under
    /// way and none will be started.
    pub(crate) unsafe fn register(
        submitter: &Submitter<'_>,
        group: u16,
        entries: u16,
        buffer_len: usize,
        flags: u16,
    ) -> io::Result<Self> {
        assert!(entries.is_power_of_two(), "buffer rings are sized in powers of two");
        let ring = Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?;
        let buffers = Mapping::new(usize::from(entries) * buffer_len)?;
        // SAFETY: the ring memory is page-aligned and holds `entries` entries;
        // the caller keeps it mapped while the kernel can use it.
        unsafe { submitter.register_buf_ring_with_flags(ring.at(0) as u64, entries, group, flags)? };
        let mut all = Self { ring, buffers, entries, buffer_len, tail: 0, free: 0 };
        for id in 0..entries {
            all.give_back(id);
        }
        all.publish();
        Ok(all)
    }

    /// The first `len` bytes of buffer `id`, as the kernel left them.
    ///
    /// Meaningful between the completion that named the buffer and
    /// [`RecvBuffers::give_back`].
    pub(crate) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(len <= self.buffer_len, "the kernel reported more than a buffer holds");
        // SAFETY: the range lies inside buffer `id` (asserted here and in
        // `address`) and is initialised memory; the kernel does not write to a
        // buffer between handing it out and getting it back.
        unsafe { std::slice::from_raw_parts(self.address(id), len) }
    }

    /// Where buffer `id` starts.
    pub(crate) fn address(&self, id: u16) -> *const u8 {
        assert!(id < self.entries, "no such buffer");
        self.buffers.at(usize::from(id) * self.buffer_len)
    }

    /// Notes that the kernel has handed out a buffer.
    pub(crate) fn taken(&mut self) {
        self.free = self.free.checked_sub(1).expect("more buffers were handed out than exist");
    }

    /// True while the kernel has at least one buffer to receive into.
    pub(crate) fn has_free(&self) -> bool {
        self.free > 0
    }

    /// Returns buffer `id`; the kernel sees it after [`RecvBuffers::publish`].
    pub(crate) fn give_back(&mut self, id: u16) {
        let address = self.address(id) as u64;
        let slot = usize::from(self.tail & (self.entries - 1));
        let entry = self.ring.at(slot * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        // SAFETY: slot < entries, so the entry lies in the ring's mapping and is
        // aligned; the kernel reads it only once the tail covers it. The three
        // setters leave `resv` alone, which is the tail in entry 0.
        unsafe {
            (*entry).set_addr(address);
            (*entry).set_len(self.buffer_len as u32);
            (*entry).set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.free += 1;
        assert!(self.free <= self.entries, "a buffer was given back twice");
    }

    /// Makes every returned buffer visible to the kernel.
    pub(crate) fn publish(&mut self) {
        // SAFETY: the ring's first entry is mapped; its `resv` field is the tail
        // that the kernel reads, 2-byte aligned, written by nobody else.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.at(0).cast());
            (*tail.cast::<AtomicU16>()).store(self.tail, Ordering::Release);
        }
    }
}
