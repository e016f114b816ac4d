//! Consumers against a peer of a few lines that answers fetches as a test
//! wants: what must hold when a consumer, a connection or a broker does not do
//! what it should.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringbolt_wire::message::{ErrorResponse, Fetch, FetchPartition};
use ringbolt_wire::{
    BatchBuilder, BatchHeader, BatchView, Epoch, ErrorCode, FrameHeader, Offset, PartitionId, ProducerId,
    Sequence, TopicId,
};

use super::*;
use crate::test_broker::greeting;

/// Longest batch that the peer takes.
const MAX_BATCH_LEN: u32 = 16 << 20;

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

/// What the peer says: an answer, and its payload.
type Answer = (Response, Vec<u8>);
type Answering = fn(&Fetch) -> Answer;

/// What a broker says that holds the offsets below `end`.
fn honest(fetch: &Fetch, end: u64) -> Answer {
    let mut payload = Vec::new();
    let mut answer = |asked: &FetchPartition| {
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
    (Response::Fetched(list), payload)
}

/// Nothing but this status, from a broker that holds these offsets.
fn status(fetch: &Fetch, code: ErrorCode, held: Range<u64>) -> Answer {
    let answer = |asked: &FetchPartition| FetchedPartition {
        partition: asked.partition,
        status: code as u16,
        payload_len: 0,
        base_offset: Offset::UNKNOWN,
        start_offset: Offset(held.start),
        end_offset: Offset(held.end),
    };
    (Response::Fetched(fetch.partitions.iter().map(answer).collect()), Vec::new())
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
fn converse(mut stream: std::net::TcpStream, mut answer: impl FnMut(&Fetch) -> Answer) {
    while let Some((header, request)) = next_request(&mut stream) {
        let mut out = Vec::new();
        match request {
            Request::Hello(_) => {
                greeting(MAX_BATCH_LEN).encode(&mut out, header.opcode, header.correlation, 0)
            }
            Request::Fetch(fetch) => {
                let (response, payload) = answer(&fetch);
                let len = payload.len() as u32;
                response.encode(&mut out, header.opcode, header.correlation, len);
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
    A: FnMut(&Fetch) -> Answer + Send + Clone + 'static,
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
    held: Vec<(PartitionId, Range<u64>)>,
    missing: Vec<PartitionId>,
    poison: Option<PartitionId>,
}

impl Reader for Notes {
    fn batch(&mut self, batch: &BatchView<'_>) {
        let header = batch.header();
        assert_ne!(self.poison, Some(header.partition()), "as the test wants");
        self.read.push((header.partition(), header.base_offset().0));
    }

    fn holds(&mut self, partition: PartitionId, offsets: Range<u64>) {
        self.held.push((partition, offsets));
    }

    fn missing(&mut self, partition: PartitionId) {
        self.missing.push(partition);
    }

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
        let (response, mut payload) = honest(fetch, 4 * COUNT);
        // The second batch of partition 0 is damaged; its header is not.
        let first = fetch.partitions[0];
        if (first.partition, first.offset.0) == (partition(0), COUNT) {
            payload[100] ^= 1;
        }
        (response, payload)
    });
    let consumer = Consumer::new([(partition(0), 0), (partition(1), 0)], 1 << 20);
    let (notes, failure) = read_all(addr, vec![consumer], Notes::default());
    assert_eq!(failure, None);
    assert_eq!((notes.unreadable, notes.finished), (vec![partition(0)], vec![partition(1)]));
    let of_the_damaged: Vec<_> = notes.read.iter().filter(|(p, _)| *p == partition(0)).collect();
    assert_eq!(of_the_damaged, [&(partition(0), 0)]);
}

#[test]
fn a_peer_that_takes_no_more_connections_is_given_up() {
    // Nobody accepts, and its queue is full: the next is neither made nor refused.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
        queued.push(stream);
    }
    let consumers = vec![Consumer::new([(partition(0), 0)], 1 << 20)];
    let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
    signals.freeze(clock.now());
    let config = EngineConfig { addr, core: None, busy_poll: false };
    let patience = Duration::from_millis(200);
    let (_, failure) = drive(consumers, Notes::default(), config, clock, signals, patience).unwrap();
    assert!(failure.is_some_and(|why| why.contains("nothing more could be read")));
    assert!(clock.now() < Duration::from_secs(5).as_nanos() as u64, "{} ns", clock.now());
}

/// How often a peer is asked within `patience` that answers everything like
/// this, and what was read from it.
fn persist(
    patience: Duration,
    answer: impl Fn(&Fetch) -> Answer + Send + Clone + 'static,
) -> (usize, Notes, Option<String>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let addr = peer(1, move |fetch| {
        count.fetch_add(1, Ordering::Relaxed);
        answer(fetch)
    });
    let consumers = vec![Consumer::new([(partition(0), COUNT)], 1 << 20)];
    let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
    signals.freeze(clock.now());
    let config = EngineConfig { addr, core: None, busy_poll: false };
    let (notes, failure) = drive(consumers, Notes::default(), config, clock, signals, patience).unwrap();
    (asked.load(Ordering::Relaxed), notes, failure)
}

#[test]
fn a_broker_that_says_the_same_without_end_is_asked_at_intervals_and_given_up() {
    let patience = Duration::from_millis(400);
    let answers: [(&str, Answering); 4] = [
        ("what is there is out of range", |fetch| status(fetch, ErrorCode::OffsetOutOfRange, 0..9)),
        ("overloaded", |fetch| status(fetch, ErrorCode::Overloaded, 0..9)),
        ("refused", |_| (Response::Error(ErrorResponse::new(ErrorCode::Overloaded, "")), Vec::new())),
        ("an end that is never reached", |fetch| {
            let (mut response, payload) = honest(fetch, 0);
            let Response::Fetched(list) = &mut response else { unreachable!() };
            list[0].end_offset = Offset(9);
            (response, payload)
        }),
    ];
    for (name, answer) in answers {
        let (asked, notes, failure) = persist(patience, answer);
        assert!((2..=2 + patience.as_millis() as usize / 10).contains(&asked), "{name}: asked {asked} times");
        assert!(failure.is_some_and(|why| why.contains("nothing more could be read")), "{name}");
        assert_eq!((notes.finished, notes.unreadable), (vec![], vec![]), "{name}");
    }
}

#[test]
fn a_reader_that_goes_round_ends_when_retention_has_removed_all_of_its_round() {
    let addr = peer(1, |fetch| status(fetch, ErrorCode::OffsetOutOfRange, 100..200));
    let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
    let late = signals.clone();
    // It would end then in any case.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(5));
        late.freeze(clock.now());
    });
    let consumers = vec![Consumer::cycling([(partition(0), 0..50)], 1 << 20)];
    let config = EngineConfig { addr, core: None, busy_poll: false };
    let (notes, failure) = run(consumers, Notes::default(), config, clock, signals.clone()).unwrap();
    assert_eq!((signals.frozen_at(), failure), (None, None), "it ends of its own accord");
    assert_eq!(notes.unreadable, [partition(0)]);
}

