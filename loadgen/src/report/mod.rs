//! What a run is reported as: table, JSON, percentile file, page with charts.

mod chart;
mod hgrm;
mod html;
mod progress;
mod table;

use std::io;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::Serialize;

pub use hgrm::write_hgrm;
pub use html::render as render_html;
pub use progress::Progress;
pub use table::{judgement, results};

use crate::group::Consumed;
use crate::judge::{Decision, GroupVerdict, Verdict};
use crate::stats::{Totals, micros};

/// Everything that a run is reported from, and its JSON.
///
/// Counts that only a judge can give are `null` when the run was not judged.
#[derive(Serialize, Default)]
pub struct Report {
    /// Records acknowledged, warm-up included; in an echo run, returned.
    pub acked: u64,
    /// Records acknowledged per second of what was measured.
    pub acked_per_s: f64,
    /// 10^6 bytes of record values acknowledged per second of what was
    /// measured.
    pub mb_per_s: f64,
    /// See [`Verdict`].
    pub lost: Option<u64>,
    /// See [`Verdict`].
    pub duplicated: Option<u64>,
    /// See [`Verdict`].
    pub reordered: Option<u64>,
    /// See [`Verdict`].
    pub corrupted: Option<u64>,
    /// Records without an answer at the end.
    pub unknown: u64,
    /// Records that an open loop was to send, and for which there was no room in
    /// time.
    pub due_not_sent: u64,
    /// Whether the figures cannot be trusted, because the generator or the broker
    /// fell behind the schedule.
    pub invalid: bool,
    /// From sending, or from when it was to be sent, to the answer.
    pub latency_us: Quantiles,
    /// How late the generator itself was.
    pub schedule_lag_us: Lag,
    /// Why `invalid`.
    pub invalid_reason: Option<String>,
    /// Records sent, warm-up included.
    pub sent: u64,
    /// Records refused, for good or until their producer gave up.
    pub refused: u64,
    /// Record batches sent again.
    pub retries: u64,
    /// Connections made again.
    pub reconnects: u64,
    /// Seconds of what was measured.
    pub measured_s: f64,
    /// Which engine drove the producers.
    pub engine: &'static str,
    /// Whether the peer was an echo peer.
    pub echo: bool,
    /// The command line.
    pub command: String,
    /// What consumers or a reading run fetched, if there were any.
    pub fetched: Option<Fetched>,
    /// What consumers of a group did, if there were any.
    pub consumed: Option<Consumed>,
    /// The whole verdict, if the run was judged.
    pub verdict: Option<Verdict>,
    /// Distributions and series, for the other outputs.
    #[serde(skip)]
    pub totals: Totals,
}

