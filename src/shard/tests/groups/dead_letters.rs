//! Records that fail too often, and the way back.

use ringbolt_wire::BatchHeader;
use ringbolt_wire::batch::{DEAD_LETTER_HEADER, DeadLetter, ONLY_GROUP_HEADER};
use ringbolt_wire::message::{FetchPartition, FetchedPartition, Hold};

use super::*;

impl Rig {
    /// The records of a partition.
    fn read_all(&mut self, partition: PartitionId) -> Vec<Record> {
        let part = FetchPartition { partition, offset: Offset(0), max_bytes: 4 << 20 };
        let fetch = Fetch { max_wait_ms: 0, min_bytes: 0, max_bytes: 4 << 20, partitions: vec![part] };
        let request = self.request(ShardRequest::Fetch(fetch));
        let at = self.replies.iter().position(|(to, _)| *to == request).expect("it is answered");
        let Reply::Fetched { partitions, payload } = self.replies.remove(at).1 else { panic!("not fetched") };
        let fetched: FetchedPartition = partitions[0];
        let payload = payload.concat();
        let (batches, _) = fetched.split_payload(&payload);
        let records = batches.flat_map(|batch| {
            let records = batch.unwrap().records().map(|(_, record)| Record {
                timestamp_us: record.timestamp_us,
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.to_vec(),
                headers: record.headers().map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
            });
            records.collect::<Vec<_>>()
        });
        records.collect()
    }

    fn dead_letter_group(&mut self) -> (GroupId, PartitionId) {
        let request = self.request(ShardRequest::LookUpGroup { name: "t.dlq".into() });
        let at = self.replies.iter().position(|(to, _)| *to == request).expect("it is answered");
        let Reply::GroupFound(info, _) = self.replies.remove(at).1 else {
            panic!("no group of dead letters")
        };
        (info.id, PartitionId::new(info.topic, 0))
    }
}

fn letter(record: &Record) -> DeadLetter {
    let header = record.headers.iter().find(|(name, _)| name == DEAD_LETTER_HEADER);
    DeadLetter::decode(&header.expect("it says where it comes from").1).unwrap()
}

fn failing(max_failures: u32) -> GroupConfig {
    GroupConfig { max_failures, ..calm(GroupMode::Shared) }
}

#[test]
fn a_record_that_fails_too_often_goes_whole_to_the_dead_letter_topic_and_comes_no_more() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(2), GroupStart::Earliest).id;
    let headers = vec![("trace".to_owned(), b"7".to_vec())];
    let record = Record { timestamp_us: 5, key: Some(b"k".to_vec()), value: b"v".to_vec(), headers };
    rig.append(&[plain(1), record.clone(), plain(2)]);
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[1].lease(), reject());
    let again = rig.got(alice);
    rig.settled(id, ALICE, again[0].lease(), Verb::Reject { dead_letter: false, reason: "twice".into() });
    assert_eq!(rig.offsets_got(alice), NONE);
    let (_, dead) = rig.dead_letter_group();
    let letters = rig.read_all(dead);
    assert_eq!(letters.len(), 1);
    let DeadLetter { origin, offset, group, acquired, failed, reason, first_delivery_us, .. } =
        letter(&letters[0]);
    assert_eq!((origin, offset, group, acquired, failed), (PARTITION, Offset(1), id, 2, 2));
    assert_eq!((reason.as_str(), first_delivery_us > 0), ("twice", true));
    let mut moved = letters[0].clone();
    moved.headers.pop();
    assert_eq!(moved, record);
    let progress = rig.state(id).progress;
    assert_eq!((progress.dead_lettered_total, progress.failed_total, progress.lag), (1, 2, 2));
    let mut rig = rig.restart(2);
    assert_eq!(rig.state(id).progress.lag, 2);
    let (dead_letters, _) = rig.dead_letter_group();
    assert_eq!(rig.state(dead_letters).progress.lag, 1);
}

