//! Stored bytes that are not what they were, or that were never acknowledged.

use ringbolt_wire::message::OffsetSpec;

use super::*;
use crate::log::index::{RAW_RUN_LEN, SealedPart};
use crate::log::verify::{LogReport, Tally, verify};

/// Offset and commit time (µs) of the records in the part that is damaged.
const RECORDS: u64 = 12;

pub(super) fn time_of(offset: u64) -> u64 {
    2_000_000 + 10 * offset
}

/// A log whose first segment holds so many records of [`PARTITION`], ten µs
/// apart, and is sealed. Nothing of it is in memory.
pub(super) fn sealed() -> (Rig, SealedPart) {
    let mut rig = Rig::new();
    for offset in 0..RECORDS {
        rig.wait(time_of(offset) - rig.now.wall_us);
        rig.produce_to(PARTITION, ProducerId::NONE, 0, &[offset as u8; 100]);
    }
    rig.request(ShardRequest::CreateTopic { name: "other".to_owned(), partitions: 1 });
    let Some((_, Reply::TopicCreated(other))) = rig.replies.pop() else { panic!("it is created") };
    rig.wait(1000);
    while rig.shard.segments.sealed.is_empty() {
        rig.produce_to(PartitionId::new(other.id, 0), ProducerId::NONE, 0, &[0; 500_000]);
    }
    rig.produce_to(PARTITION, ProducerId::NONE, 0, &[RECORDS as u8; 100]);
    let rig = Rig::start(rig.disk, 2).expect("a good log");
    let slot = rig.shard.state.slot(PARTITION).expect("it is there");
    let part = rig.shard.state.partition(slot).index.sealed[0];
    assert_eq!((part.runs, part.end_offset), (RECORDS as u32, Offset(RECORDS)));
    (rig, part)
}

/// The record at an offset, or the refusal.
fn read(rig: &mut Rig, offset: u64) -> Result<Vec<u8>, u16> {
    let part = FetchPartition { partition: PARTITION, offset: Offset(offset), max_bytes: 1 };
    rig.request(ShardRequest::Fetch(Fetch {
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: 1,
        partitions: vec![part],
    }));
    let Some((_, Reply::Fetched { partitions, payload })) = rig.replies.pop() else { panic!("not fetched") };
    if partitions[0].status != 0 {
        return Err(partitions[0].status);
    }
    let bytes: Vec<u8> = payload.iter().flat_map(|piece| piece.iter().copied()).collect();
    let batch = ringbolt_wire::BatchView::parse(&bytes, u32::MAX).expect("what is served is a batch");
    assert_eq!(batch.header().base_offset(), Offset(offset));
    Ok(batch.records().next().expect("one record").1.value.to_vec())
}

fn find(rig: &mut Rig, time_us: u64) -> Result<u64, u16> {
    rig.request(ShardRequest::Offsets { partition: PARTITION, spec: OffsetSpec::Time(time_us) });
    match rig.replies.pop() {
        Some((_, Reply::Offset(offset))) => Ok(offset.0),
        Some((_, Reply::Error(error))) => Err(error.code),
        other => panic!("{other:?}"),
    }
}

