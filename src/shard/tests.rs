//! A shard on a disk in memory whose answers the test gives by hand.

mod damage;
mod full_disk;
mod groups;
mod reading;
mod topics;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use ringbolt_wire::message::{ErrorResponse, Fetch, FetchPartition, ProduceAck};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence, ShardId, TopicId,
};

use super::action::{Action, FatalError, Reply, WriteToken};
use super::event::{DiskFault, Event, Payload, ReplyTo, ShardRequest};
use super::{Shard, ShardConfig};
use crate::buffer::{Buffer, BufferPool};
use crate::catalog::{Catalog, CatalogUpdate};
use crate::limits::{BLOCK_LEN, CHUNK_LEN, MIN_SEGMENT_LEN};
use crate::log::commit::COMMIT_HEADER_LEN;
use crate::log::extent::Extent;
use crate::log::recovery::{LogIdentity, RecoveredLog, RecoveryError, SegmentReader, recover};
use crate::log::segment::FIRST_COMMIT;
use crate::log::{LogId, SegmentSeq};
use crate::time::Now;

#[derive(Debug)]
struct Vector(Vec<u8>);

impl AsRef<[u8]> for Vector {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Vector {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Buffer for Vector {
    fn split_off(&mut self, at: usize) -> Self {
        Vector(self.0.split_off(at))
    }
}

/// Memory without end, unless the test says that there is none.
#[derive(Clone, Default)]
struct Endless {
    is_dry: Arc<AtomicBool>,
}

impl BufferPool for Endless {
    type Buffer = Vector;

    fn take(&mut self) -> Option<Vector> {
        (self.available() > 0).then(|| Vector(vec![0xaa; CHUNK_LEN]))
    }

    fn available(&self) -> usize {
        usize::from(!self.is_dry.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Disk(BTreeMap<SegmentSeq, Vec<u8>>);

impl SegmentReader for Disk {
    fn read(&self, segment: SegmentSeq, position: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        let from = position as usize;
        into.copy_from_slice(&self.0[&segment][from..from + into.len()]);
        Ok(())
    }
}

struct PendingWrite {
    token: WriteToken,
    segment: SegmentSeq,
    position: u64,
    data: Bytes,
}

struct Rig {
    shard: Shard<Endless>,
    disk: Disk,
    now: Now,
    pending: VecDeque<PendingWrite>,
    replies: Vec<(u64, Reply)>,
    stopped: Option<FatalError>,
    /// Writes are carried out at once.
    auto: bool,
    disk_full: bool,
    /// Files for segments take their time: that of one, meanwhile.
    slow_file: Option<Option<SegmentSeq>>,
    segment_len: u64,
    /// What the next reads end with instead.
    read_fault: Option<i32>,
    correlation: u64,
    /// Changes to the catalog that the other shards are told of.
    published: Vec<CatalogUpdate>,
    pool: Endless,
}

const PARTITION: PartitionId = PartitionId::new(TopicId(1), 0);

fn identity(term: u64) -> LogIdentity {
    LogIdentity { log_id: LogId([3; 16]), shard: ShardId(0), segment_len: MIN_SEGMENT_LEN, term }
}

fn config() -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shards: 1,
        commits_in_flight: 8,
        commit_delay_us: 0,
        retention_bytes: None,
        retention_us: None,
        tail_cache_bytes: 64 << 10,
        page_cache_bytes: 4 << 20,
        max_delayed: 100_000,
        max_open: 1_000_000,
        seed: 1,
    }
}

fn fault(errno: i32) -> DiskFault {
    DiskFault { operation: "write", errno, text: "as the test wants it".to_owned() }
}

impl Rig {
    fn new() -> Rig {
        Rig::with(config())
    }

    /// An empty log with the topic `t`.
    fn with(config: ShardConfig) -> Rig {
        Rig::with_segments(config, MIN_SEGMENT_LEN)
    }

    fn with_segments(config: ShardConfig, len: u64) -> Rig {
        let identity = LogIdentity { segment_len: len, ..identity(1) };
        let mut rig = Rig::start_as(identity, config, Disk::default()).expect("an empty log");
        rig.request(ShardRequest::CreateTopic { name: "t".to_owned(), partitions: 1 });
        assert!(matches!(rig.replies.pop(), Some((_, Reply::TopicCreated(_)))));
        rig
    }

