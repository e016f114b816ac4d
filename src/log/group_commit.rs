//! Group commit: open -> sealed -> in flight -> durable.
//!
//! While commits are in flight, batches gather in the open one. Sealed commits
//! wait for room in flight. Writes may end in any order; commits become durable
//! in order, and only [`GroupCommit::written`] can say that one has: it alone
//! makes [`Durable`], without which no acknowledgement can be built.

use std::collections::VecDeque;

use bytes::Bytes;
use ringbolt_wire::message::ProduceAck;
use ringbolt_wire::{Offset, PartitionId};

use super::commit::{ClosedCommit, CommitPlace, OpenCommit};
use super::{LogId, Lsn, SegmentSeq};
use crate::buffer::Buffer;
use crate::limits::DEFAULT_DIRECT_THRESHOLD;
use crate::shard::action::WriteToken;
use crate::shard::event::ReplyTo;

/// Proof that the device has answered for a commit and for all before it.
/// Only this module can make one.
#[derive(Debug)]
pub struct Durable {
    _only_here: (),
}

/// Something to be said when what it speaks of is durable, and not before: whoever has
/// it can do nothing with it without the proof.
#[derive(Debug)]
pub struct Unconfirmed<T>(T);

impl<T> Unconfirmed<T> {
    /// Keeps it until then.
    pub fn new(value: T) -> Self {
        Unconfirmed(value)
    }

    /// The time has come.
    pub fn confirm(self, _: &Durable) -> Confirmed<T> {
        Confirmed(self.0)
    }
}

/// Something that speaks of what is durable: only [`Unconfirmed::confirm`] makes one.
#[derive(Debug)]
pub struct Confirmed<T>(T);

impl<T> Confirmed<T> {
    /// What is to be said.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> AsRef<T> for Confirmed<T> {
    fn as_ref(&self) -> &T {
        &self.0
    }
}

/// How many of `max_in_flight` writes at once commits may use that have room for
/// more batches.
pub fn small_in_flight(max_in_flight: usize) -> usize {
    max_in_flight.div_ceil(4)
}

/// An acknowledgement that waits for its commit.
#[derive(Clone, Copy, Debug)]
pub struct PendingAck {
    /// Who waits; `None` for a batch that the shard wrote for itself.
    pub to: Option<ReplyTo>,
    /// The batch's partition.
    pub partition: PartitionId,
    /// Its place in the shard's state.
    pub slot: u32,
    /// Offset of the batch's first record; `None` for a duplicate whose offset
    /// is forgotten.
    pub base_offset: Option<Offset>,
    /// The partition's end once the commit is durable.
    pub end_offset: Offset,
    /// Bytes of the batch; 0 for a duplicate.
    pub batch_len: u32,
    /// Whether the batch had come before.
    pub duplicate: bool,
}

impl Durable {
    /// The acknowledgement of a batch in a durable commit.
    #[inline]
    pub fn ack(&self, pending: &PendingAck, commit_time_us: u64) -> ProduceAck {
        ProduceAck {
            base_offset: pending.base_offset.unwrap_or(Offset::UNKNOWN),
            commit_time_us: if pending.duplicate { 0 } else { commit_time_us },
            copies: 1,
            duplicate: pending.duplicate,
        }
    }
}

/// A commit that is full, or had its turn, and has its place.
#[derive(Debug)]
struct Sealed<B> {
    segment: SegmentSeq,
    position: u64,
    closed: ClosedCommit<B>,
    is_large: bool,
    commit: Waiting,
}

/// What a commit leaves behind until it is durable.
#[derive(Debug)]
struct Waiting {
    index: u64,
    end: Lsn,
    commit_time_us: u64,
    acks: Vec<PendingAck>,
}

#[derive(Debug)]
struct InFlight {
    token: WriteToken,
    written: bool,
    is_large: bool,
    commit: Waiting,
}

/// A write that a commit asks for.
#[derive(Debug)]
pub struct CommitWrite {
    /// Names it.
    pub token: WriteToken,
    /// Into which segment.
    pub segment: SegmentSeq,
    /// Bytes from its start.
    pub position: u64,
    /// The commit's index.
    pub index: u64,
    /// CRC of its header.
    pub crc: u32,
    /// The commit.
    pub data: Bytes,
}

/// A commit that has become durable.
#[derive(Debug)]
pub struct DurableCommit {
    /// The proof.
    pub proof: Durable,
    /// The commit's index.
    pub index: u64,
    /// Where it ends: all before is durable.
    pub end: Lsn,
    /// Its commit time, µs since 1970 UTC.
    pub commit_time_us: u64,
    /// Those who wait for it.
    pub acks: Vec<PendingAck>,
}

