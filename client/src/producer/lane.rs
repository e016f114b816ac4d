//! Where records gather: one open batch per partition, shared between the
//! application's tasks and the shard's.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ringbolt_wire::{BatchBuilder, PartitionId};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::timeout_at;

use crate::error::ProduceError;
use crate::record::{Receipt, Record};

/// Where a record's end is told.
pub(super) type Waiter = oneshot::Sender<Result<Receipt, ProduceError>>;

/// When a batch is complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    pub batch_bytes: usize,
    pub batch_records: u32,
    pub linger_us: u64,
    pub deadline_us: u64,
}

/// What all shards of one producer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub gathering: Gathering,
    origin: Instant,
    buffer: Semaphore,
    buffer_bytes: usize,
    generations: Mutex<Generations>,
}

/// Batches belong to the generation in which they were begun; a flush waits for
/// the generations up to its own. A generation is over when nobody holds its
/// sender any more.
#[derive(Debug)]
struct Generations {
    current: Token,
    open: Vec<watch::Receiver<()>>,
}

/// Held by each batch until it has ended.
pub(super) type Token = std::sync::Arc<watch::Sender<()>>;

impl Shared {
    pub fn new(gathering: Gathering, buffer_bytes: usize) -> Self {
        // A permit is a byte, and one call takes at most u32::MAX of them.
        let buffer_bytes = buffer_bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let current = Token::new(watch::channel(()).0);
        Shared {
            gathering,
            origin: Instant::now(),
            buffer: Semaphore::new(buffer_bytes),
            buffer_bytes,
            generations: Mutex::new(Generations { current, open: Vec::new() }),
        }
    }

    /// µs since the producer was made.
    pub fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    /// The moment of a time in µs since the producer was made.
    pub fn instant(&self, us: u64) -> Option<Instant> {
        self.origin.checked_add(std::time::Duration::from_micros(us))
    }

    /// Waits for room in the buffer, until `until_us` (µs since the producer
    /// was made); what is returned is to be released. `None` if there was no
    /// room in time.
    pub async fn reserve(&self, len: usize, until_us: u64) -> Option<usize> {
        let cost = len.min(self.buffer_bytes);
        // A timer costs more than the rest of this: only who waits has one.
        // Nobody is overtaken, as room goes to those who wait first.
        if let Ok(permit) = self.buffer.try_acquire_many(cost as u32) {
            permit.forget();
            return Some(cost);
        }
        let room = self.buffer.acquire_many(cost as u32);
        // Only a closed semaphore refuses, and it is never closed.
        let permit = match self.instant(until_us) {
            Some(until) => timeout_at(until.into(), room).await.ok()?.ok()?,
            None => room.await.ok()?,
        };
        permit.forget();
        Some(cost)
    }

    pub fn release(&self, cost: usize) {
        self.buffer.add_permits(cost);
    }

    /// Begins a generation; returns the ends of all that came before.
    pub fn next_generation(&self) -> Vec<watch::Receiver<()>> {
        let mut generations = lock(&self.generations);
        let ended = std::mem::replace(&mut generations.current, Token::new(watch::channel(()).0));
        generations.open.retain(|open| open.has_changed().is_ok());
        generations.open.push(ended.subscribe());
        generations.open.clone()
    }

    fn token(&self) -> Token {
        lock(&self.generations).current.clone()
    }
}

/// The partitions of one shard, and what wakes their task.
#[derive(Debug)]
pub(super) struct Shard {
    pub lanes: Vec<Lane>,
    pub wake: Notify,
    /// Lanes in which there is something new for the task.
    dirty: Mutex<Vec<usize>>,
    /// Open batches leave without waiting for more.
    pub hurry: AtomicBool,
    /// No more records will come.
    pub closing: AtomicBool,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Lane {
    pub partition: PartitionId,
    gathered: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// Complete batches, oldest first.
    complete: VecDeque<Batch>,
    open: Option<Batch>,
    /// The task has ended: what is added would never be sent.
    closed: bool,
}

/// Records of one batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub builder: BatchBuilder,
    pub tag: Tag,
    pub times: Times,
}

/// What a batch has to be done by, in µs since the producer was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When its first record came in.
    pub begun_us: u64,
    /// The earliest deadline of its records, which counts from when each was
    /// given to the producer: it may have waited for room since.
    pub deadline_us: u64,
}

