//! Sets of offsets, as ranges: what grows from one end costs one range, and every
//! exception one more.

use std::collections::BTreeMap;
use std::ops::Range;

/// See the [module](self).
#[derive(Default, Clone, Debug)]
pub(super) struct Offsets {
    /// From start to end; no two touch each other.
    ranges: BTreeMap<u64, u64>,
}

impl Offsets {
    /// Whether an offset is in it.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        self.end_of(offset).is_some()
    }

    /// The end of the range that has this offset.
    #[inline]
    pub fn end_of(&self, offset: u64) -> Option<u64> {
        let (_, end) = self.ranges.range(..=offset).next_back()?;
        Some(*end).filter(|end| *end > offset)
    }

    /// Adds offsets; returns how many were not in it before.
    pub fn insert(&mut self, Range { start, end }: Range<u64>) -> u64 {
        if start >= end {
            return 0;
        }
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() == start
        {
            *last.get_mut() = end;
            return end - start;
        }
        let (mut from, mut to, mut had) = (start, end, 0);
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back()
            && before_end >= start
        {
            had += before_end.min(end) - start;
            (from, to) = (before, to.max(before_end));
            self.ranges.remove(&before);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            had += next_end.min(end) - next;
            to = to.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(from, to);
        end - start - had
    }

    /// Takes an offset out.
    pub fn remove(&mut self, offset: u64) {
        let Some((&start, &end)) = self.ranges.range(..=offset).next_back() else { return };
        if end <= offset {
            return;
        }
        self.ranges.remove(&start);
        if start < offset {
            self.ranges.insert(start, offset);
        }
        if offset + 1 < end {
            self.ranges.insert(offset + 1, end);
        }
    }

    /// How many offsets are in it.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_the_set_of_its_offsets(
            steps in prop::collection::vec((0u64..60, 0u64..8, any::<bool>()), 1..60),
        ) {
            let (mut offsets, mut wanted) = (Offsets::default(), BTreeSet::new());
            for (start, count, is_removal) in steps {
                if is_removal {
                    offsets.remove(start);
                    wanted.remove(&start);
                } else {
                    let new = (start..start + count).filter(|o| wanted.insert(*o)).count() as u64;
                    prop_assert_eq!(offsets.insert(start..start + count), new);
                }
                let all: Vec<u64> = offsets.ranges().flatten().collect();
                prop_assert_eq!(all, wanted.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(offsets.count(), wanted.len() as u64);
            }
            for offset in 0..70 {
                prop_assert_eq!(offsets.contains(offset), wanted.contains(&offset));
            }
            let ranges: Vec<_> = offsets.ranges().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ranges);
        }
    }
}
