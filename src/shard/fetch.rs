//! Fetching: answers at once when there is something to read, else when there
//! is, or when the wait is over.
//!
//! A fetch that needs pages from disk, or records that are not there yet, waits
//! as a [`Job`] and is looked at again, from the start, when something that it
//! waits for has come. Looking is cheap, and nothing can go stale.

mod turns;

use std::collections::{BTreeSet, VecDeque};

use ringbolt_wire::message::{Fetch, FetchPartition, FetchedPartition};
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::Shard;
use super::action::{ReadToken, Reply};
use super::beginnings::INTERNAL;
use super::event::{DiskFault, ReplyTo};
use super::read::{Batches, Pieces, Unavailable};
use crate::buffer::BufferPool;
use crate::limits::{MAX_FETCH_BYTES, MAX_LOOKS_PER_TURN, PAGE_LEN};
use crate::log::SegmentSeq;
use crate::log::group_commit::{PendingAck, share};
use crate::log::index::Located;
use crate::log::pages::PageId;
use crate::time::Now;

/// Pages read ahead for those who read much at once.
const READ_AHEAD_PAGES: usize = 6;

/// What somebody waits for.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Fetch(Fetch),
    /// The first offset whose commit time is at or after this.
    Time(PartitionId, u64),
    /// To read a record of the part of a group that has this owner.
    Part(u32, u64),
}

impl Ask {
    /// Partitions to look at.
    fn looks(&self) -> usize {
        match self {
            Ask::Fetch(fetch) => fetch.partitions.len(),
            Ask::Time(..) | Ask::Part(..) => 1,
        }
    }
}

impl Default for Ask {
    fn default() -> Self {
        Ask::Fetch(Fetch::default())
    }
}

#[derive(Clone, Debug)]
struct Job {
    from: ReplyTo,
    ask: Ask,
    /// When it is answered at the latest (monotonic, µs).
    deadline_us: u64,
    /// Whether it is in the list of those to be looked at.
    ready: bool,
    cold: Cold,
    /// Pages that it needed so far, pinned.
    needs: SmallVec<[PageId; 8]>,
}

/// Whether a job reads from disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cold {
    /// It does not, as far as is known.
    No,
    /// It must, and waits for its turn.
    Queued,
    /// It does.
    Reading,
}

/// The fetches of one shard that wait.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    jobs: Slab<Job>,
    by_origin: FxHashMap<ReplyTo, usize>,
    by_session: FxHashMap<(u16, u64), SmallVec<[usize; 2]>>,
    by_partition: FxHashMap<PartitionId, SmallVec<[usize; 2]>>,
    by_page: FxHashMap<PageId, SmallVec<[usize; 2]>>,
    deadlines: BTreeSet<(u64, usize)>,
    ready: Vec<usize>,
    /// When the turn began (monotonic, µs), and what was looked at in it.
    turn_us: u64,
    looks: usize,
    /// Jobs that wait for their turn to read from disk, oldest first.
    cold: VecDeque<usize>,
    /// Jobs that read from disk now.
    reading: usize,
}

/// What a look at a job's wish gives.
pub(super) enum Look {
    Answer(Reply),
    /// What was to be read can be.
    Readable,
    Wait,
    Pages(Vec<PageId>),
}

impl Fetches {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn next_deadline(&self) -> Option<u64> {
        if !self.ready.is_empty() {
            return Some(0);
        }
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn add(&mut self, job: Job) -> usize {
        let (from, deadline) = (job.from, job.deadline_us);
        let id = self.jobs.insert(job);
        self.by_origin.insert(from, id);
        self.by_session.entry((from.core, from.session)).or_default().push(id);
        self.deadlines.insert((deadline, id));
        if let Ask::Fetch(fetch) = &self.jobs[id].ask {
            for part in &fetch.partitions {
                self.by_partition.entry(part.partition).or_default().push(id);
            }
        }
        id
    }

