//! Consumer groups' state in the log: changes join the commits, and from time to time
//! everything is written anew, so that little has to be read back.

use ringbolt_wire::message::{ErrorResponse, Settled};
use ringbolt_wire::{BatchBuilder, Epoch, ErrorCode, Offset, ProducerId, Sequence};

use super::Shard;
use super::action::{Action, Reply};
use super::beginnings::Beginnings;
use super::event::ReplyTo;
use super::segments::DISK_FULL_RETRY_US;
use crate::buffer::BufferPool;
use crate::consumer::changes::{pieces, put_all};
use crate::consumer::{GROUPS_PARTITION, GroupKey};
use crate::log::group_commit::{Durable, Unconfirmed};
use crate::time::Now;

/// Bytes of changes in one record of a checkpoint.
const PIECE_LEN: usize = 64 << 10;
/// Bytes of a checkpoint that are appended in one turn.
const TURN_LEN: usize = 256 << 10;
/// Bytes of changes after which a checkpoint is made, or four times as many as the
/// last one had.
const CHECKPOINT_EVERY: u64 = 8 << 20;
/// How long until changes are appended for which there was no room, µs.
const LOG_RETRY_US: u64 = 1000;
/// Bytes of changes that may wait for their place in the log before nothing new happens.
const MAX_UNLOGGED_LEN: usize = 4 << 20;

/// What is to happen when changes are durable.
#[derive(Debug)]
pub(super) enum After {
    /// Somebody is told that it is settled what became of records.
    Settled(ReplyTo, Unconfirmed<Settled>),
    /// Somebody is answered.
    Reply(ReplyTo, Reply),
    /// Shard 0 is told that this shard has carried out a change of the catalog.
    Applied(u64),
    /// Changes before this one are needed no longer.
    Checkpoint(u64),
    /// The part that has this owner begins where it says: it can deliver.
    Begun(u32),
    /// A record of the part that has this owner, which is completed, holds up the others of
    /// its key no longer.
    Freed(u32, u64),
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Pass {
    /// Offset of its first change.
    from: u64,
    /// What is still to be written, the next one last.
    left: Vec<GroupKey>,
    /// The one that has begun, and its further pieces, the next one last.
    begun: Option<(GroupKey, Vec<Vec<u8>>)>,
}

/// States that are written together: all of several small ones, or the first piece of
/// a large one.
#[derive(Debug)]
struct Chunk {
    keys: Vec<GroupKey>,
    bytes: Vec<u8>,
    /// Whether it says where they stand. Otherwise it adds to that, and can come later.
    is_first: bool,
    /// Further pieces, the next one last.
    more: Vec<Vec<u8>>,
}

impl Pass {
    /// There was no room for it. By the next time more may have happened, which then is
    /// in the log: what says where a part stands is made anew from what is known then.
    fn put_back(&mut self, mut chunk: Chunk) {
        if chunk.is_first {
            self.left.extend(chunk.keys.into_iter().rev());
        } else {
            chunk.more.push(chunk.bytes);
            self.goes_on(chunk.keys, chunk.more);
        }
    }

    fn goes_on(&mut self, mut keys: Vec<GroupKey>, more: Vec<Vec<u8>>) {
        if !more.is_empty() {
            self.begun = keys.pop().map(|key| (key, more));
        }
    }
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct GroupLog {
    /// Groups that are about to begin in some partitions.
    pub beginnings: Beginnings,
    /// They wait for changes that are not in a commit yet.
    unlogged: Vec<After>,
    /// They wait for the commit with this index.
    waiting: std::collections::VecDeque<(u64, After)>,
    /// When appending is tried again (monotonic, µs).
    retry_us: Option<u64>,
    pass: Option<Pass>,
    /// Bytes of changes since the last checkpoint began, and in that.
    since: u64,
    last_len: u64,
    /// Bytes that were written of all commits when it ended.
    ended_at: u64,
    /// A checkpoint is to be made.
    wanted: bool,
}

impl GroupLog {
    /// When something is to be tried again, µs.
    pub fn retry_at(&self) -> Option<u64> {
        self.retry_us
    }
}

impl<P: BufferPool> Shard<P> {
    /// Why nothing new may happen to groups, if so: what has happened has no place in the
    /// log. What can happen all the same, leases that are given back by those who come and
    /// go, ends by itself when there are no more leases.
    pub fn groups_held(&self) -> Option<ErrorCode> {
        let has_room = || self.segments.has_room_or_next(self.state.footer_len_with_one_more());
        if self.segments.disk_is_full() && !has_room() {
            return Some(ErrorCode::DiskFull);
        }
        (self.groups.changes.len() >= MAX_UNLOGGED_LEN).then_some(ErrorCode::Overloaded)
    }

