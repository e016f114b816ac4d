//! The shard itself: events in, actions out, and everything that moves its log
//! on: commits, segments, retention, reading pages.

use std::collections::VecDeque;

use ringbolt_wire::message::{ErrorResponse, ProducerOpened};
use ringbolt_wire::{ErrorCode, PartitionId, ShardId, TopicId};
use rustc_hash::FxHashMap;

use super::action::{Action, FatalError, Reply, WriteToken};
use super::beginnings::INTERNAL;
use super::config::ShardConfig;
use super::counters::ShardCounters;
use super::dead_letter::Moves;
use super::event::{DiskFault, Event, ReplyTo, ShardRequest};
use super::fetch::Fetches;
use super::group_log::GroupLog;
use super::placement::shard_of;
use super::read::LogReader;
use super::segments::{SegmentWrite, Segments};
use super::topics::PendingChange;
use crate::buffer::{BufferPool, Carver};
use crate::catalog::Catalog;
use crate::consumer::{GROUPS_PARTITION, Groups};
use crate::limits::{BLOCK_LEN, MAX_SEALED_COMMITS};
use crate::log::commit::OpenCommit;
use crate::log::group_commit::{DurableCommit, GroupCommit, share};
use crate::log::pages::Pages;
use crate::log::recovery::{Cut, LogIdentity, RecoveredLog};
use crate::log::segment::{Trailer, encode_head};
use crate::log::state::LogState;
use crate::log::tail_cache::TailCache;
use crate::log::{Lsn, SegmentSeq, footer};
use crate::time::Now;

/// How long the last commit may stay the last before one without batches
/// follows it, to put its durability on record.
const RECORD_DURABLE_AFTER_US: u64 = 100_000;

/// How long until that is tried again when there was no room for it.
const RECORD_DURABLE_RETRY_US: u64 = 1_000_000;

/// How often the age of segments is looked at when nothing else happens.
const RETAIN_EVERY_US: u64 = 1_000_000;

/// How long until a page is read for which there was no memory.
const PAGES_RETRY_US: u64 = 1000;

/// Pages read at once: enough to keep a disk busy, few enough not to delay
/// commits much.
const MAX_READS_IN_FLIGHT: usize = 4;

/// A shard. See the [module](super).
pub struct Shard<P: BufferPool> {
    pub(super) config: ShardConfig,
    pub(super) identity: LogIdentity,
    pub(super) pool: P,
    pub(super) state: LogState,
    /// Partitions of each topic, on whatever shard.
    pub(super) topics: FxHashMap<TopicId, u32>,
    pub(super) commits: GroupCommit<P::Buffer>,
    /// What the last commit left of its buffer: memory for the next one.
    pub(super) commit_rest: Option<P::Buffer>,
    /// When the open commit was started (monotonic, µs).
    pub(super) opened_at_us: u64,
    pub(super) segments: Segments,
    pub(super) reader: LogReader,
    pub(super) fetches: Fetches,
    pub(super) groups: Groups,
    pub(super) group_log: GroupLog,
    pub(super) moves: Moves,
    pub(super) changes: VecDeque<PendingChange>,
    /// Who has opened a producer, and the answer once the commit with this index
    /// is durable.
    pub(super) waiting_opens: VecDeque<(u64, ReplyTo, ProducerOpened)>,
    pub(super) out: VecDeque<Action<P::Buffer>>,
    pub(super) counters: ShardCounters,
    pub(super) random: u64,
    carver: Carver<P::Buffer>,
    last_token: u64,
    writes: FxHashMap<WriteToken, (SegmentSeq, u64)>,
    /// When the last commit's durability is to be put on record (monotonic, µs).
    record_at_us: u64,
    /// When segments were last looked at for retention (monotonic, µs).
    retained_at_us: u64,
    /// Pages are wanted and there was no memory to read them into: when to try
    /// again (monotonic, µs). Another core may give memory back, and says nothing.
    pages_retry_us: Option<u64>,
    pub(super) stopping: bool,
    /// While stopping: the last commit's durability cannot be put on record.
    unrecordable: bool,
    failed: bool,
    /// Something was cut from the end of the log, and nothing has taken its place
    /// yet.
    pub(super) replace_cut: bool,
}

