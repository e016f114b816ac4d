//! The batches that have a sequence and have not ended: kept for retries, in
//! order.

use std::collections::VecDeque;

use bytes::Bytes;
use ringbolt_wire::message::ErrorResponse;
use ringbolt_wire::{BatchBuilder, BatchView, Epoch, PartitionId, ProducerId, Sequence};

/// Names a batch from its first attempt to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchId(pub u64);

/// Who produces, in which incarnation, to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub partition: PartitionId,
    pub producer: ProducerId,
    pub epoch: Epoch,
}

#[derive(Debug)]
pub(super) struct Entry<T> {
    /// Of the first record.
    pub sequence: u64,
    pub count: u32,
    pub batch: Bytes,
    /// `None`: ended, and only its place is still needed.
    pub tag: Option<T>,
    pub deadline_us: u64,
    /// When it was sent on the present connection, if it is unanswered there.
    pub sent_us: Option<u64>,
    /// An attempt on an earlier connection has no answer.
    pub maybe_written: bool,
    /// When it got its sequence, late attempts of a given-up batch could still
    /// take that: finding the sequence in the log proves nothing.
    pub contested: bool,
    /// Its sequence stands in the log, under another batch.
    pub displaced: bool,
    pub last_refusal: Option<Box<ErrorResponse>>,
}

impl<T> Entry<T> {
    pub fn new(builder: BatchBuilder, identity: Identity, sequence: u64, deadline_us: u64, tag: T) -> Self {
        let count = builder.count();
        Entry {
            sequence,
            count,
            batch: finish(builder, identity, sequence),
            tag: Some(tag),
            deadline_us,
            sent_us: None,
            maybe_written: false,
            contested: false,
            displaced: false,
            last_refusal: None,
        }
    }

    /// Puts the batch under another incarnation.
    pub fn set_epoch(&mut self, identity: Identity) {
        self.stamp(identity, self.sequence);
    }

    /// Gives the batch another sequence and incarnation. Only for a batch of
    /// which no attempt was or can still be written.
    pub fn restamp(&mut self, identity: Identity, sequence: u64, contested: bool) {
        self.stamp(identity, sequence);
        self.maybe_written = false;
        self.displaced = false;
        self.contested = contested;
    }

    fn stamp(&mut self, identity: Identity, sequence: u64) {
        let view = BatchView::parse(&self.batch, u32::MAX).expect("built here, and only ever read since");
        let mut builder = BatchBuilder::with_buffer(Vec::with_capacity(self.batch.len()), &[]);
        for (_, record) in view.records() {
            let headers: Vec<_> = record.headers().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
            builder.push(record.timestamp_us, record.key, record.value, &headers);
        }
        self.batch = finish(builder, identity, sequence);
        self.sequence = sequence;
    }

    pub fn end_sequence(&self) -> u64 {
        self.sequence + u64::from(self.count)
    }

    pub fn may_be_written(&self) -> bool {
        self.maybe_written || self.sent_us.is_some()
    }
}

fn finish(builder: BatchBuilder, identity: Identity, sequence: u64) -> Bytes {
    let Identity { partition, producer, epoch } = identity;
    Bytes::from(builder.finish(partition, producer, epoch, Sequence(sequence)))
}

/// Entries by [`BatchId`]: dense, so that finding one is an index.
#[derive(Debug)]
pub(super) struct Window<T> {
    entries: VecDeque<Entry<T>>,
    first_id: u64,
    /// Entries from this index on are to be sent on the present connection.
    unsent_from: usize,
    /// Entries whose `sent_us` is set.
    pub in_flight: usize,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Window { entries: VecDeque::new(), first_id: 0, unsent_from: 0, in_flight: 0 }
    }
}

impl<T> Window<T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn push(&mut self, entry: Entry<T>) {
        self.entries.push_back(entry);
    }

    /// The entry of an answer, if it is the first answer to its attempt; it is
    /// no longer in flight then.
    pub fn answered(&mut self, id: BatchId) -> Option<&mut Entry<T>> {
        let index = usize::try_from(id.0.checked_sub(self.first_id)?).ok()?;
        let entry = self.entries.get_mut(index)?;
        entry.sent_us.take()?;
        self.in_flight -= 1;
        Some(entry)
    }

    /// Marks the next entry to be sent as sent, and returns it.
    pub fn send_next(&mut self, now_us: u64) -> Option<(BatchId, &mut Entry<T>)> {
        while self.entries.get(self.unsent_from)?.tag.is_none() {
            self.unsent_from += 1;
        }
        let id = BatchId(self.first_id + self.unsent_from as u64);
        let entry = &mut self.entries[self.unsent_from];
        self.unsent_from += 1;
        self.in_flight += 1;
        entry.sent_us = Some(now_us);
        Some((id, entry))
    }

    /// Whether an entry waits to be sent.
    pub fn has_unsent(&self) -> bool {
        self.entries.iter().skip(self.unsent_from).any(|e| e.tag.is_some())
    }

    /// All are to be sent again, from the first; nothing is in flight.
    pub fn rewind(&mut self) {
        assert_eq!(self.in_flight, 0, "what is in flight must not be sent again");
        self.unsent_from = 0;
        self.trim();
    }

    /// The connection is gone: what was in flight may have been written.
    pub fn disconnected(&mut self) {
        for entry in self.entries.iter_mut().take(self.unsent_from) {
            if entry.sent_us.take().is_some() {
                entry.maybe_written = true;
            }
        }
        self.in_flight = 0;
        self.rewind();
    }

    /// Drops entries at the front that have ended and await no answer.
    pub fn trim(&mut self) {
        while self.entries.front().is_some_and(|e| e.tag.is_none() && e.sent_us.is_none()) {
            self.entries.pop_front();
            self.first_id += 1;
            self.unsent_from = self.unsent_from.saturating_sub(1);
        }
    }

    /// Entries that have not ended, in order.
    pub fn live(&mut self) -> impl Iterator<Item = &mut Entry<T>> {
        self.entries.iter_mut().filter(|e| e.tag.is_some())
    }

    /// The first entry that has not ended.
    pub fn first_live(&self) -> Option<&Entry<T>> {
        self.entries.iter().find(|e| e.tag.is_some())
    }

    /// When the oldest entry in flight was sent.
    pub fn oldest_sent_us(&self) -> Option<u64> {
        self.entries.iter().take(self.unsent_from).find_map(|e| e.sent_us)
    }
}
