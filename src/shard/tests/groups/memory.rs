//! What groups take of the broker's memory is bounded, and the bound holds nobody up for
//! good.

use ringbolt_wire::message::Hold;

use super::*;
use crate::consumer::groups::{KEYED_DELAYED, OPEN_COST, OWN_OPEN};

/// Open records that all groups may have.
const MOST: usize = 200;

impl Rig {
    /// A shard with this bound, a topic of so many records, and two groups.
    fn bounded(mode: GroupMode, records: u8) -> (Rig, GroupId, GroupId) {
        let mut rig = Rig::with(ShardConfig { max_open: MOST, ..config() });
        let (g, h) = (rig.calm_group(mode), rig.group("h", calm(mode), GroupStart::Earliest).id);
        let record = |value| Record { key: Some(vec![value]), ..plain(value) };
        if records > 0 {
            rig.append(&(0..records).map(record).collect::<Vec<_>>());
        }
        (rig, g, h)
    }

    /// Whether the group is said to wait for memory.
    fn waits_for_memory(&mut self, id: GroupId) -> bool {
        self.state(id).holds.iter().any(|hold| matches!(hold, Hold::MemoryBound { .. }))
    }
}

#[test]
fn all_groups_together_have_no_more_open_records_than_may_be_and_each_has_some() {
    for mode in [GroupMode::Shared, GroupMode::KeyOrdered, GroupMode::Exclusive] {
        let (mut rig, g, h) = Rig::bounded(mode, 250);
        let (alice, bob) = (rig.attach(g, ALICE, 1_000), rig.attach(h, BOB, 1_000));
        let (of_alice, of_bob) = (rig.got(alice), rig.got(bob));
        assert_eq!((of_alice.len(), of_bob.len()), (MOST, OWN_OPEN), "{mode:?}");
        assert!(rig.waits_for_memory(g) && rig.waits_for_memory(h));
        // One that comes back is delivered all the same.
        assert_eq!(rig.settled(g, ALICE, of_alice[0].lease(), reject()), []);
        let again = rig.got(alice);
        assert_eq!(again[0].offset, 0, "{mode:?}");
    }
}

#[test]
fn whoever_waited_for_others_records_goes_on_when_they_are_completed() {
    let (mut rig, g, h) = Rig::bounded(GroupMode::Shared, 250);
    let (alice, bob) = (rig.attach(g, ALICE, 1_000), rig.attach(h, BOB, 1_000));
    let (mut of_alice, mut of_bob) = (rig.got(alice), rig.got(bob));
    // Only Alice does anything, until there is room for Bob.
    of_alice.iter().for_each(|got| rig.ack(g, ALICE, got));
    rig.wait(1);
    of_bob.extend(rig.got(bob));
    assert!(of_bob.len() > OWN_OPEN, "{} records came", of_bob.len());
    of_bob.iter().for_each(|got| rig.ack(h, BOB, got));
    rig.wait(1);
    of_alice.extend(rig.got(alice));
    of_bob.extend(rig.got(bob));
    let offsets = |got: &[Got]| got.iter().map(|got| got.offset).collect::<Vec<_>>();
    assert_eq!((offsets(&of_alice), offsets(&of_bob)), ((0..250).collect(), (0..250).collect()));
    assert!(!rig.waits_for_memory(g) && !rig.waits_for_memory(h));
}

/// Records that wait for their own time are not open, until it has come.
#[test]
fn records_whose_time_has_come_count_as_open() {
    let (mut rig, g, h) = Rig::bounded(GroupMode::Shared, 0);
    let at = rig.now.wall_us + 1_000_000;
    let delayed = |value| {
        let mut headers = Vec::new();
        Directions { deliver_at_us: Some(at), ..Directions::default() }.put_headers(&mut headers);
        Record { headers, ..plain(value) }
    };
    rig.append(&(0..MOST as u8).map(delayed).collect::<Vec<_>>());
    rig.append(&(0..100).map(plain).collect::<Vec<_>>());
    let alice = rig.attach(g, ALICE, 100);
    assert_eq!(rig.got(alice).len(), 100, "those behind the delayed ones");
    rig.wait(2_000_000);
    let bob = rig.attach(h, BOB, 1_000);
    assert_eq!(rig.got(bob).len(), OWN_OPEN);
}

