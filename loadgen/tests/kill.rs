//! The real broker is killed under load, again and again, and what the ledger
//! says was acknowledged is looked for afterwards.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const KILLS: usize = 20;

/// The broker's binary: it lies beside the load generator's, and is built here
/// when only this package's tests are.
fn broker_binary() -> PathBuf {
    let loadgen = Path::new(env!("CARGO_BIN_EXE_loadgen"));
    let broker = loadgen.with_file_name("ringbolt");
    if !broker.exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let built =
            Command::new(env!("CARGO")).args(["build", "--bin", "ringbolt"]).current_dir(root).status();
        assert!(built.expect("cargo runs").success());
    }
    broker
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

/// Starts a broker and waits until it listens.
fn serve(data: &Path, port: u16) -> Child {
    let mut broker = Command::new(broker_binary())
        .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--memory", "96MiB"])
        .args(["--segment-size", "16MiB", "--shards", "2", "--data"])
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the broker starts");
    let out = broker.stdout.take().expect("it is piped");
    let line = BufReader::new(out).lines().next().expect("the broker says that it listens").expect("UTF-8");
    assert!(line.starts_with("listening on "), "{line}");
    broker
}

fn loadgen(args: &[&str], ledger: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(args).args(["--addr", &format!("127.0.0.1:{port}"), "--ledger"]).arg(ledger);
    command
}