    fn remove(&mut self, id: usize) -> Job {
        let job = self.jobs.remove(id);
        self.by_origin.remove(&job.from);
        unlist(&mut self.by_session, &(job.from.core, job.from.session), id);
        self.deadlines.remove(&(job.deadline_us, id));
        if let Ask::Fetch(fetch) = &job.ask {
            for part in &fetch.partitions {
                unlist(&mut self.by_partition, &part.partition, id);
            }
        }
        self.ready.retain(|job| *job != id);
        self.leave_cold(id, job.cold);
        job
    }

    fn make_ready(&mut self, id: usize) {
        if let Some(job) = self.jobs.get_mut(id).filter(|job| !job.ready) {
            job.ready = true;
            self.ready.push(id);
        }
    }

    /// Forgets what a session waits for. Returns the pages that were pinned for
    /// it.
    pub fn drop_session(&mut self, core: u16, session: u64) -> Vec<PageId> {
        let jobs = self.by_session.remove(&(core, session)).unwrap_or_default();
        jobs.into_iter().flat_map(|id| self.remove(id).needs).collect()
    }

    pub fn make_all_ready(&mut self) {
        let all: Vec<usize> = self.jobs.iter().map(|(id, _)| id).collect();
        all.into_iter().for_each(|id| self.make_ready(id));
    }
}

fn unlist<K: std::hash::Hash + Eq>(map: &mut FxHashMap<K, SmallVec<[usize; 2]>>, key: &K, id: usize) {
    if let Some(list) = map.get_mut(key) {
        list.retain(|job| *job != id);
        if list.is_empty() {
            map.remove(key);
        }
    }
}

impl<P: BufferPool> Shard<P> {
    pub(super) fn fetch(&mut self, from: ReplyTo, fetch: Fetch, now: Now) {
        let deadline_us = match fetch.min_bytes {
            0 => now.mono_us,
            _ if self.stopping => now.mono_us,
            _ => now.mono_us + u64::from(fetch.max_wait_ms) * 1000,
        };
        self.ask(from, Ask::Fetch(fetch), deadline_us, now);
    }

    pub(super) fn ask(&mut self, from: ReplyTo, ask: Ask, deadline_us: u64, now: Now) {
        let may_read = self.fetches.may_read(None, self.reader.pages.max_readers());
        self.reader.may_want = may_read;
        match self.look(&ask, deadline_us <= now.mono_us) {
            Look::Answer(reply) => self.answer(from, reply),
            Look::Readable => unreachable!("only a part of a group waits to read"),
            waits => {
                let (cold, needs) = (Cold::No, SmallVec::new());
                let id = self.fetches.add(Job { from, ask, deadline_us, ready: false, cold, needs });
                self.wait_for(id, waits, may_read);
            }
        }
    }

    fn wait_for(&mut self, id: usize, waits: Look, may_read: bool) {
        let Look::Pages(pages) = waits else { return self.stop_reading(id) };
        self.fetches.set_cold(id, may_read);
        if !may_read {
            return;
        }
        for page in pages {
            let waiting = self.fetches.by_page.entry(page).or_default();
            if !waiting.contains(&id) {
                waiting.push(id);
            }
            let needs = &mut self.fetches.jobs[id].needs;
            if !needs.contains(&page) {
                needs.push(page);
                self.reader.pages.pin(page);
            }
        }
    }

    /// All that is there for a job has been read, and it waits for more: its
    /// turn at the disk, and the memory it pins, are others' meanwhile.
    fn stop_reading(&mut self, id: usize) {
        let job = &mut self.fetches.jobs[id];
        let was = std::mem::replace(&mut job.cold, Cold::No);
        for page in std::mem::take(&mut job.needs) {
            self.reader.pages.unpin(page);
        }
        self.fetches.leave_cold(id, was);
    }

    /// Nobody wants to hear this any more.
    pub(super) fn forget_question(&mut self, from: ReplyTo) {
        if let Some(id) = self.fetches.by_origin.get(&from).copied() {
            self.end_job(id);
        }
    }

