//! What a restart knows of groups, and how little it has to read.

use super::*;

impl Rig {
    /// Fills the open segment until the next one begins.
    pub(super) fn fill_segment(&mut self) {
        let last = |rig: &Rig| rig.disk.0.keys().last().copied();
        let before = last(self);
        while last(self) == before {
            self.append(&[Record { value: vec![7; 200 << 10], ..Record::default() }]);
            self.replies.clear();
        }
    }
}

#[test]
fn a_restart_ends_leases_and_counts_no_failure_and_keeps_every_confirmed_ack() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abcd");
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), reject());
    let again = rig.got(alice);
    rig.ack(id, ALICE, &got[2]);
    let mut rig = rig.restart(2);
    assert_eq!(rig.settled(id, ALICE, again[0].lease(), Verb::Ack), [(0, ErrorCode::LeaseLost)]);
    let alice = rig.attach(id, ALICE, 10);
    let seen: Vec<_> = rig.got(alice).iter().map(|got| (got.offset, got.acquired, got.failed)).collect();
    // Of the first it is on record that it failed once, of the others that they were
    // delivered; not that the first one was delivered a second time.
    assert_eq!(seen, [(0, 2, 1), (1, 2, 0), (3, 2, 0)]);
}

#[test]
fn of_one_batch_only_those_that_were_delivered_before_a_restart_are_said_to_have_been() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"x");
    rig.append(&(0..4).map(plain).collect::<Vec<_>>());
    let alice = rig.attach(id, ALICE, 3);
    let got = rig.got(alice);
    // With it, how far deliveries have come is on record.
    rig.ack(id, ALICE, &got[0]);
    let mut rig = rig.restart(2);
    let alice = rig.attach(id, ALICE, 10);
    let seen: Vec<_> = rig.got(alice).iter().map(|got| (got.offset, got.acquired)).collect();
    assert_eq!(seen, [(1, 2), (2, 2), (3, 1), (4, 1)]);
    // The same for a reset, of which each record has its part.
    rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
    rig.values(b"y");
    let seen: Vec<_> = rig.got(alice).iter().map(|got| (got.offset, got.acquired)).collect();
    assert_eq!(seen, [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3), (5, 1)]);
}

#[test]
fn a_backoff_and_the_count_of_failures_survive_a_restart() {
    let mut rig = Rig::new();
    let backoff = Backoff::Fixed(2_000);
    let config = GroupConfig { backoff, max_failures: 9, ..calm(GroupMode::KeyOrdered) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.keyed(&[("a", 1), ("a", 2), ("b", 3)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), reject());
    // Term 2 begins at two seconds by the wall clock, term 1 did at one.
    let mut rig = rig.restart(2);
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.offsets_got(alice), [2], "a and what is behind it wait");
    rig.wait(999_999);
    assert!(rig.replies.is_empty());
    rig.wait(1);
    let got = rig.got(alice);
    assert_eq!((got[0].offset, got[0].acquired, got[0].failed), (0, 2, 1));
}

#[test]
fn state_is_read_from_the_last_checkpoint_and_segments_before_it_may_go() {
    let retaining = ShardConfig { retention_bytes: Some(3 * MIN_SEGMENT_LEN), ..config() };
    let mut rig = Rig::with(retaining);
    let id = rig.calm_group(GroupMode::Shared);
    let quiet = rig.group("quiet", calm(GroupMode::Exclusive), GroupStart::Earliest).id;
    let mut acked = Vec::new();
    let alice = rig.attach(id, ALICE, 1_000);
    for _ in 0..6 {
        rig.fill_segment();
        rig.settle_all(id, ALICE, vec![], Credit { records: 100, bytes: 8 << 20 });
        for got in rig.got(alice).iter().filter(|got| got.offset % 2 == 0) {
            rig.ack(id, ALICE, got);
            acked.push(got.offset);
        }
        rig.replies.clear();
    }
    assert!(rig.shard.counters().segments <= 4, "{} segments", rig.shard.counters().segments);
    let before = (rig.state(id).progress, rig.state(quiet).progress);
    let mut rig = rig.restart(2);
    let after = (rig.state(id).progress, rig.state(quiet).progress);
    assert_eq!((before.0.lag, before.1.lag), (after.0.lag, after.1.lag));
    let alice = rig.attach(id, ALICE, 1_000);
    rig.settle_all(id, ALICE, vec![], Credit { records: 100, bytes: 60 << 20 });
    let again = rig.offsets_got(alice);
    assert!(!again.is_empty());
    assert!(again.iter().all(|offset| !acked.contains(offset)), "an ack was confirmed, and it comes again");
}

#[test]
fn records_that_retention_takes_are_expired_and_counted() {
    let retaining = ShardConfig { retention_bytes: Some(2 * MIN_SEGMENT_LEN), ..config() };
    let mut rig = Rig::with(retaining);
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    for _ in 0..4 {
        rig.fill_segment();
    }
    rig.settle_all(id, ALICE, vec![], Credit { records: 1, bytes: 0 });
    let next = rig.offsets_got(alice);
    assert!(next[0] > 1, "{next:?}");
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Ack), [(0, ErrorCode::AlreadyCompleted)]);
    let progress = rig.state(id).progress;
    assert_eq!((progress.floor, progress.expired_total), (next[0], next[0]));
}