impl<P: BufferPool> Shard<P> {
    /// A shard that goes on where its log ends.
    pub fn new(
        config: ShardConfig,
        mut recovered: RecoveredLog,
        catalog: &Catalog,
        pool: P,
        now: Now,
    ) -> Self {
        let identity = recovered.identity;
        let segments = Segments::new(&mut recovered);
        let mut state = recovered.state;
        state.catalog = if config.shard == ShardId(0) { catalog.clone() } else { Catalog::default() };
        // Until the open segment is full, recovery finds in it, and puts in its
        // footer, partitions that are deleted by now.
        state.reset_footer_len_for_open(recovered.open.map(|(segment, _)| segment));
        state.retain_partitions(|id| {
            [crate::catalog::CATALOG_PARTITION, GROUPS_PARTITION].contains(&id)
                || catalog.get(id.topic).is_some_and(|topic| id.index < topic.partitions)
        });
        state.groups.retain(|key| catalog.group(key.group).is_some());
        let durable_end = recovered
            .open
            .map_or(Lsn(u64::MAX), |(segment, position)| Lsn::new(segment, position, identity.segment_len));
        let mut shard = Shard {
            commits: GroupCommit::new(
                identity.log_id,
                identity.term,
                identity.segment_len,
                config.commits_in_flight,
                recovered.tail,
                recovered.last_is_unrecorded,
            ),
            reader: LogReader::new(
                TailCache::new(config.tail_cache_bytes),
                Pages::new(config.page_cache_bytes),
                identity.segment_len,
                durable_end,
            ),
            random: config.seed,
            config,
            identity,
            pool,
            state,
            topics: FxHashMap::default(),
            commit_rest: None,
            opened_at_us: 0,
            segments,
            fetches: Fetches::default(),
            groups: Groups::default(),
            group_log: GroupLog::default(),
            moves: Moves::default(),
            changes: VecDeque::new(),
            waiting_opens: VecDeque::new(),
            out: VecDeque::new(),
            counters: ShardCounters::default(),
            carver: Carver::default(),
            last_token: 0,
            writes: FxHashMap::default(),
            record_at_us: now.mono_us + RECORD_DURABLE_AFTER_US,
            retained_at_us: now.mono_us,
            pages_retry_us: None,
            stopping: false,
            unrecordable: false,
            failed: false,
            replace_cut: recovered.cut != Cut::default(),
        };
        catalog.topics().for_each(|topic| shard.add_topic(topic));
        catalog.groups().for_each(|group| shard.add_group(group, None, now));
        shard.retain_groups();
        shard
    }

    /// Takes note of something that happened. Answers and requests that follow
    /// from it come out of [`poll_action`](Self::poll_action).
    pub fn handle(&mut self, event: Event<'_, P::Buffer>, now: Now) {
        if self.failed {
            return;
        }
        match event {
            Event::Request { from, request } => self.request(from, request, now),
            Event::FetchNow { from } if self.end_of_link(from) => {}
            Event::FetchNow { from } => self.fetch_now(from, now),
            Event::Pause { from, pauses } => self.pause(from, pauses),
            Event::SessionClosed { core, session } => {
                self.drop_session(core, session);
                self.drop_consumers(core, session);
            }
            Event::Written { token, result } => self.written(token, result, now),
            Event::Read { token, result } => self.page_read(token, result),
            Event::SegmentPrepared { segment, result } => self.segment_prepared(segment, result, now),
            Event::Catalog(update) => self.apply_published(&update, now),
            Event::CatalogApplied { shard, version } => self.change_applied(shard, version),
            Event::Stop => {
                self.stopping = true;
                self.answer_all_fetches(now);
                self.stop_consumers();
            }
        }
    }

    /// The next thing that the shard asks for. To be called until it returns
    /// `None`, once all events of a round are handled: only then is the open
    /// commit sealed, so that a round's batches share a commit.
    pub fn poll_action(&mut self, now: Now) -> Option<Action<P::Buffer>> {
        if !self.failed && self.out.is_empty() {
            self.advance(now);
        }
        self.out.pop_front()
    }

