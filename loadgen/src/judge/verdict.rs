//! What evidence comes to.

use serde::Serialize;

/// Most findings that are told one by one.
pub(super) const MAX_FINDINGS: usize = 20;

/// What became of the messages of the ledger's runs; all counts are records.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Verdict {
    /// Sent, as far as the ledger knows.
    pub sent: u64,
    /// Acknowledged as durable.
    pub acked: u64,
    /// Acknowledged, and not there.
    pub lost: u64,
    /// There more than once; every copy beyond the first counts.
    pub duplicated: u64,
    /// There, but after a record that its producer sent later.
    pub reordered: u64,
    /// There, but with other bytes than were sent.
    pub corrupted: u64,
    /// Acknowledged at one offset, and there at another.
    pub misplaced: u64,
    /// There, although never sent or refused.
    pub phantom: u64,
    /// Offsets that no record has, between records that are there.
    pub holes: u64,
    /// There, and later not any more, although retention had not come so far.
    pub vanished: u64,
    /// Neither acknowledged nor refused: its producer never learnt what became of
    /// it.
    pub unknown: u64,
    /// Unknown, and there.
    pub unknown_present: u64,
    /// Unknown, and not there.
    pub unknown_absent: u64,
    /// Unknown, and not found, but not everything that their partition ever held
    /// was read.
    pub unknown_unread: u64,
    /// Refused, for good or until their producer gave up.
    pub refused: u64,
    /// Acknowledged, but not found, and where they should be retention had removed
    /// everything before it was read.
    pub expired: u64,
    /// Whether that is accepted.
    pub expired_allowed: bool,
    /// Acknowledged, but not found, and where they should be was not read.
    pub unverified: u64,
    /// Partitions that were not read to their end.
    pub unfinished: u64,
    /// Records of these partitions that no run of the ledger made.
    pub foreign: u64,
    /// Records read.
    pub read: u64,
    /// Whether every run of the ledger was ended in an orderly way. If not,
    /// sent and acknowledged may be higher than the ledger knows.
    pub complete: bool,
    /// What became of them in a consumer group, if they were consumed through one; its
    /// faults are in the counts above as well.
    pub group: Option<GroupVerdict>,
    /// The part of each run of the ledger, in their order there.
    pub runs: Vec<RunVerdict>,
    /// The first findings, in words.
    pub findings: Vec<String>,
}

impl Verdict {
    /// What all counts come to.
    pub fn decision(&self) -> Decision {
        match self {
            verdict if !verdict.is_good() => Decision::Broken,
            verdict if verdict.unverified + verdict.unfinished > 0 => Decision::Unproven,
            verdict if verdict.group.as_ref().is_some_and(|g| g.uncompleted > 0) => Decision::Unproven,
            verdict if verdict.expired > 0 && !verdict.expired_allowed => Decision::Unproven,
            _ => Decision::Kept,
        }
    }

    /// Whether nothing was found that speaks against the broker. It may not have
    /// been looked for everywhere: see [`decision`](Self::decision).
    pub fn is_good(&self) -> bool {
        let faults = [self.lost, self.duplicated, self.reordered, self.corrupted, self.misplaced];
        let more = [self.phantom, self.holes, self.vanished];
        let group = self.group.as_ref().map_or([0; 2], |g| [g.failures_forgotten, g.misanswered]);
        faults.iter().chain(&more).chain(&group).all(|&n| n == 0)
    }

    /// What a [`RunVerdict`] counts, in the order of its fields.
    pub(super) fn counts(&self) -> [u64; 6] {
        let unknown = self.unknown_present + self.unknown_absent + self.unknown_unread;
        [self.acked, self.lost, self.duplicated, self.reordered, self.corrupted, unknown]
    }

    pub(super) fn find(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding());
        }
    }
}

/// What became of records in a consumer group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct GroupVerdict {
    /// Acknowledged by a consumer, which was confirmed.
    pub acked: u64,
    /// Delivered once more although they were completed, or acknowledged twice with
    /// success. Counts as duplicated.
    pub delivered_again: u64,
    /// Delivered before their turn: while an earlier record of their key was not
    /// completed, or an earlier one of their partition that one consumer has in order.
    /// Counts as reordered.
    pub out_of_turn: u64,
    /// Completed without an acknowledgement or a dead letter, so never to be delivered
    /// again. Counts as lost.
    pub dropped: u64,
    /// Failed less often, as a delivery said, than was confirmed.
    pub failures_forgotten: u64,
    /// Answered with something that makes no sense for a delivered record.
    pub misanswered: u64,
    /// In the dead-letter topic.
    pub dead_letters: u64,
    /// Rejected for the last time, which was confirmed, and not in the dead-letter
    /// topic. Counts as lost.
    pub dead_lost: u64,
    /// More than once in the dead-letter topic. Counts as duplicated.
    pub dead_twice: u64,
    /// In the dead-letter topic although they do not belong there. Counts as present
    /// although never sent.
    pub dead_wrong: u64,
    /// Not completed when the run ended.
    pub uncompleted: u64,
}

/// One run's part in the counts of the same names of a [`Verdict`]. A spot that
/// cannot be read is in the verdict's `corrupted` alone, as nobody knows whose
/// records were there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RunVerdict {
    /// The run's random number.
    pub run: u64,
    /// Whether it was ended in an orderly way.
    pub ended: bool,
    /// See [`Verdict`].
    pub acked: u64,
    /// See [`Verdict`].
    pub lost: u64,
    /// See [`Verdict`].
    pub duplicated: u64,
    /// See [`Verdict`].
    pub reordered: u64,
    /// See [`Verdict`].
    pub corrupted: u64,
    /// See [`Verdict`].
    pub unknown: u64,
}

impl RunVerdict {
    /// Takes over what one of the run's streams has added to a verdict's counts.
    pub(super) fn add(&mut self, before: [u64; 6], after: [u64; 6]) {
        let own = [
            &mut self.acked,
            &mut self.lost,
            &mut self.duplicated,
            &mut self.reordered,
            &mut self.corrupted,
            &mut self.unknown,
        ];
        for (own, (before, after)) in own.into_iter().zip(before.into_iter().zip(after)) {
            *own += after - before;
        }
    }
}

/// What a verdict comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Everything that was acknowledged was looked for, and is as it was sent;
    /// where that is accepted, but for what retention removed.
    Kept,
    /// The broker broke its word.
    Broken,
    /// Nothing speaks against the broker, but not everything was looked for.
    Unproven,
}
