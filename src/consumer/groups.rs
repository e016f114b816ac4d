//! The consumer groups of one shard: where each is found, and what is due when.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use ringbolt_wire::message::GroupMode;
use ringbolt_wire::{GroupId, PartitionId, TopicId};
use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;
use smallvec::SmallVec;

use super::acks::AckState;
use super::change_log::ChangeLog;
use super::changes::GroupKey;
use super::group::{Group, Link};
use super::part::Part;
use super::wheel::{Entry, Wheel};
use crate::shard::event::ReplyTo;

/// Bytes that an open record takes, at most: its lease and the timer of it, how it went
/// with it before, its place among those of its key, and the completed range in front
/// of it. Most take a quarter of that.
pub const OPEN_COST: usize = 256;

/// One that waits for its own time counts for so many in a key-ordered group: its place among
/// those of its key takes up to 140 bytes while the tables of keys grow, and 45 to 90 otherwise.
pub const KEYED_DELAYED: usize = 4;

/// So many records may be open in each part, however many are in others.
pub const OWN_OPEN: usize = 64;

/// Timers that are looked through for such that are of no more use, at least.
const MIN_TIMERS: usize = 1024;

/// A consumer of a group: the group, and its number there.
pub type ConsumerRef = (GroupId, u32);

/// See the module.
#[derive(Default, Debug)]
pub struct Groups {
    /// By number of the group.
    pub by_id: FxHashMap<GroupId, Group>,
    /// All groups' parts.
    pub parts: Slab<Part>,
    /// Changes that wait for a commit.
    pub changes: ChangeLog,
    /// Records that wait for a time of their own, by the wall clock.
    pub dated: Wheel,
    /// How many of them are of key-ordered groups.
    dated_keyed: usize,
    /// Records that wait after a delivery, by the monotonic clock.
    pub backing_off: Wheel,
    /// Parts of a partition.
    of_partition: FxHashMap<PartitionId, SmallVec<[u32; 2]>>,
    part_of: FxHashMap<GroupKey, u32>,
    /// The part that an owner in a wheel or timer is; gone after a reset.
    part_of_owner: FxHashMap<u32, u32>,
    last_owner: u32,
    dead_letter_topics: FxHashSet<TopicId>,
    /// Leases that were given at once: when the first of them may run out, whose, and
    /// which records.
    timers: BinaryHeap<Reverse<(u64, u32, u64, u64)>>,
    /// When there are so many, those of records that nobody has any more are dropped.
    most_timers: usize,
    /// Records that are open in all parts.
    open: usize,
    /// Completed ranges above the floors of all parts.
    ranges: usize,
    /// Owners of parts that wait until fewer are.
    crowded: BTreeSet<u32>,
    /// Consumers that wait for an answer, by deadline.
    pub waits: BTreeSet<(u64, GroupId, u32)>,
    /// Consumers by where they are sent records to.
    by_origin: FxHashMap<ReplyTo, ConsumerRef>,
    by_session: FxHashMap<(u16, u64), SmallVec<[ReplyTo; 2]>>,
    /// Groups that may have something to send.
    line: VecDeque<GroupId>,
    /// Parts that have records for the dead-letter topic.
    pub condemned: BTreeSet<u32>,
    /// Consumers of all groups.
    pub consumers: usize,
    /// Owners of parts that are at the bound of records that wait for their time.
    pub at_delayed_bound: BTreeSet<u32>,
    /// When to look for records whose own time has come (monotonic, µs).
    pub dated_due: Option<u64>,
    /// No lease runs out before this (monotonic, µs), as its consumer could not be heard;
    /// `u64::MAX` as long as it cannot.
    pub expire_from_us: u64,
    /// Something can go on in the next turn.
    pub goes_on: bool,
    /// When this turn began (monotonic, µs), and how much may still be sent in it.
    pub turn: (u64, usize),
    /// Records that settle requests of this turn spoke of.
    pub settled: u64,
    /// Owners of parts for which memory was short, and when to try again (monotonic,
    /// µs).
    pub short: BTreeSet<u32>,
    /// See `short`.
    pub retry_us: Option<u64>,
    /// Owners of parts with a damaged record, and when to try to read it again
    /// (monotonic, µs).
    pub damaged: Vec<u32>,
    /// See `damaged`.
    pub damaged_retry_us: Option<u64>,
}

