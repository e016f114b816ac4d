//! Consumers that wait for more than a broker has memory for.

mod net_common;

use std::io::Write;
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt_wire::message::{MAX_FETCH_PARTITIONS, Request, Response};
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use tempfile::TempDir;

/// One connection sends as many fetches as it may, each for as many partitions as
/// it may name. Together they would take some 200 MB, and one record would be the
/// answer to all of them.
#[test]
fn fetches_that_wait_take_bounded_memory_and_nobody_waits_for_them() {
    let dir = TempDir::new().unwrap();
    let options =
        ["--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--shards", "2", "--memory", "96MiB"];
    let server = Server::serve(&dir, &options);
    let mut other = Peer::greeted(server.addr);
    let topic = other.topic("t", MAX_FETCH_PARTITIONS as u32);
    let all: Vec<_> = (0..topic.partitions).map(|i| (PartitionId::new(topic.id, i), Offset(0))).collect();
    let before = server.rss();

    let mut greedy = Peer::greeted(server.addr);
    let mut stream = greedy.stream.try_clone().unwrap();
    let fetch = fetch_request(&all, 1 << 20, 30_000);
    let sender = std::thread::spawn(move || {
        (0..1000u64).for_each(|i| stream.write_all(&encode(&fetch, 100 + i)).unwrap());
    });
    let pinger = std::thread::spawn(move || {
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let started = Instant::now();
            assert!(matches!(other.ask(&Request::Ping), Response::Pong));
            slowest = slowest.max(started.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        (other, slowest)
    });
    let mut refused = 0;
    while refused < 996 {
        assert_eq!(code(&greedy.answer().response), ErrorCode::Overloaded);
        refused += 1;
    }
    sender.join().unwrap();
    let (mut other, slowest) = pinger.join().unwrap();
    assert!(slowest < Duration::from_secs(1), "a ping took {slowest:?}");
    let more = server.rss().saturating_sub(before) >> 20;
    assert!(more < 64, "{more} MiB more than before");

    // Those that wait are answered, and make room for others.
    other.produce(&batch(all[0].0, &[b"a"]));
    for _ in 0..4 {
        let answer = greedy.answer();
        assert!(matches!(&answer.response, Response::Fetched(list) if list.len() == all.len()));
        assert!(!answer.payload.is_empty());
    }
    let (fetched, _) = greedy.fetch(&all, 1 << 20, 30_000);
    assert_eq!(fetched.len(), all.len());
}
