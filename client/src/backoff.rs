//! How long to wait before trying again: doubling, capped, with jitter. Knows no
//! clock; its randomness is a seed.

use std::time::Duration;

/// Bounds of a [`Backoff`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackoffConfig {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub cap: Duration,
}

/// What the protocol asks of clients that were not told how long to wait.
impl Default for BackoffConfig {
    fn default() -> Self {
        BackoffConfig { first: Duration::from_millis(10), cap: Duration::from_secs(1) }
    }
}

/// A series of waits. Each is between half of and the whole of its step, so
/// that clients that were refused together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    config: BackoffConfig,
    attempt: u32,
    random: u64,
}

impl Backoff {
    /// A series that starts with `config.first`.
    pub fn new(config: BackoffConfig, seed: u64) -> Self {
        Backoff { config, attempt: 0, random: seed }
    }

    /// The next wait in µs.
    pub fn next_us(&mut self) -> u64 {
        let first = self.config.first.as_micros() as u64;
        let cap = self.config.cap.as_micros() as u64;
        let step = first.saturating_mul(1 << self.attempt.min(32)).min(cap);
        self.attempt = self.attempt.saturating_add(1);
        let half = step / 2;
        half + self.random() % (step - half + 1)
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        Duration::from_micros(self.next_us())
    }

    /// Starts the series again: something succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_again() {
        let config = BackoffConfig { first: Duration::from_millis(10), cap: Duration::from_millis(100) };
        for seed in 0..200 {
            let mut backoff = Backoff::new(config, seed);
            for step in [10_000, 20_000, 40_000, 80_000, 100_000, 100_000] {
                let wait = backoff.next_us();
                assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
            }
            (0..100).for_each(|_| assert!(backoff.next_us() <= 100_000));
            backoff.reset();
            assert!(backoff.next_us() <= 10_000);
        }
    }

    #[test]
    fn seeds_spread() {
        let waits: std::collections::HashSet<u64> =
            (0..100).map(|seed| Backoff::new(BackoffConfig::default(), seed).next_us()).collect();
        assert!(waits.len() > 80, "{} different waits", waits.len());
    }
}
