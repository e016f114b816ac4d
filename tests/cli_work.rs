//! Work on records from the command line: commands and lines of input that settle them,
//! dead letters, delays.

mod net_common;

use std::io::Write;
use std::time::{Duration, Instant};

use net_common::cli::*;
use net_common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A broker with a topic `t`, a group `g` with these options, and these records.
fn broker(options: &[&str], records: &str) -> (TempDir, Server) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["--memory", "96MiB"]);
    let at = At(server.addr);
    at.run(&["topic", "create", "t"]).good();
    at.run(&[&["group", "create", "g", "--topic", "t"], options].concat()).good();
    at.run_on(&["produce", "t", "-q", "--key", "a key"], records.as_bytes()).good();
    (dir, server)
}

fn exec<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["consume", "t", "--group", "g", "--exec", command], more].concat()
}

fn letters(ran: Ran) -> Vec<Value> {
    ran.good().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lag(at: At) -> Value {
    at.run(&["group", "describe", "g", "--json"]).json()["partitions"][0]["lag"].take()
}

#[test]
fn a_command_gets_the_record_and_its_exit_code_settles_it() {
    let (_dir, server) = broker(&["--backoff", "none"], "x\ny\n");
    let at = At(server.addr);
    let say = "cat; echo \" $RINGBOLT_KEY $RINGBOLT_TOPIC/$RINGBOLT_PARTITION/$RINGBOLT_OFFSET \
               $RINGBOLT_GROUP $RINGBOLT_ACQUIRED $RINGBOLT_FAILED ${RINGBOLT_FIRST_DELIVERY-now}\"; \
               test $RINGBOLT_FAILED = 1";
    let printed = at.run(&exec(say, &[])).good();
    let mut lines: Vec<(&str, &str)> = printed.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    lines.sort_unstable();
    let (lines, firsts): (Vec<&str>, Vec<&str>) = lines.into_iter().unzip();
    assert_eq!(
        lines,
        ["x a key t/0/0 g 1 0", "x a key t/0/0 g 2 1", "y a key t/0/1 g 1 0", "y a key t/0/1 g 2 1"]
    );
    assert_eq!((firsts[0], firsts[2]), ("now", "now"));
    assert!([firsts[1], firsts[3]].iter().all(|time| humantime::parse_rfc3339(time).is_ok()), "{firsts:?}");
    assert_eq!(lag(at), 0);
    // Neither a value that is not read nor one without a key is an error.
    at.run_on(&["produce", "t", "-q"], format!("{}\n", "z".repeat(500_000)).as_bytes()).good();
    let ran = at.run(&exec("exec true", &[])).good();
    assert_eq!((ran.as_str(), lag(at)), ("", json!(0)));
    at.run_on(&["produce", "t", "-q"], b"w\n").good();
    assert_eq!(at.run(&exec("echo ${RINGBOLT_KEY-none}", &[])).good(), "none\n");
}

#[test]
fn what_fails_too_often_is_a_dead_letter_that_is_shown_redriven_once_and_dropped() {
    let (_dir, server) = broker(&["--backoff", "none", "--max-failures", "2"], "x\ny\n");
    let at = At(server.addr);
    let fail = "echo first >&2; echo no such customer >&2; exit 3";
    let ran = at.run(&exec(fail, &["--follow", "--count", "4"]));
    assert_eq!((ran.code, ran.err.matches("no such customer").count()), (0, 4), "{ran:?}");
    wait_until("both are dead letters", || lag(at) == 0);
    let listed = at.run(&["dlq", "list", "--json"]).json();
    let expected = json!({ "dead_letter_topic": "t.dlq", "from": ["t"], "open": 2, "leased": 0 });
    assert_eq!(listed["topics"], json!([expected]));
    assert!(at.run(&["dlq", "show", "t"]).good().contains("exit status 3: no such customer"));
    let shown = letters(at.run(&["dlq", "show", "t.dlq", "--json", "--limit", "1"]));
    let [letter] = &shown[..] else { panic!("{shown:?}") };
    for (name, value) in [
        ("state", json!("open")),
        ("origin_topic", json!("t")),
        ("origin_offset", json!(0)),
        ("group", json!("g")),
        ("failed", json!(2)),
        ("reason", json!("exit status 3: no such customer")),
        ("key", json!("a key")),
        ("value", json!("x")),
    ] {
        assert_eq!(letter[name], value, "{name}");
    }
    // Looking at them has changed nothing.
    assert_eq!(at.run(&["dlq", "list", "--json"]).json()["topics"], json!([expected]));

    let second = ["dlq", "redrive", "t", "--partition", "0", "--offset", "1"];
    assert_eq!(at.run(&second).good(), "0 1: redriven\n");
    assert_eq!(at.run(&second).good(), "0 1: redriven or dropped before\n");
    assert_eq!(at.run(&["consume", "t", "--group", "g"]).good(), "y\n", "it was sent once");
    let states: Vec<Value> = letters(at.run(&["dlq", "show", "t", "--json"]))
        .iter()
        .map(|letter| letter["state"].clone())
        .collect();
    assert_eq!(states, ["open", "done"]);
    at.run(&["dlq", "drop", "t", "--all"]).bad(2, &["--yes"]);
    assert_eq!(at.run(&["dlq", "drop", "t", "--all", "--yes"]).good(), "0 0: dropped\n");
    assert_eq!(at.run(&["dlq", "redrive", "t", "--all"]).good(), "");
    assert_eq!(letters(at.run(&["dlq", "show", "t", "--json", "--open"])), Vec::<Value>::new());
    assert_eq!(at.run(&["consume", "t", "--group", "g"]).good(), "", "what was dropped does not come");
    assert_eq!(at.run(&["dlq", "list", "--json"]).json()["topics"][0]["open"], 0);
}

#[test]
fn dead_letters_are_in_the_topic_that_the_group_wants() {
    let options = ["--backoff", "none", "--max-failures", "1", "--dead-letter-topic", "failed.dlq"];
    let (_dir, server) = broker(&options, "x\n");
    let at = At(server.addr);
    at.run(&exec("false", &["--follow", "--count", "1"])).good();
    wait_until("it is a dead letter", || lag(at) == 0);
    let expected = json!({ "dead_letter_topic": "failed.dlq", "from": ["t"], "open": 1, "leased": 0 });
    assert_eq!(at.run(&["dlq", "list", "--json"]).json()["topics"], json!([expected]));
    assert_eq!(letters(at.run(&["dlq", "show", "failed", "--json"])).len(), 1);
    at.run(&["dlq", "show", "t"]).bad(1, &["topic t has no dead letters", "dlq list"]);
    assert_eq!(at.run(&["dlq", "redrive", "failed.dlq", "--all"]).good(), "0 0: redriven\n");
    assert_eq!(at.run(&["consume", "t", "--group", "g"]).good(), "x\n", "it goes where it came from");
    let create = ["group", "create", "h", "--topic", "t", "--dead-letter-topic"];
    at.run(&[&create[..], &["failed"]].concat()).bad(2, &[".dlq"]);
    at.run(&["group", "create", "h", "--topic", "failed.dlq", "--dead-letter-topic", "more.dlq"])
        .bad(1, &["InvalidTopicName", "holds dead letters"]);
}

#[test]
fn dead_letters_that_are_not_there_or_in_other_hands_are_told_so() {
    let (_dir, server) = broker(&["--backoff", "none", "--max-failures", "1"], "x\ny\n");
    let at = At(server.addr);
    at.run(&exec("false", &["--follow", "--count", "2"])).good();
    wait_until("both are dead letters", || lag(at) == 0);
    let mut other = at.start(&["consume", "t.dlq", "--group", "t.dlq", "--ack", "manual", "--count", "1"]);
    assert!(other.line().ends_with("\tx"));
    let ran = at.run(&["dlq", "redrive", "t", "--partition", "0", "--offset", "0", "--offset", "7"]);
    assert_eq!(ran.code, 1);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("0 0: not delivered: another consumer has it"), "{lines:?}");
    assert_eq!(lines[1], "0 7: no such dead letter");
    other.say("ack 0 0");
    assert_eq!(other.error_line(), "ack 0 0: durable");
    assert_eq!(at.run(&["dlq", "redrive", "t", "--all"]).good(), "0 1: redriven\n");
    at.run(&["dlq", "show", "gone"]).bad(1, &["topic gone has no dead letters", "dlq list"]);
    at.run(&["dlq", "redrive", "t"]).bad(2, &["--all"]);
    at.run(&["dlq", "drop", "t", "--offset", "0"]).bad(2, &["--partition"]);
}

