//! One consumer at one shard as a pure state machine: what it has in hand, what of
//! it is to be settled, what the broker may send, and when leases are extended. It
//! does not know connections, only that there is one or not; no records, only where
//! they are; and no clock, only `now`, in µs since any fixed moment.
//!
//! The driver, whenever something has happened, calls [`ShardState::poll`] until it
//! says `None` and does each [`Step`]; it reports deliveries, answers and the comings
//! and goings of the connection, and calls again at [`ShardState::poll_timeout`].
//!
//! # Rules
//!
//! - What is in hand and what the broker may still send are never more than the
//!   window. A record is in hand until its settle is sent; that request gives the
//!   credit back.
//! - What was settled without an answer is settled again after a lost connection, and
//!   answered before the consumer attaches: attaching gives back what is not in hand,
//!   and lets the broker send something in the place of what was settled.
//! - After it has attached again, all leases are extended at once: the answer tells
//!   which of them are gone.
//! - Nothing is released for the end: while the consumer is attached it would be sent
//!   again at once. Detaching gives everything back.
//! - In an exclusive group a record that goes back takes those behind it along. They
//!   are let go of here as well, so that none of them comes before it.

mod hand;
mod queue;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, DeliveredRange, ErrorResponse, LeaseRange, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, MAX_HELD_RANGES, Settle, Verb,
};

use crate::backoff::{Backoff, BackoffConfig};
use crate::error::SettleError;
use hand::{Amount, Hand, Held};
use queue::{Entry, Queue};
pub(crate) use settle::goes_back;

/// Unanswered settles at one shard: beyond, what is to be settled gathers.
const MAX_UNANSWERED: usize = 4;

/// Settings of a [`ShardState`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardConfig {
    pub at: ConsumerAt,
    /// Most that may be in hand; both at least 1 and within the protocol's bounds.
    pub window: Credit,
    /// For how long records are leased, in ms; 0 for the group's time.
    pub lease_ms: u32,
    pub auto_extend: bool,
    /// The group's mode is exclusive.
    pub exclusive: bool,
    /// The group has a dead-letter topic.
    pub dead_letters: bool,
    /// Longest wait for an answer, µs, before the connection is taken for dead.
    pub request_timeout_us: u64,
    pub backoff: BackoffConfig,
}

/// Names a settle request until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SettleId(u64);

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// Send it; the answer goes to [`ShardState::on_settled`] or
    /// [`ShardState::on_settle_refused`].
    Settle { id: SettleId, settle: Settle },
    /// Send it; there is no answer.
    Tell(Settle),
    /// Send it; deliveries go to [`ShardState::on_delivery`], its end to
    /// [`ShardState::on_attach_ended`].
    Attach(Attach),
    /// Send it; the answer goes to [`ShardState::on_detached`].
    Detach(ConsumerAt),
    /// The broker does not answer: close the connection and report that to
    /// [`ShardState::on_disconnected`]. Said until it is done.
    Reconnect,
    /// What somebody waits for has come to this.
    Resolved { tag: T, verdict: Result<(), SettleError> },
    /// These are no longer in hand: the application is not to get them.
    Lost(LeaseRange),
    /// There will be no more deliveries, for this reason.
    Ended(ErrorResponse),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Down,
    /// Connected, and not attached.
    Up,
    Attached,
}

struct Unanswered<T> {
    entries: Vec<Entry<T>>,
    /// Given with it, under which attach.
    credit: Credit,
    attach: u64,
    sent_us: u64,
}

/// A consumer at one shard. See the [module](self) for its use.
pub(crate) struct ShardState<T> {
    config: ShardConfig,
    link: Link,
    hand: Hand,
    queue: Queue<T>,
    unanswered: BTreeMap<SettleId, Unanswered<T>>,
    next_id: u64,
    /// Attaches so far.
    attaches: u64,
    /// What the broker may still send: credit that it has and has not used. Bytes go
    /// below 0 by a delivery's last record.
    open_records: i64,
    open_bytes: i64,
    /// In an exclusive group, by partition: the record that went back. What comes
    /// after it does not count until it comes again or the broker has answered.
    passed_over: BTreeMap<u32, u64>,
    /// All leases are to be extended, due or not.
    verify: bool,
    /// Records may be leased to this consumer.
    has_leases: bool,
    /// No more deliveries are wanted.
    closing: bool,
    detaching: bool,
    /// There are no more deliveries to be had.
    ended: bool,
    not_before_us: u64,
    backoff: Backoff,
    steps: VecDeque<Step<T>>,
}

impl<T> ShardState<T> {
    /// A consumer without a connection yet. `seed` is for the jitter of its waits.
    ///
    /// # Panics
    /// If the window has no room for a record, or is larger than credit may be.
    pub fn new(config: ShardConfig, seed: u64) -> Self {
        assert!((1..=MAX_CREDIT_RECORDS).contains(&config.window.records), "window in records");
        assert!((1..=MAX_CREDIT_BYTES).contains(&config.window.bytes), "window in bytes");
        ShardState {
            link: Link::Down,
            hand: Hand::default(),
            queue: Queue::new(config.exclusive),
            unanswered: BTreeMap::new(),
            next_id: 0,
            attaches: 0,
            open_records: 0,
            open_bytes: 0,
            passed_over: BTreeMap::new(),
            verify: false,
            has_leases: false,
            closing: false,
            detaching: false,
            ended: false,
            not_before_us: 0,
            backoff: Backoff::new(config.backoff, seed),
            steps: VecDeque::new(),
            config,
        }
    }

