//! What consumers should not do.

use super::*;

#[test]
fn an_ack_of_what_is_not_ones_own_is_told_so_and_changes_nothing() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 2);
    let got = rig.got(alice);
    for (who, range, expected) in [
        (BOB, range(0, 1, 1), vec![(0, ErrorCode::LeaseLost)]),
        (ALICE, range(0, 1, 2), vec![(0, ErrorCode::LeaseLost)]),
        (ALICE, range(2, 1, 1), vec![(2, ErrorCode::NotDelivered)]),
        (
            ALICE,
            range(2, 3, 1),
            vec![
                (2, ErrorCode::NotDelivered),
                (3, ErrorCode::OffsetOutOfRange),
                (4, ErrorCode::OffsetOutOfRange),
            ],
        ),
        (ALICE, range(u64::MAX - 1, 1, 1), vec![(u64::MAX - 1, ErrorCode::OffsetOutOfRange)]),
        (ALICE, LeaseRange { partition: 7, ..range(0, 1, 1) }, vec![(0, ErrorCode::UnknownPartition)]),
    ] {
        assert_eq!(rig.settled(id, who, range, Verb::Ack), expected);
    }
    assert_eq!(rig.state(id).progress.floor, 0);
    rig.ack(id, ALICE, &got[0]);
    assert_eq!(rig.settled(id, ALICE, range(0, 2, 1), Verb::Ack), [(0, ErrorCode::AlreadyCompleted)]);
    assert_eq!(rig.state(id).progress.floor, 2);
    for verb in [reject(), Verb::Release, Verb::Nack { delay_ms: 0 }, Verb::Extend { lease_ms: 9 }] {
        assert_eq!(rig.settled(id, ALICE, got[0].lease(), verb), [(0, ErrorCode::AlreadyCompleted)]);
    }
    let not_his = [(2, ErrorCode::NotDelivered)];
    assert_eq!(rig.settled(id, BOB, range(2, 1, 1), Verb::AckUpTo), not_his);
    assert_eq!(rig.state(id).progress.floor, 2);
}

/// The consumer that lost the record must not complete it for the one that has it.
#[test]
fn a_late_ack_does_not_acknowledge_for_the_next_holder() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 1);
    let old = rig.got(alice);
    let bob = rig.attach(id, BOB, 1);
    rig.wait(30_000_000);
    let new = rig.got(bob);
    assert_eq!((new[0].offset, new[0].acquired, new[0].failed), (0, 2, 1));
    assert_eq!(rig.settled(id, ALICE, old[0].lease(), Verb::Ack), [(0, ErrorCode::LeaseLost)]);
    assert_eq!(rig.settled(id, ALICE, new[0].lease(), Verb::Ack), [(0, ErrorCode::LeaseLost)]);
    rig.ack(id, BOB, &new[0]);
}

#[test]
fn an_ack_up_to_a_record_is_of_those_that_the_consumer_has() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abcd");
    let alice = rig.attach(id, ALICE, 2);
    let bob = rig.attach(id, BOB, 2);
    let (of_alice, of_bob) = (rig.got(alice), rig.got(bob));
    assert_eq!((of_alice[1].offset, of_bob[0].offset), (1, 2));
    assert_eq!(rig.settled(id, BOB, of_bob[1].lease(), Verb::AckUpTo), []);
    let progress = rig.state(id).progress;
    assert_eq!((progress.floor, progress.lag, progress.leased), (0, 2, 2));
    let far = [(99, ErrorCode::OffsetOutOfRange)];
    assert_eq!(rig.settled(id, ALICE, range(0, 100, 1), Verb::AckUpTo), far);
    let others = [(3, ErrorCode::AlreadyCompleted)];
    assert_eq!(rig.settled(id, ALICE, of_bob[1].lease(), Verb::AckUpTo), others);
    assert_eq!(rig.settled(id, ALICE, range(1, 1, 2), Verb::AckUpTo), [(1, ErrorCode::LeaseLost)]);
    assert_eq!(rig.state(id).progress.floor, 0, "none of them meant what she has");
    assert_eq!(rig.settled(id, ALICE, of_alice[1].lease(), Verb::AckUpTo), []);
    assert_eq!(rig.state(id).progress.floor, 4);
}

#[test]
fn acks_in_reverse_order_are_all_kept() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let records: Vec<Record> = (0..200).map(|i| plain(i as u8)).collect();
    rig.append(&records);
    let alice = rig.attach(id, ALICE, 200);
    let got = rig.got(alice);
    for got in got.iter().skip(1).rev() {
        rig.ack(id, ALICE, got);
    }
    let mut rig = rig.restart(2);
    assert_eq!((rig.state(id).progress.floor, rig.state(id).progress.lag), (0, 1));
    let alice = rig.attach(id, ALICE, 200);
    let left = rig.got(alice);
    assert_eq!(left.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(), [(0, 2)]);
    rig.ack(id, ALICE, &left[0]);
    assert_eq!(rig.state(id).progress.floor, 200);
}

#[test]
fn groups_and_consumers_that_are_not_there_are_told_so() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let none = GroupId(99);
    rig.attach(none, ALICE, 1);
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.receive(none, ALICE, 1, 0);
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.settle(none, ALICE, range(0, 1, 1), Verb::Ack);
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.request(ShardRequest::Detach(at(none, ALICE)));
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.request(ShardRequest::Detach(at(id, ALICE)));
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownConsumer));
    rig.settle_all(id, ALICE, vec![], Credit { records: 1, bytes: 1 });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownConsumer));
    rig.request(ShardRequest::GroupStates(none));
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.request(ShardRequest::LookUpGroup { name: "none".into() });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
    rig.request(ShardRequest::DeleteGroup { name: "none".into() });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::UnknownGroup));
}

