//! How much of a core's time those who come and those who leave may take from the
//! others, together. The requests of those who have said
//! hello have no pace.

use crate::limits::MAX_ACCEPTS;

/// So many at once, at most: accepted, heard for the first time, told goodbye, or
/// closed. Also what is saved up while a turn of the loop is long.
pub(super) const AT_ONCE: usize = MAX_ACCEPTS;

/// Each has so much time, in µs; it takes 10 to 20 µs. Beside 10,000 newcomers who all
/// sent garbage at one moment a ping took up to 108 ms, when only accepting and closing
/// had a pace, and takes 1.1 ms. With more time, a crowd finds the queue at the door
/// full, and waits for a second: of 10,000 that connect within 0.23 s, 6 to 16 % with
/// 50 µs, and nobody with 25 µs.
pub(super) const EACH_US: u64 = 25;

/// Whoever must wait does so until there is time for so many: fewer wake-ups.
const TOGETHER: u64 = 2;

/// The time that they may take: it comes as time passes, up to that of [`AT_ONCE`].
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Time before this is used up (monotonic, µs).
    used_us: u64,
}

impl Pace {
    /// Whether `count` may be done now (monotonic, µs), all of them; if so their time
    /// is used up.
    pub fn take(&mut self, count: usize, now_us: u64) -> bool {
        let saved_us = now_us.saturating_sub(AT_ONCE as u64 * EACH_US);
        let until_us = self.used_us.max(saved_us) + count as u64 * EACH_US;
        let may = until_us <= now_us;
        if may {
            self.used_us = until_us;
        }
        may
    }

    /// When those may that may not now, two of them at most.
    pub fn next(&self) -> u64 {
        self.used_us + TOGETHER * EACH_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_done_than_may_be_whenever_they_come() {
        for step in [1, 7, 49, 99, 101, 399, 1_000] {
            let mut pace = Pace::default();
            let mut done = Vec::new();
            let end = 1_000_000;
            for at in (10_000..end).step_by(step) {
                (0..2 * AT_ONCE).filter(|_| pace.take(1, at)).for_each(|_| done.push(at));
            }
            let turns = (end - 10_000) / step as u64;
            let most = ((end - 10_000) / EACH_US).min(turns * AT_ONCE as u64) as usize + AT_ONCE;
            assert!(
                (most * 9 / 10..=most).contains(&done.len()),
                "every {step} us: {} of {most}",
                done.len()
            );
            // In any stretch of time, what it brings and what was saved up before it.
            for count in [AT_ONCE + 1, 3 * AT_ONCE, 10 * AT_ONCE] {
                let least_us = (count - AT_ONCE - 1) as u64 * EACH_US;
                assert!(done.windows(count).all(|d| d[count - 1] - d[0] >= least_us), "every {step} us");
            }
        }
    }

    #[test]
    fn whoever_may_not_may_at_the_time_that_was_told() {
        for count in [1, 2] {
            let mut pace = Pace::default();
            while pace.take(count, 5_049) {}
            assert!(!pace.take(count, 5_049));
            let next = pace.next();
            assert!(next > 5_049 && !pace.take(count, 5_049 + EACH_US / 2));
            assert!(pace.take(count, next), "{count} at once");
        }
    }
}