/// As many as the share of half a gibibyte lets be.
#[test]
fn thousands_of_groups_and_a_hundred_thousand_leases() {
    const GROUPS: usize = 2_000;
    const LEASES: usize = 100_000;
    let most = 512 << 20 >> 4 >> OPEN_COST.ilog2();
    assert!(most >= LEASES);
    let mut rig = Rig::with(ShardConfig { max_open: most, ..config() });
    rig.append(&(0..100).map(plain).collect::<Vec<_>>());
    let config = GroupConfig { max_failures: 0, ..calm(GroupMode::Shared) };
    let mut ids = Vec::new();
    for i in 0..GROUPS {
        ids.push(rig.group(&format!("g{i}"), config, GroupStart::Earliest).id);
    }
    let mut taken = 0;
    for id in &ids {
        let asked = rig.receive(*id, ALICE, (LEASES / GROUPS) as u64, 10);
        rig.wait(1);
        taken += rig.got(asked).len();
    }
    assert_eq!((taken, rig.shard.groups.leased(), rig.shard.groups.open()), (LEASES, LEASES, LEASES));
    for id in &ids {
        assert_eq!(rig.settled(*id, ALICE, range(0, (LEASES / GROUPS) as u32, 1), Verb::Ack), []);
    }
    assert_eq!((rig.shard.groups.leased(), rig.shard.groups.open(), rig.shard.groups.consumers), (0, 0, 0));
}

/// Attached or with a record, each is remembered.
#[test]
fn consumers_beyond_what_a_shard_remembers_are_refused_and_come_again_when_others_have_left() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    for number in 0..crate::limits::MAX_CONSUMERS as u64 {
        rig.attach(id, ConsumerId(number + 1), 1);
    }
    rig.replies.clear();
    rig.attach(id, ConsumerId(u64::MAX), 1);
    assert_eq!(rig.error().error_code(), Some(ErrorCode::TooManyGroups));
    rig.request(ShardRequest::Detach(at(id, ConsumerId(7))));
    rig.replies.clear();
    rig.attach(id, ConsumerId(u64::MAX), 1);
    assert!(rig.replies.is_empty(), "{:?}", rig.replies);
}

/// Of 16,384 records in one range each had its own, of a kilobyte.
#[test]
fn the_reason_for_many_records_is_kept_once() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.append(&(0..250).map(plain).collect::<Vec<_>>());
    rig.attach(id, ALICE, 250);
    let verb = Verb::Reject { dead_letter: true, reason: "x".repeat(1000) };
    let items = vec![SettleItem { range: range(0, 250, 1), verb }];
    let settle = Settle { at: at(id, ALICE), credit: Credit::default(), confirm: true, items };
    rig.hand_in(ShardRequest::Settle(settle));
    let acks = &rig.shard.state.groups.acks[&crate::consumer::GroupKey { group: id, partition: 0 }];
    let reason =
        |offset| acks.attempts(offset).and_then(|known| known.condemned.clone()).expect("it is condemned");
    assert!((0..250).all(|offset| std::sync::Arc::ptr_eq(&reason(offset), &reason(0))));
}

/// They were not open, and how it went with them was remembered all the same.
#[test]
fn what_an_exclusive_consumer_gave_back_counts_until_it_is_completed() {
    let (mut rig, g, h) = Rig::bounded(GroupMode::Exclusive, 250);
    let alice = rig.attach(g, ALICE, 1_000);
    assert_eq!(rig.got(alice).len(), MOST);
    rig.request(ShardRequest::Detach(at(g, ALICE)));
    rig.replies.clear();
    let bob = rig.attach(h, BOB, 1_000);
    assert_eq!(rig.got(bob).len(), OWN_OPEN, "there is no room for more than each has");
    // Whoever gave them back gets them again, as far as there is room.
    let alice = rig.attach(g, ALICE, 1_000);
    let mut done = 0;
    for _ in 0..10 {
        let got = rig.got(alice);
        got.iter().for_each(|got| rig.ack(g, ALICE, got));
        done += got.len();
        rig.wait(1);
    }
    assert_eq!(done, 250);
    assert!(rig.got(bob).len() > 100, "there is room now");
}

/// Once their keys were free they waited, as many as there were.
#[test]
fn delayed_records_that_were_behind_their_keys_are_bounded_as_well() {
    let mut rig = Rig::with(ShardConfig { max_delayed: 2 * KEYED_DELAYED, ..config() });
    let id = rig.calm_group(GroupMode::KeyOrdered);
    let due_us = Some(rig.now.wall_us + 1_000_000_000);
    for key in [b"a", b"b", b"c", b"d"] {
        let later = directed(1, Directions { deliver_at_us: due_us, ..Directions::default() });
        rig.append(&[plain(0), later].map(|record| Record { key: Some(key.to_vec()), ..record }));
    }
    let alice = rig.attach(id, ALICE, 100);
    let first = rig.got(alice);
    first.iter().for_each(|got| rig.ack(id, ALICE, got));
    rig.wait(1);
    let state = rig.state(id);
    assert_eq!(state.progress.delayed, 4, "two of them until others need not wait");
    assert!(state.holds.contains(&Hold::DelayedBound { offset: 5 }), "{:?}", state.holds);
    assert_eq!(rig.offsets_got(alice), NONE);
    let mut later = Vec::new();
    rig.wait(1_000_000_000);
    for _ in 0..3 {
        rig.wait(1_000);
        later.extend(rig.offsets_got(alice));
    }
    later.sort_unstable();
    assert_eq!(later, [1, 3, 5, 7]);
}

