//! Judges what groups answer: creating and deleting, attaching, settling, and how far
//! they say that they are.
//!
//! What becomes of records is decided when a request reaches its shard; the answer,
//! which comes when that is durable, must say the same.

use std::collections::{BTreeMap, BTreeSet};

use ringbolt::shard::action::Reply;
use ringbolt::time::Now;
use ringbolt_wire::message::{
    Attach, ConsumerAt, CreateGroup, Credit, ErrorResponse, GroupInfo, GroupPartition, GroupStart,
    LeaseRange, Receive,
};
use ringbolt_wire::{ConsumerId, ErrorCode, GroupId, PartitionId, TopicId};

use super::group_model::{GroupFate, Known, Link, Part, PartKey, Why};
use super::group_settle::Expected;
use super::log_model::LogModel;
use super::records::RecordFact;
use super::workload::GroupBody;

/// What was asked of a group, with what was known then.
#[derive(Clone, Debug)]
pub enum GroupAsked {
    Create(CreateGroup),
    Delete(String),
    List { settle: bool },
    LookUp(String),
    States { group: GroupId, parts: BTreeMap<u32, Bounds> },
    Reset { group: GroupId, refusal: Option<ErrorCode> },
    Attach { group: GroupId },
    Detach { group: GroupId, known: bool },
    Receive { group: GroupId },
    Settle { group: GroupId, number: u64, items: Vec<Expected>, refusal: Option<ErrorCode> },
}

/// What a group's state in a partition may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub lag: (u64, u64),
    pub leased: (u64, u64),
}

/// A group that somebody wants, and where its partitions ended then.
#[derive(Clone, Debug)]
struct Creating {
    create: CreateGroup,
    ends: BTreeMap<PartitionId, u64>,
}

/// The groups, as their clients know them.
#[derive(Debug)]
pub struct Groups {
    pub known: BTreeMap<GroupId, Known>,
    creating: BTreeMap<String, Creating>,
    /// How consumers get records, by shard, group and consumer.
    pub links: BTreeMap<(usize, GroupId, u64), Link>,
    /// The time of a consumer's leases, as it last asked for it.
    pub lease_ms_of: BTreeMap<(usize, GroupId, u64), u32>,
    /// Why an `Attach` or a `Receive` ends whose answer is on its way.
    pub ended: BTreeMap<(u64, u64), Option<ErrorCode>>,
    /// Topics, and groups by their names, that somebody wants deleted: one that is being
    /// created may be gone when that is known.
    deleting_topics: BTreeSet<TopicId>,
    deleting: BTreeSet<String>,
    /// Leases last until then at least, by shard.
    held_until_us: BTreeMap<usize, u64>,
    /// Of the last change.
    number: u64,
    /// Of the last change that is certain, by shard.
    pub confirmed: Vec<u64>,
    /// Highest time of the wall clock so far.
    pub max_wall_us: u64,
    /// Furthest that the wall clock was ahead of the monotonic one in this life.
    pub max_ahead_us: u64,
    pub now: Now,
    pub stopping: bool,
    /// Who was sent records last.
    pub last_given: Option<(GroupId, ConsumerId)>,
    pub tally: GroupTally,
}

/// What the run has shown of groups.
#[derive(Clone, Copy, Default, Debug)]
pub struct GroupTally {
    pub delivered: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub unsettled: u64,
    pub timed_out: u64,
    pub letters: u64,
    pub redriven: u64,
    pub resets: u64,
    pub dated: u64,
}

impl GroupTally {
    pub fn plus(&self, other: &GroupTally) -> GroupTally {
        GroupTally {
            delivered: self.delivered + other.delivered,
            redelivered: self.redelivered + other.redelivered,
            acked: self.acked + other.acked,
            unsettled: self.unsettled + other.unsettled,
            timed_out: self.timed_out + other.timed_out,
            letters: self.letters + other.letters,
            redriven: self.redriven + other.redriven,
            resets: self.resets + other.resets,
            dated: self.dated + other.dated,
        }
    }
}

