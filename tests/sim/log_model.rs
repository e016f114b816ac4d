//! What a shard's log must say, learned from the writes that the shard asks for
//! and from when the disk ends them.
//!
//! Every commit that is written is judged at once: dense offsets, one batch for
//! each sequence of a producer, epochs and commit times that never fall, and
//! only batches that a client has sent. What is *durable* is the prefix of
//! commits whose writes have all ended; nothing else may be acknowledged or
//! shown.

use std::collections::BTreeMap;

use ringbolt::limits::BLOCK_LEN;
use ringbolt::log::commit::{COMMIT_HEADER_LEN, CommitHeader};
use ringbolt::log::{LogId, Lsn, SegmentSeq};
use ringbolt_wire::batch::BATCH_HEADER_LEN;
use ringbolt_wire::{BatchHeader, BatchView, PartitionId, ProducerId, crc32c};

use super::disk::Disk;
use super::records::{RecordFact, RecordFacts};

/// A batch in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFact {
    pub base_offset: u64,
    pub print: Print,
    pub commit_time_us: u64,
    pub segment: SegmentSeq,
    /// Position of its first byte in the segment.
    pub position: u64,
    /// Index of its commit.
    pub commit: u64,
}

impl BatchFact {
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.print.count)
    }
}

/// What tells a batch from every other: with the CRC of all its bytes but the
/// broker's, two batches are equal if their prints are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Print {
    pub partition: PartitionId,
    pub producer: u64,
    pub epoch: u32,
    pub sequence: u64,
    pub count: u32,
    pub len: u32,
    /// As its producer made it.
    pub crc: u32,
    /// CRC32C of the records alone.
    pub body: u32,
}

impl Print {
    pub fn of(batch: &BatchView<'_>) -> Print {
        Print { body: crc32c(&batch.as_bytes()[BATCH_HEADER_LEN..]), ..Print::of_header(batch.header()) }
    }

    fn of_header(header: &BatchHeader) -> Print {
        Print {
            partition: header.partition(),
            producer: header.producer_id().0,
            epoch: header.producer_epoch().0,
            sequence: header.base_sequence().0,
            count: header.count(),
            len: header.len() as u32,
            crc: header.crc(),
            body: 0,
        }
    }

    /// Of a batch that a client sends, which may be damaged on purpose.
    pub fn of_sent(bytes: &[u8]) -> Print {
        let header = BatchHeader::decode(bytes).expect("clients send batches with a header");
        let body = crc32c(&bytes[BATCH_HEADER_LEN..]);
        Print { body, ..Print::of_header(header) }
    }

    /// Sequence after its last record.
    pub fn next_sequence(&self) -> u64 {
        self.sequence + u64::from(self.count)
    }
}

/// One commit.
#[derive(Clone, Debug)]
pub struct CommitFact {
    pub index: u64,
    pub durable_index: u64,
    pub segment: SegmentSeq,
    pub position: u64,
    pub len: u64,
    pub commit_time_us: u64,
    payload: (usize, usize),
    header_crc: u32,
    payload_crc: u32,
    written: bool,
    token: u64,
    partitions: Vec<PartitionId>,
}

/// The records of one partition, oldest first.
#[derive(Clone, Default, Debug)]
pub struct PartitionFacts {
    pub batches: Vec<BatchFact>,
    /// Offset after the last one of `batches`, durable or not.
    pub end: u64,
    /// Offset after the last durable record.
    pub durable_end: u64,
    /// Batches of `batches` that are durable.
    durable: usize,
    /// Its records, if the model keeps account of them.
    pub records: RecordFacts,
}

impl PartitionFacts {
    /// The durable batch that starts at this offset.
    pub fn durable_at(&self, base_offset: u64) -> Option<&BatchFact> {
        let at = self.batches[..self.durable].partition_point(|batch| batch.base_offset < base_offset);
        self.batches[..self.durable].get(at).filter(|batch| batch.base_offset == base_offset)
    }

    /// The durable batches, oldest first.
    pub fn durable(&self) -> &[BatchFact] {
        &self.batches[..self.durable]
    }

    /// Offset at which the producer last began anew, under sequence 0 again,
    /// because it was forgotten together with its last record.
    pub fn anew(batches: &[BatchFact], producer: u64) -> Option<u64> {
        let mut own = batches.iter().filter(|batch| batch.print.producer == producer);
        own.next()?;
        own.rfind(|batch| batch.print.sequence == 0).map(|batch| batch.base_offset)
    }

    /// The producer's last batch among `batches`.
    pub fn last_of(batches: &[BatchFact], producer: u64) -> Option<&BatchFact> {
        batches.iter().rev().find(|batch| batch.print.producer == producer)
    }
}