/// Reads over one connection, whose first fetch is answered after `before` had
/// its way with the consumer's own end. Nothing else is answered, nor read by the
/// peer. Gives back what was read, and where the consumer is.
fn read_one_answer(before: fn(&mut std::net::TcpStream)) -> (Notes, u64) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let end = std::net::TcpStream::connect(addr).unwrap();
    let mut same_end = end.try_clone().unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let (clock, signals) = (Clock::start(), Arc::new(Signals::default()));
    let enough = signals.clone();
    let peer = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let (head, _) = next_request(&mut stream).unwrap();
        let mut out = Vec::new();
        greeting(MAX_BATCH_LEN).encode(&mut out, head.opcode, head.correlation, 0);
        stream.write_all(&out).unwrap();
        let Some((head, Request::Fetch(fetch))) = next_request(&mut stream) else { panic!("no fetch") };
        before(&mut same_end);
        // Patience counts from here at the earliest.
        enough.freeze(clock.now());
        let (response, payload) = honest(&fetch, 9 * COUNT);
        out.clear();
        response.encode(&mut out, head.opcode, head.correlation, payload.len() as u32);
        stream.write_all(&[out, payload].concat()).unwrap();
        wait.recv().unwrap_err();
    });
    let shared = Shared {
        config: EngineConfig { addr, core: None, busy_poll: false },
        patience: Duration::from_secs(1),
        clock,
        signals,
        sink: RefCell::new(Notes::default()),
        progress_at: RefCell::new(clock.now()),
        failure: RefCell::new(None),
    };
    let mut consumer = Consumer::new([(partition(0), 0)], 1 << 20);
    let reading = async { read_over(&TcpStream::from_std(end), &shared, &mut consumer).await };
    runtime(None).unwrap().block_on(reading).unwrap();
    drop(done);
    peer.join().unwrap();
    (shared.sink.into_inner(), consumer.fetch().partitions[0].offset.0)
}