/// A crash between the record's two places leaves it in one of them.
#[test]
fn the_move_is_one_commit() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    rig.auto = false;
    rig.settle(id, ALICE, got[0].lease(), reject());
    let mut written = 0;
    while !rig.pending.is_empty() {
        let disk = Disk(rig.disk.0.clone());
        let mut other = Rig::start(disk, 2 + written).expect("a good log");
        let (dead_letters, dead) = other.dead_letter_group();
        let moved = other.read_all(dead).len() as u64;
        assert_eq!(other.state(id).progress.lag + moved, 1, "after {written} writes");
        assert_eq!(other.state(dead_letters).progress.lag, moved);
        rig.complete(0, Ok(()));
        written += 1;
    }
    assert!(written > 0);
    rig.auto = true;
    let mut rig = rig.restart(99);
    let (_, dead) = rig.dead_letter_group();
    assert_eq!((rig.state(id).progress.lag, rig.read_all(dead).len()), (0, 1));
}

#[test]
fn a_record_goes_there_at_once_if_its_consumer_says_so_or_when_its_leases_run_out_too_often() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(2), GroupStart::Earliest).id;
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), Verb::Reject { dead_letter: true, reason: "bad".into() });
    rig.wait(30_000_000);
    assert_eq!(rig.offsets_got(alice), [1]);
    rig.wait(30_000_000);
    assert_eq!(rig.offsets_got(alice), NONE);
    let (_, dead) = rig.dead_letter_group();
    let letters = rig.read_all(dead);
    let counts: Vec<_> =
        letters.iter().map(|record| (letter(record).acquired, letter(record).failed)).collect();
    assert_eq!(counts, [(1, 1), (2, 2)]);
}

#[test]
fn without_a_limit_nothing_goes_there() {
    let mut rig = Rig::new();
    let info = rig.group("g", failing(0), GroupStart::Earliest);
    assert_eq!(info.dead_letter, TopicId(0));
    rig.values(b"a");
    let alice = rig.attach(info.id, ALICE, 100);
    for failed in 0..50 {
        let got = rig.got(alice);
        assert_eq!(got[0].failed, failed);
        let verb = Verb::Reject { dead_letter: failed % 2 == 0, reason: String::new() };
        rig.settled(info.id, ALICE, got[0].lease(), verb);
    }
}

#[test]
fn expired_records_go_there_if_the_group_says_so() {
    let mut rig = Rig::new();
    let config = GroupConfig { dead_letter_expired: true, ..failing(0) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    let over = Directions { expire_at_us: Some(5), ..Directions::default() };
    rig.append(&[directed(1, over), plain(2)]);
    let alice = rig.attach(id, ALICE, 9);
    assert_eq!(rig.offsets_got(alice), [1]);
    let (dead_letters, dead) = rig.dead_letter_group();
    assert_eq!(rig.read_all(dead).len(), 1);
    let bob = rig.attach(dead_letters, BOB, 9);
    assert_eq!(rig.got(bob)[0].value, [1], "dead letters do not expire");
}

#[test]
fn a_dead_letter_is_redriven_once_to_where_it_comes_from_for_the_group_in_which_it_failed() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    let other = rig.group("other", calm(GroupMode::Shared), GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), reject());
    let (dead_letters, dead) = rig.dead_letter_group();
    let bob = rig.attach(dead_letters, BOB, 9);
    let letters = rig.got(bob);
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Redrive), [(0, ErrorCode::AlreadyCompleted)]);
    assert_eq!(rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Redrive), []);
    assert_eq!(
        rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Redrive),
        [(0, ErrorCode::AlreadyCompleted)],
        "once"
    );
    let back = rig.got(alice);
    assert_eq!((back[0].offset, back[0].value.as_slice(), back[0].failed), (1, &b"a"[..], 0));
    let carol = rig.attach(other, ConsumerId(3), 9);
    assert_eq!(rig.offsets_got(carol), [0], "it is not for others");
    let records = rig.read_all(PARTITION);
    let names: Vec<&str> = records[1].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [ONLY_GROUP_HEADER]);
    // And once more the whole way.
    rig.settled(id, ALICE, back[0].lease(), reject());
    let letters = rig.read_all(dead);
    assert_eq!(letters.len(), 2);
    assert_eq!((letter(&letters[1]).offset, letters[1].headers.len()), (Offset(1), 1));
}

#[test]
fn what_is_no_dead_letter_is_not_redriven() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Redrive), [(0, ErrorCode::InvalidRequest)]);
    let (dead_letters, dead) = rig.dead_letter_group();
    let mut batch = BatchBuilder::new();
    batch.push(0, None, b"forged", &[]);
    let batch = batch.finish(dead, ProducerId::NONE, Epoch(0), Sequence(0));
    rig.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
    let bob = rig.attach(dead_letters, BOB, 9);
    let letters = rig.got(bob);
    assert_eq!(
        rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Redrive),
        [(0, ErrorCode::InvalidRequest)]
    );
    assert_eq!(rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Ack), [], "but it can be dropped");
}