    fn end_job(&mut self, id: usize) -> Job {
        let job = self.fetches.remove(id);
        job.needs.iter().for_each(|page| self.reader.pages.unpin(*page));
        job
    }

    pub(super) fn drop_session(&mut self, core: u16, session: u64) {
        for page in self.fetches.drop_session(core, session) {
            self.reader.pages.unpin(page);
        }
    }

    /// Forgets a segment's pages; who waits for one looks again.
    pub(super) fn forget_pages(&mut self, segment: SegmentSeq) {
        for page in self.reader.pages.forget(segment) {
            self.wake_readers(page);
        }
    }

    fn wake_readers(&mut self, page: PageId) {
        for id in self.fetches.by_page.remove(&page).unwrap_or_default() {
            self.fetches.make_ready(id);
        }
    }

    fn answer(&mut self, to: ReplyTo, reply: Reply) {
        if let Reply::Fetched { payload, .. } = &reply {
            self.counters.fetches += 1;
            self.counters.fetched_bytes += payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
        }
        self.reply(to, reply);
    }

    /// Looks again at those fetches for which something has come.
    pub(super) fn look_again(&mut self, now: Now) {
        let mut ready = std::mem::take(&mut self.fetches.ready);
        let mut done = 0;
        if self.fetches.turn_us != now.mono_us {
            (self.fetches.turn_us, self.fetches.looks) = (now.mono_us, 0);
        }
        while let Some(&id) = ready.get(done).filter(|_| self.fetches.looks < MAX_LOOKS_PER_TURN) {
            done += 1;
            if !self.fetches.jobs.contains(id) {
                continue;
            }
            let may_read = self.fetches.may_read(Some(id), self.reader.pages.max_readers());
            self.reader.may_want = may_read;
            let Some(job) = self.fetches.jobs.get_mut(id).filter(|job| job.ready) else { continue };
            job.ready = false;
            let late = job.deadline_us <= now.mono_us;
            let ask = std::mem::take(&mut job.ask);
            self.fetches.looks += ask.looks();
            let look = self.look(&ask, late);
            self.fetches.jobs[id].ask = ask;
            match look {
                Look::Answer(reply) => {
                    let job = self.end_job(id);
                    self.answer(job.from, reply);
                }
                Look::Readable => self.readable(id, now),
                waits => self.wait_for(id, waits, may_read),
            }
        }
        ready.drain(..done);
        if ready.is_empty() {
            self.reader.broken.clear();
            self.reader.short.clear();
        }
        ready.append(&mut self.fetches.ready);
        self.fetches.ready = ready;
    }

    /// Looks at those that wait for what has become durable.
    pub(super) fn wake_fetches(&mut self, acks: &[PendingAck]) {
        if self.fetches.by_partition.is_empty() {
            return;
        }
        for ack in acks {
            for id in self.fetches.by_partition.get(&ack.partition).cloned().unwrap_or_default() {
                self.fetches.make_ready(id);
            }
        }
    }

    pub(super) fn fetch_now(&mut self, from: ReplyTo, now: Now) {
        if let Some(&id) = self.fetches.by_origin.get(&from) {
            self.hurry(id, now);
        }
    }

    pub(super) fn answer_all_fetches(&mut self, now: Now) {
        let all: Vec<usize> = self.fetches.jobs.iter().map(|(id, _)| id).collect();
        all.into_iter().for_each(|id| self.hurry(id, now));
    }

    pub(super) fn expire_fetches(&mut self, now: Now) {
        while let Some(&(at, id)) = self.fetches.deadlines.first().filter(|(at, _)| *at <= now.mono_us) {
            // It may still wait for pages; its time is over all the same.
            self.fetches.deadlines.remove(&(at, id));
            self.fetches.make_ready(id);
        }
    }

