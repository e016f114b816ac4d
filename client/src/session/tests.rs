//! The session against scripted broker bytes.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use ringbolt_wire::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode};
use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, DeliveredRange, Delivery, ErrorResponse, FetchedPartition, HelloAck,
    LeaseRange, PRODUCE_ACK_FRAME_LEN, ProduceAck, Receive, Settle,
};
use ringbolt_wire::{
    ConsumerId, ErrorCode, GroupId, Offset, PartitionId, Request, Response, ShardId, TopicId,
};

use super::*;

const PARTITION: PartitionId = PartitionId::new(TopicId(3), 1);

fn hello_ack(max_in_flight: u32) -> HelloAck {
    HelloAck {
        version: PROTOCOL_VERSION,
        copies: 1,
        shards: 2,
        features: 0,
        max_frame_len: 1 << 20,
        max_batch_len: 1 << 19,
        max_in_flight,
        boot: 7,
        broker_id: [9; 16],
    }
}

fn ack(offset: u64) -> ProduceAck {
    ProduceAck { base_offset: Offset(offset), commit_time_us: 5, copies: 1, duplicate: false }
}

/// Everything that waits to be sent, in one piece.
fn sent<T>(session: &mut Session<T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = session.poll_transmit() {
        bytes.extend_from_slice(piece.as_ref());
        if let Transmit::Buffer(buffer) = piece {
            session.recycle(buffer);
        }
    }
    bytes
}

fn correlations(mut bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(header) = FrameHeader::decode(bytes, u32::MAX).unwrap() {
        header.verify(bytes).unwrap();
        found.push(header.correlation);
        bytes = &bytes[header.frame_len()..];
    }
    found
}

fn connected(max_in_flight: u32) -> Session<u32> {
    let mut session = Session::new(SessionConfig::default());
    let hello = correlations(&sent(&mut session))[0];
    let mut answer = Vec::new();
    Response::Hello(hello_ack(max_in_flight)).encode(&mut answer, Opcode::Hello as u8, hello, 0);
    let event = session.receive_slice(&mut &answer[..]).unwrap();
    assert!(matches!(event, Some(SessionEvent::Connected(ack)) if ack.boot == 7));
    session
}

#[test]
fn hello_is_first_and_names_version_and_affinity() {
    let config = SessionConfig { affinity: Some(PARTITION), ..SessionConfig::default() };
    let mut session = Session::<()>::new(config);
    let bytes = sent(&mut session);
    let header = FrameHeader::decode(&bytes, u32::MAX).unwrap().unwrap();
    let request = Request::decode(header.opcode, &bytes[FRAME_HEADER_LEN..], 0).unwrap();
    let Request::Hello(hello) = request else { panic!("{request:?}") };
    assert_eq!((hello.min_version, hello.max_version), (PROTOCOL_VERSION, PROTOCOL_VERSION));
    assert_eq!(hello.affinity, Some(PARTITION));
    assert!(header.correlation != 0);
}

