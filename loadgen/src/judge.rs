//! Decides what became of every message: takes what a ledger says and the
//! record batches that a broker gives back, in any order of the two, and counts
//! what does not fit.
//!
//! Pure: knows neither files nor sockets. Memory grows with ranges, not with
//! messages (see [`crate::ranges`]).

use std::collections::HashSet;
use std::iter::Peekable;
use std::ops::Range;

use ringbolt_wire::{BatchView, PartitionId, ProducerId};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::ledger::{Entry, NO_OFFSET, StreamInfo};
use crate::payload::Stamp;
use crate::ranges::{SequenceRange, SequenceRanges, compare};

/// Most findings that are told one by one.
const MAX_FINDINGS: usize = 20;

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
            verdict if verdict.expired > 0 && !verdict.expired_allowed => Decision::Unproven,
            _ => Decision::Kept,
        }
    }

    /// Whether nothing was found that speaks against the broker. It may not have
    /// been looked for everywhere: see [`decision`](Self::decision).
    pub fn is_good(&self) -> bool {
        let faults = [self.lost, self.duplicated, self.reordered, self.corrupted, self.misplaced];
        let more = [self.phantom, self.holes, self.vanished];
        faults.iter().chain(&more).all(|&n| n == 0)
    }

    /// What a [`RunVerdict`] counts, in the order of its fields.
    fn counts(&self) -> [u64; 6] {
        let unknown = self.unknown_present + self.unknown_absent + self.unknown_unread;
        [self.acked, self.lost, self.duplicated, self.reordered, self.corrupted, unknown]
    }

    fn find(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding());
        }
    }
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
    fn add(&mut self, before: [u64; 6], after: [u64; 6]) {
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

/// Who sent it, and where to.
type StreamKey = (ProducerId, PartitionId);

/// One producer's records in one partition.
#[derive(Default)]
struct Stream {
    /// From the ledger; `None` while it has not spoken of the stream.
    opened: Option<Opened>,
    sent_end: u64,
    acked: SequenceRanges,
    refused: Vec<SequenceRange>,
    /// From the broker.
    seen: SequenceRanges,
    corrupted: u64,
    /// Run and producer index that the first intact value names; a value that
    /// names others is corrupted.
    stamped: Option<(u64, u32)>,
}

#[derive(Clone, Copy)]
struct Opened {
    run: usize,
    index: u32,
    first: u64,
}

struct RunState {
    number: u64,
    ended: bool,
}

impl RunState {
    fn without_streams(&self) -> RunVerdict {
        RunVerdict { run: self.number, ended: self.ended, ..RunVerdict::default() }
    }
}

#[derive(Default)]
struct Partition {
    /// Offset of the next record to be read.
    next: u64,
    /// What retention had removed before it could be read, in rising order.
    expired: Vec<Range<u64>>,
    holes: u64,
    vanished: u64,
    /// The broker does not know it.
    missing: bool,
    /// The end was reached. Without that, what is not below `next` was not looked
    /// at.
    finished: bool,
}

impl Partition {
    fn is_wholly_read(&self) -> bool {
        self.finished && self.expired.is_empty()
    }

    /// How many of these offsets were removed by retention before they could be
    /// read.
    fn expired(&self, place: &Range<u64>) -> u64 {
        let from = self.expired.partition_point(|gone| gone.end <= place.start);
        let gone = self.expired[from..].iter().take_while(|gone| gone.start < place.end);
        gone.map(|gone| gone.end.min(place.end) - gone.start.max(place.start)).sum()
    }

    /// How many of these offsets lie where nothing was read.
    fn unread(&self, place: &Range<u64>) -> u64 {
        if self.finished { 0 } else { place.end.saturating_sub(place.start.max(self.next)) }
    }
}

/// Gathers evidence, and gives the verdict.
#[derive(Default)]
pub struct Judge {
    runs: Vec<RunState>,
    /// Streams of the ledger's current run, by their number there.
    current: Vec<StreamKey>,
    streams: FxHashMap<StreamKey, Stream>,
    partitions: FxHashMap<PartitionId, Partition>,
    read: u64,
    corrupted: u64,
    expired_allowed: bool,
    findings: Vec<String>,
}

impl Judge {
    /// Says whether a verdict may rest on what is still retained alone.
    pub fn allow_expired(&mut self, allowed: bool) {
        self.expired_allowed = allowed;
    }

    /// Takes the next entry of a ledger.
    pub fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::RunStarted(info) => {
                self.runs.push(RunState { number: info.run, ended: false });
                self.current.clear();
            }
            Entry::StreamOpened(info) => self.opened(info),
            Entry::Sent { stream, first, count } => {
                if let Some(stream) = self.stream(*stream) {
                    stream.sent_end = stream.sent_end.max(first.saturating_add(*count));
                }
            }
            Entry::Acked { stream, first, count, offset } => {
                if let Some(stream) = self.stream(*stream).filter(|_| *count > 0) {
                    stream.sent_end = stream.sent_end.max(first.saturating_add(*count));
                    stream.acked.push(SequenceRange { first: *first, count: *count, offset: *offset });
                }
            }
            Entry::Refused { stream, first, count, .. } => {
                if let Some(stream) = self.stream(*stream).filter(|_| *count > 0) {
                    stream.refused.push(SequenceRange { first: *first, count: *count, offset: NO_OFFSET });
                }
            }
            // Unknown is what is left of the sent ones.
            Entry::Unknown { stream, first, count } => {
                if let Some(stream) = self.stream(*stream) {
                    stream.sent_end = stream.sent_end.max(first.saturating_add(*count));
                }
            }
            Entry::RunEnded => {
                if let Some(run) = self.runs.last_mut() {
                    run.ended = true;
                }
            }
        }
    }

    fn opened(&mut self, info: &StreamInfo) {
        let key = (info.producer, info.partition);
        let run = self.runs.len().saturating_sub(1);
        self.current.push(key);
        let stream = self.streams.entry(key).or_default();
        stream.opened = Some(Opened { run, index: info.index, first: info.first_sequence });
        stream.sent_end = stream.sent_end.max(info.first_sequence);
    }

    fn stream(&mut self, number: u32) -> Option<&mut Stream> {
        let key = self.current.get(number as usize)?;
        self.streams.get_mut(key)
    }

    /// The partitions that the ledger speaks of, each once.
    pub fn partitions(&self) -> Vec<PartitionId> {
        let told = self.streams.iter().filter(|(_, stream)| stream.opened.is_some());
        let distinct: HashSet<PartitionId> = told.map(|(&(_, partition), _)| partition).collect();
        let mut all: Vec<PartitionId> = distinct.into_iter().collect();
        all.sort();
        all
    }

    /// Says that a broker holds these offsets of a partition, and so not the next
    /// one: what was not read below them is expired, and what was read beyond them
    /// has vanished.
    pub fn holds(&mut self, partition: PartitionId, offsets: Range<u64>) {
        let state = self.partitions.entry(partition).or_default();
        let from = state.expired.last().map_or(state.next, |last| last.end.max(state.next));
        match state.expired.last_mut() {
            Some(last) if last.end == from => last.end = offsets.start.max(from),
            _ if offsets.start > from => state.expired.push(from..offsets.start),
            _ => {}
        }
        let beyond = offsets.end..state.next;
        if !beyond.is_empty() {
            state.vanished += beyond.end - beyond.start - state.expired(&beyond);
            let Range { start, end } = beyond;
            self.findings.push(format!(
                "partition {partition} was read up to offset {end}, and then ended at {start}"
            ));
            self.findings.truncate(MAX_FINDINGS);
        }
        state.next = state.next.max(offsets.start).min(offsets.end);
    }

    /// Says that a broker knows no such partition.
    pub fn missing(&mut self, partition: PartitionId) {
        self.holds(partition, 0..0);
        self.partitions.entry(partition).or_default().missing = true;
    }

    /// Reading begins at this offset: what is before it was not looked at.
    pub fn begin_at(&mut self, partition: PartitionId, offset: u64) {
        self.partitions.entry(partition).or_default().next = offset;
    }

    /// Offset of the next record to read in a partition.
    pub fn position(&self, partition: PartitionId) -> u64 {
        self.partitions.get(&partition).map_or(0, |p| p.next)
    }

    /// Takes the next record batch that a partition gave back, and calls
    /// `each` with the stamp of every intact record. Records below
    /// [`position`](Self::position) are passed over, as an answer may begin
    /// with a batch that starts before the offset asked for.
    pub fn batch(&mut self, batch: &BatchView<'_>, mut each: impl FnMut(Stamp)) {
        let header = batch.header();
        let (base, partition) = (header.base_offset().0, header.partition());
        let state = self.partitions.entry(partition).or_default();
        let end = base.saturating_add(u64::from(header.count()));
        if end <= state.next {
            return;
        }
        let skip = state.next.saturating_sub(base);
        if base > state.next {
            state.holes += base - state.next;
            self.findings
                .push(format!("offsets {}..{base} of partition {partition} are missing", state.next));
            self.findings.truncate(MAX_FINDINGS);
        }
        let stream = self.streams.entry((header.producer_id(), partition)).or_default();
        let first = header.base_sequence().0;
        for (i, (_, record)) in (0u64..).zip(batch.records()).skip(skip as usize) {
            self.read += 1;
            let intact = Stamp::check(record.value).ok().filter(|stamp| {
                let sender = *stream.stamped.get_or_insert((stamp.run, stamp.producer));
                sender == (stamp.run, stamp.producer)
                    && stamp.sequence == first.wrapping_add(i)
                    && stamp.partition == partition.index
            });
            match intact {
                Some(stamp) => each(stamp),
                None => stream.corrupted += 1,
            }
        }
        let found = SequenceRange {
            first: first.saturating_add(skip),
            count: end - base - skip,
            offset: base + skip,
        };
        stream.seen.push(found);
        // Last: where this was interrupted, the records were not looked at.
        state.next = end;
    }

    /// Notes that a partition was read to its end. What is not found in a
    /// partition of which nobody says that was not looked for, and so is not lost.
    pub fn finished(&mut self, partition: PartitionId) {
        self.partitions.entry(partition).or_default().finished = true;
    }

    /// Notes that a partition could not be read on, and why; counts as one
    /// corrupted record, at least. What lies behind it was not looked for.
    pub fn unreadable(&mut self, partition: PartitionId, why: impl std::fmt::Display) {
        let at = self.position(partition);
        self.corrupted += 1;
        self.findings.push(format!("partition {partition} cannot be read at offset {at}: {why}"));
        self.findings.truncate(MAX_FINDINGS);
    }

    /// Weighs everything.
    pub fn verdict(mut self) -> Verdict {
        let is_finished = |partition| self.partitions.get(partition).is_some_and(|p| p.finished);
        let mut verdict = Verdict {
            unfinished: self.partitions().iter().filter(|&p| !is_finished(p)).count() as u64,
            read: self.read,
            corrupted: self.corrupted,
            expired_allowed: self.expired_allowed,
            complete: !self.runs.is_empty() && self.runs.iter().all(|run| run.ended),
            runs: self.runs.iter().map(RunState::without_streams).collect(),
            findings: self.findings,
            holes: self.partitions.values().map(|p| p.holes).sum(),
            vanished: self.partitions.values().map(|p| p.vanished).sum(),
            ..Verdict::default()
        };
        let mut streams: Vec<_> = self.streams.into_iter().collect();
        streams.sort_by_key(|&(key, _)| key);
        for (key, stream) in streams {
            let part = self.partitions.entry(key.1).or_default();
            match stream.opened.and_then(|opened| Some((opened, self.runs.get(opened.run)?))) {
                Some((opened, run)) => {
                    let before = verdict.counts();
                    stream.weigh(&mut verdict, key, opened, run, part);
                    let after = verdict.counts();
                    verdict.runs[opened.run].add(before, after);
                }
                None => verdict.foreign += count(stream.seen.rising()) + count(stream.seen.late()),
            }
        }
        verdict.unknown = verdict.unknown_present + verdict.unknown_absent + verdict.unknown_unread;
        verdict
    }
}

fn count(ranges: impl IntoIterator<Item = impl std::borrow::Borrow<SequenceRange>>) -> u64 {
    ranges.into_iter().map(|range| range.borrow().count).sum()
}

impl Stream {
    fn weigh(self, verdict: &mut Verdict, key: StreamKey, opened: Opened, run: &RunState, part: &Partition) {
        let name = format!("producer {} on partition {}", key.0, key.1);
        let seen_total = count(self.seen.rising()) + count(self.seen.late());
        let mut corrupted = self.corrupted;
        if self.stamped.is_some_and(|stamped| stamped != (run.number, opened.index)) {
            corrupted = seen_total;
        }
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

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
