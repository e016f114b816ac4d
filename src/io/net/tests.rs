//! One core's sockets against peers on loopback, with a clock and a shard that
//! the test holds in its hands.

mod crowds;
mod ends;
mod halves;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringbolt_wire::frame::FRAME_HEADER_LEN;
use ringbolt_wire::message::{Hello, ProduceAck, Request, produce_head};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Sequence, TopicId,
};

use super::*;
use crate::io::ring::RingConfig;
use crate::limits::{CHUNK_LEN, MIN_FRAME_RATE};
use crate::session::Listings;
use crate::shard::event::ShardRequest;

const FRAME_TIMEOUT_US: u64 = 30_000_000;

/// A core with one shard that takes appends when it is told to.
struct TestHost {
    ring: Ring,
    now: Now,
    is_open: bool,
    stalled: Vec<u64>,
    /// Session and number of each request.
    requests: Vec<(u64, u64)>,
    /// How many fetches were to be answered at once.
    hurried: usize,
    handed_over: Vec<Handover>,
}

struct TestShards<'a> {
    host: &'a mut TestHost,
    session: u64,
}

impl Shards for TestShards<'_> {
    type Buffer = PoolBuffer;

    fn accepts(&mut self, _: ShardId, appends: bool) -> bool {
        self.host.is_open || !appends
    }

    fn request(&mut self, _: ShardId, number: u64, _: ShardRequest<'_, PoolBuffer>) {
        self.host.requests.push((self.session, number));
    }

    fn pause(&mut self, _: ShardId, _: u64, _: bool) {}

    fn fetch_now(&mut self, _: ShardId, _: u64) {
        self.host.hurried += 1;
    }

    fn stats(&mut self, _: u64) {}
}

impl Host for TestHost {
    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    fn now(&self) -> Now {
        self.now
    }

    fn shards_for(&mut self, session: u64) -> impl Shards<Buffer = PoolBuffer> + '_ {
        TestShards { host: self, session }
    }

    fn stalled(&mut self, session: u64, _: ShardId) {
        self.stalled.push(session);
    }

    fn session_closed(&mut self, _: u64) {}

    fn hand_over(&mut self, core: u16, connection: Handover) {
        assert_eq!(core, 1, "there is no other");
        self.handed_over.push(connection);
    }
}

