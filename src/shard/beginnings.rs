//! Where groups begin in partitions: when they are created, at start, and when they are set
//! back.
//!
//! A time must be looked up first, which may take reading from disk; who asked waits for
//! all partitions. Of several beginnings of a partition the one that was asked for last
//! counts, and all wait for it.

use ringbolt_wire::message::{GroupStart, OffsetSpec};
use ringbolt_wire::{ErrorCode, GroupId, PartitionId, TopicId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::Shard;
use super::action::Reply;
use super::consume::unknown_group;
use super::event::ReplyTo;
use super::group_log::After;
use super::placement::shard_of;
use crate::buffer::BufferPool;
use crate::catalog::GroupEntry;
use crate::consumer::{AckState, Group, GroupKey};
use crate::time::Now;

/// Stands for the core of a session where the shard asks itself.
pub(super) const INTERNAL: u16 = u16::MAX;

/// What happens when a group has begun everywhere.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    /// Shard 0 is told.
    Applied(u64),
    /// Who asked for it is told.
    Reset(ReplyTo),
}

/// The record of a time is being looked up.
#[derive(Debug)]
struct LookUp {
    /// Its name among the shard's own questions.
    number: u64,
    /// What waits for it, by number.
    waiting: SmallVec<[u64; 1]>,
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Beginnings {
    look_ups: FxHashMap<GroupKey, LookUp>,
    by_number: FxHashMap<u64, GroupKey>,
    /// How many look-ups each waits for, and what happens then.
    waiting: FxHashMap<u64, (usize, Then)>,
    last_number: u64,
}

impl Beginnings {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Something begins, in partitions that are not known yet.
    fn open(&mut self, then: Then) -> u64 {
        let number = self.next_number();
        self.waiting.insert(number, (1, then));
        number
    }

    /// A look-up is over, for these. Returns what happens now.
    fn over(&mut self, waiting: &[u64]) -> SmallVec<[Then; 1]> {
        let mut done = SmallVec::new();
        for number in waiting {
            let Some((left, then)) = self.waiting.get_mut(number) else { continue };
            *left -= 1;
            if *left == 0 {
                done.push(*then);
                self.waiting.remove(number);
            }
        }
        done
    }

    /// Takes out the look-up for a partition, which is over.
    fn take(&mut self, key: GroupKey) -> Option<LookUp> {
        let look_up = self.look_ups.remove(&key)?;
        self.by_number.remove(&look_up.number);
        Some(look_up)
    }
}

fn internal(number: u64) -> ReplyTo {
    ReplyTo { core: INTERNAL, session: 0, correlation: number }
}

impl<P: BufferPool> Shard<P> {
    /// Makes room for a group's partitions of this shard. `version` is that of the change
    /// that has created it; `None` at start.
    pub(super) fn add_group(&mut self, entry: &GroupEntry, version: Option<u64>, now: Now) {
        let info = &entry.info;
        let Some(&partitions) = self.topics.get(&info.topic) else { return };
        self.groups.insert(Group::new(info.clone(), false));
        let number = self.group_log.beginnings.open(version.map_or(Then::Nothing, Then::Applied));
        for partition in self.own_partitions(info.topic, 0..partitions) {
            let key = GroupKey { group: info.id, partition: partition.index };
            match self.state.groups.acks.get(&key) {
                Some(acks) => {
                    let part = self.groups.add_part(key, partition, acks);
                    self.groups.stir(part);
                }
                None => self.begin_part(key, partition, entry.start, number, now),
            }
        }
        self.beginnings_over(&[number]);
    }

    /// Those of a topic's partitions that are placed here.
    fn own_partitions(&self, topic: TopicId, indexes: std::ops::Range<u32>) -> Vec<PartitionId> {
        let all = indexes.map(|index| PartitionId::new(topic, index));
        all.filter(|partition| shard_of(*partition, self.config.shards) == self.config.shard).collect()
    }

    /// A group begins in a partition, anew perhaps: at once, or when it is known where.
    fn begin_part(
        &mut self,
        key: GroupKey,
        partition: PartitionId,
        start: GroupStart,
        number: u64,
        now: Now,
    ) {
        let Some(slot) = self.state.slot(partition) else { return };
        let known = self.state.partition(slot);
        let (first, end) = (known.start_offset.0, known.durable_end.0);
        // What was asked for before would come behind this.
        let before = self.group_log.beginnings.take(key);
        if let Some(before) = &before {
            self.forget_question(internal(before.number));
        }
        let mut waiting = before.map(|before| before.waiting).unwrap_or_default();
        let floor = match start {
            GroupStart::Earliest => first,
            GroupStart::End => end,
            GroupStart::Offset(offset) => offset.0.clamp(first, end),
            GroupStart::Time(time_us) => {
                waiting.push(number);
                if let Some((left, _)) = self.group_log.beginnings.waiting.get_mut(&number) {
                    *left += 1;
                }
                let look_up = LookUp { number: self.group_log.beginnings.next_number(), waiting };
                let question = internal(look_up.number);
                self.group_log.beginnings.by_number.insert(look_up.number, key);
                self.group_log.beginnings.look_ups.insert(key, look_up);
                return self.offsets(question, partition, OffsetSpec::Time(time_us), now);
            }
        };
        self.begin_at(key, partition, floor);
        self.beginnings_over(&waiting);
    }

