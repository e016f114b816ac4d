//! What is on disk decides: from the segments' bytes to the state that they
//! stand for.
//!
//! Sealed segments are summed up by their footers. The open one is read commit
//! by commit. Where a commit is not valid, there are two explanations, and the
//! commits behind it tell which:
//!
//! - Some later commit says that this one was durable when it was written. Then
//!   acknowledged records are damaged, and the log is refused.
//! - No later commit says so. Then it was never acknowledged: its write was torn
//!   by the crash, and the log ends before it. Commits beyond it are cut as
//!   well, however valid: nobody was told of them, and a log has no holes.

use std::fmt;

use ringbolt_wire::{BatchView, ShardId, crc32c_append};

use super::commit::CommitHeader;
use super::extent::Extent;
use super::footer::{self, Footer};
use super::group_commit::LogTail;
pub use super::recovery_error::{Damage, RecoveryError};
use super::segment::{FIRST_COMMIT, SegmentHeadFault, Trailer, check_head};
use super::state::LogState;
pub use super::window::SegmentReader;
use super::window::Window;
use super::{LogId, Lsn, SegmentSeq};
use crate::buffer::BufferPool;
use crate::catalog::{CATALOG_PARTITION, CatalogUpdate};
use crate::consumer::GROUPS_PARTITION;
use crate::limits::{BLOCK_LEN, CHUNK_LEN};

/// Which log is recovered, and for which start of the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogIdentity {
    /// The log's identity.
    pub log_id: LogId,
    /// Its shard.
    pub shard: ShardId,
    /// Length of its segments in bytes.
    pub segment_len: u64,
    /// Boot count of this start: higher than at any start before.
    pub term: u64,
}

/// A segment that is full but has no footer on disk: it was full when the
/// broker stopped.
#[derive(Clone, Debug)]
pub struct Unsealed {
    /// The segment.
    pub segment: SegmentSeq,
    /// What is to be written.
    pub footer: Footer,
    /// The trailer that goes with it.
    pub trailer: Trailer,
}

/// A segment that is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedSegment {
    /// The segment.
    pub segment: SegmentSeq,
    /// Commit time of its last commit, µs since 1970 UTC.
    pub last_commit_time_us: u64,
}

/// What was cut from the end of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// Valid commits beyond the first invalid one.
    pub valid_commits_beyond: u64,
    /// Whether the first invalid place held the beginning of a commit.
    pub torn: bool,
}

/// A log as it was found.
#[derive(Clone, Debug)]
pub struct RecoveredLog {
    /// Which one.
    pub identity: LogIdentity,
    /// What it says.
    pub state: LogState,
    /// Where it goes on.
    pub tail: LogTail,
    /// The segment in which it goes on, and the position; `None` for a log
    /// without segments.
    pub open: Option<(SegmentSeq, u64)>,
    /// Index of the first commit of the open segment.
    pub open_first_index: u64,
    /// Whether the last commit holds batches and no trailer or later commit says
    /// that it is durable: should it rot, it would pass for torn.
    pub last_is_unrecorded: bool,
    /// Full segments, oldest first.
    pub sealed: Vec<SealedSegment>,
    /// Full segments whose footer must still be written, oldest first; newer
    /// than all of `sealed`.
    pub unsealed: Vec<Unsealed>,
    /// Segments that are there and hold nothing yet, ascending; all behind the
    /// open one.
    pub prepared: Vec<SegmentSeq>,
    /// What was cut.
    pub cut: Cut,
}

/// Recovers a log from `segments`, those of which there are files, ascending;
/// those of `extent` must be among them.
pub fn recover<P: BufferPool>(
    identity: LogIdentity,
    extent: Extent,
    segments: &[SegmentSeq],
    reader: &dyn SegmentReader,
    pool: &mut P,
) -> Result<RecoveredLog, RecoveryError> {
    let buffer = pool.take().ok_or(RecoveryError::NoMemory(identity.shard))?;
    let mut recovery = Recovery::new(identity, reader, buffer);
    // A log that still has its first segment starts at index 1.
    recovery.started = segments.first() == Some(&SegmentSeq(0));
    if let Some(missing) = extent.missing(segments).into_iter().next() {
        let found = segments.first().copied().zip(segments.last().copied());
        return Err(RecoveryError::MissingSegments { shard: identity.shard, missing, extent, found });
    }
    for (i, &segment) in segments.iter().enumerate() {
        if !recovery.segment(segment, &segments[i + 1..])? {
            break;
        }
    }
    recovery.replay_groups()?;
    Ok(recovery.finish(segments))
}

