//! The binary as a user runs it: against an echo peer, against a broker that
//! keeps its word, and against one that does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use loadgen::admin::Admin;
use ringbolt::serve::{Broker, Config};
use ringbolt_wire::{Request, Response};
use serde_json::Value;

/// A directory on a real disk, where a broker can write directly.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn broker(dir: &Path, listen: SocketAddr) -> Broker {
    let mut config = Config::new(dir.to_owned());
    config.listen = listen;
    config.shards = Some(1);
    config.memory = 64 << 20;
    config.segment_size = Some(16 << 20);
    config.allow_buffered = true;
    Broker::start(config).unwrap()
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap()
}

/// Where only 8 MiB may be locked, which is what most systems allow.
fn with_little_locked_memory(args: &[&str]) -> Output {
    let mut command = Command::new("prlimit");
    command.arg("--memlock=8388608");
    // Root is not held to the limit but for this.
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0 {
        command.args(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
    }
    command.arg(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> Output {
    let output = loadgen(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    output
}

struct Files {
    _dir: tempfile::TempDir,
    ledger: PathBuf,
    json: PathBuf,
}

impl Files {
    fn new() -> Files {
        let dir = directory();
        let (ledger, json) = (dir.path().join("run.ledger"), dir.path().join("run.json"));
        Files { _dir: dir, ledger, json }
    }

    fn ledger(&self) -> &str {
        self.ledger.to_str().unwrap()
    }

    fn json(&self) -> &str {
        self.json.to_str().unwrap()
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.json).unwrap()).unwrap()
    }
}

/// The whole numbers in the first row of `table` whose header begins with `column`.
fn row_below(text: &str, column: &str) -> Vec<u64> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(column)).skip(1);
    let row =
        lines.find(|line| line.contains(|c: char| c.is_ascii_digit())).unwrap_or_else(|| panic!("{text}"));
    // Thousands are one space apart, columns at least two.
    let cells = row.split("  ").filter(|cell| !cell.trim().is_empty());
    cells.map(|cell| cell.replace(' ', "").parse().unwrap_or_else(|_| panic!("{row}"))).collect()
}

#[test]
fn without_arguments_a_broker_is_started_loaded_judged_from_its_disk_and_removed() {
    let dir = directory();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let read_back = text.find("everything is read back from its disk");
    let verdict = text.find("every acknowledged message is there, once, in order, and undamaged");
    assert!(read_back.is_some() && read_back < verdict, "{text}");
    let counts = row_below(&text, "acknowledged   lost");
    assert!(counts[0] > 1000, "{text}");
    assert!(counts[1..].iter().all(|&count| count == 0), "{text}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_echo_run_reports_every_promised_figure() {
    for engine in ["raw", "tokio-uring"] {
        let files = Files::new();
        succeed(&[
            "run",
            "--echo",
            "--engine",
            engine,
            "--producers",
            "4",
            "--in-flight",
            "8",
            "--duration",
            "300ms",
            "--warmup",
            "100ms",
            "--json",
            files.json(),
            "--quiet",
        ]);
        let report = files.report();
        for key in ["acked", "acked_per_s", "mb_per_s", "unknown"] {
            assert!(report[key].is_number(), "{engine}: {key}");
        }
        for key in ["p50", "p90", "p99", "p999", "p9999", "max"] {
            assert!(report["latency_us"][key].as_f64().unwrap() > 0.0, "{engine}: {key}");
        }
        for key in ["p99", "max"] {
            assert!(report["schedule_lag_us"][key].is_number(), "{engine}: {key}");
        }
        // Not judged is not the same as nothing lost.
        for key in ["lost", "duplicated", "reordered", "corrupted"] {
            assert!(report[key].is_null(), "{engine}: {key}");
        }
        assert_eq!((&report["invalid"], &report["unknown"]), (&Value::Bool(false), &0.into()));
        assert!(report["acked"].as_u64().unwrap() > 1000, "{engine}");
        assert_eq!(report["acked"], report["sent"]);
    }
}

#[test]
fn consumers_that_read_along_find_all_that_was_acknowledged() {
    for engine in ["raw", "tokio-uring"] {
        let (dir, files) = (directory(), Files::new());
        let broker = broker(&dir.path().join("data"), anywhere());
        let addr = broker.addr().to_string();
        let output = succeed(&[
            "run",
            "--addr",
            &addr,
            "--engine",
            engine,
            "--producers",
            "3",
            "--partitions",
            "7",
            "--in-flight",
            "4",
            "--batch",
            "5",
            "--size",
            "300",
            "--count",
            "10001",
            "--consumers",
            "2",
            "--json",
            files.json(),
            "--hgrm",
            &format!("{}.hgrm", files.json()),
            "--html",
            &format!("{}.html", files.json()),
        ]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("every acknowledged message is there"));
        let report = files.report();
        for key in ["lost", "duplicated", "reordered", "corrupted", "unknown"] {
            assert_eq!(report[key], 0, "{engine}: {key}");
        }
        assert_eq!(report["acked"], 10_001);
        assert_eq!(report["verdict"]["read"], 10_001);
        // A commit sends its acknowledgements and its records off together, and
        // either may arrive first; but both count from when a message was sent.
        let p50 = |latency: &serde_json::Value| latency["p50"].as_f64().unwrap();
        let (acked, fetched) = (p50(&report["latency_us"]), p50(&report["fetched"]["latency_us"]));
        assert!(fetched > acked / 10.0 && fetched < 60e6, "{engine}: {fetched} us after {acked} us");
        let page = std::fs::read_to_string(format!("{}.html", files.json())).unwrap();
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("<svg") && !page.contains("http-equiv") && !page.contains("<script"));
        broker.stop().unwrap();
    }
}

