//! What becomes of records, as their consumers say: completed, back, later, or kept for
//! longer.

use ringbolt_wire::message::{
    Credit, ErrorResponse, LeaseRange, MAX_CREDIT_BYTES, MAX_CREDIT_RECORDS, Settle, SettleItem, Settled,
    Unsettled, Verb,
};
use ringbolt_wire::{ErrorCode, GroupId};

use super::Shard;
use super::action::Reply;
use super::consume::unknown_group;
use super::event::ReplyTo;
use crate::buffer::BufferPool;
use crate::consumer::part::Lease;
use crate::consumer::{Back, GroupKey, How, Link};
use crate::limits::MAX_SETTLE_RECORDS;
use crate::time::Now;

/// Records that an `AckUpTo` counts for: it looks at the leases up to its record that its
/// consumer's last one has not looked at.
const UP_TO_COST: u64 = 256;

/// Records that settle requests of one turn may speak of: others have their turn when there
/// were as many. Looking at each takes 1 to 3 ms in all.
const MAX_SETTLED_PER_TURN: u64 = MAX_SETTLE_RECORDS;

/// What becomes of a record that is settled.
enum Fate {
    Completed,
    Extended { lease_ms: u32 },
    Redriven,
    Back(Back),
}

impl<P: BufferPool> Shard<P> {
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
        self.make_room_for_changes(now);
        let cost = settle.items.iter().map(cost).sum();
        // Also if it is refused: that it comes is work.
        self.groups.settled += u64::max(cost, 1);
        let number = self.check_settle(settle, cost)?;
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

    /// Whether settle requests are taken in this turn.
    #[inline]
    pub(super) fn may_settle(&self) -> bool {
        self.groups.settled < MAX_SETTLED_PER_TURN
    }

    /// Whether a settle request can be carried out: nothing was changed yet. Returns
    /// the consumer's number, if it is known.
    fn check_settle(&self, settle: &Settle, cost: u64) -> Result<Option<u32>, ErrorResponse> {
        if self.stopping {
            return Err(ErrorResponse::new(ErrorCode::ShuttingDown, ""));
        }
        let Some(group) = self.groups.by_id.get(&settle.at.group) else {
            return Err(unknown_group(settle.at.group));
        };
        if cost > MAX_SETTLE_RECORDS {
            let text = format!("a settle request speaks of at most {MAX_SETTLE_RECORDS} records");
            return Err(ErrorResponse::new(ErrorCode::InvalidRequest, text).with_detail(MAX_SETTLE_RECORDS));
        }
        if !settle.items.is_empty() {
            self.check_hold()?;
        }
        let redrives = settle.items.iter().filter(|item| item.verb == Verb::Redrive);
        if !self.moves.has_room(redrives.map(|item| item.range.count as usize).sum()) {
            let text = "as many dead letters are on their way back as may be";
            return Err(ErrorResponse::new(ErrorCode::Overloaded, text));
        }
        let number = group.number_of(settle.at.consumer);
        if settle.credit != Credit::default() {
            let consumer = number.map(|number| group.consumer(number));
            let Some(consumer) = consumer.filter(|consumer| matches!(consumer.link(), Link::Attached(_)))
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
        let (mut start, end) = (range.base_offset.0, range.end().0);
        let Some(number) = self.groups.part_of(key) else {
            return not(ErrorCode::UnknownPartition, start, end);
        };
        if item.verb == Verb::AckUpTo {
            start = end - 1;
            let lease = self.groups.parts[number as usize].lease(start).copied();
            let is_own = |lease: &Lease| Some(lease.consumer) == consumer && lease.acquired == range.acquired;
            // Otherwise nobody knows whether what the consumer has now is what it meant: the group
            // may have been reset since.
            if let Some(own) = lease.filter(is_own) {
                return self.ack_up_to(number, own.consumer, start);
            }
        }
        let slot = self.state.slot(self.groups.parts[number as usize].partition);
        let log_end = slot.map_or(0, |slot| self.state.partition(slot).durable_end.0);
        let fate = self.fate(number, &item.verb);
        let mut at = start;
        while at < end {
            let part = &self.groups.parts[number as usize];
            let acks = self.state.groups.acks.get(&key);
            if let Some(until) = acks.and_then(|acks| acks.completed_until(at)) {
                not(ErrorCode::AlreadyCompleted, at, until.min(end));
                at = until;
            } else if at >= part.delivered_end() && acks.is_none_or(|acks| at >= acks.delivered_end()) {
                let delivered_end = log_end.max(at).min(end);
                not(ErrorCode::NotDelivered, at, delivered_end);
                not(ErrorCode::OffsetOutOfRange, delivered_end, end);
                at = end;
            } else {
                let lease = part.lease(at);
                let is_own =
                    |lease: &&Lease| Some(lease.consumer) == consumer && lease.acquired == range.acquired;
                match lease.filter(is_own) {
                    Some(_) if item.verb == Verb::Redrive && !self.is_of_dead_letters(id) => {
                        not(ErrorCode::InvalidRequest, at, at + 1);
                    }
                    Some(_) => self.settle_one(number, at, &fate, redrives, now),
                    None => not(ErrorCode::LeaseLost, at, at + 1),
                }
                at += 1;
            }
        }
        self.groups.stir(number);
    }

    /// Completes what a consumer has up to and with this record.
    fn ack_up_to(&mut self, number: u32, consumer: u32, last: u64) {
        let leases = self.groups.parts[number as usize].ending_up_to(consumer, last);
        self.counters.acked_records += leases.len() as u64;
        self.groups.settled += leases.len() as u64;
        leases.iter().for_each(|offset| self.complete(number, *offset, How::Acked));
        self.groups.stir(number);
    }

    fn is_of_dead_letters(&self, id: GroupId) -> bool {
        self.groups.by_id.get(&id).is_some_and(|group| group.of_dead_letters)
    }

    /// What becomes of an item's records: they share a reason.
    fn fate(&self, number: u32, verb: &Verb) -> Fate {
        match verb {
            Verb::Ack | Verb::AckUpTo => Fate::Completed,
            Verb::Extend { lease_ms } => Fate::Extended { lease_ms: *lease_ms },
            Verb::Redrive => Fate::Redriven,
            Verb::Nack { delay_ms } => Fate::Back(Back::Later(*delay_ms)),
            Verb::Release => Fate::Back(Back::Released),
            Verb::Reject { dead_letter, reason } => {
                let condemned = *dead_letter && self.has_dead_letter_topic(number);
                Fate::Back(Back::Failed { condemned, reason: reason.as_str().into() })
            }
        }
    }

    /// One record, which is the consumer's.
    fn settle_one(
        &mut self,
        number: u32,
        offset: u64,
        fate: &Fate,
        redrives: &mut Vec<(u32, u64)>,
        now: Now,
    ) {
        match fate {
            Fate::Completed => {
                self.counters.acked_records += 1;
                self.complete(number, offset, How::Acked);
            }
            Fate::Extended { lease_ms } => self.extend(number, offset, *lease_ms, now),
            Fate::Redriven => redrives.push((number, offset)),
            Fate::Back(back) => self.give_back(number, offset, back, now),
        }
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
}

/// Records that an item counts for.
fn cost(item: &SettleItem) -> u64 {
    match item.verb {
        Verb::AckUpTo => UP_TO_COST,
        _ => u64::from(item.range.count),
    }
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
