//! The settings of a reader, and its start.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ringbolt_wire::message::{MAX_FETCH_PARTITIONS, OffsetSpec, TopicDescription};
use ringbolt_wire::{Offset, PartitionId, ShardId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Reader;
use super::task::{FetchTask, Position};
use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::net::Caller;
use crate::record::to_us;

/// Room in an answer beyond its records: meta for every partition.
const ANSWER_HEAD_LEN: u32 = 1 << 20;

/// Where to start reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// The first record that is still there.
    Earliest,
    /// The end as it is now: only what comes later is read.
    End,
    /// This offset, in every partition that is read.
    Offset(u64),
    /// The first record that the broker took at or after this time.
    Time(SystemTime),
}

/// Settings of a [`Reader`].
#[derive(Clone, Debug)]
pub struct ReaderBuilder {
    client: Client,
    topic: String,
    partitions: Option<Vec<u32>>,
    start: StartAt,
    positions: BTreeMap<u32, u64>,
    max_wait: Duration,
    min_bytes: u32,
    max_bytes: u32,
    skip_removed: bool,
}

impl ReaderBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        ReaderBuilder {
            client,
            topic,
            partitions: None,
            start: StartAt::Earliest,
            positions: BTreeMap::new(),
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            max_bytes: 4 << 20,
            skip_removed: false,
        }
    }

    /// Read these partitions only. Default: all.
    pub fn partitions(mut self, indexes: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = Some(indexes.into_iter().collect());
        self
    }

    /// Where to start. Default: [`StartAt::Earliest`].
    pub fn start_at(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    /// Start these partitions at these offsets, whatever
    /// [`start_at`](Self::start_at) says: what [`Reader::positions`] told.
    pub fn positions(mut self, positions: BTreeMap<u32, u64>) -> Self {
        self.positions = positions;
        self
    }

    /// Longest time that the broker waits for `min_bytes`. Default 500 ms; it
    /// does not delay records that are there.
    ///
    /// The broker shortens it to a minute, and is then asked again.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// The broker answers once this many bytes are there. Default 1.
    pub fn min_bytes(mut self, bytes: u32) -> Self {
        self.min_bytes = bytes;
        self
    }

    /// Most bytes of one answer, unless one batch is larger; up to three
    /// answers per shard are in memory. Default 4 MiB.
    pub fn max_bytes(mut self, bytes: u32) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Go on with the first offset that is there when the wanted one was
    /// removed by retention, instead of ending in
    /// [`Error::OffsetOutOfRange`].
    pub fn skip_removed(mut self, skip: bool) -> Self {
        self.skip_removed = skip;
        self
    }

    /// Starts reading. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic`, [`Error::NoSuchPartition`],
    /// [`Error::InvalidSetting`], or that the broker cannot be reached.
    pub async fn build(self) -> Result<Reader, Error> {
        let topic = self.client.admin().describe_topic(&self.topic).await?;
        let chosen = self.chosen(&topic)?;
        let mut by_shard: BTreeMap<ShardId, Vec<Position>> = BTreeMap::new();
        let mut positions = BTreeMap::new();
        for index in chosen {
            let partition = PartitionId::new(topic.topic.id, index);
            let info = &topic.partitions[index as usize];
            let next = match (self.positions.get(&index).copied(), self.start) {
                (Some(offset), _) | (None, StartAt::Offset(offset)) => Offset(offset),
                (None, StartAt::Earliest) => info.start_offset,
                (None, StartAt::End) => info.end_offset,
                (None, StartAt::Time(time)) => {
                    self.client.admin().offset(partition, OffsetSpec::Time(to_us(time))).await?
                }
            };
            positions.insert(index, next.0);
            by_shard.entry(info.shard).or_default().push(Position { partition, next });
        }
        let (sender, fetched) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        for positions in by_shard.into_values() {
            // One connection serves one shard; a fetch names so many at most.
            for positions in positions.chunks(MAX_FETCH_PARTITIONS) {
                let task = self.task(positions.to_vec());
                tasks.spawn(task.run(sender.clone()));
            }
        }
        Ok(Reader {
            topic: self.topic.into(),
            fetched,
            records: Default::default(),
            positions,
            _tasks: tasks,
        })
    }

    fn chosen(&self, topic: &TopicDescription) -> Result<Vec<u32>, Error> {
        let partitions = topic.topic.partitions;
        let mut chosen = match &self.partitions {
            None => (0..partitions).collect(),
            Some(chosen) => chosen.clone(),
        };
        chosen.sort_unstable();
        chosen.dedup();
        match chosen.last() {
            None => Err(Error::InvalidSetting("no partition was chosen to read".to_owned())),
            Some(&partition) if partition >= partitions => {
                Err(Error::NoSuchPartition { topic: self.topic.clone(), partitions, partition })
            }
            Some(_) => Ok(chosen),
        }
    }

    fn task(&self, positions: Vec<Position>) -> FetchTask {
        let longest_batch = self.client.broker().max_batch_len;
        let longest = self.max_bytes.max(longest_batch).saturating_add(ANSWER_HEAD_LEN);
        let config = self.client.config();
        FetchTask {
            caller: Caller::spawn(self.client.dialer(Some(positions[0].partition), longest)),
            topic: self.topic.clone(),
            positions,
            max_wait: self.max_wait,
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            timeout: config.request_timeout.saturating_add(self.max_wait),
            skip_removed: self.skip_removed,
            backoff: Backoff::new(config.backoff, self.client.seed()),
            pause: false,
        }
    }
}
