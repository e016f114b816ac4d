//! Histories that went wrong once: the simulation found them.

use ringbolt_wire::message::{ConsumerInfo, Hold};

use super::*;

impl Rig {
    fn consumers(&mut self, id: GroupId) -> Vec<ConsumerInfo> {
        let request = self.request(ShardRequest::GroupStates(id));
        let at = self.replies.iter().position(|(to, _)| *to == request).expect("it is answered");
        match self.replies.remove(at).1 {
            Reply::GroupStates(_, consumers) => consumers,
            other => panic!("no states: {other:?}"),
        }
    }
}

fn redrive(id: GroupId, consumer: ConsumerId, range: LeaseRange) -> ShardRequest<'static, Vector> {
    let items = vec![SettleItem { range, verb: Verb::Redrive }];
    ShardRequest::Settle(Settle { at: at(id, consumer), credit: Credit::default(), confirm: true, items })
}

/// A whole batch went to a consumer that had credit for a part of it.
#[test]
fn credit_in_bytes_is_exceeded_by_less_than_a_record_though_batches_are_longer() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let record = |value: u8| Record { value: vec![value; 1000], ..Record::default() };
    rig.append(&[record(1), record(2), record(3), record(4)]);
    let credit = Credit { records: 100, bytes: 1500 };
    let attach = Attach { at: at(id, ALICE), credit, lease_ms: 0, held: vec![] };
    let alice = rig.request(ShardRequest::Attach(attach));
    assert_eq!(rig.offsets_got(alice), [0, 1]);
    // What it was lent is taken off what it is given: 80 + 2 * 1024 bytes came.
    rig.settle_all(id, ALICE, vec![], Credit { records: 0, bytes: 628 });
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.settle_all(id, ALICE, vec![], Credit { records: 0, bytes: 1 });
    assert_eq!(rig.offsets_got(alice), [2]);
}

/// The shard looked for a consumer that it had just forgotten, and the process ended.
#[test]
fn a_consumer_that_asked_once_and_has_records_can_detach() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let asked = rig.receive(id, ALICE, 1, 0);
    assert_eq!(rig.offsets_got(asked), [0]);
    let request = rig.request(ShardRequest::Detach(at(id, ALICE)));
    assert!(matches!(rig.replies.pop(), Some((to, Reply::Detached)) if to == request));
    let bob = rig.attach(id, BOB, 1);
    assert_eq!(rig.offsets_got(bob), [0]);
}

/// What was to be written of a part waited for room, and came behind changes that had
/// happened since: for the next start it was the newest.
#[test]
fn a_checkpoint_that_had_to_wait_for_room_says_what_is_true_when_it_is_written() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let asked = rig.receive(id, ALICE, 1, 0);
    rig.got(asked);
    rig.slow_file = Some(None);
    rig.use_up();
    rig.shard.want_checkpoint();
    rig.run();
    // The lease runs out while there is no room.
    rig.wait(30_000_000);
    let told = rig.request(ShardRequest::GroupStates(id));
    rig.auto = false;
    let segment = rig.slow_file.take().flatten().expect("it is wanted");
    rig.prepare(segment);
    rig.wait(2_000_000);
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
        if rig.replies.iter().any(|(to, _)| *to == told) {
            let mut other = Rig::start(Disk(rig.disk.0.clone()), 2).expect("a good log");
            assert_eq!(other.state(id).progress.failed_total, 1, "it was told, and is not durable");
        }
    }
    assert!(rig.replies.iter().any(|(to, _)| *to == told));
    let mut rig = rig.restart(2);
    let asked = rig.receive(id, ALICE, 1, 1000);
    let again = rig.got(asked);
    assert_eq!((again[0].offset, again[0].acquired, again[0].failed), (0, 2, 1));
}

/// Records that had waited for their time were all delivered when it came.
#[test]
fn records_whose_time_has_come_are_delivered_within_the_bound_of_open_ones() {
    let mut rig = Rig::new();
    let config = GroupConfig { max_open: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 1_000_000), ..Directions::default() };
    rig.append(&[directed(1, later), directed(2, later), directed(3, later)]);
    let alice = rig.attach(id, ALICE, 100);
    rig.wait(1_000_000);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let got = rig.got(alice);
        assert_eq!(got.len(), 1, "one may be open");
        let (leased, why) = (Hold::Leased { count: 1, ms: 30_000 }, &rig.state(id).holds);
        assert!(
            seen.len() == 2 || *why == [Hold::AtBound { open: 3 - seen.len() as u64 }, leased],
            "{why:?}"
        );
        rig.ack(id, ALICE, &got[0]);
        seen.push(got[0].value[0]);
    }
    assert_eq!(seen, [1, 2, 3]);
}

