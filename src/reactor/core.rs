//! What one core has: its ring, its shards with their disks, its mailbox, and
//! the sessions that wait for a shard.

use std::collections::VecDeque;
use std::sync::Arc;

use ringbolt_wire::ShardId;

use super::copies::Copies;
use super::message::{Course, Message, Shared};
use super::snapshot::Snapshot;
use crate::io::disk::Disk;
use crate::io::mailbox::Mailbox;
use crate::io::net::{Handover, Host, Net};
use crate::io::pool::{Pool, PoolBuffer};
use crate::io::ring::{Completion, Ring};
use crate::limits::{MAX_HELD, MAX_OUTGOING};
use crate::session::Shards;
use crate::shard::Shard;
use crate::shard::action::Action;
use crate::shard::event::{Event, Payload, ReplyTo, ShardRequest};
use crate::time::Now;

/// Where a shard is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this core: its index there.
    Here(usize),
    /// On that core.
    On(u16),
}

/// A shard with its disk.
pub struct LocalShard {
    /// Its number.
    pub id: ShardId,
    /// The state machine.
    pub shard: Shard<Pool>,
    /// What it writes to.
    pub disk: Disk,
}

/// See the module.
pub struct Core {
    pub(super) ring: Ring,
    pub(super) mailbox: Mailbox<Message>,
    pub(super) now: Now,
    pub(super) shards: Vec<LocalShard>,
    /// Whether a session that waited for its shard goes on now.
    pub(super) resuming: bool,
    cores: u16,
    shared: Arc<Shared>,
    /// Changes of `shared` that this core has acted upon.
    seen_changes: u32,
    /// For each shard of the broker.
    places: Vec<Place>,
    /// For each shard of the broker, sessions that wait for it.
    stalled: Vec<VecDeque<u64>>,
    stalled_count: usize,
    /// For each shard of the broker, requests from other cores that it has no
    /// room for yet: at most [`MAX_HELD`].
    held: Vec<VecDeque<Held>>,
    held_count: usize,
    pool: Pool,
    copies: Copies,
    stats: StatsRequests,
}

/// A request from another core that its shard has no room for yet.
struct Held {
    from: ReplyTo,
    request: ShardRequest<'static, PoolBuffer>,
    /// It is to be answered as soon as it was handed in.
    is_hurried: bool,
}

impl Held {
    /// Whether it lasts as long as the session.
    fn is_of_session(&self, core: u16, session: u64) -> bool {
        let lasts = matches!(self.request, ShardRequest::Attach(_) | ShardRequest::Receive(_));
        lasts && (self.from.core, self.from.session) == (core, session)
    }
}

/// A session, its request, and the broker's counters for it.
pub(super) type StatsAnswer = (u64, u64, Vec<(String, u64)>);

/// Who waits for the broker's counters.
#[derive(Default)]
struct StatsRequests {
    /// Sessions of this core.
    sessions: Vec<(u64, u64)>,
    /// Sessions whose sum is being gathered: a request for all of them goes
    /// round at a time.
    gathering: Vec<(u64, u64)>,
    sum: Snapshot,
    missing: u16,
    /// Cores that asked.
    cores: Vec<u16>,
}

impl Drop for Core {
    fn drop(&mut self) {
        // Then the files can be closed, and are free for the next start. Otherwise
        // they stay open, and locked, while they are written to.
        if self.ring.quiesce() {
            self.shards.iter_mut().for_each(|shard| shard.disk.all_ended());
        }
    }
}

impl Core {
    /// A core with its parts. `places` tells for each shard of the broker where
    /// it is driven.
    pub fn new(
        ring: Ring,
        mailbox: Mailbox<Message>,
        shards: Vec<LocalShard>,
        places: Vec<Place>,
        pool: Pool,
        shared: Arc<Shared>,
        now: Now,
    ) -> Core {
        let cores = mailbox.post().cores();
        let (stalled, held) = places.iter().map(|_| (VecDeque::new(), VecDeque::new())).unzip();
        Core {
            ring,
            mailbox,
            now,
            shards,
            resuming: false,
            cores,
            shared,
            seen_changes: 0,
            places,
            stalled,
            stalled_count: 0,
            held,
            held_count: 0,
            pool,
            copies: Copies::default(),
            stats: StatsRequests::default(),
        }
    }

    /// This core's number.
    pub fn id(&self) -> u16 {
        self.mailbox.core()
    }

