//! Records that move: to the dead-letter topic, and from there back to where they came
//! from. One commit holds the record in its new place and its completion in the old
//! one, or neither.

use std::collections::{BTreeSet, VecDeque};

use ringbolt_wire::batch::{
    BATCH_HEADER_LEN, DEAD_LETTER_HEADER, DeadLetter, Directions, EXPIRE_AT_HEADER, ONLY_GROUP_HEADER,
    encoded_record_len,
};
use ringbolt_wire::message::{Settled, Unsettled};
use ringbolt_wire::{
    BatchBuilder, BatchView, Epoch, ErrorCode, Offset, PartitionId, ProducerId, RecordView, Sequence,
};

use super::Shard;
use super::event::ReplyTo;
use super::group_log::change_batch;
use super::placement::shard_of;
use super::read::Unavailable;
use crate::buffer::BufferPool;
use crate::consumer::change_log::ChangeLog;
use crate::consumer::changes::put_completed;
use crate::consumer::parcel::Span;
use crate::consumer::{GROUPS_PARTITION, How};
use crate::limits::{BLOCK_LEN, MAX_REDRIVES, MAX_STORED_BATCH_LEN};
use crate::time::Now;

/// Records moved in one turn.
const MAX_MOVES_PER_TURN: usize = 64;
/// How long until a move is tried again for which there was no room, µs.
const MOVE_RETRY_US: u64 = 1000;
/// The same for those that cannot be moved as things are, µs.
const STUCK_RETRY_US: u64 = 1_000_000;

/// Dead letters that somebody wants back where they came from.
#[derive(Debug)]
struct Redrive {
    to: Option<ReplyTo>,
    settled: Settled,
    left: VecDeque<Wanted>,
}

/// A dead letter that is wanted back, and the lease by which it is. Until its turn has
/// come the lease may run out, and the record be another's.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    owner: u32,
    partition: u32,
    offset: u64,
    acquired: u32,
}

/// Records that are on their way.
#[derive(Default, Debug)]
pub(super) struct Moves {
    redrives: VecDeque<Redrive>,
    /// Records of all of them.
    wanted: usize,
    /// The part whose records had their turn last.
    last: u32,
    /// When to try again those for which there was no room (monotonic, µs).
    pub retry_us: Option<u64>,
    /// Owners of parts with records that cannot be moved as things are, and when to try
    /// again.
    stuck: BTreeSet<u32>,
    stuck_retry_us: Option<u64>,
}

impl Moves {
    /// Whether so many records more may be wanted back.
    pub fn has_room(&self, count: usize) -> bool {
        count == 0 || self.wanted + count <= MAX_REDRIVES
    }

    /// When there is something to do (monotonic, µs).
    pub fn next_deadline(&self) -> Option<u64> {
        self.retry_us.into_iter().chain(self.stuck_retry_us).min()
    }
}

/// What became of a request for records back, when it had its turn.
enum Redriven {
    /// Every record was moved, or cannot be.
    All,
    /// There are more.
    Some,
    /// The next one cannot be moved yet.
    Waits,
}

/// Why a record does not move.
enum NotMoved {
    /// Not yet: something is short, or being read.
    Later,
    /// It cannot, for this reason.
    Refused(ErrorCode),
}

/// A record in its new place.
struct Moved {
    target: PartitionId,
    batch: Vec<u8>,
    how: How,
}

impl<P: BufferPool> Shard<P> {
    /// Moves records that have failed too often, and dead letters that are wanted back.
    pub(super) fn move_records(&mut self, now: Now) {
        self.try_stuck_again(now);
        if self.groups.condemned.is_empty() && self.moves.redrives.is_empty() || self.groups_held().is_some()
        {
            // What it was for is gone, perhaps, or others say when it goes on.
            self.moves.retry_us = None;
            return;
        }
        if self.moves.retry_us.is_some_and(|at| at > now.mono_us) {
            return;
        }
        self.moves.retry_us = None;
        // Neither keeps the other waiting.
        let redrives = self.moves.wanted.min(MAX_MOVES_PER_TURN / 2);
        let left = self.move_condemned(MAX_MOVES_PER_TURN - redrives, now);
        self.move_redrives(redrives + left, now);
    }