struct Recovery<'a, B> {
    reader: &'a dyn SegmentReader,
    window: Window<B>,
    log: RecoveredLog,
    /// Whether it is known which commit comes next: the oldest segment may start
    /// anywhere, because older ones are deleted by retention.
    started: bool,
    /// Whether changes to consumer groups in sealed segments were carried out.
    replayed: bool,
}

impl<'a, B: AsRef<[u8]> + AsMut<[u8]>> Recovery<'a, B> {
    fn new(identity: LogIdentity, reader: &'a dyn SegmentReader, buffer: B) -> Self {
        Recovery {
            reader,
            window: Window::new(buffer, identity.segment_len),
            log: RecoveredLog {
                identity,
                state: LogState::default(),
                tail: LogTail { next_index: 1, last_crc: 0, last_commit_time_us: 0 },
                open: None,
                open_first_index: 1,
                last_is_unrecorded: false,
                sealed: Vec::new(),
                unsealed: Vec::new(),
                prepared: Vec::new(),
                cut: Cut::default(),
            },
            started: false,
            replayed: false,
        }
    }

    /// Reads one segment. Returns whether the log goes on in the next one.
    fn segment(&mut self, segment: SegmentSeq, later: &[SegmentSeq]) -> Result<bool, RecoveryError> {
        let LogIdentity { log_id, shard, segment_len, .. } = self.log.identity;
        let head = check_head(self.block(segment, 0)?, &log_id, segment, segment_len);
        if let Err(fault) = head {
            return self.unused(segment, later, fault).map(|()| false);
        }
        let trailer = self.block(segment, Trailer::position(segment_len))?;
        let trailer = Trailer::decode(trailer, &log_id, segment, segment_len);
        // Behind a segment that had to be read commit by commit, so must all be:
        // what is in memory of the index is newer than what is in footers.
        if let Some(trailer) = trailer
            && self.log.unsealed.is_empty()
            && self.follows(&trailer)
            && self.footer(segment, &trailer)?
        {
            return Ok(true);
        }
        if !self.started {
            // Only its footer knows what deleted segments had said. Retention
            // leaves no oldest segment without one.
            let (index, damage) = (trailer.map_or(0, |t| t.first_index), Damage::Footer);
            let position = trailer.map_or(Trailer::position(segment_len), |t| t.end);
            return Err(RecoveryError::Acknowledged { shard, segment, position, index, damage });
        }
        let end = trailer.map_or(Trailer::position(segment_len), |t| t.end);
        self.replay_groups()?;
        self.log.open_first_index = self.log.tail.next_index;
        let (position, damage) = self.commits(segment, end)?;
        self.log.open = Some((segment, position));
        if trailer.is_some() && position != end {
            // A sealed segment is durable to its end.
            let index = self.log.tail.next_index;
            let damage = damage.unwrap_or(Damage::Header);
            return Err(RecoveryError::Acknowledged { shard, segment, position, index, damage });
        }
        if trailer.is_some() || self.goes_on_in(later)? {
            self.seal_now(segment, position)?;
            return Ok(true);
        }
        self.judge_end(segment, position, damage, later)?;
        self.log.prepared = later.to_vec();
        Ok(false)
    }

    /// The bytes of a segment from a position on, at least `len` of them.
    fn bytes(&mut self, segment: SegmentSeq, position: u64, len: usize) -> Result<&[u8], RecoveryError> {
        let shard = self.log.identity.shard;
        self.window.bytes(self.reader, segment, position, len).map_err(|fault| RecoveryError::Read {
            shard,
            segment,
            position,
            fault,
        })
    }

