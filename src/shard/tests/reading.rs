//! What a shard gives to readers.

use super::*;
use crate::limits::MAX_LOOKS_PER_TURN;

#[test]
fn a_record_is_invisible_until_it_is_durable_and_wakes_who_waits_for_it() {
    let mut rig = Rig::new();
    rig.auto = false;
    rig.produce(0, b"a");
    rig.fetch(0, 0);
    assert_eq!(rig.fetched(), (0, 0, 0));
    rig.fetch(1, 1000);
    assert_eq!(rig.fetched().0, ErrorCode::OffsetOutOfRange as u16);
    let waiting = rig.fetch(0, 1000);
    assert!(rig.replies.is_empty());
    rig.complete(0, Ok(()));
    assert_eq!(rig.replies.last().map(|(to, _)| *to), Some(waiting));
    let (status, len, end) = rig.fetched();
    assert_eq!((status, end), (0, 1));
    assert!(len > 0);
}

#[test]
fn a_long_poll_ends_empty_when_its_time_is_over() {
    let mut rig = Rig::new();
    rig.fetch(0, 50);
    rig.wait(49_000);
    assert!(rig.replies.is_empty());
    assert!(rig.shard.next_deadline().is_some_and(|at| at <= rig.now.mono_us + 1000));
    rig.wait(1_000);
    assert_eq!(rig.fetched(), (0, 0, 0));
}

#[test]
fn long_polls_that_have_read_what_there_is_leave_the_disk_to_others() {
    let mut rig = Rig::new();
    rig.produce(0, b"a");
    let mut rig = Rig::start(std::mem::take(&mut rig.disk), 2).unwrap();
    let part = FetchPartition { partition: PARTITION, offset: Offset(0), max_bytes: 1 << 20 };
    let more = Fetch { max_wait_ms: 60_000, min_bytes: 1 << 19, max_bytes: 1 << 20, partitions: vec![part] };
    for _ in 0..=rig.shard.reader.pages.max_readers() {
        rig.request(ShardRequest::Fetch(more.clone()));
    }
    assert!(rig.replies.is_empty(), "they wait for more than there is");
    assert!(rig.shard.reader.pages.has_droppable(), "they pin no memory meanwhile");
    rig.fetch(0, 60_000);
    let (status, len, end) = rig.fetched();
    assert!(status == 0 && len > 0 && end == 1);
}

#[test]
fn everything_is_read_back_through_tail_open_segment_and_footers_and_after_a_restart() {
    let mut rig = Rig::new();
    for sequence in 0..3000u64 {
        rig.produce(sequence, &[sequence as u8; 3000]);
    }
    assert_eq!(rig.acks().len(), 3000);
    assert!(rig.shard.segments.sealed.len() >= 2);
    let check = |rig: &mut Rig| {
        let mut offset = 0;
        while offset < 3000 {
            rig.fetch(offset, 0);
            let Some((_, Reply::Fetched { partitions, payload })) = rig.replies.pop() else { panic!() };
            assert_eq!(partitions[0].status, 0);
            let bytes: Vec<u8> = payload.iter().flat_map(|piece| piece.iter().copied()).collect();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let batch =
                    ringbolt_wire::BatchView::parse(rest, u32::MAX).expect("served batches are valid");
                assert_eq!(batch.header().base_offset(), Offset(offset));
                let (_, record) = batch.records().next().expect("one record");
                assert_eq!(record.value, [offset as u8; 3000]);
                rest = &rest[batch.as_bytes().len()..];
                offset += 1;
            }
        }
    };
    check(&mut rig);
    let mut restarted = Rig::start(rig.disk, 2).expect("a good log");
    check(&mut restarted);
    restarted.produce(2999, &[0; 3000]);
    let ack = restarted.acks()[0].1;
    assert_eq!((ack.duplicate, ack.base_offset), (true, Offset(2999)));
}

#[test]
fn a_damaged_count_is_corrupt_data_and_not_an_empty_answer_for_ever() {
    let mut rig = Rig::new();
    let mut batch = BatchBuilder::new();
    (0..3).for_each(|_| batch.push(7, None, b"a", &[]));
    let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
    rig.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
    let mut rig = Rig::start(rig.disk, 2).expect("a good log");
    rig.replies.clear();
    let file = rig.disk.0.get_mut(&SegmentSeq(0)).unwrap();
    let count = first_batch_commit() + COMMIT_HEADER_LEN + 28;
    assert_eq!(file[count], 3);
    file[count] = 2;
    rig.fetch(2, 1000);
    assert_eq!(rig.fetched().0, ErrorCode::CorruptData as u16);
}

/// One record can be what thousands of waiting fetches wait for, of thousands of
/// partitions each. Commits and other requests must not wait for all of them.
#[test]
fn fetches_that_one_record_wakes_are_looked_at_over_several_turns() {
    let mut rig = Rig::new();
    let part = FetchPartition { partition: PARTITION, offset: Offset(0), max_bytes: 100 };
    let each = MAX_LOOKS_PER_TURN / 4;
    for _ in 0..6 {
        let partitions = vec![part; each];
        rig.request(ShardRequest::Fetch(Fetch {
            max_wait_ms: 9000,
            min_bytes: 1,
            max_bytes: 100,
            partitions,
        }));
    }
    assert!(rig.replies.is_empty());
    let produced = rig.produce(0, b"a");
    assert_eq!((rig.replies[0].0, rig.replies.len()), (produced, 1 + 4));
    assert_eq!(rig.shard.next_deadline(), Some(0), "it goes on at once");
    rig.wait(1);
    assert_eq!(rig.replies.len(), 1 + 6);
}

/// Memory that another core gives back is no event of this shard's: it has to
/// look again by itself.
#[test]
fn a_page_for_which_there_was_no_memory_is_read_soon_after_there_is_some() {
    let mut rig = Rig::new();
    for sequence in 0..30 {
        rig.produce(sequence, &[sequence as u8; 200 << 10]);
    }
    let mut rig = Rig::start(std::mem::take(&mut rig.disk), 2).expect("a good log");
    rig.wait(100_000);
    rig.pool.is_dry.store(true, Ordering::Relaxed);
    let starved = (0..30).find(|&offset| {
        rig.fetch(offset, 60_000);
        rig.replies.is_empty() || rig.fetched().0 != 0
    });
    let offset = starved.expect("the memory in hand does not hold all pages");
    let reads = rig.shard.counters().page_reads;
    for _ in 0..3 {
        let due = rig.shard.next_deadline().expect("it looks again without being told");
        assert!((1..=1000).contains(&(due - rig.now.mono_us)), "neither at once nor late");
        rig.wait(due - rig.now.mono_us);
        assert!(rig.replies.is_empty());
    }
    assert_eq!(rig.shard.counters().page_reads, reads, "there is nothing to read into");
    rig.pool.is_dry.store(false, Ordering::Relaxed);
    let due = rig.shard.next_deadline().expect("it looks again without being told");
    rig.wait(due - rig.now.mono_us);
    let (status, len, end) = rig.fetched();
    assert_eq!((status, end), (0, 30), "from offset {offset}");
    assert!(len >= 200 << 10);
}
