//! `docs/protocol.md` against the code: every example byte, and the tables of
//! operations, errors and limits.
//!
//! The document holds the golden bytes. After a deliberate change of a layout,
//! `UPDATE_GOLDEN=1 cargo test -p ringbolt-wire --test golden_frames` writes
//! the examples anew; the tables and the prose are for a person to change.

mod support;

use std::collections::BTreeMap;
use std::fs;

use ringbolt_wire::batch::{BATCH_HEADER_LEN, BatchHeader, MAX_RECORD_HEADERS, RECORD_HEADER_LEN};
use ringbolt_wire::frame::{FRAME_HEADER_LEN, MAX_META_LEN, MAX_REQUEST_META_LEN};
use ringbolt_wire::message::{
    ErrorResponse, Fetch, FetchPartition, FetchedPartition, Hello, HelloAck, MAX_CLIENT_NAME_LEN,
    MAX_FETCH_PARTITIONS, MAX_PARTITIONS, MAX_TOPIC_NAME_LEN, OffsetSpec, OpenProducer, PRODUCE_HEAD_LEN,
    PartitionInfo, ProduceAck, ProducerOpened, TopicDescription, TopicInfo,
};
use ringbolt_wire::{
    BatchBuilder, BatchView, Batches, DEFAULT_PORT, Epoch, ErrorCode, Offset, Opcode, PartitionId,
    ProducerId, Request, Response, Sequence, ShardId, TopicId, crc32c,
};
use support::open_frame;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");

const HEADER: &str = "= frame header, magic a4, crc x32, version u8, opcode u8, flags u16, status u16, \
    reserved u16, meta_len u32, payload_len u32, correlation u64, = meta";
const BATCH_HEADER: &str = "= record batch, base_offset u64, commit_time_us u64, magic a4, crc x32, \
    length u32, count u32, topic u32, partition u32, producer_id u64, base_sequence u64, \
    producer_epoch u32, version u8, compression u8, flags u16, first_timestamp_us u64, \
    max_timestamp_us u64";
const RECORD: &str = "= record, length u32, key_len u32, value_len u32, header_count u16, reserved u16, \
    timestamp_us u64";

#[derive(Debug)]
enum Message {
    Request(Request),
    Response(Response),
}

/// One frame: what it says, its payload, and what its bytes are called.
struct Example {
    name: &'static str,
    frame: Vec<u8>,
    message: Message,
    /// Names and kinds of the fields of meta and payload, as [`dump`] reads
    /// them.
    fields: String,
}

const ORDERS: PartitionId = PartitionId::new(TopicId(7), 1);
const OTHER: PartitionId = PartitionId::new(TopicId(7), 0);
const TIME_US: u64 = 1_700_000_000_000_000;

fn request(name: &'static str, correlation: u64, request: Request, fields: &str) -> Example {
    let mut frame = Vec::new();
    request.encode(&mut frame, correlation, 0);
    Example { name, frame, message: Message::Request(request), fields: fields.to_owned() }
}

fn response(name: &'static str, correlation: u64, to: Opcode, response: Response, fields: &str) -> Example {
    let mut frame = Vec::new();
    response.encode(&mut frame, to as u8, correlation, 0);
    Example { name, frame, message: Message::Response(response), fields: fields.to_owned() }
}

