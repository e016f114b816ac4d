//! The end of a history with groups: nothing goes wrong any more, and a patient
//! consumer acknowledges whatever comes, until every group says that nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, DeliveredRange, GroupInfo, Settle, SettleItem, Verb,
};
use ringbolt_wire::{ConsumerId, ShardId};

use super::harness::Simulation;
use super::workload::{Body, Client, Cx, GroupBody};

/// Time that the broker has beyond what records wait for, µs.
const REASONABLE_US: u64 = 5_000_000;
/// And for each record that may have to come after another one.
const PER_RECORD_US: u64 = 20_000;
/// Longest lease, µs.
const LEASES_US: u64 = 31_000_000;
/// How long nothing should happen when there is nothing to do, µs.
const QUIET_US: u64 = 20_000_000;
/// Turns of the loop in which the broker does what it does without work.
const QUIET_ROUNDS: u64 = 400;

#[derive(Debug)]
struct Drainer {
    session: u64,
    /// It only looks.
    looks: bool,
    begun: bool,
    places: Vec<(GroupInfo, usize)>,
    attached: BTreeMap<u64, (GroupInfo, usize)>,
    states: BTreeMap<u64, usize>,
    asked: BTreeSet<u64>,
    settling: BTreeMap<u64, (usize, Settle)>,
    /// The disk was full: they are sent again.
    refused: Vec<(usize, Settle)>,
    /// Something was left, as the last pass says.
    left: bool,
    /// Passes in turn that found nothing.
    empty: u32,
    done: bool,
}

impl Drainer {
    fn at(group: &GroupInfo, shard: usize) -> ConsumerAt {
        ConsumerAt { shard: ShardId(shard as u16), group: group.id, consumer: ConsumerId(0xD7A1) }
    }

    fn attach(&mut self, cx: &mut Cx<'_>) {
        for (group, shard) in self.places.clone() {
            let credit = Credit { records: 500, bytes: 4 << 20 };
            let attach = Attach { at: Self::at(&group, shard), credit, lease_ms: 2_000, held: Vec::new() };
            let correlation = cx.send(self.session, shard, Body::Group(GroupBody::Attach(attach)));
            self.attached.insert(correlation, (group, shard));
        }
    }

    fn look(&mut self, cx: &mut Cx<'_>) {
        self.left = false;
        for (i, (group, shard)) in self.places.iter().enumerate() {
            let correlation = cx.send(self.session, *shard, Body::Group(GroupBody::States(group.id)));
            self.states.insert(correlation, i);
        }
        self.done = self.places.is_empty();
    }

    fn acknowledge(&mut self, place: &(GroupInfo, usize), ranges: &[DeliveredRange], cx: &mut Cx<'_>) {
        let (group, shard) = place;
        let items = ranges.iter().map(|range| SettleItem { range: range.lease, verb: Verb::Ack });
        let bytes = ranges.iter().map(|range| u64::from(range.payload_len)).sum();
        let records = ranges.iter().map(|range| u64::from(range.lease.count)).sum();
        let credit = Credit { records, bytes };
        let mut items: Vec<SettleItem> = items.collect();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(1000));
            let credit = if rest.is_empty() { credit } else { Credit::default() };
            let settle = Settle { at: Self::at(group, *shard), credit, confirm: true, items };
            self.settle(*shard, settle, cx);
            items = rest;
        }
    }

    fn settle(&mut self, shard: usize, settle: Settle, cx: &mut Cx<'_>) {
        let correlation = cx.send(self.session, shard, Body::Group(GroupBody::Settle(settle.clone())));
        self.asked.insert(correlation);
        self.settling.insert(correlation, (shard, settle));
    }

    fn end(&mut self, cx: &mut Cx<'_>) {
        for (group, shard) in std::mem::take(&mut self.attached).into_values() {
            let detach = GroupBody::Detach(Self::at(&group, shard));
            self.asked.insert(cx.send(self.session, shard, Body::Group(detach)));
        }
        self.done = true;
    }
}

