//! One consumer at one shard.

use std::collections::VecDeque;

use bytes::BytesMut;
use ringbolt_client::session::{Correlation, Session, SessionConfig, SessionError, SessionEvent, Transmit};
use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, DeliveredRange, Delivery, ErrorResponse, HelloAck, LeaseRange,
    MAX_CREDIT_BYTES, MAX_HELD_RANGES, MAX_SETTLE_ITEMS, MAX_SETTLE_RECORDS, Settle, Settled,
};
use ringbolt_wire::{ConsumerId, ErrorCode, Offset, Request, Response};

use super::settle::{AckMode, Deed, Entry, answers, up_to};
use super::{Context, Holder, Seat, Watcher};

/// First wait before a connection is made again, in ns; it doubles.
const FIRST_RECONNECT: u64 = 5_000_000;
/// Longest wait before a connection is made again, in ns.
const LONGEST_RECONNECT: u64 = 200_000_000;

/// A note that travels with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tag {
    Attach,
    /// A settle, by its place in `unanswered`.
    Settle(u32),
}

/// A settle request on its way.
struct Sent {
    entries: Vec<Entry>,
    /// Of records that came since the settle before it.
    bytes: u64,
    at: u64,
}

/// A record, or several that are treated alike, and when its work is done.
struct Work {
    due: u64,
    entry: Entry,
}

/// See the [module](self).
pub struct Member {
    seat: Seat,
    at: ConsumerAt,
    session: Option<Session<Tag>>,
    input: BytesMut,
    boot: u64,
    /// Under which attach records come; `None` while there is none.
    attach: Option<Correlation>,
    holder: Holder,
    /// In order of their time.
    work: VecDeque<Work>,
    /// To be settled.
    ready: Vec<Entry>,
    unanswered: Vec<Option<Sent>>,
    free: Vec<u32>,
    /// Memory of settles that were answered.
    spares: Vec<Vec<Entry>>,
    settle: Settle,
    /// Bytes of records that came, and that the broker may send again.
    owed_bytes: u64,
    not_before: u64,
    reconnect_at: u64,
    failures: u32,
    crashed: bool,
    stopped: bool,
}

impl Member {
    /// A consumer that is not connected yet.
    pub fn new<W>(seat: Seat, ctx: &mut Context<W>) -> Member {
        let at = ConsumerAt { shard: seat.shard, group: ctx.group, consumer: new_consumer(ctx) };
        Member {
            seat,
            at,
            session: None,
            input: BytesMut::new(),
            boot: 0,
            attach: None,
            holder: Holder::default(),
            work: VecDeque::new(),
            ready: Vec::new(),
            unanswered: Vec::new(),
            free: Vec::new(),
            spares: Vec::new(),
            settle: Settle { at, credit: Credit::default(), confirm: true, items: Vec::new() },
            owed_bytes: 0,
            not_before: 0,
            reconnect_at: 0,
            failures: 0,
            crashed: false,
            stopped: false,
        }
    }

    /// When a connection should be made; `None` if there is one, or none is wanted any
    /// more.
    pub fn connect_at(&self) -> Option<u64> {
        (self.session.is_none() && !self.stopped).then_some(self.reconnect_at)
    }

    /// Whether every settle has its answer.
    pub fn is_settled(&self) -> bool {
        self.free.len() == self.unanswered.len()
    }

    /// Takes and sends nothing more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Notes a new connection.
    pub fn connected(&mut self) {
        self.input.clear();
        self.session = Some(Session::new(SessionConfig {
            client_name: format!("loadgen-consumer-{}", self.at.consumer),
            affinity: Some(self.seat.affinity),
            ..SessionConfig::default()
        }));
    }

    /// Notes that there is no connection any more, or none could be made.
    pub fn disconnected<W: Watcher>(&mut self, ctx: &mut Context<W>, now: u64) {
        let wait = (FIRST_RECONNECT << self.failures.min(8)).min(LONGEST_RECONNECT);
        self.failures += 1;
        self.reconnect_at = now + wait;
        if self.session.take().is_some() {
            ctx.counts.reconnects += 1;
        }
        self.attach = None;
        for sent in std::mem::take(&mut self.unanswered).into_iter().flatten() {
            ctx.counts.unconfirmed += records(&sent.entries);
            ctx.watcher.unanswered(&self.holder, &sent.entries);
        }
        self.free.clear();
        if std::mem::take(&mut self.crashed) {
            ctx.counts.crashes += 1;
            ctx.counts.abandoned += self.in_hand();
            self.work.clear();
            self.ready.clear();
            self.at.consumer = new_consumer(ctx);
            self.failures = 0;
        }
    }