#[test]
fn nothing_may_be_asked_before_the_handshake() {
    let mut session = Session::new(SessionConfig::default());
    assert_eq!(session.credit(), 0);
    let refused = session.request(&Request::Ping, 8).unwrap_err();
    assert_eq!((refused.tag, refused.why), (8, SendRefusal::NotConnected));
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut session = connected(8);
    let first = session.produce(b"one", 1, 1).unwrap();
    let ping = session.request(&Request::Ping, 2).unwrap();
    let second = session.produce(b"two", 1, 3).unwrap();
    let out = sent(&mut session);
    assert_eq!(correlations(&out), [first.0, ping.0, second.0]);

    let mut bytes = Vec::new();
    ack(20).encode(&mut bytes, second.0);
    Response::Pong.encode(&mut bytes, Opcode::Ping as u8, ping.0, 0);
    let refusal = ErrorResponse::new(ErrorCode::Overloaded, "wait");
    Response::Error(refusal.clone()).encode(&mut bytes, Opcode::Produce as u8, first.0, 0);
    let mut input = &bytes[..];
    let event = session.receive_slice(&mut input).unwrap().unwrap();
    assert!(matches!(event, SessionEvent::Produced { tag: 3, ack } if ack.base_offset == Offset(20)));
    let event = session.receive_slice(&mut input).unwrap().unwrap();
    assert!(matches!(event, SessionEvent::Answer { tag: 2, response: Response::Pong, .. }));
    let event = session.receive_slice(&mut input).unwrap().unwrap();
    assert!(
        matches!(event, SessionEvent::Answer { tag: 1, response: Response::Error(e), .. } if e == refusal)
    );
    assert!(session.receive_slice(&mut input).unwrap().is_none());
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn the_short_way_takes_acknowledgements_and_leaves_everything_else_as_it_was() {
    let mut session = connected(8);
    let first = session.produce(b"one", 1, 1).unwrap();
    let ping = session.request(&Request::Ping, 2).unwrap();
    let second = session.produce(b"two", 1, 3).unwrap();
    let refused = session.produce(b"three", 1, 4).unwrap();

    let mut bytes = Vec::new();
    ack(20).encode(&mut bytes, second.0);
    Response::Pong.encode(&mut bytes, Opcode::Ping as u8, ping.0, 0);
    ack(10).encode(&mut bytes, first.0);
    let refusal = ErrorResponse::new(ErrorCode::Overloaded, "wait");
    Response::Error(refusal).encode(&mut bytes, Opcode::Produce as u8, refused.0, 0);
    // An answer that comes twice.
    ack(10).encode(&mut bytes, first.0);
    let (mut input, mut cut) = (&bytes[..], &bytes[..PRODUCE_ACK_FRAME_LEN - 1]);
    assert_eq!(session.receive_ack(&mut cut), None, "not all of it is there");
    assert_eq!(cut.len(), PRODUCE_ACK_FRAME_LEN - 1);
    assert_eq!(session.receive_ack(&mut input), Some((3, ack(20))));
    assert_eq!(session.receive_ack(&mut input), None, "a pong");
    let event = session.receive_slice(&mut input).unwrap();
    assert!(matches!(event, Some(SessionEvent::Answer { tag: 2, response: Response::Pong, .. })));

    // With the start of a frame kept inside, what follows is no frame's start.
    let (mut start, mut rest) = input.split_at(7);
    assert!(session.receive_slice(&mut start).unwrap().is_none());
    assert_eq!(session.receive_ack(&mut rest), None);
    let event = session.receive_slice(&mut rest).unwrap();
    assert!(matches!(event, Some(SessionEvent::Produced { tag: 1, .. })));

    assert_eq!(session.receive_ack(&mut rest), None, "a refusal");
    let event = session.receive_slice(&mut rest).unwrap();
    assert!(matches!(event, Some(SessionEvent::Answer { tag: 4, response: Response::Error(_), .. })));
    assert_eq!(session.receive_ack(&mut rest), None, "nobody waits for it");
    let error = session.receive_slice(&mut rest).unwrap_err();
    assert!(matches!(error, SessionError::UnexpectedAnswer { .. }), "{error}");
}

#[test]
fn an_acknowledgement_of_another_operation_is_none() {
    let mut session = connected(8);
    let ping = session.request(&Request::Ping, 2).unwrap();
    let mut bytes = Vec::new();
    ack(10).encode(&mut bytes, ping.0);
    assert_eq!(session.receive_ack(&mut &bytes[..]), None);
    let error = session.receive_slice(&mut &bytes[..]).unwrap_err();
    assert!(matches!(error, SessionError::WrongOperation { .. }), "{error}");
}

#[test]
fn credit_is_what_the_broker_allows_less_what_is_unanswered() {
    let mut session = connected(2);
    let first = session.produce(b"x", 1, 1).unwrap();
    session.produce(b"x", 1, 2).unwrap();
    assert_eq!(session.credit(), 0);
    let refused = session.produce(b"x", 1, 3).unwrap_err();
    assert_eq!((refused.tag, refused.why), (3, SendRefusal::NoCredit { limit: 2 }));
    let mut bytes = Vec::new();
    ack(0).encode(&mut bytes, first.0);
    session.receive_slice(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(session.credit(), 1);
    let third = session.produce(b"x", 1, 3).unwrap();
    assert_eq!(third.slot(), first.slot(), "slots are reused");
    assert_ne!(third, first, "correlations are not");
}

#[test]
fn too_long_is_refused_before_a_byte_is_queued() {
    let mut session = connected(2);
    let batch = vec![0; (1 << 19) + 1];
    let refused = session.produce(&batch, 1, 4).unwrap_err();
    assert_eq!(refused.why, SendRefusal::TooLong { len: batch.len() as u64, limit: 1 << 19 });
    let name = "n".repeat(65_000);
    let mut small = connected(2);
    small.limits.as_mut().unwrap().max_frame_len = 1000;
    let refused = small.request(&Request::DescribeTopic { name }, 5).unwrap_err();
    assert!(matches!(refused.why, SendRefusal::TooLong { limit: 1000, .. }));
    assert_eq!((refused.tag, small.in_flight(), sent(&mut small).len()), (5, 0, 0));
}

#[test]
fn a_large_batch_leaves_without_a_copy_and_in_its_place() {
    let mut session = connected(8);
    let large = Bytes::from(vec![7; 64 << 10]);
    let small = Bytes::from_static(b"small");
    session.produce_bytes(&small, 1, 1).unwrap();
    session.produce_bytes(&large, 1, 2).unwrap();
    session.produce_bytes(&small, 1, 3).unwrap();
    let Some(Transmit::Buffer(before)) = session.poll_transmit() else { panic!() };
    let Some(Transmit::Batch(batch)) = session.poll_transmit() else { panic!() };
    let Some(Transmit::Buffer(after)) = session.poll_transmit() else { panic!() };
    assert!(session.poll_transmit().is_none() && !session.has_output());
    assert_eq!(batch.as_ptr(), large.as_ptr());
    assert_eq!(before.len(), 2 * PRODUCE_HEAD_LEN + small.len());
    let whole = [&before[..], &batch, &after].concat();
    assert_eq!(correlations(&whole).len(), 3);
    assert!(whole.ends_with(b"small"));
}

#[test]
fn sent_buffers_are_used_again() {
    let mut session = connected(64);
    let mut seen = std::collections::HashSet::new();
    for tag in 0..50 {
        let correlation = session.produce(&[1; 100], 1, tag).unwrap();
        let Some(Transmit::Buffer(buffer)) = session.poll_transmit() else { panic!() };
        seen.insert(buffer.as_ptr());
        session.recycle(buffer);
        let mut bytes = Vec::new();
        ack(0).encode(&mut bytes, correlation.0);
        session.receive_slice(&mut &bytes[..]).unwrap().unwrap();
    }
    assert!(seen.len() <= 2, "{} buffers for one request at a time", seen.len());
}

#[test]
fn an_answer_that_comes_twice_ends_the_session() {
    let mut session = connected(8);
    let correlation = session.produce(b"x", 1, 1).unwrap();
    let mut bytes = Vec::new();
    ack(0).encode(&mut bytes, correlation.0);
    ack(0).encode(&mut bytes, correlation.0);
    let mut input = &bytes[..];
    session.receive_slice(&mut input).unwrap().unwrap();
    let error = session.receive_slice(&mut input).unwrap_err();
    assert_eq!(error, SessionError::UnexpectedAnswer { correlation: correlation.0 });
    assert_eq!(session.receive_slice(&mut &[][..]).unwrap_err(), error, "errors stay");
    assert_eq!(session.produce(b"x", 1, 2).unwrap_err().why, SendRefusal::Closed);
}

#[test]
fn an_answer_to_another_operation_ends_the_session() {
    let mut session = connected(8);
    let correlation = session.produce(b"x", 1, 1).unwrap();
    let mut bytes = Vec::new();
    Response::Pong.encode(&mut bytes, Opcode::Ping as u8, correlation.0, 0);
    let error = session.receive_slice(&mut &bytes[..]).unwrap_err();
    let (asked, answered) = (Opcode::Produce as u8, Opcode::Ping as u8);
    assert_eq!(error, SessionError::WrongOperation { asked, answered });
}

#[test]
fn a_flipped_bit_in_an_answer_is_seen() {
    for bit in 0..(56 * 8) {
        let mut session = connected(8);
        let correlation = session.produce(b"x", 1, 1).unwrap();
        let mut bytes = Vec::new();
        ack(12).encode(&mut bytes, correlation.0);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let taken = session.receive_slice(&mut &bytes[..]);
        // A larger length makes the frame incomplete; it never makes an event.
        assert!(matches!(taken, Err(_) | Ok(None)), "bit {bit}: {taken:?}");
    }
}

#[test]
fn after_goodbye_answers_come_but_requests_are_refused() {
    let mut session = connected(8);
    let correlation = session.produce(b"x", 1, 1).unwrap();
    let mut bytes = Vec::new();
    let reason = ErrorResponse::new(ErrorCode::ShuttingDown, "bye");
    Response::Error(reason.clone()).encode(&mut bytes, Opcode::Goodbye as u8, 0, 0);
    ack(1).encode(&mut bytes, correlation.0);
    let mut input = &bytes[..];
    let event = session.receive_slice(&mut input).unwrap().unwrap();
    assert!(matches!(event, SessionEvent::Goodbye(e) if e == reason));
    assert_eq!(session.credit(), 0);
    assert_eq!(session.produce(b"x", 1, 2).unwrap_err().why, SendRefusal::Closed);
    let event = session.receive_slice(&mut input).unwrap().unwrap();
    assert!(matches!(event, SessionEvent::Produced { tag: 1, .. }));
}

#[test]
fn a_refused_handshake_says_why() {
    for opcode in [Opcode::Hello, Opcode::Goodbye] {
        let mut session = Session::<()>::new(SessionConfig::default());
        let hello = correlations(&sent(&mut session))[0];
        let correlation = if opcode == Opcode::Hello { hello } else { 0 };
        let refusal = ErrorResponse::new(ErrorCode::TooManyConnections, "full");
        let mut bytes = Vec::new();
        Response::Error(refusal.clone()).encode(&mut bytes, opcode as u8, correlation, 0);
        let error = session.receive_slice(&mut &bytes[..]).unwrap_err();
        assert_eq!(error, SessionError::HandshakeRefused(refusal));
    }
}

const AT: ConsumerAt = ConsumerAt { shard: ShardId(1), group: GroupId(2), consumer: ConsumerId(3) };

fn attach() -> Request {
    Request::Attach(Attach { at: AT, credit: Credit::default(), lease_ms: 0, held: Vec::new() })
}

fn delivery(payload_len: u32) -> Response {
    let lease = LeaseRange { partition: 0, base_offset: Offset(4), count: 1, acquired: 1 };
    let range = DeliveredRange { lease, failed: 0, first_delivery_us: 0, payload_len };
    Response::Delivered(Delivery { lease_ms: 1000, ranges: vec![range] })
}

#[test]
fn deliveries_belong_to_their_attach_and_do_not_end_it() {
    let mut session = connected(8);
    let attached = session.request(&attach(), 1).unwrap();
    let ping = session.request(&Request::Ping, 2).unwrap();
    let mut bytes = BytesMut::new();
    for payload in [&b"first"[..], b"second one"] {
        let mut frame = Vec::new();
        delivery(payload.len() as u32).encode(
            &mut frame,
            Opcode::Delivery as u8,
            attached.0,
            payload.len() as u32,
        );
        bytes.extend_from_slice(&frame);
        bytes.extend_from_slice(payload);
    }
    let mut frame = Vec::new();
    Response::Pong.encode(&mut frame, Opcode::Ping as u8, ping.0, 0);
    Response::Detached.encode(&mut frame, Opcode::Attach as u8, attached.0, 0);
    bytes.extend_from_slice(&frame);
    let range = bytes.as_ptr_range();
    for expected in [&b"first"[..], b"second one"] {
        let event = session.receive(&mut bytes).unwrap();
        let Some(SessionEvent::Delivered { attach, delivery, payload }) = event else { panic!("{event:?}") };
        assert_eq!((attach, session.tag(attach)), (attached, Some(&1)));
        assert_eq!((delivery.lease_ms, &payload[..]), (1000, expected));
        assert!(range.contains(&payload.as_ptr()), "records are not copied");
        assert_eq!(session.in_flight(), 2);
    }
    let event = session.receive(&mut bytes).unwrap();
    assert!(matches!(event, Some(SessionEvent::Answer { tag: 2, response: Response::Pong, .. })));
    let event = session.receive(&mut bytes).unwrap();
    assert!(matches!(event, Some(SessionEvent::Answer { tag: 1, response: Response::Detached, .. })));
    assert_eq!((session.in_flight(), session.tag(attached)), (0, None));
}

#[test]
fn a_delivery_without_an_attach_ends_the_session() {
    let deliver = |correlation: u64| {
        let mut bytes = Vec::new();
        delivery(1).encode(&mut bytes, Opcode::Delivery as u8, correlation, 1);
        bytes.push(0);
        bytes
    };
    let mut session = connected(8);
    let ping = session.request(&Request::Ping, 1).unwrap();
    let error = session.receive_slice(&mut &deliver(ping.0)[..]).unwrap_err();
    let (asked, answered) = (Opcode::Ping as u8, Opcode::Delivery as u8);
    assert_eq!(error, SessionError::WrongOperation { asked, answered });

    let mut session = connected(8);
    let attached = session.request(&attach(), 1).unwrap();
    let mut bytes = Vec::new();
    Response::Detached.encode(&mut bytes, Opcode::Attach as u8, attached.0, 0);
    session.receive_slice(&mut &bytes[..]).unwrap().unwrap();
    let error = session.receive_slice(&mut &deliver(attached.0)[..]).unwrap_err();
    assert_eq!(error, SessionError::UnexpectedAnswer { correlation: attached.0 }, "it has ended");

    let mut session = connected(8);
    let attached = session.request(&attach(), 1).unwrap();
    let mut bytes = Vec::new();
    let refusal = ErrorResponse::new(ErrorCode::UnknownGroup, "");
    Response::Error(refusal).encode(&mut bytes, Opcode::Delivery as u8, attached.0, 0);
    let error = session.receive_slice(&mut &bytes[..]).unwrap_err();
    assert!(matches!(error, SessionError::WrongOperation { .. }), "an attach ends under its own operation");
}

#[test]
fn records_that_were_asked_for_once_come_with_the_answer() {
    let mut session = connected(8);
    let credit = Credit { records: 1, bytes: 1 };
    let receive = Receive { at: AT, credit, lease_ms: 0, max_wait_ms: 0 };
    let asked = session.request(&Request::Receive(receive), 1).unwrap();
    let mut bytes = Vec::new();
    delivery(3).encode(&mut bytes, Opcode::Receive as u8, asked.0, 3);
    bytes.extend_from_slice(b"abc");
    let event = session.receive(&mut BytesMut::from(&bytes[..])).unwrap();
    let Some(SessionEvent::Answer { tag: 1, response: Response::Delivered(_), payload }) = event else {
        panic!("{event:?}")
    };
    assert_eq!((&payload[..], session.in_flight()), (&b"abc"[..], 0));
}

#[test]
fn a_settle_without_confirmation_is_sent_without_being_in_flight() {
    let mut session = connected(1);
    let settle = |confirm| Settle { at: AT, credit: Credit::default(), confirm, items: Vec::new() };
    session.request(&Request::Ping, 1).unwrap();
    sent(&mut session);
    assert_eq!(session.credit(), 0);
    session.settle_unconfirmed(settle(false)).unwrap();
    assert_eq!((session.in_flight(), correlations(&sent(&mut session))), (1, vec![0]));
    assert_eq!(session.settle_unconfirmed(settle(true)), Err(SendRefusal::WrongMethod));
    let mut session = connected(1);
    let refused = session.request(&Request::Settle(settle(false)), 1).unwrap_err();
    assert_eq!(refused.why, SendRefusal::WrongMethod, "its answer would be waited for in vain");
    session.request(&Request::Settle(settle(true)), 1).unwrap();
    assert_eq!(session.in_flight(), 1);
    let mut greeting = Session::<u32>::new(SessionConfig::default());
    assert_eq!(greeting.settle_unconfirmed(settle(false)), Err(SendRefusal::NotConnected));
}

#[test]
fn unanswered_requests_are_handed_back() {
    let mut session = connected(8);
    for tag in [10, 11, 12] {
        session.produce(b"x", 1, tag).unwrap();
    }
    let mut left: Vec<_> = session.into_unanswered().collect();
    left.sort_unstable();
    assert_eq!(left, [10, 11, 12]);
}

#[test]
fn wanted_never_follows_an_unverified_length() {
    let session = connected(8);
    assert_eq!(session.wanted(&[]), FRAME_HEADER_LEN);
    let mut bytes = Vec::new();
    let fetched = Response::Fetched(vec![fetched_partition(1 << 20)]);
    fetched.encode(&mut bytes, Opcode::Fetch as u8, 1, 1 << 20);
    assert_eq!(session.wanted(&bytes[..FRAME_HEADER_LEN]), bytes.len() - FRAME_HEADER_LEN);
    assert_eq!(session.wanted(&bytes), 1 << 20);
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(session.wanted(&bytes), 1, "the head is damaged: the driver must ask receive");
}

fn fetched_partition(payload_len: u32) -> FetchedPartition {
    FetchedPartition {
        partition: PARTITION,
        status: 0,
        payload_len,
        base_offset: Offset(0),
        start_offset: Offset(0),
        end_offset: Offset(9),
    }
}

/// Requests made on a fresh session and the broker's bytes that answer them.
fn exchange(lens: &[u16]) -> (Session<u32>, Vec<u8>) {
    let mut session = connected(1000);
    let mut bytes = Vec::new();
    for (tag, &len) in lens.iter().enumerate() {
        if len % 2 == 0 {
            let correlation = session.produce(b"x", 1, tag as u32).unwrap();
            ack(u64::from(len)).encode(&mut bytes, correlation.0);
        } else {
            let fetch = Request::Fetch(ringbolt_wire::message::Fetch::default());
            let correlation = session.request(&fetch, tag as u32).unwrap();
            let answer = Response::Fetched(vec![fetched_partition(u32::from(len))]);
            answer.encode(&mut bytes, Opcode::Fetch as u8, correlation.0, u32::from(len));
            bytes.extend((0..len).map(|i| i as u8 ^ tag as u8));
        }
    }
    (session, bytes)
}

fn describe(event: &SessionEvent<u32>) -> (u32, u64, Bytes) {
    match event {
        SessionEvent::Produced { tag, ack } => (*tag, ack.base_offset.0, Bytes::new()),
        SessionEvent::Answer { tag, payload, .. } => (*tag, 0, payload.clone()),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn events_do_not_depend_on_how_the_bytes_were_cut(
        lens in proptest::collection::vec(0u16..3000, 1..20),
        cuts in proptest::collection::vec(1usize..2000, 1..20),
    ) {
        let (mut session, bytes) = exchange(&lens);
        let mut whole = Vec::new();
        let mut input = &bytes[..];
        while let Some(event) = session.receive_slice(&mut input).unwrap() {
            whole.push(describe(&event));
        }
        prop_assert_eq!(whole.len(), lens.len());

        let (mut sliced, mut buffered) = (exchange(&lens).0, exchange(&lens).0);
        let (mut from_slices, mut from_buffer) = (Vec::new(), Vec::new());
        let (mut rest, mut buffer) = (&bytes[..], BytesMut::new());
        for &cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            let mut input = now;
            while let Some(event) = sliced.receive_slice(&mut input).unwrap() {
                from_slices.push(describe(&event));
            }
            prop_assert!(input.is_empty());
            buffer.extend_from_slice(now);
            while let Some(event) = buffered.receive(&mut buffer).unwrap() {
                from_buffer.push(describe(&event));
            }
        }
        prop_assert_eq!(&whole, &from_slices);
        prop_assert_eq!(&whole, &from_buffer);
    }

    #[test]
    fn no_bytes_make_the_session_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut session = connected(4);
        session.produce(b"x", 1, 1).unwrap();
        let mut input = &bytes[..];
        while let Ok(Some(_)) = session.receive_slice(&mut input) {}
    }
}
