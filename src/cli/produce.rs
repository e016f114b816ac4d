//! `ringbolt produce`: one record for each line of standard input.

use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ringbolt_client::producer_state::Failure;
use ringbolt_client::{
    Error, ErrorCode, ErrorResponse, Outcome, Pending, ProduceError, Producer, Receipt, Record,
};
use tokio::sync::{mpsc, watch};

use super::connection::{CommandError, ConnectionArgs, Interrupt, run as run_command};
use super::input::read_input;
use super::lines::{Line, LineSplitter};

/// Records that are under way or wait to be reported. The producer's buffer
/// bounds their bytes, this bounds how many empty ones there can be.
const PENDING: usize = 100_000;

/// Arguments of `ringbolt produce`.
#[derive(clap::Args)]
#[command(after_help = "\
Standard output gets a line for each durable record, in the order of the input: PARTITION OFFSET (a dash \
where only the fact of its durability could be found out after a lost connection). Standard error gets one \
for every other: the number of its line, rejected-retryable, rejected-final or unknown, and why; and at the \
end a summary. The exit code is 0 if every record is durable, else 1. When the topic is deleted meanwhile, or \
another producer has taken over, no more of the input is taken: what was is told of as ever, then the reason.")]
pub struct ProduceArgs {
    /// Topic to produce to
    topic: String,
    /// Key of every record; equal keys go to the same partition
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Send every record to this partition
    #[arg(long, value_name = "INDEX")]
    partition: Option<u32>,
    /// Header of every record; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// Do not deliver the records to consumer groups before so long after their line was read; consume
    /// without --group prints them at once
    #[arg(long, value_name = "TIME", conflicts_with = "deliver_at", value_parser = parse_time_span)]
    delay: Option<Duration>,
    /// Do not deliver the records to consumer groups before this time, in RFC 3339 (2025-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = parse_when)]
    deliver_at: Option<SystemTime>,
    /// Do not deliver the records to consumer groups from so long after their line was read on
    #[arg(long, value_name = "TIME", value_parser = parse_time_span)]
    ttl: Option<Duration>,
    /// Longest time from reading a line to the end of its record, retries included
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_deadline)]
    deadline: Duration,
    /// Refuse to take less than this many copies for durable
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_copies: u8,
    /// Print the summary only
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_time_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

fn parse_when(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text).map_err(|error| error.to_string())
}

/// In whole µs, as the producer counts it.
fn parse_deadline(text: &str) -> Result<Duration, String> {
    let deadline = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match deadline < Duration::from_micros(1) {
        true => Err("it must be at least 1us".to_owned()),
        false => Ok(deadline),
    }
}

/// Runs the command.
pub fn run(args: ProduceArgs) -> ExitCode {
    run_command(|interrupt| produce(args, interrupt))
}

/// A line of the input: under way, or not taken.
type Sent = Result<Pending, ProduceError>;

