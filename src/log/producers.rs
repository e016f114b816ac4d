//! What a partition remembers of its producers, so that a retry is not a
//! duplicate.
//!
//! All of it is rebuilt from the batches in the log (and from the footers that
//! sum them up): there is no table that could disagree with the data.

use std::collections::VecDeque;

use ringbolt_wire::{Epoch, Offset, ProducerId, Sequence};

use super::SegmentSeq;
use crate::hash::ByChoice;

/// Consecutive sequences that have consecutive offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SequenceRun {
    /// First sequence.
    pub base: Sequence,
    /// Number of records.
    pub count: u32,
    /// Offset of the first.
    pub offset: Offset,
}

/// One producer on one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerState {
    /// Highest epoch seen in a batch.
    pub epoch: Epoch,
    /// Epoch handed out by a take-over whose first batch has not come yet.
    pub promised_epoch: Epoch,
    /// The sequence that must come next.
    pub next_sequence: Sequence,
    /// Segment of its last batch: when that segment is retained no more,
    /// neither is this state.
    pub last_segment: SegmentSeq,
    /// Its last batches, oldest first, neighbours merged.
    pub runs: VecDeque<SequenceRun>,
}

/// What to do with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Append it.
    Append,
    /// It is in the log already, at this offset if that is still remembered.
    Duplicate(Option<Offset>),
    /// An earlier one is missing; this sequence is expected.
    OutOfOrder(Sequence),
    /// A newer incarnation has taken over, under this epoch.
    Fenced(Epoch),
}

impl ProducerState {
    /// A producer of which nothing is in the log.
    pub fn new(epoch: Epoch) -> Self {
        ProducerState {
            epoch,
            promised_epoch: epoch,
            next_sequence: Sequence(0),
            last_segment: SegmentSeq(0),
            runs: VecDeque::new(),
        }
    }

    /// What to do with a batch of `count` records from `base` on.
    #[inline]
    pub fn judge(&self, epoch: Epoch, base: Sequence, count: u32) -> Verdict {
        if epoch < self.epoch.max(self.promised_epoch) {
            return Verdict::Fenced(self.epoch.max(self.promised_epoch));
        }
        if base == self.next_sequence {
            return Verdict::Append;
        }
        // A retry comes under an epoch that the log has seen. Under a newer one
        // it would be another incarnation's batch that happens to have a number
        // which is taken.
        match base.0.checked_add(u64::from(count)) {
            Some(end) if end <= self.next_sequence.0 && epoch <= self.epoch => {
                Verdict::Duplicate(self.offset_of(base))
            }
            _ => Verdict::OutOfOrder(self.next_sequence),
        }
    }

    fn offset_of(&self, sequence: Sequence) -> Option<Offset> {
        let at = self.runs.partition_point(|run| run.base.0 + u64::from(run.count) <= sequence.0);
        let run = self.runs.get(at).filter(|run| run.base <= sequence)?;
        Some(Offset(run.offset.0 + (sequence.0 - run.base.0)))
    }

    /// Offset of its last record.
    pub fn last_offset(&self) -> Option<Offset> {
        self.runs.back().map(|run| Offset(run.offset.0 + u64::from(run.count) - 1))
    }

    /// Takes note of a batch that was appended, and remembers `max_runs` runs at
    /// the most, or one. Returns whether it began a run.
    #[inline]
    pub fn record(
        &mut self,
        (epoch, base, count): (Epoch, Sequence, u32),
        offset: Offset,
        segment: SegmentSeq,
        max_runs: usize,
    ) -> bool {
        if base != self.next_sequence {
            // Read back: retention had forgotten it, and it began anew. So no epoch
            // of before holds: it was accepted under this one, however low.
            self.runs.clear();
            (self.epoch, self.promised_epoch) = (epoch, epoch);
        }
        self.epoch = self.epoch.max(epoch);
        self.promised_epoch = self.promised_epoch.max(epoch);
        self.next_sequence = Sequence(base.0.saturating_add(u64::from(count)));
        self.last_segment = segment;
        if let Some(last) = self.runs.back_mut()
            && last.base.0 + u64::from(last.count) == base.0
            && last.offset.0 + u64::from(last.count) == offset.0
            && let Some(sum) = last.count.checked_add(count)
        {
            last.count = sum;
            return false;
        }
        if self.runs.len() >= max_runs {
            self.runs.pop_front();
        }
        self.runs.push_back(SequenceRun { base, count, offset });
        true
    }
}

