//! Changes that have happened and are not in a commit yet, as they will lie in the
//! log: those of one turn share a record.

use super::acks::{Attempts, How};
use super::changes::{GroupKey, put_came_back, put_checkpoint, put_completed, put_starts};
use super::ranges::RangeSet;

/// Bytes of changes at which a record is full.
const RECORD_LEN: usize = 64 << 10;

/// Bytes of a completed range.
const RANGE_LEN: usize = 8;

/// Ranges of one change: what a single request completes may be far more than a record
/// holds.
const MAX_RANGES: usize = RECORD_LEN / RANGE_LEN;

/// Acknowledgements of one group and partition, while nothing else comes between.
#[derive(Debug)]
struct Open {
    key: GroupKey,
    how: How,
    delivered_end: u64,
    ranges: RangeSet,
}

/// See the module.
#[derive(Default, Debug)]
pub struct ChangeLog {
    /// Whole records' values.
    full: Vec<Vec<u8>>,
    full_len: usize,
    bytes: Vec<u8>,
    open: Option<Open>,
}

impl ChangeLog {
    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.bytes.is_empty() && self.open.is_none()
    }

    /// Bytes that wait, about.
    #[inline]
    pub fn len(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |open| open.ranges.len() * RANGE_LEN);
        self.full_len + self.bytes.len() + open
    }

    /// Records were completed, and others before `delivered_end` delivered.
    #[inline]
    pub fn completed(&mut self, key: GroupKey, how: How, (start, end): (u64, u64), delivered_end: u64) {
        match &mut self.open {
            Some(open) if open.key == key && open.how == how => {
                open.ranges.insert(start, end);
                open.delivered_end = open.delivered_end.max(delivered_end);
            }
            _ => {
                self.close();
                let mut ranges = RangeSet::default();
                ranges.insert(start, end);
                self.open = Some(Open { key, how, delivered_end, ranges });
            }
        }
    }

    /// A record came back.
    pub fn came_back(&mut self, key: GroupKey, offset: u64, attempts: &Attempts) {
        self.close();
        put_came_back(self.room(), key, offset, attempts);
    }

    /// A group starts here in a partition.
    pub fn starts(&mut self, key: GroupKey, floor: u64) {
        self.close();
        put_starts(self.room(), key, floor);
    }

    /// Everything can be read from this offset of the changes on.
    pub fn checkpoint(&mut self, offset: u64) {
        self.close();
        put_checkpoint(self.room(), offset);
    }

    /// Appends what `put` appends, between changes.
    pub fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        self.close();
        put(self.room());
    }

    /// The records' values that wait, in order.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        self.close();
        let mut values = std::mem::take(&mut self.full);
        self.full_len = 0;
        if !self.bytes.is_empty() {
            values.push(std::mem::take(&mut self.bytes));
        }
        values
    }

    /// Puts back what [`take`](Self::take) gave, or the end of it: nothing else
    /// came in between.
    pub fn put_back(&mut self, values: Vec<Vec<u8>>) {
        assert!(self.is_empty(), "what came later is behind it");
        self.full_len = values.iter().map(Vec::len).sum();
        self.full = values;
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let ranges: Vec<(u64, u64)> = open.ranges.iter().collect();
            for ranges in ranges.chunks(MAX_RANGES) {
                let ranges = ranges.iter().copied();
                put_completed(self.room(), open.key, open.how, open.delivered_end, ranges);
            }
        }
    }

    fn room(&mut self) -> &mut Vec<u8> {
        if self.bytes.len() >= RECORD_LEN {
            self.full_len += self.bytes.len();
            self.full.push(std::mem::take(&mut self.bytes));
        }
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::GroupId;

    use super::super::changes::GroupsState;
    use super::*;

    /// Every other record of a million, acknowledged by one request.
    #[test]
    fn what_one_request_completes_is_in_records_that_can_be_stored() {
        let key = GroupKey { group: GroupId(1), partition: 0 };
        let mut log = ChangeLog::default();
        log.starts(key, 0);
        (0..500_000u64).for_each(|i| log.completed(key, How::Acked, (2 * i + 1, 2 * i + 2), 1_000_000));
        let values = log.take();
        let longest = values.iter().map(Vec::len).max();
        assert!(longest <= Some(3 * RECORD_LEN), "{longest:?} bytes");
        let mut read = GroupsState::default();
        values.iter().for_each(|value| read.apply(value).unwrap());
        let state = &read.acks[&key];
        assert_eq!(
            (state.floor(), state.completed().total(), state.delivered_end()),
            (0, 500_000, 1_000_000)
        );
    }
}
