//! Stored data read back: pages of [`PAGE_LEN`] bytes of the segments' files.
//!
//! Knows what is cached, wanted and being read; the reading itself is an action
//! of the shard. Every byte served from a page is checked by its batch's CRC
//! first, by those who read it.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use super::SegmentSeq;
use crate::limits::PAGE_LEN;
use crate::shard::action::ReadToken;

/// A page's place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageId {
    /// In which segment.
    pub segment: SegmentSeq,
    /// Number of the page within it.
    pub number: u32,
}

impl PageId {
    /// The page that holds `position` of `segment`.
    pub fn at(segment: SegmentSeq, position: u64) -> PageId {
        PageId { segment, number: (position / PAGE_LEN as u64) as u32 }
    }

    /// Where it starts, in bytes.
    pub fn position(self) -> u64 {
        u64::from(self.number) * PAGE_LEN as u64
    }
}

/// A page that was read.
#[derive(Clone, Debug)]
struct Page {
    bytes: Bytes,
    /// Bytes that were durable when the read began; the rest may have been
    /// written since.
    valid: usize,
}

#[derive(Debug)]
struct Reading {
    page: PageId,
    valid: usize,
    /// False once the page was written to in the meantime.
    keep: bool,
}

/// Fewest pages of a cache: what one reader may need at once. That is a batch
/// of the largest size, and the pages of a footer that a search in it touches.
const MIN_PAGES: usize = 16;

/// The page cache of one shard.
#[derive(Debug)]
pub struct Pages {
    cached: FxHashMap<PageId, Page>,
    /// In order of arrival: the oldest is dropped first. Read-ahead makes use
    /// mostly follow arrival, so this is as good as LRU and costs nothing.
    order: VecDeque<PageId>,
    budget: usize,
    reading: FxHashMap<ReadToken, Reading>,
    wanted: VecDeque<PageId>,
    /// Pages wanted or being read.
    pending: FxHashSet<PageId>,
    /// How many readers need a page to stay until they are done.
    pinned: FxHashMap<PageId, u32>,
}

impl Pages {
    /// A cache of at most `budget` bytes, at least [`MIN_PAGES`] pages.
    pub fn new(budget: usize) -> Self {
        Pages {
            cached: FxHashMap::default(),
            order: VecDeque::new(),
            budget: (budget / PAGE_LEN).max(MIN_PAGES),
            reading: FxHashMap::default(),
            wanted: VecDeque::new(),
            pending: FxHashSet::default(),
            pinned: FxHashMap::default(),
        }
    }

    /// The page, if it is cached and its first `len` bytes are up to date.
    pub fn get(&self, page: PageId, len: usize) -> Option<&Bytes> {
        self.cached.get(&page).filter(|p| p.valid >= len).map(|p| &p.bytes)
    }

    /// Asks for a page, unless its first `len` bytes are cached or it is on its
    /// way.
    pub fn want(&mut self, page: PageId, len: usize) {
        if self.get(page, len).is_none() && self.pending.insert(page) {
            self.wanted.push_back(page);
        }
    }

    /// Readers that may need pages at the same time, so that all of their pages
    /// fit: more would push out each other's for ever.
    pub fn max_readers(&self) -> usize {
        self.budget / MIN_PAGES
    }

    /// Keeps a page, here or on its way, until it is [`unpin`](Self::unpin)ned
    /// as often.
    pub fn pin(&mut self, page: PageId) {
        *self.pinned.entry(page).or_default() += 1;
    }

    /// See [`pin`](Self::pin).
    pub fn unpin(&mut self, page: PageId) {
        if let Some(count) = self.pinned.get_mut(&page) {
            *count -= 1;
            if *count == 0 {
                self.pinned.remove(&page);
            }
        }
    }

    /// How many pages may still be asked for ahead of need.
    pub fn room_ahead(&self) -> usize {
        (self.budget / 2).saturating_sub(self.pending.len())
    }

    /// The next page to be read, if any.
    pub fn next_wanted(&self) -> Option<PageId> {
        self.wanted.front().copied()
    }

    /// Takes note that the read of [`next_wanted`](Self::next_wanted) has
    /// started, while the first `valid` bytes of the page were durable.
    pub fn started(&mut self, token: ReadToken, valid: usize) {
        if let Some(page) = self.wanted.pop_front() {
            self.reading.insert(token, Reading { page, valid: valid.min(PAGE_LEN), keep: true });
        }
    }

    /// Number of reads under way.
    pub fn reads_in_flight(&self) -> usize {
        self.reading.len()
    }

    /// Whether a read of this segment is under way.
    pub fn is_reading(&self, segment: SegmentSeq) -> bool {
        self.reading.values().any(|reading| reading.page.segment == segment)
    }

    /// Takes note that a read has ended, with the page's bytes if it went well,
    /// and caches them unless they are out of date by now. Returns which page
    /// it was.
    pub fn ended(&mut self, token: ReadToken, bytes: Option<Bytes>) -> Option<PageId> {
        let Reading { page, valid, keep } = self.reading.remove(&token)?;
        self.pending.remove(&page);
        if let Some(bytes) = bytes.filter(|_| keep) {
            while self.cached.len() >= self.budget && self.drop_oldest() {}
            if self.cached.insert(page, Page { bytes, valid }).is_none() {
                self.order.push_back(page);
            }
        }
        Some(page)
    }

    /// Whether [`drop_oldest`](Self::drop_oldest) would find a page.
    pub fn has_droppable(&self) -> bool {
        self.order.iter().any(|page| !self.pinned.contains_key(page))
    }

    /// Drops the oldest page that nobody needs, to give memory back. Returns
    /// whether there was one.
    pub fn drop_oldest(&mut self) -> bool {
        for _ in 0..self.order.len() {
            let Some(page) = self.order.pop_front() else { break };
            if self.pinned.contains_key(&page) {
                self.order.push_back(page);
            } else if self.cached.remove(&page).is_some() {
                return true;
            }
        }
        false
    }

    /// Forgets a segment, because it is gone or because it was written to: what
    /// is cached and wanted of it, and what is being read once that arrives.
    /// Returns the pages that were wanted: whoever waits for them must look
    /// again.
    pub fn forget(&mut self, segment: SegmentSeq) -> Vec<PageId> {
        for reading in self.reading.values_mut().filter(|r| r.page.segment == segment) {
            reading.keep = false;
        }
        self.cached.retain(|page, _| page.segment != segment);
        self.order.retain(|page| page.segment != segment);
        let mut forgotten = Vec::new();
        let pending = &mut self.pending;
        self.wanted.retain(|page| {
            let goes = page.segment == segment;
            if goes {
                pending.remove(page);
                forgotten.push(*page);
            }
            !goes
        });
        forgotten
    }
}