    fn try_stuck_again(&mut self, now: Now) {
        if self.moves.stuck_retry_us.is_none_or(|at| at > now.mono_us) {
            return;
        }
        self.moves.stuck_retry_us = None;
        for owner in std::mem::take(&mut self.moves.stuck) {
            if let Some(number) = self.groups.part_of_owner(owner) {
                self.groups.parts[number as usize].unstick();
                self.groups.condemned.insert(number);
            }
        }
    }

    /// Moves at most `left` records to their dead-letter topics. Returns how many more it
    /// could have.
    fn move_condemned(&mut self, mut left: usize, now: Now) -> usize {
        let after = self.moves.last + 1;
        let (before, next) = (self.groups.condemned.range(..after), self.groups.condemned.range(after..));
        let in_turn: Vec<u32> = next.chain(before).copied().collect();
        for number in in_turn {
            while let Some(offset) = self.groups.parts[number as usize].first_condemned() {
                if left == 0 {
                    self.groups.goes_on = true;
                    return 0;
                }
                left -= 1;
                self.moves.last = number;
                match self.dead_letter(number, offset, now) {
                    Ok(()) => {}
                    Err(NotMoved::Later) => {
                        self.moves.retry_us = Some(now.mono_us + MOVE_RETRY_US);
                        break;
                    }
                    // Its record is damaged: nothing will change soon, but for others.
                    Err(NotMoved::Refused(_)) => self.stick(number, offset, now),
                }
            }
            if self.groups.parts[number as usize].first_condemned().is_none() {
                self.groups.condemned.remove(&number);
            }
            self.groups.stir(number);
        }
        left
    }

    fn stick(&mut self, number: u32, offset: u64, now: Now) {
        let part = &mut self.groups.parts[number as usize];
        part.stick(offset);
        self.moves.stuck.insert(part.owner);
        self.moves.stuck_retry_us.get_or_insert(now.mono_us + STUCK_RETRY_US);
    }

    /// Moves at most `left` records back. A request that is not done with them goes behind
    /// the others.
    fn move_redrives(&mut self, mut left: usize, now: Now) {
        let mut waits = 0;
        while waits < self.moves.redrives.len() {
            if left == 0 {
                self.groups.goes_on = true;
                return;
            }
            let Some(mut redrive) = self.moves.redrives.pop_front() else { return };
            match self.redrive(&mut redrive, &mut left, now) {
                Redriven::All => {
                    if let Some(to) = redrive.to {
                        self.confirm(to, redrive.settled);
                    }
                    continue;
                }
                Redriven::Some => waits = 0,
                Redriven::Waits => {
                    waits += 1;
                    self.moves.retry_us.get_or_insert(now.mono_us + MOVE_RETRY_US);
                }
            }
            self.moves.redrives.push_back(redrive);
        }
    }

    fn dead_letter(&mut self, number: u32, offset: u64, now: Now) -> Result<(), NotMoved> {
        let part = &self.groups.parts[number as usize];
        let (key, origin) = (part.key, part.partition);
        let Some(group) = self.groups.by_id.get(&key.group) else { return Ok(()) };
        let topic = group.info.dead_letter;
        let target = (0..self.topics.get(&topic).copied().unwrap_or(0))
            .map(|index| PartitionId::new(topic, index))
            .find(|partition| shard_of(*partition, self.config.shards) == self.config.shard);
        let target = target.ok_or(NotMoved::Refused(ErrorCode::UnknownTopic))?;
        let batch = self.batch_at(number, offset)?;
        let acks = self.state.groups.acks.entry(key).or_default();
        let attempts = acks.attempts(offset).cloned().unwrap_or_default();
        let letter = DeadLetter {
            origin,
            offset: Offset(offset),
            group: key.group,
            acquired: attempts.acquired,
            failed: attempts.failed,
            first_delivery_us: attempts.first_delivery_us,
            moved_us: now.wall_us,
            reason: attempts.condemned.as_deref().unwrap_or_default().to_owned(),
        };
        let view = view(&batch);
        let (_, record) = record_at(&view, offset).ok_or(NotMoved::Refused(ErrorCode::CorruptData))?;
        let header = (DEAD_LETTER_HEADER.to_owned(), letter.encode());
        let batch = rebuilt(&record, header, &[DEAD_LETTER_HEADER, ONLY_GROUP_HEADER], target);
        self.move_to(number, offset, &Moved { target, batch, how: How::DeadLettered }, now)?;
        self.counters.dead_letters += 1;
        Ok(())
    }

