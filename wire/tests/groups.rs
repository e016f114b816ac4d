//! Messages of consumer groups: every limit holds to the number, what is reserved
//! or contradicts itself is refused, and counts are not believed.

use ringbolt_wire::frame::{FRAME_HEADER_LEN, MAX_REQUEST_META_LEN};
use ringbolt_wire::message::{
    Attach, Backoff, ConsumerAt, CreateGroup, Credit, DeliveredRange, Delivery, GroupConfig, LeaseRange,
    MAX_CREDIT_BYTES, MAX_CREDIT_RECORDS, MAX_HELD_RANGES, MAX_LEASE_MS, MAX_OPEN_RECORDS, MAX_REASON_LEN,
    MAX_RETRY_DELAY_MS, MAX_SETTLE_ITEMS, MessageError, Receive, Settle, SettleItem, Settled, Unsettled,
    Verb,
};
use ringbolt_wire::{ConsumerId, ErrorCode, GroupId, Offset, Opcode, Request, Response, ShardId};

const AT: ConsumerAt = ConsumerAt { shard: ShardId(1), group: GroupId(3), consumer: ConsumerId(9) };
const CREDIT: Credit = Credit { records: 1, bytes: 1 };
const RANGE: LeaseRange = LeaseRange { partition: 1, base_offset: Offset(5), count: 2, acquired: 1 };

fn meta_of(request: &Request) -> Vec<u8> {
    let mut frame = Vec::new();
    request.encode(&mut frame, 1, 0);
    frame.split_off(FRAME_HEADER_LEN)
}

fn decode(request: &Request) -> Result<Request, MessageError> {
    Request::decode(request.opcode() as u8, &meta_of(request), 0)
}

/// The field that a request is refused for; none if it is not.
#[track_caller]
fn refused_field(result: Result<Request, MessageError>) -> Option<&'static str> {
    match result {
        Ok(_) => None,
        Err(MessageError::OutOfRange { field, .. }) => Some(field),
        Err(error) => panic!("refused otherwise: {error}"),
    }
}

/// The field that a request is refused for with these bytes at this place of its
/// meta.
#[track_caller]
fn refused_with(request: &Request, at: usize, bytes: &[u8]) -> Option<&'static str> {
    let mut meta = meta_of(request);
    meta[at..at + bytes.len()].copy_from_slice(bytes);
    refused_field(Request::decode(request.opcode() as u8, &meta, 0))
}

fn create(config: GroupConfig) -> Request {
    Request::CreateGroup(CreateGroup {
        name: "g".into(),
        topic: "t".into(),
        start: Default::default(),
        or_find: true,
        config,
        dead_letter_topic: None,
    })
}

fn attach(credit: Credit, lease_ms: u32, held: usize) -> Request {
    Request::Attach(Attach { at: AT, credit, lease_ms, held: vec![RANGE; held] })
}

fn receive(credit: Credit, lease_ms: u32) -> Request {
    Request::Receive(Receive { at: AT, credit, lease_ms, max_wait_ms: u32::MAX })
}

fn settle(credit: Credit, items: usize, verb: Verb) -> Request {
    let items = vec![SettleItem { range: RANGE, verb }; items];
    Request::Settle(Settle { at: AT, credit, confirm: true, items })
}

