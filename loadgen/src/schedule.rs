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
//! lateness shows in the figure that people read first. It is invalid as well if
//! more than one message in a hundred that was due was never sent, because the
//! broker left no room for it: the worst latencies are then missing.

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

    /// How many of its batches are due before `until` and not on their way.
    pub fn left_before(&self, until: u64) -> u64 {
        let before = until.saturating_sub(self.start) as f64 - self.phase_ns;
        let all = if before > 0.0 { (before / self.period_ns).ceil() as u64 } else { 0 };
        all.saturating_sub(self.next)
    }

    /// Notes that the next batch is on its way.
    #[inline]
    pub fn advance(&mut self) {
        self.next += 1;
    }
}

/// Why a run's figures cannot be trusted, if they cannot; takes lag and latency
/// in ns, and the messages that were sent and that were only due.
pub fn invalid(
    lag: &Histogram<u64>,
    latency: &Histogram<u64>,
    sent: u64,
    due_not_sent: u64,
) -> Option<String> {
    late(lag, latency).or_else(|| {
        (due_not_sent > (sent + due_not_sent) / 100).then(|| {
            format!(
                "the broker fell behind the schedule: {due_not_sent} messages were due and never sent, and \
                 what they would have waited is missing; lower --rate or raise --in-flight"
            )
        })
    })
}

fn late(lag: &Histogram<u64>, latency: &Histogram<u64>) -> Option<String> {
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
        let invalid = |lag, latency| invalid(&constant(lag), &constant(latency), 1000, 0);
        assert!(invalid(2_000_000, 3_000_000).is_some());
        assert!(invalid(900_000, 3_000_000).is_none());
        assert!(invalid(2_000_000, 30_000_000).is_none());
    }

    #[test]
    fn a_broker_that_left_no_room_invalidates_the_run() {
        let (lag, latency) = (constant(0), constant(1_000_000));
        assert!(invalid(&lag, &latency, 990, 10).is_none());
        assert!(invalid(&lag, &latency, 989, 11).unwrap().contains("11 messages"));
    }

    #[test]
    fn what_is_left_is_what_is_due_and_not_sent() {
        let mut schedule = Schedule::new(1000, 1000.0, 1, 1, 2);
        let mut due = Vec::new();
        for _ in 0..10 {
            due.push(schedule.due());
            schedule.advance();
        }
        let mut schedule = Schedule::new(1000, 1000.0, 1, 1, 2);
        for sent in 0..5 {
            for until in (0..20_000_000).step_by(333_333).chain(due.iter().copied()) {
                let left = due.iter().skip(sent).filter(|&&at| at < until).count() as u64;
                assert_eq!(schedule.left_before(until), left, "{sent} sent, until {until}");
            }
            schedule.advance();
        }
    }
}
