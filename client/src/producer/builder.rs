//! The settings of a producer, and its start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringbolt_wire::batch::{BATCH_HEADER_LEN, RECORD_HEADER_LEN};
use ringbolt_wire::{PartitionId, ProducerId, ShardId};

use super::lane::{Gathering, Lane, Shard, Shared};
use super::task::ShardTask;
use super::{Inner, Producer};
use crate::client::Client;
use crate::error::Error;
use crate::producer_state::ProducerConfig;

/// Longest frame accepted on a producer's connection: answers are short.
const MAX_ANSWER_LEN: u32 = 1 << 20;

/// Settings of a [`Producer`].
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    partition: Option<u32>,
    identity: Option<ProducerId>,
    take_over: bool,
    batch_bytes: usize,
    batch_records: u32,
    linger: Duration,
    max_in_flight: usize,
    deadline: Duration,
    min_copies: u8,
    buffer_bytes: usize,
}

/// Settings that do not say where a record goes, nor who produces it.
pub(crate) struct PlainSettings {
    pub client: Client,
    pub topic: String,
    pub min_copies: u8,
    pub batch_bytes: usize,
    pub batch_records: u32,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        ProducerBuilder {
            client,
            topic,
            partition: None,
            identity: None,
            take_over: true,
            batch_bytes: 256 << 10,
            batch_records: 10_000,
            linger: Duration::ZERO,
            max_in_flight: 5,
            deadline: Duration::from_secs(120),
            min_copies: 1,
            buffer_bytes: 32 << 20,
        }
    }

    /// Send every record to this partition. By default the key decides
    /// ([`partition_for_key`](crate::partition_for_key)), and records without
    /// key stay with one partition until a batch leaves, then move to the next.
    pub fn partition(mut self, index: u32) -> Self {
        self.partition = Some(index);
        self
    }

    /// Longest batch in bytes, headers included; at most what the broker
    /// accepts. A larger record gets a batch of its own. Default 256 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Most records in a batch. Default 10,000.
    pub fn batch_records(mut self, records: u32) -> Self {
        self.batch_records = records;
        self
    }

    /// How long a batch waits for more records although it could leave.
    /// Default 0: a batch leaves as soon as there is room in flight, so a slow
    /// stream has no added latency and a fast one gathers by itself.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Most batches per partition that are sent and unanswered. Default 5.
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.max_in_flight = batches;
        self
    }

    /// Longest time from giving a record to the producer to its end: waiting for
    /// room in the buffer counts, and retries go on until then. Default 120 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Demand that an acknowledgement stands for this many copies; a broker
    /// that cannot refuses for good. Default 1.
    pub fn min_copies(mut self, copies: u8) -> Self {
        self.min_copies = copies;
        self
    }

    /// Bytes of records that are taken and have not ended; beyond,
    /// [`Producer::enqueue`] waits, until the deadline. Default 32 MiB.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Continue under the identity of an earlier incarnation
    /// ([`Producer::identity`]). It is fenced: what it still sends is refused,
    /// unless [`take_over`](Self::take_over) says otherwise.
    pub fn identity(mut self, identity: ProducerId) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Whether to fence earlier incarnations of [`identity`](Self::identity).
    /// Default true.
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }

    /// Starts the producer. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnknownTopic`, [`Error::NoSuchPartition`],
    /// [`Error::InvalidSetting`], or that the broker cannot be reached.
    pub async fn build(self) -> Result<Producer, Error> {
        self.check()?;
        let topic = self.client.admin().describe_topic(&self.topic).await?;
        let count = topic.topic.partitions;
        if let Some(partition) = self.partition.filter(|p| *p >= count) {
            return Err(Error::NoSuchPartition { topic: self.topic, partitions: count, partition });
        }
        let at = |index| PartitionId::new(topic.topic.id, index);
        let identity = match self.identity {
            Some(identity) if identity != ProducerId::NONE => identity,
            _ => self.client.new_producer_id(at(self.partition.unwrap_or(0))).await?,
        };
        let mut by_shard: BTreeMap<ShardId, Vec<u32>> = BTreeMap::new();
        for (index, info) in (0u32..).zip(&topic.partitions) {
            if self.partition.is_none_or(|only| only == index) {
                by_shard.entry(info.shard).or_default().push(index);
            }
        }
        let shared = Arc::new(Shared::new(self.gathering(), self.buffer_bytes));
        let sticky = Arc::new(AtomicU32::new(self.client.seed() as u32 % count));
        let mut lanes = vec![None; count as usize];
        let (mut shards, mut tasks) = (Vec::new(), Vec::new());
        for indexes in by_shard.into_values() {
            for (lane, &index) in indexes.iter().enumerate() {
                lanes[index as usize] = Some((shards.len(), lane));
            }
            let shard = Arc::new(Shard::new(indexes.iter().map(|&i| Lane::new(at(i))).collect()));
            let task = ShardTask::new(
                shard.clone(),
                shared.clone(),
                self.client.dialer(Some(at(indexes[0])), MAX_ANSWER_LEN),
                self.state_config(identity),
                self.min_copies,
                (sticky.clone(), count),
                self.client.seed(),
            );
            tasks.push(tokio::spawn(task.run()));
            shards.push(shard);
        }
        Ok(Producer {
            inner: Arc::new(Inner {
                shared,
                identity,
                partitions: count,
                fixed: self.partition,
                lanes,
                shards,
                sticky,
                closed: AtomicBool::new(false),
                max_record_len: self.client.broker().max_batch_len as usize - BATCH_HEADER_LEN,
                tasks: Mutex::new(tasks),
            }),
        })
    }

    /// What counts for a producer that decides on partition and identity by itself.
    pub(crate) fn into_plain(self) -> Result<PlainSettings, Error> {
        self.check()?;
        if self.partition.is_some() || self.identity.is_some() {
            let text = "partition and identity follow from the input and must not be set";
            return Err(Error::InvalidSetting(text.to_owned()));
        }
        let Gathering { batch_bytes, batch_records, .. } = self.gathering();
        let (client, topic, min_copies) = (self.client, self.topic, self.min_copies);
        Ok(PlainSettings { client, topic, min_copies, batch_bytes, batch_records })
    }

    fn check(&self) -> Result<(), Error> {
        let smallest = BATCH_HEADER_LEN + RECORD_HEADER_LEN;
        let wrong = if self.max_in_flight == 0 || self.batch_records == 0 {
            "max_in_flight and batch_records must be at least 1".to_owned()
        } else if self.batch_bytes < smallest || self.buffer_bytes < smallest {
            format!("batch_bytes and buffer_bytes must be at least {smallest}")
        } else if self.deadline.is_zero() {
            "the deadline must not be 0".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::InvalidSetting(wrong))
    }

    fn gathering(&self) -> Gathering {
        let accepted = self.client.broker().max_batch_len as usize;
        // Longer than µs can count is for ever as well.
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Gathering {
            batch_bytes: self.batch_bytes.min(accepted),
            batch_records: self.batch_records,
            linger_us: us(self.linger),
            deadline_us: us(self.deadline),
        }
    }

    fn state_config(&self, producer: ProducerId) -> ProducerConfig {
        let resume = self.identity.is_some();
        ProducerConfig {
            producer,
            resume,
            take_over: resume && self.take_over,
            max_in_flight: self.max_in_flight,
            request_timeout: self.client.config().request_timeout,
            backoff: self.client.config().backoff,
        }
    }
}
