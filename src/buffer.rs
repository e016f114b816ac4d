//! Aligned buffers, as the pure code sees them.
//!
//! The broker's memory is one region of chunks; `io::pool` owns it and this
//! module does not know it. A simulation brings buffers of its own.

use std::ops::Range;

use crate::limits::CHUNK_LEN;

/// A piece of memory that starts at a multiple of 4 KiB, owned by its holder.
/// Its contents are whatever the last user left there.
pub trait Buffer: AsRef<[u8]> + AsMut<[u8]> + Send + 'static {
    /// Cuts the buffer in two: `self` keeps `[0, at)`, the rest is returned.
    ///
    /// # Panics
    /// If `at` is not a multiple of 4 KiB or is beyond the end.
    fn split_off(&mut self, at: usize) -> Self;

    /// These bytes are soon written to: their memory may be brought near. Bytes that the
    /// buffer does not have are left out. By default nothing is done.
    fn prefetch(&self, _bytes: Range<usize>) {}
}

/// Where buffers come from.
pub trait BufferPool {
    /// The buffers of this pool.
    type Buffer: Buffer;

    /// A chunk of [`CHUNK_LEN`] bytes, or `None` while all are in use. It
    /// returns to the pool when every piece that was cut from it is dropped.
    fn take(&mut self) -> Option<Self::Buffer>;

    /// Chunks that can be taken now.
    fn available(&self) -> usize;
}

/// Cuts pieces from chunks, one chunk at a time.
#[derive(Debug)]
pub struct Carver<B> {
    rest: Option<B>,
}

impl<B> Default for Carver<B> {
    fn default() -> Self {
        Carver { rest: None }
    }
}

impl<B: Buffer> Carver<B> {
    /// A piece of `len` bytes, a multiple of 4 KiB up to [`CHUNK_LEN`]; `None`
    /// while the pool has no chunk left.
    pub fn carve<P: BufferPool<Buffer = B>>(&mut self, pool: &mut P, len: usize) -> Option<B> {
        assert!(len > 0 && len <= CHUNK_LEN && len.is_multiple_of(crate::limits::BLOCK_LEN));
        let mut piece = match self.rest.take() {
            Some(rest) if rest.as_ref().len() >= len => rest,
            _ => pool.take()?,
        };
        if piece.as_ref().len() > len {
            self.rest = Some(piece.split_off(len));
        }
        Some(piece)
    }
}
