//! Clients that consume through groups: attached or by asking once, careful or not.
//! They lose their connections, come back under their number with what they have in
//! hand, settle in every way, and say things that are wrong.

use std::collections::BTreeSet;

use ringbolt::shard::action::Reply;
use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, GroupInfo, LeaseRange, Receive, Settle, SettleItem, Verb,
};
use ringbolt_wire::{ConsumerId, ErrorCode, Offset, ShardId};

use super::workload::{Body, Client, Cx, GroupBody};

/// Records in hand beyond which the oldest are forgotten.
const MAX_IN_HAND: usize = 300;

#[derive(Debug)]
pub struct GroupConsumer {
    session: u64,
    consumer: ConsumerId,
    /// It asks for records once, and again.
    pulls: bool,
    group: Option<GroupInfo>,
    shard: usize,
    attach: Option<u64>,
    receive: Option<u64>,
    asked: BTreeSet<u64>,
    /// What it was sent and has not settled, record by record.
    hand: Vec<LeaseRange>,
}

impl GroupConsumer {
    pub fn new(pulls: bool, cx: &mut Cx<'_>) -> GroupConsumer {
        GroupConsumer {
            session: cx.new_session(),
            consumer: new_id(cx),
            pulls,
            group: None,
            shard: 0,
            attach: None,
            receive: None,
            asked: BTreeSet::new(),
            hand: Vec::new(),
        }
    }

    fn at(&self, group: &GroupInfo) -> ConsumerAt {
        ConsumerAt { shard: ShardId(self.shard as u16), group: group.id, consumer: self.consumer }
    }

    fn ask(&mut self, body: GroupBody, cx: &mut Cx<'_>) -> u64 {
        let answered = !matches!(&body, GroupBody::Settle(settle) if !settle.confirm);
        let waits = !matches!(body, GroupBody::Attach(_) | GroupBody::Receive(_));
        let correlation = cx.send(self.session, self.shard, Body::Group(body));
        if answered && waits {
            self.asked.insert(correlation);
        }
        correlation
    }

    fn choose_group(&mut self, cx: &mut Cx<'_>) -> Option<GroupInfo> {
        let is_there = |group: &GroupInfo| cx.groups.iter().any(|other| other.id == group.id);
        if self.group.as_ref().is_none_or(|group| !is_there(group)) && self.attach.is_none() {
            self.hand.clear();
            self.shard = cx.rng.below(u64::from(cx.shards)) as usize;
            let mut groups = cx.groups.to_vec();
            if cx.rng.percent(30) {
                // Dead letters are seldom wanted otherwise.
                groups.retain(|group| group.name.ends_with(".dlq"));
            }
            self.group = (!groups.is_empty()).then(|| cx.rng.pick(&groups));
        }
        self.group.clone()
    }

    fn attach(&mut self, group: &GroupInfo, cx: &mut Cx<'_>) {
        if cx.rng.percent(40) {
            let kept = cx.rng.below(self.hand.len() as u64 + 1) as usize;
            self.hand.truncate(kept);
        }
        let held = self.hand.clone();
        let (credit, lease_ms) = (some_credit(cx), some_lease(cx));
        let attach = Attach { at: self.at(group), credit, lease_ms, held };
        self.attach = Some(self.ask(GroupBody::Attach(attach), cx));
    }

    fn receive(&mut self, group: &GroupInfo, cx: &mut Cx<'_>) {
        let (credit, lease_ms) = (some_credit(cx), some_lease(cx));
        let max_wait_ms = cx.rng.below(40) as u32;
        let receive = Receive { at: self.at(group), credit, lease_ms, max_wait_ms };
        self.receive = Some(self.ask(GroupBody::Receive(receive), cx));
    }

    fn detach(&mut self, group: &GroupInfo, cx: &mut Cx<'_>) {
        self.hand.clear();
        self.ask(GroupBody::Detach(self.at(group)), cx);
    }

    /// Takes neighbours out of its hand that can be named together.
    fn take_some(&mut self, cx: &mut Cx<'_>) -> Option<LeaseRange> {
        let most = cx.rng.between(1, 12);
        let at = cx.rng.below(self.hand.len().max(1) as u64) as usize;
        let mut range = (at < self.hand.len()).then(|| self.hand.remove(at))?;
        while u64::from(range.count) < most
            && let Some(next) = self.hand.get(at)
            && (next.partition, next.base_offset, next.acquired)
                == (range.partition, range.end(), range.acquired)
        {
            range.count += 1;
            self.hand.remove(at);
        }
        Some(range)
    }

    fn some_verb(group: &GroupInfo, cx: &mut Cx<'_>) -> Verb {
        if group.name.ends_with(".dlq") && cx.rng.percent(60) {
            return Verb::Redrive;
        }
        match cx.rng.below(20) {
            0..9 => Verb::Ack,
            9..11 => Verb::AckUpTo,
            11..13 => Verb::Nack { delay_ms: cx.rng.pick(&[0, 1, 15, 200]) },
            13..16 => Verb::Reject { dead_letter: false, reason: format!("no. {}", cx.rng.below(9)) },
            16 => Verb::Reject { dead_letter: true, reason: "at once".into() },
            17 => Verb::Extend { lease_ms: cx.rng.pick(&[0, 1, 30, 500]) },
            18 => Verb::Release,
            _ => Verb::Redrive,
        }
    }

