//! The consumer of a group over real sockets: what it promises about each record while
//! connections are lost, leases end and others take over.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::FakeBroker;
use crate::support::consumers::{acked, builder, nothing_comes, take};
use ringbolt_client::{
    ConsumerId, CreateGroup, Delivery, Error, ErrorCode, GroupConfig, GroupMode, GroupStart, Outcome, Record,
    ResetGroup, SettleError,
};
use ringbolt_wire::message::Verb;
use tokio::time::timeout;

#[tokio::test]
async fn records_come_whole_and_are_done_once_their_ack_is_confirmed() {
    let broker = FakeBroker::filled(1, 30).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    for n in 0..30u64 {
        let delivery = consumer.recv().await.unwrap();
        assert_eq!((delivery.partition, delivery.offset, &*delivery.topic), (0, n, "t"));
        assert_eq!(delivery.value, n.to_string());
        assert_eq!(delivery.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(&delivery.header("h").unwrap()[..], [0]);
        assert_eq!((delivery.acquired(), delivery.failed(), delivery.first_delivery()), (1, 0, None));
        delivery.ack().await.unwrap();
        assert_eq!(broker.group("g", |g| g.acked.len() as u64), n + 1);
    }
    assert_eq!(broker.group("g", |g| g.leased()), 0);
}

#[tokio::test]
async fn there_are_never_more_records_in_hand_than_the_prefetch_says() {
    let broker = FakeBroker::filled(1, 300).await;
    let consumer = builder(&broker).await.prefetch(7).open().await.unwrap();
    let mut in_hand = take(&consumer, 7).await;
    nothing_comes(&consumer).await;
    for n in 7..300u64 {
        drop(in_hand.remove(n as usize % in_hand.len()).ack());
        in_hand.push(consumer.recv().await.unwrap());
    }
    assert_eq!(broker.group("g", |g| g.most_leased), 7);
    // Credit went back with each settle, and not in frames of its own.
    let settles = broker.group("g", |g| g.settles.clone());
    assert!(settles.iter().all(|settle| settle.items.len() as u64 == settle.credit.records), "{settles:?}");
}

#[tokio::test]
async fn no_more_bytes_are_in_hand_than_the_prefetch_says_but_for_one_record() {
    let broker = FakeBroker::start(1).await;
    let producer = broker.client().await.producer("t").build().await.unwrap();
    for n in 0..50u8 {
        producer.send(Record::new(vec![n; 1000])).await.unwrap();
    }
    let consumer = builder(&broker).await.prefetch_bytes(2500).open().await.unwrap();
    for n in 0..50u64 {
        let delivery = consumer.recv().await.unwrap();
        assert_eq!(delivery.offset, n);
        delivery.ack().await.unwrap();
    }
    let most = broker.group("g", |g| g.most_leased);
    assert!((2..=3).contains(&most), "{most} records of 1,000 bytes at once");
}

#[tokio::test]
async fn many_acks_leave_as_one_range_in_one_request() {
    let broker = FakeBroker::filled(1, 200).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    let mut deliveries = take(&consumer, 200).await;
    // Whatever the order in which they are done.
    deliveries.rotate_left(70);
    let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
    for ack in acks {
        ack.await.unwrap();
    }
    let settles = broker.group("g", |g| g.settles.clone());
    let [settle] = &settles[..] else { panic!("{} settles", settles.len()) };
    let [item] = &settle.items[..] else { panic!("{:?}", settle.items) };
    assert_eq!((item.range.base_offset.0, item.range.count, &item.verb), (0, 200, &Verb::Ack));
    assert_eq!((settle.credit.records, settle.confirm), (200, true));
}

#[tokio::test]
async fn a_dropped_future_does_not_take_the_ack_back() {
    let broker = FakeBroker::filled(1, 20).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    for (n, delivery) in take(&consumer, 20).await.into_iter().enumerate() {
        match n % 2 {
            0 => drop(delivery.ack()),
            _ => delivery.ack_nowait(),
        }
    }
    broker.until(|g| g.acked.len() == 20).await;
}

#[tokio::test]
async fn acks_that_nobody_waits_for_ask_for_no_answer() {
    let broker = FakeBroker::filled(1, 5).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    take(&consumer, 5).await.into_iter().for_each(Delivery::ack_nowait);
    broker.until(|g| g.acked.len() == 5).await;
    assert!(broker.group("g", |g| g.settles.iter().all(|settle| !settle.confirm)));
}

#[tokio::test]
async fn verbs_do_what_they_say() {
    let broker = FakeBroker::filled(1, 5).await;
    let config = GroupConfig { max_failures: 2, ..GroupConfig::default() };
    let consumer = builder(&broker).await.config(config).prefetch(1).open().await.unwrap();

    consumer.recv().await.unwrap().nack(Some(Duration::from_millis(800))).await.unwrap();
    let second = consumer.recv().await.unwrap();
    assert_eq!(second.offset, 1, "the first one waits");
    second.reject("too cold").await.unwrap();
    let second = consumer.recv().await.unwrap();
    assert_eq!((second.offset, second.acquired(), second.failed()), (1, 2, 1));
    assert!(second.first_delivery().is_some());
    second.reject("still too cold").await.unwrap();
    let third = consumer.recv().await.unwrap();
    assert_eq!(third.offset, 2);
    third.dead_letter("never").await.unwrap();
    let fourth = consumer.recv().await.unwrap();
    fourth.release().await.unwrap();
    let fourth = consumer.recv().await.unwrap();
    assert_eq!((fourth.offset, fourth.acquired(), fourth.failed()), (3, 2, 0));
    fourth.ack().await.unwrap();
    let fifth = consumer.recv().await.unwrap();
    let SettleError::Refused(refusal) = fifth.redrive().await.unwrap_err() else { panic!() };
    assert_eq!(refusal.error_code(), Some(ErrorCode::InvalidRequest), "it is no dead letter");
    let first = timeout(Duration::from_secs(2), async {
        loop {
            // The fifth comes back as well.
            let delivery = consumer.recv().await.unwrap();
            if delivery.offset == 0 {
                break delivery;
            }
            delivery.ack().await.unwrap();
        }
    });
    let first = first.await.unwrap();
    assert_eq!((first.offset, first.acquired(), first.failed()), (0, 2, 0));
    let dead = broker.group("g", |g| g.dead.clone());
    assert_eq!(dead, [(0, 1, "still too cold".into()), (0, 2, "never".into())]);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_told_to_who_settles_it() {
    let broker = FakeBroker::filled(1, 1).await;
    let open = builder(&broker).await.auto_extend(false).lease(Duration::from_millis(60));
    let consumer = open.open().await.unwrap();
    let first = consumer.recv().await.unwrap();
    let second = timeout(Duration::from_secs(2), consumer.recv()).await.unwrap().unwrap();
    assert_eq!((second.offset, second.acquired(), second.failed()), (0, 2, 1));
    let error = first.ack().await.unwrap_err();
    assert_eq!((&error, error.outcome()), (&SettleError::LeaseLost, Outcome::RejectedFinal));
    second.ack().await.unwrap();
}

#[tokio::test]
async fn an_ack_of_what_was_completed_before_is_good() {
    let broker = FakeBroker::filled(1, 2).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    let mut deliveries = take(&consumer, 2).await;
    broker.group("g", |g| {
        g.partitions[0].completed.extend([0, 1]);
        g.partitions[0].open.clear();
    });
    deliveries.remove(0).ack().await.unwrap();
    assert_eq!(deliveries.remove(0).nack(None).await, Err(SettleError::AlreadyCompleted));
}

#[tokio::test]
async fn leases_are_extended_while_records_are_in_hand() {
    let broker = FakeBroker::filled(1, 6).await;
    let consumer = builder(&broker).await.lease(Duration::from_millis(150)).open().await.unwrap();
    let held = consumer.recv().await.unwrap();
    // The others wait, fetched ahead.
    tokio::time::sleep(Duration::from_millis(800)).await;
    held.ack().await.unwrap();
    for delivery in take(&consumer, 5).await {
        assert_eq!((delivery.acquired(), delivery.failed()), (1, 0));
        delivery.ack().await.unwrap();
    }
    let extends = broker.group("g", |g| {
        let is_extend = |item: &&ringbolt_wire::message::SettleItem| matches!(item.verb, Verb::Extend { .. });
        g.settles.iter().flat_map(|settle| &settle.items).filter(is_extend).count()
    });
    assert!(
        (8..=24).contains(&extends),
        "{extends} extensions in five times a lease, one would do at a third"
    );
}

#[tokio::test]
async fn an_extension_by_hand_outlives_the_lease() {
    let broker = FakeBroker::filled(1, 1).await;
    let open = builder(&broker).await.auto_extend(false).lease(Duration::from_millis(100));
    let consumer = open.open().await.unwrap();
    let delivery = consumer.recv().await.unwrap();
    delivery.extend(Duration::from_secs(5)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    delivery.ack().await.unwrap();
    assert_eq!(broker.group("g", |g| g.delivered), 1);
}

#[tokio::test]
async fn an_extension_by_hand_is_not_shortened_by_the_automatic_one() {
    let broker = FakeBroker::filled(1, 2).await;
    let consumer = builder(&broker).await.lease(Duration::from_millis(120)).open().await.unwrap();
    let mut deliveries = take(&consumer, 2).await;
    let (other, long) = (deliveries.remove(1), deliveries.remove(0));
    long.extend(Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let extended = broker.group("g", |g| {
        let items = g.settles.iter().flat_map(|settle| settle.items.clone());
        items.filter(|item| item.verb == Verb::Extend { lease_ms: 0 }).collect::<Vec<_>>()
    });
    assert!(
        !extended.is_empty() && extended.iter().all(|item| item.range.base_offset.0 == 1),
        "{extended:?}"
    );
    drop((other, long));
}

#[tokio::test]
async fn a_dropped_delivery_is_another_consumers_at_once() {
    let broker = FakeBroker::filled(1, 1).await;
    let one = builder(&broker).await.open().await.unwrap();
    let delivery = one.recv().await.unwrap();
    let other = builder(&broker).await.open().await.unwrap();
    nothing_comes(&other).await;
    broker.group("g", |g| g.config().lease_ms = 60_000);
    drop(delivery);
    let (a, b) = (one.recv(), other.recv());
    let delivery = timeout(Duration::from_secs(1), async {
        tokio::select! { a = a => a, b = b => b }
    });
    let delivery = delivery.await.expect("it is given back without waiting for its lease").unwrap();
    assert_eq!((delivery.acquired(), delivery.failed()), (2, 0), "and this is no failure");
}

#[tokio::test]
async fn close_confirms_what_was_said_and_gives_the_rest_back() {
    let broker = FakeBroker::filled(2, 20).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    let mut deliveries = take(&consumer, 15).await;
    let kept = deliveries.pop().unwrap();
    let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
    consumer.close().await;
    assert_eq!(broker.group("g", |g| (g.acked.len(), g.leased(), g.is_attached())), (14, 0, false));
    for ack in acks {
        ack.await.unwrap();
    }
    assert_eq!(kept.ack().await, Err(SettleError::Closed));
    assert!(matches!(consumer.recv().await, Err(Error::ConsumerClosed)));
    let open = broker
        .group("g", |g| g.partitions.iter().flat_map(|log| log.open.values()).cloned().collect::<Vec<_>>());
    assert!(open.iter().all(|open| open.failed == 0), "nothing failed");
    consumer.close().await;
}

#[tokio::test]
async fn a_dropped_consumer_gives_everything_back() {
    let broker = FakeBroker::filled(1, 20).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    let delivery = consumer.recv().await.unwrap();
    drop(delivery.ack());
    drop(consumer);
    broker.until(|g| g.acked.len() == 1 && g.leased() == 0 && !g.is_attached()).await;
}

#[tokio::test]
async fn two_shards_share_the_prefetch_and_one_connection() {
    let broker = FakeBroker::filled(4, 50).await;
    let connections = broker.state().affinities.len();
    let consumer = builder(&broker).await.prefetch(5).open().await.unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let delivery = timeout(Duration::from_secs(2), consumer.recv()).await.unwrap().unwrap();
        seen.insert((delivery.partition, delivery.offset));
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen.len(), 200);
    let attaches = broker.group("g", |g| g.attaches.clone());
    let mut credit: Vec<_> =
        attaches.iter().map(|attach| (attach.at.shard.0, attach.credit.records)).collect();
    credit.sort_unstable();
    assert_eq!(credit, [(0, 3), (1, 2)]);
    assert!(broker.group("g", |g| g.most_leased) <= 3);
    // A client has two of its own: one to learn the limits, one for calls.
    assert_eq!(broker.state().affinities.len() - connections, 3);
}

#[tokio::test]
async fn every_shard_may_send_one_record_at_least() {
    let broker = FakeBroker::filled(2, 5).await;
    let consumer = builder(&broker).await.prefetch(1).open().await.unwrap();
    let deliveries = take(&consumer, 2).await;
    assert_eq!(deliveries.iter().map(|d| d.partition).collect::<BTreeSet<_>>().len(), 2);
    nothing_comes(&consumer).await;
}

#[tokio::test]
async fn a_topic_on_one_shard_is_consumed_from_the_core_that_has_it() {
    let broker = FakeBroker::filled(1, 1).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    consumer.recv().await.unwrap().ack().await.unwrap();
    let last = *broker.state().affinities.last().unwrap();
    assert_eq!(last.map(|partition| (partition.topic, partition.index)), Some((crate::support::TOPIC, 0)));
}

#[tokio::test]
async fn several_tasks_may_receive() {
    let broker = FakeBroker::filled(1, 200).await;
    let consumer = std::sync::Arc::new(builder(&broker).await.prefetch(20).open().await.unwrap());
    let workers: Vec<_> = (0..5)
        .map(|_| {
            let consumer = consumer.clone();
            tokio::spawn(async move {
                for _ in 0..40 {
                    consumer.recv().await.unwrap().ack().await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        timeout(Duration::from_secs(10), worker).await.unwrap().unwrap();
    }
    assert_eq!(acked(&broker).len(), 200);
}

#[tokio::test]
async fn in_an_exclusive_group_nothing_overtakes_a_record_that_goes_back() {
    let broker = FakeBroker::filled(1, 200).await;
    let consumer = builder(&broker).await.mode(GroupMode::Exclusive).prefetch(16).open().await.unwrap();
    let (mut next, mut turn) = (0, 0);
    while next < 200 {
        let delivery = timeout(Duration::from_secs(5), consumer.recv()).await.unwrap().unwrap();
        assert_eq!(delivery.offset, next, "strictly in order");
        turn += 1;
        match turn % 5 {
            1 => drop(delivery.nack(None)),
            2 if delivery.acquired() < 5 => drop(delivery.reject("once more")),
            3 => drop(delivery),
            4 => delivery.nack(Some(Duration::from_millis(3))).await.unwrap(),
            _ => {
                drop(delivery.ack());
                next += 1;
            }
        }
    }
    broker.until(|g| g.acked.len() == 200).await;
    assert!(broker.group("g", |g| g.dead.is_empty()));
}

#[tokio::test]
async fn groups_are_created_found_described_set_back_and_deleted() {
    let broker = FakeBroker::filled(1, 3).await;
    let client = broker.client().await;
    let admin = client.admin();
    let create = |or_find, mode| CreateGroup {
        name: "g".into(),
        topic: "t".into(),
        start: GroupStart::Earliest,
        or_find,
        config: GroupConfig { mode, ..GroupConfig::default() },
        dead_letter_topic: None,
    };
    let group = admin.create_group(create(false, GroupMode::Shared)).await.unwrap();
    assert_eq!(admin.create_group(create(true, GroupMode::Shared)).await.unwrap(), group);
    let refused = [create(false, GroupMode::Shared), create(true, GroupMode::Exclusive)];
    for create in refused {
        let Err(Error::Refused(refusal)) = admin.create_group(create).await else { panic!() };
        assert_eq!(refusal.error_code(), Some(ErrorCode::GroupExists));
    }
    let consumer = client.consumer("t", "g").open().await.unwrap();
    assert_eq!(consumer.group(), &group);
    take(&consumer, 3).await.into_iter().for_each(|delivery| drop(delivery.ack()));
    consumer.close().await;
    assert_eq!(admin.groups().await.unwrap(), [group]);
    assert_eq!(admin.describe_group("g").await.unwrap().partitions[0].progress.next_offset, 3);
    let reset = ResetGroup { name: "g".into(), to: GroupStart::Earliest, partition: None };
    admin.reset_group(reset).await.unwrap();
    assert_eq!(admin.describe_group("g").await.unwrap().partitions[0].progress.next_offset, 0);
    admin.delete_group("g").await.unwrap();
    assert!(admin.groups().await.unwrap().is_empty());
    assert!(admin.describe_group("g").await.is_err());
}

#[tokio::test]
async fn what_cannot_be_consumed_is_refused_at_once() {
    let broker = FakeBroker::filled(1, 1).await;
    let client = broker.client().await;
    let builder = || client.consumer("t", "g");
    for wrong in [
        builder().prefetch(0),
        builder().prefetch_bytes(0),
        builder().lease(Duration::ZERO),
        builder().lease(Duration::from_secs(90_000)),
        builder().consumer_id(ConsumerId(0)),
    ] {
        assert!(matches!(wrong.open().await, Err(Error::InvalidSetting(_))));
    }
    let Err(Error::Refused(refusal)) = client.consumer("other", "g").open().await else { panic!() };
    assert_eq!(refusal.error_code(), Some(ErrorCode::UnknownTopic));
    builder().open().await.unwrap();
    let Err(Error::Refused(refusal)) = builder().mode(GroupMode::Exclusive).open().await else { panic!() };
    assert_eq!(refusal.error_code(), Some(ErrorCode::GroupExists));
}
