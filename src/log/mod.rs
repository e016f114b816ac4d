//! A shard's commit log: its format on disk, group commit, segments, index and
//! recovery. Knows nothing of sessions, and does no I/O.

use std::fmt;

/// Number of a segment within its shard's log: rises by one, never reused, even
/// when the file under it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentSeq(pub u64);

impl fmt::Display for SegmentSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
