//! Setting groups back, more than once at a time.

use super::super::damage::{sealed, time_of};
use super::*;

fn reset(rig: &mut Rig, id: GroupId, to: GroupStart) -> u64 {
    rig.hand_in(ShardRequest::ResetGroup { group: id, to, partition: None })
}

/// A group on a topic whose records are on disk alone.
fn cold() -> (Rig, GroupId) {
    let (mut rig, _) = sealed();
    let id = rig.calm_group(GroupMode::Shared);
    (rig, id)
}

/// The answer to the first look-up was taken for that of the second one as well, which
/// then took back what was acknowledged since.
#[test]
fn of_two_resets_to_a_time_the_second_one_counts_and_each_is_answered_once() {
    let (mut rig, id) = cold();
    let (first, second) = (
        reset(&mut rig, id, GroupStart::Time(time_of(3))),
        reset(&mut rig, id, GroupStart::Time(time_of(7))),
    );
    assert!(rig.replies.is_empty(), "both are read from disk");
    assert!(rig.shard.fetches.len() == 1, "nobody wants to know the first time any more");
    rig.auto = false;
    rig.run();
    assert!(rig.replies.is_empty(), "neither is durable");
    rig.auto = true;
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    rig.run();
    let answered: Vec<u64> = rig.replies.iter().map(|(to, _)| *to).collect();
    assert_eq!(answered, [first, second]);
    assert!(rig.replies.iter().all(|(_, reply)| matches!(reply, Reply::GroupReset)));
    rig.replies.clear();
    assert_eq!(rig.state(id).progress.floor, 7);
    let alice = rig.attach(id, ALICE, 2);
    assert_eq!(rig.offsets_got(alice), [7, 8]);
    let mut rig = rig.restart(3);
    assert_eq!(rig.state(id).progress.floor, 7);
}

/// It came late, and moved the group once more.
#[test]
fn a_reset_to_a_time_does_not_come_behind_one_that_was_asked_for_later() {
    let (mut rig, id) = cold();
    let first = reset(&mut rig, id, GroupStart::Time(time_of(3)));
    let second = reset(&mut rig, id, GroupStart::Offset(Offset(9)));
    rig.run();
    let mut answered: Vec<u64> = std::mem::take(&mut rig.replies).into_iter().map(|(to, _)| to).collect();
    answered.sort_unstable();
    assert_eq!(answered, [first, second]);
    assert_eq!(rig.state(id).progress.floor, 9);
}

/// Each partition that was set back looked through all that waits.
#[test]
fn what_waited_before_a_reset_is_forgotten_and_does_not_count() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 3_600_000_000), ..Directions::default() };
    rig.append(&(0..100).map(|value| directed(value, later)).collect::<Vec<_>>());
    rig.values(b"x");
    rig.attach(id, ALICE, 1_000);
    for _ in 0..5 {
        rig.wait(1);
        assert_eq!(rig.state(id).progress.delayed, 100);
        assert_eq!(rig.shard.groups.dated.len(), 100);
        reset(&mut rig, id, GroupStart::Earliest);
        rig.run();
    }
    reset(&mut rig, id, GroupStart::End);
    rig.run();
    assert_eq!((rig.state(id).progress.delayed, rig.shard.groups.dated.len()), (0, 0));
    rig.wait(3_600_000_000);
    assert_eq!(rig.state(id).progress.floor, 101);
}

/// An acknowledgement from before it settled what was delivered anew.
#[test]
fn no_lease_of_before_a_reset_passes_for_one_of_afterwards() {
    for resets in 1..4 {
        let mut rig = Rig::new();
        let id = rig.calm_group(GroupMode::Shared);
        rig.values(b"ab");
        let alice = rig.attach(id, ALICE, 1_000);
        let mut old = rig.got(alice);
        // One was delivered more often than the other.
        rig.settled(id, ALICE, old[1].lease(), Verb::Release);
        old.extend(rig.got(alice));
        for _ in 0..resets {
            rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
            for lease in &old {
                let refused = [(lease.offset, ErrorCode::LeaseLost)];
                assert_eq!(rig.settled(id, ALICE, lease.lease(), Verb::Ack), refused);
            }
            old.extend(rig.got(alice));
        }
        assert_eq!(rig.state(id).progress.lag, 2);
    }
}

/// What had been delivered behind a record that came back was not counted as delivered.
#[test]
fn the_same_where_one_consumer_has_records_in_order_and_the_first_has_come_back() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Exclusive);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 3);
    let old = rig.got(alice);
    // It waits, and so do those behind it.
    rig.settled(id, ALICE, old[0].lease(), Verb::Nack { delay_ms: 60_000 });
    rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
    rig.settle_all(id, ALICE, vec![], Credit { records: 3, bytes: 0 });
    let again = rig.got(alice);
    assert_eq!(
        again.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(),
        [(0, 2), (1, 2), (2, 2)]
    );
}

/// A key's later record was delivered, and after a crash the earlier one.
#[test]
fn nothing_is_delivered_from_where_a_group_was_set_before_that_is_durable() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::KeyOrdered);
    rig.keyed(&[("a", 1), ("a", 2)]);
    let alice = rig.attach(id, ALICE, 1);
    assert_eq!(rig.offsets_got(alice), [0]);
    rig.auto = false;
    rig.settle_all(id, ALICE, vec![], Credit { records: 1, bytes: 0 });
    reset(&mut rig, id, GroupStart::Offset(Offset(1)));
    rig.run();
    assert_eq!(rig.offsets_got(alice), NONE);
    while !rig.pending.is_empty() {
        rig.complete(0, Ok(()));
    }
    assert_eq!(rig.offsets_got(alice), [1]);
}

/// What it was given since was acknowledged with it, though it had meant what it had before.
#[test]
fn a_cumulative_ack_of_before_a_reset_or_a_restart_acknowledges_nothing() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 100);
    assert_eq!(rig.offsets_got(alice), [0, 1, 2]);
    rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
    let again = rig.got(alice);
    assert_eq!(
        again.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(),
        [(0, 2), (1, 2), (2, 2)]
    );
    assert_eq!(rig.settled(id, ALICE, range(2, 1, 1), Verb::AckUpTo), [(2, ErrorCode::LeaseLost)]);
    assert_eq!(rig.state(id).progress.floor, 0);
    assert_eq!(rig.settled(id, ALICE, range(1, 1, 2), Verb::AckUpTo), []);
    assert_eq!(rig.state(id).progress.floor, 2);
    let mut rig = rig.restart(2);
    let alice = rig.attach(id, ALICE, 100);
    let got = rig.got(alice);
    assert_eq!((got[0].offset, got[0].acquired), (2, 2));
    assert_eq!(rig.settled(id, ALICE, range(2, 1, 1), Verb::AckUpTo), [(2, ErrorCode::LeaseLost)]);
    assert_eq!(rig.settled(id, ALICE, range(2, 1, 2), Verb::AckUpTo), []);
    assert_eq!(rig.state(id).progress.floor, 3);
}
