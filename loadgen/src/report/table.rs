//! The tables that end a run on the terminal.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use super::{GROUP_FAULTS, Quantiles, Report, conclusion, course_of, number};
use crate::group::Consumed;
use crate::judge::{GroupVerdict, RunVerdict, Verdict};

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn quantiles(name: &str, q: &Quantiles) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    row.extend([q.p50, q.p90, q.p99, q.p999, q.p9999, q.max].map(number));
    row
}

/// Latency, throughput and what went wrong.
pub fn results(report: &Report) -> String {
    let mut latency = table(&["latency (µs)", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    if report.acked > 0 {
        let name = if report.echo { "echo" } else { "acknowledgement" };
        latency.add_row(quantiles(name, &report.latency_us));
    }
    if let Some(fetched) = &report.fetched {
        let name = if report.acked > 0 { "end to end" } else { "fetch" };
        latency.add_row(quantiles(name, &fetched.latency_us));
    }
    if let Some(consumed) = &report.consumed {
        latency.add_row(quantiles("settled", &consumed.confirmation_us));
    }
    let mut out = latency.to_string();

    let mut rates = table(&["", "messages", "messages/s", "MB/s", "seconds"]);
    if report.acked > 0 {
        rates.add_row(vec![
            "acknowledged".to_owned(),
            number(report.totals.records as f64),
            number(report.acked_per_s),
            number(report.mb_per_s),
            number(report.measured_s),
        ]);
    }
    if let Some(fetched) = &report.fetched {
        rates.add_row(vec![
            "fetched".to_owned(),
            number(fetched.records as f64),
            number(fetched.records_per_s),
            number(fetched.mb_per_s),
            number(report.measured_s),
        ]);
    }
    if let Some(consumed) = &report.consumed {
        rates.add_row(vec![
            "settled".to_owned(),
            number((consumed.acked + consumed.rejected + consumed.unconfirmed) as f64),
            number(consumed.settled_per_s),
            number(consumed.mb_per_s),
            number(consumed.seconds),
        ]);
    }
    out = format!("{out}\n{rates}");
    if let Some(consumed) = &report.consumed {
        out = format!("{out}{}", course(consumed));
    }
    for (count, what) in [
        (report.retries, "record batches sent again"),
        (report.reconnects, "connections made again"),
        (report.refused, "messages refused and given up"),
        (report.unknown, "messages with an unknown outcome"),
        (report.due_not_sent, "messages that were due and never sent"),
    ] {
        if count > 0 {
            out = format!("{out}\n{} {what}", number(count as f64));
        }
    }
    if report.schedule_lag_us.max > 0.0 {
        let (p99, max) = (number(report.schedule_lag_us.p99), number(report.schedule_lag_us.max));
        out = format!("{out}\nschedule lag p99 {p99} µs, max {max} µs");
    }
    if let Some(reason) = &report.invalid_reason {
        out = format!("{out}\nINVALID: {reason}");
    }
    out
}

/// What consumers of a group met with, a line each.
fn course(consumed: &Consumed) -> String {
    let mut out = String::new();
    for (count, what) in course_of(consumed) {
        if count > 0 {
            out = format!("{out}\n{} {what}", number(count as f64));
        }
    }
    out
}

/// What became of the messages.
pub fn judgement(verdict: &Verdict) -> String {
    let columns = [
        ("acknowledged", verdict.acked),
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("reordered", verdict.reordered),
        ("corrupted", verdict.corrupted),
        ("unknown, present", verdict.unknown_present),
        ("unknown, absent", verdict.unknown_absent),
        ("unknown, not read", verdict.unknown_unread),
    ];
    let mut out = table(&columns.map(|(name, _)| name));
    out.add_row(columns.map(|(_, count)| number(count as f64)));
    let mut out = out.to_string();
    if verdict.runs.len() > 1 {
        out = format!("{out}\n{}", runs(&verdict.runs));
    }
    for (count, what) in [
        (verdict.misplaced, "messages are at another offset than was acknowledged"),
        (verdict.phantom, "messages are there that were refused or never sent"),
        (verdict.holes, "offsets between messages have no record"),
        (verdict.vanished, "offsets were there, and later not any more"),
        (verdict.expired, "acknowledged messages were removed by retention"),
        (verdict.unverified, "acknowledged messages could not be looked for"),
        (verdict.unfinished, "partitions were not read to their end"),
        (verdict.foreign, "messages are of other producers and were not judged"),
    ] {
        if count > 0 {
            out = format!("{out}\n{} {what}", number(count as f64));
        }
    }
    if let Some(group) = &verdict.group {
        out = format!("{out}{}", faults(group));
    }
    if !verdict.complete {
        out = format!(
            "{out}\nthe ledger was not closed, as its run was cut off: what was acknowledged in the last moments \
             before that is not in it, and was not looked for"
        );
    }
    for finding in &verdict.findings {
        out = format!("{out}\n  {finding}");
    }
    format!("{out}\n{}", conclusion(verdict))
}

/// What a consumer group did wrong, a line each.
fn faults(group: &GroupVerdict) -> String {
    let mut out = String::new();
    for (count, what) in GROUP_FAULTS.map(|(of, what)| (of(group), what)) {
        if count > 0 {
            out = format!("{out}\n{} {what}", number(count as f64));
        }
    }
    out
}

/// What became of the messages of each run of a ledger.
fn runs(runs: &[RunVerdict]) -> Table {
    let mut out =
        table(&["run", "acknowledged", "lost", "duplicated", "reordered", "corrupted", "unknown", "closed"]);
    for (place, run) in (1..).zip(runs) {
        let mut row = vec![place.to_string()];
        row.extend(
            [run.acked, run.lost, run.duplicated, run.reordered, run.corrupted, run.unknown]
                .map(|count| number(count as f64)),
        );
        row.push(if run.ended { "yes" } else { "no" }.to_owned());
        out.add_row(row);
    }
    out
}