    /// Appends what others have changed in this turn, if it is very much.
    pub(super) fn make_room_for_changes(&mut self, now: Now) {
        if self.groups.changes.len() >= MAX_UNLOGGED_LEN {
            self.log_changes(now);
        }
    }

    /// Refuses what would change something while nothing may.
    pub(super) fn check_hold(&self) -> Result<(), ErrorResponse> {
        self.groups_held().map_or(Ok(()), |code| Err(ErrorResponse::new(code, "")))
    }

    /// No lease runs out before this (monotonic, µs), whatever its own time: consumers
    /// could not be heard; `u64::MAX` as long as they cannot.
    pub fn leases_last_until_us(&self) -> u64 {
        self.groups.expire_from_us
    }

    /// Lets something happen once all changes so far are durable.
    pub(super) fn after_changes(&mut self, after: After) {
        self.group_log.unlogged.push(after);
    }

    /// Answers once what was changed is durable.
    pub(super) fn confirm(&mut self, to: ReplyTo, settled: Settled) {
        self.after_changes(After::Settled(to, Unconfirmed::new(settled)));
    }

    /// Appends the changes that have gathered. False if there was no room for all.
    pub(super) fn log_changes(&mut self, now: Now) -> bool {
        if self.groups.changes.is_empty() && self.group_log.unlogged.is_empty() {
            return true;
        }
        self.group_log.retry_us = None;
        let mut values = self.groups.changes.take();
        let all = values.len();
        let done = values.iter().take_while(|value| self.append_change(value, now)).count();
        if done < all {
            self.groups.changes.put_back(values.split_off(done));
            let after_us = if self.segments.disk_is_full() { DISK_FULL_RETRY_US } else { LOG_RETRY_US };
            self.group_log.retry_us = Some(now.mono_us + after_us);
            return false;
        }
        for after in std::mem::take(&mut self.group_log.unlogged) {
            match (self.commits.last_index(), self.commits.all_durable()) {
                (Some(index), _) => self.group_log.waiting.push_back((index, after)),
                (None, Some(proof)) => self.happens(after, &proof),
                (None, None) => unreachable!("what is not durable has an index"),
            }
        }
        true
    }

    fn append_change(&mut self, value: &[u8], now: Now) -> bool {
        let batch = change_batch(value, now);
        let slot = self.state.slot_or_insert(GROUPS_PARTITION);
        let appended = self.append(slot, GROUPS_PARTITION, &batch, None, now).is_ok();
        if appended {
            self.group_log.since += value.len() as u64;
            self.counters.group_log_bytes += value.len() as u64;
        }
        appended
    }

    /// What waited for commits up to this one happens.
    pub(super) fn groups_durable(&mut self, durable_index: u64, proof: &Durable) {
        while let Some((_, after)) = self.group_log.waiting.pop_front_if(|(index, _)| *index <= durable_index)
        {
            self.happens(after, proof);
        }
    }

    fn happens(&mut self, after: After, proof: &Durable) {
        match after {
            After::Settled(to, settled) => self.reply(to, Reply::Settled(settled.confirm(proof))),
            After::Reply(to, reply) => self.reply(to, reply),
            After::Applied(version) => {
                let shard = self.config.shard;
                self.out.push_back(Action::CatalogApplied { shard, version });
            }
            After::Begun(owner) => {
                let Some(number) = self.groups.part_of_owner(owner) else { return };
                self.groups.parts[number as usize].beginning = false;
                self.groups.stir(number);
            }
            After::Freed(owner, offset) => {
                let Some(number) = self.groups.part_of_owner(owner) else { return };
                let part = &mut self.groups.parts[number as usize];
                let acks = self.state.groups.acks.entry(part.key).or_default();
                if part.free(offset, acks) {
                    self.groups.stir(number);
                }
                self.count_open(number);
            }
            After::Checkpoint(offset) => {
                let slot = self.state.slot_or_insert(GROUPS_PARTITION);
                let partition = self.state.partition_mut(slot);
                partition.start_offset = partition.start_offset.max(Offset(offset));
            }
        }
    }

