//! What is known of a group in one partition: which records are completed, and what
//! happened to those that are not.

use ringbolt_wire::ErrorCode;
use rustc_hash::FxHashMap;

use super::super::offsets::Offsets;
use super::arrivals::Arrivals;
use super::turns::Turns;
use crate::group::{Deed, Entry};

/// Most records of which it is remembered that a delivery with a lower number may still
/// come: those that nobody has read yet, or that went to consumers which crashed.
const MAX_UNSEEN: usize = 65_536;

/// A record that was delivered, and is not completed as far as is known.
#[derive(Clone, Copy, Default)]
pub(super) struct Open {
    /// How often it was delivered in this life of the broker, as it says; 0 if not yet.
    pub acquired: u32,
    /// Under which attach it was delivered at last.
    attach: u64,
    /// How often it has failed at the least.
    failed: u32,
    /// Settles under way that complete it if they succeed.
    pub pending: u32,
}

/// What a delivery of a record means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// As it should be.
    Good,
    /// It was sent before something that was read before it, and proves nothing.
    Late,
    /// It was completed, or was delivered as often before.
    Again,
    /// The broker knows of fewer failures than it has confirmed.
    Forgotten,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Part {
    /// Everything before it was completed when the run began.
    pub floor: u64,
    /// Offset after the last record that was delivered.
    pub end: u64,
    /// Acknowledged with success.
    pub acked: Offsets,
    /// Completed in another way: rejected for the last time, or known to the broker as
    /// completed.
    pub done: Offsets,
    /// Rejected for the last time with success.
    pub condemned: Offsets,
    /// Settled so that they would be completed, without an answer.
    pub maybe: Offsets,
    /// In the dead-letter topic.
    pub dead: Offsets,
    /// Passed over, which is good if they turn out to be dead letters: told once.
    pub suspected: Offsets,
    pub open: FxHashMap<u64, Open>,
    /// Deliveries with a lower number than others that were seen: of which record, and
    /// the numbers.
    unseen: FxHashMap<u64, Vec<u32>>,
    pub arrivals: Arrivals,
    pub turns: Turns,
}

impl Part {
    pub fn new(floor: u64) -> Part {
        Part { floor, end: floor, arrivals: Arrivals::new(floor), ..Part::default() }
    }

    /// Whether a record is completed for sure.
    #[inline]
    pub fn is_completed(&self, offset: u64) -> bool {
        offset < self.floor || self.acked.contains(offset) || self.done.contains(offset)
    }

    /// Whether a later record may come although this one was to come before it.
    pub fn may_be_passed(&self, offset: u64) -> bool {
        self.is_completed(offset)
            || self.maybe.contains(offset)
            || self.suspected.contains(offset)
            || self.open.get(&offset).is_some_and(|open| open.pending > 0)
    }

    /// The broker was started again: it counts from what it knows.
    pub fn restarted(&mut self) {
        self.unseen.clear();
        self.open.values_mut().for_each(|open| open.acquired = 0);
        self.turns.restarted();
    }

    /// A record was delivered under an attach, for the `acquired`th time, having failed so
    /// often.
    pub fn delivered(&mut self, offset: u64, attach: u64, acquired: u32, failed: u32) -> Meaning {
        self.end = self.end.max(offset + 1);
        if self.is_completed(offset) {
            return if self.was_unseen(offset, acquired) { Meaning::Late } else { Meaning::Again };
        }
        let known = self.open.get(&offset).copied();
        let before = known.map_or(0, |open| open.acquired);
        if acquired <= before {
            return if self.was_unseen(offset, acquired) { Meaning::Late } else { Meaning::Again };
        }
        // After a restart nobody knows what was sent before.
        if (known.is_none() || before > 0) && acquired > before + 1 && self.unseen.len() < MAX_UNSEEN {
            self.unseen.entry(offset).or_default().extend((before + 1..acquired).take(16));
        }
        let open = self.open.entry(offset).or_default();
        (open.acquired, open.attach) = (acquired, attach);
        let forgotten = failed < open.failed;
        open.failed = open.failed.max(failed);
        if known.is_some() {
            // Whatever was said of it without an answer has not come to be.
            self.maybe.remove(offset);
        }
        if forgotten { Meaning::Forgotten } else { Meaning::Good }
    }

