//! The reader over real sockets: every record once, in order, whatever happens
//! to the connection.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{FakeBroker, Fault};
use ringbolt_client::{ConsumedRecord, Error, ErrorCode, Reader, ReaderBuilder, Record, StartAt};
use ringbolt_wire::Opcode;

async fn builder(broker: &FakeBroker) -> ReaderBuilder {
    broker.client().await.reader("t")
}

async fn take(reader: &mut Reader, count: usize) -> Vec<ConsumedRecord> {
    let mut records = Vec::new();
    for _ in 0..count {
        records.push(reader.next().await.unwrap());
    }
    records
}

fn offsets(records: &[ConsumedRecord]) -> Vec<u64> {
    records.iter().map(|record| record.offset).collect()
}

#[tokio::test]
async fn every_record_comes_once_in_order_and_whole() {
    let broker = FakeBroker::filled(3, 100).await;
    let mut reader = builder(&broker).await.max_bytes(2000).build().await.unwrap();
    let records = take(&mut reader, 300).await;
    for partition in 0..3 {
        let own: Vec<_> = records.iter().filter(|r| r.partition == partition).cloned().collect();
        assert!(offsets(&own).into_iter().eq(0..100));
        for (n, record) in own.iter().enumerate() {
            assert_eq!(record.value, n.to_string());
            assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
            assert_eq!(record.headers, [("h".to_owned(), vec![partition as u8].into())]);
            assert_eq!(&*record.topic, "t");
            assert!(record.commit_time > UNIX_EPOCH && record.timestamp > UNIX_EPOCH);
        }
    }
    assert_eq!(reader.positions(), &BTreeMap::from([(0, 100), (1, 100), (2, 100)]));
}

#[tokio::test]
async fn a_record_keeps_the_time_that_it_was_given_and_gets_the_present_one_otherwise() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer("t").build().await.unwrap();
    let (given, before) = (UNIX_EPOCH + Duration::from_micros(1_234_567_890_123), SystemTime::now());
    for record in [
        Record::new("given").with_timestamp(given),
        Record::new("before 1970").with_timestamp(UNIX_EPOCH - Duration::from_secs(1)),
        Record::new("none"),
    ] {
        producer.enqueue_to(0, record).await.unwrap().await.unwrap();
    }
    let mut reader = builder(&broker).await.build().await.unwrap();
    let times: Vec<_> = take(&mut reader, 3).await.iter().map(|record| record.timestamp).collect();
    assert_eq!(times[..2], [given, UNIX_EPOCH]);
    // Times travel in whole microseconds.
    let (from, to) = (before - Duration::from_micros(1), SystemTime::now());
    assert!(from <= times[2] && times[2] <= to, "{:?}", times[2]);
}

#[tokio::test]
async fn reading_starts_within_a_batch_where_it_was_told() {
    let broker = FakeBroker::filled(1, 50).await;
    for (start, first) in [(StartAt::Earliest, 0), (StartAt::Offset(17), 17), (StartAt::Time(UNIX_EPOCH), 1)]
    {
        let mut reader = builder(&broker).await.start_at(start).build().await.unwrap();
        assert_eq!(reader.next().await.unwrap().offset, first, "{start:?}");
    }
    let at = BTreeMap::from([(0, 49)]);
    let mut reader = builder(&broker).await.positions(at).build().await.unwrap();
    assert_eq!(reader.next().await.unwrap().offset, 49);
}

#[tokio::test]
async fn at_the_end_it_waits_for_what_comes() {
    let broker = FakeBroker::filled(1, 5).await;
    let mut reader = builder(&broker).await.start_at(StartAt::End).build().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), reader.next()).await.is_err());
    let producer = broker.client().await.producer("t").build().await.unwrap();
    producer.send(Record::new("new")).await.unwrap();
    let record = reader.next().await.unwrap();
    assert_eq!((record.offset, &record.value[..]), (5, &b"new"[..]));
}

