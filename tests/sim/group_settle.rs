//! Judges what becomes of records when consumers settle them: it is decided when the
//! request reaches its shard, and the answer must say the same.

use ringbolt::time::Now;
use ringbolt_wire::message::{ConsumerAt, Credit, LeaseRange, Settle, Settled, Verb};
use ringbolt_wire::{ErrorCode, GroupId};

use super::group_check::{GroupAsked, Groups, durable_records};
use super::group_model::{Known, Lease, Part, Why};
use super::log_model::LogModel;

/// What is said of a record that nobody was ever sent.
const NEVER_DELIVERED: [ErrorCode; 3] =
    [ErrorCode::NotDelivered, ErrorCode::OffsetOutOfRange, ErrorCode::UnknownPartition];
/// Or of one of which nobody can tell what became of it.
/// The last one is said of a redrive alone.
const IF_NOBODY_KNOWS: [ErrorCode; 4] =
    [ErrorCode::LeaseLost, ErrorCode::AlreadyCompleted, ErrorCode::NotDelivered, ErrorCode::InvalidRequest];
/// Or of a dead letter that has nowhere to go back to.
const ORIGIN_GONE: [ErrorCode; 2] = [ErrorCode::UnknownGroup, ErrorCode::UnknownTopic];

/// What becomes of a record that a settle request names.
#[derive(Clone, Debug)]
pub struct Expected {
    pub partition: u32,
    pub offset: u64,
    pub verb: Verb,
    /// It may be settled.
    pub may: bool,
    /// It may be refused, with one of these.
    pub refusals: Vec<ErrorCode>,
}

impl Groups {
    pub fn settle(
        &mut self,
        logs: &[LogModel],
        shard: usize,
        settle: &Settle,
        held: Option<ErrorCode>,
        now: Now,
    ) -> GroupAsked {
        let group = settle.at.group;
        let consumer = (shard, group, settle.at.consumer.0);
        let attached = self.links.get_mut(&consumer).filter(|link| !link.once);
        let wants_credit = settle.credit != Credit::default();
        let refusal = match &attached {
            _ if self.stopping => Some(ErrorCode::ShuttingDown),
            _ if !self.known.contains_key(&group) => Some(ErrorCode::UnknownGroup),
            _ if held.is_some() && !settle.items.is_empty() => held,
            None if wants_credit => Some(ErrorCode::UnknownConsumer),
            _ => None,
        };
        let mut items = Vec::new();
        if refusal.is_none() {
            if let Some(link) = attached {
                link.grant(settle.credit.records, settle.credit.bytes);
            }
            for item in &settle.items {
                self.settle_item(logs, shard, (&settle.at, &item.range, &item.verb), &mut items, now);
            }
        }
        GroupAsked::Settle { group, number: self.next_number(), items, refusal }
    }

    fn settle_item(
        &mut self,
        logs: &[LogModel],
        shard: usize,
        (at, range, verb): (&ConsumerAt, &LeaseRange, &Verb),
        items: &mut Vec<Expected>,
        now: Now,
    ) {
        let is_here =
            self.part((at.group, range.partition), logs.len()).is_some_and(|part| part.shard == shard);
        let Some(mut known) = self.known.remove(&at.group) else { return };
        let part = if is_here { known.parts.remove(&range.partition) } else { None };
        if let Some(mut part) = part {
            let offsets: Vec<u64> = match verb {
                Verb::AckUpTo => {
                    let up_to = part.leases.range(..range.end().0);
                    let own = up_to.filter(|(_, lease)| lease.consumer == at.consumer.0);
                    let own: Vec<(u64, u32)> = own.map(|(offset, lease)| (*offset, lease.acquired)).collect();
                    // If the last one is not the consumer's, that is said, and nothing is done.
                    let last = range.end().0 - 1;
                    match own.last() == Some(&(last, range.acquired)) {
                        true => own.into_iter().map(|(offset, _)| offset).collect(),
                        false => vec![last],
                    }
                }
                _ => (range.base_offset.0..range.end().0).collect(),
            };
            for offset in offsets {
                let expected = self.settle_one(logs, (&known, &mut part), offset, (at, range, verb), now);
                items.extend(expected);
            }
            known.parts.insert(range.partition, part);
        } else {
            let all = range.base_offset.0..range.end().0;
            items.extend(all.map(|offset| Expected {
                partition: range.partition,
                offset,
                verb: verb.clone(),
                may: *verb == Verb::AckUpTo,
                refusals: vec![ErrorCode::UnknownPartition],
            }));
        }
        self.known.insert(at.group, known);
    }

