//! Which segments there are, and which of them are open.
//!
//! Files are opened when they are first needed and stay open, up to a bound:
//! a log of a terabyte has thousands of segments, and few are read.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustc_hash::FxHashMap;

use super::Waiting;
use super::claim::{claim, give_up};
use crate::limits::MAX_OPEN_SEGMENTS;
use crate::log::SegmentSeq;

/// Where a segment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Open(RawFd),
    Opening,
    Closed,
    /// There is no such segment.
    Unknown,
}

#[derive(Debug, Default)]
struct SegmentFile {
    fd: Option<OwnedFd>,
    /// `fd` is locked: it has been written through.
    claimed: bool,
    opening: bool,
    waiting: Vec<Waiting>,
    in_flight: u32,
    last_used: u64,
}

#[derive(Debug)]
pub(super) struct Files {
    segments: FxHashMap<SegmentSeq, SegmentFile>,
    open: usize,
    /// Rises with each use.
    uses: u64,
}

impl SegmentFile {
    /// No write is in flight.
    fn unlock(&mut self) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.claimed) {
            give_up(fd);
        }
        self.claimed = false;
    }
}

impl Files {
    pub(super) fn new(segments: &[SegmentSeq]) -> Self {
        let segments = segments.iter().map(|&segment| (segment, SegmentFile::default())).collect();
        Files { segments, open: 0, uses: 0 }
    }

    pub(super) fn find(&self, segment: SegmentSeq) -> Found {
        match self.segments.get(&segment) {
            None => Found::Unknown,
            Some(SegmentFile { fd: Some(fd), .. }) => Found::Open(fd.as_raw_fd()),
            Some(SegmentFile { opening: true, .. }) => Found::Opening,
            Some(_) => Found::Closed,
        }
    }

    fn get(&mut self, segment: SegmentSeq) -> &mut SegmentFile {
        self.segments.get_mut(&segment).expect("the caller has found the segment")
    }

    /// An operation on the open segment begins.
    pub(super) fn started(&mut self, segment: SegmentSeq) {
        self.uses += 1;
        let uses = self.uses;
        let file = self.get(segment);
        file.in_flight += 1;
        file.last_used = uses;
    }

    /// Locks the open segment for writing, if it is not locked yet.
    pub(super) fn claim(&mut self, segment: SegmentSeq) -> io::Result<()> {
        let file = self.get(segment);
        if let Some(fd) = file.fd.as_ref().filter(|_| !file.claimed) {
            claim(fd)?;
            file.claimed = true;
        }
        Ok(())
    }

    /// Unlocks the segments to which nothing is in flight.
    pub(super) fn unlock_idle(&mut self) {
        self.segments.values_mut().filter(|file| file.in_flight == 0).for_each(SegmentFile::unlock);
    }

    /// Nothing is in flight any more.
    pub(super) fn all_ended(&mut self) {
        self.segments.values_mut().for_each(|file| file.in_flight = 0);
    }

    /// It has ended. The segment may be recycled meanwhile.
    pub(super) fn ended(&mut self, segment: SegmentSeq) {
        if let Some(file) = self.segments.get_mut(&segment) {
            file.in_flight -= 1;
        }
    }

    pub(super) fn wait(&mut self, segment: SegmentSeq, waiting: Waiting) {
        self.get(segment).waiting.push(waiting);
    }

    pub(super) fn opening(&mut self, segment: SegmentSeq) {
        self.get(segment).opening = true;
    }

    pub(super) fn take_waiting(&mut self, segment: SegmentSeq) -> Vec<Waiting> {
        self.segments.get_mut(&segment).map(|file| std::mem::take(&mut file.waiting)).unwrap_or_default()
    }

    pub(super) fn open_failed(&mut self, segment: SegmentSeq) {
        if let Some(file) = self.segments.get_mut(&segment) {
            file.opening = false;
        }
    }

    /// The segment is open now. Returns a file that is to be closed for it.
    pub(super) fn opened(&mut self, segment: SegmentSeq, fd: OwnedFd) -> Option<OwnedFd> {
        // Nobody was left who wants it, if it was recycled meanwhile.
        let Some(file) = self.segments.get_mut(&segment) else { return Some(fd) };
        file.opening = false;
        file.fd = Some(fd);
        self.open += 1;
        self.evict(segment)
    }

    /// A new segment, open. Returns a file that is to be closed for it.
    pub(super) fn add(&mut self, segment: SegmentSeq, fd: OwnedFd) -> Option<OwnedFd> {
        let before = self.segments.insert(segment, SegmentFile::default());
        assert!(before.is_none(), "segment {segment} is made once");
        self.opened(segment, fd)
    }

    /// The segment is no more.
    pub(super) fn remove(&mut self, segment: SegmentSeq) -> Option<OwnedFd> {
        let mut file = self.segments.remove(&segment).expect("only a segment that is there is recycled");
        assert!(file.waiting.is_empty(), "nobody reads a segment that is recycled");
        file.unlock();
        self.open -= usize::from(file.fd.is_some());
        file.fd
    }

    fn evict(&mut self, keep: SegmentSeq) -> Option<OwnedFd> {
        if self.open <= MAX_OPEN_SEGMENTS { None } else { self.close_idle(Some(keep)) }
    }

    /// The file that was used the longest ago and is not in use, to be closed
    /// for want of descriptors.
    pub(super) fn give_up_idle(&mut self) -> Option<OwnedFd> {
        self.close_idle(None)
    }

    fn close_idle(&mut self, keep: Option<SegmentSeq>) -> Option<OwnedFd> {
        let idle = self
            .segments
            .iter_mut()
            .filter(|(segment, file)| Some(**segment) != keep && file.fd.is_some() && file.in_flight == 0);
        let (_, oldest) = idle.min_by_key(|(_, file)| file.last_used)?;
        self.open -= 1;
        // At once: the close takes its time, and it may be opened again meanwhile.
        oldest.unlock();
        oldest.fd.take()
    }
}
