//! The commands as a user types them, with a real broker: the page of use in
//! the README, topics, produce and its four outcomes, counters, and what is
//! said when something is wrong.

mod net_common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use net_common::cli::*;
use net_common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const SMALL: &[&str] = &["--memory", "96MiB"];

/// The commands of a section of the README, without its comments.
fn page_of(title: &str) -> Vec<&'static str> {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## ").find(|section| section.starts_with(title)).unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines).map(|line| line.split("  #").next().unwrap().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

/// A shell that runs a line of the page as it stands there, but for where the
/// broker listens and has its data: other tests have theirs at the same time.
fn shell(line: &str, dir: &TempDir, addr: &str) -> Command {
    let data = dir.path().join("data");
    let line = line.replace("/var/tmp/ringbolt-data", data.to_str().unwrap());
    let wrapper = r#"ringbolt() {
        case $1 in
            serve) exec "$BIN" "$@" --listen "$ADDR" --segment-size 16MiB ;;
            log) exec "$BIN" "$@" ;;
            *) exec "$BIN" "$@" --addr "$ADDR" ;;
        esac
    }"#;
    let mut command = Command::new("bash");
    command.env("BIN", env!("CARGO_BIN_EXE_ringbolt")).env("ADDR", addr);
    command.args(["-c", &format!("set -o pipefail\n{wrapper}\n{line}")]);
    command
}

#[test]
fn the_readme_can_be_followed_line_by_line() {
    let expected = [
        "cargo build --release --workspace",
        "export PATH=$PWD/target/release:$PATH",
        "ringbolt serve --data /var/tmp/ringbolt-data &",
        "ringbolt topic create orders --partitions 4",
        "ringbolt topic describe orders",
        r"printf 'one\ntwo\nthree\n' | ringbolt produce orders --key customer-7",
        "ringbolt consume orders",
        "ringbolt consume orders --from end --follow",
        "ringbolt stats",
        // Done below in other words, as each line has a shell of its own.
        "kill %1; wait",
        // Has tests of its own, tests/doctor.rs.
        "ringbolt doctor --data /var/tmp/ringbolt-data",
        "ringbolt log inspect /var/tmp/ringbolt-data",
        "ringbolt log verify /var/tmp/ringbolt-data",
        "ringbolt serve --data /var/tmp/ringbolt-data &",
    ];
    let page = page_of("Use it");
    assert_eq!(page[..expected.len()], expected, "the page has changed: so must this test");
    let dir = TempDir::new().unwrap();
    let serve = page[2].trim_end_matches(" &");
    let mut server = Server::spawn(&mut shell(serve, &dir, "127.0.0.1:0"));
    let addr = server.addr.to_string();
    let run = |n: usize| Running::new(&mut shell(page[n], &dir, &addr)).end();

    assert_eq!(run(3).good(), "created orders with 4 partitions\n");
    let described = run(4).good();
    assert!(described.starts_with("orders: number ") && described.lines().count() == 6, "{described}");
    let told = run(5);
    assert!(told.err.contains("3 records: 3 durable"), "{told:?}");
    let told = told.good();
    let (partition, _) = told.split_once(' ').unwrap();
    assert_eq!(told, format!("{partition} 0\n{partition} 1\n{partition} 2\n"), "equal keys, one partition");
    assert_eq!(run(6).good(), "one\ntwo\nthree\n");

    let mut follower = Running::new(&mut shell(page[7], &dir, &addr));
    assert_eq!(first_new_line(&mut follower, At(server.addr)), "news");
    signal(&follower.child, "-INT");
    assert_eq!(follower.end().code, 130, "as a shell reports an interrupt");
    let stats = run(8).good();
    assert!(stats.lines().any(|line| line.contains("acked_batches_total")), "{stats}");

    server.kill();
    let mut server = Server::spawn(&mut shell(serve, &dir, "127.0.0.1:0"));
    let consumed = Running::new(&mut shell(page[6], &dir, &server.addr.to_string())).end();
    let consumed = consumed.good();
    assert!(["one", "two", "three", "news"].iter().all(|value| consumed.lines().any(|line| line == *value)));
    assert_eq!(server.stop().code(), Some(0));
    let inspected = run(11).good();
    assert!(inspected.contains("orders"), "{inspected}");
    assert!(run(12).good().ends_with("sound\n"));
    let mut server = Server::spawn(&mut shell(page[13].trim_end_matches(" &"), &dir, "127.0.0.1:0"));
    assert_eq!(server.stop().code(), Some(0));
}

