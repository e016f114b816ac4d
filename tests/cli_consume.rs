//! `ringbolt consume` with a real broker: where it starts, where it ends, and
//! what it follows.

mod net_common;

use std::process::{Command, Stdio};
use std::time::Duration;

use net_common::cli::*;
use net_common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Smallest memory and segments, so that little data takes several.
const TINY: &[&str] =
    &["--listen", "127.0.0.1:0", "--shards", "1", "--memory", "96MiB", "--segment-size", "4MiB"];

fn records(ran: Ran) -> Vec<Value> {
    ran.good().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn values(ran: Ran) -> Vec<String> {
    ran.good().lines().map(str::to_owned).collect()
}

/// A broker with a topic `t`, and ten numbered records in its partition 0.
fn ten_records(partitions: &str) -> (TempDir, Server) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t", "--partitions", partitions]).good();
    let input: String = (0..10).map(|n| format!("{n}\n")).collect();
    broker.run_on(&["produce", "t", "--partition", "0"], input.as_bytes()).good();
    (dir, server)
}

#[test]
fn reading_starts_and_ends_where_it_was_told() {
    let (_dir, server) = ten_records("2");
    let broker = At(server.addr);
    for (more, expected) in [
        (&[][..], 0..10),
        (&["--from", "earliest"], 0..10),
        (&["--from", "end"], 0..0),
        (&["--from", "7"], 7..10),
        (&["--from", "10"], 0..0),
        (&["--count", "3"], 0..3),
        (&["--count", "0"], 0..0),
        (&["--from", "2", "--count", "1"], 2..3),
        (&["--from", "8", "--count", "100"], 8..10),
        (&["--partition", "0", "--from", "9"], 9..10),
        (&["--partition", "1"], 0..0),
        (&["--from", "@0"], 0..10),
        (&["--from", "2020-01-01T00:00:00Z"], 0..10),
        (&["--from", "2999-01-01T00:00:00Z"], 0..0),
        (&["--follow", "--count", "4"], 0..4),
        (&["--follow", "--partition", "0", "--from", "5", "--count", "5"], 5..10),
    ] {
        let printed = values(broker.run(&[&["consume", "t"], more].concat()));
        let expected: Vec<String> = expected.map(|n| n.to_string()).collect();
        assert_eq!(printed, expected, "{more:?}");
    }
    let verbose = broker.run(&["consume", "t", "--from", "9", "--verbose"]).good();
    let fields: Vec<&str> = verbose.trim_end().split('\t').collect();
    assert_eq!((fields[0], fields[1], fields[3], fields[4]), ("0", "9", "-", "9"));
}

#[test]
fn an_offset_beyond_the_end_is_refused_with_both_numbers() {
    let (_dir, server) = ten_records("2");
    let broker = At(server.addr);
    let says = ["offset 1000000 is out of range", "partition 0 starts at 0 and ends at 10", "topic describe"];
    broker.run(&["consume", "t", "--from", "1000000"]).bad(1, &says);
    broker.run(&["consume", "t", "--from", "1000000", "--count", "1"]).bad(1, &says);
    broker.run(&["consume", "t", "--from", "11", "--partition", "0"]).bad(1, &["offset 11 ", "ends at 10"]);
    // There it is the end, and there nothing is to be read yet.
    broker.run(&["consume", "t", "--from", "10", "--partition", "0"]).good();
    let other = ["offset 1 is out of range", "partition 1 starts at 0 and ends at 0"];
    broker.run(&["consume", "t", "--from", "1", "--partition", "1"]).bad(1, &other);
    broker.run(&["consume", "t", "--from", "11", "--partition", "0", "--follow"]).bad(1, &["ends at 10"]);
}

#[test]
fn an_offset_that_retention_has_removed_is_refused_with_both_numbers() {
    let dir = TempDir::new().unwrap();
    let server = Server::serve(&dir, &[TINY, &["--retention-bytes", "8MiB"]].concat());
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    let line = "x".repeat(400_000) + "\n";
    broker.run_on(&["produce", "t", "-q"], line.repeat(60).as_bytes()).good();
    let mut first = 0;
    wait_until("the oldest records are removed", || {
        let described = broker.run(&["topic", "describe", "t", "--json"]).json();
        first = described["partitions"][0]["start_offset"].as_u64().unwrap();
        first > 0
    });
    let told = broker.run(&["consume", "t", "--from", "0"]);
    told.bad(1, &["offset 0 is out of range", "partition 0 starts at ", "ends at 60"]);
    let kept = records(broker.run(&["consume", "t", "--json"]));
    assert!(kept[0]["offset"].as_u64().unwrap() >= first);
    assert_eq!(kept.last().unwrap()["offset"], 59);
}

