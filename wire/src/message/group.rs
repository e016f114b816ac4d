//! Consumer groups: what they are, and how far they are.

use super::{MessageError, ensure, flag, is_valid_topic_name};
use crate::ids::{ConsumerId, GroupId, Offset, ShardId, TopicId};
use crate::reader::{Put, Reader};

/// Longest lease in milliseconds: a day.
pub const MAX_LEASE_MS: u32 = 24 * 3600 * 1000;
/// Longest delay of a redelivery in milliseconds: a day.
pub const MAX_RETRY_DELAY_MS: u32 = 24 * 3600 * 1000;
/// Most open records per partition that a group may allow.
pub const MAX_OPEN_RECORDS: u32 = 1_000_000;
/// Names one partition of a topic less than there can be: stands for all.
const ALL_PARTITIONS: u32 = u32::MAX;

/// How the records of a partition are shared between the consumers of a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum GroupMode {
    /// Each record is leased to one of them, whichever.
    #[default]
    Shared = 0,
    /// As shared; of the records of one key only the oldest that is not completed.
    KeyOrdered = 1,
    /// One of them has all records of a partition, in order.
    Exclusive = 2,
}

impl GroupMode {
    fn from_u8(value: u8) -> Result<GroupMode, MessageError> {
        Ok(match value {
            0 => GroupMode::Shared,
            1 => GroupMode::KeyOrdered,
            2 => GroupMode::Exclusive,
            value => return Err(MessageError::OutOfRange { field: "mode", value: u64::from(value) }),
        })
    }
}

impl std::fmt::Display for GroupMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GroupMode::Shared => "shared",
            GroupMode::KeyOrdered => "key-ordered",
            GroupMode::Exclusive => "exclusive",
        })
    }
}

/// How long a record that failed waits for its next delivery.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Backoff {
    /// Not at all.
    None,
    /// This long, in milliseconds.
    Fixed(u32),
    /// Twice as long after each failure.
    Exponential {
        /// After the first one, in milliseconds.
        first_ms: u32,
        /// And never longer, in milliseconds; at least `first_ms`.
        max_ms: u32,
    },
}

impl Backoff {
    /// Wait in milliseconds after failure number `failed`, from 1.
    pub fn after(&self, failed: u32) -> u32 {
        match *self {
            Backoff::None => 0,
            Backoff::Fixed(ms) => ms,
            Backoff::Exponential { first_ms, max_ms } => {
                let doubled = u64::from(first_ms) << failed.saturating_sub(1).min(31);
                doubled.min(u64::from(max_ms)) as u32
            }
        }
    }
}

/// What a group does with its records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupConfig {
    /// How consumers share.
    pub mode: GroupMode,
    /// How long a record is leased unless a consumer asks for another time, in
    /// milliseconds, 1 to [`MAX_LEASE_MS`].
    pub lease_ms: u32,
    /// Failures after which a record goes to the dead-letter topic; 0 for never.
    pub max_failures: u32,
    /// Whether a lease that ran out is a failure.
    pub timeout_is_failure: bool,
    /// Whether a record whose time to live is over goes to the dead-letter topic.
    pub dead_letter_expired: bool,
    /// The wait after a failure.
    pub backoff: Backoff,
    /// Open records (delivered and not completed) per partition at which no new
    /// ones are delivered, 1 to [`MAX_OPEN_RECORDS`].
    pub max_open: u32,
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            mode: GroupMode::Shared,
            lease_ms: 30_000,
            max_failures: 16,
            timeout_is_failure: true,
            dead_letter_expired: false,
            backoff: Backoff::Exponential { first_ms: 100, max_ms: 60_000 },
            max_open: 50_000,
        }
    }
}

impl GroupConfig {
    /// Bytes of a group's configuration, in messages and in the catalog.
    pub const LEN: usize = 4 + 5 * 4;