    /// When [`poll_action`](Self::poll_action) is to be called again at the latest
    /// (monotonic, µs).
    pub fn next_deadline(&self) -> Option<u64> {
        if self.failed {
            return None;
        }
        let record =
            (self.commits.is_idle() && self.commits.has_unrecorded_durable()).then_some(self.record_at_us);
        let seal = self.commits.should_seal().then_some(self.opened_at_us + self.config.commit_delay_us);
        let retain = (self.config.retention_us.is_some() && !self.segments.sealed.is_empty())
            .then_some(self.retained_at_us + RETAIN_EVERY_US);
        let others = [self.fetches.next_deadline(), self.segments.retry_at(), self.pages_retry_us];
        let groups = [self.groups.next_deadline(), self.group_log.retry_at(), self.moves.next_deadline()];
        [record, seal, retain].into_iter().chain(others).chain(groups).flatten().min()
    }

    /// Whether [`poll_action`](Self::poll_action) has something to say, or to send to
    /// consumers, now.
    pub fn has_actions(&self) -> bool {
        !self.failed && (!self.out.is_empty() || self.groups.has_line() && self.groups_held().is_none())
    }

    /// Whether the disk is what there is to wait for: as many commits are written as
    /// may be at once, or several large batches are. To look on for those instead of
    /// sleeping took 7 % of the processor time per byte, and brought no more of them.
    #[inline]
    pub fn is_saturated(&self) -> bool {
        !self.commits.has_room_in_flight() || self.commits.large_in_flight() > 1
    }

    /// Whether a produce request may be handed in. False holds the sender back:
    /// it becomes true again after some later event.
    #[inline]
    pub fn accepts_produce(&self) -> bool {
        self.commits.sealed_len() < MAX_SEALED_COMMITS
            && self.may_settle()
            && (self.segments.has_room_or_next(self.state.footer_len_with_one_more())
                || self.segments.disk_is_full()
                || self.stopping)
            && (self.commit_rest.is_some()
                || self.commits.has_open()
                || self.pool.available() > 0
                || self.reader.tail.bytes() > 0
                || self.reader.pages.has_droppable())
    }

    /// Whether, after [`Event::Stop`], everything is durable and answered.
    pub fn is_drained(&self) -> bool {
        self.failed
            || (self.stopping
                && self.out.is_empty()
                && self.commits.is_idle()
                && (self.unrecordable || !self.commits.has_unrecorded_durable())
                && self.writes.is_empty()
                && self.reader.pages.reads_in_flight() == 0)
    }

    /// What the shard has counted.
    pub fn counters(&self) -> ShardCounters {
        let mut counters = self.counters;
        counters.segments = self.segments.len() as u64;
        counters.sealed_index_bytes = self.state.sealed_index_bytes() as u64;
        counters.tail_cache_bytes = self.reader.tail.bytes() as u64;
        counters.waiting_fetches = self.fetches.len() as u64;
        counters.consumers = self.groups.consumers as u64;
        counters.leased_records = self.groups.leased() as u64;
        counters.delayed_records = self.groups.dated.len() as u64;
        counters
    }

