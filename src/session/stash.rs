//! Bytes of a connection that could not be handled when they came: the start of
//! a frame whose end is not there yet, or frames that must wait.

/// See the module.
#[derive(Debug, Default)]
pub struct Stash {
    bytes: Vec<u8>,
    /// Bytes at the start that were handled.
    start: usize,
}

impl Stash {
    /// The bytes that wait.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// How many bytes wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether none wait.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    /// Bytes of memory that it takes. Not one of the vectors that sessions share: those
    /// may be far longer than the few bytes in it.
    #[inline]
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Makes room for `len` bytes in all, which the caller has checked against
    /// the limit of a frame, once half of them have come: a length alone must
    /// not cost memory.
    pub fn expect(&mut self, len: usize) {
        if self.len() >= len / 2 {
            self.bytes.reserve_exact(len.saturating_sub(self.len()));
        }
    }

    /// Forgets the first `len` bytes. What is left takes four times as much memory, at
    /// most.
    ///
    /// # Panics
    /// If fewer wait.
    pub fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.bytes.len(), "more handled than there was");
        if self.len() < self.bytes.capacity() / 4 || self.start > self.bytes.len() / 2 {
            self.bytes = self.as_slice().to_vec();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_for_a_frame_is_counted_and_let_go_with_it() {
        let mut stash = Stash::default();
        stash.push(&[1; 100]);
        stash.expect(1_000);
        assert!((100..1_000).contains(&stash.memory()), "a length alone takes no memory");
        stash.push(&[1; 400]);
        stash.expect(1_000);
        assert!(stash.memory() >= 1_000, "{}", stash.memory());
        stash.consume(490);
        assert_eq!((stash.as_slice(), stash.memory()), (&[1; 10][..], 10));
        stash.consume(10);
        assert_eq!(stash.memory(), 0);
    }
}