/// Those behind it were taken from their consumer as well, and came again.
#[test]
fn what_a_consumer_has_in_order_stays_with_it_when_it_sends_a_record_to_the_dead_letter_topic() {
    let mut rig = Rig::new();
    let id =
        rig.group("g", GroupConfig { mode: GroupMode::Exclusive, ..failing(9) }, GroupStart::Earliest).id;
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    let away = Verb::Reject { dead_letter: true, reason: "never".into() };
    assert_eq!(rig.settled(id, ALICE, got[1].lease(), away), []);
    rig.ack(id, ALICE, &got[2]);
    rig.ack(id, ALICE, &got[0]);
    assert_eq!(rig.offsets_got(alice), NONE);
    let progress = rig.state(id).progress;
    assert_eq!((progress.floor, progress.dead_lettered_total, progress.leased), (3, 1, 0));
}

#[test]
fn a_key_goes_on_when_its_record_went_to_the_dead_letter_topic() {
    for mode in [GroupMode::KeyOrdered, GroupMode::Exclusive] {
        let mut rig = Rig::new();
        let id = rig.group("g", GroupConfig { mode, ..failing(1) }, GroupStart::Earliest).id;
        rig.keyed(&[("a", 1), ("a", 2)]);
        let alice = rig.attach(id, ALICE, 1);
        let got = rig.got(alice);
        rig.settled(id, ALICE, got[0].lease(), reject());
        rig.settle_all(id, ALICE, vec![], Credit { records: 9, bytes: 0 });
        let next = rig.got(alice);
        assert_eq!(next.iter().map(|got| got.value[0]).collect::<Vec<_>>(), [2], "{mode}");
        rig.ack(id, ALICE, &next[0]);
        assert_eq!(rig.state(id).progress.floor, 2, "{mode}");
    }
}

/// So many dead letters, and the group that handles them.
fn letters(rig: &mut Rig, count: u32) -> (GroupId, u64, Vec<Got>) {
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    rig.append(&(0..count).map(|value| plain(value as u8)).collect::<Vec<_>>());
    let alice = rig.attach(id, ALICE, u64::from(count));
    rig.got(alice);
    rig.settle(id, ALICE, range(0, count, 1), reject());
    (0..20).for_each(|_| rig.wait(1_000));
    let (dead_letters, _) = rig.dead_letter_group();
    let bob = rig.attach(dead_letters, BOB, u64::from(count));
    let letters = rig.got(bob);
    assert_eq!(letters.len(), count as usize);
    (dead_letters, bob, letters)
}

fn redrives(id: GroupId, ranges: Vec<LeaseRange>) -> ShardRequest<'static, Vector> {
    let items = ranges.into_iter().map(|range| SettleItem { range, verb: Verb::Redrive }).collect();
    ShardRequest::Settle(Settle { at: at(id, BOB), credit: Credit::default(), confirm: true, items })
}

/// They go a few at a time, and the sentence is in the log before.
#[test]
fn what_was_condemned_goes_to_the_dead_letter_topic_after_a_restart_with_its_reason() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    rig.append(&(0..100).map(plain).collect::<Vec<_>>());
    rig.attach(id, ALICE, 100);
    rig.auto = false;
    rig.settle(id, ALICE, range(0, 100, 1), reject());
    let key = crate::consumer::GroupKey { group: id, partition: 0 };
    let mut waiting = 0;
    for written in 1.. {
        if rig.pending.is_empty() {
            break;
        }
        rig.complete(0, Ok(()));
        let log = recovered(&rig.disk);
        let known = |offset| log.state.groups.acks[&key].attempts(offset);
        let condemned = |offset: &u64| known(*offset).is_some_and(|known| known.condemned.is_some());
        waiting += (0..100).filter(condemned).count();
        let mut other = Rig::start(Disk(rig.disk.0.clone()), 1 + written).expect("a good log");
        // What is on its way is looked at when somebody comes.
        let alice = other.attach(id, ALICE, 100);
        (0..10).for_each(|_| other.wait(1_000));
        assert_eq!(other.offsets_got(alice), NONE);
        let (_, dead) = other.dead_letter_group();
        let letters = other.read_all(dead);
        assert_eq!((letters.len(), other.state(id).progress.lag), (100, 0), "after {written} writes");
        assert!(letters.iter().all(|record| letter(record).reason == "no"));
    }
    assert!(waiting > 0, "none was on its way");
}