    fn settle_one(
        &mut self,
        logs: &[LogModel],
        (known, part): (&Known, &mut Part),
        offset: u64,
        (at, range, verb): (&ConsumerAt, &LeaseRange, &Verb),
        now: Now,
    ) -> Option<Expected> {
        let facts = durable_records(logs, part.shard, part.partition);
        let fact = facts.get(offset as usize);
        let vanishes = fact.is_some_and(|fact| self.may_vanish(known, fact, &logs[part.shard]));
        let is_earlier = *verb == Verb::AckUpTo && offset != range.end().0 - 1;
        let is_own = |lease: &&Lease| {
            lease.consumer == at.consumer.0 && (is_earlier || lease.acquired == range.acquired)
        };
        let lease = part.leases.get(&offset).filter(is_own).copied();
        let (is_loose, mut refusals) = (part.loose, Vec::new());
        let rec = part.rec(offset);
        if vanishes || rec.may_be_done() || rec.may_be_condemned() || rec.redriving.is_some() {
            refusals.extend([ErrorCode::AlreadyCompleted, ErrorCode::LeaseLost]);
        }
        if lease.is_none() && !rec.is_done() {
            refusals.push(ErrorCode::LeaseLost);
            if !rec.delivered {
                refusals.extend(NEVER_DELIVERED);
            }
        }
        let mut may = lease.is_some() || is_loose;
        if is_loose {
            refusals.extend(IF_NOBODY_KNOWS.iter().take(if *verb == Verb::Redrive { 4 } else { 3 }));
        }
        match verb {
            Verb::Redrive if is_loose && known.of_dead_letters => {
                rec.redriving = Some(range.acquired);
                refusals.extend(ORIGIN_GONE);
            }
            _ if lease.is_none() => {}
            Verb::Ack | Verb::AckUpTo => {
                self.tally.acked += 1;
                part.complete(offset, self.next_number());
            }
            Verb::Redrive if !known.of_dead_letters => {
                may = false;
                refusals.push(ErrorCode::InvalidRequest);
            }
            Verb::Redrive => {
                rec.redriving = Some(range.acquired);
                refusals.push(ErrorCode::LeaseLost);
                refusals.extend(ORIGIN_GONE);
            }
            Verb::Extend { lease_ms } => {
                let own_ms = self.lease_ms_of[&(part.shard, at.group, at.consumer.0)];
                let lease_ms = if *lease_ms == 0 { own_ms } else { *lease_ms };
                let deadline_us = now.mono_us + u64::from(lease_ms) * 1000;
                part.extend(offset, deadline_us);
            }
            Verb::Nack { .. } | Verb::Reject { .. } | Verb::Release => {
                let why = match verb.clone() {
                    Verb::Nack { delay_ms } => Why::Later(delay_ms),
                    Verb::Reject { dead_letter, reason } => Why::Failed { dead_letter, reason },
                    _ => Why::Released,
                };
                part.give_back(offset, &why, &known.info, self.next_number(), now);
            }
        }
        if is_earlier {
            return None;
        }
        Some(Expected { partition: range.partition, offset, verb: verb.clone(), may, refusals })
    }

    /// Everything that a settle request said is durable.
    pub fn settled(
        &mut self,
        logs: &[LogModel],
        (shard, group): (usize, GroupId),
        (number, items): (u64, &[Expected]),
        settled: &Settled,
    ) {
        self.confirmed[shard] = self.confirmed[shard].max(number);
        let mut left: Vec<(u32, u64, ErrorCode)> = Vec::new();
        for part in &settled.unsettled {
            let code = ErrorCode::from_u16(part.status).expect("a known code");
            let offsets = part.base_offset.0..part.base_offset.0 + u64::from(part.count);
            left.extend(offsets.map(|offset| (part.partition, offset, code)));
        }
        self.tally.unsettled += left.len() as u64;
        // A record may be named twice: what had to be refused comes first, then what is
        // checked most.
        let mut items: Vec<&Expected> = items.iter().collect();
        items.sort_by_key(|item| (item.may, item.may && item.verb != Verb::Redrive, item.refusals.len()));
        for item in &items {
            let fits = |(partition, offset, code): &(u32, u64, ErrorCode)| {
                (*partition, *offset) == (item.partition, item.offset) && item.refusals.contains(code)
            };
            // What is said of one verb alone is not left to others.
            let own = |it: &(u32, u64, ErrorCode)| fits(it) && it.2 == ErrorCode::InvalidRequest;
            let fits = left.iter().position(own).or_else(|| left.iter().position(fits));
            match fits {
                Some(at) => {
                    left.remove(at);
                }
                None => assert!(item.may, "{item:?} is called settled; {left:?} are not"),
            }
            // What was not to be redriven has nothing to do with what others asked for since.
            if item.verb != Verb::Redrive || !item.may {
                continue;
            }
            let Some(part) = self.part((group, item.partition), logs.len()) else { continue };
            let rec = part.rec(item.offset);
            if fits.is_some() {
                rec.redriving = None;
            } else {
                let is_done = rec.may_be_done() || rec.reset_at > number;
                assert!(is_done, "{item:?} is called redriven, and is {rec:?}");
                self.tally.redriven += 1;
            }
        }
        assert!(left.is_empty(), "{left:?} are not settled, and {items:?} were to be");
    }
}
