//! A delivered record, and what can be said of it.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use ringbolt_wire::Offset;
use ringbolt_wire::message::{MAX_LEASE_MS, MAX_REASON_LEN, MAX_RETRY_DELAY_MS, Verb};
use tokio::sync::{mpsc, oneshot};

use super::inbox::{Inbox, Received};
use super::task::{Command, Waiter};
use crate::consumer_state::goes_back;
use crate::error::SettleError;
use crate::record::ConsumedRecord;

/// A record that is leased to this consumer, until it says what became of it.
///
/// It derefs to the [`ConsumedRecord`]: `delivery.value`, `delivery.key` and so on.
///
/// Every verb is sent when it is called, together with what else is settled at that
/// time. What it returns is a future of the durable confirmation: await it at once,
/// or later, or drop it; dropping it does not take the verb back.
///
/// A delivery that is dropped without a verb is released: another consumer gets the
/// record at once, or this one.
#[derive(Debug)]
pub struct Delivery {
    received: Received,
    handle: Arc<Handle>,
    settled: bool,
}

/// The way to the consumer's task.
#[derive(Debug)]
pub(super) struct Handle {
    pub commands: mpsc::UnboundedSender<Command>,
    pub inbox: Arc<Inbox>,
    /// The group's mode is exclusive.
    pub exclusive: bool,
    /// The group has a dead-letter topic.
    pub dead_letters: bool,
}

/// A verb that was sent: awaiting it tells when it is durable. Dropping it does not
/// take the verb back.
#[derive(Debug)]
#[must_use = "await it to learn whether it came to be; dropped, nobody knows"]
pub struct Settling {
    answer: oneshot::Receiver<Result<(), SettleError>>,
}

impl Future for Settling {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        // The task answers everything before it ends, unless the runtime was shut
        // down under it; then it may have been sent.
        Poll::Ready(answer.unwrap_or(Err(SettleError::Unknown)))
    }
}

impl Deref for Delivery {
    type Target = ConsumedRecord;

    fn deref(&self) -> &ConsumedRecord {
        &self.received.record
    }
}

impl Delivery {
    pub(super) fn new(received: Received, handle: Arc<Handle>) -> Self {
        Delivery { received, handle, settled: false }
    }

    /// The record.
    pub fn record(&self) -> &ConsumedRecord {
        &self.received.record
    }

    /// How often it was delivered, this time included. After a restart of the broker,
    /// deliveries that nobody has settled may be missing.
    pub fn acquired(&self) -> u32 {
        self.received.acquired
    }

    /// How often it failed before.
    pub fn failed(&self) -> u32 {
        self.received.failed
    }

    /// When it was first delivered; `None` if that is now, or not on the broker's record.
    pub fn first_delivery(&self) -> Option<SystemTime> {
        self.received.first_delivery
    }

    /// It was handled: never deliver it again.
    ///
    /// # Errors
    /// [`SettleError::LeaseLost`] if it is no longer this consumer's; that it was
    /// acknowledged before is no error.
    pub fn ack(self) -> Settling {
        self.settle(Verb::Ack)
    }

    /// As [`ack`](Self::ack), and nobody will learn whether it came to be: with a
    /// lost connection it may be lost, and the record is delivered again.
    pub fn ack_nowait(mut self) {
        self.tell(Verb::Ack, None);
    }

    /// Not now: deliver it again, at once or after `delay` (at most a day). This does
    /// not count as a failure.
    ///
    /// # Errors
    /// [`SettleError`].
    pub fn nack(self, delay: Option<Duration>) -> Settling {
        let delay_ms = delay.map_or(0, |delay| millis(delay, MAX_RETRY_DELAY_MS));
        self.settle(Verb::Nack { delay_ms })
    }

    /// It failed: deliver it again after the group's backoff, or, if it failed as often
    /// as the group allows, move it to the dead-letter topic. `reason` is for whoever
    /// looks there; at most 1,024 bytes, cut if longer.
    ///
    /// # Errors
    /// [`SettleError`].
    pub fn reject(self, reason: impl Into<String>) -> Settling {
        self.settle(Verb::Reject { dead_letter: false, reason: cut(reason.into()) })
    }

    /// It will never succeed: move it to the dead-letter topic at once, however often it
    /// may be tried. In a group without one, the same as [`reject`](Self::reject), as which
    /// `reason` is.
    ///
    /// # Errors
    /// [`SettleError`].
    pub fn dead_letter(self, reason: impl Into<String>) -> Settling {
        self.settle(Verb::Reject { dead_letter: true, reason: cut(reason.into()) })
    }

    /// The work takes longer: the lease runs out this long from now, at most a day;
    /// zero stands for the time that it was given.
    ///
    /// Only needed for times that the consumer's automatic extension does not cover:
    /// with it off, or so that the lease outlives a lost connection.
    ///
    /// # Errors
    /// [`SettleError::LeaseLost`] if it is no longer this consumer's: stop working on
    /// it.
    pub fn extend(&self, time: Duration) -> Settling {
        let (waiter, answer) = oneshot::channel();
        self.send(Verb::Extend { lease_ms: millis(time, MAX_LEASE_MS) }, Some(waiter));
        Settling { answer }
    }

    /// Give it back as it came: no failure, no delay.
    ///
    /// # Errors
    /// [`SettleError`].
    pub fn release(self) -> Settling {
        self.settle(Verb::Release)
    }

    /// Of a dead letter: deliver it once more to the group in which it failed, from the
    /// partition that it came from; and acknowledge it here. Both or nothing.
    ///
    /// # Errors
    /// [`SettleError::Refused`] with `InvalidRequest` if it is not a dead letter.
    pub fn redrive(self) -> Settling {
        self.settle(Verb::Redrive)
    }

    fn settle(mut self, verb: Verb) -> Settling {
        let (waiter, answer) = oneshot::channel();
        self.tell(verb, Some(waiter));
        Settling { answer }
    }

    fn tell(&mut self, verb: Verb, waiter: Option<Waiter>) {
        self.settled = true;
        self.send(verb, waiter);
    }

    fn send(&self, verb: Verb, waiter: Option<Waiter>) {
        let (partition, offset) = (self.received.record.partition, self.received.record.offset);
        let bars = self.handle.exclusive && goes_back(&verb, self.handle.dead_letters);
        if bars {
            self.handle.inbox.bar(partition, offset);
        }
        let (offset, acquired) = (Offset(offset), self.received.acquired);
        let command = Command::Settle { partition, offset, acquired, verb, waiter, bars };
        // Without a task the consumer is closed, and the record was given back.
        if let Err(mpsc::error::SendError(Command::Settle { waiter: Some(waiter), .. })) =
            self.handle.commands.send(command)
        {
            let _ = waiter.send(Err(SettleError::Closed));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            self.tell(Verb::Release, None);
        }
    }
}

/// Rounded up, so that a time that is not zero stays one.
fn millis(time: Duration, max: u32) -> u32 {
    let ms = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(max).min(max)
}

fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_LEN));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_and_bounded() {
        assert_eq!(millis(Duration::ZERO, 10), 0);
        assert_eq!(millis(Duration::from_nanos(1), 10), 1);
        assert_eq!(millis(Duration::from_millis(7), 10), 7);
        assert_eq!(millis(Duration::MAX, 10), 10);
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = "ä".repeat(MAX_REASON_LEN);
        assert_eq!(cut(format!("x{long}")).len(), MAX_REASON_LEN - 1);
    }
}
