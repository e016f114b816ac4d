//! Changes to consumer groups, read back.
//!
//! Those of the segments that are read commit by commit are carried out on the way.
//! Of the sealed ones before, footers tell where the changes lie that are newer than
//! the last checkpoint, and only those are read.

use ringbolt_wire::{BatchView, Offset};

use super::{Recovery, RecoveryError};
use crate::consumer::GROUPS_PARTITION;
use crate::limits::{BLOCK_LEN, MAX_STORED_BATCH_LEN};
use crate::log::SegmentSeq;
use crate::log::index::{MAX_RUN_LEN, RAW_RUN_LEN, Run, SealedPart, read_run};
use crate::log::recovery_error::Damage;
use crate::log::state::LogState;

/// Carries out the changes in a batch.
pub(super) fn apply_changes(state: &mut LogState, batch: &BatchView<'_>) -> Result<(), Damage> {
    for (_, record) in batch.records() {
        state.groups.apply(record.value).map_err(|_| Damage::Groups)?;
    }
    if let Some(offset) = state.groups.checkpoint {
        let slot = state.slot_or_insert(GROUPS_PARTITION);
        let partition = state.partition_mut(slot);
        partition.start_offset = partition.start_offset.max(Offset(offset));
    }
    Ok(())
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Recovery<'_, B> {
    /// Carries out, once, the changes in sealed segments since the last checkpoint.
    pub(super) fn replay_groups(&mut self) -> Result<(), RecoveryError> {
        if std::mem::replace(&mut self.replayed, true) {
            return Ok(());
        }
        let Some(slot) = self.log.state.slot(GROUPS_PARTITION) else { return Ok(()) };
        let partition = self.log.state.partition(slot);
        let from = partition.start_offset;
        let parts: Vec<SealedPart> =
            partition.index.sealed.iter().filter(|part| part.end_offset > from).copied().collect();
        for part in parts {
            let rows = self.piece(part.segment, u64::from(part.runs_at), part.runs as usize * RAW_RUN_LEN)?;
            for row in rows.chunks_exact(RAW_RUN_LEN) {
                let run = read_run(row).filter(|run| self.is_plausible(run));
                let run = run.ok_or_else(|| self.damaged(&part, part.runs_at, Damage::Footer))?;
                if run.end_offset() > from {
                    self.replay_run(&part, &run, from)?;
                }
            }
        }
        Ok(())
    }

    fn is_plausible(&self, run: &Run) -> bool {
        run.len > 0
            && run.len <= MAX_STORED_BATCH_LEN.max(MAX_RUN_LEN)
            && u64::from(run.position) + u64::from(run.len) <= self.log.identity.segment_len
    }

    fn damaged(&self, part: &SealedPart, position: u32, damage: Damage) -> RecoveryError {
        let shard = self.log.identity.shard;
        let (segment, position) = (part.segment, u64::from(position));
        RecoveryError::Acknowledged { shard, segment, position, index: 0, damage }
    }

    fn replay_run(&mut self, part: &SealedPart, run: &Run, from: Offset) -> Result<(), RecoveryError> {
        let bytes = self.piece(part.segment, u64::from(run.position), run.len as usize)?;
        let (mut rest, mut next) = (&bytes[..], run.base_offset);
        while !rest.is_empty() {
            let batch = BatchView::parse_unchecked_records(rest, MAX_STORED_BATCH_LEN);
            let batch = batch.map_err(|_| self.damaged(part, run.position, Damage::Groups))?;
            let header = batch.header();
            if header.partition() != GROUPS_PARTITION || header.base_offset() != next {
                return Err(self.damaged(part, run.position, Damage::Groups));
            }
            next = header.next_offset();
            rest = &rest[batch.as_bytes().len()..];
            if next > from {
                let applied = apply_changes(&mut self.log.state, &batch);
                applied.map_err(|damage| self.damaged(part, run.position, damage))?;
            }
        }
        Ok(())
    }

    /// A copy of `len` bytes of a segment.
    fn piece(&mut self, segment: SegmentSeq, position: u64, len: usize) -> Result<Vec<u8>, RecoveryError> {
        let mut piece = Vec::with_capacity(len);
        while piece.len() < len {
            let at = position + piece.len() as u64;
            let skip = (at % BLOCK_LEN as u64) as usize;
            let bytes = &self.bytes(segment, at - skip as u64, BLOCK_LEN)?[skip..];
            piece.extend_from_slice(&bytes[..bytes.len().min(len - piece.len())]);
        }
        Ok(piece)
    }
}
