//! Decides whether a consumer group kept its word: takes what its consumers were sent,
//! what they said of it and what was answered, and what is in the dead-letter topic in
//! the end. What became of the messages themselves is the [`Judge`]'s to say, who is
//! given the deliveries as if they had been read in order.
//!
//! What is read here need not be read in the order in which the broker sent it, as there
//! are many connections. So whatever could be sent before it became wrong proves
//! nothing: an acknowledgement under way counts as completion where that excuses the
//! broker, and a delivery with a lower number than one that was seen may be late. After
//! a restart of the broker, which each connection tells by its boot, nothing is excused
//! by what came before it.

mod arrivals;
mod keys;
mod part;
#[cfg(test)]
mod tests;
mod turns;

use ringbolt_wire::batch::DeadLetter;
use ringbolt_wire::message::{DeliveredRange, GroupMode};
use ringbolt_wire::{BatchView, GroupId, PartitionId, RecordView, TopicId};

use super::{GroupVerdict, Judge, MAX_FINDINGS, Verdict};
use crate::group::{Deed, Entry, Holder};
use crate::payload::Stamp;
use crate::ranges::SequenceRange;
use keys::{Keys, OutOfTurn, key_of};
use part::{Meaning, Part};

/// Most deliveries that are remembered because they are wrong unless something turns out
/// to be a dead letter.
const MAX_SUSPECTS: usize = 100_000;

/// What a group promises.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// The topic.
    pub topic: TopicId,
    /// The group.
    pub group: GroupId,
    /// Its order.
    pub mode: GroupMode,
    /// Failures after which a record is a dead letter; 0 for never.
    pub max_failures: u32,
    /// Acknowledgements are said of everything up to a record, so that the answer does
    /// not tell of each.
    pub up_to: bool,
}

/// A record that was passed over, unless it turns out to be a dead letter.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Suspect {
    partition: u32,
    /// Was to come before ...
    earlier: u64,
    /// ... this one.
    later: u64,
}

/// See the [module](self).
pub struct GroupJudge {
    promises: Promises,
    judge: Judge,
    parts: Vec<Part>,
    boot: u64,
    keys: Keys,
    suspects: Vec<Suspect>,
    verdict: GroupVerdict,
    findings: Vec<String>,
}

impl GroupJudge {
    /// A judge of a group that goes on at these offsets, by partition.
    pub fn new(promises: Promises, floors: &[u64]) -> GroupJudge {
        let mut judge = Judge::default();
        for (index, floor) in (0..).zip(floors) {
            judge.begin_at(PartitionId::new(promises.topic, index), *floor);
        }
        GroupJudge {
            promises,
            judge,
            parts: floors.iter().map(|floor| Part::new(*floor)).collect(),
            boot: 0,
            keys: Keys::default(),
            suspects: Vec::new(),
            verdict: GroupVerdict::default(),
            findings: Vec::new(),
        }
    }

    /// The judge of the messages, who must still be told what the ledger says.
    pub fn messages(&mut self) -> &mut Judge {
        &mut self.judge
    }