struct Fixture {
    net: Net,
    host: TestHost,
    pool: Pool,
    addr: SocketAddr,
    /// When the last turn said that the next one is due.
    due_us: Option<u64>,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut NetConfig)) -> Fixture {
        Fixture::with_shard_on(0, change)
    }

    /// The one shard is on this core; the sockets are those of core 0.
    fn with_shard_on(core: u16, change: impl FnOnce(&mut NetConfig)) -> Fixture {
        let mut ring = Ring::new(RingConfig::default()).unwrap();
        let pool = Pool::new(8 * CHUNK_LEN).unwrap();
        let (mut listeners, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
        let mut config = NetConfig {
            max_connections: 1000,
            connections: Arc::default(),
            handshake_timeout_us: 10_000_000,
            frame_timeout_us: FRAME_TIMEOUT_US,
            max_stashed: 1 << 20,
            max_unsent_own: 8 << 20,
            max_direct: 4 << 20,
            low_chunks: 0,
            receive_chunks: 1,
        };
        change(&mut config);
        let session_config = Rc::new(SessionConfig {
            max_unsent: 1 << 20,
            max_unsent_own: 1 << 20,
            listings: Listings::new(1 << 20),
            ..SessionConfig::for_tests(0, vec![core])
        });
        let listener = listeners.remove(0);
        let net = Net::new(&mut ring, pool.clone(), listener, config, session_config).unwrap();
        let now = Now { mono_us: 1_000_000, wall_us: 0 };
        let host = TestHost {
            ring,
            now,
            is_open: true,
            stalled: Vec::new(),
            requests: Vec::new(),
            hurried: 0,
            handed_over: Vec::new(),
        };
        Fixture { net, host, pool, addr, due_us: None }
    }

    /// A turn of the loop. Returns whether anything had happened.
    fn turn(&mut self) -> bool {
        self.turn_within(Duration::from_millis(10))
    }

    /// The same; if nothing happens it lasts so long.
    fn turn_within(&mut self, time: Duration) -> bool {
        let mut worked = false;
        while let Some(completion) = self.host.ring.next_completion() {
            if completion.token.class() == Class::Net {
                worked = true;
                self.net.complete(completion, &mut self.host);
            }
        }
        self.net.tick(&mut self.host);
        self.due_us = self.net.settle(&mut self.host);
        self.host.ring.submit_and_wait(Some(time)).unwrap();
        worked
    }

    /// So many turns of the loop, each of so many µs on the test's clock.
    fn turns(&mut self, count: usize, each_us: u64) {
        for _ in 0..count {
            self.turn_within(Duration::from_millis(1));
            self.host.now.mono_us += each_us;
        }
    }

    /// Turns of the loop until nothing has happened for a while.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            quiet = if self.turn() || self.wait() { 0 } else { quiet + 1 };
        }
    }

    /// Lets the time pass until the next turn, if that is within what accepting and
    /// closing wait.
    fn wait(&mut self) -> bool {
        let soon = self.host.now.mono_us..=self.host.now.mono_us + 1_000;
        let Some(due_us) = self.due_us.filter(|due| soon.contains(due)) else { return false };
        std::mem::replace(&mut self.host.now.mono_us, due_us) < due_us
    }

    /// What was sent has come before the time passes.
    fn pass(&mut self, time_us: u64) {
        self.settle();
        self.host.now.mono_us += time_us;
        self.settle();
    }

    /// A peer that has said hello.
    fn peer(&mut self) -> Peer {
        let mut peer = Peer::new(TcpStream::connect(self.addr).unwrap());
        peer.send(&hello());
        self.settle();
        assert_eq!(peer.answers(), [GREETED]);
        peer
    }

    /// Lets the shard take appends, and those go on that waited for it.
    fn open_shard(&mut self) {
        self.host.is_open = true;
        for session in std::mem::take(&mut self.host.stalled) {
            self.net.resume(session, &mut self.host);
        }
    }

    /// Acknowledges all requests that came.
    fn acknowledge(&mut self) {
        for (session, number) in std::mem::take(&mut self.host.requests) {
            let ack = ProduceAck { base_offset: Offset(0), commit_time_us: 1, copies: 1, duplicate: false };
            self.net.reply(session, number, Reply::Produced(ack), &mut self.host);
        }
    }
}

struct Peer {
    stream: TcpStream,
    /// What the kernel has not taken yet.
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Peer {
        stream.set_nonblocking(true).unwrap();
        Peer { stream, sent: Vec::new(), received: Vec::new() }
    }

