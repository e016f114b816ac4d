//! Consumers: attaching and detaching, asking once, and what they lose as time goes by.

use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, Delivery, ErrorResponse, GroupMode, LeaseRange, Receive,
};
use ringbolt_wire::{ErrorCode, GroupId};

use super::Shard;
use super::action::Reply;
use super::event::ReplyTo;
use super::group_log::After;
use super::read::Pieces;
use crate::buffer::BufferPool;
use crate::consumer::wheel::Entry;
use crate::consumer::{Back, How, Link, Place};
use crate::limits::{MAX_CONSUMERS, MAX_FETCH_WAIT_MS};
use crate::time::Now;

/// How long leases run on at least once consumers are heard again, µs: twice the longest
/// wait of a client that was refused.
const EXPIRE_AFTER_HOLD_US: u64 = 2_000_000;

/// Leases that have run out and are taken back in one turn.
const MAX_EXPIRIES_PER_TURN: usize = 16_384;

impl<P: BufferPool> Shard<P> {
    /// The number of a consumer in its group, whether or not it was known.
    fn consumer_or_insert(&mut self, at: &ConsumerAt) -> Result<u32, ErrorResponse> {
        if self.stopping {
            return Err(ErrorResponse::new(ErrorCode::ShuttingDown, ""));
        }
        let Some(group) = self.groups.by_id.get_mut(&at.group) else {
            return Err(unknown_group(at.group));
        };
        if let Some(number) = group.number_of(at.consumer) {
            return Ok(number);
        }
        if self.groups.consumers >= MAX_CONSUMERS {
            let text = format!("a shard has at most {MAX_CONSUMERS} consumers");
            return Err(ErrorResponse::new(ErrorCode::TooManyGroups, text));
        }
        self.groups.consumers += 1;
        Ok(group.number_or_insert(at.consumer))
    }

    pub(super) fn attach(&mut self, from: ReplyTo, attach: &Attach, now: Now) {
        let number = match self.consumer_or_insert(&attach.at) {
            Ok(number) => number,
            Err(error) => return self.reply(from, Reply::Error(error)),
        };
        let id = attach.at.group;
        self.replace_link(id, number);
        // First, lest a consumer without leases is forgotten.
        self.set_link(id, number, Link::Attached(from), attach.credit, attach.lease_ms);
        self.release_all(id, number, &attach.held, now);
    }

    pub(super) fn receive(&mut self, from: ReplyTo, receive: &Receive, now: Now) {
        let number = match self.consumer_or_insert(&receive.at) {
            Ok(number) => number,
            Err(error) => return self.reply(from, Reply::Error(error)),
        };
        let id = receive.at.group;
        self.replace_link(id, number);
        let wait_ms = receive.max_wait_ms.min(MAX_FETCH_WAIT_MS);
        let deadline_us = now.mono_us + u64::from(wait_ms) * 1000;
        self.groups.waits.insert((deadline_us, id, number));
        self.set_link(id, number, Link::Waiting(from, deadline_us), receive.credit, receive.lease_ms);
    }

    /// From here on records go there.
    fn set_link(&mut self, id: GroupId, number: u32, link: Link, credit: Credit, lease_ms: u32) {
        let Some(group) = self.groups.by_id.get_mut(&id) else { return };
        let lease_ms = if lease_ms == 0 { group.info.config.lease_ms } else { lease_ms };
        let consumer = group.consumer_mut(number);
        (consumer.credit, consumer.lease_ms) = (credit, lease_ms);
        (consumer.debt, consumer.paused) = (0, false);
        group.set_link(number, link);
        group.line_up(number);
        if let Some(to) = link.to() {
            self.groups.link(to, (id, number));
        }
        self.stir_exclusive(id, number);
        self.groups.line_up(id);
    }

