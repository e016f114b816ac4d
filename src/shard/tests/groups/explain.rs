//! Why nothing is sent: nobody has to guess.

use ringbolt_wire::message::Hold;

use super::*;

impl Rig {
    fn holds(&mut self, id: GroupId) -> Vec<Hold> {
        self.state(id).holds
    }

    /// The session of an attached consumer has as much to send as it may, or less.
    fn pause(&mut self, attach: u64, pauses: bool) {
        let from = ReplyTo { core: 0, session: 1, correlation: attach };
        self.shard.handle(Event::Pause { from, pauses }, self.now);
        self.run();
    }
}

/// A backlog beside a record that waits was not explained.
#[test]
fn that_nobody_takes_records_is_said_whatever_else_waits() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 500_000), ..Directions::default() };
    rig.append(&[directed(1, later)]);
    let alice = rig.attach(id, ALICE, 1);
    assert_eq!(rig.offsets_got(alice), NONE);
    assert_eq!(rig.holds(id), [Hold::Delayed { count: 1, ms: 500 }]);
    rig.values(b"abc");
    assert_eq!(rig.offsets_got(alice), [1]);
    let leased = Hold::Leased { count: 1, ms: 30_000 };
    assert_eq!(rig.holds(id), [Hold::Delayed { count: 1, ms: 500 }, Hold::NoCredit, leased]);
    rig.request(ShardRequest::Detach(at(id, ALICE)));
    assert_eq!(rig.holds(id), [Hold::Delayed { count: 1, ms: 500 }, Hold::NoConsumer]);
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.offsets_got(alice), [1, 2, 3]);
    rig.wait(100_000);
    let leased = Hold::Leased { count: 3, ms: 29_900 };
    assert_eq!(rig.holds(id), [Hold::Delayed { count: 1, ms: 400 }, leased]);
    assert_eq!(rig.state(id).progress.oldest_age_us, 100_000);
}

#[test]
fn a_key_that_holds_up_others_is_named() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::KeyOrdered);
    rig.keyed(&[("a", 1), ("b", 2), ("a", 3), ("a", 4)]);
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.offsets_got(alice), [0, 1]);
    let leased = Hold::Leased { count: 2, ms: 30_000 };
    assert_eq!(rig.holds(id), [Hold::Key { offset: 0, count: 2 }, leased]);
}

/// Whoever is attached beside the one that has the partition was told nothing.
#[test]
fn who_has_a_partition_for_itself_is_named_to_those_who_get_nothing() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Exclusive);
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 1);
    assert_eq!(rig.offsets_got(alice), [0]);
    let (own, leased) = (Hold::Exclusive { consumer: ALICE.0 }, Hold::Leased { count: 1, ms: 30_000 });
    assert_eq!(rig.holds(id), [own, leased], "she has no credit");
    rig.attach(id, BOB, 10);
    assert_eq!(rig.holds(id), [own, leased]);
    rig.settle_all(id, ALICE, vec![], Credit { records: 9, bytes: 0 });
    let leased = Hold::Leased { count: 2, ms: 30_000 };
    assert_eq!((rig.offsets_got(alice), rig.holds(id)), (vec![1], vec![leased]));
}

#[test]
fn records_that_cannot_reach_the_dead_letter_topic_are_counted() {
    let mut rig = Rig::new();
    let config = GroupConfig { max_failures: 1, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.slow_file = Some(None);
    rig.use_up();
    rig.hand_in(ShardRequest::Settle(Settle {
        at: at(id, ALICE),
        credit: Credit::default(),
        confirm: false,
        items: vec![SettleItem { range: got[0].lease(), verb: reject() }],
    }));
    let state = rig.hand_in(ShardRequest::GroupStates(id));
    let segment = rig.slow_file.take().flatten().expect("it is wanted");
    rig.prepare(segment);
    (0..3).for_each(|_| rig.wait(1_000));
    let at = rig.replies.iter().position(|(to, _)| *to == state).expect("it is answered");
    let Reply::GroupStates(states, _) = rig.replies.remove(at).1 else { panic!("no states") };
    assert!(states[0].holds.contains(&Hold::DeadLetter { count: 1 }), "{:?}", states[0].holds);
}

#[test]
fn the_first_of_more_delayed_records_than_may_be_is_named() {
    let config = ShardConfig { max_delayed: 2, ..config() };
    let mut rig = Rig::with(config);
    let id = rig.calm_group(GroupMode::Shared);
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 500_000), ..Directions::default() };
    rig.append(&(0..3).map(|value| directed(value, later)).collect::<Vec<_>>());
    rig.attach(id, ALICE, 10);
    assert_eq!(rig.holds(id), [Hold::DelayedBound { offset: 2 }, Hold::Delayed { count: 2, ms: 500 }]);
}