    /// Appends the configuration.
    pub fn put(&self, m: &mut Vec<u8>) {
        let (kind, first_ms, max_ms) = match self.backoff {
            Backoff::None => (0, 0, 0),
            Backoff::Fixed(ms) => (1, ms, ms),
            Backoff::Exponential { first_ms, max_ms } => (2, first_ms, max_ms),
        };
        m.put_u8(self.mode as u8);
        m.put_u8(kind);
        m.put_u8(u8::from(self.timeout_is_failure));
        m.put_u8(u8::from(self.dead_letter_expired));
        for value in [self.lease_ms, self.max_failures, self.max_open, first_ms, max_ms] {
            m.put_u32(value);
        }
    }

    /// The configuration at the start of `bytes`.
    ///
    /// # Errors
    /// As for a message: too few bytes, or a value out of range.
    pub fn decode(bytes: &[u8]) -> Result<GroupConfig, MessageError> {
        Self::read(&mut Reader(bytes))
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<GroupConfig, MessageError> {
        let (mode, kind) = (GroupMode::from_u8(r.u8()?)?, r.u8()?);
        let timeout_is_failure = flag("timeout_is_failure", r.u8()?)?;
        let dead_letter_expired = flag("dead_letter_expired", r.u8()?)?;
        let (lease_ms, max_failures, max_open) = (r.u32()?, r.u32()?, r.u32()?);
        let (first_ms, max_ms) = (r.u32()?, r.u32()?);
        ensure((1..=MAX_LEASE_MS).contains(&lease_ms), "lease_ms", u64::from(lease_ms))?;
        ensure((1..=MAX_OPEN_RECORDS).contains(&max_open), "max_open", u64::from(max_open))?;
        ensure(max_ms <= MAX_RETRY_DELAY_MS, "backoff_max_ms", u64::from(max_ms))?;
        let backoff = match kind {
            0 if first_ms == 0 && max_ms == 0 => Backoff::None,
            1 if first_ms == max_ms => Backoff::Fixed(first_ms),
            2 if first_ms <= max_ms => Backoff::Exponential { first_ms, max_ms },
            0..=2 => {
                return Err(MessageError::OutOfRange {
                    field: "backoff_first_ms",
                    value: u64::from(first_ms),
                });
            }
            value => return Err(MessageError::OutOfRange { field: "backoff", value: u64::from(value) }),
        };
        Ok(GroupConfig {
            mode,
            lease_ms,
            max_failures,
            timeout_is_failure,
            dead_letter_expired,
            backoff,
            max_open,
        })
    }
}

/// Where a group begins in each partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum GroupStart {
    /// At the first retained record.
    #[default]
    Earliest,
    /// After the last durable record.
    End,
    /// At this offset, or the nearest one that there is.
    Offset(Offset),
    /// At the first record whose commit time is at or after this, µs since 1970
    /// UTC.
    Time(u64),
}

impl GroupStart {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        let (kind, value) = match *self {
            GroupStart::Earliest => (0, 0),
            GroupStart::End => (1, 0),
            GroupStart::Offset(offset) => (2, offset.0),
            GroupStart::Time(time_us) => (3, time_us),
        };
        m.put_u64(kind);
        m.put_u64(value);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<GroupStart, MessageError> {
        let (kind, value) = (r.u64()?, r.u64()?);
        match kind {
            0 | 1 => {
                ensure(value == 0, "start", value)?;
                Ok(if kind == 0 { GroupStart::Earliest } else { GroupStart::End })
            }
            2 => Ok(GroupStart::Offset(Offset(value))),
            3 => Ok(GroupStart::Time(value)),
            value => Err(MessageError::OutOfRange { field: "start_kind", value }),
        }
    }
}

/// Creates a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateGroup {
    /// Its name: one group of the broker has it; as a topic's.
    pub name: String,
    /// The topic that it consumes.
    pub topic: String,
    /// Where it begins.
    pub start: GroupStart,
    /// Whether a group of that name on that topic, in the same mode, is found
    /// instead, whatever else its configuration is.
    pub or_find: bool,
    /// What it does.
    pub config: GroupConfig,
    /// Where its dead letters go; the name ends in `.dlq`. With `None` it is the
    /// topic's with `.dlq` behind it, if the configuration sends any there.
    pub dead_letter_topic: Option<String>,
}

