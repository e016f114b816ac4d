//! What the application says of records, and what the broker answers.

use ringbolt_wire::message::{ErrorResponse, LeaseRange, Settled, Verb};
use ringbolt_wire::{ErrorCode, Offset};

use super::hand::Amount;
use super::queue::{Entry, unsettled_part};
use super::{Link, SettleId, ShardState, Step};
use crate::error::SettleError;

impl<T> ShardState<T> {
    /// Says this of a record that was delivered as the `acquired`th time. Without
    /// `tag`, nobody waits for the answer.
    pub fn settle(
        &mut self,
        partition: u32,
        offset: Offset,
        acquired: u32,
        verb: Verb,
        tag: Option<T>,
        now_us: u64,
    ) {
        let range = LeaseRange { partition, base_offset: offset, count: 1, acquired };
        let taken = match verb {
            Verb::Extend { lease_ms } => {
                self.hand.extended(partition, offset.0, acquired, u64::from(lease_ms) * 1000, now_us);
                None
            }
            _ => self.hand.take(partition, offset.0, acquired),
        };
        if taken.is_none() && tag.is_none() && verb == Verb::Release {
            // Dropped by the application, and lost before. Of anything else that was
            // lost, the broker knows what is to be answered.
            return;
        }
        let takes_along =
            self.config.exclusive && taken.is_some() && goes_back(&verb, self.config.dead_letters);
        let amount = taken.unwrap_or_default();
        // Its answer tells where deliveries count again.
        let confirm = tag.is_some() || takes_along;
        self.queue.push(Entry { range, verb, tag, confirm, amount, retried: false });
        if takes_along {
            let from = self.passed_over.entry(partition).or_insert(offset.0);
            *from = offset.0.min(*from);
            self.let_go_after(range);
        }
    }

    /// Whether a delivery counts: in an exclusive group, what was on its way when a
    /// record before it went back does not.
    pub(super) fn counts(&mut self, lease: &LeaseRange) -> bool {
        match self.passed_over.get(&lease.partition) {
            Some(&from) if lease.base_offset.0 > from => false,
            Some(_) => {
                self.passed_over.remove(&lease.partition);
                true
            }
            None => true,
        }
    }

    /// It was answered: what comes now was sent afterwards.
    fn went_back(&mut self, entry: &Entry<T>) {
        let range = &entry.range;
        if goes_back(&entry.verb, self.config.dead_letters)
            && self.passed_over.get(&range.partition) == Some(&range.base_offset.0)
        {
            self.passed_over.remove(&range.partition);
        }
    }

    /// A settle was answered.
    pub fn on_settled(&mut self, id: SettleId, settled: Settled, now_us: u64) {
        let Some(answered) = self.unanswered.remove(&id) else { return };
        self.backoff.reset();
        let mut unsettled = settled.unsettled;
        unsettled.sort_by_key(|u| (u.partition, u.base_offset));
        let mut again = Vec::new();
        for entry in answered.entries {
            let parts = unsettled_part(&entry.range, &unsettled);
            let retryable =
                |&(_, status): &(_, u16)| ErrorCode::from_u16(status).is_some_and(ErrorCode::is_retryable);
            if parts.iter().any(retryable) {
                again.push(entry);
                continue;
            }
            self.went_back(&entry);
            if matches!(entry.verb, Verb::Extend { .. }) {
                for (part, _) in &parts {
                    let lost = self.hand.take_range(*part);
                    self.let_go(lost);
                }
            }
            let Some(tag) = entry.tag else { continue };
            let verdict = match parts.first() {
                None => Ok(()),
                Some(&(_, status)) => verdict(&entry.verb, status, entry.retried),
            };
            if matches!(verdict, Err(SettleError::Refused(_))) && !matches!(entry.verb, Verb::Extend { .. }) {
                // Nobody has it in hand any more, and it is leased.
                self.push_release(entry.range, Amount::default(), false);
            }
            self.steps.push_back(Step::Resolved { tag, verdict });
        }
        if !again.is_empty() {
            self.queue.put_back(again);
            self.wait(0, now_us);
        }
    }

    /// A settle was refused as a whole: nothing of it was carried out.
    pub fn on_settle_refused(&mut self, id: SettleId, refusal: ErrorResponse, now_us: u64) {
        let Some(refused) = self.unanswered.remove(&id) else { return };
        // It gave credit, and the attach has ended meanwhile: without credit it is good.
        let gave_credit = refusal.error_code() == Some(ErrorCode::UnknownConsumer);
        if !gave_credit && refused.attach == self.attaches {
            self.take_back(refused.credit);
        }
        if gave_credit {
            // Sent again below.
        } else if refusal.is_retryable() {
            self.wait(refusal.retry_after_ms, now_us);
        } else {
            refused.entries.iter().for_each(|entry| self.went_back(entry));
            let tags = refused.entries.into_iter().filter_map(|entry| Some((entry.tag?, entry.retried)));
            let failed = tags.map(|(tag, retried)| {
                let error =
                    if retried { SettleError::Unknown } else { SettleError::Refused(refusal.clone()) };
                Step::Resolved { tag, verdict: Err(error) }
            });
            self.steps.extend(failed);
            return;
        }
        self.queue.put_back(refused.entries);
    }

