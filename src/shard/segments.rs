//! The segments of a shard: one open, one made ready ahead, the full ones
//! sealed with a footer, the oldest given up when they are no longer retained.
//!
//! Knows the order in which this must happen for a crash at any moment to be
//! survived; does no I/O.

use std::collections::VecDeque;

use ringbolt_wire::PartitionId;

use crate::log::SegmentSeq;
use crate::log::footer::Footer;
use crate::log::index::SealedPart;
use crate::log::recovery::{RecoveredLog, SealedSegment};
use crate::log::segment::{FIRST_COMMIT, Trailer};
use crate::shard::action::WriteToken;

/// How often a full disk is tried again, in µs.
pub(super) const DISK_FULL_RETRY_US: u64 = 1_000_000;

/// The segment that commits go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpenSegment {
    pub segment: SegmentSeq,
    /// Where the next commit goes.
    pub position: u64,
    /// Index of its first commit.
    pub first_index: u64,
}

/// How far the next segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Nobody works on it.
    Idle,
    /// Its file is being made.
    File,
    /// Its header is being written.
    Head(WriteToken),
    /// The disk is full; try again at this time (monotonic, µs).
    DiskFull(u64),
}

/// A footer on its way to disk.
#[derive(Debug)]
struct Sealing {
    segment: SegmentSeq,
    footer: Footer,
    trailer: Trailer,
    /// Bytes of the footer that are durable.
    written: usize,
    in_flight: Option<(WriteToken, usize)>,
}

/// What must be written next for the segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SegmentWrite {
    /// The header of this segment.
    Head(SegmentSeq),
    /// This part of the footer of the oldest sealing segment.
    Footer { segment: SegmentSeq, position: u64, from: usize, len: usize },
    /// Its trailer.
    Trailer { segment: SegmentSeq, trailer: Trailer },
}

/// A segment whose footer has become durable.
#[derive(Debug)]
pub(super) struct Sealed {
    pub segment: SegmentSeq,
    pub parts: Vec<(PartitionId, SealedPart)>,
}

/// The segments of one shard.
#[derive(Debug)]
pub(super) struct Segments {
    segment_len: u64,
    pub open: Option<OpenSegment>,
    /// Ready, header and all; the next one to open first.
    ready: VecDeque<SegmentSeq>,
    /// Their file is there, their header is not known to be.
    unheaded: VecDeque<SegmentSeq>,
    next: Next,
    /// The last file that was wanted could not be made, and none has been since.
    full: bool,
    next_seq: SegmentSeq,
    sealing: VecDeque<Sealing>,
    pub sealed: VecDeque<SealedSegment>,
    /// No longer retained; recycled once nobody reads them.
    pub dropped: VecDeque<SegmentSeq>,
}

/// Longest write of a footer at once: as much as the largest commit.
pub(super) const FOOTER_WRITE_LEN: usize = 256 << 10;

impl Segments {
    pub fn new(recovered: &mut RecoveredLog) -> Self {
        let last = recovered.prepared.last().copied().or(recovered.open.map(|(segment, _)| segment));
        let last = last.or(recovered.unsealed.last().map(|u| u.segment));
        let last = last.or(recovered.sealed.last().map(|s| s.segment));
        let sealing = std::mem::take(&mut recovered.unsealed).into_iter().map(|u| Sealing {
            segment: u.segment,
            footer: u.footer,
            trailer: u.trailer,
            written: 0,
            in_flight: None,
        });
        Segments {
            segment_len: recovered.identity.segment_len,
            open: recovered.open.map(|(segment, position)| OpenSegment {
                segment,
                position,
                first_index: recovered.open_first_index,
            }),
            ready: VecDeque::new(),
            unheaded: std::mem::take(&mut recovered.prepared).into(),
            next: Next::Idle,
            full: false,
            next_seq: last.map_or(SegmentSeq(0), SegmentSeq::next),
            sealing: sealing.collect(),
            sealed: std::mem::take(&mut recovered.sealed).into(),
            dropped: VecDeque::new(),
        }
    }

    /// Where commits of the open segment must end, when its footer may take
    /// `footer_len` bytes.
    pub fn commit_limit(&self, footer_len: usize) -> u64 {
        let footer = footer_len.next_multiple_of(crate::limits::BLOCK_LEN) as u64;
        Trailer::position(self.segment_len).saturating_sub(footer)
    }

    /// Whether the open segment surely has room for another commit, or another
    /// segment stands ready.
    pub fn has_room_or_next(&self, footer_len: usize) -> bool {
        let largest = (crate::limits::MAX_STORED_BATCH_LEN as usize + 2 * crate::limits::BLOCK_LEN) as u64;
        let room = 2 * largest + crate::limits::MAX_COMMIT_LEN as u64;
        self.has_ready()
            || self.open.is_some_and(|open| open.position + room <= self.commit_limit(footer_len))
    }

    /// Whether a segment stands ready to be opened.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether there is no next segment because the disk is full, or was until a moment
    /// ago.
    pub fn disk_is_full(&self) -> bool {
        self.full
    }

    /// Opens the next segment.
    pub fn open_next(&mut self, first_index: u64) -> bool {
        let Some(segment) = self.ready.pop_front() else { return false };
        self.open = Some(OpenSegment { segment, position: FIRST_COMMIT, first_index });
        true
    }

