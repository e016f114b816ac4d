//! The `loadgen` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use loadgen::admin::Admin;
use loadgen::args::{Cli, Command, DrainArgs, RunArgs, VerifyArgs};
use loadgen::error::Error;
use loadgen::judge::{Decision, Verdict};
use loadgen::peer::Peer;
use loadgen::report::{self, Report};
use loadgen::run::Outcome;
use loadgen::signals::Signals;
use loadgen::{drain, read, run, stage, verify};
use ringbolt::io::process::StopSignals;

/// The broker broke its word.
const BROKEN: u8 = 1;
/// Bad usage, or the run could not be carried through, or not everything that was
/// acknowledged could be looked for.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    // Thousands of connections need as many files; what cannot be had shows
    // when it is missed.
    let _ = ringbolt::io::process::raise_open_files();
    let done = match Cli::parse().command {
        None => everything(&RunArgs::defaults()),
        Some(Command::Run(args)) => single(&args),
        Some(Command::Drain(args)) => consume(&args),
        Some(Command::Stage(args)) => stage::stage(&args).map(|made| {
            println!("{made}");
            ExitCode::SUCCESS
        }),
        Some(Command::Verify(args)) => judge(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("loadgen: {error}");
        ExitCode::from(FAILED)
    })
}

fn command() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}

/// Lets the first SIGINT or SIGTERM end the run in an orderly way, and the
/// second one end the process. To be called before there are threads.
fn heed_signals() -> Result<Arc<Signals>, Error> {
    let stop = StopSignals::hold().map_err(Error::Signals)?;
    let signals = Arc::new(Signals::default());
    let interrupted = signals.clone();
    let waiting = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        stop.wait();
        interrupted.interrupt();
        // As a shell reports a process that a signal has ended.
        std::process::exit(128 + stop.wait());
    });
    waiting.map(|_| signals).map_err(Error::Signals)
}

/// `loadgen`: a run against an embedded broker, which is then stopped and
/// started again, so that what is read back comes from its disk.
fn everything(args: &RunArgs) -> Result<ExitCode, Error> {
    let signals = heed_signals()?;
    let Peer::Embedded(embedded) = Peer::of(args)? else { unreachable!("no address was given") };
    let ledger = embedded.dir().join("run.ledger");
    println!("an embedded broker listens on {}", embedded.addr());
    let peer = Peer::Embedded(embedded);
    let mut outcome = run::run(args, &peer, Some(&ledger), signals, &command())?;
    let Peer::Embedded(embedded) = peer else { unreachable!("made above") };
    println!("the broker is restarted, and everything is read back from its disk");
    let embedded = embedded.restart()?;
    let (verdict, failure) =
        verify::read_back(&ledger, embedded.addr(), args.allow_expired, args.core, args.quiet)?;
    outcome.report.judged(verdict);
    outcome.failure = outcome.failure.or(failure);
    finish(args, outcome)
}

/// `loadgen run`.
fn single(args: &RunArgs) -> Result<ExitCode, Error> {
    // A reading run leaves nothing behind that an orderly end would save.
    let signals = if args.read.is_some() { Arc::default() } else { heed_signals()? };
    let peer = Peer::of(args)?;
    let _idle = Admin::connect_idle(peer.addr(), args.idle)?;
    let outcome = match args.read {
        Some(what) => read::read(args, what, &peer, &command())?,
        None => run::run(args, &peer, args.ledger.as_deref(), signals, &command())?,
    };
    finish(args, outcome)
}

fn finish(args: &RunArgs, outcome: Outcome) -> Result<ExitCode, Error> {
    let Outcome { report, failure } = outcome;
    if !args.quiet {
        println!("{}", report::results(&report));
        match (&report.verdict, &args.ledger, &args.addr) {
            (Some(verdict), ..) => println!("\n{}", report::judgement(verdict)),
            (None, Some(ledger), Some(addr)) => {
                let ledger = ledger.display();
                println!(
                    "\nnot judged yet: loadgen verify --ledger {ledger} --addr {addr} reads everything back"
                );
            }
            // Nothing was noted, or the broker is gone.
            (None, ..) => {}
        }
    }
    write_files([&args.json, &args.hgrm, &args.html], &report)?;
    if let Some(failure) = &failure {
        eprintln!("loadgen: {failure}");
    }
    Ok(exit_code(report.verdict.as_ref(), failure.is_some()).into())
}

/// `loadgen drain`.
fn consume(args: &DrainArgs) -> Result<ExitCode, Error> {
    let Outcome { report, failure } = drain::drain(args, heed_signals()?, &command())?;
    if !args.quiet {
        println!("{}", report::results(&report));
    }
    write_files([&args.json, &args.hgrm, &args.html], &report)?;
    if let Some(failure) = &failure {
        eprintln!("loadgen: {failure}");
    }
    Ok(exit_code(None, failure.is_some()).into())
}

fn write_files([json, hgrm, html]: [&Option<PathBuf>; 3], report: &Report) -> Result<(), Error> {
    if let Some(path) = json {
        report::write_file(path, report.to_json().as_bytes())?;
    }
    if let Some(path) = hgrm {
        report::write_file(path, report::write_hgrm(&report.totals.latency).as_bytes())?;
    }
    if let Some(path) = html {
        report::write_file(path, report::render_html(report).map_err(Error::Chart)?.as_bytes())?;
    }
    Ok(())
}

/// `loadgen verify`.
fn judge(args: &VerifyArgs) -> Result<ExitCode, Error> {
    let (verdict, failure) = verify::verify(args)?;
    if !args.quiet {
        println!("{}", report::judgement(&verdict));
    } else if !verdict.complete {
        eprintln!("loadgen: the ledger was not closed: only what it knows of was looked for");
    }
    if let Some(path) = &args.json {
        report::write_file(path, report::to_json(&verdict).as_bytes())?;
    }
    if let Some(failure) = &failure {
        eprintln!("loadgen: {failure}");
    }
    Ok(exit_code(Some(&verdict), failure.is_some()).into())
}

fn exit_code(verdict: Option<&Verdict>, failed: bool) -> u8 {
    match verdict.map(Verdict::decision) {
        Some(Decision::Broken) => BROKEN,
        Some(Decision::Unproven) => FAILED,
        Some(Decision::Kept) | None if failed => FAILED,
        Some(Decision::Kept) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verdict_in_which_everything_was_looked_for_is_a_success() {
        let kept = Verdict { acked: 1, ..Verdict::default() };
        let unproven = Verdict { unverified: 1, ..kept.clone() };
        let broken = Verdict { lost: 1, ..unproven.clone() };
        for (verdict, failed, code) in [
            (Some(&kept), false, 0),
            (None, false, 0),
            (Some(&kept), true, FAILED),
            (None, true, FAILED),
            (Some(&unproven), false, FAILED),
            (Some(&broken), false, BROKEN),
            (Some(&broken), true, BROKEN),
        ] {
            assert_eq!(exit_code(verdict, failed), code, "{verdict:?}, {failed}");
        }
    }
}
