//! Latency and throughput, second by second.
//!
//! The loop that sends and receives fills one [`Interval`] and swaps it for an
//! empty one about once a second; whatever takes time (percentiles, sums,
//! clearing half a megabyte of counters) happens on the receiving side.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use hdrhistogram::Histogram;

/// Highest latency that is told apart: an hour, in ns.
const MAX_NS: u64 = 3_600_000_000_000;
/// Significant decimal digits of a recorded latency.
const DIGITS: u8 = 3;
/// Length of an interval in ns.
const INTERVAL_NS: u64 = 1_000_000_000;

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_NS, DIGITS).expect("the bounds are constants in order")
}

/// The run's clock: nanoseconds since the process set the run up.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Nanoseconds since the start.
    #[inline]
    pub fn now(&self) -> u64 {
        // 584 years fit.
        self.origin.elapsed().as_nanos() as u64
    }

    /// The instant at which this clock reads `ns`.
    pub fn instant(&self, ns: u64) -> Instant {
        self.origin + Duration::from_nanos(ns)
    }
}

/// What happened in about a second.
#[derive(Clone, Debug)]
pub struct Interval {
    /// First and last moment on the run's clock, ns.
    pub start: u64,
    /// See `start`.
    pub end: u64,
    /// Whether it belongs to what is measured, and not to warm-up or the wait
    /// for the last answers.
    pub measured: bool,
    /// Whether its latencies count: while measuring, and after it those of what
    /// was sent, or was to be sent, before the end.
    pub sampled: bool,
    /// Time to the answer of each record, ns.
    pub latency: Histogram<u64>,
    /// How late the generator itself was with each batch, ns.
    pub lag: Histogram<u64>,
    /// Records answered well: acknowledged, or in echo and read runs returned.
    pub records: u64,
    /// Their bytes: values, or for reads the fetch payload.
    pub bytes: u64,
}

impl Interval {
    fn new() -> Interval {
        Interval {
            start: 0,
            end: 0,
            measured: false,
            sampled: false,
            latency: histogram(),
            lag: histogram(),
            records: 0,
            bytes: 0,
        }
    }

    fn clear(&mut self) {
        self.latency.reset();
        self.lag.reset();
        (self.records, self.bytes) = (0, 0);
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        (self.end - self.start) as f64 / 1e9
    }
}

/// The filling side.
pub struct Recorder {
    current: Box<Interval>,
    full: Sender<Box<Interval>>,
    empty: Receiver<Box<Interval>>,
    next_swap: u64,
    /// Latencies of what was due before this do not count; ns.
    due_from: u64,
}

/// The receiving side.
pub struct Intervals {
    full: Receiver<Box<Interval>>,
    empty: Sender<Box<Interval>>,
}

/// Both sides.
pub fn recorder() -> (Recorder, Intervals) {
    let (full_tx, full) = unbounded();
    let (empty, empty_rx) = bounded(4);
    for _ in 0..2 {
        let _ = empty.try_send(Box::new(Interval::new()));
    }
    let recorder = Recorder {
        current: Box::new(Interval::new()),
        full: full_tx,
        empty: empty_rx,
        next_swap: INTERVAL_NS,
        due_from: 0,
    };
    (recorder, Intervals { full, empty })
}

impl Recorder {
    /// Notes that `records` records of `bytes` bytes together, sent or to be sent
    /// at `due`, were answered. Throughput is what was answered while measuring;
    /// latency is that of what was due in that time, however late the answer
    /// comes, or the worst would be left out.
    #[inline]
    pub fn answered(&mut self, due: u64, now: u64, records: u64, bytes: u64) {
        if due >= self.due_from {
            self.current.latency.saturating_record_n(now.saturating_sub(due), records);
        }
        self.current.records += records;
        self.current.bytes += bytes;
    }

    /// Notes a fetch of `bytes` bytes, answered after `latency_ns`.
    #[inline]
    pub fn fetched(&mut self, latency_ns: u64, bytes: u64) {
        self.current.latency.saturating_record(latency_ns);
        self.current.bytes += bytes;
    }

    /// Notes records that a fetch brought.
    #[inline]
    pub fn read(&mut self, records: u64) {
        self.current.records += records;
    }

    /// Notes how late a batch was sent.
    #[inline]
    pub fn lagged(&mut self, ns: u64) {
        self.current.lag.saturating_record(ns);
    }

    /// Hands the interval over if a second is up.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if now >= self.next_swap {
            let (measured, sampled) = (self.current.measured, self.current.sampled);
            self.swap(now, measured, sampled);
        }
    }

    /// Ends the interval here; the next one is part of what is measured, or
    /// not.
    pub fn cut(&mut self, now: u64, measured: bool) {
        if measured {
            self.due_from = now;
        }
        self.swap(now, measured, measured);
    }

    /// Ends what is measured here; the latencies of what was due until now still
    /// count.
    pub fn await_answers(&mut self, now: u64) {
        self.swap(now, false, true);
    }

    fn swap(&mut self, now: u64, measured: bool, sampled: bool) {
        let fresh = self.empty.try_recv().unwrap_or_else(|_| Box::new(Interval::new()));
        let mut full = std::mem::replace(&mut self.current, fresh);
        full.end = now;
        (self.current.start, self.current.measured, self.current.sampled) = (now, measured, sampled);
        self.next_swap = now + INTERVAL_NS;
        // Nobody listening means that nobody wants to know.
        let _ = self.full.send(full);
    }
}

