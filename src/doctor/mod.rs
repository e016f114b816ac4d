//! What this machine offers Ringbolt: checks and measured floors.
//!
//! The checks say what was found, what is wanted, why, and how to change it;
//! the figures say what the disk and the loopback do with no broker on top, so
//! that a broker's own figures can be judged. How either is shown is the
//! command line's affair.

mod check;
mod checks;
mod figures;
mod plausible;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use check::{Check, Verdict};
pub use figures::{Figure, FigureSet, Figures, UnknownFigure};

use crate::io::pin::available_cpus;
use crate::io::probe::Sys;
use checks::DataDir;

/// What is to be examined.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the log is or will be.
    pub data: PathBuf,
    /// Length of each measurement.
    pub duration: Duration,
    /// What to measure.
    pub figures: FigureSet,
    /// Core for what stands for the broker; the first available by default.
    pub server_core: Option<usize>,
    /// Core for what stands for the client; the second available by default.
    pub client_core: Option<usize>,
}

/// Cores that are measured on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Cores {
    /// Of the echo peer and the disk's writer.
    pub server: Option<usize>,
    /// Of the client.
    pub client: Option<usize>,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// The directory that was examined: the one asked for, or the nearest
    /// above it that exists.
    pub data: PathBuf,
    /// Where it was measured.
    pub cores: Cores,
    /// Length of each measurement, in seconds.
    pub seconds: f64,
    /// True when nothing that is required is missing.
    pub can_run: bool,
    /// True when only direct I/O is missing, without which `serve
    /// --allow-buffered` does.
    pub can_run_buffered: bool,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// What was checked.
    pub checks: Vec<Check>,
    /// What endangers the data or spoils the figures.
    pub warnings: Vec<String>,
    /// Why the figures are incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Examines the machine. `progress` is told what is being done.
///
/// Nothing is measured where something required is missing, as there would be
/// nothing to measure with.
pub fn examine(options: &Options, progress: &mut dyn FnMut(&str)) -> Report {
    let sys = Sys::default();
    progress("checking");
    let data = DataDir::find(&sys, &options.data);
    let cores = choose_cores(options);
    let checks = checks::all(&sys, &data, &cores);
    let missing = checks.iter().filter(|check| check.verdict == Verdict::Required).count();
    let can_run = missing == 0;
    let can_run_buffered = missing == 1 && data.lacks_direct_io();
    let waiting = checks::waiting_for_a_core(&sys).unwrap_or(0.0);
    let mut figures = Figures::default();
    let outcome = can_run.then(|| figures::measure(options, &data.path, &cores, &mut figures, progress));
    let error = outcome.and_then(Result::err).map(|error| error.to_string());
    let mut warnings = plausible::warnings(&data, &figures);
    let measured = figures != Figures::default();
    if measured && waiting >= checks::BUSY_PERCENT {
        warnings.push(format!(
            "Other programs keep the cores busy (some thread waited for one {waiting} % of the time), so these \
             figures are worse than what the machine can do."
        ));
    }
    if measured && cores.server == cores.client {
        warnings.push(
            "Broker and client share a core here, so the figures of the loopback are those of half a core."
                .into(),
        );
    }
    Report {
        version: env!("CARGO_PKG_VERSION"),
        data: data.path,
        cores,
        seconds: options.duration.as_secs_f64(),
        can_run,
        can_run_buffered,
        figures,
        checks,
        warnings,
        error,
    }
}

impl Report {
    /// The report as text for a terminal; with the reason and the remedy of
    /// every check, or only of those that call for a change.
    pub fn to_text(&self, explain_all: bool) -> String {
        table::render(self, explain_all)
    }

    /// True when Ringbolt can run here and all that was asked for was measured.
    pub fn is_good(&self) -> bool {
        self.can_run && self.error.is_none()
    }
}

fn choose_cores(options: &Options) -> Cores {
    let available = available_cpus().unwrap_or_default();
    let server = options.server_core.or(available.first().copied());
    let other = available.iter().copied().find(|core| Some(*core) != server);
    Cores { server, client: options.client_core.or(other).or(server) }
}
