//! Record batches: what is built is read back, and damage and lies are seen.

mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use ringbolt_wire::batch::{
    BATCH_HEADER_LEN, BatchError, BatchHeader, Batches, DEAD_LETTER_HEADER, DELIVER_AT_HEADER, DeadLetter,
    Directions, EXPIRE_AT_HEADER, FLAG_DIRECTED, ONLY_GROUP_HEADER, RECORD_HEADER_LEN,
};
use ringbolt_wire::message::{DeliveredRange, LeaseRange};
use ringbolt_wire::{
    BatchBuilder, BatchView, Epoch, ErrorCode, Offset, PartitionId, ProducerId, Record, Sequence, TopicId,
};
use support::{NO_LIMIT, batch, build, groups, record, reseal, sender, to_record};
use zerocopy::IntoBytes;

const SENDER: support::Sender = (PartitionId::new(TopicId(3), 1), ProducerId(77), Epoch(2), Sequence(1000));

fn rich_record(i: u8) -> Record {
    Record {
        timestamp_us: 1_000_000 - u64::from(i),
        key: Some(vec![i; 3]),
        value: vec![i; 10],
        headers: vec![("h".into(), vec![1, 2]), ("ünï".into(), vec![])],
    }
}

fn rich_batch() -> Vec<u8> {
    build(&[rich_record(1), rich_record(2), Record::default()], SENDER)
}

/// Reads everything that a batch offers.
fn read_all(view: &BatchView<'_>) -> usize {
    view.records()
        .map(|(_, r)| {
            let headers: usize = r.headers().map(|(n, v)| 6 + n.len() + v.len()).sum();
            RECORD_HEADER_LEN + r.key.map_or(0, <[u8]>::len) + r.value.len() + headers
        })
        .sum()
}