impl Groups {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// A topic holds dead letters, whether or not a group is left whose they are.
    pub fn holds_dead_letters(&mut self, topic: TopicId) {
        self.dead_letter_topics.insert(topic);
    }

    /// A topic is deleted.
    pub fn forget_topic(&mut self, topic: TopicId) {
        self.dead_letter_topics.remove(&topic);
    }

    /// Adds a group; its topic is known.
    pub fn insert(&mut self, group: Group) {
        let mut group = group;
        group.of_dead_letters |= self.dead_letter_topics.contains(&group.info.topic);
        self.by_id.insert(group.info.id, group);
    }

    /// Removes a group. Returns it, for those who must be told.
    pub fn remove(&mut self, id: GroupId) -> Option<Group> {
        let group = self.by_id.remove(&id)?;
        let is_keyed = group.info.config.mode == GroupMode::KeyOrdered;
        let (mut dated, mut backing_off) = (0, 0);
        for number in &group.parts {
            let part = self.parts.remove(*number as usize);
            self.open -= part.counted;
            self.ranges -= part.ranges;
            self.crowded.remove(&part.owner);
            self.at_delayed_bound.remove(&part.owner);
            (dated, backing_off) = (dated + part.dated, backing_off + part.backing_off.len());
            self.part_of.remove(&part.key);
            self.part_of_owner.remove(&part.owner);
            self.condemned.remove(number);
            if let Some(of_partition) = self.of_partition.get_mut(&part.partition) {
                of_partition.retain(|known| known != number);
                if of_partition.is_empty() {
                    self.of_partition.remove(&part.partition);
                }
            }
        }
        self.lose_waits(dated, backing_off, is_keyed);
        for (number, consumer) in group.consumers() {
            self.consumers -= 1;
            if let Some(to) = consumer.link().to() {
                self.unlink(to);
            }
            if let Link::Waiting(_, until_us) = consumer.link() {
                self.waits.remove(&(until_us, id, number));
            }
        }
        if self.by_id.is_empty() {
            // Nothing looks at them any more.
            self.timers.clear();
            (self.dated, self.backing_off) = (Wheel::default(), Wheel::default());
            self.short.clear();
            self.damaged.clear();
            self.at_delayed_bound.clear();
            (self.dated_due, self.retry_us, self.damaged_retry_us) = (None, None, None);
            self.goes_on = false;
        }
        Some(group)
    }