    fn block(&mut self, segment: SegmentSeq, position: u64) -> Result<&[u8], RecoveryError> {
        self.bytes(segment, position, BLOCK_LEN).map(|bytes| &bytes[..BLOCK_LEN])
    }

    /// A segment without a header of its own: made ready, and never used. Then
    /// none behind it can have been used either.
    fn unused(
        &mut self,
        segment: SegmentSeq,
        later: &[SegmentSeq],
        fault: SegmentHeadFault,
    ) -> Result<(), RecoveryError> {
        let LogIdentity { log_id, shard, segment_len, .. } = self.log.identity;
        let refused = RecoveryError::Head { shard, segment, fault };
        if matches!(fault, SegmentHeadFault::Format(_)) || !self.started {
            return Err(refused);
        }
        for &behind in later {
            if check_head(self.block(behind, 0)?, &log_id, behind, segment_len).is_ok() {
                return Err(refused);
            }
        }
        // A commit of this very segment proves that it had a header.
        if self.later_durable(&[segment], FIRST_COMMIT)?.is_some() {
            return Err(refused);
        }
        self.log.prepared = std::iter::once(segment).chain(later.iter().copied()).collect();
        Ok(())
    }

    fn follows(&mut self, trailer: &Trailer) -> bool {
        !self.started || trailer.first_index == self.log.tail.next_index
    }

    /// Merges a sealed segment's footer; false if it is damaged.
    fn footer(&mut self, segment: SegmentSeq, trailer: &Trailer) -> Result<bool, RecoveryError> {
        let mut bytes = Vec::with_capacity(trailer.footer_len as usize);
        let mut crc = 0;
        while bytes.len() < trailer.footer_len as usize {
            let at = trailer.end + bytes.len() as u64;
            let left = trailer.footer_len as usize - bytes.len();
            let piece = self.bytes(segment, at, BLOCK_LEN)?;
            // Pieces are whole blocks but for the last one.
            let piece = &piece[..left.min(piece.len() / BLOCK_LEN * BLOCK_LEN)];
            crc = crc32c_append(crc, piece);
            bytes.extend_from_slice(piece);
        }
        if crc != trailer.footer_crc {
            return Ok(false);
        }
        let mut state = std::mem::take(&mut self.log.state);
        let merged = footer::merge(&bytes, &mut state, segment, trailer.end);
        state.reset_footer_len();
        self.log.state = state;
        if merged.is_err() {
            let LogIdentity { shard, .. } = self.log.identity;
            return Err(RecoveryError::Acknowledged {
                shard,
                segment,
                position: trailer.end,
                index: trailer.next_index,
                damage: Damage::Footer,
            });
        }
        self.log.tail = LogTail {
            next_index: trailer.next_index,
            last_crc: trailer.last_crc,
            last_commit_time_us: trailer.last_commit_time_us,
        };
        self.log.last_is_unrecorded = false;
        self.log.sealed.push(SealedSegment { segment, last_commit_time_us: trailer.last_commit_time_us });
        self.started = true;
        Ok(true)
    }

    /// Applies the commits of a segment up to `end` or the first one that is
    /// not valid. Returns the position after the last, and what stopped it.
    fn commits(&mut self, segment: SegmentSeq, end: u64) -> Result<(u64, Option<Damage>), RecoveryError> {
        let LogIdentity { log_id, segment_len, .. } = self.log.identity;
        let mut position = FIRST_COMMIT;
        while position < end {
            let lsn = Lsn::new(segment, position, segment_len);
            let Some(header) = CommitHeader::decode(self.block(segment, position)?, &log_id, segment, lsn)
            else {
                return Ok((position, Some(Damage::Header)));
            };
            if let Some(damage) = self.chain_fault(&header) {
                return Ok((position, Some(damage)));
            }
            let len = u64::from(header.commit_len);
            if len < BLOCK_LEN as u64 || len > CHUNK_LEN as u64 || position + len > end {
                return Ok((position, Some(Damage::Header)));
            }
            if let Err(damage) = self.commit(segment, position, &header)? {
                return Ok((position, Some(damage)));
            }
            position += len;
        }
        Ok((position, None))
    }