    fn hurry(&mut self, id: usize, now: Now) {
        let job = &mut self.fetches.jobs[id];
        self.fetches.deadlines.remove(&(job.deadline_us, id));
        job.deadline_us = job.deadline_us.min(now.mono_us);
        self.fetches.make_ready(id);
    }

    pub(super) fn page_read(&mut self, token: ReadToken, result: Result<P::Buffer, DiskFault>) {
        let (bytes, fault) = match result {
            Ok(buffer) => (Some(share(buffer)), None),
            Err(fault) => (None, Some(fault)),
        };
        let page = self.reader.pages.ended(token, bytes);
        if let Some(fault) = &fault {
            let (segment, position) =
                page.map(|p| (tracing::field::display(p.segment), p.position())).unzip();
            tracing::error!(shard = %self.config.shard, segment, position, %fault, "stored records cannot be read");
        }
        let Some(page) = page else { return };
        match fault {
            Some(fault) if fault.is_shortage() => self.reader.short.push(page),
            Some(_) => {
                self.counters.corrupt_reads += 1;
                self.reader.broken.push(page);
            }
            None => {}
        }
        self.wake_readers(page);
    }

    fn look(&mut self, ask: &Ask, late: bool) -> Look {
        match ask {
            Ask::Fetch(fetch) => self.look_at_fetch(fetch, late),
            Ask::Time(partition, time_us) => self.look_at_time(*partition, *time_us),
            Ask::Part(owner, offset) => match self.probe(*owner, *offset) {
                Err(Unavailable::Pages(pages)) => Look::Pages(pages),
                // What else is wrong is seen when it is read.
                _ => Look::Readable,
            },
        }
    }

    /// Lets a part of a group wait for pages, to read a record.
    pub(super) fn wait_for_pages(&mut self, owner: u32, offset: u64, pages: Vec<PageId>) {
        let from = ReplyTo { core: INTERNAL, session: 1 << 32 | u64::from(owner), correlation: offset };
        if self.fetches.by_origin.contains_key(&from) {
            return;
        }
        let (ask, may_read) = (Ask::Part(owner, offset), self.reader.may_want);
        let (cold, needs) = (Cold::No, SmallVec::new());
        let job = Job { from, ask, deadline_us: u64::MAX, ready: false, cold, needs };
        let id = self.fetches.add(job);
        self.wait_for(id, Look::Pages(pages), may_read);
    }

    /// A part of a group goes on, while the pages that it needed are here.
    fn readable(&mut self, id: usize, now: Now) {
        let mut job = self.fetches.remove(id);
        let needs = std::mem::take(&mut job.needs);
        if let Ask::Part(owner, _) = job.ask {
            self.go_on_with(owner, now);
        }
        needs.iter().for_each(|page| self.reader.pages.unpin(*page));
    }

    fn look_at_fetch(&mut self, fetch: &Fetch, late: bool) -> Look {
        let mut left = fetch.max_bytes.clamp(1, MAX_FETCH_BYTES) as usize;
        let (mut list, mut payload) = (Vec::with_capacity(fetch.partitions.len()), Pieces::new());
        let (mut total, mut missing, mut refused) = (0, Vec::new(), false);
        for part in &fetch.partitions {
            let (fetched, pages) = self.look_at_partition(part, left, total == 0, &mut payload);
            missing.extend(pages);
            refused |= fetched.status != 0;
            total += fetched.payload_len as usize;
            left = left.saturating_sub(fetched.payload_len as usize);
            list.push(fetched);
        }
        // What must be read from disk is there already: it is not waited for in
        // order to reach `min_bytes`.
        let enough =
            total >= (fetch.min_bytes as usize).max(1) || refused || (total > 0 && !missing.is_empty());
        if enough || (late && missing.is_empty()) {
            Look::Answer(Reply::Fetched { partitions: list, payload })
        } else if missing.is_empty() {
            Look::Wait
        } else {
            Look::Pages(missing)
        }
    }

