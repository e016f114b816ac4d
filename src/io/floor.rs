//! The floor under the broker's latency and the roof over its throughput: what
//! this disk and this loopback do with nothing of the broker in between.
//!
//! Measures one thing at a time, on threads pinned as a broker and its client
//! would be. It knows nothing of what the figures are good for: that is
//! [`doctor`](crate::doctor).

mod disk;
mod loopback;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

pub use disk::DiskFloor;
pub use loopback::{EchoFloor, measure_echo};

use crate::io::pin::PinError;
use crate::io::probe::StorageError;

/// Length of the messages that are echoed, in bytes.
pub const MESSAGE_LEN: usize = 1024;

/// How a figure is measured.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Length of the measurement, after a warm-up of a fifth of it.
    pub duration: Duration,
    /// Core of what stands for the broker: the disk's writer, the echo peer.
    pub server_core: Option<usize>,
    /// Core of what stands for the client.
    pub client_core: Option<usize>,
}

impl Conditions {
    /// Ends of the warm-up and of the whole, from the start.
    fn phases(&self) -> (Duration, Duration) {
        let warm_up = self.duration / 5;
        (warm_up, warm_up + self.duration)
    }
}

/// Connections, and messages that each has under way at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Shape {
    /// Number of connections.
    pub connections: usize,
    /// Messages in flight on each.
    pub in_flight: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.connections, self.in_flight)
    }
}

/// A distribution of times, in µs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Latency {
    /// Half of the samples are at or below it.
    pub p50: f64,
    /// 99 of 100 samples are at or below it.
    pub p99: f64,
    /// Number of samples.
    pub samples: u64,
}

/// Why a figure could not be measured; the message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// The directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file could not be filled with zeroes before the measurement.
    #[error(
        "{} has no room for the {bytes} bytes that the measurement writes: {source}. Free some, or \
         measure in another directory (--data)",
        dir.display()
    )]
    Fill {
        /// The directory.
        dir: PathBuf,
        /// Length of the file.
        bytes: u64,
        /// What the system answered.
        source: io::Error,
    },
    /// A write failed or was cut short while being measured.
    #[error("a durable write of {len} bytes in {} failed: {source}", dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// Length of the write.
        len: usize,
        /// What the system answered.
        source: io::Error,
    },
    /// io_uring could not be set up.
    #[error("io_uring failed while {doing}: {source}")]
    Ring {
        /// What was being done.
        doing: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The core is not there or not ours.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The echo peer did not start, or a connection to it failed.
    #[error("the echo peer on loopback failed while {doing}: {source}")]
    Loopback {
        /// What was being done.
        doing: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The echo peer returned other bytes than it was sent.
    #[error("the echo peer returned a wrong byte at position {position} of a connection")]
    WrongEcho {
        /// Position in the connection's stream.
        position: u64,
    },
    /// Too short for a single sample.
    #[error("nothing completed within {duration:?}: measure for longer (--seconds)")]
    NoSamples {
        /// Length of the measurement.
        duration: Duration,
    },
}

/// Times between 1 ns and a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

/// Notes `count` samples of `ns` each; longer than a minute counts as a minute.
fn record(histogram: &mut Histogram<u64>, ns: u64, count: u64) {
    histogram.saturating_record_n(ns.max(1), count);
}

fn latency(histogram: &Histogram<u64>, conditions: &Conditions) -> Result<Latency, FloorError> {
    if histogram.is_empty() {
        return Err(FloorError::NoSamples { duration: conditions.duration });
    }
    // To 0.1 µs: a histogram of three digits knows no more at these times.
    let us = |quantile| (histogram.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0;
    Ok(Latency { p50: us(0.5), p99: us(0.99), samples: histogram.len() })
}

/// Runs `work` on a thread of its own, pinned to `core` if one is given: the
/// caller's own affinity stays as it is, and a ring belongs to one thread.
fn on_core<T: Send>(
    core: Option<usize>,
    work: impl FnOnce() -> Result<T, FloorError> + Send,
) -> Result<T, FloorError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(core) = core {
                crate::io::pin::pin_thread(core)?;
            }
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
