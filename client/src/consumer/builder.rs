//! The settings of a consumer, and its start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringbolt_wire::message::{
    ConsumerAt, CreateGroup, Credit, GroupConfig, GroupInfo, GroupMode, GroupStart, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, MAX_LEASE_MS, TopicDescription,
};
use ringbolt_wire::{ConsumerId, PartitionId, ShardId};
use tokio::sync::mpsc;

use super::Consumer;
use super::delivery::Handle;
use super::inbox::Inbox;
use super::task::{Parts, Task};
use crate::backoff::Backoff;
use crate::client::Client;
use crate::consumer_state::{ShardConfig, ShardState};
use crate::error::Error;
use crate::net::Connection;

/// Room in a delivery's frame beyond its records.
const DELIVERY_HEAD_LEN: u64 = 1 << 20;

/// Settings of a [`Consumer`].
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    group: String,
    mode: Option<GroupMode>,
    config: GroupConfig,
    dead_letter_topic: Option<String>,
    start: GroupStart,
    prefetch: u64,
    prefetch_bytes: u64,
    lease: Option<Duration>,
    auto_extend: bool,
    consumer_id: Option<ConsumerId>,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: String, group: String) -> Self {
        ConsumerBuilder {
            client,
            topic,
            group,
            mode: None,
            config: GroupConfig::default(),
            dead_letter_topic: None,
            start: GroupStart::Earliest,
            prefetch: 256,
            prefetch_bytes: 16 << 20,
            lease: None,
            auto_extend: true,
            consumer_id: None,
        }
    }

    /// How the group shares its records. Default [`GroupMode::Shared`], or what
    /// [`config`](Self::config) says. A group that is there must have this mode.
    pub fn mode(mut self, mode: GroupMode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// What a group that is not there yet is created with. One that is there keeps
    /// what it has.
    pub fn config(mut self, config: GroupConfig) -> Self {
        self.config = config;
        self
    }

    /// Where dead letters of a group go that is not there yet: a topic whose name ends in
    /// `.dlq`, which is created if it is not there. Default: the consumed topic's name with
    /// `.dlq` behind it.
    pub fn dead_letter_topic(mut self, name: impl Into<String>) -> Self {
        self.dead_letter_topic = Some(name.into());
        self
    }

    /// Where a group that is not there yet begins. Default
    /// [`GroupStart::Earliest`].
    pub fn start(mut self, start: GroupStart) -> Self {
        self.start = start;
        self
    }

    /// Most records in hand: waiting for [`Consumer::recv`], or being worked on.
    /// Default 256. It is divided over the shards that have partitions of the topic;
    /// each may send at least one record.
    pub fn prefetch(mut self, records: u64) -> Self {
        self.prefetch = records;
        self
    }

    /// Most bytes of records in hand, but for the last record of each shard. Default
    /// 16 MiB; divided as [`prefetch`](Self::prefetch) is.
    pub fn prefetch_bytes(mut self, bytes: u64) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// For how long records are leased, at most a day. Default: the group's time.
    pub fn lease(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// Whether leases are extended while their records are in hand. Default true: a
    /// record then is this consumer's until it says what became of it, or until it is
    /// cut off for the time of a lease. False bounds the time that is spent on a
    /// record; records that wait for [`Consumer::recv`] use theirs up as well.
    pub fn auto_extend(mut self, extend: bool) -> Self {
        self.auto_extend = extend;
        self
    }

    /// Attach under this id. Default: a random one. Who attaches under the id of
    /// another consumer takes its place: that one ends with
    /// [`Error::ConsumerReplaced`], and what it had in hand is given back.
    pub fn consumer_id(mut self, id: ConsumerId) -> Self {
        self.consumer_id = Some(id);
        self
    }

    /// Creates the group if it is not there, and starts consuming. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic`, `InvalidTopicName`, `TooManyGroups`, or
    /// `GroupExists` (with another topic or in another mode);
    /// [`Error::InvalidSetting`], or that the broker cannot be reached.
    pub async fn open(self) -> Result<Consumer, Error> {
        self.check()?;
        let admin = self.client.admin();
        let group = admin.create_group(self.create_group()).await?;
        let topic = admin.describe_topic(&self.topic).await?;
        if topic.topic.id != group.topic {
            // Deleted and created again between the two.
            let text =
                format!("topic {} is no longer the one that group {} consumes", self.topic, self.group);
            return Err(Error::InvalidSetting(text));
        }
        let id = self.consumer_id.unwrap_or_else(|| ConsumerId(self.client.seed().max(1)));
        let shards: BTreeSet<ShardId> = topic.partitions.iter().map(|info| info.shard).collect();
        let shards: BTreeMap<ShardId, usize> = shards.into_iter().zip(0..).collect();
        let limit = self.client.broker().max_in_flight;
        if shards.len() as u64 >= u64::from(limit) {
            let text = format!("{} shards, and the broker accepts {limit} requests at once", shards.len());
            return Err(Error::InvalidSetting(text));
        }
        let inbox = Arc::new(Inbox::default());
        let (commands, queue) = mpsc::unbounded_channel();
        let config = self.client.config();
        let task = Task::new(Parts {
            topic: self.topic.as_str().into(),
            inbox: inbox.clone(),
            connection: self.connection(&topic, shards.len()),
            shards: self.states(&group, id, shards.keys().copied().collect()),
            shard_of: topic.partitions.iter().map(|info| shards[&info.shard]).collect(),
            request_timeout: config.request_timeout,
            close_timeout: config.operation_timeout,
        });
        let task = Mutex::new(Some(tokio::spawn(task.run(queue))));
        let exclusive = group.config.mode == GroupMode::Exclusive;
        let dead_letters = group.dead_letter.0 != 0;
        let handle = Arc::new(Handle { commands, inbox, exclusive, dead_letters });
        Ok(Consumer { handle, id, group, task })
    }

    fn check(&self) -> Result<(), Error> {
        let longest = Duration::from_millis(u64::from(MAX_LEASE_MS));
        let wrong = if self.prefetch == 0 || self.prefetch_bytes == 0 {
            "prefetch and prefetch_bytes must be at least 1"
        } else if self.lease.is_some_and(|lease| lease.is_zero() || lease > longest) {
            "a lease lasts more than 0, and at most a day"
        } else if self.consumer_id == Some(ConsumerId(0)) {
            "0 is nobody's consumer id"
        } else {
            return Ok(());
        };
        Err(Error::InvalidSetting(wrong.to_owned()))
    }

    fn create_group(&self) -> CreateGroup {
        CreateGroup {
            name: self.group.clone(),
            topic: self.topic.clone(),
            start: self.start,
            or_find: true,
            config: GroupConfig { mode: self.mode.unwrap_or(self.config.mode), ..self.config },
            dead_letter_topic: self.dead_letter_topic.clone(),
        }
    }

    fn connection(&self, topic: &TopicDescription, shards: usize) -> Connection<super::task::Asked> {
        // With several shards there is no core that would be the right one.
        let affinity = (shards == 1).then(|| PartitionId::new(topic.topic.id, 0));
        let largest = self.share(self.prefetch_bytes, shards, 0, MAX_CREDIT_BYTES);
        let ranges = self.share(self.prefetch, shards, 0, MAX_CREDIT_RECORDS);
        let head = ranges.saturating_mul(64).clamp(DELIVERY_HEAD_LEN, 16 << 20);
        let record = u64::from(self.client.broker().max_batch_len);
        let longest = u32::try_from(largest + record + head).unwrap_or(u32::MAX);
        let dialer = self.client.dialer(affinity, longest);
        Connection::new(dialer, Backoff::new(self.client.config().backoff, self.client.seed()))
    }

    /// The part of `whole` that one of `shards` has.
    fn share(&self, whole: u64, shards: usize, index: usize, max: u64) -> u64 {
        let (shards, index) = (shards as u64, index as u64);
        (whole / shards + u64::from(index < whole % shards)).clamp(1, max)
    }

    fn states<T>(&self, group: &GroupInfo, consumer: ConsumerId, shards: Vec<ShardId>) -> Vec<ShardState<T>> {
        let config = self.client.config();
        let state = |(index, &shard): (usize, &ShardId)| {
            let window = Credit {
                records: self.share(self.prefetch, shards.len(), index, MAX_CREDIT_RECORDS),
                bytes: self.share(self.prefetch_bytes, shards.len(), index, MAX_CREDIT_BYTES),
            };
            let config = ShardConfig {
                at: ConsumerAt { shard, group: group.id, consumer },
                window,
                // Checked to be a day at most; a part of a millisecond is one.
                lease_ms: self.lease.map_or(0, |lease| lease.as_nanos().div_ceil(1_000_000) as u32),
                auto_extend: self.auto_extend,
                exclusive: group.config.mode == GroupMode::Exclusive,
                dead_letters: group.dead_letter.0 != 0,
                request_timeout_us: u64::try_from(config.request_timeout.as_micros()).unwrap_or(u64::MAX),
                backoff: config.backoff,
            };
            ShardState::new(config, self.client.seed())
        };
        shards.iter().enumerate().map(state).collect()
    }
}
