//! What a shard's disk has done, for the stats.

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in µs: ten minutes.
const MAX_US: u64 = 600_000_000;

/// Counts and latencies since the start.
#[derive(Clone, Debug)]
pub struct DiskStats {
    /// Durable writes that have ended.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes that have ended, of those that writes share.
    pub flushes: u64,
    /// Reads that have ended.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Bytes of zeros written to make segments.
    pub zeroed_bytes: u64,
    write_us: Histogram<u64>,
    read_us: Histogram<u64>,
}

impl Default for DiskStats {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, MAX_US, 2).expect("these bounds are in the histogram's range");
        DiskStats {
            writes: 0,
            written_bytes: 0,
            flushes: 0,
            reads: 0,
            read_bytes: 0,
            zeroed_bytes: 0,
            write_us: histogram(),
            read_us: histogram(),
        }
    }
}

impl DiskStats {
    pub(super) fn wrote(&mut self, len: usize, us: u64) {
        self.writes += 1;
        self.written_bytes += len as u64;
        self.write_us.saturating_record(us);
    }

    pub(super) fn read(&mut self, len: usize, us: u64) {
        self.reads += 1;
        self.read_bytes += len as u64;
        self.read_us.saturating_record(us);
    }

    /// Adds another shard's.
    pub fn add(&mut self, other: &DiskStats) {
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
        self.flushes += other.flushes;
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.zeroed_bytes += other.zeroed_bytes;
        self.write_us.add(&other.write_us).expect("all have the same bounds");
        self.read_us.add(&other.read_us).expect("all have the same bounds");
    }

    /// Time from submission to durability, in µs: one write in a hundred (for
    /// `0.99`) takes longer. Exact to 1 %.
    pub fn write_latency_us(&self, quantile: f64) -> u64 {
        self.write_us.value_at_quantile(quantile)
    }

    /// The same for reads.
    pub fn read_latency_us(&self, quantile: f64) -> u64 {
        self.read_us.value_at_quantile(quantile)
    }

    /// Names and values, for export.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("disk_writes_total", self.writes),
            ("disk_written_bytes_total", self.written_bytes),
            ("disk_flushes_total", self.flushes),
            ("disk_reads_total", self.reads),
            ("disk_read_bytes_total", self.read_bytes),
            ("disk_zeroed_bytes_total", self.zeroed_bytes),
            ("disk_write_p50_us", self.write_latency_us(0.5)),
            ("disk_write_p99_us", self.write_latency_us(0.99)),
            ("disk_write_max_us", self.write_us.max()),
            ("disk_read_p50_us", self.read_latency_us(0.5)),
            ("disk_read_p99_us", self.read_latency_us(0.99)),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_quantiles_add_up_over_shards() {
        let (mut one, mut other) = (DiskStats::default(), DiskStats::default());
        (0..90).for_each(|_| one.wrote(4096, 70));
        (0..10).for_each(|_| other.wrote(8192, 5000));
        one.add(&other);
        assert_eq!((one.writes, one.written_bytes), (100, 90 * 4096 + 10 * 8192));
        assert!((69..=71).contains(&one.write_latency_us(0.5)));
        assert!((4950..=5050).contains(&one.write_latency_us(0.99)));
        one.wrote(1, u64::MAX);
        assert_eq!(one.writes, 101, "a clock that jumps does no harm");
    }
}
