//! Consumer groups as such: creating, deleting, listing, setting back; how far they
//! are, and why nothing is sent.

use std::collections::VecDeque;

use ringbolt_wire::message::{
    ConsumerInfo, CreateGroup, GroupPartition, GroupStart, Hold, OffsetSpec, Progress,
};
use ringbolt_wire::{ErrorCode, GroupId, Offset, PartitionId};

use super::Shard;
use super::action::Reply;
use super::consume::unknown_group;
use super::event::ReplyTo;
use super::group_log::After;
use super::placement::shard_of;
use crate::buffer::BufferPool;
use crate::catalog::{GroupEntry, NotCreated};
use crate::consumer::{AckState, Group, GroupKey, Link, Part};
use crate::limits::MAX_CONSUMERS;
use crate::log::index::Located;
use crate::time::Now;

/// Who waits until groups have begun in some partitions.
#[derive(Debug)]
pub(super) struct Beginning {
    /// Partitions whose beginning is being looked up.
    left: VecDeque<(GroupKey, u64)>,
    /// What happens then.
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    /// Shard 0 is told.
    Applied(u64),
    /// Who asked for it is told.
    Reset(ReplyTo),
}

impl<P: BufferPool> Shard<P> {
    pub(super) fn create_group(&mut self, from: ReplyTo, create: &CreateGroup, now: Now) {
        match self.state.catalog.plan_create_group(create, self.config.shards) {
            Ok(update) => self.change_catalog(from, update, now),
            Err(NotCreated::Found(info)) => self.answer_when_durable(from, Reply::Group(info)),
            Err(NotCreated::Refused(code, text)) => self.refuse_when_durable(from, code, text),
        }
    }

    pub(super) fn delete_group(&mut self, from: ReplyTo, name: &str, now: Now) {
        match self.state.catalog.plan_delete_group(name) {
            Ok(update) => self.change_catalog(from, update, now),
            Err(code) => self.refuse_when_durable(from, code, super::topics::shown("group", name)),
        }
    }

    pub(super) fn list_groups(&mut self, from: ReplyTo) {
        let groups = self.state.catalog.groups().map(|group| group.info.clone()).collect();
        self.answer_when_durable(from, Reply::Groups(groups));
    }

    pub(super) fn look_up_group(&mut self, from: ReplyTo, name: &str) {
        let found = self.state.catalog.group_by_name(name).map(|group| {
            let topic = self.state.catalog.get(group.info.topic).map_or("", |topic| topic.name.as_str());
            Reply::GroupFound(group.info.clone(), topic.to_owned())
        });
        match found {
            Some(reply) => self.answer_when_durable(from, reply),
            None => {
                let text = super::topics::shown("group", name);
                self.refuse_when_durable(from, ErrorCode::UnknownGroup, text);
            }
        }
    }

    /// Makes room for a group's partitions of this shard. `version` is that of the change
    /// that has created it; `None` at start.
    pub(super) fn add_group(&mut self, entry: &GroupEntry, version: Option<u64>, now: Now) {
        let info = &entry.info;
        let Some(&partitions) = self.topics.get(&info.topic) else { return };
        self.groups.insert(Group::new(info.clone(), false));
        let mut left = VecDeque::new();
        for index in 0..partitions {
            let partition = PartitionId::new(info.topic, index);
            if shard_of(partition, self.config.shards) != self.config.shard {
                continue;
            }
            let key = GroupKey { group: info.id, partition: index };
            match self.state.groups.acks.get(&key) {
                Some(acks) => {
                    let number = self.groups.add_part(key, partition, acks);
                    self.groups.stir(number);
                }
                None => left.extend(self.begin_part(key, partition, entry.start)),
            }
        }
        let then = version.map_or(Then::Nothing, Then::Applied);
        self.when_begun(left, then, now);
    }

