//! Processes the orders of a topic as one of a group of workers: run it as often as you
//! like, each order goes to one of them. What fails is tried again, with pauses that
//! grow, and goes to the dead-letter topic after five failures.
//!
//! `cargo run -p ringbolt-client --example worker -- 127.0.0.1:7411 TOPIC [COUNT]`

use ringbolt_client::{Client, ConsumedRecord, Error, GroupConfig, SettleError};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let topic = args.next().unwrap_or_else(|| "orders".to_owned());
    let count: u64 = args.next().and_then(|count| count.parse().ok()).unwrap_or(u64::MAX);

    let client = Client::connect(addr).await?;
    let config = GroupConfig { max_failures: 5, ..GroupConfig::default() };
    let consumer = client.consumer(&topic, "workers").config(config).open().await?;
    for _ in 0..count {
        let order = consumer.recv().await?;
        let settled = match handle(&order) {
            Ok(()) => order.ack(),
            Err(reason) => {
                eprintln!("{}/{}: {reason} (failure {})", order.partition, order.offset, order.failed() + 1);
                order.reject(reason)
            }
        };
        // Durable from here on; or the order was too long in hand, and another worker
        // has it.
        match settled.await {
            Err(SettleError::LeaseLost) => eprintln!("too late: it is delivered again"),
            settled => settled?,
        }
    }
    // Orders that were fetched ahead go back at once.
    consumer.close().await;
    Ok(())
}

fn handle(order: &ConsumedRecord) -> Result<(), String> {
    let text = std::str::from_utf8(&order.value).map_err(|error| format!("not a text: {error}"))?;
    if text.trim().is_empty() {
        return Err("an empty order".to_owned());
    }
    println!("{}/{}: {text}", order.partition, order.offset);
    Ok(())
}
