//! The consumer of a group over real sockets, when the connection does not hold, the
//! broker restarts, or somebody takes its place.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::consumers::{acked, builder, nothing_comes, take};
use crate::support::{FakeBroker, Fault, Group};
use ringbolt_client::{Consumer, ConsumerId, Error, ErrorCode, SettleError};
use ringbolt_wire::Opcode;
use tokio::time::timeout;

/// Receives what comes until the consumer has ended.
async fn ended(consumer: &Consumer) -> Error {
    loop {
        match timeout(Duration::from_secs(1), consumer.recv()).await.unwrap() {
            Ok(delivery) => drop(delivery),
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn an_ack_whose_answer_was_lost_is_confirmed_once_and_nothing_is_delivered_again() {
    for fault in [Fault::DropAfter, Fault::DropBefore, Fault::Ignore, Fault::Garbage, Fault::Goodbye] {
        let broker = FakeBroker::filled(1, 40).await;
        broker.fail(Opcode::Settle, [Fault::None, fault.clone(), Fault::None, fault.clone()]);
        let consumer = builder(&broker).await.prefetch(10).open().await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..40 {
            let delivery = consumer.recv().await.unwrap();
            seen.push((delivery.partition, delivery.offset));
            delivery.ack().await.unwrap();
        }
        nothing_comes(&consumer).await;
        assert_eq!(acked(&broker), seen, "{fault:?}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 40, "{fault:?}");
    }
}

#[tokio::test]
async fn many_acks_under_way_survive_lost_connections_and_refusals() {
    let broker = FakeBroker::filled(2, 500).await;
    let faults = [
        Fault::None,
        Fault::Refuse(ErrorCode::Overloaded),
        Fault::DropAfter,
        Fault::None,
        Fault::DropBefore,
        Fault::None,
    ];
    let faults = faults.into_iter().cycle().take(40);
    broker.fail(Opcode::Settle, faults);
    let consumer = builder(&broker).await.prefetch(32).open().await.unwrap();
    let mut acks = Vec::new();
    for _ in 0..1000 {
        let delivery = timeout(Duration::from_secs(10), consumer.recv()).await.unwrap().unwrap();
        acks.push(delivery.ack());
    }
    for ack in acks {
        ack.await.unwrap();
    }
    let acked = acked(&broker);
    assert_eq!(acked.len(), 1000);
    assert_eq!(acked.into_iter().collect::<BTreeSet<_>>().len(), 1000);
    assert!(broker.group("g", |g| g.most_leased) <= 16);
}

#[tokio::test]
async fn what_was_fetched_ahead_stays_valid_over_a_lost_connection() {
    let broker = FakeBroker::filled(1, 20).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    let first = consumer.recv().await.unwrap();
    broker.fail(Opcode::Settle, [Fault::DropBefore]);
    first.ack().await.unwrap();
    for delivery in take(&consumer, 19).await {
        assert_eq!(delivery.acquired(), 1);
        delivery.ack().await.unwrap();
    }
    assert_eq!(broker.group("g", |g| (g.delivered, g.acked.len(), g.attaches.len())), (20, 20, 2));
    let held: u32 = broker.group("g", |g| g.attaches[1].held.iter().map(|held| held.count).sum());
    assert_eq!(held, 19);
}

#[tokio::test]
async fn a_restart_costs_at_most_a_second_delivery() {
    let mut broker = FakeBroker::filled(2, 300).await;
    let consumer = builder(&broker).await.prefetch(20).open().await.unwrap();
    let mut handled = BTreeSet::new();
    let mut count = 0;
    while handled.len() < 600 {
        let delivery = timeout(Duration::from_secs(10), consumer.recv()).await.unwrap().unwrap();
        let place = (delivery.partition, delivery.offset);
        match delivery.ack().await {
            Ok(()) => assert!(handled.insert(place), "{place:?} was acknowledged twice"),
            Err(error) => assert_eq!(error, SettleError::LeaseLost),
        }
        count += 1;
        if count % 150 == 0 {
            let stopped = broker.stop().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            broker = stopped.start().await;
            broker.group("g", Group::lose_leases);
        }
    }
    assert_eq!(acked(&broker).len(), 600);
}

#[tokio::test]
async fn leases_that_the_broker_forgot_leave_the_prefetch_in_silence() {
    let broker = FakeBroker::filled(1, 10).await;
    let consumer = builder(&broker).await.prefetch(10).open().await.unwrap();
    let mine = consumer.recv().await.unwrap();
    let stopped = broker.stop().await;
    let broker = stopped.start().await;
    broker.group("g", Group::lose_leases);
    // The application hears of it where it asks; what it had not got comes anew.
    broker.until(|g| g.delivered == 20).await;
    assert_eq!(mine.ack().await.unwrap_err(), SettleError::LeaseLost);
    let again = take(&consumer, 10).await;
    assert!(again.iter().all(|delivery| delivery.acquired() == 2), "each once, under its new lease");
    for delivery in again {
        delivery.ack().await.unwrap();
    }
    assert_eq!(acked(&broker).len(), 10);
}

#[tokio::test]
async fn close_survives_a_lost_answer_and_ends_without_a_broker() {
    let broker = FakeBroker::filled(1, 20).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    take(&consumer, 3).await.into_iter().for_each(|delivery| drop(delivery.ack()));
    broker.fail(Opcode::Settle, [Fault::DropAfter]);
    consumer.close().await;
    assert_eq!(broker.group("g", |g| (g.acked.len(), g.leased())), (3, 0));

    let config =
        ringbolt_client::ClientConfig { operation_timeout: Duration::from_millis(300), ..broker.config() };
    let client = ringbolt_client::Client::connect(config).await.unwrap();
    let consumer = client.consumer("t", "g").open().await.unwrap();
    let delivery = consumer.recv().await.unwrap();
    let _stopped = broker.stop().await;
    let ack = delivery.ack();
    timeout(Duration::from_secs(3), consumer.close()).await.expect("it ends in time");
    let error = ack.await.unwrap_err();
    assert!(matches!(error, SettleError::Closed | SettleError::Unknown), "{error}");
}

#[tokio::test]
async fn who_attaches_under_the_same_id_takes_over() {
    let broker = FakeBroker::filled(1, 10).await;
    let id = ConsumerId(77);
    let one = builder(&broker).await.consumer_id(id).open().await.unwrap();
    let delivery = one.recv().await.unwrap();
    assert_eq!(one.id(), id);
    let other = builder(&broker).await.consumer_id(id).open().await.unwrap();
    let again = take(&other, 10).await;
    assert!(again.iter().all(|delivery| (delivery.acquired(), delivery.failed()) == (2, 0)));
    let error = ended(&one).await;
    assert!(matches!(error, Error::ConsumerReplaced), "{error}");
    assert_eq!(delivery.ack().await, Err(SettleError::LeaseLost));
    for delivery in again {
        delivery.ack().await.unwrap();
    }
    one.close().await;
    assert!(broker.group("g", |g| g.is_attached()), "the one that is replaced does not detach the other");
}

#[tokio::test]
async fn a_deleted_group_ends_its_consumers() {
    let broker = FakeBroker::filled(2, 10).await;
    let client = broker.client().await;
    let consumer = client.consumer("t", "g").open().await.unwrap();
    let delivery = consumer.recv().await.unwrap();
    client.admin().delete_group("g").await.unwrap();
    let error = ended(&consumer).await;
    let Error::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!(refusal.error_code(), Some(ErrorCode::UnknownGroup));
    assert!(matches!(delivery.ack().await, Err(SettleError::Refused(_))));
    timeout(Duration::from_secs(1), consumer.close()).await.unwrap();
}

#[tokio::test]
async fn an_attach_that_is_refused_for_the_moment_is_made_again() {
    let broker = FakeBroker::filled(1, 3).await;
    broker.fail(Opcode::Attach, [Fault::Refuse(ErrorCode::Overloaded), Fault::DropBefore, Fault::DropAfter]);
    let consumer = builder(&broker).await.open().await.unwrap();
    for delivery in take(&consumer, 3).await {
        delivery.ack().await.unwrap();
    }
    assert_eq!(acked(&broker).len(), 3);
}

#[tokio::test]
async fn a_silent_broker_is_left_for_a_new_connection() {
    let broker = FakeBroker::filled(1, 5).await;
    let consumer = builder(&broker).await.open().await.unwrap();
    for delivery in take(&consumer, 5).await {
        delivery.ack().await.unwrap();
    }
    let attaches = broker.group("g", |g| g.attaches.len());
    broker.fail(Opcode::Ping, [Fault::Ignore]);
    // The request timeout is 300 ms here: it is asked then, and left as late again.
    broker.until(|g| g.attaches.len() > attaches).await;
}

#[tokio::test]
async fn what_arrives_damaged_is_asked_for_again() {
    let broker = FakeBroker::filled(1, 3).await;
    broker.state().damage_deliveries = 1;
    let consumer = builder(&broker).await.open().await.unwrap();
    for (n, delivery) in take(&consumer, 3).await.into_iter().enumerate() {
        assert_eq!(delivery.value, n.to_string());
        delivery.ack().await.unwrap();
    }
    assert_eq!(broker.group("g", |g| g.attaches.len()), 2);
}