    /// The partitions that a consumer has for itself, or might get, are looked at.
    pub(super) fn stir_exclusive(&mut self, id: GroupId, number: u32) {
        let Some(group) = self.groups.by_id.get(&id) else { return };
        if group.info.config.mode != GroupMode::Exclusive {
            return;
        }
        let parts = group.held_or_free(number, &self.groups.parts);
        parts.into_iter().for_each(|part| self.groups.stir(part));
    }

    /// A consumer is sent nothing for a while, or that while is over.
    pub(super) fn pause(&mut self, from: ReplyTo, pauses: bool) {
        let Some((id, number)) = self.groups.at(from) else { return };
        let Some(group) = self.groups.by_id.get_mut(&id) else { return };
        let was_paused = std::mem::replace(&mut group.consumer_mut(number).paused, pauses);
        if was_paused && !pauses {
            group.line_up(number);
            self.stir_exclusive(id, number);
            self.groups.line_up(id);
        }
    }

    /// Ends how a consumer got records before: who was sent them is told.
    fn replace_link(&mut self, id: GroupId, number: u32) {
        if let Some(to) = self.cut_link(id, number) {
            self.refuse(to, ErrorCode::ConsumerReplaced, "");
        }
    }

    /// A consumer is sent nothing more. Returns where it was sent records to.
    fn cut_link(&mut self, id: GroupId, number: u32) -> Option<ReplyTo> {
        let group = self.groups.by_id.get_mut(&id)?;
        let link = group.set_link(number, Link::None);
        group.consumer_mut(number).credit = Credit::default();
        if let Link::Waiting(_, deadline_us) = link {
            self.groups.waits.remove(&(deadline_us, id, number));
        }
        let to = link.to()?;
        self.groups.unlink(to);
        Some(to)
    }

    /// A consumer that is sent nothing gives up the partitions of which it holds no
    /// records, and is forgotten if it holds none at all.
    pub(super) fn leave_if_gone(&mut self, id: GroupId, number: u32) {
        let Some(group) = self.groups.by_id.get(&id) else { return };
        if group.get(number).is_none_or(|consumer| consumer.link() != Link::None) {
            return;
        }
        let held: Vec<u32> = group.consumer(number).held().iter().copied().collect();
        held.into_iter().for_each(|part| self.let_go_if_done(id, part));
        self.forget_if_gone(id, number);
    }

    /// The same for several, of whom some may be named more than once.
    pub(super) fn leave_if_gone_all(&mut self, id: GroupId, mut numbers: Vec<u32>) {
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().for_each(|number| self.leave_if_gone(id, number));
    }

    /// The same where but one of its partitions may have no more records of it.
    fn leave_part_if_gone(&mut self, id: GroupId, number: u32, part: u32) {
        let Some(group) = self.groups.by_id.get(&id) else { return };
        if group.get(number).is_some_and(|consumer| consumer.link() == Link::None) {
            if self.groups.parts[part as usize].active == Some(number) {
                self.let_go_if_done(id, part);
            }
            self.forget_if_gone(id, number);
        }
    }

    fn let_go_if_done(&mut self, id: GroupId, number: u32) {
        let part = &mut self.groups.parts[number as usize];
        if part.leased() == 0 {
            self.groups.by_id.get_mut(&id).into_iter().for_each(|group| group.let_go(number, part));
            self.groups.stir(number);
        }
    }

    fn forget_if_gone(&mut self, id: GroupId, number: u32) {
        let forgotten = self.groups.by_id.get_mut(&id).is_some_and(|group| group.forget_if_gone(number));
        self.groups.consumers -= usize::from(forgotten);
    }

    pub(super) fn detach(&mut self, from: ReplyTo, at: &ConsumerAt, now: Now) {
        let Some(group) = self.groups.by_id.get(&at.group) else {
            return self.reply(from, Reply::Error(unknown_group(at.group)));
        };
        let Some(number) = group.number_of(at.consumer) else {
            return self.refuse(from, ErrorCode::UnknownConsumer, format!("consumer {}", at.consumer));
        };
        // First: giving back its last record forgets a consumer that is sent nothing.
        self.end_link(at.group, number);
        self.release_all(at.group, number, &[], now);
        self.leave_if_gone(at.group, number);
        self.reply(from, Reply::Detached);
    }

