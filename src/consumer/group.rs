//! A consumer group at one shard: its consumers, and its partitions there.

use std::collections::{BTreeSet, VecDeque};

use ringbolt_wire::ConsumerId;
use ringbolt_wire::message::{Credit, GroupInfo, GroupMode};
use slab::Slab;

use super::part::Part;
use crate::hash::ByChoice;
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consumer {
    /// Who.
    pub id: ConsumerId,
    link: Link,
    /// What it may be sent.
    pub credit: Credit,
    /// Bytes that its last record went beyond its credit: taken off what it is given.
    pub debt: u64,
    /// It has not read what it was sent: there is no room for more.
    pub paused: bool,
    /// For how long it has them, in ms.
    pub lease_ms: u32,
    /// How many it has.
    pub leased: usize,
    held: BTreeSet<u32>,
    /// It stands in the group's line.
    in_line: bool,
}

impl Consumer {
    /// How it gets records.
    #[inline]
    pub fn link(&self) -> Link {
        self.link
    }

    /// Partitions that it has for itself, as the numbers of parts.
    pub fn held(&self) -> &BTreeSet<u32> {
        &self.held
    }

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
        self.link != Link::None && self.has_credit() && !self.paused
    }

    /// Whether it has credit left.
    #[inline]
    pub fn has_credit(&self) -> bool {
        self.credit.records > 0 && self.credit.bytes > 0
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
    by_id: ByChoice<ConsumerId, u32>,
    /// Of an exclusive group, those that are linked: how many partitions each has, and which
    /// it is.
    linked: BTreeSet<(usize, u32)>,
    /// Parts that somebody has for itself.
    held: usize,
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
            by_id: ByChoice::default(),
            linked: BTreeSet::new(),
            held: 0,
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
            paused: false,
            lease_ms: self.info.config.lease_ms,
            leased: 0,
            held: BTreeSet::new(),
            in_line: false,
        }) as u32;
        self.by_id.insert(id, number);
        number
    }

    /// From here on a consumer gets records so. Returns how it did before.
    pub fn set_link(&mut self, number: u32, link: Link) -> Link {
        let consumer = &mut self.consumers[number as usize];
        let before = std::mem::replace(&mut consumer.link, link);
        if self.info.config.mode == GroupMode::Exclusive {
            let entry = (consumer.held.len(), number);
            match link {
                Link::None => self.linked.remove(&entry),
                _ => self.linked.insert(entry),
            };
        }
        before
    }

    /// Forgets a consumer that has no leases, no partition for itself, and gets no records.
    /// Returns whether it did.
    pub fn forget_if_gone(&mut self, number: u32) -> bool {
        let Some(consumer) = self.consumers.get(number as usize) else { return false };
        let is_gone = consumer.link == Link::None && consumer.leased == 0 && consumer.held.is_empty();
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

    /// Who has the partition of a part for itself, or gets it now: of those who are linked the
    /// one with the fewest.
    pub fn hold(&mut self, number: u32, part: &mut Part) -> Option<u32> {
        assert_eq!(self.info.config.mode, GroupMode::Exclusive);
        if part.active.is_none() {
            part.active = self.linked.first().map(|(_, holder)| *holder);
            if let Some(holder) = part.active {
                self.held += 1;
                self.change_held(holder, |held| held.insert(number));
            }
        }
        part.active
    }

    /// Nobody has the partition of a part for itself any more.
    pub fn let_go(&mut self, number: u32, part: &mut Part) {
        if let Some(holder) = part.active.take() {
            self.held -= 1;
            self.change_held(holder, |held| held.remove(&number));
        }
    }

    /// Parts that a consumer has for itself, and those that nobody has: it might get them.
    pub fn held_or_free(&self, number: u32, parts: &Slab<Part>) -> Vec<u32> {
        if self.held == self.parts.len() {
            return self.consumer(number).held.iter().copied().collect();
        }
        let may_get = |part: &&u32| parts[**part as usize].active.is_none_or(|active| active == number);
        self.parts.iter().filter(may_get).copied().collect()
    }

    fn change_held(&mut self, number: u32, change: impl FnOnce(&mut BTreeSet<u32>) -> bool) {
        let consumer = &mut self.consumers[number as usize];
        let before = consumer.held.len();
        assert!(change(&mut consumer.held), "who has a partition is known twice");
        if self.linked.remove(&(before, number)) {
            self.linked.insert((consumer.held.len(), number));
        }
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::message::GroupConfig;
    use ringbolt_wire::{GroupId, PartitionId, TopicId};

    use super::*;
    use crate::consumer::GroupKey;

    #[test]
    fn partitions_go_to_those_who_are_there_and_have_the_fewest() {
        let topic = TopicId(1);
        let config = GroupConfig { mode: GroupMode::Exclusive, ..GroupConfig::default() };
        let (id, name, dead_letter) = (GroupId(1), "g".to_owned(), TopicId(0));
        let mut group = Group::new(GroupInfo { id, name, topic, dead_letter, config }, false);
        let part = |partition| {
            let key = GroupKey { group: id, partition };
            Part::new(key, PartitionId::new(topic, partition), partition, (0, 0))
        };
        let mut parts: Vec<Part> = (0..7).map(part).collect();
        assert_eq!(group.hold(0, &mut parts[0]), None, "nobody is there");
        let to = |session| ReplyTo { core: 0, session, correlation: 0 };
        let all: Vec<u32> = (1..=3).map(|who| group.number_or_insert(ConsumerId(who))).collect();
        for (session, number) in (0..).zip(&all) {
            group.set_link(*number, Link::Attached(to(session)));
        }
        (0..).zip(&mut parts).for_each(|(number, part)| assert!(group.hold(number, part).is_some()));
        let holds = |group: &Group| all.iter().map(|n| group.consumer(*n).held().len()).collect::<Vec<_>>();
        assert_eq!(holds(&group), [3, 2, 2]);
        // One goes and comes back: it has the fewest then.
        group.set_link(all[0], Link::None);
        for (number, part) in (0..).zip(&mut parts).filter(|(_, part)| part.active == Some(all[0])) {
            group.let_go(number, part);
            group.hold(number, part);
        }
        assert_eq!(holds(&group), [0, 4, 3]);
        group.set_link(all[0], Link::Attached(to(9)));
        let (number, part) = (0..).zip(&mut parts).find(|(_, part)| part.active == Some(all[1])).unwrap();
        group.let_go(number, part);
        assert_eq!(group.hold(number, part), Some(all[0]));
        assert_eq!(holds(&group), [1, 3, 3]);
    }
}
