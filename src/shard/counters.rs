//! What a shard counts.

/// A shard's counters. Those that are reported as `_total` have counted since the broker
/// started; the others are as they are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardCounters {
    /// Bytes of record batches that were copied in user space on their way to
    /// disk.
    pub copied_bytes: u64,
    /// Bytes of record batches that were acknowledged, duplicates not counted.
    pub acked_bytes: u64,
    /// Batches that were acknowledged, duplicates not counted.
    pub acked_batches: u64,
    /// Batches answered as duplicates.
    pub duplicate_batches: u64,
    /// Batches refused.
    pub refused_batches: u64,
    /// Commits written.
    pub commits: u64,
    /// Bytes of commits written, headers and padding included.
    pub commit_bytes: u64,
    /// Bytes of record batches handed to consumers.
    pub fetched_bytes: u64,
    /// Fetches answered.
    pub fetches: u64,
    /// Pages read from disk.
    pub page_reads: u64,
    /// Damaged places met on reading.
    pub corrupt_reads: u64,
    /// Segments that hold records.
    pub segments: u64,
    /// Bytes of memory that say where the records of sealed segments lie.
    pub sealed_index_bytes: u64,
    /// Bytes of recent commits in memory.
    pub tail_cache_bytes: u64,
    /// Fetches that wait for records or for pages.
    pub waiting_fetches: u64,
    /// Records delivered to consumers of groups, each time.
    pub delivered_records: u64,
    /// Bytes of record batches sent with them.
    pub delivered_bytes: u64,
    /// Records that consumers acknowledged.
    pub acked_records: u64,
    /// Records that came back from consumers, for whatever reason.
    pub returned_records: u64,
    /// Leases that ran out.
    pub expired_leases: u64,
    /// Records moved to dead-letter topics.
    pub dead_letters: u64,
    /// Records moved from dead-letter topics back to where they came from.
    pub redriven_records: u64,
    /// Settle requests that could not be carried out, and of which nobody wanted to
    /// hear.
    pub lost_settles: u64,
    /// Bytes of changes to groups that were appended to the log, checkpoints included.
    pub group_log_bytes: u64,
    /// Consumers attached, or with leases.
    pub consumers: u64,
    /// Records leased now.
    pub leased_records: u64,
    /// Records that wait for a time of their own, for each group.
    pub delayed_records: u64,
}

impl ShardCounters {
    /// Name and value of each, as reported by `ringbolt stats`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("copied_bytes_total", self.copied_bytes),
            ("acked_bytes_total", self.acked_bytes),
            ("acked_batches_total", self.acked_batches),
            ("duplicate_batches_total", self.duplicate_batches),
            ("refused_batches_total", self.refused_batches),
            ("commits_total", self.commits),
            ("commit_bytes_total", self.commit_bytes),
            ("fetched_bytes_total", self.fetched_bytes),
            ("delivered_records_total", self.delivered_records),
            ("delivered_bytes_total", self.delivered_bytes),
            ("acked_records_total", self.acked_records),
            ("returned_records_total", self.returned_records),
            ("expired_leases_total", self.expired_leases),
            ("dead_letters_total", self.dead_letters),
            ("redriven_records_total", self.redriven_records),
            ("lost_settles_total", self.lost_settles),
            ("group_log_bytes_total", self.group_log_bytes),
            ("consumers", self.consumers),
            ("leased_records", self.leased_records),
            ("delayed_records", self.delayed_records),
            ("fetches_total", self.fetches),
            ("page_reads_total", self.page_reads),
            ("corrupt_reads_total", self.corrupt_reads),
            ("segments", self.segments),
            ("sealed_index_bytes", self.sealed_index_bytes),
            ("tail_cache_bytes", self.tail_cache_bytes),
            ("waiting_fetches", self.waiting_fetches),
        ]
        .into_iter()
    }
}