fn examples() -> Vec<Example> {
    let mut all = connection_examples();
    all.extend(topic_examples());
    all.extend(produce_examples());
    all.extend(fetch_examples());
    all.extend(other_examples());
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
fn batch() -> (Vec<u8>, String) {
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

/// One line for each field: position, bytes, name and value. `fields` names
/// them in order: `u8` to `u64` are numbers, `x32` is one in hexadecimal, `aN`
/// is N bytes of text, `rN` N raw bytes; `=` starts a heading.
fn dump(frame: &[u8], fields: &str) -> String {
    let mut out = String::new();
    let mut at = 0;
    let spec = format!("{HEADER}, {fields}");
    for field in spec.split(", ").map(str::trim).filter(|f| !f.is_empty()) {
        let (name, kind) = field.rsplit_once(' ').expect("a name and a kind");
        if let Some(heading) = field.strip_prefix("= ") {
            // Nothing to head when meta is empty.
            if at < frame.len() {
                out.push_str(&format!("# {heading}\n"));
            }
            continue;
        }
        let (len, value) = value_of(&frame[at..], kind);
        for (i, line) in frame[at..at + len].chunks(8).enumerate() {
            let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
            let text = if i == 0 { format!("{name} = {value}") } else { String::new() };
            let line = format!("{:4}  {:24}{text}", at + 8 * i, hex.join(" "));
            out.push_str(line.trim_end());
            out.push('\n');
        }
        at += len;
    }
    assert_eq!(at, frame.len(), "the fields do not cover the frame:\n{out}");
    out
}

/// Length of a field and its value in words.
fn value_of(bytes: &[u8], kind: &str) -> (usize, String) {
    let number = |len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[..len]);
        u64::from_le_bytes(word)
    };
    match kind {
        "x32" => (4, format!("{:#010x}", number(4))),
        "u8" | "u16" | "u32" | "u64" => {
            let len = kind[1..].parse::<usize>().unwrap() / 8;
            let value = number(len);
            let none = (len == 4 && value == u64::from(u32::MAX)) || value == u64::MAX;
            (len, if none { format!("2^{} - 1", 8 * len) } else { value.to_string() })
        }
        _ => {
            let len: usize = kind[1..].parse().unwrap_or_else(|_| panic!("kind {kind}"));
            let text = match &kind[..1] {
                "a" => format!("{:?}", std::str::from_utf8(&bytes[..len]).expect("text")),
                _ => format!("{len} bytes"),
            };
            (len, text)
        }
    }
}

/// The bytes of a [`dump`].
fn undump(text: &str) -> Vec<u8> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| {
            let columns = line.get(6..line.len().min(30)).unwrap_or_default();
            columns
                .split_whitespace()
                .map(|hex| u8::from_str_radix(hex, 16).expect("hex"))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The document's fenced blocks that follow a line `<!-- example: NAME -->`,
/// each as name and byte range of its contents.
fn example_blocks(document: &str) -> Vec<(String, std::ops::Range<usize>)> {
    const OPEN: &str = "\n<!-- example: ";
    let mut blocks = Vec::new();
    for (start, _) in document.match_indices(OPEN) {
        let rest = &document[start + OPEN.len()..];
        let (name, rest) = rest.split_once(" -->\n```text\n").expect("a fenced block after the marker");
        assert!(!name.contains('\n'), "no fenced block after the example before {name:?}");
        let from = document.len() - rest.len();
        let len = rest.find("```\n").expect("the end of the block");
        blocks.push((name.to_owned(), from..from + len));
    }
    blocks
}

fn read_document() -> String {
    fs::read_to_string(DOCUMENT).expect("docs/protocol.md")
}

#[test]
fn the_documents_examples_are_what_the_code_sends() {
    let mut document = read_document();
    let blocks = example_blocks(&document);
    let examples: BTreeMap<_, _> = examples().into_iter().map(|e| (e.name, e)).collect();
    let named: Vec<&str> = blocks.iter().map(|(name, _)| name.as_str()).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        examples.keys().copied().collect::<Vec<_>>(),
        "examples of the document and of this test"
    );

    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, range) in blocks.iter().rev() {
        let example = &examples[name.as_str()];
        let dump = dump(&example.frame, &example.fields);
        if update {
            document.replace_range(range.clone(), &dump);
        } else {
            assert_eq!(document[range.clone()], dump, "example {name:?}; see the head of this file");
        }
    }
    if update {
        fs::write(DOCUMENT, document).expect("docs/protocol.md");
    }
}

