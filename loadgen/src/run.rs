//! `loadgen run`: puts peer, topic, ledger, producers and consumers together,
//! watches them, and reports.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringbolt_wire::{PartitionId, TopicId};

use crate::admin::Admin;
use crate::args::{EngineChoice, RunArgs};
use crate::consumer::Consumer;
use crate::engine::{self, Engine, EngineConfig, EngineError, consume};
use crate::error::Error;
use crate::fleet::{Finished, Fleet, Plan};
use crate::frame::{FrameMaker, KeySpace, batch_len};
use crate::group::Consumed;
use crate::group_run::GroupRun;
use crate::judge::{Judge, Verdict};
use crate::ledger::{Entry, LedgerReader, LedgerSink, LedgerWriter, RunInfo};
use crate::payload::Filler;
use crate::peer::Peer;
use crate::producer::{Context, Parameters, Pauses, Phase, Producer, Tally};
use crate::report::{Fetched, Lag, Progress, Quantiles, Report};
use crate::schedule;
use crate::signals::Signals;
use crate::sinks::JudgeSink;
use crate::stats::{Clock, Intervals, Next, Totals, recorder};

/// What a run leaves behind.
pub struct Outcome {
    /// The figures.
    pub report: Report,
    /// What kept the run from going as planned, if something did.
    pub failure: Option<String>,
}

/// Everything of a run that does not change.
struct Run<'a> {
    args: &'a RunArgs,
    config: EngineConfig,
    clock: Clock,
    signals: Arc<Signals>,
    /// The run's random number.
    number: u64,
    wall_us: u64,
    partitions: Vec<PartitionId>,
    command: &'a str,
}

/// Sees to it that the run fits the broker, and that its topic is there.
fn set_up(args: &RunArgs, peer: &Peer) -> Result<TopicId, Error> {
    if let Some(misfit) = args.grouped.misfit(args.keys.is_some()) {
        return Err(Error::Usage(misfit));
    }
    if args.grouped.group.is_none() && args.consumers > args.partitions {
        return Err(Error::Usage(format!(
            "{} consumers for {} partitions: some would have nothing to read; lower --consumers or raise --partitions",
            args.consumers, args.partitions
        )));
    }
    let batch_len = batch_len(args.size as usize, args.keys.is_some(), args.batch);
    if let Peer::Echo(_) = peer {
        fits(args, batch_len, ringbolt::limits::MAX_BATCH_LEN, u32::MAX)?;
        return Ok(TopicId(1));
    }
    Admin::persist(peer.addr(), |admin| {
        let limits = admin.limits();
        if let Err(misfit) = fits(args, batch_len, limits.max_batch_len, limits.max_in_flight) {
            return Ok(Err(misfit));
        }
        Ok(Ok(admin.topic(&args.topic, Some(args.partitions))?.id))
    })?
}

/// Whether the peer takes what the run is to send.
fn fits(args: &RunArgs, batch_len: usize, max_batch_len: u32, max_in_flight: u32) -> Result<(), Error> {
    if batch_len > max_batch_len as usize {
        return Err(Error::Usage(format!(
            "a record batch of {} values of {} bytes has {batch_len} bytes, at most {max_batch_len} are taken; \
             lower --batch or --size",
            args.batch, args.size
        )));
    }
    if args.in_flight > max_in_flight {
        return Err(Error::Usage(format!(
            "the broker takes {max_in_flight} requests in flight per connection; \
             lower --in-flight from {} and raise --producers",
            args.in_flight
        )));
    }
    Ok(())
}

/// Loads `peer` with producers as asked for; consumers read along.
///
/// `ledger` is where the ledger goes, whatever the arguments say.
///
/// # Errors
/// If it cannot begin, or not be carried through; what goes wrong on the way is
/// in the outcome.
pub fn run(
    args: &RunArgs,
    peer: &Peer,
    ledger: Option<&Path>,
    signals: Arc<Signals>,
    command: &str,
) -> Result<Outcome, Error> {
    let topic = set_up(args, peer)?;
    let clock = Clock::start();
    let run = Run {
        args,
        config: EngineConfig { addr: peer.addr(), core: args.core, busy_poll: args.busy_poll },
        clock,
        signals,
        number: uuid::Uuid::new_v4().as_u64_pair().0,
        wall_us: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64,
        partitions: (0..args.partitions).map(|index| PartitionId::new(topic, index)).collect(),
        command,
    };
    run.go(ledger)
}

