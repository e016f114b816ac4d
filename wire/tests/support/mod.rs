//! What the wire tests share: arbitrary messages and batches, all of them
//! within the ranges that the protocol allows.

#![allow(dead_code)] // each test file uses its part

pub mod groups;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use ringbolt_wire::message::{
    ErrorResponse, Fetch, FetchPartition, FetchedPartition, Hello, HelloAck, OffsetSpec, OpenProducer,
    PartitionInfo, ProduceAck, ProducerOpened, TopicDescription, TopicInfo,
};
use ringbolt_wire::{
    BatchBuilder, Epoch, ErrorCode, FrameHeader, Offset, Opcode, PartitionId, ProducerId, Record, RecordView,
    Request, Response, Sequence, ShardId, TopicId,
};

pub const NO_LIMIT: u32 = u32::MAX;

/// A frame as it came in: header, meta, payload length, with the CRC verified.
pub fn open_frame(bytes: &[u8]) -> (FrameHeader, &[u8]) {
    let header = FrameHeader::decode(bytes, NO_LIMIT).expect("a frame").expect("a whole header");
    header.verify(bytes).expect("an intact frame");
    (header, &bytes[ringbolt_wire::frame::FRAME_HEADER_LEN..header.head_len()])
}

/// A record as it was built.
pub fn to_record(read: &RecordView<'_>) -> Record {
    Record {
        timestamp_us: read.timestamp_us,
        key: read.key.map(<[u8]>::to_vec),
        value: read.value.to_vec(),
        headers: read.headers().map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
    }
}

pub fn partition() -> impl Strategy<Value = PartitionId> {
    (any::<u32>(), any::<u32>()).prop_map(|(topic, index)| PartitionId::new(TopicId(topic), index))
}

pub fn topic_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_-][A-Za-z0-9._-]{0,248}"
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<(u8, u8, u64)>(), option::of(partition()), ".{0,60}").prop_map(
        |((a, b, features), affinity, client_name)| Hello {
            min_version: a.min(b),
            max_version: a.max(b),
            features,
            affinity,
            client_name,
        },
    )
}

fn fetch() -> impl Strategy<Value = Fetch> {
    let item = any::<(u64, u32)>();
    (any::<(u32, u32, u32)>(), btree_map(any::<(u32, u32)>(), item, 1..20)).prop_map(
        |((max_wait_ms, min_bytes, max_bytes), items)| Fetch {
            max_wait_ms,
            min_bytes,
            max_bytes,
            partitions: items
                .into_iter()
                .map(|((topic, index), (offset, max_bytes))| FetchPartition {
                    partition: PartitionId::new(TopicId(topic), index),
                    offset: Offset(offset),
                    max_bytes,
                })
                .collect(),
        },
    )
}

/// Any request, with the length of the payload that goes with it.
pub fn request() -> impl Strategy<Value = (Request, u32)> {
    let spec = prop_oneof![
        Just(OffsetSpec::Earliest),
        Just(OffsetSpec::End),
        any::<u64>().prop_map(OffsetSpec::Time)
    ];
    let other = prop_oneof![
        hello().prop_map(Request::Hello),
        Just(Request::Ping),
        (".{0,300}", 1..=100_000_u32)
            .prop_map(|(name, partitions)| Request::CreateTopic { name, partitions }),
        ".{0,300}".prop_map(|name| Request::DeleteTopic { name }),
        Just(Request::ListTopics),
        ".{0,300}".prop_map(|name| Request::DescribeTopic { name }),
        fetch().prop_map(Request::Fetch),
        (partition(), spec).prop_map(|(partition, spec)| Request::Offsets { partition, spec }),
        (partition(), any::<u64>(), any::<bool>()).prop_map(|(partition, producer, take_over)| {
            Request::OpenProducer(OpenProducer { partition, producer: ProducerId(producer), take_over })
        }),
        Just(Request::Stats),
    ];
    let produce = (any::<u8>(), 1..=u32::MAX)
        .prop_map(|(min_copies, payload_len)| (Request::Produce { min_copies }, payload_len));
    prop_oneof![
        10 => other.prop_map(|request| (request, 0)),
        9 => groups::request().prop_map(|request| (request, 0)),
        1 => produce,
    ]
}

fn hello_ack() -> impl Strategy<Value = HelloAck> {
    let lengths = (104..=u32::MAX - 40).prop_flat_map(|batch| (Just(batch), batch + 40..=u32::MAX));
    (any::<u8>(), 1..=u8::MAX, 1..=u16::MAX, any::<(u64, u64, [u8; 16])>(), lengths, 1..=u32::MAX).prop_map(
        |(version, copies, shards, (features, boot, broker_id), (batch, frame), max_in_flight)| HelloAck {
            version,
            copies,
            shards,
            features,
            max_frame_len: frame,
            max_batch_len: batch,
            max_in_flight,
            boot,
            broker_id,
        },
    )
}

fn offset_range() -> impl Strategy<Value = (Offset, Offset)> {
    any::<(u64, u64)>().prop_map(|(a, b)| (Offset(a.min(b)), Offset(a.max(b))))
}

fn topic_info(partitions: u32) -> impl Strategy<Value = TopicInfo> {
    (any::<u32>(), topic_name()).prop_map(move |(id, name)| TopicInfo { id: TopicId(id), partitions, name })
}

