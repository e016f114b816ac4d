//! One frame for each message, and what its bytes are called.

use ringbolt_wire::batch::BatchHeader;
use ringbolt_wire::message::{
    ErrorResponse, Fetch, FetchPartition, FetchedPartition, Hello, HelloAck, OffsetSpec, OpenProducer,
    PartitionInfo, ProduceAck, ProducerOpened, TopicDescription, TopicInfo,
};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, Offset, Opcode, PartitionId, ProducerId, Request, Response, Sequence,
    ShardId, TopicId,
};

use super::{consumers, groups};

pub const BATCH_HEADER: &str = "= record batch, base_offset u64, commit_time_us u64, magic a4, crc x32, \
    length u32, count u32, topic u32, partition u32, producer_id u64, base_sequence u64, \
    producer_epoch u32, version u8, compression u8, flags u16, first_timestamp_us u64, \
    max_timestamp_us u64";
pub const RECORD: &str = "= record, length u32, key_len u32, value_len u32, header_count u16, reserved u16, \
    timestamp_us u64";

#[derive(Debug)]
pub enum Message {
    Request(Request),
    Response(Response),
}

/// One frame: what it says, its payload, and what its bytes are called.
pub struct Example {
    pub name: &'static str,
    pub frame: Vec<u8>,
    pub message: Message,
    /// Names and kinds of the fields of meta and payload, as [`dump`] reads
    /// them.
    pub fields: String,
}

pub const ORDERS: PartitionId = PartitionId::new(TopicId(7), 1);
pub const OTHER: PartitionId = PartitionId::new(TopicId(7), 0);
pub const TIME_US: u64 = 1_700_000_000_000_000;

pub fn request(name: &'static str, correlation: u64, request: Request, fields: &str) -> Example {
    let mut frame = Vec::new();
    request.encode(&mut frame, correlation, 0);
    Example { name, frame, message: Message::Request(request), fields: fields.to_owned() }
}

pub fn response(
    name: &'static str,
    correlation: u64,
    to: Opcode,
    response: Response,
    fields: &str,
) -> Example {
    let mut frame = Vec::new();
    response.encode(&mut frame, to as u8, correlation, 0);
    Example { name, frame, message: Message::Response(response), fields: fields.to_owned() }
}

pub fn examples() -> Vec<Example> {
    let mut all = connection_examples();
    all.extend(topic_examples());
    all.extend(produce_examples());
    all.extend(fetch_examples());
    all.extend(other_examples());
    all.extend(groups::examples());
    all.extend(consumers::examples());
    all
}

fn connection_examples() -> Vec<Example> {
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        features: 0,
        affinity: Some(ORDERS),
        client_name: "example".into(),
    };
    let ack = HelloAck {
        version: 1,
        copies: 1,
        shards: 2,
        features: 0,
        max_frame_len: 1_114_112,
        max_batch_len: 1_048_576,
        max_in_flight: 1024,
        boot: 3,
        broker_id: *b"\x0f\x1e\x2d\x3c\x4b\x5a\x69\x78\x87\x96\xa5\xb4\xc3\xd2\xe1\xf0",
    };
    let goodbye =
        ErrorResponse::new(ErrorCode::FrameTooLarge, "frame of 2000000 bytes").with_detail(1_114_112);
    vec![
        request(
            "hello request",
            1,
            Request::Hello(hello),
            "min_version u8, max_version u8, has_affinity u8, reserved u8, features u64, \
             affinity_topic u32, affinity_partition u32, client_name_len u16, client_name a7",
        ),
        response(
            "hello response",
            1,
            Opcode::Hello,
            Response::Hello(ack),
            "version u8, copies u8, shards u16, max_frame_len u32, max_batch_len u32, max_in_flight u32, \
             features u64, boot u64, broker_id r16",
        ),
        request("ping request", 2, Request::Ping, ""),
        response("ping response", 2, Opcode::Ping, Response::Pong, ""),
        response(
            "goodbye",
            0,
            Opcode::Goodbye,
            Response::Error(goodbye),
            "retry_after_ms u32, detail u64, text_len u16, text a22",
        ),
    ]
}

fn topic_examples() -> Vec<Example> {
    let orders = TopicInfo { id: TopicId(7), partitions: 2, name: "orders".into() };
    let audit = TopicInfo { id: TopicId(2), partitions: 1, name: "audit".into() };
    let info = |shard, start, end| PartitionInfo {
        shard: ShardId(shard),
        start_offset: Offset(start),
        end_offset: Offset(end),
    };
    let description =
        TopicDescription { topic: orders.clone(), partitions: vec![info(0, 0, 0), info(1, 40, 102)] };
    let name = || "orders".to_owned();
    let topic = "topic u32, partitions u32, name_len u16, name";
    let partition = "= partition, shard u32, start_offset u64, end_offset u64";
    vec![
        request(
            "create topic request",
            3,
            Request::CreateTopic { name: name(), partitions: 2 },
            "partitions u32, name_len u16, name a6",
        ),
        response(
            "create topic response",
            3,
            Opcode::CreateTopic,
            Response::TopicCreated(orders.clone()),
            &format!("{topic} a6"),
        ),
        request("delete topic request", 4, Request::DeleteTopic { name: name() }, "name_len u16, name a6"),
        response("delete topic response", 4, Opcode::DeleteTopic, Response::TopicDeleted, ""),
        request("list topics request", 5, Request::ListTopics, ""),
        response(
            "list topics response",
            5,
            Opcode::ListTopics,
            Response::Topics(vec![audit, orders]),
            &format!("count u32, = topic, {topic} a5, = topic, {topic} a6"),
        ),
        request(
            "describe topic request",
            6,
            Request::DescribeTopic { name: name() },
            "name_len u16, name a6",
        ),
        response(
            "describe topic response",
            6,
            Opcode::DescribeTopic,
            Response::Topic(description),
            &format!("{topic} a6, count u32, {partition}, {partition}"),
        ),
    ]
}