    fn in_hand(&self) -> u64 {
        let working: u64 = self.work.iter().map(|work| u64::from(work.entry.count)).sum();
        working + records(&self.ready)
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When they make no sense; the connection is of no further use.
    pub fn received<W: Watcher>(
        &mut self,
        ctx: &mut Context<W>,
        bytes: &[u8],
        now: u64,
    ) -> Result<(), SessionError> {
        self.input.extend_from_slice(bytes);
        while !self.crashed
            && let Some(session) = &mut self.session
        {
            let Some(event) = session.receive(&mut self.input)? else { return Ok(()) };
            match event {
                SessionEvent::Delivered { attach, delivery, payload } => {
                    if Some(attach) == self.attach {
                        self.delivered(ctx, &delivery, &payload, now);
                    }
                }
                SessionEvent::Answer { tag: Tag::Settle(slot), response, .. } => {
                    self.answered(ctx, slot, response, now);
                }
                SessionEvent::Answer { tag: Tag::Attach, response, .. } => {
                    self.attach_ended(ctx, response, now);
                }
                SessionEvent::Connected(ack) => self.greeted(ctx, &ack, now),
                // The connection is closed next, which says all that matters here.
                SessionEvent::Goodbye(_) | SessionEvent::Produced { .. } => {}
            }
        }
        Ok(())
    }

    fn greeted<W: Watcher>(&mut self, ctx: &mut Context<W>, ack: &HelloAck, now: u64) {
        self.failures = 0;
        self.boot = ack.boot;
        self.not_before = 0;
        self.fill(ctx, now);
    }

    /// Attaches, once what was said before is said: what is settled makes room.
    fn attach<W: Watcher>(&mut self, ctx: &mut Context<W>) {
        let Some(session) = &mut self.session else { return };
        let held = held(self.work.iter().map(|work| &work.entry).chain(&self.ready));
        let (at, lease_ms) = (self.at, ctx.conduct.lease_ms);
        let in_hand = held.iter().map(|range| u64::from(range.count)).sum();
        let records = u64::from(ctx.conduct.credit).saturating_sub(in_hand);
        let credit = Credit { records, bytes: MAX_CREDIT_BYTES };
        let attach = Request::Attach(Attach { at, credit, lease_ms, held });
        let Ok(correlation) = session.request(&attach, Tag::Attach) else { return };
        self.owed_bytes = 0;
        self.attach = Some(correlation);
        ctx.attaches += 1;
        self.holder = Holder { consumer: self.at.consumer, attach: ctx.attaches, boot: self.boot };
    }

    fn delivered<W: Watcher>(&mut self, ctx: &mut Context<W>, delivery: &Delivery, payload: &[u8], now: u64) {
        self.owed_bytes += payload.len() as u64;
        ctx.counts.bytes += payload.len() as u64;
        ctx.begin(now);
        let mut rest = payload;
        for range in &delivery.ranges {
            let (own, after) = rest.split_at(range.payload_len as usize);
            rest = after;
            let count = u64::from(range.lease.count);
            ctx.counts.deliveries += count;
            ctx.counts.redeliveries += if range.lease.acquired > 1 { count } else { 0 };
            if let Err(why) = ctx.watcher.delivered(&self.holder, range, own, now) {
                ctx.fail(|| why);
            }
            self.take_up(ctx, range, now);
        }
    }

    /// Begins to work on records.
    fn take_up<W: Watcher>(&mut self, ctx: &mut Context<W>, range: &DeliveredRange, now: u64) {
        let lease = range.lease;
        let whole = Entry {
            partition: lease.partition,
            count: lease.count,
            offset: lease.base_offset.0,
            acquired: lease.acquired,
            failed: range.failed,
            attach: self.holder.attach,
            deed: Deed::Ack,
        };
        if ctx.conduct.work == 0 {
            self.worked_on(ctx, &whole);
        } else {
            self.work.push_back(Work { due: now + ctx.conduct.work, entry: whole });
        }
    }

    /// Decides what became of records whose work is done.
    fn worked_on<W: Watcher>(&mut self, ctx: &mut Context<W>, whole: &Entry) {
        let conduct = ctx.conduct;
        let is_sure = !conduct.fail.is_possible() && !conduct.crash.is_possible();
        if is_sure && conduct.ack == AckMode::Batch {
            let most = MAX_SETTLE_RECORDS;
            for from in (whole.offset..whole.end()).step_by(most as usize) {
                self.is_ready(&whole.part(from, whole.end().min(from + most)), true);
            }
            return;
        }
        for offset in whole.offset..whole.end() {
            if conduct.crash.happens(&mut ctx.dice) {
                // What was not settled until here is in nobody's hands any more.
                self.crashed = true;
                self.ready.push(whole.part(offset, whole.end()));
                return;
            }
            let failed = conduct.fail.happens(&mut ctx.dice);
            let deed = if failed { Deed::Reject } else { Deed::Ack };
            let entry = Entry { deed, ..whole.part(offset, offset + 1) };
            self.is_ready(&entry, conduct.ack == AckMode::Batch);
        }
    }

    #[inline]
    fn is_ready(&mut self, entry: &Entry, gather: bool) {
        let has_room = |last: &Entry| u64::from(last.count) + u64::from(entry.count) <= MAX_SETTLE_RECORDS;
        let joins = gather && self.ready.last_mut().is_some_and(|last| has_room(last) && last.absorb(entry));
        if !joins {
            self.ready.push(*entry);
        }
    }

    /// Makes what can be sent now. Returns false if the connection must be closed.
    pub fn fill<W: Watcher>(&mut self, ctx: &mut Context<W>, now: u64) -> bool {
        while !self.crashed
            && let Some(work) = self.work.pop_front_if(|work| work.due <= now)
        {
            self.worked_on(ctx, &work.entry);
        }
        let is_up = self.session.as_ref().is_some_and(|session| session.limits().is_some());
        if self.crashed || !is_up || self.stopped {
            return !self.crashed;
        }
        if now >= self.not_before {
            self.not_before = 0;
            while !self.ready.is_empty() && self.settle_some(ctx, now) {}
            if self.attach.is_none() && self.ready.is_empty() {
                self.attach(ctx);
            }
        }
        true
    }

    /// Sends one settle request. False if none can be made now.
    fn settle_some<W: Watcher>(&mut self, ctx: &mut Context<W>, now: u64) -> bool {
        let Some(session) = self.session.as_mut().filter(|session| session.credit() > 0) else {
            return false;
        };
        let (mut count, mut sum) = (0, 0);
        for entry in &self.ready {
            if count == MAX_SETTLE_ITEMS || sum + u64::from(entry.count) > MAX_SETTLE_RECORDS {
                break;
            }
            (count, sum) = (count + 1, sum + u64::from(entry.count));
        }
        let mut entries = self.spares.pop().unwrap_or_default();
        entries.extend(self.ready.drain(..count));
        self.settle.at = self.at;
        self.settle.credit = Credit::default();
        if self.attach.is_some() {
            self.settle.credit = Credit { records: sum, bytes: self.owed_bytes };
        }
        self.settle.confirm = ctx.conduct.ack != AckMode::Nowait;
        self.settle.items.clear();
        match ctx.conduct.ack {
            AckMode::UpTo => up_to(&entries, &mut self.settle.items),
            _ => self.settle.items.extend(entries.iter().map(Entry::item)),
        }
        let bytes = std::mem::take(&mut self.owed_bytes);
        ctx.watcher.settling(&self.holder, &entries);
        if !self.settle.confirm {
            ctx.counts.unconfirmed += sum;
            ctx.counts.last_confirmation = now;
            ctx.recorder.answered(now, now, sum, bytes);
            ctx.watcher.unanswered(&self.holder, &entries);
            entries.clear();
            self.spares.push(entries);
            let Settle { at, credit, confirm, ref mut items } = self.settle;
            let settle = Settle { at, credit, confirm, items: std::mem::take(items) };
            return session.settle_unconfirmed(settle).is_ok();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.unanswered.push(None);
            (self.unanswered.len() - 1) as u32
        });
        self.unanswered[slot as usize] = Some(Sent { entries, bytes, at: now });
        let Settle { at, credit, confirm, ref mut items } = self.settle;
        let request = Request::Settle(Settle { at, credit, confirm, items: std::mem::take(items) });
        if let Err(refused) = session.request(&request, Tag::Settle(slot)) {
            ctx.fail(|| format!("a settle request could not be made: {}", refused.why));
        }
        if let Request::Settle(settle) = request {
            self.settle.items = settle.items;
        }
        true
    }

