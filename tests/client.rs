//! The client crate against real brokers: its examples as they stand, and a
//! producer whose broker dies and comes back.

mod net_common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use net_common::cli::*;
use net_common::*;
use ringbolt_client::{Client, Outcome, ProduceError, Producer, Receipt, Record, StartAt};
use serde_json::json;
use tempfile::TempDir;

const PARTITIONS: u32 = 4;

/// An example of the client crate; they lie beside the broker's binary. All of
/// the workspace's are asked for, as its tests do: there is then nothing to build.
fn example(name: &str) -> PathBuf {
    let broker = PathBuf::from(env!("CARGO_BIN_EXE_ringbolt"));
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--workspace", "--examples"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if broker.parent().is_some_and(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    broker.with_file_name("examples").join(name)
}

/// Starts an example with this broker.
fn run_example(server: &Server, name: &str, args: &[&str]) -> Running {
    Running::new(Command::new(example(name)).arg(server.addr.to_string()).args(args))
}

#[test]
fn the_examples_do_what_they_say() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let run = |name: &str, args: &[&str]| run_example(&server, name, args);

    let told = run("admin", &[]).end().good();
    for part in
        ["broker with 1 shards answers in ", "created example-", "partition 3: shard 0, offsets 0 to 0"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.contains(" has 4 partitions") && told.contains("requests_total = "), "{told}");
    assert_eq!(
        At(server.addr).run(&["topic", "list", "--json"]).json()["topics"].as_array().unwrap().len(),
        0
    );

    let told = run("produce", &["things", "500"]).end().good();
    assert!(told.starts_with("created things\n500 of 500 records are on disk after "), "{told}");
    let told = run("produce", &["things", "100"]).end().good();
    assert!(told.starts_with("100 of 100 records are on disk after "), "it is there already: {told}");
    let records = At(server.addr).run(&["topic", "describe", "things", "--json"]).json()["records"].clone();
    assert_eq!(records, 600);

    let mut consume = run("consume", &["things"]);
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..600 {
        // PARTITION/OFFSET KEY: VALUE
        let line = consume.line();
        let (place, rest) = line.split_once(' ').unwrap();
        let (partition, offset) = place.split_once('/').unwrap();
        let next = next.entry(partition.to_owned()).or_default();
        assert_eq!(offset.parse(), Ok(*next), "{line}");
        *next += 1;
        assert!(rest.starts_with("key ") && rest.contains(": value "), "{line}");
    }
    run("produce", &["things", "1"]).end().good();
    assert!(consume.line().ends_with("key 0: value 0"), "it follows");
}

#[test]
fn the_examples_of_work_do_what_they_say() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let at = At(server.addr);
    let run = |name: &str, args: &[&str]| run_example(&server, name, args);

    run("produce", &["orders", "20"]).end().good();
    let workers = [run("worker", &["orders", "12"]), run("worker", &["orders", "8"])];
    let told = workers.map(|worker| worker.end().good());
    let mut handled: Vec<&str> = told.iter().flat_map(|told| told.lines()).collect();
    handled.sort_unstable();
    handled.dedup();
    assert_eq!(handled.len(), 20, "each order goes to one of them: {told:?}");
    assert!(handled.iter().all(|line| line.contains(": value ")), "{told:?}");

    at.run_on(&["produce", "orders", "-q"], b" \n").good();
    let ran = run("worker", &["orders", "5"]).end();
    assert_eq!((ran.code, ran.out.as_str(), ran.err.lines().count()), (0, "", 5), "{ran:?}");
    for (n, line) in (1..).zip(ran.err.lines()) {
        assert!(line.ends_with(&format!(": an empty order (failure {n})")), "{line}");
    }
    let letter = at.run(&["dlq", "show", "orders", "--json"]).json();
    assert_eq!(
        (&letter["group"], &letter["failed"], &letter["reason"]),
        (&json!("workers"), &json!(5), &json!("an empty order"))
    );

    let began = Instant::now();
    let told = run("delayed", &["jobs"]).end().good();
    assert!(began.elapsed() >= Duration::from_secs(3), "{told}");
    let lines: Vec<&str> = told.lines().collect();
    let [created, first, second] = lines[..] else { panic!("{told}") };
    assert_eq!(created, "created jobs");
    assert!(first.starts_with("after ") && first.ends_with(": now or never"), "{told}");
    assert!(second.starts_with("after ") && second.ends_with(": remind me"), "{told}");
}