impl CreateGroup {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.start.put(m);
        self.config.put(m);
        m.put_u32(u32::from(self.or_find));
        m.put_string(&self.topic);
        m.put_string(&self.name);
        m.put_string(self.dead_letter_topic.as_deref().unwrap_or_default());
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<CreateGroup, MessageError> {
        let (start, config) = (GroupStart::read(r)?, GroupConfig::read(r)?);
        let or_find = flag("or_find", r.u8()?)?;
        r.reserved(3)?;
        let (topic, name) = (r.string()?.to_owned(), r.string()?.to_owned());
        let dead_letter_topic = Some(r.string()?).filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(CreateGroup { name, topic, start, or_find, config, dead_letter_topic })
    }
}

/// Sets a group back, or forward: what it delivered before is forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResetGroup {
    /// Its name.
    pub name: String,
    /// Where it goes on.
    pub to: GroupStart,
    /// In this partition; `None` for all.
    pub partition: Option<u32>,
}

impl ResetGroup {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.to.put(m);
        m.put_u32(self.partition.unwrap_or(ALL_PARTITIONS));
        m.put_string(&self.name);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<ResetGroup, MessageError> {
        let (to, partition) = (GroupStart::read(r)?, r.u32()?);
        let partition = (partition != ALL_PARTITIONS).then_some(partition);
        Ok(ResetGroup { name: r.string()?.to_owned(), to, partition })
    }
}

/// A group. Whoever decodes one has a valid name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupInfo {
    /// Number of the group.
    pub id: GroupId,
    /// The topic that it consumes.
    pub topic: TopicId,
    /// Where records go that failed too often; 0 if none do.
    pub dead_letter: TopicId,
    /// What it does.
    pub config: GroupConfig,
    /// Its name.
    pub name: String,
}

impl GroupInfo {
    /// Shortest encoding, with a name of one character.
    pub(super) const MIN_LEN: usize = 12 + GroupConfig::LEN + 2 + 1;

    pub(super) fn put(&self, m: &mut Vec<u8>) {
        m.put_u32(self.id.0);
        m.put_u32(self.topic.0);
        m.put_u32(self.dead_letter.0);
        self.config.put(m);
        m.put_string(&self.name);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<GroupInfo, MessageError> {
        let (id, topic, dead_letter) = (GroupId(r.u32()?), TopicId(r.u32()?), TopicId(r.u32()?));
        let (config, name) = (GroupConfig::read(r)?, r.string()?);
        ensure(is_valid_topic_name(name), "name", name.len() as u64)?;
        Ok(GroupInfo { id, topic, dead_letter, config, name: name.to_owned() })
    }
}

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: u64,)* }

        impl $name {
            const LEN: usize = 8 * [$(stringify!($field)),*].len();

            fn put(&self, m: &mut Vec<u8>) {
                $(m.put_u64(self.$field);)*
            }

            fn read(r: &mut Reader<'_>) -> Result<Self, MessageError> {
                Ok(Self { $($field: r.u64()?,)* })
            }
        }
    };
}

numbers! {
    /// How far a group is in one partition, in records unless said otherwise.
    Progress {
        /// Offset after the last durable record.
        end_offset,
        /// Ack floor: every record before it is completed.
        floor,
        /// Offset of the first record that was not looked at: those before it were delivered,
        /// or wait for their time or key.
        next_offset,
        /// Not completed, delivered or not: the lag.
        lag,
        /// Delivered and leased.
        leased,
        /// Came back, and are to be delivered again now.
        ready,
        /// Wait for a time, of their own or after a failure; or until others need not, if as
        /// many do as may.
        delayed,
        /// Wait for an earlier record of the same key.
        behind_key,
        /// Are to go to the dead-letter topic.
        condemned,
        /// Failures, since the group was created.
        failed_total,
        /// Went to the dead-letter topic, since the group was created.
        dead_lettered_total,
        /// Were skipped as their time to live was over, or retention took them
        /// before they were completed.
        expired_total,
        /// How long ago the oldest record that is not completed was committed, µs;
        /// 0 if there is none.
        oldest_age_us,
        /// Consumers, now attached or waiting in a `Receive`, to which it may be delivered.
        consumers,
        /// The consumer that has the partition for itself; 0 if none has.
        holder,
    }
}

