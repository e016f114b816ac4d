//! The producer over real sockets: what it promises about each record while
//! connections are lost, answers stay out and batches are refused.

use std::time::{Duration, Instant};

use crate::support::{FakeBroker, Fault};
use ringbolt_client::{ErrorCode, Outcome, ProduceError, Producer, ProducerId, Record};
use ringbolt_wire::{BatchHeader, Opcode};

async fn producer(broker: &FakeBroker) -> Producer {
    broker.client().await.producer("t").build().await.unwrap()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Sends the numbers one after the other, each in a batch of its own as far as
/// the window allows; returns the outcomes.
async fn send_all(producer: &Producer, range: std::ops::Range<u32>) -> Vec<Outcome> {
    let mut pending = Vec::new();
    for n in range {
        pending.push(producer.enqueue(Record::new(n.to_string())).await.unwrap());
    }
    let mut outcomes = Vec::new();
    for answer in pending {
        outcomes.push(answer.await.map_or_else(|error| error.outcome(), |_| Outcome::Durable));
    }
    outcomes
}

#[tokio::test]
async fn records_are_durable_in_order_and_told_where() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker).await;
    for n in 0..5u64 {
        let delivery = producer.send(Record::new(n.to_string())).await.unwrap();
        assert_eq!((delivery.partition, delivery.offset, delivery.copies), (0, Some(n), 1));
        assert!(delivery.commit_time.is_some());
    }
    assert_eq!(broker.values(0), numbers(0..5));
}

#[tokio::test]
async fn records_gather_while_others_are_in_flight() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker).await;
    let outcomes = send_all(&producer, 0..20_000).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Durable));
    assert_eq!(broker.values(0), numbers(0..20_000));
    assert!(broker.seen(Opcode::Produce) < 2000, "{} batches", broker.seen(Opcode::Produce));
}

#[tokio::test]
async fn linger_makes_one_batch_of_a_slow_stream() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer("t").linger(Duration::from_millis(200)).build().await.unwrap();
    let mut pending = Vec::new();
    for n in 0..5 {
        pending.push(producer.enqueue(Record::new(n.to_string())).await.unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for answer in pending {
        answer.await.unwrap();
    }
    assert_eq!(broker.seen(Opcode::Produce), 1);
}

#[tokio::test]
async fn flush_does_not_wait_for_linger() {
    let broker = FakeBroker::start(2).await;
    let client = broker.client().await;
    let producer = client.producer("t").linger(Duration::from_secs(60)).build().await.unwrap();
    let start = Instant::now();
    for n in 0..4 {
        let pending = producer.enqueue_to(n % 2, Record::new(n.to_string())).await.unwrap();
        drop(pending);
    }
    producer.flush().await;
    assert_eq!((broker.values(0).len(), broker.values(1).len()), (2, 2));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn limits_of_a_batch_are_kept() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let builder = client.producer("t").batch_records(7).batch_bytes(4096).linger(Duration::from_millis(20));
    let producer = builder.build().await.unwrap();
    let mut pending = Vec::new();
    for n in 0..100 {
        let value = vec![b'x'; if n % 10 == 0 { 6000 } else { 300 }];
        pending.push(producer.enqueue(Record::new(value)).await.unwrap());
    }
    for answer in pending {
        answer.await.unwrap();
    }
    for batch in broker.state().partitions[0].batches.values() {
        let header = BatchHeader::decode(batch).unwrap();
        assert!(header.count() <= 7, "{}", header.count());
        assert!(header.len() <= 4096 || header.count() == 1, "{} in {}", header.len(), header.count());
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_makes_no_duplicate() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Produce, [Fault::DropAfter, Fault::None, Fault::DropBefore, Fault::DropAfter]);
    let producer = producer(&broker).await;
    for n in 0..6u64 {
        let delivery = producer.send(Record::new(n.to_string())).await.unwrap();
        assert_eq!(delivery.offset, Some(n));
    }
    assert_eq!(broker.values(0), numbers(0..6));
}

#[tokio::test]
async fn order_survives_loss_and_refusal_of_pipelined_batches() {
    let broker = FakeBroker::start(1).await;
    let some = [
        Fault::None,
        Fault::Refuse(ErrorCode::Overloaded),
        Fault::None,
        Fault::None,
        Fault::DropAfter,
        Fault::None,
        Fault::Refuse(ErrorCode::DiskFull),
        Fault::DropBefore,
    ];
    broker.fail(Opcode::Produce, some.into_iter().cycle().take(80));
    let client = broker.client().await;
    let producer = client.producer("t").batch_records(10).build().await.unwrap();
    let outcomes = send_all(&producer, 0..2000).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Durable));
    assert_eq!(broker.values(0), numbers(0..2000));
}

