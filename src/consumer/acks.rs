//! What is durable of a group in a partition: which records are completed, and
//! how it went with those that came back.
//!
//! The same methods change it when something happens and when the log is read
//! back (`changes.rs`). It does not know leases or consumers: those end with the
//! broker's life.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ranges::RangeSet;

/// How a record came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum How {
    /// A consumer acknowledged it.
    Acked = 0,
    /// It went to the dead-letter topic.
    DeadLettered = 1,
    /// Its time to live was over, or it is no longer retained.
    Expired = 2,
    /// It is for another group.
    Skipped = 3,
}

impl How {
    /// The way with this number.
    pub fn from_u8(value: u8) -> Option<How> {
        [How::Acked, How::DeadLettered, How::Expired, How::Skipped]
            .into_iter()
            .find(|how| *how as u8 == value)
    }
}

/// How it went with a record that came back.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Attempts {
    /// How often it was delivered.
    pub acquired: u32,
    /// How often it failed.
    pub failed: u32,
    /// When it was first delivered, µs since 1970 UTC.
    pub first_delivery_us: u64,
    /// When it may be delivered again, µs since 1970 UTC; 0 for at once.
    pub not_before_us: u64,
    /// It goes to the dead-letter topic, for this reason, which many records may share.
    pub condemned: Option<Arc<str>>,
}

/// What was counted since the group was created.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Failures.
    pub failed: u64,
    /// Records that went to the dead-letter topic.
    pub dead_lettered: u64,
    /// Records that expired, by their own time or by retention.
    pub expired: u64,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AckState {
    floor: u64,
    /// Above the floor, and not touching it.
    completed: RangeSet,
    /// Of records that are not completed.
    attempts: BTreeMap<u64, Attempts>,
    /// Records before this one were delivered, as far as the log says.
    delivered_end: u64,
    /// Counts.
    pub totals: Totals,
}

impl AckState {
    /// Nothing is completed from `floor` on.
    pub fn new(floor: u64) -> AckState {
        AckState { floor, delivered_end: floor, ..AckState::default() }
    }

    /// Every record before it is completed, it is not.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// What is completed above the floor.
    pub fn completed(&self) -> &RangeSet {
        &self.completed
    }

    /// Whether the record is completed.
    #[inline]
    pub fn is_completed(&self, offset: u64) -> bool {
        offset < self.floor || self.completed.contains(offset)
    }

    /// End of the completed records that `offset` is among, if it is.
    #[inline]
    pub fn completed_until(&self, offset: u64) -> Option<u64> {
        if offset < self.floor { Some(self.floor) } else { self.completed.end_of(offset) }
    }

    /// Records before `end` that are not completed.
    pub fn open_before(&self, end: u64) -> u64 {
        end.saturating_sub(self.floor).saturating_sub(self.completed.total())
    }

    /// How it went with a record that came back.
    #[inline]
    pub fn attempts(&self, offset: u64) -> Option<&Attempts> {
        if self.attempts.is_empty() { None } else { self.attempts.get(&offset) }
    }

    /// Of how many records it is known how it went.
    pub fn remembered(&self) -> usize {
        self.attempts.len()
    }

    /// Records that came back and are not completed.
    pub fn all_attempts(&self) -> impl Iterator<Item = (u64, &Attempts)> {
        self.attempts.iter().map(|(offset, attempts)| (*offset, attempts))
    }

    /// Whether a record of `start..end` is completed or came back.
    #[inline]
    pub fn knows_any(&self, start: u64, end: u64) -> bool {
        start < self.floor
            || (!self.completed.is_empty() && self.completed.intersects(start, end))
            || (!self.attempts.is_empty() && self.attempts.range(start..end).next().is_some())
    }

    /// Records before it were delivered at least once, as far as the log says.
    pub fn delivered_end(&self) -> u64 {
        self.delivered_end
    }

