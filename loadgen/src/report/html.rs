//! A run as one page: no script, no style sheet or font from elsewhere.

use std::fmt::Write;

use super::chart::{ChartError, latency_by_percentile, latency_over_time, throughput_over_time};
use super::{GROUP_FAULTS, Quantiles, Report, conclusion, course_of, number};
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
    put_course(&mut body, report);
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
    let rate = match (&report.fetched, &report.consumed) {
        (Some(fetched), _) if report.acked == 0 => Some((fetched.records_per_s, fetched.mb_per_s)),
        (None, Some(consumed)) if report.acked == 0 => Some((consumed.settled_per_s, consumed.mb_per_s)),
        _ => None,
    };
    let (per_second, mb) = rate.unwrap_or((report.acked_per_s, report.mb_per_s));
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
        // The row that follows is all that there is.
        None if report.consumed.is_some() => {}
        Some(fetched) if report.acked == 0 => row(out, "fetch", &fetched.latency_us),
        Some(fetched) => {
            row(out, "acknowledgement", &report.latency_us);
            row(out, "end to end", &fetched.latency_us);
        }
        None => row(out, "answer", &report.latency_us),
    }
    if let Some(consumed) = &report.consumed {
        row(out, "settle to confirmation", &consumed.confirmation_us);
    }
    out.push_str("</table>\n");
}

/// What the figures above rest on.
fn put_course(out: &mut String, report: &Report) {
    out.push_str("<h2>How the run went</h2>\n<table>");
    let lag = report.schedule_lag_us;
    for (name, value) in [
        ("schedule lag, 99th percentile (µs)", lag.p99),
        ("schedule lag, highest (µs)", lag.max),
        ("record batches sent again", report.retries as f64),
        ("connections made again", report.reconnects as f64),
        ("messages refused and given up", report.refused as f64),
        ("messages with an unknown outcome", report.unknown as f64),
        ("messages that were due and never sent", report.due_not_sent as f64),
    ] {
        put_row(out, name, value);
    }
    for (count, what) in report.consumed.iter().flat_map(course_of) {
        put_row(out, what, count as f64);
    }
    out.push_str("</table>\n");
}

fn put_row(out: &mut String, name: &str, value: f64) {
    let _ = write!(out, "<tr><td>{name}<td>{}</tr>", number(value));
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
        ("there, and later not any more", v.vanished),
        ("no longer retained", v.expired),
        ("not looked for", v.unverified),
        ("partitions not read to their end", v.unfinished),
        ("of others", v.foreign),
        ("unknown, present", v.unknown_present),
        ("unknown, absent", v.unknown_absent),
        ("unknown, not read", v.unknown_unread),
    ] {
        put_row(out, name, count as f64);
    }
    for (of, what) in v.group.iter().flat_map(|group| GROUP_FAULTS.map(|(of, what)| (of(group), what))) {
        put_row(out, what, of as f64);
    }
    out.push_str("</table>");
    for finding in &v.findings {
        let _ = writeln!(out, "<p class=bad>{}</p>", escape(finding));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::{Fetched, Lag};
    use super::*;
    use crate::judge::Verdict;
    use crate::stats::{Point, Totals};

    fn report(command: &str) -> Report {
        let mut totals = Totals::default();
        (1..1000).for_each(|us| totals.latency.record(us * 1000).unwrap());
        let point = Point {
            at: 0.5,
            per_second: 1e3,
            mb_per_second: 1.0,
            p50: 500.0,
            p99: 990.0,
            max: 999.0,
            measured: false,
        };
        totals.points = vec![point, Point { at: 1.5, measured: true, ..point }];
        Report {
            acked: 999,
            acked_per_s: 999.0,
            mb_per_s: 1.0,
            lost: None,
            duplicated: None,
            reordered: None,
            corrupted: None,
            unknown: 41,
            due_not_sent: 47,
            invalid: true,
            latency_us: Quantiles::of(&totals.latency),
            schedule_lag_us: Lag { p99: 42.0, max: 43.0 },
            invalid_reason: Some(command.to_owned()),
            sent: 1040,
            refused: 44,
            retries: 45,
            reconnects: 46,
            measured_s: 1.0,
            engine: "raw",
            echo: false,
            command: command.to_owned(),
            fetched: Some(Fetched::default()),
            consumed: None,
            verdict: Some(Verdict { findings: vec![command.to_owned()], ..Verdict::default() }),
            totals,
        }
    }

    /// What a page would load, or lead to, that is not part of it.
    fn references(page: &str) -> Vec<String> {
        let is_outside = |target: &&str| !target.trim_start_matches(['"', '\'', ' ']).starts_with('#');
        let after = |text: &str, word: &str| -> Vec<String> {
            let targets = text.match_indices(word).map(|(at, _)| &text[at + word.len()..]);
            targets.filter(is_outside).map(|target| target.chars().take(30).collect()).collect()
        };
        let tags = page.split('<').filter_map(|rest| Some(rest.split_once('>')?.0.to_lowercase()));
        let mut found: Vec<String> = ["url(", "@import"].iter().flat_map(|word| after(page, word)).collect();
        for tag in tags {
            found.extend(["src=", "href=", "srcset=", "action="].iter().flat_map(|word| after(&tag, word)));
            found.extend(
                ["script", "link", "iframe"]
                    .iter()
                    .flat_map(|name| tag.strip_prefix(name))
                    .map(str::to_owned),
            );
        }
        found
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        let foreign = "--html <script src=https://example.org/x.js></script><a href='//example.org'>";
        assert_eq!(references(&render(&report(foreign)).unwrap()), [""; 0]);
    }

    #[test]
    fn a_page_that_needs_something_else_would_be_found_out() {
        for page in [
            "<p><img src=x.png>",
            "<a href='https://example.org'>",
            "<svg><use xlink:href=\"x.svg#a\"/></svg>",
            "<style>p { background: url(x.png) }</style>",
            "<style>@import 'x.css';</style>",
            "<script>fetch('x')</script>",
            "<link rel=stylesheet>",
        ] {
            assert_ne!(references(page), [""; 0], "{page}");
        }
        assert_eq!(references("<a href='#top'>src=x</a><path fill='url(#shade)'/>"), [""; 0]);
    }

    #[test]
    fn the_page_tells_how_late_the_generator_was_and_what_it_had_to_repeat() {
        let page = render(&report("loadgen run")).unwrap();
        for (name, value) in [
            ("schedule lag, 99th percentile (µs)", 42),
            ("schedule lag, highest (µs)", 43),
            ("messages refused and given up", 44),
            ("record batches sent again", 45),
            ("connections made again", 46),
            ("messages with an unknown outcome", 41),
        ] {
            assert!(page.contains(&format!("<td>{name}<td>{value}</tr>")), "{name}: {page}");
        }
    }
}
