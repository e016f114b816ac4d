//! A shard over a disk that is plain memory and answers at once: what is left
//! is the cost of the shard's own code.

use std::collections::HashMap;

use ringbolt::catalog::Catalog;
use ringbolt::io::pool::Pool;
use ringbolt::log::extent::Extent;
use ringbolt::log::recovery::{LogIdentity, RecoveredLog, SegmentReader, recover};
use ringbolt::log::{LogId, SegmentSeq};
use ringbolt::shard::action::{Action, Reply};
use ringbolt::shard::event::{DiskFault, Event, Payload, ReplyTo, ShardRequest};
use ringbolt::shard::{Shard, ShardConfig};
use ringbolt::time::Now;
use ringbolt_wire::{BatchBuilder, Epoch, PartitionId, ProducerId, Sequence, ShardId, TopicId};

/// Length of the segments here.
pub const SEGMENT_LEN: u64 = 64 << 20;

/// The broker's own pool, touched once so that no page fault is measured.
pub fn pool() -> Pool {
    let pool = Pool::new(64 << 20).expect("64 MiB");
    pool.prefault();
    pool
}

/// Segments in memory.
#[derive(Default)]
pub struct Memory(HashMap<SegmentSeq, Vec<u8>>);

impl SegmentReader for Memory {
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        let from = position as usize;
        into.copy_from_slice(&self.0[&segment][from..from + into.len()]);
        Ok(())
    }
}

/// A shard and its memory.
pub struct Rig {
    shard: Shard<Pool>,
    /// What was written, if that is kept.
    pub disk: Memory,
    keep: bool,
    now: Now,
    /// Acknowledgements so far.
    pub acked: u64,
    correlation: u64,
}

/// Who the log of the rig is.
pub fn identity(term: u64) -> LogIdentity {
    LogIdentity { log_id: LogId([7; 16]), shard: ShardId(0), segment_len: SEGMENT_LEN, term }
}

fn config() -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shards: 1,
        commits_in_flight: 2,
        commit_delay_us: 0,
        retention_bytes: None,
        retention_us: None,
        tail_cache_bytes: 8 << 20,
        page_cache_bytes: 4 << 20,
        max_delayed: 100_000,
        max_open: 100_000,
        seed: 1,
    }
}

impl Rig {
    /// A new log with one topic of `partitions`. What is written is forgotten
    /// unless `keep` is set.
    pub fn new(partitions: u32, keep: bool) -> Rig {
        let log: RecoveredLog =
            recover(identity(1), Extent::EMPTY, &[], &Memory::default(), &mut pool()).expect("an empty log");
        let now = Now { mono_us: 1, wall_us: 1 };
        let shard = Shard::new(config(), log, &Catalog::default(), pool(), now);
        let mut rig = Rig { shard, disk: Memory::default(), keep, now, acked: 0, correlation: 0 };
        rig.run();
        let from = rig.origin();
        let request = ShardRequest::CreateTopic { name: "bench".to_owned(), partitions };
        rig.shard.handle(Event::Request { from, request }, rig.now);
        rig.run();
        rig
    }

    fn origin(&mut self) -> ReplyTo {
        self.correlation += 1;
        ReplyTo { core: 0, session: 1, correlation: self.correlation }
    }

    /// Hands in a batch; it is written by the next [`run`](Self::run).
    pub fn produce(&mut self, batch: &[u8]) {
        let from = self.origin();
        let request = ShardRequest::Produce { payload: Payload::Borrowed(batch), min_copies: 0 };
        self.shard.handle(Event::Request { from, request }, self.now);
    }

    /// Carries out all that the shard asks for.
    pub fn run(&mut self) {
        self.now.mono_us += 10;
        self.now.wall_us += 10;
        while let Some(action) = self.shard.poll_action(self.now) {
            match action {
                Action::Reply { reply: Reply::Produced(_), .. } => self.acked += 1,
                Action::Write { token, segment, position, data } => {
                    if let Some(file) = self.disk.0.get_mut(&segment) {
                        file[position as usize..position as usize + data.len()].copy_from_slice(&data);
                    }
                    self.shard.handle(Event::Written { token, result: Ok(()) }, self.now);
                }
                Action::PrepareSegment { segment } => {
                    if self.keep {
                        self.disk.0.insert(segment, vec![0; SEGMENT_LEN as usize]);
                    }
                    self.shard.handle(Event::SegmentPrepared { segment, result: Ok(()) }, self.now);
                }
                Action::Reply { reply: Reply::Error(error), .. } => panic!("refused: {error}"),
                Action::Stop(error) => panic!("stopped: {error}"),
                _ => {}
            }
        }
    }

    /// The segments that were written, ascending.
    pub fn segments(&self) -> Vec<SegmentSeq> {
        let mut segments: Vec<_> = self.disk.0.keys().copied().collect();
        segments.sort();
        segments
    }
}

/// A batch of `count` records of `len` bytes for a partition of the rig's topic.
pub fn batch(partition: u32, producer: u64, base: u64, count: u32, len: usize) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    let value = vec![0x5a; len];
    for _ in 0..count {
        batch.push(1_700_000_000_000_000, None, &value, &[]);
    }
    let partition = PartitionId::new(TopicId(1), partition);
    batch.finish(partition, ProducerId(producer), Epoch(0), Sequence(base))
}