    /// Ends an `Attach` or a `Receive` whose session wants it to end. False if it is
    /// neither.
    pub(super) fn end_of_link(&mut self, from: ReplyTo) -> bool {
        let Some((id, number)) = self.groups.at(from) else { return false };
        self.end_link(id, number);
        self.leave_if_gone(id, number);
        true
    }

    /// Gives the last answer to an `Attach`, or an empty one to a `Receive`.
    fn end_link(&mut self, id: GroupId, number: u32) {
        let link = self.groups.by_id.get(&id).map(|group| group.consumer(number).link());
        let Some(to) = self.cut_link(id, number) else { return };
        let reply = if matches!(link, Some(Link::Waiting(..))) { nothing() } else { Reply::Detached };
        self.reply(to, reply);
    }

    /// The session is gone: its consumers are sent nothing more, and keep their leases
    /// until those run out.
    pub(super) fn drop_consumers(&mut self, core: u16, session: u64) {
        for to in self.groups.of_session(core, session) {
            if let Some((id, number)) = self.groups.at(to) {
                self.cut_link(id, number);
                self.leave_if_gone(id, number);
            }
        }
    }

    /// Tells everybody who waits for records that the broker stops.
    pub(super) fn stop_consumers(&mut self) {
        let mut ids: Vec<GroupId> = self.groups.by_id.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let numbers: Vec<u32> = self.groups.by_id[&id].consumers().map(|(number, _)| number).collect();
            for number in numbers {
                if let Some(to) = self.cut_link(id, number) {
                    self.refuse(to, ErrorCode::ShuttingDown, "");
                }
            }
        }
    }

    /// Gives back what a consumer has, but for what it holds on to.
    fn release_all(&mut self, id: GroupId, number: u32, held: &[LeaseRange], now: Now) {
        let Some(group) = self.groups.by_id.get(&id) else { return };
        if group.consumer(number).leased == 0 {
            return;
        }
        let held = joined(held);
        for part in group.parts.clone() {
            let leases = self.groups.parts[part as usize].leases_of(number, u64::MAX);
            for offset in leases {
                let known = &self.groups.parts[part as usize];
                let Some(lease) = known.lease(offset) else { continue };
                let kind = (known.key.partition, lease.acquired);
                let after = held.partition_point(|(of, start, _)| (*of, *start) <= (kind, offset));
                let before = after.checked_sub(1).map(|at| held[at]);
                if before.is_none_or(|(of, _, end)| of != kind || end <= offset) {
                    self.give_back(part, offset, &Back::Released, now);
                }
            }
        }
    }

    /// Takes a record from who has it.
    pub(super) fn give_back(&mut self, number: u32, offset: u64, why: &Back, now: Now) {
        let part = &mut self.groups.parts[number as usize];
        let (key, owner) = (part.key, part.owner);
        let (Some(group), Some(lease)) = (self.groups.by_id.get_mut(&key.group), part.lease(offset).copied())
        else {
            return;
        };
        let acks = self.state.groups.acks.entry(key).or_default();
        let before = part.leased();
        let mut config = group.info.config;
        if group.info.dead_letter.0 == 0 {
            // There is nowhere to go.
            config.max_failures = 0;
        }
        let place = part.give_back(offset, why, &config, acks, &mut self.groups.changes, now);
        // What held up later ones does not hold up an earlier one.
        part.held_by = part.held_by.filter(|held_by| *held_by < offset);
        let back = before - part.leased();
        group.consumer_mut(lease.consumer).leased -= back;
        self.counters.returned_records += back as u64;
        match place {
            Place::Ready => {}
            Place::Waits(due_us) => {
                part.backing_off.insert(offset);
                part.held_by = (config.mode == GroupMode::Exclusive).then_some(offset);
                self.groups.backing_off.add(Entry { due_us, offset, owner }, now.mono_us);
            }
            Place::Condemned => {
                self.groups.condemned.insert(number);
            }
        }
        self.count_open(number);
        self.groups.stir(number);
        if matches!(why, Back::Released | Back::TimedOut) {
            self.leave_part_if_gone(key.group, lease.consumer, number);
        }
    }

    /// Something has become of records of a part: others may be open now.
    pub(super) fn count_open(&mut self, number: u32) {
        let key = self.groups.parts[number as usize].key;
        self.groups.count_open(number, self.state.groups.acks.entry(key).or_default());
    }

    /// A record is completed.
    pub(super) fn complete(&mut self, number: u32, offset: u64, how: How) {
        let part = &mut self.groups.parts[number as usize];
        let key = part.key;
        let acks = self.state.groups.acks.entry(key).or_default();
        let owner = part.owner;
        let (consumer, holds_up) = part.complete(offset, how, acks, &mut self.groups.changes);
        self.groups.count_open(number, acks);
        if holds_up {
            self.after_changes(After::Freed(owner, offset));
        }
        if let Some((group, consumer)) = self.groups.by_id.get_mut(&key.group).zip(consumer) {
            group.consumer_mut(consumer).leased -= 1;
        }
    }

    /// Everything that is to be done for groups, not for an event's sake.
    pub(super) fn advance_groups(&mut self, now: Now) {
        self.groups.goes_on = false;
        // Changes of this turn are no reason to hold anything.
        self.log_changes(now);
        match self.groups_held() {
            Some(ErrorCode::DiskFull) => self.groups.expire_from_us = u64::MAX,
            _ if self.groups.expire_from_us == u64::MAX => {
                self.groups.expire_from_us = now.mono_us + EXPIRE_AFTER_HOLD_US;
            }
            Some(_) => self.groups.expire_from_us = self.groups.expire_from_us.max(now.mono_us + 1),
            None => {}
        }
        if !self.groups.is_empty() {
            self.consumer_timers(now);
            self.deliver(now);
            self.end_waits(now);
            self.look_at_the_wall_clock(now);
        }
        self.move_records(now);
        self.log_changes(now);
        self.write_checkpoint(now);
    }

    /// What is due by the clocks.
    fn consumer_timers(&mut self, now: Now) {
        if self.groups.retry_us.is_some_and(|at| at <= now.mono_us) {
            self.groups.retry_us = None;
            std::mem::take(&mut self.groups.short).into_iter().for_each(|owner| self.stir_if_there(owner));
        }
        if self.groups.damaged_retry_us.is_some_and(|at| at <= now.mono_us) {
            self.groups.damaged_retry_us = None;
            for owner in std::mem::take(&mut self.groups.damaged) {
                let number = self.groups.part_of_owner(owner);
                number.into_iter().for_each(|number| self.groups.parts[number as usize].damaged = None);
                self.stir_if_there(owner);
            }
        }
        let mut left = MAX_EXPIRIES_PER_TURN;
        while left > 0
            && self.groups.expire_from_us <= now.mono_us
            && let Some((number, (start, end))) = self.groups.pop_timer(now.mono_us)
        {
            left = left.saturating_sub((end - start) as usize);
            self.expire_leases(number, start, end, now);
        }
        let mut moves = MAX_EXPIRIES_PER_TURN;
        while left > 0
            && let Some((number, offset)) = self.groups.pop_backed_off(now.mono_us, &mut moves)
        {
            left -= 1;
            self.wait_over(number, offset, true);
        }
        while left > 0
            && let Some((number, offset)) = self.groups.pop_dated(now.wall_us, &mut moves)
        {
            left -= 1;
            self.wait_over(number, offset, false);
        }
        if !self.groups.at_delayed_bound.is_empty() {
            let room = self.groups.room_to_delay(self.config.max_delayed);
            if room > 0 {
                let waiting = std::mem::take(&mut self.groups.at_delayed_bound);
                waiting.into_iter().for_each(|owner| self.leave_delayed_bound(owner, room));
            }
        }
    }

    /// Says when that is to be done again, if records wait by it.
    fn look_at_the_wall_clock(&mut self, now: Now) {
        self.groups.dated_due = self.groups.dated.next_us().map(|due_us| {
            // At most a second: the wall clock may be set.
            now.mono_us + due_us.saturating_sub(now.wall_us).min(1_000_000)
        });
    }

    /// There is room for so many more records that wait for their time, whosever made it.
    fn leave_delayed_bound(&mut self, owner: u32, room: usize) {
        if let Some(number) = self.groups.part_of_owner(owner) {
            if !self.groups.parts[number as usize].leave_delayed_bound(room) {
                self.groups.at_delayed_bound.insert(owner);
            }
            self.groups.stir(number);
        }
    }

    fn stir_if_there(&mut self, owner: u32) {
        if let Some(number) = self.groups.part_of_owner(owner) {
            self.groups.stir(number);
        }
    }

    fn expire_leases(&mut self, number: u32, start: u64, end: u64, now: Now) {
        let mut later: Option<(u64, u64, u64)> = None;
        for offset in start..end {
            let Some(lease) = self.groups.parts[number as usize].lease(offset).copied() else { continue };
            if lease.deadline_us <= now.mono_us {
                self.counters.expired_leases += 1;
                self.give_back(number, offset, &Back::TimedOut, now);
            } else {
                let (first, last, at) = later.unwrap_or((offset, offset, u64::MAX));
                later = Some((first, last.max(offset + 1), at.min(lease.deadline_us)));
            }
        }
        if let Some((first, last, at)) = later {
            let owner = self.groups.parts[number as usize].owner;
            self.groups.set_timer(owner, (first, last), at);
        }
    }

    fn wait_over(&mut self, number: u32, offset: u64, after_delivery: bool) {
        let part = &mut self.groups.parts[number as usize];
        let acks = self.state.groups.acks.entry(part.key).or_default();
        if after_delivery {
            part.backing_off.remove(&offset);
            acks.wait_over(offset);
        } else {
            self.groups.delayed_no_longer(number, offset);
        }
        self.groups.parts[number as usize].wait_over(offset, acks);
        self.groups.count_open(number, acks);
        self.groups.stir(number);
    }

    /// Those who asked once and whose time is over are answered with nothing.
    fn end_waits(&mut self, now: Now) {
        while let Some(&(_, id, number)) = self.groups.waits.first().filter(|wait| wait.0 <= now.mono_us) {
            if let Some(to) = self.cut_link(id, number) {
                self.reply(to, nothing());
            }
            self.leave_if_gone(id, number);
        }
    }

    /// After a delivery, who asked once waits no longer.
    pub(super) fn delivered_once(&mut self, id: GroupId, number: u32) {
        if self.groups.by_id.get(&id).is_some_and(|g| matches!(g.consumer(number).link(), Link::Waiting(..)))
        {
            self.cut_link(id, number);
            // What it has for itself and was sent nothing of is for others meanwhile.
            self.leave_if_gone(id, number);
        }
    }
}

fn nothing() -> Reply {
    Reply::Delivered { delivery: Delivery::default(), payload: Pieces::new() }
}

pub(super) fn unknown_group(id: GroupId) -> ErrorResponse {
    ErrorResponse::new(ErrorCode::UnknownGroup, format!("group {id}"))
}

/// Ranges in order and apart: partition and count of deliveries, where each begins and ends.
fn joined(ranges: &[LeaseRange]) -> Vec<((u32, u32), u64, u64)> {
    let one = |range: &LeaseRange| ((range.partition, range.acquired), range.base_offset.0, range.end().0);
    let mut sorted: Vec<_> = ranges.iter().map(one).collect();
    sorted.sort_unstable();
    sorted.dedup_by(|next, before| {
        let touches = next.0 == before.0 && next.1 <= before.2;
        if touches {
            before.2 = before.2.max(next.2);
        }
        touches
    });
    sorted
}