/// Credit without end to who does not read was memory without end.
#[test]
fn who_does_not_read_is_sent_nothing_until_it_does_and_that_is_said() {
    for mode in [GroupMode::Shared, GroupMode::Exclusive] {
        let mut rig = Rig::new();
        let id = rig.calm_group(mode);
        rig.values(b"ab");
        let alice = rig.attach(id, ALICE, 10);
        assert_eq!(rig.offsets_got(alice), [0, 1]);
        rig.pause(alice, true);
        rig.values(b"cd");
        assert_eq!(rig.offsets_got(alice), NONE);
        let why = match mode {
            GroupMode::Exclusive => Hold::Exclusive { consumer: ALICE.0 },
            _ => Hold::NotReading,
        };
        assert_eq!(rig.holds(id), [why, Hold::Leased { count: 2, ms: 30_000 }]);
        rig.pause(alice, false);
        assert_eq!(rig.offsets_got(alice), [2, 3]);
        // Who attaches anew reads anew, whatever was before.
        rig.pause(alice, true);
        rig.values(b"e");
        let alice = rig.attach_with(id, ALICE, 10, vec![range(0, 4, 1)]);
        assert_eq!(rig.offsets_got(alice), [4]);
        // Of one that is gone nobody knows any more.
        rig.pause(alice - 1, true);
        rig.values(b"f");
        assert_eq!(rig.offsets_got(alice), [5]);
    }
}

/// The first one of the shard was named, to whichever group.
#[test]
fn a_group_is_told_of_its_own_first_record_that_waits() {
    let mut rig = Rig::new();
    let (g, h) =
        (rig.calm_group(GroupMode::Shared), rig.group("h", calm(GroupMode::Shared), GroupStart::End).id);
    let day_us = 86_400_000_000;
    let at = |rig: &Rig, us: u64| Directions {
        deliver_at_us: Some(rig.now.wall_us + us),
        ..Directions::default()
    };
    let (soon, late) = (directed(1, at(&rig, 1_000_000)), directed(2, at(&rig, 9 * day_us)));
    rig.append(&[late]);
    rig.attach(g, ALICE, 10);
    rig.request(ShardRequest::ResetGroup { group: h, to: GroupStart::End, partition: None });
    rig.append(&[soon]);
    rig.attach(h, BOB, 10);
    rig.request(ShardRequest::ResetGroup { group: g, to: GroupStart::Earliest, partition: None });
    assert_eq!(rig.holds(h), [Hold::Delayed { count: 1, ms: 1_000 }]);
    assert_eq!(rig.holds(g), [Hold::Delayed { count: 2, ms: 1_000 }]);
    rig.wait(1_000_000);
    assert_eq!(rig.holds(g)[0], Hold::Delayed { count: 1, ms: 9 * day_us / 1_000 - 1_000 });
    assert!(!rig.holds(h).iter().any(|hold| matches!(hold, Hold::Delayed { .. })));
}

#[test]
fn who_gets_records_of_a_partition_is_counted_and_who_has_it_for_itself_is_named() {
    for mode in [GroupMode::Shared, GroupMode::Exclusive] {
        let mut rig = Rig::new();
        let id = rig.calm_group(mode);
        let who = |rig: &mut Rig| {
            let progress = rig.state(id).progress;
            (progress.consumers, progress.holder)
        };
        rig.values(b"a");
        assert_eq!(who(&mut rig), (0, 0));
        rig.attach(id, ALICE, 10);
        rig.attach(id, BOB, 10);
        let is_exclusive = mode == GroupMode::Exclusive;
        assert_eq!(who(&mut rig), if is_exclusive { (1, ALICE.0) } else { (2, 0) });
        rig.request(ShardRequest::Detach(at(id, ALICE)));
        assert_eq!(who(&mut rig), if is_exclusive { (1, BOB.0) } else { (1, 0) });
    }
}
