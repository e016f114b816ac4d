//! `loadgen run --read`: no producers, only fetches.

use std::sync::Arc;

use ringbolt_wire::PartitionId;

use crate::admin::Admin;
use crate::args::{ReadFrom, RunArgs};
use crate::consumer::Consumer;
use crate::engine::{EngineConfig, EngineError, consume};
use crate::error::Error;
use crate::peer::Peer;
use crate::report::{Fetched, Progress, Quantiles, Report};
use crate::run::{Outcome, watch};
use crate::signals::Signals;
use crate::sinks::CountSink;
use crate::stats::{Clock, recorder};

/// Fetches from `peer` for as long as asked for.
pub fn read(args: &RunArgs, what: ReadFrom, peer: &Peer, command: &str) -> Result<Outcome, Error> {
    let consumers = consumers(args, what, peer)?;
    let clock = Clock::start();
    let signals = Arc::new(Signals::default());
    let (recorder, intervals) = recorder();
    let sink = CountSink::new(recorder, signals.clone());
    let config = EngineConfig { addr: peer.addr(), core: args.core, busy_poll: args.busy_poll };
    let (warmup, measured) = (args.warmup(), args.measured().unwrap_or_default());
    let thread = {
        let signals = signals.clone();
        std::thread::Builder::new()
            .name("consumers".into())
            .spawn(move || {
                let (sink, failure) = consume::run(consumers, sink, config, clock, signals)?;
                Ok::<_, EngineError>(sink.finish(clock.now()).or(failure))
            })
            .map_err(|error| EngineError::Ring(error.to_string()))?
    };
    let timer = {
        let signals = signals.clone();
        std::thread::Builder::new()
            .name("timer".into())
            .spawn(move || {
                std::thread::sleep(warmup);
                signals.measure_from(clock.now());
                std::thread::sleep(measured);
                signals.measure_until(clock.now());
                signals.freeze(clock.now());
            })
            .map_err(|error| EngineError::Ring(error.to_string()))?
    };
    let totals = watch(&intervals, &Progress::new(args.quiet, Some(warmup + measured)), "connecting");
    let failure = thread.join().map_err(|_| Error::Panic)??;
    if failure.is_none() {
        // With a failure the readers ended early: no need to wait.
        timer.join().map_err(|_| Error::Panic)?;
    }
    let fetched = Fetched {
        records: totals.records,
        mb_per_s: totals.mb_per_second(),
        records_per_s: totals.per_second(),
        latency_us: Quantiles::of(&totals.latency),
    };
    let report = Report {
        latency_us: fetched.latency_us,
        measured_s: totals.seconds,
        engine: "tokio-uring",
        command: command.to_owned(),
        fetched: Some(fetched),
        totals,
        ..Report::default()
    };
    Ok(Outcome { report, failure })
}

/// Consumers that go round over what is to be read.
fn consumers(args: &RunArgs, what: ReadFrom, peer: &Peer) -> Result<Vec<Consumer>, Error> {
    let mut admin = Admin::connect(peer.addr())?;
    let topic = admin.topic(&args.topic, None)?;
    let count = topic.partitions.min(args.partitions).max(1);
    let mut ranges = Vec::new();
    for partition in (0..count).map(|index| PartitionId::new(topic.id, index)) {
        let (earliest, end) = (admin.earliest(partition)?, admin.end(partition)?);
        if earliest == end {
            continue;
        }
        let start = match what {
            ReadFrom::Cold => earliest,
            ReadFrom::Tail => {
                let record = admin.record_len(partition, end - 1)?;
                end.saturating_sub((u64::from(args.span) / record).max(1)).max(earliest)
            }
        };
        ranges.push((partition, start..end));
    }
    if ranges.is_empty() {
        return Err(Error::Usage(format!("there is nothing to read in topic {}", args.topic)));
    }
    let consumers = (args.consumers.max(1) as usize).min(ranges.len());
    Ok((0..consumers)
        .map(|c| Consumer::cycling(ranges.iter().skip(c).step_by(consumers).cloned(), args.fetch_bytes))
        .collect())
}
