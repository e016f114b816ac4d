//! While the disk is full: nothing new happens to groups, and what has happened takes no
//! more memory however long that lasts.

use ringbolt_wire::message::Hold;

use super::*;

fn code_of(rig: &mut Rig, request: u64) -> Option<ErrorCode> {
    let at = rig.replies.iter().position(|(to, _)| *to == request).expect("it is answered");
    match rig.replies.remove(at).1 {
        Reply::Error(error) => error.error_code(),
        other => panic!("not refused: {other:?}"),
    }
}

/// A group of which Alice has three records, and there is no room for what becomes of
/// them.
fn full() -> (Rig, GroupId, Vec<Got>) {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 3);
    let got = rig.got(alice);
    assert_eq!(got.len(), 3);
    rig.fill_up();
    (rig, id, got)
}

#[test]
fn leases_do_not_run_out_while_nobody_could_acknowledge_and_their_holders_are_heard_first() {
    let (mut rig, id, got) = full();
    let refused = rig.settle(id, ALICE, got[0].lease(), Verb::Ack);
    assert_eq!(code_of(&mut rig, refused), Some(ErrorCode::DiskFull));
    (0..10).for_each(|_| rig.wait(30_000_000));
    assert_eq!(rig.state(id).progress.leased, 3);
    rig.disk_full = false;
    rig.wait(1_000_000);
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Ack), []);
    rig.wait(1_999_000);
    assert_eq!(rig.settled(id, ALICE, got[1].lease(), Verb::Ack), []);
    rig.wait(2_000);
    assert_eq!(rig.settled(id, ALICE, got[2].lease(), Verb::Ack), [(2, ErrorCode::LeaseLost)]);
    assert_eq!(rig.state(id).progress.failed_total, 1);
}

#[test]
fn what_consumers_do_all_the_same_takes_no_more_memory_the_longer_it_lasts() {
    let (mut rig, id, _) = full();
    // They come and go, and want records.
    for _ in 0..3 {
        rig.attach(id, ALICE, 100);
        rig.receive(id, BOB, 100, 10);
        rig.wait(40_000_000);
    }
    let before = rig.shard.groups.changes.len();
    assert!(before > 0, "the leases were given back");
    for _ in 0..1_000 {
        let (alice, bob) = (rig.attach(id, ALICE, 100), rig.receive(id, BOB, 100, 10));
        rig.wait(40_000_000);
        assert!(rig.got(alice).is_empty() && rig.offsets_got(bob).is_empty());
    }
    assert_eq!(rig.shard.groups.changes.len(), before);
    rig.disk_full = false;
    let alice = rig.attach(id, ALICE, 3);
    rig.wait(1_000_000);
    assert_eq!(rig.offsets_got(alice), [0, 1, 2]);
}

#[test]
fn a_reset_is_refused_and_the_state_of_a_group_is_told_and_says_why() {
    let (mut rig, id, _) = full();
    let reset =
        rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
    assert_eq!(code_of(&mut rig, reset), Some(ErrorCode::DiskFull));
    // There is something that waits for its place in the log.
    rig.request(ShardRequest::Detach(at(id, ALICE)));
    rig.replies.clear();
    let state = rig.state(id);
    assert_eq!((state.progress.leased, state.progress.ready), (0, 3));
    assert!(state.holds.contains(&Hold::DiskFull), "{:?}", state.holds);
    rig.disk_full = false;
    rig.wait(2_000_000);
    assert!(!rig.state(id).holds.contains(&Hold::DiskFull));
}

/// The disk has room again, and the file takes its time: until it is there nobody can be
/// heard.
#[test]
fn leases_last_until_the_first_segment_after_a_full_disk_is_there() {
    let (mut rig, id, got) = full();
    rig.slow_file = Some(None);
    rig.disk_full = false;
    (0..100).for_each(|_| rig.wait(1_000_000));
    let refused = rig.settle(id, ALICE, got[0].lease(), Verb::Ack);
    assert_eq!(code_of(&mut rig, refused), Some(ErrorCode::DiskFull));
    let segment = rig.slow_file.take().flatten().expect("it is wanted");
    rig.prepare(segment);
    rig.wait(1_000_000);
    got.iter().for_each(|got| rig.ack(id, ALICE, got));
}

/// Acknowledgements were refused although the open segment had room for millions.
#[test]
fn there_may_be_room_for_acknowledgements_when_there_is_none_for_a_segment() {
    let config = ShardConfig { commits_in_flight: 1, ..config() };
    let mut rig = Rig::with(config);
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 3);
    let got = rig.got(alice);
    rig.disk_full = true;
    let before = rig.shard.segments.open.map(|open| open.segment);
    while rig.shard.segments.open.map(|open| open.segment) == before {
        assert!(!rig.is_refused(200 << 10));
    }
    assert!(rig.shard.segments.disk_is_full());
    rig.ack(id, ALICE, &got[0]);
}

/// Files take their time, and consumers give back what they are sent, again and again.
#[test]
fn changes_that_wait_for_room_are_bounded_and_delivery_goes_on_when_they_are_in_the_log() {
    let mut rig = Rig::new();
    let id = rig.group("g", GroupConfig { max_failures: 0, ..calm(GroupMode::Shared) }, GroupStart::End).id;
    rig.append(&(0..250).map(plain).collect::<Vec<_>>());
    rig.slow_file = Some(None);
    rig.use_up();
    let alice = rig.attach(id, ALICE, 1_000_000);
    let mut rounds = 0;
    loop {
        rig.wait(1);
        let got = rig.got(alice);
        if got.is_empty() {
            break;
        }
        let items = got.iter().map(|got| SettleItem { range: got.lease(), verb: Verb::Release });
        rig.settle_all(id, ALICE, items.collect(), Credit { records: 250, bytes: 1 << 19 });
        rounds += 1;
        assert!(rounds < 10_000, "{} bytes wait", rig.shard.groups.changes.len());
    }
    let refused = rig.settle(id, ALICE, range(0, 1, 1), Verb::Ack);
    assert_eq!(code_of(&mut rig, refused), Some(ErrorCode::Overloaded));
    let segment = rig.slow_file.take().flatten().expect("it is wanted");
    rig.prepare(segment);
    rig.run();
    // It says itself when it wants to go on.
    while let Some(due_us) = rig.shard.next_deadline().filter(|due_us| *due_us <= rig.now.mono_us + 1_000) {
        rig.wait(due_us.saturating_sub(rig.now.mono_us).max(1));
    }
    assert!(rig.shard.groups.changes.is_empty());
    assert!(
        rig.shard.leases_last_until_us() < rig.now.mono_us + 1_000,
        "one peer does not prolong others' leases"
    );
    assert!(rig.got(alice).len() >= 250);
}
