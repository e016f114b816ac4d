//! One producer on one connection, as a state machine: bytes in, bytes out,
//! time as an argument. Knows no socket; both engines drive this same code.
//!
//! A batch keeps its sequence from the first attempt to the last. What is sent
//! again is made again, byte for byte, from the few numbers that are kept of
//! it, so nothing that was sent needs to be stored.

mod context;
mod link;
mod sending;
mod stream;
#[cfg(test)]
mod tests;

pub use context::{Context, Parameters, Pauses, Phase, Tally};
pub use link::{Link, LinkError};
pub use stream::{Batch, Stream, Use};

use ringbolt_client::session::SessionEvent;
use ringbolt_wire::message::ErrorResponse;
use ringbolt_wire::message::{HelloAck, ProduceAck, ProducerOpened};
use ringbolt_wire::{PartitionId, ProducerId, Response};

use crate::frame::Place;
use crate::ledger::{Entry, StreamInfo};
use crate::schedule::Schedule;
use crate::send_buffer::SendBuffer;
use link::{Echo, LinkEvent, drain};

/// A note that travels with a request.
#[derive(Clone, Copy, Debug)]
pub enum Tag {
    /// Opens the producer's stream of this number.
    Open(u32),
    /// Produces.
    Batch(Batch),
}

/// First wait before a connection is made again, in ns; it doubles.
const FIRST_RECONNECT: u64 = 5_000_000;
/// Longest wait before a connection is made again, in ns.
const LONGEST_RECONNECT: u64 = 200_000_000;

/// See the [module](self).
pub struct Producer {
    index: u32,
    /// As the broker knows it, once it does.
    identity: ProducerId,
    streams: Vec<Stream>,
    /// Streams that are not opened; the last is the next one to be.
    to_open: Vec<u32>,
    opening: u32,
    /// The stream of the next new batch.
    turn: usize,
    link: Option<Link>,
    out: SendBuffer,
    /// Frames laid out in the buffer that is being sent.
    sending: usize,
    /// Batches without a final answer.
    unsettled: u32,
    /// Streams in which batches wait to be sent again.
    again: u32,
    /// Records that may still be sent, if a number ends the run.
    budget: Option<u64>,
    schedule: Option<Schedule>,
    /// A batch was due, and could not be sent for reasons that are the broker's.
    no_room: bool,
    /// When that last ended: lag counts from there.
    room_since: u64,
    last_progress: u64,
    /// Why a batch was last refused for the time being.
    refusal: Option<ErrorResponse>,
    reconnect_at: u64,
    failures: u32,
    /// Streams with sends that the ledger does not know of.
    untold: Vec<u32>,
    stopped: bool,
}

impl Producer {
    /// Producer `index`, which writes to these partitions.
    pub fn new(
        index: u32,
        partitions: impl IntoIterator<Item = PartitionId>,
        budget: Option<u64>,
    ) -> Producer {
        let place = |partition| Place { partition, ..Place::default() };
        let seed = |p: PartitionId| u64::from(index) << 32 | u64::from(p.index);
        let streams: Vec<Stream> = partitions.into_iter().map(|p| Stream::new(place(p), seed(p))).collect();
        assert!(!streams.is_empty(), "a producer writes somewhere");
        Producer {
            index,
            identity: ProducerId::NONE,
            to_open: (0..streams.len() as u32).rev().collect(),
            opening: 0,
            streams,
            turn: 0,
            link: None,
            out: SendBuffer::default(),
            sending: 0,
            unsettled: 0,
            again: 0,
            budget,
            schedule: None,
            no_room: false,
            room_since: 0,
            last_progress: 0,
            refusal: None,
            reconnect_at: 0,
            failures: 0,
            untold: Vec::new(),
            stopped: false,
        }
    }

    /// Whether every stream is open, or never will be.
    pub fn is_ready(&self) -> bool {
        self.stopped || (self.to_open.is_empty() && self.opening == 0)
    }

    /// Whether nothing is left to wait for, when no new messages are sent.
    pub fn is_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// Whether its share of a counted run is sent.
    pub fn has_spent(&self) -> bool {
        self.stopped || self.budget == Some(0)
    }

    /// Whether something that was due before the end waits to be sent.
    pub fn is_behind(&self, ctx: &Context) -> bool {
        !self.stopped && self.budget != Some(0) && self.schedule.is_some_and(|s| s.due() < ctx.due_until)
    }

    /// Messages that were due before `until`, and were never sent.
    pub fn due_not_sent(&self, ctx: &Context, until: u64) -> u64 {
        let batches = self.schedule.map_or(0, |s| s.left_before(until));
        let records = batches * u64::from(ctx.parameters.batch);
        self.budget.map_or(records, |budget| records.min(budget))
    }

    /// Starts to send, from `now` on.
    pub fn begin(&mut self, ctx: &Context, now: u64) {
        let p = &ctx.parameters;
        self.schedule = p.rate.map(|rate| Schedule::new(now, rate, p.batch, self.index, p.producers));
        (self.last_progress, self.room_since) = (now, now);
    }