/// The records of a partition that are durable.
pub fn durable_records(logs: &[LogModel], shard: usize, partition: PartitionId) -> &[RecordFact] {
    let facts = logs[shard].partitions.get(&partition);
    facts.map_or(&[], |facts| &facts.records.all[..facts.durable_end as usize])
}

fn ends(logs: &[LogModel], topic: Option<TopicId>) -> BTreeMap<PartitionId, u64> {
    let all = logs.iter().flat_map(|log| &log.partitions);
    let of_it = all.filter(|(id, _)| topic.is_none_or(|topic| id.topic == topic));
    of_it.map(|(id, facts)| (*id, facts.durable_end)).collect()
}

impl Groups {
    pub fn new(shards: usize) -> Groups {
        Groups {
            known: BTreeMap::new(),
            creating: BTreeMap::new(),
            links: BTreeMap::new(),
            lease_ms_of: BTreeMap::new(),
            ended: BTreeMap::new(),
            deleting_topics: BTreeSet::new(),
            deleting: BTreeSet::new(),
            held_until_us: BTreeMap::new(),
            number: 0,
            confirmed: vec![0; shards],
            max_wall_us: 0,
            max_ahead_us: 0,
            now: Now { mono_us: 0, wall_us: 0 },
            stopping: false,
            last_given: None,
            tally: GroupTally::default(),
        }
    }

    /// The groups that are certainly there.
    pub fn alive(&self) -> Vec<GroupInfo> {
        let alive = self.known.values().filter(|known| known.fate == GroupFate::Alive);
        alive.map(|known| known.info.clone()).collect()
    }

    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub fn note_time(&mut self, now: Now) {
        self.now = now;
        self.max_wall_us = self.max_wall_us.max(now.wall_us);
        self.max_ahead_us = self.max_ahead_us.max(now.wall_us.saturating_sub(now.mono_us));
    }

    /// Whether the broker may complete a record without a word.
    pub fn may_vanish(&self, known: &Known, fact: &RecordFact, log: &LogModel) -> bool {
        let directions = &fact.directions;
        let for_others = directions.only_group.is_some_and(|group| group != known.info.id);
        let expires = directions.expire_at_us.is_some_and(|at| at <= self.max_wall_us);
        log.given_up >= Some(fact.segment) || (!known.of_dead_letters && (for_others || expires))
    }

    /// A group in a partition.
    pub fn part(&mut self, key: PartKey, shards: usize) -> Option<&mut Part> {
        let known = self.known.get_mut(&key.0)?;
        let partition = PartitionId::new(known.info.topic, key.1);
        let shard = usize::from(ringbolt::shard::placement::shard_of(partition, shards as u16).0);
        Some(known.parts.entry(key.1).or_insert_with(|| Part::new(partition, shard, (0, 0))))
    }

    /// Partitions that had no records when the group began have some now.
    fn ensure_parts(&mut self, logs: &[LogModel], group: GroupId) {
        let topic = self.known.get(&group).map(|known| known.info.topic);
        for id in topic.map_or(BTreeMap::new(), |topic| ends(logs, Some(topic))).keys() {
            self.part((group, id.index), logs.len());
        }
    }

    fn add(&mut self, logs: &[LogModel], info: &GroupInfo) {
        let of_dead_letters = info.name.ends_with(".dlq");
        let creating = self.creating.remove(&info.name);
        assert!(creating.is_some() || of_dead_letters, "{info:?}: nobody asked for it");
        if let Some(creating) = &creating {
            assert_eq!(creating.create.config, info.config);
        }
        let mut parts = BTreeMap::new();
        for (id, end) in ends(logs, Some(info.topic)) {
            let before = creating.as_ref().and_then(|c| c.ends.get(&id)).copied().unwrap_or(0);
            let floor = match creating.as_ref().map(|c| c.create.start) {
                Some(GroupStart::End) => (before, end),
                Some(GroupStart::Offset(offset)) => (offset.0.min(before), offset.0.min(end)),
                Some(GroupStart::Time(_)) => (0, end),
                Some(GroupStart::Earliest) | None => (0, 0),
            };
            let shard = ringbolt::shard::placement::shard_of(id, logs.len() as u16);
            parts.insert(id.index, Part::new(id, usize::from(shard.0), floor));
        }
        let may_go = self.deleting_topics.contains(&info.topic) || self.deleting.contains(&info.name);
        let fate = if may_go { GroupFate::Deleting } else { GroupFate::Alive };
        let known = Known { info: info.clone(), fate, of_dead_letters, parts };
        assert!(self.known.insert(info.id, known).is_none());
    }

