//! Where a partition's records lie in the log.
//!
//! A *run* is a stretch of neighbouring batches of one partition within one
//! commit. The runs of the open segment are in memory; those of a sealed
//! segment are in its footer on disk, and in memory stays one [`SealedPart`]
//! per segment and partition that says where in the footer.

use std::collections::VecDeque;

use ringbolt_wire::Offset;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SegmentSeq;

/// Longest run in bytes unless a single batch is longer, so that finding an
/// offset within it walks over few batches.
pub const MAX_RUN_LEN: u32 = 64 << 10;

/// Neighbouring batches of one partition within one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Records in it.
    pub count: u32,
    /// Bytes from the segment's start.
    pub position: u32,
    /// Bytes of its batches.
    pub len: u32,
    /// Commit time of its commit, µs since 1970 UTC.
    pub commit_time_us: u64,
}

impl Run {
    /// Offset after its last record.
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.count))
    }
}

/// A run as it lies in a footer.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawRun {
    base_offset: U64,
    commit_time_us: U64,
    position: U32,
    len: U32,
    count: U32,
    reserved: U32,
}

/// Bytes of a run in a footer.
pub const RAW_RUN_LEN: usize = size_of::<RawRun>();
const _: () = assert!(RAW_RUN_LEN == 32);

impl From<Run> for RawRun {
    fn from(run: Run) -> RawRun {
        RawRun {
            base_offset: U64::new(run.base_offset.0),
            commit_time_us: U64::new(run.commit_time_us),
            position: U32::new(run.position),
            len: U32::new(run.len),
            count: U32::new(run.count),
            reserved: U32::ZERO,
        }
    }
}

impl From<RawRun> for Run {
    fn from(raw: RawRun) -> Run {
        Run {
            base_offset: Offset(raw.base_offset.get()),
            count: raw.count.get(),
            position: raw.position.get(),
            len: raw.len.get(),
            commit_time_us: raw.commit_time_us.get(),
        }
    }
}

/// Decodes the run at the start of `bytes`.
pub fn read_run(bytes: &[u8]) -> Option<Run> {
    RawRun::ref_from_prefix(bytes).ok().map(|(raw, _)| Run::from(*raw))
}

/// What a sealed segment holds of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedPart {
    /// The segment.
    pub segment: SegmentSeq,
    /// First offset in it.
    pub base_offset: Offset,
    /// Offset after the last one in it.
    pub end_offset: Offset,
    /// Position of its first [`RawRun`] in the segment's file, in bytes.
    pub runs_at: u32,
    /// Number of runs.
    pub runs: u32,
}

// Tuning.md counts on it.
const _: () = assert!(size_of::<SealedPart>() == 32);

/// One partition's index.
#[derive(Clone, Default, Debug)]
pub struct PartitionIndex {
    /// Oldest first.
    pub sealed: VecDeque<SealedPart>,
    /// Segments that are full and whose footer is still being written, oldest
    /// first; empty but for moments.
    pub sealing: Vec<(SegmentSeq, Vec<Run>)>,
    /// Runs in the open segment.
    pub open: Vec<Run>,
}

/// Where an offset is to be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Located {
    /// In this run of this segment.
    Run(SegmentSeq, Run),
    /// In a sealed segment: its runs are in the footer.
    Sealed(SealedPart),
    /// Not in the index.
    Nowhere,
}

impl PartitionIndex {
    /// Adds a batch to the open segment's runs. Returns whether a run was
    /// added.
    #[inline]
    pub fn push(&mut self, batch: Run) -> bool {
        if let Some(last) = self.open.last_mut()
            && last.position + last.len == batch.position
            && last.len + batch.len <= MAX_RUN_LEN
        {
            debug_assert_eq!(last.end_offset(), batch.base_offset);
            last.len += batch.len;
            last.count += batch.count;
            return false;
        }
        self.open.push(batch);
        true
    }

    /// Where `offset` is; `open_segment` is the number of the open segment.
    pub fn locate(&self, offset: Offset, open_segment: SegmentSeq) -> Located {
        if let Some(run) = find_run(&self.open, offset) {
            return Located::Run(open_segment, run);
        }
        for (segment, runs) in self.sealing.iter().rev() {
            if let Some(run) = find_run(runs, offset) {
                return Located::Run(*segment, run);
            }
        }
        let at = self.sealed.partition_point(|part| part.end_offset <= offset);
        match self.sealed.get(at) {
            Some(part) if part.base_offset <= offset => Located::Sealed(*part),
            _ => Located::Nowhere,
        }
    }

    /// First run of the open or sealing segments whose commit time is at or
    /// after `time_us`.
    pub fn locate_time_in_memory(&self, time_us: u64) -> Option<Run> {
        let sealing = self.sealing.iter().flat_map(|(_, runs)| runs);
        sealing.chain(&self.open).find(|run| run.commit_time_us >= time_us).copied()
    }

    /// The first offset in the index.
    pub fn first_offset(&self) -> Option<Offset> {
        let sealed = self.sealed.front().map(|part| part.base_offset);
        let sealing = self.sealing.iter().find_map(|(_, runs)| runs.first());
        sealed.or_else(|| sealing.or(self.open.first()).map(|run| run.base_offset))
    }
}

fn find_run(runs: &[Run], offset: Offset) -> Option<Run> {
    let at = runs.partition_point(|run| run.end_offset() <= offset);
    runs.get(at).filter(|run| run.base_offset <= offset).copied()
}
