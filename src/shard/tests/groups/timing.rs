//! Leases that run out, delays, times of records; and clocks that jump.

use super::*;

#[test]
fn a_lease_runs_as_long_as_it_was_given_or_extended() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let credit = Credit { records: 2, bytes: 1 << 20 };
    let attach = Attach { at: at(id, ALICE), credit, lease_ms: 100, held: vec![] };
    let alice = rig.request(ShardRequest::Attach(attach));
    let got = rig.got(alice);
    rig.wait(99_999);
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Extend { lease_ms: 0 }), []);
    rig.settle_all(id, ALICE, vec![], credit);
    rig.wait(1);
    let again = rig.got(alice);
    assert_eq!(again.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(), [(1, 2)]);
    rig.wait(99_998);
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Extend { lease_ms: 1 }), []);
    rig.wait(1_000);
    let again = rig.got(alice);
    assert!(again.iter().any(|got| (got.offset, got.acquired) == (0, 2)), "shorter, if that is wanted");
}

#[test]
fn a_time_out_is_a_failure_only_if_the_group_says_so() {
    let mut rig = Rig::new();
    let config = GroupConfig { timeout_is_failure: false, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 2);
    rig.got(alice);
    rig.wait(30_000_000);
    let again = rig.got(alice);
    assert_eq!((again[0].acquired, again[0].failed), (2, 0));
}

#[test]
fn a_failure_is_followed_by_the_backoff_and_a_nack_by_its_delay() {
    let mut rig = Rig::new();
    let backoff = Backoff::Exponential { first_ms: 10, max_ms: 25 };
    let id = rig.group("g", GroupConfig { backoff, ..calm(GroupMode::Shared) }, GroupStart::Earliest).id;
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 100);
    for (wait_us, expected) in [(10_000, 1), (20_000, 2), (25_000, 3), (25_000, 4)] {
        let got = rig.got(alice);
        rig.settled(id, ALICE, got[0].lease(), reject());
        assert_eq!(rig.state(id).progress.delayed, 1);
        rig.wait(wait_us - 1);
        assert!(rig.replies.is_empty());
        rig.wait(1);
        assert!(matches!(&rig.replies[0].1, Reply::Delivered { delivery, .. }
            if delivery.ranges[0].failed == expected && delivery.ranges[0].first_delivery_us > 0));
    }
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[0].lease(), Verb::Nack { delay_ms: 7 });
    rig.wait(6_999);
    assert!(rig.replies.is_empty());
    rig.wait(1);
    assert_eq!(rig.got(alice)[0].failed, 4, "a nack is no failure");
}

