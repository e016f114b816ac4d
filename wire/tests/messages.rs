//! Frames and messages: what is sent comes back, and nothing else passes.

mod support;

use proptest::prelude::*;
use ringbolt_wire::frame::{
    FRAME_HEADER_LEN, FrameError, FrameHeader, MAX_META_LEN, MAX_REQUEST_META_LEN, encode_head,
};
use ringbolt_wire::message::{MessageError, ProduceAck, Request, Response, produce_head};
use ringbolt_wire::{ErrorCode, Offset, Opcode};
use support::{NO_LIMIT, open_frame, request, reseal_frame, response};

fn encode_request(request: &Request, payload_len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(&mut out, 7, payload_len);
    out
}

fn encode_response((response, opcode, payload_len): &(Response, u8, u32)) -> Vec<u8> {
    let mut out = Vec::new();
    response.encode(&mut out, *opcode, 7, *payload_len);
    out
}

fn decode_request(frame: &[u8]) -> Result<Request, MessageError> {
    let (header, meta) = open_frame(frame);
    Request::decode(header.opcode, meta, header.payload_len)
}

fn decode_response(frame: &[u8]) -> Result<Response, MessageError> {
    let (header, meta) = open_frame(frame);
    Response::decode(header.opcode, header.status, meta, header.payload_len)
}

