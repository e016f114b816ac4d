//! Reads a topic from its start and follows it.
//!
//! `cargo run -p ringbolt-client --example consume -- 127.0.0.1:7411 TOPIC`

use ringbolt_client::{Client, Error, StartAt};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let topic = args.next().unwrap_or_else(|| "example".to_owned());

    let client = Client::connect(addr).await?;
    let mut reader = client.reader(&topic).start_at(StartAt::Earliest).build().await?;
    loop {
        let record = reader.next().await?;
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let value = String::from_utf8_lossy(&record.value);
        println!("{}/{} {key}: {value}", record.partition, record.offset);
    }
}
