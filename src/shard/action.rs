//! All that a shard may ask for.

use bytes::Bytes;
use ringbolt_wire::message::{
    ConsumerInfo, Delivery, ErrorResponse, FetchedPartition, GroupInfo, GroupPartition, ProduceAck,
    ProducerOpened, Settled, TopicInfo,
};
use ringbolt_wire::{Offset, ShardId};
use smallvec::SmallVec;

use crate::buffer::Buffer;
use crate::catalog::CatalogUpdate;
use crate::log::group_commit::Confirmed;
use crate::log::{SegmentSeq, segment_file};
use crate::shard::event::{DiskFault, ReplyTo};

/// Names a write until it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WriteToken(pub u64);

/// Names a read until it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReadToken(pub u64);

/// An answer to a [`ShardRequest`](crate::shard::event::ShardRequest).
#[derive(Debug)]
pub enum Reply {
    /// The batch is durable.
    Produced(ProduceAck),
    /// What was read: the list, and the batches of all of them in order.
    Fetched {
        /// One entry for each partition asked for, in that order.
        partitions: Vec<FetchedPartition>,
        /// The payload, in pieces.
        payload: SmallVec<[Bytes; 4]>,
    },
    /// The offset asked for.
    Offset(Offset),
    /// The producer is open.
    ProducerOpened(ProducerOpened),
    /// Index, first and end offset of this shard's partitions of the topic.
    PartitionStates(Vec<(u32, Offset, Offset)>),
    /// The topic is created on every shard.
    TopicCreated(TopicInfo),
    /// The topic is deleted on every shard.
    TopicDeleted,
    /// The topics, by name.
    Topics(Vec<TopicInfo>),
    /// The topic.
    Topic(TopicInfo),
    /// The group is there, on every shard.
    Group(GroupInfo),
    /// The group is deleted on every shard.
    GroupDeleted,
    /// The groups, by name.
    Groups(Vec<GroupInfo>),
    /// The group, and the name of its topic.
    GroupFound(GroupInfo, String),
    /// How far the group is in this shard's partitions, and its consumers here.
    GroupStates(Vec<GroupPartition>, Vec<ConsumerInfo>),
    /// The group begins anew in this shard's partitions.
    GroupReset,
    /// The consumer is attached no longer. The last answer.
    Detached,
    /// Records: to an `Attach` one of many answers.
    Delivered {
        /// What they are.
        delivery: Delivery,
        /// Their batches, in pieces.
        payload: SmallVec<[Bytes; 4]>,
    },
    /// What became of records is durable.
    Settled(Confirmed<Settled>),
    /// Refused.
    Error(ErrorResponse),
}

/// Why a shard has stopped for good. The process ends with it; what was
/// acknowledged is on disk.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum FatalError {
    /// A write or flush failed. It is not retried: the kernel may have dropped
    /// what it could not write.
    #[error(
        "{} at position {position}: {fault}; restart to recover from what is on disk",
        segment_file(*.shard, *.segment)
    )]
    Write {
        /// Whose log.
        shard: ShardId,
        /// In which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// What the kernel said.
        fault: DiskFault,
    },
    /// A segment could not be made ready, for another reason than a full disk.
    #[error("preparing {}: {fault}", segment_file(*.shard, *.segment))]
    Prepare {
        /// Whose log.
        shard: ShardId,
        /// Which segment.
        segment: SegmentSeq,
        /// What the kernel said.
        fault: DiskFault,
    },
}

/// What a shard may ask of the world.
#[derive(Debug)]
pub enum Action<B: Buffer> {
    /// Send an answer.
    Reply {
        /// To whom.
        to: ReplyTo,
        /// What.
        reply: Reply,
    },
    /// Write, durably: answered by `Event::Written` once the device's cache was
    /// flushed. Position and length are multiples of a block.
    Write {
        /// Comes back with the answer.
        token: WriteToken,
        /// Into which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// What; it is not changed while anybody holds it.
        data: Bytes,
    },
    /// Read the whole buffer full: answered by `Event::Read`. Position and
    /// length are multiples of a block.
    Read {
        /// Comes back with the answer.
        token: ReadToken,
        /// From which segment.
        segment: SegmentSeq,
        /// Bytes from its start.
        position: u64,
        /// Where to.
        buffer: B,
    },
    /// Make the file of this segment: a recycled one renamed, or a new one
    /// zero-written; named and synced, the folder as well. Answered by
    /// `Event::SegmentPrepared`.
    PrepareSegment {
        /// Which one.
        segment: SegmentSeq,
    },
    /// The segment's records are no longer retained and nobody reads it: its
    /// file may serve another segment.
    RecycleSegment {
        /// Which one.
        segment: SegmentSeq,
    },
    /// Tell every other shard (`Event::Catalog`). Shard 0 only.
    PublishCatalog(CatalogUpdate),
    /// Tell shard 0 that the change is applied (`Event::CatalogApplied`).
    CatalogApplied {
        /// By whom.
        shard: ShardId,
        /// The change's version.
        version: u64,
    },
    /// The shard has stopped: end the process, with this error.
    Stop(FatalError),
}