#[test]
fn a_groups_configuration_is_refused_beyond_its_limits() {
    let with = |change: &dyn Fn(&mut GroupConfig)| {
        let mut config = GroupConfig::default();
        change(&mut config);
        refused_field(decode(&create(config)))
    };
    assert_eq!(with(&|_| ()), None);
    for (lease_ms, fits) in [(0, false), (1, true), (MAX_LEASE_MS, true), (MAX_LEASE_MS + 1, false)] {
        assert_eq!(with(&|c| c.lease_ms = lease_ms), (!fits).then_some("lease_ms"), "{lease_ms}");
    }
    for (open, fits) in [(0, false), (1, true), (MAX_OPEN_RECORDS, true), (MAX_OPEN_RECORDS + 1, false)] {
        assert_eq!(with(&|c| c.max_open = open), (!fits).then_some("max_open"), "{open}");
    }
    let longest = MAX_RETRY_DELAY_MS;
    let exponential = |first_ms, max_ms| Backoff::Exponential { first_ms, max_ms };
    for good in [Backoff::None, Backoff::Fixed(longest), exponential(0, 0), exponential(longest, longest)] {
        assert_eq!(with(&|c| c.backoff = good), None, "{good:?}");
    }
    for bad in [Backoff::Fixed(longest + 1), exponential(1, longest + 1)] {
        assert_eq!(with(&|c| c.backoff = bad), Some("backoff_max_ms"), "{bad:?}");
    }
    assert_eq!(with(&|c| c.backoff = exponential(2, 1)), Some("backoff_first_ms"));
}

#[test]
fn a_groups_kinds_flags_and_reserved_bytes_have_no_other_values() {
    let request = create(GroupConfig { backoff: Backoff::None, ..GroupConfig::default() });
    for (at, bytes, field) in [
        (0, &[4][..], "start_kind"),
        (8, &[1], "start"),
        (16, &[3], "mode"),
        (17, &[3], "backoff"),
        (18, &[2], "timeout_is_failure"),
        (19, &[2], "dead_letter_expired"),
        (32, &[1], "backoff_first_ms"),
        (36, &[1], "backoff_first_ms"),
        (40, &[2], "or_find"),
        (41, &[1], "reserved"),
        (43, &[1], "reserved"),
    ] {
        assert_eq!(refused_with(&request, at, bytes), Some(field), "byte {at}");
    }
    // A fixed wait is written twice.
    let request = create(GroupConfig { backoff: Backoff::Fixed(5), ..GroupConfig::default() });
    assert_eq!(refused_with(&request, 32, &[4]), Some("backoff_first_ms"));
}

#[test]
fn a_wait_after_a_failure_doubles_up_to_its_longest() {
    let backoff = Backoff::Exponential { first_ms: 100, max_ms: 1000 };
    let waits: Vec<u32> = (1..=6).map(|failed| backoff.after(failed)).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(backoff.after(u32::MAX), 1000);
    let longest = Backoff::Exponential { first_ms: MAX_RETRY_DELAY_MS, max_ms: MAX_RETRY_DELAY_MS };
    assert_eq!(longest.after(u32::MAX), MAX_RETRY_DELAY_MS);
    assert_eq!((Backoff::None.after(9), Backoff::Fixed(7).after(9)), (0, 7));
}

#[test]
fn credit_leases_and_what_is_held_are_refused_beyond_their_limits() {
    let most = Credit { records: MAX_CREDIT_RECORDS, bytes: MAX_CREDIT_BYTES };
    let records = Credit { records: MAX_CREDIT_RECORDS + 1, ..most };
    let bytes = Credit { bytes: MAX_CREDIT_BYTES + 1, ..most };
    let of = |credit| [attach(credit, 0, 0), receive(credit, 0), settle(credit, 1, Verb::Ack)];
    for (credit, field) in [(most, None), (records, Some("credit_records")), (bytes, Some("credit_bytes"))] {
        for request in of(credit) {
            assert_eq!(refused_field(decode(&request)), field, "{request:?}");
        }
    }
    // None at all is for those who have some, or want none yet; not for a receive.
    let none = Credit::default();
    assert_eq!(refused_field(decode(&attach(none, 0, 0))), None);
    assert_eq!(refused_field(decode(&settle(none, 1, Verb::Ack))), None);
    assert_eq!(refused_field(decode(&receive(none, 0))), Some("credit_records"));
    assert_eq!(refused_field(decode(&receive(Credit { records: 1, bytes: 0 }, 0))), Some("credit_bytes"));

    for (lease_ms, field) in [(MAX_LEASE_MS, None), (MAX_LEASE_MS + 1, Some("lease_ms"))] {
        assert_eq!(refused_field(decode(&attach(CREDIT, lease_ms, 0))), field);
        assert_eq!(refused_field(decode(&receive(CREDIT, lease_ms))), field);
    }
    assert_eq!(refused_field(decode(&attach(CREDIT, 0, MAX_HELD_RANGES))), None);
    assert_eq!(refused_field(decode(&attach(CREDIT, 0, MAX_HELD_RANGES + 1))), Some("held"));
    let attach = attach(CREDIT, 0, 1);
    assert_eq!(refused_with(&attach, 2, &[1]), Some("shard"));
    assert_eq!(refused_with(&attach, 8, &[0; 8]), Some("consumer"));
    assert_eq!(refused_with(&attach, 44, &[0xff; 8]), Some("base_offset"));
    assert_eq!(refused_with(&attach, 52, &[0; 4]), Some("count"));
}

