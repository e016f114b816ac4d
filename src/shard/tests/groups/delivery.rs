//! Modes, credit, attaching and detaching.

use super::*;

#[test]
fn a_record_is_delivered_to_one_consumer_and_not_again_once_its_ack_is_confirmed() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"ab");
    let (alice, bob) = (rig.attach(id, ALICE, 1), rig.attach(id, BOB, 10));
    let (first, second) = (rig.got(alice), rig.got(bob));
    assert_eq!((first[0].offset, &first[0].value[..], first[0].acquired), (0, &b"a"[..], 1));
    assert_eq!((second.len(), second[0].offset), (1, 1));
    rig.ack(id, ALICE, &first[0]);
    rig.ack(id, BOB, &second[0]);
    rig.wait(100_000_000);
    rig.values(b"c");
    assert_eq!((rig.offsets_got(alice), rig.offsets_got(bob)), (vec![], vec![2]), "by credit");
    assert_eq!(rig.state(id).progress.floor, 2);
}

/// A power cut must not bring back what a consumer was told is done.
#[test]
fn an_ack_is_confirmed_only_when_the_commit_that_holds_it_is_durable() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"a");
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.auto = false;
    let first = rig.settle(id, ALICE, got[0].lease(), Verb::Ack);
    let again = rig.settle(id, ALICE, got[0].lease(), Verb::Ack);
    assert!(rig.take_settled(first).is_none(), "the write has not ended");
    assert!(rig.take_settled(again).is_none(), "a crash would undo what it would say");
    rig.complete(0, Ok(()));
    assert_eq!(rig.take_settled(first), Some(Settled::default()));
    let unsettled = rig.take_settled(again).unwrap().unsettled;
    assert_eq!(unsettled[0].status, ErrorCode::AlreadyCompleted as u16);
}

#[test]
fn no_record_is_delivered_before_it_is_durable() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let alice = rig.attach(id, ALICE, 10);
    rig.auto = false;
    rig.values(b"a");
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.complete(0, Ok(()));
    assert_eq!(rig.offsets_got(alice), [0]);
}

#[test]
fn nothing_is_sent_beyond_the_credit_and_a_settle_gives_more() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    // One batch of three: it is cut.
    rig.append(&[plain(1), plain(2), plain(3)]);
    rig.append(&[plain(4), plain(5)]);
    let alice = rig.attach(id, ALICE, 2);
    let got = rig.got(alice);
    assert_eq!(got.iter().map(|got| got.value[0]).collect::<Vec<_>>(), [1, 2]);
    rig.ack(id, ALICE, &got[0]);
    assert_eq!(rig.offsets_got(alice), NONE, "an ack alone gives no credit");
    let ack = SettleItem { range: got[1].lease(), verb: Verb::Ack };
    rig.settle_all(id, ALICE, vec![ack], Credit { records: 2, bytes: 0 });
    let got = rig.got(alice);
    assert_eq!(got.iter().map(|got| (got.offset, got.value[0])).collect::<Vec<_>>(), [(2, 3), (3, 4)]);
    rig.settle_all(id, ALICE, vec![], Credit { records: 9, bytes: 0 });
    assert_eq!(rig.offsets_got(alice), [4]);
}

#[test]
fn bytes_are_credit_as_well() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let credit = Credit { records: 10, bytes: 1 };
    let attach = Attach { at: at(id, ALICE), credit, lease_ms: 0, held: vec![] };
    let alice = rig.request(ShardRequest::Attach(attach));
    assert_eq!(rig.offsets_got(alice), [0], "one that goes beyond, as there was credit");
    // A batch of one record of one byte has 105 bytes: 104 were lent.
    rig.settle_all(id, ALICE, vec![], Credit { records: 0, bytes: 104 });
    assert_eq!(rig.offsets_got(alice), NONE);
    rig.settle_all(id, ALICE, vec![], Credit { records: 0, bytes: 1 });
    assert_eq!(rig.offsets_got(alice), [1]);
}

