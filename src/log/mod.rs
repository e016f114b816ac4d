//! A shard's commit log: its format on disk, group commit, segments, index and
//! recovery. Knows nothing of sessions, and does no I/O.
//!
//! A log is a sequence of segments, files of one size. A segment is
//!
//! ```text
//!   0       4096                                   end         len-4096    len
//!   +-------+--------+--------+-----+--------+-----+-----+-----+-----------+
//!   | head  | commit | commit | ... | commit | footer    | ... | trailer   |
//!   +-------+--------+--------+-----+--------+-----------+-----+-----------+
//! ```
//!
//! where footer and trailer are written once, when the segment is full. All
//! positions and lengths are multiples of 4 KiB.

use std::fmt;

use extent::Extent;
use ringbolt_wire::ShardId;

pub mod commit;
pub mod extent;
pub mod footer;
pub mod group_commit;
pub mod index;
pub mod pages;
pub mod producers;
pub mod recovery;
mod recovery_error;
pub mod segment;
pub mod state;
pub mod superblock;
pub mod tail_cache;
pub mod verify;
mod window;

/// Number of a segment within its shard's log: rises by one, never reused, even
/// when the file under it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentSeq(pub u64);

/// As in the name of its file.
impl fmt::Display for SegmentSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SegmentSeq {
    /// The one after it.
    pub fn next(self) -> SegmentSeq {
        SegmentSeq(self.0 + 1)
    }
}

/// A segment's file as the data directory names it, for messages.
pub fn segment_file(shard: ShardId, segment: SegmentSeq) -> String {
    format!("shard-{:03}/segment-{segment}", shard.0)
}

/// The file that says which segments a shard's log must have, as the data
/// directory names it, for messages.
pub fn extent_file(shard: ShardId, extent: Extent) -> String {
    format!("shard-{:03}/extent-{extent}", shard.0)
}

/// Identity of one shard's log, unique among all data directories.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LogId(pub [u8; 16]);

/// Position in a shard's log in bytes: the segment's number times the length of
/// a segment, plus the position in its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN of a position in a segment.
    #[inline]
    pub fn new(segment: SegmentSeq, position: u64, segment_len: u64) -> Lsn {
        debug_assert!(position < segment_len);
        Lsn(segment.0 * segment_len + position)
    }
}
