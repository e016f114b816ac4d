//! The calls that concern topics and the broker as a whole, when the connection
//! does not hold.

use std::time::Duration;

use crate::support::{FakeBroker, Fault};
use ringbolt_client::{Client, ClientConfig, Error, ErrorCode, Outcome};
use ringbolt_wire::Opcode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

#[tokio::test]
async fn calls_are_answered_over_one_connection() {
    let broker = FakeBroker::start(3).await;
    let client = broker.client().await;
    let admin = client.admin();
    admin.ping().await.unwrap();
    assert_eq!(admin.create_topic("x", 2).await.unwrap().partitions, 2);
    assert_eq!(admin.list_topics().await.unwrap()[0].name, "t");
    assert_eq!(admin.describe_topic("t").await.unwrap().partitions.len(), 3);
    assert_eq!(admin.stats().await.unwrap()["b"], 2);
    admin.delete_topic("x").await.unwrap();
    // One to learn the limits, one that stays.
    assert_eq!(broker.state().affinities.len(), 2);
    assert_eq!(client.broker().shards, 2);
}

#[tokio::test]
async fn what_changes_nothing_is_asked_again_after_a_loss() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    broker.fail(Opcode::ListTopics, [Fault::DropBefore, Fault::Ignore, Fault::Garbage]);
    assert_eq!(client.admin().list_topics().await.unwrap().len(), 1);
    assert_eq!(broker.seen(Opcode::ListTopics), 4);
}

#[tokio::test]
async fn what_changes_something_is_not_repeated_when_it_may_have_been_done() {
    for fault in [Fault::DropAfter, Fault::DropBefore, Fault::Ignore] {
        let broker = FakeBroker::start(1).await;
        let client = broker.client().await;
        broker.fail(Opcode::CreateTopic, [fault]);
        let error = client.admin().create_topic("x", 1).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert_eq!(broker.seen(Opcode::CreateTopic), 1);
    }
}

#[tokio::test]
async fn refusals_that_may_pass_are_tried_again_and_others_told() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let refuse = Fault::Refuse;
    broker.fail(Opcode::CreateTopic, [refuse(ErrorCode::Overloaded), refuse(ErrorCode::TopicExists)]);
    let error = client.admin().create_topic("x", 1).await.unwrap_err();
    let Error::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!(refusal.error_code(), Some(ErrorCode::TopicExists));
    assert_eq!(broker.seen(Opcode::CreateTopic), 2);
    assert!(broker.state().topics_created.is_empty());
}

#[tokio::test]
async fn calls_wait_for_a_broker_that_restarts() {
    let broker = FakeBroker::start(1).await;
    let client = broker.client().await;
    let stopped = broker.stop().await;
    let listing = tokio::spawn(async move { client.admin().list_topics().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _broker = stopped.start().await;
    assert_eq!(listing.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn an_address_without_a_broker_is_told_at_once() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = free.local_addr().unwrap().to_string();
    drop(free);
    let error = Client::connect(addr.clone()).await.unwrap_err();
    assert!(error.to_string().contains(&addr), "{error}");
    assert_eq!(error.outcome(), Outcome::RejectedRetryable);
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let broker = FakeBroker::start(1).await;
    let addrs = vec!["127.0.0.1:1".to_owned(), broker.addr.clone()];
    let client = Client::connect(ClientConfig { addrs, ..ClientConfig::default() }).await.unwrap();
    client.admin().ping().await.unwrap();
}

#[tokio::test]
async fn another_kind_of_server_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        // Held open until the client has read it.
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    let error = Client::connect(addr).await.unwrap_err();
    assert!(matches!(error, Error::Session(_)) && error.to_string().contains("not a frame"), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ClientConfig {
        connect_timeout: Duration::from_millis(100),
        ..ClientConfig::new(listener.local_addr().unwrap().to_string())
    };
    let error = Client::connect(config).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_handshake_says_why() {
    let broker = FakeBroker::start(1).await;
    broker.fail(Opcode::Hello, [Fault::Refuse(ErrorCode::TooManyConnections)]);
    let error = Client::connect(broker.config()).await.unwrap_err();
    assert!(error.to_string().contains("connection limit"), "{error}");
}