#[test]
fn a_command_that_takes_longer_than_the_lease_handles_its_record_once() {
    let (_dir, server) = broker(&["--lease", "500ms", "--backoff", "none"], "x\n");
    let at = At(server.addr);
    let mut slow = at.start(&exec("echo begun; sleep 1.6; cat", &["--count", "1"]));
    assert_eq!(slow.line(), "begun");
    let mut other = at.start(&exec("echo twice", &["--follow"]));
    assert_eq!(slow.line(), "x");
    assert_eq!(slow.end().code, 0);
    assert_eq!((other.try_line(), lag(at)), (None, json!(0)));
}

/// The worker itself takes signals in its own way; its commands do not.
#[test]
fn a_command_ends_when_it_is_told_to() {
    let (_dir, server) = broker(&["--max-failures", "1"], "x\n");
    let at = At(server.addr);
    at.run(&exec("kill -s TERM $$; sleep 0.2", &["--count", "1"])).good();
    wait_until("it is a dead letter", || lag(at) == 0);
    let shown = letters(at.run(&["dlq", "show", "t", "--json"]));
    assert_eq!(shown.iter().map(|letter| &letter["reason"]).collect::<Vec<_>>(), ["signal 15"]);
}

#[test]
fn commands_run_side_by_side_up_to_the_bound() {
    let data = TempDir::new().unwrap();
    // Each shard may send a record, whatever the bound is.
    let options =
        ["--listen", "127.0.0.1:0", "--shards", "2", "--memory", "160MiB", "--segment-size", "16MiB"];
    let server = Server::serve(&data, &options);
    let at = At(server.addr);
    at.run(&["topic", "create", "t", "--partitions", "2"]).good();
    for partition in ["0", "1"] {
        at.run_on(&["produce", "t", "-q", "--partition", partition], b"1\n2\n").good();
    }
    let lag = || {
        let described = at.run(&["group", "describe", "g", "--json"]).json();
        let lag = |p: &Value| p["lag"].as_u64().unwrap();
        described["partitions"].as_array().unwrap().iter().map(lag).sum::<u64>()
    };
    // Each waits until there are two of them: alone, it would fail.
    let dir = TempDir::new().unwrap();
    let meet = format!(
        "cd {}; touch $RINGBOLT_PARTITION-$RINGBOLT_OFFSET; for i in $(seq 100); do test $(ls | wc -l) -gt 1 && exit 0; sleep 0.05; done; exit 1",
        dir.path().display()
    );
    at.run(&exec(&meet, &["--max-in-flight", "2", "--count", "2"])).good();
    assert_eq!(lag(), 2);
    // By itself there is one at a time.
    let alone = format!("cd {}; mkdir only || exit 1; sleep 0.1; rmdir only", dir.path().display());
    at.run(&exec(&alone, &[])).good();
    assert_eq!(lag(), 0);
}