#[tokio::test]
async fn a_batch_refused_for_good_is_told_and_the_others_are_written() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Produce, [Fault::None, Fault::Refuse(ErrorCode::MalformedBatch)]);
    let client = broker.client().await;
    let producer = client.producer("t").batch_records(1).build().await.unwrap();
    let outcomes = send_all(&producer, 0..10).await;
    let mut expected = vec![Outcome::Durable; 10];
    expected[1] = Outcome::RejectedFinal;
    assert_eq!(outcomes, expected);
    let mut values = numbers(0..10);
    values.remove(1);
    assert_eq!(broker.values(0), values);
}

#[tokio::test]
async fn a_silent_broker_is_left_for_a_new_connection() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Produce, [Fault::Ignore]);
    let producer = producer(&broker).await;
    producer.send(Record::new("0")).await.unwrap();
    assert_eq!(broker.values(0), ["0"]);
    assert_eq!(broker.seen(Opcode::Produce), 2);
}

#[tokio::test]
async fn without_an_answer_by_the_deadline_the_outcome_is_unknown() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Produce, std::iter::repeat_n(Fault::Ignore, 50));
    let client = broker.client().await;
    let producer = client.producer("t").deadline(Duration::from_millis(150)).build().await.unwrap();
    let error = producer.send(Record::new("0")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
}

#[tokio::test]
async fn without_a_broker_until_the_deadline_nothing_was_written() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer("t").deadline(Duration::from_millis(150)).build().await.unwrap();
    let stopped = broker.stop().await;
    let error = producer.send(Record::new("0")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::RejectedRetryable, "{error}");
    let broker = stopped.start().await;
    assert!(broker.values(0).is_empty());
    loop {
        // The connection is made again by itself.
        if producer.send(Record::new("1")).await.is_ok() {
            break;
        }
    }
    assert_eq!(broker.values(0), ["1"]);
}

#[tokio::test]
async fn waiting_for_room_in_the_buffer_counts_towards_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer("t").buffer_bytes(1000).deadline(DEADLINE).build().await.unwrap();
    let _stopped = broker.stop().await;
    let first = producer.enqueue(Record::new(vec![b'x'; 900])).await.unwrap();
    let start = Instant::now();
    let second = producer.send(Record::new(vec![b'y'; 900])).await.unwrap_err();
    assert_eq!(second.outcome(), Outcome::RejectedRetryable, "{second}");
    assert!(start.elapsed() < DEADLINE * 17 / 10, "it took {:?}", start.elapsed());
    assert_eq!(first.await.unwrap_err().outcome(), Outcome::RejectedRetryable);
}

#[tokio::test]
async fn a_refusal_until_the_deadline_is_retryable_and_named() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Produce, std::iter::repeat_n(Fault::Refuse(ErrorCode::DiskFull), 1000));
    let client = broker.client().await;
    let producer = client.producer("t").deadline(Duration::from_millis(200)).build().await.unwrap();
    let error = producer.send(Record::new("0")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::RejectedRetryable);
    assert!(error.to_string().contains("the disk is full"), "{error}");
}

#[tokio::test]
async fn a_restart_in_the_middle_costs_nothing() {
    let mut broker = FakeBroker::start(4).await;
    let producer = producer(&broker).await;
    let sender = producer.clone();
    let sending = tokio::spawn(async move { send_all(&sender, 0..30_000).await });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let stopped = broker.stop().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        broker = stopped.start().await;
    }
    let outcomes = sending.await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Durable));
    let mut all: Vec<u32> = Vec::new();
    for partition in 0..4 {
        let values: Vec<u32> = broker.values(partition).iter().map(|v| v.parse().unwrap()).collect();
        assert!(values.is_sorted(), "partition {partition}");
        all.extend(values);
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..30_000));
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_left() {
    for fault in [Fault::AnswerTwice, Fault::Garbage, Fault::Goodbye] {
        let broker = FakeBroker::start(1).await;
        broker.fail(Opcode::Produce, [Fault::None, fault.clone()]);
        let client = broker.client().await;
        let producer = client.producer("t").batch_records(1).build().await.unwrap();
        let outcomes = send_all(&producer, 0..20).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Durable), "{fault:?}");
        assert_eq!(broker.values(0), numbers(0..20), "{fault:?}");
    }
}

#[tokio::test]
async fn answers_out_of_turn_reach_their_own_batches() {
    let broker = FakeBroker::start(1).await;
    let late = [Fault::AnswerLate, Fault::None].into_iter().cycle().take(40);
    broker.fail(Opcode::Produce, late);
    let client = broker.client().await;
    let producer = client.producer("t").batch_records(1).build().await.unwrap();
    let mut pending = Vec::new();
    for n in 0..40 {
        pending.push(producer.enqueue(Record::new(n.to_string())).await.unwrap());
    }
    for (n, answer) in pending.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().offset, Some(n as u64));
    }
}