#[test]
fn a_group_begins_at_a_time_and_is_there_when_that_is_durable() {
    let mut rig = Rig::new();
    rig.values(b"ab");
    rig.wait(1_000_000);
    let time_us = rig.now.wall_us;
    rig.values(b"c");
    let id = rig.group("g", calm(GroupMode::Shared), GroupStart::Time(time_us)).id;
    rig.auto = false;
    let create = CreateGroup {
        name: "late".into(),
        topic: "t".into(),
        start: GroupStart::End,
        or_find: true,
        config: calm(GroupMode::Shared),
        dead_letter_topic: None,
    };
    let asked = rig.request(ShardRequest::CreateGroup(create));
    let mut writes = 0;
    while !rig.pending.is_empty() {
        assert!(rig.replies.iter().all(|(to, _)| *to != asked), "its beginning is not durable");
        rig.complete(0, Ok(()));
        writes += 1;
    }
    assert!(writes >= 2, "the group, then where it begins");
    let Some((_, Reply::Group(late))) = rig.replies.pop() else { panic!("no group") };
    rig.auto = true;
    let mut rig = rig.restart(2);
    rig.values(b"d");
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.offsets_got(alice), [2, 3]);
    let bob = rig.attach(late.id, BOB, 10);
    assert_eq!(rig.offsets_got(bob), [3]);
}

#[test]
fn old_records_are_read_from_disk_for_a_group() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    rig.fill_segment();
    rig.fill_segment();
    let alice = rig.attach(id, ALICE, 1);
    rig.run();
    let got = rig.got(alice);
    assert_eq!(got[0].value, b"a");
    rig.settled(id, ALICE, got[0].lease(), reject());
    rig.settle_all(id, ALICE, vec![], Credit { records: 1, bytes: 0 });
    assert_eq!(rig.got(alice)[0].value, b"a", "once more, from there");
}

/// Each segment that it filled asked for the next one, for ever.
#[test]
fn a_checkpoint_that_is_longer_than_a_segment_is_written_once() {
    let retaining = ShardConfig { retention_bytes: Some(2 * MIN_SEGMENT_LEN), ..config() };
    let mut rig = Rig::with(retaining);
    let id =
        rig.group("g", GroupConfig { max_failures: 0, ..calm(GroupMode::Shared) }, GroupStart::Earliest).id;
    let key = crate::consumer::GroupKey { group: id, partition: 0 };
    let acks = rig.shard.state.groups.acks.get_mut(&key).expect("the group's");
    for i in 0..700_000 {
        acks.complete(2 * i + 1, 2 * i + 2, crate::consumer::How::Acked);
    }
    rig.shard.want_checkpoint();
    let pass = |rig: &mut Rig| {
        (0..500).for_each(|_| rig.wait(1_000));
        rig.shard.counters().commit_bytes
    };
    let written = pass(&mut rig);
    assert!(written > MIN_SEGMENT_LEN);
    assert_eq!(pass(&mut rig), written);
    // Others write on, and what is retained is shorter than it.
    for _ in 0..10 {
        rig.fill_segment();
    }
    let more = pass(&mut rig) - written;
    assert!(more < 10 * (MIN_SEGMENT_LEN + 2 * written), "{more} bytes");
    let rig = rig.restart(2);
    // Retention has taken the first of them.
    let acks = &rig.shard.state.groups.acks[&key];
    assert!(acks.completed().total() > 699_000, "{} are left", acks.completed().total());
    assert!(acks.is_completed(1_399_999) && !acks.is_completed(1_399_998));
}

/// Its catalog would have had no room in a footer, and the shard stood still.
#[test]
fn a_group_that_no_footer_could_describe_is_refused() {
    let mut rig = Rig::new();
    let create = |rig: &mut Rig, name: String, partitions: u32| {
        rig.request(ShardRequest::CreateTopic { name, partitions });
        matches!(rig.replies.pop(), Some((_, Reply::TopicCreated(_))))
    };
    let most = (1..=MIN_SEGMENT_LEN as u32 / 4 / 48).rev();
    assert!(most.into_iter().any(|partitions| create(&mut rig, "many".to_owned(), partitions)));
    let mut i = 0;
    while create(&mut rig, format!("one{i}"), 1) {
        i += 1;
    }
    let create = CreateGroup {
        name: "g".into(),
        topic: "t".into(),
        start: GroupStart::End,
        or_find: false,
        config: GroupConfig::default(),
        dead_letter_topic: None,
    };
    rig.request(ShardRequest::CreateGroup(create));
    assert_eq!(rig.error().error_code(), Some(ErrorCode::TooManyPartitions));
}

#[test]
fn a_checkpoint_comes_after_so_many_changes_whether_or_not_a_segment_ends() {
    let mut rig = Rig::with_segments(config(), 16 * MIN_SEGMENT_LEN);
    let config = GroupConfig { max_failures: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    let needed_from = |rig: &Rig| {
        let slot = rig.shard.state.slot(crate::consumer::GROUPS_PARTITION).expect("there are changes");
        rig.shard.state.partition(slot).start_offset
    };
    let alice = rig.attach(id, ALICE, 100_000);
    // Each of them is a change with this text, and the same for all that came before.
    let verb = || Verb::Reject { dead_letter: false, reason: "x".repeat(1000) };
    for i in 0..10 {
        rig.append(&vec![plain(i); 1000]);
        assert_eq!(needed_from(&rig), Offset(0), "after {i} MB");
        assert_eq!(rig.got(alice).len(), 1000);
        rig.settled(id, ALICE, range(1000 * u64::from(i), 1000, 1), verb());
        (0..100).for_each(|_| rig.wait(1_000));
        if i == 8 {
            break;
        }
    }
    assert!(needed_from(&rig) > Offset(0));
    assert_eq!(rig.disk.0.len(), 2, "no segment but the first one and the next have begun");
}