    /// When a connection should be made; `None` if there is one, or none is
    /// wanted any more.
    pub fn connect_at(&self) -> Option<u64> {
        (self.link.is_none() && !self.stopped).then_some(self.reconnect_at)
    }

    /// Notes a new connection.
    pub fn connected(&mut self, ctx: &mut Context, now: u64) {
        self.out.clear();
        (self.no_room, self.room_since) = (false, now);
        if self.last_progress == 0 {
            self.last_progress = now;
        }
        if ctx.parameters.echo {
            self.link = Some(Link::Echo(Echo::default()));
            while let Some(number) = self.to_open.pop() {
                self.opening += 1;
                let producer = ProducerId(u64::from(self.index) + 1);
                self.opened(ctx, number, ProducerOpened { producer, ..nothing_opened() });
            }
        } else {
            let mut link = Link::broker(self.index, self.streams[0].place.partition);
            if let Link::Broker(session) = &mut link {
                drain(session, |bytes| ctx.maker.put_other(&mut self.out, bytes));
            }
            self.link = Some(link);
        }
        self.fill(ctx, now);
    }

    /// Notes that there is no connection any more, or none could be made.
    pub fn disconnected(&mut self, ctx: &mut Context, now: u64) {
        let wait = (FIRST_RECONNECT << self.failures.min(8)).min(LONGEST_RECONNECT);
        self.failures += 1;
        self.reconnect_at = now + wait;
        self.out.clear();
        let Some(link) = self.link.take() else { return };
        ctx.tally.reconnects += 1;
        for tag in link.into_unanswered() {
            match tag {
                Tag::Open(number) => {
                    self.opening -= 1;
                    self.to_open.push(number);
                }
                Tag::Batch(batch) => self.interrupted(ctx, batch),
            }
        }
    }

