//! Ranges of sequences and the offsets that belong to them, packed: a steady
//! stream costs about three bytes for each range, and neighbouring ranges are
//! one. A hundred million messages, sent one by one by many producers to one
//! partition, fit in 300 MB; most runs need far less.

use crate::ledger::NO_OFFSET;
use crate::varint::{get, get_delta, put, put_delta};

/// The sequences `first..first + count`, at offsets that are dense from
/// `offset`, or unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SequenceRange {
    /// First sequence.
    pub first: u64,
    /// Number of sequences, at least 1.
    pub count: u64,
    /// Offset of `first`, or [`NO_OFFSET`].
    pub offset: u64,
}

impl SequenceRange {
    /// One past the last sequence.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Offset of `sequence`, or [`NO_OFFSET`].
    pub fn offset_of(&self, sequence: u64) -> u64 {
        if self.offset == NO_OFFSET { NO_OFFSET } else { self.offset.wrapping_add(sequence - self.first) }
    }

    fn absorb(&mut self, next: &SequenceRange) -> bool {
        let follows = self.end() == next.first && self.offset_of(next.first) == next.offset;
        if follows {
            self.count += next.count;
        }
        follows
    }

    fn since(&self, sequence: u64) -> SequenceRange {
        SequenceRange { first: sequence, count: self.end() - sequence, offset: self.offset_of(sequence) }
    }
}

/// Ranges of rising sequences; those that came late are kept aside.
#[derive(Default)]
pub struct SequenceRanges {
    packed: Vec<u8>,
    /// The last range of the rising ones, still open for what follows it.
    last: Option<SequenceRange>,
    /// What the next packed range is relative to.
    sealed_end: u64,
    sealed_offset: u64,
    late: Vec<SequenceRange>,
}

impl SequenceRanges {
    /// Adds a range. Returns false if some of it does not lie beyond everything
    /// before it.
    pub fn push(&mut self, range: SequenceRange) -> bool {
        assert!(range.count > 0, "a range is not empty");
        let Some(last) = &mut self.last else {
            self.last = Some(range);
            return true;
        };
        if last.absorb(&range) {
            return true;
        }
        if range.first < last.end() {
            self.late.push(range);
            return false;
        }
        let sealed = std::mem::replace(last, range);
        pack(&mut self.packed, &sealed, self.sealed_end, self.sealed_offset);
        (self.sealed_end, self.sealed_offset) = (sealed.end(), sealed.offset.wrapping_add(sealed.count));
        true
    }

    /// One past the highest sequence, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.last.map_or(0, |last| last.end())
    }

    /// The ranges that came in rising order.
    pub fn rising(&self) -> impl Iterator<Item = SequenceRange> + '_ {
        let (mut end, mut offset) = (0, 0);
        let mut packed = self.packed.as_slice();
        let sealed = std::iter::from_fn(move || {
            let range = unpack(&mut packed, end, offset)?;
            (end, offset) = (range.end(), range.offset.wrapping_add(range.count));
            Some(range)
        });
        sealed.chain(self.last)
    }

    /// The ranges that came late, as they came.
    pub fn late(&self) -> &[SequenceRange] {
        &self.late
    }

    /// All sequences, in order and each once, and how many sequences were
    /// there already when they were added.
    pub fn settle(self) -> (SequenceRanges, u64) {
        if self.late.is_empty() {
            return (self, 0);
        }
        let mut ranges: Vec<SequenceRange> = self.rising().chain(self.late.iter().copied()).collect();
        ranges.sort_by_key(|range| range.first);
        let mut settled = SequenceRanges::default();
        let mut again = 0;
        for range in ranges {
            // Whatever lies below the end is there: the range that reaches the
            // end starts at or before this one.
            let fresh_from = settled.end().clamp(range.first, range.end());
            again += fresh_from - range.first;
            if fresh_from < range.end() {
                settled.push(range.since(fresh_from));
            }
        }
        (settled, again)
    }
}

fn pack(out: &mut Vec<u8>, range: &SequenceRange, end: u64, offset: u64) {
    put(out, range.first - end);
    put(out, range.count);
    put_delta(out, range.offset, offset);
}

fn unpack(packed: &mut &[u8], end: u64, offset: u64) -> Option<SequenceRange> {
    let first = end + get(packed)?;
    Some(SequenceRange { first, count: get(packed)?, offset: get_delta(packed, offset)? })
}