    fn request(&mut self, from: ReplyTo, request: ShardRequest<'_, P::Buffer>, now: Now) {
        match request {
            ShardRequest::Produce { payload, min_copies } => self.produce(from, payload, min_copies, now),
            ShardRequest::Fetch(fetch) => self.fetch(from, fetch, now),
            ShardRequest::Offsets { partition, spec } => self.offsets(from, partition, spec, now),
            ShardRequest::OpenProducer(open) => self.open_producer(from, open),
            ShardRequest::PartitionStates(topic) => self.partition_states(from, topic),
            ShardRequest::CreateTopic { name, partitions } => self.create_topic(from, &name, partitions, now),
            ShardRequest::DeleteTopic { name } => self.delete_topic(from, &name, now),
            ShardRequest::ListTopics => self.list_topics(from),
            ShardRequest::LookUpTopic { name } => self.look_up_topic(from, &name),
            ShardRequest::CreateGroup(create) => self.create_group(from, &create, now),
            ShardRequest::DeleteGroup { name } => self.delete_group(from, &name, now),
            ShardRequest::ListGroups => self.list_groups(from),
            ShardRequest::LookUpGroup { name } => self.look_up_group(from, &name),
            ShardRequest::GroupStates(group) => self.group_states(from, group, now),
            ShardRequest::ResetGroup { group, to, partition } => {
                self.reset_group(from, group, to, partition, now)
            }
            ShardRequest::Attach(attach) => self.attach(from, &attach, now),
            ShardRequest::Detach(at) => self.detach(from, &at, now),
            ShardRequest::Receive(receive) => self.receive(from, &receive, now),
            ShardRequest::Settle(settle) => self.settle(from, &settle, now),
        }
    }

    pub(super) fn reply(&mut self, to: ReplyTo, reply: Reply) {
        if to.core == INTERNAL {
            return self.hear(to, &reply);
        }
        self.out.push_back(Action::Reply { to, reply });
    }

    pub(super) fn refuse(&mut self, to: ReplyTo, code: ErrorCode, text: impl Into<String>) {
        self.reply(to, Reply::Error(ErrorResponse::new(code, text)));
    }

    /// The place of a partition, or why it has none here.
    pub(super) fn slot(&self, id: PartitionId) -> Result<u32, ErrorCode> {
        match self.state.slot(id) {
            Some(slot) if id.topic.0 != 0 => Ok(slot),
            _ => Err(match self.topics.get(&id.topic) {
                // Another shard's, or of a topic whose deletion is on its way.
                Some(partitions) if id.index < *partitions => {
                    let is_here = shard_of(id, self.config.shards) == self.config.shard;
                    if is_here { ErrorCode::UnknownTopic } else { ErrorCode::InvalidRequest }
                }
                Some(_) => ErrorCode::UnknownPartition,
                None => ErrorCode::UnknownTopic,
            }),
        }
    }

    fn next_token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Everything that is to be done for its own sake, not for an event's.
    fn advance(&mut self, now: Now) {
        self.groups.settled = 0;
        self.expire_fetches(now);
        self.look_again(now);
        self.advance_groups(now);
        self.advance_segments(now);
        // If there is no room for it now, there is none for others either.
        let _ = self.replace_cut(now);
        self.record_durable(now);
        self.write_commits(now);
        self.read_pages(now);
    }

    fn write_commits(&mut self, now: Now) {
        if self.commits.should_seal() {
            let due = self.opened_at_us + self.config.commit_delay_us <= now.mono_us;
            if due || self.stopping {
                self.seal();
            }
        }
        while self.commits.has_room_in_flight() && self.commits.sealed_len() > 0 {
            let token = WriteToken(self.next_token());
            let Some(write) = self.commits.poll_write(|| token) else { return };
            self.counters.commits += 1;
            self.counters.commit_bytes += write.data.len() as u64;
            self.segments.commit_started(write.index, write.crc);
            let lsn = Lsn::new(write.segment, write.position, self.identity.segment_len);
            self.reader.tail.push(lsn, write.data.clone());
            self.write(token, write.segment, write.position, write.data);
        }
    }

    fn write(&mut self, token: WriteToken, segment: SegmentSeq, position: u64, data: bytes::Bytes) {
        self.writes.insert(token, (segment, position));
        self.out.push_back(Action::Write { token, segment, position, data });
    }

    /// Seals the open commit: it has its place, and waits for room in flight.
    pub(super) fn seal(&mut self) {
        let open = self.segments.open.as_mut().expect("a commit is opened in an open segment");
        let (segment, position) = (open.segment, open.position);
        let (len, rest) = self.commits.seal(segment, position);
        open.position += len;
        if rest.is_some() && self.commit_rest.is_none() {
            self.commit_rest = rest;
        }
    }