    /// Closes the open segment: its footer is to be written.
    pub fn close(&mut self, footer: Footer, trailer: Trailer) {
        let open = self.open.take().expect("the caller closes the open segment");
        self.sealing.push_back(Sealing {
            segment: open.segment,
            footer,
            trailer,
            written: 0,
            in_flight: None,
        });
    }

    /// The write of a commit has begun; its header has this CRC. It may be the last
    /// of a segment that is closed already.
    pub fn commit_started(&mut self, index: u64, crc: u32) {
        for sealing in self.sealing.iter_mut().filter(|s| s.trailer.next_index == index + 1) {
            sealing.trailer.last_crc = crc;
        }
    }

    /// The segment whose file is to be made now, if any: one is kept ready
    /// ahead.
    pub fn poll_prepare(&mut self, now_us: u64) -> Option<SegmentSeq> {
        let due = match self.next {
            Next::Idle => true,
            Next::DiskFull(at) => at <= now_us,
            _ => false,
        };
        if !due || !self.ready.is_empty() || !self.unheaded.is_empty() {
            return None;
        }
        self.next = Next::File;
        Some(self.next_seq)
    }

    /// The file that [`poll_prepare`](Self::poll_prepare) asked for is there.
    pub fn prepared(&mut self, segment: SegmentSeq) {
        assert_eq!((self.next, segment), (Next::File, self.next_seq), "only what was asked for is prepared");
        self.next_seq = segment.next();
        self.unheaded.push_back(segment);
        self.next = Next::Idle;
    }

    /// The file could not be made: the disk is full.
    pub fn disk_full(&mut self, now_us: u64) {
        self.full = true;
        self.next = Next::DiskFull(now_us + DISK_FULL_RETRY_US);
    }

    /// When a full disk is to be tried again.
    pub fn retry_at(&self) -> Option<u64> {
        match self.next {
            Next::DiskFull(at) => Some(at),
            _ => None,
        }
    }

    /// What is to be written next, while commits before `next_durable` are
    /// durable. A footer sums up commits, so it is written after them.
    pub fn wanted_write(&self, next_durable: u64) -> Option<SegmentWrite> {
        if self.next == Next::Idle
            && let Some(&segment) = self.unheaded.front()
        {
            return Some(SegmentWrite::Head(segment));
        }
        let sealing = self.sealing.front()?;
        if sealing.in_flight.is_some() || sealing.trailer.next_index > next_durable {
            return None;
        }
        let (segment, from) = (sealing.segment, sealing.written);
        let left = sealing.footer.bytes.len() - from;
        Some(if left > 0 {
            let position = sealing.trailer.end + from as u64;
            SegmentWrite::Footer { segment, position, from, len: left.min(FOOTER_WRITE_LEN) }
        } else {
            SegmentWrite::Trailer { segment, trailer: sealing.trailer }
        })
    }

    /// The bytes of the footer that is being written.
    pub fn footer_bytes(&self) -> &[u8] {
        self.sealing.front().map_or(&[], |s| &s.footer.bytes)
    }

    /// Takes note that the wanted write has started.
    pub fn started(&mut self, token: WriteToken, write: SegmentWrite) {
        match write {
            SegmentWrite::Head(_) => self.next = Next::Head(token),
            SegmentWrite::Footer { len, .. } => self.set_in_flight(token, len),
            SegmentWrite::Trailer { .. } => self.set_in_flight(token, 0),
        }
    }

    fn set_in_flight(&mut self, token: WriteToken, len: usize) {
        let sealing = self.sealing.front_mut().expect("the caller saw a sealing segment");
        sealing.in_flight = Some((token, len));
    }

    /// Takes note that a write has ended well. Returns a segment that is sealed
    /// by it.
    pub fn written(&mut self, token: WriteToken) -> Option<Sealed> {
        if self.next == Next::Head(token) {
            let segment = self.unheaded.pop_front().expect("its header was written");
            self.ready.push_back(segment);
            self.full = false;
            self.next = Next::Idle;
            return None;
        }
        let sealing = self.sealing.front_mut()?;
        let (_, len) = sealing.in_flight.take_if(|(t, _)| *t == token)?;
        sealing.written += len;
        if len > 0 {
            return None;
        }
        let done = self.sealing.pop_front()?;
        self.sealed.push_back(SealedSegment {
            segment: done.segment,
            last_commit_time_us: done.trailer.last_commit_time_us,
        });
        Some(Sealed { segment: done.segment, parts: done.footer.parts })
    }

    /// The oldest sealed segment, if it is beyond what is retained: the log is
    /// longer than `bytes`, or it ended before `before_us`. The last sealed one
    /// stays: its footer is what recovery starts from.
    pub fn expired(&self, bytes: Option<u64>, before_us: Option<u64>) -> Option<SegmentSeq> {
        let oldest = self.sealed.front().filter(|_| self.sealed.len() > 1)?;
        let used = (self.sealed.len() + 1) as u64 * self.segment_len;
        let too_long = bytes.is_some_and(|limit| used > limit);
        let too_old = before_us.is_some_and(|limit| oldest.last_commit_time_us < limit);
        (too_long || too_old).then_some(oldest.segment)
    }

    /// Gives up the oldest sealed segment.
    pub fn drop_oldest(&mut self) {
        if let Some(oldest) = self.sealed.pop_front() {
            self.dropped.push_back(oldest.segment);
        }
    }

    /// Number of segments that hold records.
    pub fn len(&self) -> usize {
        self.sealed.len() + self.sealing.len() + usize::from(self.open.is_some())
    }
}