/// It waited for all records of the one before.
#[test]
fn a_request_for_one_record_back_does_not_wait_for_one_for_hundreds() {
    let mut rig = Rig::new();
    let (id, _, _) = letters(&mut rig, 500);
    let many = rig.hand_in(redrives(id, vec![range(0, 499, 1)]));
    let one = rig.hand_in(redrives(id, vec![range(499, 1, 1)]));
    rig.run();
    (0..20).for_each(|_| rig.wait(1_000));
    let answered: Vec<u64> =
        rig.replies.iter().map(|(to, _)| *to).filter(|to| [many, one].contains(to)).collect();
    assert_eq!(answered, [one, many]);
    for request in [one, many] {
        assert_eq!(rig.take_settled(request), Some(Settled::default()));
    }
    assert_eq!(rig.state(id).progress.lag, 0);
}

/// Each time it was asked for again while the first had no turn, it took memory.
#[test]
fn dead_letters_that_are_on_their_way_back_are_bounded() {
    let mut rig = Rig::new();
    let (id, _, _) = letters(&mut rig, 100);
    rig.slow_file = Some(None);
    rig.use_up();
    let all = || vec![range(0, 100, 1); 163];
    rig.replies.clear();
    let refused = (0..5).map(|_| rig.request(redrives(id, all()))).collect::<Vec<_>>();
    let codes: Vec<u64> = rig.replies.iter().map(|(to, _)| *to).collect();
    assert_eq!(codes, refused[4..], "four times 16,300 are fewer than 65,536");
    assert_eq!(rig.error().error_code(), Some(ErrorCode::Overloaded));
    let segment = rig.slow_file.take().flatten().expect("it is wanted");
    rig.prepare(segment);
    for _ in 0..2_000 {
        rig.wait(1_000);
    }
    let settled: Vec<Settled> =
        refused[..4].iter().map(|to| rig.take_settled(*to).expect("answered")).collect();
    let lost: usize = settled.iter().map(|settled| settled.unsettled.len()).sum();
    assert_eq!(lost, 4 * 16_300 - 100, "each moved once");
    assert_eq!(rig.state(id).progress.lag, 0);
    rig.request(redrives(id, all()));
    assert!(matches!(rig.replies.pop(), Some((_, Reply::Settled(_)))), "there is room again");
}

/// All others of the shard waited a second for each look at it.
#[test]
fn a_damaged_record_does_not_keep_others_from_the_dead_letter_topic() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    rig.values(b"abc");
    let mut rig = rig.restart(2);
    let alice = rig.attach(id, ALICE, 3);
    let got = rig.got(alice);
    let (segment, at) = find(&rig.disk, b'b');
    rig.disk.0.get_mut(&segment).unwrap()[at] ^= 1;
    rig.shard.forget_pages(segment);
    rig.settle(id, ALICE, got[1].lease(), reject());
    assert_eq!(rig.state(id).progress.dead_lettered_total, 0);
    for got in [&got[0], &got[2]] {
        rig.settle(id, ALICE, got.lease(), reject());
    }
    assert_eq!(rig.state(id).progress.dead_lettered_total, 2, "at once");
    let due_us = rig.shard.next_deadline().expect("it is tried again");
    assert!(due_us > rig.now.mono_us, "not all the time");
    // It was not the disk, it was the way from there.
    rig.disk.0.get_mut(&segment).unwrap()[at] ^= 1;
    rig.shard.forget_pages(segment);
    rig.wait(1_000_000);
    assert_eq!(rig.state(id).progress.dead_lettered_total, 3);
}

/// Where a record's value of one byte lies in the first batch that has it.
fn find(disk: &Disk, value: u8) -> (SegmentSeq, usize) {
    let mut batch = BatchBuilder::new();
    batch.push(0, None, &[value], &[]);
    let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
    // All but what the broker fills in.
    let like = &batch[BatchHeader::CRC_START - 4..];
    disk.0
        .iter()
        .find_map(|(segment, file)| {
            let at = file.windows(like.len()).position(|window| window == like)?;
            Some((*segment, at + like.len() - 1))
        })
        .expect("it was written")
}

