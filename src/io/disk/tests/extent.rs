//! What a folder says is there.

use super::*;

/// Between any two operations the power may go: the folder then says what is
/// there, give or take the segment that is being made or recycled.
#[test]
fn the_extent_never_claims_a_segment_that_is_not_there() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), direct());
    let mut seen = Vec::new();
    for segment in 0..12 {
        bench.disk.prepare(&mut bench.ring, SegmentSeq(segment));
        if segment >= 3 {
            bench.disk.recycle(&mut bench.ring, SegmentSeq(segment - 3));
        }
        while bench.disk.in_flight() > 0 {
            bench.turn();
            let before = names(dir.path());
            let now = list(dir.path());
            if names(dir.path()) != before {
                // Not how it was at any one moment: the kernel goes on meanwhile.
                continue;
            }
            assert_eq!(now.extent.missing(&now.segments), [], "{} with {:?}", now.extent, now.segments);
            let claimed = now.extent.next().0 - now.extent.first().0;
            assert!(now.segments.len() as u64 - claimed <= 1, "{} with {:?}", now.extent, now.segments);
            seen.push((now.segments.len(), claimed));
        }
        assert!(matches!(bench.disk.next_event(), Some(Event::SegmentPrepared { result: Ok(()), .. })));
    }
    let now = list(dir.path());
    assert_eq!((now.extent.to_string(), now.segments.len()), (format!("{:016x}-{:016x}", 9, 12), 3));
    for state in [(4, 3), (3, 3)] {
        assert!(seen.contains(&state), "{state:?} of {seen:?}");
    }
}