/// Three records as in the section before it, and then all lines in one shell, which has
/// the worker in its background.
#[test]
fn the_workers_of_the_readme_do_what_it_says() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "orders", "--partitions", "4"]).good();
    broker.run_on(&["produce", "orders", "--key", "customer-7", "-q"], b"one\ntwo\nthree\n").good();
    let page = page_of("Workers").join("\n") + "\nwait";
    // As it stands there, but for where the broker is.
    let script = dir.path().join("ringbolt");
    let exec = format!("#!/bin/sh\nexec {} \"$@\" --addr {}\n", env!("CARGO_BIN_EXE_ringbolt"), server.addr);
    std::fs::write(&script, exec).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let told = Running::new(Command::new("bash").env("PATH", path).args(["-c", &page])).end();
    let (err, out) = (told.err.clone(), told.good());
    let billed: Vec<&str> = out.lines().filter(|line| line.starts_with("bill ")).collect();
    let expected = ["one", "two", "three", "four", "five", "soon"].map(|n| format!("bill {n} to customer-7"));
    assert_eq!(billed, expected, "one after the other, and each once");
    assert!(out.contains("There is nothing new") && out.contains("key-ordered on orders, lag 0"), "{out}");
    assert_eq!(err.matches("no such customer").count(), 2, "two failures: {err}");
    assert!(out.contains("exit status 1: no such customer"), "the reason is shown: {out}");
    assert!(out.lines().any(|line| line.ends_with(" 0: redriven")), "{out}");
    assert!(out.lines().any(|line| line == "bad"), "it came once more: {out}");
    let open = broker.run(&["dlq", "list", "--json"]).json();
    assert_eq!(open["topics"][0]["open"], 0, "{open}");
    let group = broker.run(&["group", "describe", "billing", "--json"]).json();
    let lag: u64 = group["partitions"].as_array().unwrap().iter().map(|p| p["lag"].as_u64().unwrap()).sum();
    assert_eq!(lag, 0);
}

/// Produces until one that follows from the end has found it, and returns what
/// it prints first.
fn first_new_line(follower: &mut Running, broker: At) -> String {
    let mut line = None;
    wait_until("a new record is printed", || {
        broker.run_on(&["produce", "orders", "-q"], b"news\n").good();
        line = follower.try_line();
        line.is_some()
    });
    line.unwrap()
}

#[test]
fn topics_are_created_listed_described_and_deleted() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    assert_eq!(broker.run(&["topic", "list", "--json"]).json(), json!({ "topics": [] }));
    let orders = broker.run(&["topic", "create", "orders", "--partitions", "2", "--json"]).json();
    assert_eq!(orders, json!({ "id": orders["id"], "name": "orders", "partitions": 2 }));
    assert!(orders["id"].is_u64());
    let bills = broker.run(&["topic", "create", "bills", "--json"]).json();
    assert_eq!(bills["partitions"], 1, "the default");
    assert_eq!(broker.run(&["topic", "list", "--json"]).json(), json!({ "topics": [bills, orders] }));
    let listed = broker.run(&["topic", "list"]).good();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["TOPIC", "PARTITIONS", "ID"]);
    assert_eq!((rows[1][0], rows[2][0]), ("bills", "orders"));

    broker.run_on(&["produce", "orders", "--partition", "1"], b"a\nb\n").good();
    let partition = |index: u32, records: u64| {
        json!({
            "partition": index, "shard": 0, "start_offset": 0, "end_offset": records, "records": records,
        })
    };
    let described = broker.run(&["topic", "describe", "orders", "--json"]).json();
    let partitions = [partition(0, 0), partition(1, 2)];
    let expected = json!({ "id": orders["id"], "name": "orders", "partitions": partitions, "records": 2 });
    assert_eq!(described, expected);

    assert_eq!(broker.run(&["topic", "delete", "orders", "--json"]).json(), json!({ "deleted": "orders" }));
    assert_eq!(broker.run(&["topic", "delete", "bills"]).good(), "deleted bills\n");
    assert_eq!(broker.run(&["topic", "list", "--json"]).json(), json!({ "topics": [] }));
    broker.run(&["topic", "describe", "orders"]).bad(1, &["UnknownTopic", "orders"]);
    let again = broker.run(&["topic", "create", "orders", "--json"]).json();
    assert_ne!(again["id"], orders["id"]);
    assert_eq!(broker.run(&["consume", "orders"]).good(), "", "another topic of the same name is empty");
}

