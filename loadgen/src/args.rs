//! The command line of `loadgen`.

mod group;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::group::AckMode;
use crate::payload::TRAILER_LEN;
use group::parse_lease;
pub use group::{GroupArgs, ShareMode};

/// What the exit code says, for the help.
const EXIT_CODES: &str = "\
Exit code:
  0  the run was carried through; if it was judged, every acknowledged message was
     looked for, and is as it was sent (of a run that was cut off, such as by the
     death of loadgen: every one that its ledger knows of, which the verdict says)
  1  the broker broke its word
  2  bad usage, or the run could not be carried through, or not every acknowledged
     message could be looked for (some may not be retained any more: see
     --allow-expired), and nothing else speaks against the broker";

/// Measures how fast a Ringbolt broker acknowledges, and proves that nothing
/// acknowledged was lost.
///
/// Without a command: starts an embedded broker in a fresh directory, loads it
/// for 10 seconds, reads everything back, and prints the report.
#[derive(Parser, Debug)]
#[command(name = "loadgen", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do; nothing at all runs the whole show against an embedded
    /// broker.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What `loadgen` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Load a broker, and report latency, throughput and losses.
    #[command(after_help = EXIT_CODES)]
    Run(Box<RunArgs>),
    /// Consume what is there through a consumer group until nothing is left, and report
    /// how many records a second were acknowledged durably.
    #[command(after_help = EXIT_CODES)]
    Drain(Box<DrainArgs>),
    /// Put a broker into a state that is worth measuring.
    Stage(StageArgs),
    /// Read back everything that a ledger speaks of, and judge it.
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArgs),
}

/// How producers and consumers are driven.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// The raw ring for producers: it was faster with 64 connections, each with
    /// 1 or 16 batches in flight; 256 in flight on a single one tell little.
    #[default]
    Auto,
    /// tokio-uring: one task per socket and direction.
    TokioUring,
    /// A raw io_uring loop with multishot receives.
    Raw,
}

/// What a run without producers reads.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFrom {
    /// The newest `--span` bytes of each partition, again and again: what the
    /// broker still has in memory.
    Tail,
    /// Everything from the earliest record on, again and again: what the broker
    /// has to read from its disk.
    Cold,
}

/// Arguments of `loadgen run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The broker, as HOST:PORT; without it an embedded one is started in a
    /// fresh directory
    #[arg(long, value_name = "ADDR", conflicts_with = "echo")]
    pub addr: Option<String>,
    /// Load a bare echo peer instead of a broker: what the generator itself can
    /// do. Nothing is stored, so nothing is judged
    #[arg(long, conflicts_with_all = ["consumers", "ledger", "read"])]
    pub echo: bool,
    /// Where the embedded broker keeps its data: a fresh directory is made
    /// within, and removed again
    #[arg(long, value_name = "DIR", conflicts_with_all = ["addr", "echo"])]
    pub data: Option<PathBuf>,
    /// Topic; created with --partitions partitions if it is missing
    #[arg(long, value_name = "T", default_value = "loadgen")]
    pub topic: String,
    /// Partitions to spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub partitions: u32,
    /// Producers, each on a connection of its own
    #[arg(long, value_name = "P", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub producers: u32,
    /// Record batches that each producer keeps in flight
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub in_flight: u32,
    /// Records per record batch
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Bytes per record value, such as 1024, 1KiB, 64KiB
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = parse_size)]
    pub size: u32,
    /// Give messages one of so many keys
    #[arg(long, value_name = "K", conflicts_with = "read")]
    pub keys: Option<NonZeroU32>,
    /// How long to measure, after the warm-up [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "count")]
    pub duration: Option<Duration>,
    /// Stop after this many messages, the warm-up's included, instead of after
    /// a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Open loop: send this many messages per second whatever the broker does,
    /// and count latency from when each was to be sent
    #[arg(long, value_name = "MSGS_PER_S", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Leave the first part of the run out of the figures [default: 1s, or 0s
    /// with --count]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub warmup: Option<Duration>,
    /// Consumers that read along, check every record, and catch up with all
    /// that was acknowledged before the run ends
    #[arg(long, value_name = "C", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub consumers: u32,
    /// Accept that retention removed acknowledged messages before consumers read
    /// them; without this, that ends the run with exit code 2
    #[arg(long, requires = "consumers")]
    pub allow_expired: bool,
    /// No producers: measure how fast the topic's records can be fetched
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["ledger", "rate", "count"])]
    pub read: Option<ReadFrom>,
    /// Most bytes per fetch response
    #[arg(long, value_name = "BYTES", default_value = "256KiB", value_parser = parse_size)]
    pub fetch_bytes: u32,
    /// With --read tail: how many of the newest bytes to read
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse_size)]
    pub span: u32,
    /// Append what was sent, acknowledged and refused to this file, for
    /// `loadgen verify`. It is on disk when the run ends; until then it survives
    /// the end of this process, but not of the machine. Needs --addr: an embedded
    /// broker's data is gone when the run ends
    #[arg(long, value_name = "FILE", requires = "addr")]
    pub ledger: Option<PathBuf>,
    /// Write the report as JSON; lost, duplicated, reordered and corrupted are
    /// null where nothing was read back
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the latency distribution in HdrHistogram's percentile format, µs
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write a self-contained page with the latency and throughput charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// No progress and no table
    #[arg(long)]
    pub quiet: bool,
    /// How the producers' sockets are driven
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub engine: EngineChoice,
    /// Pin the threads that drive the sockets to this core
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// Pin the embedded broker or the echo peer to this core
    #[arg(long, value_name = "N", conflicts_with = "addr")]
    pub peer_core: Option<usize>,
    /// Connections that shake hands, and then stay silent until the run ends:
    /// what they cost shows in the broker
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "echo")]
    pub idle: u32,
    /// Never sleep: spin for completions at the price of a whole core
    #[arg(long)]
    pub busy_poll: bool,
    /// Let a producer give up when nothing of it was answered for this long;
    /// what it has in flight is then unknown
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Of consumers of a group.
    #[command(flatten)]
    pub grouped: GroupArgs,
}