    /// Moves at most `left` records of a request.
    fn redrive(&mut self, redrive: &mut Redrive, left: &mut usize, now: Now) -> Redriven {
        while let Some(&wanted) = redrive.left.front().filter(|_| *left > 0) {
            *left -= 1;
            match self.redrive_one(&wanted, now) {
                Ok(()) => self.counters.redriven_records += 1,
                Err(NotMoved::Later) => return Redriven::Waits,
                Err(NotMoved::Refused(code)) => redrive.settled.unsettled.push(Unsettled {
                    partition: wanted.partition,
                    status: code as u16,
                    base_offset: Offset(wanted.offset),
                    count: 1,
                }),
            }
            redrive.left.pop_front();
            self.moves.wanted -= 1;
        }
        if redrive.left.is_empty() { Redriven::All } else { Redriven::Some }
    }

    fn redrive_one(&mut self, wanted: &Wanted, now: Now) -> Result<(), NotMoved> {
        let offset = wanted.offset;
        // Gone with its group, or begun anew: its leases ended with that.
        let number = self.groups.part_of_owner(wanted.owner);
        let number = number.ok_or(NotMoved::Refused(ErrorCode::LeaseLost))?;
        let lease = self.groups.parts[number as usize].lease(offset);
        if lease.is_none_or(|lease| lease.acquired != wanted.acquired) {
            return Err(NotMoved::Refused(ErrorCode::LeaseLost));
        }
        let batch = self.batch_at(number, offset)?;
        let view = view(&batch);
        let (_, record) = record_at(&view, offset).ok_or(NotMoved::Refused(ErrorCode::CorruptData))?;
        let letter = DeadLetter::of(&record).ok_or(NotMoved::Refused(ErrorCode::InvalidRequest))?;
        if !self.groups.by_id.contains_key(&letter.group) {
            return Err(NotMoved::Refused(ErrorCode::UnknownGroup));
        }
        let target = letter.origin;
        self.slot(target).map_err(NotMoved::Refused)?;
        let mut headers = Vec::new();
        let only_group = Directions { only_group: Some(letter.group), ..Directions::default() };
        only_group.put_headers(&mut headers);
        let header = headers.pop().ok_or(NotMoved::Later)?;
        let batch =
            rebuilt(&record, header, &[DEAD_LETTER_HEADER, ONLY_GROUP_HEADER, EXPIRE_AT_HEADER], target);
        self.move_to(number, offset, &Moved { target, batch, how: How::Acked }, now)
    }

    /// The batch that holds a part's record.
    fn batch_at(&mut self, number: u32, offset: u64) -> Result<Span, NotMoved> {
        let part = &self.groups.parts[number as usize];
        let slot = self.state.slot(part.partition).ok_or(NotMoved::Refused(ErrorCode::UnknownTopic))?;
        let owner = part.owner;
        self.read_batch(slot, offset).map_err(|error| match error {
            Unavailable::Pages(pages) => {
                self.wait_for_pages(owner, offset, pages);
                NotMoved::Later
            }
            Unavailable::Shortage => NotMoved::Later,
            Unavailable::Corrupt { .. } => NotMoved::Refused(ErrorCode::CorruptData),
        })
    }

