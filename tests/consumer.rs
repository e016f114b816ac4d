//! Consumer groups with the client crate against a real broker that dies and comes
//! back.

mod net_common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use net_common::*;
use ringbolt_client::{Client, ConsumedRecord, Consumer, GroupConfig, GroupMode, Producer, Record};
use ringbolt_wire::message::Backoff;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const PARTITIONS: u32 = 3;

/// Fewer than the inputs have: several of those share one.
const OUTPUT_PARTITIONS: u32 = 2;

/// A record by partition and offset.
type Place = (u32, u64);

/// What the workers of a group have seen, in the order in which it happened.
#[derive(Default)]
struct Seen {
    delivered: BTreeSet<Place>,
    /// The ack was confirmed.
    done: BTreeSet<Place>,
    /// Delivered after its ack was confirmed.
    again: Vec<Place>,
    /// The last one delivered of each key and partition.
    last: BTreeMap<(u32, Vec<u8>), u64>,
    /// Delivered after a later one of its key.
    late: Vec<Place>,
    rejected: u64,
}

impl Seen {
    fn delivered(&mut self, key: &[u8], place: Place) {
        self.delivered.insert(place);
        if self.done.contains(&place) {
            self.again.push(place);
        }
        let last = self.last.entry((place.0, key.to_vec())).or_default();
        if *last > place.1 {
            self.late.push(place);
        }
        *last = (*last).max(place.1);
    }
}

/// Works until nothing comes for a while: rejects some, acknowledges the rest.
async fn work(consumer: Consumer, seen: Arc<Mutex<Seen>>) {
    let mut turn = 0u64;
    while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(4), consumer.recv()).await {
        let delivery = delivery.expect("the consumer survives the broker's death");
        let (place, key) = ((delivery.partition, delivery.offset), delivery.key.clone().unwrap_or_default());
        seen.lock().unwrap().delivered(&key, place);
        turn += 1;
        if turn.is_multiple_of(50) && delivery.failed() == 0 {
            if delivery.reject("once").await.is_ok() {
                seen.lock().unwrap().rejected += 1;
            }
        } else if delivery.ack().await.is_ok() {
            seen.lock().unwrap().done.insert(place);
        }
    }
    consumer.close().await;
}

/// Records that the group has not completed.
async fn lag(client: &Client) -> u64 {
    client.admin().describe_group("g").await.unwrap().partitions.iter().map(|p| p.progress.lag).sum()
}