/// Why a group's consumers are sent nothing from a partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hold {
    /// Every record is completed.
    NothingNew,
    /// Nobody is attached, and nobody waits in a `Receive`.
    NoConsumer,
    /// Whoever is attached has no credit left.
    NoCredit,
    /// Whoever is attached has no credit left, or has not read what it was sent: its
    /// connection has as much to send as it may.
    NotReading,
    /// So many records are leased; the first of the leases runs out in so many ms.
    Leased {
        /// Records.
        count: u64,
        /// Until the first lease runs out.
        ms: u64,
    },
    /// Records wait behind the one at this offset, which has the same key and is
    /// not completed.
    Key {
        /// The record that they wait for.
        offset: u64,
        /// How many.
        count: u64,
    },
    /// So many records are open: as many as the group allows.
    AtBound {
        /// Records.
        open: u64,
    },
    /// So many records wait for a time; none comes within so many ms.
    Delayed {
        /// Records.
        count: u64,
        /// Until the first is due.
        ms: u64,
    },
    /// Another consumer has the partition for itself.
    Exclusive {
        /// Which.
        consumer: u64,
    },
    /// So many records are to go to the dead-letter topic: there is no room for them yet,
    /// or they cannot be read.
    DeadLetter {
        /// Records.
        count: u64,
    },
    /// Records are being read from disk, or the broker is short of memory for it.
    Reading,
    /// As many records wait for their time as the broker may hold.
    DelayedBound {
        /// The first one that it may not hold.
        offset: u64,
    },
    /// So many records of all groups of the shard are open: as many as the broker may
    /// hold.
    MemoryBound {
        /// Records.
        open: u64,
    },
    /// The disk is full: what becomes of records could not be put on it.
    DiskFull,
    /// The record at this offset is damaged on disk: it is not served, and nothing
    /// behind it. `ResetGroup` goes past it.
    Damaged {
        /// Which.
        offset: u64,
    },
}

impl Hold {
    const LEN: usize = 8 + 8 + 8;

    fn words(&self) -> [u64; 3] {
        match *self {
            Hold::NothingNew => [0, 0, 0],
            Hold::NoConsumer => [1, 0, 0],
            Hold::NoCredit => [2, 0, 0],
            Hold::Leased { count, ms } => [3, count, ms],
            Hold::Key { offset, count } => [4, offset, count],
            Hold::AtBound { open } => [5, open, 0],
            Hold::Delayed { count, ms } => [6, count, ms],
            Hold::Exclusive { consumer } => [7, consumer, 0],
            Hold::DeadLetter { count } => [8, count, 0],
            Hold::Reading => [9, 0, 0],
            Hold::DelayedBound { offset } => [10, offset, 0],
            Hold::Damaged { offset } => [11, offset, 0],
            Hold::MemoryBound { open } => [12, open, 0],
            Hold::DiskFull => [13, 0, 0],
            Hold::NotReading => [14, 0, 0],
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Hold, MessageError> {
        let words = [r.u64()?, r.u64()?, r.u64()?];
        let [kind, a, b] = words;
        let hold = match kind {
            0 => Hold::NothingNew,
            1 => Hold::NoConsumer,
            2 => Hold::NoCredit,
            3 => Hold::Leased { count: a, ms: b },
            4 => Hold::Key { offset: a, count: b },
            5 => Hold::AtBound { open: a },
            6 => Hold::Delayed { count: a, ms: b },
            7 => Hold::Exclusive { consumer: a },
            8 => Hold::DeadLetter { count: a },
            9 => Hold::Reading,
            10 => Hold::DelayedBound { offset: a },
            11 => Hold::Damaged { offset: a },
            12 => Hold::MemoryBound { open: a },
            13 => Hold::DiskFull,
            14 => Hold::NotReading,
            value => return Err(MessageError::OutOfRange { field: "hold", value }),
        };
        ensure(hold.words() == words, "hold", kind)?;
        Ok(hold)
    }
}

/// A group in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPartition {
    /// Index of the partition.
    pub partition: u32,
    /// The shard that has it.
    pub shard: ShardId,
    /// How far the group is.
    pub progress: Progress,
    /// Why nothing is sent; empty while something is.
    pub holds: Vec<Hold>,
}

/// A consumer, attached or with leases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConsumerInfo {
    /// Who.
    pub consumer: ConsumerId,
    /// At which shard: a consumer is known to each one to which it attaches.
    pub shard: ShardId,
    /// Whether it is attached now, or waits in a `Receive`.
    pub attached: bool,
    /// Records that it may be sent.
    pub credit_records: u64,
    /// Bytes that it may be sent.
    pub credit_bytes: u64,
    /// Records leased to it.
    pub leased: u64,
}

