//! What a producer sends, and when: openings first, then what has to be sent
//! again, then new batches as window, credit and schedule allow.

use ringbolt_wire::message::OpenProducer;
use ringbolt_wire::{ProducerId, Request};

use super::link::drain;
use super::{Batch, Context, Link, Phase, Producer, Stream, Tag};
use crate::ledger::Entry;
use crate::payload::Stamp;
use crate::schedule::Schedule;
use crate::send_buffer::SendBuffer;

/// Bytes after which a closed loop makes no more until they are sent: large
/// batches from memory that fits the processor's cache.
const MOST_TO_SEND: usize = 512 << 10;

impl Producer {
    /// Appends what can be sent now to the output.
    pub fn fill(&mut self, ctx: &mut Context, now: u64) {
        if self.stopped || self.link.is_none() {
            return;
        }
        if !self.to_open.is_empty() {
            self.open_streams(ctx);
        }
        if self.again > 0 {
            self.send_again(ctx, now);
        }
        if matches!(ctx.phase, Phase::Sending | Phase::CatchingUp) {
            self.send_new(ctx, now);
        }
    }

    fn open_streams(&mut self, ctx: &Context) {
        let Some(Link::Broker(session)) = &mut self.link else { return };
        // The first answer brings the identity that the others need.
        let most = if self.identity == ProducerId::NONE { 1 } else { u32::MAX };
        while self.opening < most && session.credit() > 0 {
            let Some(number) = self.to_open.pop() else { break };
            let partition = self.streams[number as usize].place.partition;
            let open = OpenProducer { partition, producer: self.identity, take_over: false };
            if session.request(&Request::OpenProducer(open), Tag::Open(number)).is_err() {
                self.to_open.push(number);
                break;
            }
            self.opening += 1;
        }
        drain(session, |bytes| ctx.maker.put_other(&mut self.out, bytes));
    }

    fn send_again(&mut self, ctx: &mut Context, now: u64) {
        for number in 0..self.streams.len() {
            if self.streams[number].again_at().is_none_or(|at| at > now) {
                continue;
            }
            let batches = self.streams[number].take_again();
            let mut batches = batches.into_iter();
            for batch in batches.by_ref() {
                if !self.put(ctx, batch) {
                    // No credit left: the rest keeps its place.
                    let stream = &mut self.streams[number];
                    stream.keep(std::iter::once(batch).chain(batches));
                    return;
                }
                ctx.tally.retries += 1;
            }
            self.again -= 1;
        }
    }

    fn send_new(&mut self, ctx: &mut Context, now: u64) {
        let open_loop = self.schedule.is_some();
        while self.budget != Some(0) {
            // The rest follows when this is gone: each send gives an event.
            if !open_loop && self.out.len() >= MOST_TO_SEND {
                return;
            }
            let due = self.schedule.as_ref().map_or(now, Schedule::due);
            if due > now || due >= ctx.due_until {
                return;
            }
            let sent = self.send_one(ctx, due);
            let Some(batch) = sent else {
                self.no_room = true;
                return;
            };
            if open_loop {
                // The time now, not that of the turn: making frames takes time.
                let sent = now.max(ctx.clock.now());
                ctx.recorder.lagged(self.lag(ctx, due, sent));
            }
            self.booked(ctx, batch, now);
        }
    }

    /// How late, in ns, a batch that was due then was sent for reasons that are
    /// the generator's: since there was room for it, or during a pause in which
    /// room came and was not seen.
    fn lag(&self, ctx: &Context, due: u64, sent: u64) -> u64 {
        sent.saturating_sub(due.max(self.room_since)).max(ctx.pauses.since(due))
    }

    /// Sends a new batch, if there is room for it.
    #[inline]
    fn send_one(&mut self, ctx: &mut Context, due: u64) -> Option<Batch> {
        if self.unsettled >= ctx.parameters.in_flight {
            return None;
        }
        let number = self.next_stream()?;
        let usual = u64::from(ctx.parameters.batch);
        let count = self.budget.map_or(usual, |left| left.min(usual)) as u32;
        let first = self.streams[number].next;
        let batch = Batch { stream: number as u32, count, first, due, doubtful: false, refusal: None };
        self.put(ctx, batch).then_some(batch)
    }

