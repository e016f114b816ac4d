//! Consumers against a peer of a few lines that answers fetches as a test
//! wants: what must hold when a consumer, a connection or a broker does not do
//! what it should.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use ringbolt_wire::message::{Fetch, HelloAck};
use ringbolt_wire::{
    BatchBuilder, BatchHeader, BatchView, Epoch, FrameHeader, Offset, PartitionId, ProducerId, Sequence,
    TopicId,
};

use super::*;

/// Records in each batch of the peer.
const COUNT: u64 = 2;

fn partition(index: u32) -> PartitionId {
    PartitionId::new(TopicId(1), index)
}

/// The batch at this offset.
fn batch(partition: PartitionId, offset: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    (0..COUNT).for_each(|_| builder.push(1, None, b"value", &[]));
    let mut bytes = builder.finish(partition, ProducerId(9), Epoch(0), Sequence(offset));
    BatchHeader::set_placement(&mut bytes, Offset(offset), 1);
    bytes
}

/// What an honest broker, which holds the offsets below `end`, says to a fetch.
fn honest(fetch: &Fetch, end: u64) -> (Vec<FetchedPartition>, Vec<u8>) {
    let mut payload = Vec::new();
    let mut answer = |asked: &ringbolt_wire::message::FetchPartition| {
        let before = payload.len();
        if asked.offset.0 < end {
            payload.extend(batch(asked.partition, asked.offset.0));
        }
        FetchedPartition {
            partition: asked.partition,
            status: 0,
            payload_len: (payload.len() - before) as u32,
            base_offset: if payload.len() > before { asked.offset } else { Offset::UNKNOWN },
            start_offset: Offset(0),
            end_offset: Offset(end),
        }
    };
    let list = fetch.partitions.iter().map(&mut answer).collect();
    (list, payload)
}

fn greeting() -> Response {
    Response::Hello(HelloAck {
        version: 1,
        copies: 1,
        shards: 1,
        features: 0,
        max_frame_len: 64 << 20,
        max_batch_len: 16 << 20,
        max_in_flight: 5,
        boot: 1,
        broker_id: [0; 16],
    })
}

/// The next request of a connection, and what its answer repeats.
fn next_request(stream: &mut std::net::TcpStream) -> Option<(FrameHeader, Request)> {
    let mut frame = vec![0; 32];
    stream.read_exact(&mut frame).ok()?;
    let header = FrameHeader::decode(&frame, u32::MAX).unwrap().unwrap();
    frame.resize(header.frame_len(), 0);
    stream.read_exact(&mut frame[32..]).ok()?;
    let request = Request::decode(header.opcode, &frame[32..header.head_len()], header.payload_len);
    Some((header, request.unwrap()))
}

/// Greets, and lets `answer` answer every fetch, until the connection ends.
fn converse(
    mut stream: std::net::TcpStream,
    mut answer: impl FnMut(&Fetch) -> (Vec<FetchedPartition>, Vec<u8>),
) {
    while let Some((header, request)) = next_request(&mut stream) {
        let mut out = Vec::new();
        match request {
            Request::Hello(_) => greeting().encode(&mut out, header.opcode, header.correlation, 0),
            Request::Fetch(fetch) => {
                let (list, payload) = answer(&fetch);
                let len = payload.len() as u32;
                Response::Fetched(list).encode(&mut out, header.opcode, header.correlation, len);
                out.extend(payload);
            }
            other => panic!("{other:?}"),
        }
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

/// A peer for so many connections, each of which is served by `answer`.
fn peer<A>(connections: usize, answer: A) -> SocketAddr
where
    A: FnMut(&Fetch) -> (Vec<FetchedPartition>, Vec<u8>) + Send + Clone + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let (stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || converse(stream, answer));
        }
    });
    addr
}

/// Notes what it is told, and panics when it is given a batch of `poison`.
#[derive(Default)]
struct Notes {
    read: Vec<(PartitionId, u64)>,
    finished: Vec<PartitionId>,
    unreadable: Vec<PartitionId>,
    poison: Option<PartitionId>,
}

impl Reader for Notes {
    fn batch(&mut self, batch: &BatchView<'_>) {
        let header = batch.header();
        assert_ne!(self.poison, Some(header.partition()), "as the test wants");
        self.read.push((header.partition(), header.base_offset().0));
    }

    fn retained_from(&mut self, _: PartitionId, _: u64) {}

    fn unreadable(&mut self, partition: PartitionId, _: String) {
        self.unreadable.push(partition);
    }

    fn finished(&mut self, partition: PartitionId) {
        self.finished.push(partition);
    }
}

impl Sink for Notes {
    fn fetched(&mut self, _: u64, _: u64, _: usize) {}
}

/// Reads what there is with these consumers, as `verify` does.
fn read_all(addr: SocketAddr, consumers: Vec<Consumer>, sink: Notes) -> (Notes, Option<String>) {
    let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
    signals.freeze(clock.now());
    run(consumers, sink, EngineConfig { addr, core: None, busy_poll: false }, clock, signals).unwrap()
}

#[test]
fn what_a_consumer_that_panicked_did_not_read_is_not_called_read() {
    let addr = peer(2, |fetch| honest(fetch, 3 * COUNT));
    let consumers = (0..2).map(|index| Consumer::new([(partition(index), 0)], 1 << 20)).collect();
    let (notes, failure) =
        read_all(addr, consumers, Notes { poison: Some(partition(1)), ..Notes::default() });
    assert!(failure.is_some_and(|why| why.contains("panicked")));
    assert_eq!(notes.finished, [partition(0)]);
    assert_eq!(notes.read, [0, 1, 2].map(|i| (partition(0), i * COUNT)));
}

#[test]
fn nothing_behind_an_unreadable_spot_is_taken_for_what_follows_it() {
    let addr = peer(1, |fetch| {
        let (list, mut payload) = honest(fetch, 4 * COUNT);
        // The second batch of partition 0 is damaged; its header is not.
        if list[0].partition == partition(0) && list[0].base_offset.0 == COUNT {
            payload[100] ^= 1;
        }
        (list, payload)
    });
    let consumer = Consumer::new([(partition(0), 0), (partition(1), 0)], 1 << 20);
    let (notes, failure) = read_all(addr, vec![consumer], Notes::default());
    assert_eq!(failure, None);
    assert_eq!((notes.unreadable, notes.finished), (vec![partition(0)], vec![partition(1)]));
    let of_the_damaged: Vec<_> = notes.read.iter().filter(|(p, _)| *p == partition(0)).collect();
    assert_eq!(of_the_damaged, [&(partition(0), 0)]);
}
