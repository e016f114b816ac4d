//! Which shard holds a partition.

use ringbolt_wire::{PartitionId, ShardId};

/// The shard of a partition in a data directory of `shards` shards: the
/// partitions of a topic go round, and topics start at different shards.
#[inline]
pub fn shard_of(partition: PartitionId, shards: u16) -> ShardId {
    debug_assert!(shards > 0);
    let sum = u64::from(partition.topic.0) + u64::from(partition.index);
    ShardId((sum % u64::from(shards)) as u16)
}
