//! `ringbolt group`, and `ringbolt consume --group` with a real broker: what is
//! acknowledged does not come again, and what is not does.

mod net_common;

use std::process::{Command, Stdio};

use net_common::cli::*;
use net_common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A broker with a topic `t` of two partitions, and ten numbered records in its
/// partition 0.
fn ten_records() -> (TempDir, Server) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", "2"]).good();
    let input: String = (0..10).map(|n| format!("{n}\n")).collect();
    broker.run_on(&["produce", "t", "--partition", "0", "-q"], input.as_bytes()).good();
    (dir, server)
}

fn numbers(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("{n}\n")).collect()
}

#[test]
fn a_group_is_created_listed_described_reset_explained_and_deleted() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    let create = ["group", "create", "g", "--topic", "t", "--mode", "key-ordered", "--lease", "5s"];
    assert_eq!(broker.run(&create).good(), "created g on t\n");
    broker.run(&create).bad(1, &["GroupExists", "group describe"]);
    broker.run(&["group", "create", "h", "--topic", "gone"]).bad(1, &["UnknownTopic"]);
    let listed = broker.run(&["group", "list", "--json"]).json();
    let names: Vec<_> = listed["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(names, ["g", "t.dlq"]);
    assert!(broker.run(&["group", "list"]).good().contains("key-ordered"));

    let partition =
        |n: usize| broker.run(&["group", "describe", "g", "--json"]).json()["partitions"][n].take();
    assert_eq!((&partition(0)["lag"], &partition(0)["floor"]), (&json!(10), &json!(0)));
    let explained = broker.run(&["group", "explain", "g"]).good();
    assert!(explained.contains("partition 0:\n  There are records, and no consumer"), "{explained}");
    assert!(explained.contains("partition 1:\n  There is nothing new"), "{explained}");

    broker.run(&["group", "reset", "g", "--to", "7", "--partition", "0"]).good();
    assert_eq!((&partition(0)["lag"], &partition(0)["floor"]), (&json!(3), &json!(7)));
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), numbers(7..10));
    assert_eq!(partition(0)["lag"], 0);
    broker.run(&["group", "reset", "g", "--to", "earliest"]).good();
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), numbers(0..10));

    assert_eq!(broker.run(&["group", "delete", "g"]).good(), "deleted g\n");
    broker.run(&["group", "describe", "g"]).bad(1, &["UnknownGroup", "group list"]);
    broker.run(&["group", "delete", "g"]).bad(1, &["UnknownGroup"]);
}

#[test]
fn what_was_printed_and_acknowledged_does_not_come_again() {
    let (dir, mut server) = ten_records();
    let broker = At(server.addr);
    assert_eq!(broker.run(&["consume", "t", "--group", "g", "--count", "3"]).good(), numbers(0..3));
    let verbose = broker.run(&["consume", "t", "--group", "g", "--count", "1", "--verbose"]).good();
    let fields: Vec<&str> = verbose.trim_end().split('\t').collect();
    assert_eq!((fields[0], fields[1], fields[3], fields[4]), ("0", "3", "-", "3"));
    let record = broker.run(&["consume", "t", "--group", "g", "--count", "1", "--json"]).json();
    assert_eq!((&record["offset"], &record["value"]), (&json!(4), &json!("4")));
    // Acknowledgements are durable.
    server.kill();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let broker = At(server.addr);
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), numbers(5..10));
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), "");
    // Another group has its own account, and plain reading has none.
    assert_eq!(broker.run(&["consume", "t", "--group", "other"]).good(), numbers(0..10));
    assert_eq!(broker.run(&["consume", "t"]).good(), numbers(0..10));
}

#[test]
fn a_following_consumer_gets_what_comes_later_and_an_interrupt_ends_it() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    let mut follower = broker.start(&["consume", "t", "--group", "g", "--follow"]);
    for n in 0..10 {
        assert_eq!(follower.line(), n.to_string());
    }
    broker.run_on(&["produce", "t", "-q"], b"later\n").good();
    assert_eq!(follower.line(), "later");
    signal(&follower.child, "-TERM");
    assert_eq!(follower.end().code, 130);
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), "");
}

/// Nothing of what a killed consumer had in hand is acknowledged, or lost: it comes again
/// once the lease has run out.
#[test]
fn what_a_killed_consumer_had_in_hand_comes_again() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    broker.run(&["group", "create", "g", "--topic", "t", "--lease", "300ms", "--backoff", "none"]).good();
    let args = ["consume", "t", "--group", "g", "--ack", "manual"];
    let mut killed = broker.start(&args);
    for n in 0..10 {
        assert!(killed.line().ends_with(&format!("\t{n}")));
    }
    for n in 0..4 {
        killed.say(&format!("ack 0 {n}"));
        assert_eq!(killed.error_line(), format!("ack 0 {n}: durable"));
    }
    drop(killed);
    let again = broker.run(&["consume", "t", "--group", "g", "--follow", "--count", "6"]).good();
    let mut again: Vec<&str> = again.lines().collect();
    again.sort_unstable();
    assert_eq!(again, ["4", "5", "6", "7", "8", "9"]);
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), "");
}