    fn was_unseen(&mut self, offset: u64, acquired: u32) -> bool {
        let Some(numbers) = self.unseen.get_mut(&offset) else { return false };
        let Some(at) = numbers.iter().position(|number| *number == acquired) else { return false };
        numbers.swap_remove(at);
        true
    }

    /// Something is about to be said of records that completes them, if it succeeds.
    pub fn settling(&mut self, entry: &Entry) {
        for offset in entry.offset..entry.end() {
            if let Some(open) = self.open.get_mut(&offset) {
                open.pending += 1;
            }
        }
    }

    /// It has had no success, or none that is known.
    fn not_pending(&mut self, entry: &Entry) {
        for offset in entry.offset..entry.end() {
            if let Some(open) = self.open.get_mut(&offset) {
                open.pending = open.pending.saturating_sub(1);
            }
        }
    }

    /// There will be no answer about records that would be completed.
    pub fn unanswered(&mut self, entry: &Entry) {
        self.not_pending(entry);
        self.maybe.insert(entry.offset..entry.end());
    }

    /// The broker has answered about records. Returns how many were acknowledged once
    /// more, and how many answers make no sense.
    pub fn settled(&mut self, entry: &Entry, is_last: bool, status: u16) -> (u64, u64) {
        let (count, range) = (u64::from(entry.count), entry.offset..entry.end());
        match (status, entry.deed) {
            (0, Deed::Ack) => {
                let again = count - self.acked.insert(range);
                self.close(entry);
                (again, 0)
            }
            (0, Deed::Reject) if is_last => {
                self.condemned.insert(range.clone());
                self.done.insert(range);
                self.close(entry);
                (0, 0)
            }
            (0, Deed::Reject) => {
                for offset in range {
                    if let Some(open) = self.open.get_mut(&offset) {
                        open.failed = open.failed.max(entry.failed + 1);
                    }
                }
                self.came_back(entry);
                (0, 0)
            }
            _ => match ErrorCode::from_u16(status) {
                Some(ErrorCode::AlreadyCompleted) => {
                    for offset in range.filter(|offset| !self.acked.contains(*offset)).collect::<Vec<_>>() {
                        self.done.insert(offset..offset + 1);
                    }
                    self.close(entry);
                    (0, 0)
                }
                Some(ErrorCode::LeaseLost | ErrorCode::NotDelivered) => {
                    if is_last || entry.deed == Deed::Ack {
                        self.not_pending(entry);
                    }
                    self.came_back(entry);
                    (0, 0)
                }
                _ => (0, count),
            },
        }
    }

    fn close(&mut self, entry: &Entry) {
        for offset in entry.offset..entry.end() {
            self.open.remove(&offset);
            self.turns.completed(offset);
        }
    }

    /// Records came back under the lease that the entry names, unless they were
    /// delivered since: under another attach if the number is the same, as a broker that
    /// was started again may count anew.
    fn came_back(&mut self, entry: &Entry) {
        for offset in entry.offset..entry.end() {
            let is_latest = |open: &Open| (open.attach, open.acquired) == (entry.attach, entry.acquired);
            if self.open.get(&offset).is_some_and(is_latest) {
                self.turns.came_back(offset);
            }
        }
    }

    /// Records below `end` that nobody has completed, as far as can be told.
    pub fn dropped(&self, end: u64) -> u64 {
        let mut all = self.acked.clone();
        for set in [&self.done, &self.maybe, &self.dead] {
            for range in set.ranges() {
                all.insert(range);
            }
        }
        let completed = all.ranges().map(|r| r.end.min(end).saturating_sub(r.start.max(self.floor))).sum();
        end.saturating_sub(self.floor).saturating_sub(completed)
    }

    /// The first of them.
    pub fn first_dropped(&self, end: u64) -> Option<u64> {
        let is_completed = |offset: &u64| {
            self.is_completed(*offset) || self.maybe.contains(*offset) || self.dead.contains(*offset)
        };
        (self.floor..end).find(|offset| !is_completed(offset))
    }
}