#[test]
fn a_damaged_record_is_read_again_after_a_while() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let mut rig = rig.restart(2);
    rig.read_fault = Some(5);
    let alice = rig.attach(id, ALICE, 3);
    assert_eq!(rig.offsets_got(alice), NONE);
    assert_eq!(rig.state(id).holds, [Hold::Damaged { offset: 0 }]);
    rig.read_fault = None;
    rig.wait(29_000_000);
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.wait(1_000_000);
    assert_eq!(rig.offsets_got(alice), [0, 1]);
}

/// Those of the group with the lower number were all moved first, turn after turn.
#[test]
fn one_groups_many_failures_do_not_keep_anothers_from_the_dead_letter_topic() {
    let mut rig = Rig::new();
    let (g, h) = ("g", "h");
    let ids = [g, h].map(|name| rig.group(name, failing(1), GroupStart::Earliest).id);
    rig.append(&(0..500).map(|value| plain(value as u8)).collect::<Vec<_>>());
    let records = [500, 1];
    for (id, records) in ids.into_iter().zip(records) {
        let asked = rig.receive(id, ALICE, u64::from(records), 0);
        rig.got(asked);
    }
    for (id, records) in ids.into_iter().zip(records) {
        let items = vec![SettleItem { range: range(0, records, 1), verb: reject() }];
        let settle = Settle { at: at(id, ALICE), credit: Credit::default(), confirm: true, items };
        rig.hand_in(ShardRequest::Settle(settle));
    }
    (0..20).for_each(|_| rig.wait(1_000));
    let (_, dead) = rig.dead_letter_group();
    let groups: Vec<GroupId> = rig.read_all(dead).iter().map(|record| letter(record).group).collect();
    let place = groups.iter().position(|group| *group == ids[1]);
    assert!(place.is_some_and(|place| place < 128), "{place:?} of {}", groups.len());
}

/// With one more header than a record may have, it could not be put together.
#[test]
fn a_record_with_as_many_headers_as_may_be_becomes_a_dead_letter_and_with_more_it_is_refused() {
    let mut rig = Rig::new();
    let id = rig.group("g", failing(1), GroupStart::Earliest).id;
    let headers = |count: usize| (0..count).map(|i| (i.to_string(), Vec::new())).collect::<Vec<_>>();
    let mut batch = BatchBuilder::new();
    batch.push(0, None, b"x", &headers(1025));
    let batch = batch.finish(PARTITION, ProducerId::NONE, Epoch(0), Sequence(0));
    rig.request(ShardRequest::Produce { payload: Payload::Borrowed(&batch), min_copies: 0 });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::MalformedBatch));
    rig.append(&[Record { headers: headers(1024), ..plain(1) }]);
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), reject());
    let (dead_letters, dead) = rig.dead_letter_group();
    assert_eq!(rig.read_all(dead)[0].headers.len(), 1025);
    rig.receive(dead_letters, BOB, 1, 0);
    rig.replies.clear();
    let request = rig.request(redrives(dead_letters, vec![range(0, 1, 1)]));
    assert_eq!(rig.take_settled(request), Some(Settled::default()));
}

/// Nobody was told that there was room.
#[test]
fn a_group_at_its_bound_goes_on_when_a_dead_letter_was_redriven() {
    let mut rig = Rig::new();
    letters(&mut rig, 3);
    let narrow = GroupConfig { max_failures: 0, max_open: 1, ..calm(GroupMode::Shared) };
    let create = CreateGroup {
        name: "by-hand".into(),
        topic: "t.dlq".into(),
        start: GroupStart::Earliest,
        or_find: false,
        config: narrow,
        dead_letter_topic: None,
    };
    rig.request(ShardRequest::CreateGroup(create));
    let Some((_, Reply::Group(info))) = rig.replies.pop() else { panic!("no group") };
    let bob = rig.attach(info.id, BOB, 100);
    for offset in 0..3 {
        assert_eq!(rig.offsets_got(bob), [offset]);
        rig.settle(info.id, BOB, range(offset, 1, 1), Verb::Redrive);
        rig.replies.retain(|(to, _)| *to == bob);
    }
}
