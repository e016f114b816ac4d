//! `ringbolt doctor`, run as a user runs it, and the echo peer that it measures
//! with.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ringbolt::io::echo::EchoServer;
use ringbolt::io::probe;
use serde_json::Value;

fn doctor(data: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command.arg("doctor").arg("--data").arg(data).args(args).output().unwrap()
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| {
        panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A distribution whose figures lie between what hardware and what the patience
/// of this test allow, in µs.
fn assert_latency(latency: &Value) {
    let (p50, p99) = (number(&latency["p50"]), number(&latency["p99"]));
    assert!(p50 > 0.5 && p50 <= p99 && p99 < 60e6, "{latency}");
    assert!(number(&latency["samples"]) >= 1.0, "{latency}");
}

#[test]
fn doctor_json_has_every_figure_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = doctor(dir.path(), &["--json", "--quick"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file it wrote to is still there");

    for name in ["dsync_4k_us", "dsync_64k_us", "write_4k_us", "loopback_rtt_us", "loopback_busy_rtt_us"] {
        assert_latency(&report[name]);
    }
    let rate = number(&report["seq_dsync_mb_per_s"]);
    assert!(rate > 0.1 && rate < 1e6, "{rate} MB/s");
    for (shape, connections, in_flight) in [("64x1", 64.0, 1.0), ("64x16", 64.0, 16.0), ("1x256", 1.0, 256.0)]
    {
        let rate = number(&report["loopback_echo_per_s"][shape]);
        assert!(rate > 100.0 && rate < 1e9, "{shape}: {rate}/s");
        assert_latency(&report["loopback_echo_rtt_us"][shape]);
        // Nothing goes round faster than with all that is in flight at once.
        let fastest = number(&report["loopback_echo_rtt_us"][shape]["p50"]) / 1e6;
        assert!(rate * fastest < connections * in_flight * 2.0, "{shape}: {rate}/s at {fastest} s");
    }
    let expected = number(&report["dsync_4k_us"]["p50"]) + number(&report["loopback_rtt_us"]["p50"]);
    assert!((number(&report["expected_ack_us"]) - expected).abs() < 0.2, "{report:#}");
    assert!(report["warnings"].is_array());

    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        for key in ["name", "found", "wanted", "verdict", "why", "how"] {
            assert!(check[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {check}");
        }
        assert!(check["ok"].is_boolean(), "{check}");
    }
    for name in ["kernel", "io_uring", "direct durable write", "net.core.somaxconn", "RLIMIT_NOFILE"] {
        assert!(checks.iter().any(|check| check["name"] == name), "no check of {name}");
    }
}

#[test]
fn only_what_is_asked_for_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let output = doctor(dir.path(), &["--json", "--seconds", "0.02", "--only", "dsync_4k_us,8x2"]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_latency(&report["dsync_4k_us"]);
    assert!(number(&report["loopback_echo_per_s"]["8x2"]) > 0.0);
    for name in ["dsync_64k_us", "seq_dsync_mb_per_s", "loopback_rtt_us", "expected_ack_us"] {
        assert!(report[name].is_null(), "{name} was measured: {report:#}");
    }
    assert!(report["loopback_echo_per_s"]["64x16"].is_null());
}

#[test]
fn a_directory_that_is_yet_to_be_made_is_not_made_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("data/shard");
    let output = doctor(&missing, &["--json", "--seconds", "0.02", "--only", "dsync_4k_us"]);
    assert!(output.status.success());
    assert_eq!(report(&output)["data"], dir.path().to_str().unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn where_no_log_can_be_written_the_exit_code_and_the_text_say_so() {
    let output = doctor(Path::new("/proc"), &["--quick"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("MISSING direct durable write"), "{text}");
    assert!(text.contains("CANNOT run here"), "{text}");
    for told in ["found   ", "wanted  ", "why     ", "how     ", "--explain"] {
        assert!(text.contains(told), "{told}: {text}");
    }
    // The reason stands beside every check.
    let kernel = text.lines().find(|line| line.contains(" kernel ")).unwrap();
    assert!(text.lines().any(|line| line.contains("check") && line.contains("why")), "{text}");
    assert!(kernel.split("  ").filter(|cell| !cell.trim().is_empty()).count() >= 5, "{kernel}");

    let output = doctor(Path::new("/proc"), &["--quick", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    assert_eq!(report["can_run"], false);
    assert!(report["dsync_4k_us"].is_null(), "nothing can have been measured");
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["--only", "dsync_5k_us"][..],
        &["--seconds", "0"],
        &["--seconds", "-1"],
        &["--seconds", "NaN"],
        &["--quick", "--seconds", "1"],
    ] {
        let output = doctor(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = doctor(dir.path(), &["--json", "--only", "1x1", "--quick", "--client-core", "4711"]);
    assert_eq!(output.status.code(), Some(1));
    let error = report(&output)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("4711"), "{error}");
}

/// 300 connections at once, each with a length, pieces and bytes of its own.
#[test]
fn the_echo_peer_returns_exactly_what_was_sent() {
    let server = EchoServer::start(None).unwrap();
    let byte = |connection: usize, position: usize| {
        (connection * 131 + position * 7 + position / 251 * 13 + position / 65_521) as u8
    };
    let workers = 12;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let addr = server.addr();
            scope.spawn(move || {
                let connections: Vec<_> = (worker..300).step_by(workers).collect();
                let mut streams: Vec<_> =
                    connections.iter().map(|_| TcpStream::connect(addr).unwrap()).collect();
                for (&connection, stream) in connections.iter().zip(&mut streams) {
                    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    // At most 40,000 bytes: less than the kernel buffers, so it
                    // may be written before anything is read.
                    let bytes: Vec<_> = (0..connection * 133 + 1).map(|at| byte(connection, at)).collect();
                    for piece in bytes.chunks(connection % 97 * 41 + 1) {
                        stream.write_all(piece).unwrap();
                    }
                    stream.shutdown(Shutdown::Write).unwrap();
                }
                for (&connection, stream) in connections.iter().zip(&mut streams) {
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).unwrap();
                    assert_eq!(back.len(), connection * 133 + 1, "length on connection {connection}");
                    let wrong = (0..back.len()).find(|&at| back[at] != byte(connection, at));
                    assert_eq!(wrong, None, "byte on connection {connection}");
                }
            });
        }
    });
}

/// What `serve` does at every start, so it has to be quick. A busy machine may
/// delay one try, not all of them.
#[test]
fn probing_takes_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let fastest = (0..10).map(|_| {
        let begun = Instant::now();
        probe::probe_ring().unwrap().require().unwrap();
        probe::probe_storage(dir.path()).unwrap();
        begun.elapsed()
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}
