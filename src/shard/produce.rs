//! Producing: from a batch's bytes to its place in a commit.

use ringbolt_wire::message::{ErrorResponse, OpenProducer, ProducerOpened};
use ringbolt_wire::{BatchView, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence};

use super::Shard;
use super::action::Reply;
use super::event::{Payload, ReplyTo};
use crate::buffer::BufferPool;
use crate::limits::{BLOCK_LEN, CHUNK_LEN, MAX_BATCH_LEN, MAX_COMMIT_LEN};
use crate::log::commit::{COMMIT_HEADER_LEN, OpenCommit};
use crate::log::group_commit::PendingAck;
use crate::log::producers::Verdict;
use crate::time::Now;

/// A batch in aligned memory gets a commit of its own from this many bytes on;
/// below, the block that its header would take costs more than a copy.
const MIN_DIRECT_LEN: usize = 8 << 10;

/// What is left of a chunk is used for another gathered commit only if it is
/// at least this long, so that commits are not cut short.
const MIN_REST_LEN: usize = 128 << 10;

/// What becomes of a batch.
enum Admission {
    /// It is appended at this place.
    Append { slot: u32, partition: PartitionId },
    /// It is there already.
    Duplicate { slot: u32, partition: PartitionId, offset: Option<Offset> },
    /// It is refused.
    Refused(ErrorResponse),
}

impl<P: BufferPool> Shard<P> {
    pub(super) fn produce(
        &mut self,
        from: ReplyTo,
        payload: Payload<'_, P::Buffer>,
        min_copies: u8,
        now: Now,
    ) {
        let bytes = match &payload {
            Payload::Borrowed(bytes) => bytes,
            Payload::Shared(bytes) => bytes.as_ref(),
            Payload::Aligned { buffer, len } => &buffer.as_ref()[BLOCK_LEN..BLOCK_LEN + len],
        };
        match self.admit(bytes, min_copies) {
            Admission::Refused(error) => self.refuse_batch(from, error),
            Admission::Duplicate { slot, partition, offset } => {
                self.counters.duplicate_batches += 1;
                self.acknowledge_again(PendingAck {
                    to: Some(from),
                    partition,
                    slot,
                    base_offset: offset,
                    end_offset: Offset(0),
                    batch_len: 0,
                    duplicate: true,
                });
            }
            Admission::Append { slot, partition } => {
                let appended = match payload {
                    Payload::Borrowed(bytes) => self.append(slot, partition, bytes, Some(from), now),
                    Payload::Shared(bytes) => self.append(slot, partition, &bytes, Some(from), now),
                    Payload::Aligned { buffer, len } if len >= MIN_DIRECT_LEN => {
                        self.append_direct(slot, partition, buffer, len, from, now)
                    }
                    Payload::Aligned { buffer, len } => {
                        let bytes = &buffer.as_ref()[BLOCK_LEN..BLOCK_LEN + len];
                        self.append(slot, partition, bytes, Some(from), now)
                    }
                };
                if let Err(code) = appended {
                    self.refuse_batch(from, ErrorResponse::new(code, ""));
                }
            }
        }
    }

    fn refuse_batch(&mut self, to: ReplyTo, error: ErrorResponse) {
        self.counters.refused_batches += 1;
        self.reply(to, Reply::Error(error));
    }

    /// Decides on a batch without changing anything but the room for its
    /// producer.
    fn admit(&mut self, bytes: &[u8], min_copies: u8) -> Admission {
        let refused = |code, text: String| Admission::Refused(ErrorResponse::new(code, text));
        let view = match BatchView::parse_exact(bytes, MAX_BATCH_LEN) {
            Ok(view) => view,
            Err(error) => return refused(error.code(), error.to_string()),
        };
        if self.stopping {
            return refused(ErrorCode::ShuttingDown, String::new());
        }
        if min_copies > 1 {
            let text = format!("{min_copies} copies demanded, a single broker has 1");
            return refused(ErrorCode::DurabilityUnavailable, text);
        }
        let header = view.header();
        let partition = header.partition();
        let slot = match self.slot(partition) {
            Ok(slot) => slot,
            Err(code) => return refused(code, format!("partition {partition}")),
        };
        if header.producer_id() == ProducerId::NONE {
            return Admission::Append { slot, partition };
        }
        let known = self.state.partition(slot).producers.get(&header.producer_id());
        let (epoch, base, count) = (header.producer_epoch(), header.base_sequence(), header.count());
        let is_known = known.is_some();
        let verdict = match known {
            Some(producer) => producer.judge(epoch, base, count),
            None if base.0 != 0 => Verdict::OutOfOrder(Sequence(0)),
            None => Verdict::Append,
        };
        match verdict {
            Verdict::Append if !is_known && !self.state.make_room_for_producer() => {
                refused(ErrorCode::TooManyProducers, String::new())
            }
            Verdict::Append => Admission::Append { slot, partition },
            Verdict::Duplicate(offset) => Admission::Duplicate { slot, partition, offset },
            Verdict::OutOfOrder(expected) => {
                let text = format!("sequence {base} came, {expected} is next");
                Admission::Refused(
                    ErrorResponse::new(ErrorCode::OutOfOrderSequence, text).with_detail(expected.0),
                )
            }
            Verdict::Fenced(current) => {
                let text = format!("epoch {epoch} came, {current} has taken over");
                Admission::Refused(
                    ErrorResponse::new(ErrorCode::FencedProducer, text).with_detail(u64::from(current.0)),
                )
            }
        }
    }

