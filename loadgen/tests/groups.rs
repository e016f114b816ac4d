//! Runs whose consumers are those of a group: of each order, with consumers that fail and
//! crash. Each must end with everything completed, and nothing to say against the broker.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use loadgen::admin::Admin;
use ringbolt::serve::{Broker, Config};
use ringbolt_wire::message::{Backoff, CreateGroup, GroupConfig, GroupStart};
use serde_json::Value;

struct Rig {
    broker: Broker,
    dir: tempfile::TempDir,
}

impl Rig {
    /// A broker with two shards, on a real disk.
    fn start() -> Rig {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut config = Config::new(dir.path().join("data"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.shards = Some(2);
        config.memory = 96 << 20;
        config.segment_size = Some(16 << 20);
        config.allow_buffered = true;
        Rig { broker: Broker::start(config).unwrap(), dir }
    }

    fn loadgen(&self, args: &[&str]) -> (Output, Value) {
        loadgen(self.broker.addr(), &self.dir.path().join("report.json"), args)
    }

    /// A run of so many messages through group `g`, which must be acquitted.
    fn run(&self, count: u64, args: &[&str]) -> Value {
        run(self.broker.addr(), self.dir.path(), "g", count, args)
    }

    fn end(self) {
        self.broker.stop().unwrap();
    }
}

/// Loads the broker at `addr`, and reads the report from where it is to be written.
fn loadgen(addr: SocketAddr, json: &Path, args: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(args).args(["--addr", &addr.to_string(), "--json"]).arg(json);
    let output = command.output().unwrap();
    let report = std::fs::read(json).unwrap_or_else(|_| panic!("{args:?}: {output:?}"));
    (output, serde_json::from_slice(&report).unwrap())
}

/// A run of so many messages through a group, which must be acquitted. Its report is written
/// into `dir`, under the group's name.
fn run(addr: SocketAddr, dir: &Path, group: &str, count: u64, args: &[&str]) -> Value {
    let all = ["run", "--count", &count.to_string(), "--size", "200", "--batch", "4"];
    let consuming = ["--producers", "4", "--partitions", "4", "--consumers", "3", "--group", group];
    let json = dir.join(format!("{group}.json"));
    let (output, report) = loadgen(addr, &json, &[&all[..], &consuming, args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    for fault in ["lost", "duplicated", "reordered", "corrupted", "unknown"] {
        assert_eq!(report[fault], 0, "{fault}: {report}");
    }
    assert_eq!(report["acked"], count);
    let group = &report["verdict"]["group"];
    let (acked, dead) = (&group["acked"], &group["dead_letters"]);
    assert_eq!(group["uncompleted"], 0, "{report}");
    assert!(acked.as_u64().unwrap() + dead.as_u64().unwrap() <= count, "{report}");
    report
}

/// A topic with a group whose dead letters go to `failed.dlq`, after two failures.
fn create(admin: &mut Admin, topic: &str, group: &str) {
    admin.topic(topic, Some(4)).unwrap();
    let config = GroupConfig { max_failures: 2, backoff: Backoff::Fixed(10), ..GroupConfig::default() };
    let create = CreateGroup {
        name: group.to_owned(),
        topic: topic.to_owned(),
        start: GroupStart::End,
        or_find: false,
        config,
        dead_letter_topic: Some("failed.dlq".to_owned()),
    };
    admin.create_group(create).unwrap();
}

fn count_of(report: &Value, what: &str) -> u64 {
    report["consumed"][what].as_u64().unwrap_or_else(|| panic!("{what}: {report}"))
}

#[test]
fn a_group_gets_every_message_and_completes_it() {
    let rig = Rig::start();
    let html = rig.dir.path().join("run.html");
    for (mode, confirmed) in [("each", true), ("batch", true), ("up-to", true), ("nowait", false)] {
        let args = ["--ack-mode", mode, "--work-time", "1ms", "--html", html.to_str().unwrap()];
        let report = rig.run(4000, &args);
        assert_eq!(count_of(&report, "deliveries"), 4000, "{mode}");
        let expected = if confirmed { (4000, 0) } else { (0, 4000) };
        assert_eq!((count_of(&report, "acked"), count_of(&report, "unconfirmed")), expected, "{mode}");
        let latency = |row: &Value| row["p50"].as_f64().unwrap();
        assert!(latency(&report["fetched"]["latency_us"]) > 0.0, "{report}");
        assert_eq!(latency(&report["consumed"]["confirmation_us"]) > 0.0, confirmed);
    }
    assert!(std::fs::read_to_string(html).unwrap().contains("deliveries of records<td>4 000"));
    rig.end();
}

#[test]
fn what_fails_too_often_is_a_dead_letter_once() {
    let rig = Rig::start();
    let report = rig.run(4000, &["--fail-rate", "0.3", "--max-failures", "3", "--work-time", "1ms"]);
    // 2.7 % of 4000, give or take a lot.
    let dead = count_of(&report, "dead_letters");
    assert!((40..250).contains(&dead), "{report}");
    assert_eq!(count_of(&report, "acked") + dead, 4000);
    assert!(count_of(&report, "redeliveries") > 1000 && count_of(&report, "rejected") > 1000);
    rig.end();
}

#[test]
fn dead_letters_are_looked_for_where_the_group_wants_them_and_are_those_of_the_run() {
    let rig = Rig::start();
    let (addr, dir) = (rig.broker.addr(), rig.dir.path());
    let mut admin = Admin::connect(addr).unwrap();
    create(&mut admin, "orders", "g");
    create(&mut admin, "offers", "other");
    let dead_letters = |topic: &str, group: &str| {
        let args = ["--topic", topic, "--fail-rate", "0.4", "--work-time", "1ms"];
        count_of(&run(addr, dir, group, 2000, &args), "dead_letters")
    };
    // Some of the other group are there before the run begins, more come meanwhile.
    let before = dead_letters("offers", "other");
    let (beside, own) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| dead_letters("offers", "other"));
        let own = dead_letters("orders", "g");
        (beside.join().unwrap(), own)
    });
    // 16 % of 2000 each, give or take a lot.
    let counts = [before, beside, own];
    assert!(counts.iter().all(|count| (150..550).contains(count)), "{counts:?}");
    let letters = admin.describe_topic("failed.dlq").unwrap();
    let there: u64 = letters.partitions.iter().map(|partition| partition.end_offset.0).sum();
    assert_eq!(there, before + beside + own, "{counts:?}");
    rig.end();
}

#[test]
fn what_consumers_leave_behind_that_crash_is_delivered_to_others() {
    let rig = Rig::start();
    let report =
        rig.run(4000, &["--crash-rate", "0.004", "--lease", "200ms", "--work-time", "2ms", "--credit", "64"]);
    assert!(count_of(&report, "crashes") > 3 && count_of(&report, "abandoned") > 0, "{report}");
    assert!(count_of(&report, "redeliveries") > 0, "{report}");
    rig.end();
}

#[test]
fn keys_keep_their_order_whatever_fails() {
    let rig = Rig::start();
    let failing = ["--fail-rate", "0.1", "--max-failures", "2", "--crash-rate", "0.001", "--lease", "200ms"];
    let report = rig.run(4000, &[&["--mode", "key-ordered", "--keys", "100"], &failing[..]].concat());
    assert!(count_of(&report, "rejected") > 100 && count_of(&report, "dead_letters") > 0, "{report}");
    rig.end();
}

#[test]
fn one_consumer_has_a_partition_in_order_whatever_fails() {
    let rig = Rig::start();
    let failing =
        ["--fail-rate", "0.02", "--max-failures", "2", "--crash-rate", "0.0005", "--lease", "200ms"];
    let report = rig.run(4000, &[&["--mode", "exclusive", "--credit", "32"], &failing[..]].concat());
    assert!(count_of(&report, "rejected") > 10 && count_of(&report, "lease_lost") > 0, "{report}");
    rig.end();
}

#[test]
fn a_backlog_is_drained_to_its_end() {
    let rig = Rig::start();
    let produce =
        ["run", "--count", "6000", "--size", "200", "--producers", "4", "--partitions", "3", "--batch", "7"];
    rig.loadgen(&produce);
    for (consumers, credit, mode) in [("1", "256", "each"), ("16", "10", "batch"), ("2", "500", "up-to")] {
        let drain = ["drain", "--consumers", consumers, "--credit", credit, "--ack-mode", mode];
        let (output, report) = rig.loadgen(&drain);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!((count_of(&report, "acked"), count_of(&report, "deliveries")), (6000, 6000), "{mode}");
        assert!(report["consumed"]["acked_per_s"].as_f64().unwrap() > 100.0, "{report}");
    }
    // Of a group that has a name something remains: that it is done.
    let named = ["drain", "--group", "g", "--ack-mode", "nowait"];
    assert_eq!(count_of(&rig.loadgen(&named).1, "unconfirmed"), 6000);
    let again = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(named)
        .args(["--addr", &rig.broker.addr().to_string()])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("has nothing to consume"), "{again:?}");
    rig.end();
}