#[test]
fn a_settle_is_refused_beyond_its_limits_and_for_what_its_verb_does_not_have() {
    let field = |verb: Verb| refused_field(decode(&settle(CREDIT, 1, verb)));
    let reject = |len| Verb::Reject { dead_letter: true, reason: "r".repeat(len) };
    assert_eq!(field(reject(MAX_REASON_LEN)), None);
    assert_eq!(field(reject(MAX_REASON_LEN + 1)), Some("reason"));
    assert_eq!(field(Verb::Nack { delay_ms: MAX_RETRY_DELAY_MS }), None);
    assert_eq!(field(Verb::Nack { delay_ms: MAX_RETRY_DELAY_MS + 1 }), Some("ms"));
    assert_eq!(field(Verb::Extend { lease_ms: MAX_LEASE_MS }), None);
    assert_eq!(field(Verb::Extend { lease_ms: MAX_LEASE_MS + 1 }), Some("ms"));
    assert_eq!(refused_field(decode(&settle(CREDIT, MAX_SETTLE_ITEMS, Verb::Ack))), None);
    assert_eq!(refused_field(decode(&settle(CREDIT, MAX_SETTLE_ITEMS + 1, Verb::Ack))), Some("items"));

    for verb in [Verb::Ack, Verb::AckUpTo, Verb::Release, Verb::Redrive, reject(0)] {
        let is_reject = matches!(verb, Verb::Reject { .. });
        let request = settle(CREDIT, 1, verb);
        assert_eq!(refused_with(&request, 62, &[1]), Some("ms"), "{request:?}");
        let dead_letter = (!is_reject).then_some("dead_letter");
        assert_eq!(refused_with(&request, 61, &[1]), dead_letter, "{request:?}");
    }
    let request = settle(CREDIT, 1, Verb::Ack);
    assert_eq!(refused_with(&request, 60, &[7]), Some("verb"));
    assert_eq!(refused_with(&request, 61, &[2]), Some("dead_letter"));
    assert_eq!(refused_with(&request, 32, &[2]), Some("confirm"));
    assert_eq!(refused_with(&request, 35, &[1]), Some("reserved"));
    // Only a reject has a reason.
    let with_reason = settle(CREDIT, 1, reject(1));
    for verb in [0, 1, 2, 4, 5, 6] {
        assert_eq!(refused_with(&with_reason, 60, &[verb, 0]), Some("reason"), "verb {verb}");
    }
}