#[test]
fn produce_says_of_each_line_where_it_is_or_why_it_is_not() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "3"]).good();
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'x'; 2 << 20]);
    input.extend(b"\n\nlast");
    let told =
        broker.run_on(&["produce", "t", "--partition", "2", "--key", "k", "--header", "h=v=w"], &input);
    assert_eq!((told.code, told.out.as_str()), (1, "2 0\n2 1\n2 2\n"), "{told:?}");
    let complaints: Vec<&str> = told.err.lines().collect();
    assert!(complaints[0].starts_with("line 2: rejected-final: a record of 2097152 bytes"), "{complaints:?}");
    assert_eq!(complaints[1..], ["4 records: 3 durable, 1 rejected-final"]);

    let lines = broker.run(&["consume", "t", "--json"]).good();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let values: Vec<&str> = records.iter().map(|record| record["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["first", "", "last"], "an empty line is a record, a missing last newline no matter");
    for record in &records {
        assert_eq!((&record["partition"], &record["key"]), (&json!(2), &json!("k")));
        assert_eq!(record["headers"], json!([{ "name": "h", "value": "v=w" }]));
    }

    let told = broker.run_on(&["produce", "t", "--min-copies", "2"], b"a\nb\n");
    assert_eq!((told.code, told.out.as_str()), (1, ""));
    assert!(told.err.contains("line 2: rejected-final: ") && told.err.contains("2 copies"), "{told:?}");
    let told = broker.run_on(&["produce", "t", "--quiet"], b"a\nb\n");
    assert_eq!((told.code, told.out.as_str(), told.err.as_str()), (0, "", "2 records: 2 durable\n"));
    assert_eq!(broker.run(&["topic", "describe", "t", "--json"]).json()["records"], 5);
}

/// The broker takes a record, is stopped with another under way, and dies.
#[test]
fn produce_ends_in_each_of_the_four_outcomes() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    let mut produce = broker.start(&["produce", "t", "--deadline", "2s"]);
    produce.say("a");
    assert_eq!(produce.line(), "0 0");
    produce.say(&"x".repeat(2 << 20));
    assert!(produce.error_line().starts_with("line 2: rejected-final: "));
    signal(&server.child, "-STOP");
    produce.say("b");
    let told = produce.error_line();
    assert!(told.starts_with("line 3: unknown: "), "{told}");
    server.kill();
    produce.say("c");
    let told = produce.error_line();
    assert!(told.starts_with("line 4: rejected-retryable: "), "{told}");
    let told = produce.end();
    assert_eq!(told.code, 1);
    assert_eq!(told.err, "4 records: 1 durable, 1 rejected-retryable, 1 rejected-final, 1 unknown\n");
    let server = Server::start(&dir, SMALL);
    let kept = At(server.addr).run(&["consume", "t"]).good();
    assert!(
        kept == "a\n" || kept == "a\nb\n",
        "{kept:?}: what was rejected is there, or what was durable is not"
    );
}