#[test]
fn a_record_that_comes_again_says_how_often_it_came_and_failed_and_since_when() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    broker.run(&["group", "create", "g", "--topic", "t", "--backoff", "none"]).good();
    let manual = ["consume", "t", "--group", "g", "--ack", "manual"];
    let said = |line: String| {
        let record: Value = serde_json::from_str(&line).unwrap();
        ["offset", "acquired", "failed", "first_delivery"].map(|key| record[key].clone())
    };
    let mut worker = broker.start(&[&manual[..], &["--json"]].concat());
    for n in 0..10 {
        assert_eq!(said(worker.line()), [json!(n), json!(1), json!(0), Value::Null]);
    }
    worker.say("reject 0 0 no");
    let [offset, acquired, failed, first] = said(worker.line());
    assert_eq!([offset, acquired, failed], [json!(0), json!(2), json!(1)]);
    let first = first.as_str().expect("a time").to_owned();
    assert!(humantime::parse_rfc3339(&first).is_ok(), "{first}");
    // All of them go back.
    assert_eq!(worker.end().code, 0);

    let mut worker = broker.start(&manual);
    let lines: Vec<String> = (0..10).map(|_| worker.line()).collect();
    let failed = format!(" (delivery 3, failed 1, first {first})\t-\t0");
    assert!(lines.iter().any(|line| line.ends_with(&failed)), "{lines:?}");
    let given_back = lines.iter().filter(|line| line.contains(" (delivery 2, failed 0, first "));
    assert_eq!(given_back.count(), 9, "{lines:?}");
    drop(worker);

    let plain = broker.run(&["consume", "t", "--count", "1", "--json"]).json();
    let has_any = ["acquired", "failed", "first_delivery"].iter().any(|key| plain.get(key).is_some());
    assert!(!has_any, "without a group nobody counts: {plain}");
}

#[test]
fn what_nobody_reads_is_not_acknowledged() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command.args(["consume", "t", "--group", "g", "--addr", &server.addr.to_string()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    let described = broker.run(&["group", "describe", "g", "--json"]).json();
    assert_eq!(
        (&described["partitions"][0]["lag"], &described["partitions"][0]["leased"]),
        (&json!(10), &json!(0))
    );
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), numbers(0..10));
}

#[test]
fn a_mode_is_for_a_new_group_and_must_be_that_of_one_that_is_there() {
    let (_dir, server) = ten_records();
    let broker = At(server.addr);
    let exclusive = ["consume", "t", "--group", "g", "--mode", "exclusive"];
    assert_eq!(broker.run(&exclusive).good(), numbers(0..10));
    assert_eq!(broker.run(&["group", "describe", "g", "--json"]).json()["mode"], "exclusive");
    broker
        .run(&["consume", "t", "--group", "g", "--mode", "shared"])
        .bad(1, &["group \"g\" is exclusive on topic \"t\""]);
    // Without a mode it is taken as it is.
    assert_eq!(broker.run(&["consume", "t", "--group", "g"]).good(), "");
    broker.run(&["topic", "create", "u"]).good();
    broker.run(&["consume", "u", "--group", "g"]).bad(1, &["is exclusive on topic \"t\""]);
    broker.run(&["consume", "gone", "--group", "new"]).bad(1, &["UnknownTopic", "topic list"]);
}

#[test]
fn options_that_make_no_sense_together_are_refused() {
    for (args, says) in [
        (&["--group", "g", "--from", "end"][..], &["--from", "cannot be used with", "--group"][..]),
        (&["--group", "g", "--partition", "0"], &["--partition", "cannot be used with"]),
        (&["--exec", "true"], &["required arguments were not provided", "--group"]),
        (&["--ack", "manual"], &["required arguments were not provided", "--group"]),
        (&["--mode", "shared"], &["required arguments were not provided", "--group"]),
        (&["--max-in-flight", "2"], &["required arguments were not provided", "--group"]),
        (&["--group", "g", "--exec", "true", "--json"], &["--exec", "cannot be used with", "--json"]),
        (&["--group", "g", "--exec", "true", "--ack", "auto"], &["--exec", "cannot be used with", "--ack"]),
        (&["--group", "g", "--max-in-flight", "0"], &["--max-in-flight"]),
        (&["--group", "g", "--mode", "fair"], &["expected shared, key-ordered or exclusive"]),
    ] {
        ringbolt(&[&["consume", "t"], args].concat(), b"").bad(2, says);
    }
}