#[tokio::test]
async fn lost_connections_and_refusals_cost_nothing() {
    let broker = FakeBroker::filled(2, 300).await;
    let faults = [
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Ignore,
        Fault::Garbage,
        Fault::AnswerTwice,
        Fault::Goodbye,
        Fault::Refuse(ErrorCode::Overloaded),
    ];
    let mixed = faults.into_iter().flat_map(|fault| [fault, Fault::None]).cycle().take(30);
    broker.fail(Opcode::Fetch, mixed);
    let mut reader = builder(&broker).await.max_bytes(1500).build().await.unwrap();
    let records = take(&mut reader, 600).await;
    for partition in 0..2 {
        let own = records.iter().filter(|r| r.partition == partition);
        assert!(own.map(|r| r.offset).eq(0..300));
    }
}

#[tokio::test]
async fn a_restart_is_survived() {
    let broker = FakeBroker::filled(1, 100).await;
    let mut reader = builder(&broker).await.max_bytes(500).build().await.unwrap();
    let mut records = take(&mut reader, 10).await;
    let stopped = broker.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _broker = stopped.start().await;
    records.extend(take(&mut reader, 90).await);
    assert!(offsets(&records).into_iter().eq(0..100));
}

#[tokio::test]
async fn damage_is_told_and_never_delivered() {
    let broker = FakeBroker::filled(1, 20).await;
    broker.fail(Opcode::Fetch, [Fault::Damage]);
    let mut reader = builder(&broker).await.build().await.unwrap();
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, Error::Damaged { partition: 0, offset: 0, .. }), "{error}");
    let records = take(&mut reader, 20).await;
    assert!(offsets(&records).into_iter().eq(0..20), "fetched again, whole");
}

#[tokio::test]
async fn removed_records_end_the_partition_or_are_skipped() {
    let broker = FakeBroker::filled(2, 30).await;
    broker.state().partitions[0].start = 10;
    let at = StartAt::Offset(3);
    let mut reader = builder(&broker).await.start_at(at).build().await.unwrap();
    let (mut read, mut told) = (0, 0);
    for _ in 0..28 {
        match reader.next().await {
            Ok(record) => {
                assert_eq!(record.partition, 1, "the other partition goes on");
                read += 1;
            }
            Err(error) => {
                let expected = matches!(
                    error,
                    Error::OffsetOutOfRange { partition: 0, requested: 3, start: 10, end: 30 }
                );
                assert!(expected, "{error}");
                told += 1;
            }
        }
    }
    assert_eq!((read, told), (27, 1));

    let skipping = builder(&broker).await.start_at(at).skip_removed(true).partitions([0]);
    let mut reader = skipping.build().await.unwrap();
    let records = take(&mut reader, 20).await;
    assert!(offsets(&records).into_iter().eq(10..30));
}

#[tokio::test]
async fn when_no_partition_is_left_it_says_so() {
    let broker = FakeBroker::filled(1, 1).await;
    let mut reader = builder(&broker).await.start_at(StartAt::Offset(5)).build().await.unwrap();
    assert!(matches!(reader.next().await, Err(Error::OffsetOutOfRange { end: 1, .. })));
    assert!(matches!(reader.next().await, Err(Error::ReaderEnded)));
}

#[tokio::test]
async fn only_so_much_is_fetched_ahead() {
    let broker = FakeBroker::filled(1, 1000).await;
    let mut reader = builder(&broker).await.max_bytes(2000).build().await.unwrap();
    reader.next().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fetches = broker.seen(Opcode::Fetch);
    assert!(fetches <= 4, "{fetches} fetches for one record");
}

#[tokio::test]
async fn what_is_not_there_is_refused_at_once() {
    let broker = FakeBroker::start(2).await;
    let error = builder(&broker).await.partitions([0, 2]).build().await.unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { partition: 2, .. }), "{error}");
    assert!(builder(&broker).await.partitions([]).build().await.is_err());
    let error = broker.client().await.reader("other").build().await.unwrap_err();
    let Error::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!(refusal.error_code(), Some(ErrorCode::UnknownTopic));
}
