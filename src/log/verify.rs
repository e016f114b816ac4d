//! Reading every byte of a log that nobody writes, to say what is there and
//! what is wrong with it. Changes nothing.
//!
//! Recovery trusts a footer whose CRC is right; this does not, and goes on
//! behind a damaged place to find all of them.

use std::ops::RangeInclusive;

use ringbolt_wire::{BatchView, ShardId};

use super::commit::CommitHeader;
use super::extent::Extent;
use super::recovery::{Damage, LogIdentity};
use super::segment::{FIRST_COMMIT, SegmentHeadFault, Trailer, check_head};
use super::window::{SegmentReader, Window};
use super::{Lsn, SegmentSeq, segment_file};
use crate::buffer::BufferPool;
use crate::limits::{BLOCK_LEN, CHUNK_LEN};
use crate::shard::event::DiskFault;

/// A place that is not as it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// In which segment.
    pub segment: SegmentSeq,
    /// Bytes from its start.
    pub position: u64,
    /// Index of the commit that should be there.
    pub index: u64,
    /// What is wrong.
    pub damage: Damage,
    /// Whether a later commit, or the segment's trailer, says that the commit
    /// was durable: then acknowledged records are damaged. Otherwise it is the
    /// torn end of the last writes before a crash.
    pub acknowledged: bool,
}

/// So many commits, and what is in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Commits.
    pub commits: u64,
    /// Batches in them.
    pub batches: u64,
    /// Records in those.
    pub records: u64,
    /// Bytes of the batches.
    pub batch_bytes: u64,
}

impl Tally {
    /// Adds what another one has counted.
    pub fn add(&mut self, other: Tally) {
        self.commits += other.commits;
        self.batches += other.batches;
        self.records += other.records;
        self.batch_bytes += other.batch_bytes;
    }
}

/// What a segment holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentReport {
    /// Which one.
    pub segment: SegmentSeq,
    /// What is wrong with its first block, if anything; a segment made ready
    /// and never used has none.
    pub head: Option<SegmentHeadFault>,
    /// Its trailer, if it is sealed.
    pub trailer: Option<Trailer>,
    /// Whether its footer's CRC is right; `None` if it is not sealed.
    pub footer_valid: Option<bool>,
    /// What is part of the log.
    pub log: Tally,
    /// Valid commits behind a place that was not written whole, and that nobody
    /// was told of: the next start cuts them.
    pub beyond: Tally,
    /// Commits of an earlier start, beyond where the log was cut then: no part of
    /// it, and overwritten as it grows.
    pub leftovers: u64,
    /// Index of the first valid commit.
    pub first_index: Option<u64>,
    /// Index of the last valid commit.
    pub last_index: Option<u64>,
    /// Commit time of the first valid commit, µs since 1970 UTC.
    pub first_commit_time_us: Option<u64>,
    /// Commit time of the last valid commit, µs since 1970 UTC.
    pub last_commit_time_us: Option<u64>,
    /// Position after the last valid commit.
    pub end: u64,
}

/// What a log holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogReport {
    /// Its segments, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Segments that must be there and are not.
    pub missing: Vec<RangeInclusive<SegmentSeq>>,
    /// What is wrong, in order of position.
    pub faults: Vec<Fault>,
}

impl LogReport {
    /// Whether acknowledged records are damaged or missing.
    pub fn is_damaged(&self) -> bool {
        !self.missing.is_empty() || self.faults.iter().any(|fault| fault.acknowledged)
    }
}

/// Why a log cannot be verified.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum VerifyError {
    /// A segment cannot be read.
    #[error("{}: {fault}", segment_file(*.shard, *.segment))]
    Read {
        /// Whose log.
        shard: ShardId,
        /// Which one.
        segment: SegmentSeq,
        /// What the kernel said.
        fault: DiskFault,
    },
    /// No memory to read into.
    #[error("no memory to read into")]
    NoMemory,
}