async fn produce(args: ProduceArgs, mut interrupt: Interrupt) -> Result<ExitCode, CommandError> {
    let client = args.connection.connect().await?;
    let mut builder = client.producer(&args.topic).deadline(args.deadline).min_copies(args.min_copies);
    if let Some(partition) = args.partition {
        builder = builder.partition(partition);
    }
    let producer = builder.build().await?;
    let limit = client.broker().max_batch_len as usize;
    let mut input = read_input();
    let (sent, to_report) = mpsc::channel(PENDING);
    let (hopeless, mut given_up) = watch::channel(None);
    let reporter = tokio::spawn(report(to_report, args.quiet, hopeless));
    let mut splitter = LineSplitter::new(limit);
    let mut lines = Vec::new();
    let failed = loop {
        let piece = tokio::select! {
            piece = input.recv() => piece,
            () = interrupt.wait() => None,
            Ok(_) = given_up.wait_for(Option::is_some) => None,
        };
        match piece {
            None => break None,
            Some(Err(error)) => break Some(error),
            Some(Ok(piece)) => splitter.feed(piece, &mut lines),
        }
        send_lines(&producer, &args, limit, &mut lines, &sent).await;
    };
    if failed.is_none() && !interrupt.is_set() && given_up.borrow().is_none() {
        lines.extend(splitter.finish());
        send_lines(&producer, &args, limit, &mut lines, &sent).await;
    }
    drop(sent);
    producer.close().await;
    let summary = reporter.await.unwrap_or_default();
    eprintln!("{summary}");
    if let Some(refusal) = given_up.borrow().clone() {
        eprintln!("what follows line {} of the input was not taken", summary.total());
        return Err(Error::Refused(refusal).into());
    }
    match failed {
        Some(error) => Err(CommandError::io("reading standard input")(error)),
        None if summary.durable == summary.total() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

async fn send_lines(
    producer: &Producer,
    args: &ProduceArgs,
    limit: usize,
    lines: &mut Vec<Line>,
    sent: &mpsc::Sender<Sent>,
) {
    for line in lines.drain(..) {
        let result = match line {
            Line::TooLong(len) => {
                Err(ProduceError::TooLarge { len: usize::try_from(len).unwrap_or(usize::MAX), limit })
            }
            Line::Whole(value) => producer.enqueue(record(args, value)).await,
        };
        // The reporter goes only when this sender does.
        let _ = sent.send(result).await;
    }
}

/// The record of a line that has just been read.
fn record(args: &ProduceArgs, value: Bytes) -> Record {
    let mut record = Record::new(value);
    if let Some(key) = &args.key {
        record = record.with_key(key.clone());
    }
    for (name, value) in &args.headers {
        record = record.with_header(name, value.as_bytes());
    }
    record = match (args.delay, args.deliver_at) {
        (Some(delay), _) => record.delay(delay),
        (None, Some(time)) => record.deliver_at(time),
        (None, None) => record,
    };
    match args.ttl {
        Some(time_to_live) => record.ttl(time_to_live),
        None => record,
    }
}

/// How many records ended in each way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Summary {
    durable: u64,
    retryable: u64,
    refused: u64,
    unknown: u64,
}

impl Summary {
    fn total(&self) -> u64 {
        self.durable + self.retryable + self.refused + self.unknown
    }

    fn count(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Durable => &mut self.durable,
            Outcome::RejectedRetryable => &mut self.retryable,
            Outcome::RejectedFinal => &mut self.refused,
            Outcome::Unknown => &mut self.unknown,
        } += 1;
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records = if self.total() == 1 { "record" } else { "records" };
        write!(f, "{} {records}: {} durable", self.total(), self.durable)?;
        for (count, name) in [
            (self.retryable, "rejected-retryable"),
            (self.refused, "rejected-final"),
            (self.unknown, "unknown"),
        ] {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        Ok(())
    }
}

/// The refusal that every later record would end in, too: the topic is gone, or
/// another producer has taken over.
fn lasting(error: &ProduceError) -> Option<&ErrorResponse> {
    let refusal = match error {
        ProduceError::Failed(Failure::Refused(refusal)) => refusal,
        ProduceError::Failed(Failure::Unknown { last: Some(refusal) }) => refusal,
        _ => return None,
    };
    let lasts = matches!(refusal.error_code(), Some(ErrorCode::UnknownTopic | ErrorCode::FencedProducer));
    lasts.then_some(refusal)
}

/// Tells what became of each record, in order, and through `hopeless` when there
/// is no hope for others. What was told is flushed whenever there is nothing more
/// to tell at once.
async fn report(
    mut records: mpsc::Receiver<Sent>,
    quiet: bool,
    hopeless: watch::Sender<Option<ErrorResponse>>,
) -> Summary {
    let mut summary = Summary::default();
    let mut out = std::io::BufWriter::with_capacity(64 << 10, std::io::stdout());
    loop {
        let sent = match records.try_recv() {
            Ok(sent) => sent,
            Err(_) => {
                flush(&mut out);
                let Some(sent) = records.recv().await else { break };
                sent
            }
        };
        let result = match sent {
            Err(error) => Err(error),
            Ok(pending) => {
                let mut pending = pin!(pending);
                match poll_once(pending.as_mut()).await {
                    Some(result) => result,
                    None => {
                        flush(&mut out);
                        pending.await
                    }
                }
            }
        };
        let line = summary.total() + 1;
        summary.count(result.as_ref().map_or_else(ProduceError::outcome, |_| Outcome::Durable));
        if !quiet {
            tell(&mut out, line, &result);
        }
        if let Some(refusal) = result.as_ref().err().and_then(lasting) {
            hopeless.send_if_modified(|known| known.is_none() && known.replace(refusal.clone()).is_none());
        }
    }
    summary
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn tell(out: &mut impl Write, line: u64, result: &Result<Receipt, ProduceError>) {
    match result {
        // A reader of the report that went away is no reason to stop producing.
        Ok(delivery) => {
            let _ = match delivery.offset {
                Some(offset) => writeln!(out, "{} {offset}", delivery.partition),
                None => writeln!(out, "{} -", delivery.partition),
            };
        }
        Err(error) => eprintln!("line {line}: {}: {error}", name(error.outcome())),
    }
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Durable => "durable",
        Outcome::RejectedRetryable => "rejected-retryable",
        Outcome::RejectedFinal => "rejected-final",
        Outcome::Unknown => "unknown",
    }
}

fn flush(out: &mut impl Write) {
    // As above.
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_only_what_happened() {
        let mut summary = Summary::default();
        summary.count(Outcome::Durable);
        assert_eq!(summary.to_string(), "1 record: 1 durable");
        summary.count(Outcome::Unknown);
        summary.count(Outcome::RejectedFinal);
        assert_eq!(summary.to_string(), "3 records: 1 durable, 1 rejected-final, 1 unknown");
    }

    #[test]
    fn headers_are_names_and_values_and_a_value_may_hold_an_equals_sign() {
        assert_eq!(parse_header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_header("a").is_err());
    }

    #[test]
    fn a_deadline_that_leaves_no_time_is_refused() {
        assert_eq!(parse_deadline("250us"), Ok(Duration::from_micros(250)));
        for none in ["0s", "999ns", "-1s", "soon"] {
            assert!(parse_deadline(none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_durable_record_is_told_as_partition_and_offset() {
        let delivery = |offset| Receipt { partition: 3, offset, commit_time: None, copies: 1 };
        let mut out = Vec::new();
        tell(&mut out, 1, &Ok(delivery(Some(9))));
        tell(&mut out, 2, &Ok(delivery(None)));
        assert_eq!(out, b"3 9\n3 -\n");
    }
}