#[test]
fn produce_into_a_topic_that_is_deleted_meanwhile_stops_with_its_input_open() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    let mut produce = broker.start(&["produce", "t"]);
    produce.say("a");
    assert_eq!(produce.line(), "0 0");
    broker.run(&["topic", "delete", "t"]).good();
    // Another one of that name is not the one that was meant.
    broker.run(&["topic", "create", "t"]).good();
    produce.say("b");
    wait_until("produce ends", || produce.child.try_wait().unwrap().is_some());
    let told = produce.end();
    assert_eq!((told.code, told.out.as_str()), (1, ""), "{told:?}");
    let lines: Vec<&str> = told.err.lines().collect();
    assert!(
        lines[0].starts_with("line 2: rejected-final: ") && lines[0].contains("UnknownTopic"),
        "{lines:?}"
    );
    assert_eq!(lines[1], "2 records: 1 durable, 1 rejected-final");
    assert_eq!(lines[2], "what follows line 2 of the input was not taken");
    assert!(lines[3].starts_with("ringbolt: ") && lines[3].contains("UnknownTopic"), "{lines:?}");
    assert_eq!(broker.run(&["consume", "t"]).good(), "");
}

#[test]
fn a_deadline_that_leaves_no_time_is_refused_before_anything_is_done() {
    for none in ["0s", "0ms", "10ns"] {
        // Nobody listens there: what is wrong with the flag is told all the same.
        let told = ringbolt(&["produce", "t", "--deadline", none, "--addr", "127.0.0.1:1"], b"a\n");
        told.bad(2, &["--deadline", none, "at least 1us"]);
    }
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    // More µs than 64 bits hold.
    let told = broker.run_on(&["produce", "t", "--deadline", "584543years"], b"a\n");
    assert_eq!(told.good(), "0 0\n");
}

#[test]
fn counters_are_printed_for_people_and_programs() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    let before = broker.run(&["stats", "--json"]).json();
    assert_eq!((&before["broker"]["boot"], &before["broker"]["shards"]), (&json!(1), &json!(1)));
    broker.run(&["topic", "create", "t"]).good();
    let count = |stats: &Value| stats["stats"]["acked_batches_total"].as_u64().unwrap();
    broker.run_on(&["produce", "t"], b"a\n").good();
    let after = broker.run(&["stats", "--json"]).json();
    assert_eq!((count(&before), count(&after)), (0, 1), "the topic is a batch that nobody produced");
    assert!(after["stats"]["acked_bytes_total"].as_u64().unwrap() > 0);
    assert_eq!(after["broker"]["id"], before["broker"]["id"]);
    let shown = broker.run(&["stats"]).good();
    assert!(shown.starts_with(&format!("broker {}, boot 1", after["broker"]["id"].as_str().unwrap())));
    for name in after["stats"].as_object().unwrap().keys() {
        assert!(shown.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}: {shown}");
    }
}

#[test]
fn what_the_broker_refuses_is_told_with_the_name_and_exits_with_1() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "2"]).good();
    let names = "1 to 249 of A-Z a-z 0-9 . _ -";
    for name in ["a/b", "", "with space", "ümlaut"] {
        broker.run(&["topic", "create", name]).bad(1, &["InvalidTopicName", name, names]);
    }
    for (len, shown) in [(250, "a topic name of 250 bytes"), (10_000, "a topic name of 10000 bytes")] {
        let name = "n".repeat(len);
        let told = broker.run(&["topic", "create", &name]);
        assert!(told.err.len() < 300, "the name is not sent back: {told:?}");
        told.bad(1, &["InvalidTopicName", shown, names]);
        for command in [["topic", "describe"], ["topic", "delete"]] {
            broker.run(&[&command[..], &[&name]].concat()).bad(1, &["UnknownTopic", shown]);
        }
    }
    let longest = "n".repeat(249);
    broker.run(&["topic", "create", &longest]).good();
    broker.run(&["topic", "create", "t"]).bad(1, &["TopicExists", "\"t\"", "topic describe"]);
    broker.run(&["topic", "create", "many", "--partitions", "100001"]).bad(2, &["100001", "1..=100000"]);
    for command in [&["topic", "describe"][..], &["topic", "delete"], &["produce"], &["consume"]] {
        let told = broker.run(&[command, &["missing"]].concat());
        told.bad(1, &["UnknownTopic", "\"missing\"", "topic list"]);
    }
    broker.run(&["consume", "missing", "--follow", "--count", "0"]).bad(1, &["UnknownTopic"]);
    let no_such = "topic t has 2 partitions, there is no partition 2";
    for command in [&["produce"][..], &["consume"], &["consume", "--follow"]] {
        broker.run(&[command, &["t", "--partition", "2"]].concat()).bad(1, &[no_such]);
    }
}

