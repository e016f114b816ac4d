//! From topic to topic over real sockets: of every input there is one output, whatever
//! crashes in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{FakeBroker, Fault, Group};
use ringbolt_client::{
    Client, ClientConfig, ConsumedRecord, Consumer, ConsumerBuilder, Error, ErrorCode, GroupMode, GroupStart,
    PartitionId, ProduceError, ProducerId, Record, ResetGroup, SOURCE_HEADER, StartAt,
};
use ringbolt_wire::{BatchBuilder, Epoch, Opcode, Sequence};
use tokio::task::JoinHandle;

fn exclusive(client: &Client) -> ConsumerBuilder {
    client.consumer("t", "g").mode(GroupMode::Exclusive).lease(Duration::from_millis(150)).prefetch(16)
}

fn double(input: &ConsumedRecord) -> Option<Record> {
    let n: u64 = std::str::from_utf8(&input.value).unwrap().parse().unwrap();
    Some(Record::new((2 * n).to_string()))
}

fn doubles(count: u64) -> Vec<String> {
    (0..count).map(|n| (2 * n).to_string()).collect()
}

/// Runs it in the background.
async fn run<F>(broker: &FakeBroker, f: F) -> JoinHandle<Result<(), Error>>
where
    F: FnMut(&ConsumedRecord) -> Option<Record> + Send + 'static,
{
    let client = broker.client().await;
    let consumer = exclusive(&client).open().await.unwrap();
    tokio::spawn(async move { consumer.process_with(client.producer("out"), f).await })
}

/// A process of its own, which ends without a word: after `time`, or when the broker
/// has so many outputs in the first partition.
fn run_and_crash(config: ClientConfig, broker: &FakeBroker, time: Duration, outputs: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let client = Client::connect(config).await.unwrap();
        let consumer = exclusive(&client).open().await.unwrap();
        consumer.process_with(client.producer("out"), double).await
    });
    let start = std::time::Instant::now();
    while start.elapsed() < time && broker.outputs(0).len() < outputs {
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.shutdown_background();
}

#[tokio::test]
async fn every_input_has_one_output_in_order_that_names_it() {
    let broker = FakeBroker::filled(3, 100).await;
    let running = run(&broker, double).await;
    broker.until(|g| g.acked.len() == 300).await;
    running.abort();
    for partition in 0..3 {
        assert_eq!(broker.outputs(partition), doubles(100));
    }
    let client = broker.client().await;
    let mut reader = client.reader("out").partitions([1]).start_at(StartAt::Earliest).build().await.unwrap();
    for n in 0..100 {
        let source = reader.next().await.unwrap().source().unwrap();
        assert_eq!((source.group.0, source.partition.index, source.offset), (1, 1, n));
    }
}