    /// Acknowledges what is in the log already: at once if nothing is on its
    /// way, else with the last commit that is.
    fn acknowledge_again(&mut self, ack: PendingAck) {
        let Err(ack) = self.commits.wait(ack) else { return };
        let (Some(proof), Some(to)) = (self.commits.all_durable(), ack.to) else { return };
        self.reply(to, Reply::Produced(proof.ack(&ack, 0)));
    }

    /// Copies a batch into the open commit.
    pub(super) fn append(
        &mut self,
        slot: u32,
        partition: PartitionId,
        bytes: &[u8],
        to: Option<ReplyTo>,
        now: Now,
    ) -> Result<(), ErrorCode> {
        self.make_room(bytes.len(), now)?;
        self.append_here(slot, partition, bytes, to);
        Ok(())
    }

    /// Copies a batch into the open commit, which has room for it.
    pub(super) fn append_here(
        &mut self,
        slot: u32,
        partition: PartitionId,
        bytes: &[u8],
        to: Option<ReplyTo>,
    ) {
        let base_offset = self.state.partition(slot).end_offset;
        let open = self.commits.open().expect("make_room leaves a commit open");
        let (header, at) = open.next_header(bytes, base_offset);
        let segment = self.segments.open.expect("a commit is opened in an open segment");
        self.state.apply(slot, &header, segment.segment, segment.position as u32 + at);
        open.append(&header, bytes);
        self.counters.copied_bytes += bytes.len() as u64;
        self.wait_for_open_commit(slot, partition, base_offset, bytes.len(), to);
    }

    /// Makes a commit of its own from a batch that lies in aligned memory.
    fn append_direct(
        &mut self,
        slot: u32,
        partition: PartitionId,
        buffer: P::Buffer,
        len: usize,
        to: ReplyTo,
        now: Now,
    ) -> Result<(), ErrorCode> {
        self.replace_cut(now)?;
        if self.commits.has_open() {
            self.seal();
        }
        self.make_segment_room(BLOCK_LEN + len)?;
        let base_offset = self.state.partition(slot).end_offset;
        let commit_time_us = self.commits.commit_time(now.wall_us);
        let (commit, header) = OpenCommit::direct(buffer, len, base_offset, commit_time_us);
        let segment = self.segments.open.expect("there is room in the open segment");
        let position = segment.position as u32 + BLOCK_LEN as u32;
        self.state.apply(slot, &header, segment.segment, position);
        self.start_commit(commit, now);
        self.wait_for_open_commit(slot, partition, base_offset, len, Some(to));
        self.seal();
        Ok(())
    }

    #[inline]
    fn wait_for_open_commit(
        &mut self,
        slot: u32,
        partition: PartitionId,
        base_offset: Offset,
        len: usize,
        to: Option<ReplyTo>,
    ) {
        let ack = PendingAck {
            to,
            partition,
            slot,
            base_offset: Some(base_offset),
            end_offset: self.state.partition(slot).end_offset,
            batch_len: len as u32,
            duplicate: false,
        };
        self.commits.wait(ack).expect("a commit is open");
    }

    /// Leaves a commit open that has room for a batch of `len` bytes.
    #[inline]
    pub(super) fn make_room(&mut self, len: usize, now: Now) -> Result<(), ErrorCode> {
        self.replace_cut(now)?;
        let footer_len = self.state.footer_len_with_one_more();
        let limit = self.segments.commit_limit(footer_len);
        let position = self.segments.open.map_or(u64::MAX, |open| open.position);
        if let Some(open) = self.commits.open() {
            let max_len = if open.batches() == 0 { CHUNK_LEN } else { MAX_COMMIT_LEN };
            if open.has_room(len, max_len) && position + open.disk_len_with(len) as u64 <= limit {
                return Ok(());
            }
            self.seal();
        }
        self.make_segment_room(COMMIT_HEADER_LEN + len)?;
        let buffer = self.commit_buffer(COMMIT_HEADER_LEN + len).ok_or(ErrorCode::Overloaded)?;
        let commit_time_us = self.commits.commit_time(now.wall_us);
        self.start_commit(OpenCommit::new(buffer, commit_time_us), now);
        Ok(())
    }