#[test]
fn counts_that_lie_are_refused() {
    for (request, item_len) in [(attach(CREDIT, 0, 2), 20), (settle(CREDIT, 2, Verb::Ack), 28)] {
        let with = |count: u32| {
            let mut meta = meta_of(&request);
            meta[36..40].copy_from_slice(&count.to_le_bytes());
            Request::decode(request.opcode() as u8, &meta, 0)
        };
        assert_eq!(with(1), Err(MessageError::TrailingBytes(item_len)));
        for count in [3, u32::MAX] {
            let (wanted, left) = (count as usize * item_len, 2 * item_len);
            assert_eq!(with(count), Err(MessageError::Truncated { wanted, left }), "{request:?}");
        }
    }
    // At the count, before an item is read: all of them are wanted.
    let refused = |opcode: Opcode, item_len: usize, parts: &[&[u8]]| {
        let result = Response::decode(opcode as u8, 0, &parts.concat(), 0);
        let all = u32::MAX as usize * item_len;
        let is_told = matches!(result, Err(MessageError::Truncated { wanted, .. }) if wanted == all);
        assert!(is_told, "{}: {result:?}", opcode.name());
    };
    let max = [0xff; 4];
    refused(Opcode::ListGroups, 39, &[&max, &[0; 39]]);
    refused(Opcode::Settle, 20, &[&max, &[0; 20]]);
    refused(Opcode::Delivery, 36, &[&[1, 0, 0, 0], &max, &[0; 36]]);
    let mut group = Vec::new();
    let info = ringbolt_wire::message::GroupInfo {
        id: GroupId(3),
        topic: ringbolt_wire::TopicId(7),
        dead_letter: ringbolt_wire::TopicId(0),
        config: GroupConfig::default(),
        name: "g".into(),
    };
    Response::Group(info).encode(&mut group, Opcode::CreateGroup as u8, 1, 0);
    let head = [&group[FRAME_HEADER_LEN..], &[1, 0, b't']].concat();
    assert!(Response::decode(Opcode::DescribeGroup as u8, 0, &[&head[..], &[0; 8]].concat(), 0).is_ok());
    refused(Opcode::DescribeGroup, 128, &[&head, &max, &[0; 128]]);
    refused(Opcode::DescribeGroup, 40, &[&head, &[0; 4], &max, &[0; 40]]);
    // Consumers, of which a reserved byte is set.
    let consumer = [&[0; 11][..], &[1], &[0; 28]].concat();
    let meta = [&head[..], &[0; 4], &[1, 0, 0, 0], &consumer].concat();
    let result = Response::decode(Opcode::DescribeGroup as u8, 0, &meta, 0);
    assert_eq!(result, Err(MessageError::OutOfRange { field: "reserved", value: 1 }));
}

#[test]
fn holds_are_refused_when_there_is_no_room_for_them_or_when_they_say_more_than_they_can() {
    let holds = |count: u16, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let config = [[0, 0, 1, 0], [1, 0, 0, 0], [0; 4], [1, 0, 0, 0], [0; 4], [0; 4]].concat();
        let group = [&[0; 12], &config[..], &[1, 0, b'g'], &[1, 0, b't']].concat();
        let partition = [&[0; 6], &count.to_le_bytes()[..], &[0; 120]].concat();
        let meta = [&group, &[1, 0, 0, 0][..], &partition, &bytes, &[0; 4]].concat();
        Response::decode(Opcode::DescribeGroup as u8, 0, &meta, 0).map(|_| ())
    };
    assert_eq!(holds(0, &[]), Ok(()));
    assert_eq!(holds(2, &[3, 7, 8, 12, 9, 0]), Ok(()));
    let refused = |field, value| Err(MessageError::OutOfRange { field, value });
    assert_eq!(holds(u16::MAX, &[0, 0, 0]), refused("holds", u64::from(u16::MAX)));
    for words in [[15, 0, 0], [0, 1, 0], [0, 0, 1], [5, 1, 1]] {
        assert_eq!(holds(1, &words), refused("hold", words[0]), "{words:?}");
    }
}

