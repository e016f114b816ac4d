//! Consumer groups with the client crate against a real broker that dies and comes
//! back.

mod net_common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use net_common::*;
use ringbolt_client::{Client, Consumer, GroupConfig, GroupMode, Record};
use ringbolt_wire::message::Backoff;
use tempfile::TempDir;

const PARTITIONS: u32 = 3;

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
    let lag: u64 =
        client.admin().describe_group("g").await.unwrap().partitions.iter().map(|p| p.progress.lag).sum();
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