/// Waits until a run has its topic and sends.
fn wait_for_load(ledger: &Path) {
    let start = Instant::now();
    while std::fs::metadata(ledger).map_or(0, |ledger| ledger.len()) < 4096 {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn restarts_of_the_broker_are_survived_and_cost_nothing() {
    for engine in ["raw", "tokio-uring"] {
        let (dir, files) = (directory(), Files::new());
        let data = dir.path().join("data");
        let mut running = broker(&data, anywhere());
        let addr = running.addr();
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["run", "--addr", &addr.to_string(), "--engine", engine, "--producers", "8"])
            .args(["--in-flight", "4", "--partitions", "2", "--duration", "2s", "--warmup", "0s", "--quiet"])
            .args(["--consumers", "1", "--ledger", files.ledger(), "--json", files.json()])
            .spawn()
            .unwrap();
        wait_for_load(&files.ledger);
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(300));
            running.stop().unwrap();
            running = broker(&data, addr);
        }
        assert_eq!(child.wait().unwrap().code(), Some(0), "{engine}");
        let report = files.report();
        assert!(report["reconnects"].as_u64().unwrap() >= 8, "{engine}: the broker was away");
        assert!(report["acked"].as_u64().unwrap() > 0);
        assert_eq!((&report["lost"], &report["unknown"]), (&0.into(), &0.into()), "{engine}");
        // And once more, from the ledger alone.
        succeed(&["verify", "--ledger", files.ledger(), "--quiet"]);
        running.stop().unwrap();
    }
}

