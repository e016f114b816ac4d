//! How batches end, and what the answers change.

use ringbolt_wire::message::{ErrorResponse, ProduceAck, ProducerOpened};
use ringbolt_wire::{Epoch, ErrorCode, Offset, ProducerId};

use super::window::Entry;
use super::{BatchId, Durable, Ended, Failure, Finished, Opening, ProducerState, Queued};

impl<T> ProducerState<T> {
    /// The batch is durable.
    pub fn on_acked(&mut self, id: BatchId, ack: ProduceAck) {
        let Some(entry) = self.window.answered(id) else { return };
        // A batch of which every attempt so far was answered cannot have been
        // there before: its sequence was taken by a late attempt of a batch
        // that was given up, and this batch was not written.
        if ack.duplicate && !entry.maybe_written {
            entry.displaced = true;
            self.holding = true;
            return self.reopen();
        }
        self.durable_below = self.durable_below.max(entry.end_sequence());
        let verdict = Ok(Durable {
            base_offset: known(ack.base_offset),
            commit_time_us: ack.commit_time_us,
            copies: ack.copies,
            duplicate: ack.duplicate,
        });
        self.finished.extend(finish(entry, verdict));
        self.backoff.reset();
        if self.stale_attempts && !ack.duplicate && self.opening == Opening::Done {
            self.stale_attempts = false;
            self.window.live().for_each(|entry| entry.contested = false);
        }
        self.window.trim();
    }

    /// The broker refused the batch.
    pub fn on_refused(&mut self, id: BatchId, refusal: ErrorResponse, now_us: u64) {
        let first_live = self.window.first_live().map(|entry| entry.sequence);
        let Some(entry) = self.window.answered(id) else { return };
        self.holding = true;
        match refusal.error_code() {
            Some(ErrorCode::FencedProducer) => {
                entry.last_refusal = Some(Box::new(refusal.clone()));
                self.end(Ended::Refused(refusal));
            }
            Some(ErrorCode::OutOfOrderSequence) => {
                let (expected, sequence) = (refusal.detail, entry.sequence);
                // A batch before it is missing: the usual follower of a refusal.
                let follows = first_live.is_some_and(|first| first < sequence && first <= expected);
                entry.last_refusal = Some(Box::new(refusal));
                entry.displaced = expected > sequence;
                if !follows && !self.take_over {
                    self.wait(0, now_us);
                }
                // The broker stands elsewhere than anything that is kept here:
                // it forgot this producer, or a late attempt was written.
                if first_live.is_some_and(|first| expected < first) || expected > sequence {
                    self.reopen();
                }
            }
            _ if refusal.is_retryable() => {
                let least_us = u64::from(refusal.retry_after_ms) * 1000;
                entry.last_refusal = Some(Box::new(refusal));
                self.wait(least_us, now_us);
            }
            _ => {
                let failure = match entry.maybe_written {
                    true => Failure::Unknown { last: Some(Box::new(refusal)) },
                    false => Failure::Refused(refusal),
                };
                self.stale_attempts |= entry.maybe_written;
                self.finished.extend(finish(entry, Err(failure)));
                self.reopen();
            }
        }
        self.window.trim();
    }

    /// The producer could not be opened.
    pub fn on_open_refused(&mut self, refusal: ErrorResponse, now_us: u64) {
        if refusal.is_retryable() {
            self.opening = Opening::Needed;
            self.wait(u64::from(refusal.retry_after_ms) * 1000, now_us);
            for entry in self.window.live() {
                entry.last_refusal.get_or_insert_with(|| Box::new(refusal.clone()));
            }
        } else {
            self.end(Ended::Refused(refusal));
        }
    }

    /// The producer is open.
    pub fn on_opened(&mut self, opened: ProducerOpened) {
        let Opening::Asked { take_over: took_over, .. } = self.opening else { return };
        if let Some(refusal) = self.intruder(&opened) {
            return self.end(Ended::Refused(refusal));
        }
        let next = opened.next_sequence.0;
        // A hole may have come up since it was asked.
        self.opening = if self.take_over && !took_over { Opening::Needed } else { Opening::Done };
        self.identity.producer = opened.producer;
        if !self.known {
            self.identity.epoch = opened.epoch;
        } else if took_over {
            // Above every epoch that this producer has used, also if the broker
            // counts only those that reached its log.
            self.identity.epoch = Epoch(opened.epoch.0.max(self.identity.epoch.0 + 1));
        }
        let first = self.window.first_live().map(|entry| entry.sequence);
        if !self.known || (first.is_none() && !took_over) {
            self.next_sequence = next;
            self.durable_below = next;
        }
        self.known = true;
        if took_over {
            self.take_over = false;
            self.take_overs_asked = 0;
            self.continue_from(next);
        } else if first.is_some_and(|first| next < first) {
            // The broker has forgotten this producer, for instance because all
            // of its records have expired.
            self.reopen();
        }
        // Else everything unanswered is sent again: what is durable already is
        // answered with its offset.
        self.window.rewind();
    }