#[tokio::test]
async fn a_full_buffer_holds_the_sender_back() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let producer = client.producer("t").buffer_bytes(10_000).build().await.unwrap();
    let stopped = broker.stop().await;
    let mut taken = Vec::new();
    let fill = async {
        loop {
            taken.push(producer.enqueue(Record::new(vec![0; 1000])).await.unwrap());
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(200), fill).await.is_err());
    assert!((8..=10).contains(&taken.len()), "{} records were taken", taken.len());
    let _broker = stopped.start().await;
    for answer in taken {
        answer.await.unwrap();
    }
    producer.send(Record::new("there is room again")).await.unwrap();
}

#[tokio::test]
async fn more_partitions_than_credit_are_all_served() {
    let broker = FakeBroker::start(50).await;
    broker.state().max_in_flight = 2;
    let producer = producer(&broker).await;
    let mut pending = Vec::new();
    for n in 0..500 {
        pending.push(producer.enqueue_to(n % 50, Record::new(n.to_string())).await.unwrap());
    }
    for answer in pending {
        answer.await.unwrap();
    }
    assert!((0..50).all(|partition| broker.values(partition).len() == 10));
}

#[tokio::test]
async fn equal_keys_share_a_partition_and_records_without_key_use_all() {
    let broker = FakeBroker::start(4).await;
    let producer = producer(&broker).await;
    let keyed = ringbolt_client::partition_for_key(b"k", 4);
    for _ in 0..5 {
        let delivery = producer.send(Record::new("v").with_key("k")).await.unwrap();
        assert_eq!(delivery.partition, keyed);
    }
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..20 {
        used.insert(producer.send(Record::new("v")).await.unwrap().partition);
    }
    assert_eq!(used.len(), 4);
}

#[tokio::test]
async fn one_connection_serves_a_shard_and_says_which() {
    let broker = FakeBroker::start(6).await;
    let producer = producer(&broker).await;
    for n in 0..6 {
        producer.enqueue_to(n, Record::new("v")).await.unwrap().await.unwrap();
    }
    let mut affinities: Vec<_> =
        broker.state().affinities.iter().flatten().map(|partition| partition.index % 2).collect();
    affinities.sort_unstable();
    assert_eq!(affinities, [0, 1]);
}

#[tokio::test]
async fn close_sends_what_was_taken_and_takes_no_more() {
    let broker = FakeBroker::start(2).await;
    let producer = producer(&broker).await;
    let mut pending = Vec::new();
    for n in 0..100 {
        pending.push(producer.enqueue(Record::new(n.to_string())).await.unwrap());
    }
    producer.close().await;
    assert_eq!(broker.values(0).len() + broker.values(1).len(), 100);
    for answer in pending {
        answer.await.unwrap();
    }
    let error = producer.send(Record::new("late")).await.unwrap_err();
    assert_eq!((&error, error.outcome()), (&ProduceError::Closed, Outcome::RejectedRetryable));
}

#[tokio::test]
async fn a_dropped_producer_still_sends_what_it_took() {
    let broker = FakeBroker::start(1).await;
    let pending = producer(&broker).await.enqueue(Record::new("0")).await.unwrap();
    pending.await.unwrap();
    assert_eq!(broker.values(0), ["0"]);
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_at_once() {
    let broker = FakeBroker::start(2).await;
    let client = broker.client().await;
    let producer = client.producer("t").partition(1).build().await.unwrap();
    let too_large = producer.send(Record::new(vec![0; 1 << 20])).await.unwrap_err();
    assert!(matches!(too_large, ProduceError::TooLarge { .. }));
    let long_name = Record::new("v").with_header("n".repeat(70_000), "v");
    assert!(matches!(producer.send(long_name).await, Err(ProduceError::InvalidHeaders(_))));
    for (partition, expected) in [(0, "only"), (2, "no partition 2")] {
        let error = producer.enqueue_to(partition, Record::new("v")).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::RejectedFinal);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = client.producer("t").partition(2).build().await.unwrap_err();
    assert!(matches!(error, ringbolt_client::Error::NoSuchPartition { partitions: 2, partition: 2, .. }));
    assert!(client.producer("t").max_in_flight(0).build().await.is_err());
    assert_eq!(broker.seen(Opcode::Produce), 0);
}

#[tokio::test]
async fn a_resumed_producer_fences_its_predecessor() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let old = client.producer("t").build().await.unwrap();
    old.send(Record::new("0")).await.unwrap();
    assert_ne!(old.identity(), ProducerId::NONE);
    let new = client.producer("t").identity(old.identity()).build().await.unwrap();
    new.send(Record::new("1")).await.unwrap();
    let error = old.send(Record::new("2")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::RejectedFinal, "{error}");
    new.send(Record::new("3")).await.unwrap();
    assert_eq!(broker.values(0), ["0", "1", "3"]);
}