/// Two records: one with key and header, one with a value only.
pub fn batch() -> (Vec<u8>, String) {
    let mut builder = BatchBuilder::new();
    builder.push(TIME_US, Some(b"k1"), b"hello", &[("lang".into(), b"en".to_vec())]);
    builder.push(TIME_US + 250, None, b"world!", &[]);
    let bytes = builder.finish(ORDERS, ProducerId(0xfeed), Epoch(1), Sequence(10));
    let fields = format!(
        "{BATCH_HEADER}, {RECORD}, key a2, value a5, = record header, name_len u16, value_len u32, \
         name a4, value a2, {RECORD}, value a6"
    );
    (bytes, fields)
}

fn produce_examples() -> Vec<Example> {
    let (bytes, batch_fields) = batch();
    let message = Request::Produce { min_copies: 1 };
    let mut frame = Vec::new();
    message.encode(&mut frame, 7, bytes.len() as u32);
    frame.extend_from_slice(&bytes);
    let ack =
        ProduceAck { base_offset: Offset(100), commit_time_us: TIME_US + 1000, copies: 1, duplicate: false };
    let duplicate = ProduceAck { commit_time_us: 0, duplicate: true, ..ack };
    let error =
        ErrorResponse::new(ErrorCode::OutOfOrderSequence, "expected sequence 10, got 12").with_detail(10);
    let ack_fields = "base_offset u64, commit_time_us u64, copies u8, duplicate u8, reserved r6";
    vec![
        Example {
            name: "produce request",
            frame,
            message: Message::Request(message),
            fields: format!("min_copies u8, reserved r7, {batch_fields}"),
        },
        response("produce response", 7, Opcode::Produce, Response::Produced(ack), ack_fields),
        response(
            "produce response to a duplicate",
            8,
            Opcode::Produce,
            Response::Produced(duplicate),
            ack_fields,
        ),
        response(
            "error response",
            9,
            Opcode::Produce,
            Response::Error(error),
            "retry_after_ms u32, detail u64, text_len u16, text a28",
        ),
    ]
}

fn fetch_examples() -> Vec<Example> {
    let fetch = Fetch {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 1_048_576,
        partitions: vec![
            FetchPartition { partition: ORDERS, offset: Offset(101), max_bytes: 262_144 },
            FetchPartition { partition: OTHER, offset: Offset(9), max_bytes: 262_144 },
        ],
    };
    let (mut bytes, batch_fields) = batch();
    BatchHeader::set_placement(&mut bytes, Offset(100), TIME_US + 1000);
    let fetched = vec![
        FetchedPartition {
            partition: ORDERS,
            status: 0,
            payload_len: bytes.len() as u32,
            base_offset: Offset(100),
            start_offset: Offset(40),
            end_offset: Offset(102),
        },
        FetchedPartition {
            partition: OTHER,
            status: ErrorCode::OffsetOutOfRange as u16,
            payload_len: 0,
            base_offset: Offset::UNKNOWN,
            start_offset: Offset(0),
            end_offset: Offset(0),
        },
    ];
    let message = Response::Fetched(fetched);
    let mut frame = Vec::new();
    message.encode(&mut frame, Opcode::Fetch as u8, 10, bytes.len() as u32);
    frame.extend_from_slice(&bytes);
    let asked = "= partition, topic u32, partition u32, offset u64, max_bytes u32, reserved u32";
    let got = "= partition, topic u32, partition u32, status u32, payload_len u32, start_offset u64, \
        end_offset u64, base_offset u64";
    vec![
        request(
            "fetch request",
            10,
            Request::Fetch(fetch),
            &format!("max_wait_ms u32, min_bytes u32, max_bytes u32, count u32, {asked}, {asked}"),
        ),
        Example {
            name: "fetch response",
            frame,
            message: Message::Response(message),
            fields: format!("count u32, reserved u32, {got}, {got}, {batch_fields}"),
        },
    ]
}

fn other_examples() -> Vec<Example> {
    let open = OpenProducer { partition: ORDERS, producer: ProducerId(0xfeed), take_over: true };
    let opened = ProducerOpened {
        producer: ProducerId(0xfeed),
        epoch: Epoch(2),
        next_sequence: Sequence(12),
        last_offset: Offset(101),
    };
    let stats = vec![("acked_bytes_total".to_owned(), 1_234_567), ("sessions".to_owned(), 3)];
    vec![
        request(
            "offsets request",
            11,
            Request::Offsets { partition: ORDERS, spec: OffsetSpec::Time(TIME_US) },
            "topic u32, partition u32, kind u64, time_us u64",
        ),
        response("offsets response", 11, Opcode::Offsets, Response::Offset(Offset(100)), "offset u64"),
        request(
            "open producer request",
            12,
            Request::OpenProducer(open),
            "topic u32, partition u32, producer_id u64, take_over u8, reserved r7",
        ),
        response(
            "open producer response",
            12,
            Opcode::OpenProducer,
            Response::ProducerOpened(opened),
            "producer_id u64, next_sequence u64, last_offset u64, epoch u32, reserved u32",
        ),
        request("stats request", 13, Request::Stats, ""),
        response(
            "stats response",
            13,
            Opcode::Stats,
            Response::Stats(stats),
            "count u32, = counter, value u64, name_len u16, name a17, = counter, value u64, \
             name_len u16, name a8",
        ),
    ]
}
