//! A session against shards that only write down what they are asked.

mod consumers;

use std::rc::Rc;

use bytes::Bytes;
use proptest::prelude::*;
use ringbolt_wire::frame::{FRAME_HEADER_LEN, encode_head};
use ringbolt_wire::message::{
    Fetch, FetchPartition, FetchedPartition, Hello, OffsetSpec, ProduceAck, Request, Response, TopicInfo,
    produce_head,
};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Sequence, ShardId,
    TopicId,
};

use super::*;
use crate::limits::{BLOCK_LEN, MAX_BATCH_LEN, MAX_FETCH_WAIT_MS, MAX_IN_FLIGHT};
use crate::shard::action::Reply;
use crate::shard::event::{Payload, ShardRequest};

const SHARDS: u16 = 4;

/// Shards that write down what reaches them.
#[derive(Default)]
struct Recorder {
    /// Shard, number, request in words.
    requests: Vec<(u16, u64, String)>,
    hurried: Vec<(u16, u64)>,
    /// Consumers that were to be sent nothing, or something again.
    pauses: Vec<(u16, u64, bool)>,
    /// A shard that takes no produce requests.
    full: Option<u16>,
}

impl Shards for Recorder {
    type Buffer = Vec<u8>;

    fn accepts(&mut self, shard: ShardId, appends: bool) -> bool {
        !(appends && self.full == Some(shard.0))
    }

    fn request(&mut self, shard: ShardId, number: u64, request: ShardRequest<'_, Vec<u8>>) {
        let words = match &request {
            ShardRequest::Produce { payload: Payload::Borrowed(batch), min_copies } => {
                format!("produce {min_copies} {:08x}", ringbolt_wire::crc32c(batch))
            }
            ShardRequest::Produce { payload: Payload::Aligned { buffer, len }, min_copies } => {
                let batch = &buffer[BLOCK_LEN..BLOCK_LEN + len];
                format!("produce {min_copies} {:08x}", ringbolt_wire::crc32c(batch))
            }
            other => format!("{other:?}"),
        };
        self.requests.push((shard.0, number, words));
    }

    fn fetch_now(&mut self, shard: ShardId, number: u64) {
        self.hurried.push((shard.0, number));
    }

    fn pause(&mut self, shard: ShardId, number: u64, pauses: bool) {
        self.pauses.push((shard.0, number, pauses));
    }

    fn stats(&mut self, number: u64) {
        self.requests.push((u16::MAX, number, "stats".to_owned()));
    }
}

fn config() -> Rc<SessionConfig> {
    Rc::new(SessionConfig {
        boot: 3,
        broker_id: [9; 16],
        direct_threshold: 16 << 10,
        max_unsent: 1 << 20,
        max_unsent_own: 1 << 20,
        listings: Listings::new(1 << 20),
        ..SessionConfig::for_tests(0, vec![0, 0, 1, 1])
    })
}

fn hello() -> Vec<u8> {
    let hello =
        Hello { min_version: 1, max_version: 1, features: 0, affinity: None, client_name: "test".to_owned() };
    encode(&Request::Hello(hello), 1)
}

fn encode(request: &Request, correlation: u64) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(&mut out, correlation, 0);
    out
}

fn batch(topic: u32, index: u32, value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    builder.push(7, None, value, &[]);
    builder.finish(PartitionId::new(TopicId(topic), index), ProducerId(0), Epoch(0), Sequence(0))
}

fn produce_frame(correlation: u64, batch: &[u8]) -> Vec<u8> {
    let mut frame = produce_head(correlation, 1, batch.len() as u32).to_vec();
    frame.extend_from_slice(batch);
    frame
}

fn fetch(partitions: &[(u32, u32)], max_bytes: u32) -> Request {
    let item = |&(topic, index)| FetchPartition {
        partition: PartitionId::new(TopicId(topic), index),
        offset: Offset(0),
        max_bytes: 1000,
    };
    let partitions = partitions.iter().map(item).collect();
    Request::Fetch(Fetch { max_wait_ms: 100, min_bytes: 1, max_bytes, partitions })
}

