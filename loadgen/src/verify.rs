//! Reads back everything that a ledger speaks of, and judges it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::admin::resolve;
use crate::args::VerifyArgs;
use crate::consumer::Consumer;
use crate::engine::{EngineConfig, consume};
use crate::error::Error;
use crate::judge::{Judge, Verdict};
use crate::ledger::{Entry, LedgerReader};
use crate::report::Progress;
use crate::signals::Signals;
use crate::sinks::JudgeSink;
use crate::stats::Clock;

/// Bytes per fetch: few round trips, and still little memory.
const FETCH_BYTES: u32 = 1 << 20;
/// Consumers that read side by side.
const CONSUMERS: usize = 4;

/// `loadgen verify`: the verdict, and what kept it from being complete.
pub fn verify(args: &VerifyArgs) -> Result<(Verdict, Option<String>), Error> {
    let mut named = None;
    let tail = LedgerReader::open(&args.ledger)?.for_each(|entry| {
        if let Entry::RunStarted(info) = entry {
            named = Some(info.addr);
        }
    })?;
    if tail.torn_len > 0 && !args.quiet {
        eprintln!("the ledger ends in {} bytes that were being written when it was cut off", tail.torn_len);
    }
    let Some(addr) = args.addr.clone().or(named) else {
        return Err(Error::Usage(format!("no run is in ledger {}", args.ledger.display())));
    };
    read_back(&args.ledger, resolve(&addr)?, args.allow_expired, args.core, args.quiet)
}

/// Reads back from the broker at `addr` what the ledger speaks of, and judges.
pub fn read_back(
    ledger: &Path,
    addr: SocketAddr,
    allow_expired: bool,
    core: Option<usize>,
    quiet: bool,
) -> Result<(Verdict, Option<String>), Error> {
    let mut judge = Judge::default();
    judge.allow_expired(allow_expired);
    LedgerReader::open(ledger)?.for_each(|entry| judge.entry(&entry))?;
    let partitions = judge.partitions();
    if partitions.is_empty() {
        return Ok((judge.verdict(), None));
    }
    let count = CONSUMERS.min(partitions.len());
    let consumers = (0..count)
        .map(|c| {
            let own = partitions.iter().skip(c).step_by(count);
            let mut consumer = Consumer::new(own.map(|&p| (p, 0)), FETCH_BYTES);
            consumer.freeze();
            consumer
        })
        .collect();
    let clock = Clock::start();
    let signals = Arc::new(Signals::default());
    signals.freeze(clock.now());
    let sink = JudgeSink::new(judge, None, signals.clone());
    let config = EngineConfig { addr, core, busy_poll: false };
    let progress = Progress::new(quiet, None);
    progress.say("reading back");
    let (sink, failure) = consume::run(consumers, sink, config, clock, signals)?;
    progress.finish();
    Ok((sink.into_judge().verdict(), failure))
}