    /// The ring, for what is registered with it before the loop starts.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    pub(super) fn disk_completed(&mut self, completion: Completion) {
        let shard = Disk::shard_of(completion.token);
        let Place::Here(index) = self.places[usize::from(shard.0)] else {
            unreachable!("a completion for a disk of another core")
        };
        self.shards[index].disk.complete(&mut self.ring, completion);
        self.pass_disk_events(index);
    }

    fn pass_disk_events(&mut self, index: usize) {
        let LocalShard { shard, disk, .. } = &mut self.shards[index];
        while let Some(event) = disk.next_event() {
            shard.handle(event, self.now);
        }
    }

    /// Lets the disks start what follows from the completions of this turn.
    #[inline]
    pub(super) fn tick_disks(&mut self) {
        let now_us = self.now.mono_us;
        for local in &mut self.shards {
            local.disk.tick(&mut self.ring, now_us);
        }
    }

    /// What a shard asks for next; nothing while too many messages wait for room
    /// in others' mailboxes, to which the answers would only be added.
    #[inline]
    pub(super) fn poll_action(&mut self, index: usize) -> Option<Action<PoolBuffer>> {
        if self.mailbox.waiting() >= MAX_OUTGOING {
            return None;
        }
        self.shards[index].shard.poll_action(self.now)
    }

    /// Whether a shard asks for something, or takes what waits for it.
    pub(super) fn has_actions(&self) -> bool {
        let waits =
            |id: usize| self.holds_back() && !(self.stalled[id].is_empty() && self.held[id].is_empty());
        self.mailbox.waiting() < MAX_OUTGOING && self.shards.iter().any(|local| local.shard.has_actions())
            || self.shards.iter().any(|l| waits(usize::from(l.id.0)) && l.shard.accepts_produce())
    }

    /// Carries out what a shard asks for, answers to this core's sessions
    /// excepted.
    pub(super) fn perform(&mut self, index: usize, action: Action<PoolBuffer>) {
        let ring = &mut self.ring;
        let disk = &mut self.shards[index].disk;
        match action {
            Action::Write { token, segment, position, data } => {
                disk.write(ring, token, segment, position, data)
            }
            Action::Read { token, segment, position, buffer } => {
                disk.read(ring, token, segment, position, buffer);
            }
            Action::PrepareSegment { segment } => disk.prepare(ring, segment),
            Action::RecycleSegment { segment } => disk.recycle(ring, segment),
            Action::Reply { to, reply } => self.mailbox.send(ring, to.core, Message::Reply { to, reply }),
            Action::PublishCatalog(update) => {
                self.tell_other_cores(|| Message::Catalog(update.clone()));
                for other in self.shards.iter_mut().filter(|s| s.id != ShardId(0)) {
                    other.shard.handle(Event::Catalog(update.clone()), self.now);
                }
            }
            Action::CatalogApplied { shard, version } => match self.places[0] {
                Place::Here(first) => {
                    self.shards[first].shard.handle(Event::CatalogApplied { shard, version }, self.now);
                }
                Place::On(core) => {
                    self.mailbox.send(ring, core, Message::CatalogApplied { shard, version });
                }
            },
            Action::Stop(_) => unreachable!("the loop ends with a shard that has stopped"),
        }
        // What can be said at once about an operation is said now.
        self.pass_disk_events(index);
    }

    /// Takes a message that concerns shards or counters.
    pub(super) fn message(&mut self, message: Message) {
        match message {
            Message::Request { shard, from, request } => self.request_here(shard, from, request),
            Message::FetchNow { shard, from } => {
                match self.held[usize::from(shard.0)].iter_mut().find(|held| held.from == from) {
                    Some(held) => held.is_hurried = true,
                    None => self.handle_at(shard, Event::FetchNow { from }),
                }
            }
            // One that is not attached yet is told again with its first delivery.
            Message::Pause { shard, from, pauses } => self.handle_at(shard, Event::Pause { from, pauses }),
            Message::SessionClosed { core, session } => {
                self.forget_held(core, session);
                self.handle_all(|| Event::SessionClosed { core, session });
            }
            Message::Catalog(update) => self.handle_all(|| Event::Catalog(update.clone())),
            Message::CatalogApplied { shard, version } => {
                self.handle_at(ShardId(0), Event::CatalogApplied { shard, version });
            }
            Message::SnapshotWanted { core } => self.stats.cores.push(core),
            Message::Snapshot(snapshot) => {
                self.stats.sum.add(&snapshot);
                self.stats.missing -= 1;
            }
            Message::Reply { .. } | Message::Connection(_) => {
                unreachable!("the loop takes these")
            }
        }
    }

    /// Hands a request from another core to its shard. What appends waits for
    /// room in the order in which it came, and what asks how far a producer got
    /// waits behind it; reading goes on.
    fn request_here(&mut self, shard: ShardId, from: ReplyTo, request: ShardRequest<'static, PoolBuffer>) {
        let appends = request.appends();
        let waits = match self.held[usize::from(shard.0)].is_empty() {
            true => appends && !self.local(shard).shard.accepts_produce(),
            false => appends || matches!(request, ShardRequest::OpenProducer(_)),
        };
        if !waits {
            return self.handle_at(shard, Event::Request { from, request });
        }
        self.shared.set_full(shard, true);
        let held = &mut self.held[usize::from(shard.0)];
        assert!(held.len() < MAX_HELD, "a core was told to send no more, and goes on");
        held.push_back(Held { from, request, is_hurried: false });
        self.held_count += 1;
    }

    /// Drops what would last as long as a session that is gone: handed in after it, that
    /// would be a consumer for ever.
    fn forget_held(&mut self, core: u16, session: u64) {
        if self.held_count == 0 {
            return;
        }
        for local in &self.shards {
            let held = &mut self.held[usize::from(local.id.0)];
            held.retain(|held| !held.is_of_session(core, session));
            if held.is_empty() {
                self.shared.set_full(local.id, false);
            }
        }
        self.held_count = self.held.iter().map(VecDeque::len).sum();
    }

    /// Hands in what a shard had no room for, as far as it has now.
    pub(super) fn retry_held(&mut self) {
        if self.held_count == 0 {
            return;
        }
        for index in 0..self.shards.len() {
            let shard = self.shards[index].id;
            while self.shards[index].shard.accepts_produce()
                && let Some(held) = self.held[usize::from(shard.0)].pop_front()
            {
                self.held_count -= 1;
                let Held { from, request, is_hurried } = held;
                self.handle_at(shard, Event::Request { from, request });
                if is_hurried {
                    self.handle_at(shard, Event::FetchNow { from });
                }
            }
            if self.held[usize::from(shard.0)].is_empty() {
                self.shared.set_full(shard, false);
            }
        }
    }

    /// What the broker is asked to do.
    #[inline]
    pub(super) fn course(&mut self) -> Course {
        self.seen_changes = self.shared.changes();
        self.shared.course()
    }

    /// Announces that this core is about to sleep, unless there are messages or
    /// a change of what all cores share that it has not seen.
    #[must_use]
    #[inline]
    pub(super) fn may_sleep(&mut self) -> bool {
        self.mailbox.may_sleep(|| self.shared.changes() != self.seen_changes)
    }

    /// Whether anybody waits for a shard to take requests again.
    #[inline]
    pub(super) fn holds_back(&self) -> bool {
        self.stalled_count > 0 || self.held_count > 0
    }

    fn local(&mut self, shard: ShardId) -> &mut LocalShard {
        match self.places[usize::from(shard.0)] {
            Place::Here(index) => &mut self.shards[index],
            Place::On(core) => unreachable!("shard {shard} is on core {core}"),
        }
    }

    fn handle_at(&mut self, shard: ShardId, event: Event<'_, PoolBuffer>) {
        let now = self.now;
        self.local(shard).shard.handle(event, now);
    }

    pub(super) fn handle_all(&mut self, mut event: impl FnMut() -> Event<'static, PoolBuffer>) {
        for local in &mut self.shards {
            local.shard.handle(event(), self.now);
        }
    }

    fn tell_other_cores(&mut self, mut message: impl FnMut() -> Message) {
        let own = self.id();
        for core in (0..self.cores).filter(|&core| core != own) {
            self.mailbox.send(&mut self.ring, core, message());
        }
    }

    /// Whether `shard` takes a request, apart from who waits for it already.
    #[inline]
    fn takes(&mut self, shard: ShardId, appends: bool) -> bool {
        match self.places[usize::from(shard.0)] {
            Place::Here(index) => !appends || self.shards[index].shard.accepts_produce(),
            // A batch on its way to another core lies in the pool.
            Place::On(_) => {
                self.mailbox.waiting() == 0
                    && (!appends || !self.shared.is_full(shard) && self.copies.has_room(&mut self.pool))
            }
        }
    }

    /// The next session that waits for a shard which takes requests again.
    pub(super) fn next_resumable(&mut self) -> Option<u64> {
        if self.stalled_count == 0 {
            return None;
        }
        let ready = (0..self.stalled.len())
            .find(|&shard| !self.stalled[shard].is_empty() && self.takes(ShardId(shard as u16), true))?;
        self.stalled_count -= 1;
        self.stalled[ready].pop_front()
    }

    /// Whether a shard writes as many commits as it may.
    pub(super) fn disk_is_saturated(&self) -> bool {
        self.shards.iter().any(|local| local.shard.is_saturated())
    }

    /// After a stop: a shard that is not done with what it was asked for.
    pub(super) fn undrained_shard(&self) -> Option<ShardId> {
        let is_done =
            |local: &LocalShard| local.shard.is_drained() && self.held[usize::from(local.id.0)].is_empty();
        self.shards.iter().find(|local| !is_done(local)).map(|local| local.id)
    }

    /// Says that this core has no connections left.
    pub(super) fn tell_drained(&mut self) {
        if self.shared.drained_one() == self.cores {
            let post = self.mailbox.post();
            (0..self.cores).for_each(|core| post.wake(core));
        }
    }

    pub(super) fn all_drained(&self) -> bool {
        self.shared.drained() == self.cores
    }

    /// Whether somebody waits for this core's counters.
    #[inline]
    pub(super) fn wants_snapshot(&self) -> bool {
        !self.stats.sessions.is_empty() || !self.stats.cores.is_empty() || !self.stats.gathering.is_empty()
    }

    /// This core's counters.
    pub(super) fn snapshot(&self, net: &Net) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for local in &self.shards {
            snapshot.add_shard(&local.shard.counters(), local.disk.stats());
            snapshot.add_value("buffered_shards", u64::from(local.disk.is_buffered()));
        }
        snapshot.add_net(net.counters(), &net.session_config().counters);
        snapshot.add_ring(&self.ring.counters());
        snapshot.add_value("forwarded_bytes_total", self.copies.bytes);
        snapshot.add_value("copied_bytes_total", self.copies.bytes);
        snapshot.add_value("stalled_sessions", self.stalled_count as u64);
        if self.id() == 0 {
            let chunk = crate::limits::CHUNK_LEN as u64;
            snapshot.add_value("pool_bytes", self.pool.chunks() as u64 * chunk);
            let available = crate::buffer::BufferPool::available(&self.pool) as u64;
            snapshot.add_value("pool_free_bytes", available * chunk);
        }
        snapshot
    }

    /// Gives this core's counters to those who asked; asks the other cores for
    /// theirs if a session wants the sum. Returns the sums that are complete:
    /// session, request, values.
    pub(super) fn spread_snapshot(&mut self, snapshot: Snapshot) -> Vec<StatsAnswer> {
        for core in std::mem::take(&mut self.stats.cores) {
            let message = Message::Snapshot(Box::new(snapshot.clone()));
            self.mailbox.send(&mut self.ring, core, message);
        }
        if self.stats.gathering.is_empty() && !self.stats.sessions.is_empty() {
            self.stats.gathering = std::mem::take(&mut self.stats.sessions);
            self.stats.sum = Snapshot::default();
            self.stats.missing = self.cores - 1;
            let core = self.id();
            self.tell_other_cores(|| Message::SnapshotWanted { core });
        }
        if self.stats.missing > 0 || self.stats.gathering.is_empty() {
            return Vec::new();
        }
        // This core's own counters are added last, so that they are as fresh
        // as the answer.
        self.stats.sum.add(&snapshot);
        let values = self.stats.sum.values();
        let waiting = std::mem::take(&mut self.stats.gathering);
        waiting.into_iter().map(|(session, number)| (session, number, values.clone())).collect()
    }

    fn forward(&mut self, core: u16, shard: ShardId, from: ReplyTo, request: ShardRequest<'_, PoolBuffer>) {
        let request = self.owned(request);
        self.mailbox.send(&mut self.ring, core, Message::Request { shard, from, request });
    }

    /// The request with nothing borrowed.
    fn owned(&mut self, request: ShardRequest<'_, PoolBuffer>) -> ShardRequest<'static, PoolBuffer> {
        match request {
            ShardRequest::Produce { payload, min_copies } => {
                let payload = match payload {
                    Payload::Borrowed(batch) => self.copies.copy(batch),
                    Payload::Shared(bytes) => Payload::Shared(bytes),
                    Payload::Aligned { buffer, len } => Payload::Aligned { buffer, len },
                };
                ShardRequest::Produce { payload, min_copies }
            }
            ShardRequest::Fetch(fetch) => ShardRequest::Fetch(fetch),
            ShardRequest::Offsets { partition, spec } => ShardRequest::Offsets { partition, spec },
            ShardRequest::OpenProducer(open) => ShardRequest::OpenProducer(open),
            ShardRequest::PartitionStates(topic) => ShardRequest::PartitionStates(topic),
            ShardRequest::CreateTopic { name, partitions } => ShardRequest::CreateTopic { name, partitions },
            ShardRequest::DeleteTopic { name } => ShardRequest::DeleteTopic { name },
            ShardRequest::ListTopics => ShardRequest::ListTopics,
            ShardRequest::LookUpTopic { name } => ShardRequest::LookUpTopic { name },
            ShardRequest::CreateGroup(create) => ShardRequest::CreateGroup(create),
            ShardRequest::DeleteGroup { name } => ShardRequest::DeleteGroup { name },
            ShardRequest::ListGroups => ShardRequest::ListGroups,
            ShardRequest::LookUpGroup { name } => ShardRequest::LookUpGroup { name },
            ShardRequest::GroupStates(group) => ShardRequest::GroupStates(group),
            ShardRequest::ResetGroup { group, to, partition } => {
                ShardRequest::ResetGroup { group, to, partition }
            }
            ShardRequest::Attach(attach) => ShardRequest::Attach(attach),
            ShardRequest::Detach(at) => ShardRequest::Detach(at),
            ShardRequest::Receive(receive) => ShardRequest::Receive(receive),
            ShardRequest::Settle(settle) => ShardRequest::Settle(settle),
        }
    }
}