    fn seen(&mut self, logs: &[LogModel], info: &GroupInfo) {
        match self.known.get(&info.id) {
            Some(known) => {
                self.creating.remove(&info.name);
                assert_eq!(known.info, *info);
                assert_ne!(known.fate, GroupFate::Gone, "{info:?} is deleted");
            }
            None => self.add(logs, info),
        }
    }

    fn listed(&mut self, logs: &[LogModel], list: &[GroupInfo], settle: bool) {
        assert!(list.is_sorted_by(|a, b| a.name < b.name), "sorted by name: {list:?}");
        for info in list {
            self.seen(logs, info);
        }
        for known in self.known.values_mut() {
            let is_listed = list.iter().any(|info| info.id == known.info.id);
            assert!(is_listed || known.fate != GroupFate::Alive, "{:?} is not listed", known.info);
            if settle {
                known.fate = if is_listed { GroupFate::Alive } else { GroupFate::Gone };
            }
        }
        if settle {
            self.creating.clear();
            self.deleting.clear();
        }
    }

    fn set_fate(&mut self, fate: GroupFate, of_it: impl Fn(&Known) -> bool) {
        for known in self.known.values_mut().filter(|known| known.fate != GroupFate::Gone && of_it(known)) {
            known.fate = fate;
        }
    }

    pub fn topic_deleting(&mut self, topic: TopicId) {
        self.deleting_topics.insert(topic);
        self.set_fate(GroupFate::Deleting, |known| known.info.topic == topic);
    }

    pub fn topic_deleted(&mut self, topic: TopicId) {
        self.set_fate(GroupFate::Gone, |known| known.info.topic == topic);
    }

    /// A request reaches a shard. Returns what is expected of it.
    pub fn asked(
        &mut self,
        logs: &[LogModel],
        at: (usize, (u64, u64)),
        body: &GroupBody,
        held: Option<ErrorCode>,
        now: Now,
    ) -> GroupAsked {
        let (shard, to) = at;
        match body {
            GroupBody::Create(create) => {
                let creating = Creating { create: create.clone(), ends: ends(logs, None) };
                self.creating.entry(create.name.clone()).or_insert(creating);
                GroupAsked::Create(create.clone())
            }
            GroupBody::Delete(name) => {
                self.deleting.insert(name.clone());
                self.set_fate(GroupFate::Deleting, |known| known.info.name == *name);
                GroupAsked::Delete(name.clone())
            }
            GroupBody::List { settle } => GroupAsked::List { settle: *settle },
            GroupBody::LookUp(name) => GroupAsked::LookUp(name.clone()),
            GroupBody::States(group) => {
                GroupAsked::States { group: *group, parts: self.bounds(logs, shard, *group) }
            }
            GroupBody::Reset { group, to, partition } => {
                let refusal = if self.stopping { Some(ErrorCode::ShuttingDown) } else { held };
                if refusal.is_none() {
                    self.reset(logs, shard, *group, *to, *partition);
                }
                GroupAsked::Reset { group: *group, refusal }
            }
            GroupBody::Attach(attach) => self.attach(shard, to, attach, now),
            GroupBody::Detach(consumer) => self.detach(shard, consumer, now),
            GroupBody::Receive(receive) => self.receive(shard, to, receive),
            GroupBody::Settle(settle) => self.settle(logs, shard, settle, held, now),
        }
    }