/// One shard's log.
#[derive(Debug)]
pub struct LogModel {
    pub log: LogId,
    pub segment_len: u64,
    commits: Vec<CommitFact>,
    /// Commits of `commits` that are durable.
    durable: usize,
    pub partitions: BTreeMap<PartitionId, PartitionFacts>,
    /// Writes of a segment's first block, by token until they end.
    heads: BTreeMap<u64, SegmentSeq>,
    /// Segments whose first block is durable.
    headed: Vec<SegmentSeq>,
    /// Highest segment that may have been given up, in this life or an earlier
    /// one.
    pub given_up: Option<SegmentSeq>,
    /// Commit time of the last commit of each segment.
    last_times: BTreeMap<SegmentSeq, u64>,
    /// Whether to keep account of single records.
    pub keeps_records: bool,
}

impl LogModel {
    pub fn new(log: LogId, segment_len: u64) -> LogModel {
        LogModel {
            log,
            segment_len,
            commits: Vec::new(),
            durable: 0,
            partitions: BTreeMap::new(),
            heads: BTreeMap::new(),
            headed: Vec::new(),
            given_up: None,
            last_times: BTreeMap::new(),
            keeps_records: false,
        }
    }

    /// The shard asks for a write. Returns the batches of the commit that it
    /// is, if it is one.
    ///
    /// # Panics
    /// If the commit breaks a promise.
    pub fn submitted(
        &mut self,
        token: u64,
        segment: SegmentSeq,
        position: u64,
        data: &[u8],
    ) -> Vec<BatchFact> {
        if position == 0 {
            self.heads.insert(token, segment);
        }
        let lsn = Lsn::new(segment, position, self.segment_len);
        let Some(header) = CommitHeader::decode(data, &self.log, segment, lsn) else { return Vec::new() };
        assert_eq!(header.commit_len as usize, data.len(), "a commit's write is the commit");
        let last = self.commits.last();
        assert_eq!(header.index, last.map_or(1, |c| c.index + 1), "commit indexes are dense");
        assert!(header.commit_time_us >= last.map_or(0, |c| c.commit_time_us), "commit times never fall");
        assert!(
            header.durable_index <= self.durable_index(),
            "commit {} says that {} is durable, but only {} is",
            header.index,
            header.durable_index,
            self.durable_index(),
        );
        let mut facts = Vec::new();
        let mut partitions = Vec::new();
        let verified = header.for_each_batch(data, |at, batch| {
            let position = position + u64::from(at);
            let fact = self.append(&header, segment, position, &batch);
            facts.push(fact);
            partitions.push(fact.print.partition);
        });
        verified.expect("the shard wrote a commit that it would refuse to read");
        self.last_times.insert(segment, header.commit_time_us);
        let (start, end) =
            (header.payload_offset as usize, (header.payload_offset + header.payload_len) as usize);
        self.commits.push(CommitFact {
            index: header.index,
            durable_index: header.durable_index,
            segment,
            position,
            len: data.len() as u64,
            commit_time_us: header.commit_time_us,
            payload: (start, end),
            header_crc: crc32c(&data[..COMMIT_HEADER_LEN]),
            payload_crc: crc32c(&data[start..end]),
            written: false,
            token,
            partitions,
        });
        facts
    }

    fn append(
        &mut self,
        commit: &CommitHeader,
        segment: SegmentSeq,
        position: u64,
        batch: &BatchView<'_>,
    ) -> BatchFact {
        let print = Print::of(batch);
        let facts = self.partitions.entry(print.partition).or_default();
        let base_offset = batch.header().base_offset().0;
        assert_eq!(base_offset, facts.end, "partition {}: offsets are dense", print.partition);
        assert_eq!(batch.header().commit_time_us(), commit.commit_time_us, "a batch has its commit's time");
        if print.producer != ProducerId::NONE.0 {
            let last = PartitionFacts::last_of(&facts.batches, print.producer);
            let (next, epoch) = last.map_or((0, 0), |last| (last.print.next_sequence(), last.print.epoch));
            // A producer may be forgotten together with its last record.
            let forgotten = last.is_some_and(|last| self.given_up >= Some(last.segment));
            assert!(
                print.sequence == next || (forgotten && print.sequence == 0),
                "partition {}: producer {} has {next} sequences in the log, and now {} follows",
                print.partition,
                print.producer,
                print.sequence,
            );
            assert!(print.epoch >= epoch || forgotten, "a fenced producer's batch is appended: {print:?}");
        }
        let fact = BatchFact {
            base_offset,
            print,
            commit_time_us: commit.commit_time_us,
            segment,
            position,
            commit: commit.index,
        };
        facts.end = fact.end_offset();
        facts.batches.push(fact);
        if self.keeps_records && print.partition.topic.0 != 0 {
            batch.records().for_each(|(_, record)| facts.records.push(RecordFact::of(&record, segment)));
        }
        fact
    }

