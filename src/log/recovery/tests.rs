//! Logs that no broker writes, made by hand.

use std::collections::BTreeMap;

use super::*;
use crate::buffer::Buffer;
use crate::limits::MIN_SEGMENT_LEN;
use crate::log::commit::{CommitPlace, OpenCommit};
use crate::log::segment::encode_head;
use crate::shard::event::DiskFault;

const LOG: LogId = LogId([3; 16]);
const LEN: u64 = MIN_SEGMENT_LEN;

struct Memory(Vec<u8>);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Buffer for Memory {
    fn split_off(&mut self, at: usize) -> Self {
        Memory(self.0.split_off(at))
    }
}

struct OneBuffer;

impl BufferPool for OneBuffer {
    type Buffer = Memory;

    fn take(&mut self) -> Option<Memory> {
        Some(Memory(vec![0xaa; CHUNK_LEN]))
    }

    fn available(&self) -> usize {
        1
    }
}

/// Segments full of commits without batches, a block each.
#[derive(Default)]
struct Log {
    segments: BTreeMap<SegmentSeq, Vec<u8>>,
    last: (u64, u32),
}

impl SegmentReader for Log {
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        into.copy_from_slice(&self.segments[&segment][position as usize..][..into.len()]);
        Ok(())
    }
}

impl Log {
    /// Adds a segment with commits up to `end`.
    fn segment(&mut self, segment: u64, end: u64) {
        let segment = SegmentSeq(segment);
        let mut file = vec![0; LEN as usize];
        encode_head(&mut file, &LOG, segment, LEN);
        for position in (FIRST_COMMIT..end).step_by(BLOCK_LEN) {
            let (index, prev_crc) = (self.last.0 + 1, self.last.1);
            let lsn = Lsn::new(segment, position, LEN);
            let place =
                CommitPlace { log: LOG, segment, lsn, term: 1, index, prev_crc, durable_index: index - 1 };
            let (closed, _) = OpenCommit::new(Memory(vec![0; BLOCK_LEN]), 1).close();
            let commit = closed.finish(place);
            file[position as usize..][..BLOCK_LEN].copy_from_slice(commit.bytes.as_ref());
            self.last = (index, commit.crc);
        }
        self.segments.insert(segment, file);
    }

    fn recover(&self) -> Result<RecoveredLog, RecoveryError> {
        let identity = LogIdentity { log_id: LOG, shard: ShardId(0), segment_len: LEN, term: 2 };
        let segments: Vec<_> = self.segments.keys().copied().collect();
        recover(identity, Extent::EMPTY, &segments, self, &mut OneBuffer)
    }
}

/// A shard keeps room for the footer; should it ever fail to, that is said, and
/// no commit is overwritten by a footer.
#[test]
fn a_full_segment_without_room_for_its_footer_is_refused() {
    let end = Trailer::position(LEN);
    for (left, fits) in [(0, false), (BLOCK_LEN as u64, true)] {
        let mut log = Log::default();
        log.segment(0, end - left);
        log.segment(1, FIRST_COMMIT + BLOCK_LEN as u64);
        match log.recover() {
            Ok(recovered) => {
                assert!(fits, "the footer lies over the last commit");
                assert_eq!((recovered.unsealed.len(), recovered.tail.next_index), (1, log.last.0 + 1));
            }
            Err(error) => {
                let RecoveryError::NoRoomForFooter { segment, position, len, .. } = error else {
                    panic!("{error}");
                };
                assert!(!fits && len > 0, "{len} bytes");
                assert_eq!((segment, position), (SegmentSeq(0), end));
            }
        }
    }
}
