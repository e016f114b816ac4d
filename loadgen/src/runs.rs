//! Ranges of sequences and the offsets that belong to them, packed: a steady
//! stream costs about three bytes for each range, and neighbouring ranges are
//! one. A hundred million messages, sent one by one by many producers to one
//! partition, fit in 300 MB; most runs need far less.

use crate::ledger::NO_OFFSET;
use crate::varint::{get, get_delta, put, put_delta};

/// The sequences `first..first + count`, at offsets that are dense from
/// `offset`, or unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First sequence.
    pub first: u64,
    /// Number of sequences, at least 1.
    pub count: u64,
    /// Offset of `first`, or [`NO_OFFSET`].
    pub offset: u64,
}

impl Run {
    /// One past the last sequence.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Offset of `sequence`, or [`NO_OFFSET`].
    pub fn offset_of(&self, sequence: u64) -> u64 {
        if self.offset == NO_OFFSET { NO_OFFSET } else { self.offset.wrapping_add(sequence - self.first) }
    }

    fn absorb(&mut self, next: &Run) -> bool {
        let follows = self.end() == next.first && self.offset_of(next.first) == next.offset;
        if follows {
            self.count += next.count;
        }
        follows
    }

    fn since(&self, sequence: u64) -> Run {
        Run { first: sequence, count: self.end() - sequence, offset: self.offset_of(sequence) }
    }
}

/// Runs of rising sequences; those that came late are kept aside.
#[derive(Default)]
pub struct RunList {
    packed: Vec<u8>,
    /// The last run of the rising ones, still open for what follows it.
    last: Option<Run>,
    /// What the next packed run is relative to.
    sealed_end: u64,
    sealed_offset: u64,
    late: Vec<Run>,
}

impl RunList {
    /// Adds a run. Returns false if some of it does not lie beyond everything
    /// before it.
    pub fn push(&mut self, run: Run) -> bool {
        assert!(run.count > 0, "a run is not empty");
        let Some(last) = &mut self.last else {
            self.last = Some(run);
            return true;
        };
        if last.absorb(&run) {
            return true;
        }
        if run.first < last.end() {
            self.late.push(run);
            return false;
        }
        let sealed = std::mem::replace(last, run);
        pack(&mut self.packed, &sealed, self.sealed_end, self.sealed_offset);
        (self.sealed_end, self.sealed_offset) = (sealed.end(), sealed.offset.wrapping_add(sealed.count));
        true
    }

    /// One past the highest sequence, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.last.map_or(0, |last| last.end())
    }

    /// The runs that came in rising order.
    pub fn rising(&self) -> impl Iterator<Item = Run> + '_ {
        let (mut end, mut offset) = (0, 0);
        let mut packed = self.packed.as_slice();
        let sealed = std::iter::from_fn(move || {
            let run = unpack(&mut packed, end, offset)?;
            (end, offset) = (run.end(), run.offset.wrapping_add(run.count));
            Some(run)
        });
        sealed.chain(self.last)
    }

    /// The runs that came late, as they came.
    pub fn late(&self) -> &[Run] {
        &self.late
    }

    /// All sequences, in order and each once, and how many sequences were
    /// there already when they were added.
    pub fn settle(self) -> (RunList, u64) {
        if self.late.is_empty() {
            return (self, 0);
        }
        let mut runs: Vec<Run> = self.rising().chain(self.late.iter().copied()).collect();
        runs.sort_by_key(|run| run.first);
        let mut settled = RunList::default();
        let mut again = 0;
        for run in runs {
            // Whatever lies below the end is there: the run that reaches the
            // end starts at or before this one.
            let fresh_from = settled.end().clamp(run.first, run.end());
            again += fresh_from - run.first;
            if fresh_from < run.end() {
                settled.push(run.since(fresh_from));
            }
        }
        (settled, again)
    }
}

fn pack(out: &mut Vec<u8>, run: &Run, end: u64, offset: u64) {
    put(out, run.first - end);
    put(out, run.count);
    put_delta(out, run.offset, offset);
}

fn unpack(packed: &mut &[u8], end: u64, offset: u64) -> Option<Run> {
    let first = end + get(packed)?;
    Some(Run { first, count: get(packed)?, offset: get_delta(packed, offset)? })
}

/// A stretch of sequences of one list, compared with another list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The sequences, and their offsets in the first list.
    pub run: Run,
    /// Offset of the first in the second list; `None` if it has none of them.
    pub found: Option<u64>,
}

/// Walks all sequences of `wanted` and tells which of them `have` has. Both are
/// in rising order.
pub fn compare(
    wanted: impl Iterator<Item = Run>,
    mut have: impl Iterator<Item = Run>,
    mut each: impl FnMut(Stretch),
) {
    let mut current = have.next();
    for mut run in wanted {
        loop {
            while current.is_some_and(|h| h.end() <= run.first) {
                current = have.next();
            }
            let (len, found) = match current {
                Some(h) if h.first <= run.first => {
                    (run.count.min(h.end() - run.first), Some(h.offset_of(run.first)))
                }
                Some(h) => (run.count.min(h.first - run.first), None),
                None => (run.count, None),
            };
            each(Stretch { run: Run { count: len, ..run }, found });
            if len == run.count {
                break;
            }
            run = run.since(run.first + len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(first: u64, count: u64, offset: u64) -> Run {
        Run { first, count, offset }
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut list = RunList::default();
        for i in 0..1000 {
            assert!(list.push(run(i, 1, 5000 + i)));
        }
        assert_eq!(list.rising().collect::<Vec<_>>(), [run(0, 1000, 5000)]);
        assert!(list.packed.is_empty());
    }

    #[test]
    fn interleaved_producers_cost_about_three_bytes_a_run() {
        let mut list = RunList::default();
        for i in 0..1_000_000 {
            list.push(run(i, 1, i * 64 + i % 7));
        }
        assert!(list.packed.len() < 4_100_000, "{} bytes", list.packed.len());
    }

    proptest! {
        #[test]
        fn a_list_gives_back_what_it_was_given(
            steps in prop::collection::vec((0u64..3, 1u64..5, any::<u64>()), 1..200),
        ) {
            let mut list = RunList::default();
            let mut wanted = Vec::new();
            let mut at = 0;
            for (gap, count, offset) in steps {
                let offset = if offset % 3 == 0 { NO_OFFSET } else { offset >> 8 };
                let r = run(at + gap, count, offset);
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
            runs in prop::collection::vec((0u64..60, 1u64..6), 1..40),
        ) {
            let mut list = RunList::default();
            let mut seen = std::collections::BTreeSet::new();
            let mut again = 0;
            for (first, count) in runs {
                list.push(run(first, count, NO_OFFSET));
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
            let (mut w, mut h) = (RunList::default(), RunList::default());
            wanted.iter().for_each(|&s| assert!(w.push(run(s, 1, s + 1))));
            have.iter().for_each(|&s| assert!(h.push(run(s, 1, s + 1 + u64::from(s % 10 == 0)))));
            let (mut absent, mut moved) = (Vec::new(), Vec::new());
            compare(w.rising(), h.rising(), |s| match s.found {
                None => absent.extend(s.run.first..s.run.end()),
                Some(at) if at != s.run.offset => moved.extend(s.run.first..s.run.end()),
                Some(_) => {}
            });
            prop_assert_eq!(absent, wanted.difference(&have).copied().collect::<Vec<_>>());
            let both = wanted.intersection(&have).copied();
            prop_assert_eq!(moved, both.filter(|s| s % 10 == 0).collect::<Vec<_>>());
        }
    }
}