#[test]
fn ranges_that_no_client_could_compute_with_are_refused_in_answers() {
    let settled = |base_offset: u64, count: u32, status: u32| {
        let unsettled =
            [&[0; 4], &base_offset.to_le_bytes()[..], &count.to_le_bytes(), &status.to_le_bytes()];
        let meta = [&[1, 0, 0, 0], &unsettled.concat()[..]].concat();
        Response::decode(Opcode::Settle as u8, 0, &meta, 0)
    };
    let lost = ErrorCode::LeaseLost as u16;
    let one = Unsettled { partition: 0, status: lost, base_offset: Offset(u64::MAX - 2), count: 2 };
    assert_eq!(
        settled(u64::MAX - 2, 2, u32::from(lost)),
        Ok(Response::Settled(Settled { unsettled: vec![one] }))
    );
    for (base, count, status) in [(u64::MAX - 1, 2, 63), (5, 0, 63), (5, 2, 0), (5, 2, 0x1_0000)] {
        assert!(settled(base, count, status).is_err(), "{count} from {base} on, status {status}");
    }
}

#[test]
fn a_delivery_has_a_lease_for_its_records_and_a_payload_for_each_range() {
    let range = |payload_len| DeliveredRange { lease: RANGE, failed: 0, first_delivery_us: 0, payload_len };
    let decode = |lease_ms, ranges: &[DeliveredRange], payload_len| {
        let mut frame = Vec::new();
        let delivery = Delivery { lease_ms, ranges: ranges.to_vec() };
        Response::Delivered(delivery).encode(&mut frame, Opcode::Delivery as u8, 1, payload_len);
        assert_eq!(frame.len(), FRAME_HEADER_LEN + Delivery::meta_len(ranges.len()));
        Response::decode(Opcode::Delivery as u8, 0, &frame[FRAME_HEADER_LEN..], payload_len).is_ok()
    };
    assert!(decode(0, &[], 0));
    assert!(decode(1, &[range(100), range(20)], 120));
    for (lease_ms, ranges, payload_len) in [
        (1, &[][..], 0),
        (0, &[range(100)], 100),
        (0, &[], 1),
        (1, &[range(100)], 99),
        (1, &[range(100)], 101),
        (1, &[range(100), range(0)], 100),
        (1, &[range(u32::MAX), range(u32::MAX)], u32::MAX - 1),
    ] {
        assert!(!decode(lease_ms, ranges, payload_len), "{lease_ms} ms, {ranges:?}, {payload_len} bytes");
    }
    let never = DeliveredRange { lease: LeaseRange { acquired: 0, ..RANGE }, ..range(100) };
    assert!(!decode(1, &[never], 100));
}

#[test]
fn what_is_only_the_brokers_to_send_is_no_request() {
    let delivery = Opcode::Delivery as u8;
    assert_eq!(Request::decode(delivery, &[0; 8], 0), Err(MessageError::UnknownOpcode(delivery)));
    // Nor has any request here a payload, nor any answer but those with records.
    for opcode in Opcode::ALL.iter().filter(|&&opcode| opcode as u8 >= 64) {
        let with_payload = Request::decode(*opcode as u8, &[], 1);
        let known = MessageError::UnexpectedPayload;
        let expected =
            if *opcode == Opcode::Delivery { MessageError::UnknownOpcode(delivery) } else { known };
        assert_eq!(with_payload, Err(expected), "{}", opcode.name());
        let has_records = matches!(opcode, Opcode::Delivery | Opcode::Receive);
        let answer = Response::decode(*opcode as u8, 0, &[], 1);
        assert_eq!(answer == Err(MessageError::UnexpectedPayload), !has_records, "{}", opcode.name());
    }
}

/// What the protocol lets one attach hold on to, and one settle without reasons
/// say, fits the meta of a request.
#[test]
fn the_longest_lists_fit_a_request() {
    for request in [attach(CREDIT, 0, MAX_HELD_RANGES), settle(CREDIT, MAX_SETTLE_ITEMS, Verb::Ack)] {
        assert!(meta_of(&request).len() <= MAX_REQUEST_META_LEN as usize);
    }
}