    /// Whether somebody else produces under this identity.
    fn intruder(&self, opened: &ProducerOpened) -> Option<ErrorResponse> {
        let (own, found) = (self.identity.epoch.0, opened.epoch.0);
        let text = if !self.known {
            return None;
        } else if self.identity.producer != ProducerId::NONE && opened.producer != self.identity.producer {
            format!("asked for producer {}, got {}", self.identity.producer, opened.producer)
        } else if found > own.saturating_add(self.take_overs_asked) {
            format!("epoch {found} has taken over from epoch {own}")
        } else if !self.stale_attempts && opened.next_sequence.0 > self.next_sequence {
            format!(
                "the log has sequence {} under this identity, {} was used here",
                opened.next_sequence.0, self.next_sequence
            )
        } else {
            return None;
        };
        Some(ErrorResponse::new(ErrorCode::FencedProducer, text).with_detail(u64::from(found)))
    }

    /// After a take-over, with the broker expecting sequence `next`.
    ///
    /// Batches up to the first hole keep their sequence, so that the broker
    /// knows which it has. Those behind it get new ones. That is safe where
    /// nothing can fill the hole: the broker accepted no attempt behind it, and
    /// accepts none from before the take-over. Where a late attempt could have
    /// filled it, or the broker has forgotten what it had, what was sent and not
    /// answered is unknown.
    fn continue_from(&mut self, next: u64) {
        let forgotten = next < self.durable_below;
        self.durable_below = self.durable_below.min(next);
        let (mut broken, mut expected) = (forgotten, next);
        for entry in self.window.live() {
            let (start, end) = (entry.sequence, entry.end_sequence());
            self.stale_attempts |= entry.displaced;
            let impossible = start < next && (next < end || !entry.maybe_written);
            let untold = entry.contested || entry.displaced || impossible;
            let in_line = !broken && !untold && (end <= next || start == expected);
            if in_line {
                entry.set_epoch(self.identity);
                expected = expected.max(end);
                continue;
            }
            if entry.maybe_written && (untold || forgotten || self.stale_attempts) {
                let last = entry.last_refusal.take();
                self.finished.extend(finish(entry, Err(Failure::Unknown { last })));
                self.stale_attempts = true;
            } else {
                entry.restamp(self.identity, expected, self.stale_attempts);
                expected = entry.end_sequence();
            }
            broken = true;
        }
        self.next_sequence = expected;
        self.window.trim();
    }

    /// The sequence has a hole: open anew, with a new epoch, once nothing is in
    /// flight.
    fn reopen(&mut self) {
        self.take_over = true;
        if self.opening == Opening::Done {
            self.opening = Opening::Needed;
        }
    }

    fn wait(&mut self, least_us: u64, now_us: u64) {
        // Of several refusals of one flight only the first lengthens the wait.
        if self.not_before_us <= now_us {
            self.not_before_us = now_us.saturating_add(self.backoff.next_us().max(least_us));
        }
    }

    /// Ends what has reached its deadline.
    pub(super) fn expire(&mut self, now_us: u64) {
        let mut gave_up = false;
        for entry in self.window.live() {
            if entry.deadline_us > now_us {
                break;
            }
            let last = entry.last_refusal.take();
            let failure = match entry.may_be_written() {
                true => Failure::Unknown { last },
                false => Failure::Expired { last },
            };
            self.stale_attempts |= entry.may_be_written();
            self.finished.extend(finish(entry, Err(failure)));
            gave_up = true;
        }
        if gave_up {
            self.holding = true;
            self.reopen();
            self.window.trim();
        }
        while self.queue.front().is_some_and(|queued| queued.deadline_us <= now_us) {
            if let Some(queued) = self.queue.pop_front() {
                self.drop_queued(queued, Failure::Expired { last: None });
            }
        }
    }

    /// Ends everything, for good.
    pub(super) fn end(&mut self, why: Ended) {
        for entry in self.window.live() {
            let failure = match entry.may_be_written() {
                true => Failure::Unknown { last: entry.last_refusal.take() },
                false => why.clone().into(),
            };
            self.finished.extend(finish(entry, Err(failure)));
        }
        for queued in std::mem::take(&mut self.queue) {
            self.drop_queued(queued, why.clone().into());
        }
        self.ended.get_or_insert(why);
        self.window.trim();
    }

    pub(super) fn drop_queued(&mut self, queued: Queued<T>, failure: Failure) {
        let count = queued.builder.count();
        self.finished.push_back(Finished { tag: queued.tag, count, batch: None, verdict: Err(failure) });
    }
}

/// Ends an entry; nothing if it had ended before.
fn finish<T>(entry: &mut Entry<T>, verdict: Result<Durable, Failure>) -> Option<Finished<T>> {
    let tag = entry.tag.take()?;
    let batch = Some(std::mem::take(&mut entry.batch));
    Some(Finished { tag, count: entry.count, batch, verdict })
}

fn known(offset: Offset) -> Option<Offset> {
    (offset != Offset::UNKNOWN).then_some(offset)
}