/// Read back from the document, not from what this test encodes.
#[test]
fn the_documents_examples_mean_what_they_are_said_to_mean() {
    let document = read_document();
    let examples: BTreeMap<_, _> = examples().into_iter().map(|e| (e.name, e)).collect();
    let mut opcodes_seen = Vec::new();
    for (name, range) in example_blocks(&document) {
        let bytes = undump(&document[range]);
        let (header, meta) = open_frame(&bytes);
        let payload = &bytes[header.head_len()..];
        assert_eq!(payload.len(), header.payload_len as usize, "{name}");
        opcodes_seen.push(header.opcode);
        match &examples[name.as_str()].message {
            Message::Request(request) => {
                assert!(!header.is_response, "{name}");
                assert_eq!(Request::decode(header.opcode, meta, header.payload_len).as_ref(), Ok(request));
                if matches!(request, Request::Produce { .. }) {
                    let view = BatchView::parse_exact(payload, u32::MAX).expect("a batch");
                    assert_eq!(view.header().partition(), ORDERS);
                }
            }
            Message::Response(response) => {
                assert!(header.is_response, "{name}");
                let decoded = Response::decode(header.opcode, header.status, meta, header.payload_len);
                assert_eq!(decoded.as_ref(), Ok(response));
                if let Response::Fetched(partitions) = response {
                    let (mut batches, rest): (Batches<'_>, _) = partitions[0].split_payload(payload);
                    let records = batches.next().expect("a batch").expect("a good one").records().count();
                    assert_eq!((records, batches.next().is_none(), rest.len()), (2, true, 0));
                }
            }
        }
    }
    for &opcode in Opcode::ALL {
        assert!(opcodes_seen.contains(&(opcode as u8)), "no example of {}", opcode.name());
    }
}

/// The cells of the rows of the table after `<!-- table: NAME -->`, without its
/// head.
fn table(document: &str, name: &str) -> Vec<Vec<String>> {
    let marker = format!("\n<!-- table: {name} -->\n");
    let (_, rest) = document.split_once(&marker).unwrap_or_else(|| panic!("no table {name}"));
    let rows = rest.lines().take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn the_table_of_operations_is_the_codes() {
    let rows = table(&read_document(), "operations");
    let documented: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let known: Vec<_> = Opcode::ALL.iter().map(|&o| ((o as u8).to_string(), o.name().to_owned())).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_errors_is_the_codes() {
    let rows = table(&read_document(), "errors");
    let documented: Vec<_> =
        rows.iter().map(|row| [&row[0], &row[1], &row[2], &row[3]].map(String::clone)).collect();
    let known: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|&code| {
            let retry = if code.is_retryable() { "yes" } else { "no" };
            let closes = if code.closes_connection() { "yes" } else { "no" };
            [&(code as u16).to_string(), code.name(), retry, closes].map(str::to_owned)
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_limits_is_the_codes() {
    let rows = table(&read_document(), "limits");
    let documented: BTreeMap<_, _> = rows.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    let known = [
        ("frame header", FRAME_HEADER_LEN),
        ("head of a produce request", PRODUCE_HEAD_LEN),
        ("record batch header", BATCH_HEADER_LEN),
        ("fixed part of a record", RECORD_HEADER_LEN),
        ("meta of a request", MAX_REQUEST_META_LEN as usize),
        ("meta of a response", MAX_META_LEN as usize),
        ("topic name", MAX_TOPIC_NAME_LEN),
        ("client name", MAX_CLIENT_NAME_LEN),
        ("partitions of a topic", MAX_PARTITIONS as usize),
        ("partitions of a fetch", MAX_FETCH_PARTITIONS),
        ("headers of a record", MAX_RECORD_HEADERS),
        ("port", usize::from(DEFAULT_PORT)),
    ];
    for (name, value) in known {
        assert_eq!(documented.get(name), Some(&value.to_string().as_str()), "{name}");
    }
    assert_eq!(documented.len(), known.len());
}

#[test]
fn the_documents_crc_values_are_right() {
    let rows = table(&read_document(), "crc");
    assert!(rows.len() >= 4);
    for row in rows {
        let bytes: Vec<u8> =
            row[0].split_whitespace().map(|hex| u8::from_str_radix(hex, 16).expect("hex")).collect();
        assert_eq!(row[1], format!("{:#010x}", crc32c(&bytes)), "CRC of {}", row[0]);
    }
}
