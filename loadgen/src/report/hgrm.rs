//! The percentile distribution as HdrHistogram's own tools write it
//! (`outputPercentileDistribution`), which its plotter reads.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Steps per halving of the distance to 100 %, as HdrHistogram's default.
const TICKS_PER_HALF_DISTANCE: f64 = 5.0;

/// Percentiles that come closer and closer to 100 %, the last one there, and
/// the values in ns at or below which they lie. The steps are those of
/// HdrHistogram's percentile iterator: so many to halve the distance.
pub fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let mut steps = Vec::new();
    let mut quantile: f64 = 0.0;
    // Beyond this the rank of the quantile is that of the last value.
    while histogram.len() as f64 * (1.0 - quantile) >= 1.0 {
        steps.push((quantile, histogram.value_at_quantile(quantile).min(histogram.max())));
        let halvings = (1.0 / (1.0 - quantile)).log2().floor() + 1.0;
        quantile += 1.0 / (TICKS_PER_HALF_DISTANCE * halvings.exp2());
    }
    steps.push((1.0, histogram.max()));
    steps
}

/// The text of the file for a histogram of nanoseconds; values are in µs.
pub fn write_hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    for (quantile, ns) in percentiles(histogram) {
        let (value, total) = (ns as f64 / 1000.0, histogram.count_between(0, ns));
        let _ = write!(out, "{value:12.3} {quantile:2.12} {total:10}");
        // Infinity at 100 %: the standard format leaves the column empty.
        let _ = match quantile {
            q if q < 1.0 => writeln!(out, " {:14.2}", 1.0 / (1.0 - q)),
            _ => writeln!(out),
        };
    }
    let (mean, deviation) = (histogram.mean() / 1000.0, histogram.stdev() / 1000.0);
    let _ = writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let max = histogram.max() as f64 / 1000.0;
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len());
    let buckets = histogram.buckets();
    // Half a bucket's slots are the other half's of the one before.
    let slots = 2 * histogram.distinct_values() / (usize::from(buckets) + 1);
    let _ = writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {slots:12}]");
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
        assert!(text.contains("SubBuckets     =         2048]"), "{text}");
    }

    #[test]
    fn no_part_of_the_tail_is_skipped() {
        let mut h = histogram();
        h.record_n(1_000, 9_000).unwrap();
        for i in 0..1000 {
            h.record(100_000 + i * 1000).unwrap();
        }
        let steps = percentiles(&h);
        // The last step is the maximum: it closes the rest of the distance.
        let rising = &steps[..steps.len() - 1];
        assert!(rising.windows(2).all(|w| w[1].0 - w[0].0 <= (1.0 - w[0].0) / 4.9), "{steps:?}");
        assert!(steps.iter().any(|s| (0.99..0.995).contains(&s.0) && s.1.abs_diff(1_000_000) < 60_000));
        assert_eq!(percentiles(&histogram()), [(1.0, 0)]);
    }
}