/// From each time at which something was committed, exactly what was committed
/// then and later is read.
fn check_times(broker: At, all: &[Value]) {
    let mut times: Vec<&str> = all.iter().map(|record| record["commit_time"].as_str().unwrap()).collect();
    let offsets_since = |time: &str| -> Vec<Value> {
        let since = all.iter().filter(|record| record["commit_time"].as_str().unwrap() >= time);
        since.map(|record| record["offset"].clone()).collect()
    };
    times.dedup();
    assert!(times.len() >= 4, "{times:?}");
    for time in times {
        let read = records(broker.run(&["consume", "t", "--json", "--from", time]));
        let read: Vec<Value> = read.into_iter().map(|record| record["offset"].clone()).collect();
        assert_eq!(read, offsets_since(time), "{time}");
    }
}

#[test]
fn a_time_is_found_in_whichever_segment_it_lies() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::serve(&dir, TINY);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    // 12 MB in segments of 4 MiB.
    for n in 0..4 {
        let line = format!("{n}{}\n", "x".repeat(300_000));
        broker.run_on(&["produce", "t", "-q"], line.repeat(10).as_bytes()).good();
        // So that a whole second begins between two of them.
        std::thread::sleep(Duration::from_millis(1050));
    }
    let segments = std::fs::read_dir(dir.path().join("data/shard-000")).unwrap();
    let is_segment = |name: &str| name.starts_with("segment-");
    let names = segments.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.filter(|name| is_segment(name)).count() >= 3);
    let all = records(broker.run(&["consume", "t", "--json"]));
    assert!(
        all.iter().map(|record| &record["offset"]).eq((0..40).map(|n| json!(n)).collect::<Vec<_>>().iter())
    );
    check_times(broker, &all);
    // In seconds since 1970: the last ten begin within the second before this one.
    let last = all[30]["commit_time"].as_str().unwrap();
    let seconds = Command::new("date").args(["-d", last, "+%s"]).output().unwrap();
    let at = format!("@{}", String::from_utf8(seconds.stdout).unwrap().trim());
    assert_eq!(values(broker.run(&["consume", "t", "--from", &at])).len(), 10);
    // The same from what is on disk alone.
    assert_eq!(server.stop().code(), Some(0));
    let server = Server::serve(&dir, TINY);
    check_times(At(server.addr), &all);
}

#[test]
fn following_prints_what_is_there_and_what_comes_later() {
    let (dir, mut server) = ten_records("2");
    let broker = At(server.addr);
    let mut follower = broker.start(&["consume", "t", "--follow"]);
    for n in 0..10 {
        assert_eq!(follower.line(), n.to_string());
    }
    for n in 10..15 {
        broker.run_on(&["produce", "t", "-q"], format!("{n}\n").as_bytes()).good();
        assert_eq!(follower.line(), n.to_string());
    }
    let mut counting = broker.start(&["consume", "t", "--from", "end", "--follow", "--count", "2"]);
    // It may not have looked for the end yet: until it prints, there is more.
    let mut first = None;
    wait_until("a record that came later is printed", || {
        broker.run_on(&["produce", "t", "-q", "--partition", "1"], b"late\n").good();
        first = counting.try_line();
        first.is_some()
    });
    broker.run_on(&["produce", "t", "-q", "--partition", "1"], b"late\n").good();
    assert_eq!((first.as_deref(), counting.end().good().as_str()), (Some("late"), "late\n"));

    // A broker that comes back is followed on.
    drop(follower);
    let addr = own_address().to_string();
    server.kill();
    let options = ["--listen", &addr, "--memory", "96MiB", "--shards", "1", "--segment-size", "16MiB"];
    let mut server = Server::serve(&dir, &options);
    let mut follower =
        At(server.addr).start(&["consume", "t", "--follow", "--partition", "0", "--from", "9"]);
    assert_eq!(follower.line(), "9");
    server.kill();
    let server = Server::serve(&dir, &options);
    At(server.addr).run_on(&["produce", "t", "-q", "--partition", "0"], b"after\n").good();
    while follower.line() != "after" {}
    signal(&follower.child, "-TERM");
    assert_eq!(follower.end().code, 130);
}

#[test]
fn a_follower_of_a_deleted_topic_is_told_its_name() {
    let (_dir, server) = ten_records("1");
    let broker = At(server.addr);
    let mut follower = broker.start(&["consume", "t", "--follow"]);
    for _ in 0..10 {
        follower.line();
    }
    broker.run(&["topic", "delete", "t"]).good();
    follower.end().bad(1, &["UnknownTopic", "topic \"t\", partition 0"]);
}

#[test]
fn a_reader_of_the_output_that_leaves_is_no_failure() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&dir, &["--memory", "96MiB"]);
    let broker = At(server.addr);
    broker.run(&["topic", "create", "t"]).good();
    broker.run_on(&["produce", "t", "-q"], "x\n".repeat(200_000).as_bytes()).good();
    let addr = server.addr.to_string();
    let leave = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*told), (Some(0), ""), "{args:?}");
    };
    leave(&["consume", "t", "--addr", &addr]);
    leave(&["topic", "describe", "t", "--addr", &addr]);
    leave(&["stats", "--json", "--addr", &addr]);
    assert_eq!(server.stop().code(), Some(0));
    let data = dir.path().join("data");
    leave(&["log", "inspect", data.to_str().unwrap()]);
    leave(&["log", "verify", data.to_str().unwrap()]);
}