    /// A group begins in a partition, anew perhaps: at once, or when it is known where.
    fn begin_part(
        &mut self,
        key: GroupKey,
        partition: PartitionId,
        start: GroupStart,
    ) -> Option<(GroupKey, u64)> {
        let slot = self.state.slot(partition)?;
        let known = self.state.partition(slot);
        let (first, end) = (known.start_offset.0, known.durable_end.0);
        let floor = match start {
            GroupStart::Earliest => first,
            GroupStart::End => end,
            GroupStart::Offset(offset) => offset.0.clamp(first, end),
            GroupStart::Time(time_us) => return Some((key, time_us)),
        };
        self.begin_at(key, partition, floor);
        None
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
        self.groups.stir(number);
        without.into_iter().for_each(|consumer| self.leave_if_gone(key.group, consumer));
    }

    /// Lets something happen once the partitions that are left have begun.
    fn when_begun(&mut self, left: VecDeque<(GroupKey, u64)>, then: Then, now: Now) {
        let wanted = left.clone();
        self.group_log.beginnings.push(Beginning { left, then });
        for (key, time_us) in wanted {
            self.look_up_time(key, time_us, now);
        }
        self.finish_beginnings();
    }

    fn look_up_time(&mut self, key: GroupKey, time_us: u64, now: Now) {
        let Some(group) = self.groups.by_id.get(&key.group) else { return };
        let partition = PartitionId::new(group.info.topic, key.partition);
        let from = internal(key);
        self.offsets(from, partition, OffsetSpec::Time(time_us), now);
    }

    /// The shard has answered itself.
    pub(super) fn hear(&mut self, to: ReplyTo, reply: &Reply) {
        let key = GroupKey { group: GroupId(to.session as u32), partition: to.correlation as u32 };
        let Some(topic) = self.groups.by_id.get(&key.group).map(|group| group.info.topic) else { return };
        let partition = PartitionId::new(topic, key.partition);
        let floor = match reply {
            Reply::Offset(offset) => Some(offset.0),
            // What cannot be read is not passed over.
            _ => self.state.slot(partition).map(|slot| self.state.partition(slot).start_offset.0),
        };
        if let Some(floor) = floor {
            self.begin_at(key, partition, floor);
        }
        for beginning in &mut self.group_log.beginnings {
            beginning.left.retain(|(waiting, _)| *waiting != key);
        }
        self.finish_beginnings();
    }

    /// Partitions of a group that is gone do not begin.
    pub(super) fn forget_beginnings(&mut self, id: GroupId) {
        for beginning in &mut self.group_log.beginnings {
            beginning.left.retain(|(key, _)| key.group != id);
        }
        self.finish_beginnings();
    }

