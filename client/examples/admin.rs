//! Creates a topic, describes it, lists all, shows counters, deletes it again.
//!
//! `cargo run -p ringbolt-client --example admin -- 127.0.0.1:7411`

use ringbolt_client::{Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let client = Client::connect(addr).await?;
    let admin = client.admin();
    println!("broker with {} shards answers in {:?}", client.broker().shards, admin.ping().await?);

    let name = format!("example-{}", std::process::id());
    let topic = admin.create_topic(&name, 4).await?;
    println!("created {} as number {}", topic.name, topic.id);
    for (index, partition) in admin.describe_topic(&name).await?.partitions.iter().enumerate() {
        let (shard, start, end) = (partition.shard, partition.start_offset, partition.end_offset);
        println!("partition {index}: shard {shard}, offsets {start} to {end}");
    }
    for topic in admin.list_topics().await? {
        println!("topic {} has {} partitions", topic.name, topic.partitions);
    }
    admin.delete_topic(&name).await?;
    for (name, value) in admin.stats().await? {
        println!("{name} = {value}");
    }
    Ok(())
}