    /// What the states of a group may be now.
    fn bounds(&mut self, logs: &[LogModel], shard: usize, group: GroupId) -> BTreeMap<u32, Bounds> {
        self.ensure_parts(logs, group);
        let Some(mut known) = self.known.remove(&group) else { return BTreeMap::new() };
        let mut parts = std::mem::take(&mut known.parts);
        let mut all = BTreeMap::new();
        for (index, part) in parts.iter_mut().filter(|(_, part)| part.shard == shard) {
            let facts = durable_records(logs, shard, part.partition);
            let (mut lag, mut leased) = ((0, 0), (0, 0));
            for (offset, fact) in (0..).zip(facts) {
                let vanishes = self.may_vanish(&known, fact, &logs[shard]);
                let has_lease = part.leases.contains_key(&offset);
                let rec = part.rec(offset);
                leased.1 += u64::from(has_lease);
                let doubtful = vanishes || rec.redriving.is_some() || rec.may_be_condemned();
                leased.0 += u64::from(has_lease && !doubtful);
                lag.1 += u64::from(!rec.is_done());
                lag.0 += u64::from(!(doubtful || rec.may_be_done()));
            }
            if part.loose {
                leased = (0, u64::MAX);
            }
            all.insert(*index, Bounds { lag, leased });
        }
        known.parts = parts;
        self.known.insert(group, known);
        all
    }

    fn reset(
        &mut self,
        logs: &[LogModel],
        shard: usize,
        group: GroupId,
        to: GroupStart,
        partition: Option<u32>,
    ) {
        let number = self.next_number();
        self.ensure_parts(logs, group);
        let max_wall_us = self.max_wall_us;
        let Some(known) = self.known.get_mut(&group) else { return };
        self.tally.resets += 1;
        let wanted = |index: &u32| partition.is_none_or(|wanted| wanted == *index);
        for (_, part) in known.parts.iter_mut().filter(|(index, part)| part.shard == shard && wanted(index)) {
            let end = durable_records(logs, shard, part.partition).len() as u64;
            let floor = match to {
                GroupStart::Earliest => Some(0),
                GroupStart::End => Some(end),
                GroupStart::Offset(offset) => Some(offset.0.min(end)),
                GroupStart::Time(_) => None,
            };
            let durable = |partition, at| at < durable_records(logs, shard, partition).len() as u64;
            let facts = durable_records(logs, shard, part.partition);
            let expires = |offset: u64| {
                let at_us = facts[offset as usize].directions.expire_at_us;
                known.info.config.dead_letter_expired && at_us.is_some_and(|at_us| at_us <= max_wall_us)
            };
            part.reset(floor, end, number, durable, expires);
        }
    }

    /// Leases of a shard last until then at least; as long as that is not known,
    /// `u64::MAX`.
    pub fn hold(&mut self, shard: usize, until_us: u64) {
        self.held_until_us.insert(shard, until_us);
        if until_us == u64::MAX {
            return;
        }
        let parts = self.known.values_mut().flat_map(|known| known.parts.values_mut());
        parts.filter(|part| part.shard == shard).for_each(|part| part.hold(until_us));
    }

    /// See [`hold`](Self::hold); 0 if nothing was held yet.
    pub fn held_until_us(&self, shard: usize) -> u64 {
        self.held_until_us.get(&shard).copied().unwrap_or(0)
    }

    /// Nothing more is sent over a link.
    pub fn cut(&mut self, consumer: (usize, GroupId, u64), why: Option<ErrorCode>) {
        if let Some(link) = self.links.remove(&consumer) {
            self.ended.insert(link.to, why);
        }
    }

    fn link(&mut self, shard: usize, at: &ConsumerAt, link: Link) -> bool {
        let there = self.known.get(&at.group).map(|known| known.info.config.lease_ms);
        let consumer = (shard, at.group, at.consumer.0);
        let (Some(usual_ms), false) = (there, self.stopping) else { return false };
        self.cut(consumer, Some(ErrorCode::ConsumerReplaced));
        let lease_ms = if link.lease_ms == 0 { usual_ms } else { link.lease_ms };
        self.links.insert(consumer, Link { lease_ms, ..link });
        self.lease_ms_of.insert(consumer, lease_ms);
        true
    }