impl RunArgs {
    /// What `loadgen run` without any flag does.
    pub fn defaults() -> RunArgs {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            args: RunArgs,
        }
        Only::parse_from(["loadgen"]).args
    }

    /// How long to measure; `None` if a number of messages ends the run.
    pub fn measured(&self) -> Option<Duration> {
        match (self.duration, self.count) {
            (Some(duration), _) => Some(duration),
            (None, Some(_)) => None,
            (None, None) => Some(Duration::from_secs(10)),
        }
    }

    /// How long to leave out first.
    pub fn warmup(&self) -> Duration {
        self.warmup.unwrap_or(Duration::from_secs(u64::from(self.count.is_none())))
    }
}

/// Arguments of `loadgen drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// The broker, as HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub addr: String,
    /// Topic
    #[arg(long, value_name = "T", default_value = "loadgen")]
    pub topic: String,
    /// Group; created at the topic's first record if it is missing. Without it, a group
    /// is made for the occasion, and deleted again
    #[arg(long, value_name = "G")]
    pub group: Option<String>,
    /// Consumers, each on a connection of its own to each shard
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub consumers: u32,
    /// Records that each consumer may have in hand, at each shard
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub credit: u32,
    /// How the group's consumers share, if it is created
    #[arg(long, value_name = "MODE", default_value = "shared")]
    pub mode: ShareMode,
    /// How records are acknowledged
    #[arg(long, value_name = "MODE", default_value = "each")]
    pub ack_mode: AckMode,
    /// For how long records are leased [default: the group's time, 30s for a new one]
    #[arg(long, value_name = "TIME", value_parser = parse_lease)]
    pub lease: Option<Duration>,
    /// How long a consumer works on each record, on as many at once as it has in hand
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub work_time: Duration,
    /// Give up when nothing was delivered or acknowledged for this long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the distribution of the time to a confirmation in HdrHistogram's
    /// percentile format, µs
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write a self-contained page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// No progress and no table
    #[arg(long)]
    pub quiet: bool,
    /// Pin the thread that drives the sockets to this core
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// Never sleep: spin for completions at the price of a whole core
    #[arg(long)]
    pub busy_poll: bool,
}

/// Arguments of `loadgen stage`.
#[derive(Args, Clone, Debug)]
pub struct StageArgs {
    /// The broker, as HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub addr: String,
    /// Topic; created with one partition if it is missing
    #[arg(long, value_name = "T", default_value = "staged")]
    pub topic: String,
    /// What there should be.
    #[command(subcommand)]
    pub what: Staged,
}

/// What `loadgen stage` can make.
#[derive(Subcommand, Clone, Debug)]
pub enum Staged {
    /// Delayed records, and a group, `delayed`, that waits for them.
    Delayed(DelayedArgs),
    /// Groups, `staged-0` and so on, that have completed every other record.
    Acked(AckedArgs),
}

/// Arguments of `loadgen stage delayed`.
#[derive(Args, Clone, Debug)]
pub struct DelayedArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// When the first is due, from now
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_delay)]
    pub delay: Duration,
    /// Over how long the others are spread after it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_delay)]
    pub spread: Duration,
}