proptest! {
    #[test]
    fn a_batch_is_read_as_it_was_built(records in vec(record(), 1..8), sender in sender()) {
        let bytes = build(&records, sender);
        let len: usize = records.iter().map(Record::encoded_len).sum();
        prop_assert_eq!(bytes.len(), BATCH_HEADER_LEN + len);
        let view = BatchView::parse_exact(&bytes, bytes.len() as u32).unwrap();
        let h = view.header();
        prop_assert_eq!((h.partition(), h.producer_id(), h.producer_epoch(), h.base_sequence()), sender);
        prop_assert_eq!((h.count() as usize, h.len()), (records.len(), bytes.len()));
        prop_assert_eq!(h.next_sequence().0 - h.base_sequence().0, records.len() as u64);
        prop_assert_eq!(h.first_timestamp_us(), records[0].timestamp_us);
        prop_assert_eq!(h.max_timestamp_us(), records.iter().map(|r| r.timestamp_us).max().unwrap());
        let read: Vec<_> = view.records().map(|(offset, r)| (offset.0, to_record(&r))).collect();
        let expected: Vec<_> = (0..).zip(records).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in vec(any::<u8>(), 0..300),
        honest in 0..=110_usize,
    ) {
        // So that some get past the first checks.
        let valid = rich_batch();
        let n = honest.min(bytes.len());
        bytes[..n].copy_from_slice(&valid[..n]);
        if let Ok(view) = BatchView::parse(&bytes, NO_LIMIT) {
            prop_assert!(view.as_bytes().len() <= bytes.len());
        }
        let _ = BatchHeader::decode(&bytes);
    }

    /// A hostile sender computes the right CRC for the wrong bytes.
    #[test]
    fn a_changed_and_resealed_batch_is_refused_or_no_larger_than_its_bytes(
        mut bytes in batch(),
        changes in vec((any::<prop::sample::Index>(), prop_oneof![Just(0), Just(0xff), any::<u8>()]), 1..5),
    ) {
        for (at, value) in changes {
            let at = 20 + at.index(bytes.len() - 20);
            bytes[at] = value;
        }
        reseal(&mut bytes);
        if let Ok(view) = BatchView::parse_exact(&bytes, NO_LIMIT) {
            prop_assert_eq!(view.records().count(), view.header().count() as usize);
            prop_assert_eq!(BATCH_HEADER_LEN + read_all(&view), bytes.len());
        }
        // Records that were not checked may end early, but never leave the batch.
        if let Ok(view) = BatchView::parse_unchecked_records(&bytes, NO_LIMIT) {
            prop_assert!(BATCH_HEADER_LEN + read_all(&view) <= bytes.len());
        }
    }

    #[test]
    fn a_batch_cut_anywhere_is_truncated(bytes in batch()) {
        for len in 0..bytes.len() {
            let cut = BatchView::parse(&bytes[..len], NO_LIMIT).map(|_| ());
            let is_truncated = matches!(cut, Err(BatchError::Truncated { have, .. }) if have == len);
            prop_assert!(is_truncated, "{len} bytes: {cut:?}");
        }
    }

    #[test]
    fn several_batches_are_read_one_after_the_other(
        batches in vec(batch(), 1..5),
        base in 0..u64::MAX / 2,
    ) {
        let (bytes, next) = place(batches.clone(), base);
        let read: Vec<_> = Batches::new(&bytes, Offset(base)).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read.len(), batches.len());
        prop_assert_eq!(read.last().unwrap().header().next_offset(), Offset(next));
    }

    #[test]
    fn directions_are_read_as_they_were_put_and_flag_their_batch(directions in groups::directions()) {
        let mut headers = vec![("h".to_owned(), vec![1])];
        directions.put_headers(&mut headers);
        let bytes = build(&[rich_record(1), Record { headers, ..Record::default() }], SENDER);
        let view = BatchView::parse_exact(&bytes, NO_LIMIT).unwrap();
        prop_assert_eq!(view.header().is_directed(), !directions.is_empty());
        prop_assert_eq!(bytes[62], u8::from(!directions.is_empty()));
        let read: Vec<_> = view.records().map(|(_, record)| Directions::of(&record)).collect();
        prop_assert_eq!(read, [Some(Directions::default()), Some(directions)]);
    }

    #[test]
    fn a_dead_letters_header_is_read_as_it_was_written(letter in groups::dead_letter(), at in any::<prop::sample::Index>()) {
        let value = letter.encode();
        prop_assert_eq!(DeadLetter::decode(&value), Ok(letter.clone()));
        prop_assert!(DeadLetter::decode(&value[..at.index(value.len())]).is_err());
        prop_assert!(DeadLetter::decode(&[&value[..], &[0]].concat()).is_err());
        let headers = vec![("h".into(), vec![1]), (DEAD_LETTER_HEADER.into(), value)];
        let bytes = build(&[Record { headers, ..Record::default() }, rich_record(1)], SENDER);
        let view = BatchView::parse(&bytes, NO_LIMIT).unwrap();
        prop_assert!(!view.header().is_directed());
        let read: Vec<_> = view.records().map(|(_, record)| DeadLetter::of(&record)).collect();
        prop_assert_eq!(read, [Some(letter), None]);
    }

    /// What decodes encodes to the same bytes, reserved ones included.
    #[test]
    fn a_changed_dead_letter_is_refused_or_encodes_to_its_bytes(
        letter in groups::dead_letter(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut value = letter.encode();
        let at = at.index(value.len());
        value[at] = byte;
        if let Ok(read) = DeadLetter::decode(&value) {
            prop_assert_eq!(read.encode(), value);
        }
    }

    #[test]
    fn any_cut_of_a_batch_is_a_batch_of_those_records(
        records in vec(record(), 1..8),
        sender in sender(),
        base in 0..u64::MAX / 2,
        ends in any::<[prop::sample::Index; 2]>(),
    ) {
        let mut bytes = build(&records, sender);
        BatchHeader::set_placement(&mut bytes, Offset(base), 77);
        let whole = BatchView::parse(&bytes, NO_LIMIT).unwrap();
        let first = ends[0].index(records.len());
        let count = 1 + ends[1].index(records.len() - first);
        let cut = cut(&whole, first, count);
        let view = BatchView::parse_exact(&cut, NO_LIMIT).unwrap();
        let (h, from) = (view.header(), first as u64);
        prop_assert_eq!((h.base_offset(), h.count()), (Offset(base + from), count as u32));
        prop_assert_eq!(h.base_sequence(), Sequence(sender.3.0 + from));
        prop_assert_eq!((h.partition(), h.producer_id(), h.producer_epoch()), (sender.0, sender.1, sender.2));
        prop_assert_eq!((h.commit_time_us(), h.is_directed()), (77, whole.header().is_directed()));
        let read: Vec<_> = view.records().map(|(offset, r)| (offset.0, to_record(&r))).collect();
        let expected: Vec<_> = (base + from..).zip(records[first..first + count].to_vec()).collect();
        prop_assert_eq!(read, expected);
        // All of it is the batch as it was.
        if count == records.len() {
            prop_assert_eq!(cut, bytes);
        }
    }
}

