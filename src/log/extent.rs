//! Which segments a log must have.
//!
//! Segments that are gone from either end of a log leave no trace in those that
//! are left: without a record of where the log begins and ends, a lost oldest
//! segment would pass for one that is no longer retained, and a log that is lost
//! whole for a new one. The record is changed so that it never claims a segment
//! that is not there: after a segment has got its file, before one is given up.

use std::fmt;
use std::ops::RangeInclusive;

use super::SegmentSeq;

/// The segments from `first` on, up to and without `next`. Others may be there
/// as well: one before `first` that was about to be given up, and one at `next`
/// that was just made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    first: SegmentSeq,
    next: SegmentSeq,
}

impl Extent {
    /// Of a log that has no segment yet.
    pub const EMPTY: Extent = Extent { first: SegmentSeq(0), next: SegmentSeq(0) };

    /// From `first` up to and without `next`; `None` if `next` comes before
    /// `first`.
    pub fn new(first: SegmentSeq, next: SegmentSeq) -> Option<Extent> {
        (first <= next).then_some(Extent { first, next })
    }

    /// The oldest segment that must be there, if any must.
    pub fn first(self) -> SegmentSeq {
        self.first
    }

    /// The segment after the newest that must be there.
    pub fn next(self) -> SegmentSeq {
        self.next
    }

    /// When this segment has its file as well.
    #[must_use]
    pub fn with(self, segment: SegmentSeq) -> Extent {
        Extent { next: self.next.max(segment.next()), ..self }
    }

    /// When this segment and all before it need not be there any more.
    #[must_use]
    pub fn without(self, segment: SegmentSeq) -> Extent {
        let first = self.first.max(segment.next());
        Extent { first, next: self.next.max(first) }
    }

    /// The segments that are missing, if `found`, ascending, are there: those
    /// of the extent, and any between others.
    pub fn missing(self, found: &[SegmentSeq]) -> Vec<RangeInclusive<SegmentSeq>> {
        let mut missing = Vec::new();
        let mut wanted = found.first().map_or(self.first, |&oldest| oldest.min(self.first));
        for &segment in found.iter().chain([&self.next]) {
            if wanted < segment {
                missing.push(wanted..=SegmentSeq(segment.0 - 1));
            }
            wanted = wanted.max(SegmentSeq(segment.0.saturating_add(1)));
        }
        missing
    }
}

/// As in the name of its file.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(first: u64, next: u64) -> Extent {
        Extent::new(SegmentSeq(first), SegmentSeq(next)).unwrap()
    }

    fn missing(extent: Extent, found: &[u64]) -> Vec<(u64, u64)> {
        let found: Vec<_> = found.iter().copied().map(SegmentSeq).collect();
        extent.missing(&found).into_iter().map(|range| (range.start().0, range.end().0)).collect()
    }

    #[test]
    fn a_segment_missing_at_either_end_or_between_is_named() {
        for (found, gone) in [
            (&[3, 4, 5, 6][..], &[][..]),
            (&[4, 5, 6], &[(3, 3)]),
            (&[6], &[(3, 5)]),
            (&[3, 4, 5], &[(6, 6)]),
            (&[3, 6], &[(4, 5)]),
            (&[4], &[(3, 3), (5, 6)]),
            (&[], &[(3, 6)]),
        ] {
            assert_eq!(missing(extent(3, 7), found), gone, "found {found:?}");
        }
    }

    #[test]
    fn what_a_crash_leaves_beyond_the_extent_is_no_loss() {
        assert_eq!(missing(extent(3, 5), &[2, 3, 4]), [], "about to be recycled");
        assert_eq!(missing(extent(3, 5), &[3, 4, 5]), [], "just made");
        assert_eq!(missing(Extent::EMPTY, &[]), []);
        assert_eq!(missing(Extent::EMPTY, &[0]), []);
        assert_eq!(missing(Extent::EMPTY, &[2]), [(0, 1)], "a log begins at its first segment");
    }

    #[test]
    fn a_segment_with_the_last_number_of_all_is_not_waited_for() {
        assert_eq!(missing(extent(0, 2), &[0, 1, u64::MAX]), [(2, u64::MAX - 1)]);
    }

    proptest! {
        /// Making and giving up segments, with a crash between any two steps: the
        /// extent never claims what is not there, and whatever is then lost of
        /// what it claims is noticed.
        #[test]
        fn no_crash_leaves_a_segment_missing_and_no_loss_goes_unnoticed(
            makes in prop::collection::vec(any::<bool>(), 1..40),
            lost in any::<prop::sample::Index>(),
        ) {
            let (mut extent, mut files) = (Extent::EMPTY, std::collections::BTreeSet::new());
            let check = |extent: Extent, files: &std::collections::BTreeSet<SegmentSeq>| {
                let found: Vec<_> = files.iter().copied().collect();
                assert_eq!(extent.missing(&found), [], "{extent} with {found:?}");
                let claimed: Vec<_> = found.iter().copied().filter(|s| (extent.first()..extent.next()).contains(s)).collect();
                if claimed.is_empty() { return }
                let lost = *lost.get(&claimed);
                let left: Vec<_> = found.iter().copied().filter(|&s| s != lost).collect();
                assert_eq!(extent.missing(&left), [lost..=lost]);
            };
            for make in makes {
                if make || files.len() < 2 {
                    files.insert(extent.next());
                    check(extent, &files);
                    extent = extent.with(extent.next());
                } else {
                    let oldest = extent.first();
                    extent = extent.without(oldest);
                    check(extent, &files);
                    files.remove(&oldest);
                }
                check(extent, &files);
            }
        }
    }
}
