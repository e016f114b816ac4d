//! Why a log cannot be recovered: the file, the position, and what is there.

use std::ops::RangeInclusive;

use ringbolt_wire::{Offset, PartitionId, ShardId};

use super::commit::PayloadFault;
use super::extent::Extent;
use super::segment::SegmentHeadFault;
use super::{SegmentSeq, extent_file, segment_file};
use crate::shard::event::DiskFault;

/// What is wrong with a stretch of the log.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// No valid commit header where one must be.
    #[error("no valid commit header")]
    Header,
    /// A valid header that does not follow its predecessor.
    #[error("commit {index} does not follow the one before it")]
    Chain {
        /// The index that it claims.
        index: u64,
    },
    /// A valid header with a damaged payload.
    #[error("{0}")]
    Payload(PayloadFault),
    /// A footer whose CRC is wrong, and commits that do not make up for it.
    #[error("the footer is damaged")]
    Footer,
    /// A batch whose offset does not continue its partition.
    #[error("partition {partition} goes on at offset {found} instead of {expected}")]
    Offset {
        /// Which partition.
        partition: PartitionId,
        /// As stored.
        found: Offset,
        /// As it must be.
        expected: Offset,
    },
    /// A record of the catalog that cannot be read.
    #[error("a change to the catalog cannot be read")]
    Catalog,
    /// A record of the consumer groups' state that cannot be read.
    #[error("a change to consumer groups cannot be read")]
    Groups,
}

/// Why a log cannot be recovered. Nothing was changed.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum RecoveryError {
    /// A segment cannot be read.
    #[error("{} at position {position}: {fault}", segment_file(*.shard, *.segment))]
    Read {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// What the kernel said.
        fault: DiskFault,
    },
    /// Segments that must be there are not: the oldest, the newest, all, or some
    /// between others.
    #[error(
        "{} is missing{}: {}, and {} says what must be there; restore what is missing to start",
        segment_file(*.shard, *.missing.start()), show_more(.missing), show_found(*.shard, *.found),
        extent_file(*.shard, *.extent)
    )]
    MissingSegments {
        /// Whose log.
        shard: ShardId,
        /// The oldest of them that are missing, in a row.
        missing: RangeInclusive<SegmentSeq>,
        /// What must be there.
        extent: Extent,
        /// The oldest and the newest that are there.
        found: Option<(SegmentSeq, SegmentSeq)>,
    },
    /// A segment that must hold commits has no valid header.
    #[error("{}: {fault}", segment_file(*.shard, *.segment))]
    Head {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// What is wrong.
        fault: SegmentHeadFault,
    },
    /// Records that were acknowledged are damaged.
    #[error(
        "{} at position {position}: {damage}, although commit {index} was \
         acknowledged (a later commit says so); restore the file, or see `ringbolt log verify`",
        segment_file(*.shard, *.segment)
    )]
    Acknowledged {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// The commit that should be there.
        index: u64,
        /// What is there.
        damage: Damage,
    },
    /// Valid commits that contradict each other.
    #[error("{} at position {position}: {damage}", segment_file(*.shard, *.segment))]
    Inconsistent {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// The contradiction.
        damage: Damage,
    },
    /// A full segment was left without room for the footer that it needs.
    #[error(
        "{} at position {position}: no room for a footer of {len} bytes; this is \
         a bug in the broker",
        segment_file(*.shard, *.segment)
    )]
    NoRoomForFooter {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// Where its last commit ends, bytes from its start.
        position: u64,
        /// Bytes of the footer.
        len: usize,
    },
    /// No buffer for reading: `--memory` is too small for this many shards.
    #[error("shard {0}: no memory for recovery; give more with --memory")]
    NoMemory(ShardId),
}

fn show_more(missing: &RangeInclusive<SegmentSeq>) -> String {
    match missing.end().0 - missing.start().0 {
        0 => String::new(),
        more => format!(" (and {more} after it)"),
    }
}

fn show_found(shard: ShardId, found: Option<(SegmentSeq, SegmentSeq)>) -> String {
    match found {
        None => "no segment was found".to_owned(),
        Some((one, same)) if one == same => format!("only {} was found", segment_file(shard, one)),
        Some((oldest, newest)) => {
            format!("found were {} to {}", segment_file(shard, oldest), segment_file(shard, newest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_file_as_the_data_directory_does() {
        let (shard, segment) = (ShardId(2), SegmentSeq(0x1f));
        let error =
            RecoveryError::Acknowledged { shard, segment, position: 4096, index: 9, damage: Damage::Header };
        assert!(
            error.to_string().starts_with("shard-002/segment-000000000000001f at position 4096: "),
            "{error}"
        );
        let extent = Extent::new(SegmentSeq(0x1f), SegmentSeq(0x2b)).unwrap();
        let found = Some((SegmentSeq(0x21), SegmentSeq(0x2a)));
        let error =
            RecoveryError::MissingSegments { shard, missing: segment..=SegmentSeq(0x20), extent, found };
        assert_eq!(
            error.to_string(),
            "shard-002/segment-000000000000001f is missing (and 1 after it): found were \
             shard-002/segment-0000000000000021 to shard-002/segment-000000000000002a, and \
             shard-002/extent-000000000000001f-000000000000002b says what must be there; restore what is \
             missing to start"
        );
    }
}