    fn start(disk: Disk, term: u64) -> Result<Rig, RecoveryError> {
        Rig::start_with(config(), disk, term)
    }

    fn start_with(config: ShardConfig, disk: Disk, term: u64) -> Result<Rig, RecoveryError> {
        Rig::start_as(identity(term), config, disk)
    }

    fn start_as(identity: LogIdentity, config: ShardConfig, disk: Disk) -> Result<Rig, RecoveryError> {
        let LogIdentity { segment_len, term, .. } = identity;
        let segments: Vec<_> = disk.0.keys().copied().collect();
        let mut pool = Endless::default();
        // Retention may have taken the first ones.
        let extent = segments.first().and_then(|first| Extent::new(*first, *first)).unwrap_or(Extent::EMPTY);
        let log = recover(identity, extent, &segments, &disk, &mut pool)?;
        let catalog: Catalog = log.state.catalog.clone();
        let now = Now { mono_us: 1, wall_us: 1_000_000 * term };
        let mut rig = Rig {
            shard: Shard::new(config, log, &catalog, pool.clone(), now),
            disk,
            segment_len,
            now,
            pending: VecDeque::new(),
            replies: Vec::new(),
            stopped: None,
            auto: true,
            disk_full: false,
            slow_file: None,
            read_fault: None,
            correlation: 0,
            published: Vec::new(),
            pool,
        };
        rig.run();
        Ok(rig)
    }

    fn request(&mut self, request: ShardRequest<'_, Vector>) -> u64 {
        self.correlation += 1;
        let from = ReplyTo { core: 0, session: 1, correlation: self.correlation };
        self.shard.handle(Event::Request { from, request }, self.now);
        self.run();
        self.correlation
    }

    fn produce(&mut self, sequence: u64, value: &[u8]) -> u64 {
        self.produce_to(PARTITION, ProducerId(9), sequence, value)
    }

    fn produce_to(&mut self, partition: PartitionId, id: ProducerId, sequence: u64, value: &[u8]) -> u64 {
        let mut batch = BatchBuilder::new();
        batch.push(7, None, value, &[]);
        let batch = batch.finish(partition, id, Epoch(0), Sequence(sequence));
        self.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 })
    }

    /// A batch that was received straight into aligned memory.
    fn produce_direct(&mut self, sequence: u64, value: &[u8]) -> u64 {
        let mut batch = BatchBuilder::new();
        batch.push(7, None, value, &[]);
        let batch = batch.finish(PARTITION, ProducerId(9), Epoch(0), Sequence(sequence));
        let mut buffer = Vector(vec![0; BLOCK_LEN + batch.len().next_multiple_of(BLOCK_LEN)]);
        buffer.0[BLOCK_LEN..][..batch.len()].copy_from_slice(&batch);
        self.request(ShardRequest::Produce {
            payload: Payload::Aligned { buffer, len: batch.len() },
            min_copies: 0,
        })
    }

    fn fetch(&mut self, offset: u64, max_wait_ms: u32) -> u64 {
        let part = FetchPartition { partition: PARTITION, offset: Offset(offset), max_bytes: 1 << 20 };
        let fetch = Fetch { max_wait_ms, min_bytes: 1, max_bytes: 1 << 20, partitions: vec![part] };
        self.request(ShardRequest::Fetch(fetch))
    }

    fn run(&mut self) {
        while let Some(action) = self.shard.poll_action(self.now) {
            match action {
                Action::Reply { to, reply } => self.replies.push((to.correlation, reply)),
                Action::Write { token, segment, position, data } => {
                    self.pending.push_back(PendingWrite { token, segment, position, data });
                    if self.auto {
                        self.complete(0, Ok(()));
                    }
                }
                Action::Read { token, segment, position, mut buffer } => {
                    self.disk.read(segment, position, buffer.as_mut()).expect("memory can be read");
                    let result = self.read_fault.map_or(Ok(buffer), |errno| Err(fault(errno)));
                    self.shard.handle(Event::Read { token, result }, self.now);
                }
                Action::PrepareSegment { segment } if self.slow_file.is_some() => {
                    self.slow_file = Some(Some(segment));
                }
                Action::PrepareSegment { segment } => self.prepare(segment),
                Action::RecycleSegment { segment } => {
                    self.disk.0.remove(&segment);
                }
                Action::Stop(error) => self.stopped = Some(error),
                Action::PublishCatalog(update) => self.published.push(update),
                Action::CatalogApplied { shard: shard @ ShardId(0), version } => {
                    self.shard.handle(Event::CatalogApplied { shard, version }, self.now);
                }
                other => panic!("not expected here: {other:?}"),
            }
        }
    }

