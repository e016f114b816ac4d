//! Memory for a bare ring: a mapping, and a group of receive buffers on it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use io_uring::Submitter;

use crate::io::recv_buffers::RecvBuffers;

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

/// A group of equally long receive buffers, in memory of their own.
pub(crate) struct MappedBuffers {
    buffers: RecvBuffers,
    _memory: [Mapping; 2],
}

impl MappedBuffers {
    /// Registers `count` (at most 32768) buffers of `buffer_len` bytes as buffer
    /// group `group`.
    ///
    /// # Safety
    ///
    /// The value may be dropped only when no receive from the group is under
    /// way and none will be started.
    pub(crate) unsafe fn register(
        submitter: &Submitter<'_>,
        group: u16,
        count: u16,
        buffer_len: usize,
    ) -> io::Result<Self> {
        let count = usize::from(count);
        let memory = [Mapping::new(RecvBuffers::list_len(count))?, Mapping::new(count * buffer_len)?];
        let start = |mapping: &Mapping, at| NonNull::new(mapping.at(at)).expect("mmap never maps page zero");
        let list = start(&memory[0], 0);
        let buffers = (0..count).map(|id| start(&memory[1], id * buffer_len)).collect();
        // SAFETY: both mappings are page-aligned and zeroed, go only with the
        // value, and nobody else has them; the caller keeps it as long as the
        // kernel can write to them.
        let buffers = unsafe { RecvBuffers::register(submitter, group, list, buffers, buffer_len)? };
        Ok(Self { buffers, _memory: memory })
    }
}

impl Deref for MappedBuffers {
    type Target = RecvBuffers;

    fn deref(&self) -> &RecvBuffers {
        &self.buffers
    }
}

impl DerefMut for MappedBuffers {
    fn deref_mut(&mut self) -> &mut RecvBuffers {
        &mut self.buffers
    }
}
