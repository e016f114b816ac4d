//! Producing: records in, what became of each out.
//!
//! [`Producer`] gathers records into one open batch per partition
//! ([`lane`]); one task per shard ([`task`]) owns a connection and the
//! [`ProducerState`](crate::producer_state::ProducerState) of each of its
//! partitions, takes batches when there is room in flight, and tells every
//! record how it ended.

mod builder;
mod lane;
mod task;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use ringbolt_wire::ProducerId;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) use builder::PlainSettings;
pub use builder::ProducerBuilder;
use lane::{Lane, Room, Shard, Shared, lock};

use crate::error::ProduceError;
use crate::partitioner::partition_for_key;
use crate::producer_state::Failure;
use crate::record::{Receipt, Record};

/// A producer to one topic. Cheap to clone; clones share batches, connections
/// and identity.
///
/// Records of one partition are written in the order in which
/// [`enqueue`](Self::enqueue) or [`send`](Self::send) took them, retries
/// included. When the last clone is dropped, what was taken is still sent, in
/// the background; [`close`](Self::close) waits for it.
#[derive(Clone, Debug)]
pub struct Producer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    identity: ProducerId,
    partitions: u32,
    /// The partition that every record goes to, if one was chosen.
    fixed: Option<u32>,
    /// Lane of each partition: shard and index there. `None` where a fixed
    /// partition rules it out.
    lanes: Vec<Option<(usize, usize)>>,
    shards: Vec<Arc<Shard>>,
    /// Where records without key go until a batch is full.
    sticky: Arc<AtomicU32>,
    closed: AtomicBool,
    max_record_len: usize,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

/// A record that was taken: awaiting it tells what became of it. Dropping it
/// does not take the record back.
#[derive(Debug)]
#[must_use = "await it to learn what became of the record"]
pub struct Pending {
    answer: oneshot::Receiver<Result<Receipt, ProduceError>>,
}

impl Future for Pending {
    type Output = Result<Receipt, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        // A task answers every record before it ends, unless the runtime was
        // shut down under it; then it may have been sent.
        let lost = Failure::Unknown { last: None };
        Poll::Ready(answer.unwrap_or(Err(ProduceError::Failed(lost))))
    }
}

impl Producer {
    /// Sends a record and waits until it is durable.
    ///
    /// Awaiting one record before the next is sent costs a round trip and a
    /// disk flush for each; to have many under way, use
    /// [`enqueue`](Self::enqueue), or call this from several tasks.
    ///
    /// # Errors
    /// [`ProduceError`]; [`ProduceError::outcome`] tells whether the record is
    /// surely not written.
    pub async fn send(&self, record: Record) -> Result<Receipt, ProduceError> {
        self.enqueue(record).await?.await
    }

    /// Takes a record into a batch, waiting while the buffer is full, and
    /// returns a future that tells what became of it.
    ///
    /// # Errors
    /// [`ProduceError`] for a record that cannot be taken, also because there
    /// was no room for it by its deadline.
    pub async fn enqueue(&self, record: Record) -> Result<Pending, ProduceError> {
        let partition = self.choose(&record);
        self.enqueue_to(partition, record).await
    }

    /// As [`enqueue`](Self::enqueue), to this partition.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue), and [`ProduceError::NoSuchPartition`].
    pub async fn enqueue_to(&self, partition: u32, record: Record) -> Result<Pending, ProduceError> {
        let inner = &*self.inner;
        record.check_headers()?;
        let len = record.encoded_len();
        if len > inner.max_record_len {
            return Err(ProduceError::TooLarge { len, limit: inner.max_record_len });
        }
        let (shard, lane) = match (inner.lanes.get(partition as usize), inner.fixed) {
            (Some(Some(lane)), _) => *lane,
            (Some(None), Some(fixed)) => return Err(ProduceError::OtherPartition { fixed, partition }),
            _ => return Err(ProduceError::NoSuchPartition { partitions: inner.partitions, partition }),
        };
        let deadline_us = inner.shared.now_us().saturating_add(inner.shared.gathering.deadline_us);
        let expired = ProduceError::Failed(Failure::Expired { last: None });
        let cost = inner.shared.reserve(len, deadline_us).await.ok_or(expired)?;
        let room = Room { cost, deadline_us };
        let (answer, pending) = oneshot::channel();
        let added = match inner.closed.load(Ordering::Acquire) {
            true => None,
            false => inner.shards[shard].add(lane, &inner.shared, &record, room, answer),
        };
        match added {
            Some(true) => turn(&inner.sticky, partition, inner.partitions),
            Some(false) => {}
            None => {
                inner.shared.release(cost);
                return Err(ProduceError::Closed);
            }
        }
        Ok(Pending { answer: pending })
    }

    fn choose(&self, record: &Record) -> u32 {
        match (self.inner.fixed, record.key()) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, self.inner.partitions),
            (None, None) => self.inner.sticky.load(Ordering::Relaxed),
        }
    }

    /// Sends open batches at once and waits until every record that was taken
    /// before has ended, one way or the other.
    pub async fn flush(&self) {
        let generations = self.inner.shared.next_generation();
        for shard in &self.inner.shards {
            shard.hurry.store(true, Ordering::Release);
            shard.wake.notify_one();
        }
        for mut generation in generations {
            // Nothing is ever sent on it: it changes when its last batch ends.
            while generation.changed().await.is_ok() {}
        }
    }

    /// Takes no more records, sends what was taken, and waits until all have
    /// ended, which the deadline bounds.
    pub async fn close(&self) {
        self.inner.shut();
        self.flush().await;
        let tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        for task in tasks {
            // A task that panicked has dropped its records' answers: their
            // futures say unknown.
            let _ = task.await;
        }
    }

    /// Who produces: to be given to [`ProducerBuilder::identity`] by a later
    /// incarnation that continues.
    pub fn identity(&self) -> ProducerId {
        self.inner.identity
    }

    /// Number of partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.inner.partitions
    }
}

impl Inner {
    fn shut(&self) {
        self.closed.store(true, Ordering::Release);
        for shard in &self.shards {
            shard.closing.store(true, Ordering::Release);
            shard.wake.notify_one();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut();
    }
}

/// A batch of this partition is complete: records without key go to the next.
fn turn(sticky: &AtomicU32, partition: u32, partitions: u32) {
    let next = (partition + 1) % partitions;
    // Somebody else's turn is as good.
    let _ = sticky.compare_exchange(partition, next, Ordering::Relaxed, Ordering::Relaxed);
}
