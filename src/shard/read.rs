//! Reading the log's bytes: from the commits still in memory, else from pages.

use bytes::Bytes;
use ringbolt_wire::batch::BATCH_HEADER_LEN;
use ringbolt_wire::{BatchHeader, Offset, PartitionId, crc32c_append};
use smallvec::SmallVec;

use crate::limits::{MAX_STORED_BATCH_LEN, PAGE_LEN};
use crate::log::index::{MAX_RUN_LEN, RAW_RUN_LEN, Run, SealedPart, read_run};
use crate::log::pages::{PageId, Pages};
use crate::log::tail_cache::TailCache;
use crate::log::{Lsn, SegmentSeq};

/// Pieces of memory that follow each other.
pub(super) type Pieces = SmallVec<[Bytes; 4]>;

/// Why bytes cannot be had now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unavailable {
    /// These pages must be read first. They are asked for, if that is allowed.
    Pages(Vec<PageId>),
    /// A page could not be read for want of memory or of open files.
    Shortage,
    /// What is stored is not what was written.
    Corrupt {
        /// In which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
    },
}

/// Batches of one partition that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Batches {
    /// Offset of the first record.
    pub base: Offset,
    /// Offset after the last record.
    pub next: Offset,
    /// Bytes of all; 0 if there is none.
    pub len: usize,
}

/// What reads the log of one shard.
#[derive(Debug)]
pub(super) struct LogReader {
    pub tail: TailCache,
    pub pages: Pages,
    pub segment_len: u64,
    /// Everything before it is durable; nothing at or after it is read.
    pub durable_end: Lsn,
    /// Pages that could not be read, while somebody waits for them.
    pub broken: Vec<PageId>,
    /// Those for which only something was short.
    pub short: Vec<PageId>,
    /// Whether pages may be asked for on behalf of who is reading.
    pub may_want: bool,
}

impl LogReader {
    /// Reads up to `durable_end`.
    pub fn new(tail: TailCache, pages: Pages, segment_len: u64, durable_end: Lsn) -> LogReader {
        let (broken, short) = (Vec::new(), Vec::new());
        LogReader { tail, pages, segment_len, durable_end, broken, short, may_want: false }
    }

    /// The bytes at a place in the log, and pages asked for ahead of need.
    fn pieces(
        &mut self,
        segment: SegmentSeq,
        position: u64,
        len: usize,
        ahead: usize,
    ) -> Result<Pieces, Unavailable> {
        let lsn = Lsn::new(segment, position, self.segment_len);
        if let Some(bytes) = self.tail.get(lsn, len) {
            return Ok(SmallVec::from_iter([bytes]));
        }
        let (mut pieces, mut missing) = (Pieces::new(), Vec::new());
        let end = position + len as u64;
        let mut at = position;
        while at < end {
            let page = PageId::at(segment, at);
            let (from, to) = (at - page.position(), (end - page.position()).min(PAGE_LEN as u64));
            match self.pages.get(page, to as usize) {
                Some(bytes) => pieces.push(bytes.slice(from as usize..to as usize)),
                None if self.short.contains(&page) => return Err(Unavailable::Shortage),
                None if self.broken.contains(&page) => {
                    return Err(Unavailable::Corrupt { segment, position: page.position() });
                }
                None => {
                    if self.may_want {
                        self.pages.want(page, to as usize);
                    }
                    missing.push(page);
                }
            }
            at = page.position() + to;
        }
        if !self.may_want {
            return if missing.is_empty() { Ok(pieces) } else { Err(Unavailable::Pages(missing)) };
        }
        self.read_ahead(PageId::at(segment, end - 1), ahead);
        if missing.is_empty() { Ok(pieces) } else { Err(Unavailable::Pages(missing)) }
    }

    fn read_ahead(&mut self, after: PageId, ahead: usize) {
        for i in 1..=ahead.min(self.pages.room_ahead()) {
            let page = PageId { segment: after.segment, number: after.number + i as u32 };
            let end = page.position() + PAGE_LEN as u64;
            if end > self.segment_len || Lsn::new(page.segment, end - 1, self.segment_len) >= self.durable_end
            {
                return;
            }
            self.pages.want(page, PAGE_LEN);
        }
    }