#[test]
fn a_record_is_not_delivered_before_its_time_and_others_are_not_held_up() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let due = rig.now.wall_us + 5_000_000;
    let later = Directions { deliver_at_us: Some(due), ..Directions::default() };
    rig.append(&[plain(1), directed(2, later), plain(3)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    assert_eq!(got.iter().map(|got| got.value[0]).collect::<Vec<_>>(), [1, 3]);
    got.iter().for_each(|got| rig.ack(id, ALICE, got));
    assert_eq!((rig.state(id).progress.floor, rig.state(id).progress.delayed), (1, 1));
    rig.wait(4_999_999);
    assert!(rig.replies.is_empty());
    rig.wait(1);
    let got = rig.got(alice);
    assert_eq!((got[0].value[0], got[0].acquired), (2, 1));
    rig.ack(id, ALICE, &got[0]);
    assert_eq!(rig.state(id).progress.floor, 3);
}

#[test]
fn a_delayed_record_is_found_again_after_a_restart() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let due = 3_000_000;
    let later = Directions { deliver_at_us: Some(due), ..Directions::default() };
    rig.append(&[directed(1, later), plain(2)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    assert_eq!(got.len(), 1);
    rig.ack(id, ALICE, &got[0]);
    let mut rig = rig.restart(2);
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.wait(1_000_000);
    assert_eq!(rig.got(alice)[0].value, [1]);
}

#[test]
fn a_record_whose_time_is_over_is_skipped_and_counted() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let soon = Directions { expire_at_us: Some(rig.now.wall_us + 1000), ..Directions::default() };
    rig.append(&[directed(1, soon), directed(2, soon), plain(3)]);
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    assert_eq!(got[0].value, [1], "it is in time");
    rig.wait(1000);
    rig.settled(id, ALICE, got[0].lease(), Verb::Release);
    rig.settle_all(id, ALICE, vec![], Credit { records: 9, bytes: 0 });
    assert_eq!(rig.got(alice)[0].value, [3]);
    let progress = rig.state(id).progress;
    assert_eq!((progress.floor, progress.expired_total, progress.lag), (2, 2, 1));
}

#[test]
fn a_record_for_another_group_is_skipped() {
    let mut rig = Rig::new();
    let one = rig.group("one", calm(GroupMode::Shared), GroupStart::Earliest).id;
    let two = rig.group("two", calm(GroupMode::KeyOrdered), GroupStart::Earliest).id;
    let only = Directions { only_group: Some(two), ..Directions::default() };
    rig.append(&[directed(1, only), plain(2)]);
    let (alice, bob) = (rig.attach(one, ALICE, 9), rig.attach(two, BOB, 9));
    assert_eq!((rig.offsets_got(alice), rig.offsets_got(bob)), (vec![1], vec![0, 1]));
}

/// Leases follow the monotonic clock, times of records the wall clock.
#[test]
fn a_wall_clock_that_jumps_moves_the_times_of_records_and_no_lease() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.now.wall_us += 10_000_000_000;
    let due = rig.now.wall_us + 60_000_000;
    let later = Directions { deliver_at_us: Some(due), ..Directions::default() };
    rig.append(&[plain(1), directed(2, later)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.now.wall_us -= 5_000_000_000;
    rig.wait(29_999_999);
    assert!(rig.replies.is_empty(), "nothing is due");
    rig.ack(id, ALICE, &got[0]);
    rig.now.wall_us = due - 1;
    rig.wait(0);
    assert!(rig.replies.is_empty());
    rig.wait(1);
    assert_eq!(rig.got(alice)[0].value, [2]);
    rig.now.wall_us += 1_000_000_000;
    rig.wait(29_999_999);
    assert!(rig.replies.is_empty(), "the lease has not run out, and what was acknowledged stays so");
    rig.wait(1);
    assert_eq!(rig.offsets_got(alice), [1]);
}

#[test]
fn a_delayed_record_holds_back_those_of_its_key_and_of_an_exclusive_partition() {
    for mode in [GroupMode::KeyOrdered, GroupMode::Exclusive] {
        let mut rig = Rig::new();
        let id = rig.calm_group(mode);
        let later = Directions { deliver_at_us: Some(rig.now.wall_us + 1000), ..Directions::default() };
        let keyed = |record: Record| Record { key: Some(b"k".to_vec()), ..record };
        rig.append(&[keyed(directed(1, later)), keyed(plain(2))]);
        let alice = rig.attach(id, ALICE, 10);
        assert_eq!(rig.offsets_got(alice), NONE, "{mode}");
        rig.values(b"x");
        let free = if mode == GroupMode::KeyOrdered { vec![2] } else { vec![] };
        assert_eq!(rig.offsets_got(alice), free, "{mode}");
        rig.wait(1000);
        let got = rig.got(alice);
        assert_eq!(got[0].value, [1], "{mode}");
        rig.ack(id, ALICE, &got[0]);
        let then = rig.got(alice);
        let next = got.get(1).or(then.first()).unwrap();
        assert_eq!(next.value, [2], "{mode}");
    }
}

/// Records that one consumer has in order are looked at again while one of them waits.
#[test]
fn a_wall_clock_that_is_set_forward_does_not_shorten_a_wait_after_a_failure() {
    let mut rig = Rig::new();
    let backoff = Backoff::Fixed(1_000);
    let config = GroupConfig { backoff, ..calm(GroupMode::Exclusive) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.settled(id, ALICE, got[1].lease(), reject());
    rig.now.wall_us += 3_600_000_000;
    // The one before it comes back at once, and is looked at with what follows.
    rig.settled(id, ALICE, got[0].lease(), Verb::Release);
    assert_eq!(rig.offsets_got(alice), [0]);
    rig.wait(999_999);
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.wait(1);
    assert_eq!(rig.offsets_got(alice), [1]);
}

/// The shard slept, if there was nothing else to do.
#[test]
fn a_shard_that_has_only_a_delayed_record_says_when_it_wants_to_look_again() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let due_us = rig.now.wall_us + 500_000;
    rig.append(&[directed(1, Directions { deliver_at_us: Some(due_us), ..Directions::default() })]);
    rig.attach(id, ALICE, 0);
    rig.wait(100_000);
    // It is looked at, and nothing is answered.
    let credit = Credit { records: 10, bytes: 1 << 20 };
    rig.hand_in(ShardRequest::Settle(Settle { at: at(id, ALICE), credit, confirm: false, items: vec![] }));
    rig.run();
    let next_us = rig.shard.next_deadline().expect("a record waits");
    assert_eq!(next_us, rig.now.mono_us + 400_000);
}