    fn answered<W: Watcher>(&mut self, ctx: &mut Context<W>, slot: u32, response: Response, now: u64) {
        let Some(mut sent) = self.unanswered[slot as usize].take() else { return };
        self.free.push(slot);
        match response {
            Response::Settled(settled) => self.settled(ctx, &sent, &settled, now),
            Response::Error(error) => self.refused(ctx, &sent, &error, now),
            // The session sees to it that answers belong to their requests.
            _ => {}
        }
        sent.entries.clear();
        self.spares.push(sent.entries);
    }

    fn settled<W: Watcher>(&self, ctx: &mut Context<W>, sent: &Sent, settled: &Settled, now: u64) {
        let (counts, watcher) = (&mut ctx.counts, &mut ctx.watcher);
        let mut done = 0;
        let fits = answers(&sent.entries, &settled.unsettled, |entry, status| {
            let records = u64::from(entry.count);
            match (status, entry.deed) {
                (0, Deed::Ack) => (counts.acked, done) = (counts.acked + records, done + records),
                (0, Deed::Reject) => (counts.rejected, done) = (counts.rejected + records, done + records),
                _ => match ErrorCode::from_u16(status) {
                    Some(ErrorCode::AlreadyCompleted) => counts.already_completed += records,
                    _ => counts.lease_lost += records,
                },
            }
            watcher.settled(&self.holder, entry, status);
        });
        if !fits {
            ctx.fail(|| {
                "the broker says of records that they are not settled which nobody settled".to_owned()
            });
        }
        ctx.settled(sent.at, now, done, sent.bytes);
    }