fn greeted() -> (Session, Recorder) {
    let (mut session, mut shards) = (Session::new(config()), Recorder::default());
    assert_eq!(session.receive(&hello(), &mut shards), Input::Open);
    assert!(matches!(drain(&mut session)[..], [(_, Response::Hello(_))]));
    (session, shards)
}

/// Sends all that waits: header and response of each frame, whose payload is
/// left out.
fn drain(session: &mut Session) -> Vec<(FrameHeader, Response)> {
    let bytes = sent(session);
    frames(&bytes)
}

/// Sends all that waits.
fn sent(session: &mut Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(output) = session.take_output() {
        assert!(session.take_output().is_none(), "one send at a time");
        let len = output.len();
        assert!(!session.sent(len / 2) || len == 1);
        assert!(session.sent(len - len / 2));
        match output {
            Output::Frames(frames) => {
                bytes.extend_from_slice(&frames);
                session.recycle(frames);
            }
            Output::Pieces(pieces) => bytes.extend(pieces.concat()),
        }
    }
    assert_eq!(session.unsent(), 0);
    bytes
}

fn frames(mut bytes: &[u8]) -> Vec<(FrameHeader, Response)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = FrameHeader::decode(bytes, u32::MAX).unwrap().unwrap();
        header.verify(bytes).unwrap();
        let meta = &bytes[FRAME_HEADER_LEN..header.head_len()];
        let response = Response::decode(header.opcode, header.status, meta, header.payload_len).unwrap();
        bytes = &bytes[header.frame_len().min(bytes.len())..];
        frames.push((header, response));
    }
    frames
}

/// The code of the goodbye that `bytes` lead to, on a connection that is
/// `greeted` or not.
fn goodbye_of(is_greeted: bool, bytes: &[u8]) -> ErrorCode {
    let (mut session, mut shards) =
        if is_greeted { greeted() } else { (Session::new(config()), Recorder::default()) };
    assert_eq!(session.receive(bytes, &mut shards), Input::Closed);
    assert!(session.is_closing() && session.stashed() == 0);
    assert!(shards.requests.is_empty());
    assert_eq!(session.receive(&hello(), &mut shards), Input::Closed, "nothing is taken any more");
    assert!(drain(&mut session).is_empty() && !session.is_finished(), "the goodbye has its time");
    session.part();
    only_goodbye(&mut session)
}

fn only_goodbye(session: &mut Session) -> ErrorCode {
    match &drain(session)[..] {
        [(header, Response::Error(error))] => {
            assert_eq!((header.opcode, header.correlation), (Opcode::Goodbye as u8, 0));
            error.error_code().unwrap()
        }
        other => panic!("expected a goodbye, got {other:?}"),
    }
}

fn ack(offset: u64) -> Reply {
    Reply::Produced(ProduceAck {
        base_offset: Offset(offset),
        commit_time_us: 1,
        copies: 1,
        duplicate: false,
    })
}

#[test]
fn every_violation_gets_its_code() {
    let frame = |change: fn(&mut Vec<u8>)| {
        let mut bytes = encode(&Request::Ping, 5);
        change(&mut bytes);
        bytes
    };
    let cases: [(bool, Vec<u8>, ErrorCode); 12] = [
        (false, b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorCode::MalformedFrame),
        (false, b"G".to_vec(), ErrorCode::MalformedFrame),
        (true, vec![0; 4], ErrorCode::MalformedFrame),
        (false, encode(&Request::Ping, 1), ErrorCode::HandshakeRequired),
        (false, produce_frame(1, &batch(1, 0, b"x")), ErrorCode::HandshakeRequired),
        (true, frame(|f| f[8] = 9), ErrorCode::UnsupportedVersion),
        (true, frame(|f| f[10] = 1), ErrorCode::MalformedFrame),
        (true, frame(|f| f[10] = 2), ErrorCode::MalformedFrame),
        (true, frame(|f| f[4] ^= 1), ErrorCode::FrameCrcMismatch),
        (true, frame(|f| f[16..20].fill(0xff)), ErrorCode::FrameTooLarge),
        (true, frame(|f| f[20..24].fill(0xff)), ErrorCode::FrameTooLarge),
        (false, frame_of_len(Opcode::Hello, 5000), ErrorCode::FrameTooLarge),
    ];
    for (i, (is_greeted, bytes, code)) in cases.into_iter().enumerate() {
        assert_eq!(goodbye_of(is_greeted, &bytes), code, "case {i}");
    }
}