    /// Closes the open segment and opens the next one, if that is ready.
    pub(super) fn roll(&mut self) -> bool {
        assert!(!self.commits.has_open(), "the open commit belongs to the segment before");
        let tail = self.commits.tail();
        if !self.segments.has_ready() {
            return false;
        }
        if let Some(open) = self.segments.open {
            let footer = footer::encode(&self.state, open.segment, open.position);
            let trailer = Trailer {
                end: open.position,
                footer_len: footer.bytes.len() as u32,
                footer_crc: ringbolt_wire::crc32c(&footer.bytes),
                first_index: open.first_index,
                next_index: tail.next_index,
                last_commit_time_us: tail.last_commit_time_us,
                last_crc: tail.last_crc,
            };
            assert!(
                open.position + footer.bytes.len() as u64 <= Trailer::position(self.identity.segment_len)
            );
            self.state.begin_segment(open.segment);
            self.segments.close(footer, trailer);
            self.want_checkpoint();
        }
        self.segments.open_next(tail.next_index)
    }

    /// Puts on record that the last commit is durable, once nothing else has
    /// done so for a while.
    fn record_durable(&mut self, now: Now) {
        let due = self.stopping || self.record_at_us <= now.mono_us;
        if !due || !self.commits.is_idle() || !self.commits.has_unrecorded_durable() {
            return;
        }
        match self.make_room(0, now) {
            Ok(()) => self.seal(),
            Err(_) => {
                self.record_at_us = now.mono_us + RECORD_DURABLE_RETRY_US;
                self.unrecordable = self.stopping;
            }
        }
    }

    fn written(&mut self, token: WriteToken, result: Result<(), DiskFault>, now: Now) {
        let Some((segment, position)) = self.writes.remove(&token) else { return };
        if let Err(fault) = result {
            let shard = self.config.shard;
            self.fail(FatalError::Write { shard, segment, position, fault });
        } else if self.commits.written(token) {
            while let Some(commit) = self.commits.poll_durable() {
                self.durable(commit, now);
            }
        } else if let Some(sealed) = self.segments.written(token) {
            self.state.sealed(sealed.segment, &sealed.parts);
            // Its last pages may have been read before the footer was there.
            self.forget_pages(sealed.segment);
            let next = Lsn::new(sealed.segment.next(), 0, self.identity.segment_len);
            self.reader.durable_end = self.reader.durable_end.max(next);
        }
    }

    /// Releases what waited for a commit: acknowledgements, and readers.
    fn durable(&mut self, commit: DurableCommit, now: Now) {
        self.record_at_us = now.mono_us + RECORD_DURABLE_AFTER_US;
        self.reader.durable_end = commit.end;
        for ack in &commit.acks {
            if let Some(partition) = self.state.partition_if(ack.slot, ack.partition) {
                partition.durable_end = partition.durable_end.max(ack.end_offset);
            }
            // What the shard wrote for itself is acknowledged to nobody.
            if let Some(to) = ack.to {
                self.counters.acked_bytes += u64::from(ack.batch_len);
                self.counters.acked_batches += u64::from(!ack.duplicate);
                let produced = commit.proof.ack(ack, commit.commit_time_us);
                self.out.push_back(Action::Reply { to, reply: Reply::Produced(produced) });
            }
        }
        self.wake_fetches(&commit.acks);
        self.wake_groups(&commit.acks);
        self.groups_durable(commit.index, &commit.proof);
        self.changes_durable(commit.index, now);
        self.opens_durable(commit.index);
        self.commits.recycle(commit.acks);
    }

    /// Stops for good: nothing more is answered.
    fn fail(&mut self, error: FatalError) {
        self.failed = true;
        self.out.clear();
        self.out.push_back(Action::Stop(error));
    }

    fn segment_prepared(&mut self, segment: SegmentSeq, result: Result<(), DiskFault>, now: Now) {
        match result {
            Ok(()) => self.segments.prepared(segment),
            Err(fault) if fault.may_pass() => {
                tracing::warn!(shard = %self.config.shard, %segment, %fault, "no file for the next segment: producing is refused");
                self.segments.disk_full(now.mono_us);
            }
            Err(fault) => {
                let shard = self.config.shard;
                self.fail(FatalError::Prepare { shard, segment, fault });
            }
        }
    }