    fn attach(&mut self, shard: usize, to: (u64, u64), attach: &Attach, now: Now) -> GroupAsked {
        let Attach { at, credit: Credit { records, bytes }, lease_ms, held } = attach;
        let link = Link { to, once: false, records: *records, bytes: *bytes, debt: 0, lease_ms: *lease_ms };
        if self.link(shard, at, link) {
            self.release_all(shard, at, held, now);
        }
        GroupAsked::Attach { group: at.group }
    }

    fn receive(&mut self, shard: usize, to: (u64, u64), receive: &Receive) -> GroupAsked {
        let Receive { at, credit: Credit { records, bytes }, lease_ms, .. } = *receive;
        self.link(shard, &at, Link { to, once: true, records, bytes, debt: 0, lease_ms });
        GroupAsked::Receive { group: at.group }
    }

    fn detach(&mut self, shard: usize, at: &ConsumerAt, now: Now) -> GroupAsked {
        let consumer = (shard, at.group, at.consumer.0);
        let known = self.links.contains_key(&consumer);
        self.cut(consumer, None);
        self.release_all(shard, at, &[], now);
        GroupAsked::Detach { group: at.group, known }
    }

    /// Gives back what a consumer has, but for what it holds on to.
    fn release_all(&mut self, shard: usize, at: &ConsumerAt, held: &[LeaseRange], now: Now) {
        let Some(mut known) = self.known.remove(&at.group) else { return };
        for (index, part) in known.parts.iter_mut().filter(|(_, part)| part.shard == shard) {
            let own = part.leases.iter().filter(|(_, lease)| lease.consumer == at.consumer.0);
            let own: Vec<(u64, u32)> = own.map(|(offset, lease)| (*offset, lease.acquired)).collect();
            for (offset, acquired) in own {
                let holds = |range: &LeaseRange| {
                    (range.partition, range.acquired) == (*index, acquired)
                        && (range.base_offset.0..range.end().0).contains(&offset)
                };
                if !held.iter().any(holds) {
                    part.give_back(offset, &Why::Released, &known.info, self.next_number(), now);
                }
            }
        }
        self.known.insert(at.group, known);
    }

    /// An answer leaves.
    ///
    /// # Panics
    /// If it is not true.
    pub fn answered(
        &mut self,
        logs: &[LogModel],
        shard: usize,
        to: (u64, u64),
        (asked, reply): (&GroupAsked, &Reply),
    ) {
        match (asked, reply) {
            (GroupAsked::Create(create), Reply::Group(info)) => {
                assert_eq!(create.name, info.name);
                self.seen(logs, info);
            }
            (GroupAsked::Delete(name), Reply::GroupDeleted) => {
                self.deleting.remove(name);
                self.set_fate(GroupFate::Gone, |known| known.info.name == *name);
            }
            (GroupAsked::List { settle }, Reply::Groups(list)) => self.listed(logs, list, *settle),
            (GroupAsked::LookUp(name), Reply::GroupFound(info, _)) => {
                assert_eq!(info.name, *name);
                self.seen(logs, info);
            }
            (GroupAsked::States { group, parts }, Reply::GroupStates(states, _)) => {
                // One that is being deleted may have lost its records already.
                if self.known.get(group).is_some_and(|known| known.fate == GroupFate::Alive) {
                    check_states(parts, states);
                }
            }
            (GroupAsked::Reset { refusal: None, .. }, Reply::GroupReset) => {}
            (GroupAsked::Attach { .. }, Reply::Detached) => {
                assert_eq!(self.ended.remove(&to), Some(None), "an Attach ends, and nobody wanted it to");
            }
            (GroupAsked::Detach { .. }, Reply::Detached) => {}
            (GroupAsked::Settle { group, number, items, refusal: None }, Reply::Settled(settled)) => {
                self.settled(logs, (shard, *group), (*number, items), settled.as_ref());
            }
            (asked, reply) => panic!("{reply:?} is no answer to {asked:?}"),
        }
    }