#[test]
fn a_limit_of_partitions_that_is_reached_is_told_with_its_number() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, SMALL);
    let told = At(server.addr).run(&["topic", "create", "t", "--partitions", "100000"]);
    let start = "segments of 16777216 bytes can describe ";
    let (_, text) = told.err.split_once(start).unwrap_or_else(|| panic!("{told:?}"));
    let room = text.split(' ').next().unwrap();
    At(server.addr).run(&["topic", "create", "t", "--partitions", room]).good();
    let full = format!("{start}0 partitions more; see --segment-size");
    At(server.addr).run(&["topic", "create", "u"]).bad(1, &["TooManyPartitions", &full]);
    server.kill();

    let dir = TempDir::new().unwrap();
    let large = ["--listen", "127.0.0.1:0", "--segment-size", "64MiB", "--shards", "1", "--memory", "96MiB"];
    let server = Server::serve(&dir, &large);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "100000"]).good();
    broker.run(&["topic", "create", "u", "--partitions", "99999"]).good();
    let told = broker.run(&["topic", "create", "v", "--partitions", "2"]);
    let limits = "a topic has at most 100000 partitions, a broker 10000 topics with 200000";
    told.bad(1, &["TooManyPartitions", limits, "it has 2 with 199999"]);
    broker.run(&["topic", "create", "v", "--partitions", "1"]).good();
}

#[test]
fn a_broker_that_is_not_there_is_told_with_its_address() {
    let nobody = own_address();
    let addr = nobody.to_string();
    for command in [&["topic", "list"][..], &["produce", "t"], &["consume", "t"], &["stats"]] {
        At(nobody).run(command).bad(1, &[&format!("cannot connect to {addr}"), "refused", "ringbolt serve"]);
    }
    ringbolt(&["topic", "list", "--addr", "nonsense"], b"").bad(1, &["cannot connect to nonsense"]);
    // Of several, the first that answers is taken.
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, SMALL);
    let both = format!("{addr},{}", server.addr);
    ringbolt(&["topic", "list", "--addr", &both], b"").good();
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for_without_end() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let started = std::time::Instant::now();
    let told = At(silent.local_addr().unwrap()).run(&["stats"]);
    assert!(started.elapsed() < Duration::from_secs(15));
    assert!(told.code == 1 && told.err.starts_with("ringbolt: "), "{told:?}");
}

#[test]
fn bad_usage_exits_with_2_and_names_the_flag() {
    for (args, says) in [
        (&["produce", "t", "--nonsense"][..], "--nonsense"),
        (&["consume", "t", "--from", "latest"], "--from"),
        (&["consume", "t", "--from", "-1"], "-1"),
        (&["consume", "t", "--count", "some"], "--count"),
        (&["consume", "t", "--verbose", "--json"], "--json"),
        (&["produce", "t", "--partition", "-1"], "-1"),
        (&["produce", "t", "--header", "plain"], "NAME=VALUE"),
        (&["produce", "t", "--deadline", "soon"], "--deadline"),
        (&["produce"], "<TOPIC>"),
        (&["topic", "create", "t", "--partitions", "0"], "--partitions"),
        (&["topic", "erase", "t"], "erase"),
        (&["serve", "--memory", "much"], "--memory"),
        (&["serve", "--cores", "3-1"], "--cores"),
        (&["nothing"], "nothing"),
    ] {
        ringbolt(args, b"").bad(2, &[says]);
    }
    ringbolt(&["serve"], b"").bad(1, &["no data directory", "--data"]);
    assert!(ringbolt(&["--version"], b"").good().starts_with("ringbolt "));
    assert!(ringbolt(&["help", "consume"], b"").good().contains("--follow"));
}