impl ConsumerInfo {
    const LEN: usize = 8 + 2 + 1 + 5 + 3 * 8;
}

/// A group, as described.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupDescription {
    /// The group.
    pub group: GroupInfo,
    /// Name of its topic.
    pub topic: String,
    /// By index.
    pub partitions: Vec<GroupPartition>,
    /// By shard and number.
    pub consumers: Vec<ConsumerInfo>,
}

impl GroupDescription {
    pub(super) fn put(&self, m: &mut Vec<u8>) {
        self.group.put(m);
        m.put_string(&self.topic);
        m.put_u32(self.partitions.len() as u32);
        for p in &self.partitions {
            m.put_u32(p.partition);
            m.put_u16(p.shard.0);
            m.put_u16(p.holds.len() as u16);
            p.progress.put(m);
            p.holds.iter().flat_map(Hold::words).for_each(|word| m.put_u64(word));
        }
        m.put_u32(self.consumers.len() as u32);
        for c in &self.consumers {
            m.put_u64(c.consumer.0);
            m.put_u16(c.shard.0);
            m.put_u8(u8::from(c.attached));
            m.extend_from_slice(&[0; 5]);
            m.put_u64(c.credit_records);
            m.put_u64(c.credit_bytes);
            m.put_u64(c.leased);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<GroupDescription, MessageError> {
        let group = GroupInfo::read(r)?;
        let topic = r.string()?;
        ensure(is_valid_topic_name(topic), "topic", topic.len() as u64)?;
        let count = r.count(4 + 2 + 2 + Progress::LEN)?;
        let partitions = (0..count).map(|_| {
            let (partition, shard, holds) = (r.u32()?, ShardId(r.u16()?), r.u16()?);
            let progress = Progress::read(r)?;
            ensure(usize::from(holds) * Hold::LEN <= r.left(), "holds", u64::from(holds))?;
            let holds = (0..holds).map(|_| Hold::read(r)).collect::<Result<_, _>>()?;
            Ok(GroupPartition { partition, shard, progress, holds })
        });
        let partitions = partitions.collect::<Result<_, MessageError>>()?;
        let count = r.count(ConsumerInfo::LEN)?;
        let consumers = (0..count).map(|_| {
            let (consumer, shard) = (ConsumerId(r.u64()?), ShardId(r.u16()?));
            let attached = flag("attached", r.u8()?)?;
            r.reserved(5)?;
            let (credit_records, credit_bytes, leased) = (r.u64()?, r.u64()?, r.u64()?);
            Ok(ConsumerInfo { consumer, shard, attached, credit_records, credit_bytes, leased })
        });
        let consumers = consumers.collect::<Result<_, MessageError>>()?;
        Ok(GroupDescription { group, topic: topic.to_owned(), partitions, consumers })
    }
}