    /// A batch's connection is gone.
    fn interrupted(&mut self, ctx: &mut Context, batch: Batch) {
        let stream = &mut self.streams[batch.stream as usize];
        if stream.usable == Use::Open {
            self.again += u32::from(!stream.has_again());
            stream.interrupted(batch);
            return;
        }
        stream.settled();
        self.unsettled -= 1;
        self.given_up(ctx, batch, None);
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When the bytes make no sense; the connection is of no further use.
    pub fn received(&mut self, ctx: &mut Context, mut bytes: &[u8], now: u64) -> Result<(), LinkError> {
        while let Some(link) = &mut self.link {
            if let Some((Tag::Batch(batch), ack)) = link.receive_ack(&mut bytes) {
                self.acked(ctx, batch, ack, now);
                continue;
            }
            match link.receive(&mut bytes)? {
                Some(LinkEvent::Echoed(Tag::Batch(batch))) => self.echoed(ctx, batch, now),
                Some(LinkEvent::Session(event)) => self.event(ctx, event, now),
                Some(LinkEvent::Echoed(Tag::Open(_))) | None => return Ok(()),
            }
        }
        Ok(())
    }

    fn event(&mut self, ctx: &mut Context, event: SessionEvent<Tag>, now: u64) {
        match event {
            SessionEvent::Produced { tag: Tag::Batch(batch), ack } => self.acked(ctx, batch, ack, now),
            SessionEvent::Answer { tag, response, .. } => match (tag, response) {
                (Tag::Open(number), Response::ProducerOpened(opened)) => self.opened(ctx, number, opened),
                (Tag::Open(number), Response::Error(error)) => self.not_opened(ctx, number, &error),
                (Tag::Batch(batch), Response::Error(error)) => self.refused(ctx, batch, &error, now),
                // The session sees to it that answers belong to their requests.
                _ => {}
            },
            SessionEvent::Connected(limits) => {
                self.failures = 0;
                self.check_limits(ctx, &limits);
            }
            // The connection is closed next, which says all that matters here.
            SessionEvent::Goodbye(_)
            | SessionEvent::Delivered { .. }
            | SessionEvent::Produced { tag: Tag::Open(_), .. } => {}
        }
    }

    /// A broker that takes less than the one before it will never take what is to
    /// be sent.
    fn check_limits(&mut self, ctx: &mut Context, limits: &HelloAck) {
        let (len, most) = (ctx.maker.batch_len(ctx.parameters.batch), limits.max_batch_len);
        if len > most as usize {
            let index = self.index;
            ctx.fail(|| {
                format!("producer {index}: a record batch has {len} bytes, the broker takes at most {most}")
            });
            self.stop(ctx);
        }
    }

    #[inline]
    fn settle(&mut self, batch: Batch, now: u64) {
        self.streams[batch.stream as usize].settled();
        if self.no_room {
            (self.no_room, self.room_since) = (false, now);
        }
        self.unsettled -= 1;
        self.last_progress = now;
    }

    #[inline]
    fn echoed(&mut self, ctx: &mut Context, batch: Batch, now: u64) {
        self.settle(batch, now);
        self.record(ctx, batch, now);
    }

    #[inline]
    fn record(&self, ctx: &mut Context, batch: Batch, now: u64) {
        let count = u64::from(batch.count);
        ctx.tally.acked += count;
        let bytes = count * ctx.maker.value_len() as u64;
        ctx.recorder.answered(batch.due, now, count, bytes);
    }

    #[inline]
    fn acked(&mut self, ctx: &mut Context, batch: Batch, ack: ProduceAck, now: u64) {
        self.settle(batch, now);
        let stream = &self.streams[batch.stream as usize];
        let (ledger, partition) = (stream.ledger, stream.place.partition.index);
        let offset = ctx.acked_up_to(partition, ack.base_offset, batch.count);
        let count = u64::from(batch.count);
        ctx.note(Entry::Acked { stream: ledger, first: batch.first, count, offset });
        self.record(ctx, batch, now);
    }

    fn refused(&mut self, ctx: &mut Context, batch: Batch, error: &ErrorResponse, now: u64) {
        let stream = &mut self.streams[batch.stream as usize];
        if error.is_retryable() && stream.usable == Use::Open {
            self.again += u32::from(!stream.has_again());
            stream.refused(batch, error.code, now, u64::from(error.retry_after_ms) * 1_000_000);
            self.refusal = Some(error.clone());
            return;
        }
        let partition = stream.place.partition;
        ctx.fail(|| format!("producer {} was refused on partition {partition}: {error}", self.index));
        self.settle(batch, now);
        self.given_up(ctx, batch, Some(error.code));
        self.stop_stream(ctx, batch.stream);
    }

    /// Books a batch that is not tried any more; `code` is what its last attempt
    /// was refused with, if that was answered.
    fn given_up(&mut self, ctx: &mut Context, batch: Batch, code: Option<u16>) {
        let stream = self.streams[batch.stream as usize].ledger;
        let (first, count) = (batch.first, u64::from(batch.count));
        match code {
            Some(code) if !batch.doubtful => {
                ctx.tally.refused += count;
                ctx.note(Entry::Refused { stream, first, count, code });
            }
            _ => {
                ctx.tally.unknown += count;
                ctx.note(Entry::Unknown { stream, first, count });
            }
        }
    }

    /// Uses a stream no more; what waits in it to be sent again is given up.
    fn stop_stream(&mut self, ctx: &mut Context, number: u32) {
        let stream = &mut self.streams[number as usize];
        stream.usable = Use::Stopped;
        self.again -= u32::from(stream.has_again());
        for batch in stream.take_again() {
            self.unsettled -= 1;
            self.given_up(ctx, batch, batch.refusal);
        }
        self.stopped = self.streams.iter().all(|s| s.usable == Use::Stopped);
    }

    /// Gives up everything, as after a time without any progress.
    pub fn stop(&mut self, ctx: &mut Context) {
        self.tell(ctx);
        if let Some(link) = self.link.take() {
            for tag in link.into_unanswered() {
                if let Tag::Batch(batch) = tag {
                    self.unsettled -= 1;
                    self.given_up(ctx, batch, None);
                }
            }
        }
        (0..self.streams.len() as u32).for_each(|number| self.stop_stream(ctx, number));
        assert_eq!(self.unsettled, 0, "every batch has an outcome");
        self.stopped = true;
    }

    /// Gives up if nothing was answered for too long.
    pub fn check_timeout(&mut self, ctx: &mut Context, now: u64) {
        let waits = self.unsettled > 0 || !self.is_ready();
        if waits && now.saturating_sub(self.last_progress) > ctx.parameters.timeout {
            let seconds = ctx.parameters.timeout / 1_000_000_000;
            let index = self.index;
            ctx.fail(|| match &self.refusal {
                Some(refusal) => format!(
                    "producer {index} got nothing acknowledged for {seconds} s and gave up; refused last: {refusal}"
                ),
                None => format!("producer {index} got no answer for {seconds} s and gave up"),
            });
            self.stop(ctx);
        }
    }

    fn opened(&mut self, ctx: &mut Context, number: u32, opened: ProducerOpened) {
        self.opening -= 1;
        self.identity = opened.producer;
        let stream = &mut self.streams[number as usize];
        stream.place.producer = opened.producer;
        stream.place.epoch = opened.epoch;
        (stream.next, stream.told) = (opened.next_sequence.0, opened.next_sequence.0);
        stream.usable = Use::Open;
        stream.ledger = ctx.streams;
        ctx.streams += 1;
        let info = StreamInfo {
            index: self.index,
            partition: stream.place.partition,
            producer: opened.producer,
            epoch: opened.epoch,
            first_sequence: opened.next_sequence.0,
        };
        ctx.note(Entry::StreamOpened(info));
    }

    fn not_opened(&mut self, ctx: &mut Context, number: u32, error: &ErrorResponse) {
        self.opening -= 1;
        if error.is_retryable() {
            self.to_open.push(number);
            return;
        }
        let partition = self.streams[number as usize].place.partition;
        ctx.fail(|| format!("producer {} cannot open partition {partition}: {error}", self.index));
        self.stop_stream(ctx, number);
    }
}

fn nothing_opened() -> ProducerOpened {
    ProducerOpened {
        producer: ProducerId::NONE,
        epoch: ringbolt_wire::Epoch(0),
        next_sequence: ringbolt_wire::Sequence(0),
        last_offset: ringbolt_wire::Offset::UNKNOWN,
    }
}
