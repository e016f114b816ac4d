//! What is seen while a run goes on: one line that renews itself, on a terminal
//! only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::number;
use crate::stats::Point;

/// The line.
pub struct Progress {
    bar: ProgressBar,
    length_s: Option<f64>,
}

impl Progress {
    /// A line for a run of this length, if it is known; nothing at all if
    /// `quiet` or if nobody watches.
    pub fn new(quiet: bool, length: Option<Duration>) -> Progress {
        // Hidden by itself when stderr is no terminal.
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(length.map(|l| l.as_millis() as u64), target);
        let template =
            if length.is_some() { "{bar:24} {elapsed:>4}  {msg}" } else { "{spinner} {elapsed:>4}  {msg}" };
        // A template that does not parse falls back to indicatif's own.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress { bar, length_s: length.map(|l| l.as_secs_f64()) }
    }

    /// Says what the run is busy with.
    pub fn say(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.tick();
    }

    /// Shows the last second.
    pub fn show(&self, point: &Point) {
        let note = if point.measured { "" } else { "  (not measured)" };
        self.bar.set_message(format!(
            "{}/s  {} MB/s  p50 {} µs  p99 {} µs  max {} µs{note}",
            number(point.per_second),
            number(point.mb_per_second),
            number(point.p50),
            number(point.p99),
            number(point.max),
        ));
        match self.length_s {
            Some(length) => self.bar.set_position((point.at.min(length) * 1000.0) as u64),
            None => self.bar.tick(),
        }
    }

    /// Removes the line.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