#[test]
fn an_answer_is_read_although_the_next_fetch_cannot_be_sent() {
    let (notes, next) = read_one_answer(|end| end.shutdown(std::net::Shutdown::Write).unwrap());
    assert_eq!((notes.read, next), (vec![(partition(0), 0)], COUNT));
}

#[test]
fn an_answer_is_read_although_reading_ends_while_the_next_fetch_waits_to_be_sent() {
    let (notes, next) = read_one_answer(|end| {
        end.set_write_timeout(Some(Duration::from_millis(10))).unwrap();
        // Until not a byte more fits in.
        for len in [64 << 10, 64, 1] {
            while end.write(&vec![0; len]).is_ok() {}
        }
        end.set_write_timeout(None).unwrap();
    });
    assert_eq!((notes.read, next), (vec![(partition(0), 0)], COUNT));
}

/// Reads partition 0 to its end.
fn read_one(answer: impl FnMut(&Fetch) -> Answer + Send + Clone + 'static) -> Notes {
    let consumers = vec![Consumer::new([(partition(0), 0)], 1 << 20)];
    let (notes, failure) = read_all(peer(1, answer), consumers, Notes::default());
    assert_eq!(failure, None);
    notes
}

#[test]
fn an_end_that_moves_back_is_the_end() {
    let notes = read_one(|fetch| match fetch.partitions[0].offset.0 {
        0 => honest(fetch, 9 * COUNT),
        _ => honest(fetch, COUNT),
    });
    assert_eq!((notes.read, notes.finished), (vec![(partition(0), 0)], vec![partition(0)]));
}

#[test]
fn an_end_that_moves_back_behind_what_was_read_is_told_and_reading_goes_on_there() {
    let notes = read_one(|fetch| match fetch.partitions[0].offset.0 / COUNT {
        2 => status(fetch, ErrorCode::OffsetOutOfRange, 0..COUNT),
        _ => honest(fetch, 3 * COUNT),
    });
    assert_eq!(notes.held, [(partition(0), 0..COUNT)]);
    assert_eq!((notes.finished, notes.unreadable), (vec![partition(0)], vec![]));

    // While more is being produced, it may come there.
    let mut consumer = Consumer::new([(partition(0), 2 * COUNT)], 1 << 20);
    let (Response::Fetched(list), _) = status(&consumer.fetch(), ErrorCode::OffsetOutOfRange, 0..COUNT)
    else {
        unreachable!("it is made there")
    };
    consumer.advance(&list, &[]);
    assert_eq!(consumer.fetch().partitions[0].offset.0, COUNT);
}

#[test]
fn a_partition_that_does_not_exist_was_looked_for() {
    for code in [ErrorCode::UnknownTopic, ErrorCode::UnknownPartition] {
        let notes = read_one(move |fetch| status(fetch, code, 0..0));
        assert_eq!((notes.missing, notes.finished), (vec![partition(0)], vec![partition(0)]));
        assert_eq!(notes.unreadable, []);
    }
}

#[test]
fn an_offset_that_was_damaged_on_its_way_is_seen_although_no_batch_covers_it() {
    for wrong in [0, 77] {
        let notes = read_one(move |fetch| {
            let (response, mut payload) = honest(fetch, 3 * COUNT);
            if fetch.partitions[0].offset.0 == COUNT {
                BatchHeader::set_placement(&mut payload, Offset(wrong), 1);
            }
            (response, payload)
        });
        assert_eq!((notes.unreadable, notes.finished), (vec![partition(0)], vec![]), "{wrong}");
        assert_eq!(notes.read, [(partition(0), 0)], "{wrong}");
    }
}