#[test]
fn the_records_of_a_key_are_delivered_one_after_the_other_through_retries() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::KeyOrdered);
    rig.keyed(&[("a", 1), ("a", 2), ("b", 3), ("a", 4)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    assert_eq!(got.iter().map(|got| got.value[0]).collect::<Vec<_>>(), [1, 3], "b is not held up");
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), reject()), []);
    let again = rig.got(alice);
    assert_eq!((again.len(), again[0].value[0], again[0].acquired, again[0].failed), (1, 1, 2, 1));
    rig.ack(id, ALICE, &again[0]);
    let next = rig.got(alice);
    assert_eq!(next.iter().map(|got| got.value[0]).collect::<Vec<_>>(), [2]);
    rig.settled(id, ALICE, next[0].lease(), Verb::Nack { delay_ms: 5 });
    assert_eq!(rig.offsets_got(alice), NONE, "4 waits for 2");
    rig.wait(5_000);
    let next = rig.got(alice);
    assert_eq!((next[0].value[0], next[0].acquired, next[0].failed), (2, 2, 0));
    rig.ack(id, ALICE, &next[0]);
    assert_eq!(rig.got(alice)[0].value[0], 4);
}

#[test]
fn an_exclusive_consumer_has_a_partition_in_order_until_it_leaves() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Exclusive);
    rig.values(b"abcd");
    let (alice, bob) = (rig.attach(id, ALICE, 3), rig.attach(id, BOB, 10));
    let got = rig.got(alice);
    assert_eq!(got.iter().map(|got| got.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(rig.offsets_got(bob), NONE);
    rig.ack(id, ALICE, &got[0]);
    // What came after it comes back with it, whoever has it.
    rig.settled(id, ALICE, got[1].lease(), reject());
    assert_eq!(rig.settled(id, ALICE, got[2].lease(), Verb::Ack), [(2, ErrorCode::LeaseLost)]);
    rig.settle_all(id, ALICE, vec![], Credit { records: 2, bytes: 0 });
    let again = rig.got(alice);
    assert_eq!(again.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    rig.replies.clear();
    let detach = rig.request(ShardRequest::Detach(at(id, ALICE)));
    let taken = rig.got(bob);
    assert_eq!(
        taken.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(),
        [(1, 3), (2, 3), (3, 1)]
    );
    let detached = rig.replies.iter().map(|(to, reply)| (*to, matches!(reply, Reply::Detached)));
    assert_eq!(detached.collect::<Vec<_>>(), [(alice, true), (detach, true)]);
}

#[test]
fn a_consumer_that_is_lost_keeps_its_leases_until_they_run_out() {
    let mut rig = Rig::new();
    for mode in [GroupMode::Shared, GroupMode::Exclusive] {
        let name = format!("{mode}");
        let id = rig.group(&name, calm(mode), GroupStart::End).id;
        rig.values(b"ab");
        rig.attach(id, ALICE, 10);
        let bob = rig.attach(id, BOB, 10);
        rig.shard.handle(Event::SessionClosed { core: 0, session: 1 }, rig.now);
        rig.replies.clear();
        assert_eq!(rig.offsets_got(bob), NONE);
        let bob = rig.attach(id, BOB, 10);
        rig.run();
        assert_eq!(rig.offsets_got(bob), NONE, "{mode}");
        rig.wait(29_999_999);
        assert_eq!(rig.offsets_got(bob), NONE, "{mode}");
        rig.wait(1);
        let got = rig.got(bob);
        assert_eq!(got.iter().map(|got| (got.acquired, got.failed)).max(), Some((2, 1)), "{mode}");
        assert_eq!(got.len(), 2, "{mode}");
    }
}

#[test]
fn a_consumer_that_attaches_again_goes_on_with_what_it_holds_and_gets_the_rest_anew() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let first = rig.attach(id, ALICE, 10);
    let got = rig.got(first);
    let second = rig.attach_with(id, ALICE, 10, vec![got[1].lease()]);
    assert!(matches!(&rig.replies[0], (to, Reply::Error(error))
        if *to == first && error.error_code() == Some(ErrorCode::ConsumerReplaced)));
    rig.replies.remove(0);
    let again = rig.got(second);
    let seen: Vec<_> = again.iter().map(|got| (got.offset, got.acquired, got.failed)).collect();
    assert_eq!(seen, [(0, 2, 0), (2, 2, 0)]);
    rig.ack(id, ALICE, &got[1]);
    // The lease of before is over, though the record is the same consumer's.
    assert_eq!(rig.settled(id, ALICE, got[0].lease(), Verb::Ack), [(0, ErrorCode::LeaseLost)]);
    rig.ack(id, ALICE, &again[0]);
}

#[test]
fn who_asks_once_is_answered_once_with_what_comes_or_with_nothing() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let empty = rig.receive(id, ALICE, 2, 0);
    assert!(matches!(&rig.replies[0], (to, Reply::Delivered { delivery, .. })
        if *to == empty && delivery.ranges.is_empty()));
    assert_eq!(rig.offsets_got(empty), NONE);
    let waiting = rig.receive(id, ALICE, 2, 1000);
    assert!(rig.replies.is_empty());
    rig.values(b"a");
    rig.values(b"b");
    assert_eq!(rig.offsets_got(waiting), [0], "the first that comes ends it");
    let late = rig.receive(id, ALICE, 2, 1000);
    assert_eq!(rig.offsets_got(late), [1]);
    let late = rig.receive(id, ALICE, 2, 1000);
    rig.wait(999_999);
    assert!(rig.replies.is_empty());
    rig.wait(1);
    assert_eq!((rig.replies.len(), rig.offsets_got(late)), (1, vec![]));
    assert_eq!(rig.state(id).progress.leased, 2, "leases of earlier times go on");
}

