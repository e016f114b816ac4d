//! Consumes the records of a Redis stream through a consumer group, one consumer with a
//! fixed number of them in hand, and acknowledges each with an `XACK` of its own.
//!
//! `redis-consume --port 6379 --records 100000` fills a stream, makes a group, measures
//! how long it takes until every record is acknowledged, and prints records per second.
//! How durable that is is the server's configuration (`appendfsync always`).

use std::collections::VecDeque;
use std::time::Instant;

use clap::Parser;
use redis::{Client, Cmd, Connection, RedisResult, Value, cmd};

const STREAM: &str = "stream";
const GROUP: &str = "group";

/// Records that are added in one go.
const FILL: usize = 1_000;

/// What is in hand is in two halves: one is with the server while the other is worked on.
const HALVES: usize = 2;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Port of the server, at 127.0.0.1
    #[arg(long)]
    port: u16,
    /// Records to consume
    #[arg(long, default_value_t = 100_000)]
    records: usize,
    /// Bytes of each
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Records that the consumer may have in hand
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    in_flight: u32,
    /// Acknowledge what came together with one XACK
    #[arg(long)]
    together: bool,
}

fn main() -> RedisResult<()> {
    let args = Args::parse();
    let client = Client::open(format!("redis://127.0.0.1:{}/", args.port))?;
    let mut connection = client.get_connection()?;
    fill(&mut connection, &args)?;
    let () = cmd("XGROUP").arg(&["CREATE", STREAM, GROUP, "0"]).query(&mut connection)?;
    let begun = Instant::now();
    let acked = consume(&mut connection, &args)?;
    let took = begun.elapsed();
    assert_eq!(acked, args.records, "records were acknowledged");
    let pending: Value = cmd("XPENDING").arg(&[STREAM, GROUP]).query(&mut connection)?;
    assert_eq!(first_int(&pending), 0, "records are pending");
    println!("{:.0}", acked as f64 / took.as_secs_f64());
    Ok(())
}

/// Adds all records to the stream.
fn fill(connection: &mut Connection, args: &Args) -> RedisResult<()> {
    let value = vec![b'x'; args.size];
    for begin in (0..args.records).step_by(FILL) {
        let mut pipe = redis::pipe();
        for _ in begin..args.records.min(begin + FILL) {
            pipe.cmd("XADD").arg(STREAM).arg("*").arg("value").arg(&value).ignore();
        }
        pipe.exec(connection)?;
    }
    Ok(())
}

/// Consumes until nothing is left. Returns how many records were acknowledged.
fn consume(connection: &mut Connection, args: &Args) -> RedisResult<usize> {
    let half = args.in_flight as usize / HALVES;
    let read = cmd("XREADGROUP")
        .arg(&["GROUP", GROUP, "consumer", "COUNT", &half.to_string(), "STREAMS", STREAM, ">"])
        .get_packed_command();
    // Of each half how many answers to acknowledgements come before its records.
    let mut expected: VecDeque<usize> = VecDeque::new();
    for _ in 0..HALVES {
        connection.send_packed_command(&read)?;
        expected.push_back(0);
    }
    let mut acked = 0;
    while let Some(acks) = expected.pop_front() {
        for _ in 0..acks {
            acked += first_int(&connection.recv_response()?);
        }
        let ids = ids(&connection.recv_response()?, args.size);
        if ids.is_empty() && acks == 0 {
            continue;
        }
        let acks = acks_of(&ids, args.together);
        let mut bytes = Vec::new();
        acks.iter().for_each(|ack| ack.write_packed_command(&mut bytes));
        bytes.extend_from_slice(&read);
        connection.send_packed_command(&bytes)?;
        expected.push_back(acks.len());
    }
    Ok(acked)
}

fn acks_of(ids: &[Vec<u8>], together: bool) -> Vec<Cmd> {
    let ack = |ids: &[Vec<u8>]| cmd("XACK").arg(&[STREAM, GROUP]).arg(ids).to_owned();
    match together && !ids.is_empty() {
        true => vec![ack(ids)],
        false => ids.iter().map(|id| ack(std::slice::from_ref(id))).collect(),
    }
}

/// The IDs of the records of a read, each of which is seen to be whole.
fn ids(read: &Value, size: usize) -> Vec<Vec<u8>> {
    let Value::Array(streams) = read else { return Vec::new() };
    let [Value::Array(stream)] = &streams[..] else { panic!("one stream was asked for: {streams:?}") };
    let [_, Value::Array(records)] = &stream[..] else { panic!("no records: {stream:?}") };
    let id = |record: &Value| {
        let Value::Array(record) = record else { panic!("no record: {record:?}") };
        let [Value::BulkString(id), Value::Array(fields)] = &record[..] else { panic!("{record:?}") };
        assert!(matches!(&fields[..], [_, Value::BulkString(value)] if value.len() == size));
        id.clone()
    };
    records.iter().map(id).collect()
}

/// An integer, or the first element of an array that is one.
fn first_int(value: &Value) -> usize {
    match value {
        Value::Int(count) => *count as usize,
        Value::Array(values) if !values.is_empty() => first_int(&values[0]),
        other => panic!("no number: {other:?}"),
    }
}