fn frame_of_len(opcode: Opcode, meta_len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    encode_head(&mut out, opcode as u8, false, 0, 1, &vec![0; meta_len], 0);
    out
}

#[test]
fn a_hello_without_a_common_version_is_refused() {
    let hello =
        Hello { min_version: 2, max_version: 9, features: 0, affinity: None, client_name: String::new() };
    assert_eq!(goodbye_of(false, &encode(&Request::Hello(hello), 1)), ErrorCode::UnsupportedVersion);
    assert_eq!(goodbye_of(false, &frame_of_len(Opcode::Hello, 3)), ErrorCode::InvalidRequest);
}

#[test]
fn a_bad_request_is_answered_and_the_connection_stays() {
    let (mut session, mut shards) = greeted();
    let mut unknown = Vec::new();
    encode_head(&mut unknown, 200, false, 0, 11, b"?", 0);
    let mut cut = Vec::new();
    encode_head(&mut cut, Opcode::Fetch as u8, false, 0, 12, &[0; 5], 0);
    let good = batch(1, 0, b"value");
    let mut not_a_batch = good.clone();
    not_a_batch[16] ^= 1;
    let mut shorter = good.clone();
    shorter.push(0);
    let mut longer = good.clone();
    longer[24..28].copy_from_slice(&(good.len() as u32 + 1).to_le_bytes());
    let mut huge = good.clone();
    huge[24..28].copy_from_slice(&(MAX_BATCH_LEN + 1).to_le_bytes());
    let cases = [
        (unknown, 11, ErrorCode::UnknownOpcode),
        (cut, 12, ErrorCode::InvalidRequest),
        (hello(), 1, ErrorCode::AlreadyGreeted),
        (produce_frame(13, &not_a_batch), 13, ErrorCode::MalformedBatch),
        (produce_frame(14, &good[..50]), 14, ErrorCode::MalformedBatch),
        (produce_frame(15, &shorter), 15, ErrorCode::MalformedBatch),
        (produce_frame(16, &longer), 16, ErrorCode::MalformedBatch),
        (produce_frame(17, &huge), 17, ErrorCode::BatchTooLarge),
        (produce_frame(18, b""), 18, ErrorCode::InvalidRequest),
    ];
    for (bytes, correlation, code) in cases {
        assert_eq!(session.receive(&bytes, &mut shards), Input::Open);
        let answers = drain(&mut session);
        let [(header, Response::Error(error))] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((header.correlation, error.error_code()), (correlation, Some(code)));
        assert_eq!(header.opcode, bytes[9], "the answer names the operation");
    }
    assert!(shards.requests.is_empty());
    session.receive(&produce_frame(19, &good), &mut shards);
    assert_eq!(shards.requests.len(), 1);
    assert_eq!(session.in_flight(), 1);
}

#[test]
fn ping_and_stats_are_answered() {
    let (mut session, mut shards) = greeted();
    session.receive(&[encode(&Request::Ping, 8), encode(&Request::Stats, 9)].concat(), &mut shards);
    session.stats(shards.requests[0].1, vec![("answers".to_owned(), 42)]);
    let answers = drain(&mut session);
    assert!(matches!(&answers[..], [(a, Response::Pong), (b, Response::Stats(stats))]
        if a.correlation == 8 && b.correlation == 9 && stats[..] == [("answers".to_owned(), 42)]));
}

