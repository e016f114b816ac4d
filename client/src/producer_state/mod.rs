//! One producer's stream to one partition as a pure state machine: sequences,
//! the batches kept for retries, and when to try again. It does not know
//! connections, only that there is one or not; and no clock, only `now`, in µs
//! since any fixed moment.
//!
//! The driver, whenever something has happened, calls [`ProducerState::poll`]
//! until it says `None` and does each [`Step`]; it reports answers and the
//! comings and goings of the connection, and calls again at
//! [`ProducerState::poll_timeout`].
//!
//! # Rules
//!
//! - Batches leave in order. After a refusal nothing more leaves until every
//!   attempt in flight is answered; then all that is not durable leaves again,
//!   in order, each with the sequence that it had.
//! - After a lost connection the producer is opened again, and all that is
//!   unanswered leaves again with the same sequence and epoch, so the broker
//!   recognises what it has.
//! - A batch that is given up (deadline, final refusal) leaves a hole in the
//!   sequence, and the broker accepts nothing behind a hole. So the producer
//!   takes itself over: a new epoch, and sequences from where the broker says
//!   it stands. The new epoch keeps late copies of old attempts out.
//! - A batch ends as unknown, and never as rejected, once an attempt on a lost
//!   connection had no answer; only an acknowledgement changes that.

mod settle;
#[cfg(test)]
mod tests;
mod verdict;
mod window;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use ringbolt_wire::message::{ErrorResponse, OpenProducer};
use ringbolt_wire::{BatchBuilder, Epoch, PartitionId, ProducerId};

use crate::backoff::{Backoff, BackoffConfig};
pub use verdict::{Durable, Failure, Finished};
pub use window::BatchId;
use window::{Entry, Identity, Window};