#[tokio::test]
async fn inputs_without_output_are_acknowledged_and_leave_no_hole() {
    let broker = FakeBroker::filled(1, 100).await;
    let running = run(&broker, |input| double(input).filter(|_| input.offset % 3 == 1)).await;
    broker.until(|g| g.acked.len() == 100).await;
    running.abort();
    let expected: Vec<_> = (0..100).filter(|n| n % 3 == 1).map(|n| (2 * n).to_string()).collect();
    assert_eq!(broker.outputs(0), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_produced_before_a_crash_and_not_acknowledged_is_not_produced_again() {
    let broker = FakeBroker::filled(1, 100).await;
    broker.state().drop_acks = true;
    tokio::task::block_in_place(|| run_and_crash(broker.config(), &broker, Duration::from_secs(5), 10));
    let before = broker.outputs(0).len();
    assert!(before >= 10 && broker.group("g", |g| g.acked.is_empty()), "it is between produce and ack");
    broker.state().drop_acks = false;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let running = run(&broker, move |input| {
        counted.fetch_add(1, Ordering::Relaxed);
        double(input)
    });
    let running = running.await;
    broker.until(|g| g.acked.len() == 100).await;
    running.abort();
    assert_eq!(broker.outputs(0), doubles(100));
    assert_eq!(calls.load(Ordering::Relaxed) as usize, 100 - before, "the others were seen in the log");
}

#[tokio::test]
async fn what_an_earlier_process_got_in_late_is_seen_although_it_decided_otherwise() {
    let broker = FakeBroker::filled(1, 20).await;
    let client = broker.client().await;
    let consumer = exclusive(&client).prefetch(1).open().await.unwrap();
    let (state, group) = (broker.state.clone(), consumer.group().id);
    let process = move |input: &ConsumedRecord| {
        if input.offset > 0 {
            return double(input);
        }
        // The earlier one had made something of the first input as well.
        let mut builder = BatchBuilder::new();
        for offset in 0..2u64 {
            let numbers = [group.0, crate::support::TOPIC.0, 0].into_iter().flat_map(u32::to_le_bytes);
            let source = numbers.chain(offset.to_le_bytes()).collect();
            builder.push(1, None, format!("late {offset}").as_bytes(), &[(SOURCE_HEADER.into(), source)]);
        }
        let mut state = state.lock().unwrap();
        let producer = state.opened.last().unwrap().0;
        state.produce(&builder.finish(
            PartitionId::new(crate::support::OUT, 0),
            producer,
            Epoch(0),
            Sequence(0),
        ));
        None
    };
    let output = client.producer("out");
    let running = tokio::spawn(async move { consumer.process_with(output, process).await });
    broker.until(|g| g.acked.len() == 20).await;
    running.abort();
    let mut expected = doubles(20);
    expected[0] = "late 0".into();
    expected[1] = "late 1".into();
    assert_eq!(broker.outputs(0), expected);
    let opened = broker.state().opened.clone();
    let producer = opened.last().unwrap().0;
    let mut own = opened.iter().filter(|(id, _)| *id == producer);
    assert!(own.all(|(_, take_over)| *take_over), "what comes later still is to be fenced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_any_time_leave_one_output_of_each() {
    let broker = FakeBroker::filled(2, 400).await;
    for n in 0..12u64 {
        let faults = [Fault::None, Fault::DropAfter, Fault::None, Fault::DropBefore];
        broker.fail(Opcode::Produce, faults);
        let time = Duration::from_millis(15 + 37 * n % 90);
        tokio::task::block_in_place(|| run_and_crash(broker.config(), &broker, time, usize::MAX));
    }
    broker.state().faults.clear();
    let running = run(&broker, double).await;
    broker.until(|g| g.acked.len() == 800).await;
    running.abort();
    for partition in 0..2 {
        assert_eq!(broker.outputs(partition), doubles(400));
    }
}

#[tokio::test]
async fn lost_answers_and_refusals_cost_nothing() {
    for fault in [
        Fault::DropAfter,
        Fault::DropBefore,
        Fault::Ignore,
        Fault::Garbage,
        Fault::Goodbye,
        Fault::AnswerTwice,
        Fault::Refuse(ErrorCode::Overloaded),
        Fault::Refuse(ErrorCode::OutOfOrderSequence),
    ] {
        let broker = FakeBroker::filled(1, 60).await;
        broker.fail(Opcode::Produce, [fault.clone(), Fault::None, fault.clone(), fault.clone(), Fault::None]);
        broker.fail(Opcode::OpenProducer, [Fault::None, fault.clone()]);
        broker.fail(Opcode::Fetch, [fault.clone()]);
        let running = run(&broker, double).await;
        broker.until(|g| g.acked.len() == 60).await;
        running.abort();
        assert_eq!(broker.outputs(0), doubles(60), "{fault:?}");
    }
}

#[tokio::test]
async fn a_restart_of_the_broker_costs_nothing() {
    let mut broker = FakeBroker::filled(1, 400).await;
    let running = run(&broker, double).await;
    for n in 1..4 {
        while broker.outputs(0).len() < n * 80 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let stopped = broker.stop().await;
        broker = stopped.start().await;
        broker.group("g", Group::lose_leases);
    }
    broker.until(|g| g.acked.len() == 400).await;
    running.abort();
    assert_eq!(broker.outputs(0), doubles(400));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_lost_the_partition_while_at_work_produces_nothing_more() {
    let broker = FakeBroker::filled(1, 50).await;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mut at = 0;
    let slow = run(&broker, move |input| {
        at += 1;
        if at == 20 {
            // At work, while the world goes on.
            tokio::task::block_in_place(|| stopped.recv()).unwrap();
        }
        double(input)
    });
    let slow = slow.await;
    while broker.outputs(0).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The broker takes the partition away from the one that is at work.
    broker.group("g", |g| {
        g.detach_all();
        g.lose_leases();
    });
    let other = run(&broker, double).await;
    broker.until(|g| g.acked.len() == 50).await;
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(broker.outputs(0), doubles(50));
    slow.abort();
    other.abort();
}

#[tokio::test]
async fn a_group_that_is_set_back_makes_no_second_output() {
    let broker = FakeBroker::filled(1, 40).await;
    let running = run(&broker, double).await;
    broker.until(|g| g.acked.len() == 40).await;
    let reset = ResetGroup { name: "g".into(), to: GroupStart::Earliest, partition: None };
    broker.client().await.admin().reset_group(reset).await.unwrap();
    broker.until(|g| g.acked.len() == 80).await;
    running.abort();
    assert_eq!(broker.outputs(0), doubles(40));
}

#[tokio::test]
async fn without_the_last_output_it_does_not_guess() {
    let broker = FakeBroker::filled(1, 20).await;
    let running = run(&broker, double).await;
    broker.until(|g| g.acked.len() == 20).await;
    running.abort();
    let _ = running.await;
    {
        let mut state = broker.state();
        state.outputs[0].start = state.outputs[0].end;
        state.outputs[0].batches.clear();
    }
    let producer = broker.client().await.producer("t").build().await.unwrap();
    producer.send(Record::new("20")).await.unwrap();
    let error = run(&broker, double).await.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ProgressUnknown { partition: 0, .. }), "{error}");
    assert!(broker.outputs(0).is_empty());
}

#[tokio::test]
async fn what_cannot_be_right_is_refused() {
    let broker = FakeBroker::filled(1, 3).await;
    let client = broker.client().await;
    let shared = client.consumer("t", "shared").open().await.unwrap();
    let error = shared.process_with(client.producer("out"), double).await.unwrap_err();
    assert!(matches!(error, Error::NotExclusive { mode: GroupMode::Shared, .. }), "{error}");

    let open = async || -> Consumer { exclusive(&client).open().await.unwrap() };
    for output in [client.producer("out").partition(0), client.producer("out").identity(ProducerId(5))] {
        let error = open().await.process_with(output, double).await.unwrap_err();
        assert!(matches!(error, Error::InvalidSetting(_)), "{error}");
    }
    let error = open().await.process_with(client.producer("nowhere"), double).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");

    let too_large =
        |input: &ConsumedRecord| Some(Record::new(vec![0; if input.offset == 1 { 2 << 20 } else { 1 }]));
    let error = open().await.process_with(client.producer("out"), too_large).await.unwrap_err();
    let Error::Output { partition: 0, offset: 1, error: ProduceError::TooLarge { .. } } = error else {
        panic!("{error}")
    };
}

#[tokio::test]
async fn it_ends_well_when_the_consumer_is_closed() {
    let broker = FakeBroker::filled(1, 10).await;
    let client = broker.client().await;
    let consumer = Arc::new(exclusive(&client).open().await.unwrap());
    let processing = consumer.clone();
    let output = client.producer("out");
    let running = tokio::spawn(async move { processing.process_with(output, double).await });
    broker.until(|g| g.acked.len() == 10).await;
    consumer.close().await;
    running.await.unwrap().unwrap();
}
