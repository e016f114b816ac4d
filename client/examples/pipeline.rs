//! Makes an invoice of every order, once: stop it at any time, in any way, and start it
//! again; no order is left out and none is invoiced twice.
//!
//! `cargo run -p ringbolt-client --example pipeline -- 127.0.0.1:7411 ORDERS INVOICES`

use ringbolt_client::{Client, Error, ErrorCode, GroupMode, Record};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let addr = args.next().unwrap_or_else(|| "127.0.0.1:7411".to_owned());
    let orders = args.next().unwrap_or_else(|| "orders".to_owned());
    let invoices = args.next().unwrap_or_else(|| "invoices".to_owned());

    let client = Client::connect(addr).await?;
    let partitions = client.admin().describe_topic(&orders).await?.topic.partitions;
    match client.admin().create_topic(&invoices, partitions).await {
        Ok(_) => println!("created {invoices}"),
        Err(Error::Refused(refusal)) if refusal.error_code() == Some(ErrorCode::TopicExists) => {}
        Err(error) => return Err(error),
    }

    // Strictly in order, and each partition by one consumer: only so can each order be
    // invoiced once.
    let consumer = client.consumer(&orders, "invoicing").mode(GroupMode::Exclusive).open().await?;
    consumer
        .process_with(client.producer(&invoices), |order| {
            let Ok(text) = std::str::from_utf8(&order.value) else {
                eprintln!("{}/{} is not a text; no invoice", order.partition, order.offset);
                return None;
            };
            let invoice = Record::new(format!("please pay for {text}"));
            Some(match &order.key {
                Some(customer) => invoice.with_key(customer.clone()),
                None => invoice,
            })
        })
        .await
}
