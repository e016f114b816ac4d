//! Consumer groups as such: creating, deleting, listing; how far they are, and why nothing
//! is sent.

use ringbolt_wire::message::{ConsumerInfo, CreateGroup, GroupPartition, Hold, Progress};
use ringbolt_wire::{ErrorCode, GroupId, Offset};

use rustc_hash::FxHashSet;

use super::Shard;
use super::action::Reply;
use super::consume::unknown_group;
use super::event::ReplyTo;
use super::group_log::After;
use crate::buffer::BufferPool;
use crate::catalog::NotCreated;
use crate::consumer::group::Consumer;
use crate::consumer::{AckState, Group, Link, Part};
use crate::limits::MAX_CONSUMERS;
use crate::log::index::Located;
use crate::time::Now;

/// Records that wait for a time that are looked at to say when a group's first ones come, for
/// each of both kinds: some 0.2 ms.
const MAX_WAITS_LOOKED_AT: usize = 100_000;

/// How many of a group's consumers are attached, take something, and have not read what they
/// were sent.
#[derive(Clone, Copy)]
struct Present {
    attached: usize,
    taking: usize,
    unread: usize,
}

impl<P: BufferPool> Shard<P> {
    pub(super) fn create_group(&mut self, from: ReplyTo, create: &CreateGroup, now: Now) {
        match self.state.catalog.plan_create_group(create, self.config.shards) {
            Ok(update) if !self.footer_has_room_for(&update) => {
                let text = format!(
                    "segments of {} bytes cannot describe it; see --segment-size",
                    self.identity.segment_len
                );
                self.refuse(from, ErrorCode::TooManyPartitions, text);
            }
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

    /// Retention may have taken records that groups had not completed.
    pub(super) fn retain_groups(&mut self) {
        let numbers: Vec<u32> = self.groups.parts.iter().map(|(number, _)| number as u32).collect();
        let waited: Vec<u32> = numbers.into_iter().filter(|number| self.retain_part(*number)).collect();
        if !waited.is_empty() {
            self.groups.lose_retained(&waited);
        }
    }

    /// The same for one part. Whether records that are gone may have waited for a time.
    fn retain_part(&mut self, number: u32) -> bool {
        let part = &mut self.groups.parts[number as usize];
        let Some(slot) = self.state.slot(part.partition) else { return false };
        let start = self.state.partition(slot).start_offset.0;
        let acks = self.state.groups.acks.entry(part.key).or_default();
        if acks.floor() >= start {
            return false;
        }
        let id = part.key.group;
        let waited = part.dated > 0 || !part.backing_off.is_empty();
        let gone = part.retained_from(start, acks, &mut self.groups.changes);
        // What is gone was open, perhaps: there is room for others.
        self.count_open(number);
        self.groups.stir(number);
        self.groups.goes_on = true;
        for consumer in &gone {
            if let Some(group) = self.groups.by_id.get_mut(&id) {
                group.consumer_mut(*consumer).leased -= 1;
            }
        }
        self.leave_if_gone_all(id, gone);
        waited
    }

    /// Groups are gone: who is attached to them is told.
    pub(super) fn remove_groups(&mut self, ids: &[GroupId]) {
        for &id in ids {
            if let Some(group) = self.groups.remove(id) {
                let links = group.consumers().filter_map(|(_, consumer)| consumer.link().to());
                links.for_each(|to| self.reply(to, Reply::Error(unknown_group(id))));
            }
            self.forget_beginnings(id);
        }
        let gone: FxHashSet<GroupId> = ids.iter().copied().collect();
        self.state.groups.retain(|key| !gone.contains(&key.group));
    }

    pub(super) fn group_states(&mut self, from: ReplyTo, id: GroupId, now: Now) {
        let Some(group) = self.groups.by_id.get(&id) else {
            return self.reply(from, Reply::Error(unknown_group(id)));
        };
        let count = |is_it: fn(&Consumer) -> bool| group.consumers().filter(|(_, it)| is_it(it)).count();
        let of_it = Present {
            attached: count(|it| it.link() != Link::None),
            taking: count(Consumer::takes),
            unread: count(|it| it.paused && it.has_credit()),
        };
        let state = |number: &u32| self.group_state(group, *number, of_it, now);
        let partitions = group.parts.iter().map(state).collect();
        let shard = self.config.shard;
        let consumers = group.consumers().take(MAX_CONSUMERS).map(|(_, consumer)| ConsumerInfo {
            consumer: consumer.id,
            shard,
            attached: consumer.link() != Link::None,
            credit_records: consumer.credit.records,
            credit_bytes: consumer.credit.bytes,
            leased: consumer.leased as u64,
        });
        let mut consumers: Vec<ConsumerInfo> = consumers.collect();
        consumers.sort_unstable_by_key(|consumer| consumer.consumer.0);
        let reply = Reply::GroupStates(partitions, consumers);
        match self.groups_held() {
            // Nobody knows when it would be.
            Some(ErrorCode::DiskFull) => self.reply(from, reply),
            // What it says is durable when it is said.
            _ => self.after_changes(After::Reply(from, reply)),
        }
    }

    fn group_state(&self, group: &Group, number: u32, of_it: Present, now: Now) -> GroupPartition {
        let part = &self.groups.parts[number as usize];
        let partition = self.state.slot(part.partition).map(|slot| self.state.partition(slot));
        let end = partition.map_or(0, |partition| partition.durable_end.0);
        let unknown = AckState::default();
        let acks = self.state.groups.acks.get(&part.key).unwrap_or(&unknown);
        let holder = part.active.map(|number| group.consumer(number));
        let progress = Progress {
            end_offset: end,
            floor: acks.floor(),
            next_offset: part.next.max(acks.delivered_end()),
            lag: acks.open_before(end),
            leased: part.leased() as u64,
            ready: part.ready() as u64,
            delayed: part.delayed() as u64,
            behind_key: part.keys.behind() as u64,
            condemned: part.condemned() as u64,
            failed_total: acks.totals.failed,
            dead_lettered_total: acks.totals.dead_lettered,
            expired_total: acks.totals.expired,
            oldest_age_us: self.age_of(part, acks.floor(), end, now),
            consumers: match holder {
                Some(holder) => u64::from(holder.link() != Link::None),
                None => of_it.attached as u64,
            },
            holder: holder.map_or(0, |holder| holder.id.0),
        };
        let holds = self.holds(group, part, of_it, end, now);
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
    fn holds(&self, group: &Group, part: &Part, of_it: Present, end: u64, now: Now) -> Vec<Hold> {
        let mut holds = Vec::new();
        if self.groups_held() == Some(ErrorCode::DiskFull) {
            holds.push(Hold::DiskFull);
        }
        let has_new = part.next < end;
        let has_ready = part.first_ready().is_some_and(|ready| part.damaged.is_none_or(|at| ready < at));
        let (leased, open) = (part.leased() as u64, part.open() as u64);
        let most = u64::from(group.info.config.max_open);
        // Those whose own time has come do not count before they are leased.
        let may_give_again = leased < most;
        let at_bound = has_new && open >= most || has_ready && !may_give_again;
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
            holds.push(Hold::MemoryBound { open: self.groups.open() as u64 });
        }
        if at_bound {
            holds.push(Hold::AtBound { open });
        }
        if let Some(offset) = part.first_at_delayed_bound() {
            holds.push(Hold::DelayedBound { offset });
        }
        if let Some((offset, count)) = part.keys.longest() {
            holds.push(Hold::Key { offset, count: count as u64 });
        }
        let delayed = part.delayed();
        if delayed > 0 {
            let ms = self.first_due_ms(part, group.parts.len(), now);
            holds.push(Hold::Delayed { count: delayed as u64, ms });
        }
        let may_look = part.damaged.is_none() && part.at_delayed_bound.is_none() && part.held_by.is_none();
        let deliverable = has_ready && may_give_again || (has_new && !at_bound && !is_crowded && may_look);
        let takers = if deliverable { Self::hold_of_consumers(group, part, of_it) } else { None };
        holds.extend(takers);
        if leased > 0 && (!deliverable || takers.is_some()) {
            let first = part.first_deadline().unwrap_or(now.mono_us);
            holds.push(Hold::Leased { count: leased, ms: first.saturating_sub(now.mono_us) / 1000 });
        }
        if holds.is_empty() && !deliverable {
            holds.push(Hold::NothingNew);
        }
        holds
    }

    /// Why nobody takes what there is, or why not everybody does.
    fn hold_of_consumers(group: &Group, part: &Part, of_it: Present) -> Option<Hold> {
        match part.active.map(|number| group.consumer(number)) {
            Some(active) => {
                let others = of_it.attached - usize::from(active.link() != Link::None);
                (others > 0 || !active.takes()).then_some(Hold::Exclusive { consumer: active.id.0 })
            }
            None if of_it.attached == 0 => Some(Hold::NoConsumer),
            None if of_it.taking > 0 => None,
            None if of_it.unread > 0 => Some(Hold::NotReading),
            None => Some(Hold::NoCredit),
        }
    }

    /// Until the first record of a part that waits may come, ms, at the earliest; of a group of
    /// so many parts.
    fn first_due_ms(&self, part: &Part, parts: usize, now: Now) -> u64 {
        let looks = MAX_WAITS_LOOKED_AT / parts.max(1);
        let dated = (part.dated > 0).then(|| self.groups.dated.first_of(part.owner, looks)).flatten();
        let backing_off = (!part.backing_off.is_empty())
            .then(|| self.groups.backing_off.first_of(part.owner, looks))
            .flatten();
        let dated = dated.map(|due| due.saturating_sub(now.wall_us));
        let backing_off = backing_off.map(|due| due.saturating_sub(now.mono_us));
        dated.into_iter().chain(backing_off).min().unwrap_or(0) / 1000
    }
}