/// The batch of `count` of the records from number `first` on.
fn cut(whole: &BatchView<'_>, first: usize, count: usize) -> Vec<u8> {
    let taken: Vec<_> = whole.records_with_bytes().skip(first).take(count).collect();
    let times: Vec<u64> = taken.iter().map(|(record, _)| record.timestamp_us).collect();
    let records: Vec<u8> = taken.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let times = (times[0], *times.iter().max().unwrap());
    let header = whole.header().cut(first as u32, count as u32, times, &records);
    [header.as_bytes(), &records].concat()
}

/// Sets dense offsets from `base` on; returns the bytes and the next offset.
fn place(batches: Vec<Vec<u8>>, base: u64) -> (Vec<u8>, u64) {
    let mut next = base;
    let mut bytes = Vec::new();
    for mut batch in batches {
        BatchHeader::set_placement(&mut batch, Offset(next), 5);
        next = BatchView::parse(&batch, NO_LIMIT).unwrap().header().next_offset().0;
        bytes.extend_from_slice(&batch);
    }
    (bytes, next)
}

#[test]
fn every_flipped_bit_is_detected_but_those_of_the_commit_time() {
    let (bytes, _) = place(vec![rich_batch()], 500);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let read: Vec<_> = Batches::new(&damaged, Offset(500)).collect();
        let is_commit_time = (8..16).contains(&(bit / 8));
        assert_eq!(read[0].is_ok(), is_commit_time, "bit {bit}: {:?}", read[0]);
        assert_eq!(read.len(), 1);
    }
}

#[test]
fn damage_behind_the_lengths_is_told_as_damage() {
    let bytes = rich_batch();
    // From the first field that says nothing of lengths, counts or versions.
    for at in (32..60).chain(61..62).chain(64..bytes.len()) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let error = BatchView::parse(&damaged, NO_LIMIT).unwrap_err();
        assert_eq!(error.code(), ErrorCode::BatchCrcMismatch, "byte {at}: {error}");
    }
}

#[test]
fn a_batch_that_does_not_continue_the_one_before_is_a_gap() {
    let (first, next) = place(vec![rich_batch()], 0);
    let (second, _) = place(vec![rich_batch()], next + 1);
    let bytes = [first, second].concat();
    let read: Vec<_> = Batches::new(&bytes, Offset(0)).collect();
    assert!(read[0].is_ok());
    let gap = BatchError::Gap { expected: Offset(next), found: Offset(next + 1) };
    assert_eq!(read[1].as_ref().map(|_| ()), Err(&gap));
    assert_eq!(read.len(), 2);
}