/// Each stayed one of the consumers that a shard may have, for as long as it ran.
#[test]
fn consumers_whose_last_record_is_taken_from_them_are_forgotten() {
    let mut rig = Rig::new();
    rig.values(b"ab");
    let (id, dead_letters) = rig.dead_letter();
    let asked = rig.receive(id, BOB, 1, 0);
    rig.got(asked);
    let to = GroupStart::Earliest;
    rig.request(ShardRequest::ResetGroup { group: id, to, partition: None });
    assert!(rig.consumers(id).iter().all(|known| known.consumer == ALICE), "the group was reset");
    let asked = rig.receive(dead_letters, BOB, 1, 0);
    let letters = rig.got(asked);
    assert_eq!(rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Redrive), []);
    assert_eq!(rig.consumers(dead_letters), [], "it was redriven");
}

/// As above, by retention.
#[test]
fn a_consumer_whose_last_record_is_no_longer_retained_is_forgotten() {
    let retaining = ShardConfig { retention_bytes: Some(2 * MIN_SEGMENT_LEN), ..config() };
    let mut rig = Rig::with(retaining);
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let asked = rig.receive(id, BOB, 1, 0);
    rig.got(asked);
    for _ in 0..100 {
        rig.append(&[Record { value: vec![7; 200 << 10], ..Record::default() }]);
    }
    let asked = rig.receive(id, ALICE, 1, 1000);
    assert!(rig.offsets_got(asked)[0] > 0);
    assert!(rig.consumers(id).iter().all(|known| known.consumer == ALICE));
}

/// After a restart nothing said any more that the topic holds dead letters: they expired
/// like others, and could not be redriven.
#[test]
fn dead_letters_stay_what_they_are_when_the_topic_that_they_come_from_is_gone() {
    let mut rig = Rig::new();
    let expires = Directions { expire_at_us: Some(5_000_000), ..Directions::default() };
    rig.append(&[directed(1, expires)]);
    let (_, dead_letters) = rig.dead_letter();
    rig.request(ShardRequest::DeleteTopic { name: "t".into() });
    let mut rig = rig.restart(9);
    assert!(rig.now.wall_us > 5_000_000);
    let bob = rig.attach(dead_letters, BOB, 9);
    let letters = rig.got(bob);
    assert_eq!(letters.iter().map(|letter| letter.value[0]).collect::<Vec<_>>(), [1]);
    let refused = rig.settled(dead_letters, BOB, letters[0].lease(), Verb::Redrive);
    assert_eq!(refused, [(0, ErrorCode::UnknownGroup)], "it has nowhere to go");
}

/// It was dropped without a word, and counted as done.
#[test]
fn a_redrive_that_a_reset_overtakes_is_not_called_done() {
    let mut rig = Rig::new();
    rig.values(b"a");
    let (_, dead_letters) = rig.dead_letter();
    let bob = rig.attach(dead_letters, BOB, 1);
    let letters = rig.got(bob);
    let request = rig.hand_in(redrive(dead_letters, BOB, letters[0].lease()));
    let to = GroupStart::Earliest;
    rig.hand_in(ShardRequest::ResetGroup { group: dead_letters, to, partition: None });
    rig.run();
    let settled = rig.take_settled(request).expect("it is answered");
    assert_eq!(settled.unsettled[0].status, ErrorCode::LeaseLost as u16);
    assert_eq!(rig.state(dead_letters).progress.lag, 1);
}

/// It took the record from whoever had it by then.
#[test]
fn a_redrive_whose_turn_comes_late_does_not_take_the_record_from_its_next_holder() {
    let mut rig = Rig::new();
    rig.values(b"a");
    let (_, dead_letters) = rig.dead_letter();
    let asked = rig.receive(dead_letters, BOB, 1, 0);
    let letters = rig.got(asked);
    let alice = rig.attach(dead_letters, ALICE, 1);
    let request = rig.hand_in(redrive(dead_letters, BOB, letters[0].lease()));
    rig.hand_in(ShardRequest::Detach(at(dead_letters, BOB)));
    rig.run();
    let settled = rig.take_settled(request).expect("it is answered");
    assert_eq!(settled.unsettled[0].status, ErrorCode::LeaseLost as u16);
    let got = rig.got(alice);
    rig.ack(dead_letters, ALICE, &got[0]);
}