#[test]
fn an_interrupt_lets_commands_finish_and_a_second_one_kills_them() {
    let (_dir, server) = broker(&[], "x\ny\nz\n");
    let at = At(server.addr);
    let mut worker = at.start(&exec("echo begun; sleep 0.4; cat", &["--follow"]));
    assert_eq!(worker.line(), "begun");
    signal(&worker.child, "-TERM");
    let ran = worker.end();
    assert_eq!((ran.code, ran.out.as_str()), (0, "x\n"), "no other was begun");
    assert_eq!(lag(at), 2);

    let mut worker = at.start(&exec("echo begun; sleep 60; cat", &["--follow"]));
    assert_eq!(worker.line(), "begun");
    signal(&worker.child, "-INT");
    std::thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    signal(&worker.child, "-INT");
    let ran = worker.end();
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert!(started.elapsed() < Duration::from_secs(10), "it was waited for");
    // Given back, not rejected: it comes at once.
    assert_eq!(at.run(&exec("echo $(cat) $RINGBOLT_FAILED", &[])).good(), "y 0\nz 0\n");
}

#[test]
fn lines_of_input_settle_what_was_printed() {
    let (_dir, server) = broker(&["--backoff", "none", "--max-failures", "5"], "0\n1\n2\n3\n4\n5\n");
    let at = At(server.addr);
    let manual = ["consume", "t", "--group", "g", "--ack", "manual"];
    let mut worker = at.start(&manual);
    for n in 0..6 {
        let line = worker.line();
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!((fields[0], fields[1].to_owned(), fields[3]), ("0", n.to_string(), "a key"));
    }
    for (say, answer) in [
        ("ack 0 0", "ack 0 0: durable"),
        ("ack 0 0", "ack 0 0: not in hand"),
        ("ack 0 77", "ack 0 77: not in hand"),
        ("extend 0 1 1m", "extend 0 1: done"),
        ("nack 0 1 1h", "nack 0 1: done"),
        ("dead-letter 0 2 it never will", "dead-letter 0 2: durable"),
        ("reject 0 3 try again", "reject 0 3: durable"),
        ("drop 0 4", "line 8: expected ack, nack"),
    ] {
        worker.say(say);
        let line = worker.error_line();
        assert!(line.starts_with(answer), "{say}: {line}");
    }
    assert!(worker.line().ends_with("\t3"), "what was rejected comes again");
    // What is open at the end of the input goes back, at once. A last line without its end
    // counts.
    worker.input.as_mut().unwrap().write_all(b"ack 0 5").unwrap();
    let ran = worker.end();
    assert_eq!((ran.code, ran.err.as_str()), (0, "ack 0 5: durable\n"));
    assert_eq!(at.run(&["consume", "t", "--group", "g"]).good(), "3\n4\n");
    assert_eq!(lag(at), 1, "one waits for an hour");
    let letter = letters(at.run(&["dlq", "show", "t", "--json"])).remove(0);
    assert_eq!((&letter["value"], &letter["reason"]), (&json!("2"), &json!("it never will")));
}

