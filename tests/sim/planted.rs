//! Bugs that the broker does not have, planted around it: the checker must see them.
//!
//! The broker itself is as it ships. What a bug would make of its answers, its leases
//! or its log is done by the harness, between the broker and the world.

use ringbolt::consumer::{AckState, GroupKey, How};
use ringbolt::log::recovery::RecoveredLog;
use ringbolt::shard::action::Reply;
use ringbolt::shard::event::{Event, ReplyTo, ShardRequest};
use ringbolt_wire::message::{
    ConsumerAt, Credit, MAX_LEASE_MS, Settle, SettleItem, Settled, Unsettled, Verb,
};
use ringbolt_wire::{GroupId, Offset, ShardId};

use super::checker::{Asked, Open};
use super::group_check::GroupAsked;
use super::harness::Simulation;
use super::log_model::LogModel;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// What became of records is confirmed as soon as it is asked for.
    AckBeforeCommit,
    /// A lease does not run out.
    EndlessLease,
    /// A dead letter is in a commit of its own, and its completion where it comes from
    /// in the next one, which a crash takes.
    MoveInTwoCommits,
}

impl Simulation {
    /// Tells a consumer that what it says is durable, which it is not yet.
    pub(super) fn answer_too_early(&mut self, open: &Open) {
        let Asked::Group(GroupAsked::Settle { group, number, items, refusal: None }) = &open.asked else {
            return;
        };
        if self.planted != Some(Planted::AckBeforeCommit) || items.iter().any(|i| i.verb == Verb::Redrive) {
            return;
        }
        let refused = items.iter().filter(|item| !item.may).map(|item| Unsettled {
            partition: item.partition,
            status: item.refusals[0] as u16,
            base_offset: Offset(item.offset),
            count: 1,
        });
        let settled = Settled { unsettled: refused.collect() };
        let checker = &mut self.checker;
        checker.groups.settled(&checker.logs, (open.shard, *group), (*number, items), &settled);
    }

    /// Extends every lease to a day, in the name of its consumer, who does not know.
    pub(super) fn lease_for_ever(&mut self, shard: usize, to: ReplyTo, reply: &Reply) {
        let Reply::Delivered { delivery, .. } = reply else { return };
        if self.planted != Some(Planted::EndlessLease) {
            return;
        }
        let leases = self.checker.groups.last_given.take();
        let Some((group, consumer)) = leases else { return };
        let verb = Verb::Extend { lease_ms: MAX_LEASE_MS };
        let items = delivery.ranges.iter().map(|range| SettleItem { range: range.lease, verb: verb.clone() });
        let at = ConsumerAt { shard: ShardId(shard as u16), group, consumer };
        let settle = Settle { at, credit: Credit::default(), confirm: false, items: items.collect() };
        let from = ReplyTo { correlation: u64::MAX, ..to };
        let request = ShardRequest::Settle(settle);
        let now = self.clock.now();
        self.nodes[shard].handle(Event::Request { from, request }, now);
    }

    /// If the last thing in the log is a dead letter, takes from what a start has found
    /// that the record is completed where it comes from.
    pub(super) fn lose_second_commit(&self, shard: usize, log: &mut RecoveredLog) {
        if self.planted != Some(Planted::MoveInTwoCommits) {
            return;
        }
        let Some((group, partition, offset)) = last_letter(&self.checker.logs[shard]) else { return };
        if let Some(acks) = log.state.groups.acks.get_mut(&GroupKey { group, partition })
            && acks.is_completed(offset)
        {
            *acks = without(acks, offset);
        }
    }
}

/// Group, partition and offset of the record whose dead letter is in the last commit that
/// holds anything.
fn last_letter(log: &LogModel) -> Option<(GroupId, u32, u64)> {
    let last =
        log.partitions.values().filter_map(|facts| facts.batches.last()).map(|batch| batch.commit).max()?;
    let in_last = |facts: &&super::log_model::PartitionFacts| {
        facts.batches.last().is_some_and(|batch| batch.commit == last)
    };
    let records = log.partitions.values().filter(in_last).filter_map(|facts| facts.records.all.last());
    let letter = records.filter_map(|fact| fact.letter.as_ref()).next()?;
    Some((letter.group, letter.origin.index, letter.offset.0))
}

/// The same, but for one record that is not completed.
fn without(acks: &AckState, offset: u64) -> AckState {
    let mut other = AckState::new(acks.floor().min(offset));
    let ranges = std::iter::once((0, acks.floor())).chain(acks.completed().iter());
    for (start, end) in ranges {
        other.complete(start, end.min(offset), How::Acked);
        other.complete(start.max(offset + 1), end, How::Acked);
    }
    acks.all_attempts().for_each(|(offset, attempts)| other.restore_attempts(offset, attempts.clone()));
    other.delivered_up_to(acks.delivered_end());
    other.totals = acks.totals;
    other
}