/// What a record was given when there was room for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes of the buffer, to be released.
    pub cost: usize,
    /// The record's deadline in µs since the producer was made.
    pub deadline_us: u64,
}

/// Who waits for a batch.
#[derive(Debug)]
pub(super) struct Tag {
    pub waiters: Vec<Waiter>,
    /// Bytes of buffer to release.
    pub cost: usize,
    /// Ends with the batch; that is what a flush waits for.
    _generation: Token,
}

impl Shard {
    pub fn new(lanes: Vec<Lane>) -> Self {
        Shard {
            lanes,
            wake: Notify::new(),
            dirty: Mutex::new(Vec::new()),
            hurry: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    /// Adds a record. True if that completed a batch; `None` if the lane takes
    /// no more.
    pub fn add(
        &self,
        lane: usize,
        shared: &Shared,
        record: &Record,
        room: Room,
        waiter: Waiter,
    ) -> Option<bool> {
        let (news, completed) = self.lanes[lane].add(shared, record, room, waiter)?;
        if news {
            lock(&self.dirty).push(lane);
            self.wake.notify_one();
        }
        Some(completed)
    }

    /// The lanes with something new, once.
    pub fn take_dirty(&self, into: &mut Vec<usize>) {
        into.append(&mut lock(&self.dirty));
    }
}

impl Lane {
    pub fn new(partition: PartitionId) -> Self {
        Lane { partition, gathered: Mutex::default() }
    }

    /// Whether the task has to hear of it, and whether a batch was completed.
    fn add(&self, shared: &Shared, record: &Record, room: Room, waiter: Waiter) -> Option<(bool, bool)> {
        let limits = &shared.gathering;
        let mut gathered = lock(&self.gathered);
        if gathered.closed {
            return None;
        }
        let fits = |batch: &Batch| batch.builder.len() + record.encoded_len() <= limits.batch_bytes;
        let mut completed = false;
        if gathered.open.as_ref().is_some_and(|open| !fits(open)) {
            completed = true;
            let full = gathered.open.take();
            gathered.complete.extend(full);
        }
        let begun = gathered.open.is_none();
        let batch = gathered.open.get_or_insert_with(|| Batch {
            builder: BatchBuilder::new(),
            tag: Tag { waiters: Vec::new(), cost: 0, _generation: shared.token() },
            times: Times { begun_us: shared.now_us(), deadline_us: room.deadline_us },
        });
        // The task's timer is set by the deadline as it was.
        let is_due_earlier = room.deadline_us < batch.times.deadline_us;
        batch.times.deadline_us = batch.times.deadline_us.min(room.deadline_us);
        batch.builder.push(record.timestamp_us(), record.key(), record.value(), record.headers());
        batch.tag.waiters.push(waiter);
        batch.tag.cost += room.cost;
        if batch.builder.count() >= limits.batch_records || batch.builder.len() >= limits.batch_bytes {
            completed = true;
            let full = gathered.open.take();
            gathered.complete.extend(full);
        }
        Some((begun || completed || is_due_earlier, completed))
    }

    /// Takes no more records from here on, unless there are some; true if so.
    pub fn close_if_empty(&self) -> bool {
        let mut gathered = lock(&self.gathered);
        gathered.closed |= gathered.open.is_none() && gathered.complete.is_empty();
        gathered.closed
    }

    /// The oldest complete batch.
    pub fn take_complete(&self) -> Option<Batch> {
        lock(&self.gathered).complete.pop_front()
    }

    /// The open batch, unless there are complete ones before it or `take`
    /// declines it by its times.
    pub fn take_open(&self, take: impl FnOnce(Times) -> bool) -> Option<Batch> {
        let mut gathered = lock(&self.gathered);
        let times = gathered.open.as_ref()?.times;
        if !gathered.complete.is_empty() || !take(times) {
            return None;
        }
        gathered.open.take()
    }

    /// The times of the open batch.
    pub fn open_times(&self) -> Option<Times> {
        lock(&self.gathered).open.as_ref().map(|open| open.times)
    }
}

/// Locks; the data behind these locks is whole between any two statements that
/// could panic, so a poisoned lock is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
