//! Records that were delivered for the first time, put in the order of their offsets
//! again: several consumers are sent them at once, and what one that crashed was sent
//! comes much later. Waits only for what lies before; memory is that of the ranges in
//! between.

use std::collections::BTreeMap;

use ringbolt_wire::ProducerId;

use crate::ranges::SequenceRange;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Arrivals {
    /// Everything before this was handed out.
    next: u64,
    /// By offset, what has come too early.
    early: BTreeMap<u64, (ProducerId, SequenceRange)>,
}

impl Arrivals {
    /// Nothing before `next` is of interest.
    pub fn new(next: u64) -> Arrivals {
        Arrivals { next, early: BTreeMap::new() }
    }

    /// Takes records, some of which may have come before, and hands out what is in
    /// order now.
    pub fn add(
        &mut self,
        producer: ProducerId,
        range: SequenceRange,
        mut out: impl FnMut(ProducerId, SequenceRange),
    ) {
        let end = range.offset + range.count;
        let mut at = range.offset.max(self.next);
        if at >= end {
            return;
        }
        if at == self.next && self.early.is_empty() {
            self.next = end;
            return out(producer, part(&range, at, end));
        }
        while at < end {
            let before = self.early.range(..=at).next_back();
            let known_end = before.map_or(0, |(_, (_, known))| known.offset + known.count);
            if known_end > at {
                at = known_end;
                continue;
            }
            let after = self.early.range(at..).next().map_or(end, |(&start, _)| start.min(end));
            self.early.insert(at, (producer, part(&range, at, after)));
            at = after;
        }
        while let Some(entry) = self.early.first_entry().filter(|entry| *entry.key() == self.next) {
            let (producer, range) = entry.remove();
            self.next += range.count;
            out(producer, range);
        }
    }

    /// Hands out the rest, whatever is missing in between.
    pub fn finish(&mut self, mut out: impl FnMut(ProducerId, SequenceRange)) {
        for (_, (producer, range)) in std::mem::take(&mut self.early) {
            self.next = range.offset + range.count;
            out(producer, range);
        }
    }
}

fn part(range: &SequenceRange, from: u64, to: u64) -> SequenceRange {
    SequenceRange { first: range.first + (from - range.offset), count: to - from, offset: from }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_order_each_record_comes_out_once_and_in_order(
            ranges in prop::collection::vec((0u64..50, 1u64..6), 1..80),
        ) {
            let (mut arrivals, mut out) = (Arrivals::new(3), Vec::new());
            let mut came = std::collections::BTreeSet::new();
            for (offset, count) in ranges {
                let range = SequenceRange { first: offset + 1000, count, offset };
                arrivals.add(ProducerId(7), range, |_, range| out.push(range));
                came.extend((offset..offset + count).filter(|o| *o >= 3));
            }
            let in_order: Vec<u64> = out.iter().flat_map(|r| r.offset..r.offset + r.count).collect();
            prop_assert_eq!(&in_order, &(3..arrivals.next).collect::<Vec<_>>());
            arrivals.finish(|_, range| out.push(range));
            let all: Vec<u64> = out.iter().flat_map(|r| r.offset..r.offset + r.count).collect();
            prop_assert_eq!(all, came.into_iter().collect::<Vec<_>>());
            prop_assert!(out.iter().all(|r| r.first == r.offset + 1000));
        }
    }
}