/// Settings of a [`ProducerState`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerConfig {
    /// Identity to produce under; [`ProducerId::NONE`] lets the broker choose.
    pub producer: ProducerId,
    /// An earlier incarnation has used this identity: what it sent last may
    /// still be on its way, so the first batch goes alone.
    pub resume: bool,
    /// Fence older incarnations of this identity when opening the first time.
    pub take_over: bool,
    /// Most batches that are sent and unanswered, at least 1.
    pub max_in_flight: usize,
    /// Longest wait for an answer before the connection is taken for dead.
    pub request_timeout: Duration,
    /// Waits between retries.
    pub backoff: BackoffConfig,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            producer: ProducerId::NONE,
            resume: false,
            take_over: false,
            max_in_flight: 8,
            request_timeout: Duration::from_secs(10),
            backoff: BackoffConfig::default(),
        }
    }
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Step<T> {
    /// Send this request; the answer goes to [`ProducerState::on_opened`] or
    /// [`ProducerState::on_open_refused`].
    Open(OpenProducer),
    /// Send this batch; the answer goes to [`ProducerState::on_acked`] or
    /// [`ProducerState::on_refused`].
    Send {
        /// Names it in the answer.
        id: BatchId,
        /// The batch.
        batch: Bytes,
    },
    /// The broker does not answer: close the connection and report that to
    /// [`ProducerState::on_disconnected`]. Said until it is done.
    Reconnect,
    /// A batch has ended.
    Finished(Finished<T>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opening {
    Needed,
    Asked { at_us: u64, take_over: bool },
    Done,
}

#[derive(Debug)]
struct Queued<T> {
    builder: BatchBuilder,
    deadline_us: u64,
    tag: T,
}

/// A producer's stream to one partition. See the [module](self) for its use.
#[derive(Debug)]
pub struct ProducerState<T> {
    identity: Identity,
    config: ProducerConfig,
    connected: bool,
    opening: Opening,
    /// Whether an open was ever answered.
    known: bool,
    /// The next open takes over.
    take_over: bool,
    /// Take-overs asked for since the last answer to one: the broker may have
    /// counted any of them.
    take_overs_asked: u32,
    next_sequence: u64,
    /// All below is known to be durable, or was before this producer's time.
    durable_below: u64,
    window: Window<T>,
    queue: VecDeque<Queued<T>>,
    /// Send nothing until what is in flight is answered.
    holding: bool,
    not_before_us: u64,
    backoff: Backoff,
    /// Attempts of batches that were given up, here or by an earlier
    /// incarnation, may still reach the log, until a batch of the present epoch
    /// is durable.
    stale_attempts: bool,
    last_deadline_us: u64,
    finished: VecDeque<Finished<T>>,
    /// Nothing can be produced any more, for this reason.
    ended: Option<Ended>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Ended {
    Refused(ErrorResponse),
    Closed,
}

impl<T> ProducerState<T> {
    /// A stream to `partition`, without a connection yet. `seed` is for the
    /// jitter of its waits.
    ///
    /// # Panics
    /// If `max_in_flight` is 0.
    pub fn new(partition: PartitionId, config: ProducerConfig, seed: u64) -> Self {
        assert!(config.max_in_flight > 0, "a producer needs room for one batch in flight");
        ProducerState {
            identity: Identity { partition, producer: config.producer, epoch: Epoch(0) },
            connected: false,
            opening: Opening::Needed,
            known: false,
            take_over: config.take_over,
            take_overs_asked: 0,
            next_sequence: 0,
            durable_below: 0,
            window: Window::default(),
            queue: VecDeque::new(),
            holding: false,
            not_before_us: 0,
            backoff: Backoff::new(config.backoff, seed),
            stale_attempts: config.resume,
            last_deadline_us: 0,
            finished: VecDeque::new(),
            ended: None,
            config,
        }
    }

    /// Takes a batch of at least one record. It ends, in a
    /// [`Step::Finished`], at `deadline_us` at the latest; not before the
    /// batches that were pushed earlier have their deadline.
    pub fn push(&mut self, builder: BatchBuilder, deadline_us: u64, tag: T) {
        self.last_deadline_us = self.last_deadline_us.max(deadline_us);
        let queued = Queued { builder, deadline_us: self.last_deadline_us, tag };
        match self.ended.clone() {
            Some(why) => self.drop_queued(queued, why.into()),
            None => self.queue.push_back(queued),
        }
    }

    /// Whether a batch that is pushed now would be sent at once, given
    /// connection and credit. A driver that gathers records waits for it while
    /// they are not yet a full batch.
    pub fn wants_batch(&self, now_us: u64) -> bool {
        self.connected
            && self.ended.is_none()
            && !self.holding
            && now_us >= self.not_before_us
            && matches!(self.opening, Opening::Done | Opening::Needed)
            && self.queue.is_empty()
            && self.window.len() < self.config.max_in_flight
    }

    /// Whether every batch has ended and every end was polled.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.finished.is_empty() && self.window.first_live().is_none()
    }

    /// Who produces. [`ProducerId::NONE`] until the broker has chosen.
    pub fn producer(&self) -> ProducerId {
        self.identity.producer
    }

    /// The incarnation; 0 until the producer is open.
    pub fn epoch(&self) -> Epoch {
        self.identity.epoch
    }

    /// Why nothing can be produced any more, for example because the producer
    /// was fenced or the topic deleted.
    pub fn refusal(&self) -> Option<&ErrorResponse> {
        match &self.ended {
            Some(Ended::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// The next thing to do at `now_us`. Without `credit`, nothing that needs
    /// the connection.
    pub fn poll(&mut self, now_us: u64, credit: bool) -> Option<Step<T>> {
        self.expire(now_us);
        if let Some(finished) = self.finished.pop_front() {
            return Some(Step::Finished(finished));
        }
        if !self.connected || self.ended.is_some() {
            return None;
        }
        if self.stalled_at_us().is_some_and(|at| at <= now_us) {
            return Some(Step::Reconnect);
        }
        if self.window.in_flight == 0 && self.holding {
            self.holding = false;
            self.window.rewind();
        }
        if now_us < self.not_before_us {
            return None;
        }
        self.not_before_us = 0;
        if !credit || self.holding {
            return None;
        }
        match self.opening {
            Opening::Asked { .. } => None,
            Opening::Needed => self.open(now_us),
            Opening::Done => self.send(now_us),
        }
    }

    /// When to call [`poll`](Self::poll) again if nothing else happens.
    pub fn poll_timeout(&self) -> Option<u64> {
        let first = self.window.first_live().map(|entry| entry.deadline_us);
        let queued = self.queue.front().map(|queued| queued.deadline_us);
        let can_send = self.connected && self.ended.is_none();
        let retry =
            (can_send && self.not_before_us > 0 && first.or(queued).is_some()).then_some(self.not_before_us);
        let stalled = self.stalled_at_us().filter(|_| can_send);
        [first, queued, retry, stalled].into_iter().flatten().min()
    }

    fn stalled_at_us(&self) -> Option<u64> {
        let asked = match self.opening {
            Opening::Asked { at_us, .. } => Some(at_us),
            _ => self.window.oldest_sent_us(),
        };
        asked.map(|at_us| at_us.saturating_add(self.config.request_timeout.as_micros() as u64))
    }

    /// Opens the producer if there is something to send; until then it would
    /// only cost a round trip and the broker's memory.
    fn open(&mut self, now_us: u64) -> Option<Step<T>> {
        if self.window.in_flight > 0 || (self.window.first_live().is_none() && self.queue.is_empty()) {
            return None;
        }
        self.opening = Opening::Asked { at_us: now_us, take_over: self.take_over };
        self.take_overs_asked += u32::from(self.take_over);
        Some(Step::Open(OpenProducer {
            partition: self.identity.partition,
            producer: self.identity.producer,
            take_over: self.take_over,
        }))
    }

    fn send(&mut self, now_us: u64) -> Option<Step<T>> {
        // Were the first batch displaced by a stale attempt, the second would
        // overtake it.
        if self.stale_attempts && self.window.in_flight > 0 {
            return None;
        }
        if !self.window.has_unsent() && self.window.len() < self.config.max_in_flight {
            let queued = self.queue.pop_front()?;
            let Queued { builder, deadline_us, tag } = queued;
            let mut entry = Entry::new(builder, self.identity, self.next_sequence, deadline_us, tag);
            entry.contested = self.stale_attempts;
            self.next_sequence = entry.end_sequence();
            self.window.push(entry);
        }
        let (id, entry) = self.window.send_next(now_us)?;
        Some(Step::Send { id, batch: entry.batch.clone() })
    }

    /// There is a connection.
    pub fn on_connected(&mut self) {
        self.connected = true;
        self.opening = Opening::Needed;
    }

    /// The connection is gone; answers to what was in flight will not come.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.opening = Opening::Needed;
        self.holding = false;
        // What then stands in the log under a sequence of this producer might
        // be a late attempt; a new epoch keeps further ones out.
        self.take_over |= self.stale_attempts;
        self.window.disconnected();
    }

    /// Ends everything: batches of which nothing can have been written as
    /// closed, the others as unknown.
    pub fn close(&mut self) {
        self.end(Ended::Closed);
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Failure {
        match ended {
            Ended::Refused(refusal) => Failure::Refused(refusal),
            Ended::Closed => Failure::Closed,
        }
    }
}
