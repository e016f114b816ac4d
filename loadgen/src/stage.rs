//! `loadgen stage`: puts a broker into a state that is worth measuring.

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use ringbolt_wire::batch::Directions;
use ringbolt_wire::message::{
    ConsumerAt, CreateGroup, Credit, GroupConfig, GroupInfo, GroupStart, LeaseRange, MAX_SETTLE_ITEMS,
    Receive, Settle, SettleItem, Verb,
};
use ringbolt_wire::{BatchBuilder, ConsumerId, Epoch, Offset, PartitionId, ProducerId, Sequence, ShardId};

use crate::admin::{Admin, resolve};
use crate::args::{AckedArgs, DelayedArgs, StageArgs, Staged};
use crate::error::Error;

/// Records of a batch.
const BATCH: u64 = 1_000;
/// The group that waits for delayed records.
const DELAYED: &str = "delayed";
/// How long it may take to find them.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who consumes.
const CONSUMER: ConsumerId = ConsumerId(1);

/// Makes what is asked for. Returns what there is then, in words.
///
/// # Errors
/// If the broker cannot be reached, refuses, or does something else than was asked.
pub fn stage(args: &StageArgs) -> Result<String, Error> {
    let addr = resolve(&args.addr)?;
    let mut stage = Stage { admin: Admin::connect(addr)?, topic: args.topic.clone() };
    match &args.what {
        Staged::Delayed(delayed) => stage.delayed(delayed),
        Staged::Acked(acked) => stage.acked(acked),
    }
}

struct Stage {
    admin: Admin,
    topic: String,
}

impl Stage {
    /// Records whose time has not come, and a group that waits for them.
    fn delayed(&mut self, args: &DelayedArgs) -> Result<String, Error> {
        let partition = self.partition()?;
        let end = self.admin.end(partition)?;
        let group = self.group(DELAYED, end)?;
        let now = SystemTime::UNIX_EPOCH.elapsed().map_err(|error| Error::Usage(error.to_string()))?;
        let begin_us = (now + args.delay).as_micros() as u64;
        let spread_us = args.spread.as_micros() as u64;
        let mut sent = 0;
        while sent < args.count {
            let mut batch = BatchBuilder::new();
            for i in sent..args.count.min(sent + BATCH) {
                let mut headers = Vec::new();
                let at_us =
                    begin_us + (u128::from(i) * u128::from(spread_us) / u128::from(args.count)) as u64;
                Directions { deliver_at_us: Some(at_us), ..Directions::default() }.put_headers(&mut headers);
                batch.push(now.as_micros() as u64, None, &i.to_le_bytes(), &headers);
            }
            sent += u64::from(batch.count());
            self.admin.produce(&batch.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0)))?;
        }
        let at = ConsumerAt { shard: self.shard()?, group: group.id, consumer: CONSUMER };
        self.wait_for_delayed(at, sent)?;
        Ok(format!("{sent} delayed records in topic {}, for group {DELAYED}", self.topic))
    }

    /// The group looks at records as long as a consumer asks for some.
    fn wait_for_delayed(&mut self, at: ConsumerAt, count: u64) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let credit = Credit { records: 1, bytes: 1 };
            self.admin.receive(Receive { at, credit, lease_ms: 0, max_wait_ms: 100 })?;
            let delayed = self.admin.describe_group(DELAYED)?.partitions[0].progress.delayed;
            if delayed >= count {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Run(format!("the group has found {delayed} of {count} delayed records")));
            }
        }
    }

    /// Groups that have completed every other record.
    fn acked(&mut self, args: &AckedArgs) -> Result<String, Error> {
        let partition = self.partition()?;
        let shard = self.shard()?;
        let (begin, wanted) = (self.admin.end(partition)?, 2 * args.ranges);
        let mut sent = 0;
        while sent < wanted {
            let mut batch = BatchBuilder::new();
            (sent..wanted.min(sent + BATCH)).for_each(|i| batch.push(0, None, &i.to_le_bytes(), &[]));
            sent += u64::from(batch.count());
            self.admin.produce(&batch.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0)))?;
        }
        for number in 0..args.groups {
            let group = self.group(&format!("staged-{number}"), begin)?;
            self.riddle(ConsumerAt { shard, group: group.id, consumer: CONSUMER }, begin..begin + wanted)?;
        }
        let ranges = u64::from(args.groups) * args.ranges;
        Ok(format!("{} groups of topic {} have {ranges} completed ranges", args.groups, self.topic))
    }

    /// Acknowledges every other record that a new group gets, the first not, and gives
    /// the others back.
    fn riddle(&mut self, at: ConsumerAt, offsets: Range<u64>) -> Result<(), Error> {
        let mut left = offsets.end - offsets.start;
        // What is given back could come again, so that is last.
        let mut open = Vec::new();
        while left > 0 {
            let credit = Credit { records: left, bytes: 1 << 20 };
            let delivery = self.admin.receive(Receive { at, credit, lease_ms: 0, max_wait_ms: 5_000 })?;
            let got: Vec<LeaseRange> = delivery.ranges.iter().flat_map(|range| each(range.lease)).collect();
            if got.is_empty() {
                return Err(Error::Run(format!("{left} records should come, and none did")));
            }
            left = left.saturating_sub(got.len() as u64);
            let (acked, others): (Vec<_>, Vec<_>) =
                got.into_iter().partition(|range| (range.base_offset.0 - offsets.start) % 2 == 1);
            open.extend(others);
            self.settle(at, &acked, Verb::Ack)?;
        }
        self.settle(at, &open, Verb::Release)
    }

    fn settle(&mut self, at: ConsumerAt, ranges: &[LeaseRange], verb: Verb) -> Result<(), Error> {
        for ranges in ranges.chunks(MAX_SETTLE_ITEMS) {
            let items = ranges.iter().map(|&range| SettleItem { range, verb: verb.clone() }).collect();
            self.admin.settle(Settle { at, credit: Credit::default(), confirm: true, items })?;
        }
        Ok(())
    }

    fn partition(&mut self) -> Result<PartitionId, Error> {
        Ok(PartitionId::new(self.admin.topic(&self.topic, Some(1))?.id, 0))
    }

    fn shard(&mut self) -> Result<ShardId, Error> {
        Ok(self.admin.describe_topic(&self.topic)?.partitions[0].shard)
    }

    fn group(&mut self, name: &str, begin: u64) -> Result<GroupInfo, Error> {
        let (name, start) = (name.to_owned(), GroupStart::Offset(Offset(begin)));
        let (topic, config) = (self.topic.clone(), GroupConfig { max_failures: 0, ..GroupConfig::default() });
        let create = CreateGroup { name, topic, start, or_find: false, config, dead_letter_topic: None };
        Ok(self.admin.create_group(create)?)
    }
}

/// A lease's records, one by one.
fn each(lease: LeaseRange) -> impl Iterator<Item = LeaseRange> {
    (lease.base_offset.0..lease.end().0).map(move |offset| LeaseRange {
        base_offset: Offset(offset),
        count: 1,
        ..lease
    })
}