    /// Up to which byte of a page the log is durable.
    pub fn valid_len(&self, page: PageId) -> usize {
        let start = page.segment.0 * self.segment_len + page.position();
        self.durable_end.0.saturating_sub(start).min(PAGE_LEN as u64) as usize
    }

    /// The first run of a sealed segment's part for which `after` says no; runs
    /// for which it says yes come first.
    pub fn find_sealed_run(
        &mut self,
        part: &SealedPart,
        after: impl Fn(&Run) -> bool,
    ) -> Result<Option<Run>, Unavailable> {
        self.search_runs(part, after).map(|(_, found)| found)
    }

    /// The first run of a part of `partition` whose commit time is at or after
    /// `time_us`.
    ///
    /// Nothing is read at what it says that would show a damaged time in the
    /// footer, so the run and the one before it are compared with the batches
    /// that they name.
    pub fn find_run_by_time(
        &mut self,
        part: &SealedPart,
        partition: PartitionId,
        time_us: u64,
    ) -> Result<Option<Run>, Unavailable> {
        let (number, found) = self.search_runs(part, |run| run.commit_time_us < time_us)?;
        let mut base = part.base_offset;
        if number > 0 {
            let before = self.sealed_run(part, number - 1)?;
            self.check_run(part.segment, partition, &before)?;
            base = before.end_offset();
        }
        if let Some(run) = &found {
            self.check_run(part.segment, partition, run)?;
        }
        if found.map_or(part.end_offset, |run| run.base_offset) != base {
            let position = u64::from(part.runs_at);
            return Err(Unavailable::Corrupt { segment: part.segment, position });
        }
        Ok(found)
    }

    /// Whether a run's first batch is what the run says.
    fn check_run(
        &mut self,
        segment: SegmentSeq,
        partition: PartitionId,
        run: &Run,
    ) -> Result<(), Unavailable> {
        let position = u64::from(run.position);
        let len = BATCH_HEADER_LEN.min(run.len as usize);
        let pieces = self.pieces(segment, position, len, 0)?;
        let checked = check_batch(&pieces, 0, partition, run.base_offset, run);
        checked.map(|_| ()).ok_or(Unavailable::Corrupt { segment, position })
    }

    /// Number and run as [`find_sealed_run`](Self::find_sealed_run); the number is
    /// that of all runs if there is none.
    fn search_runs(
        &mut self,
        part: &SealedPart,
        after: impl Fn(&Run) -> bool,
    ) -> Result<(u32, Option<Run>), Unavailable> {
        let (mut low, mut high) = (0, part.runs);
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let run = self.sealed_run(part, middle)?;
            if after(&run) {
                low = middle + 1;
            } else {
                (high, found) = (middle, Some(run));
            }
        }
        Ok((low, found))
    }

    fn sealed_run(&mut self, part: &SealedPart, number: u32) -> Result<Run, Unavailable> {
        let position = u64::from(part.runs_at) + u64::from(number) * RAW_RUN_LEN as u64;
        let corrupt = Unavailable::Corrupt { segment: part.segment, position };
        let pieces = self.pieces(part.segment, position, RAW_RUN_LEN, 0)?;
        let mut raw = [0; RAW_RUN_LEN];
        copy_out(&pieces, 0, &mut raw);
        let run = read_run(&raw).ok_or(corrupt.clone())?;
        let plausible = run.base_offset >= part.base_offset
            && run.end_offset() <= part.end_offset
            && run.len > 0
            && run.len <= MAX_RUN_LEN.max(MAX_STORED_BATCH_LEN)
            && u64::from(run.position) + u64::from(run.len) <= self.segment_len;
        if plausible { Ok(run) } else { Err(corrupt) }
    }

    /// The batches of a run from the one that holds `from` on, verified, up to
    /// `max_bytes`, or one that is longer if there must be `at_least_one`.
    /// What they are is returned, their bytes are appended to `out`.
    pub fn batches(
        &mut self,
        partition: PartitionId,
        (segment, run): (SegmentSeq, Run),
        from: Offset,
        (max_bytes, at_least_one): (usize, bool),
        ahead: usize,
        out: &mut Pieces,
    ) -> Result<Batches, Unavailable> {
        let pieces = self.pieces(segment, u64::from(run.position), run.len as usize, ahead)?;
        let len = run.len as usize;
        let (mut at, mut start, mut next) = (0, None, run.base_offset);
        let mut base = next;
        while at < len {
            let corrupt = Unavailable::Corrupt { segment, position: u64::from(run.position) + at as u64 };
            let checked = check_batch(&pieces, at, partition, next, &run);
            let (batch_len, end) = checked.ok_or_else(|| corrupt.clone())?;
            if end > from {
                if start.is_none() {
                    base = next;
                }
                let first = *start.get_or_insert(at);
                if at + batch_len - first > max_bytes && (at > first || !at_least_one) {
                    break;
                }
                if !verify_batch(&pieces, at, batch_len) {
                    return Err(corrupt);
                }
            }
            (at, next) = (at + batch_len, end);
        }
        // The batches before `from` are not verified: one of them may claim
        // fewer records than it has, and pass for the one that holds `from`.
        if at == len && next != run.end_offset() {
            return Err(Unavailable::Corrupt { segment, position: u64::from(run.position) });
        }
        let first = start.unwrap_or(at);
        slice_out(&pieces, first, at, out);
        Ok(Batches { base, next, len: at - first })
    }
}