    /// The disk has ended a write, and its bytes are there for good.
    pub fn written(&mut self, token: u64) {
        if let Some(segment) = self.heads.remove(&token) {
            self.headed.push(segment);
        }
        let in_flight = &mut self.commits[self.durable..];
        if let Some(commit) = in_flight.iter_mut().find(|commit| commit.token == token) {
            commit.written = true;
        }
        while self.commits.get(self.durable).is_some_and(|commit| commit.written) {
            let commit = &self.commits[self.durable];
            for partition in &commit.partitions {
                let facts = self.partitions.get_mut(partition).expect("it was appended to");
                let batch = facts.batches[facts.durable];
                assert_eq!(batch.commit, commit.index);
                facts.durable += 1;
                facts.durable_end = batch.end_offset();
            }
            self.durable += 1;
        }
    }

    /// Index of the last durable commit.
    pub fn durable_index(&self) -> u64 {
        self.durable.checked_sub(1).map_or(0, |last| self.commits[last].index)
    }

    /// The commits that are durable, oldest first.
    pub fn durable_commits(&self) -> &[CommitFact] {
        &self.commits[..self.durable]
    }

    /// All commits that were submitted.
    pub fn commits(&self) -> &[CommitFact] {
        &self.commits
    }

    /// The segment of the last commit.
    pub fn last_segment(&self) -> Option<SegmentSeq> {
        self.commits.last().map(|commit| commit.segment)
    }

    /// Time passes: segments that make the log longer than `bytes`, or that
    /// ended before `since_us`, may be given up from now on.
    pub fn observe(&mut self, bytes: Option<u64>, since_us: Option<u64>) {
        let Some(last) = self.last_segment() else { return };
        loop {
            let next = self.given_up.map_or(SegmentSeq(0), SegmentSeq::next);
            // The segment behind the last commit may be open already.
            let longest = (last.0 + 2).saturating_sub(next.0) * self.segment_len;
            let too_long = bytes.is_some_and(|limit| longest > limit);
            let ended_us = self.last_times.get(&next).copied().unwrap_or(0);
            let too_old = since_us.is_some_and(|since| ended_us < since);
            if next > last || !(too_long || too_old) {
                return;
            }
            self.given_up = Some(next);
        }
    }

    /// The shard gives a segment's file up.
    pub fn recycled(&mut self, segment: SegmentSeq) {
        assert!(self.given_up >= Some(segment), "segment {segment} is given up, and is retained");
    }

    /// The machine went down. What the disk shows decides which of the commits
    /// that were in flight are there: those up to the first that is not whole.
    /// Returns how many were cut although they are whole.
    ///
    /// # Panics
    /// If a durable commit is not on the disk as it was written.
    pub fn crashed(&mut self, disk: &Disk) -> usize {
        let mut survive = 0;
        for commit in &self.commits {
            let whole = self.is_on(disk, commit);
            let was_durable = survive < self.durable;
            let gone = self.given_up >= Some(commit.segment);
            assert!(whole || gone || !was_durable, "durable commit {} was overwritten", commit.index);
            let headed = self.headed.contains(&commit.segment);
            if !was_durable && !(whole && (headed || head_is_on(disk, commit.segment, self))) {
                break;
            }
            survive += 1;
        }
        let beyond = self.commits[survive..].iter().filter(|commit| self.is_on(disk, commit)).count();
        self.truncate(survive);
        self.heads.clear();
        beyond
    }

    fn is_on(&self, disk: &Disk, commit: &CommitFact) -> bool {
        let Some(file) = disk.file(commit.segment) else { return false };
        let bytes = &file[commit.position as usize..][..commit.len as usize];
        crc32c(&bytes[..COMMIT_HEADER_LEN]) == commit.header_crc
            && crc32c(&bytes[commit.payload.0..commit.payload.1]) == commit.payload_crc
    }

    /// Forgets every commit but the first `survive`; those are durable.
    pub fn truncate(&mut self, survive: usize) {
        self.commits.truncate(survive);
        let last = self.commits.last().map_or(0, |commit| commit.index);
        for facts in self.partitions.values_mut() {
            let kept = facts.batches.partition_point(|batch| batch.commit <= last);
            facts.batches.truncate(kept);
            facts.end = facts.batches.last().map_or(0, BatchFact::end_offset);
            facts.records.truncate(facts.end);
            (facts.durable, facts.durable_end) = (kept, facts.end);
        }
        self.durable = survive;
        self.commits.iter_mut().for_each(|commit| commit.written = true);
    }

    /// First offset of the partition that is certainly not given up: its
    /// start may not be beyond it.
    pub fn latest_start(&self, partition: PartitionId) -> u64 {
        let Some(facts) = self.partitions.get(&partition) else { return 0 };
        let kept = facts.batches.iter().find(|batch| self.given_up < Some(batch.segment));
        kept.map_or(facts.end, |batch| batch.base_offset)
    }
}

fn head_is_on(disk: &Disk, segment: SegmentSeq, model: &LogModel) -> bool {
    let Some(file) = disk.file(segment) else { return false };
    ringbolt::log::segment::check_head(&file[..BLOCK_LEN], &model.log, segment, model.segment_len).is_ok()
}