/// A footer's CRC is checked when the broker starts. What rots afterwards must
/// not send a reader past records without a word.
#[test]
fn no_flipped_bit_in_a_sealed_segments_runs_serves_or_hides_a_record_silently() {
    let (mut rig, part) = sealed();
    let corrupt = ErrorCode::CorruptData as u16;
    let (mut seen_by_offset, mut seen_by_time) = (0, 0);
    for bit in 0..part.runs as usize * RAW_RUN_LEN * 8 {
        let at = part.runs_at as usize + bit / 8;
        rig.disk.0.get_mut(&part.segment).unwrap()[at] ^= 1 << (bit % 8);
        rig.shard.forget_pages(part.segment);
        for offset in 0..RECORDS {
            match read(&mut rig, offset) {
                Ok(value) => assert_eq!(value, [offset as u8; 100], "bit {bit}"),
                Err(code) => {
                    assert_eq!(code, corrupt, "bit {bit}");
                    seen_by_offset += 1;
                }
            }
            for (time, found) in [(time_of(offset), offset), (time_of(offset) + 1, offset + 1)] {
                match find(&mut rig, time) {
                    Ok(offset) => assert_eq!(offset, found, "time {time}, bit {bit}"),
                    Err(code) => {
                        assert_eq!(code, corrupt, "bit {bit}");
                        seen_by_time += 1;
                    }
                }
            }
        }
        rig.disk.0.get_mut(&part.segment).unwrap()[at] ^= 1 << (bit % 8);
    }
    assert!(seen_by_offset > 1000 && seen_by_time > 1000, "{seen_by_offset} {seen_by_time}");
    rig.shard.forget_pages(part.segment);
    assert!((0..RECORDS).all(|offset| read(&mut rig, offset).is_ok()));
}

fn verified(disk: &Disk, term: u64) -> LogReport {
    let segments: Vec<_> = disk.0.keys().copied().collect();
    verify(identity(term), Extent::EMPTY, &segments, disk, &mut Endless::default(), |_, _, _| {}).unwrap()
}

/// Three batches were on their way at a crash, and the first was lost. The other
/// two are whole, and were acknowledged to nobody.
#[test]
fn what_lies_beyond_a_torn_end_is_no_record_and_once_it_was_cut_no_fault_either() {
    let mut rig = Rig::new();
    rig.auto = false;
    for sequence in 0..3 {
        rig.produce_direct(sequence, &[sequence as u8; 16_000]);
    }
    rig.complete(2, Ok(()));
    rig.complete(1, Ok(()));
    let report = verified(&rig.disk, 1);
    assert!(!report.is_damaged());
    let [fault] = &report.faults[..] else { panic!("{:?}", report.faults) };
    assert!(!fault.acknowledged && fault.position == first_batch_commit() as u64);
    let (log, beyond) = (report.segments[0].log, report.segments[0].beyond);
    assert_eq!((log.commits, log.records), (1, 1), "the making of the topic");
    assert_eq!((beyond.commits, beyond.records, report.segments[0].leftovers), (2, 2, 0));

    let mut rig = Rig::start(rig.disk, 2).expect("nothing was acknowledged");
    rig.produce_direct(0, &[9; 16_000]);
    let report = verified(&rig.disk, 2);
    assert_eq!((&report.faults[..], report.is_damaged()), (&[][..], false));
    let segment = &report.segments[0];
    // The start has put an empty commit where it cut, and the batch's own over the
    // first of the two.
    assert_eq!((segment.log.commits, segment.log.records), (3, 2));
    assert_eq!((segment.beyond, segment.leftovers), (Tally::default(), 1));

    rig.produce_direct(1, &[9; 16_000]);
    rig.produce_direct(2, &[9; 16_000]);
    let report = verified(&rig.disk, 2);
    assert_eq!((report.faults.len(), report.segments[0].leftovers), (0, 0), "they are overwritten");
    assert_eq!(report.segments[0].log.records, 4);
}

/// Damage in the middle of the log: what follows it is still part of the log.
#[test]
fn records_behind_a_damaged_place_count_when_a_later_commit_confirms_it() {
    let mut rig = Rig::new();
    for sequence in 0..5 {
        rig.produce_direct(sequence, &[sequence as u8; 16_000]);
    }
    rig.wait(100_000);
    rig.disk.0.get_mut(&SegmentSeq(0)).unwrap()[first_batch_commit()] ^= 1;
    let report = verified(&rig.disk, 1);
    assert!(report.is_damaged());
    let segment = &report.segments[0];
    assert_eq!((segment.log.records, segment.beyond, segment.leftovers), (5, Tally::default(), 0));
}