    /// Groups of a topic.
    pub fn of_topic(&self, topic: TopicId) -> Vec<GroupId> {
        let of_it = self.by_id.values().filter(|group| group.info.topic == topic);
        let mut ids: Vec<GroupId> = of_it.map(|group| group.info.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Adds a group's part, which stands where `acks` says.
    pub fn add_part(&mut self, key: GroupKey, partition: PartitionId, acks: &AckState) -> u32 {
        let owner = self.new_owner();
        let stands = (acks.floor(), acks.delivered_end());
        let mut part = Part::new(key, partition, owner, stands);
        part.ranges = acks.completed().len();
        self.ranges += part.ranges;
        let number = self.parts.insert(part) as u32;
        self.part_of.insert(key, number);
        self.part_of_owner.insert(owner, number);
        self.of_partition.entry(partition).or_default().push(number);
        let group = self.by_id.get_mut(&key.group).expect("a part is added to its group");
        group.parts.push(number);
        number
    }

    /// Begins a part anew, from `floor` on: nothing that is known of it counts.
    pub fn restart_part(&mut self, number: u32, floor: u64) {
        let owner = self.new_owner();
        let part = &mut self.parts[number as usize];
        self.part_of_owner.remove(&part.owner);
        self.part_of_owner.insert(owner, number);
        self.crowded.remove(&part.owner);
        self.at_delayed_bound.remove(&part.owner);
        self.open -= part.counted;
        self.ranges -= part.ranges;
        let (dated, backing_off) = (part.dated, part.backing_off.len());
        part.restart(owner, floor);
        self.condemned.remove(&number);
        self.lose_waits(dated, backing_off, self.is_keyed(number));
    }

    /// So many records that waited are those of a part that is gone.
    fn lose_waits(&mut self, dated: usize, backing_off: usize, is_keyed: bool) {
        if is_keyed {
            self.dated_keyed -= dated;
        }
        let known = &self.part_of_owner;
        self.dated.lose(dated, |owner| known.contains_key(&owner));
        self.backing_off.lose(backing_off, |owner| known.contains_key(&owner));
    }

    /// How many more records may wait for their own time, where so many may in all. Of
    /// key-ordered groups they [count](KEYED_DELAYED) for more, and so does a completed range:
    /// one before each open record is counted there. Some may wait whatever there is, lest
    /// nothing goes on.
    pub fn room_to_delay(&mut self, most: usize) -> usize {
        let known = &self.part_of_owner;
        let beside = self.dated_keyed * (KEYED_DELAYED - 1) + self.ranges.saturating_sub(self.open);
        let most = most.saturating_sub(beside).max(most / 16).max(1);
        self.dated.room(most, |owner| known.contains_key(&owner))
    }

    /// Of these parts retention has taken records: those that waited do no longer.
    pub fn lose_retained(&mut self, numbers: &[u32]) {
        let mut starts: FxHashMap<u32, (u32, u64)> = FxHashMap::default();
        for &number in numbers {
            let is_keyed = self.is_keyed(number);
            let part = &mut self.parts[number as usize];
            self.dated_keyed -= if is_keyed { part.dated } else { 0 };
            part.dated = 0;
            starts.insert(part.owner, (number, part.gone_before));
        }
        let (parts, known) = (&mut self.parts, &self.part_of_owner);
        let mut keep = |entry: &Entry, counts: bool| match starts.get(&entry.owner) {
            Some((number, start)) => {
                let stays = entry.offset >= *start;
                parts[*number as usize].dated += usize::from(stays && counts);
                stays
            }
            None => known.contains_key(&entry.owner),
        };
        self.dated.retain(|entry| keep(entry, true));
        self.backing_off.retain(|entry| keep(entry, false));
        for &number in numbers {
            self.dated_keyed += if self.is_keyed(number) { self.parts[number as usize].dated } else { 0 };
        }
    }

    /// A record waits for its own time.
    pub fn delay(&mut self, number: u32, offset: u64, due_us: u64, wall_us: u64) {
        let part = &mut self.parts[number as usize];
        part.dated += 1;
        self.dated.add(Entry { due_us, offset, owner: part.owner }, wall_us);
        self.dated_keyed += usize::from(self.is_keyed(number));
    }

    /// Its time has come.
    pub fn delayed_no_longer(&mut self, number: u32, offset: u64) {
        let part = &mut self.parts[number as usize];
        part.dated -= 1;
        part.dated_held = part.dated_held.filter(|held| *held != offset);
        self.dated_keyed -= usize::from(self.is_keyed(number));
    }

    fn is_keyed(&self, number: u32) -> bool {
        let group = self.by_id.get(&self.parts[number as usize].key.group);
        group.is_some_and(|group| group.info.config.mode == GroupMode::KeyOrdered)
    }

    fn new_owner(&mut self) -> u32 {
        loop {
            self.last_owner = self.last_owner.wrapping_add(1);
            if !self.part_of_owner.contains_key(&self.last_owner) {
                return self.last_owner;
            }
        }
    }

    /// The part of a group in a partition.
    #[inline]
    pub fn part_of(&self, key: GroupKey) -> Option<u32> {
        self.part_of.get(&key).copied()
    }

    /// The parts of a partition.
    #[inline]
    pub fn parts_of(&self, partition: PartitionId) -> SmallVec<[u32; 2]> {
        self.of_partition.get(&partition).cloned().unwrap_or_default()
    }

    /// A part may have something to deliver.
    pub fn stir(&mut self, number: u32) {
        let part = &mut self.parts[number as usize];
        let id = part.key.group;
        let Some(group) = self.by_id.get_mut(&id) else { return };
        group.enqueue(number, part);
        self.line_up(id);
    }

    /// A group may have something to send.
    pub fn line_up(&mut self, id: GroupId) {
        if let Some(group) = self.by_id.get_mut(&id).filter(|group| !group.in_line) {
            group.in_line = true;
            self.line.push_back(id);
        }
    }

    /// The group that is to be looked at next; it leaves the line.
    pub fn next_in_line(&mut self) -> Option<GroupId> {
        loop {
            let id = self.line.pop_front()?;
            if let Some(group) = self.by_id.get_mut(&id) {
                group.in_line = false;
                return Some(id);
            }
        }
    }

    /// Whether some group may have something to send.
    pub fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Records to a consumer go there.
    pub fn link(&mut self, to: ReplyTo, consumer: ConsumerRef) {
        self.by_origin.insert(to, consumer);
        self.by_session.entry((to.core, to.session)).or_default().push(to);
    }

    /// Nothing more goes there.
    pub fn unlink(&mut self, to: ReplyTo) {
        self.by_origin.remove(&to);
        if let Some(of_session) = self.by_session.get_mut(&(to.core, to.session)) {
            of_session.retain(|known| *known != to);
            if of_session.is_empty() {
                self.by_session.remove(&(to.core, to.session));
            }
        }
    }

    /// The consumer that is sent records there.
    pub fn at(&self, to: ReplyTo) -> Option<ConsumerRef> {
        self.by_origin.get(&to).copied()
    }

    /// Where consumers of a session are sent records.
    pub fn of_session(&self, core: u16, session: u64) -> SmallVec<[ReplyTo; 2]> {
        self.by_session.get(&(core, session)).cloned().unwrap_or_default()
    }

    /// Leases of these records may run out then.
    pub fn set_timer(&mut self, owner: u32, records: (u64, u64), at_us: u64) {
        if self.timers.len() >= self.most_timers.max(MIN_TIMERS) {
            self.drop_timers();
        }
        self.timers.push(Reverse((at_us, owner, records.0, records.1)));
    }

    /// Drops timers of records that nobody has any more: most leases end long before
    /// they run out. Half of the timers that there are then come before the next time.
    fn drop_timers(&mut self) {
        let mut timers: Vec<_> = std::mem::take(&mut self.timers).into_vec();
        // Of those for the same records the first one is enough.
        timers.sort_unstable_by_key(|Reverse((at_us, owner, start, end))| (*owner, *start, *end, *at_us));
        timers.dedup_by_key(|Reverse((_, owner, start, end))| (*owner, *start, *end));
        timers.retain(|Reverse((_, owner, start, end))| {
            let part = self.part_of_owner.get(owner).map(|number| &self.parts[*number as usize]);
            part.is_some_and(|part| part.has_lease_in(*start, *end))
        });
        self.most_timers = 2 * timers.len();
        self.timers = BinaryHeap::from(timers);
    }

    /// How many more open records a part may have, where all parts together may have
    /// `most`.
    pub fn room(&self, number: u32, most: usize) -> usize {
        let own = OWN_OPEN.saturating_sub(self.parts[number as usize].open());
        most.saturating_sub(self.open).max(own)
    }

    /// Something has become of records of a part: others may be open now. Of those that
    /// came back it is remembered how it went; in an exclusive group they are not open until
    /// their turn comes again, and take memory all the same.
    #[inline]
    pub fn count_open(&mut self, number: u32, acks: &AckState) {
        let part = &mut self.parts[number as usize];
        part.remembered = acks.remembered();
        let ranges = acks.completed().len();
        self.ranges = self.ranges + ranges - std::mem::replace(&mut part.ranges, ranges);
        let open = part.takes_memory();
        self.open = self.open + open - std::mem::replace(&mut part.counted, open);
    }

    /// Records that are open in all parts.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Says whether a part waits for room.
    pub fn crowd(&mut self, number: u32, waits: bool) {
        let owner = self.parts[number as usize].owner;
        if waits {
            self.crowded.insert(owner);
        } else if !self.crowded.is_empty() {
            self.crowded.remove(&owner);
        }
    }

    /// Whether a part waits for room.
    pub fn is_crowded(&self, part: &Part) -> bool {
        self.crowded.contains(&part.owner)
    }

    /// Parts that waited for room may go on, if there is some: not for a single record.
    pub fn relieve(&mut self, most: usize) {
        debug_assert!(self.parts.len() > 100 || self.open == self.sum_open(), "{} are open", self.open);
        if self.crowded.is_empty() || self.open + most / 16 > most {
            return;
        }
        for owner in std::mem::take(&mut self.crowded) {
            if let Some(number) = self.part_of_owner(owner) {
                self.stir(number);
            }
        }
    }

    fn sum_open(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.takes_memory()).sum()
    }

    /// Takes a timer that is due: the part, and the records.
    pub fn pop_timer(&mut self, now_us: u64) -> Option<(u32, (u64, u64))> {
        loop {
            self.timers.peek().filter(|first| first.0.0 <= now_us)?;
            let Reverse((_, owner, start, end)) = self.timers.pop()?;
            if let Some(part) = self.part_of_owner.get(&owner) {
                return Some((*part, (start, end)));
            }
        }
    }

    /// The part that has this owner now.
    pub fn part_of_owner(&self, owner: u32) -> Option<u32> {
        self.part_of_owner.get(&owner).copied()
    }

    /// Takes a record whose own time has come: the part, and the record.
    pub fn pop_dated(&mut self, wall_us: u64, moves: &mut usize) -> Option<(u32, u64)> {
        let known = &self.part_of_owner;
        let Entry { offset, owner, .. } =
            self.dated.pop_due(wall_us, moves, |owner| known.contains_key(&owner))?;
        Some((known[&owner], offset))
    }

    /// Takes a record whose wait after a delivery is over: the part, and the record.
    pub fn pop_backed_off(&mut self, now_us: u64, moves: &mut usize) -> Option<(u32, u64)> {
        let known = &self.part_of_owner;
        let Entry { offset, owner, .. } =
            self.backing_off.pop_due(now_us, moves, |owner| known.contains_key(&owner))?;
        Some((known[&owner], offset))
    }

    /// When something is due by the monotonic clock, µs.
    pub fn next_deadline(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|first| first.0.0.max(self.expire_from_us));
        let timer = timer.filter(|_| self.expire_from_us < u64::MAX);
        let wait = self.waits.first().map(|wait| wait.0);
        let now = self.goes_on.then_some(0);
        let others = [self.backing_off.next_us(), self.dated_due, now];
        let retries = [self.retry_us, self.damaged_retry_us];
        [timer, wait].into_iter().chain(retries).chain(others).flatten().min()
    }

