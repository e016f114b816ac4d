//! `ringbolt consume`: records by offset, as lines; or through a consumer group.

mod auto;
mod command;
mod exec;
mod manual;
pub(super) mod print;
mod worker;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use ringbolt_client::{Client, Reader, StartAt};

use super::connection::{CommandError, ConnectionArgs, Interrupt, run as run_command, run_worker};
use print::{Format, Printer};
use worker::{Handling, WorkerArgs};

/// Arguments of `ringbolt consume`.
#[derive(clap::Args)]
#[command(after_help = "\
Prints the value of each record and a newline. --verbose prints partition, offset, time of the commit, key \
(a dash if there is none) and value, separated by tabs. --json prints a JSON object a line: {\"topic\", \
\"partition\", \"offset\", \"commit_time\", \"timestamp\", \"key\", \"value\", \"headers\": [{\"name\", \
\"value\"}]}, times in RFC 3339; bytes that are not UTF-8 are given as {\"hex\": \"...\"}. Records of one \
partition come in the order of their offsets.

With --group, the broker keeps account of what is done: each record goes to one consumer of the group, and \
comes again until it is acknowledged. Without --follow the command ends when there is nothing more to deliver \
of what was there at the start; what waits for its time, or is in another consumer's hands, is not waited for.

With --group and --json an object has three keys more: \"acquired\" (deliveries so far, this one included), \
\"failed\" (failures so far) and \"first_delivery\" (the time of the first one; null if this is it, or if the \
broker does not know any more). --verbose says the same, in brackets behind the time, of a record that comes again: \
(delivery 2, failed 1, first 2025-01-31T12:00:00.000000Z).

How a record of a group is handled:
  --ack auto    it is printed, and acknowledged once the output is flushed. What was not printed goes back.
  --ack manual  it is printed as with --verbose, and acknowledged by lines of standard input:
                  ack PARTITION OFFSET             it is done
                  nack PARTITION OFFSET [DELAY]    not now; again at once, or after the delay, such as 5s
                  reject PARTITION OFFSET [REASON] it failed; again after the group's backoff
                  dead-letter PARTITION OFFSET [REASON]  to the dead-letter topic at once, if the group has one
                  extend PARTITION OFFSET [TIME]   its lease runs out so long from now
                  release PARTITION OFFSET         back as it came
                Standard error gets a line for each: what was asked, and durable (done, if nothing has to be), or why \
not. Leases are extended by themselves. The end of the input gives back what is open.
  --exec        `sh -c COMMAND` runs for it, the value on its standard input, and RINGBOLT_TOPIC, _GROUP, \
_PARTITION, _OFFSET, _KEY, _ACQUIRED (deliveries so far, this one included), _FAILED (failures so far), \
_FIRST_DELIVERY (the time, as with --json) in its environment; RINGBOLT_KEY is unset without a key, or with \
one of more than 32 KiB or with a NUL byte, and RINGBOLT_FIRST_DELIVERY where --json has null. Exit code 0 \
acknowledges. Anything else rejects, with exit code and last line of standard error as the reason. The lease is \
extended while it runs. SIGINT or SIGTERM: no new ones are begun, those that run are waited for, and the exit \
code is 0; a second one kills them, and their records go back.")]
pub struct ConsumeArgs {
    /// Topic to read
    topic: String,
    /// Read this partition only
    #[arg(long, value_name = "INDEX")]
    partition: Option<u32>,
    /// Where to start: earliest, end, an offset, or a time: RFC 3339 (2025-01-31T12:00:00Z) or seconds
    /// since 1970 after an @ (@1738324800). An offset that no partition has got to is refused; with
    /// --follow, one that any partition has not
    #[arg(long, value_name = "WHERE", default_value = "earliest", value_parser = parse_start)]
    from: StartAt,
    /// End after this many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Wait for records to come, instead of ending with the last one that is there at the start
    #[arg(long, short)]
    follow: bool,
    /// Print partition, offset, time and key as well
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    /// Print records as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

impl ConsumeArgs {
    fn format(&self) -> Format {
        match (self.verbose, self.json) {
            (_, true) => Format::Json,
            (true, false) => Format::Verbose,
            (false, false) => Format::Value,
        }
    }
}

fn parse_start(text: &str) -> Result<StartAt, String> {
    let wrong = "expected earliest, end, an offset, a time in RFC 3339, or @SECONDS";
    match text {
        "earliest" => return Ok(StartAt::Earliest),
        "end" => return Ok(StartAt::End),
        _ => {}
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let since = seconds.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
        let time = since.and_then(|since| UNIX_EPOCH.checked_add(since));
        return time.map(StartAt::Time).ok_or_else(|| wrong.to_owned());
    }
    if let Ok(offset) = text.parse() {
        return Ok(StartAt::Offset(offset));
    }
    humantime::parse_rfc3339_weak(text).map(StartAt::Time).map_err(|_| wrong.to_owned())
}

/// Runs the command.
pub fn run(args: ConsumeArgs) -> ExitCode {
    match args.worker.handling() {
        None => run_command(|interrupt| consume(args, interrupt)),
        Some(Handling::Exec(_)) => run_worker(|interrupt| work(args, interrupt)),
        Some(_) => run_command(|interrupt| work(args, interrupt)),
    }
}

/// Consumes through a group.
async fn work(args: ConsumeArgs, interrupt: Interrupt) -> Result<ExitCode, CommandError> {
    let Some(handling) = args.worker.handling() else { return consume(args, interrupt).await };
    let client = args.connection.connect().await?;
    let worker = args.worker.open(&client, &args.topic, args.count, args.follow).await?;
    let result = match handling {
        Handling::Auto => auto::run(&worker, Printer::new(args.format()), interrupt).await,
        Handling::Manual => {
            let format = if args.json { Format::Json } else { Format::Verbose };
            manual::run(&worker, Printer::new(format), interrupt).await
        }
        Handling::Exec(command) => exec::run(&worker, command, interrupt).await,
    };
    worker.consumer.close().await;
    result
}

async fn consume(args: ConsumeArgs, mut interrupt: Interrupt) -> Result<ExitCode, CommandError> {
    let client = args.connection.connect().await?;
    let ends = match args.follow {
        true => BTreeMap::new(),
        false => ends(&client, &args).await?,
    };
    let mut printer = Printer::new(args.format());
    if !args.follow && ends.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut builder = client.reader(&args.topic).start_at(args.from);
    builder = match (args.partition, args.follow) {
        (_, false) => builder.partitions(ends.keys().copied()),
        (Some(partition), true) => builder.partitions([partition]),
        (None, true) => builder,
    };
    let mut reader = builder.build().await?;
    if args.count == Some(0) {
        return Ok(ExitCode::SUCCESS);
    }
    let done = |reader: &Reader| {
        !args.follow && ends.iter().all(|(p, end)| reader.positions().get(p).is_none_or(|at| at >= end))
    };
    while !done(&reader) {
        let record = match reader.try_next() {
            Some(record) => record,
            None => {
                if !printer.flush()? {
                    break;
                }
                tokio::select! {
                    record = reader.next() => record?,
                    () = interrupt.wait() => break,
                }
            }
        };
        if ends.get(&record.partition).is_some_and(|end| record.offset >= *end) {
            continue;
        }
        if !printer.print(&record)? || args.count == Some(printer.printed) || interrupt.is_set() {
            break;
        }
    }
    printer.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The end of each partition in which there is something to read.
async fn ends(client: &Client, args: &ConsumeArgs) -> Result<BTreeMap<u32, u64>, CommandError> {
    let topic = client.admin().describe_topic(&args.topic).await?;
    if let Some(partition) = args.partition.filter(|p| *p >= topic.topic.partitions) {
        let partitions = topic.topic.partitions;
        let topic = args.topic.clone();
        return Err(ringbolt_client::Error::NoSuchPartition { topic, partitions, partition }.into());
    }
    let read: Vec<(u32, u64, u64)> = (0u32..)
        .zip(&topic.partitions)
        .filter(|(index, _)| args.partition.is_none_or(|only| only == *index))
        .map(|(index, info)| (index, info.start_offset.0, info.end_offset.0))
        .collect();
    // One partition may well be longer than another; that none has the offset is a mistake.
    if let (StartAt::Offset(requested), Some(&longest)) = (args.from, read.iter().max_by_key(|(.., end)| end))
        && requested > longest.2
    {
        let (partition, start, end) = longest;
        return Err(ringbolt_client::Error::OffsetOutOfRange { partition, requested, start, end }.into());
    }
    let has_some = |start: u64, end: u64| match args.from {
        StartAt::Offset(offset) => offset < end,
        StartAt::End => false,
        StartAt::Earliest | StartAt::Time(_) => start < end,
    };
    let some = read.into_iter().filter(|&(_, start, end)| has_some(start, end));
    Ok(some.map(|(index, _, end)| (index, end)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        let at = |seconds| StartAt::Time(UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, expected) in [
            ("earliest", StartAt::Earliest),
            ("end", StartAt::End),
            ("0", StartAt::Offset(0)),
            ("18446744073709551615", StartAt::Offset(u64::MAX)),
            ("@0", at(0)),
            ("@1738324800", at(1_738_324_800)),
            ("2025-01-31T12:00:00Z", at(1_738_324_800)),
            ("2025-01-31 12:00:00", at(1_738_324_800)),
        ] {
            assert_eq!(parse_start(text), Ok(expected), "{text}");
        }
        for text in ["", "latest", "-1", "@", "@-1", "@1e300", "@nan", "2025-13-01T00:00:00Z"] {
            assert!(parse_start(text).is_err(), "{text}");
        }
    }
}
