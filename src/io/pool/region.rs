//! The memory under a pool: mapped once, unmapped once.

use std::io;
use std::ptr::NonNull;

/// Bytes of the smallest page of any machine that Linux runs on.
#[cfg(not(miri))]
const SMALLEST_PAGE: usize = 4096;

/// Initialised memory that this value alone owns.
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
    #[cfg(miri)]
    align: usize,
}

// SAFETY: plain memory, not tied to the thread that mapped it.
unsafe impl Send for Region {}
// SAFETY: this type gives out addresses, no access.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of byte `at`.
    #[inline]
    pub(super) fn at(&self, at: usize) -> NonNull<u8> {
        assert!(at < self.len, "outside the region");
        // SAFETY: at < len.
        unsafe { self.base.add(at) }
    }
}

#[cfg(not(miri))]
impl Region {
    /// Maps `len` zeroed bytes at a multiple of `align`, a power of two of at
    /// least one page, and wishes for huge pages: a write that walks 4 KiB
    /// pages costs the device's driver an entry for each.
    pub(super) fn map(len: usize, align: usize) -> io::Result<Region> {
        let room = len.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a fresh anonymous private mapping touches no existing memory.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped: *mut u8 = mapped.cast();
        let before = mapped.align_offset(align);
        let base = mapped.wrapping_add(before);
        // SAFETY: the parts before and behind the aligned region, both within
        // the mapping made above and multiples of a page; nothing uses them.
        // The advice changes no contents; its failure changes nothing.
        unsafe {
            if before > 0 {
                libc::munmap(mapped.cast(), before);
            }
            if align > before {
                libc::munmap(base.wrapping_add(len).cast(), align - before);
            }
            libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE);
            libc::madvise(base.cast(), len, libc::MADV_DONTFORK);
        }
        let base = NonNull::new(base).expect("mmap never maps page zero");
        Ok(Region { base, len })
    }

    /// Has the kernel find the pages of `len` bytes from `at`.
    ///
    /// By writing to each page. `MADV_POPULATE_WRITE` would hold the lock on the
    /// whole address space meanwhile, and a core that allocates wait for it: for
    /// seconds, where the thread that warms has the lowest priority and other
    /// programs keep the processors busy. A page fault locks this mapping only
    /// (since Linux 6.4).
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes meanwhile, and they are zero, or may
    /// become so.
    pub(super) unsafe fn prefault(&self, at: usize, len: usize) {
        assert!(at + len <= self.len, "outside the region");
        for page in (at..at + len).step_by(SMALLEST_PAGE) {
            // SAFETY: within the mapping, and the caller promises that nobody else
            // has these bytes.
            unsafe { self.at(page).as_ptr().write_volatile(0) };
        }
    }
}

#[cfg(not(miri))]
impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` left mapped, unmapped once; who uses the
        // memory keeps the region alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Miri knows no mmap with alignment tricks: ordinary memory stands in, so that
/// everything above this file runs under it as it is.
#[cfg(miri)]
impl Region {
    pub(super) fn map(len: usize, align: usize) -> io::Result<Region> {
        let layout = std::alloc::Layout::from_size_align(len, align).map_err(io::Error::other)?;
        // SAFETY: the layout is not empty: a pool has at least one chunk.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Region { base, len, align })
    }

    /// # Safety
    /// None is needed here; see the other one.
    pub(super) unsafe fn prefault(&self, _at: usize, _len: usize) {}
}

#[cfg(miri)]
impl Drop for Region {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(self.len, self.align).expect("checked by map");
        // SAFETY: allocated by `map` with this layout, freed once.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) };
    }
}
