//! Where records wait for the application: filled by the task, which also takes those
//! out again whose leases are lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ringbolt_wire::message::LeaseRange;
use tokio::sync::Notify;

use crate::error::Error;
use crate::record::ConsumedRecord;

/// A record as it was delivered.
#[derive(Debug)]
pub(super) struct Received {
    pub record: ConsumedRecord,
    pub acquired: u32,
    pub failed: u32,
    pub first_delivery: Option<SystemTime>,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Received>,
    /// By partition: after which offset nothing is to be handed out, and how many have
    /// said so and were not heard by the task.
    barred: BTreeMap<u32, (u64, u32)>,
    /// Why there will be no more.
    ended: Option<Error>,
    /// The connection is gone: whether their leases are is not known.
    paused: bool,
}

impl Waiting {
    fn next(&mut self) -> Option<Received> {
        if self.paused {
            return None;
        }
        let may_come = |received: &Received| {
            let barred = self.barred.get(&received.record.partition);
            barred.is_none_or(|&(from, _)| received.record.offset <= from)
        };
        let index = self.records.iter().position(may_come)?;
        self.records.remove(index)
    }
}

impl Inbox {
    /// The next record. Dropping the future loses nothing.
    pub async fn take(&self) -> Result<Received, Error> {
        loop {
            let news = self.news.notified();
            if let Some(result) = self.try_take() {
                return result;
            }
            news.await;
        }
    }

    /// The next record if there is one, or why there will be none.
    pub fn try_take(&self) -> Option<Result<Received, Error>> {
        let mut waiting = self.lock();
        let Some(record) = waiting.next() else { return waiting.ended.clone().map(Err) };
        if !waiting.records.is_empty() {
            // One notice may stand for many records.
            self.news.notify_one();
        }
        Some(Ok(record))
    }

    /// A record of an exclusive group goes back: what comes after it must not overtake
    /// it, from here on, although the task has not heard of it.
    pub fn bar(&self, partition: u32, offset: u64) {
        let mut waiting = self.lock();
        let (from, count) = waiting.barred.entry(partition).or_insert((offset, 0));
        *from = offset.min(*from);
        *count += 1;
    }

    /// The task has heard of one that was barred: it has taken out what was to be.
    pub fn unbar(&self, partition: u32) {
        let mut waiting = self.lock();
        if let Some((_, count)) = waiting.barred.get_mut(&partition) {
            *count -= 1;
            if *count == 0 {
                waiting.barred.remove(&partition);
                self.news.notify_one();
            }
        }
    }

    /// Nothing is handed out until it is known again what is leased.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// What is left is leased.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.news.notify_one();
    }

    pub fn put(&self, records: Vec<Received>) {
        self.lock().records.extend(records);
        self.news.notify_one();
    }

    /// Takes those of this lease out.
    pub fn remove(&self, lost: &LeaseRange) {
        let is_lost = |received: &Received| {
            let record = &received.record;
            record.partition == lost.partition
                && received.acquired == lost.acquired
                && (lost.base_offset.0..lost.end().0).contains(&record.offset)
        };
        self.lock().records.retain(|received| !is_lost(received));
    }

    /// No more will come, for the first reason that is given.
    pub fn end(&self, why: Error) {
        self.lock().ended.get_or_insert(why);
        self.news.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whole between any two statements that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