/// The ledger of a run: asked for, or only for the time being, since what
/// consumers read is judged by it.
struct LedgerFile {
    path: PathBuf,
    /// Removed with this value.
    _temporary: Option<tempfile::TempPath>,
}

impl LedgerFile {
    fn of(args: &RunArgs, path: Option<&Path>) -> Result<Option<LedgerFile>, Error> {
        if let Some(path) = path {
            return Ok(Some(LedgerFile { path: path.to_owned(), _temporary: None }));
        }
        if args.consumers == 0 {
            return Ok(None);
        }
        let file = tempfile::Builder::new().prefix("loadgen-").suffix(".ledger").tempfile();
        let path = file.map_err(Error::Temporary)?.into_temp_path();
        Ok(Some(LedgerFile { path: path.to_path_buf(), _temporary: Some(path) }))
    }
}

type ConsumerThread = JoinHandle<Result<(JudgeSink, Option<String>), EngineError>>;

/// Who consumes beside the producers.
enum Consumers {
    /// They read by offset.
    Readers(ConsumerThread),
    /// They are a group's.
    Group(Box<GroupRun>),
}

/// What consumers have to say when all is over.
#[derive(Default)]
struct Told {
    fetched: Option<Fetched>,
    consumed: Option<Consumed>,
    verdict: Option<Verdict>,
    failure: Option<String>,
}

