//! Looking offsets up: the first one, the end, or by time.

use ringbolt_wire::message::{ErrorResponse, OffsetSpec};
use ringbolt_wire::{ErrorCode, PartitionId};

use super::Shard;
use super::action::Reply;
use super::event::ReplyTo;
use super::fetch::{Ask, Look};
use super::read::Unavailable;
use crate::buffer::BufferPool;
use crate::time::Now;

impl<P: BufferPool> Shard<P> {
    pub(super) fn offsets(&mut self, from: ReplyTo, id: PartitionId, spec: OffsetSpec, now: Now) {
        let slot = match self.slot(id) {
            Ok(slot) => slot,
            Err(code) => return self.refuse(from, code, format!("partition {id}")),
        };
        let partition = self.state.partition(slot);
        match spec {
            OffsetSpec::Earliest => self.reply(from, Reply::Offset(partition.start_offset)),
            OffsetSpec::End => self.reply(from, Reply::Offset(partition.durable_end)),
            OffsetSpec::Time(time_us) => self.ask(from, Ask::Time(id, time_us), u64::MAX, now),
        }
    }

    pub(super) fn look_at_time(&mut self, id: PartitionId, time_us: u64) -> Look {
        let slot = match self.slot(id) {
            Ok(slot) => slot,
            Err(code) => {
                let error = ErrorResponse::new(code, format!("partition {id}"));
                return Look::Answer(Reply::Error(error));
            }
        };
        let partition = self.state.partition(slot);
        let (start, end) = (partition.start_offset, partition.durable_end);
        // Commit times never fall in a log, so a segment whose last commit is
        // older holds nothing that is wanted.
        let sealed = &self.segments.sealed;
        let first = sealed.partition_point(|segment| segment.last_commit_time_us < time_us);
        let parts = &partition.index.sealed;
        let part = sealed.get(first).and_then(|first| {
            let at = parts.partition_point(|part| part.segment < first.segment);
            parts.get(at).copied()
        });
        let found = match part {
            Some(part) => match self.reader.find_run_by_time(&part, id, time_us) {
                Ok(Some(run)) => Some(run.base_offset),
                // The segment was written to after the partition's last record
                // in it: what follows that record is the answer.
                Ok(None) => Some(part.end_offset),
                Err(Unavailable::Pages(pages)) => return Look::Pages(pages),
                Err(Unavailable::Shortage) => {
                    return Look::Answer(Reply::Error(ErrorResponse::new(ErrorCode::Overloaded, "")));
                }
                Err(Unavailable::Corrupt { segment, position }) => {
                    self.report_corrupt(id, start, segment, position);
                    return Look::Answer(Reply::Error(ErrorResponse::new(ErrorCode::CorruptData, "")));
                }
            },
            None => partition.index.locate_time_in_memory(time_us).map(|run| run.base_offset),
        };
        let offset = found.unwrap_or(end).clamp(start, end);
        Look::Answer(Reply::Offset(offset))
    }
}