    fn finish_beginnings(&mut self) {
        let (done, waiting) =
            std::mem::take(&mut self.group_log.beginnings).into_iter().partition(|b| b.left.is_empty());
        self.group_log.beginnings = waiting;
        let done: Vec<Beginning> = done;
        for Beginning { then, .. } in done {
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
        let Some(group) = self.groups.by_id.get(&id) else {
            return self.reply(from, Reply::Error(unknown_group(id)));
        };
        let topic = group.info.topic;
        if let Some(index) = partition
            && self.topics.get(&topic).is_some_and(|partitions| index >= *partitions)
        {
            return self.refuse(from, ErrorCode::UnknownPartition, format!("partition {index}"));
        }
        let keys = group.parts.iter().map(|number| self.groups.parts[*number as usize].key);
        let wanted = keys.filter(|key| partition.is_none_or(|index| index == key.partition));
        let keys: Vec<GroupKey> = wanted.collect();
        let begin = |key: &GroupKey| self.begin_part(*key, PartitionId::new(topic, key.partition), to);
        let left = keys.iter().filter_map(begin).collect();
        self.when_begun(left, Then::Reset(from), now);
    }

    /// Retention may have taken records that groups had not completed.
    pub(super) fn retain_groups(&mut self) {
        let numbers: Vec<u32> = self.groups.parts.iter().map(|(number, _)| number as u32).collect();
        numbers.into_iter().for_each(|number| self.retain_part(number));
    }

    /// The same for one part.
    pub(super) fn retain_part(&mut self, number: u32) {
        let part = &mut self.groups.parts[number as usize];
        let Some(slot) = self.state.slot(part.partition) else { return };
        let start = self.state.partition(slot).start_offset.0;
        let acks = self.state.groups.acks.entry(part.key).or_default();
        if acks.floor() >= start {
            return;
        }
        let id = part.key.group;
        let gone = part.retained_from(start, acks, &mut self.groups.changes);
        // What is gone was open, perhaps: there is room for others.
        self.groups.stir(number);
        self.groups.goes_on = true;
        for consumer in &gone {
            if let Some(group) = self.groups.by_id.get_mut(&id) {
                group.consumer_mut(*consumer).leased -= 1;
            }
        }
        gone.into_iter().for_each(|consumer| self.leave_if_gone(id, consumer));
    }

    /// A group is gone: who is attached to it is told.
    pub(super) fn remove_group(&mut self, id: GroupId) {
        if let Some(group) = self.groups.remove(id) {
            for to in group.consumers().filter_map(|(_, consumer)| consumer.link.to()).collect::<Vec<_>>() {
                self.reply(to, Reply::Error(unknown_group(id)));
            }
        }
        self.state.groups.retain(|key| key.group != id);
        self.forget_beginnings(id);
    }

    pub(super) fn group_states(&mut self, from: ReplyTo, id: GroupId, now: Now) {
        let Some(group) = self.groups.by_id.get(&id) else {
            return self.reply(from, Reply::Error(unknown_group(id)));
        };
        let partitions = group.parts.iter().map(|number| self.group_state(group, *number, now)).collect();
        let shard = self.config.shard;
        let consumers = group.consumers().take(MAX_CONSUMERS).map(|(_, consumer)| ConsumerInfo {
            consumer: consumer.id,
            shard,
            attached: consumer.link != Link::None,
            credit_records: consumer.credit.records,
            credit_bytes: consumer.credit.bytes,
            leased: consumer.leased as u64,
        });
        let mut consumers: Vec<ConsumerInfo> = consumers.collect();
        consumers.sort_unstable_by_key(|consumer| consumer.consumer.0);
        // What it says is durable when it is said.
        self.after_changes(After::Reply(from, Reply::GroupStates(partitions, consumers)));
    }

    fn group_state(&self, group: &Group, number: u32, now: Now) -> GroupPartition {
        let part = &self.groups.parts[number as usize];
        let partition = self.state.slot(part.partition).map(|slot| self.state.partition(slot));
        let end = partition.map_or(0, |partition| partition.durable_end.0);
        let unknown = AckState::default();
        let acks = self.state.groups.acks.get(&part.key).unwrap_or(&unknown);
        let progress = Progress {
            end_offset: end,
            floor: acks.floor(),
            next_offset: part.next.max(acks.delivered_end()),
            lag: acks.open_before(end),
            leased: part.leased() as u64,
            ready: part.ready() as u64,
            delayed: (part.dated + part.backing_off.len()) as u64,
            behind_key: part.keys.behind() as u64,
            failed_total: acks.totals.failed,
            dead_lettered_total: acks.totals.dead_lettered,
            expired_total: acks.totals.expired,
            oldest_age_us: self.age_of(part, acks.floor(), end, now),
        };
        let holds = self.holds(group, part, end, now);
        GroupPartition { partition: part.key.partition, shard: self.config.shard, progress, holds }
    }

    /// How long ago the record at `offset` was committed, at least, µs.
    fn age_of(&self, part: &Part, offset: u64, end: u64, now: Now) -> u64 {
        if offset >= end {
            return 0;
        }
        let open = self.segments.open.map_or(crate::log::SegmentSeq(u64::MAX), |open| open.segment);
        let slot = self.state.slot(part.partition);
        let time_us = match slot.map(|slot| self.state.partition(slot).index.locate(Offset(offset), open)) {
            Some(Located::Run(_, run)) => run.commit_time_us,
            // The last one of its segment is not older.
            Some(Located::Sealed(sealed)) => {
                let found = self.segments.sealed.iter().find(|segment| segment.segment == sealed.segment);
                found.map_or(now.wall_us, |segment| segment.last_commit_time_us)
            }
            _ => now.wall_us,
        };
        now.wall_us.saturating_sub(time_us)
    }

    /// Why nothing is sent from a part; empty while something is.
    fn holds(&self, group: &Group, part: &Part, end: u64, now: Now) -> Vec<Hold> {
        let mut holds = Vec::new();
        let has_new = part.next < end;
        let (leased, open) = (part.leased() as u64, part.open() as u64);
        let at_bound = has_new && open >= u64::from(group.info.config.max_open);
        let is_crowded = has_new && self.groups.is_crowded(part);
        if let Some(offset) = part.damaged {
            holds.push(Hold::Damaged { offset });
        }
        if part.condemned() > 0 {
            holds.push(Hold::DeadLetter { count: part.condemned() as u64 });
        }
        if part.reading {
            holds.push(Hold::Reading);
        }
        if is_crowded {
            let open = self.groups.parts.iter().map(|(_, part)| part.open() as u64).sum();
            holds.push(Hold::MemoryBound { open });
        }
        if at_bound {
            holds.push(Hold::AtBound { open });
        }
        if let Some(offset) = part.at_delayed_bound {
            holds.push(Hold::DelayedBound { offset });
        }
        if let Some((offset, count)) = part.keys.longest() {
            holds.push(Hold::Key { offset, count: count as u64 });
        }
        let delayed = part.dated + part.backing_off.len();
        if delayed > 0 {
            holds.push(Hold::Delayed { count: delayed as u64, ms: self.first_due_ms(part, now) });
        }
        let deliverable = part.ready() > 0 || (has_new && !at_bound && !is_crowded);
        if deliverable && holds.is_empty() || part.ready() > 0 {
            match part.active.map(|active| group.consumer(active)) {
                Some(active) if !active.takes() => holds.push(Hold::Exclusive { consumer: active.id.0 }),
                _ if !group.consumers().any(|(_, consumer)| consumer.link != Link::None) => {
                    holds.push(Hold::NoConsumer);
                }
                _ if !group.consumers().any(|(_, consumer)| consumer.takes()) => holds.push(Hold::NoCredit),
                _ => {}
            }
        }
        if leased > 0 && !deliverable {
            let first = part.first_deadline().unwrap_or(now.mono_us);
            holds.push(Hold::Leased { count: leased, ms: first.saturating_sub(now.mono_us) / 1000 });
        }
        if holds.is_empty() && !deliverable {
            holds.push(Hold::NothingNew);
        }
        holds
    }

    /// Until the first record that waits may come, ms; of all parts, if this one's is not
    /// known.
    fn first_due_ms(&self, part: &Part, now: Now) -> u64 {
        let dated = self.groups.dated.next_us().map(|due| due.saturating_sub(now.wall_us));
        let backing_off = self.groups.backing_off.next_us().map(|due| due.saturating_sub(now.mono_us));
        let first = match (part.dated > 0, !part.backing_off.is_empty()) {
            (true, true) => dated.into_iter().chain(backing_off).min(),
            (true, false) => dated,
            _ => backing_off,
        };
        first.unwrap_or(0) / 1000
    }
}

/// Stands for the core of a session where the shard asks itself.
pub(super) const INTERNAL: u16 = u16::MAX;

fn internal(key: GroupKey) -> ReplyTo {
    ReplyTo { core: INTERNAL, session: u64::from(key.group.0), correlation: u64::from(key.partition) }
}