/// The producers of one partition.
pub type Producers = ByChoice<ProducerId, ProducerState>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_REMEMBERED_RUNS as RUNS;

    fn state() -> ProducerState {
        let mut state = ProducerState::new(Epoch(3));
        state.record((Epoch(3), Sequence(0), 10), Offset(100), SegmentSeq(1), RUNS);
        state.record((Epoch(3), Sequence(10), 5), Offset(200), SegmentSeq(1), RUNS);
        state
    }

    #[test]
    fn a_retry_gets_the_offset_of_the_original() {
        assert_eq!(state().judge(Epoch(3), Sequence(10), 5), Verdict::Duplicate(Some(Offset(200))));
        assert_eq!(state().judge(Epoch(3), Sequence(4), 6), Verdict::Duplicate(Some(Offset(104))));
    }

    #[test]
    fn a_gap_and_an_overlap_with_the_future_are_out_of_order() {
        assert_eq!(state().judge(Epoch(3), Sequence(16), 1), Verdict::OutOfOrder(Sequence(15)));
        assert_eq!(state().judge(Epoch(3), Sequence(10), 6), Verdict::OutOfOrder(Sequence(15)));
        assert_eq!(state().judge(Epoch(3), Sequence(u64::MAX), 6), Verdict::OutOfOrder(Sequence(15)));
    }

    #[test]
    fn an_old_epoch_is_fenced_even_when_its_batch_would_be_a_duplicate() {
        assert_eq!(state().judge(Epoch(2), Sequence(10), 5), Verdict::Fenced(Epoch(3)));
        let mut promised = state();
        promised.promised_epoch = Epoch(4);
        assert_eq!(promised.judge(Epoch(3), Sequence(15), 1), Verdict::Fenced(Epoch(4)));
        assert_eq!(promised.judge(Epoch(4), Sequence(15), 1), Verdict::Append);
        assert_eq!(promised.judge(Epoch(4), Sequence(10), 5), Verdict::OutOfOrder(Sequence(15)));
    }

    /// A footer of a segment that retention had dropped, but whose file was still
    /// there at a crash, says more than the broker knew.
    #[test]
    fn a_producer_that_was_forgotten_and_began_anew_is_not_fenced_by_what_it_was() {
        let mut state = ProducerState::new(Epoch(3));
        state.record((Epoch(3), Sequence(0), 100), Offset(0), SegmentSeq(1), RUNS);
        state.record((Epoch(1), Sequence(0), 5), Offset(100), SegmentSeq(2), RUNS);
        assert_eq!((state.epoch, state.next_sequence), (Epoch(1), Sequence(5)));
        assert_eq!(state.judge(Epoch(1), Sequence(5), 1), Verdict::Append);
        assert_eq!(state.judge(Epoch(0), Sequence(5), 1), Verdict::Fenced(Epoch(1)));
    }

    #[test]
    fn neighbouring_batches_are_remembered_as_one_run_and_old_runs_are_forgotten() {
        let mut state = ProducerState::new(Epoch(0));
        for i in 0..1000 {
            state.record((Epoch(0), Sequence(i), 1), Offset(i), SegmentSeq(0), RUNS);
        }
        assert_eq!(state.runs.len(), 1);
        for i in 1000..2000 {
            state.record((Epoch(0), Sequence(i), 1), Offset(2 * i), SegmentSeq(0), RUNS);
        }
        assert_eq!(state.runs.len(), RUNS);
        assert_eq!(state.judge(Epoch(0), Sequence(0), 1), Verdict::Duplicate(None));
        assert_eq!(state.judge(Epoch(0), Sequence(1999), 1), Verdict::Duplicate(Some(Offset(3998))));
    }
}
