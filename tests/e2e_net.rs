//! A broker and peers on real sockets: what they ask for, and what they do
//! wrong. Bad input gets its error or closes its connection, and harms nobody
//! else.

mod net_common;

use std::io::Write;
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt_wire::frame::encode_head;
use ringbolt_wire::message::{Hello, OffsetSpec, Request, Response};
use ringbolt_wire::{ErrorCode, Offset, Opcode, PartitionId, TopicId};

const ZERO: Offset = Offset(0);

#[test]
fn what_was_acknowledged_is_read_back() {
    let broker = start(|_| {});
    let topic = broker.topic("t", 2);
    let (first, second) = (PartitionId::new(topic.id, 0), PartitionId::new(topic.id, 1));
    let mut peer = broker.connect();
    assert_eq!(peer.produce(&batch(first, &[b"a", b"b"])), ZERO);
    assert_eq!(peer.produce(&batch(second, &[b"other"])), ZERO);
    assert_eq!(peer.produce(&batch(first, &[b"c"])), Offset(2));
    assert_eq!(peer.read_all(first, ZERO), [b"a", b"b", b"c"]);
    assert_eq!(peer.read_all(first, Offset(1)), [b"b", b"c"]);
    let (partitions, payload) = peer.fetch(&[(second, ZERO), (first, Offset(2))], 1 << 20, 0);
    assert_eq!(records(&partitions, &payload), [(ZERO, b"other".to_vec()), (Offset(2), b"c".to_vec())]);
    let offset = Request::Offsets { partition: first, spec: OffsetSpec::End };
    assert_eq!(peer.ask(&offset), Response::Offset(Offset(3)));
    broker.stop();
}

#[test]
fn batches_of_all_sizes_come_back_as_they_were() {
    let broker = start(|_| {});
    let topic = broker.topic("t", 1);
    let partition = PartitionId::new(topic.id, 0);
    let mut peer = broker.connect();
    // Around the limits of a receive buffer, of the direct path and of a block.
    let sizes = [
        1,
        100,
        16_000,
        16_300,
        20_000,
        4096 - 104,
        8192 - 104,
        65_000,
        65_536,
        (72 << 10) - 105,
        (72 << 10) - 104,
        80_000,
        200_000,
        262_144 - 104,
        262_144,
        300_000,
        1_000_000,
        17,
        262_144,
        262_144,
        262_145,
        20_000,
        20_000,
        20_000,
        1_048_472,
        5,
    ];
    let mut expected = Vec::new();
    let mut frames = Vec::new();
    for (i, &size) in sizes.iter().cycle().take(3 * sizes.len()).enumerate() {
        let value: Vec<u8> = (0..size).map(|j| (i * 31 + j * 7) as u8).collect();
        frames.push(produce_frame(1000 + i as u64, &batch(partition, &[&value])));
        expected.push(value);
    }
    // The first round one at a time, then all at once.
    let (slow, fast) = frames.split_at(sizes.len());
    for (i, frame) in slow.iter().enumerate() {
        peer.send(frame);
        assert!(matches!(peer.answer().response, Response::Produced(ack) if ack.base_offset.0 == i as u64));
    }
    let mut writer = peer.stream.try_clone().unwrap();
    let bytes = fast.concat();
    let sender = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for i in slow.len()..frames.len() {
        let answer = peer.answer();
        assert_eq!(answer.header.correlation, 1000 + i as u64);
        assert!(matches!(answer.response, Response::Produced(ack) if ack.base_offset.0 == i as u64));
    }
    sender.join().unwrap();
    assert!(peer.read_all(partition, ZERO) == expected);
    let dir = broker.stop();
    // And after a restart, from disk.
    let broker = ringbolt::serve::Broker::start(small_config(&dir)).unwrap();
    assert!(Peer::greeted(broker.addr()).read_all(partition, ZERO) == expected);
    broker.stop().unwrap();
}

