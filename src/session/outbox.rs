//! Answers on their way to the peer: small frames in one vector, payload as
//! references to the memory where it already lies.

use bytes::Bytes;

use super::spares::Spares;

/// Pieces up to this many bytes are copied into the vector: that costs less
/// than an entry in the scatter list, and lets go of their memory at once.
const COPY_MAX: usize = 512;

/// What one send takes.
#[derive(Debug)]
pub enum Output {
    /// Small frames, in one piece.
    Frames(Vec<u8>),
    /// Frames and payload, in order.
    Pieces(Vec<Bytes>),
}

impl Output {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        match self {
            Output::Frames(bytes) => bytes.len(),
            Output::Pieces(pieces) => pieces.iter().map(Bytes::len).sum(),
        }
    }

    /// Never: what is taken has something in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Answers in order, gathered until a send takes them.
#[derive(Debug, Default)]
pub struct Outbox {
    /// What comes before `frames`. Empty but for fetch answers.
    pieces: Vec<Bytes>,
    /// Bytes in `pieces`.
    pieces_len: usize,
    /// How many of them were frames.
    pieces_own: usize,
    frames: Vec<u8>,
}

impl Outbox {
    /// Bytes that wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.pieces_len + self.frames.len()
    }

    /// Whether none wait.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that wait in memory of their own.
    #[inline]
    pub fn own(&self) -> usize {
        self.pieces_own + self.frames.len()
    }

    /// Whether memory of others is held.
    pub fn holds_shared(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Appends what `encode` appends to the vector.
    #[inline]
    pub fn append(&mut self, spares: &Spares, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.frames.capacity() == 0 {
            self.frames = spares.take();
        }
        encode(&mut self.frames);
    }

    /// Appends payload without copying it, unless it is short. Returns the
    /// bytes that were copied.
    pub fn append_shared(&mut self, spares: &Spares, bytes: Bytes) -> usize {
        if bytes.len() <= COPY_MAX {
            self.append(spares, |out| out.extend_from_slice(&bytes));
            return bytes.len();
        }
        self.end_frames();
        self.pieces_len += bytes.len();
        self.pieces.push(bytes);
        0
    }

    /// All that waits, if anything does.
    #[inline]
    pub fn take(&mut self) -> Option<Output> {
        if self.is_empty() {
            return None;
        }
        if self.pieces.is_empty() {
            return Some(Output::Frames(std::mem::take(&mut self.frames)));
        }
        self.end_frames();
        (self.pieces_len, self.pieces_own) = (0, 0);
        Some(Output::Pieces(std::mem::take(&mut self.pieces)))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }

    fn end_frames(&mut self) {
        if !self.frames.is_empty() {
            self.pieces_len += self.frames.len();
            self.pieces_own += self.frames.len();
            self.pieces.push(Bytes::from(std::mem::take(&mut self.frames)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_in_which_they_came(
            parts in prop::collection::vec((0u8..5, 1usize..2000), 0..40),
        ) {
            let (mut outbox, spares) = (Outbox::default(), Spares::default());
            let (mut expected, mut sent, mut waiting) = (Vec::new(), Vec::new(), 0);
            for (i, (kind, len)) in parts.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|j| (i * 7 + j) as u8).collect();
                expected.extend_from_slice(&bytes);
                waiting += len;
                if kind < 2 {
                    outbox.append_shared(&spares, Bytes::from(bytes));
                } else {
                    outbox.append(&spares, |out| out.extend_from_slice(&bytes));
                }
                prop_assert_eq!(outbox.len(), waiting);
                if kind == 4 {
                    let output = outbox.take().unwrap();
                    prop_assert_eq!(output.len(), waiting);
                    waiting = 0;
                    sent.extend(bytes_of(&output));
                    if let Output::Frames(frames) = output {
                        spares.give(frames);
                    }
                }
            }
            sent.extend(outbox.take().iter().flat_map(bytes_of));
            prop_assert_eq!(sent, expected);
            prop_assert!(outbox.is_empty() && !outbox.holds_shared() && outbox.take().is_none());
        }
    }

    fn bytes_of(output: &Output) -> Vec<u8> {
        match output {
            Output::Frames(bytes) => bytes.clone(),
            Output::Pieces(pieces) => pieces.concat(),
        }
    }
}
