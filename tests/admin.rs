//! Metrics and health over HTTP: what they say, and that nobody who asks for
//! them can keep others out, or the broker from its work.

mod net_common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net_common::*;
use ringbolt::admin::{Admin, AdminListener};
use ringbolt::serve::Broker;
use ringbolt_wire::message::{Request, Response};
use ringbolt_wire::{Offset, PartitionId};
use tempfile::TempDir;

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// Longer than one answer serves several who ask.
const NOT_SHARED: Duration = Duration::from_millis(150);

fn serve(dir: &TempDir, admin: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--segment-size", "16MiB", "--shards", "1"])
        .args(["--memory", "96MiB", "--admin", admin, "--data"])
        .arg(dir.path().join("data"))
        .stdout(Stdio::piped());
    command
}

/// A broker with its address for metrics and health.
fn start_server(dir: &TempDir) -> (Server, SocketAddr) {
    let mut child = serve(dir, "127.0.0.1:0").spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut addr_after = |start: &str| -> SocketAddr {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.trim().strip_prefix(start).unwrap_or_else(|| panic!("said {line:?}")).parse().unwrap()
    };
    let addr = addr_after("listening on ");
    let admin = addr_after("admin on ");
    (Server { child, addr }, admin)
}

/// Sends what may be part of a request.
fn begin(admin: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// Status, head and body of the answer, after which the connection ends.
fn finish(mut stream: TcpStream) -> (u16, String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn get(admin: SocketAddr, path: &str) -> (u16, String, String) {
    finish(begin(admin, &request("GET", path)))
}

fn health(admin: SocketAddr) -> (u16, String) {
    let (status, _, body) = get(admin, "/health");
    (status, body)
}

/// Type and value of each sample, every line of which is as the format wants it
/// and which is explained.
fn metrics(admin: SocketAddr) -> BTreeMap<String, (String, u64)> {
    let (status, head, body) = get(admin, "/metrics");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let lines: Vec<&str> = body.lines().collect();
    for lines in lines.chunks(3) {
        let [help, kind, sample] = lines else { panic!("{lines:?} has no sample") };
        let (name, value) = sample.split_once(' ').unwrap_or_else(|| panic!("{sample:?}"));
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.starts_with("ringbolt_") && name.chars().all(word), "{name:?}");
        let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap_or_else(|| panic!("{kind:?}"));
        let help = help.strip_prefix(&format!("# HELP {name} ")).unwrap_or_else(|| panic!("{help:?}"));
        assert!(help.len() > 10 && !help.contains('\\'), "{name} is not explained: {help:?}");
        let before = samples.insert(name.to_owned(), (kind.to_owned(), value.parse().unwrap()));
        assert!(before.is_none(), "{name} comes twice");
    }
    samples
}

#[test]
fn metrics_are_the_counters_of_stats_explained_and_with_their_types() {
    let dir = TempDir::new().unwrap();
    let (server, admin) = start_server(&dir);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    let before = metrics(admin);
    assert_eq!(before["ringbolt_acked_batches_total"].1, 0, "a topic is a batch that nobody produced");
    assert_eq!(before["ringbolt_acked_bytes_total"].1, 0);
    (0..7).for_each(|_| assert!(peer.produce(&batch(partition, &[b"x"])) >= Offset(0)));
    std::thread::sleep(NOT_SHARED);
    let after = metrics(admin);
    let acked = "ringbolt_acked_batches_total";
    assert_eq!(after[acked].1 - before[acked].1, 7);
    let Response::Stats(stats) = peer.ask(&Request::Stats) else { panic!("no stats") };
    let names: Vec<String> = stats.iter().map(|(name, _)| format!("ringbolt_{name}")).collect();
    assert!(after.keys().eq(&names), "{after:?}\n{names:?}");
    for (name, (kind, _)) in &after {
        assert_eq!(kind, if name.ends_with("_total") { "counter" } else { "gauge" }, "{name}");
    }
}

#[test]
fn health_is_ok_and_what_is_not_there_is_refused() {
    let dir = TempDir::new().unwrap();
    let (_server, admin) = start_server(&dir);
    assert_eq!(health(admin), (200, "ok\n".to_owned()));
    assert_eq!(get(admin, "/").0, 404);
    assert_eq!(get(admin, "/metrics/x").0, 404);
    for path in ["/metrics", "/health"] {
        let (status, head, _) = finish(begin(admin, &request("POST", path)));
        assert_eq!(status, 405);
        assert!(head.contains("allow: get,head"), "{head}");
    }
    let (status, ..) = finish(begin(admin, &request("GET", &format!("/health?{}", "x".repeat(8192)))));
    assert!((400..500).contains(&status), "{status} for a head that is too long");
}

#[test]
fn health_follows_a_broker_that_comes_goes_and_comes_back() {
    let listener = AdminListener::bind(LOOPBACK.into()).unwrap();
    let mut broker = start(|_| ());
    let addr = broker.addr;
    let admin = Admin::start(listener).unwrap();
    let (status, body) = health(admin.addr());
    assert!(status == 503 && body.starts_with("recovering: ") && body.lines().count() == 1, "{body:?}");
    admin.broker_serves(addr, || false);
    assert_eq!(health(admin.addr()), (200, "ok\n".to_owned()));
    broker.broker.take().unwrap().stop().unwrap();
    std::thread::sleep(NOT_SHARED);
    let (status, body) = health(admin.addr());
    assert_eq!(status, 503);
    assert!(body.contains("cannot connect") && body.lines().count() == 1, "{body:?}");
    let mut config = small_config(&broker.dir);
    config.listen = addr;
    let _again = Broker::start(config).unwrap();
    std::thread::sleep(NOT_SHARED);
    assert_eq!(health(admin.addr()), (200, "ok\n".to_owned()));
}

#[test]
fn those_who_wait_for_a_silent_broker_share_one_answer_and_more_are_refused_at_once() {
    // Takes connections, and never says a word.
    let silent = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let listener = AdminListener::bind(LOOPBACK.into()).unwrap();
    let admin = Admin::start(listener).unwrap();
    admin.broker_serves(silent.local_addr().unwrap(), || false);
    let started = Instant::now();
    let asking: Vec<TcpStream> = (0..40).map(|_| begin(admin.addr(), &request("GET", "/health"))).collect();
    let answers: Vec<_> = asking.into_iter().map(finish).collect();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let given =
        |reason: &str| answers.iter().filter(|(status, _, body)| *status == 503 && body == reason).count();
    assert_eq!(given("the broker has not answered within 1s\n"), 16);
    assert_eq!(given("too many requests at a time\n"), 24);
}

#[test]
fn a_broker_that_recovers_says_so_at_once() {
    let dir = TempDir::new().unwrap();
    let admin = own_address();
    // Segments that are made before the broker listens take as long as logs that
    // are looked through.
    let mut command = serve(&dir, &admin.to_string());
    let mut child = command.args(["--preallocate", "32"]).spawn().unwrap();
    let mut answers = Vec::new();
    wait_until("the broker is well", || {
        if TcpStream::connect(admin).is_ok() {
            answers.push(health(admin));
        }
        answers.last().is_some_and(|(status, _)| *status == 200)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let (status, body) = &answers[0];
    assert!(*status == 503 && body.starts_with("recovering: "), "{body:?} of {}", answers.len());
    assert!(answers[..answers.len() - 1].iter().all(|answer| answer == &answers[0]), "{answers:?}");
}

/// Open descriptors of a process.
fn descriptors(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count()
}

#[test]
fn a_hundred_unfinished_requests_keep_out_nobody_and_are_not_kept_for_ever() {
    let dir = TempDir::new().unwrap();
    let (server, admin) = start_server(&dir);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    assert_eq!(health(admin).0, 200);
    let before = descriptors(&server);
    let crowd: Vec<TcpStream> = (0..100).map(|_| begin(admin, "GET /metrics HT")).collect();
    let started = Instant::now();
    assert_eq!(health(admin), (200, "ok\n".to_owned()));
    assert!(metrics(admin)["ringbolt_cores"].1 >= 1);
    assert_eq!(peer.produce(&batch(partition, &[b"x"])), Offset(0));
    // Before the first of the crowd is given up.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    // Room for a segment that is made ahead meanwhile.
    assert!(descriptors(&server) <= before + 64 + 8, "{} after {before}", descriptors(&server));
    wait_until("unfinished requests are given up", || descriptors(&server) <= before + 8);
    drop(crowd);
}

fn terminate(server: &Server) {
    let sent = Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn open_connections_do_not_delay_the_stop() {
    let dir = TempDir::new().unwrap();
    let (mut server, admin) = start_server(&dir);
    assert_eq!(health(admin).0, 200);
    let open = [begin(admin, ""), begin(admin, "GET /metr"), begin(admin, "POST /health HTTP/1.1\r\n")];
    terminate(&server);
    let started = Instant::now();
    let mut status = None;
    wait_until("the broker ends", || {
        status = server.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(TcpStream::connect(admin).is_err());
    drop(open);
}

#[test]
fn a_broker_that_is_stopping_is_not_healthy_and_says_so() {
    let dir = TempDir::new().unwrap();
    let (mut server, admin) = start_server(&dir);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    peer.produce(&batch(partition, &[&[7; 900_000]]));
    // More answers than sockets hold, and nobody who takes them: they hold up
    // the stop.
    let fetch = fetch_request(&[(partition, Offset(0))], 1 << 20, 0);
    let fetches: Vec<u8> = (100..116).flat_map(|n| encode(&fetch, n)).collect();
    peer.send(&fetches);
    wait_until("fetches are answered", || Peer::greeted(server.addr).stat("fetches_total") >= 16);
    assert_eq!(health(admin).0, 200);
    terminate(&server);
    let mut last = (0, String::new());
    wait_until("health tells of the stop", || {
        last = health(admin);
        last.0 == 503
    });
    assert_eq!(last.1, "the broker is stopping\n");
    assert!(server.child.try_wait().unwrap().is_none());
    drop(peer);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_taken_address_is_refused_before_anything_is_touched() {
    let taken = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = TempDir::new().unwrap();
    let out = serve(&dir, &addr).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stdout.is_empty(), "{out:?}");
    assert!(!dir.path().join("data").exists(), "it was found out late");
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains(&addr) && text.contains("--admin") && text.contains("in use"), "{text}");
}

#[test]
fn the_thread_is_not_bound_to_the_processor_of_a_core() {
    let dir = TempDir::new().unwrap();
    let (server, admin) = start_server(&dir);
    // A thread has its name once it runs.
    assert_eq!(health(admin).0, 200);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_owned()
    };
    let mut allowed = BTreeMap::new();
    for task in tasks {
        // A thread that has ended meanwhile has none.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        allowed.insert(field(&status, "Name:"), field(&status, "Cpus_allowed_list:"));
    }
    assert_eq!(allowed["admin"], allowed["ringbolt"], "{allowed:?}");
    let cpus = ringbolt::io::pin::available_cpus().unwrap();
    assert!(cpus.len() == 1 || allowed["admin"] != allowed["core-0"], "{allowed:?}");
}