#[test]
fn large_batches_are_not_copied() {
    let broker = start(|_| {});
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut peer = broker.connect();
    let value = vec![7; 256 << 10];
    let frame = produce_frame(5, &batch(partition, &[&value]));
    // What is on its way before the connection changes to direct receives is
    // copied: up to some MiB, once.
    const COUNT: usize = 240;
    let mut writer = peer.stream.try_clone().unwrap();
    let bytes = frame.repeat(COUNT);
    let sender = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for _ in 0..COUNT {
        assert!(matches!(peer.answer().response, Response::Produced(_)));
    }
    sender.join().unwrap();
    let (copied, acked) = (peer.stat("copied_bytes_total"), peer.stat("acked_bytes_total"));
    assert!(acked >= (COUNT * value.len()) as u64);
    assert!(copied * 10 <= acked, "{copied} bytes were copied for {acked}");
    assert_eq!(peer.stat("direct_misses_total"), 0, "batches of one size are predicted");
    broker.stop();
}

#[test]
fn non_frames_get_a_goodbye() {
    let broker = start(|_| {});
    let mut ping = encode(&Request::Ping, 1);
    let mut wrong_crc = ping.clone();
    wrong_crc[4] ^= 0x40;
    let mut huge = ping.clone();
    huge[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut negative = ping.clone();
    negative[16..20].copy_from_slice(&(-1i32).to_le_bytes());
    ping[8] = 99;
    let cases: [(&[u8], ErrorCode); 5] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrorCode::MalformedFrame),
        (&wrong_crc, ErrorCode::FrameCrcMismatch),
        (&huge, ErrorCode::FrameTooLarge),
        (&negative, ErrorCode::FrameTooLarge),
        (&ping, ErrorCode::UnsupportedVersion),
    ];
    for (bytes, expected) in cases {
        let mut peer = broker.connect();
        peer.send(bytes);
        assert_eq!(peer.goodbye(), expected);
    }
    let mut stranger = Peer::silent(broker.addr);
    stranger.send(&encode(&Request::ListTopics, 1));
    assert_eq!(stranger.goodbye(), ErrorCode::HandshakeRequired);
    let mut newer = Peer::silent(broker.addr);
    let hello = Hello { min_version: 200, max_version: 201, ..hello() };
    newer.send(&encode(&Request::Hello(hello), 1));
    assert_eq!(newer.goodbye(), ErrorCode::UnsupportedVersion);
    wait_until("all are gone", || broker.stat("connections") == 1);
    broker.stop();
}

#[test]
fn bad_requests_are_answered_and_the_connection_goes_on() {
    let broker = start(|_| {});
    let topic = broker.topic("good", 1);
    let partition = PartitionId::new(topic.id, 0);
    let mut peer = broker.connect();
    let create = |name: &str| Request::CreateTopic { name: name.to_owned(), partitions: 1 };
    for name in ["a/b", "", "..", &"x".repeat(10_000), "space d", "ümlaut"] {
        assert_eq!(code(&peer.ask(&create(name))), ErrorCode::InvalidTopicName, "{name:?}");
    }
    assert_eq!(code(&peer.ask(&create("good"))), ErrorCode::TopicExists);
    let describe = Request::DescribeTopic { name: "none".to_owned() };
    assert_eq!(code(&peer.ask(&describe)), ErrorCode::UnknownTopic);

    let good = batch(partition, &[b"value"]);
    assert_eq!(code(&peer.try_produce(&damaged(&good))), ErrorCode::BatchCrcMismatch);
    assert_eq!(code(&peer.try_produce(&miscounted(&good))), ErrorCode::MalformedBatch);
    let elsewhere = batch(PartitionId::new(topic.id, 9), &[b"x"]);
    assert_eq!(code(&peer.try_produce(&elsewhere)), ErrorCode::UnknownPartition);
    let nowhere = batch(PartitionId::new(TopicId(77), 0), &[b"x"]);
    assert_eq!(code(&peer.try_produce(&nowhere)), ErrorCode::UnknownTopic);

    let (partitions, payload) = peer.fetch(&[(partition, Offset(1000))], 1 << 20, 0);
    assert_eq!((partitions[0].status, payload.len()), (ErrorCode::OffsetOutOfRange as u16, 0));
    let mut unknown = Vec::new();
    encode_head(&mut unknown, 250, false, 0, 9, b"what?", 0);
    peer.send(&unknown);
    assert_eq!(code(&peer.answer().response), ErrorCode::UnknownOpcode);

    assert_eq!(peer.produce(&good), ZERO, "nothing of it was stored");
    broker.stop();
}