    fn chain_fault(&self, header: &CommitHeader) -> Option<Damage> {
        let tail = &self.log.tail;
        let follows = header.index == tail.next_index && header.prev_crc == tail.last_crc;
        (!follows).then_some(Damage::Chain { index: header.index })
    }

    /// Verifies a commit, then applies its batches.
    fn commit(
        &mut self,
        segment: SegmentSeq,
        position: u64,
        header: &CommitHeader,
    ) -> Result<Result<(), Damage>, RecoveryError> {
        let mut state = std::mem::take(&mut self.log.state);
        let bytes = self.bytes(segment, position, header.commit_len as usize);
        let result = bytes.map(|bytes| apply_commit(&mut state, header, bytes, segment, position));
        self.log.state = state;
        let result = result?;
        if let Err(damage @ (Damage::Offset { .. } | Damage::Catalog | Damage::Groups)) = result {
            let shard = self.log.identity.shard;
            return Err(RecoveryError::Inconsistent { shard, segment, position, damage });
        }
        if result.is_ok() {
            self.log.tail = LogTail {
                next_index: header.index + 1,
                last_crc: header.crc,
                last_commit_time_us: header.commit_time_us,
            };
            self.log.last_is_unrecorded = header.batches > 0;
        }
        Ok(result)
    }

    /// Whether the first commit of the next segment follows what was read so
    /// far.
    fn goes_on_in(&mut self, later: &[SegmentSeq]) -> Result<bool, RecoveryError> {
        let LogIdentity { log_id, segment_len, .. } = self.log.identity;
        let Some(&next) = later.first() else { return Ok(false) };
        if check_head(self.block(next, 0)?, &log_id, next, segment_len).is_err() {
            return Ok(false);
        }
        let lsn = Lsn::new(next, FIRST_COMMIT, segment_len);
        let header = CommitHeader::decode(self.block(next, FIRST_COMMIT)?, &log_id, next, lsn);
        Ok(header.is_some_and(|header| self.chain_fault(&header).is_none()))
    }

    /// Makes the footer that the broker did not come to write.
    fn seal_now(&mut self, segment: SegmentSeq, end: u64) -> Result<(), RecoveryError> {
        let footer = footer::encode(&self.log.state, segment, end);
        let LogIdentity { shard, segment_len, .. } = self.log.identity;
        if end + footer.bytes.len() as u64 > Trailer::position(segment_len) {
            let len = footer.bytes.len();
            return Err(RecoveryError::NoRoomForFooter { shard, segment, position: end, len });
        }
        let tail = self.log.tail;
        let trailer = Trailer {
            end,
            footer_len: footer.bytes.len() as u32,
            footer_crc: crc32c_append(0, &footer.bytes),
            first_index: self.log.open_first_index,
            next_index: tail.next_index,
            last_commit_time_us: tail.last_commit_time_us,
            last_crc: tail.last_crc,
        };
        self.log.state.begin_segment(segment);
        self.log.unsealed.push(Unsealed { segment, footer, trailer });
        self.log.open = None;
        Ok(())
    }

    /// The log ends here. Is that the torn end of the last writes, or damage?
    fn judge_end(
        &mut self,
        segment: SegmentSeq,
        position: u64,
        damage: Option<Damage>,
        later: &[SegmentSeq],
    ) -> Result<(), RecoveryError> {
        let index = self.log.tail.next_index;
        let segments: Vec<_> = std::iter::once(segment).chain(later.iter().copied()).collect();
        let beyond = self.later_durable(&segments, position)?;
        if let Some(beyond) = beyond {
            if beyond.max_durable_index >= index {
                let shard = self.log.identity.shard;
                let damage = damage.unwrap_or(Damage::Header);
                return Err(RecoveryError::Acknowledged { shard, segment, position, index, damage });
            }
            self.log.cut.valid_commits_beyond = beyond.commits;
        }
        self.log.cut.torn = !matches!(damage, None | Some(Damage::Header | Damage::Chain { .. }));
        Ok(())
    }

