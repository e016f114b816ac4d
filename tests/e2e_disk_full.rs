//! Brokers on file systems that are short of something: of room, or of direct
//! I/O.

mod net_common;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use net_common::cli::*;
use net_common::*;
use ringbolt_wire::message::Response;
use ringbolt_wire::{ErrorCode, Offset, PartitionId};
use tempfile::TempDir;

const ZERO: Offset = Offset(0);
const MEMORY: [&str; 2] = ["--memory", "96MiB"];

/// A file system in memory, unmounted when dropped.
struct Mount(TempDir);

impl Mount {
    /// None if the test was run elsewhere, or if this root may not mount, which is
    /// said.
    fn new(kind: &str, options: &str) -> Option<Mount> {
        if namespace::is_run_elsewhere() {
            return None;
        }
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(dir.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Mount(dir));
        }
        namespace::skipped(&format!("this root may not mount a {kind}"));
        None
    }
}

impl Mount {
    /// Gives it more room.
    fn grow(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Takes all room that is left.
fn fill(path: &Path) {
    let mut source = std::io::repeat(1).take(1 << 30);
    let mut filler = std::fs::File::create(path).unwrap();
    std::io::copy(&mut source, &mut filler).unwrap_err();
}

fn value(n: usize) -> Vec<u8> {
    vec![n as u8; 200_000 + n]
}

/// Produces until the disk is full; returns the number of batches that are
/// acknowledged.
fn produce_until_full(peer: &mut Peer, partition: PartitionId, mut acked: usize) -> usize {
    loop {
        match peer.try_produce(&batch(partition, &[&value(acked)])) {
            Response::Produced(ack) => assert_eq!(ack.base_offset, Offset(acked as u64)),
            refused => {
                assert_eq!(code(&refused), ErrorCode::DiskFull);
                assert!(ErrorCode::DiskFull.is_retryable());
                return acked;
            }
        }
        acked += 1;
    }
}

fn assert_all_there(peer: &mut Peer, partition: PartitionId, count: usize) {
    let values = peer.read_all(partition, ZERO);
    assert_eq!(values.len(), count);
    values.iter().enumerate().for_each(|(n, found)| assert!(*found == value(n), "record {n}"));
}

#[test]
fn a_full_disk_refuses_producing_passes_and_can_be_started_from() {
    let Some(mount) = Mount::new("tmpfs", "size=76m") else { return };
    let filler = mount.0.path().join("filler");
    std::fs::write(&filler, vec![1; 20 << 20]).unwrap();
    let mut server = Server::start(&mount.0, &MEMORY);
    let mut peer = Peer::greeted(server.addr);
    let partition = PartitionId::new(peer.topic("t", 1).id, 0);
    let full_at = produce_until_full(&mut peer, partition, 0);
    assert!(full_at > 100, "{full_at}");
    assert_all_there(&mut peer, partition, full_at);

    std::fs::remove_file(&filler).unwrap();
    resume(&mut peer, partition, full_at);
    let acked = produce_until_full(&mut peer, partition, full_at + 1);
    assert!(acked > full_at + 50, "{acked} after {full_at}");

    fill(&filler);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let server = Server::start(&mount.0, &[&MEMORY[..], &["--preallocate", "2"]].concat());
    let mut peer = Peer::greeted(server.addr);
    assert_all_there(&mut peer, partition, acked);
    assert_eq!(produce_until_full(&mut peer, partition, acked), acked, "there is no room yet");
    mount.grow("size=100m");
    resume(&mut peer, partition, acked);
    assert_all_there(&mut peer, partition, acked + 1);
}

/// Produces one batch, within a while after there is room.
fn resume(peer: &mut Peer, partition: PartitionId, next: usize) {
    let freed = Instant::now();
    while peer.try_produce(&batch(partition, &[&value(next)])).error_code() == Some(ErrorCode::DiskFull) {
        assert!(freed.elapsed() < Duration::from_secs(3), "it does not resume");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Of a refusal.
trait Refusal {
    fn error_code(&self) -> Option<ErrorCode>;
}

impl Refusal for Response {
    fn error_code(&self) -> Option<ErrorCode> {
        match self {
            Response::Error(error) => error.error_code(),
            _ => None,
        }
    }
}

/// A broker that may write buffered, and what it complained of until it listened.
fn serve_buffered(dir: &TempDir) -> (Server, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbolt"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--segment-size", "16MiB"]);
    command.args(MEMORY).args(["--allow-buffered", "--data"]).arg(dir.path().join("data"));
    let said = dir.path().join("said");
    let server = Server::spawn(command.env("RUST_LOG", "off").stderr(File::create(&said).unwrap()));
    (server, std::fs::read_to_string(said).unwrap())
}

/// A file system in memory has no direct I/O at all if it is a ramfs.
#[test]
fn without_direct_io_a_broker_serves_if_it_may_and_survives_a_sigkill() {
    let Some(mount) = Mount::new("ramfs", "mode=755") else { return };
    let mut refused = Command::new(env!("CARGO_BIN_EXE_ringbolt"))
        .args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--memory", "96MiB", "--data"])
        .arg(mount.0.path().join("other"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    refused.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(refused.wait().unwrap().code(), Some(1));
    assert!(text.contains("O_DIRECT") && text.contains("--allow-buffered"), "{text}");
    let looked_at = ringbolt(&["doctor", "--quick", "--data", mount.0.path().to_str().unwrap()], b"");
    assert_eq!(looked_at.code, 1, "{looked_at:?}");
    assert!(looked_at.out.contains("runs here only with serve --allow-buffered"), "{}", looked_at.out);

    let (mut acked, mut partition) = (0, None);
    for _ in 0..3 {
        let (mut server, said) = serve_buffered(&mount.0);
        assert!(said.contains("WARNING") && said.contains("page cache"), "{said}");
        assert_eq!(At(server.addr).run(&["stats", "--json"]).json()["stats"]["buffered_shards"], 1);
        let mut peer = Peer::greeted(server.addr);
        let partition = *partition.get_or_insert_with(|| PartitionId::new(peer.topic("t", 1).id, 0));
        assert_all_there(&mut peer, partition, acked);
        for _ in 0..120 {
            assert_eq!(peer.produce(&batch(partition, &[&value(acked)])), Offset(acked as u64));
            acked += 1;
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }
}