    /// What one partition gives, up to `left` bytes; if nothing was found
    /// before, at least a batch. Also the pages that must be read to give more.
    fn look_at_partition(
        &mut self,
        part: &FetchPartition,
        left: usize,
        at_least_one: bool,
        payload: &mut Pieces,
    ) -> (FetchedPartition, Vec<PageId>) {
        let mut fetched = FetchedPartition {
            partition: part.partition,
            status: 0,
            payload_len: 0,
            base_offset: Offset::UNKNOWN,
            start_offset: Offset(0),
            end_offset: Offset(0),
        };
        let slot = match self.slot(part.partition) {
            Ok(slot) => slot,
            Err(code) => return (FetchedPartition { status: code as u16, ..fetched }, Vec::new()),
        };
        let partition = self.state.partition(slot);
        (fetched.start_offset, fetched.end_offset) = (partition.start_offset, partition.durable_end);
        if part.offset < partition.start_offset || part.offset > partition.durable_end {
            fetched.status = ErrorCode::OffsetOutOfRange as u16;
            return (fetched, Vec::new());
        }
        let budget = left.min(part.max_bytes as usize);
        let (mut offset, mut pages) = (part.offset, Vec::new());
        while offset < fetched.end_offset {
            let so_far = fetched.payload_len as usize;
            let first = so_far == 0 && at_least_one;
            if !first && so_far >= budget {
                break;
            }
            let room = if first { budget.max(1) } else { budget - so_far };
            match self.read_some(slot, offset, room, first, payload) {
                Ok(batches) if batches.len > 0 => {
                    if so_far == 0 {
                        fetched.base_offset = batches.base;
                    }
                    offset = batches.next;
                    fetched.payload_len += batches.len as u32;
                }
                Ok(_) => break,
                Err(Unavailable::Pages(missing)) => {
                    pages = missing;
                    break;
                }
                Err(Unavailable::Shortage) => {
                    if so_far == 0 {
                        fetched.status = ErrorCode::Overloaded as u16;
                    }
                    break;
                }
                Err(Unavailable::Corrupt { segment, position }) => {
                    if so_far == 0 {
                        fetched.status = ErrorCode::CorruptData as u16;
                        self.report_corrupt(part.partition, offset, segment, position);
                    }
                    break;
                }
            }
        }
        (fetched, pages)
    }

    pub(super) fn report_corrupt(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        segment: SegmentSeq,
        position: u64,
    ) {
        self.counters.corrupt_reads += 1;
        let shard = self.config.shard;
        tracing::error!(%shard, %segment, position, %partition, %offset, "stored records are damaged: not served");
    }

    /// Reads from the run that holds `offset`. Without `at_least_one`, nothing
    /// if the first batch is longer than `room`.
    pub(super) fn read_some(
        &mut self,
        slot: u32,
        offset: Offset,
        room: usize,
        at_least_one: bool,
        payload: &mut Pieces,
    ) -> Result<Batches, Unavailable> {
        let open = self.segments.open.map_or(SegmentSeq(u64::MAX), |open| open.segment);
        let partition = self.state.partition(slot);
        let (id, durable_end) = (partition.id, partition.durable_end);
        let place = match partition.index.locate(offset, open) {
            Located::Run(segment, run) => (segment, run),
            Located::Sealed(part) => {
                let corrupt =
                    Unavailable::Corrupt { segment: part.segment, position: u64::from(part.runs_at) };
                let run = self.reader.find_sealed_run(&part, |run| run.end_offset() <= offset)?;
                (part.segment, run.filter(|run| run.base_offset <= offset).ok_or(corrupt)?)
            }
            Located::Nowhere => return Err(Unavailable::Corrupt { segment: open, position: 0 }),
        };
        let ahead = if room >= PAGE_LEN / 2 { READ_AHEAD_PAGES } else { 0 };
        let batches = self.reader.batches(id, place, offset, (room, at_least_one), ahead, payload)?;
        // A run lies in one commit, so it is durable as a whole or not at all.
        assert!(batches.next <= durable_end, "only durable records are read");
        Ok(batches)
    }
}