    /// Takes note that records before `end` were delivered.
    pub fn delivered_up_to(&mut self, end: u64) {
        self.delivered_end = self.delivered_end.max(end);
    }

    /// The records `start..end` are completed. Returns how many were not before.
    pub fn complete(&mut self, start: u64, end: u64, how: How) -> u64 {
        let start = start.max(self.floor);
        if start >= end {
            return 0;
        }
        let new = if start == self.floor {
            let before = self.floor + self.completed.total();
            self.floor = end;
            while let Some((_, range_end)) = self.completed.take_first_up_to(self.floor) {
                self.floor = self.floor.max(range_end);
            }
            self.floor + self.completed.total() - before
        } else {
            self.completed.insert(start, end)
        };
        self.forget_attempts(start, end);
        match how {
            How::Acked | How::Skipped => {}
            How::DeadLettered => self.totals.dead_lettered += new,
            How::Expired => self.totals.expired += new,
        }
        new
    }

    fn forget_attempts(&mut self, start: u64, end: u64) {
        if self.attempts.last_key_value().is_none_or(|(last, _)| *last < start) {
            return;
        }
        while let Some((&offset, _)) = self.attempts.range(start..end).next() {
            self.attempts.remove(&offset);
        }
    }

    /// A record came back. Its failures count once, however often this is said of
    /// the same ones.
    pub fn came_back(&mut self, offset: u64, attempts: Attempts) {
        if self.is_completed(offset) {
            return;
        }
        let before = self.attempts.get(&offset).map_or(0, |known| known.failed);
        self.totals.failed += u64::from(attempts.failed.saturating_sub(before));
        self.delivered_up_to(offset + 1);
        self.attempts.insert(offset, attempts);
    }

    /// A record need not wait any longer.
    pub fn wait_over(&mut self, offset: u64) {
        if let Some(attempts) = self.attempts.get_mut(&offset) {
            attempts.not_before_us = 0;
        }
    }

    /// As [`came_back`](Self::came_back), in a checkpoint: its failures are counted
    /// already, and what is known of it came later.
    pub fn restore_attempts(&mut self, offset: u64, attempts: Attempts) {
        if !self.is_completed(offset) {
            self.attempts.entry(offset).or_insert(attempts);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_floor_is_the_first_record_that_is_not_completed(
            start in 0u64..20,
            ranges in prop::collection::vec((0u64..100, 0u64..15), 0..50),
        ) {
            let (mut state, mut plain) = (AckState::new(start), BTreeSet::new());
            for (from, len) in ranges {
                let new = (from.max(start)..from + len).filter(|offset| plain.insert(*offset)).count();
                prop_assert_eq!(state.complete(from, from + len, How::Expired), new as u64);
            }
            let floor = (start..).find(|offset| !plain.contains(offset)).unwrap();
            prop_assert_eq!(state.floor(), floor);
            prop_assert_eq!(state.totals.expired, plain.len() as u64);
            prop_assert_eq!(state.open_before(200), 200 - start - plain.len() as u64);
            prop_assert!((0..150).all(|o| state.is_completed(o) == (o < start || plain.contains(&o))));
            prop_assert!(!state.completed().contains(floor));
        }
    }

    #[test]
    fn what_is_known_of_a_record_is_forgotten_when_it_is_completed_and_its_failures_count_once() {
        let mut state = AckState::new(0);
        let attempts = Attempts { acquired: 2, failed: 2, ..Attempts::default() };
        state.came_back(3, attempts.clone());
        state.came_back(3, attempts.clone());
        assert_eq!((state.totals.failed, state.delivered_end()), (2, 4));
        assert!(state.knows_any(0, 4) && !state.knows_any(0, 3) && !state.knows_any(4, 9));
        state.complete(2, 5, How::DeadLettered);
        assert_eq!((state.attempts(3), state.totals.dead_lettered), (None, 3));
        state.came_back(3, attempts);
        assert_eq!(state.attempts(3), None, "what is completed does not come back");
    }
}
