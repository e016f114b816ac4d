//! Consumers: attaching and detaching, asking once, and what became of records.

use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, Delivery, ErrorResponse, GroupMode, LeaseRange, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, Receive, Settle, SettleItem, Settled, Unsettled, Verb,
};
use ringbolt_wire::{ErrorCode, GroupId};

use super::Shard;
use super::action::Reply;
use super::event::ReplyTo;
use super::group_log::After;
use super::read::Pieces;
use crate::buffer::BufferPool;
use crate::consumer::wheel::Entry;
use crate::consumer::{Back, GroupKey, How, Link, Place};
use crate::limits::{MAX_CONSUMERS, MAX_FETCH_WAIT_MS, MAX_SETTLE_RECORDS};
use crate::time::Now;

/// Records that an `AckUpTo` counts for: it looks at every lease up to its record.
const UP_TO_COST: u64 = 256;

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
        (consumer.link, consumer.credit, consumer.lease_ms) = (link, credit, lease_ms);
        consumer.debt = 0;
        group.line_up(number);
        if let Some(to) = link.to() {
            self.groups.link(to, (id, number));
        }
        self.stir_exclusive(id, number);
        self.groups.line_up(id);
    }

    /// The partitions that a consumer has for itself, or might get, are looked at.
    fn stir_exclusive(&mut self, id: GroupId, number: u32) {
        let Some(group) = self.groups.by_id.get(&id) else { return };
        if group.info.config.mode != GroupMode::Exclusive {
            return;
        }
        for part in group.parts.clone() {
            if self.groups.parts[part as usize].active.is_none_or(|active| active == number) {
                self.groups.stir(part);
            }
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
        let consumer = group.consumer_mut(number);
        let link = std::mem::replace(&mut consumer.link, Link::None);
        consumer.credit = Credit::default();
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
        if group.get(number).is_none_or(|consumer| consumer.link != Link::None) {
            return;
        }
        if group.info.config.mode == GroupMode::Exclusive {
            for part in group.parts.clone() {
                let held = &mut self.groups.parts[part as usize];
                if held.active == Some(number) && held.leased() == 0 {
                    held.active = None;
                    self.groups.stir(part);
                }
            }
        }
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
        let link = self.groups.by_id.get(&id).map(|group| group.consumer(number).link);
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
        for part in group.parts.clone() {
            let leases = self.groups.parts[part as usize].leases_of(number, u64::MAX);
            for offset in leases {
                let known = &self.groups.parts[part as usize];
                let Some(lease) = known.lease(offset) else { continue };
                let holds = |range: &LeaseRange| {
                    range.partition == known.key.partition
                        && range.acquired == lease.acquired
                        && (range.base_offset.0..range.end().0).contains(&offset)
                };
                if !held.iter().any(holds) {
                    self.give_back(part, offset, &Back::Released, now);
                }
            }
        }
    }

    /// Takes a record from who has it.
    fn give_back(&mut self, number: u32, offset: u64, why: &Back, now: Now) {
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
        self.groups.stir(number);
        if matches!(why, Back::Released | Back::TimedOut) {
            self.leave_if_gone(key.group, lease.consumer);
        }
    }

    /// A record is completed.
    pub(super) fn complete(&mut self, number: u32, offset: u64, how: How) {
        let part = &mut self.groups.parts[number as usize];
        let key = part.key;
        let acks = self.state.groups.acks.entry(key).or_default();
        let owner = part.owner;
        let (consumer, holds_up) = part.complete(offset, how, acks, &mut self.groups.changes);
        if holds_up {
            self.after_changes(After::Freed(owner, offset));
        }
        if let Some((group, consumer)) = self.groups.by_id.get_mut(&key.group).zip(consumer) {
            group.consumer_mut(consumer).leased -= 1;
        }
    }

    pub(super) fn settle(&mut self, from: ReplyTo, settle: &Settle, now: Now) {
        match self.try_settle(from, settle, now) {
            Ok(Some(settled)) if settle.confirm => self.confirm(from, settled),
            Ok(_) => {}
            Err(error) if settle.confirm => self.reply(from, Reply::Error(error)),
            Err(_) => self.counters.lost_settles += 1,
        }
    }

    /// Settles what can be settled. `None` if the answer comes from elsewhere.
    fn try_settle(
        &mut self,
        from: ReplyTo,
        settle: &Settle,
        now: Now,
    ) -> Result<Option<Settled>, ErrorResponse> {
        let id = settle.at.group;
        let number = self.check_settle(settle)?;
        let (mut settled, mut redrives) = (Settled::default(), Vec::new());
        for item in &settle.items {
            self.settle_item(id, number, item, &mut settled, &mut redrives, now);
        }
        if let Some(number) = number {
            self.grant(id, number, settle.credit);
            self.leave_if_gone(id, number);
        }
        if redrives.is_empty() {
            return Ok(Some(settled));
        }
        let to = settle.confirm.then_some(from);
        self.begin_redrive(to, settled, redrives);
        Ok(None)
    }

    /// Whether a settle request can be carried out: nothing was changed yet. Returns
    /// the consumer's number, if it is known.
    fn check_settle(&self, settle: &Settle) -> Result<Option<u32>, ErrorResponse> {
        if self.stopping {
            return Err(ErrorResponse::new(ErrorCode::ShuttingDown, ""));
        }
        let Some(group) = self.groups.by_id.get(&settle.at.group) else {
            return Err(unknown_group(settle.at.group));
        };
        let cost = |item: &SettleItem| match item.verb {
            Verb::AckUpTo => UP_TO_COST,
            _ => u64::from(item.range.count),
        };
        if settle.items.iter().map(cost).sum::<u64>() > MAX_SETTLE_RECORDS {
            let text = format!("a settle request speaks of at most {MAX_SETTLE_RECORDS} records");
            return Err(ErrorResponse::new(ErrorCode::InvalidRequest, text).with_detail(MAX_SETTLE_RECORDS));
        }
        if !settle.items.is_empty() && self.segments.disk_is_full() {
            return Err(ErrorResponse::new(ErrorCode::DiskFull, ""));
        }
        let number = group.number_of(settle.at.consumer);
        if settle.credit != Credit::default() {
            let consumer = number.map(|number| group.consumer(number));
            let Some(consumer) = consumer.filter(|consumer| matches!(consumer.link, Link::Attached(_)))
            else {
                let text = format!("consumer {} is not attached", settle.at.consumer);
                return Err(ErrorResponse::new(ErrorCode::UnknownConsumer, text));
            };
            let records = consumer.credit.records + settle.credit.records;
            let bytes = consumer.credit.bytes + settle.credit.bytes;
            if records > MAX_CREDIT_RECORDS || bytes > MAX_CREDIT_BYTES {
                let text = format!("credit of {records} records and {bytes} bytes in all");
                return Err(ErrorResponse::new(ErrorCode::InvalidRequest, text));
            }
        }
        Ok(number)
    }

    fn grant(&mut self, id: GroupId, number: u32, credit: Credit) {
        if credit == Credit::default() {
            return;
        }
        let Some(group) = self.groups.by_id.get_mut(&id) else { return };
        let consumer = group.consumer_mut(number);
        let took = consumer.takes();
        consumer.grant(credit);
        group.line_up(number);
        if !took {
            self.stir_exclusive(id, number);
        }
        self.groups.line_up(id);
    }

    fn settle_item(
        &mut self,
        id: GroupId,
        consumer: Option<u32>,
        item: &SettleItem,
        settled: &mut Settled,
        redrives: &mut Vec<(u32, u64)>,
        now: Now,
    ) {
        let range = &item.range;
        let key = GroupKey { group: id, partition: range.partition };
        let mut not = |code: ErrorCode, start: u64, end: u64| unsettled(settled, code, range, start, end);
        let (start, end) = (range.base_offset.0, range.end().0);
        let Some(number) = self.groups.part_of(key) else {
            return not(ErrorCode::UnknownPartition, start, end);
        };
        if item.verb == Verb::AckUpTo {
            let last = end - 1;
            let leases = consumer.map(|c| self.groups.parts[number as usize].leases_of(c, last));
            leases.into_iter().flatten().for_each(|offset| self.complete(number, offset, How::Acked));
            return self.groups.stir(number);
        }
        let slot = self.state.slot(self.groups.parts[number as usize].partition);
        let log_end = slot.map_or(0, |slot| self.state.partition(slot).durable_end.0);
        let mut at = start;
        while at < end {
            let part = &self.groups.parts[number as usize];
            let acks = self.state.groups.acks.get(&key);
            if let Some(until) = acks.and_then(|acks| acks.completed_until(at)) {
                not(ErrorCode::AlreadyCompleted, at, until.min(end));
                at = until;
            } else if at >= part.next && acks.is_none_or(|acks| at >= acks.delivered_end()) {
                let delivered_end = log_end.max(at).min(end);
                not(ErrorCode::NotDelivered, at, delivered_end);
                not(ErrorCode::OffsetOutOfRange, delivered_end, end);
                at = end;
            } else {
                let lease = part.lease(at);
                let is_own = |lease: &&crate::consumer::part::Lease| {
                    Some(lease.consumer) == consumer && lease.acquired == range.acquired
                };
                match lease.filter(is_own) {
                    Some(_) if item.verb == Verb::Redrive && !self.is_of_dead_letters(id) => {
                        not(ErrorCode::InvalidRequest, at, at + 1);
                    }
                    Some(_) => self.settle_one(number, at, &item.verb, redrives, now),
                    None => not(ErrorCode::LeaseLost, at, at + 1),
                }
                at += 1;
            }
        }
        self.groups.stir(number);
    }

    fn is_of_dead_letters(&self, id: GroupId) -> bool {
        self.groups.by_id.get(&id).is_some_and(|group| group.of_dead_letters)
    }

    /// One record, which is the consumer's.
    fn settle_one(
        &mut self,
        number: u32,
        offset: u64,
        verb: &Verb,
        redrives: &mut Vec<(u32, u64)>,
        now: Now,
    ) {
        let back = match verb {
            Verb::Ack | Verb::AckUpTo => {
                self.counters.acked_records += 1;
                return self.complete(number, offset, How::Acked);
            }
            Verb::Extend { lease_ms } => return self.extend(number, offset, *lease_ms, now),
            Verb::Redrive => return redrives.push((number, offset)),
            Verb::Nack { delay_ms } => Back::Later(*delay_ms),
            Verb::Release => Back::Released,
            Verb::Reject { dead_letter, reason } => {
                let has_topic = self.has_dead_letter_topic(number);
                Back::Failed { condemned: *dead_letter && has_topic, reason: reason.as_str().into() }
            }
        };
        self.give_back(number, offset, &back, now);
    }

    fn extend(&mut self, number: u32, offset: u64, lease_ms: u32, now: Now) {
        let part = &mut self.groups.parts[number as usize];
        let Some(lease) = part.lease(offset).copied() else { return };
        let given = self.groups.by_id.get(&part.key.group).map_or(0, |g| g.consumer(lease.consumer).lease_ms);
        let lease_ms = if lease_ms == 0 { given } else { lease_ms };
        let deadline_us = now.mono_us + u64::from(lease_ms) * 1000;
        let (owner, is_sooner) = (part.owner, deadline_us < lease.deadline_us);
        part.extend(offset, deadline_us);
        // A later one is found when the timer of the first one is due.
        if is_sooner {
            self.groups.set_timer(owner, (offset, offset + 1), deadline_us);
        }
    }

    /// Everything that is to be done for groups, not for an event's sake.
    pub(super) fn advance_groups(&mut self, now: Now) {
        self.groups.goes_on = false;
        if !self.groups.is_empty() {
            self.consumer_timers(now);
            self.deliver(now);
            self.end_waits(now);
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
        let mut left = MAX_EXPIRIES_PER_TURN;
        while left > 0
            && let Some((number, (start, end))) = self.groups.pop_timer(now.mono_us)
        {
            left = left.saturating_sub((end - start) as usize);
            self.expire_leases(number, start, end, now);
        }
        while left > 0
            && let Some((number, offset)) = self.groups.pop_backed_off(now.mono_us)
        {
            left -= 1;
            self.wait_over(number, offset, true);
        }
        while left > 0
            && let Some((number, offset)) = self.groups.pop_dated(now.wall_us)
        {
            left -= 1;
            self.wait_over(number, offset, false);
        }
        if self.groups.dated.len() < self.config.max_delayed {
            let waiting = std::mem::take(&mut self.groups.at_delayed_bound);
            waiting.into_iter().for_each(|owner| self.leave_delayed_bound(owner));
        }
        self.groups.dated_due = self.groups.dated.next_us().map(|due_us| {
            // At most a second: the wall clock may be set.
            now.mono_us + due_us.saturating_sub(now.wall_us).min(1_000_000)
        });
    }

    /// There is room for more records that wait for their time, whosever made it.
    fn leave_delayed_bound(&mut self, owner: u32) {
        if let Some(number) = self.groups.part_of_owner(owner) {
            self.groups.parts[number as usize].at_delayed_bound = None;
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
        if !after_delivery {
            // It was not one of the open ones before.
            self.groups.opened(1);
        }
        let part = &mut self.groups.parts[number as usize];
        let acks = self.state.groups.acks.entry(part.key).or_default();
        if after_delivery {
            part.backing_off.remove(&offset);
            acks.wait_over(offset);
        } else {
            part.dated -= 1;
            part.dated_held = part.dated_held.filter(|held| *held != offset);
        }
        part.wait_over(offset, acks);
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
        if self.groups.by_id.get(&id).is_some_and(|g| matches!(g.consumer(number).link, Link::Waiting(..))) {
            self.cut_link(id, number);
        }
    }
}

fn nothing() -> Reply {
    Reply::Delivered { delivery: Delivery::default(), payload: Pieces::new() }
}

pub(super) fn unknown_group(id: GroupId) -> ErrorResponse {
    ErrorResponse::new(ErrorCode::UnknownGroup, format!("group {id}"))
}

/// Takes note of records that were not settled; neighbours go together.
fn unsettled(settled: &mut Settled, code: ErrorCode, range: &LeaseRange, start: u64, end: u64) {
    if start >= end {
        return;
    }
    let (partition, status, count) = (range.partition, code as u16, (end - start) as u32);
    match settled.unsettled.last_mut() {
        Some(last)
            if last.partition == partition
                && last.status == status
                && last.base_offset.0 + u64::from(last.count) == start =>
        {
            last.count += count;
        }
        _ => {
            let base_offset = ringbolt_wire::Offset(start);
            settled.unsettled.push(Unsettled { partition, status, base_offset, count });
        }
    }
}