/// A stretch of sequences of one list, compared with another list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The sequences, and their offsets in the first list.
    pub range: SequenceRange,
    /// Offset of the first in the second list; `None` if it has none of them.
    pub found: Option<u64>,
}

/// Walks all sequences of `wanted` and tells which of them `have` has. Both are
/// in rising order.
pub fn compare(
    wanted: impl Iterator<Item = SequenceRange>,
    mut have: impl Iterator<Item = SequenceRange>,
    mut each: impl FnMut(Stretch),
) {
    let mut current = have.next();
    for mut range in wanted {
        loop {
            while current.is_some_and(|h| h.end() <= range.first) {
                current = have.next();
            }
            let (len, found) = match current {
                Some(h) if h.first <= range.first => {
                    (range.count.min(h.end() - range.first), Some(h.offset_of(range.first)))
                }
                Some(h) => (range.count.min(h.first - range.first), None),
                None => (range.count, None),
            };
            each(Stretch { range: SequenceRange { count: len, ..range }, found });
            if len == range.count {
                break;
            }
            range = range.since(range.first + len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u64, count: u64, offset: u64) -> SequenceRange {
        SequenceRange { first, count, offset }
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut list = SequenceRanges::default();
        for i in 0..1000 {
            assert!(list.push(range(i, 1, 5000 + i)));
        }
        assert_eq!(list.rising().collect::<Vec<_>>(), [range(0, 1000, 5000)]);
        assert!(list.packed.is_empty());
    }

    #[test]
    fn interleaved_producers_cost_about_three_bytes_a_run() {
        let mut list = SequenceRanges::default();
        for i in 0..1_000_000 {
            list.push(range(i, 1, i * 64 + i % 7));
        }
        assert!(list.packed.len() < 4_100_000, "{} bytes", list.packed.len());
    }

    proptest! {
        #[test]
        fn a_list_gives_back_what_it_was_given(
            steps in prop::collection::vec((0u64..3, 1u64..5, any::<u64>()), 1..200),
        ) {
            let mut list = SequenceRanges::default();
            let mut wanted = Vec::new();
            let mut at = 0;
            for (gap, count, offset) in steps {
                let offset = if offset % 3 == 0 { NO_OFFSET } else { offset >> 8 };
                let r = range(at + gap, count, offset);
                at = r.end();
                prop_assert!(list.push(r));
                wanted.extend((0..count).map(|i| (r.first + i, r.offset_of(r.first + i))));
            }
            let got: Vec<_> = list
                .rising()
                .flat_map(|r| (r.first..r.end()).map(move |s| (s, r.offset_of(s))))
                .collect();
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn settling_counts_every_sequence_once(
            ranges in prop::collection::vec((0u64..60, 1u64..6), 1..40),
        ) {
            let mut list = SequenceRanges::default();
            let mut seen = std::collections::BTreeSet::new();
            let mut again = 0;
            for (first, count) in ranges {
                list.push(range(first, count, NO_OFFSET));
                again += (first..first + count).filter(|s| !seen.insert(*s)).count() as u64;
            }
            let (settled, counted) = list.settle();
            prop_assert_eq!(counted, again);
            let got: Vec<u64> = settled.rising().flat_map(|r| r.first..r.end()).collect();
            prop_assert_eq!(got, seen.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn comparing_finds_what_is_missing_and_what_moved(
            wanted in prop::collection::btree_set(0u64..80, 0..60),
            have in prop::collection::btree_set(0u64..80, 0..60),
        ) {
            let (mut w, mut h) = (SequenceRanges::default(), SequenceRanges::default());
            wanted.iter().for_each(|&s| assert!(w.push(range(s, 1, s + 1))));
            have.iter().for_each(|&s| assert!(h.push(range(s, 1, s + 1 + u64::from(s % 10 == 0)))));
            let (mut absent, mut moved) = (Vec::new(), Vec::new());
            compare(w.rising(), h.rising(), |s| match s.found {
                None => absent.extend(s.range.first..s.range.end()),
                Some(at) if at != s.range.offset => moved.extend(s.range.first..s.range.end()),
                Some(_) => {}
            });
            prop_assert_eq!(absent, wanted.difference(&have).copied().collect::<Vec<_>>());
            let both = wanted.intersection(&have).copied();
            prop_assert_eq!(moved, both.filter(|s| s % 10 == 0).collect::<Vec<_>>());
        }
    }
}