    /// Appends the record in its new place, and that it is completed in the old one, in
    /// one commit.
    fn move_to(&mut self, number: u32, offset: u64, moved: &Moved, now: Now) -> Result<(), NotMoved> {
        // What happened before is in the log before.
        if !self.log_changes(now) {
            return Err(NotMoved::Later);
        }
        let part = &self.groups.parts[number as usize];
        let mut value = Vec::new();
        put_completed(&mut value, part.key, moved.how, part.next, [(offset, offset + 1)]);
        let change = change_batch(&value, now);
        let slot = self.slot(moved.target).map_err(NotMoved::Refused)?;
        // Two batches, and what a footer says of each.
        let room = moved.batch.len() + change.len() + 4 * BLOCK_LEN;
        self.make_room(room, now).map_err(|_| NotMoved::Later)?;
        self.append_here(slot, moved.target, &moved.batch, None);
        let slot = self.state.slot_or_insert(GROUPS_PARTITION);
        self.append_here(slot, GROUPS_PARTITION, &change, None);
        self.counters.group_log_bytes += value.len() as u64;
        let part = &self.groups.parts[number as usize];
        let (id, holder) = (part.key.group, part.lease(offset).map(|lease| lease.consumer));
        let kept = std::mem::take(&mut self.groups.changes);
        self.complete(number, offset, moved.how);
        // It is in the log already.
        let written: ChangeLog = std::mem::replace(&mut self.groups.changes, kept);
        drop(written);
        // It may have been at its bound.
        self.groups.stir(number);
        holder.into_iter().for_each(|consumer| self.leave_if_gone(id, consumer));
        Ok(())
    }

    /// Whether what fails in a part has somewhere to go.
    pub(super) fn has_dead_letter_topic(&self, number: u32) -> bool {
        let group = self.groups.by_id.get(&self.groups.parts[number as usize].key.group);
        group.is_some_and(|group| group.info.dead_letter.0 != 0)
    }

    /// Takes note of dead letters that are wanted back; answered when they are.
    pub(super) fn begin_redrive(&mut self, to: Option<ReplyTo>, settled: Settled, records: Vec<(u32, u64)>) {
        let wanted = |(number, offset): (u32, u64)| {
            let part = &self.groups.parts[number as usize];
            let acquired = part.lease(offset).map_or(0, |lease| lease.acquired);
            Wanted { owner: part.owner, partition: part.key.partition, offset, acquired }
        };
        let left: VecDeque<Wanted> = records.into_iter().map(wanted).collect();
        self.moves.wanted += left.len();
        self.moves.redrives.push_back(Redrive { to, settled, left });
    }
}

fn view(batch: &Span) -> BatchView<'_> {
    BatchView::parse_stored(batch.as_slice(), MAX_STORED_BATCH_LEN).expect("reading has checked it")
}

fn record_at<'a>(batch: &BatchView<'a>, offset: u64) -> Option<(Offset, RecordView<'a>)> {
    batch.records().find(|(found, _)| found.0 == offset)
}

/// A batch of this record for `target`, without headers of these names and with one more.
fn rebuilt(
    record: &RecordView<'_>,
    header: (String, Vec<u8>),
    without: &[&str],
    target: PartitionId,
) -> Vec<u8> {
    let kept = record.headers().filter(|(name, _)| !without.contains(name));
    let mut headers: Vec<(String, Vec<u8>)> =
        kept.map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    headers.push(header);
    let len = BATCH_HEADER_LEN + encoded_record_len(record.key, record.value, &headers);
    assert!(len <= MAX_STORED_BATCH_LEN as usize, "a record of {len} bytes was stored");
    let mut batch = BatchBuilder::new();
    batch.push(record.timestamp_us, record.key, record.value, &headers);
    batch.finish(target, ProducerId::NONE, Epoch(0), Sequence(0))
}
