//! What a log says: its partitions, their offsets, indexes and producers.
//!
//! The same code applies a batch when it is appended and when it is read back
//! at recovery, so that both arrive at the same state.

use ringbolt_wire::{BatchHeader, Offset, PartitionId, ProducerId, TopicId};
use rustc_hash::FxHashMap;
use slab::Slab;

use super::SegmentSeq;
use super::footer::{FOOTER_HEAD_LEN, PARTITION_ROW_LEN, PRODUCER_ROW_LEN, SEQUENCE_RUN_LEN};
use super::index::{PartitionIndex, RAW_RUN_LEN, Run, SealedPart};
use super::producers::{ProducerState, Producers};
use crate::catalog::{Catalog, CatalogChange, CatalogUpdate, MAX_TOPIC_ROW_LEN, topic_row_len};
use crate::limits::MAX_PRODUCERS;

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
    partitions: Slab<Partition>,
    by_id: FxHashMap<PartitionId, u32>,
    producers: usize,
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
        let (by_id, producers) = (&mut self.by_id, &mut self.producers);
        self.partitions.retain(|_, p| {
            let kept = keep(p.id);
            if !kept {
                by_id.remove(&p.id);
                *producers -= p.producers.len();
            }
            kept
        });
    }

    /// Removes the partitions of a topic.
    pub fn remove_topic(&mut self, topic: TopicId) {
        self.retain_partitions(|id| id.topic != topic);
    }

    /// Whether one more producer may be remembered.
    pub fn has_room_for_producer(&self) -> bool {
        self.producers < MAX_PRODUCERS
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
            let state = self.producer_or_insert(slot, producer);
            let runs_before = state.runs.len();
            let first_in_segment = state.last_segment != segment || runs_before == 0;
            state.record(
                header.producer_epoch(),
                header.base_sequence(),
                header.count(),
                base_offset,
                segment,
            );
            if first_in_segment {
                self.footer_len += PRODUCER_ROW_LEN + state.runs.len() * SEQUENCE_RUN_LEN;
            } else if state.runs.len() != runs_before {
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
        let one = MAX_TOPIC_ROW_LEN
            + PARTITION_ROW_LEN
            + PRODUCER_ROW_LEN
            + (crate::limits::MAX_REMEMBERED_RUNS + 1) * SEQUENCE_RUN_LEN
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
        }
    }

    /// The footer of `segment` is durable: its runs need not be in memory.
    pub fn sealed(&mut self, segment: SegmentSeq, parts: &[(PartitionId, SealedPart)]) {
        for (id, part) in parts {
            let Some(slot) = self.slot(*id) else { continue };
            let index = &mut self.partition_mut(slot).index;
            index.sealing.retain(|(s, _)| *s != segment);
            index.sealed.push_back(*part);
        }
    }

    /// Forgets what a segment held, the oldest one: its records are no longer
    /// retained.
    pub fn drop_segment(&mut self, segment: SegmentSeq) {
        let producers = &mut self.producers;
        for (_, p) in &mut self.partitions {
            while p.index.sealed.front().is_some_and(|part| part.segment <= segment) {
                let part = p.index.sealed.pop_front().expect("the loop saw one");
                p.start_offset = p.start_offset.max(part.end_offset);
            }
            let before = p.producers.len();
            p.producers.retain(|_, state| state.last_segment > segment || state.runs.is_empty());
            *producers -= before - p.producers.len();
        }
    }
}