/// Arguments of `loadgen stage acked`.
#[derive(Args, Clone, Debug)]
pub struct AckedArgs {
    /// Groups
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// Ranges of one record that each has completed
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=25_000))]
    pub ranges: u64,
}

/// Arguments of `loadgen verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// The ledger of the run or runs to judge
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
    /// The broker, as HOST:PORT [default: the one that the ledger names]
    #[arg(long, value_name = "ADDR")]
    pub addr: Option<String>,
    /// Accept that retention has removed acknowledged messages, and judge what is
    /// still there; without this, that ends the check with exit code 2
    #[arg(long)]
    pub allow_expired: bool,
    /// Write the verdict as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Pin the thread that drives the sockets to this core
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// No table
    #[arg(long)]
    pub quiet: bool,
}

fn parse_size(text: &str) -> Result<u32, String> {
    let bytes = text.parse::<bytesize::ByteSize>()?.as_u64();
    match u32::try_from(bytes) {
        Ok(size) if size as usize >= TRAILER_LEN && size <= 1 << 30 => Ok(size),
        _ => Err(format!("{bytes} bytes; must be from {TRAILER_LEN} bytes to 1 GiB")),
    }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match delay <= Duration::from_secs(10 * 365 * 86_400) {
        true => Ok(delay),
        false => Err("must be at most ten years".into()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 1000000000".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_below_a_trailer_are_refused() {
        for bad in ["0", "39", "-1", "2GiB", "x"] {
            assert!(Cli::try_parse_from(["loadgen", "run", "--size", bad]).is_err(), "{bad}");
        }
        let Some(Command::Run(run)) =
            Cli::try_parse_from(["loadgen", "run", "--size", "4KiB"]).unwrap().command
        else {
            panic!("not a run")
        };
        assert_eq!(run.size, 4096);
    }

    #[test]
    fn what_is_not_judged_cannot_be_judged_mildly() {
        let parse =
            |args: &[&str]| Cli::try_parse_from([&["loadgen", "run", "--allow-expired"], args].concat());
        assert!(parse(&[]).is_err());
        let Some(Command::Run(run)) = parse(&["--consumers", "1"]).unwrap().command else {
            panic!("not a run")
        };
        assert!(run.allow_expired);
    }

    #[test]
    fn what_a_group_does_is_asked_of_a_group() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["loadgen", "run"], args].concat());
        for alone in [["--fail-rate", "0.1"], ["--mode", "exclusive"], ["--group", "g"], ["--credit", "3"]] {
            assert!(parse(&alone).is_err(), "{alone:?}");
            assert!(
                parse(&[&["--consumers", "1", "--group", "g"], &alone[..]].concat()).is_ok()
                    || alone[0] == "--group"
            );
        }
        for bad in [["--fail-rate", "1.1"], ["--crash-rate", "-1"], ["--lease", "0s"], ["--lease", "25h"]] {
            assert!(parse(&[&["--consumers", "1", "--group", "g"], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn consumers_that_crash_have_short_leases_unless_others_are_asked_for() {
        let args = |args: &[&str]| {
            let base = ["loadgen", "run", "--consumers", "1", "--group", "g"];
            let Some(Command::Run(run)) = Cli::try_parse_from([&base, args].concat()).unwrap().command else {
                panic!("not a run")
            };
            run.grouped
        };
        assert_eq!(args(&[]).lease(), None);
        assert_eq!(args(&["--crash-rate", "0.1"]).lease(), Some(Duration::from_secs(1)));
        assert_eq!(args(&["--crash-rate", "0.1", "--lease", "5s"]).conduct().lease_ms, 5000);
        assert!(args(&["--lease", "5ms", "--work-time", "5ms"]).misfit(false).is_some());
        assert!(args(&["--ack-mode", "up-to", "--fail-rate", "0.5"]).misfit(false).is_some());
        let ordered = args(&["--mode", "key-ordered"]);
        assert!(ordered.misfit(false).is_some() && ordered.misfit(true).is_none());
    }

    #[test]
    fn a_run_without_flags_measures_ten_seconds_after_one_of_warmup() {
        let args = RunArgs::defaults();
        assert_eq!(args.measured(), Some(Duration::from_secs(10)));
        assert_eq!(args.warmup(), Duration::from_secs(1));
    }

    #[test]
    fn a_counted_run_has_no_end_by_time_and_no_warmup() {
        let args = RunArgs { count: Some(5), ..RunArgs::defaults() };
        assert_eq!((args.measured(), args.warmup()), (None, Duration::ZERO));
    }
}
