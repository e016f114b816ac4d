//! A broker under peers that use up what can be used up: connections, memory,
//! patience. Others must not notice, and memory stays what it was given.

mod net_common;

use std::io::Write;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt_wire::message::{Hello, Request, Response};
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use tempfile::TempDir;

const ZERO: Offset = Offset(0);
const MIB: u64 = 1 << 20;

#[test]
fn a_reader_that_never_reads_does_not_stop_producers() {
    let broker = start(|config| config.memory = 96 * MIB);
    let topic = broker.topic("t", 1);
    let partition = PartitionId::new(topic.id, 0);
    let mut writer = broker.connect();
    let large = batch(partition, &[&vec![1; 200_000]]);
    let mut readers: Vec<Peer> = (0..20).map(|_| broker.connect()).collect();
    // Several times the broker's memory goes by, and each reader asks for
    // another part of it, over and over, and reads nothing.
    let mut slowest = Duration::ZERO;
    for i in 0..1500usize {
        let started = Instant::now();
        let offset = writer.produce(&large);
        slowest = slowest.max(started.elapsed());
        if i % 20 == 19 {
            let from = Offset(offset.0.saturating_sub(19));
            let fetch = encode(&fetch_request(&[(partition, from)], 8 << 20, 0), 1);
            // Refused once it was closed.
            let _ = readers[i / 20 % 20].stream.write_all(&fetch.repeat(10));
        }
    }
    assert!(slowest < Duration::from_secs(2), "an acknowledgement took {slowest:?}");
    assert!(broker.stat("slow_readers_total") > 0, "readers that pin memory are closed");
    assert_eq!(broker.connect().read_all(partition, Offset(1450)).len(), 50);
    drop(readers);
    broker.stop();
}

#[test]
fn half_frames_cannot_use_up_the_memory() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut writer = Peer::greeted(server.addr);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let frame = produce_frame(1, &batch(partition, &[&vec![1; 900_000]]));
    let mut halves = Vec::new();
    for _ in 0..300 {
        let mut peer = Peer::greeted(server.addr);
        // Refused at some time: then it is closed while it sends.
        let _ = peer.stream.write_all(&frame[..frame.len() - 1]);
        halves.push(peer);
    }
    let started = Instant::now();
    writer.produce(&batch(partition, &[b"goes on"]));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(writer.stat("violations_total") > 0, "the oldest halves are closed");
    assert!(server.rss() <= (96 + 64) * MIB, "{} MiB", server.rss() / MIB);
}

#[test]
fn requests_with_long_answers_cannot_use_up_the_memory() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut writer = Peer::greeted(server.addr);
    writer.topic("wide", 20_000);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let describe = |i| encode(&Request::DescribeTopic { name: "wide".to_owned() }, i);
    let list = |i| encode(&Request::ListTopics, i);
    let many: Vec<u8> = (0..500).flat_map(|i| [describe(2 * i), list(2 * i + 1)].concat()).collect();
    let mut readers: Vec<_> = (0..4).map(|_| Peer::greeted(server.addr)).collect();
    readers.iter_mut().for_each(|peer| peer.send(&many));
    for _ in 0..200 {
        writer.produce(&batch(partition, &[b"goes on"]));
        assert!(server.rss() <= (96 + 64) * MIB, "{} MiB", server.rss() / MIB);
    }
    // Whoever reads gets all its answers.
    let peer = &mut readers[0];
    if let Ok(Some(mut answer)) = peer.try_answer() {
        for expected in 0..20 {
            assert_eq!(answer.header.correlation, expected);
            answer = peer.answer();
        }
    }
}