    /// The stream whose turn it is, of those that take new batches.
    #[inline]
    fn next_stream(&mut self) -> Option<usize> {
        for _ in 0..self.streams.len() {
            let number = self.turn;
            self.turn += 1;
            if self.turn == self.streams.len() {
                self.turn = 0;
            }
            if self.streams[number].takes_new() {
                return Some(number);
            }
        }
        None
    }

    /// Books a batch that was sent for the first time.
    #[inline]
    fn booked(&mut self, ctx: &mut Context, batch: Batch, now: u64) {
        let count = u64::from(batch.count);
        let stream = &mut self.streams[batch.stream as usize];
        if stream.next == stream.told && ctx.ledger.is_kept() {
            self.untold.push(batch.stream);
        }
        stream.next += count;
        if self.unsettled == 0 {
            // Nothing was waited for before this.
            self.last_progress = now;
        }
        self.unsettled += 1;
        ctx.tally.sent += count;
        if let Some(budget) = &mut self.budget {
            *budget -= count;
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.advance();
        }
    }

    /// Appends a batch's frame to the output, unless the link takes none now.
    #[inline]
    fn put(&mut self, ctx: &mut Context, batch: Batch) -> bool {
        let Some(link) = self.link.as_mut().filter(|link| link.credit() > 0) else { return false };
        let Some(head) = link.head(&ctx.maker, Tag::Batch(batch), batch.count) else { return false };
        let stream = &mut self.streams[batch.stream as usize];
        stream.sent();
        let place = stream.place;
        if self.out.capacity() == 0
            && let Some(memory) = ctx.spares.pop()
        {
            self.out = memory;
        }
        let stamp = Stamp {
            run: ctx.parameters.run,
            producer: self.index,
            partition: place.partition.index,
            sequence: batch.first,
            sent_ns: batch.due,
        };
        let timestamp_us = ctx.parameters.wall_us + batch.due / 1000;
        ctx.maker.put(&mut self.out, &head, place, stamp, timestamp_us, batch.count);
        true
    }

    /// Tells the ledger what was sent since the last time.
    pub fn tell(&mut self, ctx: &mut Context) {
        for number in self.untold.drain(..) {
            let stream = &mut self.streams[number as usize];
            let (first, count) = (stream.told, stream.next - stream.told);
            stream.told = stream.next;
            ctx.note(Entry::Sent { stream: stream.ledger, first, count });
        }
    }

    /// When `fill` has something to do although nothing arrived.
    pub fn wake_at(&self, ctx: &Context) -> Option<u64> {
        if self.stopped || self.link.is_none() {
            return None;
        }
        let mut at = None;
        if self.again > 0 {
            at = self.streams.iter().filter_map(Stream::again_at).min();
        }
        if let Some(schedule) = &self.schedule
            && matches!(ctx.phase, Phase::Sending | Phase::CatchingUp)
            && schedule.due() < ctx.due_until
            && !self.no_room
            && self.budget != Some(0)
        {
            at = Some(at.map_or(schedule.due(), |a: u64| a.min(schedule.due())));
        }
        at
    }

    /// What is to be sent, if anything is: memory, and how much of it. Give the
    /// memory back with [`recycle`](Self::recycle).
    #[inline]
    pub fn take_output(&mut self) -> Option<(Vec<u8>, usize)> {
        if self.out.is_empty() {
            return None;
        }
        self.sending = self.out.laid_out();
        Some(self.out.take())
    }

    /// Takes the memory of the last output back, when it was sent.
    #[inline]
    pub fn recycle(&mut self, ctx: &mut Context, memory: Vec<u8>) {
        // Some are made anew with a connection, and those would pile up.
        if ctx.spares.len() < ctx.parameters.producers as usize {
            ctx.spares.push(SendBuffer::again(memory, self.sending));
        }
    }
}
