//! Arguments of a run whose consumers are those of a group.

use std::time::Duration;

use clap::{Args, ValueEnum};
use ringbolt_wire::message::{Backoff, GroupConfig, GroupMode, MAX_LEASE_MS, MAX_RETRY_DELAY_MS};

use crate::group::{AckMode, Chance, Conduct};

/// The lease of consumers that crash, unless another is asked for: nobody wants to wait
/// half a minute for what they leave behind.
const LEASE_OF_CRASHING: Duration = Duration::from_secs(1);

/// How the consumers of a group share its records.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ShareMode {
    /// Each record goes to one of them.
    #[default]
    Shared,
    /// As shared; of the records of one key only the oldest that is not completed.
    KeyOrdered,
    /// One of them has all records of a partition, in order.
    Exclusive,
}

impl From<ShareMode> for GroupMode {
    fn from(mode: ShareMode) -> GroupMode {
        match mode {
            ShareMode::Shared => GroupMode::Shared,
            ShareMode::KeyOrdered => GroupMode::KeyOrdered,
            ShareMode::Exclusive => GroupMode::Exclusive,
        }
    }
}

/// What consumers of a group do with what they are sent.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Consuming through a group")]
pub struct GroupArgs {
    /// Let the --consumers consume through this group instead of reading by offset:
    /// every message is worked on and settled, and at the end each must be completed.
    /// The group is created at the topic's end if it is missing
    #[arg(long, value_name = "G", requires = "consumers", conflicts_with_all = ["read", "allow_expired"])]
    pub group: Option<String>,
    /// How the group's consumers share, if it is created
    #[arg(long, value_name = "MODE", default_value = "shared", requires = "group")]
    pub mode: ShareMode,
    /// How consumers acknowledge
    #[arg(long, value_name = "MODE", default_value = "each", requires = "group")]
    pub ack_mode: AckMode,
    /// Records that each consumer may have in hand, at each shard
    #[arg(long, value_name = "N", default_value_t = 256, requires = "group", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub credit: u32,
    /// How long a consumer works on each record, on as many at once as it has in hand
    #[arg(long, value_name = "TIME", default_value = "0s", requires = "group", value_parser = humantime::parse_duration)]
    pub work_time: Duration,
    /// How likely a consumer is to reject a record, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0, requires = "group", value_parser = parse_probability)]
    pub fail_rate: f64,
    /// How likely a consumer is to crash over a record, 0 to 1: it drops its connection
    /// without a word, forgets everything, and begins anew as another one; what it had
    /// is delivered again when its leases run out
    #[arg(long, value_name = "P", default_value_t = 0.0, requires = "group", value_parser = parse_probability)]
    pub crash_rate: f64,
    /// Failures after which a message goes to the dead-letter topic, 0 for never, if the
    /// group is created
    #[arg(long, value_name = "N", default_value_t = 16, requires = "group")]
    pub max_failures: u32,
    /// For how long records are leased [default: the group's time, 30s for a new one; 1s
    /// with --crash-rate]
    #[arg(long, value_name = "TIME", requires = "group", value_parser = parse_lease)]
    pub lease: Option<Duration>,
    /// How long a message waits after a failure, if the group is created
    #[arg(long, value_name = "TIME", default_value = "10ms", requires = "group", value_parser = parse_wait)]
    pub retry_wait: Duration,
}

impl GroupArgs {
    /// For how long records are leased; `None` for the group's time.
    pub fn lease(&self) -> Option<Duration> {
        self.lease.or_else(|| (self.crash_rate > 0.0).then_some(LEASE_OF_CRASHING))
    }

    /// What each consumer does.
    pub fn conduct(&self) -> Conduct {
        Conduct {
            credit: self.credit,
            lease_ms: self.lease().map_or(0, millis),
            ack: self.ack_mode,
            work: crate::run::nanos(self.work_time),
            fail: Chance::new(self.fail_rate),
            crash: Chance::new(self.crash_rate),
        }
    }

    /// What the group does, if it is created.
    pub fn config(&self) -> GroupConfig {
        let defaults = GroupConfig::default();
        GroupConfig {
            mode: self.mode.into(),
            lease_ms: self.lease().map_or(defaults.lease_ms, millis),
            max_failures: self.max_failures,
            backoff: match millis(self.retry_wait) {
                0 => Backoff::None,
                ms => Backoff::Fixed(ms),
            },
            ..defaults
        }
    }

    /// What does not fit together, in words. `keys` says whether messages have keys.
    pub fn misfit(&self, keys: bool) -> Option<String> {
        if self.group.is_some() && self.mode == ShareMode::KeyOrdered && !keys {
            return Some(
                "--mode key-ordered has nothing to put in order without keys: add --keys".to_owned(),
            );
        }
        let lease = self.lease().unwrap_or(Duration::from_millis(GroupConfig::default().lease_ms.into()));
        if self.work_time >= lease {
            return Some(format!(
                "work of {:?} never ends within a lease of {lease:?}; lower --work-time or raise --lease",
                self.work_time
            ));
        }
        if self.ack_mode == AckMode::UpTo && (self.fail_rate > 0.0 || self.crash_rate > 0.0) {
            return Some(
                "--ack-mode up-to acknowledges whatever was rejected or abandoned before; leave out --fail-rate \
                 and --crash-rate"
                    .to_owned(),
            );
        }
        None
    }
}

/// As whole milliseconds; the parsers below have seen to it that they fit.
fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

/// A lease's time.
pub(super) fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match lease.as_millis() {
        1.. if lease.as_millis() <= u128::from(MAX_LEASE_MS) => Ok(lease),
        _ => Err(format!("must be from 1 ms to {MAX_LEASE_MS} ms")),
    }
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match wait.as_millis() <= u128::from(MAX_RETRY_DELAY_MS) {
        true => Ok(wait),
        false => Err(format!("must be at most {MAX_RETRY_DELAY_MS} ms")),
    }
}

fn parse_probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(probability) if (0.0..=1.0).contains(&probability) => Ok(probability),
        _ => Err("must be a number from 0 to 1".into()),
    }
}
