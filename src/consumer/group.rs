//! A consumer group at one shard: its consumers, and its partitions there.

use std::collections::VecDeque;

use ringbolt_wire::ConsumerId;
use ringbolt_wire::message::{Credit, GroupInfo, GroupMode};
use rustc_hash::FxHashMap;
use slab::Slab;

use super::part::Part;
use crate::shard::event::ReplyTo;

/// How a consumer gets records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Not now; it has leases.
    None,
    /// They are sent as they come.
    Attached(ReplyTo),
    /// It asked once, and waits until this time (monotonic, µs).
    Waiting(ReplyTo, u64),
}

impl Link {
    /// Where records are sent to.
    pub fn to(&self) -> Option<ReplyTo> {
        match self {
            Link::None => None,
            Link::Attached(to) | Link::Waiting(to, _) => Some(*to),
        }
    }
}

/// A consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// Who.
    pub id: ConsumerId,
    /// How it gets records.
    pub link: Link,
    /// What it may be sent.
    pub credit: Credit,
    /// Bytes that its last record went beyond its credit: taken off what it is given.
    pub debt: u64,
    /// For how long it has them, in ms.
    pub lease_ms: u32,
    /// How many it has.
    pub leased: usize,
    /// Partitions that it has for itself.
    pub holds: usize,
    /// It stands in the group's line.
    in_line: bool,
}

impl Consumer {
    /// Records were sent to it.
    pub fn sent(&mut self, records: u64, bytes: u64) {
        self.leased += records as usize;
        self.credit.records -= records;
        self.debt += bytes.saturating_sub(self.credit.bytes);
        self.credit.bytes = self.credit.bytes.saturating_sub(bytes);
    }

    /// It is given credit on top of what it has.
    pub fn grant(&mut self, credit: Credit) {
        let paid = self.debt.min(credit.bytes);
        self.debt -= paid;
        self.credit.records += credit.records;
        self.credit.bytes += credit.bytes - paid;
    }

    /// Whether something may be sent to it.
    #[inline]
    pub fn takes(&self) -> bool {
        self.link != Link::None && self.credit.records > 0 && self.credit.bytes > 0
    }
}

/// See the module.
#[derive(Debug)]
pub struct Group {
    /// The group.
    pub info: GroupInfo,
    /// Its partitions at this shard, as the numbers of parts.
    pub parts: Vec<u32>,
    /// Whether its topic holds dead letters, which are delivered whatever they say
    /// of times.
    pub of_dead_letters: bool,
    /// It stands in the shard's line of groups that may have something to send.
    pub in_line: bool,
    consumers: Slab<Consumer>,
    by_id: FxHashMap<ConsumerId, u32>,
    /// Consumers that take records, the next one to be sent something first.
    line: VecDeque<u32>,
    /// Parts that may have something to deliver.
    queue: VecDeque<u32>,
}

impl Group {
    /// A group without consumers.
    pub fn new(info: GroupInfo, of_dead_letters: bool) -> Group {
        Group {
            info,
            parts: Vec::new(),
            of_dead_letters,
            in_line: false,
            consumers: Slab::new(),
            by_id: FxHashMap::default(),
            line: VecDeque::new(),
            queue: VecDeque::new(),
        }
    }

    /// The consumers, by number.
    pub fn consumers(&self) -> impl Iterator<Item = (u32, &Consumer)> {
        self.consumers.iter().map(|(number, consumer)| (number as u32, consumer))
    }

    /// The number of a consumer.
    #[inline]
    pub fn number_of(&self, id: ConsumerId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The consumer of this number, if it is known.
    pub fn get(&self, number: u32) -> Option<&Consumer> {
        self.consumers.get(number as usize)
    }

    /// The consumer of this number.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn consumer(&self, number: u32) -> &Consumer {
        &self.consumers[number as usize]
    }

    /// As [`consumer`](Self::consumer).
    #[inline]
    pub fn consumer_mut(&mut self, number: u32) -> &mut Consumer {
        &mut self.consumers[number as usize]
    }

    /// The number of a consumer; it is added if it is not known.
    pub fn number_or_insert(&mut self, id: ConsumerId) -> u32 {
        if let Some(number) = self.number_of(id) {
            return number;
        }
        let number = self.consumers.insert(Consumer {
            id,
            link: Link::None,
            credit: Credit::default(),
            debt: 0,
            lease_ms: self.info.config.lease_ms,
            leased: 0,
            holds: 0,
            in_line: false,
        }) as u32;
        self.by_id.insert(id, number);
        number
    }

    /// Forgets a consumer that has no leases and gets no records. Returns whether it
    /// did.
    pub fn forget_if_gone(&mut self, number: u32) -> bool {
        let Some(consumer) = self.consumers.get(number as usize) else { return false };
        let is_gone = consumer.link == Link::None && consumer.leased == 0;
        if is_gone {
            self.by_id.remove(&consumer.id);
            self.consumers.remove(number as usize);
            self.line.retain(|waiting| *waiting != number);
        }
        is_gone
    }

    /// A consumer may be able to take records: it stands in line.
    pub fn line_up(&mut self, number: u32) {
        let consumer = &mut self.consumers[number as usize];
        if consumer.takes() && !consumer.in_line {
            consumer.in_line = true;
            self.line.push_back(number);
        }
    }

    /// The consumer that is to be sent something next. It goes to the end of the
    /// line.
    pub fn next_in_line(&mut self) -> Option<u32> {
        if !self.has_takers() {
            return None;
        }
        self.line.rotate_left(1);
        self.line.back().copied()
    }

    /// Whether somebody takes records.
    pub fn has_takers(&mut self) -> bool {
        while let Some(&number) = self.line.front() {
            let consumer = &mut self.consumers[number as usize];
            if consumer.takes() {
                return true;
            }
            consumer.in_line = false;
            self.line.pop_front();
        }
        false
    }

    /// A part may have something to deliver.
    #[inline]
    pub fn enqueue(&mut self, number: u32, part: &mut Part) {
        if !part.queued {
            part.queued = true;
            self.queue.push_back(number);
        }
    }

    /// The part to be looked at next; it leaves the queue.
    pub fn dequeue(&mut self) -> Option<u32> {
        self.queue.pop_front()
    }

    /// Whether parts may have something.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// A part that left the queue has more.
    pub fn requeue(&mut self, number: u32, part: &mut Part) {
        part.queued = true;
        self.queue.push_back(number);
    }

    /// Who has the partition for itself, or gets it now: of those who are attached the
    /// one with the fewest.
    pub fn hold(&mut self, part: &mut Part) -> Option<u32> {
        assert_eq!(self.info.config.mode, GroupMode::Exclusive);
        if part.active.is_none() {
            let attached = self.consumers().filter(|(_, consumer)| consumer.link != Link::None);
            part.active = attached.min_by_key(|(_, consumer)| consumer.holds).map(|(number, _)| number);
            part.active.into_iter().for_each(|number| self.consumer_mut(number).holds += 1);
        }
        part.active
    }

    /// Nobody has the partition for itself any more.
    pub fn let_go(&mut self, part: &mut Part) {
        if let Some(number) = part.active.take() {
            self.consumer_mut(number).holds -= 1;
        }
    }
}
