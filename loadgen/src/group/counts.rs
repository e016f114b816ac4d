//! What consumers of a group did, in numbers.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::report::Quantiles;
use crate::stats::histogram;

/// Counts over a whole run, warm-up included; records unless said otherwise.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Deliveries.
    pub deliveries: u64,
    /// Those of records that had been delivered before.
    pub redeliveries: u64,
    /// Bytes of record batches delivered.
    pub bytes: u64,
    /// Acknowledgements that were confirmed.
    pub acked: u64,
    /// Rejects that were confirmed.
    pub rejected: u64,
    /// Settled without an answer, since none was asked for or the connection was
    /// lost.
    pub unconfirmed: u64,
    /// Answered with "no longer yours", or "not delivered" as a broker says that has
    /// forgotten its leases in a restart.
    pub lease_lost: u64,
    /// Answered with "completed before".
    pub already_completed: u64,
    /// Leased to consumers that crashed.
    pub abandoned: u64,
    /// Crashes.
    pub crashes: u64,
    /// Connections made again, those after crashes included.
    pub reconnects: u64,
    /// From a settle to its confirmation, for each record, ns.
    pub confirmation: Histogram<u64>,
    /// When the first record came, on the run's clock.
    pub first_delivery: Option<u64>,
    /// When the last confirmation came; where none is asked for, when the last settle was
    /// sent.
    pub last_confirmation: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            deliveries: 0,
            redeliveries: 0,
            bytes: 0,
            acked: 0,
            rejected: 0,
            unconfirmed: 0,
            lease_lost: 0,
            already_completed: 0,
            abandoned: 0,
            crashes: 0,
            reconnects: 0,
            confirmation: histogram(),
            first_delivery: None,
            last_confirmation: 0,
        }
    }
}

/// What consumers of a group did, as it is reported.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Consumed {
    /// Consumers.
    pub consumers: u32,
    /// Deliveries of records.
    pub deliveries: u64,
    /// Deliveries of records that had been delivered before.
    pub redeliveries: u64,
    /// Acknowledgements of records that were confirmed.
    pub acked: u64,
    /// The same per second, from the first delivery to the last confirmation.
    pub acked_per_s: f64,
    /// Records settled per second of the same time, confirmed or not.
    pub settled_per_s: f64,
    /// 10^6 bytes of record batches delivered per second of the same time.
    pub mb_per_s: f64,
    /// The same time, in seconds.
    pub seconds: f64,
    /// Rejects that were confirmed.
    pub rejected: u64,
    /// Records settled without an answer: none was asked for, or the connection was
    /// lost.
    pub unconfirmed: u64,
    /// Settles of records that were no longer leased to who settled them.
    pub lease_lost: u64,
    /// Settles of records that were completed before.
    pub already_completed: u64,
    /// Leases of consumers that crashed.
    pub abandoned: u64,
    /// Crashes of consumers.
    pub crashes: u64,
    /// Connections made again.
    pub reconnects: u64,
    /// Records that went to the dead-letter topic; `null` if nobody looked.
    pub dead_letters: Option<u64>,
    /// From a settle to its confirmation, for each record.
    pub confirmation_us: Quantiles,
}

impl Consumed {
    /// What these counts come to.
    pub fn of(counts: &Counts, consumers: u32) -> Consumed {
        let from = counts.first_delivery.unwrap_or(counts.last_confirmation);
        let seconds = counts.last_confirmation.saturating_sub(from) as f64 / 1e9;
        let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        Consumed {
            consumers,
            deliveries: counts.deliveries,
            redeliveries: counts.redeliveries,
            acked: counts.acked,
            acked_per_s: rate(counts.acked),
            settled_per_s: rate(counts.acked + counts.rejected + counts.unconfirmed),
            mb_per_s: rate(counts.bytes) / 1e6,
            seconds,
            rejected: counts.rejected,
            unconfirmed: counts.unconfirmed,
            lease_lost: counts.lease_lost,
            already_completed: counts.already_completed,
            abandoned: counts.abandoned,
            crashes: counts.crashes,
            reconnects: counts.reconnects,
            dead_letters: None,
            confirmation_us: Quantiles::of(&counts.confirmation),
        }
    }
}
