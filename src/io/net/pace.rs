//! How much of a core's time those who come and those who leave may take from the
//! others. The requests of those who have said hello have no pace.

use crate::limits::MAX_ACCEPTS;

/// So many of a kind at once, at most. Also what is saved up while a turn of the loop
/// is long.
pub(super) const AT_ONCE: usize = MAX_ACCEPTS;

/// Most have so much time, in µs; they take 10 to 25 µs. Beside 10,000 newcomers who all
/// sent garbage at one moment a ping took up to 108 ms, when only accepting and closing
/// had a pace, and then 3 to 9 ms at the most. With more time, a crowd finds the queue at
/// the door full, and waits for a second: of 10,000 that connect within 0.23 s, 6 to 16 %
/// with 50 µs, and nobody with 25 µs.
pub(super) const EACH_US: u64 = 25;

/// Whoever must wait does so until there is time for so many: fewer wake-ups.
const TOGETHER: u64 = 2;

/// What has a pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// To accept a connection.
    Accept,
    /// To look at what came from a connection without a hello.
    Hear,
    /// To say goodbye to one that broke a rule, and shut it.
    Part,
    /// To close a socket.
    Close,
}

const STEPS: usize = 4;

impl Step {
    /// How much time it has, in µs. A goodbye with its shutdown takes 45 µs. With 100 µs
    /// each for 10,000 of them, others' acknowledgements had a p99 of 2.6 to 3.1 ms
    /// meanwhile, with 200 µs one of 1.2 to 1.7 ms (0.9 to 1.4 ms without them; medians of
    /// 9 rounds, three times in turn).
    pub fn time_us(self) -> u64 {
        match self {
            Step::Accept | Step::Hear | Step::Close => EACH_US,
            Step::Part => 8 * EACH_US,
        }
    }
}

/// The time that they may take. Each kind has its own: it comes as time passes, up to
/// that of [`AT_ONCE`], or of one. While several kinds wait for theirs it comes to each
/// as much more slowly, so that those who are far too many share it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Of each kind, the time before this is used up (monotonic, µs).
    used_us: [u64; STEPS],
    waits: [bool; STEPS],
}

impl Pace {
    /// Whether a step may be done now (monotonic, µs); if so its time is used up.
    pub fn take(&mut self, step: Step, now_us: u64) -> bool {
        let cost_us = self.cost_us(step);
        let saved_us = now_us.saturating_sub(cost_us.max(AT_ONCE as u64 * EACH_US));
        let until_us = self.used_us[step as usize].max(saved_us) + cost_us;
        let may = until_us <= now_us;
        if may {
            self.used_us[step as usize] = until_us;
        }
        may
    }

    /// Says whether any of this kind wait. Returns when to go on with them (monotonic,
    /// µs).
    pub fn wait(&mut self, step: Step, waits: bool) -> Option<u64> {
        self.waits[step as usize] = waits;
        waits.then(|| self.used_us[step as usize] + TOGETHER * self.cost_us(step))
    }

    fn cost_us(&self, step: Step) -> u64 {
        let others = (0..STEPS).filter(|&other| other != step as usize && self.waits[other]).count();
        (1 + others as u64) * step.time_us()
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
                (0..2 * AT_ONCE).filter(|_| pace.take(Step::Hear, at)).for_each(|_| done.push(at));
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
    fn all_kinds_that_wait_have_the_same_part_however_short_a_turn_is() {
        for turn in [1, 10, 25, 60, 100, 400] {
            let mut pace = Pace::default();
            let mut done = [0; STEPS];
            let end = 1_000_000;
            for at in (10_000..end).step_by(turn) {
                for step in [Step::Hear, Step::Part, Step::Accept, Step::Close] {
                    while pace.take(step, at) {
                        done[step as usize] += 1;
                    }
                    pace.wait(step, true);
                }
            }
            let turns = (end - 10_000) / turn as u64;
            for (step, count) in [Step::Accept, Step::Hear, Step::Part, Step::Close].into_iter().zip(done) {
                let at_once = if step == Step::Part { 1 } else { 2 };
                let part = ((end - 10_000) / step.time_us() / 4).min(turns * at_once);
                let expected = part * 9 / 10..=part + 16;
                assert!(expected.contains(&count), "turns of {turn} us: {done:?}, {step:?} of {part}");
            }
        }
    }

    #[test]
    fn whoever_may_not_may_at_the_time_that_was_told() {
        for step in [Step::Hear, Step::Part] {
            for others in [&[][..], &[Step::Accept], &[Step::Accept, Step::Close]] {
                let mut pace = Pace::default();
                for &other in others {
                    pace.wait(other, true);
                }
                while pace.take(step, 5_049) {}
                let due_us = pace.wait(step, true).unwrap();
                assert!(due_us > 5_049 && !pace.take(step, 5_049));
                assert!(pace.take(step, due_us), "{step:?} beside {others:?}");
            }
        }
    }
}