    fn prepare(&mut self, segment: SegmentSeq) {
        let result = if self.disk_full { Err(fault(28)) } else { Ok(()) };
        if result.is_ok() {
            self.disk.0.insert(segment, vec![0; self.segment_len as usize]);
        }
        self.shard.handle(Event::SegmentPrepared { segment, result }, self.now);
    }

    fn complete(&mut self, which: usize, result: Result<(), DiskFault>) {
        let write = self.pending.remove(which).expect("a write is pending");
        if result.is_ok() {
            let file = self.disk.0.get_mut(&write.segment).expect("prepared");
            file[write.position as usize..][..write.data.len()].copy_from_slice(&write.data);
        }
        self.shard.handle(Event::Written { token: write.token, result }, self.now);
        if !self.auto {
            self.run();
        }
    }

    fn wait(&mut self, us: u64) {
        self.now.mono_us += us;
        self.now.wall_us += us;
        self.run();
    }

    fn acks(&mut self) -> Vec<(u64, ProduceAck)> {
        std::mem::take(&mut self.replies)
            .into_iter()
            .map(|(to, reply)| match reply {
                Reply::Produced(ack) => (to, ack),
                other => panic!("not an acknowledgement: {other:?}"),
            })
            .collect()
    }

    fn error(&mut self) -> ErrorResponse {
        match self.replies.pop() {
            Some((_, Reply::Error(error))) => error,
            other => panic!("not a refusal: {other:?}"),
        }
    }

