//! How much of a core's time those who come and those who leave may take from the
//! others.

/// So many at once, and again after [`EVERY_US`]. Each takes the kernel 10 to 20 µs,
/// so a crowd of 10,000 takes two fifths of the core for half a second; longer beside
/// turns of the loop of more than [`EVERY_US`], as each turn lets two in, however long
/// it is. Accepts that were under way before come on top, and closes beside accepts.
/// While 10,000 left, a producer's p90 was 0.70 ms with
/// eight in every turn of the loop, and is 0.55 ms. Without any bound its p99 is 7 ms
/// (debug build).
pub(super) const AT_ONCE: usize = 2;

/// See [`AT_ONCE`], in µs.
pub(super) const EVERY_US: u64 = 100;

/// Counts what is done, and says when it is enough.
#[derive(Debug, Default)]
pub(super) struct Pace {
    since_us: u64,
    done: usize,
}

impl Pace {
    /// Whether another one may be done now (monotonic, µs), and counts it if so.
    pub fn take(&mut self, now_us: u64) -> bool {
        if now_us >= self.next() {
            *self = Pace { since_us: now_us, done: 0 };
        }
        let may = self.done < AT_ONCE;
        self.done += usize::from(may);
        may
    }

    /// When the next may be done, after one that may not.
    pub fn next(&self) -> u64 {
        self.since_us + EVERY_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_done_than_may_be_whenever_they_come() {
        for step in [1, 7, 49, 99, 101] {
            let mut pace = Pace::default();
            let mut done = Vec::new();
            let end = 100_000;
            for at in (1_000..end).step_by(step) {
                (0..3).filter(|_| pace.take(at)).for_each(|_| done.push(at));
            }
            let few = 2 * AT_ONCE;
            assert!(done.windows(few + 1).all(|d| d[few] - d[0] >= EVERY_US), "every {step} us: {done:?}");
            let most = ((end - 1_000) / EVERY_US + 1) as usize * AT_ONCE;
            assert!((most / 2..=most).contains(&done.len()), "every {step} us: {} of {most}", done.len());
        }
    }

    #[test]
    fn whoever_may_not_may_at_the_time_that_was_told() {
        let mut pace = Pace::default();
        assert!((0..AT_ONCE).all(|_| pace.take(5_000)));
        assert!(!pace.take(5_050));
        assert!(!pace.take(pace.next() - 1));
        assert!(pace.take(pace.next()));
    }
}