/// Each lie has the right CRC.
#[test]
fn lies_are_refused() {
    let honest = rich_batch();
    let lie = |at: usize, bytes: &[u8]| {
        let mut batch = honest.clone();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        reseal(&mut batch);
        BatchView::parse(&batch, 1 << 20).map(|_| ()).unwrap_err()
    };
    let record = BATCH_HEADER_LEN;
    let len = honest.len() as u32;
    let u32s = |v: u32| v.to_le_bytes();
    assert!(matches!(lie(24, &u32s(u32::MAX)), BatchError::TooLarge { len: u32::MAX, .. }));
    assert!(matches!(lie(24, &u32s(len + 1)), BatchError::Truncated { .. }));
    for short in [0, 79, 80, 103] {
        assert_eq!(lie(24, &u32s(short)), BatchError::BadRecords { index: 0, count: 3 }, "{short} bytes");
    }
    assert_eq!(lie(28, &u32s(0)), BatchError::BadRecords { index: 0, count: 0 });
    assert_eq!(lie(28, &u32s(2)), BatchError::BadRecords { index: 2, count: 2 });
    assert_eq!(lie(28, &u32s(4)), BatchError::BadRecords { index: 3, count: 4 });
    let all = u32::MAX;
    assert_eq!(lie(28, &u32s(all)), BatchError::BadRecords { index: 3, count: all });
    assert_eq!(lie(48, &(u64::MAX - 2).to_le_bytes()), BatchError::NumberOverflow { count: 3 });
    assert_eq!(lie(0, &u64::MAX.to_le_bytes()), BatchError::NumberOverflow { count: 3 });
    assert_eq!(lie(60, &[2]), BatchError::BadHeader);
    assert_eq!(lie(61, &[1]), BatchError::UnknownCompression(1));
    for flags in [2_u16, 3, 0x8000] {
        assert_eq!(lie(62, &flags.to_le_bytes()), BatchError::BadHeader, "flags {flags:#x}");
    }
    assert_eq!(lie(64, &[0]), BatchError::BadTimestamps);
    assert_eq!(lie(72, &[0]), BatchError::BadTimestamps);
    let first = BatchError::BadRecords { index: 0, count: 3 };
    // The record's length: 0, -1, one less, one more.
    let record_len = rich_record(1).encoded_len() as u32;
    for length in [0, 23, u32::MAX, record_len - 1, record_len + 1] {
        assert_eq!(lie(record, &u32s(length)), first, "record of {length} bytes");
    }
    // Key, value, headers, reserved.
    for key_len in [2, 4, u32::MAX - 1] {
        assert_eq!(lie(record + 4, &u32s(key_len)), first, "key of {key_len} bytes");
    }
    // A key that is denied leaves its bytes over.
    assert_eq!(lie(record + 4, &u32s(u32::MAX)), first);
    for value_len in [9, 11, u32::MAX] {
        assert_eq!(lie(record + 8, &u32s(value_len)), first, "value of {value_len} bytes");
    }
    for headers in [0, 1, 3, 1025, u16::MAX] {
        assert_eq!(lie(record + 12, &headers.to_le_bytes()), first, "{headers} headers");
    }
    assert_eq!(lie(record + 14, &[1]), first);
    // Lengths within the first header, and a name that is not UTF-8.
    let header = record + RECORD_HEADER_LEN + 13;
    assert_eq!(lie(header, &u16::MAX.to_le_bytes()), first);
    assert_eq!(lie(header + 2, &u32s(u32::MAX)), first);
    assert_eq!(lie(header + 6, &[0xff]), first);
}

#[test]
fn the_limit_holds_to_the_byte_and_bytes_after_the_batch_are_seen() {
    let bytes = rich_batch();
    let len = bytes.len() as u32;
    assert!(BatchView::parse_exact(&bytes, len).is_ok());
    assert_eq!(
        BatchView::parse(&bytes, len - 1).map(|_| ()),
        Err(BatchError::TooLarge { len, limit: len - 1 })
    );
    let longer = [&bytes[..], &[0; 5]].concat();
    assert_eq!(BatchView::parse(&longer, len).unwrap().as_bytes(), bytes);
    assert_eq!(BatchView::parse_exact(&longer, len).map(|_| ()), Err(BatchError::TrailingBytes(5)));
}

#[test]
fn the_broker_places_a_batch_without_touching_what_the_crc_covers() {
    let mut bytes = rich_batch();
    let before = bytes.clone();
    BatchHeader::set_placement(&mut bytes, Offset(1 << 40), 123_456_789);
    assert_eq!(bytes[16..], before[16..]);
    let view = BatchView::parse(&bytes, NO_LIMIT).unwrap();
    assert_eq!(view.header().base_offset(), Offset(1 << 40));
    assert_eq!(view.header().next_offset(), Offset((1 << 40) + 3));
    assert_eq!(view.header().commit_time_us(), 123_456_789);
    let offsets: Vec<_> = view.records().map(|(o, _)| o.0 - (1 << 40)).collect();
    assert_eq!(offsets, [0, 1, 2]);
}