    /// Whether it is closed, everything was answered, and nothing is leased to it.
    pub fn is_done(&self) -> bool {
        let is_settled = self.queue.is_empty() && self.unanswered.is_empty();
        self.closing && is_settled && !self.has_leases && self.steps.is_empty()
    }

    /// The next thing to do at `now_us`. Without `credit`, nothing that needs an
    /// answer.
    pub fn poll(&mut self, now_us: u64, credit: bool) -> Option<Step<T>> {
        if self.hand.first_until_us() <= now_us {
            let expired = self.hand.take_expired(now_us);
            self.let_go(expired);
        }
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        if self.link == Link::Down {
            return None;
        }
        if self.stalled_at_us().is_some_and(|at| at <= now_us) {
            return Some(Step::Reconnect);
        }
        if now_us < self.not_before_us {
            return None;
        }
        self.not_before_us = 0;
        self.extend(now_us);
        if let Some(step) = self.settle_next(now_us, credit) {
            return Some(step);
        }
        if !self.queue.is_empty() {
            return None;
        }
        match self.link {
            Link::Up if self.may_attach() && credit => Some(self.attach()),
            Link::Attached if self.closing => self.detach(credit),
            Link::Attached => self.give_credit(),
            _ => None,
        }
    }

    /// When to call [`poll`](Self::poll) again if nothing else happens.
    pub fn poll_timeout(&self) -> Option<u64> {
        let mut at = self.hand.first_until_us();
        if self.link != Link::Down {
            at = at.min(self.stalled_at_us().unwrap_or(u64::MAX));
            if self.not_before_us > 0 {
                at = at.min(self.not_before_us);
            } else if self.extends() {
                at = at.min(self.hand.first_due_us());
            }
        }
        (at < u64::MAX).then_some(at)
    }

    fn stalled_at_us(&self) -> Option<u64> {
        let (_, oldest) = self.unanswered.first_key_value()?;
        Some(oldest.sent_us.saturating_add(self.config.request_timeout_us))
    }

    fn extends(&self) -> bool {
        self.config.auto_extend && self.link != Link::Down && !self.closing
    }

    /// Queues the extensions of a round if one is due.
    fn extend(&mut self, now_us: u64) {
        if !self.extends() || !(self.verify || self.hand.first_due_us() <= now_us) {
            return;
        }
        let all = self.link == Link::Attached && std::mem::take(&mut self.verify);
        for range in self.hand.extend_due(now_us, all) {
            self.queue.push(Entry {
                range,
                verb: Verb::Extend { lease_ms: 0 },
                tag: None,
                confirm: true,
                amount: Amount::default(),
                retried: false,
            });
        }
    }

    fn settle_next(&mut self, now_us: u64, credit: bool) -> Option<Step<T>> {
        if self.queue.is_empty() || !credit || self.unanswered.len() >= MAX_UNANSWERED {
            return None;
        }
        let (items, entries) = self.queue.next();
        assert!(!items.is_empty(), "a request has room for whatever is first");
        let confirm = entries.iter().any(|entry| entry.confirm);
        // A request that has no answer may be refused, and credit with it, unheard. Alone it
        // is not.
        let credit = if confirm { self.take_credit() } else { Credit::default() };
        let settle = Settle { at: self.config.at, credit, confirm, items };
        if !confirm {
            return Some(Step::Tell(settle));
        }
        let id = SettleId(self.next_id);
        self.next_id += 1;
        let (credit, attach) = (settle.credit, self.attaches);
        self.unanswered.insert(id, Unanswered { entries, credit, attach, sent_us: now_us });
        Some(Step::Settle { id, settle })
    }

    fn in_hand(&self) -> Amount {
        let mut amount = self.hand.amount();
        amount.add(self.queue.amount());
        amount
    }

    /// The part of the window that the broker does not have and nothing takes up.
    /// It counts as given from here on.
    fn take_credit(&mut self) -> Credit {
        if self.link != Link::Attached || self.closing {
            return Credit::default();
        }
        let in_hand = self.in_hand();
        let free = |window: u64, in_hand: u64, open: i64, max: u64| {
            let taken = i128::from(in_hand) + i128::from(open);
            (i128::from(window) - taken).clamp(0, i128::from(max)) as u64
        };
        let window = self.config.window;
        let credit = Credit {
            records: free(window.records, in_hand.records, self.open_records, MAX_CREDIT_RECORDS),
            bytes: free(window.bytes, in_hand.bytes, self.open_bytes, MAX_CREDIT_BYTES),
        };
        // Both are within i64 by the bounds above.
        self.open_records += credit.records as i64;
        self.open_bytes += credit.bytes as i64;
        credit
    }