impl Host for Core {
    #[inline]
    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    #[inline]
    fn now(&self) -> Now {
        self.now
    }

    #[inline]
    fn shards_for(&mut self, session: u64) -> impl Shards<Buffer = PoolBuffer> + '_ {
        SessionShards { core: self, session }
    }

    fn stalled(&mut self, session: u64, shard: ShardId) {
        self.stalled_count += 1;
        self.stalled[usize::from(shard.0)].push_back(session);
    }

    fn session_closed(&mut self, session: u64) {
        let core = self.id();
        self.handle_all(|| Event::SessionClosed { core, session });
        self.tell_other_cores(|| Message::SessionClosed { core, session });
    }

    fn hand_over(&mut self, core: u16, connection: Handover) {
        self.mailbox.send(&mut self.ring, core, Message::Connection(connection));
    }
}

/// The shards, as one session reaches them.
struct SessionShards<'a> {
    core: &'a mut Core,
    session: u64,
}

impl SessionShards<'_> {
    #[inline]
    fn reply_to(&self, number: u64) -> ReplyTo {
        ReplyTo { core: self.core.mailbox.core(), session: self.session, correlation: number }
    }
}

impl Shards for SessionShards<'_> {
    type Buffer = PoolBuffer;

    #[inline]
    fn accepts(&mut self, shard: ShardId, appends: bool) -> bool {
        let is_turn = self.core.resuming || self.core.stalled[usize::from(shard.0)].is_empty();
        (is_turn || !appends) && self.core.takes(shard, appends)
    }

    #[inline]
    fn request(&mut self, shard: ShardId, number: u64, request: ShardRequest<'_, PoolBuffer>) {
        let from = self.reply_to(number);
        match self.core.places[usize::from(shard.0)] {
            Place::Here(index) => {
                let now = self.core.now;
                self.core.shards[index].shard.handle(Event::Request { from, request }, now);
            }
            Place::On(core) => self.core.forward(core, shard, from, request),
        }
    }

    fn fetch_now(&mut self, shard: ShardId, number: u64) {
        let from = self.reply_to(number);
        match self.core.places[usize::from(shard.0)] {
            Place::Here(_) => self.core.handle_at(shard, Event::FetchNow { from }),
            Place::On(core) => {
                self.core.mailbox.send(&mut self.core.ring, core, Message::FetchNow { shard, from });
            }
        }
    }

    fn pause(&mut self, shard: ShardId, number: u64, pauses: bool) {
        let from = self.reply_to(number);
        match self.core.places[usize::from(shard.0)] {
            Place::Here(_) => self.core.handle_at(shard, Event::Pause { from, pauses }),
            Place::On(core) => {
                let message = Message::Pause { shard, from, pauses };
                self.core.mailbox.send(&mut self.core.ring, core, message);
            }
        }
    }

    fn stats(&mut self, number: u64) {
        self.core.stats.sessions.push((self.session, number));
    }
}