#[test]
fn a_builder_leaves_its_prefix_alone_and_can_reuse_a_buffer() {
    let build = |mut builder: BatchBuilder| {
        let r = rich_record(9);
        builder.push(r.timestamp_us, r.key.as_deref(), &r.value, &r.headers);
        builder.finish(SENDER.0, SENDER.1, SENDER.2, SENDER.3)
    };
    let plain = build(BatchBuilder::new());
    let prefixed = build(BatchBuilder::with_prefix(b"head"));
    assert_eq!(&prefixed[..4], b"head");
    assert_eq!(prefixed[4..], plain);
    let dirty = vec![0xee; 4000];
    let address = dirty.as_ptr();
    let reused = build(BatchBuilder::with_buffer(dirty, b"head"));
    assert_eq!(reused, prefixed);
    assert_eq!(reused.as_ptr(), address);
}

#[test]
fn no_key_and_an_empty_key_are_told_apart() {
    let none = Record { key: None, ..rich_record(1) };
    let empty = Record { key: Some(vec![]), ..rich_record(1) };
    let bytes = build(&[none.clone(), empty.clone()], SENDER);
    let view = BatchView::parse(&bytes, NO_LIMIT).unwrap();
    let read: Vec<_> = view.records().map(|(_, r)| to_record(&r)).collect();
    assert_eq!(read, [none, empty]);
}

/// A batch of one record with these headers, the second of two, with or without
/// the flag of directions.
fn with_headers(headers: &[(&str, &[u8])], is_flagged: bool) -> Result<(), BatchError> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    let mut bytes = build(&[rich_record(1), Record { headers, ..Record::default() }], SENDER);
    bytes[62] = if is_flagged { FLAG_DIRECTED as u8 } else { 0 };
    reseal(&mut bytes);
    BatchView::parse(&bytes, NO_LIMIT).map(|_| ())
}

#[test]
fn directions_that_the_batch_does_not_tell_of_are_refused() {
    let bad = BatchError::BadDirections { index: 1, count: 2 };
    assert_eq!(bad.code(), ErrorCode::MalformedBatch);
    for (name, value) in
        [(DELIVER_AT_HEADER, &[1; 8][..]), (EXPIRE_AT_HEADER, &[0; 8]), (ONLY_GROUP_HEADER, &[7; 4])]
    {
        assert_eq!(with_headers(&[(name, value)], true), Ok(()), "{name}");
        assert_eq!(with_headers(&[(name, value)], false), Err(bad), "{name}");
        assert_eq!(with_headers(&[("h", &[]), (name, value)], false), Err(bad), "{name}");
    }
    // The flag alone promises nothing; other names direct nothing.
    assert_eq!(with_headers(&[], true), Ok(()));
    for name in
        [DEAD_LETTER_HEADER, "ringbolt.deliver-at-once", "ringbolt.", "Ringbolt.deliver-at", "deliver-at"]
    {
        assert_eq!(with_headers(&[(name, &[1]), (name, &[1])], false), Ok(()), "{name}");
    }
}

#[test]
fn directions_of_a_wrong_length_or_given_twice_are_refused() {
    let bad = Err(BatchError::BadDirections { index: 1, count: 2 });
    for (name, len) in [(DELIVER_AT_HEADER, 8), (EXPIRE_AT_HEADER, 8), (ONLY_GROUP_HEADER, 4)] {
        for wrong in [0, len - 1, len + 1, 12 - len] {
            assert_eq!(with_headers(&[(name, &vec![1; wrong])], true), bad, "{name} of {wrong} bytes");
        }
        let one = (name, &vec![1; len][..]);
        let other = (name, &vec![2; len][..]);
        assert_eq!(with_headers(&[one], true), Ok(()), "{name}");
        assert_eq!(with_headers(&[one, one], true), bad, "{name}");
        assert_eq!(with_headers(&[one, ("h", &[]), other], true), bad, "{name}");
    }
}