#[test]
fn more_requests_in_flight_than_allowed_end_the_connection_after_the_answers() {
    let (mut session, mut shards) = greeted();
    let frame = produce_frame(1, &batch(1, 0, b"v"));
    for _ in 0..MAX_IN_FLIGHT {
        assert_eq!(session.receive(&frame, &mut shards), Input::Open);
    }
    assert_eq!(session.receive(&frame, &mut shards), Input::Closed);
    for (_, number, _) in std::mem::take(&mut shards.requests) {
        session.part();
        assert!(!session.is_finished());
        session.reply(number, ack(number), &mut shards);
    }
    let acks = drain(&mut session);
    assert_eq!(acks.len(), MAX_IN_FLIGHT as usize, "what is in flight is answered before the goodbye");
    assert!(acks.iter().all(|(h, r)| h.correlation == 1 && matches!(r, Response::Produced(_))));
    assert!(!session.is_finished());
    session.part();
    assert_eq!(only_goodbye(&mut session), ErrorCode::TooManyInFlight);
    assert!(session.is_finished());
}

#[test]
fn what_a_shard_does_not_take_waits_in_order() {
    let (mut session, mut shards) = greeted();
    shards.full = Some(2);
    let frames: Vec<u8> = (0..4)
        .flat_map(|i| produce_frame(i, &batch(1, i as u32 % 2, &[i as u8])))
        .chain(encode(&Request::ListTopics, 9))
        .collect();
    let (first, second) = frames.split_at(frames.len() / 2);
    // The partition 1/0 is on shard 1, 1/1 on shard 2.
    assert_eq!(session.receive(first, &mut shards), Input::Stalled(ShardId(2)));
    assert_eq!(session.receive(second, &mut shards), Input::Stalled(ShardId(2)));
    assert_eq!(shards.requests.len(), 1);
    assert_eq!(session.resume(&mut shards), Input::Stalled(ShardId(2)));
    shards.full = None;
    assert_eq!(session.resume(&mut shards), Input::Open);
    let order: Vec<u16> = shards.requests.iter().map(|(shard, _, _)| *shard).collect();
    assert_eq!(order, [1, 2, 1, 2, 0]);
    assert_eq!(session.stashed(), 0);
}

#[test]
fn requests_with_long_answers_are_carried_out_one_at_a_time() {
    let (mut session, mut shards) = greeted();
    let frames: Vec<u8> = (0..3).flat_map(|i| encode(&Request::ListTopics, i)).collect();
    assert_eq!(session.receive(&frames, &mut shards), Input::Backlogged);
    for asked in 1..=3 {
        assert_eq!(shards.requests.len(), asked, "the next waits for the answer to the one before");
        let (_, number, _) = *shards.requests.last().unwrap();
        session.reply(number, Reply::Topics(Vec::new()), &mut shards);
        assert!(!drain(&mut session).is_empty());
        session.resume(&mut shards);
    }
    assert_eq!((session.input(), session.in_flight()), (Input::Open, 0));
}

#[test]
fn a_session_whose_answers_are_not_read_takes_no_more() {
    let (mut session, mut shards) = greeted();
    let ping = encode(&Request::Ping, 1);
    let mut input = Input::Open;
    for _ in 0..(1 << 20) / FRAME_HEADER_LEN + 1 {
        input = session.receive(&ping, &mut shards);
    }
    assert_eq!(input, Input::Open);
    assert_eq!(session.receive(&ping, &mut shards), Input::Backlogged);
    let unsent = session.unsent();
    assert_eq!(session.receive(&ping, &mut shards), Input::Backlogged);
    assert_eq!(session.unsent(), unsent);
    assert!(!drain(&mut session).is_empty());
    assert_eq!(session.resume(&mut shards), Input::Open);
    assert_eq!(drain(&mut session).len(), 2, "what waited is answered");
}

