//! Names of files in a data directory.

use ringbolt_wire::ShardId;

use crate::limits::MAX_SHARDS;
use crate::log::SegmentSeq;
use crate::log::extent::Extent;

/// What a name says a file or folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileName {
    /// A segment of a shard's log.
    Segment(SegmentSeq),
    /// Says which segments there must be.
    Extent(Extent),
    /// A file for a segment to come.
    Spare(u64),
    /// A spare file that is not yet whole.
    Unfinished,
    /// A shard's folder.
    Shard,
}

const SEGMENT: &str = "segment-";
const EXTENT: &str = "extent-";
const SPARE: &str = "spare-";
const TMP: &str = ".tmp";
const SHARD: &str = "shard-";

/// Name of a segment's file.
pub fn segment_name(segment: SegmentSeq) -> String {
    format!("{SEGMENT}{segment}")
}

/// Name of the file that says which segments there must be.
pub fn extent_name(extent: Extent) -> String {
    format!("{EXTENT}{extent}")
}

/// Name of a spare file.
pub fn spare_name(number: u64) -> String {
    format!("{SPARE}{number:016x}")
}

/// Name of a spare file that is not yet whole.
pub(in crate::io) fn unfinished_name(number: u64) -> String {
    format!("{SPARE}{number:016x}{TMP}")
}

/// Name of a shard's folder.
pub fn shard_name(shard: ShardId) -> String {
    format!("{SHARD}{:03}", shard.0)
}

fn number(digits: &str) -> Option<u64> {
    let canonical = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u64::from_str_radix(digits, 16).ok() } else { None }
}

impl FileName {
    /// What `name` says; `None` if it is none of Ringbolt's.
    pub fn parse(name: &str) -> Option<FileName> {
        if let Some(digits) = name.strip_prefix(SEGMENT) {
            return number(digits).map(|n| FileName::Segment(SegmentSeq(n)));
        }
        if let Some(rest) = name.strip_prefix(EXTENT) {
            let (first, next) = rest.split_once('-')?;
            return Extent::new(SegmentSeq(number(first)?), SegmentSeq(number(next)?)).map(FileName::Extent);
        }
        if let Some(rest) = name.strip_prefix(SPARE) {
            return match rest.strip_suffix(TMP) {
                Some(digits) => number(digits).map(|_| FileName::Unfinished),
                None => number(rest).map(FileName::Spare),
            };
        }
        let shard: u16 = name.strip_prefix(SHARD)?.parse().ok()?;
        (shard < MAX_SHARDS && shard_name(ShardId(shard)) == name).then_some(FileName::Shard)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_name_the_file_as_it_is_named() {
        let (shard, segment) = (ShardId(7), SegmentSeq(0xab));
        let file = format!("{}/{}", shard_name(shard), segment_name(segment));
        assert_eq!(crate::log::segment_file(shard, segment), file);
        assert_eq!(format!("segment-{segment}"), "segment-00000000000000ab");
        let extent = Extent::EMPTY.with(segment);
        let file = format!("{}/{}", shard_name(shard), extent_name(extent));
        assert_eq!(crate::log::extent_file(shard, extent), file);
    }

    proptest! {
        #[test]
        fn names_say_what_they_were_made_of(n: u64, shard in 0..MAX_SHARDS) {
            prop_assert_eq!(FileName::parse(&segment_name(SegmentSeq(n))), Some(FileName::Segment(SegmentSeq(n))));
            let extent = Extent::new(SegmentSeq(n / 2), SegmentSeq(n)).unwrap();
            prop_assert_eq!(FileName::parse(&extent_name(extent)), Some(FileName::Extent(extent)));
            prop_assert_eq!(FileName::parse(&spare_name(n)), Some(FileName::Spare(n)));
            prop_assert_eq!(FileName::parse(&unfinished_name(n)), Some(FileName::Unfinished));
            prop_assert_eq!(FileName::parse(&shard_name(ShardId(shard))), Some(FileName::Shard));
        }

        /// Two files must never stand for one segment.
        #[test]
        fn a_name_that_is_read_is_the_one_that_is_written(name in "(segment|extent|spare|shard)-([0-9a-fA-F+]{16}-)?[0-9a-fA-F+]{0,17}(\\.tmp)?") {
            let written = match FileName::parse(&name) {
                Some(FileName::Segment(segment)) => segment_name(segment),
                Some(FileName::Extent(extent)) => extent_name(extent),
                Some(FileName::Spare(number)) => spare_name(number),
                _ => return Ok(()),
            };
            prop_assert_eq!(written, name);
        }
    }

    #[test]
    fn other_names_are_nobodys() {
        for name in [
            "",
            "lock",
            "segment-",
            "segment-0",
            "segment-000000000000000G",
            "extent-0000000000000001",
            "extent-0000000000000002-0000000000000001",
            "shard-1",
            "shard-999",
            "shard--01",
        ] {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
    }
}
