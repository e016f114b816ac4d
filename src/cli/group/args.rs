//! What a group is to be, as words of the command line.

use std::time::{Duration, UNIX_EPOCH};

use ringbolt_client::{GroupConfig, GroupMode, GroupStart, RetryBackoff};
use ringbolt_wire::Offset;
use ringbolt_wire::message::{MAX_LEASE_MS, MAX_OPEN_RECORDS, MAX_RETRY_DELAY_MS, is_valid_topic_name};

use crate::catalog::DEAD_LETTER_SUFFIX;

/// A group's configuration; each has the default that a group has which is created by
/// its first consumer.
#[derive(clap::Args)]
pub(super) struct ConfigArgs {
    /// How its consumers share: shared (each record to one of them), key-ordered (as shared, and of the
    /// records of one key only the oldest that is not completed), exclusive (one of them has a partition,
    /// in order)
    #[arg(long, value_name = "MODE", default_value = "shared", value_parser = parse_mode)]
    mode: GroupMode,
    /// For how long a record is leased to a consumer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_lease)]
    lease: u32,
    /// Failures after which a record goes to the dead-letter topic; 0 for never
    #[arg(long, value_name = "N", default_value_t = GroupConfig::default().max_failures)]
    max_failures: u32,
    /// Do not count a lease that ran out as a failure
    #[arg(long)]
    forgive_timeouts: bool,
    /// Records whose time to live is over go to the dead-letter topic, instead of being skipped
    #[arg(long)]
    dead_letter_expired: bool,
    /// Where dead letters go: a topic whose name ends in .dlq, which may be there. Without it, TOPIC.dlq
    /// if --max-failures or --dead-letter-expired send any there
    #[arg(long, value_name = "NAME", value_parser = parse_dead_letter_topic)]
    pub dead_letter_topic: Option<String>,
    /// How long a record waits after a failure: none, a time (5s), or twice as long each time between
    /// two (100ms..1m)
    #[arg(long, value_name = "BACKOFF", default_value = "100ms..1m", value_parser = parse_backoff)]
    backoff: RetryBackoff,
    /// Records of a partition that may be delivered and not completed; at the bound, new ones pause
    #[arg(long, value_name = "N", default_value_t = GroupConfig::default().max_open,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_OPEN_RECORDS)))]
    max_open: u32,
}

impl ConfigArgs {
    pub fn config(&self) -> GroupConfig {
        GroupConfig {
            mode: self.mode,
            lease_ms: self.lease,
            max_failures: self.max_failures,
            timeout_is_failure: !self.forgive_timeouts,
            dead_letter_expired: self.dead_letter_expired,
            backoff: self.backoff,
            max_open: self.max_open,
        }
    }
}

/// A mode by its name.
pub(in crate::cli) fn parse_mode(text: &str) -> Result<GroupMode, String> {
    [GroupMode::Shared, GroupMode::KeyOrdered, GroupMode::Exclusive]
        .into_iter()
        .find(|mode| mode.to_string() == text)
        .ok_or_else(|| "expected shared, key-ordered or exclusive".to_owned())
}

fn parse_dead_letter_topic(text: &str) -> Result<String, String> {
    let fits = text.ends_with(DEAD_LETTER_SUFFIX) && is_valid_topic_name(text);
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!("expected a topic's name that ends in {DEAD_LETTER_SUFFIX}"))
    }
}

fn parse_ms(text: &str, max_ms: u32) -> Result<u32, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let ms = u32::try_from(time.as_millis()).ok().filter(|ms| *ms <= max_ms);
    ms.ok_or_else(|| format!("at most {}", humantime::format_duration(Duration::from_millis(max_ms.into()))))
}

fn parse_lease(text: &str) -> Result<u32, String> {
    parse_ms(text, MAX_LEASE_MS).and_then(|ms| if ms > 0 { Ok(ms) } else { Err("at least 1ms".to_owned()) })
}

fn parse_backoff(text: &str) -> Result<RetryBackoff, String> {
    let ms = |text| parse_ms(text, MAX_RETRY_DELAY_MS);
    match text.split_once("..") {
        Some((first, max)) => {
            let (first_ms, max_ms) = (ms(first)?, ms(max)?);
            match first_ms <= max_ms {
                true => Ok(RetryBackoff::Exponential { first_ms, max_ms }),
                false => Err("the first wait is longer than the longest".to_owned()),
            }
        }
        None if text == "none" => Ok(RetryBackoff::None),
        None => ms(text).map(RetryBackoff::Fixed),
    }
}

/// A backoff as [`parse_backoff`] reads it.
pub(super) fn backoff_text(backoff: &RetryBackoff) -> String {
    let time = |ms: u32| humantime::format_duration(Duration::from_millis(ms.into())).to_string();
    match *backoff {
        RetryBackoff::None => "none".to_owned(),
        RetryBackoff::Fixed(ms) => time(ms),
        RetryBackoff::Exponential { first_ms, max_ms } => format!("{}..{}", time(first_ms), time(max_ms)),
    }
}

pub(super) fn parse_start(text: &str) -> Result<GroupStart, String> {
    let wrong = "expected earliest, end, an offset, a time in RFC 3339, or @SECONDS";
    let micros = |since: Duration| u64::try_from(since.as_micros()).map_err(|_| wrong.to_owned());
    match text {
        "earliest" => return Ok(GroupStart::Earliest),
        "end" => return Ok(GroupStart::End),
        _ => {}
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let since = seconds.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
        return since.ok_or_else(|| wrong.to_owned()).and_then(micros).map(GroupStart::Time);
    }
    if let Ok(offset) = text.parse() {
        return Ok(GroupStart::Offset(Offset(offset)));
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| wrong.to_owned())?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| wrong.to_owned())?;
    micros(since).map(GroupStart::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_is_none_a_time_or_a_range_of_times_and_prints_as_it_is_read() {
        for (text, expected) in [
            ("none", RetryBackoff::None),
            ("5s", RetryBackoff::Fixed(5000)),
            ("100ms..1m", RetryBackoff::Exponential { first_ms: 100, max_ms: 60_000 }),
        ] {
            assert_eq!(parse_backoff(text), Ok(expected), "{text}");
            assert_eq!(backoff_text(&expected), text);
        }
        for text in ["", "5", "2m..1m", "..", "2days", "1s..2days"] {
            assert!(parse_backoff(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        let at = |seconds: u64| GroupStart::Time(seconds * 1_000_000);
        for (text, expected) in [
            ("earliest", GroupStart::Earliest),
            ("end", GroupStart::End),
            ("7", GroupStart::Offset(Offset(7))),
            ("@1738324800", at(1_738_324_800)),
            ("2025-01-31T12:00:00Z", at(1_738_324_800)),
        ] {
            assert_eq!(parse_start(text), Ok(expected), "{text}");
        }
        for text in ["", "latest", "-1", "@", "@-1", "2025-13-01T00:00:00Z"] {
            assert!(parse_start(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_a_group_that_its_first_consumer_creates() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            config: ConfigArgs,
        }
        let command = <Command as clap::Parser>::parse_from(["group"]);
        assert_eq!(command.config.config(), GroupConfig::default());
    }
}