#[test]
fn many_who_ask_at_once_about_the_widest_topic_cannot_use_up_the_memory() {
    const PEERS: usize = 100;
    let dir = TempDir::new().unwrap();
    let usual = ["--listen", "127.0.0.1:0", "--shards", "1", "--memory", "96MiB"];
    let server = Server::serve(&dir, &[&usual[..], &["--segment-size", "64MiB"]].concat());
    let mut writer = Peer::greeted(server.addr);
    let wide = writer.topic("wide", 100_000);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let describe = Request::DescribeTopic { name: "wide".to_owned() };
    writer.ask(&describe);
    let before = server.peak_rss();
    // All have asked before the first one reads; then each reads what it gets, and
    // asks again if it was closed for not reading.
    let barrier = Arc::new(Barrier::new(PEERS + 1));
    let started = Instant::now();
    let threads: Vec<_> = (0..PEERS)
        .map(|_| {
            let (addr, barrier, describe) = (server.addr, Arc::clone(&barrier), describe.clone());
            std::thread::spawn(move || {
                let mut peer = Peer::greeted(addr);
                barrier.wait();
                peer.send(&encode(&describe, 7));
                std::thread::sleep(Duration::from_millis(20));
                loop {
                    match peer.try_answer() {
                        Ok(Some(Answer { response: Response::Topic(topic), .. })) => return topic,
                        Ok(Some(other)) => panic!("{other:?}"),
                        Ok(None) | Err(_) => {
                            assert!(started.elapsed() < Duration::from_secs(60), "never answered");
                            peer = Peer::greeted(addr);
                            peer.send(&encode(&describe, 7));
                        }
                    }
                }
            })
        })
        .collect();
    barrier.wait();
    for _ in 0..50 {
        writer.produce(&batch(partition, &[b"goes on"]));
    }
    for thread in threads {
        let topic = thread.join().unwrap();
        assert_eq!((topic.topic.id, topic.partitions.len()), (wide.id, 100_000));
    }
    let grown = server.peak_rss() - before;
    println!("{PEERS} answers about 100,000 partitions each cost {} MiB", grown / MIB);
    assert!(grown <= 40 * MIB, "{PEERS} answers cost {} MiB at once", grown / MIB);
}

#[test]
fn who_reads_no_long_answers_does_not_keep_others_from_theirs() {
    let broker = start(|config| config.segment_size = Some(64 << 20));
    broker.topic("wide", 100_000);
    broker.topic("t", 1);
    let describe = |name: &str| Request::DescribeTopic { name: name.to_owned() };
    let silent: Vec<Peer> = (0..20)
        .map(|_| {
            let mut peer = broker.connect();
            peer.send(&encode(&describe("wide"), 1));
            peer
        })
        .collect();
    let mut peer = broker.connect();
    for _ in 0..20 {
        let started = Instant::now();
        assert!(matches!(peer.ask(&describe("t")), Response::Topic(_)));
        assert!(matches!(peer.ask(&Request::ListTopics), Response::Topics(_)));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
    drop(silent);
    broker.stop();
}

#[test]
fn answers_that_nobody_reads_cannot_use_up_the_memory() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut writer = Peer::greeted(server.addr);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let pings: Vec<u8> = (0..400_000).flat_map(|i| encode(&Request::Ping, i)).collect();
    let mut readers = Vec::new();
    for _ in 0..100 {
        let mut peer = Peer::greeted(server.addr);
        peer.stream.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
        // Held back at some time, or closed.
        let _ = peer.stream.write_all(&pings);
        readers.push(peer);
        assert!(server.rss() <= (96 + 64) * MIB, "{} MiB", server.rss() / MIB);
    }
    writer.produce(&batch(partition, &[b"goes on"]));
    assert!(writer.stat("slow_readers_total") > 0, "those that hold most are closed");
}

#[test]
fn halves_of_large_batches_between_whole_ones_cannot_use_up_the_memory() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut writer = Peer::greeted(server.addr);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let half = produce_frame(1, &batch(partition, &[&vec![1; 80_000]]));
    let whole = batch(partition, &[&vec![2; 900_000]]);
    let mut halves = Vec::new();
    let started = Instant::now();
    for _ in 0..250 {
        let mut peer = Peer::greeted(server.addr);
        peer.send(&half[..half.len() / 2]);
        halves.push(peer);
        writer.produce(&whole);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(writer.stat("slow_writers_total") > 0, "the oldest halves are closed");
    assert!(server.rss() <= (96 + 64) * MIB, "{} MiB", server.rss() / MIB);
}

