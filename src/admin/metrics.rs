//! Counters as text for Prometheus.

use std::fmt::Write as _;

use super::source::Stats;

/// What [`render`] writes: the text format of Prometheus, version 0.0.4.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All counters, each with its type.
pub(super) fn render(stats: &Stats) -> String {
    let mut text = String::new();
    for (name, value) in stats {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a String does not fail.
        let _ = writeln!(text, "# TYPE ringbolt_{name} {kind}\nringbolt_{name} {value}");
    }
    text
}