impl Client for Drainer {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if !std::mem::replace(&mut self.begun, true) && !self.looks {
            self.attach(cx);
        }
        for (shard, settle) in std::mem::take(&mut self.refused) {
            self.settle(shard, settle, cx);
        }
        self.look(cx);
    }

    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>) {
        match reply {
            Reply::Delivered { delivery, .. } => {
                if let Some(place) = self.attached.get(&correlation).cloned() {
                    self.acknowledge(&place, &delivery.ranges, cx);
                }
            }
            Reply::GroupStates(parts, _) => {
                self.states.remove(&correlation);
                self.left |= parts.iter().any(|part| part.progress.lag > 0);
                assert!(!self.looks || !self.left, "something is left: {parts:?}");
                if !self.states.is_empty() {
                    return;
                }
                // What failed in one group after another was asked is a dead letter there.
                self.empty = if self.left { 0 } else { self.empty + 1 };
                match self.empty {
                    0 => cx.wake_in(200_000),
                    1 if !self.looks => cx.wake_in(1),
                    _ => self.end(cx),
                }
            }
            reply => {
                self.asked.remove(&correlation);
                let settle = self.settling.remove(&correlation);
                if matches!(reply, Reply::Error(_)) {
                    self.refused.extend(settle);
                }
            }
        }
    }

    fn lose(&mut self, _: &mut Cx<'_>) {}

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.done && self.asked.is_empty()
    }
}

impl Simulation {
    /// Lets every group come to its end, and sees to it that nothing was dropped.
    pub fn drain_groups(&mut self) {
        let begun = self.clock.now();
        let records: u64 =
            self.checker.logs.iter().flat_map(|log| log.partitions.values()).map(|p| p.end).sum();
        let due_us = self.checker.groups.latest_due(&self.checker.logs, begun);
        let deadline_us = due_us + REASONABLE_US + records * PER_RECORD_US;
        let seat = self.seat_drainer(false);
        while !self.seats[seat].client.is_done() {
            let late = self.clock.now().mono_us > deadline_us;
            assert!(!late, "due by {deadline_us}, and not done: {:?}", self.seats[seat].client);
            assert!(self.round(), "nothing is left to happen, and groups are not done");
        }
        self.checker.groups.check_complete(&self.checker.logs);
        self.check_quiet();
        self.seats.pop();
    }

    /// Every group still says that nothing is left.
    pub fn look_at_groups(&mut self) {
        let seat = self.seat_drainer(true);
        while !self.seats[seat].client.is_done() {
            assert!(self.round(), "nothing is left to happen, and nobody was answered");
        }
        self.seats.pop();
    }

    fn seat_drainer(&mut self, looks: bool) -> usize {
        let session = self.new_session();
        let shards = self.nodes.len();
        let all = self.checker.groups.alive().into_iter();
        let places = all.flat_map(|group| (0..shards).map(move |shard| (group.clone(), shard))).collect();
        let seat = self.add_client(Box::new(Drainer {
            session,
            looks,
            begun: false,
            places,
            attached: BTreeMap::new(),
            states: BTreeMap::new(),
            asked: BTreeSet::new(),
            settling: BTreeMap::new(),
            refused: Vec::new(),
            left: false,
            empty: 0,
            done: false,
        }));
        self.wake_in(seat, 1);
        seat
    }

    /// A broker without work does next to nothing.
    fn check_quiet(&mut self) {
        // Until the last lease would have run out that was settled in time.
        let begins = self.clock.now().mono_us + LEASES_US;
        while self.clock.now().mono_us < begins && self.round() {}
        let until = begins + QUIET_US;
        let mut rounds = 0;
        loop {
            let deadlines = self.nodes.iter_mut().filter_map(|node| node.shard().next_deadline());
            let due_us = deadlines.min().unwrap_or(u64::MAX);
            let by_itself = self.agenda.next_at().is_none_or(|at| due_us <= at);
            if self.clock.now().mono_us >= until || !self.round() {
                return;
            }
            rounds += u64::from(by_itself);
            assert!(
                rounds < QUIET_ROUNDS,
                "there is nothing to do, and the broker does it all the time: {due_us}"
            );
        }
    }
}