    /// A segment has begun: the next one before it may go once everything is written
    /// anew.
    pub(super) fn want_checkpoint(&mut self) {
        // Without groups it says so, and nothing before it is needed.
        self.group_log.wanted |= self.state.slot(GROUPS_PARTITION).is_some();
    }

    /// Writes on a checkpoint, if one is due.
    pub(super) fn write_checkpoint(&mut self, now: Now) {
        let log = &mut self.group_log;
        // One that is longer than a segment asks for the next one by that: it may take half
        // of what is written.
        let may_be = self.counters.commit_bytes >= log.ended_at + log.last_len;
        let is_due = log.wanted && may_be || log.since >= CHECKPOINT_EVERY.max(4 * log.last_len);
        if log.pass.is_none() && is_due {
            let mut left: Vec<GroupKey> = self.state.groups.acks.keys().copied().collect();
            left.sort_unstable_by(|a, b| b.cmp(a));
            let slot = self.state.slot_or_insert(GROUPS_PARTITION);
            let from = self.state.partition(slot).end_offset.0;
            log.pass = Some(Pass { from, left, begun: None });
            (log.wanted, log.since, log.last_len) = (false, 0, 0);
        }
        // Changes that happened before it are in the log before it.
        if self.group_log.pass.is_none() || !self.log_changes(now) {
            return;
        }
        let mut written = 0;
        while let Some(mut pass) = self.group_log.pass.take() {
            let Some(chunk) = self.next_chunk(&mut pass) else {
                self.groups.changes.checkpoint(pass.from);
                self.group_log.ended_at = self.counters.commit_bytes;
                self.after_changes(After::Checkpoint(pass.from));
                self.log_changes(now);
                return;
            };
            if written >= TURN_LEN || !self.append_change(&chunk.bytes, now) {
                pass.put_back(chunk);
                self.group_log.pass = Some(pass);
                self.group_log.retry_us = Some(now.mono_us + LOG_RETRY_US);
                return;
            }
            written += chunk.bytes.len();
            self.group_log.last_len += chunk.bytes.len() as u64;
            self.group_log.since -= chunk.bytes.len() as u64;
            pass.goes_on(chunk.keys, chunk.more);
            self.group_log.pass = Some(pass);
        }
    }

    /// What of a checkpoint is written next.
    fn next_chunk(&self, pass: &mut Pass) -> Option<Chunk> {
        if let Some((key, mut more)) = pass.begun.take()
            && let Some(bytes) = more.pop()
        {
            return Some(Chunk { keys: vec![key], bytes, is_first: false, more });
        }
        let (mut keys, mut bytes) = (Vec::new(), Vec::new());
        while let Some(key) = pass.left.pop() {
            let Some(acks) = self.state.groups.acks.get(&key) else { continue };
            let before = bytes.len();
            put_all(&mut bytes, key, acks);
            if before > 0 && bytes.len() > PIECE_LEN {
                bytes.truncate(before);
                pass.left.push(key);
                break;
            }
            keys.push(key);
        }
        let mut more: Vec<Vec<u8>> =
            pieces(&bytes, PIECE_LEN).into_iter().rev().map(<[u8]>::to_vec).collect();
        let bytes = more.pop()?;
        Some(Chunk { keys, bytes, is_first: true, more })
    }

    /// A group begins anew in a partition: what is left to write of it from before must
    /// not come behind that.
    pub(super) fn checkpoint_begins_anew(&mut self, key: GroupKey) {
        if let Some(pass) = &mut self.group_log.pass
            && pass.begun.take_if(|(begun, _)| *begun == key).is_some()
        {
            pass.left.push(key);
        }
    }

    /// Whether the oldest segment holds changes that no checkpoint has made needless.
    pub(super) fn needs_segment(&mut self, segment: crate::log::SegmentSeq) -> bool {
        let Some(slot) = self.state.slot(GROUPS_PARTITION) else { return false };
        let partition = self.state.partition(slot);
        let needed = partition
            .index
            .sealed
            .iter()
            .take_while(|part| part.segment <= segment)
            .any(|part| part.end_offset > partition.start_offset);
        if needed {
            self.want_checkpoint();
        }
        needed
    }
}

/// A batch of one record with these changes.
pub(super) fn change_batch(value: &[u8], now: Now) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.push(now.wall_us, None, value, &[]);
    batch.finish(GROUPS_PARTITION, ProducerId::NONE, Epoch(0), Sequence(0))
}
