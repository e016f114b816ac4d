//! What tests of a group's consumer do again and again. The group is "g", of the topic "t".

use std::time::Duration;

use ringbolt_client::{Consumer, ConsumerBuilder, Delivery};
use tokio::time::timeout;

use super::FakeBroker;

pub async fn builder(broker: &FakeBroker) -> ConsumerBuilder {
    broker.client().await.consumer("t", "g")
}

pub async fn take(consumer: &Consumer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..count {
        deliveries.push(consumer.recv().await.unwrap());
    }
    deliveries
}

pub fn acked(broker: &FakeBroker) -> Vec<(u32, u64)> {
    broker.group("g", |g| g.acked.clone())
}

/// Nothing comes within a time in which something would have come.
pub async fn nothing_comes(consumer: &Consumer) {
    if let Ok(delivery) = timeout(Duration::from_millis(100), consumer.recv()).await {
        panic!("{delivery:?}");
    }
}