/// Length and end offset of the batch at `at`, if its header is what the index
/// promises: the batch's own CRC does not cover what the broker filled in.
fn check_batch(
    pieces: &[Bytes],
    at: usize,
    partition: PartitionId,
    base: Offset,
    run: &Run,
) -> Option<(usize, Offset)> {
    let len = run.len as usize;
    let mut copy = [0; BATCH_HEADER_LEN];
    let header = if at + BATCH_HEADER_LEN <= pieces[0].len() {
        BatchHeader::decode(&pieces[0][at..]).ok()?
    } else {
        (at + BATCH_HEADER_LEN <= len).then_some(())?;
        copy_out(pieces, at, &mut copy);
        BatchHeader::decode(&copy).ok()?
    };
    let fits = header.partition() == partition
        && header.base_offset() == base
        && header.commit_time_us() == run.commit_time_us
        && header.len() <= len - at
        && header.len() <= MAX_STORED_BATCH_LEN as usize;
    fits.then(|| (header.len(), Offset(base.0 + u64::from(header.count()))))
}

fn verify_batch(pieces: &[Bytes], at: usize, len: usize) -> bool {
    let mut stored = [0; 4];
    copy_out(pieces, at + BatchHeader::CRC_START - 4, &mut stored);
    let mut crc = 0;
    for_each_slice(pieces, at + BatchHeader::CRC_START, at + len, |slice| crc = crc32c_append(crc, slice));
    crc == u32::from_le_bytes(stored)
}

fn for_each_slice(pieces: &[Bytes], from: usize, to: usize, mut each: impl FnMut(&[u8])) {
    let mut start = 0;
    for piece in pieces {
        let (low, high) = (from.max(start), to.min(start + piece.len()));
        if low < high {
            each(&piece[low - start..high - start]);
        }
        start += piece.len();
    }
}

fn copy_out(pieces: &[Bytes], from: usize, into: &mut [u8]) {
    let mut filled = 0;
    for_each_slice(pieces, from, from + into.len(), |slice| {
        into[filled..filled + slice.len()].copy_from_slice(slice);
        filled += slice.len();
    });
    assert_eq!(filled, into.len(), "the caller asks within the pieces");
}

fn slice_out(pieces: &[Bytes], from: usize, to: usize, out: &mut Pieces) {
    let mut start = 0;
    for piece in pieces {
        let (low, high) = (from.max(start), to.min(start + piece.len()));
        if low < high {
            out.push(piece.slice(low - start..high - start));
        }
        start += piece.len();
    }
}