#[test]
fn a_broker_that_forgot_everything_is_convicted() {
    let (dir, files) = (directory(), Files::new());
    let honest = broker(&dir.path().join("honest"), anywhere());
    let addr = honest.addr();
    let run = ["run", "--addr", &addr.to_string(), "--count", "2000", "--producers", "2"];
    let ran = succeed(&[&run[..], &["--ledger", files.ledger(), "--json", files.json()]].concat());
    let judge = format!("not judged yet: loadgen verify --ledger {} --addr {addr}", files.ledger());
    assert!(String::from_utf8_lossy(&ran.stdout).contains(&judge), "{ran:?}");
    for unknown in ["lost", "duplicated", "reordered", "corrupted"] {
        assert!(files.report()[unknown].is_null(), "nobody has looked yet");
    }
    succeed(&["verify", "--ledger", files.ledger(), "--json", files.json(), "--quiet"]);
    assert_eq!((&files.report()["acked"], &files.report()["lost"]), (&2000.into(), &0.into()));
    honest.stop().unwrap();

    // The same topic, with half as many records, of somebody else.
    let forgetful = broker(&dir.path().join("forgetful"), addr);
    succeed(&["run", "--addr", &addr.to_string(), "--count", "1000", "--producers", "1", "--quiet"]);
    let output = loadgen(&["verify", "--ledger", files.ledger(), "--json", files.json()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("did not keep its word"), "{text}");
    assert!(files.report()["lost"].as_u64().unwrap() >= 1000, "{text}");
    forgetful.stop().unwrap();
}

#[test]
fn what_was_written_can_be_fetched_at_speed() {
    let (dir, files) = (directory(), Files::new());
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = broker.addr().to_string();
    succeed(&["run", "--addr", &addr, "--count", "5000", "--batch", "50", "--producers", "1", "--quiet"]);
    for what in ["tail", "cold"] {
        succeed(&[
            "run",
            "--addr",
            &addr,
            "--read",
            what,
            "--duration",
            "300ms",
            "--warmup",
            "0s",
            "--quiet",
            "--json",
            files.json(),
            "--span",
            "1MiB",
        ]);
        let fetched = &files.report()["fetched"];
        assert!(fetched["records"].as_u64().unwrap() > 1000, "{what}: {fetched}");
        assert!(fetched["mb_per_s"].as_f64().unwrap() > 0.0);
    }
    broker.stop().unwrap();
}

#[test]
fn bad_usage_and_missing_brokers_are_told_apart_from_lost_messages() {
    let files = Files::new();
    // A port that nobody listens on: it was free a moment ago.
    let free = std::net::TcpListener::bind(anywhere()).unwrap().local_addr().unwrap().to_string();
    let dir = directory();
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = broker.addr().to_string();
    for (args, words) in [
        (vec!["run", "--size", "3"], "must be from 40 bytes"),
        (vec!["run", "--rate", "0"], "must be a number from"),
        (vec!["run", "--addr", "nonsense"], "write HOST:PORT"),
        (vec!["run", "--addr", &free], "cannot reach a broker"),
        (vec!["run", "--echo", "--consumers", "1"], "cannot be used with"),
        (vec!["run", "--echo", "--batch", "2048"], "2146384 bytes, at most 1048576 are taken"),
        (vec!["run", "--addr", &addr, "--size", "1MiB"], "1048680 bytes, at most 1048576 are taken"),
        (vec!["run", "--addr", &addr, "--in-flight", "1025"], "1024 requests in flight"),
        (vec!["run", "--addr", &addr, "--consumers", "2"], "2 consumers for 1 partitions"),
        (vec!["run", "--ledger", files.ledger()], "--addr"),
        (vec!["verify", "--ledger", files.ledger()], "No such file"),
    ] {
        let output = loadgen(&args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
    assert!(topics(broker.addr()).is_empty(), "what does not fit leaves no topic behind");
    broker.stop().unwrap();
}

#[test]
fn the_embedded_broker_needs_no_locked_memory() {
    let dir = directory();
    let data = dir.path().to_str().unwrap();
    let output = with_little_locked_memory(&["run", "--count", "1000", "--data", data]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn topics(addr: SocketAddr) -> Vec<String> {
    let mut admin = Admin::connect(addr).unwrap();
    match admin.ask(&Request::ListTopics).unwrap() {
        Response::Topics(topics) => topics.into_iter().map(|topic| topic.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// Passes connections on to the broker at `to`, but breaks the first one when
/// its first request has been made.
fn breaking_once(to: SocketAddr) -> SocketAddr {
    let listener = std::net::TcpListener::bind(anywhere()).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (mut client, mut broker) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (mut back, mut forth) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back, &mut forth));
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                for turn in 0.. {
                    let len = client.read(&mut buffer).unwrap_or(0);
                    if len == 0 || (number == 0 && turn == 1) || broker.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
                let _ = (client.shutdown(Shutdown::Both), broker.shutdown(Shutdown::Both));
            });
        }
    });
    addr
}

#[test]
fn a_connection_that_breaks_before_the_run_is_made_again() {
    let (dir, files) = (directory(), Files::new());
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = breaking_once(broker.addr()).to_string();
    succeed(&["run", "--addr", &addr, "--count", "100", "--producers", "2", "--json", files.json()]);
    assert_eq!(files.report()["acked"], 100);
    broker.stop().unwrap();
}

#[test]
fn a_run_that_acknowledged_nothing_fails() {
    let dir = directory();
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = broker.addr().to_string();
    let output = loadgen(&["run", "--addr", &addr, "--duration", "0s", "--warmup", "0s", "--quiet"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was acknowledged"), "{output:?}");
    broker.stop().unwrap();
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name}");
}

#[test]
fn an_open_loop_tells_its_own_pauses_from_those_of_the_broker() {
    let (dir, files) = (directory(), Files::new());
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = broker.addr().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--addr", &addr, "--rate", "2000", "--producers", "4", "--in-flight", "1"])
        .args(["--duration", "3s", "--warmup", "0s", "--quiet"])
        .args(["--ledger", files.ledger(), "--json", files.json()])
        .spawn()
        .unwrap();
    wait_for_load(&files.ledger);
    signal(&child, "STOP");
    std::thread::sleep(Duration::from_millis(700));
    signal(&child, "CONT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let report = files.report();
    assert_eq!(report["invalid"], true, "{report}");
    let micros = |field: &str| report[field]["max"].as_f64().unwrap();
    assert!(micros("schedule_lag_us") > 600e3 && micros("latency_us") > 600e3, "{report}");
    broker.stop().unwrap();
}

#[test]
fn an_interrupted_run_reports_what_it_did() {
    let (dir, files) = (directory(), Files::new());
    let broker = broker(&dir.path().join("data"), anywhere());
    let addr = broker.addr().to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--addr", &addr, "--duration", "1h", "--consumers", "1"])
        .args(["--ledger", files.ledger(), "--json", files.json()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_load(&files.ledger);
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{output:?}");
    let report = files.report();
    assert!(report["acked"].as_u64().unwrap() > 0, "{report}");
    assert_eq!((&report["lost"], &report["unknown"]), (&0.into(), &0.into()), "{report}");
    succeed(&["verify", "--ledger", files.ledger(), "--quiet"]);
    broker.stop().unwrap();
}
