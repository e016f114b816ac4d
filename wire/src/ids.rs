//! Newtypes for the numbers of the protocol, so that one cannot pass for
//! another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A topic's number. Assigned at creation, never reused within a data
    /// directory: a topic deleted and created again has a new one. 0 is not a
    /// topic.
    TopicId(u32)
}
id! {
    /// Position of a record within its partition: dense, from 0.
    Offset(u64)
}
id! {
    /// Identity of a producer. 0 ([`ProducerId::NONE`]) asks for no
    /// de-duplication.
    ProducerId(u64)
}
id! {
    /// A producer's incarnation. A batch with a lower epoch than the partition
    /// has seen is refused, so a producer that was replaced cannot write.
    Epoch(u32)
}
id! {
    /// Number of a record in its producer's stream to one partition: dense,
    /// from 0, whatever the epoch.
    Sequence(u64)
}
id! {
    /// Number of a shard within a broker, from 0.
    ShardId(u16)
}
id! {
    /// A consumer group's number. Assigned at creation, never reused within a
    /// data directory. 0 is not a group.
    GroupId(u32)
}
id! {
    /// Identity of a consumer of a group: whoever attaches under it again has
    /// the leases that it had. Chosen by the consumer, at random; 0 is none.
    ConsumerId(u64)
}

impl ProducerId {
    /// No producer: batches are appended without de-duplication.
    pub const NONE: ProducerId = ProducerId(0);
}

impl Offset {
    /// Stands for "not known" in an answer; never the offset of a record.
    pub const UNKNOWN: Offset = Offset(u64::MAX);
}

/// One partition of one topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// Index of the partition within the topic, from 0.
    pub index: u32,
}

impl PartitionId {
    /// The partition `index` of `topic`.
    pub const fn new(topic: TopicId, index: u32) -> Self {
        PartitionId { topic, index }
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}