/// Waits until a run has its topic and sends: before that, a dead broker is a
/// broker that cannot be reached.
fn wait_for_load(ledger: &Path) {
    let start = Instant::now();
    while std::fs::metadata(ledger).map_or(0, |ledger| ledger.len()) < 4096 {
        assert!(start.elapsed() < Duration::from_secs(30), "the run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Judges a ledger: the exit code, and the report.
fn verify(ledger: &Path, port: u16, folder: &Path) -> (Option<i32>, Value) {
    let json = folder.join("verify.json");
    let status = loadgen(&["verify"], ledger, port).arg("--json").arg(&json).stdout(Stdio::null()).status();
    let report = std::fs::read_to_string(&json).expect("verify writes its report");
    (status.expect("loadgen runs").code(), serde_json::from_str(&report).expect("it is JSON"))
}

/// Bytes that the broker has acknowledged since it was started.
fn acked_bytes(port: u16) -> u64 {
    let stats = ["stats", "--json", "--addr", &format!("127.0.0.1:{port}")];
    let answered = Command::new(broker_binary()).args(stats).output().expect("the command runs");
    assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    let stats: Value = serde_json::from_slice(&answered.stdout).expect("it is JSON");
    stats["stats"]["acked_bytes_total"].as_u64().unwrap_or_else(|| panic!("{stats}"))
}

/// Waits until the broker acknowledges more than this.
fn wait_for_acks(port: u16, than: u64) -> u64 {
    let start = Instant::now();
    loop {
        let acked = acked_bytes(port);
        if acked > than {
            return acked;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "the load does not reach the broker");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_acknowledged_is_lost_over_twenty_kills_under_load() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (data, ledger, port) = (folder.path().join("data"), folder.path().join("ledger"), free_port());
    let mut broker = serve(&data, port);
    let run =
        ["run", "--producers", "8", "--in-flight", "16", "--partitions", "4", "--size", "500", "--quiet"];
    // Lasts until it is told to end, however long the kills take.
    let load = loadgen(&run, &ledger, port)
        .args(["--duration", "1h", "--warmup", "0s"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("loadgen starts");
    wait_for_load(&ledger);
    for kill in 0..KILLS {
        // Not in step with anything that the broker does at regular times.
        let before = wait_for_acks(port, 0);
        std::thread::sleep(Duration::from_millis(100 + (kill as u64 * 173) % 500));
        // Acknowledged up to the kill: none hits an idle broker.
        wait_for_acks(port, before);
        broker.kill().expect("SIGKILL");
        broker.wait().expect("it was a child");
        broker = serve(&data, port);
    }
    wait_for_acks(port, 0);
    let told = Command::new("kill").args(["-TERM", &load.id().to_string()]).status();
    assert!(told.expect("kill runs").success(), "loadgen outlives the broker's deaths");
    let ended = load.wait_with_output().expect("it was a child");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(2) && said.contains("interrupted"), "{ended:?}");
    let (code, report) = verify(&ledger, port, folder.path());
    broker.kill().and_then(|()| broker.wait()).expect("SIGKILL");
    for fault in ["lost", "duplicated", "reordered", "corrupted"] {
        assert_eq!(report[fault], 0, "{fault}: {report}");
    }
    assert!(report["acked"].as_u64().is_some_and(|acked| acked > 10_000), "{report}");
    assert_eq!(code, Some(0));
}

/// The broker is killed twice while a group consumes: the run goes on and is acquitted.
fn survives_with_a_group(consuming: &[&str]) -> Value {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (data, ledger, port) = (folder.path().join("data"), folder.path().join("ledger"), free_port());
    let json = folder.path().join("run.json");
    let mut broker = serve(&data, port);
    let run =
        ["run", "--producers", "8", "--in-flight", "4", "--partitions", "4", "--size", "300", "--quiet"];
    let load = loadgen(&run, &ledger, port)
        .args(["--duration", "2s", "--warmup", "0s", "--consumers", "3", "--group", "g"])
        .args(consuming)
        .arg("--json")
        .arg(&json)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    wait_for_load(&ledger);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        broker.kill().and_then(|()| broker.wait()).expect("SIGKILL");
        broker = serve(&data, port);
    }
    let ended = load.wait_with_output().expect("it was a child");
    broker.kill().and_then(|()| broker.wait()).expect("SIGKILL");
    let report = std::fs::read_to_string(&json).unwrap_or_else(|_| panic!("{ended:?}"));
    let report: Value = serde_json::from_str(&report).expect("it is JSON");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}: {}, {}", report["verdict"], report["consumed"]);
    assert!(report["consumed"]["reconnects"].as_u64().is_some_and(|times| times >= 4), "{report}");
    report
}

#[test]
fn a_group_keeps_its_word_over_kills() {
    let report = survives_with_a_group(&["--work-time", "2ms", "--fail-rate", "0.05", "--max-failures", "3"]);
    assert!(report["consumed"]["unconfirmed"].as_u64().is_some_and(|records| records > 0), "{report}");
}

#[test]
fn the_order_of_keys_is_kept_over_kills() {
    survives_with_a_group(&["--mode", "key-ordered", "--keys", "200", "--fail-rate", "0.05"]);
}

#[test]
fn the_order_of_a_partition_is_kept_over_kills() {
    survives_with_a_group(&["--mode", "exclusive", "--credit", "32", "--work-time", "1ms"]);
}

#[test]
fn a_broker_that_lost_everything_is_found_out() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (data, ledger, port) = (folder.path().join("data"), folder.path().join("ledger"), free_port());
    let mut broker = serve(&data, port);
    let run = ["run", "--producers", "2", "--count", "1000", "--quiet"];
    let load = loadgen(&run, &ledger, port).stdout(Stdio::null()).status();
    assert!(load.expect("loadgen runs").success());
    broker.kill().and_then(|()| broker.wait()).expect("SIGKILL");
    std::fs::remove_dir_all(&data).expect("the data directory can be removed");
    let mut broker = serve(&data, port);
    let create = ["topic", "create", "loadgen", "--addr", &format!("127.0.0.1:{port}")];
    let created = Command::new(broker_binary()).args(create).stdout(Stdio::null()).status();
    assert!(created.expect("the command runs").success());
    let (code, report) = verify(&ledger, port, folder.path());
    broker.kill().and_then(|()| broker.wait()).expect("SIGKILL");
    assert_eq!(code, Some(1));
    assert_eq!(report["lost"], 1000, "{report}");
}