#[test]
fn records_are_shared_between_consumers_and_none_is_sent_twice() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    let consumers: Vec<u64> = (1..=5).map(|c| rig.attach(id, ConsumerId(c), 3)).collect();
    for _ in 0..5 {
        rig.append(&[plain(1), plain(2), plain(3)]);
    }
    let mut all: Vec<u64> = Vec::new();
    for consumer in consumers {
        let got = rig.offsets_got(consumer);
        assert_eq!(got.len(), 3);
        all.extend(got);
    }
    all.sort_unstable();
    assert_eq!(all, (0..15).collect::<Vec<_>>());
}

#[test]
fn groups_of_one_topic_do_not_know_each_other() {
    let mut rig = Rig::new();
    let one = rig.group("one", calm(GroupMode::Shared), GroupStart::Earliest).id;
    rig.values(b"ab");
    let two = rig.group("two", calm(GroupMode::Shared), GroupStart::Earliest).id;
    let end = rig.group("end", calm(GroupMode::Shared), GroupStart::End).id;
    let at_one = rig.group("at", calm(GroupMode::Shared), GroupStart::Offset(Offset(1))).id;
    for (id, expected) in [(one, vec![0, 1]), (two, vec![0, 1]), (end, vec![]), (at_one, vec![1])] {
        let alice = rig.attach(id, ALICE, 10);
        assert_eq!(rig.offsets_got(alice), expected);
    }
}

#[test]
fn a_group_that_is_set_back_delivers_anew_and_its_leases_are_lost() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let alice = rig.attach(id, ALICE, 3);
    let got = rig.got(alice);
    rig.ack(id, ALICE, &got[0]);
    rig.request(ShardRequest::ResetGroup { group: id, to: GroupStart::Earliest, partition: None });
    assert!(matches!(rig.replies.pop(), Some((_, Reply::GroupReset))));
    assert_eq!(rig.settled(id, ALICE, got[1].lease(), Verb::Ack), [(1, ErrorCode::LeaseLost)]);
    rig.settle_all(id, ALICE, vec![], Credit { records: 9, bytes: 0 });
    let again = rig.got(alice);
    assert_eq!(
        again.iter().map(|got| (got.offset, got.acquired)).collect::<Vec<_>>(),
        [(0, 2), (1, 2), (2, 2)]
    );
    // It was held back, and is the same consumer's.
    assert_eq!(rig.settled(id, ALICE, got[1].lease(), Verb::Ack), [(1, ErrorCode::LeaseLost)]);
    let mut rig = rig.restart(2);
    assert_eq!(rig.state(id).progress.floor, 0);
}