/// The broker looked no further than its credit went, so the next record of the key did
/// not wait: a crash would have brought the one before it after it.
#[test]
fn a_record_that_was_not_looked_at_waits_all_the_same_for_the_one_before_it_of_its_key() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::KeyOrdered);
    rig.keyed(&[("k", 1), ("k", 2)]);
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    rig.auto = false;
    let items = vec![SettleItem { range: got[0].lease(), verb: Verb::Ack }];
    rig.settle_all(id, ALICE, items, Credit { records: 1, bytes: 0 });
    assert_eq!(rig.offsets_got(alice), NONE, "it is not durable that the first one is completed");
    rig.complete(0, Ok(()));
    assert_eq!(rig.offsets_got(alice), [1]);
}

fn retaining_for_a_second() -> Rig {
    let config = ShardConfig { retention_us: Some(1_000_000), ..config() };
    Rig::with(config)
}

/// Appends records until there are several segments.
fn fill_segments(rig: &mut Rig) {
    for _ in 0..60 {
        rig.append(&[Record { value: vec![7; 200 << 10], ..Record::default() }]);
    }
}

/// The group went on only when something was appended.
#[test]
fn a_group_at_its_bound_goes_on_when_retention_takes_what_is_open() {
    let mut rig = retaining_for_a_second();
    let config = GroupConfig { max_open: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    fill_segments(&mut rig);
    let alice = rig.attach(id, ALICE, 100);
    assert_eq!(rig.offsets_got(alice), [0]);
    rig.wait(3_000_000);
    let got = rig.offsets_got(alice);
    assert!(got.len() == 1 && got[0] > 0, "{got:?}");
}

/// Everything behind it waited until its time, though it was gone.
#[test]
fn a_record_that_retention_has_taken_holds_nothing_up() {
    for (mode, max_open) in [(GroupMode::Exclusive, 100), (GroupMode::Shared, 1)] {
        let mut rig = retaining_for_a_second();
        let id = rig.group("g", GroupConfig { max_open, ..calm(mode) }, GroupStart::Earliest).id;
        rig.values(b"a");
        let alice = rig.attach(id, ALICE, 100);
        let got = rig.got(alice);
        rig.settled(id, ALICE, got[0].lease(), Verb::Nack { delay_ms: 3_600_000 });
        fill_segments(&mut rig);
        rig.got(alice);
        rig.wait(3_000_000);
        let got = rig.offsets_got(alice);
        assert!(got.first().is_some_and(|first| *first > 0), "{mode}: {got:?}");
    }
}

/// The shard woke up at once, did nothing, and woke up again.
#[test]
fn nothing_is_due_when_what_it_was_for_is_gone() {
    let quiet = |rig: &Rig, what: &str| {
        let due_us = rig.shard.next_deadline();
        assert!(due_us.is_none_or(|due_us| due_us > rig.now.mono_us), "{what}: {due_us:?}");
    };
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 500_000), ..Directions::default() };
    rig.append(&[directed(1, later)]);
    rig.attach(id, ALICE, 1);
    rig.request(ShardRequest::DeleteGroup { name: "g".into() });
    rig.wait(2_000_000);
    quiet(&rig, "the last group is deleted");

    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    rig.attach(id, ALICE, 1);
    rig.request(ShardRequest::DeleteGroup { name: "g".into() });
    rig.request(ShardRequest::DeleteGroup { name: "t.dlq".into() });
    rig.wait(60_000_000);
    quiet(&rig, "a lease was left");

    let mut rig = Rig::new();
    let config = GroupConfig { max_failures: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.values(b"a");
    let asked = rig.receive(id, ALICE, 1, 0);
    rig.got(asked);
    rig.fill_up();
    // There is no room for the dead letter.
    rig.wait(30_000_000);
    rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::End, partition: None });
    rig.disk_full = false;
    rig.wait(2_000_000);
    rig.wait(2_000_000);
    quiet(&rig, "the group is reset");
}

/// Nobody looked at redrives any more when there was no group.
#[test]
fn a_redrive_is_answered_though_the_last_group_is_deleted_before_its_turn() {
    let mut rig = Rig::new();
    rig.values(b"a");
    let (_, dead_letters) = rig.dead_letter();
    let asked = rig.receive(dead_letters, BOB, 1, 0);
    let letters = rig.got(asked);
    rig.auto = false;
    rig.hand_in(ShardRequest::DeleteGroup { name: "g".into() });
    rig.hand_in(ShardRequest::DeleteGroup { name: "t.dlq".into() });
    rig.run();
    let request = rig.hand_in(redrive(dead_letters, BOB, letters[0].lease()));
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    let settled = rig.take_settled(request).expect("it is answered");
    assert_eq!(settled.unsettled[0].status, ErrorCode::LeaseLost as u16);
}

