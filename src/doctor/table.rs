//! The report as text.

use std::fmt::Write;

use comfy_table::{Cell, ContentArrangement, Table, presets};

use super::{Check, Report, Verdict};
use crate::io::floor::Latency;

/// Columns of a terminal that is not narrow.
const WIDTH: u16 = 120;

/// Every check with what was found, what is wanted, and why; the remedy of those
/// that call for a change, or of all.
pub(super) fn render(report: &Report, explain_all: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", checks(&report.checks));
    for check in report.checks.iter().filter(|check| explain_all || !check.ok) {
        let _ = writeln!(text, "\n{} {}", mark(check.verdict), check.name);
        let _ = writeln!(text, "    found   {}", check.found);
        let _ = writeln!(text, "    wanted  {}", check.wanted);
        let _ = writeln!(text, "    why     {}", check.why);
        let _ = writeln!(text, "    how     {}", check.how);
    }
    if !explain_all {
        let _ = writeln!(text, "\nHow to change what is as it should be: ringbolt doctor --explain");
    }
    if let Some(error) = &report.error {
        let _ = writeln!(text, "\nNot measured: {error}");
    }
    let figures = figures(report);
    if !figures.is_empty() {
        let _ = writeln!(
            text,
            "\nThe floor in {}, broker on core {}, client on core {}, {} s each:\n{figures}",
            report.data.display(),
            core(report.cores.server),
            core(report.cores.client),
            report.seconds
        );
    }
    if let Some(us) = report.figures.expected_ack_us {
        let _ = writeln!(
            text,
            "\nExpected: an acknowledgement takes {us} µs or a little more (durable write + round trip, p50)."
        );
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "\nWARNING: {warning}");
    }
    let count = |verdict| report.checks.iter().filter(|check| check.verdict == verdict).count();
    let _ = match count(Verdict::Required) {
        0 => writeln!(text, "\nRingbolt can run here; {} settings could be better.", count(Verdict::Advice)),
        _ if report.can_run_buffered => {
            writeln!(
                text,
                "\nRingbolt runs here only with serve --allow-buffered, for want of direct writes."
            )
        }
        n => writeln!(text, "\nRingbolt CANNOT run here: {n} requirements are not met."),
    };
    text
}

fn core(core: Option<usize>) -> String {
    core.map_or_else(|| "unknown".into(), |core| core.to_string())
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Unknown => "?",
        Verdict::Advice => "!",
        Verdict::Required => "MISSING",
    }
}

fn checks(checks: &[Check]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["", "check", "found", "wanted", "why"]);
    for check in checks {
        let row = [mark(check.verdict), &check.name, &check.found, &check.wanted, &check.why];
        table.add_row(row.map(Cell::new));
    }
    table
}

fn figures(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["figure", "", "p50 µs", "p99 µs", "what"]);
    let mut row = |name: &str, rate: String, latency: Option<Latency>, what: &str| {
        let us = |pick: fn(Latency) -> f64| latency.map_or_else(String::new, |l| format!("{:.1}", pick(l)));
        table.add_row([name, &rate, &us(|l| l.p50), &us(|l| l.p99), what].map(Cell::new));
    };
    let found = &report.figures;
    for (name, latency, what) in [
        ("dsync_4k_us", found.dsync_4k_us, "durable 4 KiB write, one at a time"),
        ("write_4k_us", found.write_4k_us, "the same without a flush"),
        ("dsync_64k_us", found.dsync_64k_us, "durable 64 KiB write, one at a time"),
    ] {
        if latency.is_some() {
            row(name, String::new(), latency, what);
        }
    }
    if let Some(rate) = found.seq_dsync_mb_per_s {
        row("seq_dsync_mb_per_s", format!("{rate:.0} MB/s"), None, "durable 256 KiB writes, 4 in flight");
    }
    for (name, latency, what) in [
        ("loopback_rtt_us", found.loopback_rtt_us, "1 KiB to the echo peer and back"),
        ("loopback_busy_rtt_us", found.loopback_busy_rtt_us, "the same, both sides spinning"),
    ] {
        if latency.is_some() {
            row(name, String::new(), latency, what);
        }
    }
    for (shape, rate) in &found.loopback_echo_per_s {
        let what = format!("{shape} (connections x in flight), 1 KiB each");
        let latency = found.loopback_echo_rtt_us.get(shape).copied();
        row("loopback_echo_per_s", format!("{rate:.0}/s"), latency, &what);
    }
    table
}