/// What is known of their keys was not counted.
#[test]
fn delayed_records_of_a_key_ordered_group_count_for_what_their_keys_take() {
    for (mode, waiting) in [(GroupMode::Shared, 12), (GroupMode::KeyOrdered, 12 / KEYED_DELAYED)] {
        let mut rig = Rig::with(ShardConfig { max_delayed: 12, ..config() });
        let id = rig.calm_group(mode);
        let later = Directions { deliver_at_us: Some(rig.now.wall_us + 500_000), ..Directions::default() };
        let record = |value| Record { key: Some(vec![value]), ..directed(value, later) };
        rig.append(&(0..20).map(record).collect::<Vec<_>>());
        let alice = rig.attach(id, ALICE, 100);
        assert_eq!(rig.state(id).progress.delayed, waiting as u64, "{mode:?}");
        // Those that a reset forgets make room, and those whose time has come.
        let reset = ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None };
        rig.request(reset);
        assert_eq!(rig.state(id).progress.delayed, waiting as u64, "{mode:?}");
        rig.wait(600_000);
        let mut got = rig.offsets_got(alice);
        got.sort_unstable();
        assert_eq!(got, (0..20).collect::<Vec<u64>>(), "{mode:?}");
        assert_eq!(rig.state(id).progress.delayed, 0);
    }
}

/// Each record that waits had a completed range before it, which nobody counted.
#[test]
fn completed_ranges_between_delayed_records_count_with_them() {
    let config = ShardConfig { max_delayed: 20, ..config() };
    let mut rig = Rig::with(config.clone());
    let id = rig.calm_group(GroupMode::Shared);
    let alice = rig.attach(id, ALICE, 1_000);
    let later = Directions { deliver_at_us: Some(rig.now.wall_us + 5_000_000), ..Directions::default() };
    let mut others = Vec::new();
    for _ in 0..20 {
        rig.append(&[directed(1, later), plain(0)]);
        let got = rig.got(alice);
        got.iter().for_each(|got| rig.ack(id, ALICE, got));
        others.extend(got.iter().map(|got| got.offset));
    }
    assert_eq!(others, (0..10).map(|i| 2 * i + 1).collect::<Vec<u64>>(), "until there is no room");
    let state = rig.state(id);
    assert_eq!((state.progress.delayed, &state.holds[0]), (10, &Hold::DelayedBound { offset: 20 }));
    // After a restart as well, and it goes on when their time has come.
    let correlation = rig.correlation;
    let mut rig = Rig::start_with(config, rig.disk, 2).expect("a good log");
    rig.correlation = correlation;
    let alice = rig.attach(id, ALICE, 1_000);
    assert_eq!(rig.state(id).progress.delayed, 10);
    let mut rest = Vec::new();
    for _ in 0..50 {
        rig.wait(100_000);
        let got = rig.got(alice);
        got.iter().for_each(|got| rig.ack(id, ALICE, got));
        rest.extend(got.iter().map(|got| got.offset));
    }
    rest.extend(others);
    rest.sort_unstable();
    assert_eq!(rest, (0..40).collect::<Vec<u64>>());
}

/// They took the places of others for ever, which nobody saw.
#[test]
fn delayed_records_that_retention_has_taken_make_room_for_others() {
    for mode in [GroupMode::Shared, GroupMode::KeyOrdered] {
        let most = 2 * if mode == GroupMode::KeyOrdered { KEYED_DELAYED } else { 1 };
        let retaining =
            ShardConfig { max_delayed: most, retention_bytes: Some(2 * MIN_SEGMENT_LEN), ..config() };
        let mut rig = Rig::with(retaining);
        let id = rig.calm_group(mode);
        let alice = rig.attach(id, ALICE, 1_000);
        let in_s = |rig: &Rig, s: u64| Directions {
            deliver_at_us: Some(rig.now.wall_us + s * 1_000_000),
            ..Directions::default()
        };
        let keyed = |key: u8, record: Record| Record { key: Some(vec![key]), ..record };
        let far = in_s(&rig, 1_000_000_000);
        rig.append(&[keyed(1, directed(1, far)), keyed(2, directed(2, far))]);
        assert_eq!(rig.state(id).progress.delayed, 2, "{mode:?}");
        for _ in 0..4 {
            rig.fill_segment();
            rig.settle_all(id, ALICE, vec![], Credit { records: 1_000, bytes: 8 << 20 });
            rig.got(alice).iter().for_each(|got| rig.ack(id, ALICE, got));
        }
        assert_eq!(rig.state(id).progress.delayed, 0, "{mode:?}: they are gone");
        let soon = in_s(&rig, 1);
        rig.append(&[keyed(3, directed(3, soon)), keyed(4, directed(4, soon))]);
        rig.wait(1);
        assert_eq!(rig.state(id).progress.delayed, 2, "{mode:?}");
        rig.got(alice);
        rig.wait(1_000_000);
        assert_eq!(rig.got(alice).len(), 2, "{mode:?}");
    }
}
