//! Memory that belongs to an operation in flight.

use std::ffi::CString;
use std::fmt;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use crate::io::pool::PoolBuffer;

/// Memory of an operation, in the ring's keeping until the kernel is done with
/// it. None of these moves its bytes when the value itself is moved.
#[derive(Debug, Default)]
pub enum Held {
    /// None was given, or it is not yet free.
    #[default]
    Nothing,
    /// Shared bytes; read only.
    Bytes(Bytes),
    /// A piece of the pool.
    Buffer(PoolBuffer),
    /// Bytes of the sender's own.
    Vec(Vec<u8>),
    /// Several pieces that are sent as one.
    Parts(Box<SendParts>),
    /// Names of files.
    Paths(CString, Option<CString>),
}

impl Held {
    /// What is there to be read by the kernel; empty for parts and names.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Held::Bytes(bytes) => bytes,
            Held::Buffer(buffer) => buffer.as_ref(),
            Held::Vec(vec) => vec,
            Held::Nothing | Held::Parts(_) | Held::Paths(..) => &[],
        }
    }

    /// The buffer, if it is one.
    pub fn into_buffer(self) -> Option<PoolBuffer> {
        match self {
            Held::Buffer(buffer) => Some(buffer),
            _ => None,
        }
    }
}

impl From<Bytes> for Held {
    fn from(bytes: Bytes) -> Self {
        Held::Bytes(bytes)
    }
}

impl From<PoolBuffer> for Held {
    fn from(buffer: PoolBuffer) -> Self {
        Held::Buffer(buffer)
    }
}

impl From<Vec<u8>> for Held {
    fn from(vec: Vec<u8>) -> Self {
        Held::Vec(vec)
    }
}

/// Most pieces that one send takes; what is beyond waits for the next.
const GATHER_MAX: usize = 64;

/// Pieces of memory that one send takes in order. Reusable: it comes back with
/// the completion, and [`SendParts::advance`] takes off what was sent.
pub struct SendParts {
    parts: SmallVec<[Bytes; 8]>,
    /// Pieces before this one were sent.
    first: usize,
    iov: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Default for SendParts {
    fn default() -> Self {
        // SAFETY: a msghdr is plain data, for which all zeros means empty.
        let header = unsafe { std::mem::zeroed() };
        SendParts { parts: SmallVec::new(), first: 0, iov: Vec::new(), header }
    }
}

impl SendParts {
    /// Adds a piece behind the others; an empty one is dropped.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.parts.push(part);
        }
    }

    /// Bytes that are still to be sent.
    pub fn remaining(&self) -> usize {
        self.parts[self.first..].iter().map(Bytes::len).sum()
    }

    /// Nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.first == self.parts.len()
    }

    /// Pieces that are still to be sent.
    pub fn pieces(&self) -> usize {
        self.parts.len() - self.first
    }

    /// Takes off the first `sent` bytes and lets go of the pieces that are gone
    /// whole.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let part = &mut self.parts[self.first];
            let step = sent.min(part.len());
            part.advance(step);
            sent -= step;
            if part.is_empty() {
                *part = Bytes::new();
                self.first += 1;
            }
        }
        if self.is_empty() {
            self.clear();
        }
    }

    /// Drops all pieces.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.first = 0;
    }

    /// The message header for the kernel. It points into this value, which must
    /// stay where it is (in its box) while the kernel reads it.
    pub(super) fn header(&mut self) -> *const libc::msghdr {
        self.iov.clear();
        self.iov.extend(
            self.parts[self.first..]
                .iter()
                .take(GATHER_MAX)
                .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
        );
        self.header.msg_iov = self.iov.as_mut_ptr();
        self.header.msg_iovlen = self.iov.len();
        &raw const self.header
    }
}

impl fmt::Debug for SendParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendParts")
            .field("pieces", &self.pieces())
            .field("remaining", &self.remaining())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_advance_across_pieces() {
        let mut parts = SendParts::default();
        for piece in ["abc", "", "de", "fghi"] {
            parts.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!((parts.pieces(), parts.remaining()), (3, 9));
        parts.advance(4);
        assert_eq!((parts.pieces(), parts.remaining()), (2, 5));
        assert_eq!(&parts.parts[parts.first][..], b"e");
        parts.advance(5);
        assert!(parts.is_empty());
        assert_eq!(parts.parts.len(), 0, "what was sent is let go of");
    }

    #[test]
    #[should_panic]
    fn parts_refuse_to_advance_past_the_end() {
        let mut parts = SendParts::default();
        parts.push(Bytes::from_static(b"abc"));
        parts.advance(4);
    }
}