#[test]
fn more_requests_in_flight_than_agreed_end_the_connection() {
    let broker = start(|_| {});
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut peer = Peer::silent(broker.addr);
    let ack = peer.greet(hello());
    let wait = encode(&fetch_request(&[(partition, ZERO)], 1000, 60_000), 3);
    peer.send(&wait.repeat(ack.max_in_flight as usize + 1));
    for _ in 0..ack.max_in_flight {
        let answer = peer.answer();
        assert_eq!(answer.header.opcode, Opcode::Fetch as u8, "what waits is answered first: {answer:?}");
    }
    assert_eq!(peer.goodbye(), ErrorCode::TooManyInFlight);
    broker.stop();
}

#[test]
fn a_client_that_vanishes_within_a_frame_leaves_nothing_behind() {
    let broker = start(|_| {});
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let frame = produce_frame(1, &batch(partition, &[&[1; 100_000]]));
    for cut in [1, 20, 39, 41, 1000, 70_000, frame.len() - 1] {
        let mut peer = broker.connect();
        peer.send(&frame[..cut]);
        drop(peer);
    }
    wait_until("all are gone", || broker.stat("connections") == 1);
    let mut peer = broker.connect();
    assert_eq!(peer.read_all(partition, ZERO).len(), 0);
    assert_eq!(peer.produce(&batch(partition, &[b"x"])), ZERO);
    broker.stop();
}

#[test]
fn byte_by_byte_is_slow_but_right() {
    let broker = start(|config| config.handshake_timeout = Duration::from_millis(400));
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut peer = broker.connect();
    for byte in produce_frame(8, &batch(partition, &[b"slowly"])) {
        peer.send(&[byte]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(matches!(peer.answer().response, Response::Produced(_)));
    // A hello that does not end is not waited for.
    let mut stranger = Peer::silent(broker.addr);
    let started = Instant::now();
    let bytes = encode(&Request::Hello(hello()), 1);
    for byte in &bytes[..bytes.len() - 1] {
        if stranger.stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stranger.goodbye(), ErrorCode::HandshakeTimeout);
    assert!(started.elapsed() < Duration::from_secs(5));
    broker.stop();
}

#[test]
fn a_waiting_fetch_is_answered_when_there_is_something() {
    let broker = start(|_| {});
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut reader = broker.connect();
    let started = Instant::now();
    let (_, payload) = reader.fetch(&[(partition, ZERO)], 1000, 200);
    assert!(payload.is_empty() && started.elapsed() >= Duration::from_millis(200));
    reader.send(&encode(&fetch_request(&[(partition, ZERO)], 1000, 60_000), 5));
    std::thread::sleep(Duration::from_millis(50));
    broker.connect().produce(&batch(partition, &[b"news"]));
    let answer = reader.answer();
    assert!(matches!(answer.response, Response::Fetched(p) if p[0].end_offset == Offset(1)));
    assert!(started.elapsed() < Duration::from_secs(20));
    broker.stop();
}

#[test]
fn a_stop_answers_what_waits_and_says_goodbye() {
    let broker = start(|_| {});
    let partition = PartitionId::new(broker.topic("t", 1).id, 0);
    let mut reader = broker.connect();
    reader.send(&encode(&fetch_request(&[(partition, ZERO)], 1000, 60_000), 5));
    let mut writer = broker.connect();
    let frames: Vec<u8> = (0..200).flat_map(|i| produce_frame(i, &batch(partition, &[b"x"]))).collect();
    writer.send(&frames);
    wait_until("the requests have come", || broker.stat("produce_requests_total") == 200);
    let stopped = std::thread::spawn(move || broker.stop());
    let mut acked = 0;
    loop {
        let answer = writer.answer();
        match answer.response {
            Response::Produced(_) => acked += 1,
            Response::Error(error) if answer.header.opcode == Opcode::Goodbye as u8 => {
                assert_eq!(error.error_code(), Some(ErrorCode::ShuttingDown));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acked, 200, "what was taken is answered");
    assert!(matches!(reader.answer().response, Response::Fetched(_)));
    assert_eq!(reader.goodbye(), ErrorCode::ShuttingDown);
    drop((writer, reader));
    stopped.join().unwrap();
}

#[test]
fn a_directory_is_served_once() {
    let broker = start(|_| {});
    let error = ringbolt::serve::Broker::start(small_config(&broker.dir)).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("data") && text.contains(&std::process::id().to_string()), "{text}");
    broker.stop();
}