fn topic_description() -> impl Strategy<Value = TopicDescription> {
    let partition = (any::<u16>(), offset_range()).prop_map(|(shard, (start, end))| PartitionInfo {
        shard: ShardId(shard),
        start_offset: start,
        end_offset: end,
    });
    vec(partition, 1..20).prop_flat_map(|partitions| {
        topic_info(partitions.len() as u32)
            .prop_map(move |topic| TopicDescription { topic, partitions: partitions.clone() })
    })
}

fn fetched() -> impl Strategy<Value = FetchedPartition> {
    let lengths =
        prop_oneof![(Just(0), 1..1_000_000_u32, 0..u64::MAX), (any::<u16>(), Just(0), Just(u64::MAX))];
    (partition(), lengths, offset_range()).prop_map(
        |(partition, (status, payload_len, base), (start, end))| FetchedPartition {
            partition,
            status,
            payload_len,
            base_offset: Offset(base),
            start_offset: start,
            end_offset: end,
        },
    )
}

fn produce_ack() -> impl Strategy<Value = ProduceAck> {
    (any::<(u64, u64, bool)>(), 1..=u8::MAX).prop_map(|((offset, time, duplicate), copies)| ProduceAck {
        base_offset: Offset(offset),
        commit_time_us: time,
        copies,
        duplicate,
    })
}

/// Any response, with its opcode and the length of its payload.
pub fn response() -> impl Strategy<Value = (Response, u8, u32)> {
    let opened = (any::<(u64, u64, u32)>(), 1..=u64::MAX).prop_map(|((next, last, epoch), producer)| {
        Response::ProducerOpened(ProducerOpened {
            producer: ProducerId(producer),
            epoch: Epoch(epoch),
            next_sequence: Sequence(next),
            last_offset: Offset(last),
        })
    });
    let error = (1..=u16::MAX, any::<(u32, u64)>(), ".{0,80}", any::<u8>()).prop_map(
        |(code, (retry_after_ms, detail), text, opcode)| {
            (Response::Error(ErrorResponse { code, retry_after_ms, detail, text }), opcode, 0)
        },
    );
    let fetched = vec(fetched(), 0..20).prop_map(|partitions| {
        let payload_len = partitions.iter().map(|p| p.payload_len).sum();
        (Response::Fetched(partitions), Opcode::Fetch as u8, payload_len)
    });
    let of = |opcode: Opcode| move |response| (response, opcode as u8, 0);
    let other = prop_oneof![
        hello_ack().prop_map(Response::Hello).prop_map(of(Opcode::Hello)),
        Just(Response::Pong).prop_map(of(Opcode::Ping)),
        topic_info(7).prop_map(Response::TopicCreated).prop_map(of(Opcode::CreateTopic)),
        Just(Response::TopicDeleted).prop_map(of(Opcode::DeleteTopic)),
        vec(topic_info(100_000), 0..20).prop_map(Response::Topics).prop_map(of(Opcode::ListTopics)),
        topic_description().prop_map(Response::Topic).prop_map(of(Opcode::DescribeTopic)),
        produce_ack().prop_map(Response::Produced).prop_map(of(Opcode::Produce)),
        fetched,
        any::<u64>().prop_map(|o| Response::Offset(Offset(o))).prop_map(of(Opcode::Offsets)),
        opened.prop_map(of(Opcode::OpenProducer)),
        vec((".{0,40}", any::<u64>()), 0..20).prop_map(Response::Stats).prop_map(of(Opcode::Stats)),
        error,
    ];
    prop_oneof![12 => other, 9 => groups::response()]
}

/// Any record, with directions or without.
pub fn record() -> impl Strategy<Value = Record> {
    let bytes = || vec(any::<u8>(), 0..40);
    (any::<u64>(), option::of(bytes()), bytes(), vec((".{0,10}", bytes()), 0..4), groups::directions())
        .prop_map(|(timestamp_us, key, value, mut headers, directions)| {
            directions.put_headers(&mut headers);
            Record { timestamp_us, key, value, headers }
        })
}

/// Who sends a batch: partition, producer, epoch, base sequence.
pub type Sender = (PartitionId, ProducerId, Epoch, Sequence);

pub fn sender() -> impl Strategy<Value = Sender> {
    (partition(), any::<(u64, u32)>(), 0..u64::MAX - 1000).prop_map(|(partition, (producer, epoch), base)| {
        (partition, ProducerId(producer), Epoch(epoch), Sequence(base))
    })
}

pub fn build(records: &[Record], (partition, producer, epoch, base): Sender) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for r in records {
        builder.push(r.timestamp_us, r.key.as_deref(), &r.value, &r.headers);
    }
    builder.finish(partition, producer, epoch, base)
}

/// A valid batch of 1 to 7 records.
pub fn batch() -> impl Strategy<Value = Vec<u8>> {
    (vec(record(), 1..8), sender()).prop_map(|(records, sender)| build(&records, sender))
}

/// Makes the CRC of a batch right again after its bytes were changed, as a
/// hostile sender would, so that the checks behind the CRC are reached.
pub fn reseal(batch: &mut [u8]) {
    let crc = ringbolt_wire::crc32c(&batch[24..]);
    batch[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// As [`reseal`], for header and meta of a frame.
pub fn reseal_frame(head: &mut [u8]) {
    let crc = ringbolt_wire::crc32c(&head[8..]);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Every code's number, for tests over all of them.
pub fn codes() -> impl Iterator<Item = u16> {
    ErrorCode::ALL.iter().map(|&code| code as u16)
}