#[test]
fn credit_beyond_what_there_may_be_is_refused_and_nothing_of_the_request_is_done() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let max = ringbolt_wire::message::MAX_CREDIT_RECORDS;
    let alice = rig.attach(id, ALICE, max);
    let got = rig.got(alice);
    let ack = SettleItem { range: got[0].lease(), verb: Verb::Ack };
    rig.settle_all(id, ALICE, vec![ack], Credit { records: 2, bytes: 0 });
    assert_eq!(rig.error().error_code(), Some(ErrorCode::InvalidRequest));
    assert_eq!(rig.state(id).progress.lag, 1, "nothing was acknowledged");
}

#[test]
fn a_settle_of_too_many_records_is_refused_as_a_whole() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 1);
    rig.got(alice);
    rig.settle(id, ALICE, range(0, crate::limits::MAX_SETTLE_RECORDS as u32 + 1, 1), Verb::Ack);
    assert_eq!(rig.error().error_code(), Some(ErrorCode::InvalidRequest));
    assert_eq!(rig.state(id).progress.lag, 1);
}

#[test]
fn who_wants_no_answer_gets_none() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 1);
    let got = rig.got(alice);
    for (id, range) in [(id, got[0].lease()), (GroupId(9), got[0].lease()), (id, range(5, 1, 1))] {
        let items = vec![SettleItem { range, verb: Verb::Ack }];
        let settle = Settle { at: at(id, ALICE), credit: Credit::default(), confirm: false, items };
        rig.request(ShardRequest::Settle(settle));
    }
    assert!(rig.replies.is_empty());
    assert_eq!(rig.state(id).progress.floor, 1, "it was done all the same");
}

#[test]
fn those_attached_to_a_group_that_is_deleted_are_told_and_so_are_they_when_its_topic_is() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let other = rig.group("other", calm(GroupMode::Exclusive), GroupStart::Earliest).id;
    let (one, two) = (rig.attach(id, ALICE, 1), rig.receive(other, ALICE, 1, 10_000));
    rig.request(ShardRequest::DeleteGroup { name: "g".into() });
    let replies = std::mem::take(&mut rig.replies);
    assert!(matches!(&replies[0], (to, Reply::Error(error))
        if *to == one && error.error_code() == Some(ErrorCode::UnknownGroup)));
    assert!(matches!(replies[1].1, Reply::GroupDeleted));
    rig.request(ShardRequest::DeleteTopic { name: "t".into() });
    let replies = std::mem::take(&mut rig.replies);
    assert!(matches!(&replies[0], (to, Reply::Error(error))
        if *to == two && error.error_code() == Some(ErrorCode::UnknownGroup)));
    rig.request(ShardRequest::ListGroups);
    let Some((_, Reply::Groups(groups))) = rig.replies.pop() else { panic!("no list") };
    assert_eq!(groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["t.dlq"]);
    let mut rig = rig.restart(2);
    rig.request(ShardRequest::ListGroups);
    assert!(matches!(rig.replies.pop(), Some((_, Reply::Groups(groups))) if groups.len() == 1));
}

#[test]
fn a_broker_that_stops_tells_those_who_wait_for_records() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let waiting = [rig.attach(id, ALICE, 1), rig.receive(id, BOB, 1, 10_000)];
    rig.shard.handle(Event::Stop, rig.now);
    rig.run();
    let told = std::mem::take(&mut rig.replies);
    assert_eq!(told.iter().map(|(to, _)| *to).collect::<Vec<_>>(), waiting);
    assert!(told.iter().all(|(_, reply)| matches!(reply, Reply::Error(error)
        if error.error_code() == Some(ErrorCode::ShuttingDown))));
    assert!(rig.shard.is_drained());
}

/// A session is not what a lease belongs to.
#[test]
fn what_comes_over_another_connection_counts_for_the_consumer_that_it_names_alone() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let alice = rig.attach(id, ALICE, 2);
    let got = rig.got(alice);
    let mut settle = |consumer, got: &Got| {
        let items = vec![SettleItem { range: got.lease(), verb: Verb::Ack }];
        let settle = Settle { at: at(id, consumer), credit: Credit::default(), confirm: true, items };
        rig.correlation += 1;
        let from = ReplyTo { core: 3, session: 77, correlation: rig.correlation };
        rig.shard.handle(Event::Request { from, request: ShardRequest::Settle(settle) }, rig.now);
        rig.run();
        let settled = rig.take_settled(rig.correlation).expect("it is answered");
        settled.unsettled.iter().map(|it| it.status).collect::<Vec<_>>()
    };
    assert_eq!(settle(BOB, &got[0]), [ErrorCode::LeaseLost as u16]);
    assert_eq!(settle(ALICE, &got[0]), [0; 0]);
    // The session that is lost has nothing to do with hers.
    rig.shard.handle(Event::SessionClosed { core: 3, session: 77 }, rig.now);
    rig.run();
    assert_eq!(rig.state(id).progress.leased, 1);
    rig.ack(id, ALICE, &got[1]);
}
