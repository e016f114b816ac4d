//! Reading a log that nobody writes: a window of one chunk over one segment.

use super::SegmentSeq;
use crate::shard::event::DiskFault;

/// Reads segments while nobody writes them.
pub trait SegmentReader {
    /// Fills `into` from `position` of the segment. Position and length are
    /// multiples of [`BLOCK_LEN`](crate::limits::BLOCK_LEN), and `into` is
    /// aligned to it.
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault>;
}

/// The part of a segment that is in memory.
pub(super) struct Window<B> {
    buffer: B,
    segment_len: u64,
    segment: Option<SegmentSeq>,
    start: u64,
    len: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Window<B> {
    pub fn new(buffer: B, segment_len: u64) -> Self {
        Window { buffer, segment_len, segment: None, start: 0, len: 0 }
    }

    /// The bytes of a segment from a position on, a multiple of a block: at
    /// least `len`, which fits the buffer and the segment, and as many more as
    /// are here.
    pub fn bytes(
        &mut self,
        reader: &dyn SegmentReader,
        segment: SegmentSeq,
        position: u64,
        len: usize,
    ) -> Result<&[u8], DiskFault> {
        let held = self.segment == Some(segment)
            && position >= self.start
            && position + len as u64 <= self.start + self.len as u64;
        if !held {
            let left = (self.segment_len - position) as usize;
            let into = self.buffer.as_mut();
            let wanted = left.min(into.len());
            assert!(len <= wanted, "what is asked for fits the buffer and the segment");
            self.segment = None;
            reader.read(segment, position, &mut into[..wanted])?;
            (self.segment, self.start, self.len) = (Some(segment), position, wanted);
        }
        Ok(&self.buffer.as_ref()[(position - self.start) as usize..self.len])
    }
}