    fn settle(&mut self, group: &GroupInfo, cx: &mut Cx<'_>) {
        let mut items = Vec::new();
        for _ in 0..cx.rng.between(0, 4) {
            let Some(range) = self.take_some(cx) else { break };
            let verb = Self::some_verb(group, cx);
            let stays = matches!(verb, Verb::Extend { .. });
            if stays || cx.rng.one_in(12) {
                // To be settled once more.
                self.hand.extend((0..range.count).map(|i| one_of(&range, i)));
            }
            items.push(SettleItem { range, verb });
        }
        if cx.rng.one_in(10) {
            items.push(self.wrong(cx));
        }
        let attached = self.attach.is_some();
        let credit = if attached && cx.rng.percent(80) { some_credit(cx) } else { Credit::default() };
        if items.is_empty() && credit == Credit::default() {
            return;
        }
        let settle = Settle { at: self.at(group), credit, confirm: cx.rng.percent(85), items };
        let twice = cx.rng.one_in(25);
        if twice {
            self.ask(GroupBody::Settle(Settle { credit: Credit::default(), ..settle.clone() }), cx);
        }
        self.ask(GroupBody::Settle(settle), cx);
    }

    /// Something that this consumer has no right to say.
    fn wrong(&self, cx: &mut Cx<'_>) -> SettleItem {
        let base = self.hand.first().map_or(0, |range| range.base_offset.0);
        let range = LeaseRange {
            partition: cx.rng.below(4) as u32,
            base_offset: Offset((base + cx.rng.below(30)).saturating_sub(cx.rng.below(20))),
            count: cx.rng.between(1, 5) as u32,
            acquired: cx.rng.between(1, 3) as u32,
        };
        let verb = cx.rng.pick(&[Verb::Ack, Verb::Release, Verb::Nack { delay_ms: 3 }, Verb::Redrive]);
        SettleItem { range, verb }
    }

    fn act(&mut self, cx: &mut Cx<'_>) {
        let Some(group) = self.choose_group(cx) else { return };
        if self.pulls && self.receive.is_none() {
            self.receive(&group, cx);
        }
        if !self.pulls && (self.attach.is_none() || cx.rng.one_in(40)) {
            self.attach(&group, cx);
        }
        if self.asked.len() < 3 {
            self.settle(&group, cx);
        }
        if cx.rng.one_in(40) {
            self.detach(&group, cx);
        }
        if cx.rng.one_in(40) && self.attach.is_none() && self.receive.is_none() {
            self.group = None;
        }
    }

    fn delivered(&mut self, ranges: &[ringbolt_wire::message::DeliveredRange]) {
        for range in ranges {
            self.hand.extend((0..range.lease.count).map(|i| one_of(&range.lease, i)));
        }
        let beyond = self.hand.len().saturating_sub(MAX_IN_HAND);
        self.hand.drain(..beyond);
    }
}

/// One record of a range.
fn one_of(range: &LeaseRange, index: u32) -> LeaseRange {
    let base_offset = Offset(range.base_offset.0 + u64::from(index));
    LeaseRange { base_offset, count: 1, ..*range }
}

fn new_id(cx: &mut Cx<'_>) -> ConsumerId {
    ConsumerId(cx.rng.next().max(1))
}

fn some_credit(cx: &mut Cx<'_>) -> Credit {
    Credit { records: cx.rng.pick(&[1, 4, 30, 200]), bytes: cx.rng.pick(&[1, 500, 5_000, 200_000]) }
}

fn some_lease(cx: &mut Cx<'_>) -> u32 {
    cx.rng.pick(&[0, 0, 2, 25, 300])
}

impl Client for GroupConsumer {
    fn wake(&mut self, cx: &mut Cx<'_>) {
        if cx.active {
            self.act(cx);
            let pause = cx.rng.between(100, 1_000 + 8 * cx.habits.think_us);
            return cx.wake_in(pause);
        }
        if let (Some(_), Some(group)) = (self.attach, self.group.clone()) {
            self.detach(&group, cx);
        }
    }

    fn hear(&mut self, correlation: u64, reply: Reply, cx: &mut Cx<'_>) {
        if self.asked.remove(&correlation) {
            return;
        }
        if self.receive == Some(correlation) {
            self.receive = None;
        }
        match reply {
            Reply::Delivered { delivery, .. } => self.delivered(&delivery.ranges),
            Reply::Error(error) if error.error_code() == Some(ErrorCode::UnknownGroup) => {
                (self.group, self.attach) = (None, None);
            }
            _ if self.attach == Some(correlation) => self.attach = None,
            _ => {}
        }
        if cx.active && cx.rng.percent(30) {
            cx.think();
        }
    }

    fn lose(&mut self, cx: &mut Cx<'_>) {
        self.session = cx.new_session();
        (self.attach, self.receive) = (None, None);
        self.asked.clear();
        if cx.rng.percent(30) {
            self.consumer = new_id(cx);
            self.hand.clear();
        }
        cx.think();
    }

    fn session(&self) -> u64 {
        self.session
    }

    fn is_done(&self) -> bool {
        self.asked.is_empty() && self.attach.is_none() && self.receive.is_none()
    }
}