    /// A refusal leaves. True if it may be.
    pub fn refused(&mut self, to: (u64, u64), asked: &GroupAsked, error: &ErrorResponse, busy: bool) -> bool {
        let code = error.error_code().expect("a known code");
        let gone = |groups: &Groups, id: &GroupId| {
            let known = groups.known.get(id);
            code == ErrorCode::UnknownGroup && known.is_none_or(|known| known.fate != GroupFate::Alive)
        };
        match asked {
            GroupAsked::Create(create) => {
                self.creating.remove(&create.name);
                busy || [ErrorCode::UnknownTopic, ErrorCode::GroupExists].contains(&code)
            }
            GroupAsked::Delete(_) => busy || code == ErrorCode::UnknownGroup,
            GroupAsked::List { .. } => false,
            GroupAsked::LookUp(name) => {
                let is_it = |known: &Known| known.info.name == *name && known.fate == GroupFate::Alive;
                code == ErrorCode::UnknownGroup && !self.known.values().any(is_it)
            }
            GroupAsked::States { group, .. } => gone(self, group),
            GroupAsked::Reset { group, refusal } => {
                gone(self, group) || code == ErrorCode::UnknownPartition || *refusal == Some(code)
            }
            GroupAsked::Attach { group } | GroupAsked::Receive { group } => {
                let ended = self.ended.remove(&to).flatten();
                self.links.retain(|_, link| link.to != to);
                ended == Some(code) || gone(self, group) || (self.stopping && code == ErrorCode::ShuttingDown)
            }
            GroupAsked::Detach { group, known } => {
                gone(self, group) || (!known && code == ErrorCode::UnknownConsumer)
            }
            GroupAsked::Settle { group, refusal, .. } => gone(self, group) || *refusal == Some(code),
        }
    }

    /// A `Receive` or an `Attach` is to end now.
    pub fn hurried(&mut self, to: (u64, u64)) {
        let consumer = self.links.iter().find(|(_, link)| link.to == to).map(|(consumer, _)| *consumer);
        if let Some(consumer) = consumer {
            self.cut(consumer, None);
        }
    }

    pub fn session_closed(&mut self, session: u64) {
        self.links.retain(|_, link| link.to.0 != session);
    }

    pub fn stopped(&mut self) {
        self.stopping = true;
        for consumer in self.links.keys().copied().collect::<Vec<_>>() {
            self.cut(consumer, Some(ErrorCode::ShuttingDown));
        }
    }

    /// The broker's memory is gone.
    pub fn crashed(&mut self, logs: &[LogModel]) {
        self.links.clear();
        self.ended.clear();
        self.held_until_us.clear();
        let (now, ahead_us) = (self.now, self.max_ahead_us);
        (self.stopping, self.max_ahead_us) = (false, 0);
        let survives = |shard: usize| {
            move |partition: PartitionId, at: u64| {
                logs[shard].partitions.get(&partition).is_some_and(|facts| at < facts.end)
            }
        };
        for known in self.known.values_mut() {
            for part in known.parts.values_mut() {
                part.crash(self.confirmed[part.shard], (now.mono_us, ahead_us), survives(part.shard));
            }
        }
    }
}

fn check_states(parts: &BTreeMap<u32, Bounds>, states: &[GroupPartition]) {
    for state in states {
        let Some(bounds) = parts.get(&state.partition) else { continue };
        let progress = &state.progress;
        let fits = |value: u64, (low, high): (u64, u64)| (low..=high).contains(&value);
        assert!(fits(progress.lag, bounds.lag), "a lag of {}, not {bounds:?}: {state:?}", progress.lag);
        assert!(
            fits(progress.leased, bounds.leased),
            "{} leased, not {bounds:?}: {state:?}",
            progress.leased
        );
    }
}
