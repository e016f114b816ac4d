//! Decides what became of every message: takes what a ledger says and the
//! record batches that a broker gives back, in any order of the two, and counts
//! what does not fit.
//!
//! Pure: knows neither files nor sockets. Memory grows with ranges, not with
//! messages (see [`crate::ranges`]).

pub mod group;
mod offsets;
mod partition;
mod stream;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::HashSet;
use std::ops::Range;

use ringbolt_wire::{BatchView, PartitionId, ProducerId, RecordView};
use rustc_hash::FxHashMap;

use crate::ledger::{Entry, NO_OFFSET, StreamInfo};
use crate::payload::Stamp;
use crate::ranges::SequenceRange;
use partition::Partition;
use stream::{Opened, RunState, Stream, count};
use verdict::MAX_FINDINGS;
pub use verdict::{Decision, GroupVerdict, RunVerdict, Verdict};

/// Who sent it, and where to.
type StreamKey = (ProducerId, PartitionId);

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
        self.examine(batch, skip, |_, _, stamp| stamp.into_iter().for_each(&mut each));
        // Last: where this was interrupted, the records were not looked at.
        let first = header.base_sequence().0.saturating_add(skip);
        let found = SequenceRange { first, count: end - base - skip, offset: base + skip };
        self.found(partition, header.producer_id(), found);
    }

    /// Looks at what the records of a batch carry, from the one of this number on, and
    /// calls `each` with the offset of each, and its stamp if it is intact.
    fn examine(
        &mut self,
        batch: &BatchView<'_>,
        skip: u64,
        mut each: impl FnMut(u64, &RecordView<'_>, Option<Stamp>),
    ) {
        let header = batch.header();
        let partition = header.partition();
        let stream = self.streams.entry((header.producer_id(), partition)).or_default();
        let first = header.base_sequence().0;
        for (i, (offset, record)) in (0u64..).zip(batch.records()).skip(skip as usize) {
            self.read += 1;
            let intact = Stamp::check(record.value).ok().filter(|stamp| {
                let sender = *stream.stamped.get_or_insert((stamp.run, stamp.producer));
                sender == (stamp.run, stamp.producer)
                    && stamp.sequence == first.wrapping_add(i)
                    && stamp.partition == partition.index
            });
            stream.corrupted += u64::from(intact.is_none());
            each(offset.0, &record, intact);
        }
    }

    /// Notes where the next records of a partition are, and whose they are.
    fn found(&mut self, partition: PartitionId, producer: ProducerId, found: SequenceRange) {
        let state = self.partitions.entry(partition).or_default();
        let base = found.offset;
        if base > state.next {
            state.holes += base - state.next;
            self.findings
                .push(format!("offsets {}..{base} of partition {partition} are missing", state.next));
            self.findings.truncate(MAX_FINDINGS);
        }
        state.next = base + found.count;
        self.streams.entry((producer, partition)).or_default().seen.push(found);
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
