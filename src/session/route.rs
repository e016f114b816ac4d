//! Which shard a request is for.

use ringbolt_wire::ShardId;
use ringbolt_wire::message::Request;

use crate::shard::event::ShardRequest;
use crate::shard::placement::shard_of;

/// A request that one of `all` shards answers alone.
pub(super) fn for_one_shard<'a, B>(request: Request, all: u16) -> (ShardId, ShardRequest<'a, B>) {
    let first = ShardId(0);
    match request {
        Request::CreateTopic { name, partitions } => (first, ShardRequest::CreateTopic { name, partitions }),
        Request::DeleteTopic { name } => (first, ShardRequest::DeleteTopic { name }),
        Request::ListTopics => (first, ShardRequest::ListTopics),
        Request::CreateGroup(create) => (first, ShardRequest::CreateGroup(create)),
        Request::DeleteGroup { name } => (first, ShardRequest::DeleteGroup { name }),
        Request::ListGroups => (first, ShardRequest::ListGroups),
        Request::Offsets { partition, spec } => {
            (shard_of(partition, all), ShardRequest::Offsets { partition, spec })
        }
        Request::OpenProducer(open) => (shard_of(open.partition, all), ShardRequest::OpenProducer(open)),
        other => unreachable!("{:?} has its own way", other.opcode()),
    }
}
