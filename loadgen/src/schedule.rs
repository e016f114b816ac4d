//! When an open loop sends: every batch has its moment, fixed before the run,
//! whatever the broker does in the meantime.
//!
//! Latency counts from that moment (Gil Tene's correction for "coordinated
//! omission": a generator that waits for a slow answer before it sends the next
//! request would leave out exactly the requests that had to wait).
//!
//! Two delays must not be mixed up. When the broker is slow, a producer's
//! window fills, and batches wait for room: the broker's doing, part of its
//! latency. When the *generator* is slow, batches that were due and had room
//! were sent late: that is **schedule lag**, and it makes figures worthless.
//! A run is invalid if the 99th percentile of the lag exceeds both 1 ms and a
//! tenth of the 99th percentile of the latency: from there on the generator's
//! lateness shows in the figure that people read first.

use hdrhistogram::Histogram;

/// Lag below this, in ns, never makes a run invalid: about the time slice that
/// an operating system's scheduler may take away at any time.
const TOLERATED_LAG_NS: u64 = 1_000_000;

/// Intended moments of one producer's batches, in ns on the run's clock.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: u64,
    /// Between two batches of this producer.
    period_ns: f64,
    /// Of this producer's first batch, so that producers do not send in step.
    phase_ns: f64,
    next: u64,
}

impl Schedule {
    /// The schedule of producer `index` of `producers`, which together send
    /// `rate` records per second in batches of `batch` from `start` on.
    pub fn new(start: u64, rate: f64, batch: u32, index: u32, producers: u32) -> Schedule {
        assert!(rate > 0.0 && batch > 0 && index < producers);
        let between_batches = f64::from(batch) / rate * 1e9;
        Schedule {
            start,
            period_ns: between_batches * f64::from(producers),
            phase_ns: between_batches * f64::from(index),
            next: 0,
        }
    }

    /// When the next batch is to be sent.
    #[inline]
    pub fn due(&self) -> u64 {
        // From the number, not by adding up: rounding must not accumulate.
        self.start + (self.phase_ns + self.next as f64 * self.period_ns) as u64
    }

    /// Notes that the next batch is on its way.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
    }
}

/// Why a run's figures cannot be trusted, if they cannot; takes lag and latency
/// in ns.
pub fn invalid(lag: &Histogram<u64>, latency: &Histogram<u64>) -> Option<String> {
    let (lag, latency) = (lag.value_at_quantile(0.99), latency.value_at_quantile(0.99));
    (lag > TOLERATED_LAG_NS.max(latency / 10)).then(|| {
        format!(
            "the generator fell behind its schedule: p99 lag {} us, tolerated {} us; \
             lower --rate or give it a core of its own (--core)",
            lag / 1000,
            TOLERATED_LAG_NS.max(latency / 10) / 1000
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::histogram;

    #[test]
    fn producers_share_the_rate_evenly_and_do_not_drift() {
        let mut due: Vec<u64> = Vec::new();
        for index in 0..7 {
            let mut schedule = Schedule::new(1000, 3_000_000.0, 1, index, 7);
            for _ in 0..300_000 {
                due.push(schedule.due());
                schedule.advance();
            }
        }
        due.sort_unstable();
        assert_eq!(due[0], 1000);
        // 2.1 million at three million a second end after 0.7 s.
        let last = due[due.len() - 1] - 1000;
        assert!(last.abs_diff(700_000_000) < 1000, "{last}");
        let widest = due.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        assert!(widest <= 335, "{widest} ns between two batches");
    }

    fn constant(ns: u64) -> Histogram<u64> {
        let mut h = histogram();
        h.record_n(ns, 1000).unwrap();
        h
    }

    #[test]
    fn a_generator_that_was_late_invalidates_the_run() {
        assert!(invalid(&constant(2_000_000), &constant(3_000_000)).is_some());
        assert!(invalid(&constant(900_000), &constant(3_000_000)).is_none());
        assert!(invalid(&constant(2_000_000), &constant(30_000_000)).is_none());
    }
}