    /// Puts a commit without batches where the log was cut, before any other is
    /// written. What was cut is still on disk: a commit of which a piece is missing,
    /// whole ones beyond it. A retry of the same batch may be written to the same
    /// place, and of that, after one more crash, just the missing piece may be there.
    /// Then it would all be valid again, with batches that nobody answers for.
    #[inline]
    pub(super) fn replace_cut(&mut self, now: Now) -> Result<(), ErrorCode> {
        if !self.replace_cut {
            return Ok(());
        }
        self.make_segment_room(COMMIT_HEADER_LEN)?;
        let buffer = self.commit_buffer(COMMIT_HEADER_LEN).ok_or(ErrorCode::Overloaded)?;
        let commit_time_us = self.commits.commit_time(now.wall_us);
        self.start_commit(OpenCommit::new(buffer, commit_time_us), now);
        self.seal();
        self.commits.hold_behind_last();
        self.replace_cut = false;
        Ok(())
    }

    /// Leaves a segment open that has room for a commit of `len` bytes.
    fn make_segment_room(&mut self, len: usize) -> Result<(), ErrorCode> {
        let len = len.next_multiple_of(BLOCK_LEN) as u64;
        for _ in 0..2 {
            let limit = self.segments.commit_limit(self.state.footer_len_with_one_more());
            if self.segments.open.is_some_and(|open| open.position + len <= limit) {
                return Ok(());
            }
            if !self.roll() {
                let full = self.segments.disk_is_full();
                return Err(if full { ErrorCode::DiskFull } else { ErrorCode::Overloaded });
            }
        }
        // A new segment has no room: its footer would fill it.
        Err(ErrorCode::Overloaded)
    }

    fn commit_buffer(&mut self, len: usize) -> Option<P::Buffer> {
        let rest = self.commit_rest.take();
        let long_enough = |buffer: &P::Buffer, len: usize| buffer.as_ref().len() >= len;
        if let Some(rest) = rest {
            if long_enough(&rest, len.max(MIN_REST_LEN)) {
                return Some(rest);
            }
            match self.pool.take() {
                Some(chunk) => return Some(chunk),
                None if long_enough(&rest, len) => return Some(rest),
                None => drop(rest),
            }
        }
        loop {
            if let Some(chunk) = self.pool.take() {
                return Some(chunk);
            }
            if !self.reader.tail.drop_oldest() && !self.reader.pages.drop_oldest() {
                return None;
            }
        }
    }

    /// Decides at once, and answers when everything that is appended by now is
    /// durable. From here on older epochs are refused, so what the answer of a
    /// take-over does not count is not there and never will be.
    pub(super) fn open_producer(&mut self, from: ReplyTo, open: OpenProducer) {
        let opened = match self.decide_open(open) {
            Ok(opened) => opened,
            Err(error) => return self.reply(from, Reply::Error(error)),
        };
        match self.commits.last_index() {
            Some(index) => self.waiting_opens.push_back((index, from, opened)),
            None => self.reply(from, Reply::ProducerOpened(opened)),
        }
    }

    /// Answers those who opened a producer before `durable_index` was durable.
    pub(super) fn opens_durable(&mut self, durable_index: u64) {
        while let Some((_, from, opened)) =
            self.waiting_opens.pop_front_if(|(index, ..)| *index <= durable_index)
        {
            self.reply(from, Reply::ProducerOpened(opened));
        }
    }

    /// Where the producer stands, once all that is appended is durable.
    fn decide_open(&mut self, open: OpenProducer) -> Result<ProducerOpened, ErrorResponse> {
        let slot = self
            .slot(open.partition)
            .map_err(|code| ErrorResponse::new(code, format!("partition {}", open.partition)))?;
        let producer = match open.producer {
            ProducerId::NONE => self.new_producer_id(),
            id => id,
        };
        let is_known = self.state.partition(slot).producers.contains_key(&producer);
        if !open.take_over && !is_known {
            return Ok(ProducerOpened {
                producer,
                epoch: Epoch(0),
                next_sequence: Sequence(0),
                last_offset: Offset::UNKNOWN,
            });
        }
        if !is_known && !self.state.make_room_for_producer() {
            return Err(ErrorResponse::new(ErrorCode::TooManyProducers, ""));
        }
        let state = self.state.promise(slot, producer);
        let mut epoch = state.promised_epoch.max(state.epoch);
        if open.take_over {
            epoch = Epoch(epoch.0.saturating_add(1));
            state.promised_epoch = epoch;
        }
        let last_offset = state.last_offset().unwrap_or(Offset::UNKNOWN);
        Ok(ProducerOpened { producer, epoch, next_sequence: state.next_sequence, last_offset })
    }

    /// A new identity: SplitMix64 (Steele, Lea, Flood 2014) from the seed.
    fn new_producer_id(&mut self) -> ProducerId {
        loop {
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            if z != ProducerId::NONE.0 {
                return ProducerId(z);
            }
        }
    }
}