/// It went on only when a record of its own came.
#[test]
fn a_group_at_the_bound_of_delayed_records_goes_on_when_another_one_makes_room() {
    let config = ShardConfig { max_delayed: 1, ..config() };
    let mut rig = Rig::with(config);
    let one = rig.group("one", calm(GroupMode::Shared), GroupStart::Earliest).id;
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 1_000_000), ..Directions::default() };
    rig.append(&[directed(1, later), plain(2)]);
    let alice = rig.attach(one, ALICE, 9);
    assert_eq!(rig.offsets_got(alice), [1]);
    let two = rig.group("two", calm(GroupMode::Shared), GroupStart::Earliest).id;
    let bob = rig.attach(two, BOB, 9);
    assert_eq!(rig.offsets_got(bob), NONE, "as many wait as may");
    rig.wait(1_000_000);
    assert_eq!(rig.offsets_got(bob), [0, 1]);
}

/// What had been written about groups was needed for ever, and so was every segment
/// behind it.
#[test]
fn retention_goes_on_when_the_last_group_is_deleted() {
    let retaining = ShardConfig { retention_bytes: Some(3 * MIN_SEGMENT_LEN), ..config() };
    let mut rig = Rig::with(retaining);
    let config = GroupConfig { max_failures: 0, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.values(b"a");
    let asked = rig.receive(id, ALICE, 1, 0);
    let got = rig.got(asked);
    rig.ack(id, ALICE, &got[0]);
    rig.fill_segment();
    rig.request(ShardRequest::DeleteGroup { name: "g".into() });
    for _ in 0..6 {
        rig.fill_segment();
        rig.wait(1_000_000);
    }
    assert!(rig.shard.counters().segments <= 4, "{} segments", rig.shard.counters().segments);
}

/// Those before it were not delivered until its wait was over, and each look at it made
/// another entry.
#[test]
fn a_later_record_that_waits_does_not_hold_up_earlier_ones_of_an_exclusive_partition() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Exclusive);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    assert_eq!(got.len(), 3);
    rig.settled(id, ALICE, got[2].lease(), Verb::Nack { delay_ms: 3_600_000 });
    let mut first = got[0].clone();
    for _ in 0..20 {
        assert_eq!(rig.settled(id, ALICE, first.lease(), Verb::Release), []);
        let again = rig.got(alice);
        assert_eq!(again.iter().map(|got| got.offset).collect::<Vec<_>>(), [0, 1]);
        first = again[0].clone();
    }
    assert_eq!((rig.state(id).progress.delayed, rig.shard.groups.backing_off.len()), (1, 1));
}

/// They were not delivered any more, as if they lay behind the damage.
#[test]
fn records_before_a_damaged_one_are_delivered_again() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    let number = rig.shard.groups.by_id[&id].parts[0];
    rig.shard.groups.parts[number as usize].damaged = Some(1);
    rig.settled(id, ALICE, got[1].lease(), Verb::Release);
    rig.settled(id, ALICE, got[0].lease(), Verb::Release);
    assert_eq!(rig.offsets_got(alice), [0]);
}

/// The shard woke up at once and did nothing, from then on.
#[test]
fn nothing_is_due_when_many_redrives_had_no_turn_before_the_last_group_was_deleted() {
    let mut rig = Rig::new();
    let config = GroupConfig { max_failures: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.append(&(0..200).map(plain).collect::<Vec<_>>());
    let alice = rig.attach(id, ALICE, 200);
    let got = rig.got(alice);
    let all = |got: &[Got], verb: Verb| {
        got.iter().map(|got| SettleItem { range: got.lease(), verb: verb.clone() }).collect::<Vec<_>>()
    };
    rig.settle_all(id, ALICE, all(&got, reject()), Credit::default());
    (0..20).for_each(|_| rig.wait(1_000));
    rig.request(ShardRequest::LookUpGroup { name: "t.dlq".into() });
    let Some((_, Reply::GroupFound(dead_letters, _))) = rig.replies.pop() else { panic!("no group") };
    let bob = rig.attach(dead_letters.id, BOB, 200);
    let letters = rig.got(bob);
    assert_eq!(letters.len(), 200);
    rig.auto = false;
    let items = all(&letters, Verb::Redrive);
    let settle = Settle { at: at(dead_letters.id, BOB), credit: Credit::default(), confirm: false, items };
    rig.hand_in(ShardRequest::Settle(settle));
    rig.hand_in(ShardRequest::DeleteGroup { name: "g".into() });
    rig.hand_in(ShardRequest::DeleteGroup { name: "t.dlq".into() });
    rig.auto = true;
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    (0..20).for_each(|_| rig.wait(1_000));
    let due_us = rig.shard.next_deadline();
    assert!(due_us.is_none_or(|due_us| due_us > rig.now.mono_us), "{due_us:?}");
}