#[test]
fn the_example_of_a_pipeline_invoices_each_order_once_although_it_is_killed() {
    const ORDERS: u32 = 2000;
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let at = At(server.addr);
    let run = |name: &str, args: &[&str]| run_example(&server, name, args);

    run("produce", &["orders", &ORDERS.to_string()]).end().good();
    // What the killed one had is not to be waited for as long as usual.
    let create =
        ["group", "create", "invoicing", "--topic", "orders", "--mode", "exclusive", "--lease", "1s"];
    at.run(&create).good();
    let mut pipeline = run("pipeline", &["orders", "invoices"]);
    assert_eq!(pipeline.line(), "created invoices");
    let mut consume = run("consume", &["invoices"]);
    let mut invoices = vec![consume.line()];
    drop(pipeline);
    let _pipeline = run("pipeline", &["orders", "invoices"]);
    while invoices.len() < ORDERS as usize {
        invoices.push(consume.line());
    }
    wait_until("every order is done", || {
        let group = at.run(&["group", "describe", "invoicing", "--json"]).json();
        group["partitions"].as_array().unwrap().iter().all(|partition| partition["lag"] == 0)
    });
    let records = at.run(&["topic", "describe", "invoices", "--json"]).json()["records"].clone();
    assert_eq!(records, ORDERS);
    // PARTITION/OFFSET KEY: VALUE
    let order = |line: &String| line.split_once(": please pay for value ")?.1.parse::<u32>().ok();
    let mut invoiced: Vec<u32> = invoices.iter().filter_map(order).collect();
    invoiced.sort_unstable();
    assert!(invoiced.into_iter().eq(0..ORDERS), "{invoices:?}");
}

/// What became of the records that one producer was given, by their numbers.
#[derive(Default)]
struct Told {
    durable: BTreeMap<u64, Receipt>,
    retryable: Vec<u64>,
    refused: Vec<u64>,
    unknown: Vec<u64>,
}

impl Told {
    fn note(&mut self, n: u64, result: Result<Receipt, ProduceError>) {
        match result {
            Ok(delivery) => drop(self.durable.insert(n, delivery)),
            Err(error) => match error.outcome() {
                Outcome::Durable => panic!("{error} is an error, and no outcome of one is durable"),
                Outcome::RejectedRetryable => self.retryable.push(n),
                Outcome::RejectedFinal => self.refused.push(n),
                Outcome::Unknown => self.unknown.push(n),
            },
        }
    }
}

/// What a task of the test and the producers' tasks tell each other.
#[derive(Default)]
struct Progress {
    durable: AtomicU64,
    enough: AtomicBool,
}

