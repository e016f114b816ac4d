//! Two cores with a shard each, and peers that know which core they speak to:
//! each core has an address of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{Fetch, FetchPartition, Hello, Request, Response, TopicInfo, produce_head};
use ringbolt_wire::{
    BatchBuilder, Batches, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Sequence,
    TopicId,
};

use super::*;
use crate::io::mailbox::{Mailbox, Post};
use crate::io::net::bind;
use crate::reactor::{Course, Idle, Reactor, ReactorError};

const PATIENCE: Duration = Duration::from_secs(20);

struct Pair {
    addrs: [SocketAddr; 2],
    shared: Arc<Shared>,
    post: Post<Message>,
    threads: Vec<JoinHandle<Result<(), ReactorError>>>,
    dir: TempDir,
}

fn run_core(
    data: &DataDir,
    pool: Pool,
    shared: Arc<Shared>,
    mut mailbox: Mailbox<Message>,
    listener: std::os::fd::OwnedFd,
    connections: Arc<AtomicUsize>,
) -> Result<(), ReactorError> {
    let mut ring = Ring::new(RingConfig::default()).unwrap();
    mailbox.attach(&mut ring);
    let core = mailbox.core();
    let mut local = local_shard(data, ShardId(core), &pool);
    local.disk.start(&mut ring);
    let net = net(&mut ring, &pool, core, vec![0, 1], (listener, connections));
    let places = [0, 1].map(|on| if on == core { Place::Here(0) } else { Place::On(on) });
    let core = Core::new(ring, mailbox, vec![local], places.to_vec(), pool, shared, clock::now());
    Reactor::new(core, net, Idle::SleepAfter(0)).run()
}

impl Pair {
    fn start() -> Pair {
        let dir = TempDir::new().unwrap();
        let data = Arc::new(open(&dir, 2));
        let pool = Pool::new(64 << 20).unwrap();
        let (shared, connections) = (Arc::new(Shared::new(2)), Arc::new(AtomicUsize::new(0)));
        // Few, so that mailboxes are full at times.
        let boxes = mailboxes(2, 4).unwrap();
        let post = boxes[0].post();
        let (mut addrs, mut threads) = (Vec::new(), Vec::new());
        for mailbox in boxes {
            let (mut listeners, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
            addrs.push(addr);
            let (listener, data) = (listeners.pop().unwrap(), Arc::clone(&data));
            let (pool, shared, connections) = (pool.clone(), Arc::clone(&shared), Arc::clone(&connections));
            threads.push(std::thread::spawn(move || {
                run_core(&data, pool, shared, mailbox, listener, connections)
            }));
        }
        Pair { addrs: [addrs[0], addrs[1]], shared, post, threads, dir }
    }

    fn peer(&self, core: usize) -> Peer {
        Peer::greeted(self.addrs[core], None)
    }

    fn ask_to_stop(&self) {
        self.shared.set_course(Course::Stop);
        (0..2).for_each(|core| self.post.wake(core));
    }

    /// Waits for the end of both cores, which have nothing to wait for.
    fn join(self) -> TempDir {
        let started = Instant::now();
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "a core has ended because it was tired of waiting"
        );
        self.dir
    }

    fn stop(self) {
        self.ask_to_stop();
        self.join();
    }
}

/// A connection to one core.
struct Peer {
    stream: TcpStream,
    next: u64,
}

impl Peer {
    fn greeted(addr: SocketAddr, affinity: Option<PartitionId>) -> Peer {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer { stream, next: 0 };
        let client_name = "test".to_owned();
        let hello = Hello { min_version: 1, max_version: 1, features: 0, affinity, client_name };
        assert!(matches!(peer.ask(&Request::Hello(hello)), Response::Hello(_)));
        peer
    }

    fn send(&mut self, request: &Request, payload: &[u8]) -> u64 {
        self.next += 1;
        let mut out = Vec::new();
        match request {
            Request::Produce { min_copies } => {
                out.extend_from_slice(&produce_head(self.next, *min_copies, payload.len() as u32));
            }
            other => other.encode(&mut out, self.next, 0),
        }
        self.stream.write_all(&[&out[..], payload].concat()).unwrap();
        self.next
    }