impl Report {
    /// Adds the verdict.
    pub fn judged(&mut self, verdict: Verdict) {
        self.lost = Some(verdict.lost);
        self.duplicated = Some(verdict.duplicated);
        self.reordered = Some(verdict.reordered);
        self.corrupted = Some(verdict.corrupted);
        self.verdict = Some(verdict);
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

/// Any part of a report as JSON.
pub fn to_json(value: &impl Serialize) -> String {
    let mut json = serde_json::to_string_pretty(value).expect("numbers, strings and lists are always JSON");
    json.push('\n');
    json
}

/// A verdict in a sentence.
fn conclusion(verdict: &Verdict) -> String {
    let text = match verdict.decision() {
        Decision::Broken => "FAILED: the broker did not keep its word",
        Decision::Unproven if verdict.unverified + verdict.unfinished == 0 => {
            "no verdict: retention has removed messages unread (--allow-expired accepts that)"
        }
        Decision::Unproven if verdict.group.is_some() => "no verdict: not everything was completed",
        Decision::Unproven => "no verdict: not everything could be read back",
        Decision::Kept if verdict.acked == 0 => "nothing was acknowledged, so nothing could be lost",
        Decision::Kept if verdict.group.is_some() => {
            "every acknowledged message was delivered undamaged, and completed; none came again after that, or out \
             of turn"
        }
        Decision::Kept if verdict.expired > 0 => {
            "every acknowledged message that is retained is there, once, in order, and undamaged"
        }
        Decision::Kept => "every acknowledged message is there, once, in order, and undamaged",
    };
    match verdict.decision() {
        Decision::Kept if !verdict.complete => {
            format!("{text}, as far as the ledger knows: it was not closed")
        }
        _ => text.to_owned(),
    }
}

/// What consumers of a group met with: how often, and what.
fn course_of(consumed: &Consumed) -> [(u64, &'static str); 9] {
    [
        (consumed.deliveries, "deliveries of records"),
        (consumed.redeliveries, "of them not the record's first"),
        (consumed.rejected, "records were rejected"),
        (consumed.dead_letters.unwrap_or(0), "records went to the dead-letter topic"),
        (consumed.crashes, "times a consumer crashed"),
        (consumed.abandoned, "leases were abandoned in that"),
        (consumed.lease_lost, "settles came when the lease was lost"),
        (consumed.already_completed, "settles came when the record was completed"),
        (consumed.unconfirmed, "settles were not confirmed"),
    ]
}

/// A count of a [`GroupVerdict`].
type GroupFault = fn(&GroupVerdict) -> u64;

/// What a group can do wrong, beside what is counted of messages.
const GROUP_FAULTS: [(GroupFault, &str); 9] = [
    (|g| g.delivered_again, "records were delivered or acknowledged again when they were completed"),
    (|g| g.out_of_turn, "records were delivered before their turn"),
    (|g| g.dropped, "records are completed, and nobody has acknowledged them"),
    (|g| g.failures_forgotten, "deliveries said that the record failed less often than was confirmed"),
    (|g| g.misanswered, "settles were answered with something that makes no sense"),
    (|g| g.dead_lost, "records were rejected for the last time and are not in the dead-letter topic"),
    (|g| g.dead_twice, "records are in the dead-letter topic more than once"),
    (|g| g.dead_wrong, "records are in the dead-letter topic and do not belong there"),
    (|g| g.uncompleted, "records are not completed"),
];

/// What was fetched.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Fetched {
    /// Records.
    pub records: u64,
    /// 10^6 bytes of record batches per second.
    pub mb_per_s: f64,
    /// Records per second.
    pub records_per_s: f64,
    /// From when a record was to be sent to when it was checked; for a reading
    /// run, from a fetch request to its last byte.
    pub latency_us: Quantiles,
}

/// Percentiles of a latency in µs.
#[derive(Serialize, Clone, Copy, Debug, Default)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// 99.99th percentile.
    pub p9999: f64,
    /// Highest.
    pub max: f64,
}

/// Schedule lag in µs.
#[derive(Serialize, Clone, Copy, Debug, Default)]
pub struct Lag {
    /// 99th percentile.
    pub p99: f64,
    /// Highest.
    pub max: f64,
}

impl Quantiles {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Quantiles {
        let at = |q| micros(histogram.value_at_quantile(q).min(histogram.max()));
        Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: micros(histogram.max()),
        }
    }
}

impl Lag {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Lag {
        Lag { p99: micros(histogram.value_at_quantile(0.99)), max: micros(histogram.max()) }
    }
}

/// A report that could not be written.
#[derive(thiserror::Error, Debug)]
#[error("cannot write {path}: {source}")]
pub struct WriteError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Writes `contents` to `path`.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    std::fs::write(path, contents).map_err(|source| WriteError { path: path.to_owned(), source })
}

/// A number for people: thousands apart, digits that matter.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        let left = whole.len() - i;
        if i > 0 && left % 3 == 0 && !out.ends_with('-') {
            out.push(' ');
        }
        out.push(c);
    }
    match fraction {
        Some(fraction) if !fraction.bytes().all(|b| b == b'0') => format!("{out}.{fraction}"),
        _ => out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::RunVerdict;

    #[test]
    fn the_runs_of_a_ledger_have_a_row_each_when_there_are_several() {
        let run = RunVerdict { acked: 1234, ended: true, ..RunVerdict::default() };
        let one = Verdict { acked: 1234, runs: vec![run.clone()], ..Verdict::default() };
        assert_eq!(judgement(&one).matches("1 234").count(), 1);
        let more = RunVerdict { acked: 4321, lost: 77, ..run.clone() };
        let two = Verdict { acked: 5555, lost: 77, runs: vec![run, more], ..Verdict::default() };
        let told = judgement(&two);
        for (count, times) in [("5 555", 1), ("1 234", 1), ("4 321", 1), ("77", 2)] {
            assert_eq!(told.matches(count).count(), times, "{count}: {told}");
        }
    }

    #[test]
    fn a_verdict_on_a_ledger_that_was_not_closed_says_so() {
        for (acked, expired) in [(0, 0), (5, 0), (5, 1)] {
            let closed =
                Verdict { acked, expired, expired_allowed: true, complete: true, ..Verdict::default() };
            let open = Verdict { complete: false, ..closed.clone() };
            assert_eq!(closed.decision(), open.decision());
            assert!(!judgement(&closed).contains("not closed"));
            let told = judgement(&open);
            assert!(told.contains("\nthe ledger was not closed, as its run was cut off: "), "{told}");
            assert!(told.ends_with(", as far as the ledger knows: it was not closed"), "{told}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (0.126, "0.13"),
            (12.0, "12"),
            (999.96, "1 000"),
            (1234.5, "1 234"),
            (1_234_567.0, "1 234 567"),
            (-123_456.0, "-123 456"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