#[test]
fn a_cut_beyond_its_batch_is_a_broken_promise() {
    let bytes = rich_batch();
    let whole = BatchView::parse(&bytes, NO_LIMIT).unwrap();
    for (first, count) in [(0, 0), (3, 1), (2, 2), (0, 4), (1, u32::MAX), (u32::MAX, 1)] {
        let cut = std::panic::catch_unwind(|| whole.header().cut(first, count, (0, 0), &[0; 24]));
        assert!(cut.is_err(), "{count} from {first} on");
    }
    let too_long = vec![0; bytes.len() - BATCH_HEADER_LEN + 1];
    assert!(std::panic::catch_unwind(|| whole.header().cut(0, 3, (0, 0), &too_long)).is_err());
}

/// A range of `count` records from `base` on, delivered with `payload_len` bytes.
fn delivered(base: u64, count: u32, payload_len: usize) -> DeliveredRange {
    let lease = LeaseRange { partition: 1, base_offset: Offset(base), count, acquired: 1 };
    DeliveredRange { lease, failed: 0, first_delivery_us: 0, payload_len: payload_len as u32 }
}

#[test]
fn a_delivered_range_is_given_its_batches_and_the_rest_to_the_next() {
    // Two batches of three records, of which the first is cut; then another range's.
    let (all, _) = place(vec![rich_batch(), rich_batch()], 10);
    let first = BatchView::parse(&all, NO_LIMIT).unwrap();
    let second = &all[first.as_bytes().len()..];
    let own = [&cut(&first, 1, 2), second].concat();
    let payload = [&own[..], b"rest"].concat();
    let (batches, rest) = delivered(11, 5, own.len()).split_payload(&payload).unwrap();
    assert_eq!(rest, b"rest");
    let offsets: Vec<u64> =
        batches.iter().flat_map(|batch| batch.records().map(|(offset, _)| offset.0)).collect();
    assert_eq!(offsets, [11, 12, 13, 14, 15]);
    let read: Vec<Record> =
        batches.iter().flat_map(|batch| batch.records().map(|(_, record)| to_record(&record))).collect();
    let all = [rich_record(1), rich_record(2), Record::default()];
    assert_eq!(read, [&all[1..], &all[..]].concat());
    // Of the whole payload nothing is left over.
    assert_eq!(delivered(11, 5, own.len()).split_payload(&own).unwrap().1, b"");
}

#[test]
fn a_delivered_range_whose_batches_are_not_exactly_its_records_is_refused() {
    let (own, _) = place(vec![rich_batch(), rich_batch()], 10);
    let refused = |base, count, own: &[u8]| delivered(base, count, own.len()).split_payload(own).is_none();
    assert!(!refused(10, 6, &own));
    assert!(refused(10, 5, &own), "a record too many");
    assert!(refused(10, 7, &own), "a record too few");
    assert!(refused(9, 6, &own), "begins later");
    assert!(refused(11, 5, &own), "begins before");
    assert!(refused(10, 1, &[]), "nothing");
    let half = own.len() / 2;
    assert!(refused(10, 3, &own[half..]), "another batch");
    assert!(refused(10, 6, &own[..own.len() - 1]), "cut off");
    assert!(refused(10, 6, &[&own[..], &[0]].concat()), "a byte too many");
    let (second, _) = place(vec![rich_batch()], 14);
    assert!(refused(10, 7, &[&own[..half], &second].concat()), "a gap");
    let (second, _) = place(vec![rich_batch()], 12);
    assert!(refused(10, 5, &[&own[..half], &second].concat()), "an overlap");
    // The commit time, in bytes 8 to 15 of a batch, is the broker's to say.
    for at in (0..own.len()).filter(|at| !(8..16).contains(&(at % half))) {
        let mut damaged = own.clone();
        damaged[at] ^= 0x10;
        assert!(refused(10, 6, &damaged), "byte {at} is damaged");
    }
    let elsewhere = DeliveredRange {
        lease: LeaseRange { partition: 2, ..delivered(10, 6, 0).lease },
        ..delivered(10, 6, own.len())
    };
    assert!(elsewhere.split_payload(&own).is_none(), "another partition's");
}