impl Run<'_> {
    fn go(&self, ledger: Option<&Path>) -> Result<Outcome, Error> {
        let ledger = LedgerFile::of(self.args, ledger)?;
        let (writer, mut sink) = match &ledger {
            Some(file) => {
                let (writer, sink) = LedgerWriter::start(&file.path)?;
                (Some(writer), sink)
            }
            None => (None, LedgerSink::none()),
        };
        sink.push(Entry::RunStarted(Box::new(self.info())))?;

        let consumers = self.start_consumers()?;
        let (fleet, intervals) = self.fleet(sink);
        let (engine, name) = self.engine();
        let config = self.config;
        let producers = std::thread::Builder::new()
            .name("producers".into())
            .spawn(move || engine(fleet, config).map(Fleet::finish))
            .map_err(|error| EngineError::Ring(error.to_string()))?;
        let totals = self.watch(&intervals);
        let Finished { tally, mut failure, ledger_error } = producers.join().map_err(|_| Error::Panic)??;
        if let Some(writer) = writer {
            writer.finish()?;
        }
        if let Some(error) = ledger_error {
            return Err(error.into());
        }

        let told = match (consumers, &ledger) {
            (Some(consumers), Some(ledger)) => self.catch_up(consumers, &ledger.path)?,
            _ => Told::default(),
        };
        failure = failure.or(told.failure.clone());
        if tally.acked == 0 {
            failure.get_or_insert("nothing was acknowledged".to_owned());
        }
        let report = self.report(totals, tally, name, told);
        Ok(Outcome { report, failure })
    }

    fn info(&self) -> RunInfo {
        RunInfo {
            run: self.number,
            started_us: self.wall_us,
            addr: self.config.addr.to_string(),
            topic: self.args.topic.clone(),
            command: self.command.to_owned(),
        }
    }

    fn engine(&self) -> (Engine, &'static str) {
        match self.args.engine {
            EngineChoice::Auto | EngineChoice::Raw => (engine::raw::run, "raw"),
            EngineChoice::TokioUring => (engine::tokio_uring::run, "tokio-uring"),
        }
    }

    fn fleet(&self, ledger: LedgerSink) -> (Fleet, Intervals) {
        let args = self.args;
        let (recorder, intervals) = recorder();
        let ctx = Context {
            parameters: Parameters {
                run: self.number,
                batch: args.batch,
                in_flight: args.in_flight,
                timeout: nanos(args.timeout),
                rate: args.rate,
                producers: args.producers,
                echo: args.echo,
                wall_us: self.wall_us,
            },
            maker: FrameMaker::new(
                Filler::new(self.number, args.size as usize),
                args.batch,
                args.keys.map(KeySpace::new),
            ),
            clock: self.clock,
            recorder,
            ledger,
            tally: Tally::default(),
            phase: Phase::Opening,
            due_until: u64::MAX,
            pauses: Pauses::default(),
            acked_end: vec![0; self.partitions.len()],
            spares: Vec::new(),
            streams: 0,
            failure: None,
            ledger_error: None,
        };
        let producers = (0..args.producers)
            .map(|index| Producer::new(index, self.partitions_of(index), self.budget_of(index)))
            .collect();
        let plan = Plan { warmup: nanos(args.warmup()), measured: args.measured().map(nanos) };
        (Fleet::new(producers, ctx, plan, self.signals.clone()), intervals)
    }

    /// With more partitions than producers each cycles over a share of its own;
    /// otherwise producers share partitions.
    fn partitions_of(&self, producer: u32) -> Vec<PartitionId> {
        share(&self.partitions, producer as usize, self.args.producers as usize)
    }

    /// A producer's part of a counted run: as even as it gets.
    fn budget_of(&self, producer: u32) -> Option<u64> {
        let (index, producers) = (u64::from(producer), u64::from(self.args.producers));
        self.args.count.map(|count| count / producers + u64::from(index < count % producers))
    }

    fn start_consumers(&self) -> Result<Option<Consumers>, Error> {
        let Run { args, config, clock, .. } = *self;
        match &args.grouped.group {
            _ if args.consumers == 0 => Ok(None),
            None => Ok(Some(Consumers::Readers(self.start_readers()?))),
            Some(name) => {
                let run = GroupRun::start(args, name, config, clock, self.signals.clone(), self.number)?;
                Ok(Some(Consumers::Group(Box::new(run))))
            }
        }
    }

    fn start_readers(&self) -> Result<ConsumerThread, Error> {
        let count = self.args.consumers as usize;
        // Only what this run produces is of interest.
        let from = Admin::persist(self.config.addr, |admin| {
            self.partitions.iter().map(|&partition| Ok((partition, admin.end(partition)?))).collect()
        });
        let from: Vec<(PartitionId, u64)> = from?;
        let mut judge = Judge::default();
        judge.allow_expired(self.args.allow_expired);
        for &(partition, end) in &from {
            judge.begin_at(partition, end);
        }
        let consumers = (0..count)
            .map(|c| Consumer::new(from.iter().copied().skip(c).step_by(count), self.args.fetch_bytes))
            .collect();
        let (config, clock, signals) = (self.config, self.clock, self.signals.clone());
        let sink = JudgeSink::new(judge, Some((self.number, clock)), signals.clone());
        let thread = std::thread::Builder::new()
            .name("consumers".into())
            .spawn(move || consume::run(consumers, sink, config, clock, signals))
            .map_err(|error| EngineError::Ring(error.to_string()))?;
        Ok(thread)
    }

    /// Lets consumers finish, and judges.
    fn catch_up(&self, consumers: Consumers, ledger: &Path) -> Result<Told, Error> {
        let progress = Progress::new(self.args.quiet, None);
        progress.say("the consumers catch up");
        self.signals.freeze(self.clock.now());
        let mut told = Told::default();
        match consumers {
            Consumers::Readers(thread) => {
                let (sink, stopped) = thread.join().map_err(|_| Error::Panic)??;
                told.failure = stopped;
                told.fetched = Some(sink.fetched());
                told.verdict = Some(judge(sink.into_judge(), ledger, Some(self.number))?);
            }
            Consumers::Group(run) => {
                let mut end = run.catch_up()?;
                read_ledger(end.judge.messages(), ledger, Some(self.number))?;
                let verdict = end.judge.verdict(end.is_drained);
                let dead_letters = verdict.group.as_ref().map(|group| group.dead_letters);
                told.consumed = Some(Consumed { dead_letters, ..end.consumed });
                (told.failure, told.fetched, told.verdict) = (end.failure, Some(end.fetched), Some(verdict));
            }
        }
        progress.finish();
        Ok(told)
    }

    /// Sums up and shows the intervals until the producers are done.
    fn watch(&self, intervals: &Intervals) -> Totals {
        let length = self.args.measured().map(|measured| measured + self.args.warmup());
        watch(intervals, &Progress::new(self.args.quiet, length), "opening")
    }

    fn report(&self, totals: Totals, tally: Tally, engine: &'static str, told: Told) -> Report {
        let reason = self
            .args
            .rate
            .and_then(|_| schedule::invalid(&totals.lag, &totals.latency, tally.sent, tally.due_not_sent));
        let mut report = Report {
            acked: tally.acked,
            acked_per_s: totals.per_second(),
            mb_per_s: totals.mb_per_second(),
            lost: None,
            duplicated: None,
            reordered: None,
            corrupted: None,
            unknown: tally.unknown,
            due_not_sent: tally.due_not_sent,
            invalid: reason.is_some(),
            latency_us: Quantiles::of(&totals.latency),
            schedule_lag_us: Lag::of(&totals.lag),
            invalid_reason: reason,
            sent: tally.sent,
            refused: tally.refused,
            retries: tally.retries,
            reconnects: tally.reconnects,
            measured_s: totals.seconds,
            engine,
            echo: self.args.echo,
            command: self.command.to_owned(),
            fetched: told.fetched,
            consumed: told.consumed,
            verdict: None,
            totals,
        };
        if let Some(verdict) = told.verdict {
            report.judged(verdict);
        }
        report
    }
}

