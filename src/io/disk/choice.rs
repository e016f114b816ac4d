//! Whether few writes in flight are better off with flushes of their own or with
//! shared ones: found out by trying both.
//!
//! A write with its own flush is the faster one by a fifth or more, unless other
//! programs keep the disk's interrupt core busy: there the kernel's worker that
//! sends the flush waits for its turn. One write at a time beside such a program
//! took 4 ms with its own flush, 0.13 ms with a shared one; 64 x 1 came to 1.8
//! times the rate.

/// Least time between two trials, in µs.
const TRIAL_EVERY_US: u64 = 10_000;

/// Least number of writes between two trials.
const TRIAL_EVERY: u32 = 8;

/// Writes of the usual kind, and trials, after which the two are compared.
const SAMPLES: (u64, u64) = (256, 32);

/// First time after a comparison before anything is tried again, in µs; it doubles
/// as long as nothing changes. Beside a busy program each trial of a write's own
/// flush holds up acknowledgements.
const FIRST_PATIENCE_US: u64 = 1_000_000;
const LONGEST_PATIENCE_US: u64 = 64_000_000;

/// Shared flushes are tried when so many of so many writes with their own were held
/// up, which means longer than so many µs: what waits for its turn on a busy core
/// waits for a time slice, 3 to 4 ms. Not without a reason: one trial in a hundred
/// writes brought 64 x 1 to 0.92 of the rate on quiet cores.
const HELD_UP: u64 = 3;
const HELD_UP_OF: u64 = 64;
const HELD_UP_US: u64 = 2000;

/// Own flushes that were given up again so soon, in µs, were returned to in error.
const SOON_US: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    us: u64,
    count: u64,
}

impl Sum {
    fn add(&mut self, us: u64) {
        self.us += us;
        self.count += 1;
    }

