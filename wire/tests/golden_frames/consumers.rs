//! Examples of consuming through a group, and of records that are directed to
//! groups.

use ringbolt_wire::batch::{BatchHeader, DEAD_LETTER_HEADER, DeadLetter, Directions};
use ringbolt_wire::message::{
    Attach, ConsumerAt, Credit, DeliveredRange, Delivery, LeaseRange, Receive, Settle, SettleItem, Settled,
    Unsettled, Verb,
};
use ringbolt_wire::{
    BatchBuilder, BatchView, ConsumerId, Epoch, ErrorCode, GroupId, Offset, Opcode, PartitionId, ProducerId,
    Request, Response, Sequence, ShardId, TopicId,
};
use zerocopy::IntoBytes;

use super::examples::{BATCH_HEADER, Example, Message, ORDERS, RECORD, TIME_US, batch, request, response};

/// A consumer of the group `billing`, at the shard that has partition 1 of
/// `orders`.
pub const CONSUMER: ConsumerAt =
    ConsumerAt { shard: ShardId(1), group: GroupId(3), consumer: ConsumerId(0x00c0_ffee) };
/// A consumer of the group of dead letters.
const CLERK: ConsumerAt =
    ConsumerAt { shard: ShardId(0), group: GroupId(4), consumer: ConsumerId(0x000b_0b0b) };

const AT: &str = "shard u32, group u32, consumer u64";
const CREDIT: &str = "credit_records u64, credit_bytes u64";
const LEASE: &str = "partition u32, base_offset u64, count u32, acquired u32";

pub fn examples() -> Vec<Example> {
    let mut all = attached_examples();
    all.extend([directed_request(), receive_request(), receive_response()]);
    all.extend(settle_examples());
    all
}

fn lease(partition: u32, base_offset: u64, count: u32, acquired: u32) -> LeaseRange {
    LeaseRange { partition, base_offset: Offset(base_offset), count, acquired }
}

fn attached_examples() -> Vec<Example> {
    let attach = Attach {
        at: CONSUMER,
        credit: Credit { records: 1000, bytes: 1_048_576 },
        lease_ms: 0,
        held: vec![lease(1, 100, 1, 1)],
    };
    vec![
        request(
            "attach request",
            20,
            Request::Attach(attach),
            &format!("{AT}, {CREDIT}, lease_ms u32, held u32, = range, {LEASE}"),
        ),
        delivery(),
        response("attach response", 20, Opcode::Attach, Response::Detached, ""),
        request("detach request", 23, Request::Detach(CONSUMER), AT),
        response("detach response", 23, Opcode::Detach, Response::Detached, ""),
    ]
}

/// The second record of a batch, for the second time, and all of another one, for
/// the first time.
fn delivery() -> Example {
    let (mut old, _) = batch();
    BatchHeader::set_placement(&mut old, Offset(100), TIME_US + 1000);
    let view = BatchView::parse(&old, u32::MAX).expect("a batch");
    let (record, bytes) = view.records_with_bytes().nth(1).expect("two records");
    let header = view.header().cut(1, 1, (record.timestamp_us, record.timestamp_us), bytes);
    let cut = [header.as_bytes(), bytes].concat();
    let mut builder = BatchBuilder::new();
    builder.push(TIME_US + 5000, Some(b"k1"), b"again", &[]);
    let mut new = builder.finish(ORDERS, ProducerId(0xfeed), Epoch(1), Sequence(12));
    BatchHeader::set_placement(&mut new, Offset(102), TIME_US + 6000);

    let ranges = vec![
        DeliveredRange {
            lease: lease(1, 101, 1, 2),
            failed: 1,
            first_delivery_us: TIME_US + 2000,
            payload_len: cut.len() as u32,
        },
        DeliveredRange {
            lease: lease(1, 102, 1, 1),
            failed: 0,
            first_delivery_us: 0,
            payload_len: new.len() as u32,
        },
    ];
    let range = format!("= range, {LEASE}, failed u32, first_delivery_us u64, payload_len u32");
    with_payload(
        "delivery",
        (20, Opcode::Delivery),
        Delivery { lease_ms: 30_000, ranges },
        &[cut, new].concat(),
        format!(
            "lease_ms u32, count u32, {range}, {range}, {BATCH_HEADER}, {RECORD}, value a6, {BATCH_HEADER}, \
             {RECORD}, key a2, value a5"
        ),
    )
}

fn with_payload(
    name: &'static str,
    (correlation, opcode): (u64, Opcode),
    delivery: Delivery,
    payload: &[u8],
    fields: String,
) -> Example {
    let message = Response::Delivered(delivery);
    let mut frame = Vec::new();
    message.encode(&mut frame, opcode as u8, correlation, payload.len() as u32);
    frame.extend_from_slice(payload);
    Example { name, frame, message: Message::Response(message), fields }
}

