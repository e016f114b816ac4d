//! Drives shards through simulated time: the reactor's twin.
//!
//! It carries events and actions between shards, disks and clients, ends lives
//! in every way in which a broker's life can end, and asks the checker about
//! every answer. All that it decides comes from the seed.

use std::collections::BTreeSet;

use ringbolt::catalog::CatalogUpdate;
use ringbolt::limits::MAX_FETCH_BYTES;
use ringbolt::log::{LogId, SegmentSeq};
use ringbolt::shard::action::{Action, ReadToken, Reply, WriteToken};
use ringbolt::shard::event::{Event, ReplyTo};
use ringbolt_wire::message::{GroupInfo, TopicInfo};
use ringbolt_wire::{ProducerId, ShardId};

use super::check_fetch::FetchAsked;
use super::checker::{Asked, Checker, Open};
use super::clock::{Agenda, Clock};
use super::disk::Disk;
use super::log_model::{LogModel, Print};
use super::node::Node;
use super::planted::Planted;
use super::pool::{SimBuffer, SimPool};
use super::profile::Profile;
use super::rng::Rng;
use super::trace::Trace;
use super::workload::{Body, Client, Cx, GroupBody, Numbers, Outgoing, Wish};
use super::{admin, consumer, group_admin, group_clients, producer};

/// Rounds without time passing after which something runs in circles.
const MAX_ROUNDS_AT_ONCE: u64 = 20_000;

/// What is not due within this time is no reason to wait: nothing else happens,
/// µs.
const IDLE_US: u64 = 3_600_000_000;

/// Rounds without an answer, while requests wait, after which nothing comes.
const MAX_ROUNDS_PER_ANSWER: u64 = 30_000;

/// No request may take longer, long polls and full disks included, µs.
pub(super) const MAX_ANSWER_US: u64 = 20_000_000;

/// What happens at a moment.
#[derive(Debug)]
pub(super) enum Due {
    WriteEnds(usize, u64),
    ReadEnds(usize, u64),
    PrepareEnds(usize, SegmentSeq),
    Catalog(usize, CatalogUpdate),
    CatalogApplied(ShardId, u64),
    /// A client's wake-up, unless it was set anew since.
    Wake(usize, u64),
    Arrives(usize, Outgoing),
    Hears(usize, u64, u64, Reply),
    DiskHasRoom,
    /// A consumer has read what it was sent.
    PauseEnds(usize, ReplyTo),
}

/// A client and its connection.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) client: Box<dyn Client>,
    pub(super) wakes_at_us: Option<u64>,
    /// Requests of a session arrive in order.
    pub(super) last_arrival_us: u64,
    /// And so do their answers.
    pub(super) last_answer_us: u64,
    /// Arrived, and held back until the shard takes produce requests.
    pub(super) held: std::collections::VecDeque<Outgoing>,
}

#[derive(Debug)]
pub struct Simulation {
    pub profile: Profile,
    pub checker: Checker,
    pub nodes: Vec<Node>,
    pub trace: Trace,
    pub clock: Clock,
    pub rng: Rng,
    pub(super) agenda: Agenda<Due>,
    pub(super) seats: Vec<Seat>,
    pub(super) numbers: Numbers,
    /// New work is started.
    pub(super) active: bool,
    pub(super) answers: u64,
    pub(super) term: u64,
    /// Index of the next commit of each shard, as the last recovery said.
    pub(super) recovered_next: Vec<u64>,
    /// Attached consumers that are to be sent nothing.
    pub(super) paused: BTreeSet<(u64, u64)>,
    /// What the broker is made to do wrong.
    pub planted: Option<Planted>,
    rounds_at_once: u64,
    rounds_without_answer: u64,
}