/// Sums up intervals until there are no more, and shows each.
pub fn watch(intervals: &Intervals, progress: &Progress, first: &str) -> Totals {
    let mut totals = Totals::default();
    progress.say(first);
    loop {
        match intervals.next(Duration::from_millis(200)) {
            Next::Interval(interval) => {
                if let Some(point) = totals.add(&interval) {
                    progress.show(&point);
                }
                intervals.recycle(interval);
            }
            Next::NotYet => {}
            Next::Ended => return totals,
        }
    }
}

/// Every `of`-th of the partitions, from the `index`-th on; or, if there are
/// fewer than `of`, one that several share.
fn share(partitions: &[PartitionId], index: usize, of: usize) -> Vec<PartitionId> {
    match partitions.len() {
        len if len > of => partitions.iter().copied().skip(index).step_by(of).collect(),
        len => vec![partitions[index % len]],
    }
}

/// Lets a judge with evidence from a broker read a ledger, and decide. Of a
/// file with several runs only `only` counts, if it is given.
pub fn judge(mut judge: Judge, ledger: &Path, only: Option<u64>) -> Result<Verdict, Error> {
    read_ledger(&mut judge, ledger, only)?;
    Ok(judge.verdict())
}

fn read_ledger(judge: &mut Judge, ledger: &Path, only: Option<u64>) -> Result<(), Error> {
    let mut relevant = only.is_none();
    LedgerReader::open(ledger)?.for_each(|entry| {
        if let (Entry::RunStarted(info), Some(only)) = (&entry, only) {
            relevant = info.run == only;
        }
        if relevant {
            judge.entry(&entry);
        }
    })?;
    Ok(())
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_producer_and_every_producer_a_partition() {
        for (partitions, producers) in [(1u32, 64usize), (64, 64), (100, 64), (10_000, 64), (7, 3), (3, 7)] {
            let all: Vec<_> = (0..partitions).map(|i| PartitionId::new(TopicId(1), i)).collect();
            let shares: Vec<_> = (0..producers).map(|p| share(&all, p, producers)).collect();
            assert!(shares.iter().all(|s| !s.is_empty()));
            let mut covered: Vec<_> = shares.concat();
            covered.sort();
            covered.dedup();
            assert_eq!(covered.len(), all.len());
            if partitions as usize >= producers {
                assert_eq!(shares.concat().len(), all.len(), "no partition has two producers");
            }
        }
    }
}
