//! Sends a job that is to be done in three seconds, and one that is worth nothing after
//! a second; then does what comes when it comes.
//!
//! `cargo run -p ringbolt-client --example delayed -- 127.0.0.1:7411 TOPIC`

use std::time::{Duration, Instant};

use ringbolt_client::{Client, ErrorCode, Record};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let topic = args.next().unwrap_or_else(|| "jobs".to_owned());

    let client = Client::connect(addr).await?;
    match client.admin().create_topic(&topic, 1).await {
        Ok(_) => println!("created {topic}"),
        Err(ringbolt_client::Error::Refused(refusal))
            if refusal.error_code() == Some(ErrorCode::TopicExists) => {}
        Err(error) => return Err(error.into()),
    }

    let producer = client.producer(&topic).build().await?;
    let start = Instant::now();
    producer.send(Record::new("remind me").delay(Duration::from_secs(3))).await?;
    producer.send(Record::new("now or never").ttl(Duration::from_secs(1))).await?;
    producer.close().await;

    let consumer = client.consumer(&topic, "jobs").open().await?;
    for _ in 0..2 {
        let job = consumer.recv().await?;
        println!("after {:?}: {}", start.elapsed(), String::from_utf8_lossy(&job.value));
        job.ack().await?;
    }
    consumer.close().await;
    Ok(())
}
