//! A run as one page: no script, no style sheet or font from elsewhere.

use std::fmt::Write;

use super::chart::{ChartError, latency_by_percentile, latency_over_time, throughput_over_time};
use super::{Quantiles, Report, conclusion, number};
use crate::judge::Decision;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22282d; background: #fff;
       max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
code { font: 13px ui-monospace, monospace; background: #eff1f3; padding: .1rem .3rem; border-radius: 3px;
       overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.tile { border: 1px solid #d8dce0; border-radius: 6px; padding: .6rem 1rem; min-width: 8.5rem; }
.tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.tile span { color: #5a646c; font-size: .85rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #d8dce0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.good { color: #1d6f42; } .bad { color: #b02a37; font-weight: 600; }
.good::first-letter, .bad::first-letter { text-transform: uppercase; }
svg { width: 100%; height: auto; }
.note { color: #5a646c; font-size: .85rem; }
";

/// The page.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn render(report: &Report) -> Result<String, ChartError> {
    let mut body = String::new();
    put_head(&mut body, report);
    put_latency(&mut body, report);
    if report.totals.latency.is_empty() {
        body.push_str("<p>Nothing was answered, so there is nothing to draw.</p>");
    } else {
        section(&mut body, "Latency by percentile", &latency_by_percentile(&report.totals.latency)?);
    }
    if !report.totals.points.is_empty() {
        section(&mut body, "Throughput over time", &throughput_over_time(&report.totals.points)?);
        section(&mut body, "Latency over time", &latency_over_time(&report.totals.points)?);
        body.push_str("<p class=note>Shaded: not part of the measured time.</p>");
    }
    put_verdict(&mut body, report);
    Ok(format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width'>\
         <title>Ringbolt load report</title>\n<style>{STYLE}</style>\n{body}</html>\n"
    ))
}

fn section(out: &mut String, title: &str, chart: &str) {
    let _ = writeln!(out, "<h2>{title}</h2>\n{chart}");
}

fn put_head(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<h1>Ringbolt load report</h1><p><code>{}</code></p>", escape(&report.command));
    if let Some(reason) = &report.invalid_reason {
        let _ = writeln!(out, "<p class=bad>Invalid run: {}</p>", escape(reason));
    }
    let rate = report.fetched.as_ref().filter(|_| report.acked == 0);
    let (per_second, mb) =
        rate.map_or((report.acked_per_s, report.mb_per_s), |f| (f.records_per_s, f.mb_per_s));
    out.push_str("<div class=tiles>");
    for (value, name) in [
        (number(per_second), "messages/s"),
        (number(mb), "MB/s"),
        (format!("{} µs", number(report.latency_us.p50)), "median latency"),
        (format!("{} µs", number(report.latency_us.p99)), "99th percentile"),
        (number(report.measured_s), "seconds measured"),
    ] {
        let _ = write!(out, "<div class=tile><b>{value}</b><span>{name}</span></div>");
    }
    out.push_str("</div>\n");
}

fn put_latency(out: &mut String, report: &Report) {
    out.push_str("<table><tr><th>latency (µs)<th>p50<th>p90<th>p99<th>p99.9<th>p99.99<th>max</tr>");
    let row = |out: &mut String, name: &str, q: &Quantiles| {
        let _ = write!(out, "<tr><td>{name}");
        for value in [q.p50, q.p90, q.p99, q.p999, q.p9999, q.max] {
            let _ = write!(out, "<td>{}", number(value));
        }
        out.push_str("</tr>");
    };
    match &report.fetched {
        Some(fetched) if report.acked == 0 => row(out, "fetch", &fetched.latency_us),
        Some(fetched) => {
            row(out, "acknowledgement", &report.latency_us);
            row(out, "end to end", &fetched.latency_us);
        }
        None => row(out, "answer", &report.latency_us),
    }
    out.push_str("</table>\n");
}

fn put_verdict(out: &mut String, report: &Report) {
    out.push_str("<h2>What became of the messages</h2>\n");
    let Some(v) = &report.verdict else {
        out.push_str("<p>This run was not judged: nobody read along or read back.</p>");
        return;
    };
    let class = if v.decision() == Decision::Kept { "good" } else { "bad" };
    let words = conclusion(v);
    let _ = writeln!(out, "<p class={class}>{words}.</p><table>");
    for (name, count) in [
        ("sent", v.sent),
        ("acknowledged", v.acked),
        ("refused", v.refused),
        ("lost", v.lost),
        ("duplicated", v.duplicated),
        ("reordered", v.reordered),
        ("corrupted", v.corrupted),
        ("acknowledged at another offset", v.misplaced),
        ("present although never sent", v.phantom),
        ("offsets without a record", v.holes),
        ("no longer retained", v.expired),
        ("not looked for", v.unverified),
        ("partitions not read to their end", v.unfinished),
        ("of others", v.foreign),
        ("unknown, present", v.unknown_present),
        ("unknown, absent", v.unknown_absent),
        ("unknown, not read", v.unknown_unread),
    ] {
        let _ = write!(out, "<tr><td>{name}<td>{}</tr>", number(count as f64));
    }
    out.push_str("</table>");
    for finding in &v.findings {
        let _ = writeln!(out, "<p class=bad>{}</p>", escape(finding));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