/// Gives a producer numbered records until it is enough, and tells what became
/// of each of them.
async fn produce(producer: Producer, name: &'static str, progress: Arc<Progress>) -> Told {
    let mut told = Told::default();
    let mut pending = Vec::new();
    let mut n = 0;
    while !progress.enough.load(Ordering::Relaxed) {
        for _ in 0..20 {
            let record = Record::new(format!("{name} {n}")).with_key(format!("key {}", n % 50));
            match producer.enqueue(record).await {
                Ok(taken) => {
                    let progress = Arc::clone(&progress);
                    pending.push((
                        n,
                        tokio::spawn(async move {
                            let result = taken.await;
                            progress.durable.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                            result
                        }),
                    ));
                }
                Err(error) => told.note(n, Err(error)),
            }
            n += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    producer.close().await;
    for (n, result) in pending {
        // Each ends, and none twice: a future has one output.
        let result = tokio::time::timeout(PATIENCE, result).await.expect("every record has an outcome");
        told.note(n, result.unwrap());
    }
    told
}

/// Everything in the topic: number, partition and offset of one producer's
/// records, in the order of each partition.
async fn read_back(client: &Client, name: &str) -> Vec<(u64, u32, u64)> {
    let description = client.admin().describe_topic("t").await.unwrap();
    let total: u64 = description.partitions.iter().map(|p| p.end_offset.0 - p.start_offset.0).sum();
    let mut reader = client.reader("t").start_at(StartAt::Earliest).build().await.unwrap();
    let mut found = Vec::new();
    for _ in 0..total {
        let record =
            tokio::time::timeout(PATIENCE, reader.next()).await.expect("what is there is read").unwrap();
        let value = std::str::from_utf8(&record.value).unwrap();
        let (producer, n) = value.split_once(' ').unwrap();
        if producer == name {
            found.push((n.parse().unwrap(), record.partition, record.offset));
        }
    }
    found
}

/// Judges what one producer was told by what is there.
fn judge(told: &Told, found: &[(u64, u32, u64)]) -> Result<(), String> {
    let mut places: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for &(n, partition, offset) in found {
        if let Some(place) = places.insert(n, (partition, offset)) {
            return Err(format!("{n} is there twice: {place:?} and {:?}", (partition, offset)));
        }
        if let Some(before) = last.insert(partition, n).filter(|before| *before > n) {
            return Err(format!("{n} stands after {before} in partition {partition}"));
        }
    }
    for (n, delivery) in &told.durable {
        let Some(&(partition, offset)) = places.get(n) else {
            return Err(format!("{n} was acknowledged and is lost"));
        };
        if delivery.partition != partition || delivery.offset.is_some_and(|told| told != offset) {
            return Err(format!("{n} is at {:?}, not where it was told: {delivery:?}", (partition, offset)));
        }
    }
    match told.retryable.iter().chain(&told.refused).find(|n| places.contains_key(n)) {
        Some(n) => Err(format!("{n} was rejected and is there")),
        None => Ok(()),
    }
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let delivery = |offset| Receipt { partition: 0, offset, commit_time: None, copies: 1 };
    let told = Told {
        durable: BTreeMap::from([(1, delivery(Some(0))), (2, delivery(None))]),
        retryable: vec![3],
        refused: vec![4],
        unknown: vec![5, 6],
    };
    assert_eq!(judge(&told, &[(1, 0, 0), (2, 0, 1), (6, 0, 2)]), Ok(()), "what is unknown may be there");
    for (found, says) in [
        (&[(1, 0, 0)][..], "2 was acknowledged and is lost"),
        (&[(1, 0, 0), (2, 0, 1), (2, 0, 2)], "2 is there twice"),
        (&[(1, 0, 0), (2, 0, 1), (2, 1, 0)], "2 is there twice"),
        (&[(1, 0, 0), (6, 0, 1), (2, 0, 2)], "2 stands after 6"),
        (&[(1, 0, 1), (2, 0, 2)], "not where it was told"),
        (&[(1, 0, 0), (2, 1, 0)], "not where it was told"),
        (&[(1, 0, 0), (2, 0, 1), (3, 0, 2)], "3 was rejected and is there"),
        (&[(1, 0, 0), (2, 0, 1), (4, 0, 2)], "4 was rejected and is there"),
    ] {
        let fault = judge(&told, found).unwrap_err();
        assert!(fault.contains(says), "{says}: {fault}");
    }
}

/// A patient producer and one that gives up soon, while the broker is killed
/// and comes back at the same address, three times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_works_through_the_death_and_return_of_its_broker() {
    let dir = TempDir::new().unwrap();
    let addr = own_address().to_string();
    let options = ["--listen", &addr, "--shards", "2", "--memory", "160MiB", "--segment-size", "16MiB"];
    let mut server = Server::serve(&dir, &options);
    let client = Client::connect(addr.as_str()).await.unwrap();
    client.admin().create_topic("t", PARTITIONS).await.unwrap();
    let progress = Arc::new(Progress::default());
    let builder = client.producer("t").batch_records(50);
    let patient = builder.clone().deadline(Duration::from_secs(60)).build().await.unwrap();
    let hasty = builder.deadline(Duration::from_millis(200)).build().await.unwrap();
    let patient = tokio::spawn(produce(patient, "patient", Arc::clone(&progress)));
    let hasty = tokio::spawn(produce(hasty, "hasty", Arc::clone(&progress)));
    for kill in 0..3 {
        let before = progress.durable.load(Ordering::Relaxed);
        let waited = tokio::time::timeout(PATIENCE, async {
            while progress.durable.load(Ordering::Relaxed) < before + 2000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("nothing is acknowledged before kill {kill}"));
        server.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        server = Server::serve(&dir, &options);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    progress.enough.store(true, Ordering::Relaxed);
    let (patient, hasty) = (patient.await.unwrap(), hasty.await.unwrap());

    for (name, told) in [("patient", &patient), ("hasty", &hasty)] {
        let verdict = judge(told, &read_back(&client, name).await);
        assert_eq!(verdict, Ok(()), "{name}");
        assert!(told.durable.len() > 100, "{name}: {} durable", told.durable.len());
        assert!(told.refused.is_empty(), "{name}: nothing was wrong with {:?}", told.refused);
    }
    assert!(patient.retryable.is_empty() && patient.unknown.is_empty(), "it had the time to try again");
    assert!(!hasty.retryable.is_empty(), "what is not sent for so long is rejected");
}