    /// Credit that was given and refused.
    fn take_back(&mut self, credit: Credit) {
        self.open_records -= credit.records as i64;
        self.open_bytes -= credit.bytes as i64;
    }

    /// What became free without a settle.
    fn give_credit(&mut self) -> Option<Step<T>> {
        let credit = self.take_credit();
        let is_none = credit == Credit::default();
        let settle = || Settle { at: self.config.at, credit, confirm: false, items: Vec::new() };
        (!is_none).then(|| Step::Tell(settle()))
    }

    /// What was said before must be answered first: what is not held when attaching is
    /// given back, and what is settled makes room for what may come.
    fn may_attach(&self) -> bool {
        let is_wanted = !self.ended && (!self.closing || self.has_leases);
        is_wanted && self.queue.is_empty() && self.unanswered.is_empty()
    }

    fn attach(&mut self) -> Step<T> {
        let mut held = self.hand.ranges();
        for range in held.split_off(held.len().min(MAX_HELD_RANGES)) {
            self.hand.take_range(range);
            self.steps.push_back(Step::Lost(range));
        }
        self.link = Link::Attached;
        self.has_leases = true;
        self.attaches += 1;
        (self.open_records, self.open_bytes) = (0, 0);
        self.verify = !self.hand.is_empty();
        let credit = self.take_credit();
        Step::Attach(Attach { at: self.config.at, credit, lease_ms: self.config.lease_ms, held })
    }

    fn detach(&mut self, credit: bool) -> Option<Step<T>> {
        if self.detaching || !self.unanswered.is_empty() || !credit {
            return None;
        }
        self.detaching = true;
        Some(Step::Detach(self.config.at))
    }

    /// There is a connection.
    pub fn on_connected(&mut self) {
        self.link = Link::Up;
    }

    /// The broker was restarted, which ends all leases. Returns those that are not in
    /// hand any more.
    pub fn broker_restarted(&mut self) -> Vec<LeaseRange> {
        self.hand.take_all().into_iter().map(|(range, _)| range).collect()
    }

    /// The connection is gone; answers to what was sent will not come.
    pub fn on_disconnected(&mut self) {
        self.link = Link::Down;
        self.detaching = false;
        self.passed_over.clear();
        for (_, unanswered) in std::mem::take(&mut self.unanswered).into_iter().rev() {
            let retried = |entry| Entry { retried: true, ..entry };
            self.queue.put_back(unanswered.entries.into_iter().map(retried).collect());
        }
    }

    /// Records came: `bytes` of payload for each of the range. `None` if they are not
    /// for the application, else earlier leases of the same records, which are not any
    /// more.
    ///
    /// # Panics
    /// If there are not as many bytes as the range has records.
    pub fn on_delivery(
        &mut self,
        range: &DeliveredRange,
        bytes: &[u64],
        lease_ms: u32,
        now_us: u64,
    ) -> Option<Vec<LeaseRange>> {
        let lease = range.lease;
        assert_eq!(bytes.len(), lease.count as usize, "every record has its bytes");
        self.open_records = self.open_records.saturating_sub(i64::from(lease.count));
        self.open_bytes = self.open_bytes.saturating_sub(i64::from(range.payload_len));
        if self.closing || self.ended {
            // It goes back when this is detached.
            return None;
        }
        if !self.counts(&lease) {
            let amount = Amount { records: u64::from(lease.count), bytes: bytes.iter().sum() };
            self.push_release(lease, amount, false);
            return None;
        }
        let lease_us = u64::from(lease_ms) * 1000;
        let mut replaced = Vec::new();
        for (offset, &bytes) in (lease.base_offset.0..).zip(bytes) {
            let until_us = now_us.saturating_add(lease_us);
            let held = Held { acquired: lease.acquired, bytes, lease_us, until_us };
            if let Some(earlier) = self.hand.insert(lease.partition, offset, held) {
                // The same count does not mean the same lease: the broker may have
                // forgotten some when it was restarted.
                let (base_offset, acquired) = (ringbolt_wire::Offset(offset), earlier.acquired);
                replaced.push(LeaseRange { base_offset, count: 1, acquired, ..lease });
            }
        }
        Some(replaced)
    }

    /// Takes no more records. Once everything that was said is answered, it is
    /// detached, which gives back what is in hand; after a lost connection it attaches
    /// for that, as only the broker knows what it has sent.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            let given_back = self.hand.take_all();
            self.steps.extend(given_back.into_iter().map(|(range, _)| Step::Lost(range)));
        }
    }

    /// The end came without an answer: tells everybody who waits.
    pub fn give_up(&mut self) -> Vec<(T, SettleError)> {
        let sent = std::mem::take(&mut self.unanswered).into_values().flat_map(|u| u.entries);
        let sent = sent.map(|entry| (entry.tag, SettleError::Unknown));
        let waiting =
            self.queue.take_all().into_iter().map(|entry| {
                (entry.tag, if entry.retried { SettleError::Unknown } else { SettleError::Closed })
            });
        sent.chain(waiting).filter_map(|(tag, error)| Some((tag?, error))).collect()
    }
}