    /// What valid commit headers say that lie in these segments, in the first
    /// one from `from` on.
    fn later_durable(&mut self, segments: &[SegmentSeq], from: u64) -> Result<Option<Beyond>, RecoveryError> {
        let LogIdentity { log_id, segment_len, .. } = self.log.identity;
        let index = self.log.tail.next_index;
        let mut beyond: Option<Beyond> = None;
        for (i, &segment) in segments.iter().enumerate() {
            let mut position = if i == 0 { from } else { FIRST_COMMIT };
            while position < Trailer::position(segment_len) {
                let bytes = self.bytes(segment, position, BLOCK_LEN)?;
                let blocks = bytes.len() / BLOCK_LEN;
                for block in 0..blocks {
                    let at = position + (block * BLOCK_LEN) as u64;
                    let lsn = Lsn::new(segment, at.min(segment_len - 1), segment_len);
                    let header = CommitHeader::decode(&bytes[block * BLOCK_LEN..], &log_id, segment, lsn);
                    if let Some(header) = header.filter(|h| h.index >= index) {
                        let found = beyond.get_or_insert_default();
                        found.commits += u64::from(header.index > index);
                        found.max_durable_index = found.max_durable_index.max(header.durable_index);
                    }
                }
                position += (blocks * BLOCK_LEN) as u64;
            }
        }
        Ok(beyond)
    }

    fn finish(mut self, segments: &[SegmentSeq]) -> RecoveredLog {
        if self.log.open.is_none() && self.log.prepared.is_empty() {
            debug_assert!(segments.len() == self.log.sealed.len() + self.log.unsealed.len());
        }
        for partition in self.log.state.partitions_mut() {
            // What could be read back is durable: it is on disk, and the first
            // commit from now on says so.
            partition.durable_end = partition.end_offset;
            let first = partition.index.first_offset();
            partition.start_offset = first.unwrap_or(partition.end_offset).max(partition.start_offset);
        }
        self.log
    }
}

#[derive(Clone, Copy, Default)]
struct Beyond {
    commits: u64,
    max_durable_index: u64,
}

fn apply_commit(
    state: &mut LogState,
    header: &CommitHeader,
    bytes: &[u8],
    segment: SegmentSeq,
    position: u64,
) -> Result<(), Damage> {
    let commit = &bytes[..header.commit_len as usize];
    header.for_each_batch(commit, |_, _| {}).map_err(Damage::Payload)?;
    let mut result = Ok(());
    let applied = header.for_each_batch(commit, |at, batch| {
        if result.is_ok() {
            result = apply_batch(state, &batch, segment, position as u32 + at);
        }
    });
    applied.map_err(Damage::Payload).and(result)
}

fn apply_batch(
    state: &mut LogState,
    batch: &BatchView<'_>,
    segment: SegmentSeq,
    at: u32,
) -> Result<(), Damage> {
    let (id, base) = (batch.header().partition(), batch.header().base_offset());
    let slot = state.slot_or_insert(id);
    let partition = state.partition(slot);
    if partition.end_offset != base {
        return Err(Damage::Offset { partition: id, found: base, expected: partition.end_offset });
    }
    state.apply(slot, batch.header(), segment, at);
    match id {
        CATALOG_PARTITION => apply_catalog(state, batch),
        GROUPS_PARTITION => groups::apply_changes(state, batch),
        _ => Ok(()),
    }
}

fn apply_catalog(state: &mut LogState, batch: &BatchView<'_>) -> Result<(), Damage> {
    for (_, record) in batch.records() {
        state.apply_catalog(&CatalogUpdate::decode(record.value).map_err(|_| Damage::Catalog)?);
    }
    Ok(())
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.torn, self.valid_commits_beyond) {
            (false, 0) => f.write_str("nothing"),
            (torn, beyond) => {
                write!(f, "{} unacknowledged commits", u64::from(torn) + beyond)
            }
        }
    }
}

mod groups;
#[cfg(test)]
mod tests;