    fn advance_segments(&mut self, now: Now) {
        if self.segments.open.is_none() && self.segments.has_ready() {
            self.roll();
        }
        if !self.stopping
            && let Some(segment) = self.segments.poll_prepare(now.mono_us)
        {
            self.out.push_back(Action::PrepareSegment { segment });
        }
        let next_durable = self.commits.durable_index() + 1;
        if let Some(write) = self.segments.wanted_write(next_durable).filter(|_| !self.stopping) {
            self.write_segment(write);
        }
        self.retain(now);
    }

    fn write_segment(&mut self, write: SegmentWrite) {
        let len = match write {
            SegmentWrite::Footer { len, .. } => len.next_multiple_of(BLOCK_LEN),
            _ => BLOCK_LEN,
        };
        let Some(mut buffer) = self.carve(len) else { return };
        let bytes = buffer.as_mut();
        let segment_len = self.identity.segment_len;
        let (segment, position) = match write {
            SegmentWrite::Head(segment) => {
                encode_head(bytes, &self.identity.log_id, segment, segment_len);
                (segment, 0)
            }
            SegmentWrite::Footer { segment, position, from, len } => {
                bytes[..len].copy_from_slice(&self.segments.footer_bytes()[from..from + len]);
                bytes[len..].fill(0);
                (segment, position)
            }
            SegmentWrite::Trailer { segment, trailer } => {
                trailer.encode(bytes, &self.identity.log_id, segment);
                (segment, Trailer::position(segment_len))
            }
        };
        let token = WriteToken(self.next_token());
        self.segments.started(token, write);
        self.write(token, segment, position, share(buffer));
    }

    /// Memory for something other than commits, at the cost of what is cached.
    fn carve(&mut self, len: usize) -> Option<P::Buffer> {
        loop {
            if let Some(buffer) = self.carver.carve(&mut self.pool, len) {
                return Some(buffer);
            }
            if !self.reader.pages.drop_oldest() && !self.reader.tail.drop_oldest() {
                return None;
            }
        }
    }

    /// Gives up segments that are no longer retained.
    fn retain(&mut self, now: Now) {
        self.retained_at_us = now.mono_us;
        let before_us = self.config.retention_us.map(|age| now.wall_us.saturating_sub(age));
        while let Some(segment) = self.segments.expired(self.config.retention_bytes, before_us) {
            if self.needs_segment(segment) {
                break;
            }
            self.segments.drop_oldest();
            self.state.drop_segment(segment);
            self.forget_pages(segment);
            self.retain_groups();
        }
        // Strictly oldest first: a gap in the files would look like a loss.
        while let Some(segment) = self.segments.dropped.pop_front_if(|s| !self.reader.pages.is_reading(*s)) {
            self.out.push_back(Action::RecycleSegment { segment });
        }
    }

    fn read_pages(&mut self, now: Now) {
        self.pages_retry_us = None;
        while self.reader.pages.reads_in_flight() < MAX_READS_IN_FLIGHT {
            let Some(page) = self.reader.pages.next_wanted() else { return };
            let len = (self.identity.segment_len - page.position()).min(crate::limits::PAGE_LEN as u64);
            let Some(buffer) = self.carve(len as usize) else {
                if self.reader.pages.reads_in_flight() == 0 && self.give_way() {
                    continue;
                }
                self.pages_retry_us = Some(now.mono_us + PAGES_RETRY_US);
                return;
            };
            let token = super::action::ReadToken(self.next_token());
            let valid = self.reader.valid_len(page);
            self.reader.pages.started(token, valid);
            self.counters.page_reads += 1;
            let (segment, position) = (page.segment, page.position());
            self.out.push_back(Action::Read { token, segment, position, buffer });
        }
    }

    /// Starts a commit unless one is open.
    pub(super) fn start_commit(&mut self, commit: OpenCommit<P::Buffer>, now: Now) {
        self.opened_at_us = now.mono_us;
        self.commits.start(commit);
    }
}