    fn fetched(&mut self) -> (u16, usize, u64) {
        match self.replies.pop() {
            Some((_, Reply::Fetched { partitions, payload })) => {
                let len = payload.iter().map(Bytes::len).sum();
                assert_eq!(partitions[0].payload_len as usize, len);
                (partitions[0].status, len, partitions[0].end_offset.0)
            }
            other => panic!("not fetched: {other:?}"),
        }
    }
}

#[test]
fn acknowledgements_leave_for_the_durable_prefix_only() {
    let mut rig = Rig::new();
    rig.auto = false;
    let first = rig.produce(0, b"a");
    let second = rig.produce(1, b"b");
    assert_eq!((rig.pending.len(), rig.replies.len()), (2, 0));
    rig.complete(1, Ok(()));
    assert!(rig.replies.is_empty(), "the commit before it is not durable");
    rig.complete(0, Ok(()));
    let acks = rig.acks();
    assert_eq!(acks.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [first, second]);
    assert_eq!(acks.iter().map(|(_, ack)| ack.base_offset.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn small_batches_gather_while_a_quarter_of_the_writes_are_in_flight_and_large_ones_use_all() {
    let mut rig = Rig::new();
    rig.auto = false;
    for sequence in 0..5 {
        rig.produce(sequence, b"small");
    }
    assert_eq!(rig.pending.len(), 2, "a quarter of the writes, and the rest gathers");
    for sequence in 5..12 {
        rig.produce_direct(sequence, &[7; 16 << 10]);
    }
    assert_eq!(rig.pending.len(), 8, "a large batch has nothing to gather");
    for _ in 0..10 {
        rig.complete(0, Ok(()));
    }
    assert_eq!(
        rig.acks().iter().map(|(_, ack)| ack.base_offset.0).collect::<Vec<_>>(),
        (0..12).collect::<Vec<_>>()
    );
    assert!(rig.pending.is_empty(), "three small batches shared a commit");
}

#[test]
fn a_failed_write_stops_the_shard_and_nothing_is_answered_any_more() {
    let mut rig = Rig::new();
    rig.auto = false;
    rig.produce(0, b"a");
    rig.produce(1, b"b");
    rig.complete(0, Err(fault(5)));
    assert!(matches!(&rig.stopped, Some(FatalError::Write { fault, .. }) if fault.errno == 5));
    rig.complete(0, Ok(()));
    rig.fetch(0, 0);
    assert!(rig.replies.is_empty());
    assert!(rig.shard.is_drained());
}

#[test]
fn a_retry_of_a_batch_in_flight_is_answered_once_that_is_durable() {
    let mut rig = Rig::new();
    rig.auto = false;
    rig.produce(0, b"a");
    let retry = rig.produce(0, b"a");
    assert!(rig.replies.is_empty());
    rig.complete(0, Ok(()));
    let acks = rig.acks();
    assert_eq!(acks.len(), 2);
    assert_eq!((acks[1].0, acks[1].1.duplicate, acks[1].1.base_offset), (retry, true, Offset(0)));
    rig.produce(0, b"a");
    let again = rig.acks();
    assert_eq!((again[0].1.duplicate, again[0].1.base_offset), (true, Offset(0)), "nothing is in flight");
}

/// Position of the commit after the topic's, where the first batch lies.
fn first_batch_commit() -> usize {
    FIRST_COMMIT as usize + BLOCK_LEN
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    rig.disk.0.get_mut(&SegmentSeq(0)).unwrap()[first_batch_commit() + 200] ^= 1;
    let mut rig = Rig::start(rig.disk, 2).expect("nothing says that it was acknowledged");
    rig.produce(0, b"b");
    assert_eq!(rig.acks()[0].1.base_offset, Offset(0));
}

#[test]
fn damage_to_an_acknowledged_commit_is_refused_with_its_place() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    rig.acks();
    rig.wait(100_000);
    assert!(!rig.shard.commits.has_unrecorded_durable(), "its durability is on record after 100 ms of quiet");
    let at = first_batch_commit();
    for offset in [0, 40, 130, 200] {
        let mut disk = Disk(rig.disk.0.clone());
        disk.0.get_mut(&SegmentSeq(0)).unwrap()[at + offset] ^= 1;
        match Rig::start(disk, 2).err() {
            Some(RecoveryError::Acknowledged { segment, position, .. }) => {
                assert_eq!((segment, position), (SegmentSeq(0), at as u64));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// As many writes are in flight as may be, and as many commits wait behind them.
/// Those say of the first ones that they are durable, if they were when they were
/// written: otherwise damage to the first would cut them all.
#[test]
fn commits_that_waited_for_room_in_flight_bear_witness_to_those_before_them() {
    let mut rig = Rig::new();
    rig.auto = false;
    for sequence in 0..16 {
        rig.produce_direct(sequence, &[7; 8 << 10]);
    }
    assert_eq!((rig.pending.len(), rig.shard.commits.sealed_len()), (8, 8));
    for _ in 0..8 {
        rig.complete(0, Ok(()));
    }
    assert_eq!(rig.acks().len(), 8);
    let PendingWrite { segment, position, data, .. } = rig.pending.pop_back().expect("the last one");
    let file = rig.disk.0.get_mut(&segment).unwrap();
    file[position as usize..][..data.len()].copy_from_slice(&data);
    file[first_batch_commit() + 40] ^= 1;
    let error = Rig::start(rig.disk, 2).err();
    assert!(matches!(error, Some(RecoveryError::Acknowledged { .. })), "{error:?}");
}

/// The broker died right after it had acknowledged its last commit. Once it has
/// started again, records that were readable for months must not pass for torn.
#[test]
fn the_last_commit_before_a_crash_is_put_on_record_after_the_start() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    assert_eq!(rig.acks().len(), 1);
    let mut rig = Rig::start(rig.disk, 2).expect("a good log");
    rig.wait(100_000);
    let at = first_batch_commit();
    rig.disk.0.get_mut(&SegmentSeq(0)).unwrap()[at + 200] ^= 1;
    let error = Rig::start(rig.disk, 3).err();
    assert!(matches!(error, Some(RecoveryError::Acknowledged { .. })), "{error:?}");
}

#[test]
fn starting_again_and_again_without_work_writes_nothing() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    rig.wait(100_000);
    let before = rig.disk.0.clone();
    for term in 2..5 {
        rig = Rig::start(rig.disk, term).expect("a good log");
        rig.wait(100_000);
    }
    assert!(rig.disk.0 == before, "the log has grown");
}

fn recovered(disk: &Disk) -> RecoveredLog {
    let segments: Vec<_> = disk.0.keys().copied().collect();
    recover(identity(2), Extent::EMPTY, &segments, disk, &mut Endless::default()).expect("a good log")
}

/// A batch's count is damaged downwards, and the reader wants a record at its
/// end: the batch seems to end before it, and there seems to be nothing.
/// One flipped bit in a footer asks for as much memory as a segment has.
#[test]
fn a_run_in_a_footer_that_is_longer_than_any_is_corrupt_data() {
    let mut rig = Rig::new();
    while rig.shard.segments.open.expect("it is open").segment < SegmentSeq(2) {
        rig.produce_to(PARTITION, ProducerId::NONE, 0, &[0; 1_000]);
    }
    let mut rig = Rig::start(rig.disk, 2).expect("a good log");
    rig.replies.clear();
    let slot = rig.shard.state.slot(PARTITION).expect("it is there");
    let part = rig.shard.state.partition(slot).index.sealed[0];
    let file = rig.disk.0.get_mut(&SegmentSeq(0)).unwrap();
    file[part.runs_at as usize + 22] ^= 0x20; // the third byte of its length
    rig.fetch(0, 1000);
    assert_eq!(rig.fetched().0, ErrorCode::CorruptData as u16);
    assert!(rig.shard.counters().page_reads <= 2, "only the footer is read");
}

/// A topic is deleted. What recovery still knew of it would be in the next
/// footer that recovery makes, and the segment had left no room for it.
#[test]
fn a_deleted_topic_is_not_brought_back_by_an_older_footer() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    rig.request(ShardRequest::CreateTopic { name: "other".to_owned(), partitions: 1 });
    let Some((_, Reply::TopicCreated(other))) = rig.replies.pop() else { panic!("it is created") };
    let other = PartitionId::new(other.id, 0);
    let fill = |rig: &mut Rig, segment| {
        while rig.shard.segments.open.expect("it is open").segment < segment {
            rig.produce_to(other, ProducerId::NONE, 0, &[0; 100_000]);
        }
    };
    fill(&mut rig, SegmentSeq(1));
    assert!(recovered(&rig.disk).state.slot(PARTITION).is_some());
    rig.request(ShardRequest::DeleteTopic { name: "t".to_owned() });
    fill(&mut rig, SegmentSeq(2));
    assert!(recovered(&rig.disk).state.slot(PARTITION).is_none());
}

/// A shard that starts after a topic was deleted finds the topic's records in
/// its open segment. So will the next recovery, which may have to make that
/// segment's footer.
#[test]
fn the_open_segment_keeps_room_for_what_recovery_would_put_in_its_footer() {
    let mut rig = Rig::new();
    for sequence in 0..50 {
        rig.produce(sequence, &[0; 3000]);
    }
    let log = recovered(&rig.disk);
    let needed = log.state.footer_len_with_one_more();
    let mut deleted = log.state.catalog.clone();
    let plan = deleted.plan_delete("t").expect("it is there");
    deleted.apply(&plan);
    let shard = Shard::new(config(), log, &deleted, Endless::default(), rig.now);
    assert!(shard.state.slot(PARTITION).is_none());
    let kept = shard.state.footer_len_with_one_more() + 1024; // of the catalog's own row
    assert!(kept >= needed, "{kept} bytes are kept, {needed} may be needed");
}

#[test]
fn a_missing_segment_is_refused() {
    let mut rig = Rig::new();
    for sequence in 0..3000u64 {
        rig.produce(sequence, &[0; 3000]);
    }
    rig.disk.0.remove(&SegmentSeq(1));
    let error = Rig::start(rig.disk, 2).err();
    let one = SegmentSeq(1)..=SegmentSeq(1);
    assert!(
        matches!(&error, Some(RecoveryError::MissingSegments { missing, .. }) if *missing == one),
        "{error:?}"
    );
}

#[test]
fn a_demand_for_more_copies_than_there_are_is_refused() {
    let mut rig = Rig::new();
    let mut batch = BatchBuilder::new();
    batch.push(7, None, b"a", &[]);
    let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
    rig.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 2 });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::DurabilityUnavailable));
}

#[test]
fn stopping_puts_the_last_commit_on_record_and_then_is_drained() {
    let mut rig = Rig::new();
    rig.auto = false;
    rig.produce(0, b"a");
    rig.shard.handle(Event::Stop, rig.now);
    rig.run();
    assert!(!rig.shard.is_drained());
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    assert_eq!(rig.acks().len(), 1);
    assert!(rig.shard.is_drained());
    rig.produce(1, b"b");
    assert_eq!(rig.error().error_code(), Some(ErrorCode::ShuttingDown));
}