/// A worker that stood still for longer than its lease learns that another one has its
/// record, and does not acknowledge it for that one.
#[test]
fn a_record_that_is_no_longer_ours_is_told_so() {
    let (_dir, server) = broker(&["--lease", "500ms", "--backoff", "none"], "x\n");
    let at = At(server.addr);
    let manual = ["consume", "t", "--group", "g", "--ack", "manual", "--count", "1"];
    let mut stopped = at.start(&manual);
    assert!(stopped.line().ends_with("\tx"));
    signal(&stopped.child, "-STOP");
    let mut other = at.start(&[&manual[..], &["--follow"]].concat());
    assert!(other.line().ends_with("\tx"));
    signal(&stopped.child, "-CONT");
    stopped.say("ack 0 0");
    let answer = stopped.error_line();
    assert!(answer.starts_with("ack 0 0: no longer yours"), "{answer}");
    assert_eq!((stopped.end().code, lag(at)), (0, json!(1)));
    other.say("ack 0 0");
    assert_eq!(other.error_line(), "ack 0 0: durable");
    assert_eq!(lag(at), 0);
}

#[test]
fn records_come_after_their_delay_and_not_after_their_time() {
    let (_dir, server) = broker(&[], "now\n");
    let at = At(server.addr);
    let started = Instant::now();
    at.run_on(&["produce", "t", "-q", "--delay", "1500ms"], b"later\n").good();
    at.run_on(&["produce", "t", "-q", "--ttl", "1ms"], b"too late\n").good();
    at.run_on(&["produce", "t", "-q", "--ttl", "1h"], b"in time\n").good();
    at.run_on(&["produce", "t", "-q", "--deliver-at", "2999-01-01T00:00:00Z"], b"never\n").good();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(at.run(&["consume", "t", "--group", "g"]).good(), "now\nin time\n");
    assert!(started.elapsed() < Duration::from_millis(1500), "this machine was too slow for the test");
    assert_eq!(at.run(&["consume", "t", "--group", "g", "--follow", "--count", "1"]).good(), "later\n");
    assert!(started.elapsed() >= Duration::from_millis(1500));
    assert_eq!(at.run(&["consume", "t", "--count", "2"]).good(), "now\nlater\n", "plain reading sees all");
    ringbolt(&["produce", "t", "--delay", "1s", "--deliver-at", "2999-01-01T00:00:00Z"], b"")
        .bad(2, &["cannot be used with"]);
    ringbolt(&["produce", "t", "--deliver-at", "soon"], b"").bad(2, &["--deliver-at"]);
}
