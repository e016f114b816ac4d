//! What is known of one producer's records in one partition, and what it comes to.

use std::iter::Peekable;
use std::ops::Range;

use super::StreamKey;
use super::partition::Partition;
use super::verdict::{RunVerdict, Verdict};
use crate::ledger::NO_OFFSET;
use crate::ranges::{SequenceRange, SequenceRanges, compare};

/// One producer's records in one partition.
#[derive(Default)]
pub(super) struct Stream {
    /// From the ledger; `None` while it has not spoken of the stream.
    pub opened: Option<Opened>,
    pub sent_end: u64,
    pub acked: SequenceRanges,
    pub refused: Vec<SequenceRange>,
    /// From the broker.
    pub seen: SequenceRanges,
    pub corrupted: u64,
    /// Run and producer index that the first intact value names; a value that
    /// names others is corrupted.
    pub stamped: Option<(u64, u32)>,
}

#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub run: usize,
    pub index: u32,
    pub first: u64,
}

pub(super) struct RunState {
    pub number: u64,
    pub ended: bool,
}

impl RunState {
    pub fn without_streams(&self) -> RunVerdict {
        RunVerdict { run: self.number, ended: self.ended, ..RunVerdict::default() }
    }
}

pub(super) fn count(ranges: impl IntoIterator<Item = impl std::borrow::Borrow<SequenceRange>>) -> u64 {
    ranges.into_iter().map(|range| range.borrow().count).sum()
}

impl Stream {
    /// Records that do not carry what was sent: all, if they are of another run.
    fn count_corrupted(&self, run: &RunState, opened: Opened) -> u64 {
        match self.stamped.is_some_and(|stamped| stamped != (run.number, opened.index)) {
            true => count(self.seen.rising()) + count(self.seen.late()),
            false => self.corrupted,
        }
    }

    /// Adds to the verdict what became of its records.
    pub fn weigh(
        self,
        verdict: &mut Verdict,
        key: StreamKey,
        opened: Opened,
        run: &RunState,
        part: &Partition,
    ) {
        let name = format!("producer {} on partition {}", key.0, key.1);
        let corrupted = self.count_corrupted(run, opened);
        if corrupted > 0 {
            verdict.find(|| format!("{name}: {corrupted} records do not carry what was sent"));
        }
        let late = count(self.seen.late());
        let first_late = self.seen.late().first().copied();
        let (seen, duplicated) = self.seen.settle();
        let reordered = late - duplicated;
        if let Some(late) = first_late {
            let SequenceRange { first, offset, .. } = late;
            verdict.find(|| format!("{name}: sequence {first} comes out of turn at offset {offset}"));
        }

        let (acked, _) = self.acked.settle();
        let mut refused = SequenceRanges::default();
        for range in self.refused {
            refused.push(range);
        }
        let (refused, _) = refused.settle();
        let bounds =
            SequenceRange { first: opened.first, count: self.sent_end - opened.first, offset: NO_OFFSET };

        let acked_present = weigh_acked(verdict, &name, &acked, &seen, part);
        let (mut refused_present, mut sent_present, mut before) = (0, 0, 0);
        compare(refused.rising(), seen.rising(), |s| {
            refused_present += if s.found.is_some() { s.range.count } else { 0 };
        });
        for range in seen.rising() {
            let from = range.first.clamp(bounds.first, bounds.end());
            let to = range.end().clamp(bounds.first, bounds.end());
            sent_present += to - from;
            before += range.end().min(bounds.first).saturating_sub(range.first);
        }
        let beyond = count(seen.rising()) - sent_present - before;
        // A ledger that was not closed may lack the last sends.
        let (phantom, late_sends) = if run.ended { (before + beyond, 0) } else { (before, beyond) };
        let phantom = phantom + refused_present;
        if phantom > 0 {
            verdict.find(|| format!("{name}: {phantom} records are there that were never sent, or refused"));
        }

        let (acked, refused) = (count(acked.rising()), count(refused.rising()));
        let unknown = bounds.count.saturating_sub(acked + refused);
        let unknown_present = sent_present.saturating_sub(acked_present + refused_present);
        verdict.sent += bounds.count;
        verdict.acked += acked;
        verdict.refused += refused;
        verdict.duplicated += duplicated;
        verdict.reordered += reordered;
        verdict.corrupted += corrupted;
        verdict.phantom += phantom;
        verdict.unknown_present += unknown_present + late_sends;
        let not_found = unknown.saturating_sub(unknown_present);
        if part.is_wholly_read() {
            verdict.unknown_absent += not_found;
        } else {
            verdict.unknown_unread += not_found;
        }
    }
}

/// Walks a stream's records whose offsets are known, next to others of which it
/// tells where they must be: a stream's records lie in the order of their
/// sequences.
struct Known<I: Iterator<Item = SequenceRange>> {
    ranges: Peekable<I>,
    start: u64,
}

impl<I: Iterator<Item = SequenceRange>> Known<I> {
    fn new(ranges: I) -> Known<I> {
        Known { ranges: ranges.peekable(), start: 0 }
    }

    /// Between which offsets the record of this sequence lies, which is higher
    /// than that of the last call, and none of the known ones.
    fn place_of(&mut self, sequence: u64) -> Range<u64> {
        while let Some(range) = self.ranges.next_if(|range| range.first < sequence) {
            self.start = self.start.max(range.offset.saturating_add(range.count));
        }
        self.start..self.ranges.peek().map_or(u64::MAX, |range| range.offset)
    }
}

/// Compares what was acknowledged with what is there; returns how much of it is.
fn weigh_acked(
    verdict: &mut Verdict,
    name: &str,
    acked: &SequenceRanges,
    seen: &SequenceRanges,
    part: &Partition,
) -> u64 {
    let mut present = 0;
    let mut told = Known::new(acked.rising().filter(|range| range.offset != NO_OFFSET));
    let mut there = Known::new(seen.rising());
    compare(acked.rising(), seen.rising(), |s| {
        let SequenceRange { first, count, offset } = s.range;
        if let Some(found) = s.found {
            present += count;
            if offset != NO_OFFSET && found != offset {
                verdict.misplaced += count;
                verdict.find(|| {
                    format!("{name}: sequence {first} was acknowledged at {offset} and is at {found}")
                });
            }
            return;
        }
        let place = if offset == NO_OFFSET {
            let (told, there) = (told.place_of(first), there.place_of(first));
            let start = told.start.max(there.start);
            // Nowhere, if what was acknowledged contradicts the order.
            start..told.end.min(there.end).max(start)
        } else {
            offset..offset.saturating_add(count)
        };
        let unverified = part.unread(&place).min(count);
        let expired = part.expired(&place).min(count - unverified);
        let lost = count - unverified - expired;
        verdict.unverified += unverified;
        verdict.expired += expired;
        verdict.lost += lost;
        if lost > 0 {
            let end = s.range.end();
            let why = if part.missing { ": the broker knows no such partition" } else { "" };
            verdict.find(|| format!("{name}: sequences {first}..{end} were acknowledged and are lost{why}"));
        }
    });
    present
}