/// Reads `segments`, ascending, and calls `each` with every valid batch, those
/// [`beyond`](SegmentReport::beyond) a hole included, and the segment and position
/// where it lies. Those of `extent` must be among them.
pub fn verify<P: BufferPool>(
    identity: LogIdentity,
    extent: Extent,
    segments: &[SegmentSeq],
    reader: &dyn SegmentReader,
    pool: &mut P,
    mut each: impl FnMut(SegmentSeq, u64, BatchView<'_>),
) -> Result<LogReport, VerifyError> {
    let buffer = pool.take().ok_or(VerifyError::NoMemory)?;
    let window = Window::new(buffer, identity.segment_len);
    let report = LogReport { missing: extent.missing(segments), ..LogReport::default() };
    let mut scan = Scan { identity, reader, window, chain: None, term: 0, report };
    for &segment in segments {
        // Behind a hole the chain starts anew.
        if scan.report.segments.last().is_some_and(|last| last.segment.next() < segment) {
            scan.chain = None;
        }
        let shard = identity.shard;
        scan.segment(segment, &mut each).map_err(|fault| VerifyError::Read { shard, segment, fault })?;
    }
    Ok(scan.report)
}

struct Scan<'a, B> {
    identity: LogIdentity,
    reader: &'a dyn SegmentReader,
    window: Window<B>,
    /// Index and predecessor's CRC of the next commit, once one was seen.
    chain: Option<(u64, u32)>,
    /// Term of the last valid commit: a later one's is never lower.
    term: u64,
    report: LogReport,
}