    /// A settle was refused as a whole: nothing of it was carried out.
    fn refused<W: Watcher>(&mut self, ctx: &mut Context<W>, sent: &Sent, error: &ErrorResponse, now: u64) {
        // It gave credit, and the attach has ended meanwhile: without credit it is good.
        let is_detached = error.error_code() == Some(ErrorCode::UnknownConsumer);
        if !is_detached && !error.is_retryable() {
            return ctx.fail(|| format!("a settle was refused: {error}"));
        }
        ctx.watcher.unanswered(&self.holder, &sent.entries);
        self.ready.splice(..0, sent.entries.iter().copied());
        self.owed_bytes += sent.bytes;
        self.not_before = now + u64::from(error.retry_after_ms) * 1_000_000;
    }

    fn attach_ended<W: Watcher>(&mut self, ctx: &mut Context<W>, response: Response, now: u64) {
        self.attach = None;
        match response {
            Response::Error(error) if error.is_retryable() => {
                self.not_before = now + (u64::from(error.retry_after_ms) * 1_000_000).max(FIRST_RECONNECT);
            }
            Response::Error(error) => ctx.fail(|| format!("a consumer's attach was ended: {error}")),
            _ => ctx.fail(|| "a consumer was detached that nobody had detached".to_owned()),
        }
    }

    /// When `fill` has something to do although nothing arrived.
    pub fn wake_at(&self) -> Option<u64> {
        if self.session.is_none() || self.stopped {
            return None;
        }
        let waits = (self.attach.is_none() || !self.ready.is_empty()) && self.not_before > 0;
        let work = self.work.front().map(|work| work.due);
        work.into_iter().chain(waits.then_some(self.not_before)).min()
    }

    /// What is to be sent, if anything is.
    #[inline]
    pub fn take_output(&mut self) -> Option<(Vec<u8>, usize)> {
        match self.session.as_mut()?.poll_transmit()? {
            Transmit::Buffer(buffer) => {
                let len = buffer.len();
                Some((buffer, len))
            }
            Transmit::Batch(_) => unreachable!("a consumer produces nothing"),
        }
    }

    /// Takes the memory of the last output back.
    #[inline]
    pub fn recycle(&mut self, memory: Vec<u8>) {
        if let Some(session) = &mut self.session {
            session.recycle(memory);
        }
    }
}

/// A random number that nobody has, and that is not 0.
fn new_consumer<W>(ctx: &mut Context<W>) -> ConsumerId {
    ConsumerId(ctx.dice.roll() | 1)
}

fn records(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.count)).sum()
}

/// What is in hand, as an attach says it.
fn held<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<LeaseRange> {
    let mut ranges: Vec<LeaseRange> = Vec::new();
    for entry in entries {
        let next = LeaseRange {
            partition: entry.partition,
            base_offset: Offset(entry.offset),
            count: entry.count,
            acquired: entry.acquired,
        };
        match ranges.last_mut() {
            Some(last)
                if last.end() == next.base_offset
                    && (last.partition, last.acquired) == (next.partition, next.acquired) =>
            {
                last.count += next.count;
            }
            _ => ranges.push(next),
        }
    }
    ranges.truncate(MAX_HELD_RANGES);
    ranges
}
