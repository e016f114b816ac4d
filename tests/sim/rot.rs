//! Bits that rot: damage done to a disk, and what must come of it.
//!
//! Damage to what was acknowledged is refused at the start or reported to the
//! reader, and never served. Damage beyond the log's end changes nothing.

use std::ops::RangeInclusive;

use ringbolt::log::commit::COMMIT_HEADER_LEN;
use ringbolt::log::recovery::RecoveryError;
use ringbolt::log::segment::Trailer;
use ringbolt::log::{LogId, SegmentSeq};
use ringbolt_wire::batch::BATCH_HEADER_LEN;

use super::harness::Simulation;
use super::log_model::{BatchFact, LogModel};
use super::rng::Rng;

/// What a flipped bit belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hit {
    /// The header of the commit with this index.
    CommitHeader(u64),
    /// The broker's fields of a batch in the commit with this index.
    Placement(u64),
    /// The rest of a batch in the commit with this index.
    Batch(u64),
    /// A segment's header, its footer, its trailer or what pads them.
    Segment,
    /// Behind the last commit.
    Beyond,
}

/// A bit that was flipped.
#[derive(Clone, Copy, Debug)]
pub struct Flip {
    pub shard: usize,
    pub segment: SegmentSeq,
    pub position: usize,
    pub hit: Hit,
}

/// How a start on a damaged disk went.
#[derive(Debug)]
pub enum Start {
    Refused(RecoveryError),
    /// It goes on without the damaged commit, which nothing says was
    /// acknowledged.
    Cut,
    Goes,
}

impl Simulation {
    /// Flips a bit of a shard's disk; `None` if there is nothing to hit yet.
    pub fn flip(&mut self, rng: &mut Rng) -> Option<Flip> {
        let shard = rng.below(self.nodes.len() as u64) as usize;
        let model = &self.checker.logs[shard];
        let files = self.nodes[shard].disk.segments();
        let retained =
            |batch: &&BatchFact| model.given_up < Some(batch.segment) && batch.print.partition.topic.0 != 0;
        let batches: Vec<BatchFact> =
            model.partitions.values().flat_map(|facts| facts.durable()).filter(retained).copied().collect();
        if batches.is_empty() || files.is_empty() {
            return None;
        }
        let batch = rng.pick(&batches);
        let commit = model.durable_commits().iter().find(|commit| commit.index == batch.commit)?;
        let at = batch.position as usize;
        let (segment, position, hit) = match rng.below(6) {
            0 => {
                let within = rng.below(COMMIT_HEADER_LEN as u64) as usize;
                (batch.segment, commit.position as usize + within, Hit::CommitHeader(commit.index))
            }
            1 => (batch.segment, at + rng.below(16) as usize, Hit::Placement(commit.index)),
            2 => {
                let within = rng.between(16, BATCH_HEADER_LEN as u64 - 1) as usize;
                (batch.segment, at + within, Hit::Batch(commit.index))
            }
            3 => {
                let within = rng.between(BATCH_HEADER_LEN as u64, u64::from(batch.print.len) - 1) as usize;
                (batch.segment, at + within, Hit::Batch(commit.index))
            }
            4 => {
                let segment = rng.pick(&files);
                let end = model.segment_len as usize;
                let footer = footer_of(self.nodes[shard].disk.file(segment)?, &model.log, segment, model);
                let place = match footer {
                    Some((start, len)) if rng.percent(60) => start + rng.below(len as u64) as usize,
                    _ if rng.percent(50) => rng.below(64) as usize,
                    _ => end - 4096 + rng.below(80) as usize,
                };
                (segment, place, Hit::Segment)
            }
            _ => {
                let last = model.durable_commits().last()?;
                let from = last.position + last.len;
                let place = rng.between(from, model.segment_len - 1) as usize;
                // What lies behind the last commit of a full segment is its footer.
                let full = files.iter().any(|file| *file > last.segment);
                (last.segment, place, if full { Hit::Segment } else { Hit::Beyond })
            }
        };
        let bit = rng.below(8) as u8;
        let flip = Flip { shard, segment, position, hit };
        self.trace.line(self.clock.now().mono_us, format_args!("FLIP of bit {bit}: {flip:?}"));
        self.nodes[shard].disk.file(segment)?;
        self.nodes[shard].disk.flip(segment, position, bit);
        self.checker.damaged = hit != Hit::Beyond;
        Some(flip)
    }

    /// Loses a segment with durable records that are retained, and perhaps all
    /// before or behind it; `None` if there is none.
    pub fn lose_segments(&mut self, rng: &mut Rng) -> Option<(usize, RangeInclusive<SegmentSeq>)> {
        let shard = rng.below(self.nodes.len() as u64) as usize;
        let model = &self.checker.logs[shard];
        let retained = model.durable_commits().iter().map(|commit| commit.segment);
        let retained: Vec<_> = retained.filter(|segment| model.given_up < Some(*segment)).collect();
        if retained.is_empty() {
            return None;
        }
        let (one, files) = (rng.pick(&retained), self.nodes[shard].disk.segments());
        let from = if rng.percent(50) { one } else { files[0] };
        let to = if rng.percent(50) { one } else { *files.last()? };
        let lost = files.into_iter().filter(|segment| (from..=to).contains(segment));
        lost.for_each(|segment| self.nodes[shard].disk.delete(segment));
        self.trace.line(self.clock.now().mono_us, format_args!("LOSS of {from} to {to} of s{shard}"));
        Some((shard, from..=to))
    }

    /// Starts on a disk on which a bit was flipped.
    ///
    /// # Panics
    /// If damage to what was acknowledged is cut as if it were not.
    pub fn boot_damaged(&mut self, flip: &Flip) -> Start {
        let expected = self.checker.logs[flip.shard].durable_index() + 1;
        if let Err(error) = self.boot() {
            assert_ne!(
                flip.hit,
                Hit::Beyond,
                "damage to what is not in the log keeps the broker from starting"
            );
            self.trace.line(self.clock.now().mono_us, format_args!("refused: {error}"));
            return Start::Refused(error);
        }
        if self.recovered_next[flip.shard] == expected { Start::Goes } else { Start::Cut }
    }

    /// Forgets the commits that recovery has cut for their damage, before the shard
    /// writes others in their place.
    ///
    /// # Panics
    /// If one was acknowledged, and another says so.
    pub fn forget_what_was_cut(&mut self) {
        for (model, &next) in self.checker.logs.iter_mut().zip(&self.recovered_next) {
            if next > model.durable_index() {
                continue;
            }
            let durable = model.durable_commits();
            let kept = durable.iter().take_while(|commit| commit.index < next).count();
            let witness = durable[kept + 1..].iter().find(|commit| commit.durable_index >= next);
            assert!(witness.is_none(), "commit {next} was acknowledged, as {witness:?} says, and is cut");
            model.truncate(kept);
            self.checker.topics.doubt();
        }
    }
}

/// Where a sealed segment's footer lies, and its length.
fn footer_of(file: &[u8], log: &LogId, segment: SegmentSeq, model: &LogModel) -> Option<(usize, usize)> {
    let position = Trailer::position(model.segment_len) as usize;
    let trailer = Trailer::decode(&file[position..], log, segment, model.segment_len)?;
    Some((trailer.end as usize, trailer.footer_len as usize))
}