/// Where the log goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogTail {
    /// Index of the next commit.
    pub next_index: u64,
    /// CRC of the header of the last commit whose write has begun; 0 before the
    /// first.
    pub last_crc: u32,
    /// Commit time of the last commit, µs since 1970 UTC.
    pub last_commit_time_us: u64,
}

/// The commits of one log that are not durable yet.
#[derive(Debug)]
pub struct GroupCommit<B> {
    log: LogId,
    term: u64,
    segment_len: u64,
    max_in_flight: usize,
    tail: LogTail,
    durable_index: u64,
    /// Index of the last commit whose successor on disk says that it was
    /// durable.
    recorded_durable: u64,
    /// Index of the last commit that holds batches.
    last_with_batches: u64,
    /// Commits beyond this one wait until it is durable.
    held_behind: u64,
    open: Option<(OpenCommit<B>, Vec<PendingAck>)>,
    sealed: VecDeque<Sealed<B>>,
    in_flight: VecDeque<InFlight>,
    large_in_flight: usize,
    spare_acks: Vec<Vec<PendingAck>>,
}

impl<B: Buffer> GroupCommit<B> {
    /// Goes on where the log ends. Its last commit is durable; if it is
    /// `unrecorded`, nothing on disk says so.
    pub fn new(
        log: LogId,
        term: u64,
        segment_len: u64,
        max_in_flight: usize,
        tail: LogTail,
        unrecorded: bool,
    ) -> Self {
        assert!(max_in_flight > 0 && tail.next_index > 0);
        GroupCommit {
            log,
            term,
            segment_len,
            max_in_flight,
            tail,
            durable_index: tail.next_index - 1,
            recorded_durable: tail.next_index - 1 - u64::from(unrecorded),
            last_with_batches: tail.next_index - 1,
            held_behind: 0,
            open: None,
            sealed: VecDeque::new(),
            in_flight: VecDeque::new(),
            large_in_flight: 0,
            spare_acks: Vec::new(),
        }
    }

    /// The open commit, if there is one.
    #[inline]
    pub fn open(&mut self) -> Option<&mut OpenCommit<B>> {
        self.open.as_mut().map(|(commit, _)| commit)
    }

    /// Starts a commit in `buffer`.
    ///
    /// # Panics
    /// If one is open.
    pub fn start(&mut self, commit: OpenCommit<B>) {
        assert!(self.open.is_none(), "a commit is open already");
        self.open = Some((commit, self.spare_acks.pop().unwrap_or_default()));
    }

    /// Commit time for a commit that starts now: the wall clock, but never
    /// before that of the commit before it.
    pub fn commit_time(&self, wall_us: u64) -> u64 {
        wall_us.max(self.tail.last_commit_time_us)
    }

    /// Lets an acknowledgement wait for the open commit or, if there is none,
    /// for the last one that is not durable yet; gives it back if all are.
    #[inline]
    pub fn wait(&mut self, ack: PendingAck) -> Result<(), PendingAck> {
        let acks = match (&mut self.open, self.sealed.back_mut(), self.in_flight.back_mut()) {
            (Some((_, acks)), _, _) => acks,
            (None, Some(sealed), _) => &mut sealed.commit.acks,
            (None, None, Some(in_flight)) => &mut in_flight.commit.acks,
            (None, None, None) => return Err(ack),
        };
        acks.push(ack);
        Ok(())
    }

    /// Seals the open commit at `position` of `segment` and queues it. Returns
    /// its length, and what was left of its buffer.
    ///
    /// # Panics
    /// If none is open.
    pub fn seal(&mut self, segment: SegmentSeq, position: u64) -> (u64, Option<B>) {
        let (open, acks) = self.open.take().expect("the caller has an open commit");
        let commit_time_us = open.commit_time_us();
        let index = self.tail.next_index;
        if open.batches() > 0 {
            self.last_with_batches = index;
        }
        (self.tail.next_index, self.tail.last_commit_time_us) = (index + 1, commit_time_us);
        let is_alone = open.batches() == 1;
        let (closed, rest) = open.close();
        let len = closed.disk_len() as u64;
        let is_large = is_alone && len >= DEFAULT_DIRECT_THRESHOLD;
        let end = Lsn(Lsn::new(segment, position, self.segment_len).0 + len);
        let commit = Waiting { index, end, commit_time_us, acks };
        self.sealed.push_back(Sealed { segment, position, closed, is_large, commit });
        (len, rest)
    }

    /// Lets no other commit be written until the last sealed one is durable.
    pub fn hold_behind_last(&mut self) {
        self.held_behind = self.tail.next_index - 1;
    }

    /// Whether another write may start.
    #[inline]
    pub fn has_room_in_flight(&self) -> bool {
        let is_held = self.durable_index < self.held_behind;
        self.in_flight.len() < if is_held { 1 } else { self.max_in_flight }
    }

