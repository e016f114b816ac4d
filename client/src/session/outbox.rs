//! Bytes that wait to be sent, in order: small ones gathered in one buffer,
//! large batches by reference.

use std::collections::VecDeque;

use bytes::Bytes;

/// Buffers kept for reuse; a driver has one being sent and one being filled.
const SPARES: usize = 4;

/// A buffer larger than this is not kept for reuse.
const SPARE_MAX: usize = 4 << 20;

/// A piece to be sent.
#[derive(Debug)]
pub enum Transmit {
    /// Heads and small batches; to be given back through
    /// [`Session::recycle`](super::Session::recycle).
    Buffer(Vec<u8>),
    /// A large batch, shared with whoever keeps it for a retry.
    Batch(Bytes),
}

impl AsRef<[u8]> for Transmit {
    fn as_ref(&self) -> &[u8] {
        match self {
            Transmit::Buffer(buffer) => buffer,
            Transmit::Batch(batch) => batch,
        }
    }
}

#[derive(Debug)]
pub(super) struct Outbox {
    split_from: usize,
    /// Sealed pieces; `open` follows them.
    sealed: VecDeque<Transmit>,
    open: Vec<u8>,
    spares: Vec<Vec<u8>>,
}

impl Outbox {
    pub fn new(split_from: usize) -> Self {
        Outbox { split_from, sealed: VecDeque::new(), open: Vec::new(), spares: Vec::new() }
    }

    /// Where small things are appended.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.open
    }

    #[inline]
    pub fn push_bytes(&mut self, bytes: &Bytes) {
        if bytes.len() < self.split_from {
            self.open.extend_from_slice(bytes);
            return;
        }
        self.seal();
        self.sealed.push_back(Transmit::Batch(bytes.clone()));
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            let next = self.spares.pop().unwrap_or_default();
            self.sealed.push_back(Transmit::Buffer(std::mem::replace(&mut self.open, next)));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.sealed.is_empty()
    }

    pub fn pop(&mut self) -> Option<Transmit> {
        if self.sealed.is_empty() {
            self.seal();
        }
        self.sealed.pop_front()
    }

    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spares.len() < SPARES && (1..=SPARE_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            if self.open.capacity() == 0 {
                self.open = buffer;
            } else {
                self.spares.push(buffer);
            }
        }
    }
}