/// More open files than two tests of one process may have at once.
static MOST_FILES: Mutex<()> = Mutex::new(());

#[test]
fn ten_thousand_silent_sockets_cost_little_and_leave_in_time() {
    let _alone = MOST_FILES.lock();
    ringbolt::io::process::raise_open_files().unwrap();
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB", "--handshake-timeout", "20s"]);
    let mut writer = Peer::greeted(server.addr);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let small = batch(partition, &[b"x"]);
    writer.produce(&small);
    let before = server.rss();
    let mut silent: Vec<_> = (0..10_000).map(|_| Peer::silent(server.addr)).collect();
    wait_until("all are accepted", || writer.stat("connections") >= 10_001);
    for _ in 0..200 {
        writer.produce(&small);
    }
    let grown = server.rss().saturating_sub(before);
    assert!(grown <= 100 * MIB, "10,000 idle connections cost {} MiB", grown / MIB);
    assert_eq!(silent[0].goodbye(), ErrorCode::HandshakeTimeout);
    assert_eq!(silent[9_999].goodbye(), ErrorCode::HandshakeTimeout);
    drop(silent);
    wait_until("all are gone", || writer.stat("connections") == 1);
}

#[test]
fn ten_thousand_sockets_that_were_active_once_cost_as_little() {
    let _alone = MOST_FILES.lock();
    ringbolt::io::process::raise_open_files().unwrap();
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut writer = Peer::greeted(server.addr);
    let partition = PartitionId::new(writer.topic("t", 1).id, 0);
    let frame = produce_frame(1, &batch(partition, &[&[1; 7000]]));
    let pings = encode(&Request::Ping, 2).repeat(400);
    let use_all = |peer: &mut Peer| {
        // Half a frame is kept, many answers are gathered.
        peer.send(&frame[..6000]);
        peer.send(&[&frame[6000..], &pings].concat());
        (0..401).for_each(|_| drop(peer.answer()));
    };
    use_all(&mut writer);
    let before = server.rss();
    let active: Vec<_> = (0..10_000)
        .map(|_| {
            let mut peer = Peer::greeted(server.addr);
            use_all(&mut peer);
            peer
        })
        .collect();
    let grown = server.rss().saturating_sub(before);
    assert!(grown <= 100 * MIB, "10,000 connections that are idle again cost {} MiB", grown / MIB);
    println!("10,000 connections that are idle again cost {} MiB", grown / MIB);
    drop(active);
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let broker = start(|config| config.max_connections = 3);
    let mut peers: Vec<Peer> = (0..3).map(|_| broker.connect()).collect();
    assert_eq!(Peer::silent(broker.addr).goodbye(), ErrorCode::TooManyConnections);
    peers.pop();
    wait_until("there is room again", || peers[0].stat("connections") <= 2);
    assert_eq!(broker.connect().ask(&Request::Ping), Response::Pong);
    broker.stop();
}

#[test]
fn an_idle_broker_hardly_runs() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    peer.produce(&batch(partition, &[b"x"]));
    std::thread::sleep(Duration::from_millis(1500));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(4));
    // Ticks are 10 ms: two of them in 4 s are 0.5 % of a core.
    assert!(ticks() - before <= 2, "{} ticks in 4 s", ticks() - before);
}