    /// Whether the open commit, which has room for more batches, is worth a
    /// write of its own by now. While a quarter of the writes that may be in flight
    /// are, it gathers on: a write costs the same however much is in it. A full
    /// commit, or the own one of a large batch, has nothing to wait for and may
    /// use all of them.
    #[inline]
    pub fn should_seal(&self) -> bool {
        self.has_open()
            && self.sealed.is_empty()
            && self.in_flight.len() < small_in_flight(self.max_in_flight)
    }

    /// The next write, if a commit is sealed and there is room in flight. Its
    /// header is made here: were it made when it was sealed, the commits behind as
    /// many as may be in flight would not say that one of those was durable.
    pub fn poll_write(&mut self, token: impl FnOnce() -> WriteToken) -> Option<CommitWrite> {
        if !self.has_room_in_flight() {
            return None;
        }
        let Sealed { segment, position, closed, is_large, commit } = self.sealed.pop_front()?;
        let index = commit.index;
        let finished = closed.finish(CommitPlace {
            log: self.log,
            segment,
            lsn: Lsn::new(segment, position, self.segment_len),
            term: self.term,
            index,
            prev_crc: self.tail.last_crc,
            durable_index: self.durable_index,
        });
        let crc = finished.crc;
        self.tail.last_crc = crc;
        self.recorded_durable = self.durable_index;
        let token = token();
        self.in_flight.push_back(InFlight { token, written: false, is_large, commit });
        self.large_in_flight += usize::from(is_large);
        Some(CommitWrite { token, segment, position, index, crc, data: share(finished.bytes) })
    }

    /// Takes note that a write has ended well: its bytes are on the device.
    /// Returns whether it was one of this log's commits.
    pub fn written(&mut self, token: WriteToken) -> bool {
        let Some(commit) = self.in_flight.iter_mut().find(|c| c.token == token) else { return false };
        assert!(!commit.written, "a write ends once");
        commit.written = true;
        true
    }

    /// The next commit that has become durable, in order.
    pub fn poll_durable(&mut self) -> Option<DurableCommit> {
        if !self.in_flight.front()?.written {
            return None;
        }
        let InFlight { is_large, commit, .. } = self.in_flight.pop_front()?;
        self.large_in_flight -= usize::from(is_large);
        let Waiting { index, end, commit_time_us, acks } = commit;
        assert_eq!(index, self.durable_index + 1, "commits become durable in order");
        self.durable_index = index;
        Some(DurableCommit { proof: Durable { _only_here: () }, index, end, commit_time_us, acks })
    }

    /// Takes back an emptied list of acknowledgements for reuse.
    pub fn recycle(&mut self, mut acks: Vec<PendingAck>) {
        if self.spare_acks.len() < self.max_in_flight + 2 {
            acks.clear();
            self.spare_acks.push(acks);
        }
    }

    /// Commits in flight that are a large batch each.
    #[inline]
    pub fn large_in_flight(&self) -> usize {
        self.large_in_flight
    }

    /// Whether a commit is open.
    #[inline]
    pub fn has_open(&self) -> bool {
        self.open.is_some()
    }

    /// Index of the last durable commit; all before it are durable as well.
    pub fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// Index of the last commit that is not durable yet, the open one included;
    /// `None` if all are durable.
    pub fn last_index(&self) -> Option<u64> {
        let last = if self.has_open() { self.tail.next_index } else { self.tail.next_index - 1 };
        (last > self.durable_index).then_some(last)
    }

    /// Where the log goes on after the last sealed commit; but that one's CRC is
    /// known only when its write begins.
    pub fn tail(&self) -> LogTail {
        self.tail
    }

    /// Proof for what was durable before, while nothing is on its way.
    pub fn all_durable(&self) -> Option<Durable> {
        self.is_idle().then_some(Durable { _only_here: () })
    }

    /// Whether nothing is open, sealed or in flight.
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.sealed.is_empty() && self.in_flight.is_empty()
    }

    /// Whether the last durable commit with batches is not named as durable by
    /// any later one: should it be damaged, recovery could not tell it from a
    /// torn tail.
    pub fn has_unrecorded_durable(&self) -> bool {
        self.recorded_durable < self.last_with_batches && self.last_with_batches <= self.durable_index
    }

    /// Commits that are sealed and wait.
    #[inline]
    pub fn sealed_len(&self) -> usize {
        self.sealed.len()
    }
}

/// Lets any [`Buffer`] own the memory behind a [`Bytes`].
struct SharedBuffer<B>(B);

impl<B: Buffer> AsRef<[u8]> for SharedBuffer<B> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// `buffer` as shared, read-only bytes.
pub fn share<B: Buffer>(buffer: B) -> Bytes {
    Bytes::from_owner(SharedBuffer(buffer))
}