impl Simulation {
    pub fn new(seed: u64, profile: Profile, trace: Trace) -> Simulation {
        let mut rng = Rng::new(seed);
        let mut nodes = Vec::new();
        let mut models = Vec::new();
        for shard in 0..profile.shards {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&rng.next().to_le_bytes());
            id[8..10].copy_from_slice(&shard.to_le_bytes());
            let mut model = LogModel::new(LogId(id), profile.segment_len);
            model.keeps_records = profile.habits.groups > 0;
            models.push(model);
            let disk = Disk::new(profile.segment_len, profile.disk, rng.fork());
            nodes.push(Node::new(disk, SimPool::new(profile.chunks)));
        }
        let mut sim = Simulation {
            profile,
            checker: Checker::new(models),
            nodes,
            trace,
            clock: Clock::new(),
            rng,
            agenda: Agenda::new(),
            seats: Vec::new(),
            numbers: Numbers::default(),
            active: true,
            answers: 0,
            term: 0,
            recovered_next: Vec::new(),
            paused: BTreeSet::new(),
            planted: None,
            rounds_at_once: 0,
            rounds_without_answer: 0,
        };
        sim.seat_clients();
        sim
    }

    fn seat_clients(&mut self) {
        let p = self.profile.clone();
        let mut clients: Vec<Box<dyn Client>> = Vec::new();
        let mut cx = Self::cx(&mut self.rng, &mut self.numbers, (&[], &[]), &p, &self.clock, true);
        clients.push(Box::new(admin::Admin::new(&mut cx)));
        let producers = [
            (p.nameless, producer::Kind::Nameless),
            (p.named, producer::Kind::Named),
            (p.rivals, producer::Kind::Rival),
        ];
        for (count, kind) in producers {
            for _ in 0..count {
                clients.push(Box::new(producer::Producer::new(kind, &mut cx)));
            }
        }
        for i in 0..p.consumers {
            let kind = [consumer::Kind::Tail, consumer::Kind::Cold, consumer::Kind::Prober][i % 3];
            clients.push(Box::new(consumer::Consumer::new(kind, &mut cx)));
        }
        for _ in 0..p.vandals {
            clients.push(Box::new(admin::Vandal::new(&mut cx)));
        }
        if p.habits.groups > 0 {
            clients.push(Box::new(group_admin::GroupAdmin::new(&mut cx)));
        }
        for i in 0..p.group_consumers {
            clients.push(Box::new(group_clients::GroupConsumer::new(i % 2 == 1, &mut cx)));
        }
        for client in clients {
            self.add_client(client);
        }
    }

    /// Adds a client, for a scripted run.
    pub fn add_client(&mut self, client: Box<dyn Client>) -> usize {
        self.seats.push(Seat {
            client,
            wakes_at_us: None,
            last_arrival_us: 0,
            last_answer_us: 0,
            held: std::collections::VecDeque::new(),
        });
        self.seats.len() - 1
    }

    /// For a scripted run.
    pub fn new_session(&mut self) -> u64 {
        self.numbers.new_session()
    }

    /// For a scripted run.
    pub fn new_correlation(&mut self) -> u64 {
        self.numbers.new_correlation()
    }

    /// The session that a client has now.
    pub fn session_of(&self, seat: usize) -> u64 {
        self.seats[seat].client.session()
    }

    pub(super) fn cx<'a>(
        rng: &'a mut Rng,
        numbers: &'a mut Numbers,
        (topics, groups): (&'a [TopicInfo], &'a [GroupInfo]),
        profile: &'a Profile,
        clock: &Clock,
        active: bool,
    ) -> Cx<'a> {
        let (now, habits, shards) = (clock.now(), &profile.habits, profile.shards);
        let forgets = profile.retention_bytes.is_some() || profile.retention_us.is_some();
        Cx { now, rng, topics, groups, shards, habits, active, forgets, wishes: Vec::new(), numbers }
    }

    /// One turn of the loop: time passes, things happen, shards act. False if
    /// there is nothing left to happen.
    pub fn round(&mut self) -> bool {
        let deadlines = self.nodes.iter_mut().filter_map(|node| node.shard().next_deadline());
        let Some(next) = deadlines.chain(self.agenda.next_at()).min() else { return false };
        let before = self.clock.now().mono_us;
        if next > before.saturating_add(IDLE_US) {
            return false;
        }
        // A slow turn of the loop finds several events at once.
        let late = if self.rng.percent(20) { self.rng.below(200) } else { 0 };
        // A shard that wants another turn at once has one, which takes time.
        let at_once = next < before;
        self.clock.advance_to(before.max(next + late) + u64::from(at_once));
        let now = self.clock.now();
        self.rounds_at_once = if at_once || now.mono_us == before { self.rounds_at_once + 1 } else { 0 };
        assert!(self.rounds_at_once < MAX_ROUNDS_AT_ONCE, "the shards run in circles");
        while let Some(due) = self.agenda.pop_due(now.mono_us) {
            self.happen(due);
        }
        self.hand_in_held();
        self.act();
        self.check_waiting(now.mono_us);
        true
    }

    fn check_waiting(&mut self, now_us: u64) {
        self.rounds_without_answer += u64::from(!self.checker.is_idle());
        let fruitless = self.rounds_without_answer > MAX_ROUNDS_PER_ANSWER;
        assert!(!fruitless, "much happens, and no answer comes: {:?}", self.checker.open);
        let mut waiting = self.checker.open.values().filter(|open| !open.may_be_dropped());
        let late = waiting.find(|open| open.asked_at_us + MAX_ANSWER_US < now_us);
        assert!(late.is_none(), "not answered: {late:?}");
    }

    fn happen(&mut self, due: Due) {
        let now = self.clock.now();
        match due {
            Due::WriteEnds(i, token) => {
                let result = self.nodes[i].disk.finish_write(token);
                self.trace.line(now.mono_us, format_args!("s{i} written {token} {result:?}"));
                match &result {
                    Ok(()) => self.checker.logs[i].written(token),
                    Err(_) => self.nodes[i].failed = true,
                }
                let token = WriteToken(token);
                self.nodes[i].handle(Event::Written { token, result }, now);
            }
            Due::ReadEnds(i, token) => {
                let result = self.nodes[i].disk.finish_read(token);
                self.trace.line(now.mono_us, format_args!("s{i} read {token} {}", result.is_ok()));
                self.checker.damaged |= result.is_err();
                self.nodes[i].handle(Event::Read { token: ReadToken(token), result }, now);
            }
            Due::PrepareEnds(i, segment) => {
                let result = self.nodes[i].disk.finish_prepare(segment);
                self.checker.disk_full |= result.is_err();
                self.nodes[i].disk_full |= result.is_err();
                self.trace.line(now.mono_us, format_args!("s{i} prepared {segment} {result:?}"));
                self.nodes[i].handle(Event::SegmentPrepared { segment, result }, now);
            }
            Due::Catalog(i, update) => self.nodes[i].handle(Event::Catalog(update), now),
            Due::CatalogApplied(shard, version) => {
                self.nodes[0].handle(Event::CatalogApplied { shard, version }, now);
            }
            Due::Wake(seat, at_us) => {
                if self.seats.get(seat).is_some_and(|seat| seat.wakes_at_us == Some(at_us)) {
                    self.seats[seat].wakes_at_us = None;
                    self.with_client(seat, |client, cx| client.wake(cx));
                }
            }
            Due::Arrives(seat, outgoing) => self.arrive(seat, outgoing),
            Due::Hears(seat, session, correlation, reply) => {
                if self.seats[seat].client.session() == session {
                    self.with_client(seat, |client, cx| client.hear(correlation, reply, cx));
                    self.disturb(seat);
                }
            }
            Due::DiskHasRoom => self.nodes.iter_mut().for_each(|node| node.disk.set_full(false)),
            Due::PauseEnds(i, from) => self.end_pause(i, from),
        }
    }

    pub(super) fn close(&mut self, seat: usize, session: u64) {
        let now = self.clock.now();
        self.trace.line(now.mono_us, format_args!("c{seat} closes session {session}"));
        self.seats[seat].held.retain(|outgoing| outgoing.session != session);
        self.checker.session_closed(session);
        self.checker.groups.session_closed(session);
        for node in &mut self.nodes {
            node.handle(Event::SessionClosed { core: 0, session }, now);
        }
    }

    pub(super) fn with_client(&mut self, seat: usize, act: impl FnOnce(&mut dyn Client, &mut Cx<'_>)) {
        let mut topics = self.checker.topics.alive();
        topics.retain(|topic| !topic.name.ends_with(".dlq"));
        let groups = self.checker.groups.alive();
        let known = (&topics[..], &groups[..]);
        let mut cx =
            Self::cx(&mut self.rng, &mut self.numbers, known, &self.profile, &self.clock, self.active);
        act(self.seats[seat].client.as_mut(), &mut cx);
        for wish in cx.wishes {
            match wish {
                Wish::WakeIn(us) => self.wake_in(seat, us),
                Wish::Close(session) => self.close(seat, session),
                Wish::Send(outgoing) => {
                    let takes = self.rng.between(1, self.profile.network_us);
                    let seat_mut = &mut self.seats[seat];
                    let at = (self.clock.now().mono_us + takes).max(seat_mut.last_arrival_us);
                    seat_mut.last_arrival_us = at;
                    self.agenda.add(at, Due::Arrives(seat, outgoing));
                }
            }
        }
    }

    pub(super) fn wake_in(&mut self, seat: usize, us: u64) {
        let at = self.clock.now().mono_us + us;
        let wakes_at_us = &mut self.seats[seat].wakes_at_us;
        if wakes_at_us.is_none_or(|before| at < before) {
            *wakes_at_us = Some(at);
            self.agenda.add(at, Due::Wake(seat, at));
        }
    }

    fn arrive(&mut self, seat: usize, outgoing: Outgoing) {
        if self.seats[seat].client.session() != outgoing.session {
            return;
        }
        if self.seats[seat].held.is_empty() && self.takes(&outgoing) {
            self.hand_in(outgoing);
        } else {
            self.seats[seat].held.push_back(outgoing);
        }
    }

    fn takes(&mut self, outgoing: &Outgoing) -> bool {
        !outgoing.body.waits_for_room() || self.nodes[outgoing.shard].shard().accepts_produce()
    }

    fn hand_in_held(&mut self) {
        for seat in 0..self.seats.len() {
            while let Some(outgoing) = self.seats[seat].held.pop_front() {
                if !self.takes(&outgoing) {
                    self.seats[seat].held.push_front(outgoing);
                    break;
                }
                self.hand_in(outgoing);
            }
        }
    }

    pub fn hand_in(&mut self, outgoing: Outgoing) {
        let now = self.clock.now();
        let asked = self.asked(&outgoing);
        self.trace.line(
            now.mono_us,
            format_args!("s{} <- {}/{} {asked:?}", outgoing.shard, outgoing.session, outgoing.correlation),
        );
        let shard = outgoing.shard;
        let open = Open { shard, asked_at_us: now.mono_us, asked, unheard: false };
        let silent = matches!(&outgoing.body, Body::Group(GroupBody::Settle(settle)) if !settle.confirm);
        if !silent {
            self.answer_too_early(&open);
            self.checker.asked(outgoing.session, outgoing.correlation, open);
        }
        self.nodes[shard].request(&outgoing, now);
    }

    /// What is known at the moment when a request is handed in.
    fn asked(&mut self, outgoing: &Outgoing) -> Asked {
        let (checker, shard) = (&mut self.checker, outgoing.shard);
        match &outgoing.body {
            Body::Group(body) => {
                let at = (shard, (outgoing.session, outgoing.correlation));
                let node = &mut self.nodes[shard];
                let held = node.shard().groups_held();
                assert!(held.is_none() || node.disk_full, "{held:?}, and the disk is not full");
                Asked::Group(checker.groups.asked(&checker.logs, at, body, held, self.clock.now()))
            }
            Body::Produce { batch, refusal, .. } => {
                let print = Print::of_sent(batch);
                let topic = print.partition.topic;
                let (alive, gone) = (checker.topics.is_alive(topic), checker.topics.is_gone(topic));
                if refusal.is_none() {
                    checker.sent(print);
                }
                Asked::Produce { print, refusal: *refusal, alive, gone }
            }
            Body::Fetch(fetch) => {
                let parts = &fetch.partitions;
                let asked_at_us = self.clock.now().mono_us;
                Asked::Fetch(FetchAsked {
                    asked_at_us,
                    ends: parts.iter().map(|part| checker.durable_end(part.partition)).collect(),
                    alive: parts.iter().map(|part| checker.topics.is_alive(part.partition.topic)).collect(),
                    gone: parts.iter().map(|part| checker.topics.is_gone(part.partition.topic)).collect(),
                    hurried: checker.stopping,
                    fetch: fetch.clone(),
                })
            }
            Body::Offsets(partition, spec) => {
                let (end, alive) =
                    (checker.durable_end(*partition), checker.topics.is_alive(partition.topic));
                Asked::Offsets { partition: *partition, spec: *spec, end, alive }
            }
            Body::Open(open) => {
                let (durable_next, durable_epoch) = match open.producer {
                    ProducerId::NONE => (0, 0),
                    id => checker.durable_producer(open.partition, id.0),
                };
                let alive = checker.topics.is_alive(open.partition.topic);
                Asked::Open { open: *open, durable_next, durable_epoch, alive }
            }
            Body::States(topic) => checker.asked_states(*topic, shard),
            Body::Create { name, refusal, .. } => Asked::Create { name: name.clone(), refusal: *refusal },
            Body::Delete(name) => Asked::Delete { name: name.clone() },
            Body::List { settle } => Asked::List { settle: *settle },
            Body::LookUp(name) => Asked::LookUp { name: name.clone() },
        }
    }

    pub(super) fn act(&mut self) {
        let now = self.clock.now();
        self.observe_retention();
        self.checker.groups.note_time(now);
        for i in 0..self.nodes.len() {
            let was_held = self.nodes[i].shard().groups_held().is_some();
            while let Some(action) = self.nodes[i].shard().poll_action(now) {
                self.note_hold(i, was_held);
                self.carry_out(i, action);
            }
            self.note_hold(i, was_held);
            self.checker.groups.acted(&self.checker.logs, i, now);
        }
    }

    /// Leases do not run out while the disk is full, and two seconds longer.
    fn note_hold(&mut self, i: usize, was_held: bool) {
        let (until_us, now) = (self.nodes[i].shard().leases_last_until_us(), self.clock.now());
        if until_us == self.checker.groups.held_until_us(i) {
            return;
        }
        if until_us == 0 {
            // The broker has started since.
            return self.checker.groups.hold(i, 0);
        }
        let is_held = until_us == u64::MAX;
        assert!(if is_held { self.nodes[i].disk_full } else { until_us == now.mono_us + 2_000_000 });
        self.nodes[i].disk_full &= is_held;
        if is_held && !was_held {
            // What was due had ended before.
            self.checker.groups.acted(&self.checker.logs, i, now);
        }
        self.checker.groups.hold(i, until_us);
    }

    fn carry_out(&mut self, i: usize, action: Action<SimBuffer>) {
        let now = self.clock.now();
        let at = now.mono_us;
        match action {
            Action::Reply { to, reply } => self.reply(i, to, reply),
            Action::Write { token, segment, position, data } => {
                assert!(!self.nodes[i].failed, "a shard writes after a write has failed");
                let (len, crc) = (data.len(), ringbolt_wire::crc32c(&data));
                self.trace
                    .line(at, format_args!("s{i} writes {} {segment}:{position}+{len} {crc:08x}", token.0));
                self.checker.write_submitted(i, token.0, segment, position, &data);
                self.observe_retention();
                let takes = self.nodes[i].disk.submit_write(token.0, segment, position, data);
                self.agenda.add(at + takes, Due::WriteEnds(i, token.0));
            }
            Action::Read { token, segment, position, buffer } => {
                let takes = self.nodes[i].disk.submit_read(token.0, segment, position, buffer);
                self.trace.line(at, format_args!("s{i} reads {} {segment}:{position}", token.0));
                self.agenda.add(at + takes, Due::ReadEnds(i, token.0));
            }
            Action::PrepareSegment { segment } => {
                let takes = self.nodes[i].disk.submit_prepare(segment);
                self.trace.line(at, format_args!("s{i} prepares {segment}"));
                self.agenda.add(at + takes, Due::PrepareEnds(i, segment));
            }
            Action::RecycleSegment { segment } => {
                self.trace.line(at, format_args!("s{i} recycles {segment}"));
                self.checker.logs[i].recycled(segment);
                self.nodes[i].disk.recycle(segment);
            }
            Action::PublishCatalog(update) => {
                for other in 1..self.nodes.len() {
                    // Changes reach a shard in order, as through a queue.
                    self.agenda.add(at + self.profile.network_us, Due::Catalog(other, update.clone()));
                }
            }
            Action::CatalogApplied { shard, version } => {
                self.agenda.add(at + self.profile.network_us, Due::CatalogApplied(shard, version));
            }
            Action::Stop(error) => {
                self.trace.line(at, format_args!("s{i} stops: {error}"));
                assert!(self.nodes[i].failed, "the shard stops without a fault: {error}");
                self.nodes[i].stopped = true;
            }
        }
    }

    /// Lets the log models know how much need not be retained.
    fn observe_retention(&mut self) {
        let wall_us = self.clock.now().wall_us;
        let since_us = self.profile.retention_us.map(|age| wall_us.saturating_sub(age));
        for log in &mut self.checker.logs {
            log.observe(self.profile.retention_bytes, since_us);
        }
    }

    fn reply(&mut self, i: usize, to: ReplyTo, reply: Reply) {
        let at = self.clock.now().mono_us;
        self.trace.line(at, format_args!("s{i} -> {}/{} {}", to.session, to.correlation, brief(&reply)));
        assert!(!self.nodes[i].failed, "a shard answers after a write has failed: {reply:?}");
        let is_paused = self.paused.contains(&(to.session, to.correlation));
        assert!(
            !(is_paused && matches!(reply, Reply::Delivered { .. })),
            "a paused consumer is sent {reply:?}"
        );
        let is_heard = self.checker.replied(i, to, &reply, self.clock.now());
        self.answers += 1;
        self.rounds_without_answer = 0;
        if !is_heard {
            return;
        }
        self.lease_for_ever(i, to, &reply);
        let seat = self.seats.iter().position(|seat| seat.client.session() == to.session);
        let seat = seat.expect("a session that is not closed has a client");
        // A slow reader keeps the memory of its answer.
        let takes = self.rng.between(1, self.profile.network_us) * if self.rng.one_in(30) { 50 } else { 1 };
        let at = (at + takes).max(self.seats[seat].last_answer_us);
        self.seats[seat].last_answer_us = at;
        self.agenda.add(at, Due::Hears(seat, to.session, to.correlation, reply));
    }
}

fn brief(reply: &Reply) -> String {
    match reply {
        Reply::Fetched { partitions, payload } => {
            let bytes: usize = payload.iter().map(|piece| piece.len()).sum();
            assert!(bytes <= MAX_FETCH_BYTES as usize + (2 << 20), "an answer of {bytes} bytes");
            format!("Fetched {bytes} bytes {partitions:?}")
        }
        Reply::Delivered { delivery, payload } => {
            let bytes: usize = payload.iter().map(|piece| piece.len()).sum();
            format!("Delivered {bytes} bytes {delivery:?}")
        }
        other => format!("{other:?}"),
    }
}
