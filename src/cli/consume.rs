//! `ringbolt consume`: records by offset, as lines.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringbolt_client::{Client, ConsumedRecord, Reader, StartAt};
use serde_json::{Value, json};

use super::connection::{CommandError, ConnectionArgs, Interrupt, run as run_command};

/// Arguments of `ringbolt consume`.
#[derive(clap::Args)]
#[command(after_help = "\
Prints the value of each record and a newline. --verbose prints partition, offset, time of the commit, key \
(a dash if there is none) and value, separated by tabs. --json prints a JSON object a line: {\"topic\", \
\"partition\", \"offset\", \"commit_time\", \"timestamp\", \"key\", \"value\", \"headers\": [{\"name\", \
\"value\"}]}, times in RFC 3339; bytes that are not UTF-8 are given as {\"hex\": \"...\"}. Records of one \
partition come in the order of their offsets.")]
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
    connection: ConnectionArgs,
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
    run_command(|interrupt| consume(args, interrupt))
}

async fn consume(args: ConsumeArgs, mut interrupt: Interrupt) -> Result<ExitCode, CommandError> {
    let client = args.connection.connect().await?;
    let ends = match args.follow {
        true => BTreeMap::new(),
        false => ends(&client, &args).await?,
    };
    let mut printer = Printer::new(&args);
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

#[derive(Clone, Copy)]
enum Format {
    Value,
    Verbose,
    Json,
}

struct Printer {
    out: BufWriter<io::Stdout>,
    format: Format,
    printed: u64,
}

impl Printer {
    fn new(args: &ConsumeArgs) -> Self {
        let format = match (args.verbose, args.json) {
            (_, true) => Format::Json,
            (true, false) => Format::Verbose,
            (false, false) => Format::Value,
        };
        Printer { out: BufWriter::with_capacity(256 << 10, io::stdout()), format, printed: 0 }
    }

    /// False if nobody reads the output any more.
    fn print(&mut self, record: &ConsumedRecord) -> Result<bool, CommandError> {
        self.printed += 1;
        let result = write_record(&mut self.out, self.format, record);
        still_read(result)
    }

    fn flush(&mut self) -> Result<bool, CommandError> {
        let result = self.out.flush();
        still_read(result)
    }
}

fn still_read(result: io::Result<()>) -> Result<bool, CommandError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandError::io("writing to standard output")(error)),
    }
}

fn write_record(out: &mut impl Write, format: Format, record: &ConsumedRecord) -> io::Result<()> {
    match format {
        Format::Value => out.write_all(&record.value)?,
        Format::Verbose => {
            write!(out, "{}\t{}\t{}\t", record.partition, record.offset, rfc3339(record.commit_time))?;
            out.write_all(record.key.as_deref().unwrap_or(b"-"))?;
            out.write_all(b"\t")?;
            out.write_all(&record.value)?;
        }
        Format::Json => serde_json::to_writer(&mut *out, &to_json(record))?,
    }
    out.write_all(b"\n")
}

fn to_json(record: &ConsumedRecord) -> Value {
    let headers: Vec<Value> =
        record.headers.iter().map(|(name, value)| json!({ "name": name, "value": text(value) })).collect();
    json!({
        "topic": &*record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "commit_time": rfc3339(record.commit_time),
        "timestamp": rfc3339(record.timestamp),
        "key": record.key.as_deref().map(text),
        "value": text(&record.value),
        "headers": headers,
    })
}

/// A string if it is one.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

/// humantime prints no year beyond 9999, and a producer may claim any time.
fn rfc3339(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_micros(time.clamp(UNIX_EPOCH, last)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            topic: "orders".into(),
            partition: 2,
            offset: 7,
            commit_time: UNIX_EPOCH + Duration::from_micros(1_500_000),
            timestamp: UNIX_EPOCH,
            key: None,
            value: b"\xff\x00"[..].into(),
            headers: vec![("lang".to_owned(), b"en"[..].into())],
        }
    }

    fn printed(format: Format, record: &ConsumedRecord) -> Vec<u8> {
        let mut out = Vec::new();
        write_record(&mut out, format, record).unwrap();
        out
    }

    #[test]
    fn values_are_printed_as_they_are() {
        assert_eq!(printed(Format::Value, &record()), b"\xff\x00\n");
    }

    #[test]
    fn verbose_puts_where_and_when_before_the_value() {
        let with_key = ConsumedRecord { key: Some(b"k"[..].into()), value: b"v"[..].into(), ..record() };
        let line = String::from_utf8(printed(Format::Verbose, &with_key)).unwrap();
        assert_eq!(line, "2\t7\t1970-01-01T00:00:01.500000Z\tk\tv\n");
        assert!(printed(Format::Verbose, &record()).ends_with(b"\t-\t\xff\x00\n"));
    }

    #[test]
    fn json_is_one_line_with_the_keys_of_the_help() {
        let line = String::from_utf8(printed(Format::Json, &record())).unwrap();
        let expected = json!({
            "topic": "orders",
            "partition": 2,
            "offset": 7,
            "commit_time": "1970-01-01T00:00:01.500000Z",
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "key": null,
            "value": { "hex": "ff00" },
            "headers": [{ "name": "lang", "value": "en" }],
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert_eq!(line.lines().count(), 1);
    }

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

    #[test]
    fn times_that_no_calendar_has_are_printed_all_the_same() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1 << 40)), "9999-12-31T23:59:59.000000Z");
    }
}
