//! The percentile distribution as HdrHistogram's own tools write it
//! (`outputPercentileDistribution`), which its plotter reads.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Steps per halving of the distance to 100 %, as HdrHistogram's default.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// The text of the file for a histogram of nanoseconds; values are in µs.
pub fn write_hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        let value = step.value_iterated_to().min(histogram.max()) as f64 / 1000.0;
        let quantile = step.quantile_iterated_to();
        let total = histogram.count_between(0, step.value_iterated_to());
        let _ = write!(out, "{value:12.3} {quantile:2.12} {total:10}");
        // Infinity at 100 %: the standard format leaves the column empty.
        let _ = match quantile {
            q if q < 1.0 => writeln!(out, " {:14.2}", 1.0 / (1.0 - q)),
            _ => writeln!(out),
        };
    }
    let _ = writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / 1000.0,
        histogram.stdev() / 1000.0
    );
    let max = histogram.max() as f64 / 1000.0;
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len());
    let halves = histogram.buckets();
    let _ = writeln!(
        out,
        "#[Buckets = {halves:12}, SubBuckets     = {:12}]",
        histogram.distinct_values() / usize::from(halves)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::histogram;

    #[test]
    fn the_file_rises_to_the_maximum_and_counts_everything() {
        let mut h = histogram();
        for ns in (1..=10_000u64).map(|i| i * 1000) {
            h.record(ns).unwrap();
        }
        let text = write_hgrm(&h);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|l| !l.starts_with('#'))
            .map(|l| l.split_whitespace().map(|w| w.parse().unwrap()).collect())
            .collect();
        assert!(rows.windows(2).all(|w| w[0][0] <= w[1][0] && w[0][1] < w[1][1] && w[0][2] <= w[1][2]));
        let median = rows.iter().find(|r| r[1] >= 0.5).unwrap();
        assert!((median[0] - 5000.0).abs() < 10.0, "{median:?}");
        assert_eq!(median[3], 2.0);
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2], last.len()), (1.0, 10_000.0, 3));
        assert!(text.contains("Total count    =        10000]"));
    }
}