    /// Sends as much as the kernel takes.
    fn send(&mut self, bytes: &[u8]) {
        self.sent.extend_from_slice(bytes);
        while !self.sent.is_empty() {
            match self.stream.write(&self.sent) {
                Ok(count) => drop(self.sent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Opcode and status of each frame that has come, on a connection that goes on or
    /// was closed in order.
    fn answers(&mut self) -> Vec<(u8, u16)> {
        self.read(|error| assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"))
    }

    /// As [`answers`](Self::answers), on one that may have been cut.
    fn last_answers(&mut self) -> Vec<(u8, u16)> {
        self.read(|error| {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset), "{error}");
        })
    }

    fn read(&mut self, check: impl Fn(std::io::Error)) -> Vec<(u8, u16)> {
        if let Err(error) = self.stream.read_to_end(&mut self.received) {
            check(error);
        }
        let mut answers = Vec::new();
        while self.received.len() >= FRAME_HEADER_LEN {
            let header = FrameHeader::decode(&self.received, u32::MAX).unwrap().unwrap();
            self.received.drain(..header.frame_len());
            answers.push((header.opcode, header.status));
        }
        answers
    }
}

fn frame(value: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    builder.push(1, None, &vec![7; value], &[]);
    let partition = PartitionId::new(TopicId(1), 0);
    let batch = builder.finish(partition, ProducerId::NONE, Epoch(0), Sequence(0));
    [&produce_head(1, 1, batch.len() as u32)[..], &batch].concat()
}

fn hello() -> Vec<u8> {
    hello_for(None)
}

fn hello_for(affinity: Option<PartitionId>) -> Vec<u8> {
    let hello = Hello { min_version: 1, max_version: 1, features: 0, affinity, client_name: String::new() };
    let mut bytes = Vec::new();
    Request::Hello(hello).encode(&mut bytes, 1, 0);
    bytes
}

fn ping() -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Ping.encode(&mut bytes, 2, 0);
    bytes
}

const PONG: (u8, u16) = (Opcode::Ping as u8, 0);
const GREETED: (u8, u16) = (Opcode::Hello as u8, 0);
const PRODUCED: (u8, u16) = (Opcode::Produce as u8, 0);

fn goodbye(code: ErrorCode) -> (u8, u16) {
    (Opcode::Goodbye as u8, code as u16)
}

#[test]
fn what_waits_for_a_shard_stays_within_its_bound_and_none_of_it_is_lost() {
    const PEERS: usize = 60;
    const FRAMES: usize = 40;
    let mut fixture = Fixture::new(|_| {});
    let mut peers: Vec<Peer> = (0..PEERS).map(|_| fixture.peer()).collect();
    fixture.host.is_open = false;
    let bytes = frame(4000).repeat(FRAMES);
    let started = Instant::now();
    for peer in &mut peers {
        peer.send(&bytes);
        fixture.settle();
        // One turn of the loop takes as much as all receive buffers hold.
        let waits = fixture.net.stashed.whole;
        let bound = fixture.net.config.max_stashed + CHUNK_LEN;
        assert!(waits <= bound, "{waits} bytes wait, the bound is {bound}");
    }
    assert!(fixture.net.throttled, "too little was sent to reach the bound");
    assert!(fixture.host.requests.is_empty());
    // Who has only now come is greeted all the same.
    peers.push(fixture.peer());
    peers.last_mut().unwrap().send(&bytes);

    fixture.open_shard();
    let mut acked = vec![0; peers.len()];
    while acked.iter().sum::<usize>() < peers.len() * FRAMES {
        assert!(started.elapsed() < Duration::from_secs(60), "{acked:?}");
        fixture.acknowledge();
        fixture.settle();
        for (peer, acked) in peers.iter_mut().zip(&mut acked) {
            peer.send(&[]);
            let answers = peer.answers();
            assert!(answers.iter().all(|&answer| answer == PRODUCED), "{answers:?}");
            *acked += answers.len();
        }
    }
    assert_eq!(acked, vec![FRAMES; peers.len()]);
    assert_eq!((fixture.net.stashed.whole, fixture.net.throttled), (0, false));
}

#[test]
fn frames_that_do_not_end_are_closed_and_slow_links_are_not() {
    let mut fixture = Fixture::new(|_| {});
    let large = frame(200_000);
    // Received directly; half of it comes at once, then a byte at a time.
    let mut half = fixture.peer();
    half.send(&large[..100_000]);
    // The head of a small one, a byte at a time.
    let mut trickle = fixture.peer();
    trickle.send(&frame(10)[..5]);
    // A slow link: somewhat more than the least rate.
    let per_time = (MIN_FRAME_RATE * FRAME_TIMEOUT_US / 1_000_000) as usize * 5 / 4;
    let mut slow = fixture.peer();
    slow.send(&large[..per_time]);
    // Seldom anything, but whole.
    let mut seldom = fixture.peer();
    // Always half a frame here, but another one each time.
    let mut steady = fixture.peer();
    let small = frame(10);
    steady.send(&small[..50]);
    fixture.settle();
    assert!(fixture.net.direct_held > 0, "the large batch has memory of its own");

    let mut sent = per_time;
    for round in 0..2 {
        half.send(&large[100_000 + round..][..1]);
        trickle.send(&frame(10)[5 + round..][..1]);
        let next = (sent + per_time).min(large.len());
        slow.send(&large[sent..next]);
        sent = next;
        seldom.send(&small);
        steady.send(&[&small[50..], &small[..50]].concat());
        fixture.pass(FRAME_TIMEOUT_US + 10_000);
        fixture.acknowledge();
        fixture.settle();
        assert_eq!(seldom.answers(), [PRODUCED]);
        assert_eq!(steady.answers(), [PRODUCED]);
        if round == 0 {
            assert_eq!((half.answers(), trickle.answers()), (vec![], vec![]), "one time is for free");
        }
    }
    assert_eq!(half.answers(), [goodbye(ErrorCode::FrameTimeout)]);
    assert_eq!(trickle.answers(), [goodbye(ErrorCode::FrameTimeout)]);
    assert_eq!(fixture.net.counters.slow_writers, 2);
    drop((half, trickle, steady));
    while sent < large.len() {
        let next = (sent + per_time).min(large.len());
        slow.send(&large[sent..next]);
        sent = next;
        fixture.pass(FRAME_TIMEOUT_US + 10_000);
    }
    fixture.acknowledge();
    fixture.settle();
    assert_eq!(slow.answers(), [PRODUCED]);
    drop(slow);
    fixture.pass(1_000_000);
    assert_eq!(fixture.net.direct_held, 0, "all memory has come back");
}

#[test]
fn time_in_which_the_broker_receives_nothing_is_not_held_against_a_frame() {
    let mut fixture = Fixture::new(|_| {});
    let mut half = fixture.peer();
    let small = frame(4000);
    half.send(&small[..3000]);
    fixture.pass(FRAME_TIMEOUT_US + 10_000);
    // Others wait for a shard, so much that all have to.
    fixture.host.is_open = false;
    let bytes = frame(4000).repeat(30);
    let mut others: Vec<Peer> = (0..40).map(|_| fixture.peer()).collect();
    others.iter_mut().for_each(|other| other.send(&bytes));
    fixture.settle();
    assert!(fixture.net.throttled);
    half.send(&small[3000..3100]);
    for _ in 0..3 {
        fixture.pass(FRAME_TIMEOUT_US + 10_000);
    }
    fixture.open_shard();
    fixture.settle();
    assert!(!fixture.net.throttled);
    fixture.pass(FRAME_TIMEOUT_US / 2);
    half.send(&small[3100..]);
    fixture.settle();
    fixture.acknowledge();
    fixture.settle();
    assert_eq!(half.answers(), [PRODUCED]);
}

#[test]
fn a_batch_that_does_not_end_is_told_so_when_memory_is_short() {
    let mut fixture = Fixture::new(|config| config.low_chunks = 2);
    let mut half = fixture.peer();
    half.send(&frame(200_000)[..100_000]);
    fixture.pass(1_000_000);
    assert_eq!(half.answers(), []);
    let taken: Vec<_> = std::iter::from_fn(|| fixture.pool.take()).collect();
    fixture.pass(1_000_000);
    assert_eq!(half.answers(), [goodbye(ErrorCode::Overloaded)]);
    assert_eq!(fixture.net.counters.slow_writers, 1);
    assert_eq!(fixture.net.direct_held, 0, "its memory is free before it has gone");
    drop((taken, half));
    fixture.settle();
    assert_eq!(fixture.net.counters.open, 0);
}

/// Nothing is sent to whoever reads nothing, and that for 30 s and no longer.
#[test]
fn a_peer_that_reads_nothing_for_30_s_is_closed_and_one_that_reads_late_is_not() {
    let mut f = Fixture::new(|_| {});
    let mut peers = [f.peer(), f.peer()];
    let pings = ping().repeat(10_000);
    for (slot, peer) in peers.iter_mut().enumerate() {
        while f.net.slots[slot].get().send.is_none() {
            peer.send(&pings);
            f.settle();
        }
    }
    f.pass(29_000_000);
    assert_eq!(f.net.counters().open, 2);
    assert!(peers[1].answers().len() > 1000);
    f.pass(2_000_000);
    assert_eq!((f.net.counters().open, f.net.counters().slow_readers), (1, 1));
    assert!(f.net.slots[0].connection.is_none(), "the one that has read nothing");
}
