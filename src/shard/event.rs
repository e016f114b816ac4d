//! All that can happen to a shard.

use bytes::Bytes;
use ringbolt_wire::message::{
    Attach, ConsumerAt, CreateGroup, Fetch, GroupStart, OffsetSpec, OpenProducer, Receive, Settle,
};
use ringbolt_wire::{GroupId, PartitionId, ShardId, TopicId};

use crate::buffer::Buffer;
use crate::catalog::CatalogUpdate;
use crate::log::SegmentSeq;
use crate::shard::action::{ReadToken, WriteToken};

/// Where an answer goes: a request on a session on a core. The shard hands it
/// back as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReplyTo {
    /// Core that has the session.
    pub core: u16,
    /// Session on that core; never reused while an answer may be on its way.
    pub session: u64,
    /// The request on that session. A session has at most one open request
    /// with a given number per shard.
    pub correlation: u64,
}

/// The record batch of a produce request.
#[derive(Debug)]
pub enum Payload<'a, B> {
    /// In a receive buffer; will be copied into a commit.
    Borrowed(&'a [u8]),
    /// The same, from another core.
    Shared(Bytes),
    /// Received straight into memory that can be written to disk: the batch
    /// starts at [`BLOCK_LEN`](crate::limits::BLOCK_LEN), where the commit's
    /// header will take the block before it. The buffer ends at the first
    /// multiple of a block that holds the batch.
    Aligned {
        /// The block for the header, the batch, and room up to a whole block.
        buffer: B,
        /// Bytes of the batch.
        len: usize,
    },
}

/// What a session may ask of a shard. Everything in it concerns partitions of
/// this shard, or the catalog if it is shard 0.
#[derive(Debug)]
pub enum ShardRequest<'a, B> {
    /// Append a batch to the partition that it names.
    Produce {
        /// The batch, not yet looked at but for its partition.
        payload: Payload<'a, B>,
        /// Copies that the acknowledgement must stand for; 0 and 1 are local.
        min_copies: u8,
    },
    /// Read. May be answered late, when there is something to read.
    Fetch(Fetch),
    /// Look up an offset.
    Offsets {
        /// In which partition.
        partition: PartitionId,
        /// Which one.
        spec: OffsetSpec,
    },
    /// Open or resume a producer.
    OpenProducer(OpenProducer),
    /// First and end offsets of this shard's partitions of a topic.
    PartitionStates(TopicId),
    /// Create a topic. Shard 0 only.
    CreateTopic {
        /// Its name, not yet checked.
        name: String,
        /// Its partitions, not yet checked.
        partitions: u32,
    },
    /// Delete a topic. Shard 0 only.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// List the topics. Shard 0 only.
    ListTopics,
    /// Look up a topic by name. Shard 0 only.
    LookUpTopic {
        /// Its name.
        name: String,
    },
    /// Create a consumer group, or find it. Shard 0 only.
    CreateGroup(CreateGroup),
    /// Delete a consumer group. Shard 0 only.
    DeleteGroup {
        /// Its name.
        name: String,
    },
    /// List the consumer groups. Shard 0 only.
    ListGroups,
    /// Look up a consumer group by name. Shard 0 only.
    LookUpGroup {
        /// Its name.
        name: String,
    },
    /// How far a group is in this shard's partitions.
    GroupStates(GroupId),
    /// Begin anew in this shard's partitions of a group.
    ResetGroup {
        /// The group.
        group: GroupId,
        /// Where.
        to: GroupStart,
        /// In this partition; `None` for all.
        partition: Option<u32>,
    },
    /// Attach a consumer. Deliveries are answers as well; the last one is not.
    Attach(Attach),
    /// Detach a consumer.
    Detach(ConsumerAt),
    /// Deliver once. May be answered late.
    Receive(Receive),
    /// What became of records. Answered if that is wanted.
    Settle(Settle),
}

impl<B> ShardRequest<'_, B> {
    /// Whether it appends to the shard's log, and so waits while that has no room; what
    /// a consumer asks stays in order, and waits with it. To reset a group is asked of all
    /// shards at once, after another question: its changes wait in the shard, which refuses
    /// it when too many do.
    pub fn appends(&self) -> bool {
        matches!(
            self,
            ShardRequest::Produce { .. }
                | ShardRequest::CreateTopic { .. }
                | ShardRequest::DeleteTopic { .. }
                | ShardRequest::CreateGroup(_)
                | ShardRequest::DeleteGroup { .. }
                | ShardRequest::Settle(_)
                | ShardRequest::Attach(_)
                | ShardRequest::Detach(_)
                | ShardRequest::Receive(_)
        )
    }
}

/// A device's fault, as the kernel reported it.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{operation} failed: {text} (errno {errno})")]
pub struct DiskFault {
    /// What was tried.
    pub operation: &'static str,
    /// The kernel's error number; 0 for a short transfer.
    pub errno: i32,
    /// Its text.
    pub text: String,
}

impl DiskFault {
    /// Whether only something was short: room on the disk, memory, or open
    /// files. That can pass.
    pub fn may_pass(&self) -> bool {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        matches!(self.errno, ENOSPC | EDQUOT) || self.is_shortage()
    }

    /// Whether the broker was short of memory or of open files; the disk has
    /// said nothing.
    pub fn is_shortage(&self) -> bool {
        const EAGAIN: i32 = 11;
        const ENOMEM: i32 = 12;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        matches!(self.errno, EAGAIN | ENOMEM | ENFILE | EMFILE)
    }
}

/// What can happen to a shard. This enum and
/// [`Action`](crate::shard::action::Action) are all that connects it to the
/// world.
#[derive(Debug)]
pub enum Event<'a, B: Buffer> {
    /// A session asks for something.
    Request {
        /// Where the answer goes.
        from: ReplyTo,
        /// What is asked.
        request: ShardRequest<'a, B>,
    },
    /// Answer this waiting fetch now, with what there is; or end this `Attach`, or this
    /// `Receive`, whose consumer keeps its leases.
    FetchNow {
        /// As given with the request.
        from: ReplyTo,
    },
    /// Sends nothing for this `Attach` until it is said again, without `pauses`: its session
    /// has as much to send as it may.
    Pause {
        /// As given with the request.
        from: ReplyTo,
        /// Or whether that is over.
        pauses: bool,
    },
    /// The session is gone: its waiting fetches are dropped, and its consumers are sent
    /// nothing more.
    SessionClosed {
        /// Core that had it.
        core: u16,
        /// The session.
        session: u64,
    },
    /// A write has ended.
    Written {
        /// Which one.
        token: WriteToken,
        /// Durable, or a fault.
        result: Result<(), DiskFault>,
    },
    /// A read has ended.
    Read {
        /// Which one.
        token: ReadToken,
        /// The buffer, filled, or a fault.
        result: Result<B, DiskFault>,
    },
    /// A segment is there, zero-written or recycled, under its name, durably,
    /// but for its header.
    SegmentPrepared {
        /// Which one.
        segment: SegmentSeq,
        /// Ready, or a fault; one that may pass is not fatal.
        result: Result<(), DiskFault>,
    },
    /// Shard 0 has made a change to the catalog durable.
    Catalog(CatalogUpdate),
    /// Another shard has applied a change. Shard 0 only.
    CatalogApplied {
        /// Which shard.
        shard: ShardId,
        /// The change's version.
        version: u64,
    },
    /// Take no more produce requests, finish what is there, answer waiting
    /// fetches.
    Stop,
}