    /// Records leased in all parts.
    pub fn leased(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.leased()).sum()
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::message::{GroupConfig, GroupInfo};

    use super::*;
    use crate::consumer::part::Delivered;
    use crate::time::Now;

    fn one_part() -> (Groups, u32) {
        let mut groups = Groups::default();
        let (id, topic) = (GroupId(1), TopicId(1));
        let info = GroupInfo {
            id,
            name: "g".to_owned(),
            topic,
            dead_letter: TopicId(0),
            config: GroupConfig::default(),
        };
        groups.insert(Group::new(info, false));
        let key = GroupKey { group: id, partition: 0 };
        let number = groups.add_part(key, PartitionId::new(topic, 0), &AckState::new(0));
        (groups, number)
    }

    /// A consumer that takes one record after the other, for hours each, and is done with
    /// it at once.
    #[test]
    fn timers_of_records_that_nobody_has_any_more_take_no_memory_for_long() {
        let (mut groups, number) = one_part();
        let owner = groups.parts[number as usize].owner;
        let about = Delivered { acquired: 1, failed: 0, first_delivery_us: 1 };
        // Some are worked on all the time.
        let kept: Vec<u64> = (0..100).map(|i| i * 1_000).collect();
        for offset in 0..100_000 {
            let deadline_us = 1_000_000 + offset;
            if kept.contains(&offset) {
                groups.parts[number as usize].give(offset, &about, 0, deadline_us, Now::default());
            }
            groups.set_timer(owner, (offset, offset + 1), deadline_us);
            assert!(groups.timers.len() <= MIN_TIMERS, "{} timers", groups.timers.len());
        }
        // Nobody's is forgotten, and they come when they are due.
        for &offset in &kept {
            let found = std::iter::from_fn(|| groups.pop_timer(1_000_000 + offset)).last();
            assert_eq!(found, Some((number, (offset, offset + 1))));
        }
    }
}