    fn mean(&self) -> u64 {
        self.us / self.count.max(1)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Choice {
    /// What is usual now.
    shares: bool,
    own: Sum,
    shared: Sum,
    writes_since_trial: u32,
    trial_at_us: u64,
    /// Nothing is tried before this.
    quiet_until_us: u64,
    /// While flushes are not shared: there is a reason to try it.
    is_suspicious: bool,
    /// Writes with their own flush since that was last looked at, and how many of
    /// them were held up.
    looked_at: u64,
    held_up: u64,
    patience_us: u64,
    /// When own flushes were last returned to.
    returned_at_us: Option<u64>,
}

impl Default for Choice {
    fn default() -> Self {
        Choice {
            shares: false,
            own: Sum::default(),
            shared: Sum::default(),
            writes_since_trial: 0,
            trial_at_us: 0,
            quiet_until_us: 0,
            is_suspicious: false,
            looked_at: 0,
            held_up: 0,
            patience_us: FIRST_PATIENCE_US,
            returned_at_us: None,
        }
    }
}

impl Choice {
    /// Whether the next write shares a flush.
    #[inline]
    pub(super) fn next_shares(&mut self, now_us: u64) -> bool {
        self.writes_since_trial += 1;
        let is_trial = (self.shares || self.is_suspicious)
            && self.writes_since_trial >= TRIAL_EVERY
            && now_us >= self.trial_at_us.max(self.quiet_until_us);
        if is_trial {
            self.writes_since_trial = 0;
            self.trial_at_us = now_us + TRIAL_EVERY_US;
        }
        self.shares != is_trial
    }

    /// Takes note of how long a write took until it was durable.
    #[inline]
    pub(super) fn took(&mut self, shared: bool, us: u64, now_us: u64) {
        if !self.shares && !shared {
            self.watch(us);
        }
        if now_us < self.quiet_until_us || !(self.shares || self.is_suspicious) {
            return;
        }
        if shared {
            self.shared.add(us);
        } else {
            self.own.add(us);
        }
        let (usual, tried) = if self.shares { (self.shared, self.own) } else { (self.own, self.shared) };
        if usual.count >= SAMPLES.0 && tried.count >= SAMPLES.1 {
            self.decide(now_us);
        }
    }

    /// Looks for writes that were held up.
    #[inline]
    fn watch(&mut self, us: u64) {
        self.looked_at += 1;
        self.held_up += u64::from(us > HELD_UP_US);
        if self.looked_at == HELD_UP_OF {
            self.is_suspicious |= self.held_up >= HELD_UP;
            (self.looked_at, self.held_up) = (0, 0);
        }
    }

    fn decide(&mut self, now_us: u64) {
        let (own, shared) = (self.own.mean(), self.shared.mean());
        // By a quarter, so that chance does not decide.
        let shares = if self.shares { own >= shared } else { own > shared + shared / 4 };
        let is_error = shares && !self.shares && self.returned_at_us.is_some_and(|at| now_us < at + SOON_US);
        if shares == self.shares || is_error {
            self.patience_us = (2 * self.patience_us).min(LONGEST_PATIENCE_US);
        } else if shares {
            self.patience_us = FIRST_PATIENCE_US;
        }
        if self.shares && !shares {
            self.returned_at_us = Some(now_us);
        }
        self.shares = shares;
        self.is_suspicious = false;
        self.quiet_until_us = now_us + self.patience_us;
        (self.own, self.shared) = (Sum::default(), Sum::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes every 200 µs, for so many seconds, that take as long as `time` says
    /// for each kind. Returns the shares of writes with shared flushes, by second.
    fn run(choice: &mut Choice, now_us: &mut u64, seconds: usize, time: impl Fn(bool) -> u64) -> Vec<f64> {
        (0..seconds)
            .map(|_| {
                let mut shared = 0;
                for _ in 0..5000 {
                    *now_us += 200;
                    let shares = choice.next_shares(*now_us);
                    shared += u64::from(shares);
                    choice.took(shares, time(shares), *now_us);
                }
                shared as f64 / 5000.0
            })
            .collect()
    }

    fn quiet(shared: bool) -> u64 {
        if shared { 180 } else { 150 }
    }

    fn busy(shared: bool) -> u64 {
        if shared { 135 } else { 4000 }
    }

    #[test]
    fn nothing_is_tried_where_no_write_is_held_up() {
        let (mut choice, mut now) = (Choice::default(), 0);
        assert!(run(&mut choice, &mut now, 100, quiet).iter().all(|share| *share == 0.0));
    }

    /// A disk for which every flush takes long.
    #[test]
    fn own_flushes_are_kept_where_they_are_faster_and_others_tried_seldom() {
        let (mut choice, mut now) = (Choice::default(), 0);
        let slow = |shared| 8000 + quiet(shared);
        let shares = run(&mut choice, &mut now, 100, slow);
        assert!(shares.iter().all(|share| *share < 0.03));
        let tried: f64 = shares[50..].iter().map(|share| share * 5000.0).sum();
        assert!((1.0..=64.0).contains(&tried), "{tried} of 250,000 writes were trials");
    }

    #[test]
    fn flushes_are_shared_within_a_moment_when_own_ones_are_held_up_and_not_for_ever() {
        let (mut choice, mut now) = (Choice::default(), 0);
        run(&mut choice, &mut now, 100, quiet);
        let shares = run(&mut choice, &mut now, 200, busy);
        assert!(shares[0] > 0.5, "{}", shares[0]);
        let own: f64 = shares[100..].iter().map(|share| (1.0 - share) * 5000.0).sum();
        assert!((1.0..=64.0).contains(&own), "{own} of 500,000 writes were held up");
        let shares = run(&mut choice, &mut now, 140, quiet);
        assert!(shares.last().unwrap() < &0.03, "{:?}", shares.last());
    }

    #[test]
    fn a_write_that_is_held_up_for_once_decides_nothing() {
        let (mut choice, mut now) = (Choice::default(), 0);
        run(&mut choice, &mut now, 1, quiet);
        for _ in 0..50 {
            choice.took(false, 60_000, now);
            assert_eq!(run(&mut choice, &mut now, 1, quiet)[0], 0.0);
        }
    }
}