#[test]
fn at_the_bound_new_records_pause_and_redelivery_goes_on() {
    let mut rig = Rig::new();
    let config = GroupConfig { max_open: 2, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.append(&[plain(1), plain(2), plain(3)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    assert_eq!(got.len(), 2);
    assert!(rig.state(id).holds.contains(&ringbolt_wire::message::Hold::AtBound { open: 2 }));
    rig.settled(id, ALICE, got[0].lease(), reject());
    assert_eq!(rig.offsets_got(alice), [0]);
    rig.ack(id, ALICE, &got[1]);
    assert_eq!(rig.offsets_got(alice), [2]);
}

/// Should a crash undo the ack, the record would come again after the later one.
#[test]
fn the_next_record_of_a_key_comes_when_it_is_durable_that_the_one_before_is_completed() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::KeyOrdered);
    rig.keyed(&[("a", 1), ("a", 2)]);
    let alice = rig.attach(id, ALICE, 10);
    let got = rig.got(alice);
    rig.auto = false;
    rig.settle(id, ALICE, got[0].lease(), Verb::Ack);
    assert_eq!(rig.offsets_got(alice), NONE, "the write has not ended");
    rig.complete(0, Ok(()));
    assert_eq!(rig.offsets_got(alice), [1]);
}

/// Who had been away counted as if it still had what it had then.
#[test]
fn partitions_that_become_free_go_to_those_who_have_the_fewest() {
    const CAROL: ConsumerId = ConsumerId(0xc);
    let mut rig = Rig::new();
    rig.request(ShardRequest::CreateTopic { name: "m".to_owned(), partitions: 4 });
    let Some((_, Reply::TopicCreated(topic))) = rig.replies.pop() else { panic!("it is created") };
    let create = CreateGroup {
        name: "g".into(),
        topic: "m".into(),
        start: GroupStart::Earliest,
        or_find: false,
        config: GroupConfig { max_failures: 0, ..calm(GroupMode::Exclusive) },
        dead_letter_topic: None,
    };
    rig.request(ShardRequest::CreateGroup(create));
    let Some((_, Reply::Group(GroupInfo { id, .. }))) = rig.replies.pop() else { panic!("no group") };
    let produce = |rig: &mut Rig, indexes: std::ops::Range<u32>| {
        for index in indexes {
            rig.produce_to(PartitionId::new(topic.id, index), ProducerId::NONE, 0, b"v");
        }
    };
    let partitions = |rig: &mut Rig, request| -> Vec<u32> {
        let got = rig.got(request);
        got.iter().map(|got| got.partition).collect()
    };
    let alice = rig.attach(id, ALICE, 100);
    produce(&mut rig, 0..4);
    let mut got = rig.got(alice);
    got.sort_unstable_by_key(|got| got.partition);
    got[1..].iter().for_each(|got| rig.ack(id, ALICE, got));
    // She keeps the one of which she has a record.
    rig.shard.handle(Event::SessionClosed { core: 0, session: 1 }, rig.now);
    rig.run();
    let bob = rig.attach(id, BOB, 100);
    produce(&mut rig, 1..4);
    assert_eq!(partitions(&mut rig, bob), [1, 2, 3]);
    let held = vec![got[0].lease()];
    let alice = rig.attach_with(id, ALICE, 100, held);
    let carol = rig.attach(id, CAROL, 100);
    rig.request(ShardRequest::Detach(at(id, BOB)));
    let (of_alice, of_carol) = (partitions(&mut rig, alice), partitions(&mut rig, carol));
    assert_eq!((of_alice.len(), of_carol.len()), (1, 2), "{of_alice:?} {of_carol:?}");
}

/// Without that they are leased to it until their leases end.
#[test]
fn records_of_an_answer_that_was_lost_come_again_to_who_says_what_it_has() {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.values(b"abc");
    let asked = rig.receive(id, ALICE, 1, 0);
    let has = rig.got(asked);
    let lost = rig.receive(id, ALICE, 2, 0);
    assert_eq!(rig.offsets_got(lost), [1, 2]);
    rig.shard.handle(Event::SessionClosed { core: 0, session: 1 }, rig.now);
    let asked = rig.receive(id, ALICE, 2, 0);
    assert_eq!(rig.offsets_got(asked), NONE);
    let attached = rig.attach_with(id, ALICE, 0, vec![has[0].lease()]);
    let asked = rig.receive(id, ALICE, 3, 0);
    let again: Vec<_> = rig.got(asked).iter().map(|got| (got.offset, got.acquired, got.failed)).collect();
    assert_eq!(again, [(1, 2, 0), (2, 2, 0)]);
    let (to, Reply::Error(error)) = rig.replies.remove(0) else { panic!("the attachment has ended") };
    assert_eq!((to, error.error_code()), (attached, Some(ErrorCode::ConsumerReplaced)));
    rig.ack(id, ALICE, &has[0]);
}

#[test]
fn who_takes_all_and_settles_nothing_holds_others_up_for_its_leases_at_most() {
    let mut rig = Rig::new();
    let config = GroupConfig { max_failures: 3, max_open: 10, ..calm(GroupMode::Shared) };
    let id = rig.group("g", config, GroupStart::Earliest).id;
    rig.append(&(0..40).map(plain).collect::<Vec<_>>());
    let alice = rig.attach(id, ALICE, 1_000);
    let bob = rig.attach(id, BOB, 1_000);
    assert_eq!((rig.got(alice).len(), rig.got(bob).len()), (10, 0));
    let mut done = Vec::new();
    for _ in 0..30 {
        rig.wait(30_000_000);
        loop {
            let got = rig.got(bob);
            if got.is_empty() {
                break;
            }
            got.iter().for_each(|got| rig.ack(id, BOB, got));
            done.extend(got.iter().map(|got| got.offset));
        }
    }
    let progress = rig.state(id).progress;
    assert_eq!(progress.lag, 0);
    assert_eq!(progress.dead_lettered_total + done.len() as u64, 40);
    done.sort_unstable();
    done.dedup();
    assert!(done.len() >= 10, "Bob was sent {done:?}");
}

/// A group of which Alice has ten records, of one batch.
fn alice_has_ten() -> (Rig, GroupId) {
    let mut rig = Rig::new();
    let id = rig.calm_group(GroupMode::Shared);
    rig.append(&(0..10).map(plain).collect::<Vec<_>>());
    let alice = rig.attach(id, ALICE, 10);
    assert_eq!(rig.got(alice).len(), 10);
    (rig, id)
}

/// Each was read with its whole batch, alone.
#[test]
fn those_of_a_batch_that_came_back_go_out_together_and_those_between_them_do_not() {
    let (mut rig, id) = alice_has_ten();
    for (base, count) in [(1, 3), (5, 1), (7, 3)] {
        rig.settle(id, ALICE, range(base, count, 1), Verb::Nack { delay_ms: 1_000 });
    }
    rig.replies.clear();
    rig.wait(1_000_000);
    let asked = rig.receive(id, BOB, 6, 0);
    let at = rig.replies.iter().position(|(to, _)| *to == asked).expect("it is answered");
    let Reply::Delivered { delivery, .. } = &rig.replies[at].1 else { panic!("nothing came") };
    let ranges: Vec<_> = delivery.ranges.iter().map(|r| (r.lease.base_offset.0, r.lease.count)).collect();
    assert_eq!(ranges, [(1, 3), (5, 1), (7, 2)], "six records");
    let len = delivery.ranges[0].payload_len as usize;
    assert!(len < 2 * ringbolt_wire::batch::BATCH_HEADER_LEN, "{len} bytes are more than one batch");
    let got = rig.got(asked);
    assert!(got.iter().all(|got| (u64::from(got.value[0]), got.acquired) == (got.offset, 2)), "{got:?}");
    let asked = rig.receive(id, BOB, 6, 0);
    assert_eq!(rig.offsets_got(asked), [9]);
}

#[test]
fn what_is_held_may_be_named_in_any_order_and_more_than_once() {
    let (mut rig, id) = alice_has_ten();
    // Nobody has what was delivered twice.
    let held = [(7, 1, 1), (1, 4, 1), (2, 1, 1), (3, 3, 1), (0, 1, 2), (9, 100, 1)];
    let held = held.map(|(base, count, acquired)| range(base, count, acquired)).to_vec();
    let alice = rig.attach_with(id, ALICE, 10, held);
    rig.replies.retain(|(to, _)| *to == alice);
    assert_eq!(rig.offsets_got(alice), [0, 6, 8]);
}