fn fetched(topic: u32, index: u32, payload: &[u8]) -> FetchedPartition {
    FetchedPartition {
        partition: PartitionId::new(TopicId(topic), index),
        status: 0,
        payload_len: payload.len() as u32,
        base_offset: if payload.is_empty() { Offset::UNKNOWN } else { Offset(0) },
        start_offset: Offset(0),
        end_offset: Offset(9),
    }
}

#[test]
fn a_fetch_over_shards_is_merged_in_the_order_of_the_request() {
    let (mut session, mut shards) = greeted();
    session.receive(&encode(&fetch(&[(1, 0), (1, 1), (5, 0), (1, 3)], 1000), 77), &mut shards);
    let parts: Vec<(u16, u64)> = shards.requests.iter().map(|(s, n, _)| (*s, *n)).collect();
    assert_eq!(parts.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 0]);
    let reply = |list: Vec<(u32, u32, &'static [u8])>| Reply::Fetched {
        partitions: list.iter().map(|(t, i, p)| fetched(*t, *i, p)).collect(),
        payload: [Bytes::from(list.iter().flat_map(|(_, _, p)| p.to_vec()).collect::<Vec<u8>>())]
            .into_iter()
            .collect(),
    };
    const LARGE: &[u8] = &[7; 600];
    session.reply(parts[1].1, reply(vec![(1, 1, b"second")]), &mut shards);
    assert_eq!(shards.hurried, [parts[0], parts[2]], "the first data ends the wait of the others");
    session.reply(parts[0].1, reply(vec![(1, 0, LARGE), (5, 0, b"third")]), &mut shards);
    assert_eq!(session.unsent(), 0);
    session.reply(parts[2].1, reply(vec![(1, 3, LARGE)]), &mut shards);
    let mut sent = sent(&mut session);
    let header = FrameHeader::decode(&sent, u32::MAX).unwrap().unwrap();
    let payload = sent.split_off(header.head_len());
    assert_eq!(payload, [LARGE, b"second", b"third"].concat(), "1/3 does not fit into 1000 bytes");
    let answers = frames(&sent);
    let [(header, Response::Fetched(list))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(header.correlation, 77);
    let expected =
        [fetched(1, 0, LARGE), fetched(1, 1, b"second"), fetched(5, 0, b"third"), fetched(1, 3, b"")];
    assert_eq!(list[..], expected);
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_shard_that_refuses_its_part_of_a_fetch_does_not_spoil_the_rest() {
    let (mut session, mut shards) = greeted();
    session.receive(&encode(&fetch(&[(1, 0), (1, 1)], 1000), 5), &mut shards);
    let numbers: Vec<u64> = shards.requests.iter().map(|(_, n, _)| *n).collect();
    let error = ringbolt_wire::message::ErrorResponse::new(ErrorCode::ShuttingDown, "");
    session.reply(numbers[0], Reply::Error(error), &mut shards);
    let partitions = vec![fetched(1, 1, b"data")];
    let payload = [Bytes::from_static(b"data")].into_iter().collect();
    session.reply(numbers[1], Reply::Fetched { partitions, payload }, &mut shards);
    let answers = drain(&mut session);
    let [(_, Response::Fetched(list))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(list[0].status, ErrorCode::ShuttingDown as u16);
    assert_eq!(list[0].partition, PartitionId::new(TopicId(1), 0));
    assert_eq!(list[1], fetched(1, 1, b"data"));
}

#[test]
fn a_topic_is_described_from_all_shards() {
    let (mut session, mut shards) = greeted();
    session.receive(&encode(&Request::DescribeTopic { name: "t".to_owned() }, 6), &mut shards);
    let (shard, number, _) = shards.requests.pop().unwrap();
    assert_eq!(shard, 0);
    let topic = TopicInfo { id: TopicId(2), partitions: 3, name: "t".to_owned() };
    session.reply(number, Reply::Topic(topic.clone()), &mut shards);
    assert_eq!(shards.requests.len(), usize::from(SHARDS));
    for (shard, number, _) in std::mem::take(&mut shards.requests) {
        let states = (0..3u32)
            .filter(|i| (2 + i) % u32::from(SHARDS) == u32::from(shard))
            .map(|i| (i, Offset(1), Offset(10 + u64::from(i))))
            .collect();
        session.reply(number, Reply::PartitionStates(states), &mut shards);
    }
    let answers = drain(&mut session);
    let [(_, Response::Topic(description))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(description.topic, topic);
    let ends: Vec<u64> = description.partitions.iter().map(|p| p.end_offset.0).collect();
    assert_eq!(ends, [10, 11, 12]);
    let placed: Vec<u16> = description.partitions.iter().map(|p| p.shard.0).collect();
    assert_eq!(placed, [2, 3, 0]);
}

#[test]
fn a_connection_moves_to_the_core_of_its_partition_with_its_hello() {
    let (mut session, mut shards) = (Session::new(config()), Recorder::default());
    let affinity = Some(PartitionId::new(TopicId(1), 1));
    let hello = Hello { min_version: 1, max_version: 1, features: 0, affinity, client_name: String::new() };
    let bytes = [encode(&Request::Hello(hello), 1), encode(&Request::Ping, 2)[..10].to_vec()].concat();
    assert_eq!(session.receive(&bytes, &mut shards), Input::Moves { core: 1 });
    assert_eq!(session.unsent(), 0);
    assert_eq!(session.take_stash(), bytes);
}

#[test]
fn a_large_batch_is_announced_and_taken_from_aligned_memory() {
    let (mut session, mut shards) = greeted();
    let batch = batch(1, 1, &[5; 20_000]);
    let frame = produce_frame(4, &batch);
    assert_eq!(session.receive(&frame[..31], &mut shards), Input::Open, "its length is not known yet");
    let input = session.receive(&frame[31..1000], &mut shards);
    assert_eq!(input, Input::Large { frame_len: frame.len() });
    assert_eq!(session.take_stash(), &frame[..1000]);
    let mut buffer = vec![0; BLOCK_LEN + batch.len().next_multiple_of(BLOCK_LEN)];
    buffer[BLOCK_LEN - 40..][..frame.len()].copy_from_slice(&frame);
    shards.full = Some(2);
    let frame = DirectFrame { buffer, payload_len: batch.len() };
    let frame = session.receive_direct(frame, &mut shards).unwrap_err();
    assert_eq!(session.input(), Input::Stalled(ShardId(2)));
    shards.full = None;
    assert_eq!(session.receive_direct(frame, &mut shards).unwrap(), Input::Open);
    assert_eq!(shards.requests[0].2, format!("produce 1 {:08x}", ringbolt_wire::crc32c(&batch)));
    session.reply(shards.requests[0].1, ack(0), &mut shards);
    assert_eq!(drain(&mut session)[0].0.correlation, 4);
}

#[test]
fn the_end_of_input_answers_waiting_fetches() {
    let (mut session, mut shards) = greeted();
    session.receive(&encode(&fetch(&[(1, 0)], 1000), 5), &mut shards);
    let (shard, number, _) = shards.requests[0].clone();
    session.end_of_input(&mut shards);
    assert_eq!(shards.hurried, [(shard, number)]);
    assert!(!session.is_finished());
    let partitions = vec![fetched(1, 0, b"")];
    session.reply(number, Reply::Fetched { partitions, payload: Default::default() }, &mut shards);
    assert_eq!(drain(&mut session).len(), 1);
    assert!(session.is_finished());
}

/// A frame of any kind that goes to shards or is answered.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let name = "[a-z]{0,20}";
    prop_oneof![
        Just(encode(&Request::Ping, 1)),
        (0u32..9, 0u32..4, prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(t, i, v)| produce_frame(2, &batch(t, i, &v))),
        (0u32..9, 17_000usize..40_000).prop_map(|(t, n)| produce_frame(3, &batch(t, 0, &vec![1; n]))),
        prop::collection::btree_set((0u32..3, 0u32..9), 1..6)
            .prop_map(|set| encode(&fetch(&set.into_iter().collect::<Vec<_>>(), 5000), 4)),
        name.prop_map(|name| encode(&Request::DescribeTopic { name }, 5)),
        any::<u64>().prop_map(|t| {
            let partition = PartitionId::new(TopicId(1), 0);
            encode(&Request::Offsets { partition, spec: OffsetSpec::Time(t) }, 6)
        }),
        (100u8.., prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(opcode, meta)| {
            let mut out = Vec::new();
            encode_head(&mut out, opcode, false, 0, 7, &meta, 0);
            out
        }),
    ]
}

fn goodbye_header() -> FrameHeader {
    let mut bytes = Vec::new();
    encode_head(&mut bytes, Opcode::Goodbye as u8, true, 0, 0, &[], 0);
    FrameHeader::decode(&bytes, u32::MAX).unwrap().unwrap()
}

/// Requests to shards, answers to the peer, and how the input stands.
type Outcome = (Vec<(u16, u64, String)>, Vec<(FrameHeader, String)>, Input);

/// What a session makes of `bytes` that come in pieces that end at `cuts`.
///
/// Of a goodbye only the code: its text may quote the bytes that had come.
fn outcome(bytes: &[u8], cuts: &[usize]) -> Outcome {
    let (mut session, mut shards) = (Session::new(config()), Recorder::default());
    let mut at = 0;
    let mut input = Input::Open;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        input = session.receive(&bytes[at..cut.max(at)], &mut shards);
        at = cut.max(at);
    }
    let told = |(mut header, response): (FrameHeader, Response)| match response {
        Response::Error(error) if header.opcode == Opcode::Goodbye as u8 => {
            header = goodbye_header();
            (header, format!("{:?}", error.error_code()))
        }
        response => (header, format!("{response:?}")),
    };
    (shards.requests, drain(&mut session).into_iter().map(told).collect(), input)
}

proptest! {
    #[test]
    fn any_split_of_the_stream_gives_the_same_requests(
        frames in prop::collection::vec(any_frame(), 0..12),
        tail in prop::collection::vec(any::<u8>(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = [hello(), frames.concat(), tail].concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|i| i.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(outcome(&bytes, &cuts), outcome(&bytes, &[]));
    }

    #[test]
    fn byte_by_byte_gives_the_same_requests(frames in prop::collection::vec(any_frame(), 0..3)) {
        let bytes = [hello(), frames.concat()].concat();
        let cuts: Vec<usize> = (1..bytes.len()).collect();
        prop_assert_eq!(outcome(&bytes, &cuts), outcome(&bytes, &[]));
    }

    #[test]
    fn damaged_bytes_never_panic_and_never_keep_more_than_a_frame(
        frames in prop::collection::vec(any_frame(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = frames.concat();
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let (mut session, mut shards) = greeted();
        for piece in bytes.chunks(1000) {
            session.receive(piece, &mut shards);
            prop_assert!(session.stashed() <= crate::limits::MAX_FRAME_LEN as usize);
        }
        drain(&mut session);
    }
}

#[test]
fn a_fetch_waits_no_longer_than_the_limit() {
    let (mut session, mut shards) = greeted();
    let Request::Fetch(fetch) = fetch(&[(1, 0)], 1000) else { unreachable!("it makes fetches") };
    let long = Fetch { max_wait_ms: u32::MAX, ..fetch };
    session.receive(&encode(&Request::Fetch(long), 5), &mut shards);
    let words = &shards.requests[0].2;
    assert!(words.contains(&format!("max_wait_ms: {MAX_FETCH_WAIT_MS},")), "{words}");
}