#[test]
fn partitions_of_several_shards_are_one_topic_to_a_peer() {
    let cpus = ringbolt::io::pin::available_cpus().unwrap();
    for cores in 1..=cpus.len().min(2) {
        let broker = start(|config| {
            config.shards = Some(4);
            config.memory = 160 * MIB;
            config.cores = Some(cpus[..cores].to_vec());
        });
        let topic = broker.topic("t", 6);
        let partition = |index| PartitionId::new(topic.id, index);
        let mut peer = broker.connect();
        for round in 0..3u8 {
            for index in 0..6 {
                let value = vec![round; 10 + 9000 * index as usize];
                assert_eq!(peer.produce(&batch(partition(index), &[&value])), Offset(u64::from(round)));
            }
        }
        let wanted: Vec<_> = (0..6).map(|index| (partition(index), Offset(1))).collect();
        let (partitions, payload) = peer.fetch(&wanted, 8 << 20, 0);
        let order: Vec<u32> = partitions.iter().map(|p| p.partition.index).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5]);
        let found = records(&partitions, &payload);
        let lens: Vec<usize> = found.iter().filter(|(o, _)| *o == Offset(1)).map(|(_, v)| v.len()).collect();
        assert_eq!(lens, [10, 9010, 18_010, 27_010, 36_010, 45_010]);
        match peer.ask(&Request::DescribeTopic { name: "t".to_owned() }) {
            Response::Topic(description) => {
                assert!(description.partitions.iter().all(|p| p.end_offset == Offset(3)), "{description:?}");
            }
            other => panic!("{other:?}"),
        }
        // A wait over several shards ends with the first that has something.
        let at_end: Vec<_> = (0..6).map(|index| (partition(index), Offset(3))).collect();
        peer.send(&encode(&fetch_request(&at_end, 1 << 20, 30_000), 99));
        std::thread::sleep(Duration::from_millis(50));
        let started = Instant::now();
        broker.connect().produce(&batch(partition(4), &[b"news"]));
        let answer = peer.answer();
        assert!(matches!(answer.response, Response::Fetched(p) if p[4].end_offset == Offset(4)));
        assert!(started.elapsed() < Duration::from_secs(10));
        assert_eq!(peer.stat("shards"), 4);
        assert_eq!(peer.stat("cores"), cores as u64);
        broker.stop();
    }
}

#[test]
fn a_connection_moves_to_the_core_of_its_partition() {
    let cpus = ringbolt::io::pin::available_cpus().unwrap();
    if cpus.len() < 2 {
        return;
    }
    let broker = start(|config| {
        config.shards = Some(2);
        config.cores = Some(cpus[..2].to_vec());
        config.memory = 160 * MIB;
    });
    let topic = broker.topic("t", 2);
    for index in [0, 1, 0, 1, 1, 0] {
        let partition = PartitionId::new(topic.id, index);
        let before = broker.stat("forwarded_bytes_total");
        let mut peer = Peer::silent(broker.addr);
        peer.greet(Hello { affinity: Some(partition), ..hello() });
        for _ in 0..5 {
            peer.produce(&batch(partition, &[&[1; 30_000]]));
        }
        assert_eq!(broker.stat("forwarded_bytes_total"), before, "nothing crosses cores");
    }
    broker.stop();
}

#[test]
fn requests_of_many_connections_on_two_cores_keep_their_order() {
    let cpus = ringbolt::io::pin::available_cpus().unwrap();
    let broker = start(|config| {
        config.shards = Some(2);
        config.cores = Some(cpus[..cpus.len().min(2)].to_vec());
        config.memory = 160 * MIB;
    });
    let topic = broker.topic("t", 16);
    let threads: Vec<_> = (0..16u32)
        .map(|index| {
            let mut peer = broker.connect();
            let partition = PartitionId::new(topic.id, index);
            std::thread::spawn(move || {
                for round in 0..20u64 {
                    let frames: Vec<u8> = (0..50)
                        .flat_map(|i| {
                            let value = [&(round * 50 + i).to_le_bytes()[..], &[9; 500]].concat();
                            produce_frame(i, &batch(partition, &[&value]))
                        })
                        .collect();
                    peer.send(&frames);
                    for i in 0..50 {
                        let answer = peer.answer();
                        assert_eq!(answer.header.correlation, i);
                        assert!(
                            matches!(answer.response, Response::Produced(a) if a.base_offset.0 == round * 50 + i)
                        );
                    }
                }
                let values = peer.read_all(partition, ZERO);
                let numbers: Vec<u64> =
                    values.iter().map(|v| u64::from_le_bytes(v[..8].try_into().unwrap())).collect();
                assert!(numbers == (0..1000).collect::<Vec<_>>());
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    broker.stop();
}
