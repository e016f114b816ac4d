//! A set of offsets as ranges that do not touch each other.

use std::collections::BTreeMap;

/// Offsets, as ranges. Costs memory for each range, however long it is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RangeSet {
    /// End of each range, exclusive, by its start.
    ends: BTreeMap<u64, u64>,
    /// Offsets in all of them.
    total: u64,
}

impl RangeSet {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many offsets there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The ranges, lowest first: start, and end exclusive.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ends.iter().map(|(start, end)| (*start, *end))
    }

    /// End of the range that holds `offset`, if one does.
    #[inline]
    pub fn end_of(&self, offset: u64) -> Option<u64> {
        // Mostly asked of the newest, and the last one is found in a fifth of the time.
        if self.end() <= offset {
            return None;
        }
        let (_, end) = self.ends.range(..=offset).next_back()?;
        (*end > offset).then_some(*end)
    }

    /// Every offset in it is before this one.
    #[inline]
    fn end(&self) -> u64 {
        self.ends.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// Whether `offset` is in it.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        self.end_of(offset).is_some()
    }

    /// Start of the first range at or after `offset`.
    pub fn next_start(&self, offset: u64) -> Option<u64> {
        self.ends.range(offset..).next().map(|(start, _)| *start)
    }

    /// Whether anything of `start..end` is in it.
    pub fn intersects(&self, start: u64, end: u64) -> bool {
        self.contains(start) || self.next_start(start).is_some_and(|next| next < end)
    }

    /// Adds `start..end`. Returns how many offsets were not in it.
    pub fn insert(&mut self, start: u64, end: u64) -> u64 {
        assert!(start <= end, "a range of offsets {start}..{end}");
        if start == end {
            return 0;
        }
        if self.end() < start {
            self.ends.insert(start, end);
            self.total += end - start;
            return end - start;
        }
        let before = self.total;
        let (mut from, mut to) = (start, end);
        if let Some((&left, &left_end)) = self.ends.range(..=start).next_back()
            && left_end >= start
        {
            (from, to) = (left, to.max(left_end));
            self.remove_at(left);
        }
        while let Some((&right, &right_end)) = self.ends.range(from..=to).next() {
            to = to.max(right_end);
            self.remove_at(right);
        }
        self.ends.insert(from, to);
        self.total += to - from;
        self.total - before
    }

    /// Removes and returns the lowest range if it starts at or before `offset`.
    pub fn take_first_up_to(&mut self, offset: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.ends.first_key_value()?;
        (start <= offset).then(|| {
            self.remove_at(start);
            (start, end)
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = RangeSet::default();
    }

    fn remove_at(&mut self, start: u64) {
        if let Some(end) = self.ends.remove(&start) {
            self.total -= end - start;
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
        fn it_holds_what_a_plain_set_holds_in_as_few_ranges_as_can_be(
            inserts in prop::collection::vec((0u64..200, 0u64..20), 0..60),
            probe in 0u64..220,
        ) {
            let (mut ranges, mut plain) = (RangeSet::default(), BTreeSet::new());
            for (start, len) in inserts {
                let new = (start..start + len).filter(|offset| plain.insert(*offset)).count();
                prop_assert_eq!(ranges.insert(start, start + len), new as u64);
            }
            prop_assert_eq!(ranges.total(), plain.len() as u64);
            let listed: BTreeSet<u64> = ranges.iter().flat_map(|(start, end)| start..end).collect();
            prop_assert_eq!(&listed, &plain);
            let touching = ranges.iter().zip(ranges.iter().skip(1)).any(|(a, b)| a.1 >= b.0);
            prop_assert!(!touching);
            prop_assert_eq!(ranges.contains(probe), plain.contains(&probe));
            let next = ranges.next_start(probe);
            let starts = plain.iter().filter(|o| **o >= probe && (**o == 0 || !plain.contains(&(**o - 1))));
            prop_assert_eq!(next, starts.min().copied());
            prop_assert_eq!(ranges.intersects(probe, probe + 7), (probe..probe + 7).any(|o| plain.contains(&o)));
            if let Some((start, end)) = ranges.take_first_up_to(probe) {
                prop_assert!(start <= probe && (start..end).all(|o| plain.contains(&o)));
                prop_assert_eq!(ranges.total(), plain.len() as u64 - (end - start));
            }
        }
    }
}