    fn find(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding());
        }
    }

    fn id(&self, partition: u32) -> PartitionId {
        PartitionId::new(self.promises.topic, partition)
    }

    /// Whether it completes records if it succeeds.
    fn completes(&self, entry: &Entry) -> bool {
        entry.deed == Deed::Ack || self.is_last(entry)
    }

    /// Whether records that are rejected are dead letters then.
    fn is_last(&self, entry: &Entry) -> bool {
        self.promises.max_failures > 0 && entry.failed + 1 >= self.promises.max_failures
    }

    /// Something of the broker's life with this number; what is of an earlier one proves
    /// nothing.
    fn is_of_now(&mut self, boot: u64) -> bool {
        if boot > self.boot {
            if self.boot > 0 {
                self.keys.restarted();
                self.parts.iter_mut().for_each(Part::restarted);
            }
            self.boot = boot;
        }
        boot == self.boot
    }

    fn batch(
        &mut self,
        to: &Holder,
        range: &DeliveredRange,
        batch: &BatchView<'_>,
        first: &mut impl FnMut(&Stamp),
    ) {
        let header = *batch.header();
        let partition = range.lease.partition;
        let is_of_now = self.is_of_now(to.boot);
        let is_first = range.lease.acquired == 1;
        let mut judge = std::mem::take(&mut self.judge);
        judge.examine(batch, 0, |offset, record, stamp| {
            if let Some(stamp) = stamp
                && is_first
            {
                first(&stamp);
            }
            if is_of_now {
                self.record(to, range, offset, record);
            }
        });
        let found = SequenceRange {
            first: header.base_sequence().0,
            count: header.count().into(),
            offset: header.base_offset().0,
        };
        let id = self.id(partition);
        let part = &mut self.parts[partition as usize];
        part.arrivals.add(header.producer_id(), found, |producer, range| judge.found(id, producer, range));
        self.judge = judge;
    }

    fn record(&mut self, to: &Holder, range: &DeliveredRange, offset: u64, record: &RecordView<'_>) {
        let (partition, acquired, failed) = (range.lease.partition, range.lease.acquired, range.failed);
        let part = &mut self.parts[partition as usize];
        match part.delivered(offset, to.attach, acquired, failed) {
            Meaning::Late => return,
            Meaning::Good => {}
            Meaning::Again => {
                self.verdict.delivered_again += 1;
                let id = self.id(partition);
                return self.find(|| {
                    format!("offset {offset} of partition {id} was delivered again as number {acquired}")
                });
            }
            Meaning::Forgotten => {
                self.verdict.failures_forgotten += 1;
                let id = self.id(partition);
                self.find(|| {
                    format!("offset {offset} of partition {id} failed more often than {failed} times")
                });
            }
        }
        if self.promises.max_failures > 0 && failed >= self.promises.max_failures {
            self.verdict.delivered_again += 1;
            let id = self.id(partition);
            self.find(|| format!("offset {offset} of partition {id} was delivered after {failed} failures"));
        }
        match self.promises.mode {
            GroupMode::Shared => {}
            GroupMode::KeyOrdered => self.in_key_order(partition, offset, record),
            GroupMode::Exclusive => {
                if let Some(earlier) = self.parts[partition as usize].turn(to.consumer.0, offset) {
                    self.suspect(Suspect { partition, earlier, later: offset });
                }
            }
        }
    }

    fn in_key_order(&mut self, partition: u32, offset: u64, record: &RecordView<'_>) {
        let Some(key) = key_of(record) else { return };
        match self.keys.delivered(&self.parts[partition as usize], partition, key, offset) {
            None => {}
            Some(OutOfTurn::Before(earlier)) => self.suspect(Suspect { partition, earlier, later: offset }),
            Some(OutOfTurn::After(later)) => self.out_of_turn(&Suspect { partition, earlier: offset, later }),
        }
    }

    fn suspect(&mut self, suspect: Suspect) {
        let part = &mut self.parts[suspect.partition as usize];
        part.suspected.insert(suspect.earlier..suspect.earlier + 1);
        if self.suspects.len() < MAX_SUSPECTS {
            self.suspects.push(suspect);
        }
    }

    fn out_of_turn(&mut self, suspect: &Suspect) {
        self.verdict.out_of_turn += 1;
        let Suspect { earlier, later, .. } = *suspect;
        let id = self.id(suspect.partition);
        self.find(|| {
            format!("offset {later} of partition {id} was delivered before {earlier} was completed")
        });
    }

    /// Dead letters of the group so far.
    pub fn dead_letters(&self) -> u64 {
        self.verdict.dead_letters
    }

    /// Takes a record of the dead-letter topic.
    pub fn dead_letter(&mut self, record: &RecordView<'_>) {
        let Some(letter) = DeadLetter::of(record) else {
            self.verdict.dead_wrong += 1;
            return self.find(|| "a record of the dead-letter topic is no dead letter".to_owned());
        };
        if letter.group != self.promises.group {
            return;
        }
        self.verdict.dead_letters += 1;
        let (origin, offset) = (letter.origin, letter.offset.0);
        let known = self.parts.get_mut(origin.index as usize).filter(|_| origin.topic == self.promises.topic);
        if let Some(part) = known
            && part.dead.insert(offset..offset + 1) == 0
        {
            self.verdict.dead_twice += 1;
            return self.find(|| format!("offset {offset} of partition {origin} is a dead letter twice"));
        }
        let part = self.parts.get(origin.index as usize).filter(|_| origin.topic == self.promises.topic);
        let why = match part {
            None => Some("is of no partition of the topic"),
            Some(part) if part.acked.contains(offset) => Some("was acknowledged"),
            Some(part) if !(part.floor..part.end).contains(&offset) => Some("was never delivered"),
            Some(_) if letter.failed < self.promises.max_failures => Some("has not failed often enough"),
            Some(_) => match Stamp::check(record.value) {
                Ok(stamp) if stamp.partition == origin.index => None,
                Ok(_) => Some("is another message"),
                Err(_) => Some("is damaged"),
            },
        };
        if let Some(why) = why {
            self.verdict.dead_wrong += 1;
            self.find(|| format!("offset {offset} of partition {origin} is a dead letter, and {why}"));
        }
    }

    /// Weighs everything. `is_drained` says whether the broker has declared everything
    /// completed; if not, what is missing was not waited for.
    pub fn verdict(mut self, is_drained: bool) -> Verdict {
        for suspect in std::mem::take(&mut self.suspects) {
            let part = &self.parts[suspect.partition as usize];
            if part.acked.contains(suspect.earlier) || !part.dead.contains(suspect.earlier) {
                self.out_of_turn(&suspect);
            }
        }
        for index in 0..self.parts.len() {
            self.weigh(index, is_drained);
        }
        let group = self.verdict;
        let mut verdict = self.judge.verdict();
        verdict.lost += group.dropped + group.dead_lost;
        verdict.duplicated += group.delivered_again + group.dead_twice;
        verdict.reordered += group.out_of_turn;
        verdict.phantom += group.dead_wrong;
        verdict.group = Some(group);
        verdict.findings.extend(self.findings);
        verdict.findings.truncate(MAX_FINDINGS);
        verdict
    }

    fn weigh(&mut self, index: usize, is_drained: bool) {
        let id = self.id(index as u32);
        let part = &mut self.parts[index];
        self.verdict.acked += part.acked.count();
        if is_drained {
            part.arrivals.finish(|producer, range| self.judge.found(id, producer, range));
            self.judge.finished(id);
        }
        let part = &self.parts[index];
        let dropped = part.dropped(part.end);
        let first = part.first_dropped(part.end);
        let lost = part.condemned.ranges().flatten().filter(|offset| !part.dead.contains(*offset)).count();
        match (is_drained, first) {
            (true, Some(first)) => {
                self.verdict.dropped += dropped;
                self.find(|| {
                    format!("{dropped} records of partition {id} are completed, and by nobody: the first is {first}")
                });
            }
            _ => self.verdict.uncompleted += dropped,
        }
        if lost > 0 && is_drained {
            self.verdict.dead_lost += lost as u64;
            self.find(|| {
                format!("{lost} records of partition {id} were rejected for the last time, and are gone")
            });
        }
    }

    /// Records were delivered; `payload` is theirs alone. Calls `first` with the stamp of
    /// every intact message that is delivered for the first time.
    ///
    /// # Errors
    /// If they are of no partition of the topic.
    pub fn delivered(
        &mut self,
        to: &Holder,
        range: &DeliveredRange,
        payload: &[u8],
        mut first: impl FnMut(&Stamp),
    ) -> Result<(), String> {
        let lease = range.lease;
        let id = self.id(lease.partition);
        if lease.partition as usize >= self.parts.len() {
            return Err(format!("records came of partition {id}, which there is not"));
        }
        let (mut rest, mut next) = (payload, lease.base_offset);
        while !rest.is_empty() {
            let batch = match BatchView::parse(rest, u32::MAX) {
                Ok(batch) => batch,
                Err(error) => {
                    self.judge.unreadable(id, error);
                    return Ok(());
                }
            };
            let header = batch.header();
            if header.partition() != id || header.base_offset() != next || header.next_offset() > lease.end()
            {
                let (from, of) = (header.base_offset(), header.partition());
                self.judge
                    .unreadable(id, format!("offset {from} of partition {of} came where {next} was to be"));
                return Ok(());
            }
            next = header.next_offset();
            rest = &rest[header.len()..];
            self.batch(to, range, &batch, &mut first);
        }
        if next != lease.end() {
            self.judge
                .unreadable(id, format!("records up to {} were to come, and came up to {next}", lease.end()));
        }
        Ok(())
    }

    /// A settle is about to be sent.
    pub fn settling(&mut self, entries: &[Entry]) {
        for entry in entries {
            if self.completes(entry) {
                self.parts[entry.partition as usize].settling(entry);
            }
        }
    }

    /// The broker has answered about records, all of which are of one entry.
    pub fn settled(&mut self, entry: &Entry, status: u16) {
        if self.promises.up_to && status == 0 {
            // Those that were not leased any more are not told apart.
            return self.unanswered(std::slice::from_ref(entry));
        }
        let is_last = self.is_last(entry);
        let part = &mut self.parts[entry.partition as usize];
        let (again, senseless) = part.settled(entry, is_last, status);
        let id = self.id(entry.partition);
        let offset = entry.offset;
        if again > 0 {
            self.verdict.delivered_again += again;
            self.find(|| format!("offset {offset} of partition {id} was acknowledged twice with success"));
        }
        if senseless > 0 {
            self.verdict.misanswered += senseless;
            self.find(|| {
                format!("settling offset {offset} of partition {id} was answered with error {status}")
            });
        }
    }

    /// There will be no answer about these.
    pub fn unanswered(&mut self, entries: &[Entry]) {
        for entry in entries {
            if self.completes(entry) {
                self.parts[entry.partition as usize].unanswered(entry);
            }
        }
    }
}