async fn killed_while_consuming(mode: GroupMode) -> (Seen, u64) {
    const RECORDS: u64 = 3000;
    let dir = TempDir::new().unwrap();
    let addr = own_address().to_string();
    let options = ["--listen", &addr, "--shards", "2", "--memory", "160MiB", "--segment-size", "16MiB"];
    let mut server = Server::serve(&dir, &options);
    let client = Client::connect(addr.as_str()).await.unwrap();
    client.admin().create_topic("t", PARTITIONS).await.unwrap();
    let producer = client.producer("t").deadline(Duration::from_secs(60)).build().await.unwrap();
    let config = GroupConfig {
        mode,
        max_failures: 0,
        backoff: Backoff::Fixed(20),
        lease_ms: 2_000,
        ..GroupConfig::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut workers = Vec::new();
    for _ in 0..3 {
        let consumer = client.consumer("t", "g").config(config).prefetch(30).open().await.unwrap();
        workers.push(tokio::spawn(work(consumer, Arc::clone(&seen))));
    }
    let producing = tokio::spawn(async move {
        for n in 0..RECORDS {
            let record = Record::new(format!("{n}")).with_key(format!("key {}", n % 40));
            // Awaited by closing.
            drop(producer.enqueue(record).await.unwrap());
            if n % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        producer.close().await;
    });
    for _ in 0..3 {
        let before = seen.lock().unwrap().done.len();
        let waited = tokio::time::timeout(PATIENCE, async {
            while seen.lock().unwrap().done.len() < before + 300 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("nothing is acknowledged before the kill");
        server.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        server = Server::serve(&dir, &options);
    }
    producing.await.unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
    let lag = lag(&client).await;
    let seen = Arc::into_inner(seen).expect("the workers have ended").into_inner().unwrap();
    (seen, lag)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ack_that_was_confirmed_is_lost_and_every_record_is_handled_over_kills_of_the_broker() {
    let (seen, lag) = killed_while_consuming(GroupMode::Shared).await;
    assert_eq!(seen.again, [], "delivered again after its ack was confirmed");
    assert_eq!((seen.delivered.len(), lag), (3000, 0));
    assert!(seen.rejected > 20, "{} rejected", seen.rejected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_stay_in_order_through_failures_and_kills_of_the_broker() {
    let (seen, lag) = killed_while_consuming(GroupMode::KeyOrdered).await;
    assert_eq!((seen.again, seen.late), (vec![], vec![]));
    assert_eq!((seen.delivered.len(), lag), (3000, 0));
    assert!(seen.rejected > 20, "{} rejected", seen.rejected);
}

/// What is to be made of an input, if anything.
fn output(input: &[u8]) -> Option<String> {
    let n: u64 = std::str::from_utf8(input).unwrap().parse().unwrap();
    (!n.is_multiple_of(5)).then(|| format!("made of {n}"))
}

/// Makes outputs of inputs, in a runtime of its own: when that goes, everything ends as by a
/// crash, without a word to the broker. So it does when dropped.
struct Processor {
    addr: String,
    /// Calls so far, of all its lives.
    calls: Arc<AtomicU64>,
    runtime: Option<Runtime>,
}

impl Processor {
    fn start(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (addr, calls) = (self.addr.clone(), Arc::clone(&self.calls));
        runtime.spawn(async move {
            let client = Client::connect(addr).await.unwrap();
            let config = GroupConfig {
                mode: GroupMode::Exclusive,
                max_failures: 0,
                lease_ms: 1_000,
                ..GroupConfig::default()
            };
            let consumer = client.consumer("in", "g").config(config).prefetch(60).open().await.unwrap();
            let process = move |input: &ConsumedRecord| {
                calls.fetch_add(1, Ordering::Relaxed);
                output(&input.value).map(Record::new)
            };
            let out = client.producer("out").batch_records(20);
            consumer.process_with(out, process).await.expect("it survives whatever happens");
        });
        self.runtime = Some(runtime);
    }

    fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // To drop it would block, which is a panic within another one.
            runtime.shutdown_background();
        }
    }

    /// Waits until it has got on a bit.
    async fn progress(&self) {
        let enough = self.calls.load(Ordering::Relaxed) + 200;
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.calls.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        waited.await.expect("nothing is processed any more");
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Produces numbers by and by, until it is enough. Returns how many.
async fn count(producer: Producer, enough: Arc<AtomicBool>) -> u64 {
    let mut n = 0u64;
    while !enough.load(Ordering::Relaxed) {
        for _ in 0..10 {
            let record = Record::new(n.to_string()).with_key(format!("key {}", n % 40));
            // Awaited by closing.
            drop(producer.enqueue(record).await.unwrap());
            n += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    producer.close().await;
    n
}

/// Everything in a topic, each partition in its order.
async fn read_all(client: &Client, topic: &str) -> Vec<ConsumedRecord> {
    let description = client.admin().describe_topic(topic).await.unwrap();
    let total: u64 = description.partitions.iter().map(|p| p.end_offset.0).sum();
    let mut reader = client.reader(topic).build().await.unwrap();
    let mut records = Vec::new();
    for _ in 0..total {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await;
        records.push(next.expect("what is there is read").unwrap());
    }
    records
}

/// By input partition: offset of the input, and what was made of it.
type Outputs = BTreeMap<u32, Vec<(u64, String)>>;

/// What is wrong with the outputs: each is to be there once, and in the order of the inputs.
fn judge(expected: &Outputs, found: &Outputs) -> Result<(), String> {
    if !found.keys().eq(expected.keys()) {
        return Err(format!("outputs of partitions {:?}", found.keys()));
    }
    for (partition, expected) in expected {
        let found = &found[partition];
        let mut pairs = expected.iter().zip(found);
        if let Some((expected, found)) = pairs.find(|(expected, found)| expected != found) {
            return Err(format!("partition {partition}: {found:?} where {expected:?} was to be"));
        }
        if found.len() != expected.len() {
            return Err(format!("partition {partition}: {} outputs, not {}", found.len(), expected.len()));
        }
    }
    Ok(())
}

#[test]
fn the_judge_of_outputs_finds_what_is_wrong() {
    let outputs = |numbers: &[u64]| {
        Outputs::from([(0, numbers.iter().map(|&n| (n, format!("made of {n}"))).collect())])
    };
    let expected = outputs(&[1, 2, 3]);
    assert_eq!(judge(&expected, &outputs(&[1, 2, 3])), Ok(()));
    for (found, says) in [
        (&[1, 2][..], "2 outputs, not 3"),
        (&[1, 3], "(3, \"made of 3\") where (2, "),
        (&[1, 2, 2, 3], "(2, \"made of 2\") where (3, "),
        (&[1, 2, 3, 3], "4 outputs, not 3"),
        (&[2, 1, 3], "(2, \"made of 2\") where (1, "),
    ] {
        let fault = judge(&expected, &outputs(found)).unwrap_err();
        assert!(fault.contains(says), "{says}: {fault}");
    }
    assert!(judge(&expected, &Outputs::new()).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_input_has_its_output_once_and_in_order_over_kills_of_broker_and_processor() {
    let dir = TempDir::new().unwrap();
    let addr = own_address().to_string();
    let options = ["--listen", &addr, "--shards", "2", "--memory", "160MiB", "--segment-size", "16MiB"];
    let mut server = Server::serve(&dir, &options);
    let client = Client::connect(addr.as_str()).await.unwrap();
    client.admin().create_topic("in", PARTITIONS).await.unwrap();
    client.admin().create_topic("out", OUTPUT_PARTITIONS).await.unwrap();
    let producer = client.producer("in").deadline(Duration::from_secs(60)).build().await.unwrap();
    let enough = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(producer, Arc::clone(&enough)));
    let mut processor = Processor { addr: addr.clone(), calls: Arc::default(), runtime: None };
    processor.start();
    for round in 0..6 {
        processor.progress().await;
        // The broker, the processor, both.
        let (kills, crashes) = (round % 3 != 1, round % 3 != 0);
        if crashes {
            processor.crash();
        }
        if kills {
            server.kill();
            tokio::time::sleep(Duration::from_millis(200)).await;
            server = Server::serve(&dir, &options);
        }
        if crashes {
            processor.start();
        }
    }
    processor.progress().await;
    enough.store(true, Ordering::Relaxed);
    let counted = counting.await.unwrap();
    let waited = tokio::time::timeout(PATIENCE, async {
        while lag(&client).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("every input is acknowledged");
    processor.crash();

    let inputs = read_all(&client, "in").await;
    assert_eq!(inputs.len() as u64, counted);
    let (mut expected, mut found) = (Outputs::new(), Outputs::new());
    for input in inputs {
        let made = output(&input.value).map(|made| (input.offset, made));
        expected.entry(input.partition).or_default().extend(made);
    }
    for record in read_all(&client, "out").await {
        let source = record.source().expect("every output names its input");
        assert_eq!(record.partition, source.partition.index % OUTPUT_PARTITIONS);
        let value = String::from_utf8(record.value.to_vec()).unwrap();
        found.entry(source.partition.index).or_default().push((source.offset, value));
    }
    assert_eq!(judge(&expected, &found), Ok(()));
}

#[tokio::test]
async fn dead_letters_are_in_the_topic_that_the_groups_first_consumer_asked_for() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &[]);
    let client = Client::connect(server.addr.to_string()).await.unwrap();
    client.admin().create_topic("t", 1).await.unwrap();
    let producer = client.producer("t").build().await.unwrap();
    producer.send(Record::new("x")).await.unwrap();
    let consumer = client.consumer("t", "g").dead_letter_topic("failed.dlq").open().await.unwrap();
    consumer.recv().await.unwrap().dead_letter("no good").await.unwrap();
    let letters = client.consumer("failed.dlq", "failed.dlq").open().await.unwrap();
    let letter = tokio::time::timeout(PATIENCE, letters.recv()).await.unwrap().unwrap();
    assert_eq!(
        (&letter.value[..], letter.record().dead_letter().unwrap().reason),
        (&b"x"[..], "no good".into())
    );
    letters.close().await;
    consumer.close().await;
}