/// What lies where a commit should.
enum Found {
    Commit(CommitHeader, Tally),
    Leftover,
    Damage(Damage),
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Scan<'_, B> {
    fn segment(
        &mut self,
        segment: SegmentSeq,
        each: &mut impl FnMut(SegmentSeq, u64, BatchView<'_>),
    ) -> Result<(), DiskFault> {
        let LogIdentity { log_id, segment_len, .. } = self.identity;
        let head = check_head(self.bytes(segment, 0, BLOCK_LEN)?, &log_id, segment, segment_len).err();
        let trailer = self.bytes(segment, Trailer::position(segment_len), BLOCK_LEN)?;
        let trailer = Trailer::decode(trailer, &log_id, segment, segment_len);
        let mut report = SegmentReport {
            segment,
            head,
            trailer,
            footer_valid: None,
            log: Tally::default(),
            beyond: Tally::default(),
            leftovers: 0,
            first_index: None,
            last_index: None,
            first_commit_time_us: None,
            last_commit_time_us: None,
            end: FIRST_COMMIT,
        };
        if let Some(trailer) = &trailer {
            report.footer_valid = Some(self.footer_is_valid(segment, trailer)?);
        }
        self.commits(&mut report, each)?;
        if report.footer_valid == Some(false) {
            let index = trailer.map_or(0, |t| t.next_index);
            let position = trailer.map_or(0, |t| t.end);
            self.fault(Fault { segment, position, index, damage: Damage::Footer, acknowledged: false });
        }
        self.report.segments.push(report);
        Ok(())
    }

    fn bytes(&mut self, segment: SegmentSeq, position: u64, len: usize) -> Result<&[u8], DiskFault> {
        self.window.bytes(self.reader, segment, position, len)
    }

    fn fault(&mut self, fault: Fault) {
        self.report.faults.push(fault);
    }

    fn footer_is_valid(&mut self, segment: SegmentSeq, trailer: &Trailer) -> Result<bool, DiskFault> {
        let (mut crc, mut done) = (0, 0);
        while done < trailer.footer_len as usize {
            let bytes = self.bytes(segment, trailer.end + done as u64, BLOCK_LEN)?;
            let len = (trailer.footer_len as usize - done).min(bytes.len() / BLOCK_LEN * BLOCK_LEN);
            crc = ringbolt_wire::crc32c_append(crc, &bytes[..len]);
            done += len;
        }
        Ok(crc == trailer.footer_crc)
    }

    /// Walks over the commits, and from a damaged place on to the next valid
    /// one.
    fn commits(
        &mut self,
        report: &mut SegmentReport,
        each: &mut impl FnMut(SegmentSeq, u64, BatchView<'_>),
    ) -> Result<(), DiskFault> {
        let segment = report.segment;
        let end = report.trailer.map_or(Trailer::position(self.identity.segment_len), |t| t.end);
        let (mut position, mut open_fault) = (FIRST_COMMIT, None::<Fault>);
        while position < end {
            let damage = match self.commit(segment, position, end, each)? {
                Found::Commit(header, tally) => {
                    if let Some(mut fault) = open_fault.take() {
                        fault.acknowledged |= header.durable_index >= fault.index;
                        self.fault(fault);
                    }
                    self.confirm_earlier(header.durable_index);
                    self.count(report, &header, tally);
                    position += u64::from(header.commit_len);
                    report.end = position;
                    continue;
                }
                Found::Leftover => {
                    report.leftovers += 1;
                    Damage::Header
                }
                Found::Damage(damage) => damage,
            };
            let index = self.chain.map_or(0, |(index, _)| index);
            let acknowledged = report.trailer.is_some();
            open_fault.get_or_insert(Fault { segment, position, index, damage, acknowledged });
            position += BLOCK_LEN as u64;
        }
        // The zeros behind the last commit of an open segment are no fault, and
        // neither is what a recycled file still holds.
        if let Some(fault) = open_fault.filter(|f| f.acknowledged || matches!(f.damage, Damage::Payload(_))) {
            self.fault(fault);
        }
        Ok(())
    }

    /// Counts a valid commit: with the log, unless it lies behind a hole of which
    /// nothing says that it was ever filled.
    fn count(&mut self, report: &mut SegmentReport, header: &CommitHeader, tally: Tally) {
        let mut open = self.report.faults.iter().rev().take_while(|fault| !fault.acknowledged);
        if open.any(|fault| fault.damage != Damage::Footer) {
            report.beyond.add(tally);
        } else {
            for earlier in self.report.segments.iter_mut().chain([&mut *report]) {
                let confirmed = std::mem::take(&mut earlier.beyond);
                earlier.log.add(confirmed);
            }
            report.log.add(tally);
        }
        report.first_index.get_or_insert(header.index);
        report.last_index = Some(header.index);
        report.first_commit_time_us.get_or_insert(header.commit_time_us);
        report.last_commit_time_us = Some(header.commit_time_us);
    }

    /// A later commit says up to where the log was durable.
    fn confirm_earlier(&mut self, durable_index: u64) {
        for fault in self.report.faults.iter_mut().rev().take_while(|f| !f.acknowledged) {
            fault.acknowledged |= fault.damage != Damage::Footer && durable_index >= fault.index;
        }
    }

    fn commit(
        &mut self,
        segment: SegmentSeq,
        position: u64,
        end: u64,
        each: &mut impl FnMut(SegmentSeq, u64, BatchView<'_>),
    ) -> Result<Found, DiskFault> {
        let LogIdentity { log_id, segment_len, .. } = self.identity;
        let lsn = Lsn::new(segment, position, segment_len);
        let block = self.bytes(segment, position, BLOCK_LEN)?;
        let Some(header) = CommitHeader::decode(block, &log_id, segment, lsn) else {
            return Ok(Found::Damage(Damage::Header));
        };
        if header.term < self.term {
            return Ok(Found::Leftover);
        }
        let len = header.commit_len as usize;
        if !(BLOCK_LEN..=CHUNK_LEN).contains(&len) || position + len as u64 > end {
            return Ok(Found::Damage(Damage::Header));
        }
        // Behind a damaged place the chain starts anew, but never backwards.
        if let Some((index, prev_crc)) = self.chain
            && (header.index < index || (header.index == index && header.prev_crc != prev_crc))
        {
            return Ok(Found::Damage(Damage::Chain { index: header.index }));
        }
        let commit = &self.window.bytes(self.reader, segment, position, len)?[..len];
        let mut tally = Tally { commits: 1, ..Tally::default() };
        let walked = header.for_each_batch(commit, |at, batch| {
            tally.batches += 1;
            tally.records += u64::from(batch.header().count());
            tally.batch_bytes += batch.as_bytes().len() as u64;
            each(segment, position + u64::from(at), batch);
        });
        if let Err(fault) = walked {
            return Ok(Found::Damage(Damage::Payload(fault)));
        }
        (self.chain, self.term) = (Some((header.index + 1, header.crc)), header.term);
        Ok(Found::Commit(header, tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_cannot_be_read_is_named_as_its_file_is() {
        let fault = DiskFault { operation: "read", errno: 5, text: "Input/output error".to_owned() };
        let error = VerifyError::Read { shard: ShardId(3), segment: SegmentSeq(0x1f), fault };
        assert!(error.to_string().starts_with("shard-003/segment-000000000000001f: "), "{error}");
    }
}
