//! A segment's footer: what its records say, summed up, so that start-up need
//! not read them.
//!
//! ```text
//!   head | catalog | partitions | producers and their sequence runs | runs
//! ```
//!
//! The catalog and the list of partitions are complete, producers are those
//! that wrote in this segment, and runs are those of this segment, by
//! partition. Merged oldest to newest, footers give the state at the end of the
//! last sealed segment.

use ringbolt_wire::{Epoch, Offset, PartitionId, ProducerId, Sequence, TopicId};
use rustc_hash::FxHashSet;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SegmentSeq;
use super::index::{RAW_RUN_LEN, RawRun, SealedPart};
use super::producers::{ProducerState, SequenceRun};
use super::state::LogState;
use crate::catalog::Catalog;

const MAGIC: [u8; 4] = *b"RBFO";
const FORMAT: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    format: U32,
    catalog_len: U32,
    partitions: U32,
    producers: U32,
    runs: U32,
    segment: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPartition {
    topic: U32,
    index: U32,
    start_offset: U64,
    base_offset: U64,
    end_offset: U64,
    /// Number of the partition's first run among the footer's.
    first_run: U32,
    runs: U32,
    producers: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawProducer {
    id: U64,
    next_sequence: U64,
    epoch: U32,
    sequence_runs: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSequenceRun {
    base: U64,
    offset: U64,
    count: U32,
    reserved: U32,
}

/// Bytes of a footer's fixed head.
pub const FOOTER_HEAD_LEN: usize = size_of::<RawHead>();
/// Bytes of a partition in a footer.
pub const PARTITION_ROW_LEN: usize = size_of::<RawPartition>();
/// Bytes of a producer in a footer, without its sequence runs.
pub const PRODUCER_ROW_LEN: usize = size_of::<RawProducer>();
/// Bytes of a sequence run in a footer.
pub const SEQUENCE_RUN_LEN: usize = size_of::<RawSequenceRun>();

const _: () = assert!(FOOTER_HEAD_LEN == 32 && PARTITION_ROW_LEN == 48);
const _: () = assert!(PRODUCER_ROW_LEN == 24 && SEQUENCE_RUN_LEN == 24);

/// Bytes whose CRC is right but that are not a footer of this format.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("not a segment footer of format {FORMAT}")]
pub struct FooterFormatError;

/// A footer that was made.
#[derive(Clone, Debug)]
pub struct Footer {
    /// Its bytes, not padded.
    pub bytes: Vec<u8>,
    /// What the partitions' indexes keep once it is durable.
    pub parts: Vec<(PartitionId, SealedPart)>,
}

/// The footer of `segment`, the open one, whose last commit ends at `end`.
pub fn encode(state: &LogState, segment: SegmentSeq, end: u64) -> Footer {
    let catalog = state.catalog.encode();
    let (mut partitions, mut producers, mut runs) = (Vec::new(), Vec::new(), Vec::<u8>::new());
    let (mut partition_count, mut producer_count, mut run_count) = (0u32, 0u32, 0u32);
    let mut parts = Vec::new();
    for p in state.partitions().filter(|p| p.is_in_footer()) {
        let mut touched = 0;
        for (id, producer) in &p.producers {
            if producer.last_segment == segment && !producer.runs.is_empty() {
                put_producer(&mut producers, *id, producer);
                touched += 1;
            }
        }
        let row = RawPartition {
            topic: U32::new(p.id.topic.0),
            index: U32::new(p.id.index),
            start_offset: U64::new(p.start_offset.0),
            base_offset: U64::new(p.open_base.0),
            end_offset: U64::new(p.end_offset.0),
            first_run: U32::new(run_count),
            runs: U32::new(p.index.open.len() as u32),
            producers: U32::new(touched),
            reserved: U32::ZERO,
        };
        partitions.extend_from_slice(row.as_bytes());
        for run in &p.index.open {
            runs.extend_from_slice(RawRun::from(*run).as_bytes());
        }
        if !p.index.open.is_empty() {
            parts.push((p.id, sealed_part(&row, segment)));
        }
        partition_count += 1;
        producer_count += touched;
        run_count += p.index.open.len() as u32;
    }
    let head = RawHead {
        magic: MAGIC,
        format: U32::new(FORMAT),
        catalog_len: U32::new(catalog.len() as u32),
        partitions: U32::new(partition_count),
        producers: U32::new(producer_count),
        runs: U32::new(run_count),
        segment: U64::new(segment.0),
    };
    let mut bytes = head.as_bytes().to_vec();
    for section in [&catalog, &partitions, &producers, &runs] {
        bytes.extend_from_slice(section);
    }
    let runs_at = end + (bytes.len() - runs.len()) as u64;
    parts.iter_mut().for_each(|(_, part)| part.runs_at += runs_at as u32);
    Footer { bytes, parts }
}

/// `runs_at` counts from the first run yet.
fn sealed_part(row: &RawPartition, segment: SegmentSeq) -> SealedPart {
    SealedPart {
        segment,
        base_offset: Offset(row.base_offset.get()),
        end_offset: Offset(row.end_offset.get()),
        runs_at: row.first_run.get() * RAW_RUN_LEN as u32,
        runs: row.runs.get(),
    }
}

fn put_producer(out: &mut Vec<u8>, id: ProducerId, state: &ProducerState) {
    let row = RawProducer {
        id: U64::new(id.0),
        next_sequence: U64::new(state.next_sequence.0),
        epoch: U32::new(state.epoch.0),
        sequence_runs: U32::new(state.runs.len() as u32),
    };
    out.extend_from_slice(row.as_bytes());
    for run in &state.runs {
        let row = RawSequenceRun {
            base: U64::new(run.base.0),
            offset: U64::new(run.offset.0),
            count: U32::new(run.count),
            reserved: U32::ZERO,
        };
        out.extend_from_slice(row.as_bytes());
    }
}

fn take<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &mut &'a [u8],
) -> Result<&'a T, FooterFormatError> {
    let (row, rest) = T::ref_from_prefix(bytes).map_err(|_| FooterFormatError)?;
    *bytes = rest;
    Ok(row)
}