/// A record that is to be delivered in a minute, and not later than in an hour.
fn directed_request() -> Example {
    let directions = Directions {
        deliver_at_us: Some(TIME_US + 60_000_000),
        expire_at_us: Some(TIME_US + 3_600_000_000),
        only_group: None,
    };
    let mut headers = Vec::new();
    directions.put_headers(&mut headers);
    let mut builder = BatchBuilder::new();
    builder.push(TIME_US, None, b"later", &headers);
    let bytes = builder.finish(ORDERS, ProducerId(0xfeed), Epoch(1), Sequence(13));
    let message = Request::Produce { min_copies: 1 };
    let mut frame = Vec::new();
    message.encode(&mut frame, 19, bytes.len() as u32);
    frame.extend_from_slice(&bytes);
    let header = "= record header, name_len u16, value_len u32, name";
    Example {
        name: "produce request with directions",
        frame,
        message: Message::Request(message),
        fields: format!(
            "min_copies u8, reserved r7, {BATCH_HEADER}, {RECORD}, value a5, {header} a19, \
             deliver_at_us u64, {header} a18, expire_at_us u64"
        ),
    }
}

fn receive_request() -> Example {
    let receive = Receive {
        at: CLERK,
        credit: Credit { records: 10, bytes: 1_048_576 },
        lease_ms: 60_000,
        max_wait_ms: 5000,
    };
    request(
        "receive request",
        22,
        Request::Receive(receive),
        &format!("{AT}, {CREDIT}, lease_ms u32, max_wait_ms u32"),
    )
}

/// A dead letter.
fn receive_response() -> Example {
    let letter = DeadLetter {
        origin: ORDERS,
        offset: Offset(102),
        group: CONSUMER.group,
        acquired: 1,
        failed: 1,
        first_delivery_us: TIME_US + 7000,
        moved_us: TIME_US + 9000,
        reason: "no such account".into(),
    };
    let mut builder = BatchBuilder::new();
    let headers = [(DEAD_LETTER_HEADER.to_owned(), letter.encode())];
    builder.push(TIME_US + 5000, Some(b"k1"), b"again", &headers);
    let mut bytes = builder.finish(PartitionId::new(TopicId(8), 0), ProducerId::NONE, Epoch(0), Sequence(0));
    BatchHeader::set_placement(&mut bytes, Offset(0), TIME_US + 9000);
    let range = DeliveredRange {
        lease: lease(0, 0, 1, 1),
        failed: 0,
        first_delivery_us: 0,
        payload_len: bytes.len() as u32,
    };
    with_payload(
        "receive response",
        (22, Opcode::Receive),
        Delivery { lease_ms: 60_000, ranges: vec![range] },
        &bytes,
        format!(
            "lease_ms u32, count u32, = range, {LEASE}, failed u32, first_delivery_us u64, payload_len u32, \
             {BATCH_HEADER}, {RECORD}, key a2, value a5, = record header, name_len u16, value_len u32, \
             name a20, = dead letter, origin_topic u32, origin_partition u32, origin_offset u64, group u32, \
             acquired u32, failed u32, reserved u32, first_delivery_us u64, moved_us u64, reason_len u16, \
             reason a15"
        ),
    )
}

fn settle_examples() -> Vec<Example> {
    let reject = Verb::Reject { dead_letter: true, reason: "no such account".into() };
    let settle = Settle {
        at: CONSUMER,
        credit: Credit { records: 3, bytes: 344 },
        confirm: true,
        items: vec![
            SettleItem { range: lease(1, 100, 1, 1), verb: Verb::Ack },
            SettleItem { range: lease(1, 101, 1, 2), verb: Verb::Nack { delay_ms: 250 } },
            SettleItem { range: lease(1, 102, 1, 1), verb: reject },
        ],
    };
    let lost =
        Unsettled { partition: 1, status: ErrorCode::LeaseLost as u16, base_offset: Offset(100), count: 1 };
    let item = format!("= item, {LEASE}, verb u8, dead_letter u8, ms u32, reason_len u16");
    vec![
        request(
            "settle request",
            21,
            Request::Settle(settle),
            &format!(
                "{AT}, {CREDIT}, confirm u8, reserved r3, items u32, {item}, {item}, {item}, reason a15"
            ),
        ),
        response(
            "settle response",
            21,
            Opcode::Settle,
            Response::Settled(Settled { unsettled: vec![lost] }),
            "unsettled u32, = unsettled, partition u32, base_offset u64, count u32, status u32",
        ),
    ]
}
