//! `ringbolt doctor`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::doctor::{FigureSet, Options, Report, examine};

/// Length of a measurement unless told otherwise, and with --quick.
const SECONDS: f64 = 1.0;
const QUICK_SECONDS: f64 = 0.1;

/// Arguments of `ringbolt doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Where the log is or will be; the measurements write a file there, which is gone afterwards
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,

    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,

    /// Give the remedy of every check, not only of those that call for a change
    #[arg(long, conflicts_with = "json")]
    explain: bool,

    /// Measure for a tenth of a second each: enough to see that it works
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,

    /// Length of each measurement
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    seconds: Option<Duration>,

    /// Measure only these: dsync_4k_us, dsync_64k_us, write_4k_us, seq_dsync_mb_per_s,
    /// loopback_rtt_us, loopback_busy_rtt_us, loopback_echo_per_s, or a shape such as 64x16
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<FigureSet>,

    /// Core of what stands for the broker [default: the first available]
    #[arg(long, value_name = "CORE")]
    server_core: Option<usize>,

    /// Core of what stands for the client [default: the second available]
    #[arg(long, value_name = "CORE")]
    client_core: Option<usize>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if !(0.01..=3600.0).contains(&seconds) {
        return Err("must be between 0.01 and 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Runs the checks and measurements. The exit code is 1 when something that
/// Ringbolt requires is missing, or a measurement failed.
pub fn run(args: DoctorArgs) -> ExitCode {
    let default = if args.quick { QUICK_SECONDS } else { SECONDS };
    let options = Options {
        data: args.data,
        duration: args.seconds.unwrap_or(Duration::from_secs_f64(default)),
        figures: if args.only.is_empty() { FigureSet::all() } else { FigureSet::union(args.only) },
        server_core: args.server_core,
        client_core: args.client_core,
    };
    let mut stderr = std::io::stderr();
    let shows_progress = stderr.is_terminal();
    // Progress that cannot be shown is no reason to stop.
    let report = examine(&options, &mut |what| {
        if shows_progress {
            let _ = write!(stderr, "\r\x1b[K{what} ...");
        }
    });
    if shows_progress {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let printed = if args.json { print_json(&report) } else { print_text(&report, args.explain) };
    match printed {
        Ok(()) if report.is_good() => ExitCode::SUCCESS,
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe && report.is_good() => ExitCode::SUCCESS,
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

fn print_json(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)
}

fn print_text(report: &Report, explain: bool) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(report.to_text(explain).as_bytes())
}
