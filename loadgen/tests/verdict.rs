//! Verdicts that must hold when something other than the broker's word fails.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use loadgen::admin::Admin;
use ringbolt::serve::{Broker, Config};
use ringbolt_wire::Request;
use serde_json::Value;

struct Rig {
    broker: Option<Broker>,
    addr: String,
    ledger: PathBuf,
    json: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn start(change: impl FnOnce(&mut Config)) -> Rig {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut config = Config::new(dir.path().join("data"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.shards = Some(1);
        config.memory = 64 << 20;
        config.segment_size = Some(16 << 20);
        config.allow_buffered = true;
        change(&mut config);
        let broker = Broker::start(config).unwrap();
        let file = |name: &str| dir.path().join(name);
        let (addr, ledger, json) = (broker.addr().to_string(), file("run.ledger"), file("verdict.json"));
        Rig { broker: Some(broker), addr, ledger, json, _dir: dir }
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.args(["run", "--quiet", "--warmup", "0s", "--addr", &self.addr]);
        command.arg("--ledger").arg(&self.ledger).args(args).stdout(Stdio::null());
        command
    }

    /// Exit code and verdict of `loadgen verify`.
    fn verify(&self, args: &[&str]) -> (Option<i32>, Value) {
        let (code, verdict, _) = self.verify_aloud(args);
        (code, verdict)
    }

    /// The same, and what it says.
    fn verify_aloud(&self, args: &[&str]) -> (Option<i32>, Value, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.arg("verify").arg("--ledger").arg(&self.ledger).arg("--json").arg(&self.json);
        let output = command.args(args).output().unwrap();
        let verdict = std::fs::read_to_string(&self.json).unwrap_or_else(|_| panic!("{output:?}"));
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code(), serde_json::from_str(&verdict).unwrap(), said)
    }
}

#[test]
fn a_broker_that_cannot_be_reached_is_not_convicted() {
    let mut rig = Rig::start(|_| {});
    assert!(rig.run(&["--count", "2000", "--producers", "4"]).status().unwrap().success());
    rig.broker.take().unwrap().stop().unwrap();
    let (code, verdict) = rig.verify(&[]);
    assert_eq!(code, Some(2), "{verdict}");
    assert_eq!((&verdict["lost"], &verdict["unverified"]), (&0.into(), &2000.into()), "{verdict}");
    // Every count that a run reports of its messages is there for a ledger, too.
    for key in ["sent", "acked", "lost", "duplicated", "reordered", "corrupted", "unknown", "refused"] {
        assert!(verdict[key].is_number(), "{key}: {verdict}");
    }
}

#[test]
fn each_run_of_a_ledger_answers_for_its_own_losses() {
    let rig = Rig::start(|_| {});
    for (topic, count) in [("kept", "1000"), ("deleted", "500")] {
        assert!(
            rig.run(&["--topic", topic, "--count", count, "--producers", "2"]).status().unwrap().success()
        );
    }
    let mut admin = Admin::connect(rig.addr.parse().unwrap()).unwrap();
    admin.ask(&Request::DeleteTopic { name: "deleted".to_owned() }).unwrap();
    let (code, verdict, said) = rig.verify_aloud(&[]);
    assert_eq!(
        (code, &verdict["acked"], &verdict["lost"]),
        (Some(1), &1500.into(), &500.into()),
        "{verdict}"
    );
    let runs = verdict["runs"].as_array().unwrap();
    let of = |key: &str| runs.iter().map(|run| run[key].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        (of("acked"), of("lost"), of("unknown")),
        (vec![1000, 500], vec![0, 500], vec![0, 0]),
        "{verdict}"
    );
    assert!(runs.iter().all(|run| run["ended"] == true), "{verdict}");
    assert!(of("run")[0] != of("run")[1], "{verdict}");
    assert!(said.lines().any(|line| line.contains("run ") && line.contains("closed")), "{said}");
}

#[test]
fn what_retention_removed_is_not_lost_and_a_success_only_if_accepted() {
    let rig = Rig::start(|config| config.retention_bytes = Some(48 << 20));
    let args = ["--count", "120000", "--producers", "4", "--in-flight", "8", "--batch", "16"];
    assert!(rig.run(&args).status().unwrap().success());
    assert_eq!(rig.verify(&[]).0, Some(2));
    let (code, verdict) = rig.verify(&["--allow-expired"]);
    assert_eq!(code, Some(0), "{verdict}");
    assert_eq!((&verdict["lost"], &verdict["corrupted"]), (&0.into(), &0.into()), "{verdict}");
    let count = |name: &str| verdict[name].as_u64().unwrap();
    assert!(count("expired") > 0 && count("read") > 0, "{verdict}");
    assert_eq!(count("expired") + count("read"), 120_000, "{verdict}");
}

#[test]
fn a_slow_run_can_be_judged_after_its_generator_was_killed_and_the_verdict_says_so() {
    let rig = Rig::start(|_| {});
    let mut run = rig.run(&["--duration", "60s", "--producers", "1"]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    run.kill().unwrap();
    run.wait().unwrap();
    for args in [&[][..], &["--quiet"]] {
        let (_, _, said) = rig.verify_aloud(args);
        assert!(said.contains("the ledger was not closed"), "{said}");
    }
    let (code, verdict) = rig.verify(&[]);
    assert_eq!((code, &verdict["complete"]), (Some(0), &false.into()), "{verdict}");
    let count = |name: &str| verdict[name].as_u64().unwrap();
    assert!(count("acked") > 100, "{verdict}");
    // What the last 20 ms and the bookkeeping before them may miss.
    assert!(count("acked") >= count("read") / 2, "{verdict}");
}
