//! Sends records to a topic, many at a time, and tells what became of each.
//!
//! `cargo run -p ringbolt-client --example produce -- 127.0.0.1:7411 TOPIC [COUNT]`

use std::time::Instant;

use ringbolt_client::{Client, ErrorCode, Outcome, Record};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let topic = args.next().unwrap_or_else(|| "example".to_owned());
    let count: u64 = args.next().map_or(Ok(1000), |count| count.parse())?;

    let client = Client::connect(addr).await?;
    match client.admin().create_topic(&topic, 4).await {
        Ok(_) => println!("created {topic}"),
        Err(ringbolt_client::Error::Refused(refusal))
            if refusal.error_code() == Some(ErrorCode::TopicExists) => {}
        Err(error) => return Err(error.into()),
    }

    let producer = client.producer(&topic).build().await?;
    let start = Instant::now();
    let mut pending = Vec::new();
    for i in 0..count {
        let record = Record::new(format!("value {i}")).with_key(format!("key {}", i % 10));
        pending.push(producer.enqueue(record).await?);
    }
    let mut durable = 0;
    for answer in pending {
        match answer.await {
            Ok(_) => durable += 1,
            Err(error) => match error.outcome() {
                Outcome::Unknown => eprintln!("may or may not be written: {error}"),
                _ => eprintln!("not written: {error}"),
            },
        }
    }
    println!("{durable} of {count} records are on disk after {:?}", start.elapsed());
    producer.close().await;
    Ok(())
}