impl Intervals {
    /// The next interval, if one comes within `wait`.
    pub fn next(&self, wait: Duration) -> Next {
        match self.full.recv_timeout(wait) {
            Ok(interval) => Next::Interval(interval),
            Err(error) if error.is_timeout() => Next::NotYet,
            Err(_) => Next::Ended,
        }
    }

    /// Gives an interval back to be filled again.
    pub fn recycle(&self, mut interval: Box<Interval>) {
        interval.clear();
        let _ = self.empty.try_send(interval);
    }
}

/// What waiting for an interval brought.
#[derive(Debug)]
pub enum Next {
    /// The next interval.
    Interval(Box<Interval>),
    /// None came in time.
    NotYet,
    /// The filling side is gone, and all was taken.
    Ended,
}

/// One point of the charts over time.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Middle of the interval, seconds from the start of the run.
    pub at: f64,
    /// Records per second.
    pub per_second: f64,
    /// 10^6 bytes per second.
    pub mb_per_second: f64,
    /// Median latency, µs.
    pub p50: f64,
    /// 99th percentile of latency, µs.
    pub p99: f64,
    /// Highest latency, µs.
    pub max: f64,
    /// Whether it counts.
    pub measured: bool,
}

/// Sums over a run.
pub struct Totals {
    /// Latencies of what is measured, ns.
    pub latency: Histogram<u64>,
    /// Lags of what is measured, ns.
    pub lag: Histogram<u64>,
    /// Records of what is measured.
    pub records: u64,
    /// Bytes of what is measured.
    pub bytes: u64,
    /// Seconds of what is measured.
    pub seconds: f64,
    /// Second by second.
    pub points: Vec<Point>,
    /// Start of the first interval, ns.
    origin: Option<u64>,
}

impl Default for Totals {
    fn default() -> Self {
        Totals {
            latency: histogram(),
            lag: histogram(),
            records: 0,
            bytes: 0,
            seconds: 0.0,
            points: Vec::new(),
            origin: None,
        }
    }
}

impl Totals {
    /// Adds an interval, and returns its point if it has a length.
    pub fn add(&mut self, interval: &Interval) -> Option<Point> {
        if interval.sampled {
            // Same bounds on both sides: cannot fail.
            let _ = self.latency.add(&interval.latency);
            let _ = self.lag.add(&interval.lag);
        }
        if interval.measured {
            self.records += interval.records;
            self.bytes += interval.bytes;
            self.seconds += interval.seconds();
        }
        let origin = *self.origin.get_or_insert(interval.start);
        let seconds = interval.seconds();
        // Too short for a rate: the rest of a second at the end of a phase.
        if seconds < 0.2 {
            return None;
        }
        let quantile = |q| micros(interval.latency.value_at_quantile(q));
        let point = Point {
            at: (interval.start - origin) as f64 / 1e9 + seconds / 2.0,
            per_second: interval.records as f64 / seconds,
            mb_per_second: interval.bytes as f64 / seconds / 1e6,
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: micros(interval.latency.max()),
            measured: interval.measured,
        };
        self.points.push(point);
        Some(point)
    }

    /// Records per second of what is measured.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.records as f64 / self.seconds } else { 0.0 }
    }

    /// 10^6 bytes per second of what is measured.
    pub fn mb_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds / 1e6 } else { 0.0 }
    }
}

/// Nanoseconds as µs.
pub fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(intervals: &Intervals, totals: &mut Totals) {
        while let Next::Interval(interval) = intervals.next(Duration::ZERO) {
            totals.add(&interval);
            intervals.recycle(interval);
        }
    }

    #[test]
    fn warm_up_does_not_count_and_late_answers_count_as_latency_alone() {
        const S: u64 = 1_000_000_000;
        let (mut recorder, intervals) = recorder();
        let mut totals = Totals::default();
        recorder.cut(0, false);
        recorder.answered(S - 9_000_000, S, 5, 500);
        recorder.cut(S, true);
        recorder.answered(S - 1, S + 9_000_000, 10, 1000);
        recorder.answered(S, S + 1_000, 10, 1000);
        recorder.tick(2 * S + S / 2);
        recorder.answered(2 * S, 2 * S + 3_000, 10, 1000);
        recorder.await_answers(3 * S);
        recorder.answered(3 * S - 1000, 3 * S + 6_000, 5, 500);
        recorder.cut(4 * S, false);
        drain(&intervals, &mut totals);
        assert_eq!((totals.records, totals.bytes), (30, 3000), "answered while measuring");
        assert_eq!((totals.seconds, totals.per_second(), totals.mb_per_second()), (2.0, 15.0, 0.0015));
        assert_eq!(totals.latency.len(), 25, "sent while measuring");
        assert!((6_900..7_100).contains(&totals.latency.max()), "{}", totals.latency.max());
        assert_eq!(totals.points.iter().filter(|p| p.measured).count(), 2);
    }

    #[test]
    fn an_interval_used_again_starts_empty() {
        let (mut recorder, intervals) = recorder();
        let mut totals = Totals::default();
        for second in 1..20 {
            recorder.answered(second * INTERVAL_NS, second * INTERVAL_NS, 1, 1);
            recorder.cut(second * INTERVAL_NS, true);
            drain(&intervals, &mut totals);
        }
        assert_eq!(totals.records, 18);
    }
}
