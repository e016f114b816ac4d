//! Flushes that writes share: one fdatasync(2) for all that have ended since the
//! one before.
//!
//! A write that is flushed with itself (`RWF_DSYNC`) is one request where the
//! device has FUA or no volatile cache. Elsewhere the kernel gives it, when it has
//! ended, to a worker on the core that took the disk's interrupt, which sends a
//! flush for this write alone; with that core busy it waits for its turn, up to
//! 4 ms. Sixteen writes of 256 KiB in flight took 12 to 22 µs of that core each
//! with a flush of their own and 3 with shared ones, at 4.7 and 5.3 GB/s, and large
//! batches came to 1.12 times the rate (medians of seven runs each).
//!
//! Few writes in flight are better off each with its own: the flush follows the
//! write at once, and not after the turn of the loop that learns of the write.
//! With all flushes shared, 64 x 16 came to 0.89 of the rate, 64 x 1 to 0.91, one
//! write at a time took 30 µs longer.

use crate::log::SegmentSeq;
use crate::shard::action::WriteToken;

/// A write that is not durable yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingWrite {
    pub token: WriteToken,
    pub len: usize,
    pub started_us: u64,
    /// It is not flushed with itself.
    pub shares: bool,
    /// How long it takes says which kind of flush is the better one.
    pub is_sample: bool,
}

/// The writes to one file that wait for a flush.
#[derive(Debug)]
struct FileFlush {
    segment: SegmentSeq,
    /// Wait for the next one.
    landed: Vec<PendingWrite>,
    /// Wait for the one under way; empty without one.
    flushing: Vec<PendingWrite>,
}

/// The writes of one shard that wait for a flush.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Those of files with such writes; seldom more than two.
    files: Vec<FileFlush>,
}

impl Flushes {
    /// A write has ended well.
    pub(super) fn landed(&mut self, segment: SegmentSeq, write: PendingWrite) {
        match self.files.iter_mut().find(|file| file.segment == segment) {
            Some(file) => file.landed.push(write),
            None => self.files.push(FileFlush { segment, landed: vec![write], flushing: Vec::new() }),
        }
    }

    /// The next file to be flushed, for the writes to it that have ended by now:
    /// one flush of a file at a time.
    pub(super) fn next(&mut self) -> Option<SegmentSeq> {
        let ready = |file: &&mut FileFlush| file.flushing.is_empty() && !file.landed.is_empty();
        let file = self.files.iter_mut().find(ready)?;
        std::mem::swap(&mut file.landed, &mut file.flushing);
        Some(file.segment)
    }

    /// A flush has ended: the writes that it was for.
    pub(super) fn flushed(&mut self, segment: SegmentSeq) -> Vec<PendingWrite> {
        let at = self.files.iter().position(|file| file.segment == segment).expect("a flush that was begun");
        let writes = std::mem::take(&mut self.files[at].flushing);
        if self.files[at].landed.is_empty() {
            self.files.swap_remove(at);
        }
        writes
    }

    /// Whether writes to the file wait.
    pub(super) fn has(&self, segment: SegmentSeq) -> bool {
        self.files.iter().any(|file| file.segment == segment)
    }

    /// Writes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.files.iter().map(|file| file.landed.len() + file.flushing.len()).sum()
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.files.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(token: u64) -> PendingWrite {
        PendingWrite { token: WriteToken(token), len: 4096, started_us: 0, shares: true, is_sample: false }
    }

    fn tokens(writes: &[PendingWrite]) -> Vec<u64> {
        writes.iter().map(|write| write.token.0).collect()
    }

    /// A flush covers what had ended when it began, and nothing that came later.
    #[test]
    fn a_write_waits_for_a_flush_that_began_after_it_had_ended() {
        let (mut flushes, file) = (Flushes::default(), SegmentSeq(7));
        flushes.landed(file, write(1));
        flushes.landed(file, write(2));
        assert_eq!(flushes.next(), Some(file));
        flushes.landed(file, write(3));
        assert_eq!(flushes.next(), None, "one at a time");
        assert_eq!(flushes.waiting(), 3);
        assert_eq!(tokens(&flushes.flushed(file)), [1, 2]);
        assert_eq!(flushes.next(), Some(file));
        assert_eq!(tokens(&flushes.flushed(file)), [3]);
        assert_eq!((flushes.next(), flushes.waiting()), (None, 0));
    }

    #[test]
    fn a_flush_is_for_the_writes_to_its_own_file() {
        let mut flushes = Flushes::default();
        let (one, other) = (SegmentSeq(1), SegmentSeq(2));
        flushes.landed(one, write(1));
        flushes.landed(other, write(2));
        assert_eq!((flushes.next(), flushes.next(), flushes.next()), (Some(one), Some(other), None));
        assert_eq!(tokens(&flushes.flushed(other)), [2]);
        assert_eq!(tokens(&flushes.flushed(one)), [1]);
    }
}