    /// The next frame: request, answer, payload. `None` at the end.
    fn receive(&mut self) -> Option<(u64, Response, Vec<u8>)> {
        let mut head = [0; FRAME_HEADER_LEN];
        match self.stream.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            other => other.unwrap(),
        }
        let header = FrameHeader::decode(&head, u32::MAX).unwrap().unwrap();
        let mut meta = vec![0; header.frame_len() - head.len()];
        self.stream.read_exact(&mut meta).unwrap();
        let payload = meta.split_off(header.meta_len as usize);
        if header.opcode == Opcode::Goodbye as u8 {
            return None;
        }
        let response = Response::decode(header.opcode, header.status, &meta, header.payload_len).unwrap();
        Some((header.correlation, response, payload))
    }

    fn ask(&mut self, request: &Request) -> Response {
        let asked = self.send(request, &[]);
        let (answered, response, _) = self.receive().expect("an answer");
        assert_eq!(answered, asked);
        response
    }

    fn send_batch(&mut self, partition: PartitionId, value: &[u8]) -> u64 {
        let mut batch = BatchBuilder::new();
        batch.push(1, None, value, &[]);
        let batch = batch.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0));
        self.send(&Request::Produce { min_copies: 1 }, &batch)
    }

    fn produce(&mut self, partition: PartitionId, value: &[u8]) -> Result<Offset, ErrorCode> {
        self.send_batch(partition, value);
        match self.receive().expect("an answer").1 {
            Response::Produced(ack) => Ok(ack.base_offset),
            Response::Error(error) => Err(error.error_code().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn send_fetch(&mut self, partitions: &[(PartitionId, u64)], min_bytes: u32, max_wait_ms: u32) -> u64 {
        let part =
            |&(partition, offset)| FetchPartition { partition, offset: Offset(offset), max_bytes: 1 << 20 };
        let partitions = partitions.iter().map(part).collect();
        self.send(&Request::Fetch(Fetch { max_wait_ms, min_bytes, max_bytes: 4 << 20, partitions }), &[])
    }

    /// Status and values of each partition of the fetch that is answered next.
    fn fetched(&mut self) -> Vec<(u16, Vec<Vec<u8>>)> {
        let (_, response, payload) = self.receive().expect("an answer");
        let Response::Fetched(partitions) = response else { panic!("{response:?}") };
        let mut rest = &payload[..];
        let values = partitions.iter().map(|partition| {
            let (batches, left): (Batches<'_>, _) = partition.split_payload(rest);
            rest = left;
            let of_batch = |batch: ringbolt_wire::BatchView<'_>| {
                batch.records().map(|(_, record)| record.value.to_vec()).collect::<Vec<_>>()
            };
            (partition.status, batches.flat_map(|batch| of_batch(batch.unwrap())).collect())
        });
        values.collect()
    }

    /// Creates a topic; none is there before the shard has its first segment.
    fn create(&mut self, name: &str) -> Result<TopicInfo, ErrorCode> {
        loop {
            match self.ask(&Request::CreateTopic { name: name.to_owned(), partitions: 8 }) {
                Response::TopicCreated(topic) => return Ok(topic),
                Response::Error(error) if error.is_retryable() => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Response::Error(error) => return Err(error.error_code().unwrap()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn delete(&mut self, name: &str) -> Result<(), ErrorCode> {
        match self.ask(&Request::DeleteTopic { name: name.to_owned() }) {
            Response::TopicDeleted => Ok(()),
            Response::Error(error) => Err(error.error_code().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn stat(&mut self, name: &str) -> u64 {
        let Response::Stats(stats) = self.ask(&Request::Stats) else { panic!("no counters") };
        stats.iter().find(|(known, _)| known == name).expect("it is counted").1
    }
}

/// The topic's first partition on each shard.
fn partitions(topic: TopicId) -> [PartitionId; 2] {
    [0, 1].map(|shard| {
        let mut all = (0..8).map(|index| PartitionId::new(topic, index));
        all.find(|&id| crate::shard::placement::shard_of(id, 2) == ShardId(shard)).expect("one is there")
    })
}

#[test]
fn each_core_produces_to_and_reads_from_the_other_ones_shard_in_order() {
    let pair = Pair::start();
    let topic = pair.peer(0).create("t").unwrap().id;
    let threads: Vec<_> = (0..2)
        .map(|core| {
            let (mut peer, partition) = (pair.peer(core), partitions(topic)[1 - core]);
            std::thread::spawn(move || {
                let value = |n: usize| vec![n as u8; [10, 3000, 20_000, 60_000][n % 4]];
                let mut acked = 0;
                for round in 0..10 {
                    let sent: Vec<_> =
                        (0..30).map(|n| peer.send_batch(partition, &value(round * 30 + n))).collect();
                    for asked in sent {
                        let (answered, response, _) = peer.receive().expect("an answer");
                        let Response::Produced(ack) = response else { panic!("{response:?}") };
                        assert_eq!((answered, ack.base_offset), (asked, Offset(acked)));
                        acked += 1;
                    }
                }
                let mut read = 0;
                while read < 300 {
                    peer.send_fetch(&[(partition, read as u64)], 1, 10_000);
                    let [(0, values)] = &peer.fetched()[..] else { panic!("not read") };
                    for found in values {
                        assert!(*found == value(read), "record {read}");
                        read += 1;
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let forwarded = pair.peer(0).stat("forwarded_bytes_total");
    assert!(forwarded > 2 * 300 * 20_000, "{forwarded} bytes went from core to core");
    pair.stop();
}

#[test]
fn a_connection_goes_to_the_core_of_its_partition_with_all_that_it_has_sent() {
    let pair = Pair::start();
    for (core, other) in [(0, 1), (1, 0)] {
        let topic = pair.peer(0).create(&format!("topic-{core}")).unwrap().id;
        let before = pair.peer(0).stat("forwarded_bytes_total");
        let partition = partitions(topic)[other];
        let mut peer = Peer::greeted(pair.addrs[core], Some(partition));
        for n in 0..20 {
            assert_eq!(peer.produce(partition, &[n; 5000]), Ok(Offset(u64::from(n))));
        }
        assert_eq!(peer.stat("forwarded_bytes_total"), before, "nothing goes from core to core");
        peer.send_batch(partitions(topic)[core], &[1; 5000]);
        assert!(matches!(peer.receive(), Some((_, Response::Produced(_), _))));
        assert!(peer.stat("forwarded_bytes_total") > before, "it is on the other core");
    }
    pair.stop();
}

/// Whoever is told that a topic is there, or gone, finds it so on every shard,
/// through whichever core.
#[test]
fn two_clients_that_create_and_delete_one_topic_at_once_through_two_cores_agree() {
    let pair = Pair::start();
    let turns = Arc::new(Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|core| {
            let (mut peer, turns) = (pair.peer(core), Arc::clone(&turns));
            std::thread::spawn(move || {
                (0..20)
                    .map(|_| {
                        turns.wait();
                        let created = peer.create("t");
                        let Response::Topic(described) =
                            peer.ask(&Request::DescribeTopic { name: "t".to_owned() })
                        else {
                            panic!("it exists")
                        };
                        let topic = described.topic.id;
                        for partition in partitions(topic) {
                            assert!(peer.produce(partition, b"a").is_ok());
                        }
                        turns.wait();
                        let deleted = peer.delete("t");
                        for partition in partitions(topic) {
                            assert_eq!(peer.produce(partition, b"a"), Err(ErrorCode::UnknownTopic));
                        }
                        (created.map(|topic| topic.id), deleted, topic)
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let [first, second] = &threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()[..] else {
        unreachable!()
    };
    for (one, other) in first.iter().zip(second) {
        assert_eq!(one.2, other.2, "one topic");
        let created = [one.0, other.0];
        assert!(
            created.contains(&Ok(one.2)) && created.contains(&Err(ErrorCode::TopicExists)),
            "{created:?}"
        );
        let deleted = [one.1, other.1];
        assert!(deleted.contains(&Ok(())) && deleted.contains(&Err(ErrorCode::UnknownTopic)), "{deleted:?}");
    }
    pair.stop();
}

/// One shard's refusal is its partitions' alone, and is told at once; `min_bytes`
/// is what some one shard must have.
#[test]
fn a_fetch_over_two_shards_is_one_answer() {
    let pair = Pair::start();
    let mut peer = pair.peer(0);
    let topic = peer.create("t").unwrap().id;
    let [here, there] = partitions(topic);
    for partition in [here, there] {
        peer.produce(partition, &[7; 600]).unwrap();
    }
    let value = || vec![vec![7; 600]];
    let out_of_range = ErrorCode::OffsetOutOfRange as u16;
    let unknown = ErrorCode::UnknownTopic as u16;
    let [nowhere_here, nowhere_there] = partitions(TopicId(topic.0 + 1));
    let started = Instant::now();
    for (wanted, found) in [
        ([(here, 0), (there, 9)], [(0, value()), (out_of_range, vec![])]),
        ([(here, 9), (there, 0)], [(out_of_range, vec![]), (0, value())]),
        ([(here, 1), (there, 9)], [(0, vec![]), (out_of_range, vec![])]),
        ([(nowhere_there, 0), (here, 0)], [(unknown, vec![]), (0, value())]),
        ([(nowhere_here, 0), (there, 1)], [(unknown, vec![]), (0, vec![])]),
    ] {
        peer.send_fetch(&wanted, 1 << 20, 60_000);
        assert_eq!(peer.fetched(), found, "{wanted:?}");
    }
    assert!(started.elapsed() < PATIENCE, "refusals are not waited for");

    // 600 bytes and more on each of two shards are 1200, and not enough.
    peer.send_fetch(&[(here, 0), (there, 0)], 1200, 300);
    let started = Instant::now();
    assert_eq!(peer.fetched(), [(0, value()), (0, value())], "all that is there when the time is up");
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    pair.peer(1).produce(there, &[8; 600]).unwrap();
    peer.send_fetch(&[(here, 0), (there, 0)], 1200, 60_000);
    let both = [(0, value()), (0, vec![vec![7; 600], vec![8; 600]])];
    assert_eq!(peer.fetched(), both, "one shard has enough: what the other has comes as well");
    assert!(started.elapsed() < PATIENCE);
    pair.stop();
}

/// A core is not done while a connection of the other one may still ask its
/// shard, and is woken for the end by the last.
#[test]
fn a_stop_answers_what_each_core_has_forwarded_and_ends_both() {
    for round in 0..5 {
        let pair = Pair::start();
        let topic = pair.peer(0).create("t").unwrap().id;
        let mut peers = [pair.peer(0), pair.peer(1)];
        let waiting = [pair.peer(0), pair.peer(1)].map(|mut peer| {
            peer.send_fetch(&partitions(topic).map(|partition| (partition, 1_000)), 1, 0);
            assert!(peer.fetched().iter().all(|(status, _)| *status != 0), "{round}: it is greeted");
            peer.send_fetch(&partitions(topic).map(|partition| (partition, 0)), 1 << 20, 60_000);
            peer
        });
        for (core, peer) in peers.iter_mut().enumerate() {
            let partition = partitions(topic)[1 - core];
            peer.produce(partition, &[1; 10_000]).unwrap();
            (0..50).for_each(|_| _ = peer.send_batch(partition, &[1; 10_000]));
        }
        pair.ask_to_stop();
        let acked = peers.map(|mut peer| {
            let mut acked = 1;
            while let Some((_, response, _)) = peer.receive() {
                match response {
                    Response::Produced(ack) => assert_eq!(ack.base_offset, Offset(acked)),
                    Response::Error(error) => {
                        assert_eq!(error.error_code(), Some(ErrorCode::ShuttingDown));
                        continue;
                    }
                    other => panic!("{other:?}"),
                }
                acked += 1;
            }
            acked
        });
        for mut peer in waiting {
            assert_eq!(peer.fetched().len(), 2, "a waiting fetch is answered");
            assert!(peer.receive().is_none());
        }
        let dir = pair.join();
        let (data, pool) = (open(&dir, 2), Pool::new(16 << 20).unwrap());
        for (core, acked) in acked.into_iter().enumerate() {
            let other = 1 - core;
            let (log, _) = recovered(&data, ShardId(other as u16), &pool);
            let slot = log.state.slot(partitions(topic)[other]).expect("it has records");
            let kept = log.state.partition(slot).end_offset;
            assert!(kept >= Offset(acked), "{acked} were acknowledged, {kept} are there");
        }
    }
}
