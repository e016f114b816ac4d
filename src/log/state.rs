//! What a log says: its partitions, their offsets, indexes and producers.
//!
//! The same code applies a batch when it is appended and when it is read back
//! at recovery, so that both arrive at the same state.

use std::collections::VecDeque;

use ringbolt_wire::{BatchHeader, Offset, PartitionId, ProducerId, TopicId};
use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;

use super::SegmentSeq;
use super::footer::{FOOTER_HEAD_LEN, PARTITION_ROW_LEN, PRODUCER_ROW_LEN, SEQUENCE_RUN_LEN};
use super::index::{PartitionIndex, RAW_RUN_LEN, Run, SealedPart};
use super::producers::{ProducerState, Producers};
use crate::catalog::{Catalog, CatalogChange, CatalogUpdate, MAX_GROUP_ROW_LEN, topic_row_len};
use crate::consumer::GroupsState;
use crate::limits::{MAX_PRODUCERS, MAX_REMEMBERED_RUNS, MAX_TOTAL_RUNS};

/// One partition.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Which one.
    pub id: PartitionId,
    /// First offset that is still there.
    pub start_offset: Offset,
    /// Offset that the next record gets.
    pub end_offset: Offset,
    /// Offset after the last record that is durable; never beyond
    /// `end_offset`. What lies at or after it is invisible.
    pub durable_end: Offset,
    /// End offset when the open segment began.
    pub open_base: Offset,
    /// Where its records lie.
    pub index: PartitionIndex,
    /// Who wrote them.
    pub producers: Producers,
}

impl Partition {
    fn new(id: PartitionId) -> Self {
        Partition {
            id,
            start_offset: Offset(0),
            end_offset: Offset(0),
            durable_end: Offset(0),
            open_base: Offset(0),
            index: PartitionIndex::default(),
            producers: Producers::default(),
        }
    }

    /// Whether footers name the partition: once it has had a record. Before,
    /// the catalog says all there is to say.
    pub fn is_in_footer(&self) -> bool {
        self.end_offset > Offset(0)
    }
}

/// What a log says.
#[derive(Clone, Default, Debug)]
pub struct LogState {
    /// The topics; empty but on shard 0.
    pub catalog: Catalog,
    /// What is durable of this shard's consumer groups.
    pub groups: GroupsState,
    partitions: Slab<Partition>,
    by_id: FxHashMap<PartitionId, u32>,
    producers: usize,
    /// Sequence runs of all producers.
    sequence_runs: usize,
    /// Producers that were added by a take-over, oldest first; some have records
    /// by now, or are gone.
    promised: VecDeque<(PartitionId, ProducerId)>,
    /// Of sealed segments, over all partitions.
    sealed_parts: usize,
    /// Bytes that a footer of the open segment would take, at most.
    footer_len: usize,
}

impl LogState {
    /// The partition's place in this state, if it is known.
    #[inline]
    pub fn slot(&self, id: PartitionId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The partition's place; it is added if it is not known.
    pub fn slot_or_insert(&mut self, id: PartitionId) -> u32 {
        if let Some(slot) = self.slot(id) {
            return slot;
        }
        let slot = self.partitions.insert(Partition::new(id)) as u32;
        self.by_id.insert(id, slot);
        slot
    }

    /// The partition at a place that [`slot`](Self::slot) gave.
    ///
    /// # Panics
    /// If it was removed since.
    #[inline]
    pub fn partition(&self, slot: u32) -> &Partition {
        &self.partitions[slot as usize]
    }

    /// See [`partition`](Self::partition).
    #[inline]
    pub fn partition_mut(&mut self, slot: u32) -> &mut Partition {
        &mut self.partitions[slot as usize]
    }

    /// The partition at `slot` if it is still `id`.
    #[inline]
    pub fn partition_if(&mut self, slot: u32, id: PartitionId) -> Option<&mut Partition> {
        self.partitions.get_mut(slot as usize).filter(|p| p.id == id)
    }

    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().map(|(_, p)| p)
    }