    fn begin_at(&mut self, key: GroupKey, partition: PartitionId, floor: u64) {
        self.checkpoint_begins_anew(key);
        self.groups.changes.starts(key, floor);
        let acks = self.state.groups.acks.entry(key).or_default();
        let totals = acks.totals;
        *acks = AckState::new(floor);
        acks.totals = totals;
        let mut without = Vec::new();
        let number = match self.groups.part_of(key) {
            Some(number) => {
                let leases = self.groups.parts[number as usize].leases();
                let consumers: Vec<u32> = leases.map(|(_, lease)| lease.consumer).collect();
                if let Some(group) = self.groups.by_id.get_mut(&key.group) {
                    consumers.iter().for_each(|consumer| group.consumer_mut(*consumer).leased -= 1);
                }
                self.groups.restart_part(number, floor);
                without = consumers;
                number
            }
            None => self.groups.add_part(key, partition, acks),
        };
        let part = &mut self.groups.parts[number as usize];
        part.beginning = true;
        let owner = part.owner;
        self.after_changes(After::Begun(owner));
        self.leave_if_gone_all(key.group, without);
    }

    /// The shard has answered itself.
    pub(super) fn hear(&mut self, to: ReplyTo, reply: &Reply) {
        let Some(key) = self.group_log.beginnings.by_number.get(&to.correlation).copied() else { return };
        let Some(look_up) = self.group_log.beginnings.take(key) else { return };
        if let Some(topic) = self.groups.by_id.get(&key.group).map(|group| group.info.topic) {
            let partition = PartitionId::new(topic, key.partition);
            let floor = match reply {
                Reply::Offset(offset) => Some(offset.0),
                // What cannot be read is not passed over.
                _ => self.state.slot(partition).map(|slot| self.state.partition(slot).start_offset.0),
            };
            floor.into_iter().for_each(|floor| self.begin_at(key, partition, floor));
        }
        self.beginnings_over(&look_up.waiting);
    }

    /// Partitions of a group that is gone do not begin.
    pub(super) fn forget_beginnings(&mut self, id: GroupId) {
        let of_it: Vec<GroupKey> =
            self.group_log.beginnings.look_ups.keys().copied().filter(|key| key.group == id).collect();
        for key in of_it {
            if let Some(look_up) = self.group_log.beginnings.take(key) {
                self.forget_question(internal(look_up.number));
                self.beginnings_over(&look_up.waiting);
            }
        }
    }

    fn beginnings_over(&mut self, waiting: &[u64]) {
        for then in self.group_log.beginnings.over(waiting) {
            match then {
                Then::Nothing => {}
                Then::Applied(version) => self.after_changes(After::Applied(version)),
                Then::Reset(to) => self.after_changes(After::Reply(to, Reply::GroupReset)),
            }
        }
    }

    pub(super) fn reset_group(
        &mut self,
        from: ReplyTo,
        id: GroupId,
        to: GroupStart,
        partition: Option<u32>,
        now: Now,
    ) {
        let Some(topic) = self.groups.by_id.get(&id).map(|group| group.info.topic) else {
            return self.reply(from, Reply::Error(unknown_group(id)));
        };
        let partitions = self.topics.get(&topic).copied().unwrap_or(0);
        if let Some(index) = partition.filter(|index| *index >= partitions) {
            return self.refuse(from, ErrorCode::UnknownPartition, format!("partition {index}"));
        }
        if self.stopping {
            return self.refuse(from, ErrorCode::ShuttingDown, "");
        }
        self.make_room_for_changes(now);
        if let Err(error) = self.check_hold() {
            return self.reply(from, Reply::Error(error));
        }
        let wanted = partition.map_or(0..partitions, |index| index..index + 1);
        let number = self.group_log.beginnings.open(Then::Reset(from));
        for partition in self.own_partitions(topic, wanted) {
            let key = GroupKey { group: id, partition: partition.index };
            self.begin_part(key, partition, to, number, now);
        }
        self.beginnings_over(&[number]);
    }
}