    /// The attach was answered: there are no more deliveries under it.
    pub fn on_attach_ended(&mut self, refusal: Option<ErrorResponse>, now_us: u64) {
        if self.link == Link::Attached {
            self.link = Link::Up;
        }
        self.has_leases &= refusal.is_some();
        match refusal {
            Some(refusal) if refusal.is_retryable() => self.wait(refusal.retry_after_ms, now_us),
            None if self.closing => {}
            Some(refusal) => self.end(refusal),
            // Nobody asked for that here.
            None => self.end(ErrorResponse::new(ErrorCode::ConsumerReplaced, "it was detached")),
        }
    }

    /// The detach was answered, one way or the other.
    pub fn on_detached(&mut self) {
        if self.link == Link::Attached {
            self.link = Link::Up;
        }
        self.has_leases = false;
    }

    /// There will be no more deliveries: what is in hand is not this consumer's any
    /// more. What was settled may still be.
    pub fn end(&mut self, why: ErrorResponse) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.has_leases = false;
        let lost = self.hand.take_all();
        self.steps.extend(lost.into_iter().map(|(range, _)| Step::Lost(range)));
        self.steps.push_back(Step::Ended(why));
    }

    /// These were taken out of hand because their leases are gone.
    pub(super) fn let_go(&mut self, lost: Vec<(LeaseRange, Amount)>) {
        for (range, _) in lost {
            tracing::debug!(?range, "leases were lost");
            self.steps.push_back(Step::Lost(range));
            self.let_go_after(range);
        }
    }

    /// In an exclusive group, what comes after a record that goes back goes back too.
    /// The broker does that by itself, unless the record went to the dead letters;
    /// then it is asked to.
    fn let_go_after(&mut self, range: LeaseRange) {
        if !self.config.exclusive {
            return;
        }
        for (range, amount) in self.hand.take_after(range.partition, range.base_offset.0) {
            self.steps.push_back(Step::Lost(range));
            self.push_release(range, amount, false);
        }
    }

    pub(super) fn push_release(&mut self, range: LeaseRange, amount: Amount, confirm: bool) {
        let verb = Verb::Release;
        self.queue.push(Entry { range, verb, tag: None, confirm, amount, retried: false });
    }

    fn wait(&mut self, least_ms: u32, now_us: u64) {
        // Of several refusals of one flight only the first lengthens the wait.
        if self.not_before_us <= now_us {
            let least_us = u64::from(least_ms) * 1000;
            self.not_before_us = now_us.saturating_add(self.backoff.next_us().max(least_us)).max(1);
        }
    }
}

/// Whether a record of which this is said goes back, and in an exclusive group what comes
/// after it as well. `dead_letters` says whether there is a topic for those.
pub(crate) fn goes_back(verb: &Verb, dead_letters: bool) -> bool {
    match verb {
        Verb::Nack { .. } | Verb::Release => true,
        Verb::Reject { dead_letter, .. } => !dead_letter || !dead_letters,
        _ => false,
    }
}

/// What the answer about a record means for who waits. `retried`: an earlier attempt
/// may have been carried out.
fn verdict(verb: &Verb, status: u16, retried: bool) -> Result<(), SettleError> {
    let code = ErrorCode::from_u16(status);
    match (code, verb) {
        (Some(ErrorCode::AlreadyCompleted), Verb::Ack) => Ok(()),
        // The attempt without answer did it.
        (Some(ErrorCode::AlreadyCompleted), Verb::Redrive | Verb::Reject { .. }) if retried => Ok(()),
        (Some(ErrorCode::AlreadyCompleted), _) => Err(SettleError::AlreadyCompleted),
        (
            Some(ErrorCode::LeaseLost | ErrorCode::NotDelivered),
            Verb::Nack { .. } | Verb::Reject { .. } | Verb::Release,
        ) if retried => Err(SettleError::Unknown),
        // After a restart the broker may not know that it had been delivered.
        (Some(ErrorCode::LeaseLost | ErrorCode::NotDelivered), _) => Err(SettleError::LeaseLost),
        _ => {
            let refusal = ErrorResponse { code: status, retry_after_ms: 0, detail: 0, text: String::new() };
            Err(SettleError::Refused(refusal))
        }
    }
}