    /// All partitions.
    pub fn partitions_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.partitions.iter_mut().map(|(_, p)| p)
    }

    /// Removes the partitions of which `keep` says no.
    pub fn retain_partitions(&mut self, mut keep: impl FnMut(PartitionId) -> bool) {
        let (by_id, producers, runs) = (&mut self.by_id, &mut self.producers, &mut self.sequence_runs);
        let parts = &mut self.sealed_parts;
        self.partitions.retain(|_, p| {
            let kept = keep(p.id);
            if !kept {
                by_id.remove(&p.id);
                *parts -= p.index.sealed.len();
                *producers -= p.producers.len();
                *runs -= p.producers.values().map(|state| state.runs.len()).sum::<usize>();
            }
            kept
        });
    }

    /// Removes the partitions of a topic.
    pub fn remove_topic(&mut self, topic: TopicId) {
        self.retain_partitions(|id| id.topic != topic);
    }

    /// Whether one more producer may be remembered. If need be, the oldest that
    /// took over and has no record is forgotten: nothing in the log is of an
    /// epoch that it fenced.
    pub fn make_room_for_producer(&mut self) -> bool {
        while self.producers >= MAX_PRODUCERS {
            let Some((partition, id)) = self.promised.pop_front() else { return false };
            let Some(slot) = self.slot(partition) else { continue };
            let known = &mut self.partitions[slot as usize].producers;
            if known.get(&id).is_some_and(|state| state.runs.is_empty()) {
                known.remove(&id);
                self.producers -= 1;
            }
        }
        true
    }

    /// The state of a producer that takes over; it is added if it is not known.
    pub fn promise(&mut self, slot: u32, id: ProducerId) -> &mut ProducerState {
        let partition = &self.partitions[slot as usize];
        let partition_id = partition.id;
        if !partition.producers.contains_key(&id) {
            self.producer_or_insert(slot, id);
            self.promised.push_back((partition_id, id));
            if self.promised.len() > 2 * MAX_PRODUCERS {
                self.compact_promised();
            }
        }
        self.producer_or_insert(slot, id)
    }

    /// Drops entries of producers that have records by now or are gone.
    fn compact_promised(&mut self) {
        let (by_id, partitions) = (&self.by_id, &self.partitions);
        let mut seen = FxHashSet::default();
        self.promised.retain(|entry @ (partition, id)| {
            let known = by_id.get(partition).map(|slot| &partitions[*slot as usize].producers);
            let state = known.and_then(|known| known.get(id));
            state.is_some_and(|state| state.runs.is_empty()) && seen.insert(*entry)
        });
    }

    /// Sets what a footer says of a producer.
    pub fn set_producer(&mut self, slot: u32, id: ProducerId, producer: ProducerState) {
        let state = self.producer_or_insert(slot, id);
        let (before, after) = (state.runs.len(), producer.runs.len());
        *state = producer;
        self.sequence_runs = self.sequence_runs - before + after;
    }

    /// The producer's state on the partition; it is added if it is not known.
    pub fn producer_or_insert(&mut self, slot: u32, id: ProducerId) -> &mut ProducerState {
        let partition = &mut self.partitions[slot as usize];
        match partition.producers.entry(id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                self.producers += 1;
                entry.insert(ProducerState::new(ringbolt_wire::Epoch(0)))
            }
        }
    }

    /// Takes note of a batch at `position` of `segment`, whose header carries
    /// its offset and commit time.
    ///
    /// # Panics
    /// If its base offset is not the partition's end.
    #[inline]
    pub fn apply(&mut self, slot: u32, header: &BatchHeader, segment: SegmentSeq, position: u32) {
        let base_offset = header.base_offset();
        let run = Run {
            base_offset,
            count: header.count(),
            position,
            len: header.len() as u32,
            commit_time_us: header.commit_time_us(),
        };
        let producer = header.producer_id();
        if producer != ProducerId::NONE {
            let is_full = self.sequence_runs >= MAX_TOTAL_RUNS;
            let state = self.producer_or_insert(slot, producer);
            let runs_before = state.runs.len();
            let first_in_segment = state.last_segment != segment || runs_before == 0;
            let max_runs = if is_full { runs_before } else { MAX_REMEMBERED_RUNS };
            let sequences = (header.producer_epoch(), header.base_sequence(), header.count());
            let began = state.record(sequences, base_offset, segment, max_runs);
            let runs_after = state.runs.len();
            self.sequence_runs = self.sequence_runs - runs_before + runs_after;
            // Recovery may have room for runs that were forgotten here.
            let most = (runs_before + usize::from(began)).min(MAX_REMEMBERED_RUNS);
            if first_in_segment {
                self.footer_len += PRODUCER_ROW_LEN + most * SEQUENCE_RUN_LEN;
            } else if most > runs_before {
                self.footer_len += SEQUENCE_RUN_LEN;
            }
        }
        let partition = &mut self.partitions[slot as usize];
        assert_eq!(base_offset, partition.end_offset, "offsets are dense");
        if partition.end_offset == Offset(0) {
            self.footer_len += PARTITION_ROW_LEN;
        }
        partition.end_offset = run.end_offset();
        if partition.index.push(run) {
            self.footer_len += RAW_RUN_LEN;
        }
    }

    /// Bytes that a footer of the open segment may take, at most, once one more
    /// batch was applied.
    #[inline]
    pub fn footer_len_with_one_more(&self) -> usize {
        let one = MAX_GROUP_ROW_LEN
            + PARTITION_ROW_LEN
            + PRODUCER_ROW_LEN
            + (MAX_REMEMBERED_RUNS + 1) * SEQUENCE_RUN_LEN
            + RAW_RUN_LEN;
        self.footer_len + one
    }

    /// Moves the runs of the open segment to the sealing ones: a new segment
    /// begins. The footer must have been made before.
    pub fn begin_segment(&mut self, sealing: SegmentSeq) {
        for (_, p) in &mut self.partitions {
            if !p.index.open.is_empty() {
                let runs = std::mem::take(&mut p.index.open);
                p.index.sealing.push((sealing, runs));
            }
            p.open_base = p.end_offset;
        }
        self.reset_footer_len();
    }

    /// Sets the footer's bound to what an empty open segment needs.
    pub fn reset_footer_len(&mut self) {
        let rows = self.partitions().filter(|p| p.is_in_footer()).count();
        self.footer_len = FOOTER_HEAD_LEN + self.catalog.encoded_len() + rows * PARTITION_ROW_LEN;
    }

    /// As [`reset_footer_len`](Self::reset_footer_len), for an open segment that
    /// holds something already.
    pub fn reset_footer_len_for_open(&mut self, open: Option<SegmentSeq>) {
        self.reset_footer_len();
        let mut len = 0;
        for p in self.partitions() {
            len += p.index.open.len() * RAW_RUN_LEN;
            let here = p.producers.values().filter(|state| Some(state.last_segment) == open);
            len += here.map(|state| PRODUCER_ROW_LEN + state.runs.len() * SEQUENCE_RUN_LEN).sum::<usize>();
        }
        self.footer_len += len;
    }

    /// Carries out a change of the catalog, and drops the partitions of a topic
    /// that it deletes.
    pub fn apply_catalog(&mut self, update: &CatalogUpdate) {
        self.catalog.apply(update);
        match &update.change {
            CatalogChange::Created(topic) => self.footer_len += topic_row_len(topic),
            CatalogChange::Deleted(id) => self.remove_topic(*id),
            CatalogChange::GroupCreated(_) => self.footer_len += MAX_GROUP_ROW_LEN,
            CatalogChange::GroupDeleted(_) => {}
        }
    }

    /// The footer of `segment` is durable: its runs need not be in memory.
    pub fn sealed(&mut self, segment: SegmentSeq, parts: &[(PartitionId, SealedPart)]) {
        for (id, part) in parts {
            let Some(slot) = self.slot(*id) else { continue };
            self.partition_mut(slot).index.sealing.retain(|(s, _)| *s != segment);
            self.push_sealed(slot, *part);
        }
    }

    /// Takes note of what a sealed segment, newer than all before, holds of a
    /// partition.
    pub fn push_sealed(&mut self, slot: u32, part: SealedPart) {
        self.sealed_parts += 1;
        self.partition_mut(slot).index.sealed.push_back(part);
    }

    /// Bytes of memory that say where sealed segments' records lie. They grow with
    /// the log, for each segment by one [`SealedPart`] for each partition that it
    /// has records of.
    pub fn sealed_index_bytes(&self) -> usize {
        self.sealed_parts * size_of::<SealedPart>()
    }

    /// Forgets what a segment held, the oldest one: its records are no longer
    /// retained.
    pub fn drop_segment(&mut self, segment: SegmentSeq) {
        let (producers, runs) = (&mut self.producers, &mut self.sequence_runs);
        let parts = &mut self.sealed_parts;
        for (_, p) in &mut self.partitions {
            while p.index.sealed.front().is_some_and(|part| part.segment <= segment) {
                let part = p.index.sealed.pop_front().expect("the loop saw one");
                *parts -= 1;
                p.start_offset = p.start_offset.max(part.end_offset);
            }
            let before = p.producers.len();
            p.producers.retain(|_, state| {
                let kept = state.last_segment > segment || state.runs.is_empty();
                *runs -= if kept { 0 } else { state.runs.len() };
                kept
            });
            *producers -= before - p.producers.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::{BatchBuilder, BatchView, Epoch, Sequence};

    use super::*;

    fn apply(state: &mut LogState, slot: u32, id: ProducerId, sequence: u64) {
        let mut batch = BatchBuilder::new();
        batch.push(7, None, b"a", &[]);
        let partition = state.partition(slot);
        let (partition, end) = (partition.id, partition.end_offset);
        let batch = batch.finish(partition, id, Epoch(0), Sequence(sequence));
        let mut bytes = batch.to_vec();
        bytes[..8].copy_from_slice(&end.0.to_le_bytes());
        let header = *BatchView::parse(&bytes, u32::MAX).expect("a good batch").header();
        state.apply(slot, &header, SegmentSeq(1), end.0 as u32);
    }

    /// Take-overs by producers that never write must not keep out those that do.
    #[test]
    fn promises_without_records_give_way_to_producers_oldest_first() {
        let mut state = LogState::default();
        let slot = state.slot_or_insert(PartitionId::new(TopicId(1), 0));
        apply(&mut state, slot, ProducerId(1), 0);
        for id in 2..=MAX_PRODUCERS as u64 {
            assert!(state.make_room_for_producer());
            state.promise(slot, ProducerId(id)).promised_epoch = Epoch(1);
        }
        apply(&mut state, slot, ProducerId(2), 0);
        assert!(state.make_room_for_producer());
        apply(&mut state, slot, ProducerId(u64::MAX), 0);
        let known = &state.partition(slot).producers;
        let is_known = |id| known.contains_key(&ProducerId(id));
        assert!(is_known(1) && is_known(2) && is_known(4), "those with records, and newer promises");
        assert!(!is_known(3), "the oldest promise without a record");
        assert_eq!(known.len(), MAX_PRODUCERS);
    }

    #[test]
    fn the_memory_of_sealed_segments_is_counted_and_given_back() {
        let mut state = LogState::default();
        let ids = [0, 1, 2].map(|index| PartitionId::new(TopicId(1 + index / 2), index));
        for id in ids {
            state.slot_or_insert(id);
        }
        let part = |segment| SealedPart {
            segment: SegmentSeq(segment),
            base_offset: Offset(segment),
            end_offset: Offset(segment + 1),
            runs_at: 4096,
            runs: 1,
        };
        for segment in 0..10 {
            state.sealed(SegmentSeq(segment), &ids.map(|id| (id, part(segment))));
        }
        assert_eq!(state.sealed_index_bytes(), 30 * 32);
        state.drop_segment(SegmentSeq(1));
        assert_eq!(state.sealed_index_bytes(), 24 * 32);
        state.remove_topic(TopicId(1));
        assert_eq!(state.sealed_index_bytes(), 8 * 32);
    }

    #[test]
    fn no_more_runs_are_remembered_than_the_shard_may_and_retries_are_still_known() {
        let mut state = LogState::default();
        let slot = state.slot_or_insert(PartitionId::new(TopicId(1), 0));
        for sequence in 0..3 {
            apply(&mut state, slot, ProducerId(1), sequence);
            apply(&mut state, slot, ProducerId(2), sequence);
        }
        assert_eq!(state.sequence_runs, 6);
        let others = MAX_TOTAL_RUNS - state.sequence_runs;
        state.sequence_runs += others;
        for sequence in 3..100 {
            apply(&mut state, slot, ProducerId(1), sequence);
            apply(&mut state, slot, ProducerId(2), sequence);
        }
        apply(&mut state, slot, ProducerId(3), 0);
        assert_eq!(state.sequence_runs, MAX_TOTAL_RUNS + 1, "one for the producer that is new");
        let first = &state.partition(slot).producers[&ProducerId(1)];
        assert_eq!((first.runs.len(), first.next_sequence), (3, Sequence(100)));
        assert_eq!(first.judge(Epoch(0), Sequence(0), 1), super::super::producers::Verdict::Duplicate(None));
        state.sequence_runs -= others;
        state.drop_segment(SegmentSeq(1));
        assert_eq!((state.sequence_runs, state.producers), (0, 0));
    }
}
