//! What those who read take of the broker's memory: who waits, who is slow, who has much in hand.

mod net_common;

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt::consumer::groups::OPEN_COST;
use ringbolt_wire::message::{
    Attach, ConsumerAt, CreateGroup, Credit, GroupConfig, GroupInfo, GroupMode, GroupStart, MAX_CREDIT_BYTES,
    MAX_CREDIT_RECORDS, MAX_FETCH_PARTITIONS, Receive, Request, Response,
};
use ringbolt_wire::{
    BatchBuilder, ConsumerId, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Sequence, ShardId,
};
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

/// A consumer that has all credit there is reads little at a time, at the core that has its
/// partition and at another one. What it has not read was kept in memory, all of it.
#[test]
fn a_consumer_that_reads_slowly_is_sent_what_it_reads_and_not_what_its_credit_allows() {
    const RECORDS: u64 = 600;
    const LEN: usize = 100_000;
    let dir = TempDir::new().unwrap();
    let options =
        ["--listen", "127.0.0.1:0", "--segment-size", "64MiB", "--shards", "2", "--memory", "128MiB"];
    let server = Server::serve(&dir, &options);
    let mut other = Peer::greeted(server.addr);
    let topic = other.topic("t", 2);
    let group = create_group(&mut other, "g", GroupConfig::default());
    for partition in 0..2 {
        let id = PartitionId::new(topic.id, partition);
        let record = batch(id, &[&vec![b'x'; LEN]]);
        for _ in 0..RECORDS {
            other.produce(&record);
        }
        let Response::GroupDescribed(described) = other.ask(&Request::DescribeGroup { name: "g".into() })
        else {
            panic!("not described")
        };
        let shard = described.partitions[partition as usize].shard;

        let before = other.stat("delivered_bytes_total");
        let mut slow = Peer::greeted(server.addr);
        let credit = Credit { records: MAX_CREDIT_RECORDS, bytes: MAX_CREDIT_BYTES };
        let at = ConsumerAt { shard, group: group.id, consumer: ConsumerId(7) };
        let attach = Request::Attach(Attach { at, credit, lease_ms: 60_000, held: Vec::new() });
        slow.send(&encode(&attach, 1));
        let (mut read, mut got) = (0, 0);
        while got < RECORDS {
            let answer = slow.answer();
            let Response::Delivered(delivery) = &answer.response else { panic!("{:?}", answer.response) };
            got += delivery.ranges.iter().map(|range| u64::from(range.lease.count)).sum::<u64>();
            read += answer.payload.len() as u64;
            std::thread::sleep(Duration::from_millis(10));
            // As much as may be unsent, what a turn sends, and what the kernel keeps.
            let unread = other.stat("delivered_bytes_total") - before - read;
            assert!(unread < (16 + 8 + 16) << 20, "{} MiB not read", unread >> 20);
        }
        assert_eq!(got, RECORDS);
    }
}

/// The answer came when something else happened at the core, or after a minute.
#[test]
fn who_ends_its_side_while_it_waits_for_records_is_answered_at_once() {
    let dir = TempDir::new().unwrap();
    let server =
        Server::serve(&dir, &["--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--shards", "1"]);
    let mut peer = Peer::greeted(server.addr);
    peer.topic("t", 1);
    let group = create_group(&mut peer, "g", GroupConfig::default());
    let at = ConsumerAt { shard: ShardId(0), group: group.id, consumer: ConsumerId(7) };
    let credit = Credit { records: 10, bytes: 1000 };
    let waits = Receive { at, credit, lease_ms: 0, max_wait_ms: 60_000 };
    peer.send(&encode(&Request::Receive(waits), 1));
    // It has begun to wait.
    std::thread::sleep(Duration::from_millis(200));
    let ended = Instant::now();
    peer.stream.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(peer.answer().response, Response::Delivered(_)));
    assert!(ended.elapsed() < Duration::from_secs(2), "after {:?}", ended.elapsed());
}

/// A group of the topic "t", from its first record on.
fn create_group(peer: &mut Peer, name: &str, config: GroupConfig) -> GroupInfo {
    let create = CreateGroup {
        name: name.to_owned(),
        topic: "t".to_owned(),
        start: GroupStart::Earliest,
        or_find: false,
        config,
        dead_letter_topic: None,
    };
    match peer.ask(&Request::CreateGroup(create)) {
        Response::Group(group) => group,
        other => panic!("no group: {other:?}"),
    }
}

/// A consumer that has all of so many records.
fn take_all(addr: SocketAddr, group: &GroupInfo, records: usize) -> Peer {
    let mut peer = Peer::greeted(addr);
    let credit = Credit { records: MAX_CREDIT_RECORDS, bytes: MAX_CREDIT_BYTES };
    let at = ConsumerAt { shard: ShardId(0), group: group.id, consumer: ConsumerId(7) };
    peer.send(&encode(&Request::Attach(Attach { at, credit, lease_ms: 60_000, held: Vec::new() }), 1));
    let mut got = 0;
    while got < records {
        let answer = peer.answer();
        let Response::Delivered(delivery) = &answer.response else { panic!("{:?}", answer.response) };
        got += delivery.ranges.iter().map(|range| range.lease.count as usize).sum::<usize>();
    }
    assert_eq!(got, records);
    peer
}

/// Bytes of memory that a broker has touched, its pool excepted, which is its largest mapping.
fn beside_pool(server: &Server) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", server.child.id())).unwrap();
    let number = |line: &str| line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024;
    let of_each =
        |name: &str| maps.lines().filter_map(|l| l.strip_prefix(name)).map(number).collect::<Vec<_>>();
    let (sizes, touched) = (of_each("Size:"), of_each("Rss:"));
    let pool = (0..sizes.len()).max_by_key(|i| sizes[*i]).unwrap();
    touched.iter().sum::<usize>() - touched[pool]
}

#[test]
fn a_hundred_thousand_leases_take_no_more_memory_than_is_reckoned_for_them() {
    const RECORDS: usize = 50_000;
    for mode in [GroupMode::Shared, GroupMode::KeyOrdered] {
        let dir = TempDir::new().unwrap();
        let options = ["--listen", "127.0.0.1:0", "--segment-size", "64MiB", "--shards", "1"];
        let server = Server::serve(&dir, &options);
        let mut peer = Peer::greeted(server.addr);
        let topic = peer.topic("t", 1);
        for start in (0..RECORDS).step_by(1000) {
            let mut records = BatchBuilder::new();
            (start..start + 1000)
                .for_each(|i| records.push(0, Some(i.to_string().as_bytes()), b"value", &[]));
            let partition = PartitionId::new(topic.id, 0);
            peer.produce(&records.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0)));
        }
        let config = GroupConfig { mode, max_open: RECORDS as u32, ..GroupConfig::default() };
        // The first one also takes the memory in which records are sent.
        let first = take_all(server.addr, &create_group(&mut peer, "first", config), RECORDS);
        let group = create_group(&mut peer, "second", config);
        let before = beside_pool(&server);
        let second = take_all(server.addr, &group, RECORDS);
        let each = beside_pool(&server).saturating_sub(before) / RECORDS;
        assert!((30..=OPEN_COST).contains(&each), "{mode:?}: {each} bytes each");
        drop((first, second));
    }
}
