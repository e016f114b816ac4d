//! Reads back everything that a ledger speaks of, and judges it.

use std::collections::BTreeSet;
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
    let mut named = BTreeSet::new();
    let tail = LedgerReader::open(&args.ledger)?.for_each(|entry| {
        if let Entry::RunStarted(info) = entry {
            named.insert(info.addr);
        }
    })?;
    if tail.torn_len > 0 && !args.quiet {
        eprintln!("the ledger ends in {} bytes that were being written when it was cut off", tail.torn_len);
    }
    let addr = match &args.addr {
        Some(addr) => addr.clone(),
        None => only_one(named, &args.ledger)?,
    };
    read_back(&args.ledger, resolve(&addr)?, args.allow_expired, args.core, args.quiet)
}

/// The one broker that a ledger names: messages of several cannot be looked for
/// in one.
fn only_one(mut named: BTreeSet<String>, ledger: &Path) -> Result<String, Error> {
    let ledger = ledger.display();
    match named.pop_first() {
        None => Err(Error::Usage(format!("no run is in ledger {ledger}"))),
        Some(first) if named.is_empty() => Ok(first),
        Some(first) => {
            let rest: Vec<String> = named.into_iter().collect();
            Err(Error::Usage(format!(
                "ledger {ledger} has runs against {first} and {}; if these are addresses of one broker, say with \
                 --addr where it is now, otherwise keep a ledger for each",
                rest.join(", ")
            )))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_of_several_brokers_is_not_judged_against_any_one_of_them() {
        let named = |addrs: &[&str]| {
            let named = addrs.iter().map(|addr| addr.to_string()).collect();
            only_one(named, Path::new("x")).map_err(|error| error.to_string())
        };
        assert_eq!(named(&["a:1", "a:1"]), Ok("a:1".to_owned()));
        assert!(named(&["a:1", "b:2"]).unwrap_err().contains("against a:1 and b:2"));
        assert!(named(&[]).unwrap_err().contains("no run"));
    }
}