/// Merges the footer of `segment`, which starts at position `end` of it, into
/// `state`, which stands at the end of the segment before it.
pub fn merge(
    bytes: &[u8],
    state: &mut LogState,
    segment: SegmentSeq,
    end: u64,
) -> Result<(), FooterFormatError> {
    let mut rest = bytes;
    let head = *take::<RawHead>(&mut rest)?;
    if head.magic != MAGIC || head.format.get() != FORMAT || head.segment.get() != segment.0 {
        return Err(FooterFormatError);
    }
    let (catalog, tail) = rest.split_at_checked(head.catalog_len.get() as usize).ok_or(FooterFormatError)?;
    state.catalog = Catalog::decode(catalog).map_err(|_| FooterFormatError)?;
    let rows_len = head.partitions.get() as usize * PARTITION_ROW_LEN;
    let (mut rows, mut producers) = tail.split_at_checked(rows_len).ok_or(FooterFormatError)?;
    let runs_len = head.runs.get() as usize * RAW_RUN_LEN;
    let runs_at = end + bytes.len().checked_sub(runs_len).ok_or(FooterFormatError)? as u64;
    let mut named = FxHashSet::default();
    for _ in 0..head.partitions.get() {
        let row = *take::<RawPartition>(&mut rows)?;
        let id = PartitionId::new(TopicId(row.topic.get()), row.index.get());
        named.insert(id);
        let slot = state.slot_or_insert(id);
        let partition = state.partition_mut(slot);
        partition.start_offset = partition.start_offset.max(Offset(row.start_offset.get()));
        partition.end_offset = Offset(row.end_offset.get());
        partition.open_base = partition.end_offset;
        if row.runs.get() > 0 {
            let mut part = sealed_part(&row, segment);
            part.runs_at += runs_at as u32;
            state.push_sealed(slot, part);
        }
        for _ in 0..row.producers.get() {
            let (id, producer) = take_producer(&mut producers, segment)?;
            state.set_producer(slot, id, producer);
        }
    }
    if producers.len() != runs_len {
        return Err(FooterFormatError);
    }
    // The list is complete: what it does not name was deleted. Kept, it would
    // take room in later footers for which none was left.
    if state.partitions().count() > named.len() {
        state.retain_partitions(|id| named.contains(&id));
    }
    Ok(())
}

fn take_producer(
    bytes: &mut &[u8],
    segment: SegmentSeq,
) -> Result<(ProducerId, ProducerState), FooterFormatError> {
    let row = *take::<RawProducer>(bytes)?;
    let mut state = ProducerState::new(Epoch(row.epoch.get()));
    state.next_sequence = Sequence(row.next_sequence.get());
    state.last_segment = segment;
    for _ in 0..row.sequence_runs.get() {
        let run = take::<RawSequenceRun>(bytes)?;
        state.runs.push_back(SequenceRun {
            base: Sequence(run.base.get()),
            count: run.count.get(),
            offset: Offset(run.offset.get()),
        });
    }
    Ok((ProducerId(row.id.get()), state))
}