proptest! {
    #[test]
    fn a_request_decodes_to_itself((request, payload_len) in request()) {
        let frame = encode_request(&request, payload_len);
        let (header, meta) = open_frame(&frame);
        prop_assert_eq!((header.is_response, header.status, header.correlation), (false, 0, 7));
        prop_assert_eq!(header.frame_len(), frame.len() + payload_len as usize);
        prop_assert_eq!(Request::decode(header.opcode, meta, header.payload_len), Ok(request));
    }

    #[test]
    fn a_response_decodes_to_itself(sent in response()) {
        let frame = encode_response(&sent);
        let (header, _) = open_frame(&frame);
        prop_assert!(header.is_response);
        prop_assert_eq!((header.opcode, header.payload_len), (sent.1, sent.2));
        prop_assert_eq!(decode_response(&frame), Ok(sent.0));
    }

    /// One reading, one writing. It also bounds what a decoded message holds by
    /// the bytes that it was decoded from.
    #[test]
    fn a_changed_request_is_refused_or_encodes_to_its_bytes(
        (request, payload_len) in request(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut frame = encode_request(&request, payload_len);
        for (at, value) in changes.iter().filter(|_| frame.len() > FRAME_HEADER_LEN).collect::<Vec<_>>() {
            let at = FRAME_HEADER_LEN + at.index(frame.len() - FRAME_HEADER_LEN);
            frame[at] = *value;
        }
        reseal_frame(&mut frame);
        if let Ok(decoded) = decode_request(&frame) {
            prop_assert_eq!(encode_request(&decoded, payload_len), frame);
        }
    }

    #[test]
    fn a_changed_response_is_refused_or_encodes_to_its_bytes(
        sent in response(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut frame = encode_response(&sent);
        for (at, value) in changes.iter().filter(|_| frame.len() > FRAME_HEADER_LEN).collect::<Vec<_>>() {
            let at = FRAME_HEADER_LEN + at.index(frame.len() - FRAME_HEADER_LEN);
            frame[at] = *value;
        }
        reseal_frame(&mut frame);
        if let Ok(decoded) = decode_response(&frame) {
            prop_assert_eq!(encode_response(&(decoded, sent.1, sent.2)), frame);
        }
    }

    #[test]
    fn arbitrary_meta_is_refused_or_encodes_to_its_bytes(
        opcode in prop_oneof![any::<u8>(), (0..Opcode::ALL.len()).prop_map(|i| Opcode::ALL[i] as u8)],
        status in prop_oneof![Just(0), any::<u16>()],
        meta in proptest::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..100),
        payload_len in prop_oneof![Just(0), any::<u32>()],
    ) {
        if let Ok(request) = Request::decode(opcode, &meta, payload_len) {
            prop_assert_eq!(&encode_request(&request, payload_len)[FRAME_HEADER_LEN..], &meta);
        }
        if let Ok(response) = Response::decode(opcode, status, &meta, payload_len) {
            prop_assert_eq!(&encode_response(&(response, opcode, payload_len))[FRAME_HEADER_LEN..], &meta);
        }
    }

    #[test]
    fn a_shorter_or_longer_meta_is_refused((request, payload_len) in request(), sent in response()) {
        let frame = encode_request(&request, payload_len);
        let meta = &frame[FRAME_HEADER_LEN..];
        let opcode = request.opcode() as u8;
        for len in 0..meta.len() {
            prop_assert!(Request::decode(opcode, &meta[..len], payload_len).is_err());
        }
        prop_assert!(Request::decode(opcode, &[meta, &[0]].concat(), payload_len).is_err());

        let frame = encode_response(&sent);
        let (header, meta) = open_frame(&frame);
        for len in 0..meta.len() {
            prop_assert!(Response::decode(sent.1, header.status, &meta[..len], sent.2).is_err());
        }
        prop_assert!(Response::decode(sent.1, header.status, &[meta, &[0]].concat(), sent.2).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_no_frame_longer_than_the_limit(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
        start in 0..=12_usize,
        limit in any::<u32>(),
    ) {
        let honest = b"RBLT\0\0\0\0\x01\x20\x01\0";
        let n = start.min(bytes.len());
        bytes[..n].copy_from_slice(&honest[..n]);
        if let Ok(Some(header)) = FrameHeader::decode(&bytes, limit) {
            prop_assert!(header.frame_len() <= limit as usize);
            prop_assert!(header.head_len() <= FRAME_HEADER_LEN + MAX_META_LEN as usize);
        }
    }

    /// The fast ways and the general way are one layout.
    #[test]
    fn the_hot_heads_equal_the_general_ones(
        correlation in any::<u64>(), min_copies in any::<u8>(), batch_len in any::<u32>(),
        offset in any::<u64>(), time in any::<u64>(), copies in 1..=u8::MAX, duplicate in any::<bool>(),
    ) {
        let mut general = Vec::new();
        Request::Produce { min_copies }.encode(&mut general, correlation, batch_len);
        prop_assert_eq!(&produce_head(correlation, min_copies, batch_len)[..], general);

        let ack = ProduceAck { base_offset: Offset(offset), commit_time_us: time, copies, duplicate };
        let (mut fast, mut general) = (b"before".to_vec(), b"before".to_vec());
        ack.encode(&mut fast, correlation);
        Response::Produced(ack).encode(&mut general, Opcode::Produce as u8, correlation, 0);
        prop_assert_eq!(&fast, &general);
        prop_assert_eq!(ProduceAck::from_frame(&fast[6..]), Some((correlation, ack)));
    }

    /// Whatever the fast way takes for an acknowledgement, the general way does.
    #[test]
    fn an_acknowledgement_is_read_alike_both_ways(
        meta in any::<[u64; 3]>(), last in prop_oneof![0..0x300_u64, any::<u64>()],
        opcode in prop_oneof![Just(Opcode::Produce as u8), any::<u8>()], status in 0..2_u16,
        correlation in any::<u64>(),
    ) {
        let meta: Vec<u8> = [meta[0], meta[1], last].iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut frame = Vec::new();
        encode_head(&mut frame, opcode, true, status, correlation, &meta, 0);
        let header = FrameHeader::decode(&frame, u32::MAX).unwrap().unwrap();
        let general = match Response::decode(header.opcode, header.status, &meta, 0) {
            Ok(Response::Produced(ack)) => Some((correlation, ack)),
            _ => None,
        };
        prop_assert_eq!(ProduceAck::from_frame(&frame), general);
    }
}

/// All 8 bits of every byte of header and meta, of a request and a response.
#[test]
fn every_flipped_bit_in_a_frame_head_is_detected() {
    let mut request = produce_head(0x0102_0304_0506_0708, 1, 300).to_vec();
    request.resize(request.len() + 300, 0xa5);
    let mut response = Vec::new();
    let ack = ProduceAck { base_offset: Offset(9), commit_time_us: 8, copies: 1, duplicate: false };
    ack.encode(&mut response, 5);
    for (frame, head_len) in [(request, 40), (response, 56)] {
        // What follows on the stream, so that a longer meta has bytes to read.
        let stream = [&frame[..], &[0x5a; 4096]].concat();
        for bit in 0..head_len * 8 {
            let mut damaged = stream.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let detected = match FrameHeader::decode(&damaged, 4096) {
                Err(_) => true,
                Ok(None) => panic!("the header is there"),
                Ok(Some(header)) => header.verify(&damaged).is_err(),
            };
            assert!(detected, "bit {bit} of {head_len} bytes");
            assert_eq!(ProduceAck::from_frame(&damaged), None, "bit {bit} of {head_len} bytes");
        }
        assert_eq!(ProduceAck::from_frame(&frame[..head_len - 1]), None, "a part of it");
    }
}

#[test]
fn a_head_shorter_than_a_header_is_awaited_unless_it_cannot_start_a_frame() {
    let frame = produce_head(1, 0, 100);
    for len in 0..FRAME_HEADER_LEN {
        assert_eq!(FrameHeader::decode(&frame[..len], NO_LIMIT), Ok(None), "{len} bytes");
    }
    assert!(matches!(FrameHeader::decode(&frame[..FRAME_HEADER_LEN], NO_LIMIT), Ok(Some(_))));
    assert_eq!(FrameHeader::decode(b"G", NO_LIMIT), Err(FrameError::BadMagic([b'G', 0, 0, 0])));
    assert_eq!(FrameHeader::decode(b"RBL\0", NO_LIMIT), Err(FrameError::BadMagic(*b"RBL\0")));
}

#[test]
fn lengths_of_4_gib_are_refused_before_anything_is_sized_by_them() {
    let head = produce_head(1, 0, u32::MAX);
    let len = 40 + u64::from(u32::MAX);
    assert_eq!(
        FrameHeader::decode(&head, NO_LIMIT),
        Err(FrameError::TooLarge { len, limit: u64::from(u32::MAX) })
    );
    assert_eq!(FrameHeader::decode(&head, 1 << 20), Err(FrameError::TooLarge { len, limit: 1 << 20 }));

    for (is_response, max) in [(false, MAX_REQUEST_META_LEN), (true, MAX_META_LEN)] {
        for (meta_len, fits) in [(max, true), (max + 1, false), (u32::MAX - 32, false), (u32::MAX, false)] {
            let mut frame = Vec::new();
            encode_head(&mut frame, Opcode::Ping as u8, is_response, 0, 1, &[], 0);
            frame[16..20].copy_from_slice(&meta_len.to_le_bytes());
            let decoded = FrameHeader::decode(&frame, NO_LIMIT);
            assert_eq!(decoded.is_ok(), fits, "meta of {meta_len} bytes: {decoded:?}");
            assert!(fits || decoded.is_err_and(|e| e.code() == ErrorCode::FrameTooLarge));
        }
    }
}

#[test]
fn frames_with_an_unknown_version_flag_or_reserved_bit_are_refused() {
    let frame = produce_head(1, 0, 100);
    let with = |at: usize, value: u8| {
        let mut frame = frame;
        frame[at] = value;
        FrameHeader::decode(&frame, NO_LIMIT).map(|_| ()).map_err(|e| e.code())
    };
    assert_eq!(with(8, 1), Ok(()));
    assert_eq!(with(8, 0), Err(ErrorCode::UnsupportedVersion));
    assert_eq!(with(8, 2), Err(ErrorCode::UnsupportedVersion));
    for (at, value) in [(10, 2), (11, 0x80), (14, 1), (15, 1)] {
        assert_eq!(with(at, value), Err(ErrorCode::MalformedFrame), "byte {at}");
    }
    // A request has no status.
    assert_eq!(with(12, 1), Err(ErrorCode::MalformedFrame));
}

/// The message's meta, as bytes of a hostile sender.
fn meta(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn counts_that_lie_are_refused() {
    let max = u32::MAX.to_le_bytes();
    let item = [0; 24];
    let fetch = |count: u32, items: &[u8]| {
        let meta = meta(&[&[0; 12], &count.to_le_bytes(), items]);
        Request::decode(Opcode::Fetch as u8, &meta, 0)
    };
    assert!(fetch(1, &item).is_ok());
    for (count, items) in [(0, &[][..]), (2, &item), (u32::MAX, &item), (1, &[0; 48])] {
        assert!(fetch(count, items).is_err(), "{count} items in {} bytes", items.len());
    }
    // 4096 partitions may be named, 4097 may not, and none twice.
    let many = |count: u32| -> Vec<u8> {
        (0..count).flat_map(|i| [&[1, 0, 0, 0], &i.to_le_bytes()[..], &[0; 16]].concat()).collect()
    };
    assert!(fetch(4096, &many(4096)).is_ok());
    assert!(matches!(
        fetch(4097, &many(4097)),
        Err(MessageError::OutOfRange { field: "count", value: 4097 })
    ));
    let twice = [many(3), many(1)].concat();
    assert!(matches!(fetch(4, &twice), Err(MessageError::OutOfRange { field: "partition", .. })));

    let decode = |opcode: Opcode, parts: &[&[u8]], payload_len| {
        Response::decode(opcode as u8, 0, &meta(parts), payload_len)
    };
    assert!(decode(Opcode::ListTopics, &[&max], 0).is_err());
    assert!(decode(Opcode::Stats, &[&max, &[0; 10]], 0).is_err());
    let topic = meta(&[&[1, 0, 0, 0], &max, &[1, 0], b"t"]);
    assert!(decode(Opcode::DescribeTopic, &[&topic, &max], 0).is_err());
    assert!(decode(Opcode::Fetch, &[&max, &[0; 4], &[0; 40]], 0).is_err());
    // A string that says it is longer than the message.
    assert!(Request::decode(Opcode::DeleteTopic as u8, &[0xff, 0xff, b'a'], 0).is_err());
    assert_eq!(Request::decode(Opcode::DeleteTopic as u8, &[1, 0, 0xff], 0), Err(MessageError::NotUtf8));
}

#[test]
fn the_payload_lengths_of_a_fetch_answer_add_up_to_the_frames() {
    let item = |status: u32, payload_len: u32, base: u64| {
        meta(&[&[0; 8], &status.to_le_bytes(), &payload_len.to_le_bytes(), &[0; 16], &base.to_le_bytes()])
    };
    let decode = |items: &[Vec<u8>], payload_len| {
        let head = (items.len() as u64).to_le_bytes();
        Response::decode(Opcode::Fetch as u8, 0, &meta(&[&head, &items.concat()]), payload_len)
    };
    let whole = u32::MAX;
    assert!(decode(&[item(0, 100, 5), item(0, 0, u64::MAX)], 100).is_ok());
    for (items, payload_len) in [
        (vec![item(0, 100, 5)], 99),
        (vec![item(0, 100, 5)], 101),
        (vec![item(0, whole, 5), item(0, whole, 5)], whole - 1),
        (vec![item(40, 100, 5)], 100),
        (vec![item(0, 100, u64::MAX)], 100),
        (vec![item(0, 0, 5)], 0),
        (vec![item(0x1_0000, 0, u64::MAX)], 0),
    ] {
        assert!(decode(&items, payload_len).is_err(), "{items:?}, {payload_len}");
    }
}

#[test]
fn a_payload_comes_with_produce_and_with_fetch_answers_only() {
    let produce = Opcode::Produce as u8;
    assert!(Request::decode(produce, &[0; 8], 1).is_ok());
    assert_eq!(Request::decode(produce, &[0; 8], 0), Err(MessageError::UnexpectedPayload));
    assert_eq!(Request::decode(Opcode::Ping as u8, &[], 1), Err(MessageError::UnexpectedPayload));
    assert_eq!(Response::decode(Opcode::Ping as u8, 0, &[], 1), Err(MessageError::UnexpectedPayload));
    let error = [0; 14];
    assert!(Response::decode(Opcode::Fetch as u8, 40, &error, 0).is_ok());
    assert_eq!(Response::decode(Opcode::Fetch as u8, 40, &error, 1), Err(MessageError::UnexpectedPayload));
}

#[test]
fn operations_that_are_not_known_or_not_a_clients_are_told_so() {
    for opcode in (0..=u8::MAX).filter(|&n| Opcode::from_u8(n).is_none()) {
        let error = Request::decode(opcode, &[], 0).unwrap_err();
        assert_eq!(error, MessageError::UnknownOpcode(opcode));
        assert_eq!(error.code(), ErrorCode::UnknownOpcode);
        // The refusal of an operation is understood by whoever does not know it.
        assert!(matches!(Response::decode(opcode, 4, &[0; 14], 0), Ok(Response::Error(_))));
    }
    let goodbye = Opcode::Goodbye as u8;
    assert_eq!(Request::decode(goodbye, &[], 0), Err(MessageError::UnknownOpcode(goodbye)));
    // A goodbye always says why.
    assert!(Response::decode(goodbye, 0, &[0; 14], 0).is_err());
}

#[test]
fn handshake_limits_that_no_client_could_live_with_are_refused() {
    let ack = |copies: u8, shards: u16, frame: u32, batch: u32, in_flight: u32| {
        let parts = [frame.to_le_bytes(), batch.to_le_bytes(), in_flight.to_le_bytes()].concat();
        let meta = meta(&[&[1, copies], &shards.to_le_bytes(), &parts, &[0; 32]]);
        Response::decode(Opcode::Hello as u8, 0, &meta, 0)
    };
    assert!(ack(1, 1, 144, 104, 1).is_ok());
    for (copies, shards, frame, batch, in_flight) in [
        (0, 1, 144, 104, 1),
        (1, 0, 144, 104, 1),
        (1, 1, 143, 104, 1),
        (1, 1, 144, 103, 1),
        (1, 1, 39, u32::MAX, 1),
        (1, 1, u32::MAX, u32::MAX, 1),
        (1, 1, 144, 104, 0),
    ] {
        assert!(ack(copies, shards, frame, batch, in_flight).is_err());
    }
}

#[test]
fn topic_names_are_what_the_document_says() {
    use ringbolt_wire::message::is_valid_topic_name;
    for name in ["a", "orders.eu-1_x", "...", &"n".repeat(249)] {
        assert!(is_valid_topic_name(name), "{name}");
    }
    for name in ["", ".", "..", "a/b", "a b", "ä", "a\0", "a\n", &"n".repeat(250), &"n".repeat(10_000)] {
        assert!(!is_valid_topic_name(name), "{name}");
    }
}
