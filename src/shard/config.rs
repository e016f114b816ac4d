//! What a shard is told when it starts.

use ringbolt_wire::ShardId;

/// See the module.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub shard: ShardId,
    /// How many shards the data directory has.
    pub shards: u16,
    /// Most commits written at once. A commit that has room for more batches
    /// is written only while fewer than a quarter of them are.
    pub commits_in_flight: usize,
    /// Longest time that an open commit waits for more batches although it
    /// might be written, in µs.
    pub commit_delay_us: u64,
    /// Most bytes of segments that are kept; `None` keeps all.
    pub retention_bytes: Option<u64>,
    /// Longest time that records are kept, in µs; `None` keeps all.
    pub retention_us: Option<u64>,
    /// Bytes of recent commits that are kept in memory.
    pub tail_cache_bytes: usize,
    /// Bytes of pages read back that are kept in memory.
    pub page_cache_bytes: usize,
    /// Records that may wait for a time of their own, for each group that they are in:
    /// [`ENTRY_COST`](crate::consumer::wheel::ENTRY_COST) bytes each.
    pub max_delayed: usize,
    /// Records that may be open in all groups: [`OPEN_COST`](crate::consumer::groups::OPEN_COST)
    /// bytes each.
    pub max_open: usize,
    /// Source of the identities that the shard gives to producers.
    pub seed: u64,
}
